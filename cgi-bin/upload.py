#!/usr/bin/env python3
# Takes uploaded files of any size in little memory, says what came, keeps nothing.
#
# Uses: REQUEST_METHOD, CONTENT_TYPE, CONTENT_LENGTH and standard input.

import hashlib
import html
import os
import re
import sys

BLOCK_BYTES, MAX_HEAD_BYTES, MAX_PARTS = 64 * 1024, 8 * 1024, 100
held = b"\r\n"  # what was read and not yet used; the first boundary has a line break too
left = int(os.environ.get("CONTENT_LENGTH") or 0)


def fill():
    global held, left
    block = sys.stdin.buffer.read(min(BLOCK_BYTES, left))
    if not block:
        raise ValueError("the body ends too early")
    held, left = held + block, left - len(block)


def until(mark):
    """Yields what comes before the mark, piece by piece, and steps over the mark."""
    global held
    while (at := held.find(mark)) < 0:
        sure = max(0, len(held) - len(mark) + 1)  # the rest may be the start of a mark
        piece, held = held[:sure], held[sure:]
        yield piece
        fill()
    piece, held = held[:at], held[at + len(mark) :]
    yield piece


def files():
    """Yields name, size and checksum of each part that is a file."""
    given = re.search(r'^multipart/form-data;.*boundary="?([^";]{1,70})', os.environ.get("CONTENT_TYPE", ""), re.I)
    if not given:
        raise ValueError("this is not multipart/form-data")
    boundary = b"\r\n--" + given[1].strip().encode("utf-8", "surrogateescape")
    for _ in until(boundary):
        pass
    for _ in range(MAX_PARTS):
        while len(held) < 2:
            fill()
        if held.startswith(b"--"):
            return
        head = b""
        for piece in until(b"\r\n\r\n"):
            head += piece
            if len(head) > MAX_HEAD_BYTES:
                raise ValueError("the header of a part is too long")
        size, digest = 0, hashlib.sha256()
        for piece in until(boundary):
            size += len(piece)
            digest.update(piece)
        if name := re.search(rb'filename="([^"\r\n]+)"', head):
            yield name[1].decode("utf-8", "replace"), size, digest.hexdigest()
    raise ValueError("there are too many parts")


sys.stdout.reconfigure(encoding="utf-8", errors="replace")
status, rows = "200 OK", ""
if os.environ.get("REQUEST_METHOD") == "POST":
    try:
        # The name is a stranger's text. Never use it as a path.
        rows = "".join(f"<tr><th>{html.escape(name)}<td>{size} bytes<td><code>{sha[:16]}…</code>" for name, size, sha in files())
        rows = rows or "<tr><td>No file came."
    except ValueError as error:
        status, rows = "400 Bad Request", f"<tr><td>Not an upload: {error}."
print(f"""\
Status: {status}
Content-Type: text/html; charset=utf-8

<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Upload</title>
<link rel="stylesheet" href="/www/style.css">
<body class="answer">
<table>{rows}</table>
<form method="post" enctype="multipart/form-data">
<label>Files <input type="file" name="file" multiple required></label>
<button>Upload</button>
</form>""")
