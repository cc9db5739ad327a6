"""Servers of files and scripts, each as its own people would set it up: no access log, sendfile, connections kept.

A peer says what it can do, what is missing, which version it is, and with which
commands it serves a folder on a port. Its configuration is written to a folder of
the benchmark's own. With root rights a server runs its scripts as root if it can.
"""

import os
import subprocess

from . import applications
from .peer import CORES, FASTCGI_PARAMS, IS_ROOT, Peer, first_match, nginx_commands, which
from .works import (
    APP,
    APPLICATION,
    FILE,
    FULL_END,
    HTTP_FLOOR,
    LISTING,
    OURS,
    PHP,
    PLAIN,
    RAW_FLOOR,
    SCRIPT,
    SLOW,
    WARM,
    WEB,
    WSGI,
    WSGI_PROCESSES,
)

# More than any work here has connections, so that none waits for a process of a pool.
SCRIPT_PROCESSES = 16


class ServeHere(Peer):
    name = OURS
    note = "as it is, with `--log off`; applications by `--php`, `--wsgi` with `--workers 2`, `--route`"
    kinds = {FILE, LISTING, SCRIPT, PHP, WSGI, APP, SLOW}
    is_peer = False

    def missing(self):
        return None

    def version(self):
        return first_match(r"(\d\S*)", self.site.serve_here, "--version")

    def commands(self, folder, port, work):
        return [[self.site.serve_here, "--log", "off", *self.options(work), port, self.site.folder]]

    def options(self, work):
        if work.kind == PHP:
            return ["--php"]
        if work.kind in {WSGI, APP}:
            python = ["--python", applications.PYTHON, "--workers", WSGI_PROCESSES]
            return ["--wsgi", f"{APPLICATION}:application", *python]
        if work.kind == SLOW:
            return ["--route", f"/={applications.slow_protocol(work)}:unix:{self.site.upstream}"]
        return []


class ServeHereLogged(ServeHere):
    name = "serve-here-log"
    note = "the same with its log as it is by default, written to /dev/null"
    kinds = WEB
    quiet = True

    def commands(self, folder, port, work):
        return [[self.site.serve_here, port, self.site.folder]]


class ServeHereWarm(ServeHere):
    name = WARM
    note = "scripts as it runs them by default, from prepared interpreters"
    kinds = {APP}

    def concerns(self, work):
        return work is not None and work.kind == APP

    def options(self, work):
        return []


class ServeHereFullEnd(ServeHere):
    name = FULL_END
    note = "the same with `--warm-full-end`: a prepared interpreter's child runs its whole end"

    def concerns(self, work):
        return work is not None and (work.warm or work.kind == APP)

    def options(self, work):
        return ["--warm-full-end"]


class ServeHerePlain(ServeHere):
    name = PLAIN
    note = "the same with `--no-warm`: each script has an interpreter of its own"

    def concerns(self, work):
        return work is not None and work.kind in {SCRIPT, APP}

    def options(self, work):
        return ["--no-warm"]


class Lighttpd(Peer):
    name = "lighttpd"
    note = "mod_cgi, mod_dirlisting; one process (`server.max-worker` at its default of 0)"
    program = "lighttpd"

    def version(self):
        return first_match(r"lighttpd/(\S+)", which(self.program), "-v")

    def commands(self, folder, port, work):
        config = folder / "lighttpd.conf"
        config.write_text(f"""
server.modules = ( "mod_cgi", "mod_dirlisting" )
server.document-root = "{self.site.folder}"
server.bind = "127.0.0.1"
server.port = {port}
server.max-fds = 4096
server.max-connections = 2048
server.max-keep-alive-requests = 65535
server.max-keep-alive-idle = 60
server.network-backend = "sendfile"
server.upload-dirs = ( "{folder}" )
dir-listing.activate = "enable"
$HTTP["url"] =~ "^/cgi-bin/" {{
    cgi.assign = ( "" => "" )
}}
""")
        return [[which(self.program), "-D", "-f", config]]


class Nginx(Peer):
    name = "nginx"
    note = (
        f"a worker per core, autoindex, open_file_cache (looks at a file once a minute); scripts by fcgiwrap, "
        f"{SCRIPT_PROCESSES} processes"
    )
    program = "nginx"
    loses_cpu = {SCRIPT}

    def missing(self):
        return super().missing() or (None if which("fcgiwrap") else "fcgiwrap is not installed")

    def version(self):
        wrapper = first_match(r"version (\S+)", which("fcgiwrap"), "-h")
        return first_match(r"nginx/(\S+)", which(self.program), "-v") + f", fcgiwrap {wrapper}"

    def commands(self, folder, port, work):
        socket = folder / "fcgiwrap.sock"
        inside = f"""
        root {self.site.folder};
        location / {{ autoindex on; }}
        location ^~ /cgi-bin/ {{
            fastcgi_pass unix:{socket};
{FASTCGI_PARAMS}
        }}"""
        options = "    open_file_cache max=1000 inactive=60s;"
        return [
            *nginx_commands(folder, port, inside, options=options),
            [which("fcgiwrap"), "-c", SCRIPT_PROCESSES, "-s", f"unix:{socket}"],
        ]


class H2o(Peer):
    name = "h2o"
    note = "a thread per core, file.dirlisting; files only"
    program = "h2o"
    kinds = {FILE, LISTING}

    def version(self):
        return first_match(r"version (\S+)", which(self.program), "--version")

    def commands(self, folder, port, work):
        config = folder / "h2o.conf"
        config.write_text(f"""
{"user: root" if IS_ROOT else ""}
num-threads: {CORES}
listen:
  host: 127.0.0.1
  port: {port}
hosts:
  default:
    paths:
      "/":
        file.dir: {self.site.folder}
        file.dirlisting: ON
""")
        return [[which(self.program), "-c", config]]


