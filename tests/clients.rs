//! The client libraries' own tests against the real server: what holds with their fake one must hold with it.

mod support;

use std::path::Path;
use std::process::Command;
use support::server::Setup;
use support::timed;

/// Runs a command that finds the server's address in its environment.
fn run_against_server(name: &'static str, command: &mut Command) {
    let _timed = timed(name);
    let setup = Setup::bare("clients").with(&["--shards", "3"]).set(&["cores.pin=false"]);
    let server = setup.start();
    let address = format!("127.0.0.1:{}", server.port());
    let output =
        command.env("STRAND_TEST_ADDRESS", address).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let told =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {told}");
    assert!(told.contains("Ran ") || told.contains("test result: ok."), "tests were run: {told}");
    assert_ne!(
        server.get(&serde_json::json!({"command": "INFO"}))["keys"],
        0,
        "they used this server: {told}"
    );
    server.stop();
}

#[test]
fn the_python_client_works_with_the_real_server() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python");
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut command = Command::new(python);
    command.args(["-m", "unittest", "discover", "-s", "tests", "-p", "test_commands.py"]).current_dir(folder);
    run_against_server("the Python client", &mut command);
}

#[test]
fn the_rust_client_works_with_the_real_server() {
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--quiet", "--locked", "-p", "strand-client", "--test", "commands"]);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    run_against_server("the Rust client", &mut command);
}
