//! Reading a log back after a crash: which batches count, in which order, and whether what is missing was ever durable.
//!
//! How it works. First every block of every file is looked at for sound headers. Their statements, that everything up
//! to `durable_upto` was durable and that nothing before `oldest_epoch` is needed, are true whenever they were made, also
//! in earlier lives of a file and in batches that no longer count, because recovery either reaches what was durable or
//! refuses. So they are gathered before anything is decided; reading on past a bad batch is part of it.
//!
//! Every header names the life of its segment (epoch) and the life before that, so the live chain is followed backwards from
//! the highest epoch found, to a segment whose valid starts lead without a gap to the oldest one needed, and then walked
//! forwards. A batch counts only if everything
//! in its header agrees with its place: identity, file, epoch, offset, sequence, the CRC of the batch before it, and all
//! checksums. Where the next segment continues the log exactly at the batch just read, the walk goes over to it, whatever
//! stands behind. Where the walk ends:
//!
//! - a statement at or past the sequence where the walk ended proves damage: [`Corruption`]; the manifest's counts too;
//! - a segment that the manifest lists and that is needed must be there as a file;
//! - a batch there that is one flipped bit from valid is damage too;
//! - otherwise it is a torn tail, cut off by not being walked.
//!
//! Nothing is erased or written over after a torn tail. **The log goes on in a fresh segment after every recovery**, with an epoch
//! above every epoch found in any sound header, after the manifest has listed what is still needed: the statement that a
//! segment is not may stand in one that is written over next. Its start names the segment, the sequence and the CRC that it follows, so
//! every later recovery leaves the torn remains at that same point without judging them again, and no remains can be
//! taken for a new batch: they carry another epoch or lie in a file that is left earlier. This is safer than continuing
//! in the same file: a write still in flight when the old process died can land late without touching what follows. The
//! price is a segment a restart; so a trailing segment without entries is not kept.
//!
//! The exception is a disk without room for another segment: a crash loop would use up the reserve, and then the shard could
//! not even vote. There the last segment is written on behind its last batch ([`LogEnd`]), if no segment began later. That is
//! sound, and only less roomy for late writes, which the lock of the data directory (held by the log's ring) keeps away: remains
//! behind the end carry this life's epoch, but follow another batch, so the chain refuses them wherever the new batches end.
//!
//! Memory: one window of [`WINDOW_BYTES`], or the largest batch. The log is read twice, the second time mostly from the
//! page cache. This file must not write, and never lets a batch count
//! that its checksums do not cover. On an error the caller must forget every batch it was given.

use super::chain::{Chain, Statements, chain_of};
use super::header::{self, BLOCK_BYTES, BatchHeader, BatchKind, HEADER_BYTES, HeaderError};
use super::manifest::Manifest;
use super::repair;
use super::writer::{LiveSegment, LogEnd};
use super::{Corruption, LogShape, PayloadWindow, Proof, Reason, ReplayError, SegmentEpoch, SegmentId, Tail};
use crate::ids::{GroupId, Sequence};
use crate::mutants::{Mutant, is_on};

/// How much is read at once, in bytes.
pub const WINDOW_BYTES: usize = 1 << 20;

/// Where segment bytes come from.
pub trait SegmentSource {
    /// Why a read can fail.
    type Error;

    /// Fills `into` with the bytes of `segment` from `offset` on. Never asked beyond the segment's size.
    fn read(&mut self, segment: SegmentId, offset: u64, into: &mut [u8]) -> Result<(), Self::Error>;
}

/// A segment file found in the shard's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    /// Which file.
    pub segment: SegmentId,
    /// Its size in bytes.
    pub bytes: u64,
}

/// One batch of the live log, given in order.
#[derive(Clone, Copy, Debug)]
pub struct ReplayedBatch<'a> {
    /// Entries or segment start; seals are not given.
    pub kind: BatchKind,
    /// The group of entries.
    pub group: GroupId,
    /// The sequence of entries.
    pub sequence: Sequence,
    /// The payload, 16-aligned, exact length.
    pub payload: &'a [u8],
    /// Where it stands, for messages.
    pub segment: SegmentId,
    /// Where in the file, in bytes.
    pub offset: u64,
}

