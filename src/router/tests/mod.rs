//! From a JSON line to a JSON reply, over real sockets, links and shards.

mod allocations;
mod leaders;
mod world;

use super::RouterSettings;
use serde_json::json;
use shards::ids::Millis;
use world::World;

const OK: &str = "{\"status\":\"success\",\"result\":\"OK\"}";

#[test]
fn one_key() {
    let mut world = World::new(2);
    let mut client = world.connect();
    let mut check = |line: &str, expected: &str| {
        let reply = world.ask(&mut client, line);
        assert_eq!(reply, format!("{{\"status\":\"success\",{expected}}}"), "{line}");
    };
    check(r#"{"command":"PING"}"#, r#""result":"PONG""#);
    check(r#"{"command":"GET","key":"a","id":"x"}"#, r#""id":"x","result":null,"found":false"#);
    check(r#"{"command":"SET","key":"a","value":{"b": [1,2]}}"#, r#""result":"OK""#);
    check(r#"{"id":7,"command":"GET","key":"a"}"#, r#""id":7,"result":{"b": [1,2]}"#);
    check(r#"{"command":"get","key":"\u0061","consistency":"local"}"#, r#""result":{"b": [1,2]}"#);
    check(r#"{"command":"EXISTS","key":"a"}"#, r#""result":true"#);
    check(r#"{"command":"TTL","key":"a"}"#, r#""result":-1"#);
    check(r#"{"command":"EXPIRE","key":"a","ttl_ms":1000}"#, r#""result":true"#);
    check(r#"{"command":"TTL","key":"a"}"#, r#""result":1000"#);
    check(r#"{"command":"PERSIST","key":"a"}"#, r#""result":true"#);
    check(r#"{"command":"TTL","key":"nobody"}"#, r#""result":-2"#);
    check(r#"{"command":"DELETE","key":"a"}"#, r#""result":true"#);
    check(r#"{"command":"DELETE","key":"a"}"#, r#""result":false"#);
    check(r#"{"command":"INCR","key":"n"}"#, r#""result":1"#);
    check(r#"{"command":"INCR","key":"n","amount":-5,"client":"c","seq":1}"#, r#""result":-4"#);
    check(r#"{"command":"INCR","key":"n","amount":-5,"client":"c","seq":1}"#, r#""result":-4"#);
    check(r#"{"command":"GET","key":"n"}"#, r#""result":-4"#);
}

#[test]
fn conditions_and_versions() {
    let mut world = World::new(2);
    let mut client = world.connect();
    let written = world.ask(
        &mut client,
        r#"{"command":"SET","key":"a","value":1,"with_version":true,"if":{"absent":true}}"#,
    );
    let value: serde_json::Value = serde_json::from_str(&written).unwrap();
    let version = value["version"].as_str().unwrap().to_owned();
    let read = world.ask(&mut client, r#"{"command":"GET","key":"a","with_version":true}"#);
    assert!(read.contains(&format!("\"version\":\"{version}\",\"result\":1")), "{read}");
    let set =
        |condition: &str| format!("{{\"command\":\"SET\",\"key\":\"a\",\"value\":2,\"if\":{condition}}}");
    for unmet in [r#"{"absent":true}"#, r#"{"value":3}"#, r#"{"version":"nonsense"}"#] {
        let reply = world.ask(&mut client, &set(unmet));
        assert!(reply.contains("CONFLICT") && reply.contains(&version), "{unmet}: {reply}");
    }
    assert_eq!(world.ask(&mut client, &set(&format!("{{\"version\":\"{version}\"}}"))), OK);
    assert_eq!(world.ask(&mut client, &set(r#"{"value":2}"#)), OK);
    assert_eq!(world.ask(&mut client, &set(r#"{"present":true}"#)), OK);
}

#[test]
fn large_values_are_shared() {
    let mut world = World::new(1);
    let text = "x".repeat(100_000);
    world.result(&format!("{{\"command\":\"SET\",\"key\":\"a\",\"value\":\"{text}\"}}"));
    assert_eq!(world.result(r#"{"command":"GET","key":"a"}"#), json!(text));
    assert_eq!(world.result(r#"{"command":"BULK_GET","keys":["a"]}"#), json!({ "a": text }));
}

#[test]
fn many_keys() {
    for groups in [1, 3] {
        let mut world = World::new(groups);
        let keys: Vec<String> = (0..50).map(|number| format!("k\n{number}")).collect();
        let items: serde_json::Map<String, serde_json::Value> =
            keys.iter().map(|key| (key.clone(), json!({ "of": key }))).collect();
        let set = json!({ "command": "BULK_SET", "items": items, "client": "c", "seq": 1 }).to_string();
        assert_eq!(world.result(&set), 50);
        assert_eq!(world.result(&set), 50, "a retry");
        let mut asked = keys[..10].to_vec();
        asked.push("nobody".to_owned());
        let get = json!({ "command": "BULK_GET", "keys": asked });
        let found = world.result(&get.to_string());
        assert_eq!(found.as_object().unwrap().len(), 11);
        assert_eq!((&found[&keys[3]], &found["nobody"]), (&json!({ "of": keys[3] }), &json!(null)));
        let local = json!({ "command": "BULK_GET", "keys": asked, "consistency": "local" });
        assert_eq!(world.result(&local.to_string()), found);
        let delete = json!({ "command": "BULK_DELETE", "keys": asked });
        assert_eq!(world.result(&delete.to_string()), 10);
        assert_eq!(world.result(&delete.to_string()), 0);
        assert_eq!(world.result(r#"{"command":"BULK_SET","items":{}}"#), 0);
        assert_eq!(world.result(r#"{"command":"BULK_GET","keys":[]}"#), json!({}));
        assert_eq!(world.result(r#"{"command":"INFO"}"#)["keys"], 40);
    }
}

#[test]
fn scans_and_prefixes() {
    for groups in [1, 3] {
        let mut world = World::new(groups);
        let items: serde_json::Map<String, serde_json::Value> = (0..130)
            .map(|number| (format!("{}{number}", if number < 100 { "p" } else { "q" }), json!(number)))
            .collect();
        world.result(&json!({ "command": "BULK_SET", "items": items }).to_string());
        let mut cursor = json!(null);
        let (mut seen, mut pages) = (std::collections::BTreeMap::new(), 0);
        loop {
            let scan = json!({ "command": "SCAN", "prefix": "p", "limit": 17, "cursor": cursor, "with_values": true });
            let page = world.result(&scan.to_string());
            let (keys, values) = (page["keys"].as_array().unwrap(), page["values"].as_array().unwrap());
            assert!(keys.len() == values.len() && keys.len() <= 17);
            for (key, value) in keys.iter().zip(values) {
                assert!(seen.insert(key.as_str().unwrap().to_owned(), value.clone()).is_none());
            }
            pages += 1;
            cursor = page["cursor"].clone();
            if cursor.is_null() {
                break;
            }
        }
        assert!(pages >= 6);
        assert_eq!(seen.len(), 100);
        assert!(seen.iter().all(|(key, value)| *key == format!("p{value}")));
        assert_eq!(world.code(r#"{"command":"SCAN","cursor":"nonsense"}"#), "BAD_REQUEST");

        let delete = r#"{"command":"DELETE_PREFIX","prefix":"p","client":"c","seq":1}"#;
        assert_eq!(world.result(delete), 100);
        assert_eq!(world.result(delete), 100, "a retry");
        assert_eq!(
            world.code(r#"{"command":"DELETE_PREFIX","prefix":"q","client":"c","seq":1}"#),
            "CONFLICT"
        );
        assert_eq!(world.result(r#"{"command":"DELETE_PREFIX","prefix":""}"#), 30);
        assert_eq!(world.result(r#"{"command":"SCAN"}"#), json!({ "keys": [], "cursor": null }));
    }
}

#[test]
fn the_server_describes_itself() {
    let mut world = World::new(2);
    let hello = world.result(r#"{"command":"HELLO"}"#);
    assert_eq!(
        (&hello["protocol"], &hello["node"], &hello["mode"]),
        (&json!(1), &json!("node1"), &json!("single"))
    );
    assert_eq!((&hello["shards"], &hello["limits"]["id_bytes_max"]), (&json!(2), &json!(256)));
    assert_eq!(hello["slots"][1], json!({ "first": 2048, "last": 4095, "group": 1 }));
    assert_eq!(hello["leaders"][1]["node"], "node1");
    world.pass_ms(2500);
    let info = world.result(r#"{"command":"INFO"}"#);
    assert_eq!((&info["uptime_s"], &info["profile"], &info["keys"]), (&json!(2), &json!("test"), &json!(0)));
    assert_eq!(info["shards"].as_array().unwrap().len(), 2);
    assert_eq!(info["router"]["outstanding"], json!([0, 0]));
    assert!(info["memory"]["resident_bytes"].as_u64().unwrap() > 0);
    let cluster = world.result(r#"{"command":"CLUSTER"}"#);
    assert_eq!(cluster["nodes"][0]["id"], "node1");
    assert_eq!((&cluster["groups"][1]["leader"], &cluster["groups"][1]["lag"]), (&json!("node1"), &json!(0)));
    for line in [
        r#"{"command":"ADD_NODE","node":"n","address":"h:1"}"#,
        r#"{"command":"REMOVE_NODE","node":"n"}"#,
        r#"{"command":"TRANSFER_LEADER","node":"n"}"#,
        r#"{"command":"BALANCE"}"#,
    ] {
        assert_eq!(world.code(line), "UNSUPPORTED_IN_MODE");
    }
}

#[test]
fn refusals_keep_the_connection() {
    let settings = RouterSettings { debug_faults: false, ..RouterSettings::default() };
    let mut world = World::with(2, 64, settings);
    let mut client = world.connect();
    for (line, code) in [
        ("nonsense", "BAD_REQUEST"),
        (r#"{"command":"NOPE","id":3}"#, "UNKNOWN_COMMAND"),
        (r#"{"command":"GET"}"#, "BAD_REQUEST"),
        (r#"{"command":"SET","key":"a","value":1,"debug":true}"#, "FORBIDDEN"),
        (r#"{"command":"BULK_SET","items":{"a":1},"debug":true}"#, "FORBIDDEN"),
        (r#"{"command":"SCAN","limit":1000000}"#, "TOO_LARGE"),
    ] {
        let reply = world.ask(&mut client, line);
        assert!(reply.contains(&format!("\"code\":\"{code}\"")), "{line}: {reply}");
    }
    client.send("  ");
    assert_eq!(world.ask(&mut client, r#"{"command":"SET","key":"a","value":1}"#), OK);
    let mut allowed = World::new(2);
    assert_eq!(allowed.result(r#"{"command":"BULK_SET","items":{"a":1,"b":2},"debug":true}"#), 2);
}

#[test]
fn order_holds_within_a_connection() {
    let mut world = World::new(3);
    let mut client = world.connect();
    let keys: Vec<String> = (0..20).map(|number| format!("key{number}")).collect();
    let bulk = |value: u32| {
        let items: serde_json::Map<String, serde_json::Value> =
            keys.iter().map(|key| (key.clone(), json!(value))).collect();
        json!({ "command": "BULK_SET", "items": items, "id": value }).to_string()
    };
    let get = json!({ "command": "BULK_GET", "keys": keys, "id": "g" }).to_string();
    // All in one go: the reads and the barriers between them must not overtake one another.
    for round in 0..5 {
        client.send(&bulk(round));
        client.send(&get);
        client.send(r#"{"command":"SET","key":"key3","value":"x"}"#);
        client.send(r#"{"command":"GET","key":"key3"}"#);
        client.send(r#"{"command":"PING"}"#);
        client.send(r#"{"command":"SCAN","limit":5}"#);
        client.send(r#"{"command":"DELETE_PREFIX","prefix":"key1"}"#);
    }
    for round in 0..5 {
        let set = world.reply(&mut client);
        assert_eq!(set, format!("{{\"status\":\"success\",\"id\":{round},\"result\":20}}"));
        let found: serde_json::Value = serde_json::from_str(&world.reply(&mut client)).unwrap();
        assert_eq!(found["id"], "g");
        let values = found["result"].as_object().unwrap();
        assert!(values.len() == 20 && values.values().all(|value| *value == round), "{found}");
        assert_eq!(world.reply(&mut client), OK);
        assert!(world.reply(&mut client).ends_with("\"result\":\"x\"}"));
        assert!(world.reply(&mut client).contains("PONG"));
        assert_eq!(world.reply(&mut client).matches("\"key").count(), 6, "five keys and their member");
        assert!(world.reply(&mut client).ends_with("\"result\":11}"));
    }
    assert!(world.front.counters().holds > 0);
    assert!(world.router.is_quiet());
}

#[test]
fn unordered_replies_overtake_and_need_ids() {
    let mut world = World::new(2);
    let mut client = world.connect();
    assert!(world.ask(&mut client, r#"{"command":"HELLO","ordered":false}"#).contains("success"));
    assert!(world.ask(&mut client, r#"{"command":"PING"}"#).contains("BAD_REQUEST"));
    world.disk_is_held = true;
    client.send(r#"{"command":"SET","key":"a","value":1,"id":1}"#);
    client.send(r#"{"command":"BULK_SET","items":{"b":1,"c":1,"d":1,"e":1},"id":2}"#);
    client.send(r#"{"command":"GET","key":"other","id":3}"#);
    assert!(world.reply(&mut client).contains("\"id\":3"));
    world.disk_is_held = false;
    let mut rest = [world.reply(&mut client), world.reply(&mut client)];
    rest.sort();
    assert!(rest[0].contains("\"id\":1") && rest[1].contains("\"id\":2"));
    // HELLO waits and goes back to order.
    assert!(world.ask(&mut client, r#"{"command":"HELLO","id":4}"#).contains("\"id\":4"));
    assert!(world.ask(&mut client, r#"{"command":"PING"}"#).contains("PONG"));
}

#[test]
fn lines_wait_for_room_and_nothing_is_lost() {
    let settings = RouterSettings { gathers_max: 2, ..RouterSettings::default() };
    let mut world = World::with(2, 2, settings);
    let mut clients: Vec<_> = (0..8).map(|_| world.connect()).collect();
    world.shards_are_held = true;
    for (number, client) in clients.iter_mut().enumerate() {
        for round in 0..6 {
            client.send(&format!("{{\"command\":\"SET\",\"key\":\"k{number}.{round}\",\"value\":{round}}}"));
            client.send(r#"{"command":"SCAN","limit":1000}"#);
            client.send(&format!("{{\"command\":\"GET\",\"key\":\"k{number}.{round}\"}}"));
        }
    }
    world.settle();
    assert!(world.front.counters().holds_for_room > 0);
    world.shards_are_held = false;
    for (number, client) in clients.iter_mut().enumerate() {
        for round in 0..6 {
            assert_eq!(world.reply(client), OK);
            let page = world.reply(client);
            assert!(page.contains(&format!("\"k{number}.{round}\"")), "{page}");
            assert_eq!(world.reply(client), format!("{{\"status\":\"success\",\"result\":{round}}}"));
        }
    }
    assert!(world.router.is_quiet());
}

#[test]
fn deadlines_end_what_takes_too_long() {
    let mut world = World::new(2);
    let mut client = world.connect();
    world.shards_are_held = true;
    client.send(r#"{"command":"SCAN","timeout_ms":100}"#);
    client.send(r#"{"command":"DELETE_PREFIX","prefix":"x","timeout_ms":300}"#);
    world.settle();
    assert!(world.router.next_deadline(Millis(0)).is_some());
    world.pass_ms(100);
    let late = world.reply(&mut client);
    assert!(late.contains("TIMEOUT") && late.contains("\"retry\":\"safe\""), "{late}");
    world.settle();
    world.pass_ms(300);
    let late = world.reply(&mut client);
    assert!(late.contains("TIMEOUT") && late.contains("\"outcome\":\"unknown\""), "{late}");
    // The late answers find nobody, and their credits come back.
    world.shards_are_held = false;
    world.settle();
    assert!(world.router.is_quiet());
    assert_eq!(world.router.counters().gather_timeouts, 2);
    assert!(world.ask(&mut client, r#"{"command":"SCAN"}"#).contains("success"));
}

#[test]
fn a_client_that_leaves_ends_its_reads() {
    let mut world = World::new(2);
    let mut client = world.connect();
    world.shards_are_held = true;
    client.send(r#"{"command":"PING"}"#);
    client.send(r#"{"command":"SCAN","limit":1000}"#);
    world.settle();
    // Closed with an unread reply, the socket is reset and not only shut.
    drop(client);
    world.settle();
    world.shards_are_held = false;
    world.settle();
    assert!(world.router.is_quiet());
    assert_eq!(world.router.counters().calls, 1, "the second shard was not asked");
}

#[test]
fn a_stop_refuses_what_comes_after() {
    let mut world = World::new(2);
    let mut client = world.connect();
    world.disk_is_held = true;
    client.send(r#"{"command":"SET","key":"a","value":1}"#);
    client.send(r#"{"command":"SHUTDOWN"}"#);
    client.send(r#"{"command":"GET","key":"a"}"#);
    world.settle();
    assert!(world.stop.is_requested());
    world.disk_is_held = false;
    assert_eq!(world.reply(&mut client), OK);
    assert_eq!(world.reply(&mut client), OK);
    assert!(world.reply(&mut client).contains("SHUTTING_DOWN"));
}
