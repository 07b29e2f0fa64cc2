//! Shows an image to the server as a mounted file system (FUSE), and lets the harness cut its power, slow it, fill it, break it
//! or make it lie.
//!
//! Invariants: no request is answered from a cache of the kernel, so that what a restarted server reads is what the cut left;
//! once the power is off no request changes the image, and the power comes back only when every file was closed, so that no
//! late write of a killed process reaches the disk of its successor. Each request takes effect whole, in one order; that
//! order, numbered, is the disk's clock ([`Disk::position`]).

use super::cut;
use super::image::{File, Image, Names, Operation};
use super::served::Served;
use fuser::{BackgroundSession, Config, Errno, FileAttr, FileType, INodeNo, MountOption, Session};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, UNIX_EPOCH};
use strand_sim::rng::Rng;

/// Threads that serve requests: a slow request must not hold up all others.
const THREADS: usize = 4;
/// Longest wait for a killed process's files to be closed.
const CLOSED_WITHIN: Duration = Duration::from_secs(20);
/// What the file system calls a block.
pub(super) const BLOCK_BYTES: u32 = 4096;

/// What is wrong with the disk. All may be changed while it is in use.
#[derive(Debug)]
pub struct Faults {
    /// Every request fails, as without power.
    pub off: AtomicBool,
    /// A sync answers well and does nothing.
    pub lies: AtomicBool,
    /// Writes answer EIO.
    pub fails_writes: AtomicBool,
    /// Syncs answer EIO.
    pub fails_syncs: AtomicBool,
    /// Each write and each sync takes so much longer, in microseconds.
    pub delay_us: AtomicU64,
    /// Bytes that all files may take together.
    pub capacity_bytes: AtomicU64,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            off: AtomicBool::new(false),
            lies: AtomicBool::new(false),
            fails_writes: AtomicBool::new(false),
            fails_syncs: AtomicBool::new(false),
            delay_us: AtomicU64::new(0),
            capacity_bytes: AtomicU64::new(u64::MAX),
        }
    }
}

/// The files, and who has them open.
#[derive(Default)]
pub(super) struct State {
    pub(super) image: Image,
    trace: Option<Vec<Operation>>,
    handles: HashMap<u64, u64>,
}

/// Counts of what a disk was asked and answered, for the ledger.
#[derive(Debug, Default)]
pub struct Counts {
    /// Writes that took effect.
    pub writes: AtomicU64,
    /// Syncs that were answered well.
    pub syncs: AtomicU64,
    /// Requests answered with EIO.
    pub failed: AtomicU64,
    /// Requests answered with ENOSPC.
    pub full: AtomicU64,
}

/// What the harness and the kernel's threads share.
#[derive(Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    position: AtomicU64,
    faults: Faults,
    counts: Counts,
}

/// A mounted disk; unmounted when dropped.
pub struct Disk {
    shared: Arc<Shared>,
    path: PathBuf,
    session: Option<BackgroundSession>,
}

