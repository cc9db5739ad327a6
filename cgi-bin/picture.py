#!/usr/bin/env python3
# Draws a PNG picture from a name: ?name=Ada&size=240. Each name has its own.
#
# Uses: QUERY_STRING, HTTP_IF_NONE_MATCH. Answers with a binary body and an
# ETag, and with 304 when the browser has the picture already.

import colorsys
import hashlib
import os
import struct
import sys
import zlib
from urllib.parse import parse_qs

CELLS, MIN_SIZE, MAX_SIZE = 5, 30, 600


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def draw(seed, size):
    # One byte of the seed for each cell of the left half; the right mirrors it.
    on = lambda x, y: seed[2 + y * 3 + min(x, CELLS - 1 - x)] & 1
    colour = bytes(round(255 * part) for part in colorsys.hls_to_rgb(seed[0] / 256, 0.5, 0.6))
    rows = []
    for pixel_y in range(size):
        y = pixel_y * CELLS // size
        # A row is a filter byte (0: none) and an index into the palette for each pixel.
        rows.append(b"\0" + bytes(on(pixel_x * CELLS // size, y) for pixel_x in range(size)))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", b"\xf4\xf1\xea" + colour)
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )


query = parse_qs(os.environ.get("QUERY_STRING", ""), errors="surrogateescape")
name = query.get("name", ["serve-here"])[0]
wanted = query.get("size", ["240"])[0]
size = int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) < 5 else 240
size = max(MIN_SIZE, min(MAX_SIZE, size))
seed = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
etag = f'"{seed.hex()[:16]}-{size}"'

seen = [tag.strip().removeprefix("W/") for tag in os.environ.get("HTTP_IF_NONE_MATCH", "").split(",")]
if etag in seen or "*" in seen:
    print(f"Status: 304 Not Modified\nETag: {etag}\n")
    raise SystemExit
picture = draw(seed, size)
head = f"Content-Type: image/png\nContent-Length: {len(picture)}\nETag: {etag}\nCache-Control: no-cache\n\n"
# Bytes go to sys.stdout.buffer; print() is for text.
sys.stdout.buffer.write(head.encode() + picture)
