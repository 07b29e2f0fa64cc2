//! Damaged logs: a small program of bytes damages a sound log, and recovery must neither panic nor lose nor invent.
//!
//! The first byte chooses the log; what follows are damages, each an operation with its arguments ([`Script`]). As long as
//! nothing is forged (written anew with right checksums), the judge is exact: batches come back in order, each as it was
//! written, and everything that an undamaged header or the manifest states to be durable is there or the log is refused.
//! What was forged is read through to the last field: payloads, entries, records.

use super::Target;
use crate::drive::drive;
use crate::engine::{behaviour, class_of};
use shards::command::entry::Entry;
use shards::command::record::Record;
use shards::ids::{GroupId, Sequence};
use shards::log::header::{self, BLOCK_BYTES, BatchHeader, BatchKind, HEADER_BYTES, PayloadSums};
use shards::log::manifest::{ListedSegment, Manifest};
use shards::log::payload::{ArchivedRecordV1, ArchivedStartV1, PayloadBuffer};
use shards::log::replay::{ReplayedBatch, SegmentFile, SegmentSource, replay};
use shards::log::writer::{Fit, LogWriter, Placed};
use shards::log::{LogIdentity, LogShape, ReplayError, SegmentId};
use shards::shard::image::ImageBuilder;
use shards::state::SessionLimits;
use std::collections::BTreeMap;

const SEGMENT_BYTES: u64 = 32 << 10;
const SEGMENT: usize = SEGMENT_BYTES as usize;
const IDENTITY: LogIdentity = LogIdentity { cluster: 77, key: 5, shard: 3 };
const GROUP: GroupId = GroupId(0);

type Files = BTreeMap<SegmentId, Vec<u8>>;

/// A batch as it was written.
#[derive(Clone)]
struct Frame {
    segment: SegmentId,
    offset: usize,
    bytes: usize,
    /// The sequence of entries; none for starts and seals.
    sequence: Option<u64>,
    durable_upto: u64,
    payload: Vec<u8>,
}

/// A sound log and what is known of it.
struct Base {
    files: Files,
    frames: Vec<Frame>,
    manifest: Manifest,
}

/// See the module's head.
pub(super) struct WalBatches {
    shape: LogShape,
    bases: Vec<Base>,
    /// Of the chosen base, mended after every input.
    files: Files,
    chosen: usize,
    scratch: PayloadBuffer,
}

struct Source<'a>(&'a Files);

impl SegmentSource for Source<'_> {
    type Error = ();

    fn read(&mut self, segment: SegmentId, offset: u64, into: &mut [u8]) -> Result<(), ()> {
        let file = self.0.get(&segment).ok_or(())?;
        into.copy_from_slice(&file[offset as usize..][..into.len()]);
        Ok(())
    }
}

fn base(shape: LogShape, payloads: &[Vec<u8>], start: &[u8], sealed: bool) -> Base {
    let blank = Manifest::blank(IDENTITY, 0);
    let recovered = replay(&shape, &[], &blank, &mut Source(&Files::new()), &mut |_| {});
    let mut writer = LogWriter::resume(shape, &recovered.unwrap_or_else(|_| panic!("an empty log is sound")));
    let mut base = Base { files: Files::new(), frames: Vec::new(), manifest: blank };
    let put = |base: &mut Base, placed: Placed, bytes: &[u8], sequence, upto: Sequence, payload: &[u8]| {
        let file = base.files.entry(placed.segment).or_insert_with(|| vec![0; SEGMENT]);
        file[placed.offset as usize..][..bytes.len()].copy_from_slice(bytes);
        let (segment, offset, bytes) = (placed.segment, placed.offset as usize, bytes.len());
        let (durable_upto, payload) = (upto.0, payload.to_vec());
        base.frames.push(Frame { segment, offset, bytes, sequence, durable_upto, payload });
    };
    for (number, payload) in (1..).zip(payloads) {
        let upto = Sequence(u64::saturating_sub(number, 2));
        if writer.fit(payload.len()) == Fit::NeedsSegment {
            let segment = SegmentId(writer.live().len() as u64 + 1);
            let mut frame = vec![0; header::frame_bytes(start.len())];
            let placed = writer.start_segment(segment, start, upto, &mut frame);
            put(&mut base, placed, &frame, None, upto, start);
        }
        let mut frame = vec![0; header::frame_bytes(payload.len())];
        let placed = writer.place(Sequence(number), GROUP, payload, upto, &mut frame);
        put(&mut base, placed, &frame, Some(number), upto, payload);
    }
    let mut known = Sequence(0);
    if sealed {
        let last = writer.last_sequence();
        let mut frame = vec![0; header::frame_bytes(0)];
        if let Some(placed) = writer.seal(last, &mut frame) {
            put(&mut base, placed, &frame, None, last, b"");
        }
        known = last;
    }
    let live: Vec<ListedSegment> =
        writer.live().map(|live| ListedSegment { segment: live.segment, epoch: live.epoch }).collect();
    base.manifest.advance(known, live.into_iter());
    assert!(base.files.len() > 1 && base.frames.len() > 6, "a log of several segments");
    base
}

