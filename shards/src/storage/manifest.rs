//! The manifest's file: made with the directory, read at every start, written over in place in turns.
//!
//! What it says and why is in `log::manifest`. It is never made anew beside a log: a manifest that is gone is damage. Written
//! in place, so that a start needs no free space. Blocking; the running log writes its later generations itself.

use super::disk::{Disk, DiskFile, Open, read_exact_at};
use super::recovery::RecoveryError;
use super::write_atomically;
use crate::ids::Sequence;
use crate::log::LogIdentity;
use crate::log::header::BLOCK_BYTES;
use crate::log::manifest::{ListedSegment, MANIFEST_BYTES, Manifest, ManifestError};
use crate::log::writer::LiveSegment;
use std::io;
use std::path::Path;

/// Name of the file in a shard's directory.
pub const MANIFEST_FILE: &str = "manifest";

/// Makes the manifest of a shard that has no log yet. Its first run gets an epoch above `epoch`.
pub fn create_manifest<D: Disk>(
    disk: &D,
    directory: &Path,
    identity: LogIdentity,
    epoch: u32,
) -> io::Result<()> {
    write_atomically(disk, directory, MANIFEST_FILE, &Manifest::blank(identity, epoch).first_bytes())
}

/// Reads the manifest of a shard.
pub fn read_manifest<D: Disk>(
    disk: &D,
    directory: &Path,
    identity: &LogIdentity,
) -> Result<Manifest, RecoveryError> {
    let path = directory.join(MANIFEST_FILE);
    let failed = |error| RecoveryError::Io(path.clone(), error);
    let told = |error| RecoveryError::Manifest(path.clone(), error);
    let file = match disk.open(&path, Open::READ) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(RecoveryError::NoManifest(path)),
        opened => opened.map_err(failed)?,
    };
    let length = file.bytes().map_err(failed)?;
    if length != MANIFEST_BYTES as u64 {
        return Err(told(ManifestError::Length(length)));
    }
    let mut bytes = vec![0; MANIFEST_BYTES];
    read_exact_at(&file, &mut bytes, 0).map_err(failed)?;
    Manifest::decode(&bytes, identity).map_err(told)
}

/// Begins a run: counts the epoch up, above `epoch_seen` too, and makes that durable in both blocks, with the log as it was
/// found. To be done before the shard serves.
pub fn begin_run<D: Disk>(
    disk: &D,
    directory: &Path,
    manifest: &mut Manifest,
    epoch_seen: u32,
    durable_upto: Sequence,
    live: &[LiveSegment],
) -> Result<(), RecoveryError> {
    let path = directory.join(MANIFEST_FILE);
    let failed = |error| RecoveryError::Io(path.clone(), error);
    let file = disk.open(&path, Open { direct: false, ..Open::WRITE_DIRECT }).map_err(failed)?;
    // Four thousand million starts are not reached; the last epoch would be given again rather than an old one.
    manifest.epoch = manifest.epoch.max(epoch_seen).saturating_add(1);
    let mut block = vec![0; BLOCK_BYTES];
    for _ in 0..2 {
        manifest.advance(durable_upto, live.iter().map(ListedSegment::from));
        manifest.encode(&mut block);
        file.write_at(&block, manifest.offset()).and_then(|()| file.sync()).map_err(failed)?;
    }
    Ok(())
}

impl From<&LiveSegment> for ListedSegment {
    fn from(live: &LiveSegment) -> Self {
        Self { segment: live.segment, epoch: live.epoch }
    }
}
