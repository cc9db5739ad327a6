#!/usr/bin/env python3
# Shows what a form sent, by GET in the address or by POST in the body.
#
# Uses: REQUEST_METHOD, QUERY_STRING, CONTENT_TYPE, CONTENT_LENGTH, and the
# body on standard input.

import html
import os
import sys
from urllib.parse import parse_qsl

MAX_BODY_BYTES = 64 * 1024
MAX_FIELDS = 100

PAGE = """\
Content-Type: text/html; charset=utf-8

<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Form</title>
<link rel="stylesheet" href="/www/style.css">
<body class="answer">
<p>Sent by {method}, {count} field(s):</p>
<table>{rows}</table>"""


def refuse(status, reason):
    print(f"Status: {status}\nContent-Type: text/plain; charset=utf-8\n\n{reason}")
    sys.exit()


def read_body():
    if os.environ.get("CONTENT_TYPE", "").split(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        refuse("415 Unsupported Media Type", "This script reads application/x-www-form-urlencoded.")
    length = int(os.environ.get("CONTENT_LENGTH") or 0)
    if length > MAX_BODY_BYTES:
        refuse("413 Content Too Large", f"At most {MAX_BODY_BYTES} bytes, please.")
    # Read as many bytes as were announced: not to the end, not by line.
    return sys.stdin.buffer.read(length).decode("utf-8", "replace")


# Answer in UTF-8 whatever the server's locale is.
sys.stdout.reconfigure(encoding="utf-8", errors="replace")
method = os.environ.get("REQUEST_METHOD", "GET")
if method not in ("GET", "HEAD", "POST"):
    refuse("405 Method Not Allowed\nAllow: GET, HEAD, POST", "Use GET or POST.")
sent = read_body() if method == "POST" else os.environ.get("QUERY_STRING", "")
try:
    fields = parse_qsl(sent, keep_blank_values=True, max_num_fields=MAX_FIELDS)
except ValueError:
    refuse("400 Bad Request", f"At most {MAX_FIELDS} fields, please.")
rows = "".join(f"<tr><th>{html.escape(name)}<td>{html.escape(value)}" for name, value in fields)
print(PAGE.format(method=method, count=len(fields), rows=rows))
