"""What the comparisons share: servers as child processes, the generator, the probe around it, and the page.

Every process is started here and killed by its own id, at the latest when the script ends; everything is bounded in time.
Standard library only.
"""

import contextlib
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
STRAND = ROOT / "target/release/strand"

# Seconds of each look for stolen CPU time.
PROBE_S = 0.4
START_S = 30
STOP_S = 20
# What may come on top of the time that a generator is told to measure.
SPARE_S = 120


class Trouble(Exception):
    """Something that makes one measurement worthless, told in a sentence."""


def note(text):
    print(text, file=sys.stderr, flush=True)


def output_of(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()
    except OSError:
        return ""


def add_common_flags(parser):
    """Flags of every comparison."""
    parser.add_argument("--strand", default=str(STRAND), help="the binary [%(default)s]")
    parser.add_argument("--profile", help="a profile of tuning/ for Strand [none: defaults]")
    parser.add_argument("--server-cores", default="0-1", help="cores of every server [%(default)s]")
    parser.add_argument("--generator-cores", default="0-1", help="cores of the generator [%(default)s]")
    parser.add_argument("--data-under", help="where data directories are made [the system's temporary folder]")
    parser.add_argument("--print", action="store_true", dest="only_print", help="print the table, change no page")


def demand(arguments, programs):
    """Says everything that is missing at once; `programs` maps a program to the package that has it."""
    missing = [f"{name} is not installed: {advice}" for name, advice in programs.items() if not shutil.which(name)]
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
    # A signal ends the run by an exception, so that every child is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def free_ports(count):
    """Ports that nobody listens on, all different, below those that the kernel gives to clients."""
    found = []
    number = 20_000 + os.getpid() % 5_000
    while len(found) < count:
        number += 1
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", number))
            except OSError:
                continue
        found.append(number)
    return found


class Process:
    """A child on given cores, killed by its own id at the end."""

    def __init__(self, cores, command, log):
        self.log = log
        with open(log, "ab") as out:
            command = ["taskset", "-c", cores, *map(str, command)]
            self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    # taskset replaces itself by the command, so the child's id is the server's.
    @property
    def pid(self):
        return self.child.pid

    def last_line(self):
        lines = pathlib.Path(self.log).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def resident_bytes(self):
        """Memory that the process has in RAM now."""
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise Trouble("the server is gone")

    def cpu_seconds(self):
        """CPU time that the process has used so far, in user space and kernel."""
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait_until_answering(self, port, request, wanted, patience_s=START_S):
        """Asks until the answer begins as wanted."""
        end = time.monotonic() + patience_s
        heard = b""
        while time.monotonic() < end:
            if self.child.poll() is not None:
                raise Trouble(f"the server ended at its start: {self.last_line()}")
            with contextlib.suppress(OSError):
                with socket.create_connection(("127.0.0.1", port), timeout=5) as stream:
                    stream.sendall(request)
                    heard = stream.recv(1000)
                    if heard.startswith(wanted):
                        return
            time.sleep(0.01)
        raise Trouble(f"the server did not answer within {patience_s} s: {heard or self.last_line()}")

    def end(self, by=signal.SIGTERM, patience_s=STOP_S):
        """Sends a signal and waits for the end."""
        if self.child.poll() is None:
            self.child.send_signal(by)
            try:
                self.child.wait(patience_s)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()


@contextlib.contextmanager
def directory(arguments):
    """A data directory that goes when it is no longer needed."""
    with tempfile.TemporaryDirectory(prefix="strand-compare-", dir=arguments.data_under) as path:
        yield pathlib.Path(path)


@contextlib.contextmanager
def running(*processes):
    """Ends the processes on the way out, however that is."""
    try:
        yield
    finally:
        for process in processes:
            if process.child.poll() is None:
                process.child.send_signal(signal.SIGTERM)
        for process in processes:
            process.end()


STRAND_PROBE = (b'{"command":"GET","key":"probe"}\n', b'{"status":"success"')
STRAND_WRITE = (b'{"command":"SET","key":"probe","value":1}\n', b'{"status":"success"')
REDIS_PROBE = (b"*2\r\n$3\r\nGET\r\n$5\r\nprobe\r\n", b"$-1")


def start_strand(arguments, path, port, flags=()):
    """Starts one Strand on its data in `path`; wait for `STRAND_PROBE`."""
    command = [arguments.strand, "serve", "--port", port, "--data-dir", path / "data", "--log-level", "warn"]
    if arguments.profile:
        command += ["--config", arguments.profile]
    if getattr(arguments, "shards", None):
        command += ["--shards", arguments.shards]
    return Process(arguments.server_cores, [*command, *flags], path / "log")


def start_redis(arguments, path, port, flags=()):
    """Starts one Redis that writes nothing by itself; wait for `REDIS_PROBE`."""
    command = [arguments.redis, "--port", port, "--bind", "127.0.0.1", "--save", "", "--daemonize", "no", "--dir", path]
    return Process(arguments.server_cores, [*command, *flags], path / "log")


def generate(arguments, workload, addresses, pids, seconds, warm_up=1.0, protocol="json", **flags):
    """Loads a server and gives the generator's report; any wrong reply is trouble."""
    command = ["taskset", "-c", arguments.generator_cores, arguments.strand, "bench", *workload, "--json"]
    command += ["--address", ",".join(addresses), "--protocol", protocol]
    command += ["--server-pid", ",".join(map(str, pids)), "--duration", str(seconds), "--warm-up", str(warm_up)]
    for name, value in flags.items():
        command.append(f"--{name.replace('_', '-')}")
        if value is not True:
            command.append(str(value))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + warm_up + SPARE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Trouble("the generator did not end") from None
    if done.returncode != 0:
        raise Trouble(done.stderr.strip()[-300:] or f"the generator ended with {done.returncode}")
    report = json.loads(done.stdout)
    for phase in report["phases"]:
        if phase["errors"] or phase["wrong"] or phase["unanswered"] or not phase["requests"]:
            raise Trouble(f"wrong replies: {phase['first_problem'] or phase['unanswered']}")
    return report


def figures_of(phase):
    """Rate, CPU and latencies of a phase; of several kinds of requests the slowest."""
    slowest = {
        name: max(latency[f"{name}_ns"] for latency in phase["latency"].values()) / 1000
        for name in ("p50", "p99", "p99.9")
    }
    return {
        "rate": phase["requests_per_s"],
        "cpu_ns": phase["server_cpu_ns_per_request"],
        "unsent": phase["unsent"],
        "p50_us": slowest["p50"],
        "p99_us": slowest["p99"],
        "p999_us": slowest["p99.9"],
    }


@contextlib.contextmanager
def probed(figures):
    """Adds to the figures how much CPU others took around what is done inside, in percent."""
    before = probe.stolen_percent(PROBE_S)
    yield
    figures["stolen_percent"] = (before + probe.stolen_percent(PROBE_S)) / 2


def median(rounds, figure):
    return statistics.median(round_[figure] for round_ in rounds)


def machine():
    model = next(
        (line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8") if "model name" in line),
        platform.machine(),
    )
    return f"{os.cpu_count()} cores ({model}), Linux {platform.release()}"


def taken(*remarks):
    """The lines above a table: when, where, of what, and by which command."""
    commit = output_of("git", "rev-parse", "--short", "HEAD")
    command = " ".join(shlex.quote(word) for word in [os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])
    if os.nice(0) != 0:
        remarks = [f"At niceness {os.nice(0)}, beside other programs.", *remarks]
    told = [f"Taken on {time.strftime('%Y-%m-%d')}, {machine()}, commit {commit}.", *remarks]
    return [" ".join(told), "", f"    {command}", ""]


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def write_section(name, lines, only_print=False):
    """Prints a section and puts it between its markers in the page."""
    text = "\n".join(lines)
    print(text)
    if only_print:
        return
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    page = PAGE.read_text(encoding="utf-8")
    if begin not in page or end not in page:
        sys.exit(f"{PAGE} has no markers {begin} and {end}.")
    before, rest = page.split(begin, 1)
    after = rest.split(end, 1)[1]
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
