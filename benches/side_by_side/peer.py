"""What all contenders have in common: how one is found, described and started."""

import os
import re
import shutil
import subprocess

from .works import FILE, LISTING, SCRIPT, WEB

CORES = len(os.sched_getaffinity(0))
IS_ROOT = os.geteuid() == 0
PATH = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"


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
        return work is None or work.kind in WEB or work.kind in self.kinds

    def commands(self, folder, port, work):
        """Writes the configuration into the folder; returns the commands. Only the floor looks at the work."""
        raise NotImplementedError


# What a FastCGI program is told.
FASTCGI_PARAMS = """
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
"""


def nginx_commands(folder, port, inside, connections=1024, options=""):
    """nginx with a worker per core and what stands inside its `server`; `options` go before that."""
    config = folder / "nginx.conf"
    temporary = "\n".join(
        f"    {kind}_temp_path {folder}/{kind};" for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    )
    config.write_text(f"""
{"user root;" if IS_ROOT else ""}
daemon off;
worker_processes auto;
worker_rlimit_nofile {4 * connections};
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections {connections}; }}
http {{
{temporary}
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
{options}
    server {{
        listen 127.0.0.1:{port} backlog=1024 reuseport;
{inside}
    }}
}}
""")
    return [[which("nginx"), "-p", folder, "-e", folder / "error.log", "-c", config]]
