#!/usr/bin/env python3
"""How much CPU time is not to be had: one process spins on each core and adds up the gaps longer than a millisecond.

The host takes processor time without always reporting it, and other programs of this machine take theirs; a process
that only looks at the clock sees both as gaps. Run it while the machine should be idle, around a measurement.

    benches/compare/probe.py [SECONDS]      prints the share taken, in percent of all cores
"""

import os
import sys
import time

GAP_NS = 1_000_000


def spin(core, seconds):
    """Nanoseconds of gaps that one core saw."""
    os.sched_setaffinity(0, {core})
    clock = time.perf_counter_ns
    before = clock()
    end = before + int(seconds * 1e9)
    gaps_ns = 0
    while before < end:
        now = clock()
        if now - before > GAP_NS:
            gaps_ns += now - before
        before = now
    return gaps_ns


def stolen_percent(seconds):
    """The share of all cores' time that was taken from spinning processes."""
    cores = sorted(os.sched_getaffinity(0))
    pipes = []
    for core in cores:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            os.write(write_end, str(spin(core, seconds)).encode())
            os._exit(0)
        os.close(write_end)
        pipes.append((pid, read_end))
    gaps_ns = 0
    for pid, read_end in pipes:
        with os.fdopen(read_end) as answer:
            gaps_ns += int(answer.read() or seconds * 1e9)
        os.waitpid(pid, 0)
    return min(100.0, 100.0 * gaps_ns / (len(cores) * seconds * 1e9))


if __name__ == "__main__":
    print(f"{stolen_percent(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0):.2f}")
