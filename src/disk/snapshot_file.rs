//! Snapshot files: written beside the final name, synced, read back from the disk, and only then put in place.
//!
//! The bytes are the engine's (`shards::snapshot`); this file moves them and never interprets them. A snapshot is called
//! `snap-` and its log index in twenty digits, so that names sort by index; unfinished ones end in `.tmp`. Older snapshots
//! are removed only after a newer one was verified and its name is durable. Everything here blocks.

use super::aligned::AlignedBuffer;
use super::segment::open_direct;
use super::sync_directory;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes written or read at once.
const CHUNK_BYTES: usize = 1 << 20;
const BLOCK_BYTES: usize = shards::log::header::BLOCK_BYTES;

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

fn parse_file_name(name: &str) -> Option<u64> {
    let index = name.strip_prefix("snap-")?.parse().ok()?;
    (snapshot_file_name(index) == name).then_some(index)
}

/// A snapshot being written.
#[derive(Debug)]
pub struct SnapshotWriter {
    directory: PathBuf,
    temporary: PathBuf,
    index: u64,
    file: BufWriter<File>,
    bytes: u64,
}

impl SnapshotWriter {
    /// Begins the snapshot at `index`, in place of an unfinished one.
    pub fn create(directory: &Path, index: u64) -> Result<Self, SnapshotError> {
        let temporary = directory.join(format!("{}.tmp", snapshot_file_name(index)));
        let file = File::create(&temporary).map_err(|error| SnapshotError::Io(temporary.clone(), error))?;
        let file = BufWriter::with_capacity(CHUNK_BYTES, file);
        Ok(Self { directory: directory.to_path_buf(), temporary, index, file, bytes: 0 })
    }

    /// Adds bytes.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|error| SnapshotError::Io(self.temporary.clone(), error))
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
        for older in list_snapshots(&self.directory)
            .unwrap_or_default()
            .into_iter()
            .filter(|older| *older < self.index)
        {
            let _ = std::fs::remove_file(self.directory.join(snapshot_file_name(older)));
        }
        result
    }

    /// Gives up and removes the unfinished file.
    pub fn abort(self) {
        self.discard();
    }

    fn discard(&self) {
        // A rest that cannot be removed is removed by the next `list_snapshots`.
        let _ = std::fs::remove_file(&self.temporary);
    }

    fn put_in_place(&mut self, verifier: &mut dyn Verifier) -> Result<u64, SnapshotError> {
        let path = self.temporary.clone();
        let failed = |error| SnapshotError::Io(path.clone(), error);
        self.file.flush().map_err(failed)?;
        self.file.get_ref().sync_all().map_err(failed)?;
        let length = self.file.get_ref().metadata().map_err(failed)?.len();
        if length != self.bytes {
            return Err(SnapshotError::Unequal(path, format!("{} bytes became {length}", self.bytes)));
        }
        read_snapshot(&self.temporary, &mut |bytes| verifier.chunk(bytes))?;
        verifier.end().map_err(|what| SnapshotError::Unequal(path.clone(), what))?;
        let name = self.directory.join(snapshot_file_name(self.index));
        std::fs::rename(&self.temporary, name).map_err(failed)?;
        sync_directory(&self.directory).map_err(failed)?;
        Ok(length)
    }
}

/// Indexes of the finished snapshots in a directory, newest first; removes unfinished ones. Never call it while a
/// snapshot is being written there, except from its own `finish`.
pub fn list_snapshots(directory: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(index) = parse_file_name(name) {
            found.push(index);
        } else if name.strip_suffix(".tmp").and_then(parse_file_name).is_some() {
            std::fs::remove_file(entry.path())?;
        }
    }
    found.sort_unstable_by(|left, right| right.cmp(left));
    Ok(found)
}

/// Reads a whole file in order, from the disk and not from the page cache where the file system allows that.
pub fn read_snapshot(
    path: &Path,
    on_chunk: &mut dyn FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), SnapshotError> {
    let failed = |error| SnapshotError::Io(path.to_path_buf(), error);
    let (file, _) = open_direct(OpenOptions::new().read(true), path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut buffer = AlignedBuffer::zeroed(CHUNK_BYTES);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::Scratch;

    pub(super) struct Equal(Vec<u8>);

    impl Verifier for Equal {
        fn chunk(&mut self, bytes: &[u8]) -> Result<(), String> {
            let rest = self.0.strip_prefix(bytes).ok_or("other bytes")?.to_vec();
            self.0 = rest;
            Ok(())
        }

        fn end(&mut self) -> Result<(), String> {
            if self.0.is_empty() { Ok(()) } else { Err("bytes are missing".into()) }
        }
    }

    fn write(directory: &Path, index: u64, bytes: &[u8], expected: &[u8]) -> Result<u64, SnapshotError> {
        let mut writer = SnapshotWriter::create(directory, index)?;
        for chunk in bytes.chunks(70_001) {
            writer.append(chunk)?;
        }
        writer.finish(&mut Equal(expected.to_vec()))
    }

    #[test]
    fn the_newest_verified_snapshot_is_the_one_that_stays() {
        let scratch = Scratch::new();
        let bytes: Vec<u8> = (0..3_000_001_u32).map(|at| ((at * 7) >> 3) as u8).collect();
        assert_eq!(write(scratch.path(), 5, &bytes, &bytes).unwrap(), 3_000_001);
        assert_eq!(list_snapshots(scratch.path()).unwrap(), [5]);
        write(scratch.path(), 9, b"short", b"short").unwrap();
        assert_eq!(list_snapshots(scratch.path()).unwrap(), [9]);
        let mut read = Vec::new();
        let path = scratch.path().join(snapshot_file_name(9));
        read_snapshot(&path, &mut |chunk| {
            read.extend_from_slice(chunk);
            Ok(())
        })
        .unwrap();
        assert_eq!(read, b"short");
    }

    #[test]
    fn a_snapshot_that_reads_back_differently_replaces_nothing() {
        let scratch = Scratch::new();
        write(scratch.path(), 5, b"good", b"good").unwrap();
        for expected in [&b"evil"[..], b"evil and more"] {
            assert!(matches!(write(scratch.path(), 9, b"evol", expected), Err(SnapshotError::Unequal(..))));
        }
        let mut writer = SnapshotWriter::create(scratch.path(), 10).unwrap();
        writer.append(b"unfinished").unwrap();
        drop(writer);
        assert_eq!(list_snapshots(scratch.path()).unwrap(), [5]);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    }
}
