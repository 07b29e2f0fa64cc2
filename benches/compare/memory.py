#!/usr/bin/env python3
"""Memory, snapshot and recovery of Strand and Redis for the same keys: 16 bytes each with values of 64 bytes.

Memory is what the process has in RAM after the load beyond what it had before, over the number of keys. Recovery is the
time from starting the process to its first answer that is not "still loading". Strand is recovered twice: after kill -9
from snapshot and log as they then are, and after a snapshot of everything and a stop in good order.
"""

import argparse
import json
import signal
import socket
import time

from common import (
    REDIS_PROBE,
    STRAND_PROBE,
    Trouble,
    add_common_flags,
    demand,
    directory,
    free_ports,
    generate,
    median,
    note,
    output_of,
    running,
    start_redis,
    start_strand,
    table,
    taken,
    write_section,
)

KEY_BYTES, VALUE_BYTES = 16, 64
RECOVERY_S = 300


def parse_arguments():
    parser = argparse.ArgumentParser(description="Compares memory, snapshot and recovery with Redis.")
    add_common_flags(parser)
    parser.add_argument("--redis", default="redis-server", help="the Redis server [%(default)s]")
    parser.add_argument("--shards", help="shards of Strand [by its profile or cores]")
    parser.add_argument("--keys", default="1000000,10000000", help="comma list [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--minutes", type=float, default=30.0, help="stop starting rounds after so long [%(default)s]")
    return parser.parse_args()


