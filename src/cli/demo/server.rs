//! The server that the demo starts: this very program as a child, on a free port, with a data directory of its own.
//!
//! Invariant: the child is gone when the value is dropped, and so is a data directory that the demo made.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use strand_client::Client;

/// A running server.
pub(super) struct Server {
    child: Child,
    address: String,
    /// A folder to remove at the end: holds the log, and the data unless they were to be kept.
    scratch: PathBuf,
}

const START_TIME_MAX: Duration = Duration::from_secs(30);
const STOP_TIME_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Server {
    /// Starts a server and waits until it answers.
    pub(super) fn start(data_dir: Option<&Path>) -> Result<Self, String> {
        let told =
            |what: &str, error: &dyn std::fmt::Display| format!("Cannot start a server: {what}: {error}.");
        let program = std::env::current_exe().map_err(|error| told("this program's path", &error))?;
        let scratch = std::env::temp_dir().join(format!("strand-demo-{}", std::process::id()));
        fs::create_dir_all(&scratch).map_err(|error| told("the temporary directory", &error))?;
        let log = File::create(scratch.join("log")).map_err(|error| told("the log", &error))?;
        let port = free_port().map_err(|error| told("a free port", &error))?;
        let data = data_dir.map_or_else(|| scratch.join("data"), Path::to_path_buf);
        let mut command = Command::new(program);
        command.args(["serve", "--id", "demo", "--port", &port.to_string(), "--data-dir"]).arg(data);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().map_err(|error| told("the program", &error))?;
        let mut server = Self { child, address: format!("127.0.0.1:{port}"), scratch };
        server.wait_until_it_answers()?;
        Ok(server)
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    fn wait_until_it_answers(&mut self) -> Result<(), String> {
        let begin = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("The server ended at once ({status}). It said:\n{}", self.log_end()));
            }
            if Client::connect(&self.address).and_then(|mut client| client.ping()).is_ok() {
                return Ok(());
            }
            if begin.elapsed() > START_TIME_MAX {
                return Err(format!(
                    "The server does not answer on {}. It said:\n{}",
                    self.address,
                    self.log_end()
                ));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The last lines that the server wrote.
    fn log_end(&self) -> String {
        let text = fs::read_to_string(self.scratch.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Asks the server to stop and waits for it.
    pub(super) fn stop(mut self) -> Result<(), String> {
        if let Ok(mut client) = Client::connect(&self.address) {
            // The reply may not come: the connection ends with the server.
            let _ = client.shutdown();
        }
        let begin = Instant::now();
        while begin.elapsed() < STOP_TIME_MAX {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    return Err(format!("The server ended badly ({status}):\n{}", self.log_end()));
                }
                _ => std::thread::sleep(LOOK_EVERY),
            }
        }
        Err(format!("The server did not stop within {STOP_TIME_MAX:?}:\n{}", self.log_end()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

/// A port that was free a moment ago.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
