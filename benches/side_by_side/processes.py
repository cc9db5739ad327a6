"""Processes of the measured servers: started, watched, and ended whatever happens.

A server may fork, prefork and run scripts; "its processes" are all that descend
from what was started here, and all in their sessions. Nothing outlives the
command: it ends its servers itself, and if it is killed before it can, a guard
process does it.
"""

import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
STOP_SECONDS = 3
PR_SET_CHILD_SUBREAPER = 36

# Starts the rest of its arguments within the control group that is its first.
INTO_GROUP = 'echo $$ >"$0/cgroup.procs" && exec "$@"'


class Workplace:
    """A folder for everything temporary, and the list of servers that run. Leaving it ends and removes all."""

    def __enter__(self):
        # Orphans of a server become children of this process and are found below it.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="serve-here-compare-"))
        # Scripts of some servers run as another user.
        self.folder.chmod(0o755)
        self.control_group = make_control_group()
        self.servers = []
        self.guard = Guard(self.folder, self.control_group)
        return self

    def __exit__(self, *_):
        for server in list(self.servers):
            server.stop(patient=False)
        remove_control_group(self.control_group)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.guard.dismiss()

    def server(self, name):
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        return Server(self, name, folder)


class Guard:
    """A process in a session of its own. It reads which sessions run; at the end of its input it ends what is left."""

    def __init__(self, folder, control_group):
        reading, self.writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            # Whatever happens, this process must not go on as a second benchmark.
            try:
                os.close(self.writing)
                os.setsid()
                self.watch(reading, folder, control_group)
            finally:
                os._exit(0)
        os.close(reading)

    def watch(self, reading, folder, control_group):
        sessions = set()
        with open(reading) as lines:
            for line in lines:
                change, session = line[0], int(line[1:])
                (sessions.add if change == "+" else sessions.discard)(session)
        if sessions:
            for pid in members(sessions):
                kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        remove_control_group(control_group)
        shutil.rmtree(folder, ignore_errors=True)

    def note(self, change, session):
        os.write(self.writing, f"{change}{session}\n".encode())

    def dismiss(self):
        os.close(self.writing)
        os.waitpid(self.pid, 0)


class Server:
    """The processes of one running server."""

    def __init__(self, place, name, folder):
        self.place = place
        self.name = name
        self.folder = folder
        self.leaders = []
        self.control_group = None

    def start(self, commands, quiet=True, counted=True):
        """Starts the commands. With `counted` a control group counts their CPU time, if there can be one."""
        self.place.servers.append(self)
        prefix = []
        if counted and self.place.control_group:
            self.control_group = self.place.control_group / self.name
            self.control_group.mkdir(exist_ok=True)
            prefix = ["/bin/sh", "-c", INTO_GROUP, str(self.control_group)]
        for command in commands:
            with open(os.devnull if quiet else self.log, "ab") as log:
                leader = subprocess.Popen(
                    prefix + [str(word) for word in command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.folder), "LANG": "C"},
                    start_new_session=True,
                )
            self.leaders.append(leader)
            self.place.guard.note("+", leader.pid)

    @property
    def log(self):
        return self.folder / "output.log"

    def has_ended(self):
        return any(leader.poll() is not None for leader in self.leaders)

    def pids(self):
        if self.control_group:
            return [int(pid) for pid in (self.control_group / "cgroup.procs").read_text().split()]
        return members({leader.pid for leader in self.leaders})

    def cpu_us(self):
        """CPU time that it has used so far, that of its scripts included."""
        if self.control_group:
            for line in (self.control_group / "cpu.stat").read_text().splitlines():
                name, value = line.split()
                if name == "usage_usec":
                    return int(value)
        ticks = 0
        for pid in self.pids():
            fields = stat_fields(pid)
            # utime, stime, and both of the children that it has waited for
            ticks += sum(int(field) for field in fields[11:15]) if fields else 0
        return ticks * 1_000_000 // TICKS

    def resident_bytes(self):
        total = 0
        for pid in self.pids():
            try:
                pages = pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]
            except (OSError, IndexError):
                continue
            total += int(pages) * PAGE_BYTES
        return total

    def proportional_bytes(self, field="Pss:"):
        """Like resident, but a page that N processes share counts as 1/N for each. None if that can't be read."""
        total = 0
        for pid in self.pids():
            try:
                lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                return None
            total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith(field))
        return total

    def stop(self, patient=True):
        """Ends all its processes: by SIGTERM, then by SIGKILL; at once by SIGKILL if not `patient`."""
        sessions = {leader.pid for leader in self.leaders}
        if patient:
            for leader in self.leaders:
                leader.terminate()
            self.wait_for_end(sessions, STOP_SECONDS)
        left = members(sessions)
        while left:
            for pid in left:
                kill(pid, signal.SIGKILL)
            self.wait_for_end(sessions, STOP_SECONDS)
            left = members(sessions)
        for leader in self.leaders:
            leader.wait()
            self.place.guard.note("-", leader.pid)
        self.leaders = []
        remove_control_group(self.control_group)
        self.control_group = None
        if self in self.place.servers:
            self.place.servers.remove(self)

    def wait_for_end(self, sessions, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for leader in self.leaders:
                leader.poll()
            for pid in members(sessions, dead=True):
                reap(pid)
            if not members(sessions):
                return
            time.sleep(0.005)


def members(sessions, dead=False):
    """Processes in those sessions, or below their leaders: the living ones, or those that nobody has waited for."""
    table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = stat_fields(int(name))
            if fields:
                table[int(name)] = (fields[0] in "ZX", int(fields[1]), int(fields[3]))
    return [pid for pid in table if table[pid][0] == dead and belongs(pid, table, sessions)]


def belongs(pid, table, sessions):
    while pid in table:
        _, parent, session = table[pid]
        if session in sessions:
            return True
        pid = parent
    return False


def stat_fields(pid):
    """The fields of /proc/PID/stat behind the name: state, parent, group, session, …; None if it is gone."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def kill(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def reap(pid):
    """Waits for an orphan that has become a child of this process; leaves alone what isn't."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def make_control_group():
    """A control group (version 2) below our own, if we may make one.

    It counts the CPU time of every process that was ever in it. /proc doesn't: a
    server that ignores SIGCHLD leaves no trace of the time of its scripts.
    """
    try:
        mount = next(
            line.split()[1]
            for line in pathlib.Path("/proc/self/mounts").read_text().splitlines()
            if line.split()[2] == "cgroup2"
        )
        own = next(
            line[3:] for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")
        )
        group = pathlib.Path(mount + own.rstrip("/")) / f"serve-here-compare-{os.getpid()}"
        group.mkdir()
    except (OSError, StopIteration):
        return None
    if "usage_usec" in (group / "cpu.stat").read_text() and os.access(group / "cgroup.procs", os.W_OK):
        return group
    group.rmdir()
    return None


def remove_control_group(group):
    """Removes a control group and those below it. The kernel may take a moment to see that they are empty."""
    if group is None:
        return
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        try:
            for below in group.iterdir():
                if below.is_dir():
                    below.rmdir()
            group.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)
