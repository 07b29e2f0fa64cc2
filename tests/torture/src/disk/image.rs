//! Files and directories in memory, each as the running system sees it and as a power cut would leave it.
//!
//! Invariants: contents become durable by a sync of their file and names by a sync of their directory, and by nothing else;
//! every change passes through [`Image::apply`], so that a recorded trace played again gives the same image. The image knows
//! nothing of time, sockets or the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The directory that holds all others.
pub const ROOT: u64 = 1;

/// One change or sync, as it is recorded.
#[derive(Clone, Debug)]
pub enum Operation {
    /// A new file or directory.
    Create {
        /// Where.
        parent: u64,
        /// Under which name.
        name: String,
        /// Its number, never used before.
        inode: u64,
        /// A directory, or a file.
        is_directory: bool,
    },
    /// Bytes into a file.
    Write {
        /// Which file.
        inode: u64,
        /// From where.
        offset: usize,
        /// What.
        bytes: Arc<[u8]>,
    },
    /// A file gets this length.
    Resize {
        /// Which file.
        inode: u64,
        /// How long.
        length: usize,
    },
    /// Another name, in place of what had it.
    Rename {
        /// From which directory.
        from: u64,
        /// The old name.
        name: String,
        /// Into which directory.
        to: u64,
        /// The new name.
        new_name: String,
    },
    /// A name goes.
    Remove {
        /// From which directory.
        parent: u64,
        /// Which name.
        name: String,
    },
    /// A file or directory was synced; `honest` is false when the disk only said so.
    Sync {
        /// Which one.
        inode: u64,
        /// Whether it did as it was told.
        honest: bool,
    },
}

impl Operation {
    /// The file or directory whose content it touches, if it names one.
    pub fn file(&self) -> Option<u64> {
        match self {
            Self::Create { inode, .. }
            | Self::Write { inode, .. }
            | Self::Resize { inode, .. }
            | Self::Sync { inode, .. } => Some(*inode),
            Self::Rename { .. } | Self::Remove { .. } => None,
        }
    }
}

/// A change of a file's content that no sync has covered.
#[derive(Clone, Debug)]
pub enum Pending {
    /// Bytes.
    Write(usize, Arc<[u8]>),
    /// A length.
    Resize(usize),
}

/// A change of a directory that no sync has covered.
#[derive(Clone, Debug)]
pub enum NameChange {
    /// A name for an inode, in this directory.
    Put(u64, String, u64),
    /// A name moves; the directory synced is the one it goes to.
    Move {
        /// From which directory.
        from: u64,
        /// The old name.
        name: String,
        /// Into which directory.
        to: u64,
        /// The new name.
        new_name: String,
        /// What has the name.
        inode: u64,
    },
    /// A name of an inode goes.
    Take(u64, String, u64),
}

impl NameChange {
    /// The directory whose sync makes it durable.
    fn directory(&self) -> u64 {
        match self {
            Self::Put(parent, ..) | Self::Take(parent, ..) => *parent,
            Self::Move { to, .. } => *to,
        }
    }
}

/// A file's content.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// As the running system sees it.
    pub live: Vec<u8>,
    /// As it certainly survives.
    pub durable: Vec<u8>,
    /// What may survive beyond that, in order.
    pub pending: Vec<Pending>,
}

/// Names and what has them.
pub type Names = BTreeMap<String, u64>;

/// The disk.
#[derive(Clone, Debug)]
pub struct Image {
    /// Contents by inode.
    pub files: BTreeMap<u64, File>,
    /// Directories as the running system sees them.
    pub directories: BTreeMap<u64, Names>,
    /// Directories as they certainly survive.
    pub durable_directories: BTreeMap<u64, Names>,
    /// What may survive beyond that, in order.
    pub name_changes: Vec<NameChange>,
    next: u64,
}

impl Default for Image {
    fn default() -> Self {
        let root = BTreeMap::from([(ROOT, Names::new())]);
        Self {
            files: BTreeMap::new(),
            directories: root.clone(),
            durable_directories: root,
            name_changes: Vec::new(),
            next: ROOT + 1,
        }
    }
}

/// Overwrites part of a content, longer if need be.
pub fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

/// Carries a change of names out.
pub fn change_names(directories: &mut BTreeMap<u64, Names>, change: &NameChange) {
    let take = |directories: &mut BTreeMap<u64, Names>, parent: &u64, name: &str, inode: u64| {
        if let Some(names) = directories.get_mut(parent)
            && names.get(name) == Some(&inode)
        {
            names.remove(name);
        }
    };
    match change {
        NameChange::Put(parent, name, inode) => {
            directories.entry(*parent).or_default().insert(name.clone(), *inode);
        }
        NameChange::Move { from, name, to, new_name, inode } => {
            take(directories, from, name, *inode);
            directories.entry(*to).or_default().insert(new_name.clone(), *inode);
        }
        NameChange::Take(parent, name, inode) => take(directories, parent, name, *inode),
    }
}

impl Image {
    /// Everything but the files.
    pub fn clone_without_contents(&self) -> Self {
        Self {
            files: BTreeMap::new(),
            directories: self.directories.clone(),
            durable_directories: self.durable_directories.clone(),
            name_changes: self.name_changes.clone(),
            next: self.next,
        }
    }

