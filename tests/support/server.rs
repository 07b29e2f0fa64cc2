//! The real server as a child process: how to start it, ask whether it answers, end it, and what it said.

use super::client::Connection;
use super::directory::TemporaryDirectory;
use super::system::{self, Signal};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Longest wait for a server to answer, or to end by itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the tests look for free ports: below the range from which the system deals outgoing ones.
const PORTS: std::ops::Range<u16> = 18_000..32_000;

/// Settings of a small server: segments of 2 MiB, the least there is, so that a start has little to read.
const SMALL: &[&str] = &[
    "wal.segment_mib=2",
    "wal.spare_segments=1",
    "wal.buffer_kib=64",
    "limits.line_bytes_max=720896",
    "limits.value_bytes_max=524288",
    "cores.pin=false",
];

/// Whether this test program is `inline.rs` or `inline_one.rs`: the tests of other files, against servers whose shards serve
/// clients themselves.
pub(crate) const IS_INLINE: bool = is_named("inline") || IS_ALONE;
/// The latter: with one shard, whatever a test asks for.
const IS_ALONE: bool = is_named("inline_one");

const fn is_named(name: &str) -> bool {
    let (this, name) = (env!("CARGO_CRATE_NAME").as_bytes(), name.as_bytes());
    let mut at = 0;
    while at < this.len() && at < name.len() && this[at] == name[at] {
        at += 1;
    }
    at == this.len() && at == name.len()
}

/// A server to be: its directory, its port, its settings. Starting it again finds the same directory and port.
#[derive(Debug)]
pub(crate) struct Setup {
    directory: TemporaryDirectory,
    arguments: Vec<String>,
    port: u16,
}

/// How a server ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stderr: String,
    pub(crate) after: Duration,
}

/// A server that runs; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    port: u16,
    stderr: PathBuf,
    began: Instant,
    /// Time from the start of the process to its first answer.
    pub(crate) ready_after: Duration,
}

impl Setup {
    /// A small server with two shards.
    pub(crate) fn small(name: &str) -> Self {
        Self::bare(name).with(&["--shards", "2"]).set(SMALL)
    }

    /// A server with the default settings.
    pub(crate) fn bare(name: &str) -> Self {
        let bare =
            Self { directory: TemporaryDirectory::new(name), arguments: Vec::new(), port: free_port() };
        let bare = if IS_ALONE { bare.with(&["--shards", "1"]) } else { bare };
        if IS_INLINE { bare.set(&["router.mode=inline"]) } else { bare }
    }

    /// With these arguments too; for settings given twice the later one counts.
    pub(crate) fn with(mut self, arguments: &[&str]) -> Self {
        self.add(arguments);
        self
    }

    /// With these settings, `section.key=value` each.
    pub(crate) fn set(mut self, settings: &[&str]) -> Self {
        for setting in settings {
            // One setting may be given once only, so a later one takes the place of the earlier.
            let key = setting.split('=').next().expect("a split has a first part");
            let same = |old: &String| old.split('=').next() == Some(key);
            match self.arguments.iter_mut().find(|old| same(old)) {
                Some(old) => *old = (*setting).to_owned(),
                None => self.arguments.extend(["--set".to_owned(), (*setting).to_owned()]),
            }
        }
        self
    }

    /// Adds arguments for the starts to come; a flag that is there already gets the new value.
    pub(crate) fn add(&mut self, arguments: &[&str]) {
        let mut rest = arguments.iter();
        while let Some(flag) = rest.next() {
            let is_flag = flag.starts_with("--");
            match self.arguments.iter().position(|old| is_flag && old == flag) {
                Some(place) => {
                    let value = *rest.next().expect("a flag has a value");
                    let is_kept = IS_ALONE && *flag == "--shards";
                    self.arguments[place + 1] = (if is_kept { "1" } else { value }).to_owned();
                }
                None => self.arguments.push((*flag).to_owned()),
            }
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The command that runs it, with stderr going to this file.
    fn command(&self, data: &Path, port: u16, stderr: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strand"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("STRAND_") {
                command.env_remove(name);
            }
        }
        command.arg("serve").arg("--port").arg(port.to_string()).arg("--data-dir").arg(data);
        command.args(&self.arguments);
        let file = File::create(stderr).expect("the folder of the test can be written");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        command
    }

    /// Starts it and waits for its first answer.
    ///
    /// # Panics
    /// When it ends instead.
    pub(crate) fn start(&self) -> Server {
        self.try_start().unwrap_or_else(|ended| panic!("the server did not start: {ended:#?}"))
    }

