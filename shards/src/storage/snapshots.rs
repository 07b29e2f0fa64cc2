//! Snapshot files: written beside the final name, synced, read back from the disk, and only then put in place.
//!
//! The bytes are the engine's (`shards::snapshot`); this file moves them and never interprets them. A snapshot is called
//! `snap-` and its log index in twenty digits, so that names sort by index; unfinished and retired ones end in `.tmp`. Older
//! snapshots are removed only after a newer one was verified and its name is durable. Everything here blocks.

use super::disk::{Disk, DiskFile, Open};
use super::segments::BlockBuffer;
use crate::log::header::BLOCK_BYTES;
use crate::mutants::{Mutant, is_on};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes written or read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Why a snapshot did not come to be. The older ones are still there.
#[derive(Debug)]
pub enum SnapshotError {
    /// Writing, syncing or reading back failed.
    Io(PathBuf, io::Error),
    /// What came back from the disk is not what was written, in the words of the verifier.
    Unequal(PathBuf, String),
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Unequal(path, what) => write!(f, "{} reads back differently: {what}", path.display()),
        }
    }
}

impl std::error::Error for SnapshotError {}

/// Checks a snapshot that is read back: it gets every chunk in order.
pub trait Verifier {
    /// The next bytes; an error says what is wrong with them.
    fn chunk(&mut self, bytes: &[u8]) -> Result<(), String>;
    /// The end; an error says what is missing.
    fn end(&mut self) -> Result<(), String>;
}

/// The final name of the snapshot at a log index.
pub fn snapshot_file_name(index: u64) -> String {
    format!("snap-{index:020}")
}

/// The log index of a finished snapshot's file name.
pub fn parse_file_name(name: &str) -> Option<u64> {
    let index = name.strip_prefix("snap-")?.parse().ok()?;
    (snapshot_file_name(index) == name).then_some(index)
}

/// A snapshot being written.
#[derive(Debug)]
pub struct SnapshotWriter<D: Disk> {
    disk: D,
    directory: PathBuf,
    temporary: PathBuf,
    index: u64,
    file: D::File,
    /// Bytes that gather before they are written.
    gathered: Vec<u8>,
    /// Bytes written so far.
    written: u64,
}

impl<D: Disk> SnapshotWriter<D> {
    /// Begins the snapshot at `index`, in place of an unfinished one.
    pub fn create(disk: D, directory: &Path, index: u64) -> Result<Self, SnapshotError> {
        let temporary = directory.join(format!("{}.tmp", snapshot_file_name(index)));
        let file = disk
            .open(&temporary, Open::CREATE)
            .map_err(|error| SnapshotError::Io(temporary.clone(), error))?;
        let gathered = Vec::with_capacity(CHUNK_BYTES);
        Ok(Self { disk, directory: directory.to_path_buf(), temporary, index, file, gathered, written: 0 })
    }

