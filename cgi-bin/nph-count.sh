#!/bin/sh
# Counts to five and writes the whole HTTP response itself, the status line too.
#
# A script whose name starts with nph- ("non-parsed header") talks to the
# browser: the server adds nothing and changes nothing.
#
# Uses: SERVER_PROTOCOL, REQUEST_METHOD.

# Lengths are bytes, not letters; the date is in English.
LC_ALL=C
export LC_ALL

crlf=$(printf '\r\n.')
crlf=${crlf%.}

# HTTP/1.1 can mark each piece with its length, and so the end too: a count that
# broke off looks different from one that is done. HTTP/1.0 only has the closed
# connection.
case $SERVER_PROTOCOL in
HTTP/1.1) version=HTTP/1.1 framing="Transfer-Encoding: chunked$crlf" ;;
*) version=HTTP/1.0 framing= ;;
esac

say() {
    if [ -n "$framing" ]; then
        printf '%x\r\n%s\r\n' "${#1}" "$1"
    else
        printf '%s' "$1"
    fi
}

printf '%s 200 OK\r\n%s' "$version" "$framing"
printf 'Date: %s\r\n' "$(date -u '+%a, %d %b %Y %H:%M:%S GMT')"
printf 'Content-Type: text/plain; charset=utf-8\r\n'
printf 'X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n'

# The body of HEAD is ours to leave out.
[ "$REQUEST_METHOD" = HEAD ] && exit

for number in one two three four five; do
    say "$number
"
    sleep 1
done
say "Written by this script, from \"$version 200 OK\" on.
"
[ -z "$framing" ] || printf '0\r\n\r\n'
