//! What the index engine costs and how well it ranks, in process.
//!
//! ```text
//! index_cost throughput FILE...        indexing speed, bytes and query latencies over WordNet data files or JSON lines
//! index_cost relevance DIR [SHARDS]    nDCG@10 of a collection: docs.jsonl, queries.jsonl, qrels.tsv
//! ```
//!
//! A measuring tool, not part of the server: it reads files and clocks, which the engine itself never does.
#![allow(clippy::print_stdout, clippy::disallowed_methods, clippy::disallowed_types)]

use serde::Deserialize;
use shards::index::Units;
use shards::index::analyze::{Analyzer, AnalyzerKind};
use shards::index::embed::built_in;
use shards::index::embed::search::EmbeddingSearch;
use shards::index::hybrid::{Fusion, HybridSearch, SimilaritySearch, candidates, fuse};
use shards::index::query::{CompiledQuery, parse};
use shards::index::text::search::{Model, Search, SearchHit, Stats, View, merge_hits};
use shards::index::text::{TextIndex, WHOLE};
use std::collections::HashMap;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Deserialize)]
struct Document {
    id: String,
    #[serde(default)]
    title: String,
    text: String,
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["throughput", ref files @ ..] if !files.is_empty() => throughput(files),
        ["relevance", directory] => relevance(Path::new(directory), 1),
        ["relevance", directory, shards] => relevance(Path::new(directory), shards.parse()?),
        _ => Err("index_cost throughput FILE... | relevance DIR [SHARDS]".into()),
    }
}

/// (key, JSON string) of a document a line.
fn read_documents(files: &[&str]) -> Outcome<Vec<(String, String)>> {
    let mut documents = Vec::new();
    for file in files {
        let name = Path::new(file).extension().and_then(|name| name.to_str()).unwrap_or("doc");
        for line in std::fs::read_to_string(file)?.lines() {
            if line.starts_with('{') {
                let document: Document = serde_json::from_str(line)?;
                let text = format!("{} {}", document.title, document.text);
                documents.push((document.id, serde_json::to_string(text.trim())?));
            } else if let Some((head, gloss)) = line.split_once(" | ").filter(|_| !line.starts_with("  ")) {
                let mut parts = head.split(' ');
                let offset = parts.next().unwrap_or("");
                let words: Vec<&str> = parts.skip(2).collect();
                let count = usize::from_str_radix(words.first().unwrap_or(&"0"), 16)?;
                let lemmas: Vec<String> =
                    words[1..].iter().step_by(2).take(count).map(|word| word.replace('_', " ")).collect();
                let text = format!("{} {}", lemmas.join(", "), gloss.trim());
                documents.push((format!("wn:{name}:{offset}"), serde_json::to_string(&text)?));
            }
        }
    }
    Ok(documents)
}

/// Middle, 999th thousandth and longest of the slices of background work. On a shared machine the longest are those in
/// which somebody else ran.
fn show_slices(name: &str, mut slices: Vec<Duration>) {
    slices.sort_unstable();
    let at = |part: usize| slices.get(slices.len() * part / 1000).copied().unwrap_or_default();
    let over = slices.iter().filter(|slice| **slice > Duration::from_millis(1)).count();
    println!(
        "{name}: {} slices, p50 {:?}, p99.9 {:?}, longest {:?}, {over} over 1 ms",
        slices.len(),
        at(500),
        at(999),
        slices.last()
    );
}

fn new_index() -> TextIndex {
    let mut index = TextIndex::new();
    assert!(index.add_field(WHOLE, AnalyzerKind::English));
    index
}

/// Indexes as the engine does: a document, then as many units of merging as it took.
fn fill(index: &mut TextIndex, documents: &[(String, String)], slices: &mut Vec<Duration>) {
    for (key, value) in documents {
        let mut units = Units::new(0);
        index.put(key.as_bytes(), value.as_bytes(), &mut units);
        if index.has_work() {
            let start = Instant::now();
            index.work(&mut Units::new(u32::try_from(-units.balance()).unwrap_or(0)));
            slices.push(start.elapsed());
        }
    }
}

