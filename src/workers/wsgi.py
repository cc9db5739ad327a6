"""Serves one WSGI application (PEP 3333) over SCGI: one process of several.

The server binds a Unix socket, starts workers on it and watches them. A worker
takes connections itself, whenever one of its threads is free. It owns the
application and nothing else: no addresses, no restarts, no time limits.

# Start

    python3 FILE [OPTIONS] APPLICATION

with the project's folder as working directory, the listening socket as
descriptor 0, and 1 and 2 for what the application prints. Descriptor 0 is
/dev/null before any of the application's code runs.

    APPLICATION          module, module:name, package.module:object.attribute,
                         path/to/file.py:name, module:factory(), and
                         module:factory("literal", key=1). Without a name:
                         `application`, then `app`.
    --path DIR           first in sys.path; repeatable; else the working directory
    --threads N          requests at a time; 1
    --multiprocess       other processes serve the application too
    --control FD         a stream socket to the server: messages, see below
    --board FD           a file that shows what each thread does, see below
    --slot N             this worker's place on the board; 0
    --max-requests N     retire after that many; 0: never
    --max-memory MIB     retire after the request that goes beyond; 0: never
    --retire-wait SECS   serve on for so long after `retire`, unless SIGTERM
                         comes, so that another can be ready first; 0
    --files              report the files of the application, for --reload
    --pass-files         hand files of wsgi.file_wrapper over, see below
    --preload            import, then fork workers when told to

# End

    0   left as it should: SIGTERM, SIGINT, retired, or the server is gone
    1   cannot serve: no listening socket, say
    2   wrong usage
    3   the import of the application raised
    4   imported, but there is no WSGI application of that name

SIGTERM and SIGINT: takes no more connections, finishes what runs, leaves. While
the application is imported they end the process at once. At its end the
interpreter waits for threads that the application started and that are not
daemons; the server need not. SIGHUP does nothing: a closing terminal says it to
all. SIGABRT: writes where each thread is to descriptor 2 and dies; that is for a
stuck worker. A connection that nobody has taken stays in the socket's queue for
the others.

# Messages

Lines on the control socket, each written at once, at most 4096 bytes, beginning
with the sender's pid. When the server closes its end, all leave as by SIGTERM.

    PID file PATH              loaded; comes again whenever more were imported
    PID ready                  serves from now on
    PID trace TEXT             the traceback, line by line, before `failed`; without a
                               control socket it is printed
    PID failed import TEXT     exit status 3; TEXT is the error in one line
    PID failed application TEXT        exit status 4
    PID pong                   answers the line `ping`, unless it is at work
    PID retire requests|memory         wants to be replaced (--retire-wait)
    PID leaving signal|requests|memory|orphan

With --preload the process started is the parent of the workers. It says `loaded`
instead of `ready`, and obeys the line `fork SLOT`. With that line may come three
descriptors (SCM_RIGHTS) for the new worker alone: its listening socket, what it
prints to, and a control socket of its own. Signals for a worker go to it directly;
a SIGTERM for the parent is passed on to all, and it leaves after them.

    PID loaded
    PID forked SLOT WORKER
    PID exited WORKER code|signal N
    PID failed fork SLOT TEXT          none was made; the parent goes on

# Board

One record of 32 bytes a thread, those of a worker one after the other, from
SLOT x threads on; little-endian:

    u64 id       SERVE_HERE_ID of the request, a variable that it alone sees
    u64 since    CLOCK_MONOTONIC, ns, when the application last got control
    u32 pid
    u32 state    0 idle, 1 the application runs, 2 waits for the connection
    u64 served   requests begun by this thread

A request is stuck if its record says 1 and the same `since` for too long; a slow
client makes it 2. Not locked: look twice before acting.

# Request

SCGI, one a connection: CONTENT_LENGTH first and always, SCGI=1, each name once,
then the body of exactly that length. What breaks these rules is told on
descriptor 2, and the connection closed without an answer.

With the variable SERVE_HERE_KEEP another request may follow on the connection, if
the answer has promised that (X-CGI-Keep). A newline in the place of a request, or
behind one, says that nobody waits for an answer any more: the connection is closed.

# Answer

A CGI response that always shows its end: Content-Length, or `Transfer-Encoding:
chunked`, or none of both for HEAD, 204 and 304. An answer cut short is an
application that failed. After its end the connection means nothing, unless it is
kept. Private fields, of which an application can send none:

    X-CGI-Error: TEXT            status 500, no body: the application raised this
                                 before its first byte; the page is the server's
    X-CGI-Trace: TEXT            beside it, the end of the traceback, %-encoded
    X-CGI-File: OFFSET LENGTH    the body is that part of the file whose descriptor
                                 comes with the first byte (SCM_RIGHTS), not bytes
                                 of the connection; use offsets, not the position
    X-CGI-Keep: now|later        another request may follow on this connection: at once,
                                 or, where the application may have something left to
                                 do (`close`), when a newline comes behind the body.
                                 Only with a Content-Length, or where there is no body;
                                 if the connection ends instead, that is no fault
"""
import sys

if __name__ == "__main__" and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    # Where this file or the project lies: neither may stand in for the standard library.
    del sys.path[0]

import array
import errno
import faulthandler
import gc
import io
import mmap
import os
import re
import select
import signal
import socket
import stat
import struct
import threading
import time
import traceback

DEFAULT_NAMES = ("application", "app")

MAX_HEAD_BYTES = 1 << 20
# In the place of a request, or behind one.
GIVEN_UP = b"\n"
# Behind a body.
FREE = b"\n"
# The head of nearly every request, and many a body, in one call.
RECEIVE_BYTES = 64 << 10
BODY_BYTES = 256 << 10
# Up to here the first block is copied behind the head, to go out with it.
JOIN_BYTES = 64 << 10
MESSAGE_BYTES = 4096
TRACE_BYTES = 64 << 10
# In a field, where each may take nine bytes or more.
TRACE_FIELD_CHARACTERS = 2 << 10
# Names and statuses that were found right; more are checked each time.
CHECKED_MAX = 1024

