//! The log on a real file system: round trips, crashes, a full disk, and bounded files.

use super::files::RealDisk;
use super::segment::SegmentPool;
use super::wal::{Wal, open_wal};
use super::worker::{FileDone, FileJob, FileWorker, Wake, start_file_worker};
use shards::ids::{GroupId, Sequence};
use shards::log::header::BatchKind;
use shards::log::{LogIdentity, LogShape, ReplayError};
use shards::storage::manifest::{MANIFEST_FILE, begin_run, create_manifest};
use shards::storage::recovery::{RecoveredLog, RecoveryError, recover_log};
use shards::storage::segments::list_segments;
use shards::storage::snapshots::{
    SnapshotError, SnapshotWriter, Verifier, list_snapshots, read_snapshot, snapshot_file_name,
};
use shards::storage::wal::{Append, Full, SyncPolicy, WalOptions};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A directory of its own for one test, removed at its end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("strand-disk-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn shape(segment_bytes: u64) -> LogShape {
    LogShape::new(LogIdentity { cluster: 1, key: 2, shard: 0 }, segment_bytes)
}

fn no_wake() -> Wake {
    Arc::new(|| {})
}

fn payload(sequence: u64, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (sequence as usize * 131 + at * 7 + (at >> 8)) as u8).collect()
}

type Read = Vec<(u64, Vec<u8>)>;

fn recover(directory: &Path, segment_bytes: u64) -> Result<(RecoveredLog, Read), RecoveryError> {
    let mut read = Vec::new();
    if !directory.join(MANIFEST_FILE).exists() {
        create_manifest(&RealDisk, directory, shape(segment_bytes).identity, 0).unwrap();
    }
    let log = recover_log(&RealDisk, directory, shape(segment_bytes), &mut |batch| {
        if batch.kind == BatchKind::Entries {
            read.push((batch.sequence.0, batch.payload.to_vec()));
        }
    })?;
    Ok((log, read))
}

fn open(directory: &Path, segment_bytes: u64, options: WalOptions, segments_max: Option<u64>) -> (Wal, Read) {
    let (mut log, read) = recover(directory, segment_bytes).unwrap();
    let (upto, live) = (log.recovered.last_sequence, &log.recovered.live);
    begin_run(&RealDisk, directory, &mut log.manifest, 0, upto, live).unwrap();
    let pool = SegmentPool::start(1, segments_max).unwrap();
    let handle = pool.handle(directory, segment_bytes, no_wake());
    let lock = std::fs::File::create(directory.join("lock")).unwrap();
    (open_wal(&log, options, handle, None, Some(lock.as_fd())).unwrap(), read)
}

/// Appends the next batch, waiting for room; false when the disk is full.
fn append(wal: &mut Wal, bytes: usize, reserved: bool) -> bool {
    let sequence = wal.next_sequence();
    let payload = payload(sequence.0, bytes);
    loop {
        let batch = Append { sequence, group: GroupId(0), payload: &payload, reserved };
        match wal.append(&batch, |start| start.extend_from_slice(b"start")) {
            Ok(()) => return true,
            Err(Full::Buffers | Full::Preparing) => {
                wal.flush(0).unwrap();
                wal.wait().unwrap();
            }
            Err(Full::DiskFull) => return false,
            Err(other) => panic!("{other:?}"),
        }
    }
}

fn settle(wal: &mut Wal) {
    wal.flush(0).unwrap();
    while wal.in_flight() > 0 {
        wal.wait().unwrap();
    }
}

#[test]
fn batches_come_back_after_a_crash_and_after_a_clean_end() {
    let scratch = Scratch::new();
    let mut count = 0;
    for round in 0..4 {
        let (mut wal, read) = open(scratch.path(), 1 << 20, WalOptions::default(), None);
        assert_eq!(read.len() as u64, count);
        for (sequence, bytes) in &read {
            assert_eq!(*bytes, payload(*sequence, *sequence as usize * 37 % 9000), "sequence {sequence}");
        }
        for _ in 0..30 {
            let bytes = wal.next_sequence().0 as usize * 37 % 9000;
            assert!(append(&mut wal, bytes, false));
            wal.flush(0).unwrap();
            count += 1;
        }
        settle(&mut wal);
        assert_eq!(wal.durable_upto(), Sequence(count));
        if round % 2 == 0 {
            wal.close().unwrap();
        }
    }
}