/// A reader of operations; zeros behind the end.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> usize {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*byte)
    }

    fn pair(&mut self) -> usize {
        self.byte() | self.byte() << 8
    }

    fn number(&mut self) -> u64 {
        (0..8).fold(0, |sum, place| sum | (self.byte() as u64) << (8 * place))
    }
}

/// What a script did.
#[derive(Default)]
struct Done {
    is_forged: bool,
    /// The files are not those that were: gone, or of another size.
    other_files: bool,
    sizes: BTreeMap<SegmentId, u64>,
}

impl WalBatches {
    /// The target.
    pub(super) fn new() -> Self {
        let shape = LogShape::new(IDENTITY, SEGMENT_BYTES);
        let driven = drive();
        // Real batches, and one of several blocks in the middle.
        let mut payloads: Vec<Vec<u8>> = driven.entries.into_iter().take(9).collect();
        payloads.insert(4, (0..6000_u32).map(|at| ((at * 7) >> 2) as u8).collect());
        let bases =
            vec![base(shape, &payloads, &driven.start, false), base(shape, &payloads, &driven.start, true)];
        let files = bases[0].files.clone();
        Self { shape, bases, files, chosen: 0, scratch: PayloadBuffer::new() }
    }

    /// The base as it was written.
    fn mend(&mut self, chosen: usize) {
        let whole = &self.bases[chosen].files;
        if self.chosen != chosen || self.files.len() != whole.len() {
            self.files.clone_from(whole);
            self.chosen = chosen;
            return;
        }
        for (mine, sound) in self.files.values_mut().zip(whole.values()) {
            mine.copy_from_slice(sound);
        }
    }

    fn block(&self, number: usize) -> (SegmentId, usize) {
        let blocks = SEGMENT / BLOCK_BYTES;
        let number = number % (blocks * self.bases[self.chosen].files.len());
        (SegmentId(1 + (number / blocks) as u64), number % blocks * BLOCK_BYTES)
    }

    fn take_block(&self, (segment, offset): (SegmentId, usize)) -> Option<Vec<u8>> {
        Some(self.files.get(&segment)?[offset..offset + BLOCK_BYTES].to_vec())
    }

    fn put_block(&mut self, (segment, offset): (SegmentId, usize), block: &[u8]) {
        if let Some(file) = self.files.get_mut(&segment) {
            file[offset..offset + BLOCK_BYTES].copy_from_slice(block);
        }
    }