# An idle worker looks about: at its time to retire, and for a connection that
# the kernel told to a worker which then died.
TICK_SECONDS = 2
# Out of descriptors or memory; others may take the connection meanwhile.
EXHAUSTED_PAUSE_SECONDS = 0.1
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

EXIT_LEFT, EXIT_CANNOT, EXIT_USAGE, EXIT_IMPORT, EXIT_APPLICATION = range(5)
IDLE, RUNNING, WAITING = range(3)

# An application may replace the classes in these modules (gevent does).
Socket, Thread, Lock = socket.socket, threading.Thread, threading.Lock
# What accept returns on BSD is like the listener.
INHERITS_NONBLOCKING = not sys.platform.startswith("linux")
monotonic, monotonic_ns = time.monotonic, time.monotonic_ns


def main(arguments):
    try:
        settings = Settings(arguments)
    except ValueError as error:
        return complain(EXIT_USAGE, str(error))
    prepare_streams()
    try:
        listener = take_listener()
        board = Board(settings)
        control = Control(settings.control)
    except (OSError, ValueError) as error:
        return complain(EXIT_CANNOT, str(error))
    faulthandler.enable()
    os.register_at_fork(after_in_child=note_fork)
    # Until there is something to finish; no traceback of an import broken off.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    files = LoadedFiles(control) if settings.files else None
    sys.argv[:] = [settings.application]
    sys.path[:0] = settings.path or [os.getcwd()]
    try:
        application = load(settings.application)
    except BaseException as error:
        return report_failure(error, settings.application, control, files)
    # What is loaded stays; no collection has to look at it again.
    gc.collect()
    gc.freeze()
    if files:
        files.report()
    worker = Worker(application, listener, settings, control, board, files)
    if settings.preload:
        return Parent(worker, control).run()
    return worker.run(settings.slot)


def complain(status, message):
    print("wsgi worker: " + message, file=sys.stderr)
    return status


class Settings:
    """The command line."""

    NUMBERS = {
        "--threads": 1, "--control": None, "--board": None, "--slot": 0,
        "--max-requests": 0, "--max-memory": 0, "--retire-wait": 0,
    }
    SWITCHES = ("--multiprocess", "--files", "--pass-files", "--preload")

    def __init__(self, arguments):
        self.path = []
        self.application = None
        for name, default in self.NUMBERS.items():
            self.set(name, default)
        for name in self.SWITCHES:
            self.set(name, False)
        words = iter(arguments)
        for word in words:
            if word in self.SWITCHES:
                self.set(word, True)
            elif word in self.NUMBERS:
                self.set(word, self.number(word, next(words, "")))
            elif word == "--path":
                self.path.append(os.path.abspath(next(words, "")))
            elif word.startswith("-"):
                raise ValueError("there is no option %s" % word)
            elif self.application is not None:
                raise ValueError("one application is enough: %s" % word)
            else:
                self.application = word
        if not self.application:
            raise ValueError("no application is named")
        if self.threads < 1:
            raise ValueError("--threads must be at least 1")
        if self.preload and self.control is None:
            raise ValueError("--preload needs --control")

    def set(self, option, value):
        setattr(self, option[2:].replace("-", "_"), value)

    @staticmethod
    def number(option, word):
        if not (word.isascii() and word.isdigit()):
            raise ValueError("%s needs a number" % option)
        return int(word)


