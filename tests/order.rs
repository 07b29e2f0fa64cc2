//! Order: replies in the order of the requests, effects in the order of a connection, batches seen whole, scans complete.

mod support;

use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::random::Random;
use support::server::{Server, Setup};
use support::{from_environment, timed};

/// Runs a test against a server of its own, which must then stop in good order.
fn with_server(name: &'static str, test: impl FnOnce(&Server)) {
    let _timed = timed(name);
    let setup = Setup::small("order").with(&["--shards", "3"]);
    let server = setup.start();
    test(&server);
    server.stop();
}

#[test]
fn a_mixed_pipeline_is_answered_as_if_one_by_one() {
    with_server("mixed pipelines", |server| {
        let seed = from_environment("STRAND_SEED", 1);
        let (mut random, mut model) = (Random::new(seed), HashMap::<String, Value>::new());
        let mut c = server.connect();
        for round in 0..20 {
            let mut requests = Vec::new();
            let mut expected = Vec::new();
            for _ in 0..300 {
                let key = format!("k{}", random.below(12));
                let (request, result) = step(&mut random, &mut model, &key);
                requests.push(request);
                expected.push(result);
            }
            for ((request, expected), reply) in requests.iter().zip(expected).zip(c.pipeline(&requests)) {
                assert_eq!(reply["result"], expected, "seed {seed}, round {round}: {request} -> {reply}");
            }
        }
    });
}

/// A random request and the result it must have after those before it.
fn step(random: &mut Random, model: &mut HashMap<String, Value>, key: &str) -> (Value, Value) {
    let value = json!(random.below(1_000_000));
    let current = model.get(key).cloned();
    match random.below(12) {
        0..4 => {
            model.insert(key.to_owned(), value.clone());
            (json!({"command": "SET", "key": key, "value": value}), json!("OK"))
        }
        4..7 => (json!({"command": "GET", "key": key}), current.unwrap_or_default()),
        7 => (json!({"command": "DELETE", "key": key}), json!(model.remove(key).is_some())),
        8 => {
            let next = json!(current.and_then(|value| value.as_i64()).unwrap_or(0) + 3);
            model.insert(key.to_owned(), next.clone());
            (json!({"command": "INCR", "key": key, "amount": 3}), next)
        }
        9 => {
            let keys: Vec<String> = (0..4).map(|n| format!("k{n}")).collect();
            keys.iter().for_each(|key| drop(model.insert(key.clone(), value.clone())));
            let items: Map<String, Value> = keys.into_iter().map(|key| (key, value.clone())).collect();
            (json!({"command": "BULK_SET", "items": items}), json!(4))
        }
        10 => {
            let keys: Vec<String> = (2..6).map(|n| format!("k{n}")).collect();
            let deleted = keys.iter().filter(|key| model.remove(*key).is_some()).count();
            (json!({"command": "BULK_DELETE", "keys": keys}), json!(deleted))
        }
        _ => {
            let keys: Vec<String> = (0..12).map(|n| format!("k{n}")).collect();
            let found = |key: &String| (key.clone(), model.get(key).cloned().unwrap_or_default());
            let result: Map<String, Value> = keys.iter().map(found).collect();
            (json!({"command": "BULK_GET", "keys": keys}), Value::Object(result))
        }
    }
}

#[test]
fn a_scan_sees_the_writes_before_it_in_the_pipeline() {
    with_server("scans in a pipeline", |server| {
        let mut c = server.connect();
        for round in 0..20 {
            let mut requests: Vec<Value> = (0..30)
                .map(|n| json!({"command": "SET", "key": format!("r{round}:{n}"), "value": n}))
                .collect();
            let prefix = format!("r{round}:");
            requests.push(json!({"command": "SCAN", "prefix": prefix, "limit": 1000, "with_values": true}));
            requests.push(json!({"command": "DELETE_PREFIX", "prefix": prefix}));
            requests.push(json!({"command": "GET", "key": format!("r{round}:7")}));
            let replies = c.pipeline(&requests);
            assert_eq!(replies[31]["result"], 30, "{}", replies[31]);
            assert_eq!(replies[32]["found"], false);
        }
    });
}

