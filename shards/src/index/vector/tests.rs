//! Tests of vector indexes against a model: flat and by graph, over any number of shards, in slices, through snapshots.

use super::graph::Graph;
use super::*;
use crate::index::codec::Corrupt;
use crate::index::text::top::Hit;
use proptest::prelude::*;
use std::collections::BTreeMap;

type Model = BTreeMap<Vec<u8>, Vec<f32>>;

/// A generator of numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// About normal: a sum of uniform ones.
    fn normal(&mut self) -> f32 {
        (0..4).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5).sum()
    }

    fn vector(&mut self, dimensions: usize) -> Vec<f32> {
        (0..dimensions).map(|_| self.normal()).collect()
    }
}

fn search(index: &VectorIndex, query: &[f32], limit: usize, budget: u32) -> Vec<VectorHit> {
    let mut search = VectorSearch::new(index, query, limit).unwrap();
    while !search.step(index, &mut Units::new(budget), &mut |_| true) {}
    search.into_hits(index)
}

fn find(shards: &[VectorIndex], query: &[f32], limit: usize, budget: u32) -> Vec<Hit> {
    merge_vector_hits(shards.iter().map(|index| search(index, query, limit, budget)).collect(), limit)
}

fn json(vector: &[f32]) -> String {
    format!("{{\"v\":{vector:?}}}")
}

fn exact(model: &Model, metric: Metric, query: &[f32], limit: usize) -> Vec<Hit> {
    let hit = |(key, vector): (&Vec<u8>, &Vec<f32>)| {
        Hit::new(metric::sortable(metric.similarity(query, vector)), key)
    };
    let mut hits: Vec<Hit> = model.iter().map(hit).collect();
    hits.sort();
    hits.truncate(limit);
    hits
}

fn reload(index: &VectorIndex, budget: u32) -> Result<VectorIndex, Corrupt> {
    let name = std::str::from_utf8(&index.path).unwrap();
    let mut loaded = VectorIndex::new(name, index.slots.dimensions, index.slots.metric);
    let mut from = Some(0);
    while let Some(slot) = from {
        let mut out = Vec::new();
        from = index.write_section(slot, &mut Units::new(budget), &mut out);
        loaded.load_section(&out)?;
    }
    loaded.finish_load()?;
    loaded.set_hnsw_from(index.hnsw_from);
    Ok(loaded)
}

/// Each node's key with the keys of its neighbours, by level: a graph without the numbers of its slots.
fn shape(index: &VectorIndex) -> BTreeMap<(Vec<u8>, u64), Vec<Vec<u64>>> {
    let graph: &Graph = index.hnsw.as_ref().and_then(|hnsw| hnsw.serving.as_ref()).expect("a graph serves");
    let born = |slot: &u32| index.slots.head(*slot).born;
    let node = |slot: u32| {
        let levels = 0..=graph.level(slot)?;
        let links = levels.map(|level| graph.links(slot, level).iter().map(born).collect()).collect();
        Some(((index.slots.key(slot).to_vec(), born(&slot)), links))
    };
    (0..index.slots.count()).filter_map(node).collect()
}

fn finish(index: &mut VectorIndex) {
    while index.has_work() {
        index.work(&mut Units::new(10_000));
    }
}

