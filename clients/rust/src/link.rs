//! One TCP connection that drives a [`Session`] under a deadline.
//!
//! The socket never blocks; waiting is one poll for both directions, so a large pipeline cannot lock up with a server that
//! stops reading until its replies are read. Invariant: after any error the link is dropped, because replies on it could no
//! longer be told apart.

use crate::command::Command;
use crate::error::{Error, Outcome};
use crate::options::ClientOptions;
use crate::reply::Reply;
use crate::route::ShardMap;
use crate::session::{Session, Ticket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Bytes that may wait in the output before no more commands are encoded.
const OUTPUT_BYTES_HIGH: usize = 256 * 1024;
/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;
/// What this library calls itself in HELLO.
pub(crate) const CLIENT_NAME: &str = concat!("strand-rust/", env!("CARGO_PKG_VERSION"));
/// A link unused for this long is looked at before it is used again.
const TRUSTED_IDLE: Duration = Duration::from_millis(50);

/// A connection and its conversation.
#[derive(Debug)]
pub(crate) struct Link {
    stream: TcpStream,
    session: Session,
    scratch: Box<[u8]>,
    last_used: Instant,
    /// What HELLO said of shards and leaders, until it is taken.
    pub(crate) map: Option<ShardMap>,
}

/// Why an exchange ended early.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The connection failed.
    Io(io::Error),
    /// The deadline passed.
    Deadline,
    /// The server sent nonsense.
    Protocol(Error),
}

impl Link {
    /// Connects within the options' time, or until the deadline, and says HELLO when an option needs it.
    pub(crate) fn connect(address: &str, options: &ClientOptions, deadline: Instant) -> Result<Self, Error> {
        let failed = |source| Error::Connect { address: address.to_owned(), source };
        let stream = open(address, options.connect_timeout, deadline).map_err(failed)?;
        stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true)).map_err(failed)?;
        let session = Session::new(options.reply_bytes_max);
        let scratch = vec![0; READ_BYTES].into_boxed_slice();
        let mut link = Self { stream, session, scratch, last_used: Instant::now(), map: None };
        let until = deadline.min(Instant::now() + options.connect_timeout);
        if let Some(hello) = hello(options) {
            link.greet(&hello, until).map_err(|broken| match broken {
                Broken::Io(source) => failed(source),
                Broken::Deadline => failed(ErrorKind::TimedOut.into()),
                Broken::Protocol(error) => error,
            })?;
        }
        if !options.ordered {
            link.session.set_unordered();
        }
        Ok(link)
    }

    fn greet(&mut self, hello: &Command, deadline: Instant) -> Result<(), Broken> {
        self.session.submit(0, hello, None);
        loop {
            if let Some((_, reply)) = self.session.next_reply().map_err(Broken::Protocol)? {
                let reply = reply.into_result().map_err(Broken::Protocol)?;
                // Servers that tell no map, or another one, are asked key by key.
                self.map = reply.result().ok();
                return Ok(());
            }
            self.turn(deadline)?;
        }
    }

    /// Sends `count` commands, of which `submit` queues the given one, and hands over every reply as it comes.
    pub(crate) fn exchange(
        &mut self,
        count: usize,
        window: usize,
        deadline: Instant,
        mut submit: impl FnMut(usize, &mut Session),
        mut reply_to: impl FnMut(Ticket, Reply),
    ) -> Result<(), Broken> {
        let (mut queued, mut answered) = (0, 0);
        while answered < count {
            while queued < count
                && self.session.in_flight() < window
                && self.session.output().len() < OUTPUT_BYTES_HIGH
            {
                submit(queued, &mut self.session);
                queued += 1;
            }
            self.turn(deadline)?;
            while let Some((ticket, reply)) = self.session.next_reply().map_err(Broken::Protocol)? {
                reply_to(ticket, reply);
                answered += 1;
            }
        }
        self.last_used = Instant::now();
        Ok(())
    }

    /// Writes what can be written, waits for the socket, and reads once if there is something to read.
    fn turn(&mut self, deadline: Instant) -> Result<(), Broken> {
        self.write_some().map_err(Broken::Io)?;
        let mut wanted = PollFlags::IN;
        if !self.session.output().is_empty() {
            wanted |= PollFlags::OUT;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Broken::Deadline);
        }
        if self.wait(wanted, left).map_err(Broken::Io)? {
            self.read_some().map_err(Broken::Io)
        } else {
            Ok(())
        }
    }

    /// Waits for the socket; true when reading it will not wait.
    fn wait(&self, wanted: PollFlags, limit: Duration) -> io::Result<bool> {
        let limit = Timespec::try_from(limit).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
        let mut waiting = [PollFd::new(&self.stream, wanted)];
        match poll(&mut waiting, Some(&limit)) {
            Ok(_) => Ok(waiting[0].revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn write_some(&mut self) -> io::Result<()> {
        while !self.session.output().is_empty() {
            match self.stream.write(self.session.output()) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.session.sent(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The server may have said why before it closed: what can still be read is read first.
                Err(error) if error.kind() == ErrorKind::BrokenPipe && self.session.in_flight() > 0 => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read_some(&mut self) -> io::Result<()> {
        match self.stream.read(&mut self.scratch) {
            Ok(0) => Err(io::Error::new(ErrorKind::UnexpectedEof, "the server closed the connection")),
            Ok(count) => {
                self.session.receive(&self.scratch[..count]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the connection is open and at rest. A byte nobody asked for counts as broken.
    pub(crate) fn is_healthy(&self) -> bool {
        let mut byte = [0];
        let silent =
            matches!(self.stream.peek(&mut byte), Err(error) if error.kind() == ErrorKind::WouldBlock);
        silent && self.session.is_quiet()
    }

    /// As [`Link::is_healthy`], without looking at a connection that was in use a moment ago.
    pub(crate) fn is_usable(&self) -> bool {
        self.last_used.elapsed() < TRUSTED_IDLE || self.is_healthy()
    }

    /// How long nothing was sent or received.
    pub(crate) fn idle(&self) -> Duration {
        self.last_used.elapsed()
    }

    /// What was in flight when the link broke.
    pub(crate) fn unanswered(&self) -> Vec<(Ticket, bool)> {
        self.session.unanswered()
    }
}

impl Broken {
    /// The error of a request that is not sent again.
    pub(crate) fn error(&self, sent: bool, after: Duration) -> Error {
        let outcome = if sent { Outcome::Unknown } else { Outcome::NotApplied };
        match self {
            Self::Io(source) => Error::Disconnected { source: copied(source), outcome },
            Self::Deadline => Error::Timeout { after, outcome },
            Self::Protocol(Error::Protocol(what)) => Error::Protocol(what.clone()),
            Self::Protocol(error) => Error::Protocol(error.to_string()),
        }
    }
}

/// A connection that breaks takes all its requests along, and each gets an error of its own.
fn copied(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// The HELLO that the options need, when they need one.
fn hello(options: &ClientOptions) -> Option<Command> {
    let needed = options.token.is_some() || !options.ordered || options.uses_map();
    needed.then(|| {
        Command::new("HELLO")
            .text("client", CLIENT_NAME)
            .optional("ordered", (!options.ordered).then_some(&false))
            .optional("redirect", options.redirect.then_some(&true))
            .optional("token", options.token.as_ref())
    })
}

/// Tries every address that the name resolves to.
fn open(address: &str, timeout: Duration, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name resolves to no address");
    for address in address.to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now()).min(timeout);
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
