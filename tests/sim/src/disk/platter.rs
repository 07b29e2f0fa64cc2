//! Files, names and what of them is durable.
//!
//! A file has what is seen (`live`), what a power cut leaves (`durable`), and the writes between the two. Names likewise.
//! Invariant: without pending writes both contents are equal, and without pending names both directories are.

use crate::fault::{Fault, FaultCounts};
use crate::rng::Rng;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;

/// What a device writes at once, whole or not at all.
pub(super) const SECTOR_BYTES: usize = 512;

/// A write that a power cut may undo.
pub(super) struct Pending {
    id: u64,
    offset: usize,
    bytes: Rc<[u8]>,
    /// Its completion was seen, so the next sync covers it.
    is_seen: bool,
}

#[derive(Default)]
pub(super) struct Body {
    pub(super) live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Clone)]
pub(super) enum NameChange {
    Put(String, u64),
    Move(String, String, u64),
    Remove(String, u64),
}

/// Errors and lies that are switched on, each in so many per thousand operations.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskFaults {
    /// Writes of the log.
    pub write_error: u64,
    /// Writes of the log that come back short or are to be tried again.
    pub short_write: u64,
    /// Syncs of the log.
    pub sync_error: u64,
    /// Operations on whole files.
    pub file_error: u64,
    /// Reads of files and directories.
    pub read_error: u64,
    /// Nothing grows.
    pub is_full: bool,
    /// Everything takes so much longer, in microseconds at most.
    pub stall_us: u64,
    /// Syncs answer and do nothing.
    pub lies: bool,
}

pub(super) struct Platter {
    pub(super) rng: Rng,
    pub(super) faults: DiskFaults,
    pub(super) counts: FaultCounts,
    pub(super) files: BTreeMap<u64, Body>,
    pub(super) names: BTreeMap<String, u64>,
    pub(super) durable_names: BTreeMap<String, u64>,
    pub(super) name_changes: Vec<NameChange>,
    /// Writes that the device has and has not completed: whose file, where, what.
    in_flight: Vec<(u64, u64, usize, Rc<[u8]>)>,
    pub(super) next_id: u64,
    /// The power goes after so many more operations.
    operations_left: Option<u64>,
    is_cut: bool,
}

/// A machine's disk.
#[derive(Clone)]
pub struct SimDisk(pub(super) Rc<RefCell<Platter>>);

/// An open file of it.
pub struct SimFile {
    pub(super) disk: SimDisk,
    pub(super) id: u64,
}