proptest! {
    #[test]
    fn scans_agree_with_a_model_over_any_shards(
        operations in prop::collection::vec((0u8..60, prop::collection::vec(-8.0f32..8.0, 4), 0u8..5), 0..150),
        query in prop::collection::vec(-8.0f32..8.0, 4), metric in 0usize..3, limit in 1usize..8,
        hnsw_from in prop_oneof![Just(1usize), Just(20), Just(1000)], work in 0u32..2000,
    ) {
        let metric = [Metric::Cosine, Metric::Dot, Metric::L2][metric];
        let index = || {
            let mut index = VectorIndex::new("v", 4, metric);
            index.set_hnsw_from(hnsw_from);
            index
        };
        let mut single = [index()];
        let mut shards: Vec<VectorIndex> = (0..3).map(|_| index()).collect();
        let mut model = Model::new();
        let mut then = Model::new();
        let half = operations.len() / 2;
        let mut late = None;
        for (n, (key, vector, action)) in operations.into_iter().enumerate() {
            if n == half {
                single[0].begin_snapshot();
                then = model.clone();
                late = Some(VectorSearch::new(&single[0], &query, limit).unwrap());
            }
            let value = match action { 0 => None, 1 => Some("{\"v\":[1,2]}".to_owned()), _ => Some(json(&vector)) };
            if action > 1 { model.insert(vec![key], vector); } else { model.remove(&vec![key]); }
            single[0].apply(&[key], value.as_deref().map(str::as_bytes));
            shards[usize::from(key) % 3].apply(&[key], value.as_deref().map(str::as_bytes));
            single[0].work(&mut Units::new(work));
            shards[usize::from(key) % 3].work(&mut Units::new(work));
            if let Some(search) = &mut late {
                search.step(&single[0], &mut Units::new(3), &mut |_| true);
            }
        }
        let expected = exact(&model, metric, &query, limit);
        prop_assert_eq!(&find(&single, &query, limit, 1_000_000), &expected);
        prop_assert_eq!(&find(&shards, &query, limit, 3), &expected);
        if let Some(mut search) = late {
            // A search that takes long sees every record that was there throughout, once.
            while !search.step(&single[0], &mut Units::new(3), &mut |_| true) {}
            let mut found: Vec<Vec<u8>> = search.into_hits(&single[0]).iter().map(|found| found.hit.key.to_vec()).collect();
            found.sort();
            let lasting: Vec<Vec<u8>> = then.keys().filter(|key| model.contains_key(*key)).cloned().collect();
            prop_assert_eq!(found, lasting);
            let loaded = reload(&single[0], 9).unwrap();
            prop_assert_eq!(loaded.entries(), then.len());
            prop_assert_eq!(find(&[loaded], &query, limit, 50), exact(&then, metric, &query, limit));
            single[0].end_snapshot();
        }
        finish(&mut single[0]);
        prop_assert_eq!(&find(&single, &query, limit, 50), &expected);
        prop_assert!(single[0].slots.lingering() <= model.len() / 2 + 64, "ended vectors are given up in time");
    }

    #[test]
    fn foreign_sections_are_refused_or_survived(
        at in 0usize..4000, byte in any::<u8>(), cut in 0usize..4000, flips in 1usize..4,
    ) {
        let (index, _) = world(Metric::L2, 40, 3, 1);
        let mut out = Vec::new();
        index.write_section(0, &mut Units::unlimited(), &mut out);
        for n in 0..flips {
            let at = (at * (n + 1)) % out.len();
            out[at] ^= byte;
        }
        out.truncate(cut.max(1));
        let mut loaded = VectorIndex::new("v", 3, Metric::L2);
        loaded.set_hnsw_from(1);
        if loaded.load_section(&out).is_ok() && loaded.finish_load().is_ok() {
            finish(&mut loaded);
            search(&loaded, &[1.0, 2.0, 3.0], 3, 100);
        }
    }
}

/// An index with a finished graph, after inserts, updates and deletes; and what is in it.
fn world(metric: Metric, vectors: usize, dimensions: usize, hnsw_from: usize) -> (VectorIndex, Model) {
    let (mut numbers, mut model) = (Numbers(7), Model::new());
    let mut index = VectorIndex::new("v", dimensions, metric);
    index.set_hnsw_from(hnsw_from);
    for n in 0..vectors + vectors / 4 {
        let number = if n < vectors { n } else { numbers.next() as usize % vectors };
        let key = format!("k{number}").into_bytes();
        let vector = (n < vectors || n % 4 != 0).then(|| numbers.vector(dimensions));
        index.set(&key, vector.as_deref());
        match vector {
            Some(vector) => model.insert(key, vector),
            None => model.remove(&key),
        };
        index.work(&mut Units::new((n % 7) as u32 * 100));
    }
    finish(&mut index);
    (index, model)
}

/// The share of the exact best ten that a search finds.
fn recall(index: &VectorIndex, model: &Model, dimensions: usize) -> f64 {
    let mut numbers = Numbers(99);
    let (mut met, queries) = (0, 50);
    for _ in 0..queries {
        let query = numbers.vector(dimensions);
        let found = merge_vector_hits(vec![search(index, &query, 10, 5000)], 10);
        met += exact(model, index.slots.metric, &query, 10).iter().filter(|hit| found.contains(hit)).count();
    }
    met as f64 / f64::from(queries * 10)
}

