//! One connection's conversation without the connection: commands in, bytes out; bytes in, replies out.
//!
//! Any runtime can drive it: write [`Session::output`], report with [`Session::sent`], hand what was read to
//! [`Session::receive`] and take replies with [`Session::next_reply`]. Invariants: it performs no I/O and reads no clock;
//! every submitted ticket comes back exactly once, by a reply or by [`Session::unanswered`].

use crate::codec::{LineDecoder, Stamp, encode};
use crate::command::Command;
use crate::error::Error;
use crate::reply::Reply;
use std::collections::{HashMap, VecDeque};

/// The caller's name for a request in flight.
pub type Ticket = u64;

/// Longest reply line that is accepted by default, in bytes: the server's bound on a reply and room for its frame.
pub const REPLY_BYTES_MAX: usize = 65 * 1024 * 1024;

/// A conversation over one connection.
///
/// ```
/// use strand_client::{Command, session::{REPLY_BYTES_MAX, Session}};
///
/// let mut session = Session::new(REPLY_BYTES_MAX);
/// session.submit(1, &Command::new("PING"), None);
/// assert_eq!(session.output(), b"{\"command\":\"PING\"}\n");
/// session.sent(session.output().len());
/// session.receive(b"{\"status\":\"success\",\"result\":\"PONG\"}\n");
/// let (ticket, reply) = session.next_reply()?.expect("a whole line came");
/// assert_eq!((ticket, reply.result_text()), (1, "\"PONG\""));
/// # Ok::<(), strand_client::Error>(())
/// ```
#[derive(Debug)]
pub struct Session {
    decoder: LineDecoder,
    output: Vec<u8>,
    /// Bytes of `output` that were sent.
    output_sent: usize,
    /// Bytes sent and forgotten before `output` began.
    sent_before: u64,
    waiting: Waiting,
}

#[derive(Debug)]
enum Waiting {
    Ordered(VecDeque<InFlight>),
    Unordered { by_id: HashMap<u64, InFlight>, next_id: u64 },
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    ticket: Ticket,
    /// Position of the request's first byte in everything this session sends.
    start: u64,
}

impl Session {
    /// An ordered session, as every connection begins.
    pub fn new(reply_bytes_max: usize) -> Self {
        Self {
            decoder: LineDecoder::new(reply_bytes_max),
            output: Vec::new(),
            output_sent: 0,
            sent_before: 0,
            waiting: Waiting::Ordered(VecDeque::new()),
        }
    }

    /// From here on replies may overtake one another; the caller has sent HELLO with `ordered: false` and has its reply.
    pub fn set_unordered(&mut self) {
        assert!(self.in_flight() == 0, "the mode changes only when nothing is in flight");
        self.waiting = Waiting::Unordered { by_id: HashMap::new(), next_id: 0 };
    }

    /// Queues a command. The ticket comes back with its reply.
    pub fn submit(&mut self, ticket: Ticket, command: &Command, stamp: Option<Stamp<'_>>) {
        let start = self.sent_before + self.output.len() as u64;
        let request = InFlight { ticket, start };
        match &mut self.waiting {
            Waiting::Ordered(queue) => {
                encode(command, stamp, None, &mut self.output);
                queue.push_back(request);
            }
            Waiting::Unordered { by_id, next_id } => {
                encode(command, stamp, Some(*next_id), &mut self.output);
                by_id.insert(*next_id, request);
                *next_id += 1;
            }
        }
    }

    /// Bytes that wait to be written to the connection.
    pub fn output(&self) -> &[u8] {
        &self.output[self.output_sent..]
    }

    /// Notes that the first `count` bytes of [`Session::output`] were written.
    pub fn sent(&mut self, count: usize) {
        assert!(count <= self.output().len(), "more was sent than there was");
        self.output_sent += count;
        if self.output_sent == self.output.len() {
            self.sent_before += self.output_sent as u64;
            self.output.clear();
            self.output.shrink_to(256 * 1024);
            self.output_sent = 0;
        }
    }

