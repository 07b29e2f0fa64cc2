//! The blocking seam of the storage code on a simulated disk: files by name, and what can fail at each operation.

use super::platter::{NameChange, SimDisk, SimFile, apply_name, failed, is_in};
use crate::fault::Fault;
use shards::storage::disk::{DirectoryEntry, Disk, DiskFile, Open};
use std::io;
use std::path::Path;

const ENOENT: i32 = 2;
const ENOSPC: i32 = 28;

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl Disk for SimDisk {
    type File = SimFile;

    fn open(&self, path: &Path, how: Open) -> io::Result<SimFile> {
        let mut platter = self.0.borrow_mut();
        platter.operate_on_file()?;
        let name = text(path);
        let found = platter.names.get(&name).copied();
        let id = match (found, how.create) {
            (Some(id), false) => id,
            (None, false) => return Err(failed(ENOENT)),
            (_, true) => {
                if platter.faults.is_full {
                    platter.counts.add(Fault::DiskFull);
                    return Err(failed(ENOSPC));
                }
                // Emptying an existing file is a new file in its place: what a cut leaves of it is one or the other.
                platter.next_id += 1;
                let id = platter.next_id;
                platter.files.insert(id, super::platter::Body::default());
                platter.names.insert(name.clone(), id);
                platter.name_changes.push(NameChange::Put(name, id));
                id
            }
        };
        Ok(SimFile { disk: self.clone(), id })
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<DirectoryEntry>> {
        let mut platter = self.0.borrow_mut();
        platter.operate_reading()?;
        let directory = text(directory);
        let inside = platter.names.iter().filter(|(name, _)| is_in(name, &directory));
        let mut found: Vec<DirectoryEntry> = inside
            .map(|(name, id)| DirectoryEntry {
                name: name[directory.len() + 1..].to_owned(),
                bytes: platter.files[id].live.len() as u64,
            })
            .collect();
        // Directories come in any order.
        if found.len() > 1 {
            let turn = platter.rng.place(found.len());
            found.rotate_left(turn);
        }
        Ok(found)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut platter = self.0.borrow_mut();
        platter.operate_on_file()?;
        let (from, to) = (text(from), text(to));
        let id = platter.names.remove(&from).ok_or_else(|| failed(ENOENT))?;
        platter.names.insert(to.clone(), id);
        platter.name_changes.push(NameChange::Move(from, to, id));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut platter = self.0.borrow_mut();
        platter.operate_on_file()?;
        let name = text(path);
        let id = platter.names.remove(&name).ok_or_else(|| failed(ENOENT))?;
        platter.name_changes.push(NameChange::Remove(name, id));
        Ok(())
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        let mut platter = self.0.borrow_mut();
        platter.operate_on_file()?;
        if platter.faults.lies {
            return Ok(());
        }
        let directory = text(directory);
        let changes = std::mem::take(&mut platter.name_changes);
        for change in changes {
            let name = match &change {
                NameChange::Put(name, _) | NameChange::Move(_, name, _) | NameChange::Remove(name, _) => name,
            };
            if is_in(name, &directory) {
                apply_name(&mut platter.durable_names, change);
            } else {
                platter.name_changes.push(change);
            }
        }
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut platter = self.disk.0.borrow_mut();
        platter.operate_reading()?;
        let content = &platter.body(self.id).live;
        let from = (offset as usize).min(content.len());
        let length = into.len().min(content.len() - from);
        into[..length].copy_from_slice(&content[from..from + length]);
        Ok(length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut platter = self.disk.0.borrow_mut();
        platter.operate_on_file()?;
        if platter.faults.is_full && offset as usize + bytes.len() > platter.body(self.id).live.len() {
            platter.counts.add(Fault::DiskFull);
            return Err(failed(ENOSPC));
        }
        platter.write(self.id, offset as usize, bytes.into(), true);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut platter = self.disk.0.borrow_mut();
        platter.operate_on_file()?;
        if !platter.faults.lies {
            platter.make_durable(self.id, |_| true);
        }
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        let mut platter = self.disk.0.borrow_mut();
        platter.operate_on_file()?;
        Ok(platter.body(self.id).live.len() as u64)
    }

    fn is_direct(&self) -> bool {
        true
    }
}