fn walks(index: &VectorIndex) -> bool {
    let mut search = VectorSearch::new(index, &vec![1.0; index.slots.dimensions], 10).unwrap();
    search.step(index, &mut Units::new(1), &mut |_| true);
    !format!("{search:?}").contains("stage: Flat")
}

#[test]
fn a_graph_finds_what_is_near() {
    for metric in [Metric::Cosine, Metric::Dot, Metric::L2] {
        let (index, model) = world(metric, 6000, 24, 2000);
        assert!(walks(&index), "a graph of this size serves");
        let recall = recall(&index, &model, 24);
        assert!(recall >= 0.95, "{metric:?}: recall@10 is {recall}");
    }
}

/// What a search's walk finds by itself, with no scan to make up for it; `None` if it gave up.
fn walk(index: &VectorIndex, query: &[f32], met_max: usize) -> Option<Vec<Hit>> {
    let graph = index.hnsw.as_ref().and_then(|hnsw| hnsw.serving.as_ref()).expect("a graph serves");
    let (slots, probe) = (&index.slots, probe::Probe::of_query(query));
    let distance = probe.distance(slots.metric, graph.length_max());
    let mut beam = graph::Beam::of_search(slots, rescored(10), 10, distance, met_max);
    beam.start(graph.descend(slots, &probe, 0, &mut Units::unlimited())?, &mut |_| true);
    while !beam.step(graph, slots, &probe, &mut Units::new(500), &mut |_| true) {}
    if beam.gave_up() {
        return None;
    }
    let score = |slot| metric::sortable(slots.metric.similarity(query, slots.floats(slot)));
    let mut hits: Vec<Hit> =
        beam.into_sorted().iter().map(|found| Hit::new(score(found.slot), slots.key(found.slot))).collect();
    hits.sort();
    hits.truncate(10);
    Some(hits)
}

/// Vectors of 48 numbers around so many centres, or around none.
fn vectors(centres: usize, count: usize) -> Vec<Vec<f32>> {
    let mut numbers = Numbers(17);
    let centres: Vec<Vec<f32>> = (0..centres).map(|_| numbers.vector(48)).collect();
    let mut vector = |_| {
        let mut vector = numbers.vector(48);
        if !centres.is_empty() {
            let centre = &centres[numbers.next() as usize % centres.len()];
            vector.iter_mut().zip(centre).for_each(|(number, centre)| *number = *number * 0.5 + centre);
        }
        vector
    };
    (0..count).map(&mut vector).collect()
}

/// Walks alone find .95 of the best ten, without giving up before they have met `met_max` of 4,000 nodes.
fn check_walks(metric: Metric, centres: usize, met_max: usize) {
    const QUERIES: usize = 40;
    let mut all = vectors(centres, 4000 + QUERIES);
    let queries = all.split_off(4000);
    let mut index = VectorIndex::new("v", 48, metric);
    index.set_hnsw_from(4000);
    let mut model = Model::new();
    for (n, vector) in all.into_iter().enumerate() {
        let key = format!("k{n}").into_bytes();
        index.set(&key, Some(&vector));
        model.insert(key, vector);
    }
    finish(&mut index);
    let mut met = 0;
    for query in &queries {
        let found = walk(&index, query, met_max).unwrap_or_else(|| panic!("{metric:?}, {centres}: gave up"));
        met += exact(&model, metric, query, 10).iter().filter(|hit| found.contains(hit)).count();
    }
    let recall = met as f64 / (QUERIES * 10) as f64;
    assert!(recall >= 0.95, "{metric:?}, {centres} centres: recall@10 is {recall}");
}

#[test]
fn walks_by_cosine_end_when_they_have_found() {
    check_walks(Metric::Cosine, 100, 1000);
    check_walks(Metric::Cosine, 0, usize::MAX);
}

#[test]
fn walks_by_distance_end_when_they_have_found() {
    check_walks(Metric::L2, 100, 1000);
    check_walks(Metric::L2, 0, usize::MAX);
}

