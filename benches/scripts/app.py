#!/usr/bin/python3
"""One application for WSGI servers and, run as a program, for CGI."""


def application(environ, start_response):
    says = f"method={environ['REQUEST_METHOD']} query={environ['QUERY_STRING']}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(says)))])
    return [says]


if __name__ == "__main__":
    from wsgiref.handlers import CGIHandler

    CGIHandler().run(application)
