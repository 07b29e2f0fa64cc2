//! The text index against a brute-force scorer: random documents, updates and deletes, every form of query, one shard and
//! several, small budgets, pinned views.

use super::score::{Norm, Weigher, bm25_idf, cosine_idf, document_weight, to_fixed};
use super::search::{Model, Search, SearchHit, Stats, View, merge_hits};
use super::{TextIndex, WHOLE};
use crate::index::Units;
use crate::index::analyze::{Analyzer, AnalyzerKind};
use crate::index::extract::{STRING_GAP, Scalar, Walker, is_within};
use crate::index::query::compile::Clause;
use crate::index::query::{CompiledQuery, QueryField, parse};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A small generator (Marsaglia's xorshift), so that a case is its seed.
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    /// Skewed: low numbers are frequent.
    fn word(&mut self) -> String {
        let n = self.below(40).min(self.below(40));
        let letters = ["a", "be", "cat", "dogs", "eel", "cats", "bet", "car", "care", "dog"];
        format!("{}{}", letters[(n % 10) as usize], ["", "x", "yz", "q"][(n / 10) as usize])
    }

    fn text(&mut self, words: u64) -> String {
        let words: Vec<String> = (0..self.below(words)).map(|_| self.word()).collect();
        words.join(" ")
    }

    pub(super) fn value(&mut self) -> String {
        match self.below(6) {
            0 => format!("{{\"t\":\"{}\",\"b\":[\"{}\",\"{}\"]}}", self.text(4), self.text(9), self.text(5)),
            1 => format!("{{\"t\":{{\"u\":\"{}\"}}}}", self.text(6)),
            2 => "42".to_owned(),
            3 => format!("\"{}\"", self.text(60)),
            _ => format!("\"{}\"", self.text(12)),
        }
    }

    fn query(&mut self) -> String {
        let word = self.word();
        match self.below(14) {
            0 => word,
            1 => format!("\"{} {}\"", word, self.word()),
            2 => format!("\"{} {} {}\"~{}", word, self.word(), self.word(), self.below(5)),
            3 => format!("+{} -{} {}", word, self.word(), self.word()),
            4 => format!("{} AND ({} OR {})", word, self.word(), self.word()),
            5 => format!("t:{} {}", word, self.word()),
            6 => format!("{}*", &word[..1]),
            7 => format!("{word}~1 {}~2", self.word()),
            8 => format!("{word}^2.5 {} {word}", self.word()),
            9 => format!("{word} AND NOT {}", self.word()),
            10 => format!("t:\"{} {}\" +{}*", word, self.word(), &self.word()[..1]),
            11 => (0..80).map(|_| self.word()).collect::<Vec<_>>().join(" "),
            12 => format!("(+{word} +{}) OR nowhere", self.word()),
            _ => self.text(8),
        }
    }
}

pub(super) fn fields() -> Vec<QueryField> {
    let field = |path: &str, analyzer| QueryField { path: path.to_owned(), analyzer };
    vec![field(WHOLE, AnalyzerKind::English), field("t", AnalyzerKind::Standard)]
}

type Tokens = Vec<(Vec<u8>, u32)>;

fn tokens(value: &str, field: &QueryField) -> Tokens {
    let mut tokens = Vec::new();
    let mut base = 0;
    Walker::default().walk(value.as_bytes(), |path, scalar| {
        let Scalar::String(text) = scalar else { return };
        if field.path == WHOLE || is_within(path, field.path.as_bytes()) {
            let mut analyzer = Analyzer::for_query(field.analyzer);
            let used = analyzer
                .analyze(text, |token| tokens.push((token.term.as_bytes().to_vec(), base + token.position)));
            base += if used > 0 { used + STRING_GAP } else { 0 };
        }
    });
    tokens
}

/// All documents, by field.
struct Brute {
    documents: BTreeMap<Vec<u8>, Vec<Tokens>>,
    fields: Vec<QueryField>,
    totals: Vec<(u64, u64)>,
    frequencies: Vec<BTreeMap<Vec<u8>, u64>>,
}

impl Brute {
    fn new(documents: &BTreeMap<Vec<u8>, String>) -> Self {
        let fields = fields();
        let documents = documents
            .iter()
            .map(|(key, value)| (key.clone(), fields.iter().map(|field| tokens(value, field)).collect()));
        let documents: BTreeMap<Vec<u8>, Vec<Tokens>> = documents.collect();
        let mut totals = vec![(0, 0); fields.len()];
        let mut frequencies = vec![BTreeMap::new(); fields.len()];
        for (n, tokens) in documents.values().flat_map(|document| document.iter().enumerate()) {
            totals[n].0 += u64::from(!tokens.is_empty());
            totals[n].1 += tokens.len() as u64;
            let terms: std::collections::BTreeSet<&Vec<u8>> = tokens.iter().map(|token| &token.0).collect();
            terms.into_iter().for_each(|term| *frequencies[n].entry(term.clone()).or_default() += 1);
        }
        Self { documents, fields, totals, frequencies }
    }

