#!/usr/bin/python3
import json
import os
import urllib.parse

query = urllib.parse.parse_qs(os.environ["QUERY_STRING"])
print("Content-Type: text/plain\n")
print(json.dumps({"method": os.environ["REQUEST_METHOD"], "query": query}))
