//! One send under way: the bytes, what the kernel has taken of them, and the message header that names the rest.
//!
//! While the kernel holds a job the ring owns its box, so neither its bytes nor its header move or change.

use super::super::output::Output;
use io_uring::{opcode, squeue, types};
use std::os::fd::RawFd;

/// Pieces of one vectored send; the rest follows with the next.
const PIECES_MAX: usize = 64;

/// Bytes of one send at most, so that lengths fit the kernel's signed 32 bits.
const SEND_BYTES_MAX: usize = 1 << 30;

/// Output that is being sent.
pub(in crate::front) struct SendJob {
    pub(in crate::front) output: Output,
    /// Bytes that the kernel has taken.
    pub(in crate::front) sent: usize,
    pieces: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl std::fmt::Debug for SendJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendJob")
            .field("output", &self.output)
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}

impl Default for SendJob {
    fn default() -> Self {
        // SAFETY: a msghdr consists of integers and pointers, for which all zeros is a valid value.
        let header = unsafe { std::mem::zeroed() };
        Self { output: Output::default(), sent: 0, pieces: Vec::new(), header }
    }
}

impl SendJob {
    /// Bytes that the kernel has not taken.
    pub(in crate::front) fn left(&self) -> usize {
        self.output.len() - self.sent
    }

    /// The submission that hands over what is left. The entry holds pointers into this job, so the job must neither move
    /// nor change until the kernel is done with it.
    pub(super) fn entry(&mut self, fd: RawFd) -> squeue::Entry {
        if self.output.cuts.is_empty() {
            let rest = &self.output.bytes[self.sent..];
            let length = rest.len().min(SEND_BYTES_MAX) as u32;
            return opcode::Send::new(types::Fd(fd), rest.as_ptr(), length).flags(libc::MSG_NOSIGNAL).build();
        }
        self.pieces.clear();
        let (pieces, mut room) = (&mut self.pieces, SEND_BYTES_MAX);
        self.output.pieces(self.sent, |piece| {
            let length = piece.len().min(room);
            room -= length;
            pieces.push(libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: length });
            pieces.len() < PIECES_MAX && room > 0
        });
        self.header.msg_iov = self.pieces.as_mut_ptr();
        self.header.msg_iovlen = self.pieces.len();
        opcode::SendMsg::new(types::Fd(fd), &raw const self.header).flags(libc::MSG_NOSIGNAL as u32).build()
    }
}