#[test]
fn unordered_replies_carry_their_ids() {
    with_server("unordered replies", |server| {
        let mut c = server.connect();
        assert_eq!(c.ask(&json!({"command": "HELLO", "ordered": false, "id": 1}))["id"], 1);
        assert_eq!(c.refusal(&json!({"command": "PING"})), "BAD_REQUEST", "every request needs an id");
        let sets: Vec<Value> = (0..500)
            .map(|n| json!({"command": "SET", "key": format!("u{n}"), "value": n, "id": n}))
            .collect();
        let ids: HashSet<u64> = c.pipeline(&sets).iter().filter_map(|reply| reply["id"].as_u64()).collect();
        assert_eq!(ids.len(), 500);
        let gets: Vec<Value> = (0..500)
            .map(|n| json!({"command": "GET", "key": format!("u{n}"), "id": format!("g{n}")}))
            .collect();
        let mut answered = HashSet::new();
        for reply in c.pipeline(&gets) {
            assert_eq!(reply["id"], format!("g{}", reply["result"]), "{reply}");
            assert!(answered.insert(reply["id"].to_string()));
        }
        // A new HELLO resets what it does not name.
        c.get(&json!({"command": "HELLO", "id": "back"}));
        assert_eq!(c.get(&json!({"command": "PING"})), "PONG");
    });
}

#[test]
fn acknowledged_writes_are_seen_by_everybody() {
    with_server("linearizable reads", |server| {
        let (mut writer, mut reader) = (server.connect(), server.connect());
        for n in 0..300 {
            writer.get(&json!({"command": "SET", "key": "seen", "value": n}));
            assert_eq!(reader.get(&json!({"command": "GET", "key": "seen"})), n);
            writer.get(&json!({"command": "BULK_SET", "items": {"s1": n, "s2": n, "s3": n, "s4": n}}));
            assert_eq!(reader.get(&json!({"command": "GET", "key": "s3"})), n);
        }
    });
}

#[test]
fn no_reader_sees_half_a_batch() {
    with_server("batches are seen whole", |server| {
        let keys: Vec<String> = (0..9).map(|n| format!("batch{n}")).collect();
        let enough = AtomicBool::new(false);
        let until = Instant::now() + Duration::from_millis(from_environment("STRAND_BATCH_MS", 1500));
        let write = |writer: u64| {
            let (mut c, mut tag) = (server.connect(), 0_u64);
            while Instant::now() < until {
                let batch = |tag: u64| {
                    let items: Map<String, Value> =
                        keys.iter().map(|key| (key.clone(), json!(tag * 10 + writer))).collect();
                    json!({"command": "BULK_SET", "items": items, "timeout_ms": 30_000})
                };
                let requests: Vec<Value> = (tag..tag + 4).map(batch).collect();
                for reply in c.pipeline(&requests) {
                    assert_eq!(reply["result"], 9, "{reply}");
                }
                tag += 4;
            }
            tag
        };
        let read = || {
            let (mut c, mut rounds) = (server.connect(), 0_u64);
            let mut newest = HashMap::new();
            while !enough.load(Ordering::Acquire) {
                let reply = c.ask(&json!({"command": "BULK_GET", "keys": keys, "timeout_ms": 30_000}));
                assert_eq!(reply["status"], "success", "{reply}");
                let found = &reply["result"];
                assert!(keys.iter().all(|key| found[key] == found[&keys[0]]), "half a batch: {found}");
                // What one writer writes comes in its order.
                if let Some(tag) = found[&keys[0]].as_u64() {
                    let before = newest.insert(tag % 10, tag).unwrap_or(0);
                    assert!(before <= tag, "{tag} after {before}");
                }
                rounds += 1;
            }
            rounds
        };
        let (write, read) = (&write, &read);
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..2).map(|_| scope.spawn(read)).collect();
            let writers: Vec<_> = (0..2).map(|writer| scope.spawn(move || write(writer))).collect();
            let written: Vec<u64> =
                writers.into_iter().map(|writer| writer.join().expect("no writer failed")).collect();
            enough.store(true, Ordering::Release);
            let rounds: u64 =
                readers.into_iter().map(|reader| reader.join().expect("no reader failed")).sum();
            support::say(&format!("batches written {written:?}, snapshots read {rounds}"));
            assert!(written.iter().all(|written| *written > 20) && rounds > 20);
        });
    });
}

