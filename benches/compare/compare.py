#!/usr/bin/env python3
"""Compares Strand with Redis on one machine: same cores, same generator, same load, in turns.

For each cell (durability x load x connections x depth) several rounds are run; in each, both servers are started
fresh, one after the other, in an order that alternates. Before and after each measurement a probe looks for CPU time
that the host or other programs take; a round with too much of it, or whose load failed, is thrown away, counted and
run again a bounded number of times. Medians and their spread go into a table between markers in docs/BENCHMARKS.md. Cells that
Strand loses are shown like the others.

Standard library only. Every process is started here and killed by its own id; everything is bounded in time.
"""

import argparse
import json
import os
import pathlib
import platform
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import probe

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "BENCHMARKS.md"
BEGIN, END = "<!-- comparison: begin -->", "<!-- comparison: end -->"

# What each server is told, by promise: (words for the table, strand's flag, Redis's options).
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
}
LOADS = {"mixed": ("half GET, half SET", ["mixed"]), "set": ("SET", ["mixed", "--read-ratio", "0"])}
SHAPES = [(50, 1), (50, 16), (50, 64), (500, 1), (500, 16)]

# Seconds of each look for stolen CPU time.
PROBE_S = 0.4
START_S = 30
STOP_S = 10


class Trouble(Exception):
    """Something that makes one measurement worthless, told in a sentence."""


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Compares Strand with Redis on this machine and writes the table into docs/BENCHMARKS.md.",
        epilog="Example: benches/compare/compare.py --profile tuning/dev-2core.toml --rounds 5",
    )
    parser.add_argument("--strand", default=str(ROOT / "target/release/strand"), help="the binary [%(default)s]")
    parser.add_argument("--redis", default="redis-server", help="the Redis server [%(default)s]")
    parser.add_argument("--profile", help="a profile of tuning/ for Strand [none: defaults]")
    parser.add_argument("--server-cores", default="0-1", help="cores of either server [%(default)s]")
    parser.add_argument("--generator-cores", default="0-1", help="cores of the generator [%(default)s]")
    parser.add_argument("--shards", help="shards of Strand [by its profile or cores]")
    parser.add_argument(
        "--shard-aware", action="store_true", help="the generator talks to each shard's own port (router.mode = inline)"
    )
    parser.add_argument("--promises", default="off,interval,always", help="comma list [%(default)s]")
    parser.add_argument("--loads", default="mixed,set", help="comma list [%(default)s]")
    parser.add_argument(
        "--shapes", default=",".join(f"{c}x{d}" for c, d in SHAPES), help="CONNECTIONSxDEPTH, comma list [%(default)s]"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, for each cell [%(default)s]")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured in each round [%(default)s]")
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds before that [%(default)s]")
    parser.add_argument("--keys", type=int, default=100_000, help="[%(default)s]")
    parser.add_argument("--value-bytes", type=int, default=64, help="[%(default)s]")
    parser.add_argument(
        "--stolen-max", type=float, default=10.0, help="percent of CPU that others may take around a round [%(default)s]"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="stop starting cells after so long [%(default)s]")
    parser.add_argument("--data-under", help="where data directories are made [the system's temporary folder]")
    parser.add_argument("--print", action="store_true", dest="only_print", help="print the table, change no page")
    arguments = parser.parse_args()
    arguments.shapes = [tuple(map(int, shape.split("x"))) for shape in arguments.shapes.split(",")]
    arguments.promises = arguments.promises.split(",")
    arguments.loads = arguments.loads.split(",")
    for given, known in ((arguments.promises, PROMISES), (arguments.loads, LOADS)):
        for name in given:
            if name not in known:
                parser.error(f"{name} is none of {', '.join(known)}")
    return arguments