#[test]
fn walks_by_dot_product_end_when_they_have_found() {
    check_walks(Metric::Dot, 100, 1000);
    check_walks(Metric::Dot, 0, usize::MAX);
}

#[test]
fn a_graph_is_a_function_of_the_changes() {
    let sizes = [7u32, 300, 100_000];
    let mut shapes = Vec::new();
    for size in sizes {
        let mut numbers = Numbers(3);
        let mut index = VectorIndex::new("v", 8, Metric::L2);
        index.set_hnsw_from(500);
        for n in 0..3000u64 {
            let key = format!("k{}", numbers.next() % 1200).into_bytes();
            let vector = numbers.vector(8);
            index.set(&key, (n % 3 > 0).then_some(&vector));
            index.work(&mut Units::new(size));
            if n % 700 == 650 {
                // A reader holds on to old slots, and a restart comes in between: neither changes the graph.
                let reader = VectorSearch::new(&index, &vector, 3).unwrap();
                index.set(b"extra", Some(&vector));
                index.begin_snapshot();
                if size == 300 {
                    index = reload(&index, 200).unwrap();
                }
                drop(reader);
                index.end_snapshot();
            }
        }
        finish(&mut index);
        shapes.push(shape(&index));
    }
    assert!(shapes[0].len() > 600 && shapes[0] == shapes[1] && shapes[1] == shapes[2]);
}

#[test]
fn a_restart_neither_loses_nor_rebuilds_the_graph() {
    let (mut index, model) = world(Metric::Cosine, 3000, 16, 1000);
    index.begin_snapshot();
    let loaded = reload(&index, 3000).unwrap();
    index.end_snapshot();
    assert!(!loaded.has_work(), "nothing is built anew");
    assert_eq!(shape(&loaded), shape(&index));
    let query = vec![0.5; 16];
    assert_eq!(search(&loaded, &query, 10, 900), search(&index, &query, 10, 900));
    assert_eq!(loaded.entries(), model.len());
    // A graph that is not wanted any more goes at the start.
    let mut unwanted = loaded;
    unwanted.set_hnsw_from(1_000_000);
    assert!(unwanted.hnsw.is_none() && unwanted.slots.lingering() == 0);
    assert_eq!(find(&[unwanted], &query, 10, 900), exact(&model, Metric::Cosine, &query, 10));
}

#[test]
fn many_deletes_bring_a_new_graph_while_the_old_one_serves() {
    let (mut index, mut model) = world(Metric::L2, 6500, 12, 1000);
    let before = index.hnsw.as_ref().unwrap().generation;
    let gone: Vec<Vec<u8>> = model.keys().take(model.len() / 2).cloned().collect();
    for key in gone {
        model.remove(&key);
        index.set(&key, None);
        index.work(&mut Units::new(20));
        assert!(index.hnsw.as_ref().unwrap().serving.is_some());
    }
    assert!(recall(&index, &model, 12) >= 0.95, "while it is built");
    finish(&mut index);
    assert!(index.hnsw.as_ref().unwrap().generation > before);
    assert!(recall(&index, &model, 12) >= 0.95, "when it is built");
    let keys: Vec<Vec<u8>> = model.keys().cloned().collect();
    keys.iter().for_each(|key| index.set(key, None));
    finish(&mut index);
    assert!(index.entries() == 0 && index.slots.lingering() < 64);
    assert!(find(std::slice::from_ref(&index), &[1.0; 12], 10, 10).is_empty());
    index.set(b"new", Some(&[1.0; 12]));
    finish(&mut index);
    assert_eq!(find(&[index], &[1.0; 12], 10, 10).len(), 1);
}

