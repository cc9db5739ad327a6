"""Asking: single requests that are looked at closely, and load by wrk."""

import http.client
import json
import shutil
import socket
import subprocess
import time

from .peer import first_match

SAMPLE_SECONDS = 0.2

# What wrk prints is rounded for people; these are its own numbers.
REPORT = """
done = function(summary, latency)
    local e = summary.errors
    local failed = e.connect + e.write + e.status + e.timeout
    io.write(string.format(
        '\\n{"requests": %d, "seconds": %.6f, "bytes": %.0f, "failed": %d, "broken_off": %d, "p99_us": %.0f}\\n',
        summary.requests, summary.duration / 1e6, summary.bytes, failed, e.read, latency:percentile(99)))
end
"""


class LoadError(Exception):
    pass


class Answer:
    """Status, content type, content, how its end is known, and whether the server closes the connection after it."""

    def __init__(self, port, path):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            self.status = response.status
            self.media_type = response.headers.get_content_type()
            self.closes = response.will_close
            self.has_end = response.chunked or response.length is not None
            self.content = response.read()
        finally:
            connection.close()


def await_answer(server, port, path, seconds):
    """Connects again and again, without a pause, until the path is answered with 200. False if it never is."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not server.has_ended():
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
                connection.sendall(request)
                if connection.recv(4096).startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
                    return True
        except OSError:
            pass
    return False


class Wrk:
    def __init__(self, place):
        self.program = shutil.which("wrk")
        if self.program is None:
            raise LoadError("wrk is not installed (benches/install-needs installs it)")
        self.script = place.folder / "report.lua"
        self.script.write_text(REPORT)

    def version(self):
        return first_match(r"wrk (\S+)", self.program, "-v")

    def run(self, server, port, work, seconds):
        """Puts the load on the server. Returns wrk's figures with the server's CPU time and largest memory."""
        command = [self.program, "-t1", f"-c{work.connections}", f"-d{seconds}s", "--latency", "-s", self.script]
        before = server.cpu_us()
        figures, resident = run_and_sample([*command, f"http://127.0.0.1:{port}{work.path}"], server)
        figures["cpu_us"] = server.cpu_us() - before
        figures["resident"] = resident
        return figures


def run_and_sample(command, server=None):
    """Runs a command that ends with a line of JSON; looks at the server's memory meanwhile."""
    process = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    resident = 0
    try:
        while process.poll() is None:
            if server:
                resident = max(resident, server.resident_bytes())
            time.sleep(SAMPLE_SECONDS)
        output = process.stdout.read().decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    try:
        return json.loads(output.strip().splitlines()[-1]), resident
    except (IndexError, ValueError):
        raise LoadError(f"{command[0]} printed no figures: {output.strip()[-300:]}") from None