    fn damage(&mut self, script: &mut Script<'_>) -> Done {
        let mut done = Done::default();
        for _ in 0..32 {
            if script.0.is_empty() {
                break;
            }
            match script.byte() % 12 {
                0..3 => {
                    let (block, at, change) = (script.byte(), script.pair(), script.byte());
                    let (segment, offset) = self.block(block);
                    if let Some(file) = self.files.get_mut(&segment) {
                        file[offset + at % BLOCK_BYTES] ^= change as u8;
                    }
                }
                3 => {
                    let block = self.block(script.byte());
                    self.put_block(block, &[0; BLOCK_BYTES]);
                }
                4 => {
                    let (from, to) = (self.block(script.byte()), self.block(script.byte()));
                    if let Some(block) = self.take_block(from) {
                        self.put_block(to, &block);
                    }
                }
                5 => {
                    // A sector of a block, as a torn write leaves it.
                    let ((segment, offset), sectors) = (self.block(script.byte()), script.byte() % 8);
                    if let Some(file) = self.files.get_mut(&segment) {
                        file[offset + sectors * 512..offset + BLOCK_BYTES].fill(0);
                    }
                }
                6..9 => {
                    done.is_forged = true;
                    self.forge_header(script);
                }
                9 => {
                    done.is_forged = true;
                    self.forge_payload(script);
                }
                10 => {
                    done.other_files = true;
                    let segment = SegmentId(1 + script.byte() as u64 % 3);
                    self.files.remove(&segment);
                }
                _ => {
                    done.other_files = true;
                    let segment = SegmentId(1 + script.byte() as u64 % 3);
                    done.sizes.insert(segment, script.pair() as u64);
                }
            }
        }
        done
    }

    /// Writes a number into a header, and its checksum.
    fn forge_header(&mut self, script: &mut Script<'_>) {
        let (place, at, number) = (script.byte(), script.byte(), script.number());
        let frames = &self.bases[self.chosen].frames;
        let frame = &frames[place % frames.len()];
        let Some(file) = self.files.get_mut(&frame.segment) else { return };
        let header = &mut file[frame.offset..frame.offset + HEADER_BYTES];
        let at = 8 + at % (HEADER_BYTES - 4 - 8 - 8);
        header[at..at + 8].copy_from_slice(&number.to_le_bytes());
        let crc = crc32c::crc32c(&header[..HEADER_BYTES - 4]);
        header[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    }

    /// Changes a payload, and writes all checksums.
    fn forge_payload(&mut self, script: &mut Script<'_>) {
        let (place, changes) = (script.byte(), script.byte() % 4);
        let frames = &self.bases[self.chosen].frames;
        let frame = frames[place % frames.len()].clone();
        let Some(file) = self.files.get_mut(&frame.segment) else { return };
        let stored = &mut file[frame.offset..frame.offset + frame.bytes];
        for _ in 0..=changes {
            let (at, byte) = (script.pair(), script.byte() as u8);
            if !frame.payload.is_empty() {
                stored[HEADER_BYTES + at % frame.payload.len()] = byte;
            }
        }
        let Ok((mut header, _)) = BatchHeader::decode(stored) else { return };
        header.payload = PayloadSums::of(&stored[HEADER_BYTES..header::covered_bytes(frame.payload.len())]);
        let head = stored.first_chunk_mut::<HEADER_BYTES>().expect("a frame has a header");
        header.encode(head);
    }

    /// The highest sequence that an undamaged header, or the manifest, states to be durable.
    fn stated(&self, base: &Base) -> u64 {
        let intact = base.frames.iter().filter(|frame| {
            let range = frame.offset..frame.offset + HEADER_BYTES;
            let mine = self.files.get(&frame.segment).map(|file| &file[range.clone()]);
            mine == Some(&base.files[&frame.segment][range])
        });
        intact.map(|frame| frame.durable_upto).max().unwrap_or(0).max(base.manifest.durable_upto.0)
    }
}

/// Reads what a batch holds to the last field.
fn read_through(batch: &ReplayedBatch<'_>, scratch: &mut PayloadBuffer) -> u64 {
    match batch.kind {
        BatchKind::SegmentStart => u64::from(ArchivedStartV1::view(batch.payload, scratch).is_ok()),
        BatchKind::Seal => 2,
        BatchKind::Entries => {
            let Ok(record) = ArchivedRecordV1::view(batch.payload, scratch) else { return 3 };
            let mut told = 4;
            for archived in record.entries.iter() {
                let Ok(mut entry) = Entry::decode(&archived.data) else { continue };
                while let Ok(Some(bytes)) = entry.next_record() {
                    told = behaviour(&[told, u64::from(Record::decode(bytes).is_ok())]);
                }
            }
            told
        }
    }
}

impl Target for WalBatches {
    fn seeds(&self) -> Vec<Vec<u8>> {
        let mut seeds = vec![vec![0], vec![1]];
        for base in 0..2 {
            for operation in 0..12 {
                seeds.push(vec![base, operation, 1, 2, 0, 5]);
                seeds.push(vec![base, operation, 3, 9, 1, 0, 0, 0, 0, 0, 0, 0, operation, 4, 40, 2, 200]);
            }
        }
        seeds
    }

