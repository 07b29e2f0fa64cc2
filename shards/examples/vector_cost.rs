//! What vectors cost: the flat scan with and without wide registers, the graph's building, recall and latency.
//!
//! `cargo run --release -p shards --example vector_cost [VECTORS] [DIMENSIONS] [METRIC]` (100,000 of 128, all metrics by
//! default). The data are made by a fixed generator: independent normal numbers, the hardest case there is, and 1,000 clusters,
//! which real embeddings are nearer to.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "it measures time, and says what it measured"
)]

use shards::index::Units;
use shards::index::extract::Walker;
use shards::index::filter::Filter;
use shards::index::filter_set::{FilterPlan, Verdict};
use shards::index::set::{DocumentSource, IndexDefinition, IndexKind, IndexSet};
use shards::index::vector::kernel::Kernel;
use shards::index::vector::{Metric, VectorIndex, VectorSearch, merge_vector_hits};
use std::time::Instant;

const QUERIES: usize = 200;

struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn normal(&mut self) -> f32 {
        (0..4).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5).sum()
    }

    fn vector(&mut self, dimensions: usize) -> Vec<f32> {
        (0..dimensions).map(|_| self.normal()).collect()
    }
}

/// A source of vectors: around so many centres, or around none.
struct Source {
    numbers: Numbers,
    centres: Vec<Vec<f32>>,
    dimensions: usize,
}

impl Source {
    fn new(clusters: usize, dimensions: usize) -> Self {
        let mut numbers = Numbers(11);
        let centres = (0..clusters).map(|_| numbers.vector(dimensions)).collect();
        Self { numbers, centres, dimensions }
    }

    fn vector(&mut self) -> Vec<f32> {
        let mut vector = self.numbers.vector(self.dimensions);
        if !self.centres.is_empty() {
            let centre = &self.centres[self.numbers.next() as usize % self.centres.len()];
            vector.iter_mut().zip(centre).for_each(|(number, centre)| *number = *number * 0.5 + centre);
        }
        vector
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (vectors, dimensions) = (number(100_000), number(128));
    let only = arguments.next().and_then(|name| Metric::from_name(&name));
    kernels(dimensions);
    filters();
    let metrics = [Metric::Cosine, Metric::L2, Metric::Dot];
    for metric in metrics.into_iter().filter(|metric| only.is_none_or(|only| only == *metric)) {
        for (name, clusters) in [("1,000 clusters", 1000), ("independent normal numbers", 0)] {
            println!("\n{name}, {}, {vectors} x {dimensions}", metric.name());
            compare(&mut Source::new(clusters, dimensions), metric, vectors, dimensions);
        }
    }
}

fn kernels(dimensions: usize) {
    let count = 4096;
    let query: Vec<i16> = (0..dimensions).map(|n| (n * 37 % 4000) as i16 - 2000).collect();
    let bytes: Vec<i8> = (0..dimensions * count).map(|n| (n * 31 % 255) as u8 as i8).collect();
    for (name, kernel) in [("plain", Kernel::scalar()), ("wide", Kernel::detect())] {
        let begun = Instant::now();
        let mut sum = 0i64;
        for _ in 0..50 {
            for document in bytes.chunks_exact(dimensions) {
                sum += i64::from(kernel.dot(std::hint::black_box(&query), document));
            }
        }
        let ns = begun.elapsed().as_nanos() as f64 / (50 * count) as f64;
        println!("dot product of {dimensions}, {name}: {ns:.1} ns (sum {sum})");
    }
}

/// No records: the index is defined before there are any.
struct Nothing;

impl DocumentSource for Nothing {
    fn value(&self, _: &[u8]) -> Option<&[u8]> {
        None
    }

