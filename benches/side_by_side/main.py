"""The command line, and the order of things: build, check, measure, report."""

import argparse
import os
import pathlib
import signal
import sys

from . import chart, peers, report, works
from .load import LoadError, Wrk
from .measure import Measurement, say, why_not
from .processes import Workplace
from .site import BuildError, Site


def main():
    options = parse()
    for number in [signal.SIGTERM, signal.SIGHUP]:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        with Workplace() as place:
            result = compare(place, options)
    except (BuildError, LoadError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        report.write_json(result, options.json)
    if options.markdown:
        report.write_markdown(result, options.markdown)
    if options.svg:
        options.svg.write_text(chart.draw(result))
    return 0


def parse():
    names = [peer.name for peer in peers.ALL]
    parser = argparse.ArgumentParser(
        prog="benches/compare",
        description="Measures this server and others side by side. benches/install-needs installs the others.",
        epilog=f"Works: {', '.join(works.NAMES)}. Servers: {'; '.join(names)}.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="one round of 1 s without a warm-up: to try it, not to believe it")
    add("--rounds", type=positive, default=5, metavar="N", help="rounds per work; figures are medians [5]")
    add("--seconds", type=positive, default=3, metavar="S", help="length of a round for each server [3]")
    add("--work", action="append", choices=works.NAMES, metavar="NAME", help="only this work; repeatable")
    add("--peer", action="append", choices=names, metavar="NAME", help=f"{works.OURS} and this one; repeatable")
    add("--json", type=pathlib.Path, metavar="FILE", help="write every sample")
    add("--svg", type=pathlib.Path, metavar="FILE", help="write a chart")
    add("--markdown", type=pathlib.Path, metavar="FILE", help="put the tables between the markers of a file")
    options = parser.parse_args()
    if options.quick:
        options.rounds = options.seconds = 1
    # Before minutes of work, not after.
    for path in filter(None, [options.json, options.svg]):
        if not path.absolute().parent.is_dir():
            parser.error(f"{path}: no such folder")
    if options.markdown and not (options.markdown.is_file() and report.has_markers(options.markdown)):
        parser.error(f"{options.markdown}: not a file with the line {report.BEGIN}, and {report.END} below it")
    return options


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def compare(place, options):
    # The build is a load of its own.
    load_average = os.getloadavg()[0]
    wrk = Wrk(place)
    site = Site(place)
    chosen = [
        peer(site) for peer in peers.ALL if not options.peer or peer.name in options.peer or peer.name == works.OURS
    ]
    result = report.Report(
        report.environment(wrk, load_average, options.rounds, options.seconds),
        [(peer.name, peer.version() if peer.missing() is None else "missing", peer.note) for peer in chosen],
        {},
    )
    print(report.about(result), flush=True)
    for peer in chosen:
        if peer.missing():
            say(f"MISSING: {peer.name}: {peer.missing()} (benches/install-needs)")
    measurement = Measurement(place, site, wrk, options.rounds, options.seconds, warm_up=not options.quick)
    for name in works.NAMES:
        if options.work and name not in options.work:
            continue
        work = next((work for work in works.WORKS + works.HOLDS if work.name == name), None)
        # Who can't do it at all by its nature has no line in the table of it.
        able = [peer for peer in chosen if peer.concerns(work)]
        if work is None:
            result.rows[name] = measurement.idle(able)
        elif work in works.HOLDS:
            result.rows[name] = measurement.hold(work, able)
        else:
            result.rows[name] = measurement.load(work, able)
        print(f"\n== {report.title(name)}\n{report.aligned(*report.table(result, name))}", flush=True)
    print(f"\n== Targets\n{report.aligned(*report.target_table(result), figures=False)}", flush=True)
    return result