#[test]
fn a_lone_batch_takes_one_linked_sync_and_is_sealed_when_quiet() {
    let scratch = Scratch::new();
    let (mut wal, _) = open(scratch.path(), 1 << 20, WalOptions::default(), None);
    assert!(append(&mut wal, 100, false));
    settle(&mut wal);
    let first = wal.counters();
    assert_eq!((first.writes, first.syncs, first.batches), (2, 2, 1), "the manifest and the segment");
    assert!(append(&mut wal, 100, false));
    settle(&mut wal);
    let second = wal.counters();
    assert_eq!((second.writes, second.syncs, second.batches), (3, 3, 2));
    let due_ns = wal.due_ns().expect("a seal is due");
    wal.flush(due_ns - 1).unwrap();
    assert_eq!(wal.counters().seals, 0);
    wal.flush(due_ns).unwrap();
    settle(&mut wal);
    assert_eq!(wal.counters().seals, 1);
    assert_eq!(wal.due_ns(), None, "a sealed log asks for nothing");
}

#[test]
fn large_batches_go_through() {
    let scratch = Scratch::new();
    let (mut wal, _) = open(scratch.path(), 16 << 20, WalOptions::default(), None);
    for _ in 0..6 {
        assert!(append(&mut wal, 5 << 20, false));
        assert!(append(&mut wal, 10, false));
    }
    settle(&mut wal);
    let too_large = vec![0; wal.payload_bytes_max() + 1];
    let batch =
        Append { sequence: wal.next_sequence(), group: GroupId(0), payload: &too_large, reserved: false };
    assert_eq!(wal.append(&batch, |_| {}), Err(Full::TooLarge));
    drop(wal);
    let (_, read) = recover(scratch.path(), 16 << 20).unwrap();
    assert_eq!(read.len(), 12);
    for (sequence, bytes) in read {
        assert_eq!(bytes, payload(sequence, if sequence % 2 == 1 { 5 << 20 } else { 10 }));
    }
}

#[test]
fn many_rolls_and_cuts_keep_the_files_bounded() {
    let scratch = Scratch::new();
    let segment_bytes = 64 << 10;
    for _ in 0..3 {
        let (mut wal, _) = open(scratch.path(), segment_bytes, WalOptions::default(), None);
        for _ in 0..200 {
            assert!(append(&mut wal, 3000, false));
            if wal.next_sequence().0 % 20 == 0 {
                settle(&mut wal);
                wal.cut(wal.durable_upto());
            }
        }
        settle(&mut wal);
        assert!(wal.counters().segments > 10);
    }
    let files = list_segments(&RealDisk, scratch.path()).unwrap().len();
    assert!(files <= 12, "{files} files");
    let (log, read) = recover(scratch.path(), segment_bytes).unwrap();
    assert_eq!(log.recovered.last_sequence, Sequence(600));
    assert!(read.len() < 60, "{} batches were kept", read.len());
}

#[test]
fn a_full_disk_refuses_writes_keeps_the_reserve_and_ends_with_a_cut() {
    let scratch = Scratch::new();
    let (mut wal, _) = open(scratch.path(), 64 << 10, WalOptions::default(), Some(4));
    let mut taken = 0;
    while append(&mut wal, 8000, false) {
        taken += 1;
        assert!(taken < 100, "the quota ends it");
    }
    settle(&mut wal);
    assert!(wal.reap().unwrap().disk_full);
    assert!(append(&mut wal, 8000, true), "the reserve takes a decision");
    settle(&mut wal);
    wal.cut(wal.durable_upto());
    wal.flush(1 << 40).unwrap();
    settle(&mut wal);
    wal.flush(1 << 41).unwrap();
    let until = Instant::now() + std::time::Duration::from_secs(20);
    while wal.reap().unwrap().disk_full {
        wal.flush(1 << 41).unwrap();
        wal.wait().unwrap();
        assert!(Instant::now() < until, "the cut gives segments back");
    }
    for _ in 0..6 {
        assert!(append(&mut wal, 8000, false));
    }
}

/// Lives that end without a word on a full disk. Each begins by writing what every start writes, a vote and an entry.
fn crash_loop(quota: u64, fill: bool) {
    let scratch = Scratch::new();
    let (mut wal, _) = open(scratch.path(), 256 << 10, WalOptions::default(), Some(quota));
    assert!(append(&mut wal, 9000, false));
    while fill && append(&mut wal, 9000, false) {}
    settle(&mut wal);
    let mut count = wal.durable_upto().0;
    drop(wal);
    for life in 0..12 {
        let (mut wal, read) = open(scratch.path(), 256 << 10, WalOptions::default(), Some(quota));
        assert_eq!(read.len() as u64, count, "life {life}");
        for (sequence, bytes) in &read {
            assert_eq!(*bytes, payload(*sequence, bytes.len()), "life {life}, sequence {sequence}");
        }
        assert!(append(&mut wal, 60, true), "life {life}: a vote finds room");
        settle(&mut wal);
        assert!(append(&mut wal, 120, false), "life {life}: so does the first entry");
        settle(&mut wal);
        count += 2;
        assert_eq!(wal.durable_upto(), Sequence(count));
        if life % 3 == 2 {
            wal.close().unwrap();
        }
    }
    let (log, read) = recover(scratch.path(), 256 << 10).unwrap();
    assert_eq!(read.len() as u64, count);
    let files = list_segments(&RealDisk, scratch.path()).unwrap().len();
    assert_eq!(files as u64, quota);
    assert!(fill || log.recovered.free.len() == 1, "the reserve was never begun");
    // With room again the log goes on in fresh segments, and nothing is lost.
    let (mut wal, _) = open(scratch.path(), 256 << 10, WalOptions::default(), None);
    for _ in 0..60 {
        assert!(append(&mut wal, 9000, false));
    }
    settle(&mut wal);
    drop(wal);
    let (log, read) = recover(scratch.path(), 256 << 10).unwrap();
    assert_eq!((log.recovered.last_sequence, read.len() as u64), (Sequence(count + 60), count + 60));
}

