//! The log over a disk in memory on which the Nth operation fails: nothing acknowledged is lost, nothing is acknowledged
//! after a failure, and what fails is told by name.
//!
//! `STRAND_IO_FAULTS` sets how many N are tried (100 unless told; the long form 500).

mod memory;

use super::disk::{Disk, Open};
use super::manifest::{MANIFEST_FILE, begin_run, create_manifest};
use super::recovery::{RecoveredLog, RecoveryError, recover_log};
use super::snapshots::{SnapshotWriter, Verifier, list_snapshots, snapshot_file_name};
use super::wal::{Append, Full, SyncPolicy, Wal, WalFailure, WalOptions};
use crate::ids::{GroupId, Sequence};
use crate::log::header::{BLOCK_BYTES, BatchKind};
use crate::log::{LogIdentity, LogShape, Reason, ReplayError, SegmentId};
use memory::{Fault, InlineSupply, MemoryDevice, MemoryDisk, POOL, POOL_BUFFER_BYTES};
use std::collections::VecDeque;
use std::path::Path;

const SEGMENT_BYTES: u64 = 64 << 10;
const DIRECTORY: &str = "shard";

type MemoryWal = Wal<MemoryDevice, InlineSupply>;
type Read = Vec<(u64, Vec<u8>)>;

fn shape() -> LogShape {
    LogShape::new(LogIdentity { cluster: 1, key: 2, shard: 0 }, SEGMENT_BYTES)
}

fn payload(sequence: u64) -> Vec<u8> {
    let bytes = (sequence as usize * 5_741) % 20_000;
    (0..bytes).map(|at| (sequence as usize * 131 + at * 7 + (at >> 8)) as u8).collect()
}

fn recover(disk: &MemoryDisk) -> Result<(RecoveredLog, Read), RecoveryError> {
    let mut read = Vec::new();
    let log = recover_log(disk, Path::new(DIRECTORY), shape(), &mut |batch| {
        if batch.kind == BatchKind::Entries {
            read.push((batch.sequence.0, batch.payload.to_vec()));
        }
    })?;
    Ok((log, read))
}

/// What a run came to: the last sequence that was acknowledged, what was cut, and how it ended.
#[derive(Default)]
struct Run {
    acknowledged: u64,
    cut: u64,
    ended: Option<String>,
}

/// One life of a log: appends, rolls, snapshots' cuts and a good end, unless something fails.
fn live(disk: &MemoryDisk, run: &mut Run, sync: SyncPolicy, batches: u64) -> Result<(), String> {
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let (mut log, _) = recover(disk).map_err(|error| match error {
        RecoveryError::Replay(ReplayError::Corrupt(_), _) => panic!("a crash is no damage: {error}"),
        other => told(&other),
    })?;
    let (upto, live) = (log.recovered.last_sequence, &log.recovered.live);
    begin_run(disk, Path::new(DIRECTORY), &mut log.manifest, 0, upto, live).map_err(|error| told(&error))?;
    let options =
        WalOptions { sync, buffers: POOL, buffer_bytes: POOL_BUFFER_BYTES, ..WalOptions::default() };
    let manifest = disk.open(&Path::new(DIRECTORY).join(MANIFEST_FILE), Open::WRITE_DIRECT);
    let manifest = manifest.map_err(|error| told(&error))?;
    let supply = InlineSupply { disk: disk.clone(), jobs: VecDeque::new() };
    let mut wal: MemoryWal =
        Wal::new(&log, options, MemoryDevice::new(disk), supply, manifest).map_err(|error| told(&error))?;
    for step in 0..batches {
        append(&mut wal, run, step)?;
        if step % 7 == 6 {
            run.cut = run.cut.max(run.acknowledged.saturating_sub(4));
            wal.cut(Sequence(run.cut.min(wal.durable_upto().0)));
        }
    }
    let (acknowledged, next) = (run.acknowledged, wal.next_sequence().0);
    assert!(acknowledged < next);
    wal.close().map_err(|failure| told(&failure))?;
    run.acknowledged = next - 1;
    Ok(())
}

