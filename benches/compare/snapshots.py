#!/usr/bin/env python3
"""What a snapshot under way does to the latency of reads, in an open loop.

The highest rate is what a closed loop gets; then GETs come at half of it, at fixed times whatever the server does, in
pairs of runs: one quiet, one with snapshots written without a pause between them.
"""

import argparse
import contextlib
import json
import socket
import statistics
import threading
import time

from common import (
    STRAND_PROBE,
    Trouble,
    add_common_flags,
    demand,
    directory,
    figures_of,
    free_ports,
    generate,
    median,
    note,
    probed,
    running,
    start_strand,
    table,
    taken,
    write_section,
)


def parse_arguments():
    parser = argparse.ArgumentParser(description="What writing a snapshot does to the latency of reads.")
    add_common_flags(parser)
    parser.add_argument("--shards", help="shards of Strand [by its profile or cores]")
    parser.add_argument("--keys", type=int, default=1_000_000, help="[%(default)s]")
    parser.add_argument("--connections", type=int, default=50, help="[%(default)s]")
    parser.add_argument("--depth", type=int, default=16, help="of the closed loop that finds the highest rate [%(default)s]")
    parser.add_argument("--share", type=float, default=0.5, help="of the highest rate [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs [%(default)s]")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured in each run [%(default)s]")
    parser.add_argument("--minutes", type=float, default=30.0, help="stop starting rounds after so long [%(default)s]")
    return parser.parse_args()


class Snapshots:
    """Asks for one snapshot after another on a thread of its own; each follows a write, or there were nothing to do."""

    def __init__(self, port):
        self.port = port
        self.seconds = []
        self.problem = None
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        with socket.create_connection(("127.0.0.1", self.port), timeout=120) as stream:
            with stream.makefile("rb") as answers:
                while not self.stopping.is_set():
                    since = time.monotonic()
                    stream.sendall(b'{"command":"SET","key":"snapshot:probe","value":1}\n{"command":"SNAPSHOT"}\n')
                    for reply in (json.loads(answers.readline()) for _ in range(2)):
                        if reply["status"] != "success":
                            self.problem = str(reply)
                            return
                    self.seconds.append(time.monotonic() - since)

    @contextlib.contextmanager
    def under_way(self):
        self.thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            self.thread.join()
        if self.problem:
            raise Trouble(f"a snapshot was refused: {self.problem}")


def main():
    arguments = parse_arguments()
    demand(arguments, {})
    end = time.monotonic() + arguments.minutes * 60
    quiet, busy, snapshot_s = [], [], []
    with directory(arguments) as path:
        (port,) = free_ports(1)
        server = start_strand(arguments, path, port)
        with running(server):
            server.wait_until_answering(port, *STRAND_PROBE)

            def load(seconds, **flags):
                report = generate(
                    arguments,
                    ["mixed", "--read-ratio", "1"],
                    [f"127.0.0.1:{port}"],
                    [server.pid],
                    seconds,
                    connections=arguments.connections,
                    keys=arguments.keys,
                    **flags,
                )
                return figures_of(report["phases"][-1])

            highest = load(3.0, depth=arguments.depth)["rate"]
            rate = int(highest * arguments.share)
            note(f"  highest rate {highest:,.0f}/s, open loop at {rate:,}/s")
            for _ in range(arguments.rounds):
                if time.monotonic() > end:
                    break
                with probed(around := {}):
                    quiet.append(load(arguments.seconds, rate=rate, no_load=True))
                    snapshots = Snapshots(port)
                    with snapshots.under_way():
                        busy.append(load(arguments.seconds, rate=rate, no_load=True))
                snapshot_s += snapshots.seconds
                note(
                    f"  p99.9 {quiet[-1]['p999_us']:,.0f} µs quiet, {busy[-1]['p999_us']:,.0f} µs with "
                    f"{len(snapshots.seconds)} snapshots; {around['stolen_percent']:.1f}% of the CPU taken around them"
                )
    if not busy:
        raise SystemExit("No pair of runs succeeded.")

    def row(title, rounds):
        figures = [f"{median(rounds, name):,.0f}" for name in ("rate", "p50_us", "p99_us", "p999_us", "unsent")]
        return [title, *figures, str(len(rounds))]

    ratios = {
        name: sorted(one[name] / other[name] for one, other in zip(busy, quiet)) for name in ("p99_us", "p999_us")
    }
    told = [f"{statistics.median(of):.2f} ({of[0]:.2f} to {of[-1]:.2f})" for of in ratios.values()]
    lines = taken(
        f"{arguments.keys:,} keys, GET over {arguments.connections} connections at {rate:,} a second, that is",
        f"{arguments.share:.0%} of what a closed loop got at depth {arguments.depth} ({highest:,.0f});",
        f"{arguments.seconds:g} s a run; shards: {arguments.shards or 'by cores'}; a snapshot took",
        f"{statistics.median(snapshot_s):.2f} s (median of {len(snapshot_s)}); medians.",
    )
    header = ["GET", "requests/s", "p50 µs", "p99 µs", "p99.9 µs", "due and never sent", "runs"]
    rows = [row("quiet", quiet), row("snapshots all the time", busy)]
    rows.append(["ratio within pairs", "", "", told[0], f"**{told[1]}**", "", ""])
    write_section("snapshots", [*lines, *table(header, rows)], arguments.only_print)


if __name__ == "__main__":
    main()
