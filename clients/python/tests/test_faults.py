"""What the clients do when things go wrong, against the fake server and its faults on demand."""

import asyncio
import threading
import time
import unittest

import fake_server
import stranddb
from stranddb import engine
from fake_server import FakeServer, error
from stranddb import AsyncClient, Client, Options, Pool
from stranddb.placement import xxh3_64

QUICK = Options(timeout=5.0, pause_first=0.002, pause_max=0.02)


class Faults(unittest.TestCase):
    def server(self):
        fake = FakeServer()
        self.addCleanup(fake.stop)
        return fake

    def client(self, fake, options=QUICK):
        client = Client(fake.address, options=options)
        self.addCleanup(client.close)
        return client

    def test_a_write_whose_reply_was_lost_applies_once(self):
        fake = self.server()
        client = self.client(fake)
        fake.inject("INCR", "close_after", "close_before")
        self.assertEqual((client.incr("n"), client.incr("n")), (1, 2))
        self.assertEqual(fake.applied, 2)
        first, again, second = fake.seen("INCR")
        self.assertEqual(first["seq"], again["seq"])
        self.assertEqual(second["seq"], first["seq"] + 1)
        self.assertEqual(second["acked"], second["seq"])
        self.assertEqual(first["client"], client.client_id)

    def test_the_same_with_asyncio(self):
        fake = self.server()

        async def main():
            async with AsyncClient(fake.address, options=QUICK) as client:
                fake.inject("INCR", "close_after", "close_before")
                self.assertEqual((await client.incr("n"), await client.incr("n")), (1, 2))
        asyncio.run(main())
        self.assertEqual(fake.applied, 2)

    def test_a_pipeline_cut_in_the_middle_applies_once_and_in_order(self):
        fake = self.server()
        fake.inject("INCR", *[("slow", 0)] * 10, "close_after")
        with self.client(fake).pipeline() as pipeline:
            for _ in range(40):
                pipeline.incr("n")
        self.assertEqual(pipeline.results, list(range(1, 41)))
        self.assertEqual((fake.applied, fake.accepted), (40, 2))

    def test_what_may_not_be_repeated_is_not(self):
        fake = self.server()
        client = self.client(fake)
        fake.inject("SHUTDOWN", "close_after")
        with self.assertRaises(stranddb.DisconnectedError) as caught:
            client.shutdown()
        self.assertIs(caught.exception.outcome_unknown, True)
        self.assertEqual(len(fake.seen("SHUTDOWN")), 1)
        self.assertEqual(client.ping(), "PONG")

    def test_retry_classes_are_honoured(self):
        fake = self.server()
        client = self.client(fake)
        fake.inject("SET", error("OVERLOADED", "safe"), error("TIMEOUT", "same_seq"))
        client.set("k", 1)
        self.assertEqual(len({request["seq"] for request in fake.seen("SET")}), 1)
        self.assertEqual(len(fake.seen("SET")), 3)
        fake.inject("SET", error("DISK_FULL", "never"))
        with self.assertRaises(stranddb.DiskFullError):
            client.set("k", 2)
        fake.inject("INCR", error("TIMEOUT", "same_seq"))
        own = {"command": "INCR", "key": "n", "client": "me", "seq": 1}
        self.assertEqual(client.send_command(own)["code"], "TIMEOUT")

    def test_a_refused_write_is_not_repeated_after_a_later_one_took_effect(self):
        fake = self.server()
        client = self.client(fake)
        fake.inject("SET", error("OVERLOADED", "safe"))
        with client.pipeline() as pipeline:
            pipeline.set("k", "first")
            pipeline.set("k", "second")
        self.assertEqual([outcome["status"] for outcome in pipeline.outcomes], ["error", "success"])
        self.assertEqual(client.get("k"), "second")

    def test_deadlines_hold_and_the_next_call_gets_its_own_reply(self):
        fake = self.server()
        client = self.client(fake, Options(timeout=0.15))
        fake.inject("GET", ("slow", 0.5))
        begin = time.monotonic()
        with self.assertRaises(stranddb.RequestTimeout):
            client.get("slow")
        self.assertLess(time.monotonic() - begin, 0.45)
        client.set("k", "mine")
        self.assertEqual(client.get("k"), "mine")

    def test_a_cancelled_call_does_not_spoil_the_next(self):
        fake = self.server()

        async def main():
            async with AsyncClient(fake.address, options=QUICK) as client:
                await client.set("k", "mine")
                fake.inject("GET", ("slow", 0.2))
                with self.assertRaises(asyncio.TimeoutError):
                    await asyncio.wait_for(client.get("slow"), 0.05)
                self.assertEqual(await client.get("k"), "mine")
        asyncio.run(main())

    def test_nonsense_ends_the_connection_and_nothing_else(self):
        fake = self.server()
        client = self.client(fake)
        fake.inject("GET", "nonsense")
        with self.assertRaises(stranddb.ProtocolError):
            client.get("k")
        self.assertEqual(client.ping(), "PONG")
        self.assertEqual(fake.accepted, 2)

    def test_the_next_seed_takes_over(self):
        first, second = self.server(), self.server()
        client = Client(["127.0.0.1:1", first.address, second.address], options=QUICK)
        self.addCleanup(client.close)
        self.assertEqual(client.address, first.address)
        first.inject("PING", error("SHUTTING_DOWN", "safe"))
        self.assertEqual(client.ping(), "PONG")
        self.assertEqual(client.address, second.address)
        with self.assertRaises(stranddb.ConnectError):
            Client("127.0.0.1:1", options=QUICK)

    def test_leaders_are_followed_and_remembered(self):
        follower, leader = self.server(), self.server()
        client = self.client(follower, Options(redirect=True))
        follower.inject("SET", error("NOT_LEADER", "safe", leader=leader.address, shard=3))
        client.set("k", 1)
        client.set("k", 2)
        self.assertEqual((len(follower.seen("SET")), len(leader.seen("SET"))), (1, 2))
        self.assertEqual(follower.seen("HELLO")[0]["redirect"], True)

    def test_the_map_of_hello_leads_to_the_leader_at_once(self):
        seed, leader = self.server(), self.server()
        whole = {"slots": [{"first": 0, "last": 4095, "group": 5}],
                 "leaders": [{"group": 5, "node": "b", "address": leader.address}]}
        seed.inject("HELLO", {"status": "success", "result": whole})
        kept, engine.hash64 = engine.hash64, lambda key: 7 << 52
        try:
            client = self.client(seed, Options(redirect=True))
            client.set("k", 1)
        finally:
            engine.hash64 = kept
        self.assertEqual((len(seed.seen("SET")), len(leader.seen("SET"))), (0, 1))

    def tell_of_shards(self, common, ports):
        size = engine.SLOTS // len(ports)
        slots = [{"first": at * size, "last": (at + 1) * size - 1, "group": at, "port": port}
                 for at, port in enumerate(ports)]
        leaders = [{"group": at, "node": "a", "address": common.address} for at in range(len(ports))]
        result = {"node": "a", "slots": slots, "leaders": leaders}
        common.inject("HELLO", {"status": "success", "result": result})

    def hash_by_last_digit(self):
        kept, engine.hash64 = engine.hash64, lambda key: (key[-1] - ord("0")) * 2048 << 52
        self.addCleanup(setattr, engine, "hash64", kept)

    def test_shards_are_met_at_their_own_ports(self):
        common, low, high = self.server(), self.server(), self.server()
        self.tell_of_shards(common, [int(server.address.rpartition(":")[2]) for server in (low, high)])
        self.hash_by_last_digit()
        client = self.client(common, Options(shard_aware=True))
        with client.pipeline() as pipeline:
            for number, key in enumerate(("k0", "k1", "j1")):
                pipeline.set(key, number)
            pipeline.bulk_get(["k0", "k1"])
            pipeline.set("k0", 4)
        client.bulk_set({"k0": 5})
        self.assertEqual([len(server.seen("SET")) for server in (common, low, high)], [0, 2, 2])
        self.assertEqual((len(common.seen("BULK_GET")), len(common.seen("BULK_SET"))), (1, 1))
        self.assertNotIn("redirect", common.seen("HELLO")[0])

    def test_a_shards_own_port_that_cannot_be_reached_is_done_without(self):
        common, gone = self.server(), self.server()
        gone.stop()
        self.tell_of_shards(common, [int(gone.address.rpartition(":")[2])])
        self.hash_by_last_digit()
        client = self.client(common, Options(shard_aware=True))
        client.set("k0", 1)
        client.set("k0", 2)
        self.assertEqual(len(common.seen("SET")), 2)

    def test_what_touches_many_keys_keeps_its_place_between_shards(self):
        common, low, high = self.server(), self.server(), self.server()
        self.tell_of_shards(common, [int(server.address.rpartition(":")[2]) for server in (low, high)])
        self.hash_by_last_digit()
        order = []
        for name, server in (("common", common), ("low", low), ("high", high)):
            answer = server.answer
            server.answer = lambda command, request, name=name, answer=answer: (
                order.append((name, command)), answer(command, request))[1]
        client = self.client(common, Options(shard_aware=True))
        with client.pipeline() as pipeline:
            pipeline.set("k0", 1)
            pipeline.set("k1", 2)
            pipeline.bulk_get(["k0", "k1"])
            pipeline.set("k0", 4)
        commands = [(name, command) for name, command in order if command != "HELLO"]
        self.assertEqual(sorted(commands[:2]), [("high", "SET"), ("low", "SET")])
        self.assertEqual(commands[2:], [("common", "BULK_GET"), ("low", "SET")])

    def test_slots_are_the_servers(self):
        seen = []
        def hashed(key):
            seen.append(key)
            return 0x2d06800538d394c2
        for key in (b"{user1}.name", b"x{user1}y", b"{}a", b"a{b"):
            self.assertEqual(engine.slot_of(key, hashed), 0x2d0)
        self.assertEqual(seen, [b"user1", b"user1", b"{}a", b"a{b"])

    def test_the_hash_is_the_servers(self):
        known = {0: 0x2d06800538d394c2, 1: 0x4c5cca45d0f4811f, 3: 0x6e3e2670e61106ac, 4: 0x5c4c63133443d03f,
                 8: 0xf9fd4dd0b04d78f5, 9: 0x7c20df9712c26edf, 16: 0x86abf6baccea0858, 17: 0xb58bf5dc5022d071,
                 32: 0xe3712ed84c04a66e, 33: 0xa4dee99b093e1f73, 64: 0x1291d2d4042330dd, 65: 0x97c6bf83217e5ec9,
                 96: 0x81296929fc063365, 97: 0xf145a45b658ab9dd, 128: 0x10d17f72c0ccba41, 129: 0x1648bdc3db49d1a2,
                 240: 0xb6cfaf343fab81e6, 241: 0x956cae592c67279e, 1024: 0x70bd377d9574f4bb, 1025: 0x66c4487c41e127a7,
                 4096: 0x9ddd66c14af0daff}
        for length, expected in known.items():
            self.assertEqual(xxh3_64(bytes((at * 131 + 7) & 255 for at in range(length))), expected, length)

    def test_several_addresses_stand_in_one_text(self):
        gone, there = self.server(), self.server()
        gone.stop()
        with stranddb.Client(f"{gone.address}, {there.address}", options=QUICK) as client:
            client.set("k", 1)
        self.assertEqual(len(there.seen("SET")), 1)

    def test_unordered_replies_find_their_requests(self):
        fake = self.server()
        client = self.client(fake, Options(ordered=False))
        client.bulk_set({f"k{n}": n for n in range(100)})
        with client.pipeline() as pipeline:
            for n in range(100):
                pipeline.get(f"k{n}")
        self.assertEqual(pipeline.results, list(range(100)))
        self.assertEqual(client.send_command({"command": "PING", "id": "mine"})["id"], "mine")

    def test_what_cannot_be_written_is_not_sent(self):
        fake = self.server()
        client = self.client(fake, Options(request_bytes_max=1_000))
        for value in (float("nan"), object(), "\ud800", "x" * 1_000):
            with self.assertRaises(stranddb.EncodeError):
                client.set("k", value)
        self.assertEqual(fake.seen("SET"), [])

    def test_index_queries_go_page_by_page(self):
        fake = self.server()
        client = self.client(fake)
        client.bulk_set({f"k{n:02}": {"even": n % 2 == 0} for n in range(25)})
        found = list(client.query_index("even", True, page=5))
        self.assertEqual(found, [f"k{n:02}" for n in range(0, 25, 2)])
        self.assertEqual(len(fake.seen("QUERY_INDEX")), 3)

    def test_pools_are_bounded_and_give_out_only_sound_connections(self):
        fake = self.server()
        with Pool(fake.address, size=1, wait=0.1, options=QUICK) as pool:
            with pool.client() as client:
                client.ping()
                with self.assertRaises(stranddb.PoolExhausted):
                    with pool.client():
                        self.fail("there was no room")
            with pool.client() as again:
                self.assertIs(again, client)
            fake.close_connections()
            time.sleep(0.02)
            with pool.client() as fresh:
                self.assertIsNot(fresh, client)
                self.assertEqual(fresh.ping(), "PONG")

    def test_threads_share_a_pool_and_a_client(self):
        fake = self.server()
        client = self.client(fake)
        with Pool(fake.address, size=3, options=QUICK) as pool:
            def work():
                for _ in range(50):
                    with pool.client() as own:
                        own.incr("n")
                    client.incr("n")
            threads = [threading.Thread(target=work) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(client.get("n"), 600)
        self.assertLessEqual(fake.accepted, 4)


if __name__ == "__main__":
    unittest.main()
