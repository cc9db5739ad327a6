"""Makes a Python interpreter a zygote: started once, it waits and forks.

The server starts `python OPTIONS -m serve_here_zygote` with a private folder
first in PYTHONPATH. This file lies there as `sitecustomize.py`, so the
interpreter reads it while it starts. For each request the server sends
arguments, environment and three descriptors; a fork of the waiting interpreter
puts them on and runs the script, unmodified, as the main program.

The law is that a script must not be able to tell. How it is kept:

* The script is the bottom of the stack. The interpreter asks the module
  `runpy` for the function that runs `-m`. An object stands in its place, and
  the answer to that question *is* the zygote's loop: it returns only in a child,
  with a callable made of C functions alone (`bottom_of_the_stack`).
* The child is the server's own child (CLONE_PARENT): its parent, its wait
  status and its accounting are those of a script that was started plainly.
* Modules of the standard library that earlier scripts imported are loaded
  before the fork, but hidden: a script gets one when it asks for it, if it is
  the one that its own sys.path would give (`Stash`).
* The child ends by the interpreter's own finalisation. With SERVE_HERE_FAST_END
  it leaves that out where it would have nothing to do (`FastEnd`).
* What can't be had exactly is left to a plain run: the child executes the
  script, or the zygote declines.

Everything needed is looked up before the first request, since a script may
change any module. The file is written so that old interpreters can read it and
answer that they are not fit.
"""
import sys
import posix

VERSIONS = ((3, 8), (3, 14))

REQUEST_BYTES = 64 << 10
SCRIPT_BYTES = 1 << 20
CACHED_SCRIPTS = 64
CACHED_FOLDERS = 64
# A file changed this short a time ago may change again without a new time.
SETTLED_NS = 2 * 10 ** 9
# In place of a time: equal to none.
UNKNOWN = -1
# What a child tells of start-up files; paths begin otherwise, and names too.
CHANGED = b'!'
# A longer script is compiled by each child: no request is to wait for that.
COMPILED_HERE_BYTES = 128 << 10
# How often the files of the loaded modules are looked at.
FILES_CHECK_SECONDS = 1

# A filter that makes each warning an error.
EVERY_WARNING = ('error', None, Warning, None, 0)

# Often enough for an interpreter that adapts its code to what it meets.
PRACTICE = 16
# Of the learnt modules.
LEARNT_BYTES = 32 << 10
LEARNT_NAMES = 512

# Of ma_version_tag in a dictionary, after reference count, type and size.
VERSION_OFFSET = 24
# Of the bytes in an object that holds some.
BYTES_OFFSET = bytes.__basicsize__ - 1
# Of /dev/null, on every Linux.
NULL_DEVICE = 1 << 8 | 3

RLIMIT_DATA, RLIMIT_AS = 2, 9
PR_SET_PDEATHSIG, PR_SET_NAME, PR_GET_TID_ADDRESS = 1, 15, 40
SIGINT, SIGKILL, SIGPIPE, SIGTERM, SIGCHLD, SIGXFSZ = 2, 9, 13, 15, 17, 25
CLONE_PARENT = 0x00008000
CLONE_CHILD_CLEARTID = 0x00200000
CLONE_CHILD_SETTID = 0x01000000
SYS_CLOSE_RANGE = 436
# The number of clone, and the place of the child's tid among its arguments.
CLONE = {'x86_64': (56, 3), 'aarch64': (220, 4)}

# Variables that an interpreter or its C library looks at when it starts: the
# zygote has done so already.
STARTUP_VARIABLES = (b'LANG=', b'LANGUAGE=', b'HOME=', b'PATH=', b'LOCPATH=',
                     b'PYTHON', b'LC_', b'LD_', b'MALLOC_', b'GLIBC_')

# Modules that are not loaded before the fork: they speak, or keep what they see
# at import (working directory, a random key), or belong to the start.
NEVER_LEARNT = frozenset(
    'this antigravity __hello__ __phello__ multiprocessing encodings readline'
    ' rlcompleter site sitecustomize usercustomize runpy distutils ensurepip'
    ' idlelib turtle turtledemo tkinter test pip setuptools __main__'.split())


def start():
    """Runs while `site` imports this file."""
    environment = initial_environment()
    forget_variables()
    control = int(environment[b'SERVE_HERE_CONTROL'])
    # The server has put the private folder before a script's own PYTHONPATH.
    environment.pop(b'PYTHONPATH', None)
    if b'SERVE_HERE_PYTHONPATH' in environment:
        environment[b'PYTHONPATH'] = environment[b'SERVE_HERE_PYTHONPATH']
    reason = unfit(environment)
    if reason:
        never(control, reason)
    posix.set_inheritable(control, False)
    private = environment[b'SERVE_HERE_ZYGOTE']
    sys.modules['runpy'] = Runpy(control, private, environment)


def initial_environment():
    """What the kernel was given: Python may have changed LC_CTYPE since."""
    with open('/proc/self/environ', 'rb') as file:
        pairs = file.read().split(b'\0')
    return dict(pair.split(b'=', 1) for pair in pairs if b'=' in pair)


def forget_variables():
    """Takes the zygote's own variables away, and gives PYTHONPATH back."""
    environ = sys.modules['os'].environ
    environ.pop('SERVE_HERE_CONTROL', None)
    environ.pop('SERVE_HERE_ZYGOTE', None)
    environ.pop('SERVE_HERE_FAST_END', None)
    path = environ.pop('SERVE_HERE_PYTHONPATH', None)
    if path is None:
        environ.pop('PYTHONPATH', None)
    else:
        environ['PYTHONPATH'] = path


def unfit(environment):
    """Why this interpreter can't be a zygote, or None."""
    path = environment.get(b'PYTHONPATH')
    if path and not all(entry.startswith(b'/') for entry in path.split(b':')):
        return 'PYTHONPATH depends on where a script runs'
    version = sys.version_info[:2]
    if not VERSIONS[0] <= version <= VERSIONS[1]:
        return 'Python %d.%d is not supported' % version
    if sys.implementation.name != 'cpython':
        return 'not CPython'
    if not getattr(sys, '_is_gil_enabled', lambda: True)():
        return 'no global interpreter lock'
    flags = sys.flags
    if flags.inspect or flags.interactive or flags.verbose:
        return 'option -i or -v'
    if posix.uname()[4] not in CLONE or sys.maxsize < 2 ** 32:
        return 'unknown architecture'
    return None


def never(control, reason):
    posix.write(control, b'never ' + reason.encode() + b'\0')
    posix._exit(0)


def forget_this_file():
    """Leaves sys.path and sys.modules as if this file had never been found."""
    folder = __file__.rpartition('/')[0]
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path_importer_cache.pop(folder, None)
    sys.modules.pop('sitecustomize', None)


class Runpy(object):
    """Stands where the interpreter looks for the function that runs `-m`."""

    def __init__(self, control, private, environment):
        self.arguments = (control, private, environment)

    @property
    def _run_module_as_main(self):
        """Returns in children only."""
        control = self.arguments[0]
        try:
            zygote = Zygote(*self.arguments)
            return zygote.test() or zygote.serve()
        except Unfit as error:
            never(control, str(error))
        except KeyboardInterrupt:
            posix._exit(0)
        except BaseException as error:
            text = 'zygote failed: %s: %s' % (type(error).__name__, error)
            posix.write(control, b'log ' + text.encode('utf-8', 'replace')[:500] + b'\0')
            posix._exit(1)


class Unfit(Exception):
    """Something that a zygote needs is not there."""


class Declined(Exception):
    """A request that is to be run plainly; nothing has been started."""


class TooLarge(Declined):
    """A script that is not to be compiled here."""


