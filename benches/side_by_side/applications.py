"""Other servers in front of applications: PHP, WSGI, and one that makes its clients wait.

Each as its own people would set it up, with as many processes as this server has
workers, and each PHP process replaced after as many requests.
"""

from .peer import CORES, FASTCGI_PARAMS, IS_ROOT, Peer, first_match, nginx_commands, which
from .works import APPLICATION, PHP, PROXY, SLOW, WSGI, WSGI_PROCESSES

# The one that Debian's gunicorn and uWSGI run in.
PYTHON = "/usr/bin/python3"
# As many as `--php` starts by itself, and for as long.
PHP_PROCESSES = CORES
PHP_REQUESTS = 10_000
# Each kept connection holds a process: of more idle ones than that, some would wait for nothing.
POOL = PHP_PROCESSES
GUNICORN_THREADS = 8
# What this server keeps by default.
PROXY_POOL = 8


def slow_protocol(work):
    return work.name.removeprefix("slow-")


def nginx_version():
    return first_match(r"nginx/(\S+)", which("nginx"), "-v")


class NginxPeer(Peer):
    """nginx in front of something else."""

    program = "nginx"
    # What stands behind it.
    other = ""

    def missing(self):
        return super().missing() or (None if which(self.other) else f"{self.other} is not installed")

    def version(self):
        return f"{nginx_version()}, {self.other_version()}"


def php_location(site, socket, keep=True):
    """Inside of nginx's `server`, and the connections that it keeps."""
    inside = f"""
        root {site.folder};
        location ~ \\.php$ {{
            try_files $uri =404;
            fastcgi_pass php;
            fastcgi_keep_conn {"on" if keep else "off"};
{FASTCGI_PARAMS}
        }}"""
    options = f"""
    open_file_cache max=1000 inactive=60s;
    upstream php {{
        server unix:{socket};
        {f"keepalive {POOL};" if keep else ""}
    }}"""
    return inside, options


class NginxPhp(NginxPeer):
    name = "nginx-php"
    note = (
        f"a worker per core, `fastcgi_keep_conn`, a pool of {POOL} kept connections, open_file_cache; "
        f"php-cgi with PHP_FCGI_CHILDREN={PHP_PROCESSES}, PHP_FCGI_MAX_REQUESTS={PHP_REQUESTS}"
    )
    kinds = {PHP}
    other = "php-cgi"
    keep = True

    def other_version(self):
        return f"PHP {php_version(self.other)}"

    def commands(self, folder, port, work):
        socket = folder / "php.sock"
        inside, options = php_location(self.site, socket, self.keep)
        numbers = [f"PHP_FCGI_CHILDREN={PHP_PROCESSES}", f"PHP_FCGI_MAX_REQUESTS={PHP_REQUESTS}"]
        return [
            ["/usr/bin/env", *numbers, which("php-cgi"), "-b", socket],
            *nginx_commands(folder, port, inside, options=options),
        ]


class NginxPhpClose(NginxPhp):
    name = "nginx-php-close"
    note = "the same with a new connection for each request"
    keep = False


class LighttpdPhp(Peer):
    name = "lighttpd-php"
    note = (
        f"mod_fastcgi, which starts php-cgi with PHP_FCGI_CHILDREN={PHP_PROCESSES}, "
        f"PHP_FCGI_MAX_REQUESTS={PHP_REQUESTS}; a new connection for each request"
    )
    program = "lighttpd"
    kinds = {PHP}

    def missing(self):
        return super().missing() or (None if which("php-cgi") else "php-cgi is not installed")

    def version(self):
        version = first_match(r"lighttpd/(\S+)", which(self.program), "-v")
        return f"{version}, PHP {php_version('php-cgi')}"

    def commands(self, folder, port, work):
        config = folder / "lighttpd.conf"
        config.write_text(f"""
server.modules = ( "mod_fastcgi" )
server.document-root = "{self.site.folder}"
server.bind = "127.0.0.1"
server.port = {port}
server.max-fds = 4096
server.max-connections = 2048
server.max-keep-alive-requests = 65535
server.max-keep-alive-idle = 60
server.upload-dirs = ( "{folder}" )
fastcgi.server = ( ".php" => ((
    "bin-path" => "{which("php-cgi")}",
    "socket" => "{folder}/php.socket",
    "max-procs" => 1,
    "bin-environment" => (
        "PHP_FCGI_CHILDREN" => "{PHP_PROCESSES}",
        "PHP_FCGI_MAX_REQUESTS" => "{PHP_REQUESTS}"
    ),
    "bin-copy-environment" => ( "PATH" ),
    "broken-scriptfilename" => "enable"
)) )
""")
        return [[which(self.program), "-D", "-f", config]]


def php_version(program):
    return first_match(r"PHP (\d\S*)", which(program), "-v")


def fpm():
    """Debian's program has the version in its name."""
    return next((name for name in ["php-fpm", *(f"php-fpm8.{n}" for n in range(9, -1, -1))] if which(name)), "php-fpm")


def fpm_command(folder, socket):
    config = folder / "fpm.conf"
    config.write_text(f"""
[global]
error_log = {folder}/fpm.log
daemonize = no
[www]
{"user = root" if IS_ROOT else ""}
listen = {socket}
pm = static
pm.max_children = {PHP_PROCESSES}
pm.max_requests = {PHP_REQUESTS}
""")
    return [which(fpm()), *(["-R"] if IS_ROOT else []), "-F", "-y", config]


