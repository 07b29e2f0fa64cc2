//! The client libraries on a real cluster whose nodes are killed, come back, and are restarted one after another: no call
//! fails, counters are exact, every read sees the last write, and who asks for redirects talks to the leaders itself.
//!
//! The pause that a client sees is bounded too: a node that starts must not hold it up while others could serve it.

mod support;

use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use strand_client::{Client, ClientOptions};
use support::cluster::{Node, Trio};
use support::system::Signal;
use support::{say, timed};

/// Different keys of a client: enough that every shard has some.
const KEYS: usize = 24;
/// Longest that one call may take while a node dies or starts. The bound that is aimed at is two seconds; the rest is for a
/// machine that runs other tests beside this one.
const CALL_WITHIN: Duration = Duration::from_secs(6);

/// What a client did.
struct Done {
    requests: u64,
    longest: Duration,
}

/// Counts on its own keys until it is told to stop, and reads each count back.
fn work(name: &str, addresses: &[String], redirect: bool, stop: &AtomicBool) -> Done {
    let options = ClientOptions { redirect, timeout: Duration::from_secs(20), ..ClientOptions::default() };
    let mut client = Client::connect_with(addresses, options).expect("the options agree");
    let mut done = Done { requests: 0, longest: Duration::ZERO };
    let mut counts = [0_i64; KEYS];
    while !stop.load(Ordering::Acquire) {
        for (number, count) in counts.iter_mut().enumerate() {
            let key = format!("{name}-{number}");
            let begun = Instant::now();
            *count += 1;
            let found = client.incr(&key, 1).unwrap_or_else(|error| panic!("{name}: {error}"));
            done.longest = done.longest.max(begun.elapsed());
            done.requests += 1;
            assert_eq!(found, *count, "{key} counts each request once");
            let read = client.get(&key).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(read, Some(Value::from(*count)), "{key}: a read sees the last write");
        }
        let batch = (0..8).map(|number| (format!("{name}-batch-{number}"), counts[0]));
        let set = client.bulk_set(batch).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(set, 8);
    }
    done
}

fn answers(node: &Node) {
    node.until_it_answers();
    node.ask_until_success(&serde_json::json!({"command": "GET", "key": "any"}));
}

/// Kills each node and has it come back, then restarts each in good order.
fn disturb(trio: &Trio, nodes: &mut [Option<Node>]) {
    let breath = || std::thread::sleep(Duration::from_millis(700));
    for in_good_order in [false, true] {
        for (at, place) in nodes.iter_mut().enumerate() {
            breath();
            let node = place.take().expect("it runs");
            if in_good_order {
                node.signal(Signal::Terminate);
                assert_eq!(node.wait().code(), Some(0));
            } else {
                node.kill();
                std::thread::sleep(Duration::from_millis(1500));
            }
            let back = trio.spawn_without_peers(at);
            answers(&back);
            *place = Some(back);
        }
    }
    breath();
}

#[test]
fn clients_of_every_kind_notice_a_pause_and_no_error() {
    let _timed = timed("clients under failover");
    let trio = Trio::new("cluster-clients", &["--shards", "3"]);
    let mut nodes: Vec<Option<Node>> = (0..3).map(|at| Some(trio.spawn(at))).collect();
    nodes.iter().flatten().for_each(answers);
    let addresses: Vec<String> = (0..3).map(|at| format!("127.0.0.1:{}", trio.port(at))).collect();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python/tests/under_failover.py");
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut command = Command::new(python);
    command.arg(script).arg(addresses.join(",")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut in_python = command.spawn().expect("Python is there");

    let stop = AtomicBool::new(false);
    let rust = std::thread::scope(|scope| {
        let (addresses, stop) = (&addresses, &stop);
        let plain = scope.spawn(move || work("rust-plain", addresses, false, stop));
        let redirected = scope.spawn(move || work("rust-redirected", addresses, true, stop));
        disturb(&trio, &mut nodes);
        stop.store(true, Ordering::Release);
        [plain, redirected].map(|client| client.join().expect("no call fails"))
    });
    in_python.stdin.take().expect("it was piped").write_all(b"stop").expect("the script runs");
    let output = in_python.wait_with_output().expect("it ends");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}");
    let told: Value = serde_json::from_str(&told).expect("one JSON object");
    let mut longest: Vec<(String, u64, u64)> = ["plain", "redirected", "async"]
        .map(|name| {
            let figure = |what: &str| told[name][what].as_u64().expect("a figure");
            (format!("python {name}"), figure("requests"), figure("longest_ms"))
        })
        .to_vec();
    for (name, done) in ["rust plain", "rust redirected"].into_iter().zip(rust) {
        longest.push((name.to_owned(), done.requests, done.longest.as_millis() as u64));
    }
    say(&format!("requests and longest in ms: {longest:?}"));
    for (name, requests, longest_ms) in longest {
        assert!(requests > 200, "{name}: a load that does nothing proves nothing");
        assert!(Duration::from_millis(longest_ms) < CALL_WITHIN, "{name}: {longest_ms} ms");
    }
}
