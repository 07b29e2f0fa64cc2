//! Searches over several indexes, which must answer as one index with all documents does; and the other index gathers.

use super::catalog::{CatalogChange, Change};
use super::list_indexes::{Line, ListIndexes};
use super::query_index::{self, QueryIndex};
use super::search::{self, Ask, FETCH, SCORE, Scoring, Search};
use super::topology::Topology;
use super::{Call, Gather, Step};
use crate::batch::ReplyKind;
use crate::command::items;
use crate::command::record::{Op, Record};
use crate::index::Units;
use crate::index::analyze::AnalyzerKind;
use crate::index::hybrid::{Fusion, HybridSearch, SimilaritySearch, candidates, encode_candidates};
use crate::index::set::{IndexDefinition, IndexKind};
use crate::index::text::search::{Model, Search as ShardSearch};
use crate::index::text::{TextIndex, WHOLE};
use crate::index::value::ValueIndex;
use std::collections::VecDeque;
use strand_wire::limits::Limits;
use strand_wire::request::{self, Command};

/// Shards that hold documents with an index of their text and one of their field `n`.
struct Shards {
    topology: Topology,
    texts: Vec<TextIndex>,
    values: Vec<ValueIndex>,
}

fn document(number: u32) -> (String, String) {
    let words = ["red", "green", "blue", "fox", "dog"];
    let pick = |by: u32| words[(number * by % 5) as usize];
    let value = format!(
        "{{\"t\":\"{} {} {}\",\"n\":{}}}",
        pick(1),
        pick(3),
        "fox ".repeat(number as usize % 4),
        number % 7
    );
    (format!("key{number}"), value)
}

impl Shards {
    fn new(groups: u16) -> Self {
        let topology = Topology::even(groups);
        let count = topology.groups();
        let mut texts: Vec<TextIndex> = (0..count).map(|_| TextIndex::new()).collect();
        let mut values: Vec<ValueIndex> = (0..count).map(|_| ValueIndex::new("n")).collect();
        for text in &mut texts {
            assert!(text.add_field(WHOLE, AnalyzerKind::English));
        }
        for number in 0..200 {
            let (key, value) = document(number);
            let group = topology.group_of(key.as_bytes()).0 as usize;
            texts[group].put(key.as_bytes(), value.as_bytes(), &mut Units::unlimited());
            values[group].apply(key.as_bytes(), None, Some(value.as_bytes()));
        }
        Self { topology, texts, values }
    }

    /// What a shard answers to one call of a search.
    fn answer(&self, ask: &Ask, call: &Call) -> Vec<u8> {
        let index = &self.texts[call.group.0 as usize];
        let record = Record::decode(&call.record).unwrap();
        let mut out = Vec::new();
        let known = index.query_fields();
        let queries = ask.compile(&known).unwrap();
        let (views, stats): (Vec<_>, Vec<_>) = queries.iter().map(|query| index.pin(query)).unzip();
        match record.op {
            Op::SearchStats => {
                assert_eq!(Ask::decode(record.value).as_ref(), Ok(ask));
                search::write_stats(&mut out, 40 + u64::from(call.group.0), &known, &stats);
            }
            Op::SearchHits if record.value[0] == SCORE => {
                assert_eq!(record.argument, Some(40 + u64::from(call.group.0)));
                let stats = search::read_all_stats(&record.value[1..]).unwrap();
                let search = |n: usize, model| {
                    let limit = ask.limit as usize;
                    ShardSearch::new(views[n].clone(), &queries[n], &stats[n], model, limit).unwrap()
                };
                let mut search = match ask.scoring {
                    Scoring::Hybrid { .. } => {
                        let cosine = SimilaritySearch::Cosine(search(1, Model::Cosine));
                        let mut hybrid = HybridSearch::new(search(0, Model::Bm25), cosine);
                        assert!(hybrid.step(&mut Units::unlimited(), &mut |_| true));
                        encode_candidates(&hybrid.into_candidates(), &mut out);
                        return out;
                    }
                    Scoring::Cosine => search(0, Model::Cosine),
                    _ => search(0, Model::Bm25),
                };
                assert!(search.step(&mut Units::unlimited(), &mut |_| true));
                search.into_hits().iter().for_each(|hit| search::write_hit(&mut out, hit));
            }
            Op::SearchHits => {
                assert_eq!(record.value[0], FETCH);
                for item in items::iter(&record.value[1..]) {
                    let key = item.unwrap().0;
                    let value = [b"\"", key, b"\""].concat();
                    search::write_fetched(&mut out, search::Fate::Same, Some(&value), Some("a <b>fox</b>"));
                }
            }
            other => panic!("{other:?}"),
        }
        out
    }

