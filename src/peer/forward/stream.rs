//! One connection between two nodes that carries forwarded requests: frames in, frames out, never waiting.
//!
//! Bounded by its users: they look at [`Stream::unsent`] before they add frames, and read only as far as they can keep.

use crate::peer::forward::PeerStream;
use shards::ids::NodeNumber;
use shards::peer::frame::{Frame, FrameReader, FrameWriter, Kind};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

/// Bytes that one read asks for.
const READ_BYTES: usize = 256 << 10;
/// Memory that an empty output keeps.
const KEEP_BYTES: usize = 1 << 20;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) node: NodeNumber,
    socket: TcpStream,
    reader: FrameReader,
    writer: FrameWriter,
    out: Vec<u8>,
    sent: usize,
    /// The kernel may have something to read, as far as was seen.
    is_readable: bool,
    /// The kernel takes bytes, as far as was seen.
    is_writable: bool,
}

impl Stream {
    /// Takes a connection over whose handshake is done.
    pub(super) fn new(peer: PeerStream) -> io::Result<Self> {
        let PeerStream { node, socket, reader, writer } = peer;
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        Ok(Self {
            node,
            socket,
            reader,
            writer,
            out: Vec::new(),
            sent: 0,
            is_readable: true,
            is_writable: true,
        })
    }

    /// What the kernel says of the socket.
    pub(super) fn mark(&mut self, is_readable: bool, is_writable: bool) {
        self.is_readable |= is_readable;
        self.is_writable |= is_writable;
    }

    /// Bytes that the kernel has not taken.
    pub(super) fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Whether [`Stream::flush`] or [`Stream::read`] would do something.
    pub(super) fn has_work(&self, wants_input: bool) -> bool {
        (self.is_writable && self.unsent() > 0) || (wants_input && self.is_readable)
    }

    /// Adds a frame whose payload `write` appends.
    pub(super) fn push(&mut self, kind: Kind, write: impl FnOnce(&mut Vec<u8>)) {
        self.writer.push_with(&mut self.out, kind, write);
    }

    /// Hands the kernel what it takes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.is_writable && self.unsent() > 0 {
            match self.socket.write(&self.out[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.unsent() == 0 {
            self.out.clear();
            self.out.shrink_to(KEEP_BYTES);
            self.sent = 0;
        } else if self.sent > KEEP_BYTES {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }

    /// Reads once; whether anything came. The end of the stream is an error here.
    pub(super) fn read(&mut self) -> io::Result<bool> {
        if !self.is_readable {
            return Ok(false);
        }
        loop {
            match self.socket.read(self.reader.space(READ_BYTES)) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.reader.filled(count);
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.is_readable = false;
                    return Ok(false);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next whole frame that has come.
    pub(super) fn next(&mut self) -> io::Result<Option<Frame<'_>>> {
        self.reader.next().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
