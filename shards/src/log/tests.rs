//! The log as a whole: writer and replay over a disk in memory that keeps, tears, flips and reuses.

use super::header::{self, BLOCK_BYTES, BatchKind, SECTOR_BYTES};
use super::manifest::{ListedSegment, Manifest};
use super::replay::{Recovered, SegmentFile, SegmentSource, replay};
use super::writer::{Fit, FrameNumber, LogWriter, Placed};
use super::*;
use crate::ids::{GroupId, Sequence};
use proptest::prelude::*;
use std::collections::BTreeMap;

const SEGMENT_BYTES: u64 = 16 * BLOCK_BYTES as u64;
const IDENTITY: LogIdentity = LogIdentity { cluster: 77, key: 99, shard: 2 };
const START: &[u8] = b"state of every group";

/// Segments, and the manifest as the last start wrote it before anything else: what later ones say is not relied upon.
#[derive(Clone, Default)]
struct MemoryDisk(BTreeMap<SegmentId, Vec<u8>>, Option<Manifest>);

impl SegmentSource for MemoryDisk {
    type Error = String;

    fn read(&mut self, segment: SegmentId, offset: u64, into: &mut [u8]) -> Result<(), String> {
        let from = offset as usize;
        into.copy_from_slice(&self.0[&segment][from..from + into.len()]);
        Ok(())
    }
}

fn shape() -> LogShape {
    LogShape::new(IDENTITY, SEGMENT_BYTES)
}

/// A payload that no other sequence and length has, and that is far from all others in bits.
fn payload(sequence: u64, bytes: usize) -> Vec<u8> {
    let mut word = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ bytes as u64;
    (0..bytes)
        .map(|_| {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (word >> 56) as u8
        })
        .collect()
}

/// A log being written: what is on the disk for sure, and frames whose fate a crash decides.
struct Log {
    disk: MemoryDisk,
    writer: LogWriter,
    durable: Sequence,
    durable_frame: FrameNumber,
    pending: Vec<(Placed, Vec<u8>)>,
    free: Vec<SegmentId>,
}

type Read = Vec<(u64, Vec<u8>)>;

/// A manifest that knows nothing: what follows from the segments alone.
fn unknown() -> Manifest {
    Manifest::blank(IDENTITY, 0)
}

fn read_back(disk: &mut MemoryDisk) -> Result<(Recovered, Read), ReplayError<String>> {
    let mut files: Vec<SegmentFile> = disk
        .0
        .iter()
        .map(|(segment, bytes)| SegmentFile { segment: *segment, bytes: bytes.len() as u64 })
        .collect();
    files.reverse();
    let mut read = Vec::new();
    let manifest = disk.1.clone().unwrap_or_else(unknown);
    let recovered = replay(&shape(), &files, &manifest, disk, &mut |batch| match batch.kind {
        BatchKind::Entries => read.push((batch.sequence.0, batch.payload.to_vec())),
        BatchKind::SegmentStart => assert_eq!(batch.payload, START),
        BatchKind::Seal => panic!("seals are not given"),
    })?;
    assert!(read.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0), "sequences rise by one");
    assert!(read.last().is_none_or(|(last, _)| *last == recovered.last_sequence.0));
    Ok((recovered, read))
}

impl Log {
    fn open(mut disk: MemoryDisk) -> Result<(Self, Read), ReplayError<String>> {
        let (recovered, read) = read_back(&mut disk)?;
        let mut manifest = disk.1.take().unwrap_or_else(unknown);
        manifest.advance(recovered.last_sequence, recovered.live.iter().map(ListedSegment::from));
        disk.1 = Some(manifest);
        let writer = LogWriter::resume(shape(), &recovered);
        let (durable, free) = (recovered.last_sequence, recovered.free);
        Ok((Self { disk, writer, durable, durable_frame: FrameNumber(0), pending: Vec::new(), free }, read))
    }

    fn fresh() -> Self {
        Self::open(MemoryDisk::default()).unwrap().0
    }

    fn append(&mut self, bytes: usize) -> Sequence {
        let sequence = self.writer.next_sequence();
        let payload = payload(sequence.0, bytes);
        if self.writer.fit(payload.len()) == Fit::NeedsSegment {
            let segment = self.free.pop().unwrap_or_else(|| self.create());
            let mut frame = vec![0xee; header::frame_bytes(START.len())];
            let placed = self.writer.start_segment(segment, START, self.durable, &mut frame);
            self.pending.push((placed, frame));
        }
        let mut frame = vec![0xee; header::frame_bytes(bytes)];
        let placed = self.writer.place(sequence, GroupId(1), &payload, self.durable, &mut frame);
        self.pending.push((placed, frame));
        sequence
    }

