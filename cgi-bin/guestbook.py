#!/usr/bin/env python3
# A guestbook that loses no entry, however many people write at once.
#
# Uses: REQUEST_METHOD, CONTENT_LENGTH, SCRIPT_NAME, HTTP_SEC_FETCH_SITE.
# GUESTBOOK_FILE names the book; otherwise it is in TMPDIR or /tmp. Keep such
# a file out of the folders that are served.

import fcntl
import html
import json
import os
import sys
import time
from urllib.parse import parse_qs, quote

BOOK = os.environ.get("GUESTBOOK_FILE") or f"{os.environ.get('TMPDIR') or '/tmp'}/guestbook-{os.getuid()}.jsonl"
MAX_BOOK_BYTES, MAX_BODY_BYTES, MAX_NAME, MAX_TEXT, SHOWN = 1 << 20, 16384, 40, 500, 50


def answer(status, content, *fields):
    print(f"Status: {status}", *fields, "Content-Type: text/html; charset=utf-8", sep="\n", end="\n\n")
    print('<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">')
    print(f'<title>Guestbook</title>\n<link rel="stylesheet" href="/www/style.css">\n<body class="answer">\n{content}')
    sys.exit()


def sign(name, text):
    entry = {"time": int(time.time()), "name": name, "text": text}
    # The lock holds until the file is closed, and closing writes the entry out.
    with open(BOOK, "ab", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o600)) as book:
        fcntl.flock(book, fcntl.LOCK_EX)
        if os.fstat(book.fileno()).st_size > MAX_BOOK_BYTES:
            answer("507 Insufficient Storage", "<p>The book is full.")
        # A line break on both sides: half an entry (disk full) spoils no other.
        book.write(b"\n" + json.dumps(entry).encode() + b"\n")


def entries():
    try:
        with open(BOOK, "rb") as book:
            fcntl.flock(book, fcntl.LOCK_SH)
            lines = book.read().split(b"\n")
    except FileNotFoundError:
        return
    for line in filter(None, reversed(lines)):
        try:
            yield json.loads(line)
        except ValueError:
            continue


sys.stdout.reconfigure(encoding="utf-8", errors="replace")
if os.environ.get("REQUEST_METHOD") == "POST":
    if os.environ.get("HTTP_SEC_FETCH_SITE") == "cross-site":
        answer("403 Forbidden", "<p>Another site sent this form in your name.")
    length = int(os.environ.get("CONTENT_LENGTH") or 0)
    if length > MAX_BODY_BYTES:
        answer("413 Content Too Large", "<p>That is too long.")
    fields = parse_qs(sys.stdin.buffer.read(length).decode("utf-8", "replace"))
    name, text = (fields.get(key, [""])[0].strip() for key in ("name", "text"))
    if not name or not text or len(name) > MAX_NAME or len(text) > MAX_TEXT:
        answer("422 Unprocessable Content", f"<p>A name (up to {MAX_NAME} letters) and a text (up to {MAX_TEXT}), please.")
    sign(name, text)
    # 303: the browser comes back with GET, so reloading does not sign twice.
    answer("303 See Other", "<p>Thank you.", f"Location: {quote(os.environ['SCRIPT_NAME'])}")

items = [
    f'<li><strong>{html.escape(entry["name"])}</strong> '
    f'<small>{time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(entry["time"]))}</small><p>{html.escape(entry["text"])}'
    for entry in entries()
]
answer("200 OK", f"""\
<form method="post">
<p><label>Name <input name="name" required maxlength="{MAX_NAME}" autocomplete="name"></label>
<p><label>Text <textarea name="text" required maxlength="{MAX_TEXT}" rows="2"></textarea></label>
<p><button>Sign</button> {len(items)} so far, the newest first
</form>
<ol class="entries">{"".join(items[:SHOWN])}</ol>""", "Cache-Control: no-store")
