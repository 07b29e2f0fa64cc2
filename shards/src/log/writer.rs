//! Where the next batch goes: placement in segments, framing, and what a cut sets free.
//!
//! Invariants: a batch never spans segments; a block that was placed is never placed again within one life of its
//! segment; each segment begins with a segment start; sequences of entries rise by one; the last block of a segment is
//! kept for a seal. A segment that a cut set free is handed out only after a batch that says so is durable, so that
//! recovery never looks for a segment that was already written over. After a recovery the writer begins a fresh segment, or
//! goes on in the last one where there is no room for another (see `replay`). This file must not perform: the caller writes the frames and says what became durable.

use super::header::{self, BLOCK_BYTES, BatchHeader, BatchKind, HEADER_BYTES, NO_GROUP, PayloadSums};
use super::replay::Recovered;
use super::{LogShape, SegmentEpoch, SegmentId};
use crate::ids::{GroupId, Sequence};
use crate::mutants::{Mutant, is_on};
use std::collections::VecDeque;

/// Counts the frames placed since the writer was made, from 1; the order in which they must become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FrameNumber(pub u64);

/// Where a frame must be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The file.
    pub segment: SegmentId,
    /// Offset in the file in bytes, a multiple of [`BLOCK_BYTES`].
    pub offset: u64,
    /// Length of the frame in bytes, a multiple of [`BLOCK_BYTES`].
    pub bytes: usize,
    /// The frame's number.
    pub frame: FrameNumber,
    /// The newest entries sequence that is durable once this frame and all before it are.
    pub reaches: Sequence,
}

/// Whether a payload can be placed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It fits the open segment.
    Fits,
    /// A segment must be started first.
    NeedsSegment,
    /// It is longer than [`LogShape::payload_bytes_max`] and fits no segment.
    TooLarge,
}

/// A segment of the live log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveSegment {
    /// The file.
    pub segment: SegmentId,
    /// Its life.
    pub epoch: SegmentEpoch,
    /// The first sequence that it holds, or would hold.
    pub first: Sequence,
}

/// The end of a log in its last segment, in which no batch is known to come later anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// Behind the last batch that counts, in bytes.
    pub offset: u64,
    /// Epoch of the segment before it.
    pub previous_epoch: SegmentEpoch,
}

/// The writing end of one log.
#[derive(Debug)]
pub struct LogWriter {
    shape: LogShape,
    /// Oldest first; the last one is open unless the writer is fresh from recovery.
    live: VecDeque<LiveSegment>,
    /// Offset of the next frame in the last live segment, when that one is open.
    open_offset: Option<u64>,
    /// Epoch of the segment before the open one.
    previous_epoch: SegmentEpoch,
    highest_epoch: SegmentEpoch,
    last_sequence: Sequence,
    last_crc: u32,
    last_frame: FrameNumber,
    /// Segments cut off, with the frame that must be durable before each may be written over.
    released: VecDeque<(FrameNumber, SegmentId)>,
}

impl LogWriter {
    /// Continues a log that was replayed. Everything replayed must have been synced before the first frame is written.
    pub fn resume(shape: LogShape, recovered: &Recovered) -> Self {
        Self {
            shape,
            live: recovered.live.iter().copied().collect(),
            open_offset: None,
            previous_epoch: recovered.live.last().map_or(SegmentEpoch(0), |segment| segment.epoch),
            highest_epoch: recovered.highest_epoch,
            last_sequence: recovered.last_sequence,
            last_crc: recovered.last_crc,
            last_frame: FrameNumber(0),
            released: VecDeque::new(),
        }
    }

    /// The shape of the log.
    pub fn shape(&self) -> &LogShape {
        &self.shape
    }

    /// The sequence that the next entries must have.
    pub fn next_sequence(&self) -> Sequence {
        Sequence(self.last_sequence.0 + 1)
    }

    /// The sequence of the last entries placed.
    pub fn last_sequence(&self) -> Sequence {
        self.last_sequence
    }

