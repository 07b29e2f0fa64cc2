//! A disk in memory for the tests of this room: it tears what was not synced at a crash, completes in any order and sometimes
//! short, and fails its Nth operation when told to.

use super::{DIRECTORY, SEGMENT_BYTES};
use crate::log::header::{BLOCK_BYTES, SECTOR_BYTES};
use crate::storage::device::{
    BufferId, Completion, DeviceWrite, FileSlot, LogDevice, Outcome, SegmentSupply,
};
use crate::storage::disk::{DirectoryEntry, Disk, DiskFile, Open};
use crate::storage::segments::{SegmentDone, SegmentJob, SegmentPlace, perform_job};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

/// What the Nth operation of its kind answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// EIO, of any operation.
    Eio,
    /// ENOSPC, of one that may need space.
    NoSpace,
    /// EIO of a sync, after which some of what it should have kept is lost.
    Sync,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Sync,
    Name,
}

#[derive(Default)]
pub(super) struct Content {
    /// As the programs see it.
    pub(super) seen: Vec<u8>,
    /// As a crash leaves it at least.
    durable: Vec<u8>,
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) files: BTreeMap<PathBuf, Rc<RefCell<Content>>>,
    pub(super) fault: Option<(Fault, u64)>,
    /// Operations that the fault could meet.
    pub(super) met: u64,
    pub(super) fired: bool,
    pub(super) word: u64,
}

impl Inner {
    pub(super) fn chance(&mut self, one_in: u64) -> bool {
        self.word = self.word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.word >> 33).is_multiple_of(one_in)
    }

    /// Counts an operation; the error number when it is the one that fails.
    fn meets(&mut self, kind: Kind) -> Option<i32> {
        let (fault, nth) = self.fault?;
        let may = match fault {
            Fault::Eio => true,
            Fault::NoSpace => kind == Kind::Write || kind == Kind::Name,
            Fault::Sync => kind == Kind::Sync,
        };
        self.met += u64::from(may);
        let fires = may && self.met == nth && !self.fired;
        self.fired |= fires;
        fires.then_some(if fault == Fault::NoSpace { ENOSPC } else { EIO })
    }
}

#[derive(Clone, Default)]
pub(super) struct MemoryDisk(pub(super) Rc<RefCell<Inner>>);

impl MemoryDisk {
    fn passes(&self, kind: Kind) -> io::Result<()> {
        let met = self.0.borrow_mut().meets(kind);
        met.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    /// What is left after a power cut: of what was not synced, sectors as chance will have it. The fault is gone.
    pub(super) fn crash(&self) -> Self {
        let mut inner = self.0.borrow_mut();
        let files: Vec<_> = inner.files.iter().map(|(path, file)| (path.clone(), Rc::clone(file))).collect();
        let mut left = Inner { word: inner.word, ..Inner::default() };
        for (path, file) in files {
            let file = file.borrow();
            let mut bytes = file.durable.clone();
            bytes.resize(file.seen.len(), 0);
            for (old, new) in bytes.chunks_mut(SECTOR_BYTES).zip(file.seen.chunks(SECTOR_BYTES)) {
                if inner.chance(2) {
                    old.copy_from_slice(new);
                }
            }
            let content = Content { seen: bytes.clone(), durable: bytes };
            left.files.insert(path, Rc::new(RefCell::new(content)));
        }
        Self(Rc::new(RefCell::new(left)))
    }
}

pub(super) struct MemoryFile {
    disk: MemoryDisk,
    content: Rc<RefCell<Content>>,
}

impl MemoryFile {
    fn put(&self, bytes: &[u8], offset: u64) {
        let mut content = self.content.borrow_mut();
        let end = offset as usize + bytes.len();
        if content.seen.len() < end {
            content.seen.resize(end, 0);
        }
        content.seen[offset as usize..end].copy_from_slice(bytes);
    }

    fn keep(&self) {
        let mut content = self.content.borrow_mut();
        content.durable = content.seen.clone();
    }
}

impl Disk for MemoryDisk {
    type File = MemoryFile;

