//! The same documents over 1, 2 and 8 shards, after a random history of writes, updates and deletes: every form of search
//! gives the same keys, in the same order, with the same scores to the last bit.
//!
//! Each shard has all its indexes and works them in slices of chance between writes, so that no two have the same parts. What
//! a shard answers is made of the same calls as in `shard/searches`; the router's side is the one that ships.

use super::search::{self, Ask, SCORE, Scoring, Search};
use super::topology::Topology;
use super::{Call, Step};
use crate::batch::ReplyKind;
use crate::command::record::{Op, Record};
use crate::index::Units;
use crate::index::analyze::AnalyzerKind;
use crate::index::embed::search::EmbeddingSearch;
use crate::index::extract::Walker;
use crate::index::filter::Filter;
use crate::index::hybrid::{Fusion, HybridSearch, SimilaritySearch, candidates, encode_candidates};
use crate::index::set::{DocumentSource, IndexDefinition, IndexKind, IndexSet, whole_text};
use crate::index::text::WHOLE;
use crate::index::text::search::{Model, Search as TextSearch};
use crate::index::vector::{Metric, VectorSearch};
use std::collections::BTreeMap;

/// Marsaglia's xorshift, so that a case is its seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    /// Low words are frequent.
    fn word(&mut self) -> &'static str {
        const WORDS: [&str; 20] = [
            "river",
            "boat",
            "doctor",
            "music",
            "school",
            "engine",
            "piano",
            "teacher",
            "tree",
            "bear",
            "boats",
            "doctors",
            "teach",
            "riverside",
            "physician",
            "fox",
            "musical",
            "größe",
            "東京",
            "bears",
        ];
        WORDS[self.below(20).min(self.below(20)) as usize]
    }

    fn text(&mut self, words: u64) -> String {
        (0..=self.below(words)).map(|_| self.word()).collect::<Vec<_>>().join(" ")
    }

    fn value(&mut self) -> String {
        let (title, body, n) = (self.text(3), self.text(30), self.below(20));
        let vector: Vec<f64> = (0..3).map(|_| self.below(400) as f64 / 20.0 - 10.0).collect();
        match self.below(8) {
            0 => format!("\"{body}\""),
            1 => n.to_string(),
            2 => format!("{{\"body\":[\"{body}\",\"{title}\"],\"v\":[1]}}"),
            _ => format!(
                "{{\"title\":\"{title}\",\"body\":\"{body}\",\"n\":{n},\"m\":{},\"v\":{vector:?}}}",
                n % 3
            ),
        }
    }
}

#[derive(Default)]
struct Records(BTreeMap<Vec<u8>, String>);

impl DocumentSource for Records {
    fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.0.get(key).map(String::as_bytes)
    }

    fn scan(&self, cursor: &[u8], limit: usize, each: &mut dyn FnMut(&[u8], &[u8])) -> Option<Vec<u8>> {
        let after = self.0.range(cursor.to_vec()..).filter(|(key, _)| &key[..] != cursor);
        let page: Vec<_> = after.take(limit).collect();
        page.iter().for_each(|(key, value)| each(key, value.as_bytes()));
        (page.len() == limit).then(|| page[limit - 1].0.clone())
    }
}

#[derive(Default)]
struct Shard {
    set: IndexSet,
    records: Records,
}

struct Database {
    topology: Topology,
    shards: Vec<Shard>,
}

impl Database {
    fn new(groups: u16) -> Self {
        let topology = Topology::even(groups);
        let shards = (0..topology.groups()).map(|_| Shard::default()).collect();
        Self { topology, shards }
    }

    fn define(&mut self) {
        let text = |path: &str, analyzer| IndexDefinition {
            path: path.to_owned(),
            kind: IndexKind::Text { analyzer },
        };
        let vector = |metric| IndexDefinition {
            path: "v".to_owned(),
            kind: IndexKind::Vector { dimensions: 3, metric },
        };
        for shard in &mut self.shards {
            shard.set.define(whole_text());
            shard.set.define(text("title", AnalyzerKind::Standard));
            shard.set.define(text("body", AnalyzerKind::English));
            shard.set.define(IndexDefinition { path: WHOLE.to_owned(), kind: IndexKind::Embedding });
            shard.set.define(IndexDefinition { path: "n".to_owned(), kind: IndexKind::Value });
            shard.set.define(vector(Metric::L2));
        }
    }

