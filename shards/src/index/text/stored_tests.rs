//! The text index as sections: it comes back as it was, damage is seen, older versions are passed over, bytes are golden.

use super::TextIndex;
use super::search::Model;
use super::tests::{Chance, empty_index, fields, run};
use crate::index::Units;
use crate::index::query::{CompiledQuery, parse};
use proptest::prelude::*;

fn sections(index: &mut TextIndex, budget: u32, between: &mut dyn FnMut(&mut TextIndex)) -> Vec<Vec<u8>> {
    let mut writer = index.begin_snapshot();
    let mut sections = Vec::new();
    loop {
        let mut section = Vec::new();
        if !writer.next_section(index, &mut Units::new(budget), &mut section) {
            break;
        }
        if !section.is_empty() {
            sections.push(section);
        }
        between(index);
    }
    index.end_snapshot(writer);
    sections
}

fn load(sections: &[Vec<u8>]) -> Result<TextIndex, crate::index::Corrupt> {
    let mut loader = super::store::Loader::new();
    for section in sections {
        loader.section(section)?;
    }
    loader.finish(None)
}

#[test]
fn a_snapshot_holds_the_index_as_it_was() {
    let mut chance = Chance(99);
    let known = fields();
    let query =
        CompiledQuery::new(&parse("cat \"dogs be\" t:eel care*", &|name| name == "t"), &known[..1], &known);
    let mut index = empty_index(60);
    for _ in 0..700 {
        index.put(
            format!("k{}", chance.below(400)).as_bytes(),
            chance.value().as_bytes(),
            &mut Units::unlimited(),
        );
        index.remove(format!("k{}", chance.below(400)).as_bytes(), &mut Units::unlimited());
        index.work(&mut Units::new(300));
    }
    let (view, stats) = index.pin(&query);
    let then = run(view, &query, &stats, Model::Bm25, 500, 10_000);
    let sections = sections(&mut index, 50, &mut |index| {
        index.put(
            format!("k{}", chance.below(400)).as_bytes(),
            b"\"new words every time\"",
            &mut Units::unlimited(),
        );
        index.work(&mut Units::new(900));
    });
    let mut loaded = load(&sections).unwrap();
    let (view, loaded_stats) = loaded.pin(&query);
    assert_eq!(loaded_stats, stats);
    assert_eq!(run(view, &query, &stats, Model::Bm25, 500, 10_000), then);
    // It goes on living: everything can be replaced and removed.
    for n in 0..400 {
        loaded.put(format!("k{n}").as_bytes(), b"\"cat\"", &mut Units::unlimited());
        loaded.remove(format!("k{n}").as_bytes(), &mut Units::unlimited());
        loaded.work(&mut Units::new(2000));
    }
    assert_eq!(loaded.documents(), 0);
}

/// A merge lets go of the terms of dead documents, which stand in its inputs until it ends.
#[test]
fn a_snapshot_that_begins_beside_a_merge_is_whole() {
    let mut beside_merges = 0;
    for steps in (0..400).step_by(3) {
        let mut index = empty_index(8);
        for n in 0..40 {
            let value = format!("\"own{n} word\"");
            index.put(format!("k{n}").as_bytes(), value.as_bytes(), &mut Units::unlimited());
        }
        for n in (0..40).step_by(2) {
            index.remove(format!("k{n}").as_bytes(), &mut Units::unlimited());
        }
        for _ in 0..steps {
            index.work(&mut Units::new(1));
        }
        beside_merges += usize::from(index.has_work());
        let stored = sections(&mut index, 1000, &mut |_| {});
        let loaded = load(&stored).unwrap_or_else(|error| panic!("after {steps} steps: {error:?}"));
        assert_eq!(loaded.documents(), 20);
    }
    assert!(beside_merges > 20, "{beside_merges} snapshots began beside a merge");
}

proptest! {
    #[test]
    fn damaged_sections_are_refused(seed in any::<u64>(), flips in prop::collection::vec((any::<u32>(), 0u8..8), 1..4), resum in any::<bool>()) {
        let mut chance = Chance(seed | 1);
        let mut index = empty_index(30);
        for n in 0..100 {
            index.put(format!("k{n}").as_bytes(), chance.value().as_bytes(), &mut Units::unlimited());
            index.work(&mut Units::new(200));
        }
        let mut sections = sections(&mut index, 1000, &mut |_| {});
        prop_assert!(load(&sections).is_ok());
        for (place, bit) in &flips {
            let at = *place as usize % sections.len();
            let section = &mut sections[at];
            let byte = (*place as usize / 97) % section.len();
            section[byte] ^= 1 << bit;
            if resum && section.len() > 4 {
                // A wrong byte under a right checksum: structure checks must hold alone.
                let end = section.len() - 4;
                let sum = crc32c::crc32c(&section[..end]);
                section[end..].copy_from_slice(&sum.to_le_bytes());
            }
        }
        let outcome = load(&sections);
        prop_assert!(resum || outcome.is_err() || flips.len() > 1);
        let missing = load(&sections[..sections.len() - 1]);
        prop_assert!(missing.is_err());
    }
}

#[test]
fn sections_of_an_older_version_are_passed_over() {
    let mut index = empty_index(30);
    index.put(b"k", b"\"red fox\"", &mut Units::unlimited());
    let mut sections = sections(&mut index, 1000, &mut |_| {});
    for (version, is_outdated) in [(0, None), (2, Some(true)), (3, Some(false)), (4, None)] {
        let header = &mut sections[0];
        header[1] = version;
        let end = header.len() - 4;
        let sum = crc32c::crc32c(&header[..end]);
        header[end..].copy_from_slice(&sum.to_le_bytes());
        let mut loader = super::store::Loader::new();
        let taken = sections.iter().try_for_each(|section| loader.section(section));
        assert_eq!(taken.is_ok().then(|| loader.is_outdated()), is_outdated, "version {version}");
        assert_eq!(taken.is_ok() && loader.finish(None).is_ok(), is_outdated == Some(false));
    }
}

/// The bytes of a small snapshot are part of the storage format: a change here needs a new version there.
#[test]
fn golden_snapshot() {
    let mut index = empty_index(4096);
    index.put(b"k1", b"{\"t\":\"red fox\",\"b\":\"the quick fox runs\"}", &mut Units::unlimited());
    index.put(b"k2", b"\"a lazy dog\"", &mut Units::unlimited());
    index.remove(b"k2", &mut Units::unlimited());
    for n in 0..300 {
        index.put(format!("n{n}").as_bytes(), b"\"fox fox dog\"", &mut Units::unlimited());
    }
    let sections = sections(&mut index, 1_000_000, &mut |_| {});
    let bytes = sections.concat();
    // Not a CRC: behind a section's own it would come to the same whatever the section holds.
    assert_eq!((sections.len(), bytes.len(), xxhash_rust::xxh3::xxh3_64(&bytes)), GOLDEN);
}
const GOLDEN: (usize, usize, u64) = (15, 6563, 8_063_037_329_117_610_878);
