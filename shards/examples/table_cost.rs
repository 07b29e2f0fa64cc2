//! What the key space costs: nanoseconds a get and a set, the longest single step, snapshot and load speeds.
//!
//! `cargo run --release -p shards --example table_cost [keys]`. Memory a key is held by `tests/memory_cost.rs`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a measurement reads the clock")]
#![allow(clippy::print_stdout, reason = "figures go to the terminal")]

use shards::ids::{KeyHash, Version, hash_of};
use shards::snapshot::{Chunk, SnapshotHeader, SnapshotLoader, SnapshotReader, SnapshotWriter};
use shards::state::record::Content;
use shards::state::{RecordFlags, SessionLimits, State, TableLimits};
use std::hint::black_box;
use std::time::{Duration, Instant};

fn main() {
    let count: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let keys: Vec<(KeyHash, [u8; 16])> = (0..count).map(key).collect();
    let mut state = State::default();

    let started = Instant::now();
    for (number, (hash, key)) in keys.iter().enumerate() {
        state.keys.set(*hash, key, content(number as u64));
    }
    per_key("set, new keys", started, count);
    println!("{} tables, {:.1} bytes a key", state.keys.tables(), state.keys.bytes() as f64 / count as f64);

    // A stride that is coprime to most counts visits the keys in an order that no cache foresees; the hashes and keys
    // themselves are read one after another, as they stand in a batch of requests.
    let shuffled: Vec<_> = (0..count).map(|n| keys[(n * 7_919_993 % count) as usize]).collect();
    let hashes: Vec<KeyHash> = shuffled.iter().map(|(hash, _)| *hash).collect();
    let started = Instant::now();
    for (hash, key) in &shuffled {
        black_box(state.keys.get(*hash, key).map(|record| record.value[0]));
    }
    per_key("get, in random order", started, count);

    let started = Instant::now();
    for (batch, hashes) in shuffled.chunks(64).zip(hashes.chunks(64)) {
        state.keys.touch_many(hashes);
        for (hash, key) in batch {
            black_box(state.keys.get(*hash, key).map(|record| record.value[0]));
        }
    }
    per_key("get, in batches of 64 read ahead", started, count);

    let started = Instant::now();
    for (number, (hash, key)) in shuffled.iter().enumerate() {
        state.keys.set(*hash, key, content(number as u64 + 1));
    }
    per_key("set, overwriting in random order", started, count);

    let started = Instant::now();
    for (number, (batch, hashes)) in shuffled.chunks(64).zip(hashes.chunks(64)).enumerate() {
        state.keys.touch_many(hashes);
        for (hash, key) in batch {
            state.keys.set(*hash, key, content(number as u64 + 2));
        }
    }
    per_key("set, overwriting in batches of 64 read ahead", started, count);

    let mut fresh = State::default();
    let mut splits = Vec::new();
    for (number, (hash, key)) in keys.iter().enumerate() {
        let tables = fresh.keys.tables();
        let started = Instant::now();
        fresh.keys.set(*hash, key, content(number as u64));
        if fresh.keys.tables() > tables {
            splits.push(started.elapsed());
        }
    }
    spread("sets with a split", &mut splits);
    drop(fresh);

    let mut scanned = 0;
    let started = Instant::now();
    let mut from = Some(shards::state::Position::default());
    while let Some(position) = from {
        from = state.keys.scan(&position, b"", 100, 10_000, |_| scanned += 1).next;
    }
    per_key("scan, pages of 100", started, count);
    assert_eq!(scanned, count);

    snapshot(&mut state, count);
}

fn snapshot(state: &mut State, count: u64) {
    let started = Instant::now();
    let mut chunks = Vec::new();
    let mut slices = Vec::new();
    let mut writer = SnapshotWriter::begin(&SnapshotHeader::default(), false, state, &mut chunks);
    loop {
        let slice = Instant::now();
        let more = writer.slice(state, 1, &mut chunks);
        slices.push(slice.elapsed());
        if !more {
            break;
        }
    }
    let summary = writer.finish(state, &mut chunks);
    per_key("serialise", started, count);
    spread("snapshot slices of one table", &mut slices);
    println!("file: {} bytes", summary.footer.file_bytes);
    let file: Vec<u8> = chunks.iter().flat_map(Chunk::as_slice).copied().collect();

    let started = Instant::now();
    let mut reader = SnapshotReader::new();
    let mut input = file.as_slice();
    while reader.feed(&mut input).expect("the file is sound").is_some() {}
    reader.finish().expect("the file is true");
    per_key("verify", started, count);

    let started = Instant::now();
    let mut loader = SnapshotLoader::new(TableLimits::default(), SessionLimits::default());
    let mut input = file.as_slice();
    while loader.feed(&mut input, |_, _| {}).expect("the file is sound") {}
    let (loaded, ..) = loader.finish().expect("the file is true");
    per_key("load", started, count);
    assert_eq!(loaded.keys.len() as u64, count);
    println!("loaded: {:.1} bytes a key", loaded.keys.bytes() as f64 / count as f64);

    let started = Instant::now();
    assert_eq!(loaded.keys.digest(), summary.footer.records);
    per_key("digest", started, count);
}

fn key(number: u64) -> (KeyHash, [u8; 16]) {
    let mut key = *b"key:000000000000";
    let text = number.to_string();
    key[16 - text.len()..].copy_from_slice(text.as_bytes());
    (hash_of(&key), key)
}

fn content(number: u64) -> Content<'static> {
    let version = Version::new(0, number >> 10, (number & 1023) as u16);
    Content { value: &[b'v'; 64], version, expires_at: None, flags: RecordFlags::NONE }
}

fn per_key(what: &str, started: Instant, count: u64) {
    let elapsed = started.elapsed();
    println!("{what}: {:.0} ns a key, {elapsed:.2?} in all", elapsed.as_nanos() as f64 / count as f64);
}

/// Prints how long single steps took. The longest ones of a busy machine show its other work, hence the percentiles.
fn spread(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    let longest = times.last().copied().unwrap_or_default();
    println!("{what}: median {:.1?}, p90 {:.1?}, p99 {:.1?}, longest {longest:.1?}", at(50), at(90), at(99));
}