/// What the writer needs to go on, and what the operator may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Segments that hold the live log, oldest first. The caller syncs every file of the log before it goes on.
    pub live: Vec<LiveSegment>,
    /// Files that hold nothing that is needed; they may be written over.
    pub free: Vec<SegmentId>,
    /// The last sequence; 0 when the log is empty. After the sync everything up to it is durable.
    pub last_sequence: Sequence,
    /// Header CRC of the last batch that counts.
    pub last_crc: u32,
    /// The highest epoch in any sound header.
    pub highest_epoch: SegmentEpoch,
    /// How the log ended.
    pub tail: Tail,
    /// Where the last live segment could be written on, if it had to be.
    pub end: Option<LogEnd>,
}

/// Replays the segments of one log. `files` are all that exist, in any order; `manifest` is what was known about the log
/// when it was written last; `on_batch` gets the live batches.
pub fn replay<S: SegmentSource>(
    shape: &LogShape,
    files: &[SegmentFile],
    manifest: &Manifest,
    source: &mut S,
    on_batch: &mut dyn FnMut(ReplayedBatch<'_>),
) -> Result<Recovered, ReplayError<S::Error>> {
    if let Some(file) = files.iter().find(|file| file.bytes != shape.segment_bytes) {
        return Err(corrupt(file.segment, 0, Reason::Size(file.bytes), Proof::File));
    }
    let mut machine = Machine::new(shape, source);
    let fronts = files.iter().map(|file| machine.front(file.segment)).collect::<Result<Vec<_>, _>>()?;
    let starts = starts_of(&fronts)?;
    for file in files {
        machine.survey(file.segment)?;
    }
    machine.heed(manifest);
    let chain = chain_of(&starts, &machine.statements);
    let walk = machine.walk(&chain.segments, on_batch)?;
    machine.judge_manifest(files, manifest)?;
    machine.judge(&fronts, &chain, &walk)?;
    machine.judge_end(manifest, &walk)?;
    Ok(machine.conclude(&fronts, &chain.segments, &walk))
}

/// What stands at the beginning of a file.
enum Front {
    Start(SegmentId, BatchHeader),
    /// No valid start, and the header it would be if one flipped bit were set right.
    Bad(SegmentId, Reason, Option<BatchHeader>),
}

/// How far the walk came.
struct Walk {
    /// Number of chain segments whose start counted.
    reached: usize,
    /// Chain segments that are needed: all up to the last one that holds entries, and the first of a log that was cut.
    kept: usize,
    /// CRC of the last batch in the last kept segment.
    kept_crc: u32,
    /// Where the last kept segment's walk ended.
    kept_end: u64,
    last_sequence: Sequence,
    stop: Stop,
}

/// Where and why the walk ended.
#[derive(Clone, Copy)]
struct Stop {
    segment: SegmentId,
    offset: u64,
    reason: Reason,
    one_bit: bool,
}

/// What the next batch must agree with.
struct Expected {
    sequence: Sequence,
    crc: u32,
}

struct Machine<'a, S> {
    shape: &'a LogShape,
    source: &'a mut S,
    window: PayloadWindow,
    statements: Statements,
}

impl<'a, S: SegmentSource> Machine<'a, S> {
    fn new(shape: &'a LogShape, source: &'a mut S) -> Self {
        Self { shape, source, window: PayloadWindow::default(), statements: Statements::default() }
    }

    fn bytes(
        &mut self,
        segment: SegmentId,
        offset: u64,
        length: usize,
    ) -> Result<&[u8], ReplayError<S::Error>> {
        let source = &mut *self.source;
        self.window
            .get(self.shape.segment_bytes, segment, offset, length, |at, into| source.read(segment, at, into))
            .map_err(|error| ReplayError::Read(segment, error))
    }

