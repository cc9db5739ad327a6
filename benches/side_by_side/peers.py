"""The servers, each as its own people would set it up for this: no access log, sendfile, connections kept.

A peer says what it can do, what is missing, which version it is, and with which
commands it serves a folder on a port. Its configuration is written to a folder of
the benchmark's own. With root rights a server runs its scripts as root if it can.
"""

import os
import re
import shutil
import subprocess

from .works import FILE, FULL_END, HTTP_FLOOR, LISTING, OURS, PLAIN, RAW_FLOOR, SCRIPT

CORES = len(os.sched_getaffinity(0))
IS_ROOT = os.geteuid() == 0
PATH = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
# More than any work here has connections, so that none waits for a process of a pool.
SCRIPT_PROCESSES = 16


def which(name):
    return shutil.which(name, path=PATH)


def first_match(pattern, *command):
    """What the pattern finds in what a command prints, on either stream."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "?"
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else "?"


class Peer:
    name = ""
    # What it is and how it is set up, for the reader of the figures.
    note = ""
    kinds = {FILE, LISTING, SCRIPT}
    program = ""
    # False for what nobody can choose instead: this server, the floors.
    is_peer = True
    # Kinds of work in which it ignores SIGCHLD: only a control group sees the time of the processes that it starts.
    loses_cpu = frozenset()
    # Its output is thrown away; a file would grow by a line per request.
    quiet = False

    def __init__(self, site):
        self.site = site

    def missing(self):
        """What isn't installed; None if all is there."""
        return None if which(self.program) else f"{self.program} is not installed"

    def version(self):
        return ""

    def concerns(self, work):
        """Whether it has a line in the table of a work, if only to say that it can't do it. None is the idle work."""
        return True

    def commands(self, folder, port, work):
        """Writes the configuration into the folder; returns the commands. Only the floor looks at the work."""
        raise NotImplementedError


class ServeHere(Peer):
    name = OURS
    note = "as it is, with `--log off`"
    is_peer = False

    def missing(self):
        return None

    def version(self):
        return first_match(r"(\d\S*)", self.site.serve_here, "--version")

    def commands(self, folder, port, work):
        return [[self.site.serve_here, "--log", "off", port, self.site.folder]]


class ServeHereLogged(ServeHere):
    name = "serve-here-log"
    note = "the same with its log as it is by default, written to /dev/null"
    quiet = True

    def commands(self, folder, port, work):
        return [[self.site.serve_here, port, self.site.folder]]


class ServeHereFullEnd(ServeHere):
    name = FULL_END
    note = "the same with `--warm-full-end`: a prepared interpreter's child runs its whole end"

    def concerns(self, work):
        return work is not None and work.warm

    def commands(self, folder, port, work):
        return [[self.site.serve_here, "--log", "off", "--warm-full-end", port, self.site.folder]]


class ServeHerePlain(ServeHere):
    name = PLAIN
    note = "the same with `--no-warm`: each script has an interpreter of its own"

    def concerns(self, work):
        return work is not None and work.kind == SCRIPT

    def commands(self, folder, port, work):
        return [[self.site.serve_here, "--log", "off", "--no-warm", port, self.site.folder]]


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
        config = folder / "nginx.conf"
        socket = folder / "fcgiwrap.sock"
        temporary = "\n".join(
            f"    {kind}_temp_path {folder}/{kind};" for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        )
        config.write_text(f"""
{"user root;" if IS_ROOT else ""}
daemon off;
worker_processes auto;
worker_rlimit_nofile 4096;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
{temporary}
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    open_file_cache max=1000 inactive=60s;
    server {{
        listen 127.0.0.1:{port} backlog=1024 reuseport;
        root {self.site.folder};
        location / {{ autoindex on; }}
        location ^~ /cgi-bin/ {{
            fastcgi_pass unix:{socket};
            fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name;
            fastcgi_param SCRIPT_NAME $fastcgi_script_name;
            fastcgi_param QUERY_STRING $query_string;
            fastcgi_param REQUEST_METHOD $request_method;
            fastcgi_param REQUEST_URI $request_uri;
            fastcgi_param CONTENT_TYPE $content_type;
            fastcgi_param CONTENT_LENGTH $content_length;
            fastcgi_param DOCUMENT_ROOT $document_root;
            fastcgi_param GATEWAY_INTERFACE CGI/1.1;
            fastcgi_param SERVER_SOFTWARE nginx;
            fastcgi_param SERVER_PROTOCOL $server_protocol;
            fastcgi_param SERVER_NAME $server_name;
            fastcgi_param SERVER_PORT $server_port;
            fastcgi_param REMOTE_ADDR $remote_addr;
            fastcgi_param REMOTE_PORT $remote_port;
        }}
    }}
}}
""")
        return [
            [which(self.program), "-p", folder, "-e", folder / "error.log", "-c", config],
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


OWN = [ServeHere, ServeHereLogged, ServeHereFullEnd, ServeHerePlain]
ALL = [*OWN, Lighttpd, Nginx, H2o, Apache, Busybox, Python, TinyHttp, HttpFloor, RawFloor]
