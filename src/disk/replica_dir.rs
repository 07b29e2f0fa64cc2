//! Which replica a shard's directory belongs to, and emptying it when that replica is no more.
//!
//! A replica's id is never used again, and what it logged is worth nothing to another one: a log taken over under a new id
//! would vote away what the old one promised. So a directory names its replica by an empty file, whose name is all it
//! says; no such file means the first replica on this node. A directory that is being emptied says so first, and one that
//! a crash left half empty is emptied before anything is read from it.

use super::files::RealDisk;
use shards::ids::ReplicaId;
use shards::log::LogIdentity;
use shards::storage::disk::{Disk, Open};
use shards::storage::manifest::create_manifest;
use std::io;
use std::path::Path;

/// Prefix of the file that names the replica; its number follows in hexadecimal.
const REPLICA: &str = "replica-";
/// The directory is being emptied.
const EMPTYING: &str = "emptying";

/// Makes the directory ready for this replica: another one's files go first.
///
/// # Errors
/// When the disk refuses. What was begun is finished by the next call.
pub fn prepare(path: &Path, replica: ReplicaId, identity: LogIdentity) -> io::Result<()> {
    let names = names_in(path)?;
    let held = names.iter().find_map(|name| name.strip_prefix(REPLICA)).unwrap_or("0");
    let wanted = format!("{:x}", replica.number());
    if held == wanted && !names.iter().any(|name| name == EMPTYING) {
        return Ok(());
    }
    empty(path)?;
    if replica.number() > 0 {
        drop(RealDisk.open(&path.join(format!("{REPLICA}{wanted}")), Open::CREATE)?);
    }
    create_manifest(&RealDisk, path, identity, 0)?;
    RealDisk.remove(&path.join(EMPTYING))?;
    RealDisk.sync_directory(path)
}

/// Removes every file; the mark that this was begun stays, so that nobody takes the rest for a whole.
///
/// # Errors
/// When the disk refuses.
pub fn empty(path: &Path) -> io::Result<()> {
    drop(RealDisk.open(&path.join(EMPTYING), Open::CREATE)?);
    RealDisk.sync_directory(path)?;
    for name in names_in(path)? {
        if name != EMPTYING {
            RealDisk.remove(&path.join(name))?;
        }
    }
    RealDisk.sync_directory(path)
}

fn names_in(path: &Path) -> io::Result<Vec<String>> {
    Ok(RealDisk.list(path)?.into_iter().map(|entry| entry.name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::Scratch;
    use shards::ids::NodeNumber;
    use shards::storage::manifest::MANIFEST_FILE;

    fn identity() -> LogIdentity {
        LogIdentity { cluster: 1, key: 3, shard: 0 }
    }

    fn names(path: &Path) -> Vec<String> {
        let mut names = names_in(path).unwrap();
        names.sort();
        names
    }

    #[test]
    fn files_of_another_replica_go_and_ones_own_stay() {
        let scratch = Scratch::new();
        let path = scratch.path();
        let replica = |number| ReplicaId::new(number, NodeNumber(2));
        std::fs::write(path.join("wal-00000001.seg"), b"old").unwrap();
        prepare(path, replica(0), identity()).unwrap();
        assert_eq!(names(path), ["wal-00000001.seg"], "the first replica needs no name");
        prepare(path, replica(0x1f), identity()).unwrap();
        assert_eq!(names(path), [MANIFEST_FILE, "replica-1f"]);
        std::fs::write(path.join("wal-00000001.seg"), b"new").unwrap();
        prepare(path, replica(0x1f), identity()).unwrap();
        assert_eq!(names(path).len(), 3);
        empty(path).unwrap();
        assert_eq!(names(path), [EMPTYING]);
        prepare(path, replica(0x1f), identity()).unwrap();
        assert_eq!(names(path), [MANIFEST_FILE, "replica-1f"], "what a crash left is emptied first");
    }
}