    /// Notes what a sound header states, if it is about this place at all.
    fn observe(&mut self, segment: SegmentId, offset: u64, header: &BatchHeader) -> bool {
        let here =
            header.identity == self.shape.identity && header.segment == segment && header.offset == offset;
        if here {
            let statements = &mut self.statements;
            if header.durable_upto > statements.durable_upto {
                statements.durable_upto = header.durable_upto;
                statements.durable_in = segment;
            }
            statements.oldest_epoch = statements.oldest_epoch.max(header.oldest_epoch);
            statements.highest_epoch = statements.highest_epoch.max(header.epoch);
            if header.previous_epoch < header.epoch {
                statements.links.insert(header.epoch, (header.previous_epoch, segment));
            }
        }
        here
    }

    fn front(&mut self, segment: SegmentId) -> Result<Front, ReplayError<S::Error>> {
        let block = self.bytes(segment, 0, BLOCK_BYTES)?;
        let header = match BatchHeader::decode(block) {
            Ok((header, _)) => header,
            Err(HeaderError::Format(format)) => return Err(ReplayError::NewerFormat(segment, format)),
            Err(error) => {
                let near = repair::one_bit_header(block).map(|(header, _)| header);
                return Ok(Front::Bad(
                    segment,
                    reason_of(error),
                    near.filter(|near| self.is_start(segment, near)),
                ));
            }
        };
        if header.identity != self.shape.identity {
            return Err(ReplayError::Foreign(segment));
        }
        if !self.is_start(segment, &header) {
            return Ok(Front::Bad(segment, Reason::Field, None));
        }
        self.observe(segment, 0, &header);
        match self.payload_fault(segment, 0, &header)? {
            None => Ok(Front::Start(segment, header)),
            Some((reason, one_bit)) => Ok(Front::Bad(segment, reason, one_bit.then_some(header))),
        }
    }

    fn is_start(&self, segment: SegmentId, header: &BatchHeader) -> bool {
        let here = header.identity == self.shape.identity && header.segment == segment && header.offset == 0;
        here && header.kind == BatchKind::SegmentStart && header.previous_epoch < header.epoch
    }

    /// What is wrong with the payload behind a sound header, and whether a single flipped bit explains it.
    fn payload_fault(
        &mut self,
        segment: SegmentId,
        offset: u64,
        header: &BatchHeader,
    ) -> Result<Option<(Reason, bool)>, ReplayError<S::Error>> {
        let payload_bytes = header.payload_bytes as usize;
        let frame_bytes = header::frame_bytes(payload_bytes) as u64;
        if payload_bytes > self.shape.payload_bytes_max() || offset + frame_bytes > self.shape.segment_bytes {
            return Ok(Some((Reason::Length, false)));
        }
        let covered = self.bytes(segment, offset, header::covered_bytes(payload_bytes))?;
        if header.payload.fit(&covered[HEADER_BYTES..]) || is_on(Mutant::PayloadCrcSkipped) {
            return Ok(None);
        }
        Ok(Some((Reason::PayloadCrc, repair::one_bit_payload(covered, &header.payload))))
    }