    fn scan(&self, _: &[u8], _: usize, _: &mut dyn FnMut(&[u8], &[u8])) -> Option<Vec<u8>> {
        None
    }
}

/// What judging 100,000 documents by a filter costs, by their values and by bitmaps.
fn filters() {
    let mut set = IndexSet::default();
    set.define(IndexDefinition { path: "n".to_owned(), kind: IndexKind::Value });
    set.work(&mut Units::unlimited(), &Nothing);
    let text = "a few words that stand before the number, as they do in most documents, ".repeat(4);
    let documents: Vec<(String, String)> = (0..100_000u64)
        .map(|n| {
            let spread = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            (format!("key:{n}"), format!("{{\"t\":\"{text}\",\"n\":{}}}", spread % 1000))
        })
        .collect();
    for (key, value) in &documents {
        set.apply(key.as_bytes(), None, Some(value.as_bytes()));
    }
    for below in [10, 100, 500] {
        let json = format!("{{\"field\":\"n\",\"lt\":{below}}}");
        let filter = Filter::parse(&json).unwrap_or_else(|text| panic!("{text}"));
        let mut walker = Walker::default();
        let begun = Instant::now();
        let by_value =
            documents.iter().filter(|(_, value)| filter.matches(value.as_bytes(), &mut walker)).count();
        let value_us = begun.elapsed().as_secs_f64() * 1e6;
        let begun = Instant::now();
        let mut plan = FilterPlan::new(&filter, &set).unwrap_or_else(|| panic!("the field is indexed"));
        while !plan.step(&set, &mut Units::new(4096)) {}
        let found = plan.finish(&filter, &set).unwrap_or_else(|| panic!("the field is indexed"));
        let made_us = begun.elapsed().as_secs_f64() * 1e6;
        let begun = Instant::now();
        let by_set =
            documents.iter().filter(|(key, _)| found.judge(key.as_bytes(), &set) == Verdict::Meets).count();
        let set_us = begun.elapsed().as_secs_f64() * 1e6;
        assert_eq!(by_value, by_set);
        println!(
            "filter that {:.0}% of 100,000 pass: {value_us:.0} us by values; bitmap {made_us:.0} us to make, {set_us:.0} us to ask",
            by_set as f64 / 1000.0
        );
    }
}

fn compare(source: &mut Source, metric: Metric, vectors: usize, dimensions: usize) {
    let mut flat = VectorIndex::new("v", dimensions, metric);
    let mut graph = VectorIndex::new("v", dimensions, metric);
    flat.set_hnsw_from(usize::MAX);
    let all: Vec<Vec<f32>> = (0..vectors).map(|_| source.vector()).collect();
    for (n, vector) in all.iter().enumerate() {
        let value = format!("{{\"v\":{vector:?}}}");
        for index in [&mut flat, &mut graph] {
            index.apply(format!("key:{n}").as_bytes(), Some(value.as_bytes()));
        }
    }
    graph.set_hnsw_from(1);
    let begun = Instant::now();
    let (mut slice_max, mut slices) = (0.0f64, 0);
    while graph.has_work() {
        let slice = Instant::now();
        graph.work(&mut Units::new(2048));
        slice_max = slice_max.max(slice.elapsed().as_secs_f64());
        slices += 1;
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "graph: {:.0} vectors/s, {:.0} bytes a vector in all; {slices} slices, {:.0} us on average, {:.0} at most",
        vectors as f64 / seconds,
        graph.memory_bytes() as f64 / vectors as f64,
        seconds * 1e6 / f64::from(slices),
        slice_max * 1e6,
    );
    let queries: Vec<Vec<f32>> = (0..QUERIES).map(|_| source.vector()).collect();
    let exact: Vec<Vec<usize>> = queries.iter().map(|query| nearest(metric, &all, query)).collect();
    for (name, index) in [("flat", &flat), ("graph", &graph)] {
        let found = run(name, index, &queries);
        let has = |found: &[Box<[u8]>], n: &usize| found.contains(&format!("key:{n}").into_bytes().into());
        let of_query =
            |(exact, found): (&Vec<usize>, &Vec<Box<[u8]>>)| exact.iter().filter(|n| has(found, n)).count();
        let met: usize = exact.iter().zip(&found).map(of_query).sum();
        println!("recall@10 against exact: {:.4}", met as f64 / (QUERIES * 10) as f64);
    }
}

/// The numbers of the ten nearest vectors, by all bits of their numbers.
fn nearest(metric: Metric, all: &[Vec<f32>], query: &[f32]) -> Vec<usize> {
    let dot = |left: &[f32], right: &[f32]| -> f64 {
        left.iter().zip(right).map(|(left, right)| f64::from(*left) * f64::from(*right)).sum()
    };
    let closeness = |vector: &Vec<f32>| match metric {
        Metric::Dot => dot(query, vector),
        Metric::Cosine => dot(query, vector) / dot(vector, vector).sqrt(),
        Metric::L2 => 2.0 * dot(query, vector) - dot(vector, vector),
    };
    let mut closest: Vec<(f64, usize)> =
        all.iter().enumerate().map(|(n, vector)| (closeness(vector), n)).collect();
    closest.sort_by(|a, b| b.0.total_cmp(&a.0));
    closest.iter().take(10).map(|(_, n)| *n).collect()
}

fn run(name: &str, index: &VectorIndex, queries: &[Vec<f32>]) -> Vec<Vec<Box<[u8]>>> {
    let mut times = Vec::new();
    let mut all = Vec::new();
    for query in queries {
        let begun = Instant::now();
        let mut search = VectorSearch::new(index, query, 10).unwrap_or_else(|text| panic!("{text}"));
        while !search.step(index, &mut Units::new(4096), &mut |_| true) {}
        let hits = merge_vector_hits(vec![search.into_hits(index)], 10);
        times.push(begun.elapsed().as_secs_f64() * 1e6);
        all.push(hits.into_iter().map(|hit| hit.key[..].into()).collect());
    }
    times.sort_by(f64::total_cmp);
    println!("{name}: p50 {:.0} us, p99 {:.0} us", times[times.len() / 2], times[times.len() * 99 / 100]);
    all
}
