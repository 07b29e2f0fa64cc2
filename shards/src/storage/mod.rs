//! How a shard's log and snapshots use files: which file, in which order, what is synced before what, what is refused.
//!
//! This is the disk's half of "the engine decides". Nothing here opens a file: every operation goes through the seam of
//! two traits, [`disk::Disk`] for whole files and directories (blocking, on helper threads or before a shard serves) and
//! [`device::LogDevice`] for the log's writes and syncs (queued, completed later, on the shard's thread). `src/disk/`
//! performs them on Linux; a simulator performs them on a disk that tears, forgets and lies. The types are fixed when the
//! program is compiled, so the seam costs nothing on the way of a commit.
//!
//! - [`wal`]: the running log; batches in, durable sequences out.
//! - [`shard`]: a shard read back at boot, from snapshot and log; [`recovery`]: its log.
//! - [`manifest`]: the file that knows of segments that are gone, and counts starts.
//! - [`segments`]: segment files: making, opening, listing them.
//! - [`replica_dir`]: whose files stand in a shard's directory; emptying it.
//! - [`snapshots`], [`read_back`]: snapshot files: written aside, read back, put in place.

pub mod device;
pub mod disk;
pub mod manifest;
pub mod read_back;
pub mod recovery;
pub mod replica_dir;
pub mod segments;
pub mod shard;
pub mod snapshots;
pub mod wal;

#[cfg(test)]
mod tests;

use disk::{Disk, DiskFile, Open};
use std::io;
use std::path::Path;

/// Writes a small file so that either its old or its new contents are found after a crash: temporary file, sync, rename,
/// sync of the directory. A temporary file left by a crash is simply written over.
pub fn write_atomically<D: Disk>(disk: &D, directory: &Path, name: &str, contents: &[u8]) -> io::Result<()> {
    let temporary = directory.join(format!("{name}.tmp"));
    let file = disk.open(&temporary, Open::CREATE)?;
    file.write_at(contents, 0)?;
    file.sync()?;
    disk.rename(&temporary, &directory.join(name))?;
    disk.sync_directory(directory)
}