    /// Writes (or deletes) on the key's shard, which then works a little.
    fn write(&mut self, key: &str, value: Option<&str>, units: u32) {
        let group = self.topology.group_of(key.as_bytes()).0 as usize;
        let Shard { set, records } = &mut self.shards[group];
        let old = records.0.remove(key.as_bytes());
        set.apply(key.as_bytes(), old.as_deref().map(str::as_bytes), value.map(str::as_bytes));
        records.0.extend(value.map(|value| (key.as_bytes().to_vec(), value.to_owned())));
        set.work(&mut Units::new(units), records);
    }

    /// Indexes what waits, but leaves merges where they are.
    fn catch_up(&mut self) {
        for Shard { set, records } in &mut self.shards {
            while set.backlog_len() > 0
                || set.list().iter().any(|info| info.state != crate::index::set::BuildState::Ready)
            {
                set.work(&mut Units::new(64), records);
            }
        }
    }

    fn answer(&self, ask: &Ask, call: &Call) -> Vec<u8> {
        let Shard { set, records } = &self.shards[call.group.0 as usize];
        let record = Record::decode(&call.record).unwrap();
        let filter = std::str::from_utf8(&ask.filter).unwrap();
        let filter = (!filter.is_empty()).then(|| Filter::parse(filter).unwrap());
        let mut walker = Walker::default();
        let mut accept = |key: &[u8]| {
            filter.as_ref().is_none_or(|filter| filter.matches(records.value(key).unwrap(), &mut walker))
        };
        let budget = || Units::new(200);
        let mut out = Vec::new();
        if let Scoring::Vector { path, vector } = &ask.scoring {
            let index = set.vectors(path).unwrap();
            let mut search = VectorSearch::new(index, vector, ask.limit as usize).unwrap();
            while !search.step(index, &mut budget(), &mut accept) {}
            search.into_hits(index).iter().for_each(|hit| search::write_vector_hit(&mut out, hit));
            return out;
        }
        let text = set.text().unwrap();
        let known = text.query_fields();
        let queries = ask.compile(&known).unwrap();
        let (views, own): (Vec<_>, Vec<_>) = queries.iter().map(|query| text.pin(query)).unzip();
        if record.op == Op::SearchStats {
            search::write_stats(&mut out, 7, &known, &own);
            return out;
        }
        assert!(record.op == Op::SearchHits && record.value[0] == SCORE);
        let stats = search::read_all_stats(&record.value[1..]).unwrap();
        let limit = ask.limit as usize;
        let words = |n: usize, model| {
            TextSearch::new(views[n].clone(), &queries[n], &stats[n], model, limit).unwrap()
        };
        let embedding = || EmbeddingSearch::new(views[0].clone(), set.model().embed_query(&ask.query), limit);
        let hits = match &ask.scoring {
            Scoring::Bm25 | Scoring::Cosine => {
                let model = if ask.scoring == Scoring::Bm25 { Model::Bm25 } else { Model::Cosine };
                let mut search = words(0, model);
                while !search.step(&mut budget(), &mut accept) {}
                search.into_hits()
            }
            Scoring::Embedding => {
                let mut search = embedding();
                while !search.step(&mut budget(), &mut accept) {}
                search.into_hits()
            }
            Scoring::Hybrid { has_embedding, .. } => {
                let similarity = match has_embedding {
                    true => SimilaritySearch::Embedding(embedding()),
                    false => SimilaritySearch::Cosine(words(1, Model::Cosine)),
                };
                let mut search = HybridSearch::new(words(0, Model::Bm25), similarity);
                while !search.step(&mut budget(), &mut accept) {}
                encode_candidates(&search.into_candidates(), &mut out);
                return out;
            }
            Scoring::Vector { .. } => unreachable!("answered above"),
        };
        hits.iter().for_each(|hit| search::write_hit(&mut out, hit));
        out
    }