    /// The epoch that the next segment begins.
    pub fn next_epoch(&self) -> SegmentEpoch {
        SegmentEpoch(self.highest_epoch.0 + 1)
    }

    /// The live segments, oldest first.
    pub fn live(&self) -> impl ExactSizeIterator<Item = &LiveSegment> {
        self.live.iter()
    }

    /// Whether a file is part of the live log.
    pub fn is_live(&self, segment: SegmentId) -> bool {
        self.live.iter().any(|live| live.segment == segment)
    }

    /// Bytes of segment files that the live log takes.
    pub fn live_bytes(&self) -> u64 {
        self.live.len() as u64 * self.shape.segment_bytes
    }

    /// Whether entries with a payload of this length can be placed.
    pub fn fit(&self, payload_bytes: usize) -> Fit {
        if payload_bytes > self.shape.payload_bytes_max() {
            return Fit::TooLarge;
        }
        let end = self.open_offset.map(|offset| offset + header::frame_bytes(payload_bytes) as u64);
        match end {
            Some(end) if end <= self.shape.segment_bytes - BLOCK_BYTES as u64 => Fit::Fits,
            _ => Fit::NeedsSegment,
        }
    }

    /// Begins a segment in a file of the right size that is not part of the live log, and frames its start into
    /// `frame`. `start` is the archive of a `StartV1`: hard states and configurations after every batch so far.
    pub fn start_segment(
        &mut self,
        segment: SegmentId,
        start: &[u8],
        durable_upto: Sequence,
        frame: &mut [u8],
    ) -> Placed {
        assert!(start.len() <= self.shape.payload_bytes_max(), "a segment start leaves room for a batch");
        assert!(self.live.iter().all(|live| live.segment != segment), "a live segment is never written over");
        if let Some(last) = self.live.back() {
            self.previous_epoch = last.epoch;
        }
        self.highest_epoch.0 += 1;
        self.live.push_back(LiveSegment { segment, epoch: self.highest_epoch, first: self.next_sequence() });
        self.open_offset = Some(0);
        self.frame(BatchKind::SegmentStart, NO_GROUP, start, durable_upto, frame)
    }

    /// Goes on in the last live segment, behind everything that recovery found there. Only before anything was placed.
    pub fn go_on_in_last(&mut self, end: &LogEnd) {
        assert!(
            self.open_offset.is_none() && self.last_frame == FrameNumber(0),
            "only right after a recovery"
        );
        let last = self.live.back().expect("an end is that of a segment");
        assert!(last.epoch == self.highest_epoch, "no segment began later");
        assert!(
            end.offset > 0
                && end.offset.is_multiple_of(BLOCK_BYTES as u64)
                && end.offset <= self.shape.segment_bytes,
            "a log ends behind a batch"
        );
        self.open_offset = Some(end.offset);
        self.previous_epoch = end.previous_epoch;
    }

    /// Frames entries into `frame`, which has at least `header::frame_bytes(payload.len())` bytes. They must fit.
    pub fn place(
        &mut self,
        sequence: Sequence,
        group: GroupId,
        payload: &[u8],
        durable_upto: Sequence,
        frame: &mut [u8],
    ) -> Placed {
        assert_eq!(self.fit(payload.len()), Fit::Fits, "the caller starts a segment first");
        assert_eq!(sequence, self.next_sequence(), "sequences rise by one");
        self.frame(BatchKind::Entries, group, payload, durable_upto, frame)
    }

    /// Whether the open segment has room for a seal.
    pub fn seal_fits(&self) -> bool {
        self.open_offset.is_some_and(|offset| offset + BLOCK_BYTES as u64 <= self.shape.segment_bytes)
    }

    /// Frames a seal, which restates `durable_upto` and the oldest live segment. `None` when no segment is open or
    /// it is full to the last block; the start of the next segment then says the same.
    pub fn seal(&mut self, durable_upto: Sequence, frame: &mut [u8]) -> Option<Placed> {
        self.seal_fits().then(|| self.frame(BatchKind::Seal, NO_GROUP, &[], durable_upto, frame))
    }