    fn open(&self, path: &Path, how: Open) -> io::Result<MemoryFile> {
        self.passes(if how.create { Kind::Name } else { Kind::Read })?;
        let mut inner = self.0.borrow_mut();
        if how.create {
            inner.files.insert(path.to_path_buf(), Rc::default());
        }
        let content = inner.files.get(path).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(MemoryFile { disk: self.clone(), content })
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<DirectoryEntry>> {
        self.passes(Kind::Read)?;
        let inner = self.0.borrow();
        let entry = |(path, file): (&PathBuf, &Rc<RefCell<Content>>)| {
            let name = path.strip_prefix(directory).ok()?.to_str()?.to_owned();
            Some(DirectoryEntry { name, bytes: file.borrow().seen.len() as u64 })
        };
        Ok(inner.files.iter().filter_map(entry).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.passes(Kind::Name)?;
        let mut inner = self.0.borrow_mut();
        let file = inner.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.files.insert(to.to_path_buf(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.passes(Kind::Read)?;
        self.0.borrow_mut().files.remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        self.passes(Kind::Sync)
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.passes(Kind::Read)?;
        let content = self.content.borrow();
        let rest = content.seen.get(offset as usize..).unwrap_or_default();
        let length = rest.len().min(into.len());
        into[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.passes(Kind::Write)?;
        self.put(bytes, offset);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.passes(Kind::Sync)?;
        self.keep();
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.content.borrow().seen.len() as u64)
    }

    fn is_direct(&self) -> bool {
        true
    }
}

pub(super) enum Asked {
    Write(DeviceWrite, bool),
    Sync(FileSlot),
}

/// A device that completes in any order, sometimes short, and fails when its disk says so.
pub(super) struct MemoryDevice {
    disk: MemoryDisk,
    buffers: Vec<(bool, Vec<u8>)>,
    files: Vec<Option<MemoryFile>>,
    pushed: VecDeque<Asked>,
    submitted: VecDeque<Asked>,
    done: VecDeque<Completion>,
}

pub(super) const POOL: usize = 4;
pub(super) const POOL_BUFFER_BYTES: usize = 16 << 10;

impl MemoryDevice {
    pub(super) fn new(disk: &MemoryDisk) -> Self {
        let pool = (0..POOL).map(|_| (false, vec![0; POOL_BUFFER_BYTES]));
        let buffers = pool.chain((0..2).map(|_| (false, Vec::new()))).collect();
        let files = (0..6).map(|_| None).collect();
        let (pushed, submitted, done) = Default::default();
        Self { disk: disk.clone(), buffers, files, pushed, submitted, done }
    }

    /// Runs one of the submitted requests, any one.
    fn run(&mut self) {
        let place = {
            let mut inner = self.disk.0.borrow_mut();
            (0..self.submitted.len()).find(|_| inner.chance(2)).unwrap_or(0)
        };
        match self.submitted.remove(place) {
            Some(Asked::Write(write, then_sync)) => {
                let outcome = self.write(&write);
                let whole = outcome == Outcome::Done(write.bytes);
                self.done.push_back(Completion::Write(write.buffer, outcome));
                if then_sync {
                    let synced = if whole { self.sync(write.file) } else { Outcome::Cancelled };
                    self.done.push_back(Completion::Sync(write.file, synced));
                }
            }
            Some(Asked::Sync(file)) => {
                let outcome = self.sync(file);
                self.done.push_back(Completion::Sync(file, outcome));
            }
            None => {}
        }
    }

    fn write(&mut self, write: &DeviceWrite) -> Outcome {
        let mut inner = self.disk.0.borrow_mut();
        let met = inner.meets(Kind::Write);
        let (again, short) = (inner.chance(40), inner.chance(20));
        drop(inner);
        let file = self.files[write.file.0 as usize].as_ref().expect("a file is open while it is written");
        let bytes = &self.buffers[usize::from(write.buffer.0)].1[write.from..write.from + write.bytes];
        // A failed or short write leaves a part of it.
        let part =
            if met.is_some() || short { write.bytes / 2 / SECTOR_BYTES * SECTOR_BYTES } else { write.bytes };
        if again && met.is_none() {
            return Outcome::Again;
        }
        file.put(&bytes[..part], write.offset);
        met.map_or(Outcome::Done(part), Outcome::Failed)
    }

    fn sync(&mut self, file: FileSlot) -> Outcome {
        if let Some(errno) = self.disk.0.borrow_mut().meets(Kind::Sync) {
            return Outcome::Failed(errno);
        }
        self.files[file.0 as usize].as_ref().expect("a file is open while it is synced").keep();
        Outcome::Done(0)
    }
}

impl LogDevice for MemoryDevice {
    type File = MemoryFile;

    fn pool_buffer_bytes(&self) -> usize {
        POOL_BUFFER_BYTES
    }

    fn free_buffers(&self) -> (usize, usize) {
        let free = |buffers: &[(bool, Vec<u8>)]| buffers.iter().filter(|(taken, _)| !taken).count();
        let (pool, large) = self.buffers.split_at(POOL);
        (free(pool), free(large))
    }

    fn take_buffer(&mut self, bytes: usize) -> Option<BufferId> {
        let range = if bytes > POOL_BUFFER_BYTES { POOL..self.buffers.len() } else { 0..POOL };
        let place = range.clone().find(|place| !self.buffers[*place].0)?;
        let (taken, memory) = &mut self.buffers[place];
        *taken = true;
        memory.resize(memory.len().max(bytes), 0);
        Some(BufferId(place as u16))
    }

    fn buffer(&mut self, buffer: BufferId) -> &mut [u8] {
        &mut self.buffers[usize::from(buffer.0)].1
    }

    fn release_buffer(&mut self, buffer: BufferId) {
        let taken = &mut self.buffers[usize::from(buffer.0)].0;
        assert!(std::mem::take(taken), "a buffer is given back once");
    }

    fn has_file_slot(&self) -> bool {
        self.files.iter().any(Option::is_none)
    }

    fn add_file(&mut self, file: MemoryFile) -> io::Result<Option<FileSlot>> {
        let Some(place) = self.files.iter().position(Option::is_none) else { return Ok(None) };
        self.files[place] = Some(file);
        Ok(Some(FileSlot(place as u32)))
    }

    fn remove_file(&mut self, slot: FileSlot) -> io::Result<()> {
        assert!(self.files[slot.0 as usize].take().is_some(), "a slot is removed once");
        Ok(())
    }

    fn push_write(&mut self, write: &DeviceWrite, then_sync: bool) -> io::Result<()> {
        assert!(write.bytes.is_multiple_of(BLOCK_BYTES) && write.offset.is_multiple_of(BLOCK_BYTES as u64));
        self.pushed.push_back(Asked::Write(*write, then_sync));
        Ok(())
    }

    fn push_sync(&mut self, file: FileSlot) -> io::Result<()> {
        self.pushed.push_back(Asked::Sync(file));
        Ok(())
    }

    fn has_unsubmitted(&mut self) -> bool {
        !self.pushed.is_empty()
    }

    fn submit(&mut self) -> io::Result<()> {
        self.submitted.append(&mut self.pushed);
        Ok(())
    }

    fn submit_and_wait(&mut self) -> io::Result<()> {
        self.submit()?;
        self.run();
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.pushed.len() + self.submitted.len() + self.done.len()
    }

    fn has_completions(&mut self) -> bool {
        !self.done.is_empty()
    }

    fn reap(&mut self) -> io::Result<Option<Completion>> {
        if self.done.is_empty() && self.disk.0.borrow_mut().chance(2) {
            self.run();
        }
        Ok(self.done.pop_front())
    }
}

/// Does its jobs when it is asked whether they are done.
pub(super) struct InlineSupply {
    pub(super) disk: MemoryDisk,
    pub(super) jobs: VecDeque<SegmentJob>,
}

impl SegmentSupply for InlineSupply {
    type File = MemoryFile;

    fn ask(&mut self, job: SegmentJob) -> bool {
        self.jobs.push_back(job);
        true
    }

    fn poll(&mut self) -> Option<SegmentDone<MemoryFile>> {
        let job = self.jobs.pop_front()?;
        let place = SegmentPlace {
            directory: Path::new(DIRECTORY),
            segment_bytes: SEGMENT_BYTES,
            segments_max: None,
        };
        Some(perform_job(&self.disk, &place, job))
    }

    fn waiting(&self) -> usize {
        self.jobs.len()
    }

    fn wait(&mut self) {}
}