    fn search(&self, ask: &Ask, offset: u64, top_k: u64) -> String {
        let started = Search::start(&self.topology, ask.clone(), offset, top_k, 0);
        run(started, |call| match Record::decode(&call.record).unwrap().op {
            // The owner finds nothing to change and gives its catalogue out, and the others take it over.
            Op::CatalogChange if call.group.0 == 0 => (ReplyKind::Part, vec![0]),
            Op::CatalogChange => (ReplyKind::Ok, Vec::new()),
            _ => (ReplyKind::Part, self.answer(ask, call)),
        })
    }

    fn query(&self, fields: &str, page_max: usize) -> String {
        let line = format!("{{\"command\":\"QUERY_INDEX\",\"field\":\"n\",{fields}}}");
        let request = request::parse(line.as_bytes(), &Limits::default()).unwrap();
        let Command::QueryIndex(query) = &request.command else { unreachable!() };
        run(QueryIndex::start(&self.topology, query), |call| {
            let record = Record::decode(&call.record).unwrap();
            let ask = query_index::Ask::decode(record.value).unwrap();
            assert_eq!(ask, query_index::Ask::new(query));
            let request = ask.page_request().unwrap();
            let mut page = self.values[call.group.0 as usize].page(&request, &mut Units::unlimited());
            let is_last = page.is_last && page.entries.len() <= page_max;
            page.entries.truncate(page_max);
            let mut out = Vec::new();
            query_index::write_page(&mut out, &page, is_last, |_| ask.with_values.then_some(&b"{}"[..]));
            (ReplyKind::Part, out)
        })
    }
}

/// Answers every call, the last first, until the end.
fn run(started: (Gather, Step), mut answer: impl FnMut(&Call) -> (ReplyKind, Vec<u8>)) -> String {
    let (mut gather, mut step) = started;
    let mut open: Vec<Call> = Vec::new();
    for _ in 0..10_000 {
        match step {
            Step::Calls(calls) => open.extend(calls),
            Step::Wait => {}
            Step::Done { kind, members } => {
                assert!(open.is_empty() || kind == ReplyKind::Error, "every call was answered");
                return String::from_utf8(members).unwrap();
            }
        }
        let call = open.pop().expect("a gather that waits has calls under way");
        let (kind, body) = answer(&call);
        step = gather.part(call.number, kind, &body);
    }
    panic!("the gather does not end");
}

fn ask(scoring: Scoring, query: &str) -> Ask {
    let is_hybrid = matches!(scoring, Scoring::Hybrid { .. });
    Ask {
        scoring,
        limit: if is_hybrid { candidates(0, 30) as u32 } else { 30 },
        with_values: false,
        highlight: false,
        query: query.to_owned(),
        fields: Vec::new(),
        filter: b"{}".to_vec(),
    }
}

#[test]
fn several_shards_score_as_one() {
    let (one, three) = (Shards::new(1), Shards::new(3));
    for (scoring, query) in [
        (Scoring::Bm25, "fox"),
        (Scoring::Bm25, "+red -dog gre* blu~1"),
        (Scoring::Bm25, "\"red fox\" green^3"),
        (Scoring::Cosine, "green foxes"),
        (Scoring::Hybrid { has_embedding: false, fusion: Fusion::Convex { alpha: 0.2 } }, "red -dog foxes"),
        (Scoring::Hybrid { has_embedding: false, fusion: Fusion::Rrf }, "red green"),
    ] {
        let ask = ask(scoring.clone(), query);
        let expected = one.search(&ask, 0, 30);
        assert_eq!(three.search(&ask, 0, 30), expected, "{query}");
        let hits: serde_json::Value = serde_json::from_str(&format!("{{{expected}}}")).unwrap();
        let hits = hits["result"].as_array().unwrap().clone();
        assert_eq!(hits.len(), 30, "{query}: {expected}");
        let name = if scoring == Scoring::Cosine { "similarity" } else { "score" };
        assert!(hits[0][name].as_f64().unwrap() >= hits[29][name].as_f64().unwrap());
        let window = three.search(&ask, 10, 5);
        let window: serde_json::Value = serde_json::from_str(&format!("{{{window}}}")).unwrap();
        assert_eq!(window["result"].as_array().unwrap()[..], hits[10..15]);
    }
}

