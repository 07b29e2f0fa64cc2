//! What a client must not be able to do: break the server, or be noticed by other clients.
//!
//! During each attack a probe client goes on asking; every one of its answers must be right, and none may be long in coming.

mod support;

use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::client::{Connection, code_of};
use support::random::Random;
use support::server::{Server, Setup};
use support::system::{raise_open_files, resident_bytes};
use support::{eventually, from_environment, say, timed};

/// The longest that the probe may wait for an answer: generous, because the machine that runs tests is busy.
const PROBE_PATIENCE: Duration = Duration::from_secs(3);

/// Runs an attack while a probe writes and reads back, and stops the server in good order afterwards.
fn attack(name: &'static str, setup: &Setup, attack: impl FnOnce(&Server)) {
    let _timed = timed(name);
    let server = setup.start();
    let (enough, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let probe = || {
        let mut connection = server.connect();
        let mut slowest = Duration::ZERO;
        while !enough.load(Ordering::Acquire) {
            let n = asked.fetch_add(1, Ordering::Relaxed);
            let began = Instant::now();
            connection.get(&json!({"command": "SET", "key": "probe", "value": n}));
            assert_eq!(connection.get(&json!({"command": "GET", "key": "probe"})), n);
            slowest = slowest.max(began.elapsed());
            std::thread::sleep(Duration::from_millis(1));
        }
        slowest
    };
    let slowest = std::thread::scope(|scope| {
        let probing = scope.spawn(probe);
        eventually("the probe asks", Duration::from_secs(5), || asked.load(Ordering::Relaxed) > 3);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| attack(&server)));
        let before = asked.load(Ordering::Relaxed);
        if outcome.is_ok() && !probing.is_finished() {
            eventually("the probe goes on", Duration::from_secs(5), || {
                asked.load(Ordering::Relaxed) > before + 3 || probing.is_finished()
            });
        }
        enough.store(true, Ordering::Release);
        let slowest = probing.join().expect("the probe was answered");
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        slowest
    });
    assert!(slowest < PROBE_PATIENCE, "{name}: the probe waited {slowest:?}");
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
    server.stop();
}

fn refused(connection: &mut Connection, line: &[u8]) -> Value {
    let shown = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
    connection.send_bytes(line).and_then(|()| connection.send_bytes(b"\n")).expect("the server reads");
    let reply = connection.receive().unwrap_or_else(|error| panic!("{shown}: {error}"));
    assert!(code_of(&reply).is_some(), "{shown} -> {reply}");
    reply
}

