"""Rounds: every server in turn, each round beginning with another one."""

import dataclasses
import http.client
import socket
import statistics
import sys
import time

from . import site as sites
from .holds import SlowApplication
from .load import Answer, LoadError, await_answer, run_and_sample
from .peers import RawFloor
from .works import FILE, IDLE, LISTING, SCRIPT, WORKS, ready_path

START_SECONDS = 10
CHECK_SECONDS = 3
SETTLE_SECONDS = 1
STARTS = 9
# Another program may take the port between its choice and its use.
PORT_TRIES = 3


class StartError(Exception):
    pass


@dataclasses.dataclass
class Row:
    """What one server did in one work."""

    work: str
    server: str
    is_peer: bool
    # Why there are no figures.
    problem: str | None = None
    # It closes the connection after each answer.
    closes: bool = False
    # Only by closing it, it says where its answer ends. wrk takes that for a fault.
    endless: bool = False
    rates: list[float] = dataclasses.field(default_factory=list)
    cpus_us: list[float] = dataclasses.field(default_factory=list)
    p99s_ms: list[float] = dataclasses.field(default_factory=list)
    failed: int = 0
    # The most during the load; in the idle work after the start.
    resident: int = 0
    proportional: int | None = None
    # Like proportional, of memory that no file is behind.
    anonymous: int | None = None
    # Before the first request.
    proportional_before: int | None = None
    # Requests only wait: CPU time in a second of that.
    waits_us: list[float] = dataclasses.field(default_factory=list)
    resident_after: int = 0
    starts_ms: list[float] = dataclasses.field(default_factory=list)

    @property
    def rate(self):
        return median(self.rates)

    @property
    def cpu(self):
        return median(self.cpus_us)

    @property
    def p99_ms(self):
        return median(self.p99s_ms)

    @property
    def wait_us(self):
        return median(self.waits_us)

    @property
    def start_ms(self):
        return median(self.starts_ms)

    def add(self, work, figures):
        """A round's figures."""
        count = figures["requests"]
        if work.by_bytes:
            count = figures["bytes"] / work.bytes
        elif count and figures.get("bytes", work.bytes * count) < work.bytes * count:
            self.problem = "answers were shorter than the file"
        self.rates.append(count / figures["seconds"])
        if count:
            if figures["cpu_us"] is not None:
                self.cpus_us.append(figures["cpu_us"] / count)
            self.p99s_ms.append(figures["p99_us"] / 1000)
        self.failed += figures.get("failed", 0)
        if not self.endless:
            self.failed += figures.get("broken_off", 0)
        self.resident = max(self.resident, figures.get("resident", 0))

    def add_hold(self, work, figures):
        """A round's figures of requests that wait."""
        self.cpus_us.append(figures["cpu_us"] / work.connections)
        self.waits_us.append(figures["waiting_us"])
        self.failed += figures["wrong"]
        self.resident = max(self.resident, figures["resident"])
        for name in ["proportional", "anonymous"]:
            if figures[name] is not None:
                setattr(self, name, max(getattr(self, name) or 0, figures[name]))


def median(values):
    return statistics.median(values) if values else None


def say(text):
    print(text, file=sys.stderr, flush=True)