#[test]
fn values_and_snippets_are_fetched_for_the_merged_hits() {
    let shards = Shards::new(3);
    let ask = Ask { with_values: true, highlight: true, ..ask(Scoring::Bm25, "fox") };
    let text = shards.search(&ask, 0, 4);
    let hits: serde_json::Value = serde_json::from_str(&format!("{{{text}}}")).unwrap();
    let hits = hits["result"].as_array().unwrap().clone();
    assert_eq!(hits.len(), 4);
    assert!(
        hits.iter().all(|hit| hit["value"] == hit["key"] && hit["highlight"] == "a <b>fox</b>"),
        "{text}"
    );
    assert_eq!(shards.search(&ask, 0, 0), "\"result\":[]");
}

#[test]
fn shards_that_disagree_about_their_fields_end_a_search() {
    let mut shards = Shards::new(2);
    shards.texts[1].add_field("t", AnalyzerKind::Standard);
    assert!(shards.search(&ask(Scoring::Bm25, "fox"), 0, 5).contains("OVERLOADED"));
}

#[test]
fn asks_survive_and_damage_is_seen() {
    for scoring in [
        Scoring::Cosine,
        Scoring::Embedding,
        Scoring::Vector { path: "v".to_owned(), vector: vec![1.5, -2.0] },
        Scoring::Hybrid { has_embedding: true, fusion: Fusion::Convex { alpha: 0.25 } },
        Scoring::Hybrid { has_embedding: false, fusion: Fusion::Rrf },
    ] {
        let whole = Ask { fields: vec!["a.b".to_owned()], highlight: true, ..ask(scoring, "é") };
        let mut bytes = Vec::new();
        whole.encode(&mut bytes);
        assert_eq!(Ask::decode(&bytes), Ok(whole));
        // What is left at the end is the filter, which the shard parses.
        for end in 0..bytes.len() - 2 {
            assert!(Ask::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
    }
    for part in [&b""[..], b"\0", &[0; 9]] {
        let (mut gather, _) = Search::start(&Topology::even(1), ask(Scoring::Bm25, "fox"), 0, 5, 0);
        let Step::Done { kind: ReplyKind::Error, members } = gather.part(0, ReplyKind::Part, part) else {
            panic!("damage is an error")
        };
        assert!(String::from_utf8(members).unwrap().contains("INTERNAL"));
    }
}

#[test]
fn value_indexes_page_as_one() {
    let (one, three) = (Shards::new(1), Shards::new(3));
    for fields in [
        "\"value\":3",
        "\"gte\":2,\"lt\":5,\"limit\":17",
        "\"gt\":1,\"order\":\"desc\",\"limit\":40,\"with_values\":true",
        "\"prefix\":\"x\"",
    ] {
        assert_eq!(three.query(fields, usize::MAX), one.query(fields, usize::MAX), "{fields}");
    }
    // Pages of shards that end early make short pages, but none is lost.
    let (mut seen, mut cursor) = (Vec::new(), None);
    loop {
        let after = cursor.map_or(String::new(), |cursor: String| format!(",\"cursor\":\"{cursor}\""));
        let text = three.query(&format!("\"gte\":0,\"limit\":50{after}"), 9);
        let page: serde_json::Value = serde_json::from_str(&format!("{{{text}}}")).unwrap();
        seen.extend(page["result"].as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()));
        cursor = page["cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!((seen.len(), distinct.len()), (200, 200));
    let query = |fields: &str| three.query(fields, usize::MAX);
    assert!(query("\"value\":1,\"cursor\":\"zz\"").contains("BAD_REQUEST"));
    assert!(query("\"gt\":1,\"lt\":\"x\"").contains("BAD_REQUEST"));
}

#[test]
fn the_catalogue_changes_at_its_owner_first() {
    let kind = IndexKind::Text { analyzer: AnalyzerKind::English };
    let define = Change::Define(IndexDefinition { path: "a.b".to_owned(), kind });
    let drop = Change::Drop { path: "a".to_owned(), kind: None };
    for change in [&define, &drop, &Change::Install(b"all".to_vec())] {
        let mut bytes = Vec::new();
        change.encode(&mut bytes);
        assert_eq!(Change::decode(&bytes).as_ref(), Ok(change));
    }
    for (groups, change, changed, expected) in [
        (1, &define, 1, ""),
        (3, &define, 0, ""),
        (3, &drop, 1, "\"result\":true"),
        (2, &drop, 0, "\"result\":false"),
    ] {
        let mut told = Vec::new();
        let members = run(CatalogChange::start(&Topology::even(groups), change), |call| {
            told.push(call.group.0);
            let sent = Change::decode(Record::decode(&call.record).unwrap().value).unwrap();
            if call.group.0 == 0 {
                assert_eq!(sent, *change);
                return (ReplyKind::Part, [&[changed], &b"catalogue"[..]].concat());
            }
            assert_eq!(sent, Change::Install(b"catalogue".to_vec()));
            (ReplyKind::Ok, Vec::new())
        });
        assert_eq!((members.as_str(), told.len()), (expected, usize::from(groups)));
        assert_eq!(told[0], 0);
    }
    let refused = run(CatalogChange::start(&Topology::even(3), &define), |_| {
        (ReplyKind::Error, b"\"code\":\"INDEX_EXISTS\"".to_vec())
    });
    assert!(refused.contains("INDEX_EXISTS"));
}

#[test]
fn lists_are_summed() {
    let line = |path: &str, is_ready, scanned| Line {
        kind: "value".to_owned(),
        analyzer: String::new(),
        path: path.to_owned(),
        dimensions: 0,
        metric: String::new(),
        is_ready,
        scanned,
        records: 10,
        entries: 3,
        bytes: 100,
    };
    let text = run(ListIndexes::start(&Topology::even(2)), |call| {
        let mut out = Vec::new();
        line("b", true, 10).encode(&mut out);
        line("a", call.group.0 == 0, 5).encode(&mut out);
        (ReplyKind::Part, out)
    });
    let expected = "\"result\":[{\"name\":\"a\",\"field\":\"a\",\"kind\":\"value\",\"state\":\"building\",\"progress\":0.5,\
        \"entries\":6,\"bytes\":200},{\"name\":\"b\",\"field\":\"b\",\"kind\":\"value\",\"state\":\"ready\",\"progress\":1,\
        \"entries\":6,\"bytes\":200}]";
    assert_eq!(text, expected);
}

#[test]
fn a_search_whose_views_are_lost_begins_anew_once() {
    let shards = Shards::new(2);
    let ask = Ask { with_values: true, ..ask(Scoring::Bm25, "fox") };
    let whole = shards.search(&ask, 0, 5);
    assert!(whole.contains("\"score\""), "{whole}");
    for losses in [1, 2] {
        let mut lost_yet = 0;
        let (mut gather, mut step) = Search::start(&shards.topology, ask.clone(), 0, 5, 0);
        let mut open = VecDeque::new();
        // The highest group is answered first, so that answers of the first round come after the new beginning.
        let (kind, found) = loop {
            match step {
                Step::Calls(calls) => open.extend(calls.into_iter().rev()),
                Step::Wait => {}
                Step::Done { kind, members } => break (kind, String::from_utf8(members).unwrap()),
            }
            let call: Call = open.pop_front().unwrap();
            let is_hits = Record::decode(&call.record).unwrap().op == Op::SearchHits;
            step = if call.group.0 == 1 && is_hits && lost_yet < losses {
                lost_yet += 1;
                let lost = br#""code":"TIMEOUT","error":"late","retry":"safe""#;
                gather.part(call.number, ReplyKind::Error, lost)
            } else {
                gather.part(call.number, ReplyKind::Part, &shards.answer(&ask, &call))
            };
        };
        assert_eq!(lost_yet, losses);
        match losses {
            1 => assert_eq!(found, whole),
            _ => assert!(kind == ReplyKind::Error && found.contains("TIMEOUT"), "{found}"),
        }
    }
}