    fn field(&self, path: &str) -> usize {
        self.fields.iter().position(|field| field.path == path).unwrap()
    }

    fn totals(&self, field: usize) -> (u64, u64) {
        self.totals[field]
    }

    fn frequency(&self, field: usize, term: &[u8]) -> u64 {
        self.frequencies[field].get(term).copied().unwrap_or(0)
    }

    fn expanded(&self, field: usize, word: &str, edits: u8, limit: usize) -> Vec<(u8, Vec<u8>)> {
        let mut terms: Vec<(u8, Vec<u8>)> = Vec::new();
        for term in self.frequencies[field].keys() {
            let text = std::str::from_utf8(term).unwrap();
            let distance = match edits {
                0 if text.starts_with(word) => 0,
                0 => continue,
                _ => super::levenshtein::distance(word, text),
            };
            if distance <= edits {
                terms.push((distance, term.clone()));
            }
        }
        terms.sort();
        terms.dedup();
        terms.truncate(limit);
        terms
    }

    fn search(&self, query: &CompiledQuery) -> Vec<SearchHit> {
        let scored = self.documents.iter().filter_map(|(key, document)| {
            Some(SearchHit::new(self.score(query, &query.root, document)?, key))
        });
        let mut hits: Vec<SearchHit> = scored.collect();
        hits.sort();
        hits
    }

    fn weigher(&self, field: usize, weight: f64) -> Weigher {
        let (documents, total) = self.totals(field);
        Weigher::bm25(weight, documents, total)
    }

    fn score(&self, query: &CompiledQuery, clause: &Clause, document: &[Tokens]) -> Option<i64> {
        let idf = |leaf: usize| {
            let leaf = &query.leaves[leaf];
            let field = self.field(&query.fields[leaf.field].path);
            (field, bm25_idf(self.totals(field).0, self.frequency(field, &leaf.term)))
        };
        let count =
            |field: usize, term: &[u8]| document[field].iter().filter(|token| token.0 == term).count() as f64;
        match clause {
            Clause::Nothing => None,
            Clause::Term { leaf, boost } => {
                let (field, idf) = idf(*leaf);
                let frequency = count(field, &query.leaves[*leaf].term);
                let weigher = self.weigher(field, boost * idf);
                (frequency > 0.0).then(|| weigher.by_length(frequency, document[field].len() as u32))
            }
            Clause::Phrase { terms, slop, boost } => {
                let field = idf(terms[0].0).0;
                let weight: f64 = terms.iter().map(|(leaf, _)| idf(*leaf).1).sum();
                let lists: Vec<Vec<i64>> = terms
                    .iter()
                    .map(|(leaf, offset)| {
                        let term = &query.leaves[*leaf].term;
                        document[field]
                            .iter()
                            .filter(|token| token.0 == *term)
                            .map(|token| i64::from(token.1) - i64::from(*offset))
                            .collect()
                    })
                    .collect();
                let frequency = phrase_frequency(&lists, terms, i64::from(*slop));
                let weigher = self.weigher(field, boost * weight);
                (frequency > 0.0).then(|| weigher.by_length(frequency, document[field].len() as u32))
            }
            Clause::Expansion { expansion, boost } => {
                let sought = &query.expansions[*expansion];
                let field = self.field(&query.fields[sought.field].path);
                let terms = self.expanded(field, &sought.word, sought.edits, sought.limit());
                if sought.edits == 0 {
                    return terms.iter().any(|term| count(field, &term.1) > 0.0).then(|| to_fixed(*boost));
                }
                let highest = terms.iter().map(|term| self.frequency(field, &term.1)).max().unwrap_or(0);
                let idf = bm25_idf(self.totals(field).0, highest);
                let mut score = None;
                for (edits, term) in &terms {
                    let frequency = count(field, term);
                    let length = std::str::from_utf8(term)
                        .unwrap()
                        .chars()
                        .count()
                        .min(sought.word.chars().count())
                        .max(1);
                    let closeness = (1.0 - f64::from(*edits) / length as f64).max(0.1);
                    if frequency > 0.0 {
                        let weigher = self.weigher(field, boost * closeness * idf);
                        *score.get_or_insert(0) += weigher.by_length(frequency, document[field].len() as u32);
                    }
                }
                score
            }
            Clause::Bool { must, should, must_not } => {
                if must_not.iter().any(|clause| self.score(query, clause, document).is_some()) {
                    return None;
                }
                let mut score = 0;
                for clause in must {
                    score += self.score(query, clause, document)?;
                }
                let optional: Vec<i64> =
                    should.iter().filter_map(|clause| self.score(query, clause, document)).collect();
                (!must.is_empty() || !optional.is_empty()).then(|| score + optional.iter().sum::<i64>())
            }
        }
    }