fn throughput(files: &[&str]) -> Outcome<()> {
    let documents = read_documents(files)?;
    let text: usize = documents.iter().map(|(_, value)| value.len()).sum();
    let megabytes = text as f64 / 1e6;
    println!("{} documents, {megabytes:.1} MB", documents.len());

    for kind in [AnalyzerKind::Standard, AnalyzerKind::English] {
        let mut analyzer = Analyzer::new(kind);
        let (start, mut tokens) = (Instant::now(), 0u64);
        documents.iter().for_each(|(_, value)| {
            analyzer.analyze(value, |_| tokens += 1);
        });
        let seconds = start.elapsed().as_secs_f64();
        println!("analysis, {kind}: {tokens} tokens, {:.0} MB/s", megabytes / seconds);
    }

    let mut index = new_index();
    let mut slices = Vec::new();
    let start = Instant::now();
    fill(&mut index, &documents, &mut slices);
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "indexing with merging: {:.0} documents/s, {:.1} MB/s, {} parts",
        documents.len() as f64 / seconds,
        megabytes / seconds,
        index.parts()
    );
    show_slices("merging beside", slices);
    let start = Instant::now();
    let mut slices = Vec::new();
    while index.has_work() {
        let step = Instant::now();
        index.work(&mut Units::new(20_000));
        slices.push(step.elapsed());
    }
    println!("rest of merging: {:?}, {} parts", start.elapsed(), index.parts());
    show_slices("steps of 20,000 units", slices);
    let bytes = index.bytes();
    println!("index: {:.1} MB, {:.2} of the text", bytes as f64 / 1e6, bytes as f64 / text as f64);
    println!("{}", index.report());

    for (name, queries) in [
        ("one rare term", vec!["zebra", "xylophone", "quasar", "ptarmigan"]),
        ("one frequent term", vec!["genus", "person", "having", "act"]),
        ("two terms", vec!["chemical compound", "military officer", "small bird"]),
        ("three mixed", vec!["large african antelope", "state of mind", "musical wind instrument"]),
        ("phrase", vec!["\"musical instrument\"", "\"united states\"", "\"in the manner\""]),
        ("must and not", vec!["+genus -plant flower", "+person +act", "metal AND (gold OR silver)"]),
        ("prefix", vec!["electro*", "photo*", "anti*"]),
        ("fuzzy", vec!["elefant~1", "instrment~2"]),
        (
            "ten terms",
            vec![
                "a large animal living in the water of rivers and lakes with long tail and sharp teeth",
                "the act of making or doing something in order to change the state of a person or thing",
            ],
        ),
    ] {
        measure(&index, name, &queries);
    }
    measure_cosine(
        &index,
        "cosine, ten terms",
        "a large animal living in the water of rivers and lakes with long tail and sharp teeth",
    );
    updates(&mut index, &documents);
    Ok(())
}

fn run(view: View, query: &CompiledQuery, stats: &Stats, model: Model, limit: usize) -> Vec<SearchHit> {
    let mut search = Search::new(view, query, stats, model, limit).expect("the statistics are this query's");
    while !search.step(&mut Units::new(20_000), &mut |_| true) {}
    search.into_hits()
}

