#!/usr/bin/env python3
"""Compares Strand with Redis on one machine: same cores, same generator, same load, in turns.

For each cell (durability x load x connections x depth) several rounds are run; in each, both servers are started
fresh, one after the other, in an order that alternates. Before and after each measurement a probe looks for CPU time
that the host or other programs take; a round with too much of it, or whose load failed, is thrown away, counted and
run again a bounded number of times. Medians and their spread go into a table between markers in docs/BENCHMARKS.md. Cells that
Strand loses are shown like the others.
"""

import argparse
import statistics
import sys
import time

from common import (
    REDIS_PROBE,
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
    output_of,
    probed,
    running,
    start_redis,
    start_strand,
    table,
    taken,
    write_section,
)

# What each server is told, by promise: (words for the table, strand's flags, Redis's options).
PROMISES = {
    "off": ("not logged", ["--wal-sync", "off"], ["--appendonly", "no"]),
    "interval": (
        "synced each second",
        ["--wal-sync", "interval:1000"],
        ["--appendonly", "yes", "--appendfsync", "everysec"],
    ),
    "always": (
        "synced before the reply",
        ["--wal-sync", "always"],
        ["--appendonly", "yes", "--appendfsync", "always"],
    ),
    # Strand's stronger promise against Redis's weaker one.
    "always-everysec": (
        "synced before the reply; Redis each second",
        ["--wal-sync", "always"],
        ["--appendonly", "yes", "--appendfsync", "everysec"],
    ),
}
LOADS = {"mixed": ("half GET, half SET", ["mixed"]), "set": ("SET", ["mixed", "--read-ratio", "0"])}
SHAPES = [(50, 1), (50, 16), (50, 64), (500, 1), (500, 16), (500, 64)]
STARTERS = {"strand": ("json", start_strand, STRAND_PROBE), "redis": ("resp", start_redis, REDIS_PROBE)}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Compares Strand with Redis on this machine and writes the table into docs/BENCHMARKS.md.",
        epilog="Example: benches/compare/compare.py --profile tuning/dev-2core.toml --rounds 5",
    )
    add_common_flags(parser)
    parser.add_argument("--redis", default="redis-server", help="the Redis server [%(default)s]")
    parser.add_argument("--shards", help="shards of Strand [by its profile or cores]")
    parser.add_argument(
        "--shard-aware", action="store_true", help="the generator talks to each shard's own port (router.mode = inline)"
    )
    parser.add_argument("--promises", default="off,interval,always", help="comma list [%(default)s]")
    parser.add_argument("--loads", default="mixed,set", help="comma list [%(default)s]")
    parser.add_argument(
        "--shapes", default=",".join(f"{c}x{d}" for c, d in SHAPES), help="CONNECTIONSxDEPTH, comma list [%(default)s]"
    )
    parser.add_argument("--cells", help="PROMISE:LOAD:SHAPE, comma list, in place of the three lists above")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, for each cell [%(default)s]")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured in each round [%(default)s]")
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds before that [%(default)s]")
    parser.add_argument("--keys", type=int, default=100_000, help="[%(default)s]")
    parser.add_argument("--value-bytes", type=int, default=64, help="[%(default)s]")
    parser.add_argument(
        "--stolen-max", type=float, default=10.0, help="percent of CPU that others may take around a round [%(default)s]"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="stop starting rounds after so long [%(default)s]")
    parser.add_argument("--section", default="comparison", help="the table in the page that is replaced [%(default)s]")
    arguments = parser.parse_args()
    wanted = arguments.cells.split(",") if arguments.cells else [
        f"{promise}:{load}:{shape}"
        for promise in arguments.promises.split(",")
        for load in arguments.loads.split(",")
        for shape in arguments.shapes.split(",")
    ]
    arguments.cells = []
    for cell in wanted:
        promise, load, shape = cell.split(":")
        for name, known in ((promise, PROMISES), (load, LOADS)):
            if name not in known:
                parser.error(f"{name} is none of {', '.join(known)}")
        arguments.cells.append((promise, load, tuple(map(int, shape.split("x")))))
    return arguments


def measure(arguments, server_name, promise, load, shape):
    """One server, one load: figures of the generator, and the share of CPU that was stolen around it."""
    protocol, start, answers = STARTERS[server_name]
    flags = PROMISES[promise][1 if server_name == "strand" else 2]
    connections, depth = shape
    with directory(arguments) as path:
        (port,) = free_ports(1)
        server = start(arguments, path, port, flags)
        with running(server):
            server.wait_until_answering(port, *answers)
            around = {}
            extra = {"shard_aware": True} if arguments.shard_aware and protocol == "json" else {}
            with probed(around):
                report = generate(
                    arguments,
                    LOADS[load][1],
                    [f"127.0.0.1:{port}"],
                    [server.pid],
                    arguments.seconds,
                    arguments.warm_up,
                    protocol,
                    connections=connections,
                    depth=depth,
                    keys=arguments.keys,
                    value_bytes=arguments.value_bytes,
                    **extra,
                )
            return {**figures_of(report["phases"][-1]), **around}


