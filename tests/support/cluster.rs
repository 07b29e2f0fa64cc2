//! Three real nodes on loopback: their ports and directories, and how to start each of them in every way there is.

use super::client::Connection;
use super::directory::TemporaryDirectory;
use super::eventually;
use super::server::{Ended, IS_INLINE, free_port};
use super::system::{self, Signal};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a node to answer, or to end by itself.
const PATIENCE: Duration = Duration::from_secs(60);
/// Settings of a small node.
const SMALL: &[&str] = &[
    "wal.segment_mib=2",
    "wal.spare_segments=1",
    "wal.buffer_kib=64",
    "limits.line_bytes_max=720896",
    "limits.value_bytes_max=524288",
    "cores.pin=false",
    "log.format=json",
];

/// Three nodes to be.
#[derive(Debug)]
pub(crate) struct Trio {
    directory: TemporaryDirectory,
    arguments: Vec<String>,
    /// Client port and cluster port of each; three found the cluster, more may join.
    ports: Vec<(u16, u16)>,
}

/// A node that runs; killed when dropped.
#[derive(Debug)]
pub(crate) struct Node {
    child: Child,
    port: u16,
    stderr: PathBuf,
    began: Instant,
}

impl Trio {
    /// Nodes with these arguments for all of them.
    pub(crate) fn new(name: &str, arguments: &[&str]) -> Self {
        let ports = (0..5).map(|_| (free_port(), free_port())).collect();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Self { directory: TemporaryDirectory::new(name), arguments, ports }
    }

    pub(crate) fn cluster_port(&self, at: usize) -> u16 {
        self.ports[at].1
    }

    /// Starts a node that is told of the others.
    pub(crate) fn spawn(&self, at: usize) -> Node {
        self.spawn_with(at, &[])
    }

    /// As [`Trio::spawn`], with more arguments.
    pub(crate) fn spawn_with(&self, at: usize, more: &[&str]) -> Node {
        let peers = self.peers(at);
        self.run(at, &name_of(at), &[&["--peers", &peers], more].concat())
    }

    /// As [`Trio::spawn`], under another id.
    pub(crate) fn spawn_as(&self, at: usize, id: &str) -> Node {
        self.run(at, id, &["--peers", &self.peers(at)])
    }

    /// Starts a node that was in the cluster before.
    pub(crate) fn spawn_without_peers(&self, at: usize) -> Node {
        self.run(at, &name_of(at), &[])
    }

    /// Starts a node that others can be added to.
    pub(crate) fn spawn_alone(&self, at: usize) -> Node {
        self.spawn_without_peers(at)
    }

    /// Starts a node that asks the first's neighbours to be added.
    pub(crate) fn spawn_joining(&self, at: usize, member: usize) -> Node {
        let (port, cluster_port) = self.ports[member];
        self.run(at, &name_of(at), &["--peers", &format!("127.0.0.1:{port}:{cluster_port}")])
    }

    /// As [`Trio::spawn_joining`], under an id of its own; or again, where it has joined before and needs no `member`.
    pub(crate) fn spawn_named(&self, at: usize, id: &str, member: Option<usize>) -> Node {
        let peers = member.map(|member| {
            let (port, cluster_port) = self.ports[member];
            format!("127.0.0.1:{port}:{cluster_port}")
        });
        let more = peers.as_ref().map(|peers| ["--peers", peers.as_str()]);
        self.run(at, id, more.as_ref().map_or(&[][..], |more| &more[..]))
    }

    /// Starts a copy of a node's data directory under the same id, at the ports of `at`.
    pub(crate) fn spawn_copy(&self, of: usize, at: usize) -> Node {
        copy_directory(&self.data(of), &self.data(at)).expect("a directory can be copied");
        self.run(at, &name_of(of), &[])
    }

    /// The port for clients of a node.
    pub(crate) fn port(&self, at: usize) -> u16 {
        self.ports[at].0
    }

    /// Removes what a node has on disk.
    pub(crate) fn blank(&self, at: usize) {
        fs::remove_dir_all(self.data(at)).expect("the directory is there");
    }

