//! What `make cluster` runs, as its own text tells people to use it: three nodes, requests to any of them, one killed without
//! warning, the others going on, the dead one started again by the line that was told.

mod support;

use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::client::Connection;
use support::directory::TemporaryDirectory;
use support::server::free_port;
use support::system::{self, Signal};
use support::{eventually, timed};

const PATIENCE: Duration = Duration::from_secs(60);

/// Three client ports in a row whose cluster ports, 1000 above, are free too.
fn base_port() -> u16 {
    let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let fits =
        |base: &u16| *base < 60_000 && (0..3).all(|at| is_free(base + at) && is_free(base + 1000 + at));
    (0..1000).map(|_| free_port()).find(fits).expect("six ports are free")
}

fn ask(port: u16, request: &serde_json::Value) -> serde_json::Value {
    Connection::open(port).and_then(|mut open| open.try_ask(request)).unwrap_or_default()
}

fn ask_until_success(port: u16, request: &serde_json::Value) -> serde_json::Value {
    let mut reply = serde_json::Value::Null;
    eventually("the request succeeds", PATIENCE, || {
        reply = ask(port, request);
        reply["status"] == "success"
    });
    reply
}

/// Ends the script and with it what it started.
struct Script(Child);

impl Drop for Script {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = system::signal(&self.0, Signal::Terminate);
        let _ = self.0.wait();
    }
}

#[test]
fn what_make_cluster_shows_holds() {
    let _timed = timed("make cluster");
    let directory = TemporaryDirectory::new("cluster-demo");
    let base = base_port();
    let [out, err] = ["out", "err"].map(|name| directory.path().join(name));
    let file = |path: &Path| fs::File::create(path).expect("the folder can be written");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/cluster.sh");
    let mut command = Command::new(script);
    command.arg(env!("CARGO_BIN_EXE_strand")).args([
        "--set",
        "cores.pin=false",
        "--set",
        "wal.segment_mib=16",
    ]);
    command.args(["--set", "limits.line_bytes_max=4194304", "--set", "limits.value_bytes_max=2097152"]);
    command.current_dir(directory.path()).env("STRAND_BASE_PORT", base.to_string());
    command.stdin(Stdio::null()).stdout(file(&out)).stderr(file(&err));
    let mut script = Script(command.spawn().expect("the script can be run"));
    let said = |path: &Path| fs::read_to_string(path).unwrap_or_default();

    ask_until_success(base, &json!({"command": "SET", "key": "foo", "value": "bar"}));
    let read = ask_until_success(base + 2, &json!({"command": "GET", "key": "foo"}));
    assert_eq!(read["result"], "bar");
    let told = said(&out);
    let killing =
        told.lines().find_map(|line| line.trim().strip_prefix("kill -9 ")).expect("it says whom to kill");
    let pid = |port: u16| ask(port, &json!({"command": "INFO"}))["result"]["pid"].to_string();
    assert_eq!(pid(base + 2), killing, "{told}");
    assert!(Command::new("kill").args(["-9", killing]).status().expect("kill can be run").success());

    eventually("its end is told of", PATIENCE, || said(&err).contains("node3 ended"));
    ask_until_success(base, &json!({"command": "SET", "key": "foo", "value": "on"}));
    assert_eq!(ask_until_success(base + 1, &json!({"command": "GET", "key": "foo"}))["result"], "on");
    assert!(script.0.try_wait().expect("it is our child").is_none(), "{}", said(&err));

    // The line that was told brings it back.
    let told = said(&err);
    let again = told.lines().find_map(|line| line.split_once("start it again with: ")).expect("the line").1;
    let words: Vec<&str> = again.split_whitespace().collect();
    let mut back = Command::new(words[0]);
    back.args(&words[1..]).current_dir(directory.path());
    back.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file(&directory.path().join("again")));
    let mut back = back.spawn().expect("the line can be run");
    assert_eq!(ask_until_success(base + 2, &json!({"command": "GET", "key": "foo"}))["result"], "on");
    system::signal(&back, Signal::Terminate).expect("it runs");
    assert!(back.wait().expect("it is our child").success(), "{}", said(&directory.path().join("again")));
}
