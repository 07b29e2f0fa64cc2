//! Clients of the harness: one request at a time over TCP, with bounded waits, retried at other nodes.
//!
//! Knows of commands only whether a request may be sent twice.

use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longest wait for a connection.
const CONNECT_WITHIN: Duration = Duration::from_millis(700);
/// How much longer than a request's own deadline its reply is waited for.
const GRACE: Duration = Duration::from_millis(1500);
/// Pause before a request is tried at another node.
const PAUSE: Duration = Duration::from_millis(25);

/// A connection.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Opens one.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, CONNECT_WITHIN)?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::with_capacity(64 << 10, stream) })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_ref().set_write_timeout(Some(Duration::from_secs(10)))?;
        self.reader.get_ref().write_all(bytes)
    }

    /// The next reply, within this time.
    ///
    /// # Errors
    /// When the connection fails or the time is over: the connection is of no use then.
    pub fn receive(&mut self, within: Duration) -> io::Result<Value> {
        self.reader.get_ref().set_read_timeout(Some(within))?;
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_slice(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Sends one request and waits for its reply.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn ask(&mut self, request: &Value) -> io::Result<Value> {
        let mut line = request.to_string();
        line.push('\n');
        self.send(line.as_bytes())?;
        let timeout_ms = request["timeout_ms"].as_u64().unwrap_or(5000);
        self.receive(Duration::from_millis(timeout_ms) + GRACE)
    }
}

/// Asks one node once, on a connection of its own.
///
/// # Errors
/// When the connection fails.
pub fn ask_once(address: SocketAddr, request: &Value) -> io::Result<Value> {
    Connection::open(address)?.ask(request)
}

/// How a request ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It succeeded.
    Done(Value),
    /// It was refused for good, and changed nothing.
    Refused(Value),
    /// It may have taken effect.
    Unknown,
}

/// A client that knows all nodes.
pub struct Client {
    /// Its name in sessions.
    pub name: String,
    nodes: Vec<SocketAddr>,
    at: usize,
    connection: Option<Connection>,
    /// The last number of its session.
    pub seq: u64,
    /// How long it keeps trying.
    pub patience: Duration,
    /// Deadline that it gives its requests, in ms.
    pub timeout_ms: u64,
    /// How often it had to try again.
    pub retries: u64,
}

impl Client {
    /// A client that begins at one of the nodes.
    pub fn new(name: String, nodes: Vec<SocketAddr>, at: usize, patience: Duration) -> Self {
        let at = at % nodes.len();
        Self { name, nodes, at, connection: None, seq: 0, patience, timeout_ms: 2000, retries: 0 }
    }

    /// Sends one request to the node of the moment. After an error the next one is asked.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn try_once(&mut self, request: &Value) -> io::Result<Value> {
        let asked = self.ask_here(request);
        if asked.as_ref().map_or(true, |reply| reply["status"] != "success") {
            self.turn();
        }
        asked
    }

    fn ask_here(&mut self, request: &Value) -> io::Result<Value> {
        if self.connection.is_none() {
            self.connection = Some(Connection::open(self.nodes[self.at])?);
        }
        let connection = self.connection.as_mut().expect("it was opened");
        let asked = connection.ask(request);
        if asked.is_err() {
            self.connection = None;
        }
        asked
    }

    fn turn(&mut self) {
        self.at = (self.at + 1) % self.nodes.len();
        self.connection = None;
    }

    /// A request with this client's next number.
    pub fn with_session(&mut self, mut request: Value) -> Value {
        self.seq += 1;
        request["client"] = json!(self.name);
        request["seq"] = json!(self.seq);
        request["acked"] = json!(self.seq);
        request
    }

    /// Sends a request that may be sent twice until it is answered for good.
    ///
    /// # Errors
    /// When patience runs out: that is a finding.
    pub fn insist(&mut self, mut request: Value) -> Result<Outcome, String> {
        request["timeout_ms"] = json!(self.timeout_ms);
        let begun = Instant::now();
        loop {
            let last = match self.ask_here(&request) {
                Ok(reply) if reply["status"] == "success" => return Ok(Outcome::Done(reply)),
                Ok(reply) if reply["retry"] == "never" => return Ok(Outcome::Refused(reply)),
                Ok(reply) => reply.to_string(),
                Err(error) => error.to_string(),
            };
            if begun.elapsed() > self.patience {
                return Err(format!("no answer within {:?}: {request} -> {last}", self.patience));
            }
            self.turn();
            self.retries += 1;
            std::thread::sleep(PAUSE);
        }
    }

    /// Sends a write without a session once.
    pub fn risk(&mut self, mut request: Value) -> Outcome {
        request["timeout_ms"] = json!(self.timeout_ms);
        let asked = self.try_once(&request);
        match asked {
            Ok(reply) if reply["status"] == "success" => Outcome::Done(reply),
            Ok(reply) if reply["retry"] == "same_seq" => Outcome::Unknown,
            Ok(reply) => Outcome::Refused(reply),
            Err(_) => Outcome::Unknown,
        }
    }
}
