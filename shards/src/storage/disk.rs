//! Files and directories, as the engine asks for them: the blocking half of the seam to the disk.
//!
//! An implementation promises what a POSIX file system promises and no more: what was written is durable after
//! [`DiskFile::sync`], a name that was created, renamed or removed after [`Disk::sync_directory`], and after a failed sync
//! nothing is known. The engine promises that it relies on nothing else. Paths are plain data here.

use std::io;
use std::path::Path;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// For writing too.
    pub write: bool,
    /// Made when it is not there, emptied when it is.
    pub create: bool,
    /// Past the page cache where the file system allows it: buffers then start at whole blocks, as do offsets and lengths,
    /// except that a read may ask beyond the end.
    pub direct: bool,
}

impl Open {
    /// An existing file, for reading.
    pub const READ: Self = Self { write: false, create: false, direct: false };
    /// An existing file, for reading past the page cache.
    pub const READ_DIRECT: Self = Self { write: false, create: false, direct: true };
    /// An existing file, for reading and writing past the page cache.
    pub const WRITE_DIRECT: Self = Self { write: true, create: false, direct: true };
    /// A new file, for writing.
    pub const CREATE: Self = Self { write: true, create: true, direct: false };
    /// A new file, for writing past the page cache.
    pub const CREATE_DIRECT: Self = Self { write: true, create: true, direct: true };
}

/// A file found in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Its name; names that are not UTF-8 are not the engine's and are left out.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A file system.
pub trait Disk {
    /// An open file; dropping it closes it.
    type File: DiskFile;

    /// Opens a file.
    fn open(&self, path: &Path, how: Open) -> io::Result<Self::File>;

    /// What a directory holds, in any order.
    fn list(&self, directory: &Path) -> io::Result<Vec<DirectoryEntry>>;

    /// Gives a file another name in the same directory, in place of a file of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a file of which nothing is needed any more, in pieces that hold nobody else up; after a crash any part of
    /// it may be left. Some file systems stop every sync for tens of milliseconds while they free hundreds of megabytes.
    fn shred(&self, path: &Path) -> io::Result<()> {
        self.remove(path)
    }

    /// Makes every name that was created, renamed or removed in the directory so far durable.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile {
    /// Reads up to the length of `into`; fewer bytes may come, none at the end of the file.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes what was written durable, and the length.
    fn sync(&self) -> io::Result<()>;

    /// Has these bytes on their way to the device when it returns, so that a later sync has little left to do and holds
    /// nobody else up. Promises nothing but to say what went wrong with them: a sync may not say it again.
    fn write_out(&self, _offset: u64, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    /// The length in bytes.
    fn bytes(&self) -> io::Result<u64>;

    /// Whether the page cache is really bypassed.
    fn is_direct(&self) -> bool;
}

/// Fills `into` from `offset` on; an error when the file ends before.
pub fn read_exact_at<F: DiskFile>(file: &F, mut into: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !into.is_empty() {
        match file.read_at(into, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                into = &mut into[read..];
                offset += read as u64;
            }
        }
    }
    Ok(())
}
