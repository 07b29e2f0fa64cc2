//! Indexes built beside writes, kept up, written and loaded.

use super::*;
use crate::index::analyze::AnalyzerKind;
use crate::index::query::{CompiledQuery, parse};
use crate::index::text::search::{Model, Search};
use crate::index::vector::Metric;
use std::collections::BTreeMap;

#[derive(Default)]
struct Records(BTreeMap<Vec<u8>, Vec<u8>>);

impl DocumentSource for Records {
    fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.0.get(key).map(|value| &value[..])
    }

    fn scan(&self, cursor: &[u8], limit: usize, each: &mut dyn FnMut(&[u8], &[u8])) -> Option<Vec<u8>> {
        let page: Vec<_> =
            self.0.range(cursor.to_vec()..).filter(|(key, _)| &key[..] != cursor).take(limit).collect();
        page.iter().for_each(|(key, value)| each(key, value));
        (page.len() == limit).then(|| page[limit - 1].0.clone())
    }
}

impl Records {
    fn set(&mut self, set: &mut IndexSet, key: &str, value: Option<&str>) {
        let old = self.0.remove(key.as_bytes());
        set.apply(key.as_bytes(), old.as_deref(), value.map(str::as_bytes));
        if let Some(value) = value {
            self.0.insert(key.as_bytes().to_vec(), value.as_bytes().to_vec());
        }
    }
}

fn search(set: &IndexSet, text: &str) -> Vec<String> {
    let index = set.text().unwrap();
    let fields = index.query_fields();
    let query = CompiledQuery::new(&parse(text, &|_| false), &fields[..1], &fields);
    let (view, stats) = index.pin(&query);
    let mut search = Search::new(view, &query, &stats, Model::Bm25, 100).unwrap();
    assert!(search.step(&mut Units::unlimited(), &mut |_| true));
    search.into_hits().into_iter().map(|hit| String::from_utf8(hit.key.to_vec()).unwrap()).collect()
}

fn value_definition(path: &str) -> IndexDefinition {
    IndexDefinition { path: path.to_owned(), kind: IndexKind::Value }
}

#[test]
fn indexes_are_built_online_and_keep_up() {
    let (mut records, mut set) = (Records::default(), IndexSet::default());
    for n in 0..200 {
        records.set(&mut set, &format!("k{n:03}"), Some(&format!("{{\"n\":{n},\"t\":\"word{n} common\"}}")));
    }
    assert!(!set.has_work() && set.backlog_len() == 0, "nothing is indexed before it is asked for");
    assert_eq!(set.define(whole_text()), Defined::Created);
    assert_eq!(set.define(whole_text()), Defined::Same);
    assert_eq!(set.define(value_definition("n")), Defined::Created);
    let vectors = IndexDefinition {
        path: "n".to_owned(),
        kind: IndexKind::Vector { dimensions: 1, metric: Metric::Dot },
    };
    assert_eq!(set.define(vectors), Defined::Created);
    assert_eq!(
        set.define(IndexDefinition { path: WHOLE.to_owned(), kind: IndexKind::Embedding }),
        Defined::Created
    );
    let other =
        IndexDefinition { kind: IndexKind::Text { analyzer: AnalyzerKind::Standard }, ..whole_text() };
    assert_eq!(set.define(other), Defined::Conflict);
    let mut turns = 0;
    while set.work(&mut Units::new(300), &records) {
        // Writes go on while the indexes are built.
        turns += 1;
        if turns <= 20 {
            records.set(
                &mut set,
                &format!("k{:03}", turns * 7),
                (turns % 2 == 0).then_some("{\"n\":-1,\"t\":\"late common\"}"),
            );
            let position = set.position();
            assert!(!set.is_indexed(position, WHOLE, "text"));
        }
    }
    assert!(turns > 20);
    assert!(set.is_indexed(set.position(), WHOLE, "text") && set.is_indexed(0, "n", "value"));
    assert_eq!(search(&set, "common").len(), records.0.len().min(100));
    assert_eq!(search(&set, "late").len(), 10);
    let entries = set.values("n").unwrap().entries();
    assert_eq!(entries, records.0.len());
    assert!(set.list().iter().all(|info| info.state == BuildState::Ready && info.entries == entries as u64));

    // A snapshot holds all of it, though records change while it is written.
    let mut writer = set.begin_snapshot();
    let expected = search(&set, "late word3 word50");
    let mut sections: Vec<Vec<u8>> = Vec::new();
    for n in 0.. {
        let mut section = Vec::new();
        if !writer.next_section(&mut set, &mut Units::new(200), &mut section) {
            break;
        }
        sections.extend((!section.is_empty()).then_some(section));
        records.set(&mut set, &format!("k{:03}", n % 200), Some("{\"n\":[7,8],\"t\":\"after\"}"));
        set.work(&mut Units::new(500), &records);
    }
    set.end_snapshot(writer);
    let mut loader = SetLoader::default();
    sections.iter().for_each(|section| loader.section(section).unwrap());
    let loaded = loader.finish().unwrap();
    assert_eq!(search(&loaded, "late word3 word50"), expected);
    assert_eq!(loaded.values("n").unwrap().entries(), entries);
    assert_eq!(loaded.vectors("n").unwrap().entries(), entries);
    for at in 0..sections.len() {
        let mut loader = SetLoader::default();
        let mut damaged = sections.clone();
        let middle = damaged[at].len() / 2;
        damaged[at][middle] ^= 4;
        assert!(damaged.iter().try_for_each(|section| loader.section(section)).is_err());
    }

    assert!(set.drop_index(WHOLE, "text") && set.drop_index("n", "value") && !set.drop_index("n", "value"));
    records.set(&mut set, "k1", None);
    assert!(set.text().is_none() && set.backlog_len() == 0 && !set.has_work());
}

