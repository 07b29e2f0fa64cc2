//! Documents: write and then search, by text and by field, while indexes come and go. Each document has one client, so it
//! knows what a search must show of it; at the end every search is compared with a scan.

use super::{Ask, Outcome, Span, Workload, code};
use crate::rng::Rng;
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};

/// Words that many documents share. None is changed by stemming, none is a stop word.
const WORDS: [&str; 6] = ["alpha", "bravo", "delta", "kilo", "tango", "zulu"];
const DOCUMENTS_PER_CLIENT: u64 = 4;
const NUMBERS: u64 = 20;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Document {
    words: BTreeSet<String>,
    number: u64,
}

#[derive(Clone)]
enum Doing {
    Write(String, Document),
    Delete(String),
    Search(String),
    Query(u64),
    Create,
    Drop,
    Snapshot,
    Scan,
    LastSearch(String),
    LastQuery,
    LastCreate,
}

/// See the module's head.
pub(super) struct Docs {
    next_word: u64,
    next_tag: u64,
    doing: BTreeMap<u64, Doing>,
    /// What is certain of each client's documents.
    known: BTreeMap<usize, BTreeMap<String, Option<Document>>>,
    lives: BTreeMap<usize, u32>,
    /// At the end: what the scan found, and which requests are left.
    scanned: BTreeMap<String, Document>,
    cursor: Option<String>,
    stage: usize,
    searched: u64,
}

impl Docs {
    pub(super) fn new() -> Self {
        Self {
            next_word: 0,
            next_tag: 0,
            doing: BTreeMap::new(),
            known: BTreeMap::new(),
            lives: BTreeMap::new(),
            scanned: BTreeMap::new(),
            cursor: None,
            stage: 0,
            searched: 0,
        }
    }

    fn start(&mut self, doing: Doing, line: String, may_repeat: bool) -> Ask {
        self.next_tag += 1;
        self.doing.insert(self.next_tag, doing);
        Ask { line, tag: self.next_tag, may_repeat }
    }

    fn write(&mut self, key: String, rng: &mut Rng) -> Ask {
        let mut words: BTreeSet<String> = BTreeSet::new();
        for _ in 0..rng.between(1, 4) {
            words.insert((*rng.pick(&WORDS)).to_owned());
        }
        self.next_word += 1;
        words.insert(unique_word(self.next_word));
        let document = Document { words, number: rng.below(NUMBERS) };
        let text: Vec<&str> = document.words.iter().map(String::as_str).collect();
        let (text, number) = (text.join(" "), document.number);
        let value = format!("{{\"title\":\"{text}\",\"n\":{number}}}");
        let line = format!("{{\"command\":\"SET\",\"key\":\"{key}\",\"value\":{value}}}");
        self.start(Doing::Write(key, document), line, false)
    }

    fn search(&mut self, word: String, is_last: bool) -> Ask {
        let line = format!("{{\"command\":\"SEARCH\",\"query\":\"{word}\",\"top_k\":1000}}");
        let doing = if is_last { Doing::LastSearch(word) } else { Doing::Search(word) };
        self.start(doing, line, true)
    }

    /// Compares what a search shows of this client's documents with what it knows of them.
    fn compare(
        &mut self,
        client: usize,
        found: &BTreeSet<String>,
        what: &str,
        matches: impl Fn(&Document) -> bool,
    ) -> Result<(), String> {
        self.searched += 1;
        for (key, document) in self.known.entry(client).or_default().iter() {
            let expected = document.as_ref().is_some_and(&matches);
            if expected != found.contains(key) {
                let verb = if expected { "misses" } else { "shows" };
                return Err(format!("{what} {verb} {key}, which its client left as {document:?}"));
            }
        }
        Ok(())
    }

    fn compare_last(
        &self,
        found: &BTreeSet<String>,
        what: &str,
        matches: impl Fn(&Document) -> bool,
    ) -> Result<(), String> {
        let expected: BTreeSet<String> = self
            .scanned
            .iter()
            .filter(|(_, document)| matches(document))
            .map(|(key, _)| key.clone())
            .collect();
        if *found == expected {
            return Ok(());
        }
        let missing: Vec<_> = expected.difference(found).collect();
        let extra: Vec<_> = found.difference(&expected).collect();
        Err(format!("{what} is not the scan: it misses {missing:?} and shows {extra:?}"))
    }

    fn take_scan(&mut self, reply: &Json) -> Result<(), String> {
        let result = &reply["result"];
        let keys = result["keys"].as_array().ok_or("SCAN gives keys")?;
        let values = result["values"].as_array().ok_or("SCAN gives values")?;
        for (key, value) in keys.iter().zip(values) {
            let key = key.as_str().ok_or("a key is text")?;
            let title = value["title"].as_str().ok_or("a document has a title")?;
            let words = title.split(' ').map(str::to_owned).collect();
            let number = value["n"].as_u64().ok_or("a document has a number")?;
            if self.scanned.insert(key.to_owned(), Document { words, number }).is_some() {
                return Err(format!("SCAN gave {key} twice"));
            }
        }
        self.cursor = result["cursor"].as_str().map(str::to_owned);
        self.stage = if self.cursor.is_some() { 1 } else { 2 };
        Ok(())
    }
}

/// A word that nobody else writes and that stemming leaves alone.
fn unique_word(mut number: u64) -> String {
    let mut word = "qx".to_owned();
    loop {
        word.push(char::from(b'a' + (number % 26) as u8));
        number /= 26;
        if number == 0 {
            word.push('q');
            return word;
        }
    }
}

