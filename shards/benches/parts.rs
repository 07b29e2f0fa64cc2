//! What parts of the engine cost beside a step: routing a key, indexing, scoring, a slice of a snapshot.
//!
//! Data are made up and the same in every run. Throughput is in keys, documents, queries or bytes, as each name says.
#![allow(clippy::unwrap_used, reason = "a measuring tool fails loudly")]
#![allow(missing_docs, reason = "the macros of criterion make public items")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "criterion reads the clock")]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shards::gather::topology::Topology;
use shards::ids::{GroupId, Millis, Slot, Version, hash_of};
use shards::index::Units;
use shards::index::analyze::AnalyzerKind;
use shards::index::query::{CompiledQuery, parse};
use shards::index::text::search::{Model, Search};
use shards::index::text::{TextIndex, WHOLE};
use shards::index::value::ValueIndex;
use shards::snapshot::SlotSet;
use shards::snapshot::SnapshotHeader;
use shards::snapshot::SnapshotWriter;
use shards::state::record::Content;
use shards::state::{RecordFlags, State};
use std::hint::black_box;

const VALUE: &[u8] = b"\"0123456789012345678901234567890123456789012345678901234567890123\"";
const DOCUMENTS: u64 = 20_000;
const WORDS: u64 = 30;
const SNAPSHOT_KEYS: u64 = 200_000;
/// Bytes of one slice, as in a shard.
const SLICE_BYTES: usize = 64 << 10;

fn key(number: u64) -> Vec<u8> {
    format!("key:{number:012}").into_bytes()
}

fn route(criterion: &mut Criterion) {
    let keys: Vec<Vec<u8>> = (0..1024).map(key).collect();
    let topology = Topology::even(4);
    let mut group = criterion.benchmark_group("route");
    group.throughput(Throughput::Elements(keys.len() as u64));
    group.bench_function("key to group", |bencher| {
        bencher.iter(|| {
            let groups = keys.iter().map(|key| topology.group_of_hashed(key, hash_of(key)).0);
            black_box(groups.sum::<u32>())
        });
    });
    group.finish();
}

/// A word; small numbers come far more often than large ones, as in a language.
fn word(draw: u64) -> u64 {
    let spread = draw.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    (spread % 5_000) * (spread / 5_000 % 3_000) / 3_000
}

fn document(number: u64) -> (Vec<u8>, Vec<u8>) {
    let words: Vec<String> = (0..WORDS).map(|at| format!("word{}", word(number * WORDS + at))).collect();
    (format!("doc:{number:012}").into_bytes(), format!("\"{}\"", words.join(" ")).into_bytes())
}

/// Puts a document in and does as much merging as that was work, as a shard does.
fn put(index: &mut TextIndex, (key, value): &(Vec<u8>, Vec<u8>)) {
    let mut units = Units::new(0);
    index.put(key, value, &mut units);
    if index.has_work() {
        index.work(&mut Units::new(u32::try_from(-units.balance()).unwrap_or(0)));
    }
}

fn text_index(documents: u64) -> TextIndex {
    let mut index = TextIndex::new();
    assert!(index.add_field(WHOLE, AnalyzerKind::English));
    (0..documents).for_each(|number| put(&mut index, &document(number)));
    index
}

fn index(criterion: &mut Criterion) {
    const BATCH: u64 = 100;
    let mut group = criterion.benchmark_group("index");
    group.throughput(Throughput::Elements(BATCH));
    let mut text = text_index(DOCUMENTS);
    let mut next = DOCUMENTS;
    group.bench_function("text, documents of 30 words with merging", |bencher| {
        let batch = || {
            next += BATCH;
            (next - BATCH..next).map(document).collect::<Vec<_>>()
        };
        let bench = |documents: Vec<_>| documents.iter().for_each(|document| put(&mut text, document));
        bencher.iter_batched(batch, bench, BatchSize::SmallInput);
    });
    let mut values = ValueIndex::new("n");
    let object = |number: u64| format!("{{\"n\":{},\"v\":\"x\"}}", number * 7_919 % 1_000_003).into_bytes();
    let mut next = 0;
    group.bench_function("value, one number of an object", |bencher| {
        let batch = || {
            next += BATCH;
            (next - BATCH..next).map(|number| (key(number), object(number))).collect::<Vec<_>>()
        };
        let bench = |objects: Vec<(Vec<u8>, Vec<u8>)>| {
            objects.iter().for_each(|(key, value)| values.apply(key, None, Some(value)));
        };
        bencher.iter_batched(batch, bench, BatchSize::SmallInput);
    });
    group.finish();
}

fn score(criterion: &mut Criterion) {
    let mut text = text_index(DOCUMENTS);
    while text.has_work() {
        text.work(&mut Units::new(20_000));
    }
    let fields = text.query_fields();
    let mut group = criterion.benchmark_group("score");
    group.throughput(Throughput::Elements(1));
    for (name, query) in [
        ("one rare word", "word4700"),
        ("one frequent word", "word3"),
        ("two words", "word40 word900"),
        ("ten words", "word1 word20 word300 word40 word500 word60 word700 word80 word900 word1000"),
        ("phrase", "\"word3 word20\""),
    ] {
        group.bench_function(BenchmarkId::new("top 10 of 20,000", name), |bencher| {
            bencher.iter(|| {
                let query = CompiledQuery::new(&parse(query, &|_| false), &fields, &fields);
                let (view, stats) = text.pin(&query);
                let mut search = Search::new(view, &query, &stats, Model::Bm25, 10).unwrap();
                while !search.step(&mut Units::new(20_000), &mut |_| true) {}
                search.into_hits().len()
            });
        });
    }
    group.finish();
}

fn snapshot(criterion: &mut Criterion) {
    let mut state = State::default();
    for number in 0..SNAPSHOT_KEYS {
        let key = key(number);
        let content = Content {
            version: Version::new(0, number, 0),
            value: VALUE,
            expires_at: None,
            flags: RecordFlags::NONE,
        };
        state.keys.set(hash_of(&key), &key, content);
    }
    let mut slots = SlotSet::default();
    (0..4096).for_each(|slot| slots.insert(Slot(slot)));
    let header = SnapshotHeader {
        cluster: 1,
        shard: 0,
        group: GroupId(0),
        epoch: 0,
        applied_index: SNAPSHOT_KEYS,
        applied_term: 1,
        entry_stamp: Millis(1),
        slots,
    };
    let mut group = criterion.benchmark_group("snapshot");
    group.throughput(Throughput::Bytes(SLICE_BYTES as u64));
    let mut out = Vec::new();
    let mut writer = Some(SnapshotWriter::begin(&header, false, &mut state, &mut out));
    group.bench_function("a slice of 64 KiB", |bencher| {
        bencher.iter(|| {
            out.clear();
            let mut running = writer.take().unwrap();
            if !running.slice(&mut state, SLICE_BYTES, &mut out) {
                running.finish(&mut state, &mut out);
                running = SnapshotWriter::begin(&header, false, &mut state, &mut out);
            }
            writer = Some(running);
            out.len()
        });
    });
    group.finish();
}

criterion_group!(parts, route, index, score, snapshot);
criterion_main!(parts);