fn append(wal: &mut MemoryWal, run: &mut Run, step: u64) -> Result<(), String> {
    let failed = |wal: &mut MemoryWal, failure: WalFailure| {
        // It stays failed: every call says so, and nothing becomes durable any more.
        let durable = wal.durable_upto();
        for _ in 0..20 {
            assert_eq!(wal.reap(), Err(failure));
            assert_eq!(wal.flush(step), Err(failure));
        }
        let batch =
            Append { sequence: wal.next_sequence(), group: GroupId(0), payload: b"x", reserved: true };
        assert_eq!(wal.append(&batch, |_| {}), Err(Full::Failed));
        assert_eq!(wal.durable_upto(), durable, "nothing is acknowledged after a failure");
        failure.to_string()
    };
    for attempt in 0..2000 {
        let sequence = wal.next_sequence();
        let payload = payload(sequence.0);
        let batch = Append { sequence, group: GroupId(0), payload: &payload, reserved: false };
        let taken = wal.append(&batch, |start| start.extend_from_slice(b"start"));
        // A clock that goes on, so that syncs at intervals, seals and retries fall due.
        let flushed = wal.flush((step * 2000 + attempt) * 60_000_000);
        flushed.map_err(|failure| failed(wal, failure))?;
        let reaped = wal.reap().map_err(|failure| failed(wal, failure))?;
        if let Some(upto) = reaped.durable_upto {
            assert!(upto.0 > run.acknowledged, "acknowledgements rise");
            run.acknowledged = upto.0;
        }
        match taken {
            Ok(()) => return Ok(()),
            Err(Full::Buffers | Full::Preparing | Full::DiskFull) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    panic!("a log that has not failed takes a batch in the end")
}

/// Everything acknowledged is there, and nothing that was never written.
fn check(disk: &MemoryDisk, run: &Run, what: &str) {
    let (log, read) = recover(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    for (sequence, bytes) in &read {
        assert!(*bytes == payload(*sequence), "{what}: sequence {sequence} came back changed");
    }
    assert!(log.recovered.last_sequence.0 >= run.acknowledged, "{what}: acknowledged batches are lost");
    let first = read.first().map_or(log.recovered.last_sequence.0 + 1, |(first, _)| *first);
    assert!(first <= run.cut + 1, "{what}: what was not cut is gone");
}

fn new_disk(seed: u64) -> MemoryDisk {
    let disk = MemoryDisk::default();
    disk.0.borrow_mut().word = seed;
    create_manifest(&disk, Path::new(DIRECTORY), shape().identity, 0).unwrap();
    disk
}

/// At least two lives, and as many as it takes until the Nth operation fails, and a crash; then what is left is read back. The
/// number of operations met.
fn fail_nth(fault: Fault, nth: u64, sync: SyncPolicy) -> u64 {
    let what = format!("{fault:?} at operation {nth}, {sync:?}");
    let mut disk = new_disk(nth ^ 0x5eed);
    disk.0.borrow_mut().fault = Some((fault, nth));
    let mut run = Run::default();
    for lives in 1..=LIVES_MAX {
        if let Err(told) = live(&disk, &mut run, sync, 30) {
            assert!(disk.0.borrow().fired, "{what}: {told}");
            assert!(!told.is_empty());
            run.ended = Some(told);
            break;
        }
        // A failure that harms nobody, of a file that was to be removed, is borne.
        if lives >= 2 && disk.0.borrow().fired {
            break;
        }
    }
    assert!(disk.0.borrow().fired, "{what}: it was never met");
    let met = disk.0.borrow().met;
    disk = disk.crash();
    check(&disk, &run, &what);
    // The next life goes on from there as if nothing had been.
    live(&disk, &mut run, sync, 10).unwrap_or_else(|told| panic!("{what}: {told}"));
    check(&disk.crash(), &run, &what);
    met
}

/// Lives until the operation that is to fail must have been met.
const LIVES_MAX: u64 = 400;

fn faults_wanted() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the length of a test, not a part of the engine")]
    let told = std::env::var("STRAND_IO_FAULTS");
    told.ok().and_then(|told| told.parse().ok()).unwrap_or(100)
}

fn every_nth(fault: Fault) {
    let wanted = faults_wanted();
    for sync in [SyncPolicy::Always, SyncPolicy::Interval { every_ns: 500_000_000 }] {
        let mut met = 0;
        for nth in 1..=wanted {
            met = fail_nth(fault, nth, sync);
        }
        println!("{fault:?}, {sync:?}: {wanted} failing operations, the last of {met}");
    }
}

#[test]
fn the_nth_operation_fails_with_eio() {
    every_nth(Fault::Eio);
}

#[test]
fn the_nth_write_finds_no_space() {
    every_nth(Fault::NoSpace);
}

#[test]
fn the_nth_sync_fails() {
    every_nth(Fault::Sync);
}

#[test]
fn any_removed_segment_of_the_log_is_named() {
    let disk = new_disk(1);
    let mut run = Run::default();
    live(&disk, &mut run, SyncPolicy::Always, 30).unwrap();
    for crashed in [false, true] {
        if crashed {
            // A life that ends without a word, its last segment barely begun.
            let mut torn = Run { acknowledged: run.acknowledged, ..Run::default() };
            disk.0.borrow_mut().fault = Some((Fault::Sync, 40));
            live(&disk, &mut torn, SyncPolicy::Always, 100).unwrap_err();
        }
        let whole = disk.crash();
        let (log, _) = recover(&whole).unwrap();
        assert!(log.recovered.live.len() > 2);
        for live in &log.recovered.live {
            let left = whole.crash();
            left.remove(&Path::new(DIRECTORY).join(live.segment.file_name())).unwrap();
            let Err(RecoveryError::Replay(ReplayError::Corrupt(found), _)) = recover(&left) else {
                panic!("{} is missed", live.segment)
            };
            assert_eq!((found.segment, found.offset, found.reason), (live.segment, 0, Reason::Gone));
            assert!(found.to_string().contains("the file is gone, yet the manifest lists it"), "{found}");
        }
        for free in &log.recovered.free {
            let left = whole.crash();
            left.remove(&Path::new(DIRECTORY).join(free.file_name())).unwrap();
            let listed = log.manifest.segments.iter().any(|listed| listed.segment == *free);
            assert_eq!(recover(&left).is_err(), listed, "{free} holds nothing");
        }
    }
}

#[test]
fn a_newest_segment_that_was_wiped_after_a_good_end_is_damage() {
    let disk = new_disk(1);
    let mut run = Run::default();
    live(&disk, &mut run, SyncPolicy::Always, 12).unwrap();
    let (log, _) = recover(&disk).unwrap();
    let last: SegmentId = log.recovered.live.last().unwrap().segment;
    let path = Path::new(DIRECTORY).join(last.file_name());
    disk.0.borrow().files[&path].borrow_mut().seen.fill(0);
    let error = recover(&disk).unwrap_err().to_string();
    assert!(error.contains("the manifest says that everything up to sequence 12 was durable"), "{error}");
}

#[test]
fn the_epoch_rises_at_every_start_and_survives_the_loss_of_a_block() {
    let disk = new_disk(1);
    let path = Path::new(DIRECTORY).join(MANIFEST_FILE);
    let mut epochs = Vec::new();
    for start in 0..10_usize {
        let (mut log, _) = recover(&disk).unwrap();
        begin_run(&disk, Path::new(DIRECTORY), &mut log.manifest, 0, Sequence(0), &[]).unwrap();
        epochs.push(log.manifest.epoch);
        // One block or the other rots between two starts.
        disk.0.borrow().files[&path].borrow_mut().seen[start % 2 * BLOCK_BYTES + 70] ^= 0xff;
    }
    assert_eq!(epochs, (1..=10).collect::<Vec<u32>>());
    disk.remove(&path).unwrap();
    assert!(matches!(recover(&disk), Err(RecoveryError::NoManifest(_))));
}

struct Equal(Vec<u8>);

impl Verifier for Equal {
    fn chunk(&mut self, bytes: &[u8]) -> Result<(), String> {
        let rest = self.0.strip_prefix(bytes).ok_or("other bytes")?.to_vec();
        self.0 = rest;
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        if self.0.is_empty() { Ok(()) } else { Err("bytes are missing".into()) }
    }
}

#[test]
fn a_snapshot_that_fails_anywhere_leaves_the_older_one() {
    let bytes: Vec<u8> = (0..1_200_000_u32).map(|at| ((at * 7) >> 3) as u8).collect();
    let write = |disk: &MemoryDisk, index: u64| {
        let mut writer = SnapshotWriter::create(disk.clone(), Path::new(DIRECTORY), index)?;
        for chunk in bytes.chunks(150_000) {
            writer.append(chunk)?;
        }
        writer.finish(&mut Equal(bytes.clone()))
    };
    for fault in [Fault::Eio, Fault::NoSpace, Fault::Sync] {
        let mut failed = 0;
        for nth in 1..25 {
            let disk = new_disk(nth);
            write(&disk, 5).unwrap();
            disk.0.borrow_mut().fault = Some((fault, nth));
            let written = write(&disk, 9);
            failed += u64::from(written.is_err());
            let left = disk.crash();
            let found = list_snapshots(&left, Path::new(DIRECTORY)).unwrap();
            assert!(found.contains(&9) || (written.is_err() && found == [5]), "{fault:?} {nth}: {found:?}");
            let path = Path::new(DIRECTORY).join(snapshot_file_name(found[0]));
            assert!(left.0.borrow().files[&path].borrow().seen == bytes, "{fault:?} {nth}: a whole one");
        }
        assert!(failed > 0, "{fault:?} was met");
    }
}