def prepare_streams():
    """What is printed comes out line by line, and any str can be."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


def take_listener():
    try:
        listener = Socket(fileno=os.dup(0))
        listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        listens = False
    if not listens:
        raise OSError("descriptor 0 is not a listening socket")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    listener.setblocking(False)
    return listener


class Control:
    """Tells the server what happens. Without a socket, nobody hears it."""

    def __init__(self, fd):
        self.fd = fd
        # With --preload it may be the parent's, who alone reads then.
        self.read_by_worker = True
        if fd is not None:
            os.set_inheritable(fd, False)

    def hear(self):
        """False at its end."""
        try:
            lines = os.read(self.fd, MESSAGE_BYTES)
        except OSError:
            return False
        if b"ping\n" in lines:
            self.tell("pong")
        return bool(lines)

    def tell(self, *words):
        if self.fd is None:
            return
        line = " ".join(("%d" % os.getpid(),) + words).replace("\n", " ")
        data = line.encode("utf-8", "surrogateescape")[:MESSAGE_BYTES - 1] + b"\n"
        try:
            os.write(self.fd, data)
        except OSError:
            # The server is gone; the loop that waits will see it.
            pass


class Board:
    """The file in which the server sees what each thread does."""

    def __init__(self, settings):
        self.threads = settings.threads
        self.memory = None
        if settings.board is not None:
            size = os.fstat(settings.board).st_size
            self.memory = mmap.mmap(settings.board, size)
            os.close(settings.board)

    def records(self, slot):
        size = Record.LAYOUT.size
        if self.memory is None:
            return [Record(bytearray(size), 0) for _ in range(self.threads)]
        first = slot * self.threads * size
        if first + self.threads * size > len(self.memory):
            raise OSError("slot %d is not on the board" % slot)
        return [Record(self.memory, first + number * size) for number in range(self.threads)]


class Record:
    LAYOUT = struct.Struct("<QQIIQ")
    SINCE = struct.Struct("<Q")
    __slots__ = ("memory", "offset", "since", "state", "pid", "served")

    def __init__(self, memory, offset):
        self.memory = memory
        self.offset = offset
        self.since = offset + 8
        self.state = offset + 20
        self.pid = os.getpid()
        self.served = 0
        self.LAYOUT.pack_into(memory, offset, 0, monotonic_ns(), self.pid, IDLE, 0)

    def begin(self, number):
        self.served += 1
        self.LAYOUT.pack_into(
            self.memory, self.offset, number, monotonic_ns(), self.pid, RUNNING, self.served)

    def wait(self):
        self.memory[self.state] = WAITING

    def resume(self):
        self.SINCE.pack_into(self.memory, self.since, monotonic_ns())
        self.memory[self.state] = RUNNING

    def end(self):
        self.memory[self.state] = IDLE


# --- the application -------------------------------------------------------


class Unusable(Exception):
    """What was imported is no WSGI application."""


def load(text):
    name, _, expression = text.partition(":")
    if names_file(name):
        module = import_file(name)
    else:
        # Not all that can be imported is an identifier: `my-app` is none.
        if not name or name.split() != [name] or not all(name.split(".")):
            raise Unusable("'%s' is not the name of a module" % name)
        # Not importlib: its frames would stand in the traceback.
        __import__(name)
        module = sys.modules[name]
    application = find_application(module, expression.strip())
    check_application(application, expression)
    return application


def names_file(name):
    # Django's `project.wsgi` is a module, mod_wsgi's `project.wsgi` a file.
    return "/" in name or name.endswith(".py") or name.endswith(".wsgi") and os.path.isfile(name)


def import_file(path):
    """Imports exactly this file, as a part of the package in which it lies."""
    from importlib.machinery import SourceFileLoader
    from importlib.util import module_from_spec, spec_from_file_location

    path = os.path.abspath(path)
    if not os.path.isfile(path):
        raise Unusable("there is no file %s" % path)
    folder, name = os.path.split(path)
    name = os.path.splitext(name)[0]
    package = ""
    while os.path.isfile(os.path.join(folder, "__init__.py")):
        folder, part = os.path.split(folder)
        package = part + "." + package
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if package:
        __import__(package[:-1])
    if name == "__init__":
        return sys.modules[package[:-1]]
    name = package + name.replace(".", "_")
    if name in sys.modules:
        # A file may be called as a module that is loaded already: site.py, say.
        if getattr(sys.modules[name], "__file__", None) == path:
            return sys.modules[name]
        name += "_wsgi"
    loader = SourceFileLoader(name, path)
    module = module_from_spec(spec_from_file_location(name, path, loader=loader))
    sys.modules[name] = module
    loader.exec_module(module)
    return module


def find_application(module, expression):
    where = "module '%s'" % module.__name__
    if not expression:
        for name in DEFAULT_NAMES:
            if getattr(module, name, None) is not None:
                return getattr(module, name)
        raise Unusable("%s has neither `application` nor `app`%s" % (where, offers(module)))
    names, call, _ = expression.partition("(")
    found = module
    for name in names.strip().split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise Unusable("%s has no `%s`%s" % (where, names, offers(module))) from None
    if call:
        positional, named = literals(expression[len(names):])
        found = found(*positional, **named)
    return found


def offers(module):
    """What else could have been meant."""
    own = [name for name, value in vars(module).items()
           if callable(value) and not name.startswith("_")
           and (name in DEFAULT_NAMES
                or getattr(value, "__module__", module.__name__) == module.__name__)]
    # Most likely one of these, which may be an object of a framework.
    own.sort(key=lambda name: name not in DEFAULT_NAMES)
    return "; it has: " + ", ".join(own[:8]) if own else ""


def literals(text):
    """The arguments of a factory, from `(…)`. Nothing in them is run."""
    import ast

    try:
        call = ast.parse("_" + text, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError
        positional = [ast.literal_eval(argument) for argument in call.args]
        named = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
        if None in named:
            raise ValueError
    except (SyntaxError, ValueError):
        raise Unusable("`%s` are not literal arguments" % text) from None
    return positional, named


def check_application(application, expression):
    """Tells the usual mistakes now, not as an error of each request."""
    what = "`%s`" % (expression or "the application")
    if not callable(application):
        raise Unusable("%s is not callable but %s" % (what, type(application).__name__))
    code = getattr(application, "__code__", None)
    call = getattr(type(application), "__call__", None)
    for each in (code, getattr(call, "__code__", None)):
        # CO_COROUTINE
        if each is not None and each.co_flags & 0x80:
            raise Unusable("%s is a coroutine, as ASGI has it; only WSGI is served" % what)
    # CO_VARARGS
    if code is not None and not hasattr(application, "__self__"):
        if code.co_argcount < 2 and not code.co_flags & 0x04:
            raise Unusable("%s takes %d of the two arguments of a WSGI application; "
                           "if it makes one, write %s()" % (what, code.co_argcount, expression))


def report_failure(error, application, control, files):
    # Where the mistake is, the file may not have become a module.
    trace = without_own_frames(error.__traceback__)
    if files:
        files.report(files_of(error, trace))
    if isinstance(error, Unusable):
        kind, status = "application", EXIT_APPLICATION
        lines = [str(error)]
    else:
        kind, status = "import", EXIT_IMPORT
        lines = "".join(traceback.format_exception(type(error), error, trace)).splitlines()
    hint = hint_for(error, application)
    text = "\n".join(["cannot load '%s':" % application] + lines + hint)
    if control.fd is None:
        print(text, file=sys.stderr)
    for line in text[-TRACE_BYTES:].splitlines():
        control.tell("trace", line)
    control.tell("failed", kind, one_line(error))
    return status


def hint_for(error, application):
    name = application.partition(":")[0]
    first = name.partition(".")[0]
    folder = sys.path[0]
    there = getattr(sys.modules.get(first), "__file__", None) or folder
    beside = os.path.join(folder, first)
    # Python has loaded another one of that name for itself.
    if (not names_file(name) and not there.startswith(folder)
            and (os.path.isdir(beside) or os.path.isfile(beside + ".py"))):
        return ["hint: `%s` is %s; give yours another name, or name its file: %s.py:app"
                % (first, there, name.replace(".", "/"))]
    missing = getattr(error, "name", None)
    if not isinstance(error, ModuleNotFoundError) or not missing:
        return []
    if (name + ".").startswith(missing + "."):
        return ["hint: looked in %s first" % folder]
    return ["hint: %s has no such module; install it there, or choose another: `--python PATH`"
            % sys.executable]


def without_own_frames(trace):
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    # Those of the import of a file.
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith("<frozen importlib"):
        trace = trace.tb_next
    return trace


def files_of(error, trace):
    found = [frame.filename for frame in traceback.extract_tb(trace)]
    if isinstance(error, SyntaxError) and error.filename:
        found.append(error.filename)
    return found


def one_line(error):
    text = "".join(traceback.format_exception_only(type(error), error)).strip()
    # A SyntaxError shows its place in the lines before; what is behind the first one
    # of others is explanation.
    which = -1 if isinstance(error, SyntaxError) else 0
    return text.splitlines()[which] if text else type(error).__name__


class LoadedFiles:
    """The application's own source files: not the library's, not installed ones."""

    def __init__(self, control):
        self.control = control
        self.library = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
        self.told = {os.path.abspath(__file__)} if "__file__" in globals() else set()
        self.modules = 0

    def report_more(self):
        if len(sys.modules) != self.modules:
            self.report()

    def report(self, others=()):
        self.modules = len(sys.modules)
        # Not getattr: modules that load lazily would.
        spaces = [getattr(module, "__dict__", {}) for module in list(sys.modules.values())]
        for path in [space.get("__file__") for space in spaces] + list(others):
            if isinstance(path, str) and path.endswith((".py", ".wsgi")):
                self.report_file(os.path.abspath(path))

    def report_file(self, path):
        if path not in self.told:
            self.told.add(path)
            installed = path.startswith(self.library) or "/site-packages/" in path
            if not installed and "/dist-packages/" not in path and os.path.isfile(path):
                self.control.tell("file", path)


# --- processes and threads ---------------------------------------------------


class Parent:
    """--preload: has the application loaded, and forks when the server says so."""

    def __init__(self, worker, control):
        self.worker = worker
        self.control = control
        self.workers = set()
        self.leaving = False
        self.commands = b""
        self.socket = Socket(fileno=control.fd)
        control.read_by_worker = False
        self.descriptors = []
        self.alarm = Alarm()
        # Workers have the other end; the kernel closes this one when we die.
        self.life_line, self.life = os.pipe()

    def run(self):
        if threading.active_count() > 1:
            print("the import started threads; workers that are forked don't have them",
                  file=sys.stderr)
        self.alarm.set({signal.SIGTERM: self.leave, signal.SIGINT: self.leave,
                        signal.SIGHUP: ignore, signal.SIGCHLD: ignore})
        self.control.tell("loaded")
        poll = select.poll()
        poll.register(self.alarm.fd, select.POLLIN)
        poll.register(self.control.fd, select.POLLIN)
        while self.workers or not self.leaving:
            for fd, _ in poll.poll(TICK_SECONDS * 1000):
                if fd == self.alarm.fd:
                    self.alarm.drain()
                else:
                    slot = self.next_slot(poll)
                    if slot is not None and self.fork(slot):
                        return self.worker.run(slot, self.life_line)
            self.reap()
        return EXIT_LEFT

    def leave(self, *_):
        self.leaving = True
        for pid in self.workers:
            os.kill(pid, signal.SIGTERM)

    def next_slot(self, poll):
        """Reads one command at most: it may end in a new process."""
        byte = b""
        while byte != b"\n":
            try:
                byte, ancillary, _, _ = self.socket.recvmsg(1, socket.CMSG_SPACE(3 * 4))
            except BlockingIOError:
                return None
            except OSError:
                byte, ancillary = b"", ()
            for _, _, rights in ancillary:
                self.descriptors += array.array("i", rights)
            if not byte:
                poll.unregister(self.control.fd)
                self.leave()
                return None
            self.commands += byte
        line, self.commands = self.commands, b""
        words = line.split()
        if len(self.descriptors) not in (0, 3):
            self.close_descriptors()
        if len(words) == 2 and words[0] == b"fork" and words[1].isdigit() and not self.leaving:
            return int(words[1])
        return None

    def fork(self, slot):
        """True in the new process."""
        held = {signal.SIGTERM, signal.SIGINT}
        # Until the new process has handlers of its own.
        signal.pthread_sigmask(signal.SIG_BLOCK, held)
        try:
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
            self.close_descriptors()
            self.control.tell("failed", "fork", str(slot), one_line(error))
            return False
        if pid == 0:
            self.workers = set()
            os.close(self.life)
            self.alarm.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.take_descriptors()
            return True
        self.close_descriptors()
        self.workers.add(pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
        self.control.tell("forked", str(slot), str(pid))
        return False

    def take_descriptors(self):
        """In the new process."""
        if not self.descriptors:
            self.socket.detach()
            return
        listener, printed, control = self.descriptors
        self.descriptors = []
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        os.close(printed)
        self.socket.close()
        self.control.fd = control
        self.control.read_by_worker = True
        self.worker.listener.close()
        self.worker.listener = Socket(fileno=listener)
        self.worker.listener.setblocking(False)

    def close_descriptors(self):
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors = []

    def reap(self):
        # Not any child: the application may have started programs.
        for pid in list(self.workers):
            try:
                done, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                # The application waits for any child, and was faster.
                done, status = pid, EXIT_CANNOT << 8
            if done:
                self.workers.discard(pid)
                if os.WIFSIGNALED(status):
                    how = ("signal", str(os.WTERMSIG(status)))
                else:
                    how = ("code", str(os.WEXITSTATUS(status)))
                self.control.tell("exited", str(pid), *how)


def ignore(*_):
    """Unlike SIG_IGN, not inherited by programs that the application starts."""


class Alarm:
    """A descriptor that can be read once a signal has come, however early."""

    def __init__(self):
        self.fd, self.end = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self.end, False)

    def set(self, handlers):
        signal.set_wakeup_fd(self.end, warn_on_full_buffer=False)
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def drain(self):
        try:
            while os.read(self.fd, 512):
                pass
        except BlockingIOError:
            pass

    def close(self):
        signal.set_wakeup_fd(-1)
        os.close(self.fd)
        os.close(self.end)


class Worker:
    """Takes connections and answers them, until it has to leave."""

    def __init__(self, application, listener, settings, control, board, files):
        self.application = application
        self.listener = listener
        self.settings = settings
        self.control = control
        self.board = board
        self.files = files
        self.leaving = False
        self.retired = False
        self.leave_at = None
        self.requests = 0
        self.lock = Lock()
        self.statm = None
        self.life_lines = []
        self.environ = {
            "wsgi.version": (1, 0),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": settings.threads > 1,
            "wsgi.multiprocess": settings.multiprocess,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,
        }

    def run(self, slot, life_line=None):
        global is_child
        # With `--preload` it is forked itself.
        is_child = False
        try:
            records = self.board.records(slot)
        except OSError as error:
            return complain(EXIT_CANNOT, str(error))
        self.life_lines = [fd for fd in (self.control.fd, life_line) if fd is not None]
        self.alarm = Alarm()
        # Can be read as soon as the worker leaves, by all threads: nobody does read it.
        self.exit, self.exit_end = os.pipe()
        if self.settings.max_memory and os.path.exists("/proc/self/statm"):
            self.statm = os.open("/proc/self/statm", os.O_RDONLY)
        self.alarm.set({signal.SIGTERM: self.leave_by_signal, signal.SIGINT: self.leave_by_signal,
                        signal.SIGHUP: ignore})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
        self.control.tell("ready")
        if len(records) == 1:
            self.serve(records[0], self.waiter(self.listener))
        else:
            self.serve_by_threads(records)
        return EXIT_LEFT

    def waiter(self, listener):
        """For the thread that handles signals."""
        readable = [self.alarm.fd, self.exit]
        if self.control.fd is not None and self.control.read_by_worker:
            readable.append(self.control.fd)
        return Waiter(listener, readable, self.life_lines)

    def serve_by_threads(self, records):
        threads = []
        for record in records:
            waiter = Waiter(self.listener, [self.exit], ())
            thread = Thread(target=self.serve, args=(record, waiter), daemon=True)
            thread.start()
            threads.append(thread)
        # Handlers of signals run in this thread; it does nothing else.
        waiter = self.waiter(None)
        while not self.leaving:
            self.wait(waiter)
        for thread in threads:
            thread.join()

    def leave_by_signal(self, *_):
        self.leave("signal")

    def leave(self, reason):
        if not self.leaving:
            self.leaving = True
            self.control.tell("leaving", reason)
            os.write(self.exit_end, b"x")

    def retire(self, reason):
        with self.lock:
            if self.retired:
                return
            self.retired = True
        self.control.tell("retire", reason)
        self.leave_reason = reason
        self.leave_at = monotonic() + self.settings.retire_wait
        self.leave_in_time()

    def leave_in_time(self):
        if self.leave_at is not None and monotonic() >= self.leave_at:
            self.leave(self.leave_reason)

    def wait(self, waiter):
        """True if there is a connection, which perhaps nobody else was told of."""
        told = False
        for fd, _ in waiter.poll():
            if fd == waiter.listener:
                told = True
            elif fd == waiter.kept:
                waiter.spoke = True
            elif fd == self.alarm.fd:
                self.alarm.drain()
            elif fd != self.exit:
                is_read = fd == self.control.fd and self.control.read_by_worker
                if not is_read or not self.control.hear():
                    self.leave("orphan")
        self.leave_in_time()
        return told

    def serve(self, record, waiter):
        # The method behind `accept`: no object of a class that an application may
        # have replaced, and no call to the kernel for its address.
        accept = self.listener._accept
        while not self.leaving:
            if waiter.kept is not None:
                # Mostly the next request comes there.
                told = self.wait(waiter)
                if waiter.spoke:
                    waiter.spoke = False
                    self.take(waiter.kept, record, waiter)
                    continue
                if not told:
                    continue
            try:
                fd, _ = accept()
            except BlockingIOError:
                if waiter.kept is None:
                    self.wait(waiter)
                continue
            except OSError as error:
                if error.errno in EXHAUSTED:
                    time.sleep(EXHAUSTED_PAUSE_SECONDS)
                continue
            if INHERITS_NONBLOCKING:
                os.set_blocking(fd, True)
            self.take(fd, record, waiter)

    def take(self, fd, record, waiter):
        """One request, after which the connection is kept or closed."""
        keep = False
        try:
            keep = self.converse(fd, record)
        except Exception:
            # Not the application's: nothing of this kind is known.
            traceback.print_exc()
            record.end()
        finally:
            if keep:
                waiter.keep(fd)
            else:
                waiter.close(fd)

    def converse(self, fd, record):
        """True if another request may follow on the connection."""
        try:
            environ, begun, length = read_request(fd)
        except Malformed as error:
            complain(0, "a request that is not SCGI: %s" % error)
            return False
        except (OSError, EOFError):
            return False
        record.begin(int(environ.pop("SERVE_HERE_ID", 0)))
        exchange = Exchange(fd, record, environ["REQUEST_METHOD"], self.settings.pass_files)
        may_keep = environ.pop("SERVE_HERE_KEEP", None) is not None and self.leave_at is None
        environ.update(self.environ)
        environ["wsgi.url_scheme"] = "https" if environ.get("HTTPS") in ("on", "1") else "http"
        if len(begun) == length:
            environ["wsgi.input"] = io.BytesIO(begun)
            exchange.may_keep = may_keep
        else:
            environ["wsgi.input"] = io.BufferedReader(Body(exchange, begun, length), RECEIVE_BYTES)
        exchange.run(self.application, environ)
        # The number is soon another connection's.
        exchange.fd = -1
        record.end()
        self.look_back()
        return exchange.keep is not NOT and not exchange.gone

    def look_back(self):
        """After each request: is it time to go?"""
        settings = self.settings
        if settings.max_requests:
            with self.lock:
                self.requests += 1
            if self.requests >= settings.max_requests:
                self.retire("requests")
        if settings.max_memory and self.memory_bytes() > settings.max_memory << 20:
            self.retire("memory")
        if self.leave_at is not None:
            self.leave_in_time()
        if self.files:
            self.files.report_more()

    def memory_bytes(self):
        if self.statm is None:
            return 0
        pages = os.pread(self.statm, 128, 0).split()[1]
        return int(pages) * mmap.PAGESIZE


class Waiter:
    """Waits for connections and for reasons to leave. One a thread."""

    def __init__(self, listener, readable, life_lines):
        self.listener = None if listener is None else listener.fileno()
        # A connection on which another request may come, and whether one has.
        self.kept = None
        self.spoke = False
        if hasattr(select, "epoll"):
            poller = select.epoll()
            if listener is not None:
                # A connection wakes one of all who wait for it, not all.
                poller.register(self.listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            self.poll = lambda: poller.poll(TICK_SECONDS)
        else:
            poller = select.poll()
            if listener is not None:
                poller.register(self.listener, select.POLLIN)
            self.poll = lambda: poller.poll(TICK_SECONDS * 1000)
        for fd in readable:
            poller.register(fd, select.POLLIN)
        for fd in life_lines:
            # Only its end; what can be read is for the parent.
            if fd not in readable:
                poller.register(fd, 0)
        self.poller = poller

    def keep(self, fd):
        if fd == self.kept:
            return
        if self.kept is not None:
            self.close(self.kept)
        self.poller.register(fd, select.POLLIN)
        self.kept = fd

    def close(self, fd):
        if fd == self.kept:
            self.poller.unregister(fd)
            self.kept = None
        os.close(fd)


# --- request -----------------------------------------------------------------


class Malformed(Exception):
    pass


class ClientGone(ConnectionError):
    """The connection ended before the request or the answer did."""


def read_request(fd):
    """The variables, the bytes of the body that came with them, its length."""
    data = os.read(fd, RECEIVE_BYTES)
    if not data or data == GIVEN_UP:
        raise EOFError
    digits, colon, _ = data[:8].partition(b":")
    while not colon and len(data) < 8:
        data += receive(fd)
        digits, colon, _ = data[:8].partition(b":")
    if not colon or not digits.isdigit() or (digits[0] == 0x30 and digits != b"0"):
        raise Malformed("the length of the head is %r" % digits)
    begin = len(digits) + 1
    end = begin + int(digits)
    if end - begin > MAX_HEAD_BYTES:
        raise Malformed("a head of %d bytes" % (end - begin))
    if len(data) <= end:
        data = receive_until(fd, data, end + 1)
    if data[end] != 0x2C:
        raise Malformed("no comma after the head")
    environ, length = read_variables(data[begin:end].decode("latin-1"))
    begun = data[end + 1:]
    if len(begun) > length:
        if begun[length:] == GIVEN_UP:
            raise EOFError
        raise Malformed("more bytes than CONTENT_LENGTH says")
    return environ, begun, length


def receive(fd):
    data = os.read(fd, RECEIVE_BYTES)
    if not data:
        raise Malformed("it ends within its head")
    return data


def receive_until(fd, data, size):
    parts = [data]
    missing = size - len(data)
    while missing > 0:
        parts.append(receive(fd))
        missing -= len(parts[-1])
    return b"".join(parts)


def read_variables(head):
    words = head.split("\0")
    if words.pop() or not words or len(words) % 2:
        raise Malformed("names and values don't end in NUL, or don't pair")
    environ = dict(zip(words[::2], words[1::2]))
    if len(environ) * 2 != len(words):
        raise Malformed("a name comes twice")
    if "" in environ:
        raise Malformed("an empty name")
    length = words[1]
    if words[0] != "CONTENT_LENGTH" or not (length.isdigit() and length.isascii() and len(length) < 20):
        raise Malformed("CONTENT_LENGTH is not first, or not a number")
    if environ.pop("SCGI", None) != "1":
        raise Malformed("no SCGI=1")
    for name in ("REQUEST_METHOD", "SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL"):
        if not environ.get(name):
            raise Malformed("no %s" % name)
    number = environ.get("SERVE_HERE_ID", "0")
    if not (number.isascii() and number.isdigit() and int(number[:21]) < 1 << 64):
        raise Malformed("SERVE_HERE_ID is not a number")
    environ.setdefault("SCRIPT_NAME", "")
    environ.setdefault("PATH_INFO", "" if environ["SCRIPT_NAME"] else "/")
    environ.setdefault("QUERY_STRING", "")
    return environ, int(length)


class Body(io.RawIOBase):
    """A body that has not come whole with the head. Ends where it must; a client
    that is gone before is an error, never an end."""

    def __init__(self, exchange, begun, length):
        self.exchange = exchange
        self.begun = begun
        self.left = length - len(begun)

    def readable(self):
        return True

    def readinto(self, target):
        target = memoryview(target)
        if self.begun:
            size = min(len(target), len(self.begun))
            target[:size] = self.begun[:size]
            self.begun = self.begun[size:]
            return size
        size = min(len(target), self.left)
        if size:
            size = self.exchange.receive(target[:size])
            self.left -= size
        return size

    def readall(self):
        # The inherited one asks for 8 KiB at a time.
        return b"".join(iter(lambda: self.read(BODY_BYTES), b""))


# --- answer ------------------------------------------------------------------

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]").search

# RFC 9110 section 7.6.1; PEP 3333 forbids them.
HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection"
    " te trailer trailers transfer-encoding upgrade".split())

ORDINARY, LENGTH, DROPPED = range(3)
# What becomes of the connection.
NOT, NOW, LATER = b"not", b"now", b"later"
checked_names = {}
checked_statuses = {}


# In a process that the application has forked, which shares the worker's sockets.
is_child = False


def note_fork():
    global is_child
    is_child = True


def leave_child(error=None):
    """Ends a process of the application's own that comes back from it: the request, and
    those that follow, are the worker's."""
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        status = 1
        traceback.print_exception(type(error), error, error.__traceback__)
    for stream in sys.stdout, sys.stderr:
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass
    os._exit(status & 0xff)