    fn words(&self) -> Vec<Vec<u8>> {
        // A flip of a header's byte, of a payload's, a blank block, a moved one, numbers for headers.
        vec![
            vec![0, 1, 60, 0, 1],
            vec![0, 2, 200, 0, 0xff],
            vec![3, 4],
            vec![4, 1, 5],
            vec![6, 2, 4, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
            vec![7, 3, 60, 0, 0, 0, 0, 0, 0, 0, 0],
            vec![9, 2, 1, 16, 0, 0xff, 20, 0, 0xff],
            vec![10, 1],
        ]
    }

    fn bytes_max(&self) -> usize {
        160
    }

    fn run(&mut self, input: &[u8]) -> u64 {
        let mut script = Script(input);
        let chosen = script.byte() % self.bases.len();
        self.mend(chosen);
        let done = self.damage(&mut script);
        let base = &self.bases[chosen];
        let files: Vec<SegmentFile> = self
            .files
            .keys()
            .map(|segment| {
                let bytes = done.sizes.get(segment).copied().unwrap_or(SEGMENT_BYTES);
                SegmentFile { segment: *segment, bytes }
            })
            .collect();
        let mut builder = ImageBuilder::new(GROUP, None, SessionLimits::default());
        let (mut read, mut told) = (Vec::new(), 0);
        let mut scratch = std::mem::take(&mut self.scratch);
        let found = replay(&self.shape, &files, &base.manifest, &mut Source(&self.files), &mut |batch| {
            told = behaviour(&[told, read_through(&batch, &mut scratch)]);
            builder.batch(&batch);
            if batch.kind == BatchKind::Entries {
                read.push((batch.sequence.0, batch.payload.to_vec()));
            }
        });
        self.scratch = scratch;
        match found {
            Ok(recovered) => {
                let consecutive = read.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0);
                assert!(consecutive, "batches come in order");
                let last = recovered.last_sequence.0;
                assert!(read.last().is_none_or(|(sequence, _)| *sequence == last), "the last one is told");
                let image = builder.finish(recovered.last_sequence);
                if !done.is_forged {
                    for (sequence, payload) in &read {
                        let written = base.frames.iter().find(|frame| frame.sequence == Some(*sequence));
                        assert!(
                            written.is_some_and(|frame| frame.payload == *payload),
                            "batch {sequence} is another"
                        );
                    }
                    let stated = self.stated(base);
                    assert!(last >= stated, "{stated} was durable, the log goes on after {last}");
                    assert!(
                        stated == 0 || read.first().is_some_and(|(first, _)| *first == 1),
                        "the beginning is gone"
                    );
                }
                behaviour(&[1, last, u64::from(image.is_ok()), told, recovered.live.len() as u64])
            }
            Err(ReplayError::Corrupt(found)) => {
                assert!(
                    done.is_forged || done.other_files || self.files != base.files,
                    "a sound log is refused: {found}"
                );
                let reason = format!("{:?}", std::mem::discriminant(&found.reason));
                let place = (found.segment.0 << 32) + found.offset;
                behaviour(&[2, xxhash_rust::xxh3::xxh3_64(reason.as_bytes()), place, class_of(read.len())])
            }
            Err(other) => behaviour(&[3, xxhash_rust::xxh3::xxh3_64(format!("{other:?}").as_bytes())]),
        }
    }
}
