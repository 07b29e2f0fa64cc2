#!/usr/bin/env python3
"""Compares replicated durable writes: three nodes of Strand, three of etcd 3, and one node of Strand, all on this machine.

Every node of a cluster syncs before it votes for an entry, and the client hears of a write when a majority has it. One
generator loads all: the same connections spread over all nodes of a cluster, the same requests under way on each (etcd is
asked by gRPC, whose streams are as many requests under way on one connection). Each round starts everything fresh.
"""

import argparse
import statistics
import time

from common import (
    STRAND_WRITE,
    Process,
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
    start_strand,
    table,
    taken,
    write_section,
)

NODES = 3
HTTP_PROBE = b"GET /health HTTP/1.0\r\n\r\n"
# Its answer begins with the status line; a node without a leader says 503.
HTTP_OK = b"HTTP/1.0 200"
FOUNDING_S = 60


def parse_arguments():
    parser = argparse.ArgumentParser(description="Compares replicated writes with etcd and writes docs/BENCHMARKS.md's table.")
    add_common_flags(parser)
    parser.add_argument("--etcd", default="etcd", help="the etcd server [%(default)s]")
    parser.add_argument("--shards", default="1", help="shards of Strand [%(default)s]")
    parser.add_argument("--connections", type=int, default=50, help="[%(default)s]")
    parser.add_argument("--depths", default="16,64", help="requests under way on each, comma list [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="[%(default)s]")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured in each round [%(default)s]")
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds before that [%(default)s]")
    parser.add_argument("--keys", type=int, default=10_000, help="[%(default)s]")
    parser.add_argument("--value-bytes", type=int, default=64, help="[%(default)s]")
    parser.add_argument("--minutes", type=float, default=30.0, help="stop starting rounds after so long [%(default)s]")
    return parser.parse_args()


def start_strand_nodes(arguments, path, nodes):
    """Processes and client addresses of a founded cluster."""
    ports = free_ports(2 * nodes)
    clients, peers = ports[:nodes], ports[nodes:]
    processes = []
    for number in range(nodes):
        home = path / f"node{number + 1}"
        home.mkdir()
        flags = ["--id", f"node{number + 1}"]
        if nodes > 1:
            others = [
                f"node{other + 1}@127.0.0.1:{clients[other]}:{peers[other]}" for other in range(nodes) if other != number
            ]
            flags += ["--cluster-port", peers[number], "--peers", ",".join(others)]
        processes.append(start_strand(arguments, home, clients[number], flags))
    return processes, clients, lambda process, port: process.wait_until_answering(port, *STRAND_WRITE, FOUNDING_S)


def start_etcd_nodes(arguments, path, nodes):
    """The same of etcd, with its own defaults for everything that costs."""
    ports = free_ports(2 * nodes)
    clients, peers = ports[:nodes], ports[nodes:]
    members = ",".join(f"node{number + 1}=http://127.0.0.1:{peers[number]}" for number in range(nodes))
    processes = []
    for number in range(nodes):
        client, peer = (f"http://127.0.0.1:{port}" for port in (clients[number], peers[number]))
        command = [arguments.etcd, "--name", f"node{number + 1}", "--data-dir", path / f"node{number + 1}"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
        command += ["--initial-advertise-peer-urls", peer, "--initial-cluster", members, "--initial-cluster-state", "new"]
        command += ["--quota-backend-bytes", str(8 << 30), "--logger", "zap", "--log-level", "error"]
        processes.append(Process(arguments.server_cores, command, path / f"log{number + 1}"))
    return processes, clients, lambda process, port: process.wait_until_answering(port, HTTP_PROBE, HTTP_OK, FOUNDING_S)


SYSTEMS = {
    "etcd": ("etcd, three nodes", "etcd", start_etcd_nodes, NODES),
    "three": ("Strand, three nodes", "json", start_strand_nodes, NODES),
    "one": ("Strand, one node", "json", start_strand_nodes, 1),
}


def measure(arguments, system, depth):
    _, protocol, start, nodes = SYSTEMS[system]
    with directory(arguments) as path:
        processes, ports, wait = start(arguments, path, nodes)
        with running(*processes):
            for process, port in zip(processes, ports):
                wait(process, port)
            around = {}
            with probed(around):
                report = generate(
                    arguments,
                    ["mixed", "--read-ratio", "0"],
                    [f"127.0.0.1:{port}" for port in ports],
                    [process.pid for process in processes],
                    arguments.seconds,
                    arguments.warm_up,
                    protocol,
                    connections=arguments.connections,
                    depth=depth,
                    keys=arguments.keys,
                    value_bytes=arguments.value_bytes,
                )
            return {**figures_of(report["phases"][-1]), **around}


def main():
    arguments = parse_arguments()
    demand(arguments, {arguments.etcd: "`apt-get install etcd-server` (or --etcd PATH)"})
    depths = [int(depth) for depth in arguments.depths.split(",")]
    end = time.monotonic() + arguments.minutes * 60
    rounds = {(system, depth): [] for depth in depths for system in SYSTEMS}
    failed = 0
    for number in range(arguments.rounds):
        for depth in depths:
            order = list(SYSTEMS) if number % 2 == 0 else list(SYSTEMS)[::-1]
            for system in order:
                if time.monotonic() > end:
                    continue
                try:
                    figures = measure(arguments, system, depth)
                except Trouble as trouble:
                    failed += 1
                    note(f"  failed, {system} at {depth}: {trouble}")
                    continue
                rounds[system, depth].append(figures)
                note(
                    f"  {system} at {depth}: {figures['rate']:,.0f}/s, p50 {figures['p50_us']:,.0f} µs, "
                    f"{figures['stolen_percent']:.1f}% of the CPU taken around it"
                )
    version = (output_of(arguments.etcd, "--version").splitlines() or ["etcd"])[0]
    lines = taken(
        f"Against {version}. All nodes on cores {arguments.server_cores}, generator on {arguments.generator_cores};",
        f"{arguments.value_bytes}-byte values, {arguments.keys:,} keys, {arguments.seconds:g} s a round, Strand with",
        f"{arguments.shards} shard(s) and profile {arguments.profile or 'defaults'}; medians, {failed} runs failed.",
    )
    rows = []
    for depth in depths:
        base = rounds["etcd", depth]
        for system, (title, *_) in SYSTEMS.items():
            mine = rounds[system, depth]
            load = f"{arguments.connections} x {depth}"
            if not mine:
                rows.append([title, load, *["no figure"] * 5, "0"])
                continue
            # Rounds are matched, so that what slows all does not count.
            ratios = sorted(one["rate"] / other["rate"] for one, other in zip(mine, base))
            ratio = f"**{statistics.median(ratios):.1f}** ({ratios[0]:.1f} to {ratios[-1]:.1f})" if ratios else ""
            figures = [f"{median(mine, name):,.0f}" for name in ("rate", "p50_us", "p99_us", "cpu_ns")]
            taken_by_others = f"{median(mine, 'stolen_percent'):.0f}%"
            rows.append([title, load, figures[0], ratio, *figures[1:], taken_by_others, str(len(mine))])
    header = ["system", "connections x depth", "SET/s", "times etcd", "p50 µs", "p99 µs", "CPU ns a write, all nodes"]
    lines += table([*header, "CPU taken by others", "rounds"], rows)
    write_section("etcd", lines, arguments.only_print)


if __name__ == "__main__":
    main()