    fn cosine(&self, query: &CompiledQuery) -> Vec<SearchHit> {
        let clauses = match &query.root {
            Clause::Bool { should, .. } => should.clone(),
            single => vec![single.clone()],
        };
        let documents = self.totals(0).0;
        let weights: Vec<(Vec<u8>, f64)> = clauses
            .iter()
            .filter_map(|clause| match clause {
                Clause::Term { leaf, boost } => {
                    let term = query.leaves[*leaf].term.clone();
                    let idf = cosine_idf(documents, self.frequency(0, &term));
                    Some((term, document_weight(*boost as u32) * idf))
                }
                _ => None,
            })
            .collect();
        let norm = weights.iter().map(|weight| weight.1 * weight.1).sum::<f64>().sqrt();
        let scored = self.documents.iter().filter_map(|(key, document)| {
            let mut counts: BTreeMap<&[u8], u32> = BTreeMap::new();
            document[0].iter().for_each(|token| *counts.entry(&token.0).or_default() += 1);
            let mut own = Norm::default();
            counts.values().for_each(|count| own.add(*count));
            let parts: Vec<i64> = weights
                .iter()
                .filter(|weight| weight.1 > 0.0)
                .filter_map(|(term, weight)| {
                    let frequency = *counts.get(&term[..])?;
                    Some(Weigher::cosine(weight / norm).by_norm(frequency, own.value()))
                })
                .collect();
            (!parts.is_empty()).then(|| SearchHit::new(parts.iter().sum(), key))
        });
        let mut hits: Vec<SearchHit> = scored.collect();
        hits.sort();
        hits
    }
}

/// 1 / (1 + distance) for each minimal window of positions, as the two-pointer walk finds them.
fn phrase_frequency(lists: &[Vec<i64>], terms: &[(usize, u32)], slop: i64) -> f64 {
    let mut at = vec![0; lists.len()];
    let mut frequency = 0.0;
    loop {
        let Some(here) =
            lists.iter().zip(&at).map(|(list, at)| list.get(*at).copied()).collect::<Option<Vec<i64>>>()
        else {
            return frequency;
        };
        let (low, high) = (*here.iter().min().unwrap(), *here.iter().max().unwrap());
        let mut places: Vec<i64> =
            here.iter().zip(terms).map(|(place, term)| place + i64::from(term.1)).collect();
        places.sort_unstable();
        places.dedup();
        if high - low <= slop && places.len() == here.len() {
            frequency += 1.0 / (1 + high - low) as f64;
        }
        at[here.iter().position(|place| *place == low).unwrap()] += 1;
    }
}

pub(super) fn empty_index(tail_documents_max: usize) -> TextIndex {
    let mut index = TextIndex::new();
    index.tail_documents_max = tail_documents_max;
    for field in fields() {
        assert!(index.add_field(&field.path, field.analyzer));
    }
    index
}

pub(super) fn run(
    view: View,
    query: &CompiledQuery,
    stats: &Stats,
    model: Model,
    limit: usize,
    budget: u32,
) -> Vec<SearchHit> {
    let mut search = Search::new(view, query, stats, model, limit).unwrap();
    let mut steps = 0;
    while !search.step_trusting(&mut Units::new(budget), &mut |_| true) {
        steps += 1;
        assert!(steps < 100_000, "a search comes to its end");
    }
    search.into_hits()
}

/// A filter on keys, judged as documents come and in the end, comes to the same.
fn check_filter(index: &TextIndex, query: &CompiledQuery, expected: &[SearchHit], limit: usize, budget: u32) {
    let mut accept = |key: &[u8]| key.iter().map(|byte| u32::from(*byte)).sum::<u32>() % 4 != 0;
    let kept = expected.iter().filter(|hit| accept(&hit.key)).take(limit).cloned();
    let kept: Vec<SearchHit> = kept.collect();
    for is_trusting in [false, true] {
        let (view, stats) = index.pin(query);
        let mut search = Search::new(view, query, &stats, Model::Bm25, limit).unwrap();
        let mut step = |units: &mut Units| match is_trusting {
            true => search.step_trusting(units, &mut accept),
            false => search.step(units, &mut accept),
        };
        while !step(&mut Units::new(budget)) {}
        assert_eq!(search.into_hits(), kept, "trusting: {is_trusting}");
    }
}