    fn create(&mut self) -> SegmentId {
        let segment = SegmentId(self.disk.0.len() as u64 + 1);
        self.disk.0.insert(segment, vec![0; SEGMENT_BYTES as usize]);
        segment
    }

    fn seal(&mut self) {
        let mut frame = vec![0; BLOCK_BYTES];
        if let Some(placed) = self.writer.seal(self.durable, &mut frame) {
            self.pending.push((placed, frame));
        }
    }

    /// Makes everything written so far durable.
    fn sync(&mut self) {
        for (placed, frame) in std::mem::take(&mut self.pending) {
            assert_eq!(placed.bytes, frame.len());
            let offset = placed.offset as usize;
            self.disk.0.get_mut(&placed.segment).unwrap()[offset..offset + frame.len()]
                .copy_from_slice(&frame);
            self.durable = placed.reaches;
            self.durable_frame = placed.frame;
        }
        while let Some(free) = self.writer.take_free(self.durable_frame) {
            self.free.push(free);
        }
    }

    /// Crashes: of the pending frames only those sectors reach the disk for which `survives` says so.
    fn crash(mut self, mut survives: impl FnMut() -> bool) -> MemoryDisk {
        for (placed, frame) in &self.pending {
            let file = self.disk.0.get_mut(&placed.segment).unwrap();
            for (number, sector) in frame.chunks(SECTOR_BYTES).enumerate() {
                if survives() {
                    let at = placed.offset as usize + number * SECTOR_BYTES;
                    file[at..at + SECTOR_BYTES].copy_from_slice(sector);
                }
            }
        }
        self.disk
    }
}

/// What was written must come back exactly, at least up to `durable` and in any case as a prefix of what was appended.
fn assert_prefix(read: &Read, durable: u64, sizes: &BTreeMap<u64, usize>) {
    for (sequence, bytes) in read {
        assert_eq!(*bytes, payload(*sequence, sizes[sequence]), "sequence {sequence}");
    }
    assert!(read.last().map_or(0, |(last, _)| *last) >= durable, "acknowledged batches are lost");
}

#[test]
fn an_empty_log_is_clean() {
    let (log, read) = Log::open(MemoryDisk::default()).unwrap();
    assert!(read.is_empty());
    assert_eq!((log.writer.next_sequence(), log.durable), (Sequence(1), Sequence(0)));
}

#[test]
fn batches_come_back_over_many_segments_and_restarts() {
    let mut disk = MemoryDisk::default();
    let mut sizes = BTreeMap::new();
    for restart in 0..5 {
        let (mut log, read) = Log::open(disk).unwrap();
        assert_prefix(&read, sizes.len() as u64, &sizes);
        assert_eq!(read.len(), sizes.len());
        for step in 0..20 {
            let bytes = (restart * 7919 + step * 997) % shape().payload_bytes_max();
            sizes.insert(log.append(bytes).0, bytes);
            log.sync();
        }
        disk = log.crash(|| false);
    }
}

/// Two segments, the first left by a full one, the second by a crash; then a third, sealed or not.
fn small_log(sealed: bool) -> (MemoryDisk, BTreeMap<u64, usize>) {
    let mut log = Log::fresh();
    let mut sizes = BTreeMap::new();
    for bytes in [10, 5000, 20_000, 300, 12_000, 600] {
        sizes.insert(log.append(bytes).0, bytes);
        log.sync();
    }
    let mut log = Log::open(log.crash(|| false)).unwrap().0;
    for bytes in [40, 900] {
        sizes.insert(log.append(bytes).0, bytes);
        log.sync();
    }
    if sealed {
        log.seal();
        log.sync();
    }
    (MemoryDisk(log.crash(|| false).0, None), sizes)
}

