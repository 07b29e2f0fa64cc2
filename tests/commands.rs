//! Every data command over TCP: results, refusals, times to live, conditions, versions, retries.
//!
//! Each test has a server of its own, so that what one leaves behind cannot help another.

mod support;

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::client::Connection;
use support::server::{Server, Setup};
use support::{eventually, timed};

/// Runs a test against a server of its own, which must then stop in good order.
fn with_server(name: &'static str, test: impl FnOnce(&Server)) {
    let _timed = timed(name);
    let setup = Setup::small("commands").with(&["--shards", "3"]);
    let server = setup.start();
    test(&server);
    server.stop();
}

#[test]
fn values_come_back_byte_for_byte() {
    with_server("values", |server| {
        let mut connection = server.connect();
        let deep = format!("{}1{}", "[".repeat(60), "]".repeat(60));
        for (n, value) in [
            "null",
            "true",
            "-0",
            "1e400",
            "0.10",
            "12345678901234567890123",
            r#""\u0041\/""#,
            r#"{ "a" :  [1, 2 ] }"#,
            r#"{"a":1,"a":2}"#,
            r#""é😀\ud83d\ude00""#,
            "[]",
            "{}",
            r#""""#,
            &deep,
        ]
        .iter()
        .enumerate()
        {
            connection.queue_line(&format!(r#"{{"command":"SET","key":"value{n}","value":{value}}}"#));
            connection.queue_line(&format!(r#"{{"command":"GET","key":"value{n}"}}"#));
            connection.flush().expect("the server reads");
            assert_eq!(connection.receive_line().expect("a reply"), r#"{"status":"success","result":"OK"}"#);
            let reply = connection.receive_line().expect("a reply");
            assert_eq!(reply, format!(r#"{{"status":"success","result":{value}}}"#));
        }
    });
}

#[test]
fn keys_are_compared_after_unescaping() {
    with_server("keys", |server| {
        let mut connection = server.connect();
        for (written, read) in [
            (r"a", r"\u0061"),
            ("é", r"\u00e9"),
            ("😀", r"\ud83d\ude00"),
            (r"\n", r"\u000a"),
            (r"\u0000x", r"\u0000x"),
        ] {
            connection
                .queue_line(&format!(r#"{{"command":"SET","key":"{written}","value":"{}"}}"#, written.len()));
            connection.queue_line(&format!(r#"{{"command":"GET","key":"{read}"}}"#));
            connection.flush().expect("the server reads");
            assert_eq!(connection.receive().expect("a reply")["result"], "OK");
            assert_eq!(
                connection.receive().expect("a reply")["result"],
                written.len().to_string(),
                "{written}"
            );
        }
        let (longest, longer) = ("k".repeat(4096), "k".repeat(4097));
        assert_eq!(connection.get(&json!({"command": "SET", "key": longest, "value": 1})), "OK");
        assert_eq!(connection.get(&json!({"command": "GET", "key": longest})), 1);
        assert_eq!(connection.refusal(&json!({"command": "SET", "key": longer, "value": 1})), "TOO_LARGE");
        let empty = connection.refusal(&json!({"command": "GET", "key": ""}));
        assert!(["BAD_REQUEST", "TOO_LARGE"].contains(&empty.as_str()), "{empty}");
    });
}

#[test]
fn set_get_delete_exists() {
    with_server("set, get, delete, exists", |server| {
        let mut c = server.connect();
        let get = json!({"command": "GET", "key": "k"});
        assert_eq!(c.ask(&get), json!({"status": "success", "result": null, "found": false}));
        assert_eq!(c.get(&json!({"command": "EXISTS", "key": "k"})), false);
        assert_eq!(c.get(&json!({"command": "DELETE", "key": "k"})), false);
        assert_eq!(c.get(&json!({"command": "set", "key": "k", "value": null})), "OK");
        assert_eq!(c.ask(&get)["found"], Value::Null, "a stored null is found");
        assert_eq!(c.get(&json!({"command": "EXISTS", "key": "k"})), true);
        assert_eq!(c.get(&json!({"command": "EXISTS", "key": "k", "consistency": "local"})), true);
        assert_eq!(c.get(&json!({"command": "DELETE", "key": "k"})), true);
        assert_eq!(c.ask(&get)["found"], false);
    });
}

#[test]
fn versions_differ_after_every_write() {
    with_server("versions", |server| {
        let mut c = server.connect();
        let mut seen = std::collections::HashSet::new();
        for value in 0..20 {
            let reply = c.ask(&json!({"command": "SET", "key": "v", "value": value, "with_version": true}));
            let version = reply["version"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned();
            let read = c.ask(&json!({"command": "GET", "key": "v", "with_version": true}));
            assert_eq!(read["version"], *version);
            assert!(seen.insert(version), "a version came twice");
            if value % 3 == 0 {
                c.get(&json!({"command": "DELETE", "key": "v"}));
            }
        }
        let plain = c.ask(&json!({"command": "SET", "key": "v", "value": 1}));
        assert_eq!(plain.get("version"), None, "nobody asked for it");
    });
}

#[test]
fn conditions_hold_or_change_nothing() {
    with_server("conditions", |server| {
        let mut c = server.connect();
        let set = |value: u32, condition: Value| json!({"command": "SET", "key": "if", "value": value, "if": condition, "with_version": true});
        assert_eq!(c.refusal(&set(1, json!({"present": true}))), "CONFLICT");
        let first = c.ask(&set(1, json!({"absent": true})))["version"].clone();
        let conflict = c.ask(&set(2, json!({"absent": true})));
        assert_eq!((&conflict["code"], &conflict["version"]), (&json!("CONFLICT"), &first));
        let second = c.ask(&set(2, json!({"version": first})))["version"].clone();
        assert_ne!(first, second);
        assert_eq!(c.refusal(&set(3, json!({"version": first}))), "CONFLICT");
        assert_eq!(c.refusal(&set(3, json!({"value": 1}))), "CONFLICT");
        assert_eq!(c.get(&set(3, json!({"value": 2}))), "OK");
        assert_eq!(c.get(&json!({"command": "GET", "key": "if"})), 3);
        assert_eq!(c.refusal(&json!({"command": "DELETE", "key": "if", "if": {"value": 9}})), "CONFLICT");
        assert_eq!(c.get(&json!({"command": "DELETE", "key": "if", "if": {"value": 3}})), true);
        // A version of a former life of the key does not come back.
        assert_eq!(c.get(&set(2, json!({"absent": true}))), "OK");
        assert_eq!(c.refusal(&set(5, json!({"version": second}))), "CONFLICT");
        assert_eq!(c.refusal(&set(5, json!({"version": second, "absent": true}))), "BAD_REQUEST");
    });
}

#[test]
fn of_many_that_want_the_lock_one_has_it() {
    with_server("compare and set", |server| {
        let contend = |number: u64| {
            let mut connection = server.connect();
            let mut won = 0;
            for _ in 0..50 {
                let read = connection.ask(&json!({"command": "GET", "key": "lock", "with_version": true}));
                let condition = match read["version"].as_str() {
                    Some(version) if read["found"] != false => json!({"version": version}),
                    _ => json!({"absent": true}),
                };
                let value = read["result"].as_u64().unwrap_or(0) + 1;
                let reply = connection
                    .ask(&json!({"command": "SET", "key": "lock", "value": value, "if": condition}));
                won += u64::from(reply["status"] == "success");
                assert!(reply["status"] == "success" || reply["code"] == "CONFLICT", "{number}: {reply}");
            }
            won
        };
        let contend = &contend;
        let won: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|number| scope.spawn(move || contend(number))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no contender failed")).sum()
        });
        assert!(won >= 50);
        assert_eq!(server.get(&json!({"command": "GET", "key": "lock"})), won, "each success counted once");
    });
}

#[test]
fn counters() {
    with_server("counters", |server| {
        let mut c = server.connect();
        let mut incr = |amount: i64| c.ask(&json!({"command": "INCR", "key": "c", "amount": amount}));
        assert_eq!(incr(5)["result"], 5);
        assert_eq!(incr(-12)["result"], -7);
        assert_eq!(incr(i64::MIN)["code"], "OVERFLOW");
        assert_eq!(incr(7)["result"], 0);
        assert_eq!(incr(i64::MIN)["result"], i64::MIN);
        assert_eq!(incr(-1)["code"], "OVERFLOW");
        assert_eq!(incr(0)["result"], i64::MIN);
        for refused in ["1.0", "\"1\"", "1e2", "null", "[1]", "true"] {
            c.queue_line(&format!(r#"{{"command":"SET","key":"t","value":{refused}}}"#));
            c.flush().expect("the server reads");
            c.receive().expect("a reply");
            assert_eq!(c.refusal(&json!({"command": "INCR", "key": "t"})), "WRONG_TYPE", "{refused}");
            let kept = c.get(&json!({"command": "GET", "key": "t"}));
            assert_eq!(kept.to_string(), serde_json::from_str::<Value>(refused).expect("JSON").to_string());
        }
        for refused in [json!(1.5), json!("1"), json!(null), json!(9_223_372_036_854_775_808_u64)] {
            let code = c.refusal(&json!({"command": "INCR", "key": "c", "amount": refused}));
            assert!(["BAD_REQUEST", "OVERFLOW"].contains(&code.as_str()), "{refused}: {code}");
        }
    });
}

#[test]
fn times_to_live() {
    with_server("times to live", |server| {
        let mut c = server.connect();
        let ttl = |c: &mut Connection, key: &str| {
            c.get(&json!({"command": "TTL", "key": key})).as_i64().expect("an integer")
        };
        assert_eq!(ttl(&mut c, "t"), -2);
        assert_eq!(c.get(&json!({"command": "EXPIRE", "key": "t", "ttl_ms": 1000})), false);
        assert_eq!(c.get(&json!({"command": "PERSIST", "key": "t"})), false);
        c.get(&json!({"command": "SET", "key": "t", "value": 7, "ttl_ms": 60_000}));
        assert!((50_000..=60_000).contains(&ttl(&mut c, "t")));
        assert_eq!(c.get(&json!({"command": "INCR", "key": "t"})), 8);
        assert!((50_000..=60_000).contains(&ttl(&mut c, "t")), "INCR keeps it");
        c.get(&json!({"command": "SET", "key": "t", "value": 7}));
        assert_eq!(ttl(&mut c, "t"), -1, "SET clears it");
        assert_eq!(c.get(&json!({"command": "PERSIST", "key": "t"})), false);
        assert_eq!(c.get(&json!({"command": "EXPIRE", "key": "t", "ttl_ms": 50_000})), true);
        assert!((40_000..=50_000).contains(&ttl(&mut c, "t")));
        assert_eq!(c.get(&json!({"command": "PERSIST", "key": "t"})), true);
        assert_eq!(ttl(&mut c, "t"), -1);
        for bad in [json!(0), json!(-1), json!(1.5), json!("1")] {
            assert_eq!(c.refusal(&json!({"command": "EXPIRE", "key": "t", "ttl_ms": bad})), "BAD_REQUEST");
        }
        c.get(&json!({"command": "SET", "key": "t", "value": 1, "ttl_ms": u64::from(u32::MAX) * 1000}));
        assert!(ttl(&mut c, "t") > 4_000_000_000_000);
    });
}

#[test]
fn what_has_expired_is_absent_everywhere() {
    with_server("expiry", |server| {
        let mut c = server.connect();
        let began = Instant::now();
        let names =
            ["x:get", "x:exists", "x:incr", "x:delete", "x:if", "x:bulk", "x:scan", "x:ttl", "x:expire"];
        let requests: Vec<Value> = names
            .iter()
            .map(|key| json!({"command": "SET", "key": key, "value": 7, "ttl_ms": 300}))
            .collect();
        assert!(c.pipeline(&requests).iter().all(|reply| reply["result"] == "OK"));
        let early = c.ask(&json!({"command": "GET", "key": "x:get"}));
        if began.elapsed() < Duration::from_millis(250) {
            assert_eq!(early["result"], 7, "not before its time");
        }
        std::thread::sleep(Duration::from_millis(350));
        assert_eq!(c.ask(&json!({"command": "GET", "key": "x:get"}))["found"], false);
        assert_eq!(c.get(&json!({"command": "EXISTS", "key": "x:exists"})), false);
        assert_eq!(c.get(&json!({"command": "INCR", "key": "x:incr"})), 1);
        assert_eq!(c.get(&json!({"command": "DELETE", "key": "x:delete"})), false);
        assert_eq!(
            c.get(&json!({"command": "SET", "key": "x:if", "value": 1, "if": {"absent": true}})),
            "OK"
        );
        assert_eq!(c.get(&json!({"command": "BULK_GET", "keys": ["x:bulk"]})), json!({"x:bulk": null}));
        assert_eq!(c.get(&json!({"command": "TTL", "key": "x:ttl"})), -2);
        assert_eq!(c.get(&json!({"command": "EXPIRE", "key": "x:expire", "ttl_ms": 9})), false);
        let page = c.get(&json!({"command": "SCAN", "prefix": "x:s", "limit": 100}));
        assert_eq!(page["keys"], json!([]), "{page}");
    });
}

#[test]
fn the_time_to_live_goes_on_through_a_restart() {
    let _timed = timed("times to live through a restart");
    let setup = Setup::small("ttl");
    let server = setup.start();
    let mut c = server.connect();
    let began = Instant::now();
    c.get(&json!({"command": "SET", "key": "short", "value": 1, "ttl_ms": 400}));
    c.get(&json!({"command": "SET", "key": "long", "value": 1, "ttl_ms": 60_000}));
    server.kill();
    let server = setup.start();
    let mut c = server.connect();
    let left = c.get(&json!({"command": "TTL", "key": "long"})).as_i64().expect("an integer");
    assert!(left > 40_000 && left <= 60_000, "{left}");
    eventually("it expires", Duration::from_secs(5), || {
        c.ask(&json!({"command": "GET", "key": "short"}))["found"] == false
    });
    assert!(began.elapsed() >= Duration::from_millis(400), "not before its time");
    server.stop();
}

#[test]
fn bulks_take_all_three_forms() {
    with_server("bulks", |server| {
        let mut c = server.connect();
        assert_eq!(c.get(&json!({"command": "BULK_SET", "items": {"b1": 1, "b2": [2]}})), 2);
        assert_eq!(c.get(&json!({"command": "BULK_SET", "items": [["b2", 3], ["b3", 4], ["b2", 5]]})), 2);
        assert_eq!(c.get(&json!({"command": "BULK_SET", "items": [{"key": "b4", "value": null}]})), 1);
        assert_eq!(
            c.get(&json!({"command": "BULK_GET", "keys": ["b1", "b2", "b3", "b4", "b5", "b1"]})),
            json!({"b1": 1, "b2": 5, "b3": 4, "b4": null, "b5": null})
        );
        assert_eq!(c.get(&json!({"command": "BULK_DELETE", "keys": ["b1", "b5", "b1", "b4"]})), 2);
        assert_eq!(
            c.get(&json!({"command": "BULK_GET", "keys": ["b1", "b3"]})),
            json!({"b1": null, "b3": 4})
        );
        for empty in
            [json!({"command": "BULK_SET", "items": {}}), json!({"command": "BULK_DELETE", "keys": []})]
        {
            let reply = c.ask(&empty);
            assert!(reply["result"] == 0 || reply["code"] == "BAD_REQUEST", "{empty}: {reply}");
        }
        let many: serde_json::Map<String, Value> =
            (0..5_000).map(|n| (format!("many{n}"), json!(n))).collect();
        assert_eq!(c.get(&json!({"command": "BULK_SET", "items": many})), 5_000);
        let keys: Vec<&String> = many.keys().collect();
        assert_eq!(c.get(&json!({"command": "BULK_GET", "keys": keys})), Value::Object(many.clone()));
        assert_eq!(c.get(&json!({"command": "BULK_DELETE", "keys": keys})), 5_000);
    });
}

#[test]
fn a_retry_has_the_first_answer_also_after_a_restart() {
    let _timed = timed("retries through a restart");
    let setup = Setup::small("retry").with(&["--shards", "3"]);
    let server = setup.start();
    let requests = [
        json!({"command": "INCR", "key": "n", "client": "c", "seq": 1}),
        json!({"command": "SET", "key": "s", "value": 1, "client": "c", "seq": 2, "with_version": true}),
        json!({"command": "DELETE", "key": "s", "client": "c", "seq": 3}),
        json!({"command": "BULK_SET", "items": {"x": 1, "y": 1, "z": 1, "q": 1}, "client": "c", "seq": 4}),
        json!({"command": "BULK_DELETE", "keys": ["x", "y", "z"], "client": "c", "seq": 5}),
        json!({"command": "INCR", "key": "n", "client": "other", "seq": 1}),
    ];
    let mut c = server.connect();
    let first = c.pipeline(&requests);
    assert!(first.iter().all(|reply| reply["status"] == "success"), "{first:?}");
    c.get(&json!({"command": "SET", "key": "x", "value": "later"}));
    assert_eq!(c.pipeline(&requests), first, "at once");
    server.kill();
    let server = setup.start();
    let mut c = server.connect();
    assert_eq!(c.pipeline(&requests), first, "after a kill, from the log");
    let snapshot = c.ask(&json!({"command": "SNAPSHOT"}));
    assert_eq!(snapshot["status"], "success", "{snapshot}");
    server.stop();
    let server = setup.start();
    let mut c = server.connect();
    assert_eq!(c.pipeline(&requests), first, "after a stop, from the snapshot");
    assert_eq!(c.get(&json!({"command": "GET", "key": "n"})), 2);
    assert_eq!(c.get(&json!({"command": "GET", "key": "x"})), "later");
    let other = json!({"command": "SET", "key": "n", "value": 9, "client": "c", "seq": 1});
    assert_eq!(c.refusal(&other), "CONFLICT");
    assert_eq!(c.get(&json!({"command": "INCR", "key": "n", "client": "c", "seq": 9, "acked": 9})), 3);
    assert_eq!(c.refusal(&requests[0]), "SEQ_EXPIRED", "the client said that it had its answer");
    server.stop();
}

#[test]
fn a_client_that_never_says_what_it_has_is_remembered_within_bounds() {
    with_server("remembered replies", |server| {
        let mut c = server.connect();
        let incr = |seq: u64| json!({"command": "INCR", "key": "n", "client": "c", "seq": seq});
        for from in (1..=1500).step_by(500) {
            let requests: Vec<Value> = (from..from + 500).map(incr).collect();
            for (seq, reply) in (from..).zip(c.pipeline(&requests)) {
                assert_eq!(reply["result"], seq);
            }
        }
        assert_eq!(c.get(&incr(1500)), 1500);
        assert_eq!(c.get(&incr(1500 - 1000)), 500);
        assert_eq!(c.refusal(&incr(1)), "SEQ_EXPIRED");
        assert_eq!(c.get(&json!({"command": "GET", "key": "n"})), 1500);
    });
}

#[test]
fn ids_come_back_as_they_were() {
    with_server("ids", |server| {
        let mut c = server.connect();
        for id in ["7", "-7", r#""a\u0062""#, "12345678901234567890123", r#""""#] {
            c.queue_line(&format!(r#"{{"command":"PING","id":{id}}}"#));
            c.flush().expect("the server reads");
            let reply = c.receive_line().expect("a reply");
            assert!(reply.contains(&format!(r#""id":{id}"#)), "{id}: {reply}");
        }
        for id in [json!(1.5), json!(null), json!([1]), json!({"a": 1}), json!(true)] {
            assert_eq!(c.refusal(&json!({"command": "PING", "id": id})), "BAD_REQUEST", "{id}");
        }
        let reply = c.ask(&json!({"command": "GET", "kee": "x", "id": "mine"}));
        assert_eq!((&reply["code"], &reply["id"]), (&json!("BAD_REQUEST"), &json!("mine")), "{reply}");
    });
}

#[test]
fn hello_tells_what_a_client_needs() {
    with_server("hello", |server| {
        let hello = server.get(&json!({"command": "HELLO"}));
        let text = hello.to_string();
        for part in ["720896", "524288", "4096", "64", "100000", "1024", "10000", "node1"] {
            assert!(text.contains(part), "{part} is missing in {hello}");
        }
    });
}

#[test]
fn a_debug_fault_loses_nothing() {
    let _timed = timed("faults on request");
    let setup = Setup::small("faults");
    let server = setup.start();
    let mut c = server.connect();
    for from in (0..4000).step_by(500) {
        let sets: Vec<Value> = (from..from + 500)
            .map(|n| json!({"command": "SET", "key": format!("f{n}"), "value": n, "debug": true}))
            .collect();
        assert!(c.pipeline(&sets).iter().all(|reply| reply["result"] == "OK"));
    }
    assert_eq!(c.ask(&json!({"command": "SNAPSHOT"}))["status"], "success");
    server.kill();
    let server = setup.start();
    let mut c = server.connect();
    for from in (0..4000).step_by(500) {
        let gets: Vec<Value> =
            (from..from + 500).map(|n| json!({"command": "GET", "key": format!("f{n}")})).collect();
        for (n, reply) in (from..).zip(c.pipeline(&gets)) {
            assert_eq!(reply["result"], n);
        }
    }
    server.stop();
    let server = setup.set(&["debug.faults=false"]);
    let server = server.start();
    let mut c = server.connect();
    assert_eq!(c.refusal(&json!({"command": "SET", "key": "f", "value": 1, "debug": true})), "FORBIDDEN");
    assert_eq!(c.refusal(&json!({"command": "BULK_SET", "items": {"f": 1}, "debug": true})), "FORBIDDEN");
    assert_eq!(c.ask(&json!({"command": "GET", "key": "f"}))["found"], false);
}
