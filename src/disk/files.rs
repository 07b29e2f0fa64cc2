//! Files and directories of the real disk, for the engine's side of it (`shards::storage`).
//!
//! Every call here blocks: it belongs to helper threads and to the time before a shard serves. Decides nothing.

use crate::sys;
use shards::storage::disk::{self, DirectoryEntry, Disk, Open};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// What a file loses at once while it is shredded, and the pause after it: the journal of the file system takes the log's
/// syncs in between. (200 MB removed at once held the log up for 30 ms and more, in such pieces for less than 8 ms.)
const SHRED_BYTES: u64 = 8 << 20;
const SHRED_PAUSE: Duration = Duration::from_millis(4);

/// The file system that the kernel shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

/// One of its files.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    direct: bool,
}

impl Disk for RealDisk {
    type File = DiskFile;

    fn open(&self, path: &Path, how: Open) -> io::Result<DiskFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(how.write).create(how.create).truncate(how.create);
        if !how.direct {
            return Ok(DiskFile { file: options.open(path)?, direct: false });
        }
        match options.clone().custom_flags(libc::O_DIRECT).open(path) {
            // A tmpfs, for one, refuses.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Ok(DiskFile { file: options.open(path)?, direct: false })
            }
            opened => Ok(DiskFile { file: opened?, direct: true }),
        }
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<DirectoryEntry>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string() {
                found.push(DirectoryEntry { name, bytes: entry.metadata()?.len() });
            }
        }
        Ok(found)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn shred(&self, path: &Path) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        let mut bytes = file.metadata()?.len();
        while bytes > SHRED_BYTES {
            bytes -= SHRED_BYTES;
            file.set_len(bytes)?;
            std::thread::sleep(SHRED_PAUSE);
        }
        drop(file);
        std::fs::remove_file(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }
}

impl disk::DiskFile for DiskFile {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match self.file.read_at(into, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn write_out(&self, offset: u64, bytes: u64) -> io::Result<()> {
        sys::write_out(&self.file, offset, bytes)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn is_direct(&self) -> bool {
        self.direct
    }
}

impl AsRawFd for DiskFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::Scratch;
    use shards::storage::disk::DiskFile as _;

    #[test]
    fn a_file_of_any_length_is_shredded() {
        let scratch = Scratch::new();
        let path = scratch.path().join("old");
        for bytes in [0, 1, SHRED_BYTES, 3 * SHRED_BYTES + 1] {
            let file = RealDisk.open(&path, Open::CREATE).unwrap();
            file.write_at(b"x", bytes).unwrap();
            file.write_out(bytes, 1).unwrap();
            RealDisk.shred(&path).unwrap();
            assert!(RealDisk.list(scratch.path()).unwrap().is_empty(), "{bytes} bytes");
        }
        assert_eq!(RealDisk.shred(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
