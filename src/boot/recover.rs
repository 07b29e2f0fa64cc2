//! Brings one shard back in its own thread, before it serves, and opens its log to go on with.
//!
//! What comes back and what is refused is decided by the engine (`shards::storage::shard`); this turns a refusal into a reason
//! to stop the server, with the exit code that it deserves.

use super::settings;
use crate::clock::Clock;
use crate::disk::data_dir::DataDir;
use crate::disk::files::RealDisk;
use crate::disk::replica_dir;
use crate::disk::segment::SegmentPoolHandle;
use crate::disk::wal::{Wal, open_wal};
use crate::doorbell::Doorbell;
use crate::driver::{Driver, PeerSide, Seat, SnapshotFiles, lock_of};
use crate::fatal::Fatal;
use crate::tuning::{Tuning, WalSync};
use shards::ids::{GroupId, ReplicaId};
use shards::index::set::IndexSettings;
use shards::log::ReplayError;
use shards::log::manifest::ManifestError;
use shards::meta::REPLACEABLE_COPIES_MIN;
use shards::shard::image::Founding;
use shards::shard::{Shard, ShardConfig, ShardFault, ShardImage};
use shards::storage::recovery::RecoveryError;
use shards::storage::shard::{ShardPlace, begin_cache, holds_data, recover_shard};

/// A shard ready to be driven.
struct RecoveredShard {
    shard: Shard,
    wal: Option<Wal>,
    clock: Clock,
}

/// What became of a shard with a replica.
pub(super) enum Made {
    /// It can be driven.
    Driver(Box<Driver>),
    /// There is no replica, or its files are damaged and were set aside: the seat waits for another one.
    Vacant(Box<Seat>, Box<SnapshotFiles>),
}

/// Recovers a shard and makes its driver, if the seat has a replica: by the meta state, or by the files that stand there.
pub(super) fn driver(
    tuning: &Tuning,
    indexes: IndexSettings,
    directory: &DataDir,
    mut seat: Box<Seat>,
    segments: SegmentPoolHandle,
    files: SnapshotFiles,
) -> Result<Made, Fatal> {
    let path = directory.shard_path(seat.number);
    let appointment = match &seat.peers {
        None => None,
        Some(peers) => {
            let found = peers.found_at_start();
            match found.map_err(|source| Fatal::Directory { path: path.clone(), source })? {
                None => return Ok(Made::Vacant(seat, Box::new(files))),
                found => found,
            }
        }
    };
    if let Some(appointment) = &appointment {
        if replica_dir::is_lost(&path, appointment.replica) {
            seat.lost = appointment.replica;
            return Ok(Made::Vacant(seat, Box::new(files)));
        }
        if !path.exists() {
            let detail = format!("its directory {} is gone", path.display());
            let gone = Fatal::Corruption { shard: seat.number, detail };
            return set_aside(seat, files, &path, appointment.replica, gone);
        }
        let identity = directory.log_shape(seat.number).identity;
        let prepared = replica_dir::prepare(&path, appointment.replica, identity);
        prepared.map_err(|source| Fatal::Directory { path: path.clone(), source })?;
    }
    let is = match &appointment {
        None => (&Founding::Alone, false),
        Some(appointment) => (&appointment.founding, appointment.is_preferred),
    };
    let recovered = shard(tuning, indexes, directory, seat.number, segments, &seat.bell, is);
    let RecoveredShard { shard, wal, clock } = match (recovered, &appointment) {
        (Ok(recovered), _) => recovered,
        (Err(damage @ Fatal::Corruption { .. }), Some(appointment)) => {
            return set_aside(seat, files, &path, appointment.replica, damage);
        }
        (Err(reason), _) => return Err(reason),
    };
    if let (Some(peers), Some(appointment)) = (&mut seat.peers, &appointment) {
        peers.serve_replica(appointment.replica);
    }
    seat.clock = clock;
    Ok(Made::Driver(Box::new(Driver::new(seat, shard, wal, files))))
}

/// Keeps what is damaged under another name, so that the group's other replicas can fill a new one; or refuses, where they
/// could not.
///
/// What the damaged replica promised (votes, acknowledged entries) is not known any more, so it must never speak again under
/// its id. That is as if its machine were dead: the others go on without it and take the new replica in as any other. The
/// new one is empty and has no vote until it has been filled.
fn set_aside(
    mut seat: Box<Seat>,
    files: SnapshotFiles,
    path: &std::path::Path,
    replica: ReplicaId,
    damage: Fatal,
) -> Result<Made, Fatal> {
    let number = seat.number;
    let copies = seat.peers.as_ref().map_or(0, PeerSide::copies);
    if copies < REPLACEABLE_COPIES_MIN {
        // The others are no majority without this one.
        return Err(damage);
    }
    tracing::error!(shard = number, "{damage}");
    let name = match replica_dir::set_aside(path, replica) {
        Ok(name) => name,
        Err(error) => {
            tracing::error!(shard = number, "the damaged files cannot be set aside: {error}");
            return Err(damage);
        }
    };
    tracing::error!(
        shard = number,
        kept = name.as_deref().unwrap_or("nothing"),
        "the damaged files of this replica are kept under another name; the group's other replicas fill a new one. Check the disk"
    );
    if let (Some(peers), Some(name)) = (&seat.peers, name) {
        peers.was_set_aside(name);
    }
    seat.lost = replica;
    Ok(Made::Vacant(seat, Box::new(files)))
}

