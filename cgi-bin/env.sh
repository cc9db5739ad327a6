#!/bin/sh
# Shows everything a CGI program is told: its environment, sorted.
#
# Uses: all variables. REQUEST_METHOD, QUERY_STRING, SCRIPT_NAME, PATH_INFO,
# SERVER_* and REMOTE_* describe the request; each header field arrives as
# HTTP_ and its name (User-Agent is HTTP_USER_AGENT).
#
# Good for a look at your own machine. On a public server it would tell
# strangers how the server is set up.

# A response is header fields, an empty line, and the body.
echo 'Content-Type: text/plain; charset=utf-8'
echo 'X-Content-Type-Options: nosniff'
echo 'Cache-Control: no-store'
echo

env | LC_ALL=C sort