impl Disk {
    /// Mounts an empty disk on a directory, which is made.
    pub fn mount(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let shared = Arc::new(Shared::default());
        let mut config = Config::default();
        config.mount_options =
            vec![MountOption::FSName("strand-torture".to_owned()), MountOption::NoAtime, MountOption::RW];
        config.n_threads = Some(THREADS);
        let session = Session::new(Served(Arc::clone(&shared)), path, &config)?.spawn()?;
        Ok(Self { shared, path: path.to_owned(), session: Some(session) })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What may be made wrong with it.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// What it was asked.
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// A clock that others may read: how many operations took effect.
    pub fn clock(&self) -> DiskClock {
        DiskClock(Arc::clone(&self.shared))
    }

    /// How many operations took effect so far.
    pub fn position(&self) -> u64 {
        self.shared.position.load(Ordering::Acquire)
    }

    /// Bytes that its files take.
    pub fn bytes(&self) -> u64 {
        self.shared.lock().image.bytes()
    }

    /// The power goes: from now on every request fails.
    pub fn power_off(&self) {
        self.shared.faults.off.store(true, Ordering::SeqCst);
        // Whoever holds the lock now came before the cut.
        drop(self.shared.lock());
    }

    /// The power comes back: what was not synced may be gone. The processes that used it must be dead.
    ///
    /// # Errors
    /// When a file stays open.
    pub fn power_on(&self, rng: &mut Rng) -> io::Result<()> {
        self.wait_until_closed()?;
        let mut state = self.shared.lock();
        let left = cut::after_cut(&state.image, rng);
        state.image = left;
        drop(state);
        self.shared.faults.off.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Waits until no process has a file of it open.
    ///
    /// # Errors
    /// When one stays open.
    pub fn wait_until_closed(&self) -> io::Result<()> {
        let begun = Instant::now();
        while self.shared.lock().handles.values().any(|open| *open > 0) {
            if begun.elapsed() > CLOSED_WITHIN {
                return Err(io::Error::other("files of a dead process stay open"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Puts another image in the place of this one. Nobody may have a file open.
    ///
    /// # Errors
    /// When a file stays open.
    pub fn replace(&self, image: Image) -> io::Result<()> {
        self.wait_until_closed()?;
        self.shared.lock().image = image;
        Ok(())
    }

    /// The image as it is.
    pub fn image(&self) -> Image {
        self.shared.lock().image.clone()
    }

    /// Begins to record every operation; the position starts again at 0.
    pub fn record(&self) {
        let mut state = self.shared.lock();
        state.trace = Some(Vec::new());
        self.shared.position.store(0, Ordering::Release);
    }

    /// Ends the recording and gives what was recorded.
    pub fn recorded(&self) -> Vec<Operation> {
        self.shared.lock().trace.take().unwrap_or_default()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        // The kernel closes the files of a killed process a little after its end, and a mount in use stays.
        drop(self.wait_until_closed());
        if session.umount_and_join().is_err() {
            drop(std::process::Command::new("umount").arg("-l").arg(&self.path).status());
        }
    }
}

/// Reads a disk's position from other threads.
#[derive(Clone)]
pub struct DiskClock(Arc<Shared>);

impl DiskClock {
    /// How many operations took effect so far.
    pub fn position(&self) -> u64 {
        self.0.position.load(Ordering::Acquire)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The state, if there is power.
    pub(super) fn powered(&self) -> Result<MutexGuard<'_, State>, Errno> {
        let state = self.lock();
        if self.faults.off.load(Ordering::SeqCst) { Err(self.refuse(Errno::EIO)) } else { Ok(state) }
    }

    /// Bytes that the disk holds at most, and those that its files take.
    pub(super) fn room(&self) -> (u64, u64) {
        let capacity = self.faults.capacity_bytes.load(Ordering::Relaxed).min(1 << 40);
        (capacity, self.lock().image.bytes())
    }

    fn refuse(&self, errno: Errno) -> Errno {
        let count = if errno == Errno::ENOSPC { &self.counts.full } else { &self.counts.failed };
        count.fetch_add(1, Ordering::Relaxed);
        errno
    }

    fn apply(&self, state: &mut State, operation: Operation) {
        state.image.apply(&operation);
        if let Some(trace) = &mut state.trace {
            trace.push(operation);
        }
        self.position.fetch_add(1, Ordering::AcqRel);
    }

    fn delay(&self) {
        let delay_us = self.faults.delay_us.load(Ordering::Relaxed);
        if delay_us > 0 {
            std::thread::sleep(Duration::from_micros(delay_us));
        }
    }

    /// Refuses growth beyond what the disk holds.
    fn admit(&self, state: &State, more_bytes: u64) -> Result<(), Errno> {
        let capacity = self.faults.capacity_bytes.load(Ordering::Relaxed);
        if capacity != u64::MAX && state.image.bytes() + more_bytes > capacity {
            return Err(self.refuse(Errno::ENOSPC));
        }
        Ok(())
    }

    pub(super) fn create(
        &self,
        parent: INodeNo,
        name: &OsStr,
        is_directory: bool,
    ) -> Result<FileAttr, Errno> {
        let mut state = self.powered()?;
        let name = text(name)?;
        if state.image.find(parent.0, &name).is_some() {
            return Err(Errno::EEXIST);
        }
        // One more block for the name, so that a full disk takes no new file either.
        self.admit(&state, u64::from(BLOCK_BYTES))?;
        let inode = state.image.next_inode();
        self.apply(&mut state, Operation::Create { parent: parent.0, name, inode, is_directory });
        state.attributes(inode)
    }

    pub(super) fn open(&self, inode: u64) -> Result<(), Errno> {
        let mut state = self.powered()?;
        if !state.image.files.contains_key(&inode) {
            return Err(Errno::ENOENT);
        }
        *state.handles.entry(inode).or_default() += 1;
        Ok(())
    }

    pub(super) fn release(&self, inode: u64) {
        let mut state = self.lock();
        let open = state.handles.entry(inode).or_default();
        *open = open.saturating_sub(1);
        if *open == 0 {
            state.handles.remove(&inode);
            state.image.forget(|other| other == inode);
        }
    }

    pub(super) fn write(&self, inode: u64, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.delay();
        let mut state = self.powered()?;
        if self.faults.fails_writes.load(Ordering::Relaxed) {
            return Err(self.refuse(Errno::EIO));
        }
        let offset = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
        let length = state.file(inode)?.live.len();
        let end = offset + bytes.len();
        if end > length {
            self.admit(&state, (end - length) as u64)?;
        }
        self.apply(&mut state, Operation::Write { inode, offset, bytes: bytes.into() });
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn resize(&self, inode: u64, length: u64) -> Result<(), Errno> {
        let mut state = self.powered()?;
        let length = usize::try_from(length).map_err(|_| Errno::EFBIG)?;
        let now = state.file(inode)?.live.len();
        if length > now {
            self.admit(&state, (length - now) as u64)?;
        }
        self.apply(&mut state, Operation::Resize { inode, length });
        Ok(())
    }

    pub(super) fn sync(&self, inode: u64) -> Result<(), Errno> {
        self.delay();
        let mut state = self.powered()?;
        if self.faults.fails_syncs.load(Ordering::Relaxed) {
            return Err(self.refuse(Errno::EIO));
        }
        let honest = !self.faults.lies.load(Ordering::Relaxed);
        self.apply(&mut state, Operation::Sync { inode, honest });
        self.counts.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn rename(
        &self,
        from: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new_name: &OsStr,
    ) -> Result<(), Errno> {
        let mut state = self.powered()?;
        let (name, new_name) = (text(name)?, text(new_name)?);
        if state.image.find(from.0, &name).is_none() {
            return Err(Errno::ENOENT);
        }
        self.apply(&mut state, Operation::Rename { from: from.0, name, to: to.0, new_name });
        Ok(())
    }

    pub(super) fn remove(&self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        let mut state = self.powered()?;
        let name = text(name)?;
        let inode = state.image.find(parent.0, &name).ok_or(Errno::ENOENT)?;
        if state.image.directories.get(&inode).is_some_and(|names| !names.is_empty()) {
            return Err(Errno::ENOTEMPTY);
        }
        self.apply(&mut state, Operation::Remove { parent: parent.0, name });
        Ok(())
    }
}

impl State {
    pub(super) fn file(&self, inode: u64) -> Result<&File, Errno> {
        self.image.files.get(&inode).ok_or(Errno::ENOENT)
    }

    pub(super) fn names(&self, inode: u64) -> Result<&Names, Errno> {
        self.image.directories.get(&inode).ok_or(Errno::ENOENT)
    }

    pub(super) fn attributes(&self, inode: u64) -> Result<FileAttr, Errno> {
        let (kind, size) = match self.image.files.get(&inode) {
            Some(file) => (FileType::RegularFile, file.live.len() as u64),
            None => (FileType::Directory, self.names(inode)?.len() as u64),
        };
        let then = UNIX_EPOCH;
        Ok(FileAttr {
            ino: INodeNo(inode),
            size,
            blocks: size.div_ceil(512),
            atime: then,
            mtime: then,
            ctime: then,
            crtime: then,
            kind,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        })
    }
}

pub(super) fn text(name: &OsStr) -> Result<String, Errno> {
    name.to_str().map(str::to_owned).ok_or(Errno::EINVAL)
}
