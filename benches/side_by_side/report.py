"""From rows to something to read: tables, targets, JSON, Markdown."""

import dataclasses
import json
import os
import pathlib
import platform
import statistics
import subprocess
import time

from . import peers
from .site import REPOSITORY
from .works import HOLDS, IDLE, IDLE_TITLE, MIB, OURS, TARGETS, WORKS

BEGIN = "<!-- figures: begin (written by benches/compare --markdown) -->"
END = "<!-- figures: end -->"


@dataclasses.dataclass
class Report:
    environment: list  # of pairs: what, value
    servers: list  # of triples: name, version, note
    rows: dict  # name of the work -> rows

    def best(self, work, measure):
        """The peer with the most requests, or the least of anything else."""
        rows = [row for row in self.rows.get(work, []) if row.is_peer and getattr(row, measure)]
        choose = max if measure == "rate" else min
        return choose(rows, key=lambda row: getattr(row, measure), default=None)

    def base(self, work, measure):
        """The row to which the ratios of a table are."""
        base = base_of(work)
        return self.row(work, base) if base else self.best(work, measure)

    def absent(self, work, measure):
        """Peers that could have taken part and did not."""
        kind = next(w.kind for w in WORKS if w.name == work)
        able = [peer.name for peer in peers.ALL if peer.is_peer and kind in peer.kinds]
        measured = [row.server for row in self.rows[work] if getattr(row, measure)]
        return [name for name in able if name not in measured]

    def row(self, work, server):
        return next((row for row in self.rows.get(work, []) if row.server == server), None)


def base_of(name):
    return next((work.base for work in WORKS + HOLDS if work.name == name), None)


def environment(wrk, load_average, rounds, seconds):
    cores = len(os.sched_getaffinity(0))
    busy = " (other programs were running: requests/s say little, CPU per request more)"
    kernel = platform.uname()
    return [
        ("date", time.strftime("%Y-%m-%d %H:%M")),
        ("commit", output("git", "describe", "--always", "--dirty")),
        ("machine", f"{cores} cores, {cpu_model()}"),
        ("kernel", f"{kernel.system} {kernel.release} {kernel.machine}"),
        ("load average at the start", f"{load_average:.2f}{busy if load_average > cores / 4 else ''}"),
        ("load generator", f"wrk {wrk.version()}, one thread, on the same machine"),
        ("length", f"{rounds} round{'s' * (rounds > 1)} of {seconds} s for each server and work"),
    ]


def cpu_model():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def output(*command):
    try:
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "?"


# -- tables: a head, lines of cells, remarks below --


def table(report, name):
    if name in [work.name for work in HOLDS]:
        return hold_table(report, name)
    return idle_table(report) if name == IDLE else load_table(report, name)


def title(name):
    return next((work.title for work in WORKS + HOLDS if work.name == name), IDLE_TITLE)


def load_table(report, name):
    best, leanest = report.base(name, "rate"), report.base(name, "cpu")
    base = base_of(name)
    against = [f"× {base}"] * 2 if base else ["× best peer", "× leanest peer"]
    head = ["server", "requests/s", against[0], "spread", "CPU µs", against[1], "p99 ms", "RSS MiB", "failed"]
    lines, remarks = [], []
    for row in report.rows[name]:
        if row.problem or not row.rates:
            remarks.append(f"{row.server}: {row.problem or 'no round'}")
            continue
        if row.closes:
            unsaid = ", which is also the only sign of its end" if row.endless else ""
            remarks.append(f"{row.server}: closes the connection after each answer{unsaid}")
        if not row.cpus_us:
            remarks.append(f"{row.server}: its CPU time can't be counted without a control group (run as root)")
        lines.append([
            row.server,
            number(row.rate),
            ratio(row.rate, best and best.rate),
            spread(row.rates),
            number(row.cpu),
            ratio(row.cpu, leanest and leanest.cpu),
            number(row.p99_ms),
            mib(row.resident),
            str(row.failed),
        ])
    return head, lines, remarks


def spread(values):
    """Half of the way from the least to the most, as a part of the median."""
    if len(values) < 2 or not max(values):
        return "–"
    return f"±{(max(values) - min(values)) / 2 / statistics.median(values):.0%}"


def hold_table(report, name):
    against = f"× {base_of(name)}"
    head = ["server", "PSS MiB", against, "anonymous MiB", "RSS MiB", "PSS MiB before", "KiB a request"]
    head += ["CPU µs", against, "spread", "CPU ms/s in the wait", "failed"]
    largest, leanest = report.base(name, "proportional"), report.base(name, "cpu")
    requests = next(work.connections for work in HOLDS if work.name == name)
    lines, remarks = [], []
    for row in report.rows[name]:
        if row.problem or not row.cpus_us:
            remarks.append(f"{row.server}: {row.problem or 'no round'}")
            continue
        grown = row.proportional and row.proportional_before and row.proportional - row.proportional_before
        lines.append([
            row.server,
            mib(row.proportional),
            ratio(row.proportional, largest and largest.proportional),
            mib(row.anonymous),
            mib(row.resident),
            mib(row.proportional_before),
            number(grown and grown / requests / 1024),
            number(row.cpu),
            ratio(row.cpu, leanest and leanest.cpu),
            spread(row.cpus_us),
            number(row.wait_us / 1000),
            str(row.failed),
        ])
    return head, lines, remarks