    /// Takes bytes that were read from the connection.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// The next whole reply and its ticket. After an error the connection must be closed.
    pub fn next_reply(&mut self) -> Result<Option<(Ticket, Reply)>, Error> {
        let line =
            self.decoder.next_line().map_err(|_| Error::Protocol("a reply line is too long".into()))?;
        let Some(line) = line else { return Ok(None) };
        let (reply, id) = Reply::parse(line)?;
        let request = match &mut self.waiting {
            Waiting::Ordered(queue) => queue.pop_front(),
            Waiting::Unordered { by_id, .. } => id.and_then(|id| by_id.remove(&id)),
        };
        match request {
            Some(request) => Ok(Some((request.ticket, reply))),
            None => Err(Error::Protocol(format!("a reply belongs to no request: {}", reply.line()))),
        }
    }

    /// How many requests wait for a reply.
    pub fn in_flight(&self) -> usize {
        match &self.waiting {
            Waiting::Ordered(queue) => queue.len(),
            Waiting::Unordered { by_id, .. } => by_id.len(),
        }
    }

    /// Whether the connection is at rest: nothing in flight, nothing half sent or half received.
    pub fn is_quiet(&self) -> bool {
        self.in_flight() == 0 && self.output().is_empty() && self.decoder.is_empty()
    }

    /// What is in flight when the connection ends, in order of submission: the ticket, and whether any byte of it was sent.
    pub fn unanswered(&self) -> Vec<(Ticket, bool)> {
        let sent_total = self.sent_before + self.output_sent as u64;
        let mut all: Vec<InFlight> = match &self.waiting {
            Waiting::Ordered(queue) => queue.iter().copied().collect(),
            Waiting::Unordered { by_id, .. } => by_id.values().copied().collect(),
        };
        all.sort_unstable_by_key(|request| request.start);
        all.iter().map(|request| (request.ticket, request.start < sent_total)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn success(id: &str, result: u32) -> String {
        format!("{{{id}\"status\":\"success\",\"result\":{result}}}\n")
    }

    #[test]
    fn ordered_replies_go_to_the_oldest() {
        let mut session = Session::new(1000);
        session.submit(10, &Command::new("PING"), None);
        session.submit(11, &Command::new("PING"), None);
        session.receive(success("", 1).as_bytes());
        assert_eq!(session.next_reply().unwrap().unwrap().0, 10);
        assert!(session.next_reply().unwrap().is_none());
        session.receive(success("", 2).as_bytes());
        assert_eq!(session.next_reply().unwrap().unwrap().0, 11);
        session.receive(success("", 3).as_bytes());
        assert!(session.next_reply().is_err(), "nobody asked for a third");
    }

    #[test]
    fn unordered_replies_go_by_id() {
        let mut session = Session::new(1000);
        session.set_unordered();
        session.submit(10, &Command::new("PING"), None);
        session.submit(11, &Command::new("PING"), None);
        session.receive(success("\"id\":1,", 2).as_bytes());
        session.receive(success("\"id\":0,", 1).as_bytes());
        assert_eq!(session.next_reply().unwrap().unwrap().0, 11);
        assert_eq!(session.next_reply().unwrap().unwrap().0, 10);
        assert_eq!(session.in_flight(), 0);
    }

    #[test]
    fn what_never_left_is_told_apart() {
        let mut session = Session::new(1000);
        for ticket in 0..3 {
            session.submit(ticket, &Command::new("PING"), None);
        }
        session.sent(b"{\"command\":\"PING\"}\n".len() + 1);
        assert_eq!(session.unanswered(), [(0, true), (1, true), (2, false)]);
        session.sent(session.output().len());
        session.submit(3, &Command::new("PING"), None);
        assert_eq!(session.unanswered()[2..], [(2, true), (3, false)]);
    }
}