fn gather(shards: &[TextIndex], query: &CompiledQuery) -> (Vec<View>, Stats) {
    let pinned: Vec<(View, Stats)> = shards.iter().map(|shard| shard.pin(query)).collect();
    let mut sum = pinned[0].1.clone();
    for (_, stats) in &pinned[1..] {
        let mut bytes = Vec::new();
        stats.encode(&mut bytes);
        sum.merge(&Stats::decode(&bytes).unwrap(), query).unwrap();
    }
    (pinned.into_iter().map(|(view, _)| view).collect(), sum)
}

fn search_all(
    shards: &[TextIndex],
    query: &CompiledQuery,
    model: Model,
    limit: usize,
    budget: u32,
) -> Vec<SearchHit> {
    let (views, stats) = gather(shards, query);
    let lists = views.into_iter().map(|view| run(view, query, &stats, model, limit, budget)).collect();
    merge_hits(lists, 0, limit)
}

fn check(seed: u64, operations: usize, keys: u64, tail_documents_max: usize, queries: usize) {
    let mut chance = Chance(seed | 1);
    let mut model: BTreeMap<Vec<u8>, String> = BTreeMap::new();
    let mut single = vec![empty_index(tail_documents_max)];
    let mut several: Vec<TextIndex> = (0..3).map(|n| empty_index(tail_documents_max + n)).collect();
    for _ in 0..operations {
        let key = format!("k{}", chance.below(keys)).into_bytes();
        let shard = (key[key.len() - 1] % 3) as usize;
        let units = &mut Units::unlimited();
        if chance.below(4) == 0 {
            let existed = model
                .remove(&key)
                .is_some_and(|value| fields().iter().any(|f| !tokens(&value, f).is_empty()));
            assert_eq!(single[0].remove(&key, units), existed);
            several[shard].remove(&key, units);
        } else {
            // Some lengths do not fit a byte.
            let value = match chance.below(25) {
                0 => format!("\"{}\"", chance.text(700)),
                _ => chance.value(),
            };
            single[0].put(&key, value.as_bytes(), units);
            several[shard].put(&key, value.as_bytes(), units);
            model.insert(key, value);
        }
        let budget = chance.below(400) as u32;
        single[0].work(&mut Units::new(budget));
        several[shard].work(&mut Units::new(budget / 2));
    }
    let brute = Brute::new(&model);
    for _ in 0..queries {
        let text = chance.query();
        let known = fields();
        let targets = if chance.below(3) == 0 { &known[..] } else { &known[..1] };
        let query = CompiledQuery::new(&parse(&text, &|name| name == "t"), targets, &known);
        let limit = [1, 3, 10, 1000][chance.below(4) as usize];
        let budget = [10, 200, 1_000_000][chance.below(3) as usize];
        let mut expected = brute.search(&query);
        let (_, stats) = gather(&single, &query);
        for (n, field) in query.fields.iter().enumerate() {
            let totals = brute.totals(brute.field(&field.path));
            assert_eq!((stats.fields[n].documents, stats.fields[n].total_length), totals);
        }
        for (n, leaf) in query.leaves.iter().enumerate() {
            let field = brute.field(&query.fields[leaf.field].path);
            assert_eq!(stats.document_frequencies[n], brute.frequency(field, &leaf.term));
        }
        assert_eq!(gather(&several, &query).1, stats, "{text}");
        check_filter(&single[0], &query, &expected, limit, budget);
        expected.truncate(limit);
        assert_eq!(search_all(&single, &query, Model::Bm25, limit, budget), expected, "{text}");
        assert_eq!(search_all(&several, &query, Model::Bm25, limit, budget), expected, "{text}");
        let words = CompiledQuery::words(&text, &known[0]);
        let mut expected = brute.cosine(&words);
        expected.truncate(limit);
        assert_eq!(search_all(&single, &words, Model::Cosine, limit, budget), expected, "{text}");
        assert_eq!(search_all(&several, &words, Model::Cosine, limit, budget), expected, "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn searches_agree_with_brute_force(seed in any::<u64>(), operations in 1usize..250, keys in 1u64..120, tail in 1usize..40) {
        check(seed, operations, keys, tail, 12);
    }
}

#[test]
fn long_lists_agree_with_brute_force() {
    for seed in 1..4 {
        check(seed * 0x9e37_79b9, 3000, 2500, 200 * seed as usize, 60);
    }
}

#[test]
fn a_view_does_not_see_what_comes_later() {
    let mut chance = Chance(77);
    let known = fields();
    let query = CompiledQuery::new(&parse("cat dogs a*", &|_| false), &known[..1], &known);
    let mut index = empty_index(50);
    let mut pinned = Vec::new();
    for round in 0..40 {
        for _ in 0..30 {
            let key = format!("k{}", chance.below(300));
            index.put(key.as_bytes(), chance.value().as_bytes(), &mut Units::unlimited());
            index.remove(format!("k{}", chance.below(300)).as_bytes(), &mut Units::unlimited());
            index.work(&mut Units::new(3000));
        }
        let (view, stats) = index.pin(&query);
        let now = run(view.clone(), &query, &stats, Model::Bm25, 500, 1000);
        pinned.push((view, stats, now));
        if round % 7 == 6 {
            for (view, stats, then) in pinned.drain(..) {
                assert!(!then.is_empty());
                assert_eq!(run(view, &query, &stats, Model::Bm25, 500, 1000), then);
            }
        }
    }
    while index.has_work() {
        index.work(&mut Units::new(500));
    }
    assert!(index.parts() < 8, "{}", index.parts());
    assert!(index.parts.forwards.is_empty());
}

#[test]
fn removing_everything_leaves_nothing() {
    let mut chance = Chance(5);
    let mut index = empty_index(20);
    for n in 0..500 {
        index.put(format!("k{n}").as_bytes(), chance.value().as_bytes(), &mut Units::unlimited());
        index.work(&mut Units::new(100));
    }
    for n in 0..500 {
        index.remove(format!("k{n}").as_bytes(), &mut Units::unlimited());
    }
    assert_eq!(index.documents(), 0);
    assert!(index.fields.iter().all(|field| field.documents == 0 && field.total_length == 0));
    // One tail stays until it is full; sealing it by force shows that nothing else is kept.
    index.seal_tail();
    while index.has_work() {
        index.work(&mut Units::new(100));
    }
    let ids = (0..index.dictionary.id_end()).filter(|id| index.dictionary.get(*id).is_some()).count();
    let left: u32 = index.parts.list.iter().map(|part| part.body.documents()).sum();
    assert!(ids == 0 || left > 0, "{ids} terms for {left} documents");
}

#[test]
fn golden_statistics() {
    let stats = Stats {
        fields: vec![super::search::FieldStats { documents: 300, total_length: 5 }],
        document_frequencies: vec![1, 0],
        expansions: vec![vec![super::search::ExpandedTerm {
            edits: 1,
            term: b"ab".to_vec(),
            document_frequency: 2,
        }]],
    };
    let mut bytes = Vec::new();
    stats.encode(&mut bytes);
    assert_eq!(bytes, [1, 1, 0xac, 2, 5, 2, 1, 0, 1, 1, 1, 2, b'a', b'b', 2]);
    assert_eq!(Stats::decode(&bytes), Ok(stats));
    for length in 0..bytes.len() {
        assert!(Stats::decode(&bytes[..length]).is_err());
    }
}

/// Two required words, whichever leads: the best few are the first of all.
#[test]
fn pairs_of_required_words_lose_nothing_to_the_sieve() {
    let mut index = TextIndex::new();
    assert!(index.add_field(super::WHOLE, crate::index::analyze::AnalyzerKind::Standard));
    for n in 0..6000u32 {
        let (rare, often) = if n % 7 == 0 { (1 + n % 5, 1 + n % 6) } else { (n % 2 * 2, n % 3) };
        let words = [("alpha ", rare), ("beta ", often), ("filler ", n % 40)];
        let text: String = words.iter().map(|(word, count)| word.repeat(*count as usize)).collect();
        index.put(format!("k{n:05}").as_bytes(), format!("\"{text}\"").as_bytes(), &mut Units::new(0));
    }
    while index.has_work() {
        index.work(&mut Units::new(20_000));
    }
    for text in ["+alpha +beta", "+beta +alpha"] {
        let fields = index.query_fields();
        let query = CompiledQuery::new(&crate::index::query::parse(text, &|_| false), &fields, &fields);
        let best = |limit: usize| {
            let (view, stats) = index.pin(&query);
            let mut search = Search::new(view, &query, &stats, Model::Bm25, limit).unwrap();
            while !search.step(&mut Units::new(4096), &mut |_| true) {}
            search.into_hits()
        };
        assert_eq!(best(10), best(10_000)[..10], "{text}");
    }
}
