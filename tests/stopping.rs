//! How a server ends: signals, SHUTDOWN, exit codes, and what its log lines look like.

mod support;

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::server::Setup;
use support::system::Signal;
use support::{eventually, timed};

/// Sends many writes, stops the server by `stop` while they are under way, and finds afterwards every one that was answered.
fn stops_with_everything_acknowledged(name: &'static str, stop: impl Fn(&support::server::Server)) {
    let setup = Setup::small(name).with(&["--shards", "3"]);
    let server = setup.start();
    let mut c = server.connect();
    let mut answered = Vec::new();
    let mut refused = 0;
    let began = Instant::now();
    let mut stopped = false;
    'load: for n in 0_u64.. {
        for m in 0..50 {
            let key = format!("k{n}-{m}");
            if m % 10 == 0 {
                c.queue(&json!({"command": "BULK_SET", "items": {&key: n, format!("{key}b"): n, format!("{key}c"): n}}));
            } else {
                c.queue(&json!({"command": "SET", "key": key, "value": n}));
            }
        }
        if c.flush().is_err() {
            break;
        }
        // Not before there was load: on a busy machine a batch may take as long as this.
        if !stopped && began.elapsed() > Duration::from_millis(100) && answered.len() > 100 {
            stop(&server);
            stopped = true;
        }
        for m in 0..50 {
            match c.receive() {
                Ok(reply) if reply["status"] == "success" => answered.push((format!("k{n}-{m}"), n)),
                Ok(reply) => {
                    assert_eq!(reply["code"], "SHUTTING_DOWN", "{reply}");
                    refused += 1;
                }
                Err(_) => break 'load,
            }
        }
        assert!(began.elapsed() < Duration::from_secs(20), "it goes on serving");
    }
    let ended = server.wait();
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    support::say(&format!("{name}: {} answered, {refused} refused", answered.len()));
    assert!(answered.len() > 100, "there was load");
    let server = setup.start();
    let mut c = server.connect();
    for part in answered.chunks(500) {
        let gets: Vec<Value> = part.iter().map(|(key, _)| json!({"command": "GET", "key": key})).collect();
        for ((key, value), reply) in part.iter().zip(c.pipeline(&gets)) {
            assert_eq!(reply["result"], *value, "{key}");
        }
    }
    server.stop();
}

#[test]
fn sigterm_drains_and_loses_nothing() {
    let _timed = timed("SIGTERM under load");
    stops_with_everything_acknowledged("sigterm", |server| server.signal(Signal::Terminate));
}

#[test]
fn sigint_does_the_same() {
    let _timed = timed("SIGINT under load");
    stops_with_everything_acknowledged("sigint", |server| server.signal(Signal::Interrupt));
}

#[test]
fn the_command_shutdown_does_the_same() {
    let _timed = timed("SHUTDOWN under load");
    stops_with_everything_acknowledged("shutdown", |server| {
        assert_eq!(server.connect().ask(&json!({"command": "SHUTDOWN"}))["status"], "success");
    });
}

#[test]
fn idle_connections_do_not_delay_the_end() {
    let _timed = timed("a stop with idle connections");
    let setup = Setup::small("idle-stop");
    let server = setup.start();
    let mut idle: Vec<_> = (0..50).map(|_| server.connect()).collect();
    assert_eq!(idle[0].get(&json!({"command": "PING"})), "PONG");
    let mut half = server.connect();
    half.send_bytes(b"{\"command\":\"SE").expect("the server reads");
    let began = Instant::now();
    server.stop();
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert!(idle[1].is_closed_within(Duration::from_secs(2)));
}

#[test]
fn a_second_signal_stops_at_once() {
    let _timed = timed("a second signal");
    let setup = Setup::small("twice").set(&["timeouts.drain_s=30"]);
    let server = setup.start();
    let mut c = server.connect();
    c.get(&json!({"command": "SET", "key": "k", "value": 1}));
    let mut slow = server.connect();
    // Replies that nobody reads keep the drain waiting.
    let value = "v".repeat(400_000);
    slow.get(&json!({"command": "SET", "key": "big", "value": value}));
    for _ in 0..200 {
        slow.queue(&json!({"command": "GET", "key": "big"}));
    }
    slow.flush().expect("the server reads");
    std::thread::sleep(Duration::from_millis(100));
    server.signal(Signal::Terminate);
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    server.signal(Signal::Terminate);
    let ended = server.wait();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(ended.code(), Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("second signal"), "{}", ended.stderr);
    let server = setup.start();
    assert_eq!(server.get(&json!({"command": "GET", "key": "k"})), 1);
    server.stop();
}