/// Whether the bit lies in bytes that a checksum covers.
fn covered_bits(disk: &MemoryDisk) -> Vec<(SegmentId, usize)> {
    let mut covered = Vec::new();
    for (segment, bytes) in &disk.0 {
        let mut offset = 0;
        while offset < bytes.len() {
            let Ok((header, _)) = header::BatchHeader::decode(&bytes[offset..]) else { break };
            let length = header::covered_bytes(header.payload_bytes as usize);
            covered.extend((offset * 8..(offset + length) * 8).map(|bit| (*segment, bit)));
            offset += header::frame_bytes(header.payload_bytes as usize);
        }
    }
    covered
}

#[test]
fn every_flipped_bit_in_durable_data_is_found() {
    let (mut disk, _) = small_log(false);
    // Every bit of headers and their sectors' beginnings, and a stride of the rest: the whole would take minutes.
    let bits = covered_bits(&disk);
    assert!(bits.len() > 300_000);
    for (number, (segment, bit)) in bits.into_iter().enumerate() {
        if bit % (SECTOR_BYTES * 8) >= 1024 && number % 61 != 0 {
            continue;
        }
        disk.0.get_mut(&segment).unwrap()[bit / 8] ^= 1 << (bit % 8);
        match read_back(&mut disk) {
            Err(ReplayError::Corrupt(_)) => {}
            other => panic!("{segment} bit {bit}: {other:?}"),
        }
        disk.0.get_mut(&segment).unwrap()[bit / 8] ^= 1 << (bit % 8);
    }
}

/// A log of 1 MiB: two segments, batches of many sizes, the last three batches not acknowledged and whole; with the place,
/// the covered bytes and the acknowledgement of every frame.
#[allow(clippy::type_complexity, reason = "a log and what is known of each batch of it")]
fn log_of_a_mebibyte() -> (MemoryDisk, LogShape, Vec<(SegmentId, u64, usize, bool)>) {
    let shape = LogShape::new(IDENTITY, 512 << 10);
    let mut disk = MemoryDisk::default();
    let recovered = replay(&shape, &[], &unknown(), &mut disk, &mut |_| {}).unwrap();
    let mut writer = LogWriter::resume(shape, &recovered);
    let mut frames = Vec::new();
    let mut put = |disk: &mut MemoryDisk, placed: Placed, frame: &[u8], covered: usize| {
        let file = disk.0.entry(placed.segment).or_insert_with(|| vec![0; 512 << 10]);
        file[placed.offset as usize..][..frame.len()].copy_from_slice(frame);
        frames.push((placed.segment, placed.offset, covered, placed.reaches));
    };
    for step in 0_u64.. {
        let bytes = (step as usize * 5003) % 17_000;
        let upto = Sequence(step.saturating_sub(1));
        if writer.fit(bytes) == Fit::NeedsSegment {
            if writer.live().len() == 2 {
                break;
            }
            let segment = SegmentId(writer.live().len() as u64 + 1);
            let mut frame = vec![0; header::frame_bytes(START.len())];
            let placed = writer.start_segment(segment, START, upto, &mut frame);
            put(&mut disk, placed, &frame, header::covered_bytes(START.len()));
        }
        let mut frame = vec![0; header::frame_bytes(bytes)];
        let payload = payload(step + 1, bytes);
        let placed = writer.place(Sequence(step + 1), GroupId(1), &payload, upto, &mut frame);
        put(&mut disk, placed, &frame, header::covered_bytes(bytes));
    }
    let stated = writer.last_sequence().0 - 2;
    let frames = frames
        .into_iter()
        .map(|(segment, offset, covered, reaches)| (segment, offset, covered, reaches.0 <= stated));
    (disk, shape, frames.collect())
}

