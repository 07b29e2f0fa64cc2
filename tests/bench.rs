//! The load generator tells the truth: an open loop omits nothing, connections are spread, what fails is told.

mod support;

use serde_json::{Value, json};
use std::process::{Command, Output};
use std::time::Duration;
use support::server::{Server, Setup, free_port};
use support::system::Signal;
use support::timed;

/// How long the server stands still while it is loaded.
const STALL: Duration = Duration::from_millis(200);

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strand"));
    command.arg("bench").args(arguments).arg("--json");
    command
}

fn report(output: &Output) -> Value {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {told}"))
}

/// Loads a server for three seconds, halts it once in between, and returns the measured phase.
fn stalled(server: &Server, arguments: &[&str]) -> Value {
    let address = format!("127.0.0.1:{}", server.port());
    let mut command = bench(&["mixed", "--keys", "100", "--address", &address, "--connections", "4"]);
    command.args(["--warm-up", "0.2", "--duration", "3"]).args(arguments);
    std::thread::scope(|scope| {
        let load = scope.spawn(move || command.output().expect("the binary was built for this test"));
        // In the middle of the measured time, even if the generator takes a second to start.
        std::thread::sleep(Duration::from_millis(1200));
        server.signal(Signal::Stop);
        std::thread::sleep(STALL);
        server.signal(Signal::Continue);
        let report = report(&load.join().expect("it does not panic"));
        report["phases"].as_array().expect("there are phases").last().expect("the measured one").clone()
    })
}

/// The worst of reads and writes at a quantile, in milliseconds.
fn latency_ms(phase: &Value, figure: &str) -> u64 {
    let latencies = phase["latency"].as_object().expect("latencies by kind");
    let worst = latencies.values().map(|kind| kind[figure].as_u64().expect("nanoseconds")).max();
    worst.expect("there were requests") / 1_000_000
}

#[test]
fn a_stall_is_charged_to_every_request_that_it_delayed() {
    let _timed = timed("a_stall_is_charged_to_every_request_that_it_delayed");
    let server = Setup::small("bench-stall").set(&["wal.sync=off"]).start();
    // Every connection may hold all that comes due during the stall.
    let open = stalled(&server, &["--rate", "2000", "--depth", "500"]);
    assert_eq!(open["unsent"], 0, "{open}");
    // Every request that was due in the measured time has a latency, whenever its reply came.
    let kinds = open["latency"].as_object().expect("latencies by kind").values();
    let charged: u64 = kinds.map(|kind| kind["count"].as_u64().expect("a number")).sum();
    assert!((5_990..=6_010).contains(&charged), "2,000 a second for 3 seconds: {open}");
    // One in fifteen came due while nobody answered, and waited half of the stall on average.
    assert!(latency_ms(&open, "p99_ns") >= 100, "{open}");
    assert!(latency_ms(&open, "max_ns") >= 190, "{open}");
    // A closed loop asks nothing meanwhile, so all it can know is one slow reply for each request under way.
    let closed = stalled(&server, &["--depth", "1"]);
    assert!(latency_ms(&closed, "max_ns") >= 190, "{closed}");
    assert!(latency_ms(&closed, "p99_ns") < 100, "{closed}");
}

#[test]
fn connections_are_spread_over_all_addresses() {
    let _timed = timed("connections_are_spread_over_all_addresses");
    let servers =
        ["bench-spread-1", "bench-spread-2"].map(|name| Setup::small(name).set(&["wal.sync=off"]).start());
    let addresses = servers.each_ref().map(|server| format!("127.0.0.1:{}", server.port())).join(",");
    let arguments =
        ["mixed", "--read-ratio", "0", "--keys", "1000", "--connections", "4", "--duration", "0.3"];
    let output = bench(&arguments).args(["--address", &addresses]).output();
    report(&output.expect("the binary was built for this test"));
    for server in &servers {
        let keys = server.get(&json!({"command": "INFO"}))["keys"].as_u64().expect("INFO counts keys");
        assert!((100..=1000).contains(&keys), "each got a part of the load: {keys}");
    }
}

#[test]
fn a_server_that_is_not_there_is_told() {
    let address = format!("127.0.0.1:{}", free_port());
    let output = bench(&["--address", &address]).output().expect("the binary was built for this test");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains(&address) && told.contains("strand serve"), "{told}");
}
