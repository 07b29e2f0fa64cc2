//! Real text for the demo: the glosses of WordNet, the GCIDE dictionary, or the small collection that comes with Strand.
//!
//! The first two are used where Debian's packages `wordnet-base` and `dict-gcide` have put them. Files are parsed as their
//! formats say (wndb(5WN), dictd(8)); what does not parse is passed over, since the files belong to others.

use flate2::read::MultiGzDecoder;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// A collection ready to be stored.
pub(super) struct Corpus {
    pub(super) name: Name,
    pub(super) title: String,
    pub(super) documents: Vec<Document>,
}

/// A key and its value: an object with `words` (a list), `text`, `topic` and `size` (the number of words).
pub(super) struct Document {
    pub(super) key: String,
    pub(super) value: Box<RawValue>,
}

/// The collections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Name {
    /// WordNet's synonym sets with their glosses.
    Wordnet,
    /// The GNU Collaborative International Dictionary of English.
    Gcide,
    /// The few hundred short entries that come with Strand.
    Shipped,
}

const WORDNET: &str = "/usr/share/wordnet";
const GCIDE: &str = "/usr/share/dictd";
const SHIPPED: &str = include_str!("../../../demo/entries.jsonl");
/// Bound on a decompressed dictionary, in bytes.
const DICTIONARY_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Opens the collection asked for, or the best one that is there.
pub(super) fn open(name: Option<Name>) -> Result<Corpus, String> {
    match name {
        Some(Name::Wordnet) => wordnet(Path::new(WORDNET)),
        Some(Name::Gcide) => gcide(Path::new(GCIDE)),
        Some(Name::Shipped) => shipped(),
        None => wordnet(Path::new(WORDNET)).or_else(|_| gcide(Path::new(GCIDE))).or_else(|_| shipped()),
    }
}

fn document(key: String, words: &[String], text: &str, topic: &str) -> Document {
    let value = json!({"words": words, "text": text, "topic": topic, "size": words.len()});
    Document { key, value: to_raw_value(&value).expect("plain data is always JSON") }
}

fn wordnet(folder: &Path) -> Result<Corpus, String> {
    let mut documents = Vec::new();
    for part in ["noun", "verb", "adj", "adv"] {
        let path = folder.join(format!("data.{part}"));
        let bytes = fs::read(&path).map_err(|error| {
            format!("{}: {error}; install wordnet-base or choose another --collection", path.display())
        })?;
        let text = String::from_utf8_lossy(&bytes);
        documents.extend(text.lines().filter_map(synset));
    }
    if documents.is_empty() {
        return Err(format!("{} holds no synonym sets", folder.display()));
    }
    Ok(Corpus { name: Name::Wordnet, title: "WordNet's glosses".into(), documents })
}

/// The lexicographer files of lexnames(5WN), by number.
const LEXNAMES: [&str; 45] = [
    "adj.all",
    "adj.pert",
    "adv.all",
    "noun.tops",
    "noun.act",
    "noun.animal",
    "noun.artifact",
    "noun.attribute",
    "noun.body",
    "noun.cognition",
    "noun.communication",
    "noun.event",
    "noun.feeling",
    "noun.food",
    "noun.group",
    "noun.location",
    "noun.motive",
    "noun.object",
    "noun.person",
    "noun.phenomenon",
    "noun.plant",
    "noun.possession",
    "noun.process",
    "noun.quantity",
    "noun.relation",
    "noun.shape",
    "noun.state",
    "noun.substance",
    "noun.time",
    "verb.body",
    "verb.change",
    "verb.cognition",
    "verb.communication",
    "verb.competition",
    "verb.consumption",
    "verb.contact",
    "verb.creation",
    "verb.emotion",
    "verb.motion",
    "verb.perception",
    "verb.possession",
    "verb.social",
    "verb.stative",
    "verb.weather",
    "adj.ppl",
];

/// One line of a data file: `offset lex_filenum ss_type w_cnt word lex_id [word lex_id...] p_cnt [ptr...] | gloss`. The
/// licence at the top of each file is indented, and no synonym set is.
fn synset(line: &str) -> Option<Document> {
    if line.starts_with(' ') {
        return None;
    }
    let (head, gloss) = line.split_once(" | ")?;
    let mut fields = head.split(' ');
    let offset = fields.next()?;
    let topic = LEXNAMES.get(fields.next()?.parse::<usize>().ok()?)?;
    let kind = fields.next()?;
    let count = usize::from_str_radix(fields.next()?, 16).ok()?;
    let words: Vec<String> = fields.step_by(2).take(count).map(plain_word).collect();
    (words.len() == count && count > 0)
        .then(|| document(format!("demo:{kind}:{offset}"), &words, gloss.trim(), topic))
}

/// Blanks are written `_`, and adjectives may carry a syntactic marker such as `(p)`.
fn plain_word(word: &str) -> String {
    let bare = word.strip_suffix(')').and_then(|rest| rest.rsplit_once('(')).map_or(word, |(bare, _)| bare);
    bare.replace('_', " ")
}

