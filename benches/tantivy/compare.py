#!/usr/bin/env python3
"""Compares Strand's text index with tantivy on this machine and writes the section of docs/BENCHMARKS.md.

Makes the corpora if they are not there yet: the dictionary GCIDE and the glosses of WordNet, from the Debian packages
dict-gcide and wordnet-base, which are downloaded and unpacked below target/ without being installed (or read where they are
installed). Then builds the bench crate with the server's profile and runs it. Cells that Strand loses are shown like the
others. Standard library only.
"""

import argparse
import gzip
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "BENCHMARKS.md"
BEGIN, END = "<!-- tantivy: begin -->", "<!-- tantivy: end -->"
PACKAGES = ["dict-gcide", "wordnet-base"]
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def write(out, key, title, text):
    document = {"id": key, "title": title, "text": " ".join(text.split())}
    out.write(json.dumps(document, ensure_ascii=False) + "\n")


def wordnet(folder, out):
    """A document for each set of synonyms: its words, and its gloss."""
    for part in ("noun", "verb", "adj", "adv"):
        with open(folder / f"data.{part}", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("  "):
                    continue
                head, gloss = line.split(" | ", 1)
                fields = head.split()
                words = (fields[4 + 2 * n].replace("_", " ") for n in range(int(fields[3], 16)))
                write(out, f"{part}:{fields[0]}", ", ".join(words), gloss)


def number(digits):
    value = 0
    for digit in digits:
        value = value * 64 + DIGITS.index(digit)
    return value


def gcide(folder, out):
    """A document for each article: dictd's index names offset and length in a compressed text."""
    data = gzip.open(folder / "gcide.dict.dz").read()
    seen = set()
    with open(folder / "gcide.index", encoding="utf-8") as lines:
        for line in lines:
            word, offset, length = line.rstrip("\n").split("\t")[:3]
            if offset in seen or word.startswith("00"):
                continue
            seen.add(offset)
            start = number(offset)
            text = data[start : start + number(length)].decode("utf-8", "replace")
            write(out, f"{word}@{offset}", word, text)


def corpora(folder):
    """The files of documents, made once."""
    wanted = {"gcide": ("dictd", gcide), "wordnet": ("wordnet", wordnet)}
    files = [folder / f"{name}.jsonl" for name in wanted]
    if all(file.exists() for file in files):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    share = pathlib.Path("/usr/share")
    if not ((share / "dictd" / "gcide.index").exists() and (share / "wordnet" / "data.noun").exists()):
        if not shutil.which("apt-get"):
            sys.exit(f"needs the Debian packages {', '.join(PACKAGES)}: installed, or apt-get to download them")
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package.name, "unpacked"], cwd=folder, check=True)
        share = folder / "unpacked" / "usr" / "share"
    for file, (place, make) in zip(files, wanted.values()):
        unfinished = file.with_suffix(".part")
        with open(unfinished, "w", encoding="utf-8") as out:
            make(share / place, out)
        unfinished.rename(file)
    return files


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def commit():
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of each cell (default 5)")
    parser.add_argument("--print", action="store_true", help="print the section and leave the page as it is")
    arguments = parser.parse_args()
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    files = corpora(target / "corpus")
    cargo = os.environ.get("CARGO", "cargo")
    manifest = str(HERE / "Cargo.toml")
    build = [cargo, "build", "--release", "--locked", "--manifest-path", manifest, "--target-dir", str(target)]
    subprocess.run(build, check=True)
    bench = [str(target / "release" / "strand-tantivy-bench"), str(arguments.rounds), *map(str, files)]
    load = os.getloadavg()[0]
    tables = subprocess.run(bench, check=True, stdout=subprocess.PIPE, text=True).stdout
    when = time.strftime("%Y-%m-%d")
    head = (
        f"Taken on {when}, {os.cpu_count()} cores ({processor()}), Linux {platform.release()}, commit {commit()}, "
        f"load average {load:.1f} before and {os.getloadavg()[0]:.1f} after (both engines run in turns, so a busy machine "
        "slows both). Against tantivy 0.27 in memory, one indexing thread, one segment.\n"
    )
    section = f"{BEGIN}\n{head}\n{tables.strip()}\n{END}"
    print(section)
    page = PAGE.read_text(encoding="utf-8")
    if arguments.print:
        return
    if BEGIN not in page or END not in page:
        sys.exit(f"{PAGE} has no place for the table: {BEGIN} and {END}")
    before, rest = page.split(BEGIN, 1)
    PAGE.write_text(before + section + rest.split(END, 1)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
