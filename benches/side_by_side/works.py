"""What is asked of every server, and what this one has to reach."""

import dataclasses

QUERY = "n=1"
FILE, LISTING, SCRIPT = "file", "listing", "script"
# What a server of files and scripts is asked for; the other kinds need an application's own processes.
WEB = {FILE, LISTING, SCRIPT}
PHP, WSGI, APP, SLOW = "PHP program", "WSGI application", "application in several ways", "slow application"
OURS = "serve-here"
# With interpreters that run their whole end, and with none.
FULL_END, PLAIN = "serve-here-full", "serve-here-plain"
# With interpreters that end early, as they do by default. A row of its own only where `serve-here` is something else.
WARM = "serve-here-warm"
# The other one in front of slow applications.
PROXY = "nginx-proxy"
RAW_FLOOR = "floor"
HTTP_FLOOR = "floor-http"

# Below the folder that is served.
APPLICATION = "cgi-bin/app.py"
WSGI_PROCESSES = 2

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Work:
    name: str
    title: str
    kind: str
    path: str
    connections: int
    # What is asked for, for the check of the answer; only files have it.
    bytes: int = 0
    # So few answers in a round that counting them is too coarse; their bytes are counted instead.
    by_bytes: bool = False
    # What the script prints below its header.
    says: bytes = f"method=GET query={QUERY}\n".encode()
    # Its interpreter can be prepared.
    warm: bool = False
    # The server to which the ratios of its table are; the best peer if none is named.
    base: str | None = None


def script(name, title, says=Work.says, warm=False):
    return Work(
        f"cgi-{name}", f"CGI, {title}, 8 connections", SCRIPT, f"/cgi-bin/{name}.cgi?{QUERY}", 8, says=says, warm=warm
    )


PARSED = b'{"method": "GET", "query": {"n": ["1"]}'

WORKS = [
    Work("file-1k", "1 KB file, 64 connections", FILE, "/small.bin", 64, 1 << 10),
    Work("file-100k", "100 KB file, 64 connections", FILE, "/medium.bin", 64, 100 << 10),
    Work("file-100m", "100 MB file, 2 connections", FILE, "/large.bin", 2, 100 << 20, by_bytes=True),
    Work("listing", "Listing of 1,000 entries, 8 connections", LISTING, "/list/", 8),
    script("c", "static C program"),
    script("sh", "#!/bin/sh script"),
    script("py-empty", "Python without imports", b"hello\n", warm=True),
    script("py-parse", "Python with json and urllib.parse", PARSED + b"}\n", warm=True),
    script("py-request", "Python with json and urllib.request", PARSED + b', "upstream": "POST"}\n', warm=True),
    script("pl-cgi", "Perl with CGI.pm", warm=True),
    script("pl-plain", "Perl without modules"),
    Work("php", "PHP hello, 8 connections", PHP, f"/hello.php?{QUERY}", 8),
    Work("wsgi", f"WSGI hello, {WSGI_PROCESSES} workers, 16 connections", WSGI, f"/{APPLICATION}?{QUERY}", 16),
    Work("app", "One Python application in three ways, 8 connections", APP, f"/{APPLICATION}?{QUERY}", 8, base=PLAIN),
]
# Not a load by wrk: all requests at once, and then a wait for the application.
HOLDS = [
    Work("slow-http", "1,000 requests that wait for an application, by HTTP", SLOW, "/slow", 1000, base=PROXY),
    Work("slow-fastcgi", "1,000 requests that wait for an application, by FastCGI", SLOW, "/slow", 1000, base=PROXY),
]
# Not a load: measured on servers that nobody asks anything, or that just start.
IDLE = "idle"
IDLE_TITLE = "Idle memory, and start to first answer"
NAMES = [work.name for work in WORKS + HOLDS] + [IDLE]


def ready_path(work):
    """What a server is asked until it answers. An application may have all paths; a slow one answers one at once."""
    if work.kind in WEB:
        return WORKS[0].path
    return "/ready" if work.kind == SLOW else work.path


@dataclasses.dataclass(frozen=True)
class Target:
    """`measure` of a row of ours against `factor` times that of `against`, on a work."""

    work: str
    text: str
    measure: str  # rate, cpu, or another figure of a row
    factor: float
    # The name of a row; "best" for the best of the peers; None for a bound that is a figure itself.
    against: str | None = "best"
    ours: str = OURS


TARGETS = [
    Target("file-1k", "requests/s at least 1.0 × the best peer's", "rate", 1.0),
    Target("file-1k", "CPU per request at most 0.9 × the leanest peer's", "cpu", 0.9),
    Target("file-100k", "requests/s at least 1.0 × the best peer's", "rate", 1.0),
    Target("file-100m", "requests/s at least 1.0 × the best peer's", "rate", 1.0),
    Target("listing", "requests/s at least 2.0 × nginx's", "rate", 2.0, "nginx"),
    Target("listing", "requests/s at least 1.0 × h2o's", "rate", 1.0, "h2o"),
    Target("cgi-c", "requests/s at least 1.3 × the best peer's", "rate", 1.3),
    Target("cgi-c", "requests/s at least 0.7 × the floor's, same load generator", "rate", 0.7, HTTP_FLOOR),
    Target("cgi-sh", "requests/s at least 1.3 × the best peer's", "rate", 1.3),
    Target("cgi-py-empty", "requests/s at least 2.5 × the best peer's, whole end", "rate", 2.5, ours=FULL_END),
    Target("cgi-py-empty", "requests/s at least 5 × the best peer's", "rate", 5),
    Target("cgi-py-parse", "requests/s at least 4 × the best peer's, whole end", "rate", 4, ours=FULL_END),
    Target("cgi-py-parse", "requests/s at least 8 × the best peer's", "rate", 8),
    Target("cgi-py-request", "requests/s at least 5 × the best peer's, whole end", "rate", 5, ours=FULL_END),
    Target("cgi-py-request", "requests/s at least 12 × the best peer's", "rate", 12),
    Target("cgi-pl-cgi", "requests/s at least 6 × the best peer's", "rate", 6),
    Target("cgi-c", "requests/s at least 0.97 × ours with --no-warm", "rate", 0.97, PLAIN),
    Target("cgi-sh", "requests/s at least 0.97 × ours with --no-warm", "rate", 0.97, PLAIN),
    Target("cgi-pl-plain", "requests/s at least 0.97 × ours with --no-warm", "rate", 0.97, PLAIN),
    Target("php", "requests/s at least 1.0 × nginx's with php-cgi", "rate", 1.0, "nginx-php"),
    Target("wsgi", "requests/s at least 1.2 × gunicorn's, sync workers", "rate", 1.2, "gunicorn"),
    Target("app", "WSGI: requests/s at least 5 × plain CGI", "rate", 5, PLAIN),
    Target("slow-http", "memory (PSS) at most 1.5 × nginx's", "proportional", 1.5, PROXY),
    Target("slow-http", "CPU per request at most 1.5 × nginx's", "cpu", 1.5, PROXY),
    Target("slow-fastcgi", "memory (PSS) at most 1.5 × nginx's", "proportional", 1.5, PROXY),
    Target("slow-fastcgi", "CPU per request at most 1.5 × nginx's", "cpu", 1.5, PROXY),
    Target(IDLE, "resident memory after the start at most 6 MiB", "resident", 6 * MIB, None),
    Target(IDLE, "start to first answer at most 10 ms", "start_ms", 10, None),
]