#[test]
fn a_field_added_later_is_built_for_old_documents_too() {
    let (mut records, mut set) = (Records::default(), IndexSet::default());
    set.define(whole_text());
    for n in 0..100 {
        records.set(&mut set, &format!("k{n}"), Some(&format!("{{\"t\":\"Running{n}\",\"u\":\"runs\"}}")));
    }
    while set.work(&mut Units::new(5000), &records) {}
    let kind = IndexKind::Text { analyzer: AnalyzerKind::Keyword };
    set.define(IndexDefinition { path: "t".to_owned(), kind });
    assert!(!set.is_indexed(0, "t", "text") && set.is_indexed(set.position(), WHOLE, "text"));
    while set.work(&mut Units::new(5000), &records) {}
    let index = set.text().unwrap();
    let fields = index.query_fields();
    let query =
        CompiledQuery::new(&parse("t:Running7 t:running8", &|name| name == "t"), &fields[..1], &fields);
    let (_, stats) = index.pin(&query);
    assert_eq!(stats.document_frequencies, [1, 0]);
    assert_eq!(stats.fields[0].documents, 100);
}

#[test]
fn no_step_of_building_goes_far_beyond_its_budget() {
    let (mut records, mut set) = (Records::default(), IndexSet::default());
    for n in 0..20_000u64 {
        // Few words, so that nothing but the turns of merging takes long.
        let text = format!("\"word{} name{} common\"", n % 97, n * n % 101);
        records.set(&mut set, &format!("k{n:05}"), Some(&text));
    }
    set.define(whole_text());
    let (mut beyond, mut steps) = (0, 0);
    loop {
        let mut units = Units::new(1000);
        let more = set.work(&mut units, &records);
        beyond = beyond.max(-units.balance());
        steps += 1;
        if !more {
            break;
        }
    }
    // A turn of merging and what it began last, or eight short documents.
    assert!(beyond <= 5000 && steps > 1000, "{beyond} units beyond the budget in one of {steps} steps");
    assert_eq!(search(&set, "+word5 +name25").first().map(String::as_str), Some("k00005"));
}

#[test]
fn each_text_field_tells_its_own_documents() {
    let (mut records, mut set) = (Records::default(), IndexSet::default());
    set.define(whole_text());
    let title = IndexDefinition { path: "title".to_owned(), ..whole_text() };
    set.define(title);
    for n in 0..50 {
        let value = if n % 5 == 0 { "{\"title\":\"one two\"}" } else { "{\"body\":\"three\"}" };
        records.set(&mut set, &format!("k{n}"), Some(value));
    }
    while set.work(&mut Units::new(1000), &records) {}
    let entries: Vec<u64> = set.list().iter().map(|info| info.entries).collect();
    assert_eq!(entries, [50, 10]);
}
