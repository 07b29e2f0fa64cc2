"""What every server must do: runs against STRAND_TEST_ADDRESS when set, and against the fake one otherwise."""

import asyncio
import inspect
import os
import unittest

import fake_server
import stranddb
from stranddb.aio import AsyncClient
from stranddb.commands import COMMAND_METHODS

needs_real_server = unittest.skipUnless(os.environ.get("STRAND_TEST_ADDRESS"), "the fake server does not know these commands")


class Commands(unittest.TestCase):
    def setUp(self):
        self.address = fake_server.any_server(self)
        self.host, port = self.address.rsplit(":", 1)
        self.port = int(port)
        self.client = stranddb.Client(self.address)
        self.addCleanup(self.client.close)
        self.prefix = fake_server.own_prefix(self.id().rsplit(".", 1)[-1])

    def test_values_come_back_as_they_were_stored(self):
        for n, value in enumerate([None, 1.5, 2 ** 60, "é\n\U0001F600\"", {"a": [1, {"b": None}]}, [], False]):
            key = f"{self.prefix}{n} \"quoted\""
            self.client.set(key, value)
            self.assertEqual(self.client.get(key, "absent"), value)
            self.assertIs(self.client.exists(key), True)
            self.assertIs(self.client.delete(key), True)
            self.assertEqual(self.client.get(key, "absent"), "absent")

    def test_counters_count_and_refuse(self):
        self.assertEqual(self.client.incr(self.prefix, 5), 5)
        self.assertEqual(self.client.incr(self.prefix, -7), -2)
        self.client.incr(self.prefix, 2 ** 63 - 1)
        with self.assertRaises(stranddb.CounterOverflowError):
            self.client.incr(self.prefix, 3)
        self.client.set(self.prefix, "text")
        with self.assertRaises(stranddb.WrongTypeError):
            self.client.incr(self.prefix)

    def test_conditions_hold(self):
        self.assertIs(self.client.set_if_absent(self.prefix, 1), True)
        self.assertIs(self.client.set_if_absent(self.prefix, 2), False)
        value, version = self.client.get_versioned(self.prefix)
        self.assertEqual(value, 1)
        newer = self.client.set(self.prefix, 3, condition={"version": version}, with_version=True)
        with self.assertRaises(stranddb.ConflictError) as caught:
            self.client.set(self.prefix, 4, condition={"version": version})
        self.assertEqual(caught.exception.version, newer)

    def test_bulks(self):
        a, b, c = (self.prefix + name for name in "abc")
        self.assertEqual(self.client.bulk_set([(a, 1), (b, 2), (a, 3)]), 2)
        self.assertEqual(self.client.bulk_set({c: 4}), 1)
        self.assertEqual(self.client.bulk_get([a, b, c, self.prefix]), {a: 3, b: 2, c: 4, self.prefix: None})

    def test_pipelines_answer_in_order(self):
        with self.client.pipeline() as pipeline:
            for _ in range(2_000):
                pipeline.incr(self.prefix)
        self.assertEqual(pipeline.results, list(range(1, 2_001)))

    def test_large_values_pass_both_ways_at_once(self):
        big = "x" * 1_000_000
        with self.client.pipeline() as pipeline:
            for n in range(20):
                pipeline.set(f"{self.prefix}{n}", big)
                pipeline.get(f"{self.prefix}{n}")
        self.assertEqual([len(result) for result in pipeline.results], [2, len(big)] * 20)

    def test_scans_give_every_key_once(self):
        keys = [f"{self.prefix}{n:02}" for n in range(25)]
        self.client.bulk_set((key, 7) for key in keys)
        self.assertEqual(sorted(self.client.scan(self.prefix, page=10)), keys)

    def test_raw_commands_give_raw_replies(self):
        reply = self.client.send_command({"command": "set", "key": self.prefix, "value": 1, "id": "x"})
        self.assertEqual((reply["status"], reply["result"], reply["id"]), ("success", "OK", "x"))
        self.assertEqual(self.client.send_command({"command": "NO_SUCH"})["code"], "UNKNOWN_COMMAND")

    @needs_real_server
    def test_further_fields_pass_through_typed_methods(self):
        self.client.set(self.prefix, "a word")
        local = {"consistency": "local", "timeout_ms": 5_000}
        self.assertEqual(self.client.get(self.prefix, **local), "a word")
        self.assertTrue(self.client.exists(self.prefix, **local))
        self.assertEqual(self.client.ttl(self.prefix, **local), -1)
        self.assertEqual(self.client.bulk_get([self.prefix], **local), {self.prefix: "a word"})
        self.assertEqual(list(self.client.scan(self.prefix, **local)), [self.prefix])
        self.assertIn(self.prefix, [hit["key"] for hit in self.client.search("word", 10_000, timeout_ms=60_000)])
        self.assertTrue(self.client.expire(self.prefix, 60_000, timeout_ms=5_000))
        self.assertTrue(self.client.persist(self.prefix, timeout_ms=5_000))
        with self.assertRaises(stranddb.BadRequestError):
            self.client.get(self.prefix, no_such_field=1)

    @needs_real_server
    def test_members_are_changed_in_a_cluster_only(self):
        for change in (lambda: self.client.add_node("node9", "127.0.0.1:9"), lambda: self.client.add_node("n@127.0.0.1:9"),
                       lambda: self.client.remove_node("node9"), lambda: self.client.transfer_leader("node9", 0)):
            with self.assertRaises(stranddb.UnsupportedInModeError):
                change()

    def test_the_dict_client_gives_replies(self):
        with stranddb.TCPClient(self.host, self.port) as client:
            self.assertEqual(client.set(self.prefix, {"a": 1})["status"], "success")
            self.assertEqual(client.get(self.prefix)["result"], {"a": 1})
            self.assertEqual(client.incr(self.prefix)["code"], "WRONG_TYPE")
            self.assertEqual(client.bulk_set([(self.prefix, 1)])["result"], 1)
            self.assertEqual(client.send_command({"command": "GET", "key": self.prefix})["result"], 1)
            self.assertIs(client.delete(self.prefix)["result"], True)

    def test_the_plain_client_gives_values(self):
        with stranddb.KVClient(self.host, self.port) as client:
            self.assertEqual(client.bulk_set([(self.prefix, "v"), (self.prefix + "b", 2)]), 2)
            self.assertEqual((client.get(self.prefix), client.get(self.prefix + "none")), ("v", None))
            self.assertEqual(client.incr(self.prefix + "b", 2), 4)
            with self.assertRaises(stranddb.WrongTypeError):
                client.incr(self.prefix)

    def test_asyncio(self):
        async def main():
            async with AsyncClient(self.address) as client:
                await client.set(self.prefix, [1])
                self.assertEqual(await client.get(self.prefix), [1])
                async with client.pipeline() as pipeline:
                    for _ in range(1_000):
                        pipeline.incr(self.prefix + "n")
                self.assertEqual(pipeline.results, list(range(1, 1_001)))
                side_by_side = await asyncio.gather(*(client.incr(self.prefix + "n") for _ in range(20)))
                self.assertEqual(side_by_side, list(range(1_001, 1_021)))
                keys = [key async for key in client.scan(self.prefix)]
                self.assertEqual(sorted(keys), [self.prefix, self.prefix + "n"])
                with self.assertRaises(stranddb.WrongTypeError):
                    await client.incr(self.prefix)
        asyncio.run(main())


class Interface(unittest.TestCase):
    def test_both_clients_have_the_same_methods_and_parameters(self):
        def public(kind):
            return {name: inspect.signature(method).parameters.keys() for name, method in inspect.getmembers(kind)
                    if inspect.isfunction(method) and not name.startswith("_")}
        ours, theirs = public(stranddb.Client), public(AsyncClient)
        ours.pop("is_healthy")
        self.assertEqual(ours, theirs)

    def test_every_command_has_a_method_everywhere(self):
        for name in COMMAND_METHODS:
            for kind in (stranddb.Client, AsyncClient, stranddb.TCPClient, stranddb.KVClient, stranddb.Pipeline):
                self.assertTrue(callable(getattr(kind, name, None)), name)
        for kind in (stranddb.Client, AsyncClient, stranddb.TCPClient, stranddb.KVClient):
            self.assertTrue(callable(getattr(kind, "hello", None)), kind)


if __name__ == "__main__":
    unittest.main()
