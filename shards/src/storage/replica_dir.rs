//! Which replica a shard's directory belongs to, and emptying it when that replica is no more.
//!
//! A replica's id is never used again, and what it logged is worth nothing to another one: a log taken over under a new id
//! would vote away what the old one promised. So a directory names its replica by an empty file, whose name is all it
//! says; no such file means the first replica on this node. A directory that is being emptied says so first, and one that
//! a crash left half empty is emptied before anything is read from it: whatever a crash leaves, the replica is whole or gone.

use super::disk::{Disk, Open};
use super::manifest::create_manifest;
use crate::ids::ReplicaId;
use crate::log::LogIdentity;
use crate::mutants::{Mutant, is_on};
use std::io;
use std::path::Path;

/// Prefix of the file that names the replica; its number follows in hexadecimal.
pub const REPLICA: &str = "replica-";
/// The directory is being emptied.
pub const EMPTYING: &str = "emptying";
/// Prefix of the file that names a replica whose log is lost; its id follows in hexadecimal.
pub const LOST: &str = "lost-";

/// Makes the directory ready for this replica: another one's files go first.
///
/// # Errors
/// When the disk refuses. What was begun is finished by the next call.
pub fn prepare<D: Disk>(disk: &D, path: &Path, replica: ReplicaId, identity: LogIdentity) -> io::Result<()> {
    let names = names_in(disk, path)?;
    let held = names.iter().find_map(|name| name.strip_prefix(REPLICA)).unwrap_or("0");
    let wanted = format!("{:x}", replica.number());
    if held == wanted && !names.iter().any(|name| name == EMPTYING) {
        return Ok(());
    }
    empty(disk, path)?;
    if replica.number() > 0 {
        drop(disk.open(&path.join(format!("{REPLICA}{wanted}")), Open::CREATE)?);
    }
    create_manifest(disk, path, identity, 0)?;
    if !is_on(Mutant::EmptyingNotMarked) {
        disk.remove(&path.join(EMPTYING))?;
    }
    disk.sync_directory(path)
}

/// Removes every file; the mark that this was begun stays, so that nobody takes the rest for a whole.
///
/// # Errors
/// When the disk refuses.
pub fn empty<D: Disk>(disk: &D, path: &Path) -> io::Result<()> {
    if !is_on(Mutant::EmptyingNotMarked) {
        drop(disk.open(&path.join(EMPTYING), Open::CREATE)?);
        disk.sync_directory(path)?;
    }
    for name in names_in(disk, path)? {
        if name != EMPTYING {
            disk.remove(&path.join(name))?;
        }
    }
    disk.sync_directory(path)
}

/// The number of the replica that the directory holds; `None` when it is gone, lost or half emptied.
///
/// # Errors
/// When the disk refuses.
pub fn held<D: Disk>(disk: &D, path: &Path) -> io::Result<Option<u64>> {
    let names = names_in(disk, path)?;
    if names.is_empty() || names.iter().any(|name| name == EMPTYING || name.starts_with(LOST)) {
        return Ok(None);
    }
    let held = names.iter().find_map(|name| name.strip_prefix(REPLICA)).unwrap_or("0");
    Ok(u64::from_str_radix(held, 16).ok())
}

/// Names of the files in a directory, in any order.
///
/// # Errors
/// When the disk refuses.
pub fn names_in<D: Disk>(disk: &D, path: &Path) -> io::Result<Vec<String>> {
    Ok(disk.list(path)?.into_iter().map(|entry| entry.name).collect())
}