class Exchange:
    """One call of the application, and what becomes of its answer."""

    __slots__ = ("fd", "record", "method", "pass_files", "head", "bodiless", "length",
                 "left", "sent", "chunked", "gone", "path", "may_keep", "keep")

    def __init__(self, fd, record, method, pass_files):
        self.fd = fd
        self.record = record
        self.method = method
        self.pass_files = pass_files
        # From start_response on.
        self.head = None
        self.bodiless = False
        self.length = None
        # From the first byte on; `left` is what the announced length still needs.
        self.sent = False
        self.chunked = False
        self.left = None
        self.gone = False
        # The connection, after this.
        self.may_keep = False
        self.keep = NOT

    def run(self, application, environ):
        # An application may change its dict.
        self.path = environ["SCRIPT_NAME"] + environ["PATH_INFO"]
        result = None
        try:
            result = application(environ, self.start_response)
            if is_child:
                leave_child()
            self.send_result(result)
        except BaseException as error:
            if is_child:
                leave_child(error)
            self.fail(error)
        close = getattr(result, "close", None)
        if close is not None:
            try:
                close()
            except BaseException as error:
                self.log(error)
        if is_child:
            leave_child()
        if self.keep is LATER:
            if self.left == 0:
                self.say_free()
            else:
                self.keep = NOT

    def say_free(self):
        try:
            self.send(FREE)
        except ClientGone:
            # It closes the connection.
            pass

    def start_response(self, status, headers, exc_info=None):
        if exc_info:
            try:
                if self.sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.head is not None:
            raise AssertionError("start_response is called again, without exc_info")
        has_no_body = checked_statuses.get(status)
        if has_no_body is None:
            has_no_body = check_status(status)
        self.head, self.length = encode_head(status, headers)
        self.bodiless = has_no_body or self.method == "HEAD"
        return self.write

    def write(self, block):
        """What start_response returns."""
        if not isinstance(block, bytes):
            raise TypeError("a block must be bytes, not %s" % type(block).__name__)
        if self.sent:
            self.send_more(block)
        else:
            self.send_first(block, self.length)

    def send_result(self, result):
        kind = type(result)
        if not self.sent:
            if kind is list or kind is tuple:
                # All of it is there; to send it block by block would gain nothing.
                for block in result:
                    if not isinstance(block, bytes):
                        raise TypeError("a block must be bytes, not %s" % type(block).__name__)
                whole = b"".join(result)
                # Without `close` nothing is left to be done after it.
                if self.may_keep and (self.length is None or self.length == len(whole)):
                    self.keep = NOW
                self.send_whole(whole)
                return
            if kind is FileWrapper and self.send_file(result):
                return
        single = hasattr(kind, "__len__") and len(result) == 1
        for block in result:
            if single and not self.sent:
                self.send_whole(block)
            elif block or not isinstance(block, bytes):
                self.write(block)
            if self.sent and (self.bodiless or self.left == -1):
                break
        self.finish()

    def send_whole(self, block):
        if not isinstance(block, bytes):
            raise TypeError("a block must be bytes, not %s" % type(block).__name__)
        self.send_first(block, len(block) if self.length is None else self.length)
        if self.left and not self.chunked:
            self.finish()

    def send_first(self, block, length):
        """The head, and the block in one go with it. `length` is the whole body's, if known."""
        head = self.head
        if head is None:
            raise AssertionError("start_response was not called before the body began")
        self.sent = True
        self.left = length
        if self.may_keep and self.keep is NOT and length is not None and not self.bodiless:
            self.keep = LATER
        if self.keep is not NOT:
            head += b"X-CGI-Keep: %b\r\n" % self.keep
        if self.bodiless:
            self.send(head + b"\r\n")
            return
        if length is None:
            self.chunked = True
            head += b"Transfer-Encoding: chunked\r\n"
            block = b"%x\r\n%b\r\n" % (len(block), block) if block else b""
        else:
            if self.length is None:
                head += b"Content-Length: %d\r\n" % length
            block = self.within_length(block)
        if len(block) <= JOIN_BYTES:
            self.send(b"%b\r\n%b" % (head, block))
        else:
            view = memoryview(block)
            self.send(b"%b\r\n%b" % (head, view[:JOIN_BYTES]))
            self.send(view[JOIN_BYTES:])

    def send_more(self, block):
        if self.bodiless or not block:
            return
        if self.chunked:
            self.send(b"%x\r\n%b\r\n" % (len(block), block))
        else:
            block = self.within_length(block)
            if block:
                self.send(block)

    def within_length(self, block):
        """Cuts what is beyond the announced length; from then on `left` is -1."""
        if self.left < 0:
            return b""
        if len(block) > self.left:
            self.note("the application sends more than its Content-Length; the rest is dropped")
            block = block[:self.left]
            self.left = -1
        else:
            self.left -= len(block)
        return block

    def finish(self):
        if not self.sent:
            # No block had a byte.
            self.send_first(b"", 0 if self.length is None else self.length)
        if self.bodiless:
            return
        if self.chunked:
            self.send(b"0\r\n\r\n")
        elif self.left > 0:
            self.note("the application sent %d bytes less than its Content-Length" % self.left)

    def send_file(self, wrapper):
        """True if the kernel could do it: a plain file, at least as long as announced."""
        if self.head is None or self.bodiless:
            return False
        part = plain_file(wrapper.filelike)
        if part is None:
            return False
        fd, offset, length = part
        if self.length is not None:
            if self.length > length:
                return False
            length = self.length
        head = self.head
        if self.length is None:
            head += b"Content-Length: %d\r\n" % length
        self.sent = True
        if self.pass_files:
            head += b"X-CGI-File: %d %d\r\n\r\n" % (offset, length)
            self.send_with_descriptor(head, fd)
        else:
            self.send(head + b"\r\n")
            self.copy_file(fd, offset, length)
        return True

    def send_with_descriptor(self, head, fd):
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
        connection = Socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, self.fd)
        try:
            connection.settimeout(None)
            size = connection.sendmsg([head], [rights])
        except OSError:
            self.lose()
        finally:
            connection.detach()
        self.send(head[size:])

    def copy_file(self, fd, offset, length):
        end = offset + length
        self.record.wait()
        while offset < end:
            try:
                size = os.sendfile(self.fd, fd, offset, end - offset)
            except OSError:
                self.lose()
            if not size:
                self.note("the file became shorter while it was sent")
                break
            offset += size
        self.record.resume()

    def send(self, data):
        self.record.wait()
        try:
            size = os.write(self.fd, data)
            while size < len(data):
                # A signal came, or the system had little memory.
                data = memoryview(data)[size:]
                size = os.write(self.fd, data)
        except OSError:
            self.lose()
        self.record.resume()

    def receive(self, target):
        self.record.wait()
        try:
            size = os.readv(self.fd, [target])
        except OSError:
            self.lose()
        if not size:
            self.lose()
        self.record.resume()
        return size

    def lose(self):
        self.gone = True
        raise ClientGone("the client is gone") from None

    def fail(self, error):
        self.keep = NOT
        if self.gone:
            # Nobody is there to be told, and it is no fault.
            return
        lines = self.log(error)
        if not self.sent:
            self.sent = True
            text = one_line(error).encode("latin-1", "backslashreplace").decode("latin-1")
            text = re.sub(r"[^\t -~\xa0-\xff]", " ", text)[:1000]
            trace = "".join(lines)[-TRACE_FIELD_CHARACTERS:].encode("utf-8", "backslashreplace")
            trace = re.sub(rb"[^!-$&-~ ]", lambda found: b"%%%02X" % found.group()[0], trace.strip())
            head = "Status: 500 Internal Server Error\r\nX-CGI-Error: %s\r\n" % text
            try:
                self.send(b"%sX-CGI-Trace: %s\r\nContent-Length: 0\r\n\r\n" % (
                    head.encode("latin-1"), trace))
            except ClientGone:
                pass

    def log(self, error):
        if not isinstance(error, ClientGone):
            trace = without_own_frames(error.__traceback__)
            lines = traceback.format_exception(type(error), error, trace)
            self.note("the application failed:\n" + "".join(lines).rstrip("\n"))
            return lines
        return []

    def note(self, text):
        try:
            print("%s %s: %s" % (self.method, ascii(self.path)[1:-1], text), file=sys.stderr)
        except (OSError, ValueError):
            # Nobody reads it, or the application has closed it.
            pass