def demand(arguments):
    """Says everything that is missing at once."""
    missing = []
    if not shutil.which(arguments.redis):
        missing.append(f"{arguments.redis} is not installed: `apt-get install redis-server` (or --redis PATH)")
    if not shutil.which("taskset"):
        missing.append("taskset is not installed: `apt-get install util-linux`")
    if not os.access(arguments.strand, os.X_OK):
        missing.append(f"{arguments.strand} is not there: `cargo build --release --bin strand` (or --strand PATH)")
    if arguments.profile and not os.path.exists(arguments.profile):
        missing.append(f"the profile {arguments.profile} is not there")
    if not PAGE.exists() and not arguments.only_print:
        missing.append(f"{PAGE} is not there: --print needs no page")
    if missing:
        sys.exit("Cannot compare:\n  " + "\n  ".join(missing))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Process:
    """A child on given cores, killed by its own id at the end."""

    def __init__(self, cores, command, log):
        self.log = log
        with open(log, "wb") as out:
            command = ["taskset", "-c", cores, *map(str, command)]
            self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    # taskset replaces itself by the command, so the child's id is the server's.
    @property
    def pid(self):
        return self.child.pid

    def last_line(self):
        lines = pathlib.Path(self.log).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def wait_until_answering(self, port, request, wanted):
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self.child.poll() is not None:
                raise Trouble(f"the server ended at its start: {self.last_line()}")
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as stream:
                    stream.sendall(request)
                    if stream.recv(1000).startswith(wanted):
                        return
            except OSError:
                pass
            time.sleep(0.05)
        raise Trouble(f"the server did not answer within {START_S} s: {self.last_line()}")

    def stop(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()


def start_strand(arguments, promise, directory, port):
    command = [arguments.strand, "serve", "--port", port, "--data-dir", directory / "data", "--log-level", "warn"]
    command += PROMISES[promise][1]
    if arguments.profile:
        command += ["--config", arguments.profile]
    if arguments.shards:
        command += ["--shards", arguments.shards]
    server = Process(arguments.server_cores, command, directory / "log")
    return server, b'{"command":"GET","key":"probe"}\n', b'{"status":"success"'


def start_redis(arguments, promise, directory, port):
    command = [arguments.redis, "--port", port, "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"]
    command += ["--dir", directory, *PROMISES[promise][2]]
    server = Process(arguments.server_cores, command, directory / "log")
    return server, b"*2\r\n$3\r\nGET\r\n$5\r\nprobe\r\n", b"$-1"


STARTERS = {"strand": ("json", start_strand), "redis": ("resp", start_redis)}


def measure(arguments, server_name, promise, load, shape, sudden_end):
    """One server, one load: figures of the generator, and the share of CPU that was stolen around it."""
    protocol, start = STARTERS[server_name]
    with tempfile.TemporaryDirectory(prefix="strand-compare-", dir=arguments.data_under) as directory:
        directory = pathlib.Path(directory)
        port = free_port()
        server, request, wanted = start(arguments, promise, directory, port)
        sudden_end.append(server)
        try:
            server.wait_until_answering(port, request, wanted)
            before = probe.stolen_percent(PROBE_S)
            report = run_generator(arguments, protocol, port, load, shape, server.pid)
            after = probe.stolen_percent(PROBE_S)
        finally:
            server.stop()
            sudden_end.remove(server)
        phase = report["phases"][-1]
        if phase["errors"] or phase["wrong"] or phase["unanswered"] or not phase["requests"]:
            raise Trouble(f"wrong replies: {phase['first_problem'] or phase['unanswered']}")
        slowest = max(latency["p99_ns"] for latency in phase["latency"].values())
        return {
            "rate": phase["requests_per_s"],
            "cpu_ns": phase["server_cpu_ns_per_request"],
            "p99_us": slowest / 1000,
            "stolen_percent": (before + after) / 2,
        }


def bound_s(arguments):
    """A generator that takes longer than this has failed."""
    return arguments.seconds + arguments.warm_up + 60


def run_generator(arguments, protocol, port, load, shape, pid):
    connections, depth = shape
    command = ["taskset", "-c", arguments.generator_cores, arguments.strand, "bench", *LOADS[load][1]]
    command += ["--json", "--address", f"127.0.0.1:{port}", "--protocol", protocol, "--server-pid", str(pid)]
    command += ["--connections", str(connections), "--depth", str(depth), "--keys", str(arguments.keys)]
    command += ["--value-bytes", str(arguments.value_bytes), "--duration", str(arguments.seconds)]
    command += ["--warm-up", str(arguments.warm_up)]
    if arguments.shard_aware and protocol == "json":
        command.append("--shard-aware")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=bound_s(arguments), check=False)
    except subprocess.TimeoutExpired:
        raise Trouble("the generator did not end") from None
    if done.returncode != 0:
        raise Trouble(done.stderr.strip()[-300:] or f"the generator ended with {done.returncode}")
    return json.loads(done.stdout)