#[test]
fn every_byte_of_a_mebibyte_flipped_is_told_torn_or_rotten() {
    // Every byte is flipped as a whole (all its bits), which no single-bit repair explains: damage to what a later batch states to
    // be durable is rot, damage to the newest batches is a torn tail that cuts exactly there, and bytes that nothing covers
    // change nothing. `STRAND_BYTE_STRIDE` (the long form has 1) leaves bytes out; it is odd, so that every field is met.
    #[expect(clippy::disallowed_methods, reason = "the length of a test, not a part of the engine")]
    let told = std::env::var("STRAND_BYTE_STRIDE").ok().and_then(|told| told.parse().ok());
    let stride: usize = told.unwrap_or(331);
    let (mut disk, shape, frames) = log_of_a_mebibyte();
    let whole = disk.clone();
    let files: Vec<SegmentFile> =
        disk.0.keys().map(|segment| SegmentFile { segment: *segment, bytes: 512 << 10 }).collect();
    let last = replay(&shape, &files, &unknown(), &mut disk, &mut |_| {}).unwrap().last_sequence;
    let (mut rotten, mut torn, mut harmless) = (0, 0, 0);
    for at in (0..1 << 20).step_by(stride) {
        let (segment, offset) = (SegmentId(1 + (at >> 19)), (at & ((512 << 10) - 1)) as usize);
        disk.0.get_mut(&segment).unwrap()[offset] ^= 0xff;
        let hit = frames.iter().find(|(in_segment, from, covered, _)| {
            *in_segment == segment && (*from as usize..*from as usize + covered).contains(&offset)
        });
        let mut read = Vec::new();
        let found = replay(&shape, &files, &unknown(), &mut disk, &mut |batch| {
            if batch.kind == BatchKind::Entries {
                read.push(batch.sequence);
            }
        });
        match (hit, found) {
            (Some((_, from, _, true)), Err(ReplayError::Corrupt(found))) => {
                assert_eq!((found.segment, found.offset), (segment, *from), "byte {at}: {found}");
                rotten += 1;
            }
            (Some((_, from, _, false)), Ok(found)) => {
                let Tail::Torn { segment: cut_in, offset: cut_at, .. } = found.tail else {
                    panic!("byte {at}: {found:?}")
                };
                assert_eq!((cut_in, cut_at), (segment, *from), "byte {at}");
                assert!(found.last_sequence < last && read.last() == Some(&found.last_sequence));
                torn += 1;
            }
            (None, Ok(found)) => {
                assert_eq!(found.last_sequence, last, "byte {at}");
                // Where the next batch would begin, a byte that is not zero looks like the remains of one.
                if let Tail::Torn { segment: cut_in, offset: cut_at, .. } = found.tail {
                    let next = cut_at as usize..cut_at as usize + header::HEADER_BYTES;
                    assert!(cut_in == segment && next.contains(&offset), "byte {at}: {:?}", found.tail);
                }
                harmless += 1;
            }
            (hit, found) => panic!("byte {at} of {segment}: {hit:?}: {found:?}"),
        }
        disk.0.get_mut(&segment).unwrap()[offset] ^= 0xff;
    }
    assert!(disk.0 == whole.0 && rotten > torn && torn > 0 && harmless > 0);
    println!("{rotten} rotten, {torn} torn, {harmless} harmless bytes of 1 MiB, every {stride}th");
}

#[test]
fn damage_is_named_by_file_and_offset() {
    let (mut disk, _) = small_log(true);
    disk.0.get_mut(&SegmentId(1)).unwrap()[BLOCK_BYTES + 130..BLOCK_BYTES + 140].fill(0xff);
    let Err(ReplayError::Corrupt(found)) = read_back(&mut disk) else { panic!("damage is found") };
    assert_eq!((found.segment, found.offset, found.reason), (SegmentId(1), 4096, Reason::PayloadCrc));
    let text = found.to_string();
    assert!(text.starts_with("the log is damaged in wal-00000001.seg at byte 4096: the payload"), "{text}");
}

#[test]
fn a_wiped_block_of_the_newest_acknowledged_batch_is_found_when_sealed() {
    let (mut disk, _) = small_log(true);
    let last = disk.0.len() as u64;
    disk.0.get_mut(&SegmentId(last)).unwrap()[2 * BLOCK_BYTES..3 * BLOCK_BYTES].fill(0);
    assert!(matches!(read_back(&mut disk), Err(ReplayError::Corrupt(_))));
}

#[test]
fn a_lost_start_or_file_is_found() {
    let (whole, _) = small_log(true);
    for segment in whole.0.keys() {
        let mut disk = whole.clone();
        disk.0.get_mut(segment).unwrap()[..BLOCK_BYTES].fill(0);
        assert!(matches!(read_back(&mut disk), Err(ReplayError::Corrupt(_))), "start of {segment}");
    }
    for segment in whole.0.keys().rev().skip(1) {
        let mut disk = whole.clone();
        disk.0.remove(segment);
        assert!(matches!(read_back(&mut disk), Err(ReplayError::Corrupt(_))), "file {segment}");
    }
}