class Apache(Peer):
    name = "apache"
    note = "event MPM, mod_cgid (scripts as www-data if started by root), mod_autoindex"
    program = "apache2"
    loses_cpu = {SCRIPT}
    modules = "/usr/lib/apache2/modules"

    def missing(self):
        return super().missing() or (None if os.path.isdir(self.modules) else f"{self.modules} is missing")

    def version(self):
        return first_match(r"Apache/(\S+)", which(self.program), "-v")

    def commands(self, folder, port, work):
        config = folder / "apache.conf"
        modules = ["mpm_event", "authz_core", "mime", "dir", "autoindex", "cgid"]
        load = "\n".join(f"LoadModule {name}_module {self.modules}/mod_{name}.so" for name in modules)
        config.write_text(f"""
{load}
ServerRoot {folder}
ServerName localhost
DefaultRuntimeDir {folder}
PidFile {folder}/apache.pid
ErrorLog {folder}/error.log
ScriptSock {folder}/cgid.sock
TypesConfig /dev/null
Listen 127.0.0.1:{port}
{"User www-data" if IS_ROOT else ""}
{"Group www-data" if IS_ROOT else ""}
ThreadsPerChild 64
MaxRequestWorkers 256
ServerLimit 4
MaxKeepAliveRequests 0
KeepAliveTimeout 60
EnableSendfile On
DocumentRoot {self.site.folder}
<Directory {self.site.folder}>
    Require all granted
    AllowOverride None
    Options Indexes FollowSymLinks
    IndexOptions FancyIndexing NameWidth=*
</Directory>
<Directory {self.site.folder}/cgi-bin>
    Options +ExecCGI
    SetHandler cgi-script
</Directory>
""")
        return [[which(self.program), "-f", config, "-DFOREGROUND"]]


class Busybox(Peer):
    name = "busybox"
    note = "busybox httpd: a process per connection, one request per connection; no listings"
    program = "busybox"
    kinds = {FILE, SCRIPT}
    loses_cpu = {FILE, SCRIPT}

    def missing(self):
        if not which(self.program):
            return super().missing()
        applets = subprocess.run([which(self.program), "--list"], capture_output=True, text=True, check=False).stdout
        return None if "httpd" in applets.split() else "this busybox has no httpd"

    def version(self):
        return first_match(r"BusyBox v(\S+)", which(self.program))

    def commands(self, folder, port, work):
        return [[which(self.program), "httpd", "-f", "-p", f"127.0.0.1:{port}", "-h", self.site.folder]]


class Python(Peer):
    name = "python"
    note = (
        "`python3 -m http.server --cgi`: a thread per connection, one request per connection; scripts as nobody if "
        "started by root; its log can't be turned off and goes to /dev/null"
    )
    quiet = True

    def interpreter(self):
        """One that still has `--cgi` (Python 3.15 does not)."""
        for name in ["/usr/bin/python3", "python3", "python3.14", "python3.13", "python3.12", "python3.11"]:
            path = which(name)
            if path and first_match("(--cgi)", path, "-m", "http.server", "--help") == "--cgi":
                # The program itself and not a shell script in front of it.
                return first_match("(.+)", path, "-c", "import sys; print(sys.executable)")
        return None

    def missing(self):
        return None if self.interpreter() else "no Python with http.server --cgi"

    def version(self):
        return first_match(r"Python (\S+)", self.interpreter(), "--version")

    def commands(self, folder, port, work):
        serve = ["-m", "http.server", "--cgi", "--bind", "127.0.0.1", "--directory", self.site.folder, port]
        return [[self.interpreter(), *serve]]


class TinyHttp(Peer):
    name = "tiny_http"
    note = (
        "benches/plain_tiny_http.rs: 4 threads, `File::open` and `Response::from_file`; files only. The library sends "
        "head and content apart with Nagle's algorithm on: from 1 KB on a short answer waits 40 ms for the client's ACK"
    )
    kinds = {FILE}

    def missing(self):
        return None

    def version(self):
        return first_match(r"tiny_http v(\S+)", "cargo", "tree", "--locked", "--offline", "-i", "tiny_http")

    def commands(self, folder, port, work):
        return [[self.site.plain_tiny_http, f"127.0.0.1:{port}", self.site.folder]]


class HttpFloor(Peer):
    name = HTTP_FLOOR
    note = "benches/floor.c: the least HTTP around posix_spawn, read, waitpid; same load generator"
    kinds = {SCRIPT}
    is_peer = False

    def missing(self):
        return None

    def concerns(self, work):
        return work is not None and work.kind == SCRIPT

    def commands(self, folder, port, work):
        return [[self.site.floor, "http", port, SCRIPT_PROCESSES, self.site.script(work)]]


class RawFloor(HttpFloor):
    name = RAW_FLOOR
    note = "benches/floor.c: posix_spawn, read, waitpid on as many threads as there are connections; no HTTP"

    def loop(self, work, seconds):
        """The command that runs the loop and prints its figures."""
        return [self.site.floor, "raw", seconds, work.connections, self.site.script(work)]


OWN = [ServeHere, ServeHereLogged, ServeHereWarm, ServeHereFullEnd, ServeHerePlain]
ALL = [*OWN, Lighttpd, Nginx, H2o, Apache, Busybox, Python, TinyHttp, *applications.ALL, HttpFloor, RawFloor]