/// Recovers a shard and opens its log.
fn shard(
    tuning: &Tuning,
    indexes: IndexSettings,
    directory: &DataDir,
    number: u32,
    segments: SegmentPoolHandle,
    bell: &Doorbell,
    (founding, is_preferred): (&Founding, bool),
) -> Result<RecoveredShard, Fatal> {
    let clock = Clock::start();
    let meta = directory.meta();
    let config = settings::shard(tuning, indexes, meta.cluster, number, meta.shards);
    let log_payload_bytes_max = directory.log_shape(number).payload_bytes_max();
    let config = ShardConfig { is_preferred, log_payload_bytes_max, ..config };
    let path = directory.shard_path(number);
    let place = place(tuning, indexes, directory, number, &path, founding);
    let failed = |error| recovery_failed(number, error);
    let restore = |image: ShardImage| {
        let faulted = |fault: ShardFault| Fatal::Corruption { shard: number, detail: fault.to_string() };
        Shard::restore(config, image, clock.now()).map_err(faulted)
    };
    if tuning.wal.sync == WalSync::Off {
        let shard = restore(begin_cache(&RealDisk, &place).map_err(failed)?)?;
        return Ok(RecoveredShard { shard, wal: None, clock });
    }
    let recovered = recover_shard(&RealDisk, &place).map_err(failed)?;
    let (log, batches) = (&recovered.log, recovered.batches);
    tracing::info!(shard = number, batches, tail = ?log.recovered.tail, "log read back");
    let shard = restore(recovered.image)?;
    let wal = open_wal(log, settings::wal(tuning), segments, Some(bell.fd()), Some(lock_of(directory)))
        .map_err(|source| Fatal::Start { thread: format!("the log of shard {number}"), source })?;
    Ok(RecoveredShard { shard, wal: Some(wal), clock })
}

/// Refuses to run as a cache over data that a log or snapshot holds: it would not be served, and later seem lost.
pub(super) fn refuse_kept_data(tuning: &Tuning, directory: &DataDir) -> Result<(), Fatal> {
    for number in 0..directory.meta().shards {
        let path = directory.shard_path(number);
        let place = place(tuning, IndexSettings::default(), directory, number, &path, &Founding::Alone);
        if holds_data(&RealDisk, &place).map_err(|error| recovery_failed(number, error))? {
            return Err(Fatal::DirectoryMismatch(format!(
                "The data directory {} holds data that a server with a log has written, and wal.sync = \"off\" would not \
                 read them. Start with wal.sync = \"always\" or \"interval:MS\", or give the cache another --data-dir.",
                directory.path().display()
            )));
        }
    }
    Ok(())
}

fn place<'a>(
    tuning: &Tuning,
    indexes: IndexSettings,
    directory: &DataDir,
    number: u32,
    path: &'a std::path::Path,
    founding: &'a Founding,
) -> ShardPlace<'a> {
    ShardPlace {
        directory: path,
        shape: directory.log_shape(number),
        group: GroupId(number),
        sessions: settings::sessions(tuning),
        indexes,
        founding,
    }
}

fn recovery_failed(shard: u32, error: RecoveryError) -> Fatal {
    let detail = error.to_string();
    match error {
        RecoveryError::Io(path, source) | RecoveryError::Replay(ReplayError::Read(_, source), path) => {
            Fatal::Directory { path, source }
        }
        RecoveryError::NewerSnapshot(..)
        | RecoveryError::Replay(ReplayError::Foreign(_) | ReplayError::NewerFormat(..), _)
        | RecoveryError::Manifest(_, ManifestError::Foreign | ManifestError::NewerFormat(_)) => {
            Fatal::DirectoryMismatch(detail)
        }
        RecoveryError::Replay(ReplayError::Corrupt(_), _)
        | RecoveryError::Manifest(..)
        | RecoveryError::NoManifest(_)
        | RecoveryError::Snapshot(..)
        | RecoveryError::Mismatch(..) => Fatal::Corruption { shard, detail },
    }
}
