#!/usr/bin/env python3
"""What a snapshot under way does to the latency of reads and writes, in an open loop.

The highest rate is what a closed loop gets; then requests come at half of it, at fixed times whatever the server does, in
pairs of runs: one quiet, one with snapshots written without a pause between them. First GETs alone, then half SETs, which
change what the snapshot has still to write.
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
    parser = argparse.ArgumentParser(description="What writing a snapshot does to the latency of reads and writes.")
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


# What is asked for, and the share of reads in it.
LOADS = {"GET": "1", "half GET, half SET": "0.5"}


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


def longest_turn_us(port):
    """The longest that a shard served nobody else, over the last 10 to 20 s."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as stream:
        stream.sendall(b'{"command":"INFO"}\n')
        with stream.makefile("rb") as answers:
            info = json.loads(answers.readline())["result"]
    return max(shard["turns"]["longest_us"] for shard in info["shards"])


def measure(arguments, server, port, reads, end):
    """Pairs of runs, quiet and with snapshots, the closed loop's rate before them, and how long the snapshots took."""
    quiet, busy, snapshot_s = [], [], []

    def load(seconds, **flags):
        report = generate(
            arguments,
            ["mixed", "--read-ratio", reads],
            [f"127.0.0.1:{port}"],
            [server.pid],
            seconds,
            connections=arguments.connections,
            keys=arguments.keys,
            **flags,
        )
        return {**figures_of(report["phases"][-1]), "turn_us": longest_turn_us(port)}

    highest = load(3.0, depth=arguments.depth)["rate"]
    rate = int(highest * arguments.share)
    note(f"  highest rate {highest:,.0f}/s, open loop at {rate:,}/s")
    for _ in range(arguments.rounds):
        if time.monotonic() > end and busy:
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
    return quiet, busy, highest, snapshot_s


def main():
    arguments = parse_arguments()
    demand(arguments, {})
    begun = time.monotonic()
    rows, snapshot_s = [], []
    with directory(arguments) as path:
        (port,) = free_ports(1)
        server = start_strand(arguments, path, port)
        with running(server):
            server.wait_until_answering(port, *STRAND_PROBE)
            for number, (name, reads) in enumerate(LOADS.items(), start=1):
                end = begun + arguments.minutes * 60 * number / len(LOADS)
                quiet, busy, highest, seconds = measure(arguments, server, port, reads, end)
                snapshot_s += seconds
                rows += rows_of(name, highest, quiet, busy)
    lines = taken(
        f"{arguments.keys:,} keys, {arguments.connections} connections, requests at {arguments.share:.0%} of the rate that",
        f"a closed loop got at depth {arguments.depth}; {arguments.seconds:g} s a run; shards:",
        f"{arguments.shards or 'by cores'}; a snapshot took {statistics.median(snapshot_s):.2f} s (median of",
        f"{len(snapshot_s)}); medians. The longest turn is the shard's, over the last 10 to 20 s, by the clock.",
    )
    header = ["load", "snapshots", "requests/s", "p50 µs", "p99 µs", "p99.9 µs", "never sent", "longest turn µs", "runs"]
    write_section("snapshots", [*lines, *table(header, rows)], arguments.only_print)


def rows_of(name, highest, quiet, busy):
    def row(title, when, rounds):
        figures = ("rate", "p50_us", "p99_us", "p999_us", "unsent", "turn_us")
        return [title, when, *(f"{median(rounds, figure):,.0f}" for figure in figures), str(len(rounds))]

    ratios = {
        name: sorted(one[name] / other[name] for one, other in zip(busy, quiet)) for name in ("p99_us", "p999_us")
    }
    told = [f"{statistics.median(of):.2f} ({of[0]:.2f} to {of[-1]:.2f})" for of in ratios.values()]
    return [
        row(f"{name}; highest rate {highest:,.0f}/s", "none", quiet),
        row("", "all the time", busy),
        ["", "ratio within pairs", "", "", told[0], f"**{told[1]}**", "", "", ""],
    ]


if __name__ == "__main__":
    main()