#[test]
fn a_new_connection_during_the_drain_is_not_taken() {
    let _timed = timed("connections during the drain");
    let setup = Setup::small("drain");
    let server = setup.start();
    server.signal(Signal::Terminate);
    let port = server.port();
    let ended = server.wait();
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    assert!(support::client::Connection::open(port).is_err(), "nobody listens any more");
}

#[test]
fn log_lines_are_json_when_stderr_is_a_file() {
    let _timed = timed("log lines");
    let setup = Setup::small("lines");
    let server = setup.start();
    server.get(&json!({"command": "SET", "key": "a-secret-key", "value": "a-secret-value"}));
    server.connect().ask(&json!({"command": "GET", "kee": "a-secret-key"}));
    let ended = server.stop();
    let mut messages = Vec::new();
    for line in ended.stderr.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for name in ["timestamp", "level", "message"] {
            assert!(line[name].is_string(), "{name} is missing in {line}");
        }
        messages.push(line["message"].to_string());
    }
    assert!(messages.iter().any(|message| message.contains("serving")), "{messages:?}");
    assert!(!ended.stderr.contains("a-secret"), "nothing that clients store is logged");
    let server = setup.with(&["--log-format", "text"]);
    let ended = server.start().stop();
    assert!(ended.stderr.lines().all(|line| !line.starts_with('{')), "{}", ended.stderr);
}

#[test]
fn what_is_wrong_is_told_with_its_exit_code() {
    let _timed = timed("exit codes");
    let bare = |name: &str| Setup::small(name);
    let check = |setup: &Setup, code: i32, part: &str| {
        let ended = setup.try_start().expect_err("it must not start");
        assert_eq!(ended.code(), Some(code), "{ended:#?}");
        assert!(ended.stderr.contains(part), "{part:?} is missing in {}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    };
    check(&bare("usage").with(&["--prot", "1"]), 2, "--prot");
    check(&bare("range").set(&["wal.segment_mib=1"]), 78, "wal.segment_mib");
    check(&bare("unknown").set(&["wal.segmnt_mib=4"]), 78, "wal.segment_mib");
    check(&bare("host").with(&["--host", "0.0.0.0"]), 78, "--insecure");
    let file = bare("file");
    std::fs::write(file.data(), "a file where a directory should be").expect("it can be written");
    check(&file, 78, "data");
    let foreign = bare("foreign");
    std::fs::create_dir_all(foreign.data().join("shard-0000")).expect("it can be made");
    std::fs::write(foreign.data().join("shard-0000/wal-00000001.seg"), [0; 4096]).expect("it can be written");
    let ended = foreign.try_start().expect_err("files of shards without strand.meta");
    assert!(ended.stderr.contains("strand.meta"), "{}", ended.stderr);
    assert!([70, 78].contains(&ended.code().unwrap_or(0)), "{ended:#?}");
}

#[test]
fn a_server_that_was_stopped_starts_again_and_again() {
    let _timed = timed("restarts");
    let setup = Setup::small("again");
    for round in 0..8 {
        let server = setup.start();
        let count = server.get(&json!({"command": "INCR", "key": "starts"}));
        assert_eq!(count, round + 1);
        if round % 2 == 0 { server.kill() } else { drop(server.stop()) }
    }
    let segments = support::directory::files(&setup.data());
    let segments = segments.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "seg")).count();
    eventually("few files", Duration::from_secs(1), || segments < 2 * 14);
}

#[test]
fn an_index_that_is_being_built_is_not_waited_for() {
    let _timed = timed("stopping while an index is built");
    let setup = Setup::small("stop-index").set(&["timeouts.drain_s=1"]);
    let server = setup.start();
    let mut c = server.connect();
    let text = "silver metal river stone quick brown fox jumps over the lazy dog ".repeat(6);
    for from in (0..40_000).step_by(1_000) {
        let items: Value =
            (from..from + 1_000).map(|n| json!([format!("k{n}"), format!("{text} {n}")])).collect();
        assert_eq!(c.get(&json!({"command": "BULK_SET", "items": items, "timeout_ms": 60_000})), 1_000);
    }
    // Both wait for indexes that begin now; nobody hears their answers.
    c.queue(&json!({"command": "SEARCH", "query": "silver"}));
    c.queue(&json!({"command": "SEMANTIC_SEARCH", "query": "silver", "model": "embedding"}));
    c.flush().expect("the server reads");
    std::thread::sleep(Duration::from_millis(200));
    let asked = Instant::now();
    server.stop();
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    let server = setup.start();
    assert_eq!(server.get(&json!({"command": "GET", "key": "k39999"})), format!("{text} 39999"));
    server.stop();
}