#[test]
fn a_crash_loop_on_a_full_disk_uses_neither_the_reserve_nor_another_segment_up() {
    crash_loop(2, false);
    crash_loop(4, true);
}

/// Unacknowledged rests behind the end of a log that is written on are never taken for a part of it, not even where the next
/// sequence stands in one.
#[test]
fn torn_rests_behind_a_log_that_is_written_on_stay_out() {
    let (segment_bytes, quota) = (256 << 10, Some(2));
    let scratch = Scratch::new();
    let (mut wal, _) = open(scratch.path(), segment_bytes, WalOptions::default(), quota);
    for _ in 0..5 {
        assert!(append(&mut wal, 5000, false));
        settle(&mut wal);
    }
    // Three more leave in one write; of the first of them nothing arrives.
    for _ in 0..3 {
        assert!(append(&mut wal, 5000, false));
    }
    settle(&mut wal);
    drop(wal);
    let path = scratch.path().join("wal-00000001.seg");
    let mut bytes = std::fs::read(&path).unwrap();
    // The start has a block, each batch two.
    bytes[11 * 4096..12 * 4096].fill(0xee);
    std::fs::write(&path, &bytes).unwrap();
    let mut sizes = vec![5000; 5];
    for size in [60, 9000, 120, 120] {
        let (mut wal, read) = open(scratch.path(), segment_bytes, WalOptions::default(), quota);
        let expected: Read =
            (1..).zip(&sizes).map(|(number, bytes)| (number, payload(number, *bytes))).collect();
        assert_eq!(read, expected);
        assert!(append(&mut wal, size, true));
        settle(&mut wal);
        sizes.push(size);
    }
    let (log, read) = recover(scratch.path(), segment_bytes).unwrap();
    assert_eq!((read.len(), log.recovered.live.len()), (9, 1), "all of it stands in one segment");
}

#[test]
fn under_an_interval_only_the_interval_or_a_request_syncs() {
    let scratch = Scratch::new();
    let options = WalOptions { sync: SyncPolicy::Interval { every_ns: 1_000_000 }, ..WalOptions::default() };
    let (mut wal, _) = open(scratch.path(), 1 << 20, options, None);
    wal.flush(1).unwrap();
    assert!(append(&mut wal, 10, false));
    wal.flush(2).unwrap();
    wal.wait().unwrap();
    assert_eq!((wal.durable_upto(), wal.counters().syncs), (Sequence(0), 0));
    assert_eq!(wal.due_ns(), Some(1_000_000));
    wal.sync_now();
    wal.flush(3).unwrap();
    while wal.in_flight() > 0 {
        wal.wait().unwrap();
    }
    assert_eq!((wal.durable_upto(), wal.counters().syncs), (Sequence(1), 2), "manifest and segment");
    assert!(append(&mut wal, 10, false));
    wal.flush(2_000_000).unwrap();
    while wal.in_flight() > 0 {
        wal.wait().unwrap();
    }
    assert_eq!(wal.durable_upto(), Sequence(2));
}

#[test]
fn rot_is_reported_with_the_file() {
    let scratch = Scratch::new();
    let (mut wal, _) = open(scratch.path(), 1 << 20, WalOptions::default(), None);
    for _ in 0..3 {
        assert!(append(&mut wal, 100, false));
        settle(&mut wal);
    }
    wal.close().unwrap();
    let path = scratch.path().join("wal-00000001.seg");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[2 * 4096 + 150] ^= 0xff;
    std::fs::write(&path, bytes).unwrap();
    let Err(error @ RecoveryError::Replay(ReplayError::Corrupt(_), _)) = recover(scratch.path(), 1 << 20)
    else {
        panic!("damage is found")
    };
    assert!(error.to_string().contains("wal-00000001.seg at byte 8192"), "{error}");
}

