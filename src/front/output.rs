//! Bytes for a client that were not handed to the kernel yet, with shared values in place instead of copied.
//!
//! Knows nothing of sockets. The caller bounds it: a connection whose output is long is neither read nor dispatched.

use std::sync::Arc;

/// A sequence of bytes, some of which stand in values shared with the engine's state.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    pub(super) cuts: Vec<Cut>,
    shared_bytes: usize,
}

/// A shared value that stands between `bytes[..at]` and `bytes[at..]`.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) at: usize,
    pub(super) value: Arc<[u8]>,
}

impl Output {
    /// Length of the whole sequence in bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() + self.shared_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a shared value.
    pub(super) fn push_shared(&mut self, value: Arc<[u8]>) {
        if value.is_empty() {
            return;
        }
        self.shared_bytes += value.len();
        self.cuts.push(Cut { at: self.bytes.len(), value });
    }

    /// Empties the sequence and keeps at most `keep_bytes` of its memory.
    pub(super) fn clear(&mut self, keep_bytes: usize) {
        self.bytes.clear();
        if self.bytes.capacity() > keep_bytes {
            self.bytes.shrink_to(keep_bytes);
        }
        self.cuts.clear();
        self.shared_bytes = 0;
    }

    /// Calls `piece` with the contiguous pieces from `offset` on, in order, until it returns false.
    pub(super) fn pieces<'a>(&'a self, offset: usize, mut piece: impl FnMut(&'a [u8]) -> bool) {
        let mut skip = offset;
        let mut emit = |part: &'a [u8]| {
            if skip >= part.len() {
                skip -= part.len();
                return true;
            }
            let rest = &part[std::mem::take(&mut skip)..];
            piece(rest)
        };
        let mut from = 0;
        for cut in &self.cuts {
            if !emit(&self.bytes[from..cut.at]) || !emit(&cut.value) {
                return;
            }
            from = cut.at;
        }
        emit(&self.bytes[from..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(output: &Output, offset: usize) -> Vec<u8> {
        let mut all = Vec::new();
        output.pieces(offset, |piece| {
            assert!(!piece.is_empty());
            all.extend_from_slice(piece);
            true
        });
        all
    }

    #[test]
    fn every_offset_gives_the_rest() {
        let mut output = Output::default();
        output.push_shared(Arc::from(&b"ab"[..]));
        output.bytes.extend_from_slice(b"cde");
        output.push_shared(Arc::from(&b"fg"[..]));
        output.push_shared(Arc::from(&b""[..]));
        output.push_shared(Arc::from(&b"h"[..]));
        output.bytes.extend_from_slice(b"ij");
        assert_eq!(output.len(), 10);
        for offset in 0..=10 {
            assert_eq!(gather(&output, offset), &b"abcdefghij"[offset..]);
        }
        output.clear(0);
        assert!(output.is_empty());
        assert_eq!(gather(&output, 0), b"");
    }
}