#[test]
fn every_truncation_is_found() {
    let (whole, _) = small_log(true);
    for segment in whole.0.keys() {
        for length in (0..SEGMENT_BYTES as usize).step_by(509) {
            let mut disk = whole.clone();
            disk.0.get_mut(segment).unwrap().truncate(length);
            let Err(ReplayError::Corrupt(found)) = read_back(&mut disk) else {
                panic!("{segment} at {length}")
            };
            assert_eq!(found.reason, Reason::Size(length as u64));
        }
    }
}

#[test]
fn foreign_and_newer_files_are_refused() {
    let (whole, _) = small_log(true);
    let mut disk = whole.clone();
    let other = LogShape::new(LogIdentity { cluster: 78, ..IDENTITY }, SEGMENT_BYTES);
    let files: Vec<SegmentFile> =
        disk.0.keys().map(|segment| SegmentFile { segment: *segment, bytes: SEGMENT_BYTES }).collect();
    assert_eq!(
        replay(&other, &files, &unknown(), &mut disk, &mut |_| {}),
        Err(ReplayError::Foreign(SegmentId(1)))
    );
    let block = &mut disk.0.get_mut(&SegmentId(1)).unwrap()[..128];
    block[8] = 3;
    let crc = crc32c::crc32c(&block[..124]);
    block[124..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(read_back(&mut disk).unwrap_err(), ReplayError::NewerFormat(SegmentId(1), 3));
}

#[test]
fn a_torn_tail_stays_cut_through_later_restarts() {
    // Batches 1 and 2 are acknowledged; 3 is torn and 4 reaches the disk whole. Recovery cuts at 2 and goes on with a new
    // 3 and 4; later recoveries must neither see the old 4 nor take the old torn 3 for damage.
    let mut log = Log::fresh();
    log.append(100);
    log.append(200);
    log.sync();
    log.append(300);
    log.append(400);
    let mut sectors = 0;
    let mut disk = log.crash(|| {
        sectors += 1;
        sectors != 1
    });
    let mut sizes = BTreeMap::from([(1, 100), (2, 200)]);
    for restart in 0..6_usize {
        let (mut log, read) = Log::open(disk).unwrap();
        assert_eq!(read.len(), sizes.len());
        assert_prefix(&read, sizes.len() as u64, &sizes);
        let bytes = 300 + restart;
        sizes.insert(log.append(bytes).0, bytes);
        log.sync();
        log.append(1000);
        disk = log.crash(|| false);
    }
}

#[test]
fn restarts_without_entries_take_no_segments() {
    let (mut disk, sizes) = small_log(true);
    let before = disk.0.len();
    for _ in 0..20 {
        let (mut log, read) = Log::open(disk).unwrap();
        assert_eq!(read.len(), sizes.len());
        log.append(50);
        disk = log.crash(|| false);
    }
    assert!(disk.0.len() <= before + 2, "{} files from {before}", disk.0.len());
}

#[test]
fn what_a_recovery_left_behind_stays_left_behind_when_its_successor_is_torn() {
    // Nothing is acknowledged. The first segment loses its start, so the second one is cut off and recovery begins anew; then
    // the new first segment loses its start too, while its batch, which says that nothing older is needed, is whole.
    let mut log = Log::fresh();
    for bytes in [2433, 0, 0, 0, 16_257, 16_257, 0] {
        log.append(bytes);
    }
    let mut sectors = 0;
    let lose_start = |sectors: &mut u32| {
        *sectors += 1;
        *sectors > 8
    };
    let (mut log, read) = Log::open(log.crash(|| lose_start(&mut sectors))).unwrap();
    assert!(read.is_empty());
    log.free = vec![SegmentId(1)];
    log.append(0);
    sectors = 0;
    let (log, read) = Log::open(log.crash(|| lose_start(&mut sectors))).unwrap();
    assert!(read.is_empty(), "{read:?}");
    assert_eq!((log.durable, log.writer.next_epoch()), (Sequence(0), SegmentEpoch(4)));
}

#[test]
fn what_a_restart_found_to_be_needed_outlives_the_segment_that_said_so() {
    // Batches 1 to 3 are acknowledged in two segments, then the first is cut off. Only the seal in a third one says so, which is
    // torn otherwise: after a crash both are free, and a crash in the midst of writing over both must not bring the first back.
    let appends = |bytes: &[usize]| bytes.iter().copied().map(Step::Append).collect::<Vec<_>>();
    let mut steps = vec![Step::Append(1921), Step::Sync, Step::Crash(0)];
    steps.extend(appends(&[0, 0]));
    steps.extend([Step::Crash(569_644_152_434_977_824), Step::Cut(86), Step::Append(12_161), Step::Seal]);
    steps.push(Step::Crash(1_088_935_869_085_649_562));
    steps.extend(appends(&[12_161, 16_257, 3979, 16_895]));
    steps.extend([Step::Seal, Step::Crash(5_013_419_962_907_074_362)]);
    let (mut disk, sizes, cut_upto) = run(&steps);
    assert_eq!((cut_upto, read_back(&mut disk).unwrap().0.last_sequence), (1, Sequence(3)));
    assert!(sizes.len() == 3);
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Sync,
    Seal,
    Cut(u8),
    /// A crash whose surviving sectors follow from the number.
    Crash(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..24_000_usize).prop_map(Step::Append),
        3 => (0..600_usize).prop_map(Step::Append),
        4 => Just(Step::Sync),
        1 => Just(Step::Seal),
        1 => any::<u8>().prop_map(Step::Cut),
        2 => any::<u64>().prop_map(Step::Crash),
    ]
}

