//! Everything that meets the disk: the data directory, the write-ahead log's ring and segment files, snapshot files.
//!
//! The shards decide (`shards::log` says what bytes go where and what they mean); this module performs, and reports what
//! became durable. It never acknowledges anything on its own, and after a failed write or sync it never touches that
//! file again. Blocking work (making segments, snapshot files) runs on helper threads, never on a shard's.

mod aligned;
pub mod data_dir;
pub mod recovery;
mod ring;
pub mod segment;
pub mod snapshot_file;
pub mod wal;
pub mod worker;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::Path;

/// Makes a created, renamed or removed name in `directory` durable.
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Writes a small file so that either its old or its new contents are found after a crash: temporary file, sync, rename,
/// sync of the directory. A temporary file left by a crash is simply written over.
fn write_atomically(directory: &Path, name: &str, contents: &[u8]) -> io::Result<()> {
    let temporary = directory.join(format!("{name}.tmp"));
    let mut file = File::create(&temporary)?;
    io::Write::write_all(&mut file, contents)?;
    file.sync_all()?;
    std::fs::rename(&temporary, directory.join(name))?;
    sync_directory(directory)
}