    /// Adds bytes.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        if self.gathered.len() + bytes.len() > CHUNK_BYTES {
            self.write_gathered()?;
        }
        if bytes.len() < CHUNK_BYTES {
            self.gathered.extend_from_slice(bytes);
            return Ok(());
        }
        self.write(bytes)
    }

    fn write_gathered(&mut self) -> Result<(), SnapshotError> {
        let mut gathered = std::mem::take(&mut self.gathered);
        let written = self.write(&gathered);
        gathered.clear();
        self.gathered = gathered;
        written
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let written = self.file.write_at(bytes, self.written);
        let written = written.and_then(|()| self.file.write_out(self.written, bytes.len() as u64));
        written.map_err(|error| SnapshotError::Io(self.temporary.clone(), error))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Syncs the file, reads it back from the disk through `verifier`, gives it its name and removes older snapshots.
    /// Returns its length in bytes. On an error the unfinished file is removed.
    pub fn finish(mut self, verifier: &mut dyn Verifier) -> Result<u64, SnapshotError> {
        let result = self.put_in_place(verifier);
        if result.is_err() {
            self.discard();
            return result;
        }
        // From here on the snapshot stands; what cannot be removed now goes with the next one.
        let older = list_snapshots(&self.disk, &self.directory).unwrap_or_default();
        for older in older.into_iter().filter(|older| *older < self.index) {
            let _ = self.retire(older);
        }
        result
    }

    /// Removes an older snapshot. It loses its name first, so that no crash leaves a part of it under that name.
    fn retire(&self, older: u64) -> io::Result<()> {
        let name = self.directory.join(snapshot_file_name(older));
        let retired = self.directory.join(format!("{}.tmp", snapshot_file_name(older)));
        self.disk.rename(&name, &retired)?;
        self.disk.sync_directory(&self.directory)?;
        self.disk.shred(&retired)
    }

    /// Gives up and removes the unfinished file.
    pub fn abort(self) {
        self.discard();
    }

    fn discard(&self) {
        // A rest that cannot be removed is removed by the next `list_snapshots`.
        let _ = self.disk.remove(&self.temporary);
    }

    fn put_in_place(&mut self, verifier: &mut dyn Verifier) -> Result<u64, SnapshotError> {
        self.write_gathered()?;
        let path = self.temporary.clone();
        let failed = |error| SnapshotError::Io(path.clone(), error);
        if !is_on(Mutant::SnapshotNotSynced) {
            self.file.sync().map_err(failed)?;
        }
        let length = self.file.bytes().map_err(failed)?;
        if length != self.written {
            return Err(SnapshotError::Unequal(path, format!("{} bytes became {length}", self.written)));
        }
        read_snapshot(&self.disk, &self.temporary, &mut |bytes| verifier.chunk(bytes))?;
        let verified = if is_on(Mutant::SnapshotNotReadBack) { Ok(()) } else { verifier.end() };
        verified.map_err(|what| SnapshotError::Unequal(path.clone(), what))?;
        let name = self.directory.join(snapshot_file_name(self.index));
        self.disk.rename(&self.temporary, &name).map_err(failed)?;
        if !is_on(Mutant::SnapshotNameNotSynced) {
            self.disk.sync_directory(&self.directory).map_err(failed)?;
        }
        Ok(length)
    }
}

/// Indexes of the finished snapshots in a directory, newest first; removes unfinished ones. Never call it while a
/// snapshot is being written there, except from its own `finish`.
pub fn list_snapshots<D: Disk>(disk: &D, directory: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in disk.list(directory)? {
        if let Some(index) = parse_file_name(&entry.name) {
            found.push(index);
        } else if entry.name.strip_suffix(".tmp").and_then(parse_file_name).is_some() {
            disk.remove(&directory.join(&entry.name))?;
        }
    }
    found.sort_unstable_by(|left, right| right.cmp(left));
    Ok(found)
}

/// Reads a whole file in order, from the disk and not from the page cache where the file system allows that.
pub fn read_snapshot<D: Disk>(
    disk: &D,
    path: &Path,
    on_chunk: &mut dyn FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), SnapshotError> {
    let failed = |error| SnapshotError::Io(path.to_path_buf(), error);
    let file = disk.open(path, Open::READ_DIRECT).map_err(failed)?;
    let length = file.bytes().map_err(failed)?;
    let mut buffer = BlockBuffer::new();
    buffer.resize(CHUNK_BYTES.min((length as usize).next_multiple_of(BLOCK_BYTES)), 0);
    let mut offset = 0;
    while offset < length {
        let read = file.read_at(&mut buffer, offset).map_err(failed)?;
        let ends = offset + read as u64 == length;
        // A direct read starts at a block: one that stopped inside a block is taken up again there.
        let taken = if ends { read } else { read / BLOCK_BYTES * BLOCK_BYTES };
        if taken == 0 {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        on_chunk(&buffer[..taken]).map_err(|what| SnapshotError::Unequal(path.to_path_buf(), what))?;
        offset += taken as u64;
    }
    Ok(())
}
