//! The key space against a plain ordered map, with tables so small that they split and compact all the time.

use super::record::{Content, RecordFlags};
use super::{Digest, KeySpace, Position, Record, TableLimits};
use crate::ids::{KeyHash, Millis, Version, hash_of};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const SMALL: TableLimits =
    TableLimits { records_max: 6, inline_bytes_max: 900, large_bytes_max: 6000, large_records_min: 2 };

/// What a record says, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) value: Vec<u8>,
    pub(crate) version: Version,
    pub(crate) expires_at: Option<Millis>,
    pub(crate) flags: RecordFlags,
}

impl Said {
    pub(crate) fn content(&self) -> Content<'_> {
        let Self { ref value, version, expires_at, flags } = *self;
        Content { value, version, expires_at, flags }
    }

    pub(crate) fn of(record: &Record<'_>) -> Self {
        let Record { value, version, expires_at, flags, .. } = *record;
        Self { value: value.to_vec(), version, expires_at, flags }
    }
}

pub(crate) type Model = BTreeMap<Vec<u8>, Said>;

#[derive(Clone, Debug)]
pub(crate) enum Change {
    Set { key: u8, value_bytes: usize, expires_at: Option<u64>, fault: bool },
    Remove { key: u8 },
}

pub(crate) fn change() -> impl Strategy<Value = Change> {
    let lengths =
        prop_oneof![6 => 0usize..40, 2 => 200usize..300, 1 => Just(1023usize), 2 => 1024usize..6000];
    let set = (0u8..80, lengths, prop::option::of(1u64..100), prop::bool::weighted(0.1)).prop_map(
        |(key, value_bytes, expires_at, fault)| Change::Set { key, value_bytes, expires_at, fault },
    );
    prop_oneof![3 => set, 1 => (0u8..80).prop_map(|key| Change::Remove { key })]
}

/// Keys of several lengths; every fifth has another prefix.
pub(crate) fn key_of(number: u8) -> Vec<u8> {
    let prefix = if number.is_multiple_of(5) { "five/" } else { "k" };
    format!("{prefix}{number}{}", "x".repeat(usize::from(number % 7))).into_bytes()
}

/// Does one change, the `place`th of its history, to both, and checks that both say the same of it.
pub(crate) fn apply(keys: &mut KeySpace, model: &mut Model, place: u64, change: &Change) {
    let version = Version::new(3, place, 1);
    match *change {
        Change::Set { key, value_bytes, expires_at, fault } => {
            let key = key_of(key);
            let flags = if fault { RecordFlags::DEBUG_FAULT } else { RecordFlags::NONE };
            let value = vec![place as u8; value_bytes];
            let said = Said { value, version, expires_at: expires_at.map(Millis), flags };
            let replaced = keys.set(hash_of(&key), &key, said.content());
            assert_eq!(replaced, model.insert(key, said).is_some());
        }
        Change::Remove { key } => {
            let key = key_of(key);
            let removed = keys.remove(hash_of(&key), &key, version);
            assert_eq!(removed, model.remove(&key).is_some());
            if removed {
                assert_eq!(keys.last_delete(hash_of(&key)), version);
            }
        }
    }
}

/// Checks that the key space says what the model says, in every way in which it can be asked.
pub(crate) fn check(keys: &mut KeySpace, model: &Model) {
    assert_eq!(keys.len(), model.len());
    for number in 0..80 {
        let key = key_of(number);
        keys.touch_many(&[hash_of(&key); 40]);
        let record = keys.get(hash_of(&key), &key);
        assert_eq!(record.as_ref().map(Said::of).as_ref(), model.get(&key), "key {number}");
        if let Some(record) = record {
            let shared = record.value_shared();
            assert_eq!(shared.is_some(), record.value.len() >= 1024);
            assert!(shared.is_none_or(|shared| *shared == *record.value));
        }
    }
    let counted: usize = keys.tables.iter().map(super::table::Table::memory_bytes).sum();
    let spare = keys.bytes() - counted;
    assert!(spare < 1 << 20, "the account is off by {spare}");
    check_scans(keys, model);
    check_digests(keys, model);
    check_overdue(keys, model);
}

fn check_scans(keys: &KeySpace, model: &Model) {
    for prefix in ["", "five/", "k1", "none"] {
        let mut expected: Vec<(KeyHash, &[u8])> = model
            .keys()
            .filter(|key| key.starts_with(prefix.as_bytes()))
            .map(|key| (hash_of(key), key.as_slice()))
            .collect();
        expected.sort_unstable();
        for (limit, budget) in [(1, 1), (3, 2), (2, 50), (1000, 1000)] {
            let (mut found, mut next) = (Vec::new(), Some(Position::default()));
            while let Some(from) = next {
                let before = found.len();
                let page = keys.scan(&from, prefix.as_bytes(), limit, budget, |record| {
                    found.push((hash_of(record.key), record.key.to_vec()));
                });
                assert!(found.len() - before <= limit && page.examined <= budget);
                assert!(page.next.is_none() || page.examined > 0, "a page gets on");
                next = page.next;
            }
            assert!(found.iter().map(|(hash, key)| (*hash, key.as_slice())).eq(expected.iter().copied()));
        }
    }
}

fn check_digests(keys: &KeySpace, model: &Model) {
    let mut other = KeySpace::new(TableLimits::default());
    for (key, said) in model.iter().rev() {
        other.set(hash_of(key), key, said.content());
    }
    let whole = keys.digest();
    assert_eq!(whole, other.digest(), "the history of splits does not show");
    let (mut sum, mut next) = (Digest::default(), Some(KeyHash(0)));
    while let Some(from) = next {
        let (part, end) = keys.digest_table(from);
        sum.add(part);
        next = end;
    }
    assert_eq!(sum, whole);
    let cut = 0x5a00_1234_0000_0000;
    let (low, high) = ((KeyHash(0), KeyHash(cut)), (KeyHash(cut + 1), KeyHash(u64::MAX)));
    let mut halves = keys.digest_range(low.0, low.1);
    assert_eq!(halves, other.digest_range(low.0, low.1));
    halves.add(keys.digest_range(high.0, high.1));
    assert_eq!(halves, whole);
}