/// Runs a history; the disk after it, with what must come back.
fn run(steps: &[Step]) -> (MemoryDisk, BTreeMap<u64, usize>, u64) {
    let mut log = Log::fresh();
    let mut sizes = BTreeMap::new();
    let mut cut_upto = 0;
    for step in steps {
        match step {
            Step::Append(bytes) => {
                sizes.insert(log.append(*bytes).0, *bytes);
            }
            Step::Sync => log.sync(),
            Step::Seal => log.seal(),
            Step::Cut(part) => {
                cut_upto = cut_upto.max(log.durable.0 * u64::from(*part) / 256);
                log.writer.cut(Sequence(cut_upto));
            }
            Step::Crash(seed) => {
                let mut word = *seed | 1;
                let durable = log.durable.0;
                let disk = log.crash(|| {
                    word =
                        word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    word >> 61 > seed % 9
                });
                let (next, read) = Log::open(disk).expect("a crash is no damage");
                let first = read.first().map_or(durable + 1, |(first, _)| *first);
                assert!(first <= cut_upto + 1, "what was not cut is still there");
                assert_prefix(&read, durable, &sizes);
                log = next;
                sizes.retain(|sequence, _| *sequence <= log.durable.0);
            }
        }
    }
    let files = log.disk.0.len() as u64;
    let held = log.writer.live().len() as u64;
    assert!(held <= files);
    (log.crash(|| false), sizes, cut_upto)
}

#[test]
fn a_start_of_a_life_given_up_is_no_head_although_it_is_older_than_the_oldest_needed() {
    // Nothing is ever acknowledged. Of the second life only a batch survives, which says that nothing before that life is needed;
    // the first life left the start of its second segment, and what that one follows is torn. Taken for a log whose beginning was
    // cut off, it made six batches count as durable that nobody has.
    let appends = |bytes: &[usize]| bytes.iter().copied().map(Step::Append).collect::<Vec<_>>();
    let mut steps = appends(&[8065, 12_161, 0, 3969, 0, 8065, 0]);
    steps.push(Step::Crash(2_124_414_543_264_283_350));
    steps.extend(appends(&[0, 20_353, 12_161, 12_161]));
    steps.extend([Step::Crash(15_182_342_207_286_338_913), Step::Crash(17_144_201_603_402_309_908)]);
    let (mut disk, sizes, _) = run(&steps);
    let (recovered, read) = read_back(&mut disk).unwrap();
    assert!(read.is_empty() && sizes.is_empty(), "{read:?}");
    assert_eq!(recovered.last_sequence, Sequence(0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_history_comes_back(steps in prop::collection::vec(step(), 1..120)) {
        run(&steps);
    }

    #[test]
    fn damage_never_becomes_a_record(
        steps in prop::collection::vec(step(), 1..60),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (mut disk, sizes, _) = run(&steps);
        for (file, byte, value) in hits {
            if disk.0.is_empty() { continue }
            let segment = *file.get(&disk.0.keys().copied().collect::<Vec<_>>());
            let bytes = disk.0.get_mut(&segment).unwrap();
            let at = byte.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok((_, read)) = read_back(&mut disk) {
            for (sequence, bytes) in read {
                prop_assert_eq!(bytes, payload(sequence, sizes[&sequence]));
            }
        }
    }
}
