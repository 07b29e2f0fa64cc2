//! Brings one shard back: the newest snapshot, the log behind it, the log's ring to go on with.
//!
//! Runs in the shard's own thread before it serves. What is damaged is told with file and offset and stops the server;
//! nothing is skipped or guessed. A torn tail was never acknowledged: it is cut and told.

use super::settings;
use crate::clock::Clock;
use crate::disk::data_dir::DataDir;
use crate::disk::files::RealDisk;
use crate::disk::segment::SegmentPoolHandle;
use crate::disk::wal::{Wal, open_wal};
use crate::doorbell::Doorbell;
use crate::driver::lock_of;
use crate::fatal::Fatal;
use crate::tuning::{Tuning, WalSync};
use shards::ids::GroupId;
use shards::log::ReplayError;
use shards::shard::image::{ImageBuilder, ImageIdentity, SnapshotImage, SnapshotIntake};
use shards::shard::{Shard, ShardFault, ShardImage};
use shards::storage::recovery::{RecoveryError, recover_log};
use shards::storage::segments::list_segments;
use shards::storage::snapshots::{SnapshotError, list_snapshots, read_snapshot, snapshot_file_name};
use std::path::Path;

/// A shard ready to be driven.
pub(super) struct RecoveredShard {
    pub(super) shard: Shard,
    pub(super) wal: Option<Wal>,
    pub(super) clock: Clock,
}

/// The first second of 2020, which epochs of caches and of weaker floors count from.
const EPOCH_BEGINS_S: u64 = 1_577_836_800;

/// Recovers a shard and opens its log.
pub(super) fn shard(
    tuning: &Tuning,
    directory: &DataDir,
    number: u32,
    segments: SegmentPoolHandle,
    bell: &Doorbell,
) -> Result<RecoveredShard, Fatal> {
    let clock = Clock::start();
    let meta = directory.meta();
    let config = settings::shard(tuning, meta.cluster, number, meta.shards);
    let group = GroupId(number);
    let damaged = |detail: String| Fatal::Corruption { shard: number, detail };
    let faulted = |fault: ShardFault| damaged(fault.to_string());
    if tuning.wal.sync == WalSync::Off {
        let mut image = ImageBuilder::new(group, None, settings::sessions(tuning))
            .finish(shards::ids::Sequence(0))
            .map_err(|error| damaged(error.to_string()))?;
        // Nothing tells what earlier runs had, and two of them may fall into one second.
        image.epoch = (crate::clock::random_u64() >> 32) as u32;
        let shard = Shard::restore(config, image, clock.now()).map_err(faulted)?;
        return Ok(RecoveredShard { shard, wal: None, clock });
    }
    let path = directory.shard_path(number);
    let snapshot = newest_snapshot(tuning, directory, number, &path)?;
    let mut builder = ImageBuilder::new(group, snapshot, settings::sessions(tuning));
    let mut replayed = 0u64;
    let log = recover_log(&RealDisk, &path, directory.log_shape(number), &mut |batch| {
        replayed += 1;
        builder.batch(&batch);
    })
    .map_err(|error| recovery_failed(number, error))?;
    let recovered = &log.recovered;
    tracing::info!(shard = number, batches = replayed, tail = ?recovered.tail, "log read back");
    let mut image: ShardImage = builder
        .finish(recovered.last_sequence)
        .map_err(|error| damaged(format!("{}: {error}", path.display())))?;
    if tuning.wal.sync != WalSync::Always {
        // What was acknowledged and not synced may be gone: versions must never name two histories.
        image.epoch = later_epoch(image.epoch);
    }
    let shard = Shard::restore(config, image, clock.now()).map_err(faulted)?;
    let wal = open_wal(&log, settings::wal(tuning), segments, Some(bell.fd()), Some(lock_of(directory)))
        .map_err(|source| Fatal::Start { thread: format!("the log of shard {number}"), source })?;
    Ok(RecoveredShard { shard, wal: Some(wal), clock })
}

/// Refuses to run as a cache over data that a log or snapshot holds: it would not be served, and later seem lost.
pub(super) fn refuse_kept_data(directory: &DataDir) -> Result<(), Fatal> {
    for number in 0..directory.meta().shards {
        let path = directory.shard_path(number);
        let failed = |source| Fatal::Directory { path: path.clone(), source };
        let holds_data = !list_segments(&RealDisk, &path).map_err(failed)?.is_empty()
            || !list_snapshots(&RealDisk, &path).map_err(failed)?.is_empty();
        if holds_data {
            return Err(Fatal::DirectoryMismatch(format!(
                "The data directory {} holds data that a server with a log has written, and wal.sync = \"off\" would not \
                 read them. Start with wal.sync = \"always\" or \"interval:MS\", or give the cache another --data-dir.",
                directory.path().display()
            )));
        }
    }
    Ok(())
}

fn newest_snapshot(
    tuning: &Tuning,
    directory: &DataDir,
    number: u32,
    path: &Path,
) -> Result<Option<SnapshotImage>, Fatal> {
    let failed = |source| Fatal::Directory { path: path.to_path_buf(), source };
    let Some(index) = list_snapshots(&RealDisk, path).map_err(failed)?.first().copied() else {
        return Ok(None);
    };
    let file = path.join(snapshot_file_name(index));
    let damaged =
        |text: String| Fatal::Corruption { shard: number, detail: format!("{}: {text}", file.display()) };
    let identity = ImageIdentity { cluster: directory.meta().cluster, shard: number, group: GroupId(number) };
    let mut intake = SnapshotIntake::new(identity, settings::sessions(tuning));
    read_snapshot(&RealDisk, &file, &mut |bytes| intake.feed(bytes).map_err(|error| error.to_string()))
        .map_err(|error| match error {
            SnapshotError::Io(path, source) => Fatal::Directory { path, source },
            SnapshotError::Unequal(_, text) => damaged(text),
        })?;
    intake.finish().map(Some).map_err(|error| damaged(error.to_string()))
}

fn recovery_failed(shard: u32, error: RecoveryError) -> Fatal {
    let text = error.to_string();
    match error {
        RecoveryError::Io(path, source) | RecoveryError::Replay(ReplayError::Read(_, source), path) => {
            Fatal::Directory { path, source }
        }
        RecoveryError::Replay(ReplayError::Foreign(_) | ReplayError::NewerFormat(..), _) => {
            Fatal::DirectoryMismatch(text)
        }
        RecoveryError::Replay(ReplayError::Corrupt(_), _) => Fatal::Corruption { shard, detail: text },
    }
}

/// An epoch above `last` that no earlier run had: seconds since 2020, since what an earlier run wrote may be lost.
fn later_epoch(last: u32) -> u32 {
    let seconds = (crate::clock::wall_ms() / 1000).saturating_sub(EPOCH_BEGINS_S);
    last.saturating_add(1).max(u32::try_from(seconds).unwrap_or(u32::MAX))
}
