//! Brings one shard back: the newest snapshot, the log behind it, and a new epoch for the run that begins.
//!
//! What is damaged is told with file and offset; nothing is skipped or guessed. A torn tail was never acknowledged and is left
//! out. Blocking; runs before the shard serves.

use super::disk::Disk;
use super::manifest::{begin_run, read_manifest};
use super::recovery::{RecoveredLog, RecoveryError, recover_log};
use super::segments::list_segments;
use super::snapshots::{SnapshotError, list_snapshots, read_snapshot, snapshot_file_name};
use crate::ids::{GroupId, Sequence};
use crate::index::set::IndexSettings;
use crate::log::LogShape;
use crate::shard::ShardImage;
use crate::shard::image::{Founding, ImageBuilder, ImageError, ImageIdentity, SnapshotImage, SnapshotIntake};
use crate::snapshot::Fault;
use crate::state::SessionLimits;
use std::path::Path;

/// Which shard, and where its files are.
#[derive(Clone, Copy, Debug)]
pub struct ShardPlace<'a> {
    /// Its directory.
    pub directory: &'a Path,
    /// The shape of its log, with its identity.
    pub shape: LogShape,
    /// Its group.
    pub group: GroupId,
    /// Limits of its retry sessions.
    pub sessions: SessionLimits,
    /// What the operator says about indexes, which a snapshot of them is read with.
    pub indexes: IndexSettings,
    /// Which replica of the group it is, and how that began.
    pub founding: &'a Founding,
}

/// A shard brought back.
pub struct RecoveredShard {
    /// What the shard starts from, with the epoch of this run.
    pub image: ShardImage,
    /// Its log, to go on with.
    pub log: RecoveredLog,
    /// Batches read from the log.
    pub batches: u64,
}

/// Recovers a shard that keeps a log.
pub fn recover_shard<D: Disk>(disk: &D, place: &ShardPlace<'_>) -> Result<RecoveredShard, RecoveryError> {
    let mut recovered = read_log(disk, place)?;
    let RecoveredShard { image, log, .. } = &mut recovered;
    let last_sequence = log.recovered.last_sequence;
    begin_run(disk, place.directory, &mut log.manifest, image.epoch, last_sequence, &log.recovered.live)?;
    image.epoch = log.manifest.epoch;
    Ok(recovered)
}

/// Reads a shard that nobody serves, without beginning a run: its epoch is the last one that was counted.
pub fn read_shard<D: Disk>(disk: &D, place: &ShardPlace<'_>) -> Result<ShardImage, RecoveryError> {
    let RecoveredShard { mut image, log, .. } = read_log(disk, place)?;
    image.epoch = image.epoch.max(log.manifest.epoch);
    Ok(image)
}

fn read_log<D: Disk>(disk: &D, place: &ShardPlace<'_>) -> Result<RecoveredShard, RecoveryError> {
    let ShardPlace { directory, shape, group, sessions, founding, .. } = *place;
    let snapshot = newest_snapshot(disk, place)?;
    let has_snapshot = snapshot.is_some();
    let mut builder = ImageBuilder::replica(group, founding, snapshot, sessions);
    let mut batches = 0;
    let log = recover_log(disk, directory, shape, &mut |batch| {
        batches += 1;
        builder.batch(&batch);
    })?;
    let last_sequence = log.recovered.last_sequence;
    let image = builder.finish(last_sequence).map_err(|error| {
        let advice = if has_snapshot {
            ""
        } else {
            "; no snapshot is here: if there was one, its file (snap-*) is gone"
        };
        RecoveryError::Mismatch(directory.to_path_buf(), format!("{error}{advice}"))
    })?;
    Ok(RecoveredShard { image, log, batches })
}

/// An empty shard without a log, in a directory that was never given one.
pub fn begin_cache<D: Disk>(disk: &D, place: &ShardPlace<'_>) -> Result<ShardImage, RecoveryError> {
    let ShardPlace { directory, shape, group, sessions, .. } = *place;
    let mut manifest = read_manifest(disk, directory, &shape.identity)?;
    let mut image = ImageBuilder::new(group, None, sessions)
        .finish(Sequence(0))
        .map_err(|error| RecoveryError::Mismatch(directory.to_path_buf(), error.to_string()))?;
    begin_run(disk, directory, &mut manifest, image.epoch, Sequence(0), &[])?;
    image.epoch = manifest.epoch;
    Ok(image)
}

/// Whether a shard's directory holds, or ever held, what a run without a log would not serve.
pub fn holds_data<D: Disk>(disk: &D, place: &ShardPlace<'_>) -> Result<bool, RecoveryError> {
    let directory = place.directory;
    let failed = |error| RecoveryError::Io(directory.to_path_buf(), error);
    let manifest = read_manifest(disk, directory, &place.shape.identity)?;
    Ok(!manifest.segments.is_empty()
        || !list_segments(disk, directory).map_err(failed)?.is_empty()
        || !list_snapshots(disk, directory).map_err(failed)?.is_empty())
}

fn newest_snapshot<D: Disk>(
    disk: &D,
    place: &ShardPlace<'_>,
) -> Result<Option<SnapshotImage>, RecoveryError> {
    let directory = place.directory;
    let found =
        list_snapshots(disk, directory).map_err(|error| RecoveryError::Io(directory.to_path_buf(), error))?;
    let Some(index) = found.first() else { return Ok(None) };
    let file = directory.join(snapshot_file_name(*index));
    let log = place.shape.identity;
    let identity = ImageIdentity { cluster: log.cluster, shard: log.shard, group: place.group };
    let mut intake = SnapshotIntake::new(identity, place.sessions).with_indexes(place.indexes);
    let mut newer = None;
    let mut feed = |bytes: &[u8]| {
        let fed = intake.feed(bytes);
        if let Err(ImageError::Snapshot(error)) = &fed
            && let Fault::UnsupportedVersion(format) = error.fault
        {
            newer = Some(format);
        }
        fed.map_err(|error| error.to_string())
    };
    read_snapshot(disk, &file, &mut feed).map_err(|error| match (error, newer) {
        (SnapshotError::Unequal(path, _), Some(format)) => RecoveryError::NewerSnapshot(path, format),
        (SnapshotError::Unequal(path, text), None) => RecoveryError::Snapshot(path, text),
        (SnapshotError::Io(path, error), _) => RecoveryError::Io(path, error),
    })?;
    intake.finish().map(Some).map_err(|error| RecoveryError::Snapshot(file, error.to_string()))
}
