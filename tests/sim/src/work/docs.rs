//! Documents: write and then search, by text and by field, while indexes come and go. Each document has one client, so it
//! knows what a search must show of it, and so do the others once its last write was over before they asked; at the end
//! every search is compared with a scan. In bursts, many documents are written by one command and one of their words is
//! searched for at once, so that a search meets what is still to be indexed.

use super::{Ask, Outcome, Span, Workload, code};
use crate::rng::Rng;
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};

/// Words that many documents share. None is changed by stemming, none is a stop word.
const WORDS: [&str; 6] = ["alpha", "bravo", "delta", "kilo", "tango", "zulu"];
const DOCUMENTS_PER_CLIENT: u64 = 4;
/// Documents of a client, and most of one command, in bursts.
const DOCUMENTS_IN_BURSTS: u64 = 12;
/// Times that the words of a long text are repeated.
const LONG_TEXT_REPEATS: usize = 60;
const NUMBERS: u64 = 20;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Document {
    words: BTreeSet<String>,
    number: u64,
}

/// What is certain of a document.
#[derive(Clone, Debug)]
struct Known {
    /// None when it was deleted.
    document: Option<Document>,
    /// When the end of its last write was heard, as a position in the order of all that clients did.
    since: u64,
}

#[derive(Clone)]
enum Doing {
    Write(Vec<(String, Document)>),
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
    in_bursts: bool,
    /// What a client searches for next.
    next_search: BTreeMap<usize, String>,
    next_word: u64,
    next_tag: u64,
    doing: BTreeMap<u64, Doing>,
    /// What is certain of each client's documents.
    known: BTreeMap<usize, BTreeMap<String, Known>>,
    lives: BTreeMap<usize, u32>,
    /// At the end: what the scan found, and which requests are left.
    scanned: BTreeMap<String, Document>,
    cursor: Option<String>,
    stage: usize,
    searched: u64,
}

impl Docs {
    pub(super) fn new(in_bursts: bool) -> Self {
        Self {
            in_bursts,
            next_search: BTreeMap::new(),
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

    fn document(&mut self, rng: &mut Rng) -> Document {
        let mut words: BTreeSet<String> = BTreeSet::new();
        for _ in 0..rng.between(1, 4) {
            words.insert((*rng.pick(&WORDS)).to_owned());
        }
        self.next_word += 1;
        words.insert(unique_word(self.next_word));
        Document { words, number: rng.below(NUMBERS) }
    }

    fn write(&mut self, key: String, rng: &mut Rng) -> Ask {
        let document = self.document(rng);
        let line = format!("{{\"command\":\"SET\",\"key\":\"{key}\",\"value\":{}}}", document.value(1));
        self.start(Doing::Write(vec![(key, document)]), line, false)
    }

    /// Several documents of a client by one command; one of their words is searched for next.
    fn write_many(&mut self, client: usize, life: u32, rng: &mut Rng) -> Ask {
        let (first, count) = (rng.below(DOCUMENTS_IN_BURSTS), rng.between(1, DOCUMENTS_IN_BURSTS));
        let mut written = Vec::new();
        let mut items = Vec::new();
        for place in 0..count {
            let key = format!("doc{client}.{}.{life}", (first + place) % DOCUMENTS_IN_BURSTS);
            let document = self.document(rng);
            let repeats = if rng.chance(200) { LONG_TEXT_REPEATS } else { 1 };
            items.push(format!("\"{key}\":{}", document.value(repeats)));
            written.push((key, document));
        }
        let (_, one) = rng.pick(&written);
        let words: Vec<&String> = one.words.iter().collect();
        self.next_search.insert(client, (*rng.pick(&words)).clone());
        let line = format!("{{\"command\":\"BULK_SET\",\"items\":{{{}}}}}", items.join(","));
        self.start(Doing::Write(written), line, false)
    }

    fn ask_in_bursts(&mut self, client: usize, life: u32, rng: &mut Rng) -> Option<Ask> {
        if let Some(word) = self.next_search.remove(&client) {
            return Some(self.search(word, false));
        }
        rng.chance(400).then(|| self.write_many(client, life, rng))
    }

    fn search(&mut self, word: String, is_last: bool) -> Ask {
        let line = format!("{{\"command\":\"SEARCH\",\"query\":\"{word}\",\"top_k\":1000}}");
        let doing = if is_last { Doing::LastSearch(word) } else { Doing::Search(word) };
        self.start(doing, line, true)
    }

    /// Compares what a search shows with what is certain: of its client's own documents, and of those of others whose
    /// last write was over before the search was asked for.
    fn compare(
        &mut self,
        client: usize,
        span: Span,
        found: &BTreeSet<String>,
        what: &str,
        matches: impl Fn(&Document) -> bool,
    ) -> Result<(), String> {
        self.searched += 1;
        let under_way: BTreeSet<&String> = self.doing.values().flat_map(Doing::writes).collect();
        for (owner, documents) in &self.known {
            for (key, Known { document, since }) in documents {
                let is_certain = *owner == client || (*since < span.called && !under_way.contains(key));
                let expected = document.as_ref().is_some_and(&matches);
                if is_certain && expected != found.contains(key) {
                    let verb = if expected { "misses" } else { "shows" };
                    return Err(format!(
                        "{what} by {client} {verb} {key}, which its client left as {document:?}"
                    ));
                }
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

impl Document {
    /// It as JSON, its words so many times over.
    fn value(&self, repeats: usize) -> String {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let text = vec![words.join(" "); repeats].join(" ");
        format!("{{\"title\":\"{text}\",\"n\":{}}}", self.number)
    }
}

impl Doing {
    /// The documents that it writes or deletes.
    fn writes(&self) -> Vec<&String> {
        match self {
            Self::Write(written) => written.iter().map(|(key, _)| key).collect(),
            Self::Delete(key) => vec![key],
            _ => Vec::new(),
        }
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
        if self.in_bursts
            && let Some(ask) = self.ask_in_bursts(client, life, rng)
        {
            return ask;
        }
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

    fn end(&mut self, client: usize, tag: u64, span: Span, outcome: &Outcome) -> Result<(), String> {
        let doing = self.doing.remove(&tag).ok_or("an answer to nothing")?;
        match (outcome, doing) {
            (Outcome::Unknown, Doing::Write(..) | Doing::Delete(_)) => {
                // It may yet take effect: these documents are left alone, and others begun.
                *self.lives.entry(client).or_default() += 1;
                self.known.remove(&client);
                Ok(())
            }
            (Outcome::Done(_), Doing::Write(written)) => {
                let known = self.known.entry(client).or_default();
                for (key, document) in written {
                    known.insert(key, Known { document: Some(document), since: span.returned });
                }
                Ok(())
            }
            (Outcome::Done(_), Doing::Delete(key)) => {
                let known = Known { document: None, since: span.returned };
                self.known.entry(client).or_default().insert(key, known);
                Ok(())
            }
            (Outcome::Done(reply), Doing::Search(word)) => {
                let found = keys_of(&reply["result"], Some("key"))?;
                let what = format!("SEARCH {word}");
                self.compare(client, span, &found, &what, |document| document.words.contains(&word))
            }
            (Outcome::Done(reply), Doing::Query(from)) => {
                let found = keys_of(&reply["result"], None)?;
                let what = format!("QUERY_INDEX n >= {from}");
                self.compare(client, span, &found, &what, |document| document.number >= from)
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