class Cell:
    """The rounds of one promise, load and shape."""

    def __init__(self, promise, load, shape):
        self.promise, self.load, self.shape = promise, load, shape
        self.rounds = []
        self.thrown_away = 0
        self.troubles = []

    def run(self, arguments, end):
        tries = 2 * arguments.rounds
        while len(self.rounds) < arguments.rounds and tries > 0 and time.monotonic() < end:
            tries -= 1
            order = ["redis", "strand"] if tries % 2 else ["strand", "redis"]
            figures = {}
            try:
                for name in order:
                    figures[name] = measure(arguments, name, self.promise, self.load, self.shape)
            except Trouble as trouble:
                self.troubles.append(f"{name}: {trouble}")
                note(f"  failed, {name}: {trouble}")
                continue
            stolen = max(figure["stolen_percent"] for figure in figures.values())
            if stolen > arguments.stolen_max:
                self.thrown_away += 1
                note(f"  thrown away: {stolen:.1f}% of the CPU was stolen")
                continue
            self.rounds.append(figures)
            note("  " + ", ".join(f"{name} {figures[name]['rate']:,.0f}/s" for name in ("strand", "redis")))

    def median(self, server, figure):
        return median([figures[server] for figures in self.rounds], figure)

    def row(self):
        connections, depth = self.shape
        head = [PROMISES[self.promise][0], LOADS[self.load][0], f"{connections} x {depth}"]
        remarks = []
        if self.thrown_away:
            remarks.append(f"{self.thrown_away} thrown away (CPU taken)")
        if self.troubles:
            remarks.append(f"{len(self.troubles)} failed")
        if not self.rounds:
            return [*head, *["no figure"] * 4, "", ", ".join(remarks)]
        # The ratio is taken within each round, so that what slows both does not count.
        ratios = sorted(figures["strand"]["rate"] / figures["redis"]["rate"] for figures in self.rounds)
        ratio = statistics.median(ratios)
        verdict = f"**{ratio:.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})" + (", loses" if ratio < 1 else "")
        cells = [
            *(f"{self.median(server, 'rate'):,.0f}" for server in ("strand", "redis")),
            verdict,
            " / ".join(f"{self.median(server, 'cpu_ns'):,.0f}" for server in ("strand", "redis")),
            " / ".join(f"{self.median(server, 'p99_us'):,.0f}" for server in ("strand", "redis")),
        ]
        stolen = max(self.median(server, "stolen_percent") for server in ("strand", "redis"))
        return [*head, *cells, ", ".join([f"{len(self.rounds)} rounds", f"{stolen:.0f}% of the CPU taken", *remarks])]


HEADER = [
    "promise",
    "load",
    "connections x depth",
    "Strand requests/s",
    "Redis requests/s",
    "ratio (least to most)",
    "server CPU ns a request, Strand / Redis",
    "p99 µs, Strand / Redis",
    "rounds",
]


def main():
    arguments = parse_arguments()
    demand(arguments, {arguments.redis: "`apt-get install redis-server` (or --redis PATH)"})
    end = time.monotonic() + arguments.minutes * 60
    cells = []
    skipped = 0
    for promise, load, shape in arguments.cells:
        if time.monotonic() > end:
            skipped += 1
            continue
        note(f"{PROMISES[promise][0]}, {LOADS[load][0]}, {shape[0]} x {shape[1]}")
        cell = Cell(promise, load, shape)
        cell.run(arguments, end)
        cells.append(cell)
    redis = output_of(arguments.redis, "--version").split(" sha")[0]
    lines = taken(
        f"Against {redis}. Servers on cores {arguments.server_cores}, generator on {arguments.generator_cores};",
        f"{arguments.value_bytes}-byte values, {arguments.keys:,} keys, {arguments.seconds:g} s a round;",
        f"profile: {arguments.profile or 'defaults'}.",
    )
    lines += table(HEADER, [cell.row() for cell in cells])
    if skipped:
        lines += ["", f"{skipped} cells were not run: --minutes {arguments.minutes:g} was over."]
    write_section(arguments.section, lines, arguments.only_print)
    if any(not cell.rounds for cell in cells):
        sys.exit("Some cells have no figure; the lines above say why.")


if __name__ == "__main__":
    main()
