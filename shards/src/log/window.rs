//! A view of one segment at a time, read in large steps, 16-aligned wherever blocks are.
//!
//! Holds bytes and knows where they come from; must not interpret them.

use super::SegmentId;
use super::payload::PayloadBuffer;
use super::replay::WINDOW_BYTES;

/// The bytes read last.
#[derive(Default)]
pub(super) struct PayloadWindow {
    buffer: PayloadBuffer,
    segment: SegmentId,
    start: u64,
}

impl PayloadWindow {
    /// `length` bytes of `segment` from `offset` on, which lie inside its `segment_bytes`. Reads ahead when it must read, but for
    /// the start of a segment: of most segments only that is looked at in a first pass.
    pub(super) fn get<E>(
        &mut self,
        segment_bytes: u64,
        segment: SegmentId,
        offset: u64,
        length: usize,
        read: impl FnOnce(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<&[u8], E> {
        assert!(offset + length as u64 <= segment_bytes, "reads stay inside the segment");
        let end = self.start + self.buffer.len() as u64;
        let held = self.segment == segment && self.start <= offset && offset + length as u64 <= end;
        if !held {
            let wanted = if offset == 0 { length } else { length.max(WINDOW_BYTES) };
            let ahead = (wanted as u64).min(segment_bytes - offset);
            self.buffer.resize(usize::try_from(ahead).expect("a segment fits memory"), 0);
            (self.segment, self.start) = (segment, offset);
            if let Err(error) = read(offset, &mut self.buffer) {
                self.buffer.clear();
                return Err(error);
            }
        }
        let from = usize::try_from(offset - self.start).expect("the window holds the offset");
        Ok(&self.buffer[from..from + length])
    }
}