#[test]
fn lines_that_are_no_requests_are_answered_and_the_connection_lives() {
    attack("malformed lines", &Setup::small("malformed"), |server| {
        let mut c = server.connect();
        let deep = |levels: usize| {
            format!(r#"{{"command":"SET","key":"k","value":{}1{}}}"#, "[".repeat(levels), "]".repeat(levels))
        };
        let mut lines: Vec<Vec<u8>> = [
            "{",
            "}",
            "[]",
            "null",
            "1",
            "\"PING\"",
            "{}",
            "{\"command\"}",
            "{\"command\":}",
            "{\"command\":1}",
            "{\"command\":null}",
            "{\"command\":\"PING\"}}",
            "{\"command\":\"PING\",}",
            "{\"command\":\"PING\"} {\"command\":\"PING\"}",
            "{'command':'PING'}",
            "{\"command\":\"PING\",\"command\":\"PING\"}",
            "{\"command\":\"\"}",
            "{\"command\":\"P\u{0}ING\"}",
            "GET / HTTP/1.1",
            "{\"command\":\"SET\",\"key\":\"k\"}",
            "{\"command\":\"SET\",\"value\":1}",
            "{\"command\":\"SET\",\"key\":1,\"value\":1}",
            "{\"command\":\"SET\",\"key\":\"k\",\"value\":}",
            "{\"command\":\"SET\",\"key\":\"k\",\"value\":01}",
            "{\"command\":\"SET\",\"key\":\"k\",\"value\":nul}",
            "{\"command\":\"SET\",\"key\":\"k\",\"value\":\"\\x\"}",
            "{\"command\":\"SET\",\"key\":\"k\",\"value\":1,\"value\":2}",
            "{\"command\":\"SET\",\"key\":\"k\",\"value\":1,\"valeu\":2}",
            "{\"command\":\"SET\",\"key\":\"\\ud800\",\"value\":1}",
            "{\"command\":\"SET\",\"key\":\"k\",\"value\":1,\"ttl_ms\":-1}",
            "{\"command\":\"SET\",\"key\":\"k\",\"value\":1,\"if\":{}}",
            "{\"command\":\"SET\",\"key\":\"k\",\"value\":1,\"if\":{\"absent\":false}}",
            "{\"command\":\"SET\",\"key\":\"k\",\"value\":1,\"client\":\"c\"}",
            "{\"command\":\"SET\",\"key\":\"k\",\"value\":1,\"seq\":1}",
            "{\"command\":\"BULK_SET\",\"items\":[[1,2]]}",
            "{\"command\":\"BULK_SET\",\"items\":[[\"a\"]]}",
            "{\"command\":\"BULK_SET\",\"items\":1}",
            "{\"command\":\"BULK_SET\",\"items\":[{\"key\":\"a\"}]}",
            "{\"command\":\"BULK_GET\",\"keys\":\"a\"}",
            "{\"command\":\"BULK_GET\",\"keys\":[1]}",
            "{\"command\":\"INCR\",\"key\":\"k\",\"amount\":1e3}",
            "{\"command\":\"SCAN\",\"limit\":-5}",
            "{\"command\":\"HELLO\",\"ordered\":\"no\"}",
        ]
        .iter()
        .map(|line| line.as_bytes().to_vec())
        .collect();
        lines.extend([65, 100, 5_000, 200_000].map(|levels| deep(levels).into_bytes()));
        lines.push(b"{\"command\":\"SET\",\"key\":\"\xff\xfe\",\"value\":1}".to_vec());
        lines.push(b"{\"command\":\"SET\",\"key\":\"k\",\"value\":\"\xc3\"}".to_vec());
        lines.push(b"\x00\x00\x00\x00".to_vec());
        lines.push(vec![b'{'; 300_000]);
        lines.push(vec![b'"'; 100_001]);
        for line in &lines {
            refused(&mut c, line);
        }
        assert_eq!(c.get(&json!({"command": "PING"})), "PONG", "the connection lives");
        assert_eq!(c.ask(&json!({"command": "GET", "key": "k"}))["found"], false, "nothing was stored");
        let near = refused(&mut c, br#"{"command":"SET","key":"k","valeu":2}"#);
        assert!(
            near["error"].as_str().is_some_and(|text| text.contains("value")),
            "the nearest name is told: {near}"
        );
        c.queue_line(&deep(60));
        c.flush().expect("the server reads");
        assert_eq!(c.receive().expect("a reply")["result"], "OK", "60 levels are allowed");
    });
}

#[test]
fn empty_lines_and_carriage_returns_do_no_harm() {
    attack("empty lines", &Setup::small("empty"), |server| {
        let mut c = server.connect();
        c.send_bytes(b"{\"command\":\"PING\"}\r\n").expect("the server reads");
        assert_eq!(c.receive().expect("a reply")["result"], "PONG");
        c.send_bytes(b"\n\r\n{\"command\":\"PING\",\"id\":1}\n").expect("the server reads");
        loop {
            let reply = c.receive().expect("a reply");
            if reply["id"] == 1 {
                assert_eq!(reply["result"], "PONG");
                break;
            }
            assert!(code_of(&reply).is_some(), "{reply}");
        }
    });
}

#[test]
fn chance_does_not_find_what_thought_did_not() {
    attack("mutated requests", &Setup::small("mutated"), |server| {
        let mut random = Random::new(from_environment("STRAND_SEED", 1));
        let seeds = [
            r#"{"command":"SET","key":"fuzz","value":{"a":[1,2,{"b":null}]},"ttl_ms":50,"if":{"absent":true},"id":7}"#,
            r#"{"command":"BULK_SET","items":[["fuzz1",1],["fuzz2","two"]],"client":"c","seq":1}"#,
            r#"{"command":"BULK_GET","keys":["fuzz","fuzz1","fuzz2"],"consistency":"local"}"#,
            r#"{"command":"SCAN","prefix":"fuzz","limit":10,"with_values":true}"#,
            r#"{"command":"INCR","key":"fuzz3","amount":-9223372036854775808}"#,
            r#"{"command":"SEARCH","query":"\"a phrase\"~2 +must -not (a OR b) pre* w~1 x^2","filter":{"and":[{"field":"p","gte":1}]}}"#,
            r#"{"command":"QUERY_INDEX","field":"price","gte":4,"order":"desc"}"#,
        ];
        let until = Instant::now() + Duration::from_millis(from_environment("STRAND_FUZZ_MS", 1500));
        let (mut c, mut lines) = (server.connect(), 0_u64);
        while Instant::now() < until {
            let mut batch = Vec::new();
            for _ in 0..50 {
                let mut line = seeds[usize::try_from(random.below(7)).expect("small")].as_bytes().to_vec();
                for _ in 0..=random.below(4) {
                    if line.is_empty() {
                        break;
                    }
                    let at = usize::try_from(random.below(line.len() as u64)).expect("small");
                    match random.below(4) {
                        0 => line[at] = random.next().to_le_bytes()[0],
                        1 => drop(line.remove(at)),
                        2 => line
                            .insert(at, b"{}[]\",:\\0-"[usize::try_from(random.below(10)).expect("small")]),
                        _ => line.truncate(at.max(1)),
                    }
                }
                line.retain(|byte| *byte != b'\n');
                batch.extend_from_slice(&line);
                batch.push(b'\n');
            }
            batch.extend_from_slice(b"{\"command\":\"PING\",\"id\":\"end\"}\n");
            c.send_bytes(&batch).expect("the server reads");
            loop {
                let reply = c.receive().expect("a reply");
                assert_ne!(reply["code"], "INTERNAL", "{reply}");
                if reply["id"] == "end" {
                    break;
                }
                lines += 1;
            }
            // A mutated line may be a HELLO or half of one; a new connection begins afresh.
            c = server.connect();
        }
        say(&format!("{lines} mutated lines answered"));
        assert!(lines > 500);
    });
}

/// A server with the line limit that ships.
fn with_full_lines(name: &str) -> Setup {
    let limits = ["wal.segment_mib=36", "limits.line_bytes_max=16777216", "limits.value_bytes_max=8388608"];
    Setup::small(name).with(&["--shards", "1"]).set(&limits)
}

#[test]
fn a_line_over_the_limit_is_answered_and_closed_without_keeping_it() {
    attack("lines over the limit", &with_full_lines("long-lines"), |server| {
        let before = resident_bytes(server.child());
        for newline in [true, false] {
            let mut c = server.connect();
            c.stream().set_write_timeout(Some(Duration::from_secs(20))).expect("a time that is not zero");
            let chunk = vec![b'x'; 1 << 20];
            c.send_bytes(br#"{"command":"SET","key":"k","value":""#).expect("the server reads");
            // Once the server has closed, the rest cannot be sent any more.
            let sent = (0..40).take_while(|_| c.stream().write_all(&chunk).is_ok()).count();
            assert!(sent >= 15, "{sent} MiB taken");
            if newline {
                let _ = c.stream().write_all(b"\"}\n");
            }
            match c.receive() {
                Ok(reply) => assert_eq!(reply["code"], "TOO_LARGE", "{reply}"),
                // What was sent after the close resets the connection, sometimes before the reply is read.
                Err(error) => {
                    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "no reply and no close");
                }
            }
            assert!(c.is_closed_within(Duration::from_secs(10)));
        }
        // The longest value that is allowed goes through.
        let mut c = server.connect();
        let value = "v".repeat((8 << 20) - 2);
        assert_eq!(
            c.get(&json!({"command": "SET", "key": "long", "value": value, "timeout_ms": 30_000})),
            "OK"
        );
        assert_eq!(c.get(&json!({"command": "GET", "key": "long", "timeout_ms": 30_000})), value);
        assert_eq!(
            c.refusal(&json!({"command": "SET", "key": "long", "value": format!("{value}v")})),
            "TOO_LARGE"
        );
        let grown = resident_bytes(server.child()).saturating_sub(before) >> 20;
        assert!(grown < 200, "{grown} MiB more than before");
    });
}

#[test]
fn half_a_line_and_then_nothing_is_closed_in_time() {
    let setup = Setup::small("half-line").set(&["timeouts.unfinished_line_s=1"]);
    attack("half a line", &setup, |server| {
        let mut silent = server.connect();
        let mut half = server.connect();
        half.send_bytes(br#"{"command":"SET","key":"half","va"#).expect("the server reads");
        let mut drip = server.connect();
        let began = Instant::now();
        let dripping = std::thread::spawn(move || {
            // A byte at a time, for ever, is an unfinished line too.
            for _ in 0..400 {
                if drip.send_bytes(b"x").is_err() {
                    return true;
                }
                std::thread::sleep(Duration::from_millis(25));
            }
            drip.is_closed_within(Duration::from_millis(100))
        });
        assert!(half.is_closed_within(Duration::from_secs(8)), "an unfinished line is closed");
        assert!(began.elapsed() >= Duration::from_millis(900), "not before its time: {:?}", began.elapsed());
        assert!(dripping.join().expect("the sender did not fail"), "a slow sender is closed");
        assert_eq!(silent.get(&json!({"command": "PING"})), "PONG", "one that has begun no line is not");
    });
}

#[test]
fn thousands_of_idle_connections_cost_little() {
    let wanted = from_environment("STRAND_CONNECTIONS", 5_000);
    let allowed = raise_open_files(wanted + 500).saturating_sub(500).min(wanted);
    attack("idle connections", &Setup::small("idle"), |server| {
        assert!(allowed >= 500, "this test needs more open files: ulimit -n");
        let before = resident_bytes(server.child());
        let mut idle: Vec<TcpStream> = (0..allowed)
            .map(|n| {
                TcpStream::connect(("127.0.0.1", server.port()))
                    .unwrap_or_else(|e| panic!("connection {n}: {e}"))
            })
            .collect();
        for stream in idle.iter_mut().step_by(500) {
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time that is not zero");
            stream.write_all(b"{\"command\":\"PING\"}\n").expect("the server reads");
            let expected = b"{\"status\":\"success\",\"result\":\"PONG\"}\n";
            let mut answer = vec![0; expected.len()];
            stream.read_exact(&mut answer).expect("a reply");
            assert_eq!(answer, expected);
        }
        let each = resident_bytes(server.child()).saturating_sub(before) / allowed;
        say(&format!("{allowed} idle connections, {each} bytes each"));
        assert!(each < 32 << 10, "{each} bytes for an idle connection");
    });
}

#[test]
fn beyond_the_most_connections_one_more_is_told_so() {
    let setup = Setup::small("most").set(&["limits.connections_max=20"]);
    attack("most connections", &setup, |server| {
        // An answer shows that a connection was taken and does not wait where several threads take them.
        let held: Vec<Connection> = (0..19)
            .map(|_| {
                let mut connection = server.connect();
                assert_eq!(connection.get(&json!({"command": "PING"})), "PONG");
                connection
            })
            .collect();
        eventually("one more is refused", Duration::from_secs(5), || {
            let mut more = server.connect();
            more.receive().is_ok_and(|reply| reply["code"] == "OVERLOADED")
        });
        drop(held);
        eventually("there is room again", Duration::from_secs(5), || {
            let mut again = server.connect();
            again.try_ask(&json!({"command": "PING"})).is_ok_and(|reply| reply["result"] == "PONG")
        });
    });
}

#[test]
fn a_client_that_never_reads_is_held_back_and_closed() {
    let setup =
        Setup::small("never-reads").set(&["timeouts.slow_reader_s=2", "limits.output_bytes_max=262144"]);
    attack("a client that never reads", &setup, |server| {
        let value = "v".repeat(100_000);
        server.get(&json!({"command": "SET", "key": "big", "value": value}));
        let before = resident_bytes(server.child());
        let mut greedy = server.connect();
        greedy.stream().set_write_timeout(Some(Duration::from_millis(300))).expect("a time that is not zero");
        let line = b"{\"command\":\"GET\",\"key\":\"big\"}\n".repeat(1000);
        // The server stops reading long before 1,000,000 requests (30 MB, more than the kernel's buffers hold; 100 GB of
        // replies) have been taken.
        let taken = (0..1000).take_while(|_| greedy.stream().write_all(&line).is_ok()).count();
        assert!(taken < 1000, "everything was taken");
        let grown = resident_bytes(server.child()).saturating_sub(before) >> 20;
        assert!(grown < 64, "{grown} MiB for a client that does not read");
        std::thread::sleep(Duration::from_secs(4));
        greedy.stream().set_write_timeout(Some(Duration::from_secs(2))).expect("a time that is not zero");
        let closed = (0..400).any(|_| {
            greedy.stream().write_all(&line).is_err_and(|error| {
                !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
            })
        });
        assert!(closed || greedy.is_closed_within(Duration::from_secs(5)), "it is closed in the end");
    });
}

#[test]
fn clients_that_come_and_go_leave_nothing_behind() {
    attack("clients that come and go", &Setup::small("come-and-go"), |server| {
        for round in 0..from_environment("STRAND_CLIENTS", 600) {
            let mut c = server.connect();
            match round % 4 {
                // Gone with requests in flight.
                0 => (0..50).for_each(|n| c.queue(&json!({"command": "SET", "key": format!("gone{n}"), "value": n}))),
                // Gone in the middle of a line.
                1 => c.send_bytes(b"{\"command\":\"BULK_SET\",\"ite").expect("the server reads"),
                // Nothing more to send, but the answers are wanted.
                2 => {
                    (0..20).for_each(|n| c.queue(&json!({"command": "BULK_GET", "keys": [format!("gone{n}"), "other"]})));
                    c.finish_sending().expect("the server reads");
                    for _ in 0..20 {
                        assert_eq!(c.receive().expect("a reply")["status"], "success");
                    }
                    assert!(c.is_closed_within(Duration::from_secs(10)), "both sides are done");
                }
                _ => c.queue(&json!({"command": "BULK_SET", "items": {"gone1": round, "gone2": round, "gone3": round}})),
            }
            let _ = c.flush();
        }
        eventually("everything is given back", Duration::from_secs(10), || {
            let open =
                std::fs::read_dir(format!("/proc/{}/fd", server.child().id())).expect("it is alive").count();
            open < 100
        });
    });
}
