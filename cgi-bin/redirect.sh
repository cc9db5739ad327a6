#!/bin/sh
# Sends the visitor elsewhere, in three ways: ?to=absolute, relative, local.
#
# Uses: QUERY_STRING, REQUEST_SCHEME, HTTP_HOST. Answers with Location.
#
# The targets are fixed. A script that redirects to whatever the query says
# helps people who send out false links.

case $QUERY_STRING in
to=absolute)
    # The browser gets 302 and asks again, anywhere on the web.
    echo 'Status: 302 Found'
    echo "Location: ${REQUEST_SCHEME:-http}://${HTTP_HOST:-$SERVER_NAME:$SERVER_PORT}/cgi-bin/form.py?redirect=absolute"
    echo
    ;;
to=relative)
    # The same; the browser completes the address from that of this script.
    echo 'Status: 302 Found'
    echo 'Location: form.py?redirect=relative'
    echo
    ;;
to=local)
    # A path, and no other field: the server answers with that page at once.
    # The browser sees no redirect. The target finds REDIRECT_URL set.
    echo 'Location: /cgi-bin/env.sh'
    echo
    ;;
*)
    echo 'Status: 400 Bad Request'
    echo 'Content-Type: text/plain; charset=utf-8'
    echo
    echo 'Use ?to=absolute, ?to=relative or ?to=local.'
    ;;
esac
