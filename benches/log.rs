//! What the log costs on the disk of this machine: a batch appended and synced, one at a time and with several under way.
//!
//! Batches go to a directory of their own under `STRAND_BENCH_DIR`, or the system's temporary folder, which should lie on
//! the disk that is meant. What is durable is cut at once, so segments are used again and the disk stays as it was.
#![allow(clippy::unwrap_used, reason = "a measuring tool fails loudly")]
#![allow(missing_docs, reason = "the macros of criterion make public items")]
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "the modules are the server's; a measurement uses part of them"
)]

#[path = "../src/disk/mod.rs"]
mod disk;
#[path = "../src/sys.rs"]
mod sys;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use disk::files::RealDisk;
use disk::segment::SegmentPool;
use disk::wal::{Wal, open_wal};
use shards::ids::{GroupId, Sequence};
use shards::log::{LogIdentity, LogShape};
use shards::storage::manifest::{begin_run, create_manifest};
use shards::storage::recovery::recover_log;
use shards::storage::wal::{Append, Full, WalOptions};
use std::path::PathBuf;
use std::sync::Arc;

const SEGMENT_BYTES: u64 = 64 << 20;

/// A log in a directory that goes with it.
struct Log {
    wal: Option<Wal>,
    directory: PathBuf,
}

impl Log {
    fn open() -> Self {
        let under = std::env::var_os("STRAND_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let directory = under.join(format!("strand-log-bench-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let shape = LogShape::new(LogIdentity { cluster: 1, key: 2, shard: 0 }, SEGMENT_BYTES);
        create_manifest(&RealDisk, &directory, shape.identity, 0).unwrap();
        let mut log = recover_log(&RealDisk, &directory, shape, &mut |_| ()).unwrap();
        let upto = log.recovered.last_sequence;
        begin_run(&RealDisk, &directory, &mut log.manifest, 0, upto, &log.recovered.live).unwrap();
        let segments =
            SegmentPool::start(1, None).unwrap().handle(&directory, SEGMENT_BYTES, Arc::new(|| {}));
        let wal = open_wal(&log, WalOptions::default(), segments, None, None).unwrap();
        Self { wal: Some(wal), directory }
    }

    fn wal(&mut self) -> &mut Wal {
        self.wal.as_mut().unwrap()
    }

    /// Hands one batch to the disk, waiting for room.
    fn append(&mut self, payload: &[u8]) -> Sequence {
        let wal = self.wal();
        let batch = Append { sequence: wal.next_sequence(), group: GroupId(0), payload, reserved: false };
        loop {
            match wal.append(&batch, |start| start.extend_from_slice(b"start")) {
                Ok(()) => break,
                Err(Full::Buffers | Full::Preparing) => {
                    wal.wait().unwrap();
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        wal.flush(0).unwrap();
        let reaped = wal.reap().unwrap();
        if let Some(upto) = reaped.durable_upto {
            wal.cut(upto);
        }
        batch.sequence
    }

    fn sync(&mut self, sequence: Sequence) {
        let wal = self.wal();
        while wal.durable_upto() < sequence {
            wal.wait().unwrap();
        }
        let upto = wal.durable_upto();
        wal.cut(upto);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(wal) = self.wal.take() {
            wal.close().unwrap();
        }
        std::fs::remove_dir_all(&self.directory).unwrap();
    }
}

fn appends(criterion: &mut Criterion) {
    let mut log = Log::open();
    let mut group = criterion.benchmark_group("log");
    for bytes in [100, 4 << 10, 64 << 10] {
        let payload: Vec<u8> = (0..bytes).map(|at| at as u8).collect();
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new("append and sync, one at a time", bytes), |bencher| {
            bencher.iter(|| {
                let sequence = log.append(&payload);
                log.sync(sequence);
            });
        });
        group.bench_function(BenchmarkId::new("append, writes and syncs under way", bytes), |bencher| {
            bencher.iter(|| log.append(&payload));
        });
    }
    group.finish();
}

criterion_group!(log, appends);
criterion_main!(log);