fn keys_of(list: &Json, member: Option<&str>) -> Result<BTreeSet<String>, String> {
    let list = list.as_array().ok_or("a search gives a list")?;
    let mut found = BTreeSet::new();
    for hit in list {
        let key = member.map_or(hit, |member| &hit[member]).as_str().ok_or("a hit has a key")?;
        if !found.insert(key.to_owned()) {
            return Err(format!("a search gave {key} twice"));
        }
    }
    Ok(found)
}

impl Workload for Docs {
    fn ask(&mut self, client: usize, rng: &mut Rng) -> Ask {
        let life = self.lives.get(&client).copied().unwrap_or_default();
        let key = format!("doc{client}.{}.{life}", rng.below(DOCUMENTS_PER_CLIENT));
        match rng.below(20) {
            0..8 => self.write(key, rng),
            8..10 => {
                let line = format!("{{\"command\":\"DELETE\",\"key\":\"{key}\"}}");
                self.start(Doing::Delete(key), line, false)
            }
            10..13 => self.search((*rng.pick(&WORDS)).to_owned(), false),
            13..15 => {
                let number = rng.below(self.next_word + 1);
                self.search(unique_word(number), false)
            }
            15..18 => {
                let from = rng.below(NUMBERS);
                let line =
                    format!("{{\"command\":\"QUERY_INDEX\",\"field\":\"n\",\"gte\":{from},\"limit\":10000}}");
                self.start(Doing::Query(from), line, true)
            }
            18 if rng.chance(300) => {
                self.start(Doing::Snapshot, "{\"command\":\"SNAPSHOT\"}".to_owned(), false)
            }
            _ if rng.chance(700) => {
                self.start(Doing::Create, "{\"command\":\"CREATE_INDEX\",\"field\":\"n\"}".to_owned(), false)
            }
            _ => self.start(Doing::Drop, "{\"command\":\"DROP_INDEX\",\"field\":\"n\"}".to_owned(), false),
        }
    }

    fn end(&mut self, client: usize, tag: u64, _: Span, outcome: &Outcome) -> Result<(), String> {
        let doing = self.doing.remove(&tag).ok_or("an answer to nothing")?;
        match (outcome, doing) {
            (Outcome::Unknown, Doing::Write(..) | Doing::Delete(_)) => {
                // It may yet take effect: these documents are left alone, and others begun.
                *self.lives.entry(client).or_default() += 1;
                self.known.remove(&client);
                Ok(())
            }
            (Outcome::Done(_), Doing::Write(key, document)) => {
                self.known.entry(client).or_default().insert(key, Some(document));
                Ok(())
            }
            (Outcome::Done(_), Doing::Delete(key)) => {
                self.known.entry(client).or_default().insert(key, None);
                Ok(())
            }
            (Outcome::Done(reply), Doing::Search(word)) => {
                let found = keys_of(&reply["result"], Some("key"))?;
                let what = format!("SEARCH {word}");
                self.compare(client, &found, &what, |document| document.words.contains(&word))
            }
            (Outcome::Done(reply), Doing::Query(from)) => {
                let found = keys_of(&reply["result"], None)?;
                self.compare(client, &found, &format!("QUERY_INDEX n >= {from}"), |d| d.number >= from)
            }
            (Outcome::Done(reply), Doing::Scan) => self.take_scan(reply),
            (Outcome::Done(reply), Doing::LastSearch(word)) => {
                let found = keys_of(&reply["result"], Some("key"))?;
                self.compare_last(&found, &format!("SEARCH {word}"), |d| d.words.contains(&word))
            }
            (Outcome::Done(reply), Doing::LastQuery) => {
                let found = keys_of(&reply["result"], None)?;
                self.compare_last(&found, "QUERY_INDEX", |_| true)
            }
            (Outcome::Refused(reply), Doing::Query(_)) if code(reply) == "NO_SUCH_INDEX" => Ok(()),
            (outcome, Doing::Scan | Doing::LastSearch(_) | Doing::LastQuery | Doing::LastCreate)
                if !matches!(outcome, Outcome::Done(_)) =>
            {
                Err(format!("a request in the quiet at the end failed: {outcome:?}"))
            }
            _ => Ok(()),
        }
    }

    fn last(&mut self) -> Option<Ask> {
        match self.stage {
            0 | 1 => {
                let cursor =
                    self.cursor.take().map_or(String::new(), |c| format!(",\"cursor\":{}", Json::from(c)));
                let line = format!(
                    "{{\"command\":\"SCAN\",\"prefix\":\"doc\",\"limit\":50,\"with_values\":true{cursor}}}"
                );
                Some(self.start(Doing::Scan, line, true))
            }
            2 => {
                self.stage = 3;
                let line = "{\"command\":\"CREATE_INDEX\",\"field\":\"n\"}".to_owned();
                Some(self.start(Doing::LastCreate, line, true))
            }
            3 => {
                self.stage = 4;
                let line =
                    "{\"command\":\"QUERY_INDEX\",\"field\":\"n\",\"gte\":0,\"limit\":10000}".to_owned();
                Some(self.start(Doing::LastQuery, line, true))
            }
            stage => {
                self.stage += 1;
                let word = (*WORDS.get(stage - 4)?).to_owned();
                Some(self.search(word, true))
            }
        }
    }

    fn judge(&mut self) -> Result<u64, String> {
        Ok(0)
    }

    fn name(&self) -> &'static str {
        "docs"
    }
}
