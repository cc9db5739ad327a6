#!/bin/sh
# A live clock as server-sent events: one each second, for a minute.
#
# Uses: HTTP_LAST_EVENT_ID, which a browser sends when it connects again.
# Answers with text/event-stream; in a page, new EventSource(...) reads it.

# A server or proxy must pass each event on as it is written.
echo 'Content-Type: text/event-stream'
echo 'Cache-Control: no-store'
echo 'X-Accel-Buffering: no'
echo

# Carry on where a broken connection ended. Digits only: it is a stranger's text.
case $HTTP_LAST_EVENT_ID in
'' | *[!0-9]* | ???*) tick=0 ;;
*) tick=${HTTP_LAST_EVENT_ID#0} ;;
esac

# An event is a few "name: value" lines and an empty one. The shell writes each
# printf at once, with no buffer. When the visitor is gone, it ends the script.
while [ "$tick" -lt 60 ]; do
    tick=$((tick + 1))
    printf 'id: %d\ndata: %s\n\n' "$tick" "$(date +%H:%M:%S)"
    sleep 1
done

# Without a word from us the browser would connect again, for ever.
printf 'event: end\ndata: that was a minute\n\n'
