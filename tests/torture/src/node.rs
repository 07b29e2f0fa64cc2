//! A node as a process: how it is started, signalled and ended.
//!
//! A process dies with the thread that started it, so that none outlives the harness; where the tool for that is missing, it
//! dies with its value.

use crate::client;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Ends a process when the thread that started it ends.
const PARENT_DEATH: &str = "/usr/bin/setpriv";

/// Settings of a small node: the least segments, so that logs turn over and starts have little to read.
pub const SMALL: &[&str] = &[
    "wal.segment_mib=2",
    "wal.spare_segments=1",
    "wal.buffer_kib=64",
    "limits.line_bytes_max=720896",
    "limits.value_bytes_max=524288",
    "cores.pin=false",
    "log.format=json",
];

/// A signal to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The process is gone at once.
    Kill,
    /// It stands still.
    Stop,
    /// It goes on.
    Continue,
    /// It ends in good order.
    Terminate,
}

impl Signal {
    fn number(self) -> i32 {
        match self {
            Self::Kill => libc::SIGKILL,
            Self::Stop => libc::SIGSTOP,
            Self::Continue => libc::SIGCONT,
            Self::Terminate => libc::SIGTERM,
        }
    }
}

/// A node to be.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The binary.
    pub binary: PathBuf,
    /// Its id.
    pub id: String,
    /// Where it listens.
    pub host: IpAddr,
    /// For clients.
    pub port: u16,
    /// For nodes.
    pub cluster_port: Option<u16>,
    /// The other founders, for a first start.
    pub peers: Option<String>,
    /// Its data.
    pub data: PathBuf,
    /// Where its log lines go.
    pub stderr: PathBuf,
    /// The network namespace that it lives in.
    pub namespace: Option<String>,
    /// More arguments.
    pub arguments: Vec<String>,
    /// Settings, `section.key=value` each.
    pub settings: Vec<String>,
    /// The library and the file that move its wall clock.
    pub clock: Option<(PathBuf, PathBuf)>,
}

impl Setup {
    /// The address for clients.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }

    fn command(&self) -> Command {
        let mut words: Vec<String> = Vec::new();
        let mut add = |more: &[&str]| words.extend(more.iter().map(|word| (*word).to_owned()));
        if let Some(namespace) = &self.namespace {
            add(&["nsenter", &format!("--net=/run/netns/{namespace}")]);
        }
        if Path::new(PARENT_DEATH).exists() {
            add(&["setpriv", "--pdeathsig", "KILL"]);
        }
        add(&[&self.binary.to_string_lossy(), "serve", "--id", &self.id]);
        add(&["--host", &self.host.to_string(), "--port", &self.port.to_string()]);
        if let Some(port) = self.cluster_port {
            add(&["--cluster-port", &port.to_string()]);
        }
        if let Some(peers) = &self.peers {
            add(&["--peers", peers]);
        }
        if !self.host.is_loopback() {
            add(&["--insecure"]);
        }
        add(&["--data-dir", &self.data.to_string_lossy()]);
        self.arguments.iter().for_each(|argument| add(&[argument]));
        for setting in SMALL.iter().copied().chain(self.settings.iter().map(String::as_str)) {
            add(&["--set", setting]);
        }
        let mut command = Command::new(&words[0]);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("STRAND_"))
        {
            command.env_remove(name);
        }
        if let Some((library, file)) = &self.clock {
            command.env("LD_PRELOAD", library).env("TORTURE_CLOCK", file);
        }
        command.args(&words[1..]);
        command
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the process cannot be made.
    pub fn start(&self) -> io::Result<Process> {
        let log = File::options().create(true).append(true).open(&self.stderr)?;
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn()?;
        Ok(Process { child, address: self.address(), stderr: self.stderr.clone() })
    }
}

/// A node that runs; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    address: SocketAddr,
    stderr: PathBuf,
}

impl Process {
    /// Sends it a signal.
    #[allow(unsafe_code, reason = "signals have no safe form in the standard library")]
    pub fn signal(&self, signal: Signal) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a pid fits its own type");
        // SAFETY: kill takes two integers and touches no memory of ours. The child was not waited for yet, or only by
        // `try_wait` of ours just before, so that the pid is its own.
        unsafe { libc::kill(pid, signal.number()) };
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Bytes of memory that it has resident.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/statm", self.pid()))?;
        let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
        pages.map(|pages| pages * 4096).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Ends it without warning.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        let begun = Instant::now();
        while begun.elapsed() < within {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// Waits until it answers.
    ///
    /// # Errors
    /// With what it said, when it ends or stays silent.
    pub fn until_it_answers(&mut self, within: Duration) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let reply = client::ask_once(self.address, &json!({"command": "PING"}));
            if reply.is_ok_and(|reply| reply["result"] == "PONG") {
                return Ok(());
            }
            if let Some(status) = self.ended() {
                return Err(format!("the node ended ({status}): {}", self.tail()));
            }
            if begun.elapsed() > within {
                return Err(format!("the node does not answer within {within:?}: {}", self.tail()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// One reply of it.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn ask(&self, request: &Value) -> io::Result<Value> {
        client::ask_once(self.address, request)
    }

    /// The last it said.
    pub fn tail(&self) -> String {
        tail(&self.stderr)
    }
}

/// The last lines of a log.
pub fn tail(path: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