fn check_overdue(keys: &mut KeySpace, model: &Model) {
    for now in [0, 30, 99] {
        let expected: BTreeSet<&Vec<u8>> = model
            .iter()
            .filter(|(_, said)| said.expires_at.is_some_and(|at| at.0 <= now))
            .map(|(key, _)| key)
            .collect();
        let (mut found, mut next) = (Vec::new(), Some(KeyHash(0)));
        while let Some(from) = next {
            let page = keys.overdue(Millis(now), from, 1000, 3);
            found.extend(page.keys);
            next = page.next;
        }
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().all(|key| expected.contains(key)));
        if !expected.is_empty() {
            assert_eq!(keys.overdue(Millis(now), KeyHash(0), 1, 10_000).keys.len(), 1);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn says_what_a_map_says(changes in prop::collection::vec(change(), 1..400)) {
        let (mut keys, mut model) = (KeySpace::new(SMALL), Model::new());
        for (place, change) in changes.iter().enumerate() {
            apply(&mut keys, &mut model, place as u64, change);
            if place % 97 == 0 {
                check(&mut keys, &model);
            }
        }
        check(&mut keys, &model);
        prop_assert!(model.len() < 50 || keys.tables() > 8, "the small limits split");
    }

    #[test]
    fn a_key_present_throughout_is_scanned_once(
        before in prop::collection::vec(change(), 40..120),
        during in prop::collection::vec(change(), 1..200),
        limit in 1usize..5,
    ) {
        let (mut keys, mut model) = (KeySpace::new(SMALL), Model::new());
        for (place, change) in before.iter().enumerate() {
            apply(&mut keys, &mut model, place as u64, change);
        }
        let mut throughout: BTreeSet<Vec<u8>> = model.keys().cloned().collect();
        let mut seen: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        let mut changes = during.iter().enumerate();
        let mut next = Some(Position::default());
        while let Some(from) = next {
            next = keys
                .scan(&from, b"", limit, 7, |record| *seen.entry(record.key.to_vec()).or_default() += 1)
                .next;
            for (place, change) in changes.by_ref().take(3) {
                apply(&mut keys, &mut model, 1000 + place as u64, change);
                throughout.retain(|key| model.contains_key(key));
            }
        }
        for key in &throughout {
            prop_assert_eq!(seen.get(key), Some(&1));
        }
        prop_assert!(seen.values().all(|times| *times == 1), "not even a key set anew comes twice");
    }
}

#[test]
fn a_deleted_neighbour_shows_in_both_halves_of_a_split() {
    let mut keys = KeySpace::new(SMALL);
    let said = Said {
        value: b"1".to_vec(),
        version: Version::new(0, 1, 0),
        expires_at: None,
        flags: RecordFlags::NONE,
    };
    let put = |keys: &mut KeySpace, number: u32| {
        let key = number.to_be_bytes();
        keys.set(hash_of(&key), &key, said.content());
    };
    put(&mut keys, 0);
    let deleted = Version::new(0, 2, 0);
    assert!(keys.remove(hash_of(&0u32.to_be_bytes()), &0u32.to_be_bytes(), deleted));
    assert!(!keys.remove(hash_of(b"absent"), b"absent", Version::new(0, 9, 0)), "changes nothing");
    for number in 1..500 {
        put(&mut keys, number);
    }
    assert!(keys.tables() > 50);
    for number in 0..500u32 {
        assert_eq!(keys.last_delete(hash_of(&number.to_be_bytes())), deleted);
    }
    keys.raise_delete_floor(Version::new(1, 0, 0));
    assert_eq!(keys.last_delete(KeyHash(7)), Version::new(1, 0, 0));
}

#[test]
fn keys_chosen_to_collide_make_one_slow_table_and_no_large_directory() {
    let mut keys = KeySpace::new(SMALL);
    let content =
        Content { value: b"1", version: Version::new(0, 1, 0), expires_at: None, flags: RecordFlags::NONE };
    // The table is told the same hash for all, as an attacker would see to.
    for number in 0..300u32 {
        keys.set(KeyHash(42), &number.to_be_bytes(), content);
    }
    assert_eq!(keys.len(), 300);
    assert!((0..300u32).all(|number| keys.get(KeyHash(42), &number.to_be_bytes()).is_some()));
    assert!(keys.bytes() < 1 << 20, "the directory stays small");
}

#[test]
fn growing_and_shrinking_values_leave_no_garbage_behind() {
    let mut keys = KeySpace::default();
    for round in 0..50_000u64 {
        let value = vec![b'v'; (round * 31 % 900) as usize];
        let key = (round % 40).to_be_bytes();
        let said = Said {
            value,
            version: Version::new(0, round, 0),
            expires_at: (round % 3 == 0).then_some(Millis(round)),
            flags: RecordFlags::NONE,
        };
        keys.set(hash_of(&key), &key, said.content());
    }
    assert!(keys.bytes() < 150_000, "{} bytes for 40 records", keys.bytes());
    for number in 0..40u64 {
        let key = number.to_be_bytes();
        assert!(keys.remove(hash_of(&key), &key, Version::new(0, 50_000 + number, 0)));
    }
    assert!(keys.bytes() < 2_000, "{} bytes for no record", keys.bytes());
}
