#!/usr/bin/python3
import json
import os
import urllib.request

query = urllib.parse.parse_qs(os.environ["QUERY_STRING"])
request = urllib.request.Request("http://127.0.0.1/", json.dumps(query).encode())
print("Content-Type: text/plain\n")
print(json.dumps({"method": os.environ["REQUEST_METHOD"], "query": query, "upstream": request.get_method()}))
