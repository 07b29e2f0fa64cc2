//! One connection of the generator: bytes out, bytes in, and what is under way, in order.
//!
//! Non-blocking. Knows neither time nor what to send next; the worker decides both.

use super::dialect::{Dialect, Kind, Scan, Verdict};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

/// A request under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnderWay {
    /// When it was due, in nanoseconds since the phase began.
    pub(super) due_ns: u64,
    pub(super) key: u64,
    pub(super) kind: Kind,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) stream: TcpStream,
    /// Bytes to be sent; those before `sent` are gone.
    pub(super) out: Vec<u8>,
    sent: usize,
    /// The beginning of a reply whose rest has not come.
    rest: Vec<u8>,
    pub(super) under_way: VecDeque<UnderWay>,
    /// Requests asked so far.
    pub(super) asked: u64,
    /// Whether the socket is full and the poller tells when it is not.
    pub(super) waits_to_write: bool,
}

/// What became of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushed {
    All,
    SocketFull,
}

impl Link {
    /// `greeting` leaves with the first request.
    pub(super) fn new(stream: TcpStream, greeting: Vec<u8>) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let (rest, under_way) = (Vec::new(), VecDeque::new());
        Ok(Self { stream, out: greeting, sent: 0, rest, under_way, asked: 0, waits_to_write: false })
    }

    /// Sends what the socket takes; returns how many bytes that were.
    pub(super) fn flush(&mut self) -> io::Result<(Flushed, usize)> {
        let before = self.sent;
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok((Flushed::SocketFull, self.sent - before));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let count = self.sent - before;
        self.out.clear();
        self.sent = 0;
        Ok((Flushed::All, count))
    }

    /// Reads once; 0 where nothing was there after all.
    ///
    /// # Errors
    /// Also when the server closed the connection.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stream.read(buffer) {
            Ok(0) => Err(io::Error::new(ErrorKind::UnexpectedEof, "the server closed the connection")),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            other => other,
        }
    }

    /// Hands every whole reply in the bytes, with its request, to `take`; what is left waits for its rest.
    ///
    /// # Errors
    /// When the bytes are no replies, or more of them than requests.
    pub(super) fn replies(
        &mut self,
        dialect: impl Dialect,
        bytes: &[u8],
        mut take: impl FnMut(UnderWay, Verdict, &[u8]),
    ) -> Result<(), String> {
        let mut whole = std::mem::take(&mut self.rest);
        let bytes = if whole.is_empty() {
            bytes
        } else {
            whole.extend_from_slice(bytes);
            &whole
        };
        let mut at = 0;
        loop {
            at += dialect.noise(&bytes[at..]);
            if at == bytes.len() {
                break;
            }
            let Some(request) = self.under_way.front() else {
                return Err("a reply came without a request".to_owned());
            };
            match dialect.scan(&bytes[at..], request.kind) {
                Scan::Partial => break,
                Scan::Broken(why) => {
                    let shown = String::from_utf8_lossy(&bytes[at..bytes.len().min(at + 100)]).into_owned();
                    return Err(format!(
                        "the server does not speak this protocol ({why}): {shown:?}. Is --protocol right?"
                    ));
                }
                Scan::Whole { length, verdict } => {
                    take(*request, verdict, &bytes[at..at + length]);
                    self.under_way.pop_front();
                    at += length;
                }
            }
        }
        // One buffer serves as long as a reply is incomplete.
        if whole.is_empty() {
            self.rest.extend_from_slice(&bytes[at..]);
        } else {
            whole.drain(..at);
            self.rest = whole;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::json::Json;
    use super::*;
    use std::net::TcpListener;

    fn pair() -> (Link, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Link::new(stream, Vec::new()).unwrap(), listener.accept().unwrap().0)
    }

    fn ask(link: &mut Link, key: u64) {
        link.under_way.push_back(UnderWay { due_ns: 0, key, kind: Kind::Get });
    }

    #[test]
    fn replies_meet_their_requests_however_they_are_cut() {
        let reply = b"{\"status\":\"success\",\"result\":\"v\"}\n";
        let bytes = reply.repeat(3);
        for piece in 1..bytes.len() {
            let (mut link, _server) = pair();
            (1..=3).for_each(|key| ask(&mut link, key));
            let mut keys = Vec::new();
            for part in bytes.chunks(piece) {
                let take = |request: UnderWay, verdict, whole: &[u8]| {
                    assert_eq!((verdict, whole), (Verdict::Success, &reply[..]));
                    keys.push(request.key);
                };
                link.replies(Json, part, take).unwrap();
            }
            assert_eq!(keys, [1, 2, 3]);
            assert!(link.rest.is_empty() && link.under_way.is_empty());
        }
    }

    #[test]
    fn a_reply_too_many_is_told() {
        let (mut link, _server) = pair();
        let told = link.replies(Json, b"{\"status\":\"success\"}\n", |_, _, _| ());
        assert!(told.unwrap_err().contains("without a request"));
    }

    #[test]
    fn a_full_socket_keeps_the_rest() {
        let (mut link, mut server) = pair();
        link.out = vec![7; 16 << 20];
        let (flushed, first) = link.flush().unwrap();
        assert_eq!(flushed, Flushed::SocketFull);
        let mut got = 0;
        let mut sent = first;
        let mut buffer = vec![0; 1 << 20];
        while got < 16 << 20 {
            got += server.read(&mut buffer).unwrap();
            sent += link.flush().unwrap().1;
        }
        assert_eq!((sent, link.out.len()), (16 << 20, 0));
    }
}
