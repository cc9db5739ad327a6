#!/usr/bin/env python3
# Counts your visits in a cookie; a POST forgets them.
#
# Uses: HTTP_COOKIE, REQUEST_METHOD, SCRIPT_NAME. Answers with Set-Cookie.

import os
import re
from urllib.parse import quote

# Other programs on this host may have set cookies too: pick ours, trust nothing.
found = re.search(r"(?:^|; *)visits=([0-9]{1,6})(?:;|$)", os.environ.get("HTTP_COOKIE", ""))
visits = int(found[1]) + 1 if found else 1
script = quote(os.environ.get("SCRIPT_NAME", ""))
cookie = f"Path={script}; SameSite=Lax; HttpOnly"

if os.environ.get("REQUEST_METHOD") == "POST":
    # 303: come back with GET, so that reloading does not post again.
    print("Status: 303 See Other")
    print(f"Location: {script}")
    print(f"Set-Cookie: visits=0; Max-Age=0; {cookie}\n")
    raise SystemExit

print("Content-Type: text/html; charset=utf-8")
print("Cache-Control: no-store")
print(f"Set-Cookie: visits={visits}; Max-Age=2592000; {cookie}\n")
print(f"""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Counter</title>
<link rel="stylesheet" href="/www/style.css">
<body class="answer">
<p>You have been here <strong>{visits}</strong> time{"" if visits == 1 else "s"}.</p>
<form method="post" action="{script}"><a class="button" href="{script}">Visit again</a> <button>Forget me</button></form>""")
