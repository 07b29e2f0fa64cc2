//! The log of one shard on the real disk: the engine's log over an io_uring and the helper thread for segments.

use super::files::RealDisk;
use super::ring::LogRing;
use super::segment::SegmentPoolHandle;
use shards::storage::disk::{Disk, Open};
use shards::storage::manifest::MANIFEST_FILE;
use shards::storage::recovery::RecoveredLog;
use shards::storage::wal::{self, BUFFERS_MIN, WalOptions};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

/// The log of one shard.
pub type Wal = wal::Wal<LogRing, SegmentPoolHandle>;

/// Opens a recovered log for writing, on the shard's thread. `eventfd` is signalled at every completion; `lock` is the data
/// directory's lock, which the ring holds until the last write is done.
pub fn open_wal(
    log: &RecoveredLog,
    options: WalOptions,
    segments: SegmentPoolHandle,
    eventfd: Option<RawFd>,
    lock: Option<BorrowedFd<'_>>,
) -> io::Result<Wal> {
    let ring = LogRing::new(options.buffers.max(BUFFERS_MIN), options.buffer_bytes, eventfd, lock)?;
    let manifest = RealDisk.open(&log.directory.join(MANIFEST_FILE), Open::WRITE_DIRECT)?;
    Wal::new(log, options, ring, segments, manifest)
}
