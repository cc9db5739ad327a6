"""Starts workers as the server does, and speaks SCGI with them.

`WSGI_PYTHON` chooses the interpreter of the workers; else it is that of the tests.
"""

import array
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = ROOT / "src/workers/wsgi.py"
APPLICATIONS = ROOT / "tests/fixtures/wsgi"
PYTHON = os.environ.get("WSGI_PYTHON", sys.executable)

DEADLINE_SECONDS = 20
RECORD = struct.Struct("<QQIIQ")
IDLE, RUNNING, WAITING = range(3)

VARIABLES = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/",
    "QUERY_STRING": "",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "8080",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "127.0.0.1",
}


def eventually(condition, what):
    """What `condition` returns once it is true."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.005)
    raise AssertionError("never came: " + what)


def netstring(data):
    return b"%d:%b," % (len(data), data)


def head(length=0, **changes):
    """The SCGI head; a variable that is None is left out."""
    pairs = {"CONTENT_LENGTH": str(length), "SCGI": "1", **VARIABLES, **changes}
    pairs = {name: value for name, value in pairs.items() if value is not None}
    return netstring("".join(f"{n}\0{v}\0" for n, v in pairs.items()).encode("latin-1"))


class Answer:
    """Read to its end; `whole` tells whether that is where it should be."""

    def __init__(self, data, files=(), method="GET"):
        self.data = data
        self.files = files
        begin, _, self.rest = data.partition(b"\r\n\r\n")
        lines = begin.decode("latin-1").split("\r\n")
        self.fields = [tuple(line.split(": ", 1)) for line in lines if line]
        self.status = self.field("Status")
        self.whole = bool(_)
        length = self.field("Content-Length")
        if method == "HEAD" or (self.status or "")[:3] in ("204", "304"):
            self.body = self.rest
        elif self.field("Transfer-Encoding") == "chunked":
            self.chunks, self.whole = chunks(self.rest)
            self.body = b"".join(self.chunks)
        else:
            self.body = self.rest
            self.whole = self.whole and length == str(len(self.body))

    def field(self, name):
        values = [value for key, value in self.fields if key.lower() == name.lower()]
        assert len(values) < 2, values
        return values[0] if values else None


def chunks(data):
    found = []
    while data:
        size, _, data = data.partition(b"\r\n")
        size = int(size, 16)
        if size == 0:
            assert data == b"\r\n", data
            return found, True
        if len(data) < size + 2:
            break
        assert data[size:size + 2] == b"\r\n", data
        found.append(data[:size])
        data = data[size + 2:]
    return found, False


class Conversation:
    """One connection to the workers."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE_SECONDS)
        self.socket.connect(path)
        self.data = b""

    def send(self, *data):
        self.socket.sendall(b"".join(data))
        return self

    def until(self, end):
        while end not in self.data:
            more = self.socket.recv(65536)
            assert more, self.data
            self.data += more
        return self.data

    def read(self, method="GET"):
        files = []
        with self.socket:
            while True:
                try:
                    data, ancillary, _, _ = self.socket.recvmsg(1 << 16, socket.CMSG_SPACE(16))
                except ConnectionResetError:
                    # The worker has not read all of the body.
                    break
                if not data:
                    break
                self.data += data
                for _, _, rights in ancillary:
                    files += array.array("i", rights[:len(rights) // 4 * 4])
        return Answer(self.data, files, method)

    def close(self):
        self.socket.close()


class Server:
    """The server's part: the socket, the control socket, the board, processes."""

    def __init__(self, *arguments, folder=APPLICATIONS, slots=4, threads=1, python=PYTHON,
                 environment=(), command=(str(WORKER),), control=True, backlog=128):
        self.private = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.private.name, "socket")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(backlog)
        self.board = tempfile.TemporaryFile()
        self.board.truncate(slots * threads * RECORD.size)
        self.printed = open(os.path.join(self.private.name, "printed"), "w+b")
        self.control, theirs = socket.socketpair()
        self.control.setblocking(False)
        options = []
        if control:
            options = ["--control", str(theirs.fileno()), "--board", str(self.board.fileno()),
                       "--threads", str(threads)]
        self.start = [python, *command, *options, *arguments]
        self.options = {
            "stdin": self.listener, "stdout": self.printed, "stderr": self.printed,
            "cwd": folder, "pass_fds": (theirs.fileno(), self.board.fileno()),
            "env": {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **dict(environment)},
        }
        self.theirs = theirs
        self.said = b""
        self.processes = []
        self.spawn()

    def spawn(self):
        """One more process."""
        process = subprocess.Popen(self.start, **self.options)
        self.processes.append(process)
        return process

    @property
    def process(self):
        return self.processes[0]

    def messages(self):
        """What was said on the control socket: lists of words, the pid first."""
        while True:
            try:
                data = self.control.recv(65536)
            except (BlockingIOError, OSError):
                break
            if not data:
                break
            self.said += data
        lines = self.said.split(b"\n")[:-1]
        return [line.decode().split(" ", 2) for line in lines]

    def said_words(self, word):
        return [message for message in self.messages() if message[1] == word]

    def await_message(self, word, count=1):
        def settled():
            # Looked at first: what they said before they ended is there then.
            all_ended = all(process.poll() is not None for process in self.processes)
            return len(self.said_words(word)) >= count or all_ended

        eventually(settled, f"{word} x {count}")
        found = self.said_words(word)
        if len(found) < count:
            raise AssertionError(f"never said: {word}; but {self.messages()}\n{self.output()}")
        return found[count - 1]

    def ready(self, count=1):
        self.await_message("ready", count)
        return self

    def tell(self, line):
        self.control.sendall(line.encode() + b"\n")

    def connect(self):
        return Conversation(self.path)

    def ask(self, path="/", body=b"", method="GET", **changes):
        changes = {"PATH_INFO": path, "REQUEST_METHOD": method, **changes}
        return self.connect().send(head(len(body), **changes), body).read(method)

    def record(self, number=0):
        """(id, since, pid, state, served)"""
        data = os.pread(self.board.fileno(), RECORD.size, number * RECORD.size)
        return RECORD.unpack(data)

    def await_state(self, state, number=0):
        return eventually(lambda: self.record(number)[3] == state and self.record(number), f"state {state}")

    def output(self):
        with open(self.printed.name, "rb") as file:
            return file.read().decode()

    def await_output(self, text):
        return eventually(lambda: text in self.output() and self.output(), repr(text))

    def status(self, process=None):
        """The exit status, once there is one."""
        return (process or self.process).wait(DEADLINE_SECONDS)

    def stop(self):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(DEADLINE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for each in (self.control, self.theirs, self.listener, self.board, self.printed):
            each.close()
        self.private.cleanup()


class Case(unittest.TestCase):
    def serve(self, *arguments, ready=True, **options):
        server = Server(*arguments, **options)
        self.addCleanup(server.stop)
        if ready:
            server.ready()
        return server