    /// The reply's members; scores are written so that equal text means equal bits.
    fn search(&self, ask: &Ask, offset: u64, top_k: u64) -> String {
        let (mut gather, mut step) = Search::start(&self.topology, ask.clone(), offset, top_k, 0);
        let mut open: Vec<Call> = Vec::new();
        loop {
            match step {
                Step::Calls(calls) => open.extend(calls),
                Step::Wait => {}
                Step::Done { members, .. } => return String::from_utf8(members).unwrap(),
            }
            let call = open.pop().expect("a gather that waits has calls under way");
            step = gather.part(call.number, ReplyKind::Part, &self.answer(ask, &call));
        }
    }
}

fn asks(chance: &mut Chance) -> Vec<Ask> {
    let ask = |scoring: Scoring, query: &str| {
        let is_hybrid = matches!(scoring, Scoring::Hybrid { .. });
        let limit = if is_hybrid { candidates(0, 40) as u32 } else { 40 };
        let (query, filter) = (query.to_owned(), Vec::new());
        Ask { scoring, limit, with_values: false, highlight: false, query, fields: Vec::new(), filter }
    };
    let (a, b, c) = (chance.word(), chance.word(), chance.word());
    let free = chance.text(12);
    let mut asks = Vec::new();
    for query in [
        a,
        &format!("{a} {b} {c}"),
        &free,
        &format!("\"{a} {b}\""),
        &format!("\"{a} {b} {c}\"~3 {a}"),
        "riv* te*",
        "boat~1 physicain~2",
        &format!("+{a} -{b} {c}^2.5"),
        &format!("({a} AND {b}) OR ({c} AND NOT {a})"),
        &format!("title:{a} body:\"{b} {c}\""),
        "nowhere",
    ] {
        asks.push(ask(Scoring::Bm25, query));
    }
    asks.push(Ask { fields: vec!["title".to_owned(), "body".to_owned()], ..ask(Scoring::Bm25, &free) });
    for scoring in [Scoring::Cosine, Scoring::Embedding] {
        asks.extend([ask(scoring.clone(), a), ask(scoring, &free)]);
    }
    for has_embedding in [false, true] {
        for fusion in [Fusion::Convex { alpha: 0.2 }, Fusion::Rrf] {
            asks.push(ask(Scoring::Hybrid { has_embedding, fusion }, &free));
        }
    }
    let vector = (0..3).map(|_| chance.below(20) as f32 - 10.0).collect();
    asks.push(ask(Scoring::Vector { path: "v".to_owned(), vector }, ""));
    let filters = [
        "{\"field\":\"n\",\"gte\":5,\"lt\":15}",
        "{\"or\":[{\"field\":\"m\",\"value\":1},{\"not\":{\"field\":\"n\",\"gt\":3}}]}",
    ];
    let filtered: Vec<Ask> = asks
        .iter()
        .flat_map(|ask| filters.map(|filter| Ask { filter: filter.as_bytes().to_vec(), ..ask.clone() }))
        .collect();
    asks.extend(filtered);
    asks
}

#[test]
fn one_two_and_eight_shards_answer_alike_after_any_history() {
    let mut found = 0;
    for seed in 1..=3u64 {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut databases = [1, 2, 8].map(Database::new);
        let writes = 400 * seed;
        for n in 0..writes {
            if n == writes / 3 {
                databases.iter_mut().for_each(Database::define);
            }
            let key = format!("k{}", chance.below(writes / 3));
            let value = (chance.below(5) > 0).then(|| chance.value());
            for database in &mut databases {
                database.write(&key, value.as_deref(), chance.below(3000) as u32);
            }
        }
        databases.iter_mut().for_each(Database::catch_up);
        for ask in asks(&mut chance) {
            let offset = [0, 0, 3][chance.below(3) as usize];
            let [one, two, eight] = databases.each_ref().map(|database| database.search(&ask, offset, 37));
            assert_eq!(one, two, "seed {seed}, two shards: {ask:?}");
            assert_eq!(one, eight, "seed {seed}, eight shards: {ask:?}");
            assert!(one.starts_with("\"result\":["), "{one}");
            found += one.matches("\"key\"").count();
        }
    }
    assert!(found > 2000, "{found} hits in all");
}
