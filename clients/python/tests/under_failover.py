"""Clients of every kind at work on a real cluster while its nodes die and come back.

Usage: python3 under_failover.py ADDRESSES; works until its standard input ends, then tells as one JSON object what it did. It
fails when a call fails, when a counter is not exact, when a read does not see the last write, or when a client that asked
for redirects never talked to two nodes.
"""

import asyncio
import json
import pathlib
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from stranddb import AsyncClient, Client, Options  # noqa: E402

STOP = threading.Event()
#: Different keys of a client: enough that every shard has some.
KEYS = 24


class Done:
    def __init__(self, name: str) -> None:
        self.name = name
        self.requests = 0
        self.longest = 0.0
        self.nodes = 0
        self.error = ""

    def note(self, begun: float) -> None:
        self.requests += 1
        self.longest = max(self.longest, time.monotonic() - begun)


def options(redirect: bool) -> Options:
    return Options(redirect=redirect, timeout=20.0)


def work(done: Done, addresses: str, redirect: bool) -> None:
    with Client(addresses, options=options(redirect)) as client:
        counts = [0] * KEYS
        nodes = set()
        while not STOP.is_set():
            for number in range(KEYS):
                key = f"{done.name}-{number}"
                begun = time.monotonic()
                counts[number] += 1
                found = client.incr(key)
                done.note(begun)
                assert found == counts[number], f"{key}: {found} and not {counts[number]}"
                assert client.get(key) == found, f"{key}: a read does not see the last write"
            assert client.bulk_set({f"{done.name}-batch-{number}": counts[0] for number in range(8)}) == 8
            nodes.update(client._engine.links)
        done.nodes = len(nodes)


async def work_async(done: Done, addresses: str) -> None:
    async with AsyncClient(addresses, options=options(True)) as client:
        counts = [0] * KEYS
        nodes = set()
        while not STOP.is_set():
            for number in range(KEYS):
                key = f"{done.name}-{number}"
                begun = time.monotonic()
                counts[number] += 1
                found = await client.incr(key)
                done.note(begun)
                assert found == counts[number], f"{key}: {found} and not {counts[number]}"
                assert await client.get(key) == found, f"{key}: a read does not see the last write"
            nodes.update(client._engine.links)
        done.nodes = len(nodes)


def guarded(done: Done, run) -> threading.Thread:
    def body() -> None:
        try:
            run()
        except BaseException as error:  # noqa: B902 - told by the main thread
            done.error = f"{done.name}: {type(error).__name__}: {error}"
            STOP.set()

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def main() -> int:
    addresses = sys.argv[1]
    plain, redirected, asynchronous = Done("plain"), Done("redirected"), Done("async")
    threads = [
        guarded(plain, lambda: work(plain, addresses, False)),
        guarded(redirected, lambda: work(redirected, addresses, True)),
        guarded(asynchronous, lambda: asyncio.run(work_async(asynchronous, addresses))),
    ]
    threading.Thread(target=lambda: (sys.stdin.read(), STOP.set()), daemon=True).start()
    for thread in threads:
        thread.join()
    told = {}
    for done in (plain, redirected, asynchronous):
        if not done.error and done is not plain and done.nodes < 2:
            done.error = f"{done.name} talked to {done.nodes} node"
        told[done.name] = {"requests": done.requests, "longest_ms": round(done.longest * 1000), "nodes": done.nodes,
                           "error": done.error}
    print(json.dumps(told))
    return 1 if any(done.error for done in (plain, redirected, asynchronous)) else 0


if __name__ == "__main__":
    sys.exit(main())