    /// Starts it and waits until it answers or ends.
    pub(crate) fn try_start(&self) -> Result<Server, Ended> {
        self.try_start_on(&self.data(), self.port)
    }

    /// Runs another one that must end by itself, with the same settings, on this directory and port.
    pub(crate) fn run_to_its_end(&self, data: &Path, port: u16) -> Ended {
        self.spawn(data, port, "ended.log").wait()
    }

    /// Starts another one with the same settings on this directory and port.
    pub(crate) fn try_start_on(&self, data: &Path, port: u16) -> Result<Server, Ended> {
        let mut server = self.spawn(data, port, &format!("stderr-{port}.log"));
        loop {
            if let Some(status) = server.child.try_wait().expect("it is our child") {
                return Err(server.ended(status));
            }
            if server.answers() {
                server.ready_after = server.began.elapsed();
                return Ok(server);
            }
            assert!(server.began.elapsed() < PATIENCE, "no answer within {PATIENCE:?}: {}", server.stderr());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn spawn(&self, data: &Path, port: u16, stderr: &str) -> Server {
        let stderr = self.directory.path().join(stderr);
        let child = self.command(data, port, &stderr).spawn().expect("the binary was built for this test");
        Server { child, port, stderr, began: Instant::now(), ready_after: Duration::ZERO }
    }
}

impl Server {
    fn answers(&self) -> bool {
        let Ok(mut connection) = Connection::open(self.port) else { return false };
        let answer = connection.try_ask(&json!({"command": "PING"}));
        answer.is_ok_and(|reply| reply["result"] == "PONG")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn child(&self) -> &Child {
        &self.child
    }

    /// A new connection.
    ///
    /// # Panics
    /// When there is none to be had.
    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.port).unwrap_or_else(|error| panic!("{error}: {}", self.stderr()))
    }

    /// The result of one request that must succeed, on a connection of its own.
    pub(crate) fn get(&self, request: &Value) -> Value {
        self.connect().get(request)
    }

    /// What it said so far.
    pub(crate) fn stderr(&self) -> String {
        let bytes = fs::read(&self.stderr).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        system::signal(&self.child, signal).expect("the child was not waited for yet");
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }

    /// Ends it without warning, as `kill -9` does.
    ///
    /// # Panics
    /// When it had ended by itself before.
    pub(crate) fn kill(mut self) {
        let early = self.child.try_wait().expect("it is our child");
        assert!(early.is_none(), "it had ended before: {early:?}: {}", self.stderr());
        self.signal(Signal::Kill);
        let status = self.child.wait().expect("it is our child");
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{}", self.stderr());
    }

    /// Waits until it ends.
    ///
    /// # Panics
    /// When it does not.
    pub(crate) fn wait(mut self) -> Ended {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return self.ended(status);
            }
            assert!(began.elapsed() < PATIENCE, "still running after {PATIENCE:?}: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks it to end in good order.
    ///
    /// # Panics
    /// When it does not end with exit code 0.
    pub(crate) fn stop(self) -> Ended {
        self.signal(Signal::Terminate);
        let ended = self.wait();
        assert_eq!(ended.code(), Some(0), "{ended:#?}");
        ended
    }

    fn ended(&self, status: ExitStatus) -> Ended {
        Ended { status, stderr: self.stderr(), after: self.began.elapsed() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            super::say(&format!("the server said: {}", self.stderr()));
        }
        // It may have ended by itself, or been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

/// A port that nobody listens on now, and that no other test is given as long as this process lives: a server that was killed
/// must find its port again, and its clients must not meet another test's server there. Reserved for all processes, and for all
/// copies of this module in one, by an abstract socket that is named after it. Tests in other processes begin their search
/// elsewhere.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static RESERVED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    let ports = PORTS.end - PORTS.start;
    let first =
        u16::try_from(u64::from(std::process::id()) * 61 % u64::from(ports)).expect("below the range");
    for _ in 0..ports {
        let offset = (first + NEXT.fetch_add(1, Ordering::Relaxed) % ports) % ports;
        let port = PORTS.start + offset;
        let name = SocketAddr::from_abstract_name(format!("strand-test-port-{port}")).expect("a short name");
        if let Ok(reserved) = UnixListener::bind_addr(&name)
            && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        {
            RESERVED.lock().expect("nobody panics with it").push(reserved);
            return port;
        }
    }
    panic!("no free port in {PORTS:?}");
}
