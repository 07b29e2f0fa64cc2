//! Reads a shard's log back at boot: lists its segments, makes what is there durable, replays it.
//!
//! Everything is synced before it is read: what recovery saw must not vanish in a later power cut, since the shard will
//! vote and answer by it. Blocking; runs before the shard serves. It never writes to a segment.

use super::disk::{Disk, DiskFile, Open, read_exact_at};
use super::manifest::read_manifest;
use super::segments::{list_segments, open_segment};
use crate::log::manifest::{Manifest, ManifestError};
use crate::log::replay::{Recovered, ReplayedBatch, SegmentFile, SegmentSource, replay};
use crate::log::{LogShape, ReplayError, SegmentId};
use crate::mutants::{Mutant, is_on};
use std::io;
use std::path::{Path, PathBuf};

/// Why a log could not be recovered.
#[derive(Debug)]
pub enum RecoveryError {
    /// Durable records are damaged, or the files belong elsewhere. Repair from peers, or stop with exit code 70.
    Replay(ReplayError<io::Error>, PathBuf),
    /// The manifest cannot be read. Damage, unless it belongs elsewhere or is of a later version.
    Manifest(PathBuf, ManifestError),
    /// There is no manifest, and with it nothing that tells what else is gone. Damage.
    NoManifest(PathBuf),
    /// A snapshot has a format that this version does not know.
    NewerSnapshot(PathBuf, u32),
    /// A snapshot file is damaged, in the words of its reader.
    Snapshot(PathBuf, String),
    /// Snapshot and log do not fit together: damage, in the words of who put them together.
    Mismatch(PathBuf, String),
    /// A file or directory could not be listed, opened, read, written or synced.
    Io(PathBuf, io::Error),
}

impl std::fmt::Display for RecoveryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Replay(error, directory) => write!(f, "{}: {error}", directory.display()),
            Self::Manifest(path, error) => write!(f, "{}: {error}", path.display()),
            Self::NoManifest(path) => write!(
                f,
                "{} at byte 0: the file is gone, and without it nobody can tell what else is",
                path.display()
            ),
            Self::NewerSnapshot(path, format) => {
                write!(
                    f,
                    "{}: it has snapshot format {format}, which this version does not know",
                    path.display()
                )
            }
            Self::Snapshot(path, text) | Self::Mismatch(path, text) => {
                write!(f, "{}: {text}", path.display())
            }
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for RecoveryError {}

/// A log read back, with what it needs to go on.
#[derive(Debug)]
pub struct RecoveredLog {
    /// What the replay found.
    pub recovered: Recovered,
    /// What its manifest says.
    pub manifest: Manifest,
    /// The shape it was read with.
    pub shape: LogShape,
    /// Where its segments are.
    pub directory: PathBuf,
    /// The highest segment id in use; 0 for none.
    pub last_segment: SegmentId,
}

/// Recovers the log in `directory`. `on_batch` gets every live batch in order and must forget them on an error.
pub fn recover_log<D: Disk>(
    disk: &D,
    directory: &Path,
    shape: LogShape,
    on_batch: &mut dyn FnMut(ReplayedBatch<'_>),
) -> Result<RecoveredLog, RecoveryError> {
    let failed = |error| RecoveryError::Io(directory.to_path_buf(), error);
    let manifest = read_manifest(disk, directory, &shape.identity)?;
    let files = list_segments(disk, directory).map_err(failed)?;
    for file in &files {
        let path = directory.join(file.segment.file_name());
        let synced = open_segment(disk, directory, file.segment)
            .and_then(|open| if is_on(Mutant::RecoveryNotSynced) { Ok(()) } else { open.file.sync() });
        synced.map_err(|error| RecoveryError::Io(path, error))?;
    }
    let mut source = FileSource { disk, directory, open: None };
    let recovered = replay(&shape, &files, &manifest, &mut source, on_batch)
        .map_err(|error| RecoveryError::Replay(error, directory.to_path_buf()))?;
    let last_segment = files.last().map_or(SegmentId(0), |file: &SegmentFile| file.segment);
    Ok(RecoveredLog { recovered, manifest, shape, directory: directory.to_path_buf(), last_segment })
}

/// Reads through the page cache, one file open at a time: the log is written past the cache, so it holds nothing stale.
struct FileSource<'a, D: Disk> {
    disk: &'a D,
    directory: &'a Path,
    open: Option<(SegmentId, D::File)>,
}

impl<D: Disk> SegmentSource for FileSource<'_, D> {
    type Error = io::Error;

    fn read(&mut self, segment: SegmentId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != segment) {
            let path = self.directory.join(segment.file_name());
            self.open = Some((segment, self.disk.open(&path, Open::READ)?));
        }
        let (_, file) = self.open.as_ref().expect("just opened");
        read_exact_at(file, into, offset)
    }
}
