//! Documents and queries out of a text file.

use super::random::Random;
use std::collections::HashSet;
use std::path::Path;

/// Documents taken at most, and bytes of the file.
const DOCUMENTS_MAX: usize = 5_000_000;
const FILE_BYTES_MAX: u64 = 4 << 30;

/// Queries drawn; they repeat after that.
const QUERIES: usize = 4096;

/// Words of a query at most; each number is equally frequent.
const QUERY_WORDS_MAX: u64 = 3;

/// What a text file gives.
#[derive(Debug, Default)]
pub(super) struct Texts {
    /// One a line that is not empty.
    pub(super) documents: Vec<String>,
    /// One to three words of one document each, so that every query finds something.
    pub(super) queries: Vec<String>,
}

impl Texts {
    /// Reads a file.
    ///
    /// # Errors
    /// A sentence for the user.
    pub(super) fn read(path: &Path, random: &mut Random) -> Result<Self, String> {
        let told = |why: String| format!("The text file {} {why}.", path.display());
        let size = std::fs::metadata(path).map_err(|error| told(format!("cannot be read: {error}")))?.len();
        if size > FILE_BYTES_MAX {
            return Err(told(format!("is larger than {} GiB; give a part of it", FILE_BYTES_MAX >> 30)));
        }
        let bytes = std::fs::read(path).map_err(|error| told(format!("cannot be read: {error}")))?;
        let texts = Self::cut(&String::from_utf8_lossy(&bytes), random);
        if texts.queries.is_empty() {
            return Err(told("has no line with a word of three letters or more".to_owned()));
        }
        Ok(texts)
    }

    fn cut(text: &str, random: &mut Random) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let documents: Vec<String> = lines.take(DOCUMENTS_MAX).map(str::to_owned).collect();
        let mut queries = Vec::new();
        let mut tries = 0;
        while !documents.is_empty() && queries.len() < QUERIES && tries < 4 * QUERIES {
            tries += 1;
            let document = &documents[random.below(documents.len() as u64) as usize];
            let words = words(document);
            if words.is_empty() {
                continue;
            }
            let count = random.below(QUERY_WORDS_MAX) + 1;
            let drawn = (0..count).map(|_| words[random.below(words.len() as u64) as usize]);
            let mut seen = HashSet::new();
            let query: Vec<&str> = drawn.filter(|word| seen.insert(*word)).collect();
            queries.push(query.join(" "));
        }
        Self { documents, queries }
    }
}

/// The words of a line that a query may ask for: letters only, three or more, no operators of the query language.
fn words(line: &str) -> Vec<&str> {
    let words = line.split(|c: char| !c.is_alphabetic());
    words.filter(|word| word.chars().count() >= 3 && !["AND", "NOT"].contains(word)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_words_of_a_document() {
        let text = "The quick brown fox\n\n  NOT a word-less AND line: x1 \nÉtoile filante\n";
        let texts = Texts::cut(text, &mut Random::new(1));
        assert_eq!(texts.documents.len(), 3);
        assert_eq!(texts.queries.len(), QUERIES);
        for query in &texts.queries {
            let query: Vec<&str> = query.split(' ').collect();
            assert!((1..=3).contains(&query.len()));
            let one = |document: &String| query.iter().all(|word| words(document).contains(word));
            assert!(texts.documents.iter().any(one), "{query:?}");
        }
    }

    #[test]
    fn a_file_without_words_is_told() {
        assert!(Texts::cut("a b\n1 2\n", &mut Random::new(1)).queries.is_empty());
        assert!(
            Texts::read(Path::new("no/such/file"), &mut Random::new(1)).unwrap_err().contains("no/such/file")
        );
    }
}
