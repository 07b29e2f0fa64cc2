//! A connection between nodes: its socket and the frames on it, before it has an owner or with one that may block.
//!
//! Whoever owns a raft or forward connection takes the parts and reads and writes without blocking; the handshake, the
//! founding, control links and snapshots block, with a deadline for each frame. Invariant: reads and writes end at the
//! deadline or a failure, whatever the other side does.

use super::forward::PeerStream;
use crate::clock::Clock;
use rustix::net::sockopt;
use shards::ids::NodeNumber;
use shards::log::payload::PayloadBuffer;
use shards::peer::PayloadRefused;
use shards::peer::frame::{Expected, FrameError, FrameReader, FrameWriter, HANDSHAKE_BYTES_MAX, Kind};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

/// Sent data that nobody acknowledges for so long means a broken connection: far below the kernel's own quarter of an hour,
/// so that a healed partition is noticed by dialling anew.
const UNACKNOWLEDGED_MS_MAX: u32 = 2000;
/// Silence after which the kernel asks whether the other side is still there, and the time between its questions.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(3);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_TRIES: u32 = 3;
/// Bytes asked for at once while blocking.
const READ_BYTES: usize = 16 << 10;

/// A connection after its handshake.
#[derive(Debug)]
pub struct Socket {
    /// The socket; blocking as it comes.
    pub stream: TcpStream,
    /// Takes what comes apart.
    pub reader: FrameReader,
    /// Frames what goes.
    pub writer: FrameWriter,
    /// The node at the other end.
    pub node: NodeNumber,
}

impl From<Socket> for PeerStream {
    fn from(socket: Socket) -> Self {
        let Socket { stream, reader, writer, node } = socket;
        Self { node, socket: stream, reader, writer }
    }
}

/// Why a conversation ended.
#[derive(Debug)]
pub enum TalkError {
    /// The socket failed or was closed, or the time was over.
    Io(io::Error),
    /// What came was no frame of this connection.
    Frame(FrameError),
    /// What came made no sense.
    Payload(PayloadRefused),
    /// A frame of another kind than belongs here.
    Unexpected(Kind),
}

impl fmt::Display for TalkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::WouldBlock => f.write_str("no answer in time"),
            Self::Io(error) => error.fmt(f),
            Self::Frame(error) => error.fmt(f),
            Self::Payload(error) => error.fmt(f),
            Self::Unexpected(kind) => write!(f, "a frame of kind {kind:?} that nobody asked for"),
        }
    }
}

impl From<io::Error> for TalkError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<FrameError> for TalkError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<PayloadRefused> for TalkError {
    fn from(error: PayloadRefused) -> Self {
        Self::Payload(error)
    }
}

/// A connection that is spoken on with blocking calls.
#[derive(Debug)]
pub struct Talk {
    stream: TcpStream,
    reader: FrameReader,
    writer: FrameWriter,
    out: Vec<u8>,
    clock: Clock,
}

impl Talk {
    /// A connection at its beginning: frames are those of a handshake.
    ///
    /// # Errors
    /// When the socket's options cannot be set.
    pub fn begin(stream: TcpStream, cluster: u128) -> io::Result<Self> {
        prepare(&stream)?;
        let expected = Expected { cluster: None, session: 0, payload_bytes_max: HANDSHAKE_BYTES_MAX };
        Ok(Self {
            stream,
            reader: FrameReader::new(expected),
            writer: FrameWriter::new(cluster, 0),
            out: Vec::new(),
            clock: Clock::start(),
        })
    }

    /// Goes on with a connection after its handshake.
    pub fn resume(socket: Socket) -> Self {
        let Socket { stream, reader, writer, .. } = socket;
        Self { stream, reader, writer, out: Vec::new(), clock: Clock::start() }
    }

    /// Goes on with the frames of a session.
    pub fn begin_session(&mut self, cluster: u128, session: u64, payload_bytes_max: usize) {
        self.reader.begin_session(Expected { cluster: Some(cluster), session, payload_bytes_max });
        self.writer = FrameWriter::new(cluster, session);
    }

    /// The parts, for an owner that does not block.
    pub fn into_socket(self, node: NodeNumber) -> Socket {
        Socket { stream: self.stream, reader: self.reader, writer: self.writer, node }
    }

    /// The address of the other side, for logs.
    pub fn address(&self) -> String {
        self.stream.peer_addr().map_or_else(|_| "somebody".to_owned(), |address| address.to_string())
    }

    /// The address of this machine on this connection.
    pub fn local_address(&self) -> Option<IpAddr> {
        self.stream.local_addr().ok().map(|address| address.ip())
    }

    /// Sends one frame within this time.
    ///
    /// # Errors
    /// When the socket fails or the time is over.
    pub fn send(&mut self, kind: Kind, payload: &[u8], within: Duration) -> Result<(), TalkError> {
        self.out.clear();
        self.writer.push(&mut self.out, kind, payload);
        let deadline_us = self.deadline_us(within);
        let mut sent = 0;
        while sent < self.out.len() {
            self.stream.set_write_timeout(Some(self.left(deadline_us)?))?;
            match self.stream.write(&self.out[sent..]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(bytes) => sent += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits for one frame of any of these kinds and gives its payload to `read`.
    ///
    /// # Errors
    /// When the connection ends, the time is over, or what comes is refused.
    pub fn receive<T>(
        &mut self,
        kinds: &[Kind],
        within: Duration,
        read: impl FnOnce(Kind, &[u8], &mut PayloadBuffer) -> Result<T, PayloadRefused>,
    ) -> Result<T, TalkError> {
        let deadline_us = self.deadline_us(within);
        while !self.reader.has_frame()? {
            self.stream.set_read_timeout(Some(self.left(deadline_us)?))?;
            match self.stream.read(self.reader.space(READ_BYTES)) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(bytes) => self.reader.filled(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        let frame = self.reader.next()?.expect("a whole frame is there");
        if !kinds.contains(&frame.kind) {
            return Err(TalkError::Unexpected(frame.kind));
        }
        Ok(read(frame.kind, frame.payload, &mut PayloadBuffer::new())?)
    }

    fn deadline_us(&self, within: Duration) -> u64 {
        self.clock.elapsed_us() + u64::try_from(within.as_micros()).unwrap_or(u64::MAX / 2)
    }

    /// Time until the deadline, never nothing: a timeout of zero would mean none.
    fn left(&self, deadline_us: u64) -> io::Result<Duration> {
        let left_us = deadline_us.saturating_sub(self.clock.elapsed_us());
        if left_us == 0 {
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            Ok(Duration::from_micros(left_us.max(1000)))
        }
    }
}

/// Small messages leave at once, and a vanished peer is noticed.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS_MAX)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_TRIES)?;
    Ok(())
}