class Zygote(object):
    """The waiting interpreter: its socket, its caches, its loop."""

    def __init__(self, control, private, environment):
        del sys.modules['runpy']
        if not getattr(sys.flags, 'safe_path', False):
            # The interpreter has put the working directory there for -m.
            del sys.path[0]
        self.check_streams()
        self.control = control
        self.parent = posix.getppid()
        self.startup_values = startup_values(
            name + b'=' + value for name, value in environment.items())
        self.stash = Stash()
        self.tools = Tools(self.stash)
        self.memory_limits = self.tools.memory_limits()
        # LC_CTYPE as Python has changed it (PEP 538), or None.
        value = self.tools.os.environb.get(b'LC_CTYPE')
        self.coerced = None if value == environment.get(b'LC_CTYPE') else value
        self.zone = environment.get(b'TZ')
        self.environment = {name: value for name, value in environment.items()
                            if not name.startswith(b'SERVE_HERE_')}
        self.codes = {}
        # Whose lists were made since the last look at files.
        self.folders_seen = set()
        # Learning: names that children have told, the pipe and the number of the
        # process that tries them, names that are good.
        self.heard = []
        self.rehearsal = self.rehearsing = None
        self.to_learn = []
        fast = environment.get(b'SERVE_HERE_FAST_END') == b'1'
        self.fast_end = FastEnd(self.stash, self.tools) if fast else None
        self.null_stdin = self.make_null_stdin()
        self.start_files = StartFiles(self.stash, self.tools)
        self.learn_path = private + b'/learn-%d' % posix.getpid()
        self.learn_socket = self.open_learn_socket()

    def check_streams(self):
        for name in ('stdin', 'stdout', 'stderr'):
            stream = getattr(sys, name)
            if stream is None or stream is not getattr(sys, '__%s__' % name):
                raise Unfit('sys.%s is not the original' % name)

    def open_learn_socket(self):
        """Where children tell which modules they used. Without it nothing is
        learnt."""
        socket = self.tools.socket
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            receiver.bind(self.learn_path)
        except OSError:
            receiver.close()
            return None
        return receiver

    # The self-test.

    TESTS = (
        # Source, output of both streams together, wait status.
        (b'import sys\nprint(sys._getframe().f_back)', b'None\n', 0),
        (b'raise SystemExit(3)', b'', 3 << 8),
        (b'print("before")\nraise ValueError', b'before\n', 1 << 8),
        (b'raise KeyboardInterrupt', b'', SIGINT),
    )

    def test(self):
        """Sees that the ways out of a script are the interpreter's own here.
        Returns in the test's children; raises Unfit if it fails."""
        self.settle()
        for source, output, status in self.TESTS:
            reading, writing = posix.pipe()
            pid = self.fork(0)
            if pid == 0:
                posix.dup2(writing, 1)
                posix.dup2(writing, 2)
                self.close_all()
                return bottom_of_the_stack(compile(source, 'test', 'exec'), Ending(self.tools))
            posix.close(writing)
            # It doesn't say enough to fill a pipe.
            _, ended = posix.waitpid(pid, 0)
            got = posix.read(reading, 4096)
            posix.close(reading)
            if ended != status or not got.startswith(output):
                raise Unfit('self-test failed: status %d of %r' % (ended, source.decode()))
        return None

    # The loop.

    def serve(self):
        """Answers requests. Returns in a child: what the interpreter calls."""
        tools = self.tools
        control = tools.socket.socket(fileno=self.control)
        version = '%d.%d.%d' % sys.version_info[:3]
        control.send(b'ready python ' + version.encode() + b'\0')
        checked = tools.monotonic()
        while True:
            self.wait(control)
            if tools.monotonic() - checked > FILES_CHECK_SECONDS:
                checked = tools.monotonic()
                self.folders_seen.clear()
                if self.stash.outdated():
                    control.send(b'log a file of the standard library has changed\0')
                    self.leave()
            chain = self.answer(control)
            if chain is not None:
                return chain

    def wait(self, control):
        """Returns when a request is there. In the time between: learns."""
        learnt = False
        while True:
            if self.heard and not self.rehearsal:
                self.rehearse()
            if learnt and not self.to_learn:
                learnt = False
                self.settle()
            sources = [source for source in (control, self.learn_socket, self.rehearsal) if source]
            ready = self.tools.select(sources, [], [], 0 if self.to_learn else None)[0]
            if self.learn_socket in ready:
                self.hear()
            if control in ready:
                break
            if self.rehearsal in ready:
                self.end_rehearsal()
            elif self.to_learn:
                self.stash.learn(self.to_learn.pop(0))
                learnt = True
        if learnt:
            self.settle()

    def practise(self):
        """Goes a child's way, up to the script and from its end, and takes it all
        back. An interpreter remembers what it has found, in its code and in
        tables; what it knows before the fork no child has to write down, which
        would copy pages."""
        tools = self.tools
        main = vars(sys.modules['__main__'])
        kept = [(values, type(values)(values)) for values in (
            main, sys.argv, getattr(sys, 'orig_argv', []), sys.path, sys.path_importer_cache,
            posix.environ, tools.os.environ._data)]
        streams = sys.stdin, sys.__stdin__
        environ = tools.environ.value
        data = self.own_request()
        code = compile('', 'practice', 'exec')
        ours = tools.socket.socketpair(tools.socket.AF_UNIX, tools.socket.SOCK_SEQPACKET)
        try:
            for _ in range(PRACTICE):
                tools.before_fork()
                self.forked(0)
                request = Request(data, (0, 1, 2))
                request.folder, request.kind_of_input = '/', 'null'
                startup_values(request.variables)
                tools.memory_limits()
                self.start_files.changed()
                self.announce(ours[0], request)
                ours[1].recv(64)
                self.take_descriptors(request.descriptors)
                self.stash.practise()
                chain = self.put_on(request, code, True)
                chain('practice', True)
                del chain
                if self.fast_end:
                    self.fast_end.is_exact()
                for values, old in kept:
                    if values != old or values is main:
                        values.clear()
                        getattr(values, 'update', getattr(values, 'extend', None))(old)
                sys.stdin, sys.__stdin__ = streams
        finally:
            tools.environ.value = environ
            for one in ours:
                one.close()

    def own_request(self):
        """That asks for what is there already."""
        with open('/proc/self/comm', 'rb') as file:
            name = file.read().rstrip(b'\n')
        umask = posix.umask(0o077)
        posix.umask(umask)
        variables = [name + b'=' + value for name, value in self.environment.items()]
        head = b'run 0 1 1 %d %o' % (len(variables), umask)
        return b'\0'.join([head, b'/practice', name] + variables + [b'.', b'/practice', b''])

    def settle(self):
        """What is there by now is left alone by the garbage collections of
        children: looking at an object copies its page."""
        self.practise()
        self.tools.gc.collect()
        self.tools.gc.freeze()
        # But not the script's own dictionary: a cycle through it is collected at
        # the end, and then the globals' finalizers run.
        main = sys.modules['__main__']
        for thing in (main, vars(main)):
            self.tools.untrack(thing)
            self.tools.track(thing)
        self.tools.gc.collect()
        # What is free is not copied: a fork takes a tenth less.
        self.tools.trim(0)

    def hear(self):
        """Takes what one child tells: which modules it used, which script it had
        to read by itself, or that files of the interpreter's start look new."""
        said = self.learn_socket.recv(LEARNT_BYTES)
        if said == CHANGED:
            if self.start_files.changed():
                self.leave()
            return
        if said.startswith(b'/'):
            try:
                self.see_folders(self.code_of(said, COMPILED_HERE_BYTES)[-1])
            except Declined:
                pass
            return
        names = said.decode('ascii', 'replace')
        for name in names.split('\0'):
            if name not in self.stash.known and len(self.stash.known) < LEARNT_NAMES:
                self.stash.known.add(name)
                self.heard.append(name)

    def rehearse(self):
        """A fork tries which of the modules can be had. What speaks, fails or
        crashes does so there. And an extension module that is then forgotten
        would be no new one to the script that imports it: its code runs once."""
        names, self.heard = self.heard, []
        reading, writing = posix.pipe()
        try:
            pid = self.fork(0)
        except Declined:
            posix.close(reading)
            posix.close(writing)
            return
        if pid == 0:
            try:
                self.tools.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
                posix.dup2(posix.open('/dev/null', posix.O_RDWR), 0)
                posix.dup2(0, 1)
                posix.dup2(writing, 2)
                self.close_all()
                posix.dup2(2, 3)
                posix.dup2(0, 2)
                good = [name for name in names if self.stash.learn(name)]
                posix.write(3, '\0'.join(good).encode())
            finally:
                posix._exit(0)
        posix.close(writing)
        self.rehearsal, self.rehearsing = reading, pid

    def end_rehearsal(self):
        good = posix.read(self.rehearsal, LEARNT_BYTES).decode()
        posix.close(self.rehearsal)
        posix.waitpid(self.rehearsing, 0)
        self.rehearsal = None
        self.to_learn += filter(None, good.split('\0'))

    def leave(self):
        """The end of an idle zygote: nothing that could hang."""
        try:
            posix.unlink(self.learn_path)
        finally:
            posix._exit(0)

    def answer(self, control):
        """One request. Returns None in the zygote, and in the child what the
        interpreter calls."""
        socket = self.tools.socket
        data, ancillary, flags, _ = control.recvmsg(REQUEST_BYTES, 1024, socket.MSG_CMSG_CLOEXEC)
        if not data:
            self.leave()
        descriptors = received_descriptors(ancillary)
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise Declined('too long')
            # All that can be is left to the child: the pages that it writes to
            # are copied for it anyway.
            pid = self.fork(CLONE_PARENT)
        except Declined as reason:
            decline(control, data, reason)
            pid = None
        if pid == 0:
            return self.become(data, descriptors, control)
        for descriptor in descriptors:
            posix.close(descriptor)
        return None

    def code_of(self, path, most=SCRIPT_BYTES):
        """The compiled script, or None if only the interpreter itself can read
        it exactly; whether it may add an audit hook; and the folder where links
        lead. Of the file as it is now: the change time counts too, since the
        other one can be set back. Declined if it would have to be compiled and
        has more bytes than `most`."""
        try:
            descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
        except OSError:
            raise Declined('unreadable')
        try:
            status = posix.fstat(descriptor)
            identity = identity_of(status)
            folder = self.folder_of(descriptor, path)
            cached = self.codes.get(path)
            if cached is not None and cached[0] == identity:
                return cached[1], cached[2], folder
            source = read_script(descriptor, status, most)
            if identity_of(posix.fstat(descriptor)) != identity:
                raise Declined('changing')
        finally:
            posix.close(descriptor)
        code = compile_exactly(source, self.tools.os.fsdecode(path))
        changed = max(status.st_mtime_ns, status.st_ctime_ns)
        if self.tools.time_ns() - changed > SETTLED_NS:
            self.codes.pop(path, None)
            while len(self.codes) >= CACHED_SCRIPTS:
                del self.codes[next(iter(self.codes))]
            self.codes[path] = (identity, code, AUDIT in source)
        return code, AUDIT in source, folder

    def folder_of(self, descriptor, path):
        """The kernel knows where it has found an open file."""
        try:
            found = posix.readlink('/proc/self/fd/%d' % descriptor)
        except OSError:
            found = ''
        if not found.startswith('/') or found.endswith(' (deleted)'):
            found = self.tools.os.path.realpath(self.tools.os.fsdecode(path))
        return found.rpartition('/')[0] or '/'

    def see_folders(self, folder):
        """So that children find the lists made: of a script's folder and of those
        in sys.path."""
        if len(self.folders_seen) >= CACHED_SCRIPTS:
            self.folders_seen.clear()
        self.folders_seen.add(folder)
        self.stash.look_at_folders(folder)

    def fork(self, flags):
        """os.fork, but with the flags of clone: with CLONE_PARENT the child is
        the server's. All of Python's own fork hooks run; the C library is told
        the new thread id by the kernel."""
        tools = self.tools
        tools.before_fork()
        return self.forked(
            tools.clone(flags | SIGCHLD | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID))

    def forked(self, pid):
        if pid == 0:
            self.tools.after_fork_in_child()
            return 0
        self.tools.after_fork_in_parent()
        if pid < 0:
            raise Declined('no process')
        return pid

    # The child.

    def become(self, data, descriptors, control):
        """Puts the request on. Returns what the interpreter is to call."""
        try:
            request = Request(data, descriptors)
            known = self.examine(request)
        except BaseException as reason:
            decline(control, data, reason)
            posix._exit(0)
        try:
            self.announce(control, request)
            code, audits, request.folder = known or self.code_of(request.script)
            if request.folder not in self.folders_seen:
                self.tell(request.script)
            self.take_descriptors(request.descriptors)
            control.detach()
            self.close_all()
            if code is None:
                self.take_place(request)
                self.execute(request)
            return self.put_on(request, code, audits)
        except BaseException:
            # Nothing of the script has run: it can still be started plainly.
            self.execute(request)

    def examine(self, request):
        """Declines what this interpreter can't run. Returns the script's code, if
        it has been compiled before."""
        if startup_values(request.variables) != self.startup_values:
            raise Declined('other variables of the interpreter')
        if self.tools.memory_limits() != self.memory_limits:
            # Set on this process alone: not what a script would get.
            raise Declined('its memory has been limited')
        if self.start_files.changed():
            self.tell(CHANGED)
            raise Declined('its start-up files have changed')
        try:
            return self.code_of(request.script, -1)
        except TooLarge:
            self.tell(request.script)
            return None

    def tell(self, what):
        """Has the zygote hear of it. Before `close_all`."""
        try:
            if self.learn_socket:
                self.learn_socket.sendto(what, self.tools.socket.MSG_DONTWAIT, self.learn_path)
        except OSError:
            pass

    def announce(self, control, request):
        """Says that the request runs. From here on this is the script's process, by
        its name too."""
        self.tools.prctl(PR_SET_NAME, self.tools.c_char_p(request.command()), 0, 0, 0)
        posix.setpgid(0, 0)
        self.tools.prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0)
        if posix.getppid() != self.parent:
            posix._exit(127)
        control.send(b'ran %s %d\0' % (request.number, posix.getpid()))

    def take_descriptors(self, descriptors):
        for target, descriptor in enumerate(descriptors):
            posix.dup2(descriptor, target)

    def take_place(self, request):
        posix.umask(request.umask)
        posix.chdir(request.directory)

    def put_on(self, request, code, audits):
        """What is left is the interpreter's own."""
        self.take_place(request)
        self.set_environment(request.environment())
        self.set_arguments(request)
        if request.kind_of_input != 'pipe':
            # Destroying it would be work for nothing.
            self.pipe_stdin = sys.stdin
            null = request.kind_of_input == 'null'
            sys.stdin = sys.__stdin__ = self.null_stdin if null else self.make_stdin()
        return self.prepare_main(request, code, audits)

    def close_all(self):
        """All descriptors but the script's three."""
        if self.learn_socket:
            self.learn_socket.detach()
        if self.tools.syscall(SYS_CLOSE_RANGE, 3, 0xffffffff, 0, 0, 0, 0) != 0:
            posix.closerange(3, posix.sysconf('SC_OPEN_MAX'))

    def execute(self, request):
        """The plain way, in the process that the server knows already."""
        signal = self.tools.signal
        for number in (SIGPIPE, SIGXFSZ):
            # Python ignores them, and that would outlive the exec.
            signal.signal(number, signal.SIG_DFL)
        try:
            environment = request.environment()
            for path, arguments in (
                    (request.script, [request.script] + request.arguments[1:]),
                    (self.tools.os.fsencode(sys.executable), request.original)):
                try:
                    posix.execve(path, arguments, environment)
                except OSError:
                    pass
        finally:
            posix._exit(127)

    def set_environment(self, environment):
        """Replaces it whole: for C code and for child processes too."""
        if self.coerced is not None:
            environment[b'LC_CTYPE'] = self.coerced
        self.tools.set_environ(environment)
        for copy in (posix.environ, self.tools.os.environ._data):
            copy.clear()
            copy.update(environment)
        if environment.get(b'TZ') != self.zone:
            self.tools.tzset()

    def set_arguments(self, request):
        decode = self.tools.decode
        sys.argv[:] = decode(request.arguments)
        if hasattr(sys, 'orig_argv'):
            sys.orig_argv[:] = decode(request.original)
        script, = decode([request.script])
        if not getattr(sys.flags, 'safe_path', False):
            sys.path.insert(0, request.folder)
        # The interpreter looks whether the script is a folder or an archive.
        sys.path_importer_cache[script] = None

    def make_stdin(self):
        """As the interpreter makes it: what was made for the zygote's pipe says
        that it can't seek."""
        old = sys.stdin
        buffer = self.tools.io.open(0, 'rb', -1, None, None, None, False)
        buffer.raw.name = '<stdin>'
        new = self.tools.io.TextIOWrapper(
            buffer, old.encoding, old.errors, '\n', False, old.write_through)
        new.mode = 'r'
        return new

    def make_null_stdin(self):
        """The one for requests without content, made once: for /dev/null."""
        pipe = posix.dup(0)
        null = posix.open('/dev/null', posix.O_RDONLY)
        posix.dup2(null, 0)
        stdin = self.make_stdin()
        posix.dup2(pipe, 0)
        posix.close(pipe)
        posix.close(null)
        return stdin

    def prepare_main(self, request, code, audits):
        script, = self.tools.decode([request.script])
        main = sys.modules['__main__'].__dict__
        main['__file__'] = script
        main['__cached__'] = None
        main['__loader__'] = self.tools.source_loader('__main__', script)
        fast_end = None if audits else self.fast_end
        return bottom_of_the_stack(code, Ending(self.tools, self, fast_end))


