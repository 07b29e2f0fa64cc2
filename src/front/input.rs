//! Received bytes of one connection that were not dispatched yet: an unfinished line, or lines that must wait.
//!
//! A line end is looked for once in each byte, however many pieces a line arrives in. The caller bounds the length.

/// Memory that an emptied input keeps until its connection rests.
const KEEP_BYTES: usize = 64 * 1024;

/// Undispatched bytes, oldest first.
#[derive(Debug, Default)]
pub(super) struct Input {
    bytes: Vec<u8>,
    /// Bytes at the front that were dispatched already.
    start: usize,
    /// Bytes behind `start` in which there is no line end.
    scanned: usize,
}

impl Input {
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn append(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start >= self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the bytes out to be dispatched: the buffer, where they begin, and how far behind that they were searched.
    /// [`Input::restore`] follows.
    pub(super) fn lend(&mut self) -> (Vec<u8>, usize, usize) {
        (std::mem::take(&mut self.bytes), self.start, self.scanned)
    }

    /// Takes the lent buffer back, of which `consumed` more bytes were dispatched; `searched` tells that the rest holds
    /// no line end.
    pub(super) fn restore(&mut self, bytes: Vec<u8>, consumed: usize, searched: bool) {
        self.bytes = bytes;
        self.start += consumed;
        assert!(self.start <= self.bytes.len(), "no more is dispatched than was received");
        self.scanned = if searched { self.len() } else { 0 };
        if self.is_empty() {
            self.clear();
        }
    }

    /// Notes that there is no line end in what is held.
    pub(super) fn mark_searched(&mut self) {
        self.scanned = self.len();
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEEP_BYTES);
        self.start = 0;
        self.scanned = 0;
    }
}