def idle_table(report):
    head = ["server", "start ms", "RSS MiB", "PSS MiB", "RSS MiB after load"]
    lines, remarks = [], []
    for row in report.rows[IDLE]:
        if row.problem:
            remarks.append(f"{row.server}: {row.problem}")
            continue
        cells = [number(row.start_ms), mib(row.resident), mib(row.proportional), mib(row.resident_after)]
        lines.append([row.server, *cells])
    return head, lines, remarks


def number(value):
    if value is None:
        return "–"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(value, base):
    if not value or not base:
        return "–"
    # Two places say nothing of what is a hundredth.
    return f"{value / base:.2f}" if value / base >= 0.1 else f"{value / base:.2g}"


def mib(value):
    return f"{value / MIB:.1f}" if value else "–"


# -- targets --


@dataclasses.dataclass
class Verdict:
    work: str
    text: str
    reached: str
    result: str  # met or missed, and whom that leaves out; not measured


def verdicts(report):
    return [verdict(report, target) for target in TARGETS]


def verdict(report, target):
    ours = report.row(target.work, target.ours)
    value = getattr(ours, target.measure) if ours else None
    if target.against is None:
        base = 1
    else:
        row = (
            report.best(target.work, target.measure)
            if target.against == "best"
            else report.row(target.work, target.against)
        )
        base = getattr(row, target.measure) if row else None
    if not value or not base:
        return Verdict(target.work, target.text, "–", "not measured")
    # The best of some is not the best of all.
    absent = [] if target.against != "best" else report.absent(target.work, target.measure)
    met = value / base >= target.factor if target.measure == "rate" else value / base <= target.factor
    if target.against is not None:
        reached = f"{value / base:.2f} × {row.server}"
    else:
        reached = f"{mib(value)} MiB" if target.measure == "resident" else f"{value:.1f} ms"
    without = f", without {', '.join(absent)}" if absent else ""
    return Verdict(target.work, target.text, reached, ("met" if met else "missed") + without)


def target_table(report):
    head = ["work", "target", "reached", ""]
    return head, [[v.work, v.text, v.reached, v.result] for v in verdicts(report)]


# -- as text --


def aligned(head, lines, remarks=(), figures=True):
    """Columns as wide as they need to be; figures, which are all but the first, to the right."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]

    def padded(line):
        cells = [c.rjust(w) if figures and i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths))]
        return "  ".join(cells).rstrip()

    return "\n".join([padded(head), *map(padded, lines), *(f"  {remark}" for remark in remarks)])


def about(report):
    pairs = [*report.environment, *((name, f"{version}; {note}") for name, version, note in report.servers)]
    width = max(len(what) for what, _ in pairs)
    return "\n".join(f"{what.ljust(width)}  {value}" for what, value in pairs)


# -- as Markdown --


def markdown(report):
    parts = ["\n".join(f"- {what}: {value}" for what, value in report.environment)]
    parts.append(markdown_table(["server", "version", "how"], report.servers, figures=False))
    for name in report.rows:
        head, lines, remarks = table(report, name)
        parts.append(f"### {title(name)}")
        parts.append(markdown_table(head, lines))
        if remarks:
            parts.append("\n".join(f"- {remark}" for remark in remarks))
    parts.append("### Targets")
    parts.append(markdown_table(*target_table(report), figures=False))
    return "\n\n".join(parts)


def markdown_table(head, lines, figures=True):
    rule = ["---", *("---:" if figures else "---" for _ in head[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def has_markers(path):
    text = path.read_text()
    return BEGIN in text and END in text.partition(BEGIN)[2]


def write_markdown(report, path):
    """Replaces what is between the markers."""
    before, _, rest = path.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n\n{markdown(report)}\n\n{END}{after}")


# -- as JSON --


def write_json(report, path):
    path.write_text(
        json.dumps(
            {
                "environment": dict(report.environment),
                "servers": [dict(zip(["name", "version", "note"], server)) for server in report.servers],
                "works": {name: [dataclasses.asdict(row) for row in rows] for name, rows in report.rows.items()},
                "targets": [dataclasses.asdict(verdict) for verdict in verdicts(report)],
            },
            indent=2,
            ensure_ascii=False,
        )
        + "\n"
    )