class StartFiles(object):
    """The files that an interpreter reads when it starts, besides the standard
    library: `site` runs the .pth files of some folders, and imports
    sitecustomize and usercustomize. After a change another interpreter would
    start otherwise."""

    def __init__(self, stash, tools):
        self.listdir, self.time_ns = posix.listdir, tools.time_ns
        site = sys.modules.get('site')
        folders = [path for path in sys.path if path not in stash.folders]
        if site:
            folders += site.getsitepackages() if hasattr(site, 'getsitepackages') else []
            folders += [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
        # What was read in a folder, and when the folder was seen so.
        self.read = {}
        self.folders = {}
        self.files = {}
        for folder in folders:
            self.folders[folder] = None
            self.read[folder] = names = self.names_read_in(folder)
            for name in names:
                self.watch(folder + '/' + name)
        for module in list(sys.modules.values()):
            file = getattr(module, '__file__', None)
            if file and file.rpartition('/')[0] not in stash.folders:
                self.watch(file)
        for name in ('sitecustomize', 'usercustomize'):
            if name in sys.modules:
                self.watch(getattr(sys.modules[name], '__file__', None) or name)

    def watch(self, file):
        stamp = self.stamp(file)
        # One that has changed just now may have been read before.
        self.files[file] = stamp if self.is_settled(stamp) else UNKNOWN

    def is_settled(self, stamp):
        return self.time_ns() - stamp > SETTLED_NS

    def stamp(self, path):
        """The time of its last change of any kind; 0 if it isn't there. Asked
        first, as an exception costs far more."""
        return posix.stat(path).st_ctime_ns if posix.access(path, posix.F_OK) else 0

    def names_read_in(self, folder):
        try:
            names = self.listdir(folder)
        except OSError:
            return []
        return sorted(name for name in names if name.endswith('.pth')
                      or name.partition('.')[0] in ('sitecustomize', 'usercustomize'))

    def changed(self):
        try:
            for file, stamp in self.files.items():
                if self.stamp(file) != stamp:
                    return True
            for folder, seen in self.folders.items():
                stamp = self.stamp(folder)
                if stamp != seen:
                    if self.names_read_in(folder) != self.read[folder]:
                        return True
                    self.folders[folder] = stamp if self.is_settled(stamp) else None
            return False
        except OSError:
            # It has gone in between.
            return True


def startup_values(variables):
    """Of the variables that were looked at when the interpreter started."""
    return {variable for variable in variables if variable.startswith(STARTUP_VARIABLES)}


def decline(control, data, reason):
    number = (data.partition(b'\0')[0].split() + [b'0', b'0'])[1]
    text = str(reason).encode('ascii', 'replace')[:100]
    control.send(b'no %s %s\0' % (number, text))


def received_descriptors(ancillary):
    """Those of SCM_RIGHTS: ints in the machine's own form."""
    descriptors = []
    for _level, _kind, data in ancillary:
        for at in range(0, len(data) - 3, 4):
            descriptors.append(int.from_bytes(data[at:at + 4], sys.byteorder))
    return descriptors


class Request(object):
    """What the server sends: counted, NUL-ended strings."""

    def __init__(self, data, descriptors):
        parts = data.split(b'\0')
        try:
            verb, self.number, argc, origc, envc, umask = parts[0].split()
            argc, origc, envc = int(argc), int(origc), int(envc)
            self.umask = int(umask, 8)
        except ValueError:
            raise Declined('malformed')
        if verb != b'run' or len(parts) != 1 + argc + origc + envc + 3 or len(descriptors) != 3:
            raise Declined('malformed')
        strings = parts[1:-1]
        self.arguments = strings[:argc]
        self.original = strings[argc:argc + origc]
        self.variables = strings[argc + origc:-2]
        self.directory, self.script = strings[-2:]
        self.descriptors = descriptors
        if not argc or not origc:
            raise Declined('malformed')
        # The streams were made for pipes; only the first is made anew.
        kinds = [kind_of(descriptor) for descriptor in descriptors]
        self.kind_of_input = kinds[0]
        if kinds[1:] != ['pipe', 'pipe']:
            raise Declined('output is no pipe')

    def environment(self):
        environment = {}
        for variable in self.variables:
            name, _, value = variable.partition(b'=')
            environment[name] = value
        return environment

    def command(self):
        """The process's name: the kernel takes the script's, or what `env` has
        executed, of which only the name is known."""
        _, slash, name = self.original[0].rpartition(b'/')
        if slash:
            name = self.script.rpartition(b'/')[2]
        return name[:15]


def kind_of(descriptor):
    status = posix.fstat(descriptor)
    if status.st_mode & 0o170000 == 0o010000:
        return 'pipe'
    return 'null' if status.st_rdev == NULL_DEVICE else 'other'


def identity_of(status):
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


def read_script(descriptor, status, most):
    if status.st_mode & 0o170000 != 0o100000:
        raise Declined('not a regular file')
    if status.st_mode & 0o6000:
        raise Declined('setuid')
    if status.st_size > most:
        raise TooLarge('too large')
    pieces = []
    while True:
        piece = posix.read(descriptor, SCRIPT_BYTES)
        if not piece:
            return b''.join(pieces)
        pieces.append(piece)


def compile_exactly(source, path):
    """None where the interpreter's file reader may say something else than
    compile(): it is stricter about UTF-8, it shows warnings, and its errors have
    a text of their own."""
    filters = sys.modules['_warnings'].filters
    filters.insert(0, EVERY_WARNING)
    try:
        source.decode('utf-8')
        if source.startswith(b'\xef\xbb\xbf') or has_other_encoding(source):
            return None
        return compile(source, path, 'exec', dont_inherit=True)
    except (SyntaxError, ValueError, Warning, MemoryError, RecursionError, OverflowError):
        return None
    finally:
        filters.remove(EVERY_WARNING)


def has_other_encoding(source):
    """Whether the first two lines may declare one (PEP 263). Only UTF-8 by its
    own name is read without a codec."""
    for line in source.replace(b'\r', b'\n').split(b'\n', 2)[:2]:
        before, found, after = line.partition(b'coding')
        if not found:
            continue
        name = after[1:].lstrip(b' \t').lower()
        if not (after[:1] in (b':', b'=') and name[:5] == b'utf-8'
                and not (name[5:6].isalnum() or name[5:6] in (b'-', b'_', b'.'))
                and b'coding' not in name):
            return True
    return False


# The script's frame and its end.

def bottom_of_the_stack(code, ending):
    """What the interpreter calls with two arguments, a name and True, without a
    Python frame of ours: min() asks the dictionary for the first argument; it is
    missing, and the dictionary's factory, exec with the code, makes it. For the
    second argument it has the ending, which thus learns that the script ran off
    its end. Whatever the script raises goes through all of them untouched.
    """
    tools = ending.tools
    run = tools.partial(tools.execute, code, sys.modules['__main__'].__dict__)
    # Nor do the garbage collector's functions or a reference count show who holds
    # the globals: the arguments live for ever, with a borrowed reference.
    tools.untrack(run.args)
    tools.keep(run.args)
    tools.let_go(run.args[1])
    return tools.partial(min, key=tools.defaultdict(run, {True: ending}).__getitem__)


class Ending(object):
    """Does what the interpreter does after a script's file, but not after -m.
    It is deleted as soon as the script's frame is gone, before the traceback of
    an exception is shown."""

    def __init__(self, tools, zygote=None, fast_end=None):
        self.tools = tools
        self.zygote = zygote
        self.fast_end = fast_end
        # As the interpreter does while it runs a file.
        self.main = sys.modules['__main__']
        self.finished = False

    def __lt__(self, other):
        """Asked by min() when the script has run off its end."""
        self.finished = True
        return False

    def __del__(self):
        flushed = flush_streams()
        if self.finished:
            forget_file()
            if self.zygote:
                report_modules(self.zygote)
            if flushed and self.fast_end and self.fast_end.is_exact():
                posix._exit(0)
        else:
            # Runs after the traceback, before the script's own callbacks.
            self.tools.at_exit(after_exception)


def flush_streams():
    """Whether nothing is left to be written."""
    flushed = True
    for name in ('stderr', 'stdout'):
        try:
            getattr(sys, name).flush()
        except BaseException:
            # The interpreter flushes again at the end, and then it counts.
            flushed = False
    return flushed


def forget_file():
    """The names that the interpreter has put into the script's dictionary."""
    main = sys.modules['__main__'].__dict__
    main.pop('__file__', None)
    main.pop('__cached__', None)


def after_exception():
    # If it was SystemExit, the interpreter leaves them there.
    if hasattr(sys, 'last_type'):
        forget_file()


def report_modules(zygote):
    """Tells the zygote which modules it might have loaded before. The socket is
    opened only now: a script sees no descriptor of ours."""
    if zygote.stash.has_nothing_new() or not zygote.learn_socket:
        return
    names = [name for name in sys.modules if name not in zygote.stash.known]
    if not names:
        return
    text = '\0'.join(names).encode('ascii', 'replace')
    socket = zygote.tools.socket
    try:
        sender = zygote.tools.make_socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sender.sendto(text[:LEARNT_BYTES], socket.MSG_DONTWAIT, zygote.learn_path)
        sender.close()
    except OSError:
        pass


# The end without finalisation.

# Their objects do something when they are destroyed, or their libraries when
# the process ends.
UNFIT_FOR_FAST_END = frozenset(
    'ctypes _ctypes sqlite3 _sqlite3 dbm _dbm _gdbm multiprocessing _multiprocessing readline'
    ' curses _curses tkinter _tkinter tracemalloc cProfile profile trace _lsprof faulthandler'
    ' _xxsubinterpreters _interpreters _posixshmem'.split())
# Of modules that are not the standard library's: more are not looked at.
OWN_MODULES = 16
# What a source that adds an audit hook contains.
AUDIT = b'addaudithook'


class FastEnd(object):
    """Tells whether the interpreter's finalisation, the largest part of a short
    script's cost, would do nothing that anybody could notice: then the child
    just exits. Asked only if the script ran off its end and both streams are
    flushed. Finalisation is left to the interpreter if there is

    * another thread, a callback for the end, a trace or profile function, a
      debugging option, a watched garbage collection;
    * another sys.stdout or sys.stderr;
    * a class with __del__, or an object of one: also every generator, coroutine,
      file and socket that is not gone;
    * a weak reference with a callback that is not the standard library's own;
    * a module that may do something at the end: of those named above, extension
      modules that are not the standard library's, sources that mention an audit
      hook, which would hear of the end.

    The objects are those of the garbage collector's lists. What was there before
    the fork is not in them."""

    def __init__(self, stash, tools):
        self.stash = stash
        self.gc = tools.gc
        self.open = tools.io.open
        self.streams = sys.stdout, sys.stderr
        self.callbacks = tools.callbacks
        self.threads = tools.threads
        weakref = sys.modules['_weakref']
        self.reference = weakref.ReferenceType
        self.proxies = {weakref.ProxyType, weakref.CallableProxyType}
        self.callback_of = vars(weakref.ReferenceType)['__callback__'].__get__
        # Past a metaclass's own ideas.
        self.bases_of = vars(type)['__mro__'].__get__
        self.names_of = vars(type)['__dict__'].__get__
        self.possible = not (
            sys.flags.dev_mode or hasattr(sys, 'gettotalrefcount') or self.callbacks()
            or sys.gettrace() or sys.getprofile()
            or [name for name in tools.os.environ
                if name.startswith(('PYTHONDUMP', 'PYTHONMALLOC', 'PYTHONTRACE'))]
            # What the user's sitecustomize may have left.
            or [kind for kind in set(map(type, self.gc.get_objects()))
                if self.finalizes(kind) and kind.__module__ != '_io'])

    def is_exact(self):
        try:
            return (self.possible and self.interpreter_is_plain() and self.modules_are_plain()
                    and self.objects_are_plain())
        except Exception:
            return False

    def interpreter_is_plain(self):
        gc = self.gc
        stdout, stderr = self.streams
        return not (
            sys.stdout is not stdout or sys.stderr is not stderr
            or sys.__stdout__ is not stdout or sys.__stderr__ is not stderr
            or self.threads() or self.other_callbacks()
            or sys.gettrace() or sys.getprofile()
            or gc.callbacks or gc.garbage or gc.get_debug())

    def other_callbacks(self):
        """Callbacks for the end, but for those of the standard library that have
        nothing to do now."""
        own = 0
        logging = sys.modules.get('logging')
        # The one handler that is always there is for messages without another.
        if logging is not None and len(logging._handlerList) == 1:
            own = 1
        for callback in getattr(sys.modules.get('threading'), '_threading_atexits', ()):
            if getattr(callback, 'func', callback).__module__ != 'concurrent.futures.thread':
                return True
        return self.callbacks() != own

    def modules_are_plain(self):
        modules = sys.modules
        if self.stash.unfit_for_fast_end:
            return False
        if self.stash.has_nothing_new():
            return True
        if not UNFIT_FOR_FAST_END.isdisjoint(modules):
            return False
        known, startup = self.stash.modules, self.stash.startup
        own = [name for name in modules if name not in known and name not in startup]
        if len(own) > OWN_MODULES:
            return False
        for name in own:
            file = vars(modules[name])['__file__']
            if not file.endswith('.py'):
                return False
            with self.open(file, 'rb') as source:
                if AUDIT in source.read():
                    return False
        return True

    def objects_are_plain(self):
        objects = self.gc.get_objects()
        kinds = set(map(type, objects))
        # The one that is asking.
        kinds.discard(Ending)
        if not kinds.isdisjoint(self.proxies):
            return False
        metaclasses, references = set(), set()
        for kind in kinds:
            if type in self.bases_of(kind):
                metaclasses.add(kind)
            elif self.reference in self.bases_of(kind):
                references.add(kind)
        for thing in objects if metaclasses or references else ():
            if type(thing) in metaclasses:
                kinds.add(thing)
            elif type(thing) in references:
                callback = self.callback_of(thing)
                if callback is not None and getattr(
                        callback, '__module__', None) not in ('weakref', '_weakrefset'):
                    return False
        for kind in kinds:
            if self.finalizes(kind):
                return False
        return True

    def finalizes(self, kind):
        for base in self.bases_of(kind):
            if '__del__' in self.names_of(base):
                return True
        return False


# Modules loaded before the fork.

class Stash(object):
    """Standard-library modules that are loaded, but not in sys.modules.

    importlib asks for a lock of each module that it is about to look for, and
    looks into sys.modules again when it has it. The function that makes the lock
    is replaced by one that first puts a hidden module back: while a module is
    really loaded, no frame of ours is on the stack.

    A hidden module comes back with all that it needs, in the order of a real
    import, and only if a real import would give the same (`unchanged`).
    """

    def __init__(self):
        modules = sys.modules
        self.importlib = modules['_frozen_importlib']
        self.imp = modules['_imp']
        self.time_ns = modules['time'].time_ns
        self.path_finder = modules['_frozen_importlib_external'].PathFinder
        self.built_in = (self.importlib.BuiltinImporter, self.importlib.FrozenImporter)
        self.finders = list(sys.meta_path)
        self.hooks = list(sys.path_hooks)
        folder = modules['os'].__file__.rpartition('/')[0]
        self.folders = [path for path in sys.path if path in (folder, folder + '/lib-dynload')]
        self.startup = frozenset(modules)
        # Names that a child need not tell: loaded, refused, or in the queue.
        self.known = set(self.startup)
        # All that was loaded, and what of it is not in sys.modules now.
        self.modules = {}
        self.hidden = {}
        self.facts = {}
        # Of the modules in a package: its name, and the name in it. And the facts
        # of those whose import does more than to make a module: a child need not
        # look at all.
        self.inner = {}
        self.repeats = {}
        # A module's values as they were: see `unchanged`.
        self.states = {}
        # Names that some module asked for in vain, as modules of other systems.
        self.missing = set()
        # Modules that were loaded, and can't be given back exactly.
        self.refused = set()
        self.files = {}
        # In which of `folders` a module was found, if it was.
        self.places = {}
        self.listings = {}
        self.importers = {}
        self.version_type = None
        self.unfit_for_fast_end = False
        # Whether a script has had hidden modules only, and how many names are in
        # sys.modules then.
        self.only_given = True
        self.given = len(self.startup)
        self.recorder = None
        self.install()

    def install(self):
        make_lock = self.importlib._ModuleLockManager
        stash = self

        def _ModuleLockManager(name):
            if stash.recorder is not None:
                return stash.recorder.lock(name, make_lock(name))
            if name in stash.hidden:
                stash.restore(name)
            if name not in sys.modules:
                stash.only_given = False
            return make_lock(name)

        # As importlib's own frames: a traceback leaves them out.
        for function in (_ModuleLockManager, Stash.restore, Stash.unchanged, Stash.give_back):
            function.__code__ = function.__code__.replace(
                co_filename='<frozen importlib._bootstrap>')
        self.importlib._ModuleLockManager = _ModuleLockManager

    # In the zygote.

    def learn(self, name):
        """Loads a module and hides it, with all that it brings. Returns it, or
        None if it can't be had so that no script can tell."""
        self.known.add(name)
        if name not in self.modules and name not in self.refused and self.learnable(name):
            recorder = Recorder(self)
            try:
                with recorder:
                    __import__(name)
            except BaseException:
                # Also a warning: modules that warn are never loaded before.
                pass
            self.hide(recorder)
        return self.modules.get(name)

    def learnable(self, name):
        """Whether it is the standard library's own, by the place where it is
        found. What else the interpreter finds is never loaded here."""
        top = name.partition('.')[0]
        if top in NEVER_LEARNT or self.path_finder not in sys.meta_path:
            return False
        if not any(finder.find_spec(top) for finder in self.built_in):
            spec = self.path_finder.find_spec(top, self.folders)
            if spec is None or spec.origin is None:
                return False
        first = sys.meta_path[:sys.meta_path.index(self.path_finder)]
        return not any(finder.find_spec(top, None)
                       for finder in first if finder not in self.built_in)

    def hide(self, recorder):
        """Takes what has been loaded out of sys.modules, and keeps what is known
        of it. What can't be given back exactly is forgotten: a script's import
        loads it anew."""
        present = {name: module for name, module in sys.modules.items()
                   if name not in self.startup}
        new = [name for name in present if name not in self.modules]
        self.modules.update(present)
        for name in new:
            self.facts[name] = recorder.facts.get(name) or Facts(name)
            # One that nobody saw being loaded is not known well enough.
            self.facts[name].tainted |= name not in recorder.facts
            if name == 'threading':
                # See `Facts.repeat`.
                present[name].main_thread()._stderr = None
        marks = marks_of_imports(self.modules.get('logging'))
        for name in new:
            self.facts[name].complete(self)
            self.facts[name].tainted |= recorder.marks != marks
        recorder.undo_effects()
        for name, module in present.items():
            del sys.modules[name]
            parent, _, tail = name.rpartition('.')
            # A parent that loads it by itself keeps it as an attribute.
            if parent and name not in self.order_of(parent):
                package = self.modules.get(parent) or sys.modules.get(parent)
                if package is not None:
                    vars(package).pop(tail, None)
        for path in recorder.importers - recorder.importers_before:
            sys.path_importer_cache.pop(path, None)
        rebound = recorder.put_back_older()
        for name in new:
            self.known.add(name)
            self.facts[name].tainted |= rebound
            if self.facts[name].tainted:
                self.refused.add(name)
                del self.modules[name], self.facts[name]
            else:
                self.remember_file(name, self.modules[name])
                parent, _, tail = name.rpartition('.')
                if parent:
                    self.inner[name] = parent, tail
                if self.facts[name].name == name and self.facts[name].is_to_be_repeated():
                    self.repeats[name] = self.facts[name]
        for name, module in present.items():
            if name in self.modules:
                self.hidden[name] = module
        for name in self.startup:
            # sys changes all the time, and nobody keeps what is in it.
            if name != 'sys' and name in sys.modules:
                self.states[name] = self.state_of(sys.modules[name])
        for name, module in self.modules.items():
            self.states[name] = self.state_of(module)

    def order_of(self, name):
        return self.facts[name].order if name in self.facts else ()

    def state_of(self, module):
        """Two of them are equal if no name of the module was bound to another
        object in between: the version of its dictionary where Python keeps one,
        because taking the values would touch each of them, and so copy its page;
        else the values, which a tuple compares by identity first."""
        names = vars(module)
        # typing makes classes of its own modules: theirs are not in a plain one.
        if self.version_type and type(names) is dict:
            return self.version_type.from_address(id(names) + VERSION_OFFSET).value
        return tuple(names.values())

    def use_versions(self, ctypes):
        """PEP 509, until 3.13. Sees for itself that a change shows."""
        probe = sys.modules['__main__']
        self.version_type = ctypes.c_uint64
        states = [self.state_of(probe)]
        for value in (1, 1000, 1000.5):
            probe.__dict__['_'] = value
            states.append(self.state_of(probe))
        del probe._
        states.append(self.state_of(probe))
        if len(set(states)) != len(states) or self.state_of(probe) != states[-1]:
            self.version_type = None

    def remember_file(self, name, module):
        file = getattr(module, '__file__', None)
        if file:
            self.files[file] = identity_of(posix.stat(file))
            folder = file.rpartition('/')[0]
            if folder.endswith('/' + name):
                folder = folder.rpartition('/')[0]
            if folder in self.folders and getattr(module.__spec__, 'origin', '') != 'frozen':
                self.places[name] = self.folders.index(folder)

    def outdated(self):
        """Whether a loaded module's file is not what it was: an upgrade."""
        try:
            return any(identity_of(posix.stat(file)) != identity
                       for file, identity in self.files.items())
        except OSError:
            return True

    def look_at_folders(self, script_folder):
        """So that a child finds their lists made, and what searches them."""
        if len(self.importers) >= CACHED_FOLDERS:
            self.importers.clear()
        for path in [script_folder] + sys.path:
            if (path in self.folders or self.names_in(path)) and path not in self.importers:
                self.importers[path] = self.path_finder._path_hooks(path)

    def practise(self):
        """See `Zygote.practise`."""
        for name in list(self.hidden)[:PRACTICE]:
            if self.unchanged(self.facts[name]):
                self.look_along_path(self.facts[name])

    # In the child.

    def has_nothing_new(self):
        """Without a look at each name."""
        return self.only_given and len(sys.modules) == self.given

    def restore(self, name):
        """Puts a hidden module and what it needs back, if that is what a real
        import would do; else leaves it to importlib."""
        modules = sys.modules
        # Held over a fork, and the same thread may take it twice.
        self.imp.acquire_lock()
        try:
            if name not in self.hidden or not self.unchanged(self.facts[name]):
                return
            self.look_along_path(self.facts[name])
            self.give_back(self.facts[name].order)
        finally:
            self.imp.release_lock()

    def look_along_path(self, facts):
        """What a real import leaves in sys.path_importer_cache: each folder that
        it looks into, until it finds the module."""
        cache = sys.path_importer_cache
        last = max([self.places.get(name, -1) for name in facts.order if name in self.hidden])
        if last >= 0:
            for path in sys.path[:sys.path.index(self.folders[last]) + 1]:
                if path in cache:
                    continue
                # `unchanged` has just seen that it is the folder it was.
                if path in self.importers:
                    cache[path] = self.importers[path]
                else:
                    self.path_finder._path_importer_cache(path)
        for path, importer in facts.importers:
            cache.setdefault(path, importer)

    def give_back(self, order):
        modules, hidden = sys.modules, self.hidden
        given = []
        for name in order:
            if name in hidden:
                modules[name] = hidden.pop(name)
                given.append(name)
        if self.recorder is None:
            self.given += len(given)
        for name in given:
            if name in self.inner:
                parent, tail = self.inner[name]
                if tail not in vars(modules[parent]):
                    setattr(modules[parent], tail, modules[name])
                    self.states[parent] = self.state_of(modules[parent])
            if name in self.repeats and self.recorder is None:
                facts = self.repeats[name]
                facts.repeat(modules[name])
                for changed in {effect[0] for effect in facts.effects}:
                    self.states[changed] = self.state_of(modules[changed])
                self.unfit_for_fast_end |= facts.unfit_for_fast_end
                if facts.changes_at_fork:
                    self.states[name] = self.state_of(modules[name])

    def unchanged(self, facts):
        """Whether nothing was done that a real import of these modules would
        notice: other finders or folders, a module of the same name in another
        folder, a module that was replaced, or changed before others took
        something from it."""
        if sys.meta_path != self.finders or sys.path_hooks != self.hooks:
            return False
        if [path for path in sys.path if path in self.folders] != self.folders:
            return False
        modules = sys.modules
        for name in facts.order:
            if name in self.hidden:
                if name in modules:
                    return False
            elif modules.get(name) is not self.modules[name]:
                return False
            elif self.state_of(modules[name]) != self.states[name]:
                return False
        for name in facts.bases:
            if name not in modules or self.state_of(modules[name]) != self.states[name]:
                return False
        for path in sys.path:
            if path not in self.folders:
                names = self.names_in(path)
                if names is None or not names.isdisjoint(facts.tops):
                    return False
        return True

    def names_in(self, path):
        """What modules a folder may hold, by the first part of the names. None
        if it is no folder, but perhaps an archive."""
        if not isinstance(path, str):
            return None
        # Asked first: an exception costs far more.
        if not posix.access(path or '.', posix.F_OK):
            return frozenset()
        try:
            status = posix.stat(path or '.')
        except OSError:
            return frozenset()
        identity = identity_of(status)
        cached = self.listings.get(path)
        if cached is not None and cached[0] == identity:
            return cached[1]
        try:
            names = frozenset(name.partition('.')[0] for name in posix.listdir(path or '.'))
        except OSError:
            return None
        if self.time_ns() - status.st_mtime_ns > SETTLED_NS:
            self.listings[path] = (identity, names)
        return names


def marks_of_imports(logging):
    """What some modules leave outside of themselves when they are imported.

    cgitb keeps sys.stdout: a script may have another one by then, and the
    interpreter closes it at the end if nobody else holds it. asyncio makes a
    logger, which shows to those who import logging alone."""
    marks = [sys.getrefcount(getattr(sys, name)) for name in ('stdin', 'stdout', 'stderr')]
    return marks + [list(logging.root.manager.loggerDict) if logging else []]


class Facts(object):
    """What is known of one loaded module."""

    def __init__(self, name):
        self.name = name
        # What it asked for while it was executed, in that order: names, and new
        # entries of sys.path_importer_cache.
        self.requests = []
        # Calls of atexit.register, and what it bound in the modules that are
        # always there (importlib renames its frozen ones): to be repeated.
        self.exits = []
        self.effects = []
        self.changes_at_fork = False
        self.unfit_for_fast_end = name in UNFIT_FOR_FAST_END
        # From `complete`: it and all that it needs, as a real import completes
        # them; what it needs of the modules that are always there; the first
        # parts of the names that a real import would look for; what it would add
        # to sys.path_importer_cache.
        self.order = ()
        self.bases = ()
        self.tops = frozenset()
        self.importers = ()
        self.tainted = False

    def complete(self, stash):
        if self.order:
            return
        # Whatever is executed looks names up in `builtins`.
        order, seen, bases, tops, importers = [], set(), ['builtins'], set(), []

        def visit(name):
            top, _, rest = name.partition('.')
            if rest:
                # A package comes before its modules, but may bring them itself.
                visit(name.rpartition('.')[0])
            if name in seen:
                return
            seen.add(name)
            if name in stash.startup:
                if name not in ('sys', 'builtins'):
                    bases.append(name)
                return
            if top not in stash.startup:
                tops.add(top)
            if name in stash.missing:
                return
            if (top in NEVER_LEARNT and top != 'encodings'
                    or name in stash.refused or name not in stash.modules):
                self.tainted = True
                return
            facts = stash.facts[name]
            if facts.name == name:
                for request in facts.requests:
                    if isinstance(request, tuple):
                        importers.append(request)
                    else:
                        visit(request)
            else:
                # Another name, made by the module that `facts` are of.
                visit(facts.name)
            order.append(name)

        visit(self.name)
        self.order, self.bases, self.tops = tuple(order), tuple(bases), frozenset(tops)
        self.importers = tuple(importers)

    def is_to_be_repeated(self):
        return (self.exits or self.effects or self.changes_at_fork or self.unfit_for_fast_end
                or self.name in ('threading', 'logging'))

    def repeat(self, module):
        """What its import does to the process it happens in."""
        for register, arguments, keywords in self.exits:
            register(*arguments, **keywords)
        for name, key, value in self.effects:
            vars(sys.modules[name])[key] = value
        if self.name == 'threading':
            # The main thread's number is the process's, and its stream for
            # errors is the one of the moment.
            module.main_thread()._set_native_id()
            module.main_thread()._stderr = sys.stderr
        elif self.name == 'logging':
            clock = module.time.time_ns if isinstance(module._startTime, int) else module.time.time
            module._startTime = clock()


class Recorder(object):
    """Watches imports: which module asked for which. A request counts for the
    module that is being executed, not for the one whose function imports: else
    functools would "need" typing because somebody called singledispatch.

    As long as it watches, sys.path and sys.meta_path are the standard library's,
    and a warning is an error."""

    def __init__(self, stash):
        self.stash = stash
        self.facts = {}
        # The modules that are being executed, the innermost last.
        self.stack = []
        self.modules = set(sys.modules)
        self.importers_before = frozenset(sys.path_importer_cache)
        self.importers = set(self.importers_before)
        self.replaced = []
        self.undone = []

    def __enter__(self):
        stash = self.stash
        self.older = {name: dict(vars(module)) for name, module in stash.modules.items()}
        self.path, self.finders = list(sys.path), list(sys.meta_path)
        sys.path[:] = stash.folders
        sys.meta_path[:] = stash.built_in + (stash.path_finder,)
        sys.modules['_warnings'].filters.insert(0, EVERY_WARNING)
        self.replace(sys.modules['builtins'], '__import__', self.watched_import)
        self.replace(sys.modules['os'], 'register_at_fork', self.watched_register_at_fork)
        atexit = sys.modules.get('atexit') or stash.modules.get('atexit')
        if atexit:
            self.replace(atexit, 'register', self.watched_at_exit)
        self.values = {name: dict(vars(sys.modules[name])) for name in stash.startup
                       if name != 'sys' and hasattr(sys.modules.get(name), '__dict__')}
        self.states = {name: stash.state_of(sys.modules[name]) for name in self.values}
        self.marks = marks_of_imports(stash.modules.get('logging'))
        stash.recorder = self

    def __exit__(self, *exception):
        self.stash.recorder = None
        for module, name, original in self.replaced:
            setattr(module, name, original)
        sys.modules['_warnings'].filters.remove(EVERY_WARNING)
        sys.path[:], sys.meta_path[:] = self.path, self.finders

    def replace(self, module, name, make):
        original = getattr(module, name)
        self.replaced.append((module, name, original))
        setattr(module, name, make(original))

    def innermost(self):
        """Of the module that is being executed; first what it has done so far."""
        if not self.stack:
            return None
        facts = self.facts[self.stack[-1]]
        if len(sys.modules) != len(self.modules):
            for name in sys.modules:
                if name not in self.modules and name != facts.name and (
                        name not in self.facts or name in self.stack):
                    # Not imported: `collections` makes `collections.abc`.
                    self.facts[name] = facts
                    facts.requests.append(name)
            self.modules = set(sys.modules)
        self.note_effects(facts)
        for entry in sys.path_importer_cache.items():
            if entry[0] not in self.importers:
                self.importers.add(entry[0])
                facts.requests.append(entry)
        return facts

    def note_effects(self, facts):
        for name, old in self.values.items():
            state = self.stash.state_of(sys.modules[name])
            if state == self.states[name]:
                continue
            self.states[name] = state
            for key, value in vars(sys.modules[name]).items():
                if old.get(key, self) is not value and name + '.' + key not in sys.modules:
                    self.undone.append((name, key, old.get(key, self)))
                    facts.effects.append((name, key, value))
                    old[key] = value

    def undo_effects(self):
        for name, key, old in reversed(self.undone):
            if old is self:
                vars(sys.modules[name]).pop(key, None)
            else:
                vars(sys.modules[name])[key] = old

    def put_back_older(self):
        """Takes back what an import has bound in modules that were loaded before,
        and says whether there was something. Such an import asks the older module
        to do a work of which it keeps the result: uuid has platform look at the
        system, others have sysconfig read its file. A script that wants only the
        older one must find it fresh, and one that wants the newer one must see
        the work done when it asks, so the newer one is not kept."""
        rebound = False
        for name, old in self.older.items():
            names = vars(self.stash.modules[name])
            if list(map(id, names.values())) != list(map(id, old.values())):
                rebound = True
                names.clear()
                names.update(old)
        return rebound

    def request(self, name):
        facts = self.innermost()
        if facts is not None and name not in facts.requests:
            facts.requests.append(name)

    def lock(self, name, lock):
        """importlib is about to look for the module."""
        self.request(name)
        if name not in self.stash.hidden:
            return Loading(self, name, lock)
        self.stash.give_back(self.stash.facts[name].order)
        self.modules = set(sys.modules)
        return lock

    def watched_import(self, original):
        def __import__(name, globals=None, locals=None, fromlist=(), level=0):
            full = name
            if level:
                package = globals['__package__'].split('.')
                full = '.'.join(package[:len(package) - level + 1] + ([name] if name else []))
            parts = full.split('.')
            for end in range(1, len(parts) + 1):
                self.request('.'.join(parts[:end]))
            module = original(name, globals, locals, fromlist, level)
            for each in fromlist or ():
                if full + '.' + each in sys.modules:
                    self.request(full + '.' + each)
            return module
        return __import__

    def watched_register_at_fork(self, original):
        def register_at_fork(**functions):
            facts = self.innermost()
            if facts is not None:
                facts.changes_at_fork = True
            return original(**functions)
        return register_at_fork

    def watched_at_exit(self, original):
        def register(function, *arguments, **keywords):
            facts = self.innermost()
            if facts is None:
                return original(function, *arguments, **keywords)
            facts.exits.append((original, (function,) + arguments, keywords))
            return function
        return register


class Loading(object):
    """Held by importlib while it loads a module."""

    def __init__(self, recorder, name, lock):
        self.recorder = recorder
        self.name = name
        self.lock = lock

    def __enter__(self):
        self.recorder.facts.setdefault(self.name, Facts(self.name))
        self.recorder.stack.append(self.name)
        return self.lock.__enter__()

    def __exit__(self, kind, error, trace):
        self.recorder.innermost()
        self.recorder.stack.pop()
        if self.name not in sys.modules and kind and issubclass(kind, ModuleNotFoundError):
            if (self.name + '.').startswith(str(error.name) + '.'):
                self.recorder.stash.missing.add(self.name)
        return self.lock.__exit__(kind, error, trace)


# What the zygote uses of Python and of the C library.

class Tools(object):
    """Looked up once: a script may change what it likes, and hidden packages
    have lost their submodules."""

    def __init__(self, stash):
        def module(name):
            found = sys.modules.get(name) or stash.learn(name)
            if found is None:
                raise Unfit('no module ' + name)
            return found

        # By name: to an old interpreter it is a keyword.
        self.execute = getattr(module('builtins'), 'exec')
        self.at_exit = module('atexit').register
        self.callbacks = module('atexit')._ncallbacks
        self.threads = module('_thread')._count
        self.os = module('os')
        self.encoding = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
        self.io = module('io')
        self.gc = module('gc')
        self.signal = module('_signal')
        self.socket = module('_socket')
        self.make_socket = self.socket.socket
        self.select = module('select').select
        self.partial = module('_functools').partial
        self.defaultdict = module('_collections').defaultdict
        time = module('time')
        self.monotonic, self.time_ns, self.tzset = time.monotonic, time.time_ns, time.tzset
        self.source_loader = module('_frozen_importlib_external').SourceFileLoader
        ctypes = module('ctypes')
        self.use_c(ctypes, module('_struct'))
        stash.use_versions(ctypes)

    def use_c(self, ctypes, struct):
        # The lock of the interpreter is kept during the calls: between the fork
        # hooks no other code of Python's may run.
        library = ctypes.PyDLL(None)
        self.c_char_p = ctypes.c_char_p
        self.before_fork = library.PyOS_BeforeFork
        self.after_fork_in_child = library.PyOS_AfterFork_Child
        self.after_fork_in_parent = library.PyOS_AfterFork_Parent
        for function in (self.before_fork, self.after_fork_in_child, self.after_fork_in_parent):
            function.restype = None
        self.keep, self.let_go = library.Py_IncRef, library.Py_DecRef
        self.untrack = library.PyObject_GC_UnTrack
        self.track = library.PyObject_GC_Track
        for function in (self.keep, self.let_go, self.untrack, self.track):
            function.argtypes, function.restype = [ctypes.py_object], None
        self.trim = library.malloc_trim
        self.environ = ctypes.c_void_p.in_dll(library, 'environ')
        self.pack = struct.pack
        self.prctl = library.prctl
        self.prctl.argtypes = [ctypes.c_int] + [ctypes.c_void_p] * 4
        self.getrlimit = library.getrlimit
        self.limit = (ctypes.c_uint64 * 2)()
        self.syscall = library.syscall
        self.syscall.argtypes = [ctypes.c_long] * 7
        self.syscall.restype = ctypes.c_long
        address = ctypes.c_void_p()
        if self.prctl(PR_GET_TID_ADDRESS, ctypes.addressof(address), 0, 0, 0) != 0:
            raise Unfit('the kernel does not tell the address of the thread id')
        self.clone_number, place = CLONE[posix.uname()[4]]
        self.clone_rest = [0, 0, 0, 0]
        self.clone_rest[place - 1] = address.value

    def memory_limits(self):
        limits = []
        for kind in (RLIMIT_AS, RLIMIT_DATA):
            self.getrlimit(kind, self.limit)
            limits += self.limit
        return limits

    def clone(self, flags):
        return self.syscall(self.clone_number, flags, *(self.clone_rest + [0]))

    def decode(self, strings):
        """os.fsdecode, of all of them."""
        encoding, errors = self.encoding
        decoded = []
        for string in strings:
            decoded.append(string.decode(encoding, errors))
        return decoded

    def set_environ(self, environment):
        """The C library's: in one piece. It never frees what it has not made
        itself, and what is here stays for ever."""
        strings = []
        for name, value in environment.items():
            strings.append(name + b'=' + value + b'\0')
        block = b''.join(strings)
        address = id(block) + BYTES_OFFSET
        pointers = []
        for string in strings:
            pointers.append(address)
            address += len(string)
        pointers.append(0)
        array = self.pack('%dQ' % len(pointers), *pointers)
        self.keep(block)
        self.keep(array)
        self.environ.value = id(array) + BYTES_OFFSET


start()
forget_this_file()
# The user's own, if there is one. If not, `site` expects this very error.
import sitecustomize