#[test]
fn filters_hold_however_few_pass() {
    let (index, model) = world(Metric::Cosine, 6000, 8, 1000);
    for share in [1usize, 2, 10, 100, 10_000] {
        let passes =
            |key: &[u8]| key.iter().fold(0usize, |sum, byte| sum * 31 + usize::from(*byte)) % share == 0;
        let query = [0.3, -0.2, 0.9, 0.1, -0.5, 0.4, 0.0, 0.7];
        let mut search = VectorSearch::new(&index, &query, 10).unwrap();
        while !search.step(&index, &mut Units::new(2000), &mut |key| passes(key)) {}
        let found = merge_vector_hits(vec![search.into_hits(&index)], 10);
        let few: Model =
            model.iter().filter(|(key, _)| passes(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
        let expected = exact(&few, Metric::Cosine, &query, 10);
        assert!(found.iter().all(|hit| passes(&hit.key)) && found.len() == expected.len());
        assert!(
            expected.iter().filter(|hit| found.contains(hit)).count() * 10 >= expected.len() * 9,
            "1 in {share}"
        );
    }
}

#[test]
fn golden_sections() {
    let mut index = VectorIndex::new("v", 1, Metric::Dot);
    index.set_hnsw_from(2);
    for (key, number) in [(b"a", 1.0f32), (b"b", 2.0), (b"c", -1.0)] {
        index.set(key, Some(&[number]));
    }
    index.set(b"a", None);
    finish(&mut index);
    let mut out = Vec::new();
    assert_eq!(index.write_section(0, &mut Units::unlimited(), &mut out), None);
    #[rustfmt::skip]
    let golden = [
        2, 1, 4, SERVING, 4, 4, 1, 3,
        0, 1, 4, 1, b'a', 0, 0, 0x80, 0x3f, 1, 2, 1, 2,
        1, 2, 0, 1, b'b', 0, 0, 0, 0x40, 1, 2, 0, 2,
        1, 3, 0, 1, b'c', 0, 0, 0x80, 0xbf, 1, 2, 0, 1,
    ];
    assert_eq!(out, golden);
    let mut old = VectorIndex::new("v", 1, Metric::Dot);
    old.load_section(&[1, 1, 2, 1, b'a', 0, 0, 0x80, 0x3f, 1, b'b', 0, 0, 0, 0x40]).unwrap();
    old.finish_load().unwrap();
    assert_eq!((old.entries(), find(&[old], &[1.0], 1, 10)[0].key.to_vec()), (2, b"b".to_vec()));
}

const SERVING: u8 = 1;

#[test]
fn numbers_that_do_not_fit_are_not_indexed() {
    let mut index = VectorIndex::new("v", 2, Metric::Dot);
    for value in [
        "{\"v\":[1,2,3]}",
        "{\"v\":[1]}",
        "{\"v\":[1,\"2\"]}",
        "{\"v\":[1,1e39]}",
        "{\"v\":[]}",
        "{\"w\":[1,2]}",
        "{\"v\":null}",
        "[1,2]",
        "7",
        "{\"v\":[1,-1e400]}",
    ] {
        index.apply(b"k", Some(b"{\"v\":[1,2]}"));
        assert_eq!(index.entries(), 1);
        index.apply(b"k", Some(value.as_bytes()));
        assert_eq!(index.entries(), 0, "{value}");
    }
    index.apply(b"k", Some(b"{\"v\":[[1],{\"x\":2},2e0]}"));
    assert_eq!(index.entries(), 1, "nested arrays are transparent");
    assert!(VectorSearch::new(&index, &[1.0], 1).unwrap_err().contains("2 numbers; this one has 1"));
    assert!(VectorSearch::new(&index, &[1.0, f32::NAN], 1).is_err());
}

#[test]
fn long_vectors_do_not_overflow() {
    for metric in [Metric::Dot, Metric::Cosine, Metric::L2] {
        let mut index = VectorIndex::new("v", VECTOR_DIMENSIONS_MAX, metric);
        index.set_hnsw_from(1);
        let vector = vec![3.0e38f32; VECTOR_DIMENSIONS_MAX];
        let opposite: Vec<f32> = vector.iter().map(|number| -number).collect();
        index.apply(b"k", Some(json(&vector).as_bytes()));
        index.apply(b"l", Some(json(&opposite).as_bytes()));
        finish(&mut index);
        let hits = find(std::slice::from_ref(&index), &vector, 2, 1000);
        assert_eq!((hits.len(), &*hits[0].key), (2, &b"k"[..]));
        assert!(hits.iter().all(|hit| similarity_of(hit.score).is_finite()));
    }
}