pub(super) fn failed(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

pub(super) const EIO: i32 = 5;

impl Platter {
    /// One more operation begins; an error when the power is gone or goes now.
    fn operate(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.operations_left {
            if *left == 0 {
                self.operations_left = None;
                self.counts.add(Fault::CutInsideFiles);
                self.cut();
            } else {
                *left -= 1;
            }
        }
        if self.is_cut { Err(failed(EIO)) } else { Ok(()) }
    }

    /// As [`Platter::operate`], for an operation on whole files, which may fail.
    pub(super) fn operate_on_file(&mut self) -> io::Result<()> {
        self.operate()?;
        if self.faults.file_error > 0 && self.rng.chance(self.faults.file_error) {
            self.counts.add(Fault::FileError);
            return Err(failed(EIO));
        }
        Ok(())
    }

    /// As [`Platter::operate_on_file`], for one that only reads.
    pub(super) fn operate_reading(&mut self) -> io::Result<()> {
        self.operate_on_file()?;
        if self.faults.read_error > 0 && self.rng.chance(self.faults.read_error) {
            self.counts.add(Fault::ReadError);
            return Err(failed(EIO));
        }
        Ok(())
    }

    pub(super) fn body(&mut self, id: u64) -> &mut Body {
        self.files.get_mut(&id).expect("an open file has a body")
    }

    pub(super) fn write(&mut self, id: u64, offset: usize, bytes: Rc<[u8]>, is_seen: bool) -> u64 {
        self.next_id += 1;
        let write = self.next_id;
        let body = self.body(id);
        let end = offset + bytes.len();
        if body.live.len() < end {
            body.live.resize(end, 0);
        }
        body.live[offset..end].copy_from_slice(&bytes);
        body.pending.push(Pending { id: write, offset, bytes, is_seen });
        write
    }

    /// Makes the writes of a file durable that `covers` says.
    pub(super) fn make_durable(&mut self, id: u64, covers: impl Fn(&Pending) -> bool) {
        let body = self.body(id);
        let pending = std::mem::take(&mut body.pending);
        for write in pending {
            if covers(&write) {
                put(&mut body.durable, write.offset, &write.bytes);
            } else {
                body.pending.push(write);
            }
        }
    }

    /// The power goes: what was not synced survives as chance will have it.
    fn cut(&mut self) {
        self.is_cut = true;
        for (_, file, offset, bytes) in std::mem::take(&mut self.in_flight) {
            if self.rng.chance(600) {
                self.write(file, offset, bytes, false);
            }
        }
        // A cut has a mood: everything arrived, nothing did, or any part.
        let mood = self.rng.below(4);
        for body in self.files.values_mut() {
            let pending = std::mem::take(&mut body.pending);
            for write in &pending {
                settle(&mut self.rng, mood, &mut body.durable, write);
            }
            // Elsewhere both are equal.
            body.live.resize(body.durable.len(), 0);
            for write in &pending {
                let end = (write.offset + write.bytes.len()).min(body.durable.len());
                let at = write.offset.min(end);
                body.live[at..end].copy_from_slice(&body.durable[at..end]);
            }
        }
        let changes = std::mem::take(&mut self.name_changes);
        let kept = self.rng.place(changes.len() + 1);
        for (place, change) in changes.into_iter().enumerate() {
            // Mostly a journal's prefix, sometimes any of them.
            let survives = match mood {
                0 => true,
                1 => false,
                2 => place < kept,
                _ => self.rng.chance(500),
            };
            if survives {
                apply_name(&mut self.durable_names, change);
            }
        }
        self.names.clone_from(&self.durable_names);
        self.forget_unnamed();
    }

    fn forget_unnamed(&mut self) {
        let (names, durable) = (&self.names, &self.durable_names);
        self.files.retain(|id, _| names.values().chain(durable.values()).any(|named| named == id));
    }
}

/// Overwrites part of a content, longer if need be.
fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

/// What a power cut leaves of one write: any subset of its sectors, and now and then a sector of which only a part came.
fn settle(rng: &mut Rng, mood: u64, durable: &mut Vec<u8>, write: &Pending) {
    let whole = match mood {
        0 => true,
        1 => false,
        _ => rng.chance(300),
    };
    if whole {
        return put(durable, write.offset, &write.bytes);
    }
    if mood == 1 || rng.chance(300) {
        return;
    }
    // Some devices write in order and stop: a prefix. Others keep any subset.
    let sectors = write.bytes.len().div_ceil(SECTOR_BYTES);
    let prefix = if rng.chance(500) { Some(rng.place(sectors + 1)) } else { None };
    for (number, sector) in write.bytes.chunks(SECTOR_BYTES).enumerate() {
        let survives = prefix.map_or_else(|| rng.chance(500), |kept| number < kept);
        if survives {
            let torn = if rng.chance(20) { rng.place(sector.len()) } else { sector.len() };
            put(durable, write.offset + number * SECTOR_BYTES, &sector[..torn]);
        }
    }
}

pub(super) fn apply_name(names: &mut BTreeMap<String, u64>, change: NameChange) {
    match change {
        NameChange::Put(name, id) => {
            names.insert(name, id);
        }
        NameChange::Move(from, to, id) => {
            if names.get(&from) == Some(&id) {
                names.remove(&from);
            }
            names.insert(to, id);
        }
        NameChange::Remove(name, id) => {
            if names.get(&name) == Some(&id) {
                names.remove(&name);
            }
        }
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new(rng: Rng) -> Self {
        Self(Rc::new(RefCell::new(Platter {
            rng,
            faults: DiskFaults::default(),
            counts: FaultCounts::default(),
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: Vec::new(),
            in_flight: Vec::new(),
            next_id: 1,
            operations_left: None,
            is_cut: false,
        })))
    }

    /// Switches errors and lies on and off.
    pub fn set_faults(&self, change: impl FnOnce(&mut DiskFaults)) {
        change(&mut self.0.borrow_mut().faults);
    }

    /// What is switched on.
    pub fn faults(&self) -> DiskFaults {
        self.0.borrow().faults
    }

    /// How often each class struck here, counted since the last call.
    pub fn take_counts(&self) -> FaultCounts {
        std::mem::take(&mut self.0.borrow_mut().counts)
    }

    /// The power goes after so many more operations.
    pub fn cut_after(&self, operations: u64) {
        self.0.borrow_mut().operations_left = Some(operations);
    }

    /// Nothing of the kind is to happen any more.
    pub fn spare(&self) {
        self.0.borrow_mut().operations_left = None;
    }

    /// Whether the power is gone.
    pub fn is_cut(&self) -> bool {
        self.0.borrow().is_cut
    }

    /// The power goes now.
    pub fn cut(&self) {
        let mut platter = self.0.borrow_mut();
        if !platter.is_cut {
            platter.cut();
        }
    }

    /// The process is gone and the machine goes on: the kernel completes some of what it was given, and nothing is lost.
    pub fn orphan(&self) {
        let mut platter = self.0.borrow_mut();
        for (_, file, offset, bytes) in std::mem::take(&mut platter.in_flight) {
            if platter.rng.chance(700) {
                platter.write(file, offset, bytes, false);
            }
        }
        platter.operations_left = None;
    }

    /// The power is back.
    pub fn power_on(&self) {
        let mut platter = self.0.borrow_mut();
        platter.is_cut = false;
        platter.operations_left = None;
    }

    /// Does something at which nothing goes wrong: what is not a subject of this simulation.
    pub fn in_peace(&self, act: impl FnOnce(&Self)) {
        let before = {
            let mut platter = self.0.borrow_mut();
            let kept = (platter.faults, platter.operations_left.take(), platter.is_cut);
            platter.faults = DiskFaults { lies: kept.0.lies, ..DiskFaults::default() };
            platter.is_cut = false;
            kept
        };
        act(self);
        let mut platter = self.0.borrow_mut();
        (platter.faults, platter.operations_left, platter.is_cut) = before;
    }

    /// Removes every file of a directory, durably.
    pub fn erase(&self, directory: &str) {
        self.erase_where(|name| is_in(name, directory));
    }

    /// Removes everything, durably.
    pub fn erase_all(&self) {
        self.erase_where(|_| true);
    }

    fn erase_where(&self, goes: impl Fn(&str) -> bool) {
        let mut platter = self.0.borrow_mut();
        platter.names.retain(|name, _| !goes(name));
        platter.durable_names.retain(|name, _| !goes(name));
        platter.name_changes.retain(|change| match change {
            NameChange::Put(name, _) | NameChange::Move(_, name, _) | NameChange::Remove(name, _) => {
                !goes(name)
            }
        });
    }

    /// Names and durable contents of the files in a directory, to be damaged.
    pub fn durable_files(&self, directory: &str) -> Vec<(String, usize)> {
        let platter = self.0.borrow();
        let inside = platter.names.iter().filter(|(name, _)| is_in(name, directory));
        inside.map(|(name, id)| (name.clone(), platter.files[id].live.len())).collect()
    }

    /// Names in a directory that are seen and durable.
    pub fn settled_names(&self, directory: &str) -> BTreeSet<String> {
        let platter = self.0.borrow();
        let names = platter.names.keys().filter(|name| is_in(name, directory));
        names.filter(|name| platter.durable_names.contains_key(*name)).cloned().collect()
    }

    /// Part of a file's content.
    pub fn peek(&self, name: &str, offset: usize, length: usize) -> Vec<u8> {
        let platter = self.0.borrow();
        let content = &platter.files[&platter.names[name]].live;
        content[offset.min(content.len())..(offset + length).min(content.len())].to_vec()
    }

    /// Overwrites part of a file, on the medium itself.
    pub fn damage(&self, name: &str, offset: usize, bytes: &[u8]) {
        let mut platter = self.0.borrow_mut();
        let id = platter.names[name];
        let body = platter.body(id);
        put(&mut body.live, offset, bytes);
        put(&mut body.durable, offset, bytes);
    }

    /// Takes up a write that the device was given.
    pub(super) fn begin_write(&self, file: &SimFile, offset: u64, bytes: Rc<[u8]>) -> io::Result<u64> {
        let mut platter = self.0.borrow_mut();
        platter.operate()?;
        platter.next_id += 1;
        let id = platter.next_id;
        platter.in_flight.push((id, file.id, offset as usize, bytes));
        Ok(id)
    }

    /// Completes a write, so many bytes of it; gives its id among the file's writes.
    pub(super) fn end_write(&self, id: u64, length: usize) -> Option<u64> {
        let mut platter = self.0.borrow_mut();
        let place = platter.in_flight.iter().position(|(other, ..)| *other == id)?;
        let (_, file, offset, bytes) = platter.in_flight.remove(place);
        if length == 0 {
            return None;
        }
        let bytes: Rc<[u8]> = if length < bytes.len() { bytes[..length].into() } else { bytes };
        Some(platter.write(file, offset, bytes, false))
    }

    /// A write that failed: any part of it may be there.
    pub(super) fn fail_write(&self, id: u64) {
        let mut platter = self.0.borrow_mut();
        let Some(place) = platter.in_flight.iter().position(|(other, ..)| *other == id) else { return };
        let (_, file, offset, bytes) = platter.in_flight.remove(place);
        if platter.rng.chance(500) {
            let kept = platter.rng.place(bytes.len() / SECTOR_BYTES + 1) * SECTOR_BYTES;
            platter.write(file, offset, bytes[..kept].into(), false);
        }
    }

    /// The completion of a write was seen: a sync from now on covers it.
    pub(super) fn see_write(&self, file: &SimFile, write: u64) {
        let mut platter = self.0.borrow_mut();
        if let Some(pending) = platter.body(file.id).pending.iter_mut().find(|pending| pending.id == write) {
            pending.is_seen = true;
        }
    }

    /// The writes of a file that a sync pushed now covers.
    pub(super) fn covered(&self, file: &SimFile) -> Vec<u64> {
        let mut platter = self.0.borrow_mut();
        platter.body(file.id).pending.iter().filter(|write| write.is_seen).map(|write| write.id).collect()
    }

    /// Makes writes durable, at the end of a sync.
    pub(super) fn end_sync(&self, file: &SimFile, covered: &[u64]) -> io::Result<()> {
        let mut platter = self.0.borrow_mut();
        platter.operate()?;
        if !platter.faults.lies {
            platter.make_durable(file.id, |write| covered.contains(&write.id));
        }
        Ok(())
    }

    /// Whether a stretch of a file would survive a power cut.
    pub(super) fn is_durable(&self, file: &SimFile, from: usize, to: usize) -> bool {
        let platter = self.0.borrow();
        let Some(body) = platter.files.get(&file.id) else { return true };
        body.pending.iter().all(|write| write.offset >= to || write.offset + write.bytes.len() <= from)
    }

    /// How long the next operation takes, in microseconds.
    pub(super) fn latency_us(&self, usual: u64) -> u64 {
        let mut platter = self.0.borrow_mut();
        let stall_us = platter.faults.stall_us;
        let extra = if stall_us > 0 && platter.rng.chance(100) {
            platter.counts.add(Fault::DiskStall);
            platter.rng.below(stall_us)
        } else {
            0
        };
        platter.rng.around(usual) + extra
    }
}

pub(super) fn is_in(name: &str, directory: &str) -> bool {
    name.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/') && !rest[1..].contains('/'))
}

impl SimFile {
    /// Another handle of the same file.
    pub(super) fn again(&self) -> Self {
        Self { disk: self.disk.clone(), id: self.id }
    }

    /// Whether both are the same file.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl std::fmt::Debug for SimFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimFile").field("id", &self.id).finish_non_exhaustive()
    }
}