def ask(port, request, patience_s=RECOVERY_S):
    """One request, one line of answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience_s) as stream:
        stream.sendall(request)
        with stream.makefile("rb") as answer:
            return answer.readline()


def ask_strand(port, **request):
    reply = json.loads(ask(port, json.dumps({"timeout_ms": 600_000, **request}).encode() + b"\n"))
    if reply["status"] != "success":
        raise Trouble(f"{request} was refused: {reply}")
    return reply["result"]


def load(arguments, port, pid, protocol, keys):
    """Writes every key once; keys a second."""
    report = generate(
        arguments,
        ["mixed", "--read-ratio", "1"],
        [f"127.0.0.1:{port}"],
        [pid],
        0.2,
        0.0,
        protocol,
        connections=16,
        depth=64,
        keys=keys,
        value_bytes=VALUE_BYTES,
    )
    return report["phases"][0]["requests_per_s"]


def seconds_until(server, port, answer):
    """Seconds until it answers, and CPU seconds that it used for that."""
    since = time.monotonic()
    server.wait_until_answering(port, *answer, RECOVERY_S)
    return time.monotonic() - since, server.cpu_seconds()


def bytes_of(path, pattern):
    return sum(file.stat().st_size for file in path.glob(pattern) if file.is_file())


def measure_strand(arguments, keys):
    with directory(arguments) as path:
        (port,) = free_ports(1)
        figures = {}
        server = start_strand(arguments, path, port)
        with running(server):
            server.wait_until_answering(port, *STRAND_PROBE)
            empty = server.resident_bytes()
            figures["load_rate"] = load(arguments, port, server.pid, "json", keys)
            time.sleep(1)
            figures["resident"] = server.resident_bytes()
            figures["per_key"] = (figures["resident"] - empty) / keys
            server.end(signal.SIGKILL)
        figures["killed_on_disk"] = bytes_of(path, "data/**/*")
        server = start_strand(arguments, path, port)
        with running(server):
            figures["killed_s"], figures["killed_cpu_s"] = seconds_until(server, port, STRAND_PROBE)
            check(port, keys)
            since = time.monotonic()
            ask_strand(port, command="SNAPSHOT")
            figures["snapshot_s"] = time.monotonic() - since
            figures["snapshot_bytes"] = bytes_of(path, "data/**/snap-*")
            server.end(patience_s=60)
        server = start_strand(arguments, path, port)
        with running(server):
            figures["stopped_s"], figures["stopped_cpu_s"] = seconds_until(server, port, STRAND_PROBE)
            check(port, keys)
            figures["resident_again"] = server.resident_bytes()
        return figures


def check(port, keys):
    """The recovered server holds the first and the last key, and as many as were written."""
    for number in (0, keys - 1):
        if ask_strand(port, command="GET", key=f"key:{number:012}") is None:
            raise Trouble(f"key {number} is gone after recovery")
    held = ask_strand(port, command="INFO")["keys"]
    if held != keys:
        raise Trouble(f"{held} keys after recovery of {keys}")


def measure_redis(arguments, keys):
    with directory(arguments) as path:
        (port,) = free_ports(1)
        figures = {}
        server = start_redis(arguments, path, port)
        with running(server):
            server.wait_until_answering(port, *REDIS_PROBE)
            empty = server.resident_bytes()
            figures["load_rate"] = load(arguments, port, server.pid, "resp", keys)
            time.sleep(1)
            figures["resident"] = server.resident_bytes()
            figures["per_key"] = (figures["resident"] - empty) / keys
            since = time.monotonic()
            if not ask(port, b"*1\r\n$4\r\nSAVE\r\n").startswith(b"+OK"):
                raise Trouble("Redis did not save")
            figures["snapshot_s"] = time.monotonic() - since
            figures["snapshot_bytes"] = bytes_of(path, "dump.rdb")
            server.end(signal.SIGKILL)
        server = start_redis(arguments, path, port)
        with running(server):
            figures["stopped_s"], figures["stopped_cpu_s"] = seconds_until(server, port, REDIS_PROBE)
            held = ask(port, b"*1\r\n$6\r\nDBSIZE\r\n")
            if held.strip() != f":{keys}".encode():
                raise Trouble(f"Redis holds {held} keys after loading {keys}")
            figures["resident_again"] = server.resident_bytes()
        return figures


def row(title, keys, rounds):
    def cell(figure, scale=1.0, digits=0):
        return f"{median(rounds, figure) / scale:,.{digits}f}"

    def speed(figure):
        """Keys a second, seconds, and CPU time a key, which holds on a busy machine."""
        seconds = median(rounds, f"{figure}_s")
        cpu = f", {median(rounds, f'{figure}_cpu_s') / keys * 1e9:,.0f} ns of CPU a key" if f"{figure}_cpu_s" in rounds[0] else ""
        return f"{keys / seconds:,.0f} ({seconds:.2f} s{cpu})"

    megabytes = median(rounds, "snapshot_bytes") / median(rounds, "snapshot_s") / 1e6
    killed = speed("killed") if "killed_s" in rounds[0] else ""
    return [
        title,
        f"{keys:,}",
        f"**{cell('per_key', digits=1)}**",
        f"{cell('resident', 1e6)} / {cell('resident_again', 1e6)}",
        cell("load_rate"),
        f"{speed('snapshot')}, {megabytes:,.0f} MB/s",
        cell("snapshot_bytes", 1e6),
        killed,
        speed("stopped"),
        str(len(rounds)),
    ]


def main():
    arguments = parse_arguments()
    demand(arguments, {arguments.redis: "`apt-get install redis-server` (or --redis PATH)"})
    end = time.monotonic() + arguments.minutes * 60
    rows = []
    for keys in map(int, arguments.keys.split(",")):
        for title, measure in (("Strand", measure_strand), ("Redis", measure_redis)):
            rounds = []
            for _ in range(arguments.rounds):
                if time.monotonic() > end:
                    break
                try:
                    rounds.append(measure(arguments, keys))
                except Trouble as trouble:
                    note(f"  failed, {title}, {keys:,} keys: {trouble}")
                    continue
                note(f"  {title}, {keys:,} keys: {rounds[-1]}")
            rows.append(row(title, keys, rounds) if rounds else [title, f"{keys:,}", *["no figure"] * 7, "0"])
    redis = output_of(arguments.redis, "--version").split(" sha")[0]
    lines = taken(
        f"Against {redis}. Keys of {KEY_BYTES} and values of {VALUE_BYTES} bytes; servers on cores",
        f"{arguments.server_cores}; profile: {arguments.profile or 'defaults'}, shards:",
        f"{arguments.shards or 'by cores'}; medians.",
    )
    header = [
        "server",
        "keys",
        "resident bytes a key",
        "resident MB, loaded / restarted",
        "load, keys/s",
        "snapshot, keys/s",
        "snapshot MB",
        "recovery after kill -9, keys/s",
        "restart from snapshot, keys/s",
        "rounds",
    ]
    write_section("memory", [*lines, *table(header, rows)], arguments.only_print)


if __name__ == "__main__":
    main()