    fn walk(
        &mut self,
        chain: &[(SegmentId, BatchHeader)],
        on_batch: &mut dyn FnMut(ReplayedBatch<'_>),
    ) -> Result<Walk, ReplayError<S::Error>> {
        let Some((first, start)) = chain.first() else {
            let stop = Stop { segment: SegmentId(0), offset: 0, reason: Reason::Blank, one_bit: false };
            let last_sequence = Sequence(0);
            return Ok(Walk { reached: 0, kept: 0, kept_crc: 0, kept_end: 0, last_sequence, stop });
        };
        let mut expected = Expected { sequence: start.sequence, crc: start.previous_crc };
        let stop = Stop { segment: *first, offset: 0, reason: Reason::Chain, one_bit: false };
        let last_sequence = Sequence(start.sequence.0 - 1);
        let mut walk =
            Walk { reached: 0, kept: 0, kept_crc: start.previous_crc, kept_end: 0, last_sequence, stop };
        for (place, (segment, start)) in chain.iter().enumerate() {
            if start.sequence != expected.sequence || start.previous_crc != expected.crc {
                assert!(place > 0, "the first segment is what the walk expects");
                return Ok(walk);
            }
            walk.reached = place + 1;
            let next = chain.get(place + 1).map(|(_, next)| next);
            let begun_at = expected.sequence;
            walk.stop = self.walk_segment(*segment, start, next, &mut expected, on_batch)?;
            walk.last_sequence = Sequence(expected.sequence.0 - 1);
            // The first one says where the log goes on, if everything in it and before it was cut off or torn.
            let goes_on_here = place == 0 && begun_at > Sequence(1);
            if expected.sequence > begun_at || goes_on_here {
                walk.kept = place + 1;
                walk.kept_crc = expected.crc;
                walk.kept_end = walk.stop.offset;
            }
        }
        Ok(walk)
    }

    /// Walks one segment up to a bad batch, or to where `next` takes over.
    fn walk_segment(
        &mut self,
        segment: SegmentId,
        start: &BatchHeader,
        next: Option<&BatchHeader>,
        expected: &mut Expected,
        on_batch: &mut dyn FnMut(ReplayedBatch<'_>),
    ) -> Result<Stop, ReplayError<S::Error>> {
        let mut offset = 0;
        loop {
            let taken_over = next
                .is_some_and(|next| next.sequence == expected.sequence && next.previous_crc == expected.crc);
            let stop = |reason, one_bit| Stop { segment, offset, reason, one_bit };
            if offset > 0 && taken_over {
                return Ok(stop(Reason::End, false));
            }
            if offset == self.shape.segment_bytes {
                return Ok(stop(Reason::End, false));
            }
            let (header, crc) = match self.batch_at(segment, offset, start.epoch, expected)? {
                Ok(found) => found,
                Err((reason, one_bit)) => return Ok(stop(reason, one_bit)),
            };
            if header.kind != BatchKind::Seal {
                let covered =
                    self.bytes(segment, offset, header::covered_bytes(header.payload_bytes as usize))?;
                let payload = &covered[HEADER_BYTES..][..header.payload_bytes as usize];
                let (kind, group, sequence) = (header.kind, header.group, header.sequence);
                on_batch(ReplayedBatch { kind, group, sequence, payload, segment, offset });
            }
            if header.kind == BatchKind::Entries {
                expected.sequence.0 += 1;
            }
            expected.crc = crc;
            offset += header::frame_bytes(header.payload_bytes as usize) as u64;
        }
    }

    /// The valid batch that stands at a place, or why there is none and whether a single flipped bit explains it.
    #[expect(clippy::type_complexity, reason = "the outer error is the source's, the inner one a finding")]
    fn batch_at(
        &mut self,
        segment: SegmentId,
        offset: u64,
        epoch: SegmentEpoch,
        expected: &Expected,
    ) -> Result<Result<(BatchHeader, u32), (Reason, bool)>, ReplayError<S::Error>> {
        let takes_any = is_on(Mutant::StaleBatchReplayed);
        let fits = |header: &BatchHeader| {
            let kind = (header.kind == BatchKind::SegmentStart) == (offset == 0);
            let follows = header.sequence == expected.sequence && header.previous_crc == expected.crc;
            ((header.epoch == epoch || takes_any) && kind, follows || takes_any)
        };
        let block = self.bytes(segment, offset, BLOCK_BYTES)?;
        let (header, crc) = match BatchHeader::decode(block) {
            Ok(found) => found,
            Err(HeaderError::Format(format)) => return Err(ReplayError::NewerFormat(segment, format)),
            Err(error) => {
                let near = repair::one_bit_header(block);
                let one_bit = near.is_some_and(|(near, _)| {
                    near.segment == segment && near.offset == offset && fits(&near) == (true, true)
                });
                return Ok(Err((reason_of(error), one_bit)));
            }
        };
        if !self.observe(segment, offset, &header) {
            return Ok(Err((Reason::Field, false)));
        }
        match fits(&header) {
            (true, true) => {}
            (true, false) => return Ok(Err((Reason::Chain, false))),
            (false, _) if header.epoch < epoch => return Ok(Err((Reason::Stale, false))),
            (false, _) => return Ok(Err((Reason::Field, false))),
        }
        let fault = self.payload_fault(segment, offset, &header)?;
        Ok(fault.map_or(Ok((header, crc)), Err))
    }

    /// Gathers what every sound header in a file states.
    fn survey(&mut self, segment: SegmentId) -> Result<(), ReplayError<S::Error>> {
        let mut offset = 0;
        while offset < self.shape.segment_bytes {
            if let Ok((header, _)) = BatchHeader::decode(self.bytes(segment, offset, BLOCK_BYTES)?) {
                self.observe(segment, offset, &header);
            }
            offset += BLOCK_BYTES as u64;
        }
        Ok(())
    }

    /// Adds what the manifest states. It was true when it was written, like the rest.
    fn heed(&mut self, manifest: &Manifest) {
        let statements = &mut self.statements;
        statements.manifest_upto = manifest.durable_upto;
        statements.oldest_epoch = statements.oldest_epoch.max(manifest.oldest_epoch());
    }

    /// Whether every segment is there that the manifest lists and no statement gives up. The file of a new segment was there
    /// before the manifest listed it, and is removed only after a batch that gives it up is durable.
    fn judge_manifest(
        &self,
        files: &[SegmentFile],
        manifest: &Manifest,
    ) -> Result<(), ReplayError<S::Error>> {
        let is_gone = |segment| files.iter().all(|file| file.segment != segment);
        let oldest = self.statements.oldest_epoch;
        let lost = manifest.segments.iter().find(|listed| listed.epoch >= oldest && is_gone(listed.segment));
        lost.map_or(Ok(()), |listed| Err(corrupt(listed.segment, 0, Reason::Gone, Proof::Listed)))
    }

    /// Whether the walk came as far as the manifest knows.
    fn judge_end(&self, manifest: &Manifest, walk: &Walk) -> Result<(), ReplayError<S::Error>> {
        let Stop { segment, offset, reason, .. } = walk.stop;
        if manifest.durable_upto <= walk.last_sequence {
            return Ok(());
        }
        Err(corrupt(segment, offset, reason, Proof::ManifestUpto(manifest.durable_upto)))
    }

    fn judge(&self, fronts: &[Front], chain: &Chain, walk: &Walk) -> Result<(), ReplayError<S::Error>> {
        let statements = &self.statements;
        let stop = walk.stop;
        if is_on(Mutant::RotTakenForTear) {
            return Ok(());
        }
        if statements.durable_upto > walk.last_sequence {
            let proof = Proof::DurableUpto(statements.durable_upto);
            let bad_front = fronts.iter().find_map(|front| match front {
                Front::Bad(segment, reason, _) if *segment == statements.durable_in => {
                    Some((*segment, *reason))
                }
                _ => None,
            });
            return Err(match (bad_front, chain.broken) {
                (Some((segment, reason)), _) => corrupt(segment, 0, reason, proof),
                (None, Some((after, epoch))) => missing(fronts, statements, after, epoch, proof),
                (None, None) => corrupt(stop.segment, stop.offset, stop.reason, proof),
            });
        }
        if stop.one_bit {
            return Err(corrupt(stop.segment, stop.offset, stop.reason, Proof::OneBit));
        }
        let last_epoch = chain.segments.last().map_or(SegmentEpoch(0), |(_, start)| start.epoch);
        for front in fronts {
            if let Front::Bad(segment, reason, Some(near)) = front
                && near.epoch > last_epoch
            {
                return Err(corrupt(*segment, 0, *reason, Proof::OneBit));
            }
        }
        Ok(())
    }

    fn conclude(&self, fronts: &[Front], chain: &[(SegmentId, BatchHeader)], walk: &Walk) -> Recovered {
        let oldest = self.statements.oldest_epoch;
        let kept = &chain[..walk.kept];
        // The last one stays even if it is cut: it says where the log goes on.
        let last = kept.last().map_or(oldest, |(_, start)| start.epoch);
        let live: Vec<LiveSegment> = kept
            .iter()
            .filter(|(_, start)| start.epoch >= oldest.min(last))
            .map(|(segment, start)| LiveSegment {
                segment: *segment,
                epoch: start.epoch,
                first: start.sequence,
            })
            .collect();
        let is_live = |segment| live.iter().any(|live| live.segment == segment);
        let free = fronts.iter().map(Front::segment).filter(|segment| !is_live(*segment)).collect();
        let clean = walk.reached == chain.len()
            && matches!(walk.stop.reason, Reason::Blank | Reason::Stale | Reason::End);
        let Stop { segment, offset, reason, .. } = walk.stop;
        Recovered {
            live,
            free,
            last_sequence: walk.last_sequence,
            last_crc: walk.kept_crc,
            highest_epoch: self.statements.highest_epoch,
            tail: if clean { Tail::Clean } else { Tail::Torn { segment, offset, reason } },
            // A segment that began later anywhere, with entries or without, would be taken for what follows here.
            end: kept
                .last()
                .filter(|(_, start)| start.epoch == self.statements.highest_epoch)
                .map(|(_, start)| LogEnd { offset: walk.kept_end, previous_epoch: start.previous_epoch }),
        }
    }
}

impl Front {
    fn segment(&self) -> SegmentId {
        match self {
            Self::Start(segment, _) | Self::Bad(segment, ..) => *segment,
        }
    }
}

/// The valid starts by epoch.
fn starts_of<E>(fronts: &[Front]) -> Result<Vec<(SegmentId, BatchHeader)>, ReplayError<E>> {
    let mut starts: Vec<(SegmentId, BatchHeader)> = fronts
        .iter()
        .filter_map(|front| match front {
            Front::Start(segment, header) => Some((*segment, *header)),
            Front::Bad(..) => None,
        })
        .collect();
    starts.sort_by_key(|(_, start)| start.epoch);
    match starts.windows(2).find(|pair| pair[0].1.epoch == pair[1].1.epoch) {
        Some(pair) => Err(corrupt(pair[1].0, 0, Reason::Twice(pair[1].1.epoch), Proof::File)),
        None => Ok(starts),
    }
}

/// Segment `epoch`, which the one in `after` follows, is needed and not there. When a file is one bit from being it, or has later
/// batches of it, that file is named.
fn missing<E>(
    fronts: &[Front],
    statements: &Statements,
    after: SegmentId,
    epoch: SegmentEpoch,
    proof: Proof,
) -> ReplayError<E> {
    let home = statements.links.get(&epoch).map(|(_, segment)| *segment);
    let near = fronts.iter().find_map(|front| match front {
        Front::Bad(segment, reason, Some(near)) if near.epoch == epoch => Some((*segment, *reason)),
        Front::Bad(segment, reason, _) if Some(*segment) == home => Some((*segment, *reason)),
        _ => None,
    });
    match near {
        Some((segment, reason)) => corrupt(segment, 0, reason, proof),
        None => corrupt(after, 0, Reason::Missing(epoch), proof),
    }
}

fn corrupt<E>(segment: SegmentId, offset: u64, reason: Reason, proof: Proof) -> ReplayError<E> {
    ReplayError::Corrupt(Corruption { segment, offset, reason, proof })
}

fn reason_of(error: HeaderError) -> Reason {
    match error {
        HeaderError::Blank => Reason::Blank,
        HeaderError::Magic => Reason::NotABatch,
        HeaderError::Crc => Reason::HeaderCrc,
        HeaderError::Field | HeaderError::Format(_) => Reason::Field,
    }
}