class NginxFpm(NginxPeer):
    name = "nginx-fpm"
    note = (
        f"as `nginx-php`, in front of php-fpm: `pm = static`, `pm.max_children = {PHP_PROCESSES}`, "
        f"`pm.max_requests = {PHP_REQUESTS}`"
    )
    kinds = {PHP}
    other = fpm()

    def other_version(self):
        return f"PHP {php_version(self.other)}"

    def commands(self, folder, port, work):
        socket = folder / "php.sock"
        inside, options = php_location(self.site, socket)
        return [fpm_command(folder, socket), *nginx_commands(folder, port, inside, options=options)]


class ServeHereFpm(Peer):
    name = "serve-here-fpm"
    note = f"`--route '*.php=fastcgi:unix:PATH,connections={PHP_PROCESSES}'` in front of the same php-fpm"
    kinds = {PHP}
    is_peer = False

    def missing(self):
        return None if which(fpm()) else "php-fpm is not installed"

    def version(self):
        return f"PHP {php_version(fpm())}"

    def commands(self, folder, port, work):
        socket = folder / "php.sock"
        route = f"*.php=fastcgi:unix:{socket},connections={PHP_PROCESSES}"
        return [
            fpm_command(folder, socket),
            [self.site.serve_here, "--log", "off", "--route", route, port, self.site.folder],
        ]


class Gunicorn(Peer):
    name = "gunicorn"
    note = f"`-w {WSGI_PROCESSES}`, sync workers, HTTP straight to them: one request per connection"
    program = "gunicorn"
    kinds = {WSGI}

    def version(self):
        return first_match(r"version (\d[^\s)]*)", which(self.program), "--version")

    def commands(self, folder, port, work):
        return [self.gunicorn(folder, f"127.0.0.1:{port}")]

    def gunicorn(self, folder, address, *options):
        path, _, file = APPLICATION.rpartition("/")
        # Its manual: the workers' heartbeat files belong in memory.
        places = ["--chdir", self.site.folder / path, "--worker-tmp-dir", "/dev/shm"]
        quiet = ["--log-level", "warning"]
        workers = ["-w", WSGI_PROCESSES, *options]
        return [which(self.program), *workers, *places, *quiet, "-b", address, file.removesuffix(".py")]


class GunicornThreads(Gunicorn):
    name = "gunicorn-gthread"
    note = f"`-w {WSGI_PROCESSES} -k gthread --threads {GUNICORN_THREADS}`, which keeps connections"

    def commands(self, folder, port, work):
        threads = ["-k", "gthread", "--threads", GUNICORN_THREADS, "--keep-alive", "60"]
        return [self.gunicorn(folder, f"127.0.0.1:{port}", *threads)]


class NginxGunicorn(Gunicorn):
    name = "nginx-gunicorn"
    note = "gunicorn's sync workers on a Unix socket behind nginx, a worker per core: connections of clients are kept"

    def missing(self):
        return super().missing() or (None if which("nginx") else "nginx is not installed")

    def version(self):
        return f"{nginx_version()}, gunicorn {super().version()}"

    def commands(self, folder, port, work):
        socket = folder / "gunicorn.sock"
        inside = f"""
        location / {{
            proxy_pass http://unix:{socket}:;
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}"""
        return [self.gunicorn(folder, f"unix:{socket}"), *nginx_commands(folder, port, inside)]


class NginxUwsgi(NginxPeer):
    name = "nginx-uwsgi"
    note = (
        f"a worker per core, `uwsgi_pass` to a Unix socket; uWSGI with `--master --processes {WSGI_PROCESSES} "
        "--disable-logging --need-app`: written in C, the interpreter runs nothing but the application"
    )
    kinds = {WSGI}
    other = "uwsgi"

    def other_version(self):
        version = first_match(r"(\d\S*)", which("uwsgi"), "--version")
        return f"uWSGI {version}"

    def commands(self, folder, port, work):
        socket = folder / "uwsgi.sock"
        inside = f"""
        location / {{
            uwsgi_pass unix:{socket};
            include /etc/nginx/uwsgi_params;
        }}"""
        how = ["--plugin", "python3", "--master", "--processes", WSGI_PROCESSES, "--disable-logging", "--need-app"]
        where = ["--socket", socket, "--listen", "1024", "--wsgi-file", self.site.folder / APPLICATION]
        return [[which("uwsgi"), *how, *where], *nginx_commands(folder, port, inside)]


class NginxProxy(Peer):
    name = PROXY
    note = (
        "a worker per core, `proxy_pass` (HTTP/1.1) or `fastcgi_pass` (`fastcgi_keep_conn`) to a Unix socket, "
        f"a pool of {PROXY_POOL} kept connections"
    )
    program = "nginx"
    kinds = {SLOW}

    def version(self):
        return nginx_version()

    def commands(self, folder, port, work):
        how = {
            "http": f"""
            proxy_pass http://slow;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;""",
            "fastcgi": f"""
            fastcgi_pass slow;
            fastcgi_keep_conn on;
{FASTCGI_PARAMS}""",
        }
        inside = f"        location / {{{how[slow_protocol(work)]}\n        }}"
        options = f"    upstream slow {{ server unix:{self.site.upstream}; keepalive {PROXY_POOL}; }}"
        # A client and its connection to the application take one each, and one worker may have all of them.
        return nginx_commands(folder, port, inside, connections=4 * work.connections, options=options)


ALL = [
    NginxPhp,
    NginxPhpClose,
    LighttpdPhp,
    NginxFpm,
    ServeHereFpm,
    Gunicorn,
    GunicornThreads,
    NginxGunicorn,
    NginxUwsgi,
    NginxProxy,
]