class Measurement:
    def __init__(self, place, site, wrk, rounds, seconds, warm_up):
        self.place = place
        self.site = site
        self.wrk = wrk
        self.rounds = rounds
        self.seconds = seconds
        self.warm_up = warm_up

    def load(self, work, peers):
        """One work, all peers that can do it; the others get a row that says why not."""
        rows = [Row(work.name, peer.name, peer.is_peer, problem=why_not(peer, work.kind)) for peer in peers]
        running = {}
        try:
            for peer, row in zip(peers, rows):
                if row.problem is None and not isinstance(peer, RawFloor):
                    running[peer.name] = self.begin(peer, work, row)
            able = [(peer, row) for peer, row in zip(peers, rows) if row.problem is None]
            for number in range(self.rounds):
                first = number % max(len(able), 1)
                for peer, row in able[first:] + able[:first]:
                    self.one_round(peer, work, row, running.get(peer.name))
                    if row.rates:
                        say(f"{work.name} {number + 1}/{self.rounds}: {row.server} {row.rates[-1]:,.0f}/s")
        finally:
            for started in running.values():
                if started:
                    started[0].stop()
        return rows

    def begin(self, peer, work, row):
        """Starts a server, checks its answer and warms it up. None, and a problem in the row, if that fails."""
        try:
            server, port = self.start(peer, work)
        except StartError as error:
            row.problem = f"does not start: {error}"
            return None
        self.check(port, work, row)
        if row.problem is None and self.warm_up:
            self.wrk.run(server, port, work, 1)
        return server, port

    def one_round(self, peer, work, row, started):
        if row.problem is not None:
            return
        try:
            if started is None:
                figures, _ = run_and_sample(peer.loop(work, self.seconds))
            else:
                figures = self.wrk.run(*started, work, self.seconds)
        except LoadError as error:
            row.problem = str(error)
            return
        if self.place.control_group is None and work.kind in peer.loses_cpu:
            figures["cpu_us"] = None
        row.add(work, figures)

    def start(self, peer, work, counted=True):
        """Starts a server and waits for its first answer."""
        for number in range(PORT_TRIES):
            port = free_port()
            server = self.place.server(f"{peer.name}-{port}")
            server.start(peer.commands(server.folder, port, work), peer.quiet, counted)
            if await_answer(server, port, ready_path(work), START_SECONDS):
                return server, port
            ended = server.has_ended()
            server.stop(patient=False)
            if not ended:
                raise StartError(f"no answer within {START_SECONDS} s")
        said = server.log.read_text(errors="replace").strip() if server.log.exists() else ""
        raise StartError(said[-300:] or "it ends at once")

    def check(self, port, work, row):
        """Whether the answer is the right one; says in the row what is wrong with it."""
        deadline = time.monotonic() + CHECK_SECONDS
        while True:
            try:
                answer = Answer(port, work.path)
                row.problem = what_is_wrong(answer, work, self.site)
                row.closes, row.endless = answer.closes, not answer.has_end
            except (OSError, http.client.HTTPException) as error:
                row.problem = f"no answer: {error!r}"
            # The part of a server that starts scripts may be up a little later.
            if row.problem is None or time.monotonic() > deadline:
                return
            time.sleep(0.01)

    def hold(self, work, peers):
        """Requests that wait for an application, all at once."""
        rows = [Row(work.name, peer.name, peer.is_peer, problem=why_not(peer, work.kind)) for peer in peers]
        running = {}
        with SlowApplication(self.site, work) as application:
            try:
                for peer, row in zip(peers, rows):
                    if row.problem is None:
                        running[peer.name] = self.begin_hold(peer, work, row)
                able = [(peer, row) for peer, row in zip(peers, rows) if row.problem is None]
                for number in range(self.rounds):
                    first = number % max(len(able), 1)
                    for peer, row in able[first:] + able[:first]:
                        self.one_hold(application, work, row, running[peer.name])
            finally:
                for started in running.values():
                    if started:
                        started[0].stop()
        return rows

    def begin_hold(self, peer, work, row):
        try:
            server, port = self.start(peer, work)
        except StartError as error:
            row.problem = f"does not start: {error}"
            return None
        time.sleep(SETTLE_SECONDS)
        row.proportional_before = server.proportional_bytes()
        return server, port

    def one_hold(self, application, work, row, started):
        if row.problem is not None:
            return
        try:
            row.add_hold(work, application.run(*started))
        except LoadError as error:
            row.problem = str(error)
            return
        say(f"{work.name} {len(row.cpus_us)}/{self.rounds}: {row.server} {row.cpus_us[-1]:,.0f} µs a request")

    def idle(self, peers):
        """Memory of servers that nobody asks, before and after load, and the time to the first answer."""
        rows = [Row(IDLE, peer.name, peer.is_peer, problem=why_not(peer, FILE)) for peer in peers]
        able = [(peer, row) for peer, row in zip(peers, rows) if row.problem is None]
        for peer, row in able:
            self.memory(peer, row)
        able = [(peer, row) for peer, row in able if row.problem is None]
        for number in range(STARTS):
            for peer, row in able:
                self.one_start(peer, row)
            say(f"{IDLE} start {number + 1}/{STARTS}")
        return rows

    def memory(self, peer, row):
        try:
            server, port = self.start(peer, WORKS[0])
        except StartError as error:
            row.problem = f"does not start: {error}"
            return
        try:
            time.sleep(SETTLE_SECONDS / 2)
            row.resident = server.resident_bytes()
            row.proportional = server.proportional_bytes()
            for kind in [FILE, LISTING, SCRIPT]:
                if kind in peer.kinds:
                    self.wrk.run(server, port, next(work for work in WORKS if work.kind == kind), 1)
            time.sleep(SETTLE_SECONDS)
            row.resident_after = server.resident_bytes()
        finally:
            server.stop()

    def one_start(self, peer, row):
        port = free_port()
        server = self.place.server(f"start-{port}")
        commands = peer.commands(server.folder, port, WORKS[0])
        before = time.perf_counter()
        # No control group: joining it takes a shell of its own.
        server.start(commands, peer.quiet, counted=False)
        answered = await_answer(server, port, ready_path(WORKS[0]), START_SECONDS)
        took = time.perf_counter() - before
        server.stop(patient=False)
        if answered:
            row.starts_ms.append(took * 1000)


def why_not(peer, kind):
    if kind not in peer.kinds:
        return f"can't: no {kind}s"
    missing = peer.missing()
    return f"missing: {missing}" if missing else None


def what_is_wrong(answer, work, site):
    if answer.status != 200:
        return f"wrong: status {answer.status}"
    if work.kind == FILE and answer.content != (site.folder / work.path.lstrip("/")).read_bytes():
        return "wrong: other bytes than the file's"
    if work.kind == LISTING:
        absent = sum(sites.entry_name(n).encode() not in answer.content for n in range(sites.LISTING_ENTRIES))
        if absent:
            return f"wrong: {absent} entries are absent"
    if work.kind not in {FILE, LISTING} and (answer.media_type != "text/plain" or answer.content != work.says):
        return f"wrong: the output is {answer.media_type} {answer.content[:80]!r}"
    return None


def free_port():
    """A port that the system picks. Most servers can't ask for one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
