#!/bin/sh
printf 'Content-Type: text/plain\n\nmethod=%s query=%s\n' "$REQUEST_METHOD" "$QUERY_STRING"
