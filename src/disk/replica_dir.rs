//! The directories of replicas on this machine's disk: what stands in one and how it is emptied is decided in
//! `shards::storage::replica_dir`; setting a damaged one aside, and finding those, is done here.

use super::files::RealDisk;
use shards::ids::ReplicaId;
use shards::log::LogIdentity;
use shards::storage::disk::{Disk, Open};
use shards::storage::replica_dir::{self, LOST};
use std::io;
use std::path::Path;

/// Between a directory's name and a number, when it was set aside.
const SET_ASIDE: &str = ".damaged-";
/// Damaged copies of one shard that are kept. A disk that damages more is not repaired by another copy.
const SET_ASIDE_MAX: usize = 4;

/// Makes the directory ready for this replica: another one's files go first.
///
/// # Errors
/// When the disk refuses. What was begun is finished by the next call.
pub fn prepare(path: &Path, replica: ReplicaId, identity: LogIdentity) -> io::Result<()> {
    replica_dir::prepare(&RealDisk, path, replica, identity)
}

/// Removes every file; the mark that this was begun stays, so that nobody takes the rest for a whole.
///
/// # Errors
/// When the disk refuses.
pub fn empty(path: &Path) -> io::Result<()> {
    replica_dir::empty(&RealDisk, path)
}

/// Renames the directory of a replica whose log or snapshot is damaged, and leaves one in its place that says so: the replica
/// never speaks again under its id, whatever was acknowledged with it. Returns the new name, if there was something to rename.
///
/// # Errors
/// When the disk refuses, or so many were set aside before that the disk is not to be trusted with another copy. What was
/// begun is finished by the next call.
pub fn set_aside(path: &Path, replica: ReplicaId) -> io::Result<Option<String>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let aside = |number: usize| format!("{name}{SET_ASIDE}{number}");
    let free = (1..=SET_ASIDE_MAX).map(aside).find(|name| !parent.join(name).exists());
    let aside = free.ok_or_else(|| {
        io::Error::other(format!("{SET_ASIDE_MAX} damaged copies of this shard were set aside before"))
    })?;
    let is_there = path.exists();
    if is_there {
        RealDisk.rename(path, &parent.join(&aside))?;
        RealDisk.sync_directory(parent)?;
    }
    std::fs::create_dir_all(path)?;
    drop(RealDisk.open(&path.join(format!("{LOST}{:x}", replica.0)), Open::CREATE)?);
    RealDisk.sync_directory(path)?;
    RealDisk.sync_directory(parent)?;
    Ok(is_there.then_some(aside))
}

/// The number of the replica that the directory holds; `None` when it is gone, lost or half emptied.
///
/// # Errors
/// When the disk refuses: who cannot read a directory does not know that nothing is there.
pub fn held(path: &Path) -> io::Result<Option<u64>> {
    match replica_dir::held(&RealDisk, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found,
    }
}

/// Whether the directory says that the log of this replica is lost.
pub fn is_lost(path: &Path, replica: ReplicaId) -> bool {
    path.join(format!("{LOST}{:x}", replica.0)).exists()
}

/// Names of the directories that were set aside in a data directory.
pub fn list_set_aside(data: &Path) -> Vec<String> {
    let mut names = names_in(data).unwrap_or_default();
    names.retain(|name| name.starts_with("shard-") && name.contains(SET_ASIDE));
    names.sort_unstable();
    names
}

fn names_in(path: &Path) -> io::Result<Vec<String>> {
    replica_dir::names_in(&RealDisk, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::Scratch;
    use shards::ids::NodeNumber;
    use shards::storage::manifest::MANIFEST_FILE;
    use shards::storage::replica_dir::EMPTYING;

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
        assert_eq!(held(path).unwrap(), Some(0x1f));
        assert_eq!(held(&path.join("nothing")).unwrap(), None, "a directory that is gone holds nobody");
        std::fs::write(path.join("wal-00000001.seg"), b"new").unwrap();
        prepare(path, replica(0x1f), identity()).unwrap();
        assert_eq!(names(path).len(), 3);
        empty(path).unwrap();
        assert_eq!(names(path), [EMPTYING]);
        assert_eq!(held(path).unwrap(), None);
        prepare(path, replica(0x1f), identity()).unwrap();
        assert_eq!(names(path), [MANIFEST_FILE, "replica-1f"], "what a crash left is emptied first");
    }

    #[test]
    fn a_damaged_directory_is_kept_and_its_replica_stays_lost() {
        let scratch = Scratch::new();
        let path = scratch.path().join("shard-0001");
        let replica = |number| ReplicaId::new(number, NodeNumber(2));
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("wal-00000001.seg"), b"rot").unwrap();
        assert_eq!(set_aside(&path, replica(0)).unwrap().as_deref(), Some("shard-0001.damaged-1"));
        assert!(is_lost(&path, replica(0)) && !is_lost(&path, replica(1)));
        assert_eq!(names(&scratch.path().join("shard-0001.damaged-1")), ["wal-00000001.seg"]);
        prepare(&path, replica(1), identity()).unwrap();
        assert_eq!(names(&path), [MANIFEST_FILE, "replica-1"], "its successor begins with nothing");
        std::fs::remove_dir_all(&path).unwrap();
        assert_eq!(set_aside(&path, replica(1)).unwrap(), None, "a directory that is gone");
        assert!(is_lost(&path, replica(1)));
        for number in 1..=SET_ASIDE_MAX as u64 {
            let kept = set_aside(&path, replica(number));
            assert_eq!(kept.is_ok(), number < SET_ASIDE_MAX as u64, "{number}");
        }
        assert_eq!(list_set_aside(scratch.path()).len(), SET_ASIDE_MAX);
    }
}