#[test]
fn a_scan_returns_what_stays_exactly_once() {
    with_server("scans under writes", |server| {
        const STAYING: usize = 6_000;
        let mut c = server.connect();
        for from in (0..STAYING).step_by(500) {
            let items: Map<String, Value> =
                (from..from + 500).map(|n| (format!("stay:{n}"), json!(n))).collect();
            assert_eq!(c.get(&json!({"command": "BULK_SET", "items": items})), 500);
        }
        let enough = AtomicBool::new(false);
        let churn = || {
            let (mut c, mut n) = (server.connect(), 0_u64);
            while !enough.load(Ordering::Acquire) {
                let requests: Vec<Value> = (n..n + 100)
                    .flat_map(|n| {
                        [
                            json!({"command": "SET", "key": format!("stay:new{n}"), "value": n}),
                            json!({"command": "SET", "key": format!("stay:{}", n % 100), "value": n}),
                            json!({"command": "DELETE", "key": format!("stay:new{}", n.saturating_sub(50))}),
                        ]
                    })
                    .collect();
                assert!(c.pipeline(&requests).iter().all(|reply| reply["status"] == "success"));
                n += 100;
            }
        };
        std::thread::scope(|scope| {
            let churning = scope.spawn(churn);
            for limit in [37, 1000, 10_000] {
                let mut seen = HashSet::new();
                let mut request = json!({"command": "SCAN", "prefix": "stay:", "limit": limit});
                let mut pages = 0;
                loop {
                    let page = c.get(&request);
                    let keys = page["keys"].as_array().unwrap_or_else(|| panic!("{page}"));
                    assert!(keys.len() <= limit, "{} keys for a limit of {limit}", keys.len());
                    for key in keys.iter().filter_map(Value::as_str) {
                        let stays = key.trim_start_matches("stay:").parse::<usize>().is_ok();
                        assert!(seen.insert(key.to_owned()) || !stays, "{key} came twice");
                    }
                    pages += 1;
                    assert!(pages < 2_000, "the scan does not end");
                    if page["cursor"].is_null() {
                        break;
                    }
                    request["cursor"] = page["cursor"].clone();
                }
                let missing: Vec<usize> =
                    (0..STAYING).filter(|n| !seen.contains(&format!("stay:{n}"))).collect();
                assert!(missing.is_empty(), "limit {limit}: {} keys are missing", missing.len());
            }
            enough.store(true, Ordering::Release);
            churning.join().expect("the writer did not fail");
        });
        let deleted = c.get(&json!({"command": "DELETE_PREFIX", "prefix": "stay:"}));
        assert!(deleted.as_u64().is_some_and(|deleted| deleted >= STAYING as u64), "{deleted}");
        let page = c.get(&json!({"command": "SCAN", "prefix": "stay:"}));
        assert_eq!(page["keys"], json!([]), "nothing is left");
        assert_eq!(c.get(&json!({"command": "DELETE_PREFIX", "prefix": "stay:"})), 0);
    });
}

#[test]
fn a_cursor_that_is_none_is_refused() {
    with_server("cursors", |server| {
        let mut c = server.connect();
        for cursor in ["x", "", "AAAA", "9999999999", "🦀"] {
            let reply = c.ask(&json!({"command": "SCAN", "cursor": cursor}));
            assert!(reply["code"] == "BAD_REQUEST" || reply["status"] == "success", "{cursor}: {reply}");
        }
        assert_eq!(c.refusal(&json!({"command": "SCAN", "cursor": 7})), "BAD_REQUEST");
        assert_eq!(c.refusal(&json!({"command": "SCAN", "limit": 0})), "BAD_REQUEST");
        assert_eq!(c.get(&json!({"command": "PING"})), "PONG");
    });
}

#[test]
fn a_request_that_cannot_be_done_in_time_says_so() {
    with_server("deadlines", |server| {
        let mut c = server.connect();
        for bad in [json!(0), json!(-1), json!("5"), json!(1.5), json!(u64::MAX)] {
            let reply = c.ask(&json!({"command": "GET", "key": "k", "timeout_ms": bad}));
            assert!(
                ["BAD_REQUEST", "TOO_LARGE"].contains(&reply["code"].as_str().unwrap_or("none")),
                "{bad}: {reply}"
            );
        }
        assert_eq!(c.ask(&json!({"command": "GET", "key": "k", "timeout_ms": 1000}))["found"], false);
        // With a millisecond each, requests are answered or say that it was too short; the outcome is then unknown.
        let requests: Vec<Value> = (0..500)
            .map(|n| json!({"command": "INCR", "key": format!("t{}", n % 7), "timeout_ms": 1}))
            .collect();
        let (mut done, mut late) = (0, 0);
        for reply in c.pipeline(&requests) {
            match reply["code"].as_str() {
                None => done += 1,
                Some("TIMEOUT") => {
                    assert_eq!((&reply["outcome"], &reply["retry"]), (&json!("unknown"), &json!("same_seq")));
                    late += 1;
                }
                Some(_) => panic!("{reply}"),
            }
        }
        let keys: Vec<String> = (0..7).map(|n| format!("t{n}")).collect();
        let found = c.get(&json!({"command": "BULK_GET", "keys": keys}));
        let counted: i64 = keys.iter().filter_map(|key| found[key].as_i64()).sum();
        assert!(done <= counted && counted <= done + late, "{done} done, {late} late, {counted} counted");
    });
}
