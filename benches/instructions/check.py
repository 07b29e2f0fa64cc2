#!/usr/bin/env python3
"""Counts the instructions of a request for the main commands and holds them against a committed baseline.

`valgrind --tool=callgrind` counts what the program executes, so a busy machine changes nothing. Collection is on only
inside `Server::measured_turn` of the example `instructions`: front, router, links, shard and the encoding of the log, in
one thread, user space only. A figure that differs from the baseline by more than 5% fails; `--update` writes a new
baseline and the table of docs/BENCHMARKS.md, which is done on purpose and committed with its reason.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASELINE = pathlib.Path(__file__).with_name("baseline.json")
PAGE = ROOT / "docs" / "BENCHMARKS.md"
BEGIN, END = "<!-- instructions: begin -->", "<!-- instructions: end -->"
TOLERANCE = 0.05
CASE_S = 300
TOGGLE = "*::Server::measured_turn*"
PARTS = {
    "front_and_router": ("::Server::front_and_router",),
    "engine": ("::Server::engine_step", "::Server::engine_work"),
    "log": ("::Server::log_encode",),
}
# These also with several shards, for the curve.
SPREAD = {"get": (2, 4), "set": (2, 4), "get-deep": (4,), "set-deep": (4,)}

NAMES = {
    "get": "GET, 64 at once",
    "get-alone": "GET, one at a time",
    "set": "SET, 64 at once",
    "set-alone": "SET, one at a time",
    "get-deep": "GET, 256 at once",
    "set-deep": "SET, 256 at once",
    "incr": "INCR, 64 at once",
    "delete": "DELETE, 64 at once",
    "bulk-set": "BULK_SET of 100 keys, 4 at once",
    "search": "SEARCH, two words, 2,000 documents, 16 at once",
    "query-index": "QUERY_INDEX, a range of 10 of 2,000, 16 at once",
}


def parse_arguments():
    parser = argparse.ArgumentParser(description="Counts instructions a request and compares with the baseline.")
    parser.add_argument("--binary", default=str(ROOT / "target/release/examples/instructions"), help="[%(default)s]")
    parser.add_argument("--update", action="store_true", help="write the baseline and the table of the page")
    parser.add_argument("--only", help="cases, comma list, such as get@1,set@4 [all]")
    return parser.parse_args()


def demand(arguments):
    if not shutil.which("valgrind"):
        sys.exit("valgrind is not installed: `apt-get install valgrind`, then again. (It counts the instructions.)")
    if not os.access(arguments.binary, os.X_OK):
        sys.exit(f"{arguments.binary} is not there: `cargo build --release --example instructions` makes it.")
    if not BASELINE.exists() and not arguments.update:
        sys.exit(f"There is no baseline yet: --update writes {BASELINE.relative_to(ROOT)}.")


def inclusive_costs(text):
    """Instructions in each function and what it called, of a file that callgrind wrote: summed over its calls."""
    names, costs, callee, is_call = {}, {}, None, False
    for line in text.splitlines():
        if match := re.match(r"c?fn=\((\d+)\)(?: (.*))?", line):
            number, name = match.groups()
            if name:
                names[number] = name
            if line.startswith("c"):
                callee = number
        elif line.startswith("calls="):
            is_call = True
        elif is_call:
            costs[callee] = costs.get(callee, 0) + int(line.split()[1])
            is_call = False
    return {names[number]: cost for number, cost in costs.items()}


def count(binary, case):
    """Instructions a request, all in all and by part."""
    name, shards = case.split("@")
    with tempfile.TemporaryDirectory(prefix="strand-count-") as folder:
        out = pathlib.Path(folder) / "out"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--collect-atstart=no"]
        command += [f"--toggle-collect={TOGGLE}", "--dump-line=no", "--compress-pos=no", binary, name, shards]
        # Nothing of the caller's environment may lie on the stack.
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CASE_S, check=False, env={"PATH": os.environ["PATH"]}
        )
        if done.returncode != 0:
            sys.exit(f"{case} failed:\n{done.stderr[-2000:]}")
        text = out.read_text(encoding="utf-8", errors="replace")
    requests = json.loads(done.stdout)["requests"]
    total = int(re.search(r"^totals: (\d+)", text, re.MULTILINE).group(1))
    if total < requests * 100:
        sys.exit(f"{case}: callgrind saw {total} instructions for {requests} requests, so {TOGGLE} matched nothing.")
    costs = inclusive_costs(text)
    figures = {"instructions": round(total / requests, 1)}
    for part, ends in PARTS.items():
        figures[part] = round(sum(cost for at, cost in costs.items() if at.endswith(ends)) / requests, 1)
    return figures


def cases_of(arguments):
    listed = subprocess.run([arguments.binary, "list"], capture_output=True, text=True, check=True).stdout.split()
    every = [f"{name}@1" for name in listed] + [f"{name}@{shards}" for name, counts in SPREAD.items() for shards in counts]
    if not arguments.only:
        return every
    wanted = arguments.only.split(",")
    unknown = [case for case in wanted if case not in every]
    if unknown:
        sys.exit(f"{', '.join(unknown)}: no such case. There are {', '.join(every)}.")
    return wanted


def versions():
    def first_line(*command):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()[0]

    return {"compiler": first_line("rustc", "--version"), "counter": first_line("valgrind", "--version")}


def page_section(baseline):
    lines = [
        f"Instructions a request in user space, counted with {baseline['counter']}, compiled by {baseline['compiler']}.",
        "",
        "| request | shards | instructions | front and router | engine | encoding the log |",
        "|---|---|---|---|---|---|",
    ]
    for case, figures in baseline["cases"].items():
        name, shards = case.split("@")
        cells = [f"{figures[part]:,.0f}" for part in ("instructions", *PARTS)]
        lines.append(f"| {NAMES.get(name, name)} | {shards} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(baseline):
    BASELINE.write_text(json.dumps(baseline, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{page_section(baseline)}\n{END}{after}", encoding="utf-8")


def main():
    arguments = parse_arguments()
    demand(arguments)
    old = json.loads(BASELINE.read_text(encoding="utf-8")) if BASELINE.exists() else {"cases": {}}
    cases = cases_of(arguments)
    failures = []
    found = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for case, figures in zip(cases, pool.map(lambda case: count(arguments.binary, case), cases)):
            found[case] = figures
            mine = figures["instructions"]
            before = old["cases"].get(case, {}).get("instructions")
            told = f"{case:16} {mine:>12,.0f}"
            if before:
                change = mine / before - 1
                told += f"   {change:+.1%} of {before:,.0f}"
                if abs(change) > TOLERANCE:
                    failures.append(f"{case} takes {abs(change):.1%} {'more' if change > 0 else 'fewer'} instructions")
            else:
                failures.append(f"{case} has no baseline")
            print(told, flush=True)
    if arguments.update:
        write({**versions(), "cases": {**old["cases"], **found}})
        print(f"Wrote {BASELINE.relative_to(ROOT)} and the table in {PAGE.relative_to(ROOT)}.")
    elif failures:
        now = versions()
        other = [f"{name} was {old.get(name)}, is {now[name]}" for name in now if old.get(name) != now[name]]
        sys.exit(
            "Beyond 5% of the baseline: "
            + "; ".join(failures)
            + ".\n"
            + "".join(f"Note: {line}.\n" for line in other)
            + "If that is meant, `make bench-check UPDATE=1` writes a new baseline; commit it and say why."
        )


if __name__ == "__main__":
    main()