def check_status(status):
    """Whether answers of this status have no body. Raises if there is no such status."""
    if not isinstance(status, str):
        raise TypeError("the status must be str, not %s" % type(status).__name__)
    if not re.match(r"[2-5][0-9][0-9] ", status) or not status.isprintable():
        raise ValueError("the status must be like '200 OK', not %r" % status)
    status.encode("latin-1")
    has_no_body = status[:3] in ("204", "304")
    if len(checked_statuses) < CHECKED_MAX:
        checked_statuses[status] = has_no_body
    return has_no_body


def encode_head(status, headers):
    """The lines of the head, without the empty one, and the Content-Length if there is one."""
    if type(headers) is not list:
        raise TypeError("headers must be a list, not %s" % type(headers).__name__)
    lines = ["Status: " + status]
    length = None
    for name, value in headers:
        kind = checked_names.get(name)
        if kind is None:
            kind = check_name(name)
        if type(value) is not str or not value.isprintable():
            check_value(name, value)
        if kind == LENGTH:
            if length is not None:
                raise ValueError("Content-Length comes twice")
            length = content_length(value)
        elif kind == DROPPED:
            continue
        lines.append(name + ": " + value)
    lines.append("")
    return "\r\n".join(lines).encode("latin-1"), length


def check_name(name):
    if not isinstance(name, str):
        raise TypeError("a header's name must be str, not %s" % type(name).__name__)
    lower = name.lower()
    if not TOKEN(name):
        raise ValueError("%r is not the name of a header" % name)
    if lower in HOP_BY_HOP or lower == "status":
        raise ValueError("%s is not the application's to say" % name)
    kind = ORDINARY
    if lower == "content-length":
        kind = LENGTH
    elif lower.startswith("x-cgi-"):
        kind = DROPPED
    if len(checked_names) < CHECKED_MAX:
        checked_names[name] = kind
    return kind