    /// Where a node keeps its data.
    pub(crate) fn data(&self, at: usize) -> PathBuf {
        self.directory.path().join(name_of(at))
    }

    fn peers(&self, at: usize) -> String {
        let others = (0..3).filter(|other| *other != at);
        let entries = others.map(|other| {
            let (port, cluster_port) = self.ports[other];
            format!("{}@127.0.0.1:{port}:{cluster_port}", name_of(other))
        });
        entries.collect::<Vec<_>>().join(",")
    }

    /// Starts a node that was in the cluster before at other ports.
    pub(crate) fn spawn_at(&self, at: usize, port: u16, cluster_port: u16, more: &[&str]) -> Node {
        self.run_at(at, &name_of(at), (port, cluster_port), more)
    }

    fn run(&self, at: usize, id: &str, more: &[&str]) -> Node {
        self.run_at(at, id, self.ports[at], more)
    }

    fn run_at(&self, at: usize, id: &str, (port, cluster_port): (u16, u16), more: &[&str]) -> Node {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strand"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("STRAND_"))
        {
            command.env_remove(name);
        }
        command.args([
            "serve",
            "--id",
            id,
            "--port",
            &port.to_string(),
            "--cluster-port",
            &cluster_port.to_string(),
        ]);
        command.arg("--data-dir").arg(self.data(at)).args(&self.arguments).args(more);
        for setting in SMALL {
            command.args(["--set", setting]);
        }
        if IS_INLINE {
            command.args(["--set", "router.mode=inline"]);
        }
        let stderr = self.directory.path().join(format!("stderr-{at}.log"));
        let file = File::create(&stderr).expect("the folder of the test can be written");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().expect("the binary was built for this test");
        Node { child, port, stderr, began: Instant::now() }
    }
}

fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_directory(&path, &copy)?;
        } else {
            fs::copy(path, copy)?;
        }
    }
    Ok(())
}

fn name_of(at: usize) -> String {
    format!("n{}", at + 1)
}

impl Node {
    /// Waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub(crate) fn until_it_answers(&self) {
        eventually("the node answers", PATIENCE, || {
            let answer = Connection::open(self.port).and_then(|mut c| c.try_ask(&json!({"command": "PING"})));
            answer.is_ok_and(|reply| reply["result"] == "PONG")
        });
    }

    /// The reply to one request, on a connection of its own.
    pub(crate) fn ask(&self, request: &Value) -> Value {
        Connection::open(self.port).unwrap_or_else(|error| panic!("{error}: {}", self.stderr())).ask(request)
    }

    /// The first reply that is no error: a group may be without a leader at first.
    pub(crate) fn ask_until_success(&self, request: &Value) -> Value {
        let mut reply = Value::Null;
        eventually("the request succeeds", PATIENCE, || {
            let asked = Connection::open(self.port).and_then(|mut c| c.try_ask(request));
            reply = asked.unwrap_or_default();
            reply["status"] == "success"
        });
        reply
    }

    /// The port for clients.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What it said so far.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        system::signal(&self.child, signal).expect("the child was not waited for yet");
    }

    pub(crate) fn resident_bytes(&self) -> u64 {
        system::resident_bytes(&self.child)
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Ends it without warning.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::Kill);
        self.child.wait().expect("it is our child");
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// When it does not.
    pub(crate) fn wait(mut self) -> Ended {
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return Ended { status, stderr: self.stderr(), after: self.began.elapsed() };
            }
            assert!(self.began.elapsed() < PATIENCE, "still running: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// As [`Node::wait`], with all the patience from now on.
    pub(crate) fn wait_from_now(mut self) -> Ended {
        self.began = Instant::now();
        self.wait()
    }

    /// Asks it to end in good order.
    ///
    /// # Panics
    /// When it does not end with exit code 0.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::Terminate);
        self.began = Instant::now();
        let ended = self.wait();
        assert_eq!(ended.code(), Some(0), "{ended:#?}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            super::say(&format!("the node said: {}", self.stderr()));
        }
        // It may have ended by itself, or been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
