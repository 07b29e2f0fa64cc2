//! Promises of the protocol page that no other test holds: what a reply has and has not, what a start refuses, and what a
//! client meets while a server starts.

mod support;

use serde_json::{Value, json};
use std::time::Duration;
use support::client::Connection;
use support::server::Setup;
use support::{eventually, timed};

#[test]
fn a_line_that_is_no_json_is_answered_without_an_id() {
    let _timed = timed("ids of malformed lines");
    let setup = Setup::small("promises-ids");
    let server = setup.start();
    let mut c = server.connect();
    let mut ask = |line: &str| {
        c.queue_line(line);
        c.flush().expect("the server reads");
        c.receive().expect("a reply")
    };
    for line in [r#"{"id":7,"command":"PING""#, r#"{"id":7,"command":"PING"} x"#, r#"{"id":7,"key":nul}"#] {
        let reply = ask(line);
        assert_eq!((&reply["code"], reply.get("id")), (&json!("BAD_REQUEST"), None), "{line}: {reply}");
    }
    // What is JSON has its id, wherever it stands.
    for line in [
        r#"{"command":"NOPE","id":7}"#,
        r#"{"command":"GET","id":7}"#,
        r#"{"command":"GET","key":1,"id":7}"#,
        r#"{"command":"GET","key":"\ud800","id":7}"#,
        r#"{"command":"GET","key":"a","key":"b","id":7}"#,
        r#"{"command":"GET","\ud800":1,"id":7}"#,
    ] {
        let reply = ask(line);
        assert_eq!((&reply["status"], &reply["id"]), (&json!("error"), &json!(7)), "{line}: {reply}");
    }
    server.stop();
}

#[test]
fn a_pair_of_client_and_seq_names_one_request_on_whatever_key() {
    let _timed = timed("one pair, several shards");
    let setup = Setup::small("promises-pairs").with(&["--shards", "3"]);
    let server = setup.start();
    let mut c = server.connect();
    let set =
        |key: &str, seq: u64| json!({"command": "SET", "key": key, "value": 1, "client": "c", "seq": seq});
    assert_eq!(c.get(&set("first", 1)), "OK");
    for n in 0..20 {
        let other = format!("other{n}");
        assert_eq!(c.refusal(&set(&other, 1)), "CONFLICT", "{other}");
        assert_eq!(c.get(&json!({"command": "EXISTS", "key": other})), false);
    }
    let items: Value = (0..20).map(|n| json!([format!("bulk{n}"), n])).collect();
    let bulk = json!({"command": "BULK_SET", "items": items, "client": "c", "seq": 2});
    assert_eq!(c.get(&bulk), 20);
    let refused = (0..20).map(|n| c.refusal(&set(&format!("other{n}"), 2))).filter(|code| code == "CONFLICT");
    assert_eq!(refused.count(), 20);
    let sweep = json!({"command": "DELETE_PREFIX", "prefix": "bulk", "client": "c", "seq": 3});
    assert_eq!(c.get(&sweep), 20);
    assert_eq!(c.get(&sweep), 20, "a retry");
    let refused = (0..20).map(|n| c.refusal(&set(&format!("other{n}"), 3))).filter(|code| code == "CONFLICT");
    assert_eq!(refused.count(), 20);
    assert_eq!(c.get(&bulk), 20, "retries have their answers all the same");
    assert_eq!(c.get(&set("first", 1)), "OK");
    let largest = json!({"command": "SET", "key": "k", "value": 1, "client": "last", "seq": u64::MAX - 1});
    assert_eq!(c.get(&largest), "OK");
    assert_eq!(c.get(&largest), "OK");
    let beyond = json!({"command": "SET", "key": "k", "value": 2, "client": "last", "seq": u64::MAX});
    assert_eq!(c.refusal(&beyond), "BAD_REQUEST", "a number that could not be remembered is no number");
    server.stop();
}

#[test]
fn indexes_and_capabilities_are_listed_by_name() {
    let _timed = timed("names in lists");
    let setup = Setup::small("promises-names");
    let server = setup.start();
    let mut c = server.connect();
    assert_eq!(c.get(&json!({"command": "CREATE_INDEX", "field": "price"})), "OK");
    let list = c.get(&json!({"command": "LIST_INDEXES"}));
    for member in ["name", "kind", "state", "progress", "entries", "bytes"] {
        assert!(list[0].get(member).is_some(), "{member} is missing in {list}");
    }
    assert_eq!((&list[0]["name"], &list[0]["kind"]), (&json!("price"), &json!("value")));
    let capabilities = c.get(&json!({"command": "HELLO"}))["capabilities"].to_string();
    for name in ["unordered", "sessions", "atomic_bulk", "search", "hybrid_search", "vector_index"] {
        assert!(capabilities.contains(&format!("\"{name}\"")), "{name} is missing in {capabilities}");
    }
    server.stop();
}

#[test]
fn who_connects_while_a_server_starts_is_answered_when_it_is_ready() {
    let _timed = timed("connections during a start");
    let setup = Setup::small("promises-start").set(&["wal.segment_mib=16"]);
    let server = setup.start();
    let mut c = server.connect();
    // Enough log for a start that takes its time.
    for from in (0..40_000).step_by(4_000) {
        let items: Value = (from..from + 4_000).map(|n| json!([format!("k{n}"), "v".repeat(64)])).collect();
        assert_eq!(c.get(&json!({"command": "BULK_SET", "items": items, "timeout_ms": 60_000})), 4_000);
    }
    server.kill();
    for _ in 0..3 {
        // The kernel may hold a killed server's socket for a moment; who meets that one is cut off by the kill.
        std::thread::sleep(Duration::from_millis(300));
        let (ready, early) = std::thread::scope(|scope| {
            let starting = scope.spawn(|| setup.start());
            let mut early = None;
            eventually("a connection", Duration::from_secs(30), || {
                early = Connection::open(setup.port()).ok();
                early.is_some()
            });
            let mut early = early.expect("it is there");
            let reply = early.try_ask(&json!({"command": "GET", "key": "k39999"}));
            (starting.join().expect("it starts"), reply)
        });
        assert_eq!(early.expect("nobody is cut off")["result"], "v".repeat(64));
        ready.kill();
    }
}

#[test]
fn a_directory_whose_segments_are_too_small_for_the_line_is_refused_by_name() {
    let _timed = timed("lines and segments");
    let small = Setup::small("promises-segments");
    let server = small.start();
    // A line near the longest whose log record is longer than itself is taken.
    let keys: Vec<String> = (0..85_000).map(|n| format!("{n:x}")).collect();
    assert_eq!(server.get(&json!({"command": "BULK_DELETE", "keys": keys, "timeout_ms": 60_000})), 0);
    server.stop();
    let larger = small.set(&["limits.line_bytes_max=4194304", "wal.segment_mib=16"]);
    let ended = larger.try_start().map(drop).expect_err("2 MiB segments hold no such line");
    assert_eq!(ended.code(), Some(78), "{ended:?}");
    for part in ["wal.segment_mib = 2", "limits.line_bytes_max = 4194304", "Lower"] {
        assert!(ended.stderr.contains(part), "{part} is missing in {}", ended.stderr);
    }
    let fitting = larger.set(&["limits.line_bytes_max=720896"]);
    fitting.start().stop();
}