    /// A number for a new file or directory.
    pub fn next_inode(&self) -> u64 {
        self.next
    }

    /// What has this name, as the running system sees it.
    pub fn find(&self, parent: u64, name: &str) -> Option<u64> {
        self.directories.get(&parent)?.get(name).copied()
    }

    /// Bytes that the files with names take, as the running system sees them.
    pub fn bytes(&self) -> u64 {
        let named = self.directories.values().flat_map(Names::values);
        named.filter_map(|inode| self.files.get(inode)).map(|file| file.live.len() as u64).sum()
    }

    /// Carries an operation out that is known to be possible: the names and inodes in it exist.
    pub fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Create { parent, name, inode, is_directory } => {
                assert!(*inode >= self.next, "numbers are not used again");
                self.next = inode + 1;
                if *is_directory {
                    self.directories.insert(*inode, Names::new());
                    self.durable_directories.insert(*inode, Names::new());
                } else {
                    self.files.insert(*inode, File::default());
                }
                self.change(NameChange::Put(*parent, name.clone(), *inode));
            }
            Operation::Write { inode, offset, bytes } => {
                let file = self.files.get_mut(inode).expect("a write goes to a file");
                put(&mut file.live, *offset, bytes);
                file.pending.push(Pending::Write(*offset, Arc::clone(bytes)));
            }
            Operation::Resize { inode, length } => {
                let file = self.files.get_mut(inode).expect("a length is a file's");
                file.live.resize(*length, 0);
                file.pending.push(Pending::Resize(*length));
            }
            Operation::Rename { from, name, to, new_name } => {
                let inode = self.find(*from, name).expect("what is renamed is there");
                let (name, new_name) = (name.clone(), new_name.clone());
                self.change(NameChange::Move { from: *from, name, to: *to, new_name, inode });
            }
            Operation::Remove { parent, name } => {
                let inode = self.find(*parent, name).expect("what is removed is there");
                self.change(NameChange::Take(*parent, name.clone(), inode));
            }
            Operation::Sync { inode, honest } if *honest => self.harden(*inode),
            Operation::Sync { .. } => {}
        }
    }

    /// Drops files that have no name, now or after any cut, where nobody will use them again.
    pub fn forget(&mut self, is_unused: impl Fn(u64) -> bool) {
        // While names are pending, any of them may be what survives.
        if !self.name_changes.is_empty() {
            return;
        }
        let directories = self.directories.values().chain(self.durable_directories.values());
        let named: BTreeSet<u64> = directories.flat_map(Names::values).copied().collect();
        self.files.retain(|inode, _| named.contains(inode) || !is_unused(*inode));
    }

    fn change(&mut self, change: NameChange) {
        change_names(&mut self.directories, &change);
        self.name_changes.push(change);
    }

    /// Makes a file's content, or a directory's names, durable.
    fn harden(&mut self, inode: u64) {
        if let Some(file) = self.files.get_mut(&inode) {
            for change in std::mem::take(&mut file.pending) {
                match change {
                    Pending::Write(offset, bytes) => put(&mut file.durable, offset, &bytes),
                    Pending::Resize(length) => file.durable.resize(length, 0),
                }
            }
            return;
        }
        let (covered, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.name_changes)
            .into_iter()
            .partition(|change| change.directory() == inode);
        for change in &covered {
            change_names(&mut self.durable_directories, change);
        }
        self.name_changes = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(inode: u64, offset: usize, bytes: &[u8]) -> Operation {
        Operation::Write { inode, offset, bytes: bytes.into() }
    }

    fn create(name: &str, inode: u64) -> Operation {
        Operation::Create { parent: ROOT, name: name.to_owned(), inode, is_directory: false }
    }

    #[test]
    fn contents_and_names_become_durable_apart() {
        let mut image = Image::default();
        image.apply(&create("a", 2));
        image.apply(&write(2, 0, b"one"));
        image.apply(&Operation::Sync { inode: 2, honest: false });
        assert!(image.files[&2].durable.is_empty(), "a lie makes nothing durable");
        image.apply(&Operation::Sync { inode: 2, honest: true });
        image.apply(&write(2, 1, b"xy"));
        assert_eq!(
            (image.files[&2].live.as_slice(), image.files[&2].durable.as_slice()),
            (&b"oxy"[..], &b"one"[..])
        );
        assert!(image.durable_directories[&ROOT].is_empty(), "a name needs its directory's sync");
        image.apply(&Operation::Sync { inode: ROOT, honest: true });
        assert_eq!(image.durable_directories[&ROOT].get("a"), Some(&2));
    }

    #[test]
    fn a_name_that_was_taken_over_is_not_removed_by_an_old_change() {
        let mut image = Image::default();
        image.apply(&create("a", 2));
        image.apply(&create("b", 3));
        let (name, new_name) = ("a".to_owned(), "b".to_owned());
        image.apply(&Operation::Rename { from: ROOT, name, to: ROOT, new_name });
        assert_eq!(image.directories[&ROOT], Names::from([("b".to_owned(), 2)]));
        image.apply(&Operation::Remove { parent: ROOT, name: "b".to_owned() });
        image.apply(&create("b", 4));
        image.apply(&Operation::Sync { inode: ROOT, honest: true });
        assert_eq!(image.durable_directories[&ROOT], Names::from([("b".to_owned(), 4)]));
    }
}