fn median(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

fn measure(index: &TextIndex, name: &str, queries: &[&str]) {
    let fields = index.query_fields();
    let mut times = Vec::new();
    let mut hits = 0;
    for round in 0..200 {
        let text = queries[round % queries.len()];
        let start = Instant::now();
        let query = CompiledQuery::new(&parse(text, &|_| false), &fields, &fields);
        let (view, stats) = index.pin(&query);
        hits += run(view, &query, &stats, Model::Bm25, 10).len();
        times.push(start.elapsed());
    }
    let (middle, high) = median(times);
    println!("{name:20} p50 {middle:?} p99 {high:?} ({hits} hits in all)");
}

fn measure_cosine(index: &TextIndex, name: &str, text: &str) {
    let field = index.whole_field().expect("the index has the field");
    let mut times = Vec::new();
    for _ in 0..100 {
        let start = Instant::now();
        let query = CompiledQuery::words(text, &field);
        let (view, stats) = index.pin(&query);
        run(view, &query, &stats, Model::Cosine, 10);
        times.push(start.elapsed());
    }
    let (middle, high) = median(times);
    println!("{name:20} p50 {middle:?} p99 {high:?}");
}

/// Writes and reads in turns: what a query costs while the index changes.
fn updates(index: &mut TextIndex, documents: &[(String, String)]) {
    let fields = index.query_fields();
    let mut times = Vec::new();
    let start = Instant::now();
    for (n, (key, value)) in documents.iter().step_by(5).take(20_000).enumerate() {
        let mut units = Units::new(0);
        index.put(key.as_bytes(), value.as_bytes(), &mut units);
        index.work(&mut Units::new(u32::try_from(-units.balance()).unwrap_or(0)));
        if n % 20 == 0 {
            let begin = Instant::now();
            let query = CompiledQuery::new(&parse("large african antelope", &|_| false), &fields, &fields);
            let (view, stats) = index.pin(&query);
            run(view, &query, &stats, Model::Bm25, 10);
            times.push(begin.elapsed());
        }
    }
    let count = documents.len().div_ceil(5).min(20_000);
    let rate = count as f64 / start.elapsed().as_secs_f64();
    let (middle, high) = median(times);
    println!(
        "updates with searches: {rate:.0} updates/s, three mixed p50 {middle:?} p99 {high:?}, {} parts",
        index.parts()
    );
}

fn relevance(directory: &Path, shards: usize) -> Outcome<()> {
    let read = |name: &str| std::fs::read_to_string(directory.join(name));
    let documents = read("docs.jsonl")?;
    let documents: Vec<Document> = documents.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let queries = read("queries.jsonl")?;
    let queries: Vec<Document> = queries.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let mut grades: HashMap<String, HashMap<String, f64>> = HashMap::new();
    for line in read("qrels.tsv")?.lines() {
        let parts: Vec<&str> = line.split('\t').collect();
        grades.entry(parts[0].to_owned()).or_default().insert(parts[1].to_owned(), parts[2].parse()?);
    }
    let mut indexes: Vec<TextIndex> = (0..shards).map(|_| new_index()).collect();
    indexes.iter_mut().for_each(|index| index.set_embedder(built_in()));
    for (n, document) in documents.iter().enumerate() {
        let text = format!("{} {}", document.title, document.text);
        let value = serde_json::to_string(text.trim())?;
        indexes[n % shards].put(document.id.as_bytes(), value.as_bytes(), &mut Units::unlimited());
        indexes[n % shards].work(&mut Units::new(20_000));
    }
    let fields = indexes[0].query_fields();
    for (name, model) in [("bm25", Model::Bm25), ("tfidf", Model::Cosine)] {
        let mut run = HashMap::new();
        for query in &queries {
            let compiled = match model {
                Model::Bm25 => CompiledQuery::new(&parse(&query.text, &|_| false), &fields, &fields),
                Model::Cosine => CompiledQuery::words(&query.text, &fields[0]),
            };
            run.insert(query.id.clone(), search_all(&indexes, &compiled, model));
        }
        println!("{name}: nDCG@10 {:.4}", ndcg(&run, &grades));
    }
    let hybrid = |fusion: Option<Fusion>| -> HashMap<String, Vec<String>> {
        queries.iter().map(|query| (query.id.clone(), search_hybrid(&indexes, &query.text, fusion))).collect()
    };
    println!("embedding: nDCG@10 {:.4}", ndcg(&hybrid(None), &grades));
    println!("hybrid convex: nDCG@10 {:.4}", ndcg(&hybrid(Some(Fusion::Convex { alpha: 0.2 })), &grades));
    println!("hybrid rrf: nDCG@10 {:.4}", ndcg(&hybrid(Some(Fusion::Rrf)), &grades));
    let text: usize = documents.iter().map(|document| document.title.len() + 1 + document.text.len()).sum();
    let bytes: usize = indexes.iter().map(TextIndex::bytes).sum();
    println!("index with vectors: {:.2} of the text", bytes as f64 / text as f64);
    Ok(())
}

/// Keys by fused score, or by embedding alone.
fn search_hybrid(indexes: &[TextIndex], text: &str, fusion: Option<Fusion>) -> Vec<String> {
    let fields = indexes[0].query_fields();
    let query = CompiledQuery::new(&parse(text, &|_| false), &fields, &fields);
    let pinned: Vec<(View, Stats)> = indexes.iter().map(|index| index.pin(&query)).collect();
    let mut stats = pinned[0].1.clone();
    pinned[1..]
        .iter()
        .for_each(|(_, more)| stats.merge(more, &query).expect("all shards have the same query"));
    let limit = candidates(0, 10);
    let lists = pinned.into_iter().map(|(view, _)| {
        let vector = built_in().embed_query(text);
        let near = EmbeddingSearch::new(view.clone(), vector, limit);
        let bm25 =
            Search::new(view, &query, &stats, Model::Bm25, limit).expect("the statistics are this query's");
        let mut search = HybridSearch::new(bm25, SimilaritySearch::Embedding(near));
        while !search.step(&mut Units::new(20_000), &mut |_| true) {}
        search.into_candidates()
    });
    let fusion_or_embedding = fusion.unwrap_or(Fusion::Convex { alpha: 1.0 });
    let hits = fuse(lists.collect(), fusion_or_embedding, 0, 10);
    hits.into_iter().map(|hit| String::from_utf8_lossy(&hit.key).into_owned()).collect()
}

fn search_all(indexes: &[TextIndex], query: &CompiledQuery, model: Model) -> Vec<String> {
    let pinned: Vec<(View, Stats)> = indexes.iter().map(|index| index.pin(query)).collect();
    let mut stats = pinned[0].1.clone();
    pinned[1..]
        .iter()
        .for_each(|(_, more)| stats.merge(more, query).expect("all shards have the same query"));
    let lists = pinned.into_iter().map(|(view, _)| run(view, query, &stats, model, 10)).collect();
    let hits = merge_hits(lists, 0, 10);
    hits.into_iter().map(|hit| String::from_utf8_lossy(&hit.key).into_owned()).collect()
}

/// nDCG@10 with linear gain, as trec_eval's `ndcg_cut`.
fn ndcg(run: &HashMap<String, Vec<String>>, grades: &HashMap<String, HashMap<String, f64>>) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for (query, relevant) in grades {
        let mut ideal: Vec<f64> = relevant.values().copied().filter(|grade| *grade > 0.0).collect();
        if ideal.is_empty() {
            continue;
        }
        ideal.sort_by(|a, b| b.total_cmp(a));
        let gain = |n: usize, grade: f64| grade / ((n + 2) as f64).log2();
        let best: f64 = ideal.iter().take(10).enumerate().map(|(n, grade)| gain(n, *grade)).sum();
        let found = run.get(query).map_or(&[][..], |hits| &hits[..]);
        let own: f64 = found
            .iter()
            .enumerate()
            .map(|(n, key)| gain(n, relevant.get(key).copied().unwrap_or(0.0).max(0.0)))
            .sum();
        sum += own / best;
        count += 1;
    }
    sum / f64::from(count)
}
