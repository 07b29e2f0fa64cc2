//! The server that the demo starts: this very program as a child, on a free port, with a data directory of its own.
//!
//! Invariant: the child is gone when the value is dropped or a signal ends the demo, and so is a data directory that the demo
//! made.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use strand_client::Client;

/// A running server.
pub(super) struct Server {
    child: Arc<Mutex<Child>>,
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
        // Taken over before the child exists, so that there is no moment in which a signal leaves anything behind.
        let signals =
            signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM]);
        let signals = signals.map_err(|error| told("its signals", &error))?;
        let child = command.spawn().map_err(|error| told("the program", &error))?;
        let child = Arc::new(Mutex::new(child));
        end_at_a_signal(signals, Arc::clone(&child), scratch.clone())
            .map_err(|error| told("its signals", &error))?;
        let server = Self { child, address: format!("127.0.0.1:{port}"), scratch };
        server.wait_until_it_answers()?;
        Ok(server)
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// How the child ended, if it has.
    fn ended(&self) -> Option<ExitStatus> {
        lock(&self.child).try_wait().ok().flatten()
    }

    fn wait_until_it_answers(&self) -> Result<(), String> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.ended() {
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
    pub(super) fn stop(self) -> Result<(), String> {
        if let Ok(mut client) = Client::connect(&self.address) {
            // The reply may not come: the connection ends with the server.
            let _ = client.shutdown();
        }
        let begin = Instant::now();
        while begin.elapsed() < STOP_TIME_MAX {
            match self.ended() {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(format!("The server ended badly ({status}):\n{}", self.log_end()));
                }
                None => std::thread::sleep(LOOK_EVERY),
            }
        }
        Err(format!("The server did not stop within {STOP_TIME_MAX:?}:\n{}", self.log_end()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        clean_up(&mut lock(&self.child), &self.scratch);
    }
}

/// The child, whatever became of the thread that held it last.
fn lock(child: &Mutex<Child>) -> std::sync::MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

fn clean_up(child: &mut Child, scratch: &Path) {
    if !matches!(child.try_wait(), Ok(Some(_))) {
        let _ = child.kill();
        let _ = child.wait();
    }
    let _ = fs::remove_dir_all(scratch);
}

/// Ends the demo at Ctrl-C or SIGTERM as a shell expects it, but not before everything that it started and made is gone.
fn end_at_a_signal(
    mut signals: signal_hook::iterator::Signals,
    child: Arc<Mutex<Child>>,
    scratch: PathBuf,
) -> std::io::Result<()> {
    let run = move || {
        if let Some(signal) = signals.forever().next() {
            clean_up(&mut lock(&child), &scratch);
            std::process::exit(128 + signal);
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(run).map(drop)
}

/// A port that was free a moment ago.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