fn gcide(folder: &Path) -> Result<Corpus, String> {
    let told = |path: &Path, error: &dyn std::fmt::Display| {
        format!("{}: {error}; install dict-gcide or choose another --collection", path.display())
    };
    let index_path = folder.join("gcide.index");
    let index = fs::read_to_string(&index_path).map_err(|error| told(&index_path, &error))?;
    let path = folder.join("gcide.dict.dz");
    let file = File::open(&path).map_err(|error| told(&path, &error))?;
    let mut text = Vec::new();
    MultiGzDecoder::new(file)
        .take(DICTIONARY_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(|error| told(&path, &error))?;
    let documents = dictionary(&index, &text);
    if documents.is_empty() {
        return Err(format!("{} names no articles", index_path.display()));
    }
    Ok(Corpus { name: Name::Gcide, title: "the dictionary GCIDE".into(), documents })
}

/// The articles of a dictd dictionary; headwords of one article become one document.
fn dictionary(index: &str, text: &[u8]) -> Vec<Document> {
    let mut articles: BTreeMap<(usize, usize), Vec<String>> = BTreeMap::new();
    for line in index.lines().filter(|line| !line.starts_with("00-database")) {
        let mut parts = line.split('\t');
        let (Some(word), Some(start), Some(length)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if let (Some(start), Some(length)) = (base64_number(start), base64_number(length)) {
            articles.entry((start, length)).or_default().push(word.to_owned());
        }
    }
    let article = |((start, length), words): ((usize, usize), Vec<String>)| {
        let bytes = text.get(start..start.checked_add(length)?)?;
        let body = String::from_utf8_lossy(bytes).split_whitespace().collect::<Vec<_>>().join(" ");
        let topic =
            words[0].chars().next().map(|letter| letter.to_uppercase().to_string()).unwrap_or_default();
        Some(document(format!("demo:gcide:{start}"), &words, &body, &topic))
    };
    articles.into_iter().filter_map(article).collect()
}

/// A number in the digits of base 64, the most significant first, as dictd writes offsets.
fn base64_number(text: &str) -> Option<usize> {
    text.bytes().try_fold(0_usize, |number, digit| {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        number.checked_mul(64)?.checked_add(usize::from(value))
    })
}

/// One line a document: `{"title": ..., "topic": ..., "text": ...}`.
#[derive(serde::Deserialize)]
struct Entry {
    title: String,
    topic: String,
    text: String,
}

fn shipped() -> Result<Corpus, String> {
    let read = |line: &str| {
        serde_json::from_str::<Entry>(line).map_err(|error| format!("the shipped text: {error}"))
    };
    let entries: Vec<Entry> = SHIPPED.lines().map(read).collect::<Result<_, _>>()?;
    let documents = entries.iter().map(|entry| {
        let words: Vec<String> = entry.title.split(' ').map(str::to_owned).collect();
        let key = format!("demo:{}", entry.title.to_lowercase().replace(' ', "-"));
        document(key, &words, &entry.text, &entry.topic)
    });
    Ok(Corpus {
        name: Name::Shipped,
        title: "Strand's own short entries".into(),
        documents: documents.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    fn value(document: &Document) -> Value {
        serde_json::from_str(document.value.get()).unwrap()
    }

    #[test]
    fn a_synonym_set_is_read_as_its_format_says() {
        let line = "00015388 03 n 02 animal 0 animate_being(p) 0 001 @ 00004475 n 0000 | a living organism; \"an | b\"  ";
        let read = synset(line).unwrap();
        assert_eq!(read.key, "demo:n:00015388");
        let expected = json!({"words": ["animal", "animate being"], "text": "a living organism; \"an | b\"",
            "topic": "noun.tops", "size": 2});
        assert_eq!(value(&read), expected);
        assert!(synset("  1 This software and database is being provided | to you").is_none());
        assert!(synset("00015388 03 n 05 animal 0 | too few words").is_none());
        assert!(synset("00015388 99 n 01 animal 0 000 | no such file").is_none());
    }

    #[test]
    fn dictionary_articles_are_found_by_their_offsets() {
        let text = b"Cat \n  a small animal\nDog  barks";
        let index = "00-database-info\tA\tB\nCat\tA\tW\nkitty\tA\tW\nDog\tW\tK\nbad\tzz!\tA\nfar\tzzz\tB\n";
        let read = dictionary(index, text);
        assert_eq!(read.len(), 2);
        assert_eq!(
            value(&read[0]),
            json!({"words": ["Cat", "kitty"], "text": "Cat a small animal", "topic": "C", "size": 2})
        );
        assert_eq!(value(&read[1])["text"], "Dog barks");
        assert_eq!((base64_number("BA"), base64_number("-")), (Some(64), None));
    }

    #[test]
    fn the_shipped_text_is_enough_for_a_demo() {
        let corpus = shipped().unwrap();
        let keys: BTreeSet<&String> = corpus.documents.iter().map(|document| &document.key).collect();
        assert!(keys.len() >= 300, "{}", keys.len());
        assert_eq!(keys.len(), corpus.documents.len(), "a title is used twice");
        for document in &corpus.documents {
            let text = value(document)["text"].as_str().unwrap().to_owned();
            assert!(text.len() > 40 && text.ends_with('.'), "{text}");
        }
    }
}