struct Bytes(Vec<u8>, &'static [u8]);

impl Verifier for Bytes {
    fn chunk(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        if self.0 == self.1 { Ok(()) } else { Err("other bytes".into()) }
    }
}

fn answer(worker: &mut FileWorker) -> FileDone {
    let until = Instant::now() + std::time::Duration::from_secs(20);
    loop {
        if let Some(done) = worker.poll() {
            return done;
        }
        assert!(Instant::now() < until, "the worker answers");
        std::thread::yield_now();
    }
}

#[test]
fn the_worker_writes_snapshots_and_reports_failures() {
    let scratch = Scratch::new();
    let mut workers = start_file_worker(vec![(scratch.path().to_path_buf(), no_wake())]).unwrap();
    let worker = &mut workers[0];
    let mut ask = |job| {
        assert!(worker.ask(job).is_ok());
        answer(worker)
    };
    assert_eq!(ask(FileJob::Begin(7)), FileDone::Begun);
    assert_eq!(ask(FileJob::Append(b"abc".to_vec())), FileDone::Appended(Vec::new()));
    assert_eq!(ask(FileJob::Finish(Box::new(Bytes(Vec::new(), b"abc")))), FileDone::Finished(7, 3));
    assert_eq!(ask(FileJob::Begin(8)), FileDone::Begun);
    assert!(matches!(ask(FileJob::Finish(Box::new(Bytes(Vec::new(), b"lost")))), FileDone::Failed(_)));
    assert!(matches!(ask(FileJob::Append(Vec::new())), FileDone::Failed(_)));
    assert_eq!(list_snapshots(&RealDisk, scratch.path()).unwrap(), [7]);
}

/// Commits a second with so many batches of 4 KiB in flight.
fn commits_per_second(depth: usize) -> f64 {
    let scratch = Scratch::new();
    let options = WalOptions { buffers: 24, buffer_bytes: 64 << 10, ..WalOptions::default() };
    let (mut wal, _) = open(scratch.path(), 64 << 20, options, None);
    assert!(append(&mut wal, 100, false));
    settle(&mut wal);
    // The spares are ready before the clock starts: zeroing them competes for the disk.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let (begun, from) = (Instant::now(), wal.durable_upto().0);
    while begun.elapsed().as_millis() < 700 {
        while wal.next_sequence().0 - 1 - wal.durable_upto().0 < depth as u64 {
            assert!(append(&mut wal, 3900, false));
            wal.flush(0).unwrap();
        }
        wal.wait().unwrap();
        if wal.live_bytes() > 192 << 20 {
            wal.cut(wal.durable_upto());
        }
    }
    (wal.durable_upto().0 - from) as f64 / begun.elapsed().as_secs_f64()
}

#[test]
fn more_commits_in_flight_are_more_commits() {
    let rates: Vec<f64> = [1, 8, 32].into_iter().map(commits_per_second).collect();
    println!("commits a second with 1, 8, 32 in flight: {rates:.0?}");
    assert!(rates[2] > rates[0], "one sync covers many writes: {rates:?}");
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

fn write_snapshot(directory: &Path, index: u64, bytes: &[u8], expected: &[u8]) -> Result<u64, SnapshotError> {
    let mut writer = SnapshotWriter::create(RealDisk, directory, index)?;
    for chunk in bytes.chunks(70_001) {
        writer.append(chunk)?;
    }
    writer.finish(&mut Equal(expected.to_vec()))
}

#[test]
fn the_newest_verified_snapshot_is_the_one_that_stays() {
    let scratch = Scratch::new();
    let bytes: Vec<u8> = (0..3_000_001_u32).map(|at| ((at * 7) >> 3) as u8).collect();
    assert_eq!(write_snapshot(scratch.path(), 5, &bytes, &bytes).unwrap(), 3_000_001);
    assert_eq!(list_snapshots(&RealDisk, scratch.path()).unwrap(), [5]);
    write_snapshot(scratch.path(), 9, b"short", b"short").unwrap();
    assert_eq!(list_snapshots(&RealDisk, scratch.path()).unwrap(), [9]);
    let mut read = Vec::new();
    let path = scratch.path().join(snapshot_file_name(9));
    read_snapshot(&RealDisk, &path, &mut |chunk| {
        read.extend_from_slice(chunk);
        Ok(())
    })
    .unwrap();
    assert_eq!(read, b"short");
}

#[test]
fn a_snapshot_that_reads_back_differently_replaces_nothing() {
    let scratch = Scratch::new();
    write_snapshot(scratch.path(), 5, b"good", b"good").unwrap();
    for expected in [&b"evil"[..], b"evil and more"] {
        assert!(matches!(
            write_snapshot(scratch.path(), 9, b"evol", expected),
            Err(SnapshotError::Unequal(..))
        ));
    }
    let mut writer = SnapshotWriter::create(RealDisk, scratch.path(), 10).unwrap();
    writer.append(b"unfinished").unwrap();
    drop(writer);
    assert_eq!(list_snapshots(&RealDisk, scratch.path()).unwrap(), [5]);
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
}