def check_value(name, value):
    if not isinstance(value, str):
        raise TypeError("%s must be str, not %s" % (name, type(value).__name__))
    if CONTROL(value):
        raise ValueError("%s has a control character: %r" % (name, value))


def content_length(value):
    digits = value.strip()
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError("Content-Length is %r" % value)
    return int(digits)


class FileWrapper:
    """wsgi.file_wrapper. Iterated only if the kernel can't send the file."""

    def __init__(self, filelike, block_size=8192):
        self.filelike = filelike
        self.block_size = block_size
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self):
        return self

    def __next__(self):
        block = self.filelike.read(self.block_size)
        if block:
            return block
        raise StopIteration


def plain_file(filelike):
    """Descriptor, position and rest of a plain file. Only of objects whose bytes
    are those of the file: a GzipFile has a descriptor, too."""
    holder = getattr(sys.modules.get("tempfile"), "_TemporaryFileWrapper", None)
    if holder is not None and type(filelike) is holder:
        filelike = filelike.file
    kind = type(filelike)
    if kind is io.BufferedReader or kind is io.BufferedRandom:
        if type(filelike.raw) is not io.FileIO:
            return None
    elif kind is not io.FileIO:
        return None
    try:
        if kind is io.BufferedRandom:
            filelike.flush()
        fd = filelike.fileno()
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not filelike.readable():
            return None
        offset = filelike.tell()
    except (OSError, ValueError):
        return None
    # A file of /proc is plain, and says it is empty.
    if status.st_size <= offset:
        return None
    return fd, offset, status.st_size - offset


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
