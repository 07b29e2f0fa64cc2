//! Unigram tokens: a word is cut so that the sum of its tokens' scores is highest.
//!
//! Kudo, "Subword Regularization" (ACL 2018), decoded by Viterbi's algorithm. Words are what stands between spaces, each behind
//! the mark U+2581; compatibility forms are normalised (NFKC), which comes close to the rules that such models
//! are trained with. Characters without a token count for nothing.

use super::pieces::Folding;
use hashbrown::HashTable;
use unicode_normalization::UnicodeNormalization;
use xxhash_rust::xxh3::xxh3_64;

/// Stands before every word.
const MARK: char = '\u{2581}';
/// Longer words are cut here.
const WORD_BYTES_MAX: usize = 1024;
/// A character without a token costs so much more than the worst token.
const UNKNOWN_PENALTY: f64 = 10.0;

/// A vocabulary with scores.
#[derive(Debug)]
pub(super) struct Unigram {
    folding: Folding,
    tokens: Vec<(Box<str>, f64)>,
    by_text: HashTable<u32>,
    bytes_max: usize,
    unknown_score: f64,
    unknown: Option<usize>,
}

/// The best way to cut a word up to some byte.
#[derive(Clone, Copy)]
struct Step {
    score: f64,
    start: usize,
    token: Option<u32>,
}

impl Unigram {
    /// The vocabulary of these tokens, numbered from 0; the token `unknown` is never given.
    pub(super) fn new(tokens: Vec<(Box<str>, f64)>, unknown: Option<usize>, folding: Folding) -> Self {
        let mut by_text: HashTable<u32> = HashTable::new();
        for (number, (token, _)) in (0u32..).zip(&tokens) {
            let hash = xxh3_64(token.as_bytes());
            // Of equal ones the first counts.
            if by_text.find(hash, |other| tokens[*other as usize].0 == *token).is_none() {
                by_text.insert_unique(hash, number, |other| xxh3_64(tokens[*other as usize].0.as_bytes()));
            }
        }
        let worst = tokens.iter().map(|(_, score)| *score).fold(0.0, f64::min);
        let bytes_max = tokens.iter().map(|(token, _)| token.len()).max().unwrap_or(0);
        Self { folding, tokens, by_text, bytes_max, unknown_score: worst - UNKNOWN_PENALTY, unknown }
    }

    /// Calls `each` with the number of every token of `text`.
    pub(super) fn each(&self, text: &str, each: &mut impl FnMut(usize)) {
        let normal: String = text.nfkc().collect();
        let mut word = String::new();
        for part in self.folding.apply(&normal).split_whitespace() {
            let mut rest = part;
            while !rest.is_empty() {
                let (head, tail) = rest.split_at(rest.floor_char_boundary(WORD_BYTES_MAX));
                word.clear();
                word.push(MARK);
                word.push_str(head);
                self.cut(&word, each);
                rest = tail;
            }
        }
    }

    fn cut(&self, word: &str, each: &mut impl FnMut(usize)) {
        let none = Step { score: f64::NEG_INFINITY, start: 0, token: None };
        let mut best = vec![none; word.len() + 1];
        best[0].score = 0.0;
        for (start, letter) in word.char_indices() {
            let from = best[start].score;
            let mut offer = |end: usize, score: f64, token: Option<u32>| {
                if score > best[end].score {
                    best[end] = Step { score, start, token };
                }
            };
            offer(start + letter.len_utf8(), from + self.unknown_score, None);
            let limit = word.floor_char_boundary(start.saturating_add(self.bytes_max));
            for (offset, letter) in word[start..limit].char_indices() {
                let end = start + offset + letter.len_utf8();
                let text = &word[start..end];
                let same = |number: &u32| *self.tokens[*number as usize].0 == *text;
                if let Some(number) = self.by_text.find(xxh3_64(text.as_bytes()), same) {
                    offer(end, from + self.tokens[*number as usize].1, Some(*number));
                }
            }
        }
        let mut end = word.len();
        let mut found = Vec::new();
        while end > 0 {
            found.extend(best[end].token.map(|token| token as usize));
            end = best[end].start;
        }
        found.into_iter().rev().filter(|token| Some(*token) != self.unknown).for_each(each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(text: &str) -> Vec<usize> {
        let scored = [
            ("<unk>", 0.0),
            ("\u{2581}un", -3.0),
            ("known", -3.0),
            ("\u{2581}", -4.0),
            ("\u{2581}unk", -6.5),
            ("n", -5.0),
            ("own", -5.0),
        ];
        let tokens = scored.into_iter().map(|(token, score)| (token.into(), score)).collect();
        let mut found = Vec::new();
        Unigram::new(tokens, Some(0), Folding::PLAIN).each(text, &mut |token| found.push(token));
        found
    }

    #[test]
    fn words_are_cut_at_the_best_places() {
        assert_eq!(tokens("unknown"), [1, 2], "-6 beats -6.5 -5 -5");
        assert_eq!(tokens("  UNKNOWN known\n"), [1, 2, 3, 2]);
        assert_eq!(tokens("\u{ff4b}nown"), [3, 2], "a full-width k is a k");
        assert_eq!(tokens("xn<unk>"), [3, 5], "what is unknown counts for nothing");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,60}|[kown \u{2581}]{0,3000}") {
            tokens(&text);
        }
    }
}