    /// Says that no batch up to `upto` is needed any more. The segments this frees come out of [`LogWriter::take_free`]
    /// once a frame placed from now on is durable. The open segment stays. Returns how many segments were cut off.
    pub fn cut(&mut self, upto: Sequence) -> usize {
        assert!(upto <= self.last_sequence, "only what was written can be cut");
        let before = self.live.len();
        let says_so = FrameNumber(self.last_frame.0 + 1);
        while self.live.len() > 1 && self.live[1].first <= Sequence(upto.0 + 1) {
            let cut = self.live.pop_front().expect("there are two or more");
            self.released.push_back((says_so, cut.segment));
        }
        before - self.live.len()
    }

    /// Whether a cut waits for a durable frame that says so: a seal would bring it about.
    pub fn cut_is_pending(&self) -> bool {
        self.released.back().is_some_and(|(frame, _)| *frame > self.last_frame)
    }

    /// The next segment that may be written over, given that all frames up to `durable` are durable.
    pub fn take_free(&mut self, durable: FrameNumber) -> Option<SegmentId> {
        let (frame, segment) = *self.released.front()?;
        if frame > durable && !is_on(Mutant::SegmentFreeAtOnce) {
            return None;
        }
        self.released.pop_front();
        Some(segment)
    }

    fn frame(
        &mut self,
        kind: BatchKind,
        group: GroupId,
        payload: &[u8],
        durable_upto: Sequence,
        frame: &mut [u8],
    ) -> Placed {
        let offset = self.open_offset.expect("a segment is open");
        let open = *self.live.back().expect("the open segment is live");
        let sequence = self.next_sequence();
        let LiveSegment { epoch: oldest_epoch, first, .. } = self.live[0];
        // Recovery relies on it to tell the log's first segment from one that an earlier recovery gave up.
        assert!(first.0 <= durable_upto.0 + 1, "what came before the oldest live segment is durable");
        let payload_bytes = u32::try_from(payload.len()).expect("a payload is shorter than a segment");
        let bytes = header::frame_bytes(payload.len());
        assert!(offset + bytes as u64 <= self.shape.segment_bytes, "a batch never spans segments");
        let frame = &mut frame[..bytes];
        let payload = fill(payload, header::filler(open.epoch, sequence), frame);
        let too_high = kind == BatchKind::Entries && is_on(Mutant::DurableUptoTooHigh);
        let durable_upto = if too_high { Sequence(sequence.0 - 1) } else { durable_upto };
        let header = BatchHeader {
            kind,
            payload_bytes,
            identity: self.shape.identity,
            group,
            segment: open.segment,
            epoch: open.epoch,
            previous_epoch: self.previous_epoch,
            oldest_epoch,
            offset,
            sequence,
            durable_upto,
            previous_crc: self.last_crc,
            payload,
        };
        let out = frame.first_chunk_mut().expect("a frame is at least a block");
        self.last_crc = header.encode(out);
        self.open_offset = Some(offset + bytes as u64);
        self.last_frame.0 += 1;
        if kind == BatchKind::Entries {
            self.last_sequence = sequence;
        }
        Placed { segment: open.segment, offset, bytes, frame: self.last_frame, reaches: self.last_sequence }
    }
}

/// Lays payload, fill and zeros behind the header's place and returns what payload and fill sum up to.
pub(super) fn fill(payload: &[u8], filler: [u8; 4], frame: &mut [u8]) -> PayloadSums {
    let covered = header::covered_bytes(payload.len());
    let end = HEADER_BYTES + payload.len();
    frame[HEADER_BYTES..end].copy_from_slice(payload);
    for four in frame[end..covered].chunks_mut(filler.len()) {
        four.copy_from_slice(&filler[..four.len()]);
    }
    frame[covered..].fill(0);
    PayloadSums::of(&frame[HEADER_BYTES..covered])
}
