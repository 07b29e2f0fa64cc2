//! A client of the tests' own: lines out, JSON in, as many in flight as the test likes.
//!
//! It knows nothing of commands. Reading waits for a bounded time only.

use serde_json::Value;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::time::Duration;

/// Longest wait for a reply.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A connection with lines on their way out.
#[derive(Debug)]
pub(crate) struct Connection {
    reader: BufReader<TcpStream>,
    out: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(port: u16) -> io::Result<Self> {
        Self::open_at(Ipv4Addr::LOCALHOST, port)
    }

    /// As [`Connection::open`], at another of this machine's addresses.
    pub(crate) fn open_at(host: Ipv4Addr, port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((host, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { reader: BufReader::with_capacity(64 << 10, stream), out: Vec::new() })
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    /// Puts a request behind those that wait to be sent.
    pub(crate) fn queue(&mut self, request: &Value) {
        // Writing into memory cannot fail.
        serde_json::to_writer(&mut self.out, request).expect("a value is JSON");
        self.out.push(b'\n');
    }

    /// Puts a line, without its newline, behind those that wait to be sent.
    pub(crate) fn queue_line(&mut self, line: &str) {
        self.out.extend_from_slice(line.as_bytes());
        self.out.push(b'\n');
    }

    /// Bytes that wait to be sent.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.out.len()
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let sent = self.reader.get_ref().write_all(&self.out);
        self.out.clear();
        sent
    }

    /// Sends bytes as they are, after what waits.
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.flush()?;
        self.reader.get_ref().write_all(bytes)
    }

    /// The next reply's bytes; an error of kind `UnexpectedEof` when the server closed the connection, also within a line.
    pub(crate) fn receive_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        String::from_utf8(line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// The next reply.
    ///
    /// # Panics
    /// When it is not JSON: no server may answer that.
    pub(crate) fn receive(&mut self) -> io::Result<Value> {
        let line = self.receive_line()?;
        Ok(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in the reply {line:?}")))
    }

    /// Whether a reply can be had without waiting.
    pub(crate) fn has_reply(&self) -> bool {
        memchr::memchr(b'\n', self.reader.buffer()).is_some()
    }

    /// Sends one request and waits for its reply.
    pub(crate) fn try_ask(&mut self, request: &Value) -> io::Result<Value> {
        self.queue(request);
        self.flush()?;
        self.receive()
    }

    /// Sends one request and waits for its reply.
    ///
    /// # Panics
    /// When the connection fails.
    pub(crate) fn ask(&mut self, request: &Value) -> Value {
        self.try_ask(request).unwrap_or_else(|error| panic!("{request}: {error}"))
    }

    /// The result of a request that must succeed.
    ///
    /// # Panics
    /// When it does not.
    pub(crate) fn get(&mut self, request: &Value) -> Value {
        let mut reply = self.ask(request);
        assert_eq!(reply["status"], "success", "{request} -> {reply}");
        reply["result"].take()
    }

    /// The code of a request that must fail, whose reply must be a complete refusal.
    ///
    /// # Panics
    /// When it succeeds, or the refusal lacks a part.
    pub(crate) fn refusal(&mut self, request: &Value) -> String {
        let reply = self.ask(request);
        code_of(&reply).unwrap_or_else(|| panic!("{request} -> {reply}"))
    }

    /// Sends all requests at once and gathers their replies.
    ///
    /// # Panics
    /// When the connection fails.
    pub(crate) fn pipeline(&mut self, requests: &[Value]) -> Vec<Value> {
        requests.iter().for_each(|request| self.queue(request));
        self.flush().expect("the server reads");
        requests.iter().map(|request| self.receive().unwrap_or_else(|e| panic!("{request}: {e}"))).collect()
    }

    /// Whether the server has closed this connection, waiting at most so long; what arrives before is thrown away.
    pub(crate) fn is_closed_within(&mut self, patience: Duration) -> bool {
        self.stream().set_read_timeout(Some(patience)).expect("a time that is not zero");
        loop {
            match self.reader.fill_buf() {
                Ok([]) => return true,
                Ok(bytes) => {
                    let length = bytes.len();
                    self.reader.consume(length);
                }
                Err(error) => {
                    return !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                }
            }
        }
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish_sending(&mut self) -> io::Result<()> {
        self.flush()?;
        self.stream().shutdown(Shutdown::Write)
    }
}

/// The code of a reply that is a complete refusal.
pub(crate) fn code_of(reply: &Value) -> Option<String> {
    let text = |name: &str| reply[name].as_str().filter(|text| !text.is_empty());
    let retry = text("retry")?;
    let whole = reply["status"] == "error"
        && text("error").is_some()
        && ["never", "safe", "same_seq"].contains(&retry)
        && reply.get("result").is_none();
    text("code").filter(|_| whole).map(str::to_owned)
}
