//! A direct-mapped cache before a Snowball stemmer: most words of a text are few.
//!
//! The cache changes cost only, never a result. It holds what a word becomes: a stem, or nothing for a stop word.

use frostem::Stemmer;
use xxhash_rust::xxh3::xxh3_64;

/// Longest word and stem kept, in bytes; longer words are stemmed each time.
const CACHED_BYTES_MAX: usize = 23;
const SLOTS: usize = 1 << 13;

/// Lucene's English stop words (`EnglishAnalyzer.ENGLISH_STOP_WORDS_SET`), 33 of them.
pub(crate) const ENGLISH_STOP_WORDS: [&str; 33] = [
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no",
    "not", "of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to",
    "was", "will", "with",
];

#[derive(Clone, Copy)]
struct Entry {
    word_length: u8,
    /// 0 marks a stop word: no stem is empty.
    stem_length: u8,
    word: [u8; CACHED_BYTES_MAX],
    stem: [u8; CACHED_BYTES_MAX],
}

const EMPTY: Entry =
    Entry { word_length: 0, stem_length: 0, word: [0; CACHED_BYTES_MAX], stem: [0; CACHED_BYTES_MAX] };

/// A stemmer with stop words and a memory.
#[derive(Clone)]
pub(crate) struct CachedStemmer {
    stemmer: Stemmer,
    stop_words: &'static [&'static str],
    /// Empty until the first word, so that an analyzer that only reads queries costs little.
    entries: Vec<Entry>,
}

impl std::fmt::Debug for CachedStemmer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CachedStemmer").field(&self.stemmer.algorithm()).finish()
    }
}

impl CachedStemmer {
    pub(crate) fn new(stemmer: Stemmer, stop_words: &'static [&'static str]) -> Self {
        Self { stemmer, stop_words, entries: Vec::new() }
    }

    /// Calls `then` with the stem of the lower-case `word`, or not at all for a stop word.
    #[inline]
    pub(crate) fn stem(&mut self, word: &str, then: impl FnOnce(&str)) {
        if word.is_empty() || word.len() > CACHED_BYTES_MAX {
            if let Some(stem) = self.compute(word) {
                then(&stem);
            }
            return;
        }
        if self.entries.is_empty() {
            self.entries.resize(SLOTS, EMPTY);
        }
        let slot = xxh3_64(word.as_bytes()) as usize & (SLOTS - 1);
        let entry = &self.entries[slot];
        if usize::from(entry.word_length) != word.len() || entry.word[..word.len()] != *word.as_bytes() {
            self.fill(slot, word, then);
            return;
        }
        if entry.stem_length > 0 {
            let stem = &entry.stem[..usize::from(entry.stem_length)];
            then(std::str::from_utf8(stem).expect("a cached stem is the UTF-8 that was put there"));
        }
    }

    #[cold]
    fn fill(&mut self, slot: usize, word: &str, then: impl FnOnce(&str)) {
        let stem = self.compute(word);
        let text = stem.as_deref().unwrap_or("");
        if text.len() <= CACHED_BYTES_MAX {
            let entry = &mut self.entries[slot];
            entry.word_length = word.len() as u8;
            entry.word[..word.len()].copy_from_slice(word.as_bytes());
            entry.stem_length = text.len() as u8;
            entry.stem[..text.len()].copy_from_slice(text.as_bytes());
        }
        if let Some(stem) = stem {
            then(&stem);
        }
    }

    fn compute(&self, word: &str) -> Option<String> {
        if self.stop_words.binary_search(&word).is_ok() {
            return None;
        }
        let stem = self.stemmer.stem(word);
        Some(if stem.is_empty() { word.to_owned() } else { stem.into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use frostem::Algorithm;

    #[test]
    fn cached_and_fresh_stems_agree() {
        let mut cached = CachedStemmer::new(Stemmer::new(Algorithm::English), &ENGLISH_STOP_WORDS);
        for word in ["running", "the", "relational", "internationalizations", "a", "généralement", "x"] {
            let fresh = cached.compute(word);
            for _ in 0..2 {
                let mut seen = None;
                cached.stem(word, |stem| seen = Some(stem.to_owned()));
                assert_eq!(seen, fresh, "{word}");
            }
        }
        assert_eq!(cached.compute("the"), None);
        assert_eq!(cached.compute("running").as_deref(), Some("run"));
    }

    #[test]
    fn stop_words_are_sorted_for_the_search() {
        assert!(ENGLISH_STOP_WORDS.is_sorted());
    }
}
