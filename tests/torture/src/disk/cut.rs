//! What a power cut leaves of a disk.
//!
//! What was synced survives. Of the rest any subset of 512-byte sectors does, now and then a torn one, and any of the names;
//! a cut has a mood, so that "all of it" and "nothing of it" come up often too. The rules are the simulator's.

use super::image::{File, Image, Names, Pending, ROOT, change_names, put};
use std::collections::{BTreeMap, BTreeSet};
use strand_sim::rng::Rng;

/// What a disk writes whole or not at all, mostly.
const SECTOR_BYTES: usize = 512;

/// What the cut likes to keep.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Everything,
    Nothing,
    Any,
}

/// The disk after a power cut: what runs sees what survived.
pub fn after_cut(image: &Image, rng: &mut Rng) -> Image {
    let mood = *rng.pick(&[Mood::Everything, Mood::Nothing, Mood::Any, Mood::Any]);
    let mut left = image.clone_without_contents();
    for (inode, file) in &image.files {
        left.files.insert(*inode, settled(file, mood, rng));
    }
    let changes = std::mem::take(&mut left.name_changes);
    // Mostly a journal's prefix, sometimes any of them.
    let prefix = rng.chance(600).then(|| rng.place(changes.len() + 1));
    for (place, change) in changes.iter().enumerate() {
        let survives = match (mood, prefix) {
            (Mood::Everything, _) => true,
            (Mood::Nothing, _) => false,
            (Mood::Any, Some(kept)) => place < kept,
            (Mood::Any, None) => rng.chance(500),
        };
        if survives {
            change_names(&mut left.durable_directories, change);
        }
    }
    left.directories = left.durable_directories.clone();
    forget_unnamed(&mut left);
    left
}

fn settled(file: &File, mood: Mood, rng: &mut Rng) -> File {
    let mut durable = file.durable.clone();
    for change in &file.pending {
        match change {
            Pending::Resize(length) if mood == Mood::Everything || (mood == Mood::Any && rng.chance(500)) => {
                durable.resize(*length, 0);
            }
            Pending::Resize(_) => {}
            Pending::Write(offset, bytes) => settle_write(&mut durable, *offset, bytes, mood, rng),
        }
    }
    File { live: durable.clone(), durable, pending: Vec::new() }
}

fn settle_write(durable: &mut Vec<u8>, offset: usize, bytes: &[u8], mood: Mood, rng: &mut Rng) {
    if mood == Mood::Nothing || (mood == Mood::Any && rng.chance(250)) {
        return;
    }
    if mood == Mood::Everything || rng.chance(300) {
        return put(durable, offset, bytes);
    }
    // Some devices write in order and stop: a prefix. Others keep any subset.
    let sectors = bytes.len().div_ceil(SECTOR_BYTES);
    let prefix = rng.chance(500).then(|| rng.place(sectors + 1));
    for (number, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
        if prefix.map_or_else(|| rng.chance(500), |kept| number < kept) {
            let torn = if rng.chance(20) { rng.place(sector.len()) } else { sector.len() };
            put(durable, offset + number * SECTOR_BYTES, &sector[..torn]);
        }
    }
}

/// Drops what no surviving directory leads to.
fn forget_unnamed(image: &mut Image) {
    let mut reached = BTreeSet::from([ROOT]);
    let mut open = vec![ROOT];
    while let Some(directory) = open.pop() {
        for inode in image.directories.get(&directory).into_iter().flat_map(Names::values) {
            if reached.insert(*inode) && image.directories.contains_key(inode) {
                open.push(*inode);
            }
        }
    }
    let keep =
        |directories: &mut BTreeMap<u64, Names>| directories.retain(|inode, _| reached.contains(inode));
    keep(&mut image.directories);
    keep(&mut image.durable_directories);
    image.files.retain(|inode, _| reached.contains(inode));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::image::Operation;

    /// A file of two synced sectors, an unsynced third, and an unsynced overwrite of the first.
    fn image() -> Image {
        let mut image = Image::default();
        let name = "log".to_owned();
        image.apply(&Operation::Create { parent: ROOT, name, inode: 2, is_directory: false });
        let write = |offset, byte: u8| Operation::Write { inode: 2, offset, bytes: vec![byte; 512].into() };
        image.apply(&write(0, 1));
        image.apply(&write(512, 2));
        image.apply(&Operation::Sync { inode: 2, honest: true });
        image.apply(&Operation::Sync { inode: ROOT, honest: true });
        image.apply(&write(1024, 3));
        image.apply(&write(0, 9));
        image
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_may() {
        let image = image();
        let mut seen = BTreeSet::new();
        for seed in 0..300 {
            let left = after_cut(&image, &mut Rng::new(seed));
            let content = &left.files[&2].live;
            assert_eq!(content[512..1024], [2; 512], "a synced sector that nobody overwrote");
            assert!(content[0] == 1 || content[0] == 9);
            assert!(left.files[&2].pending.is_empty() && left.name_changes.is_empty());
            seen.insert((content[0], content.get(1024).copied()));
        }
        assert!(seen.len() >= 4, "cuts differ: {seen:?}");
    }

    #[test]
    fn a_lying_disk_loses_what_it_called_durable() {
        let mut image = Image::default();
        let name = "log".to_owned();
        image.apply(&Operation::Create { parent: ROOT, name, inode: 2, is_directory: false });
        image.apply(&Operation::Sync { inode: ROOT, honest: true });
        image.apply(&Operation::Write { inode: 2, offset: 0, bytes: vec![1; 512].into() });
        image.apply(&Operation::Sync { inode: 2, honest: false });
        let lost = (0..100).filter(|seed| after_cut(&image, &mut Rng::new(*seed)).files[&2].live.is_empty());
        assert!(lost.count() > 10);
    }
}
