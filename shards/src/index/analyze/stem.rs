//! A direct-mapped cache before a Snowball stemmer: most words of a text are few.
//!
//! The cache changes cost only, never a result. It holds what a word becomes: a stem, or nothing for a stop word.

use frostem::Stemmer;

/// Longest word kept, in bytes; longer words are stemmed each time.
const CACHED_BYTES_MAX: usize = 23;
/// A stem is kept as so many bytes of its word and an own end of at most this length.
const ENDING_BYTES_MAX: usize = 6;
/// One MiB of entries.
const SLOTS: usize = 1 << 15;

/// Lucene's English stop words (`EnglishAnalyzer.ENGLISH_STOP_WORDS_SET`), 33 of them.
pub(crate) const ENGLISH_STOP_WORDS: [&str; 33] = [
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no",
    "not", "of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to",
    "was", "will", "with",
];

#[derive(Clone, Copy)]
struct Entry {
    word: Padded,
    /// Bytes that the stem shares with the word. A stop word has neither these nor an ending: no stem is empty.
    shared_length: u8,
    ending_length: u8,
    ending: [u8; ENDING_BYTES_MAX],
}

const _: () = assert!(size_of::<Entry>() == 32);

/// A word, zeros, and its length: words compare and hash as three integers.
type Padded = [u8; CACHED_BYTES_MAX + 1];

const EMPTY: Entry = Entry {
    word: [0; CACHED_BYTES_MAX + 1],
    shared_length: 0,
    ending_length: 0,
    ending: [0; ENDING_BYTES_MAX],
};

/// Multiplies and folds the three integers; only speed depends on how well.
#[inline]
fn slot_of(padded: &Padded) -> usize {
    let part =
        |at: usize| u64::from_le_bytes(padded[at..at + 8].try_into().expect("three times eight bytes"));
    let mixed =
        (part(0) ^ part(8).rotate_left(23) ^ part(16).rotate_left(47)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 40) as usize & (SLOTS - 1)
}

/// A stemmer with stop words and a memory.
#[derive(Clone)]
pub(crate) struct CachedStemmer {
    stemmer: Stemmer,
    stop_words: &'static [&'static str],
    /// Whether to remember: not worth its memory for a query.
    is_caching: bool,
    /// Empty until the first word.
    entries: Vec<Entry>,
    /// What callers left with the word of an entry; [`NO_MEMO`] before that.
    memos: Vec<u32>,
}

/// Nothing was left with a word.
pub(crate) const NO_MEMO: u32 = u32::MAX;

impl std::fmt::Debug for CachedStemmer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CachedStemmer").field(&self.stemmer.algorithm()).finish()
    }
}

impl CachedStemmer {
    pub(crate) fn new(stemmer: Stemmer, stop_words: &'static [&'static str], is_caching: bool) -> Self {
        Self { stemmer, stop_words, is_caching, entries: Vec::new(), memos: Vec::new() }
    }

    /// Forgets what callers left with words.
    pub(crate) fn forget_memos(&mut self) {
        self.memos.fill(NO_MEMO);
    }

    /// Calls `then` with the stem of the lower-case `word`, or not at all for a stop word; and with what the caller left with
    /// the word when it came before and may leave now, kept as long as the stem is.
    #[inline]
    pub(crate) fn stem(&mut self, word: &str, then: impl FnOnce(&str, &mut u32)) {
        if !self.is_caching || word.is_empty() || word.len() > CACHED_BYTES_MAX {
            if let Some(stem) = self.compute(word) {
                then(&stem, &mut { NO_MEMO });
            }
            return;
        }
        if self.entries.is_empty() {
            self.entries.resize(SLOTS, EMPTY);
            self.memos.resize(SLOTS, NO_MEMO);
        }
        let mut padded: Padded = [0; CACHED_BYTES_MAX + 1];
        padded[..word.len()].copy_from_slice(word.as_bytes());
        padded[CACHED_BYTES_MAX] = word.len() as u8;
        let slot = slot_of(&padded);
        let (entry, memo) = (&self.entries[slot], &mut self.memos[slot]);
        if entry.word != padded {
            self.fill(slot, padded, word, then);
            return;
        }
        let (shared, ending) = (usize::from(entry.shared_length), usize::from(entry.ending_length));
        if ending == 0 && shared > 0 {
            then(&word[..shared], memo);
        } else if ending > 0 {
            let mut stem = [0; CACHED_BYTES_MAX + ENDING_BYTES_MAX];
            stem[..shared].copy_from_slice(&entry.word[..shared]);
            stem[shared..shared + ending].copy_from_slice(&entry.ending[..ending]);
            let stem = std::str::from_utf8(&stem[..shared + ending]);
            then(stem.expect("a cached stem is the UTF-8 that was put there"), memo);
        }
    }

    #[cold]
    fn fill(&mut self, slot: usize, padded: Padded, word: &str, then: impl FnOnce(&str, &mut u32)) {
        let stem = self.compute(word);
        let text = stem.as_deref().unwrap_or("");
        let shared = word.bytes().zip(text.bytes()).take_while(|(left, right)| left == right).count();
        let shared = text.floor_char_boundary(word.floor_char_boundary(shared));
        let ending = &text.as_bytes()[shared..];
        let mut memo = NO_MEMO;
        if ending.len() <= ENDING_BYTES_MAX {
            let entry = &mut self.entries[slot];
            entry.word = padded;
            entry.shared_length = shared as u8;
            entry.ending_length = ending.len() as u8;
            entry.ending[..ending.len()].copy_from_slice(ending);
        }
        let is_kept = self.entries[slot].word == padded;
        if let Some(stem) = stem {
            then(&stem, &mut memo);
        }
        if is_kept {
            self.memos[slot] = memo;
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
        let mut cached = CachedStemmer::new(Stemmer::new(Algorithm::English), &ENGLISH_STOP_WORDS, true);
        for word in [
            "running",
            "the",
            "relational",
            "internationalizations",
            "a",
            "généralement",
            "x",
            "happy",
            "happily",
            "éléments",
            "ay",
            "skies",
            "dying",
        ] {
            let fresh = cached.compute(word);
            for _ in 0..2 {
                let mut seen = None;
                cached.stem(word, |stem, _| seen = Some(stem.to_owned()));
                assert_eq!(seen, fresh, "{word}");
            }
        }
        assert_eq!(cached.compute("the"), None);
        assert_eq!(cached.compute("running").as_deref(), Some("run"));
    }

    #[test]
    fn memos_stay_with_their_words() {
        let mut cached = CachedStemmer::new(Stemmer::new(Algorithm::English), &ENGLISH_STOP_WORDS, true);
        let words: Vec<String> = (0..3 * SLOTS).map(|n| format!("w{n}")).collect();
        for (n, word) in words.iter().enumerate() {
            cached.stem(word, |_, memo| {
                assert_eq!(*memo, NO_MEMO, "{word} is new");
                *memo = n as u32;
            });
        }
        let mut kept = 0;
        for (n, word) in words.iter().enumerate().rev() {
            cached.stem(word, |_, memo| {
                assert!(*memo == NO_MEMO || *memo == n as u32, "{word} has what another word left");
                kept += usize::from(*memo == n as u32);
                *memo = n as u32;
            });
        }
        assert!(kept > SLOTS / 4, "{kept} words were remembered");
        cached.forget_memos();
        cached.stem(&words[0], |_, memo| assert_eq!(*memo, NO_MEMO));
    }

    #[test]
    fn stop_words_are_sorted_for_the_search() {
        assert!(ENGLISH_STOP_WORDS.is_sorted());
    }
}