class Cell:
    """The rounds of one promise, load and shape."""

    def __init__(self, promise, load, shape):
        self.promise, self.load, self.shape = promise, load, shape
        self.rounds = []
        self.thrown_away = 0
        self.troubles = []

    def run(self, arguments, sudden_end):
        tries = 2 * arguments.rounds
        while len(self.rounds) < arguments.rounds and tries > 0:
            tries -= 1
            order = ["redis", "strand"] if tries % 2 else ["strand", "redis"]
            figures = {}
            try:
                for name in order:
                    figures[name] = measure(arguments, name, self.promise, self.load, self.shape, sudden_end)
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
        return statistics.median(figures[server][figure] for figures in self.rounds)

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
        return [*head, *cells, ", ".join([f"{len(self.rounds)} rounds", *remarks])]


def note(text):
    print(text, file=sys.stderr, flush=True)


def output_of(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()
    except OSError:
        return ""


def machine():
    model = next(
        (line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8") if "model name" in line),
        platform.machine(),
    )
    return f"{os.cpu_count()} cores ({model}), Linux {platform.release()}"


def section(arguments, cells):
    redis = output_of(arguments.redis, "--version").split(" sha")[0]
    commit = output_of("git", "rev-parse", "--short", "HEAD")
    command = " ".join(shlex.quote(word) for word in [os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])
    header = [
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
    lines = [
        f"Taken on {time.strftime('%Y-%m-%d')}, {machine()}, commit {commit}, against {redis}.",
        f"Server on cores {arguments.server_cores}, generator on {arguments.generator_cores}; "
        f"{arguments.value_bytes}-byte values, {arguments.keys:,} keys, {arguments.seconds:g} s a round; "
        f"profile: {arguments.profile or 'defaults'}.",
        "",
        f"    {command}",
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
    ]
    lines += ["| " + " | ".join(cell.row()) + " |" for cell in cells]
    return "\n".join(lines)


def write_page(text):
    page = PAGE.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        sys.exit(f"{PAGE} has no markers {BEGIN} and {END}; this is the table:\n\n{text}")
    before, rest = page.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main():
    arguments = parse_arguments()
    demand(arguments)
    # A signal ends the run by an exception, so that every child is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    end = time.monotonic() + arguments.minutes * 60
    sudden_end = []
    cells = []
    skipped = 0
    try:
        for promise in arguments.promises:
            for load in arguments.loads:
                for shape in arguments.shapes:
                    if time.monotonic() > end:
                        skipped += 1
                        continue
                    note(f"{PROMISES[promise][0]}, {LOADS[load][0]}, {shape[0]} x {shape[1]}")
                    cell = Cell(promise, load, shape)
                    cell.run(arguments, sudden_end)
                    cells.append(cell)
    finally:
        for server in list(sudden_end):
            server.stop()
    text = section(arguments, cells)
    if skipped:
        text += f"\n\n{skipped} cells were not run: --minutes {arguments.minutes:g} was over."
    print(text)
    if not arguments.only_print:
        write_page(text)
    if any(not cell.rounds for cell in cells):
        sys.exit("Some cells have no figure; the lines above say why.")


if __name__ == "__main__":
    main()
