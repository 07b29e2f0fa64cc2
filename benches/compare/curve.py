#!/usr/bin/env python3
"""The curve over shards: the same load on one server with 1, 2 and 4 shards, whatever the number of cores.

More shards than cores cannot be faster; what the table shows is whether a request costs more with their number.
Instructions for each request come from the baseline of `make bench-check`, which no other program can disturb.
"""

import argparse
import json
import time

from common import (
    ROOT,
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

BASELINE = ROOT / "benches/instructions/baseline.json"
LOADS = {
    "GET": (["mixed", "--read-ratio", "1"], "get"),
    "SET": (["mixed", "--read-ratio", "0"], "set"),
}


def parse_arguments():
    parser = argparse.ArgumentParser(description="What a request costs with 1, 2 and 4 shards.")
    add_common_flags(parser)
    parser.add_argument("--counts", default="1,2,4", help="numbers of shards, comma list [%(default)s]")
    parser.add_argument("--wal-sync", default="off", help="[%(default)s]")
    parser.add_argument("--connections", type=int, default=50, help="[%(default)s]")
    parser.add_argument("--depth", type=int, default=64, help="[%(default)s]")
    parser.add_argument("--keys", type=int, default=100_000, help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="[%(default)s]")
    parser.add_argument("--seconds", type=float, default=2.0, help="measured in each round [%(default)s]")
    parser.add_argument("--minutes", type=float, default=15.0, help="stop starting rounds after so long [%(default)s]")
    return parser.parse_args()


def measure(arguments, load, shards):
    with directory(arguments) as path:
        (port,) = free_ports(1)
        server = start_strand(arguments, path, port, ["--wal-sync", arguments.wal_sync, "--shards", shards])
        with running(server):
            server.wait_until_answering(port, *STRAND_PROBE)
            with probed(around := {}):
                report = generate(
                    arguments,
                    LOADS[load][0],
                    [f"127.0.0.1:{port}"],
                    [server.pid],
                    arguments.seconds,
                    connections=arguments.connections,
                    depth=arguments.depth,
                    keys=arguments.keys,
                )
            return {**figures_of(report["phases"][-1]), **around}


def main():
    arguments = parse_arguments()
    demand(arguments, {})
    counts = [int(count) for count in arguments.counts.split(",")]
    end = time.monotonic() + arguments.minutes * 60
    rounds = {(load, shards): [] for load in LOADS for shards in counts}
    for _ in range(arguments.rounds):
        for load, shards in rounds:
            if time.monotonic() > end:
                continue
            try:
                figures = measure(arguments, load, shards)
            except Trouble as trouble:
                note(f"  failed, {load} with {shards} shards: {trouble}")
                continue
            rounds[load, shards].append(figures)
            note(f"  {load}, {shards} shards: {figures['rate']:,.0f}/s, {figures['cpu_ns']:,.0f} ns of CPU")
    counted = json.loads(BASELINE.read_text(encoding="utf-8"))["cases"]
    rows = []
    for (load, shards), mine in rounds.items():
        each = counted.get(f"{LOADS[load][1]}@{shards}", {}).get("instructions")
        if not mine:
            rows.append([load, str(shards), *["no figure"] * 4, "0"])
            continue
        figures = [f"{median(mine, name):,.0f}" for name in ("rate", "cpu_ns", "p99_us")]
        rows.append([load, str(shards), *figures, f"{each:,.0f}" if each else "", str(len(mine))])
    lines = taken(
        f"{arguments.connections} x {arguments.depth}, `wal.sync = {arguments.wal_sync}`, {arguments.keys:,} keys,",
        f"servers on cores {arguments.server_cores}, generator on {arguments.generator_cores}; medians.",
    )
    header = ["load", "shards", "requests/s", "server CPU ns a request", "p99 µs", "instructions a request", "rounds"]
    write_section("shards", [*lines, *table(header, rows)], arguments.only_print)


if __name__ == "__main__":
    main()
