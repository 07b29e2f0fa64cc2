//! BERT's word pieces: text to vocabulary numbers, uncased.
//!
//! Lower case, canonical decomposition without combining marks, runs of letters and digits and single other characters;
//! each run is cut greedily into the longest known pieces. A run with an unknown rest counts for nothing.

use hashbrown::HashTable;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;
use xxhash_rust::xxh3::xxh3_64;

/// Longer runs are unknown, as in BERT.
const RUN_BYTES_MAX: usize = 100;

/// A vocabulary.
#[derive(Debug)]
pub(crate) struct Pieces {
    tokens: Vec<&'static str>,
    /// Pieces that begin a word.
    starts: HashTable<u32>,
    /// Pieces that continue one, without their `##`.
    continuations: HashTable<u32>,
    bytes_max: usize,
}

impl Pieces {
    /// The vocabulary of newline-separated tokens, numbered from 0.
    pub(crate) fn new(tokens: &'static str) -> Self {
        let tokens: Vec<&'static str> = tokens.split('\n').collect();
        let mut pieces =
            Self { tokens, starts: HashTable::new(), continuations: HashTable::new(), bytes_max: 0 };
        for (number, token) in pieces.tokens.iter().enumerate() {
            let (table, piece) = match token.strip_prefix("##") {
                Some(piece) if !piece.is_empty() => (&mut pieces.continuations, piece),
                _ => (&mut pieces.starts, *token),
            };
            pieces.bytes_max = pieces.bytes_max.max(piece.len());
            let tokens = &pieces.tokens;
            table.insert_unique(xxh3_64(piece.as_bytes()), number as u32, |other| {
                let token = tokens[*other as usize];
                xxh3_64(token.strip_prefix("##").filter(|rest| !rest.is_empty()).unwrap_or(token).as_bytes())
            });
        }
        pieces
    }

    /// Number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Calls `each` with the number of every piece of `text`.
    pub(crate) fn each(&self, text: &str, mut each: impl FnMut(usize)) {
        if text.is_ascii() {
            self.each_run(&text.to_ascii_lowercase(), &mut each);
        } else {
            let lower = text.chars().flat_map(char::to_lowercase);
            let plain: String = lower.nfd().filter(|letter| !is_combining_mark(*letter)).collect();
            self.each_run(&plain, &mut each);
        }
    }

    fn each_run(&self, text: &str, each: &mut impl FnMut(usize)) {
        let mut rest = text;
        while let Some(letter) = rest.chars().next() {
            let length = if letter.is_alphanumeric() {
                rest.find(|letter: char| !letter.is_alphanumeric()).unwrap_or(rest.len())
            } else {
                letter.len_utf8()
            };
            if !letter.is_whitespace() {
                self.cut(&rest[..length], each);
            }
            rest = &rest[length..];
        }
    }

    fn cut(&self, run: &str, each: &mut impl FnMut(usize)) {
        if run.len() > RUN_BYTES_MAX {
            return;
        }
        let mut found: smallvec::SmallVec<[usize; 16]> = smallvec::SmallVec::new();
        let mut start = 0;
        while start < run.len() {
            let rest = &run[start..];
            let mut end = rest.floor_char_boundary(self.bytes_max);
            loop {
                if end == 0 {
                    return;
                }
                if let Some(piece) = self.find(&rest[..end], start > 0) {
                    found.push(piece);
                    break;
                }
                end = rest.floor_char_boundary(end - 1);
            }
            start += end;
        }
        found.into_iter().for_each(each);
    }

    fn find(&self, piece: &str, continues: bool) -> Option<usize> {
        let table = if continues { &self.continuations } else { &self.starts };
        let same = |number: &u32| {
            let token = self.tokens[*number as usize];
            if continues { token.strip_prefix("##") == Some(piece) } else { token == piece }
        };
        table.find(xxh3_64(piece.as_bytes()), same).map(|number| *number as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    static TOKENS: &str = "un\nknown\n##known\n##s\ncafe\n.\n##a\nword";

    fn pieces(text: &str) -> Vec<usize> {
        let mut found = Vec::new();
        Pieces::new(TOKENS).each(text, |piece| found.push(piece));
        found
    }

    #[test]
    fn pieces_by_example() {
        assert_eq!(pieces("Unknowns known."), [0, 2, 3, 1, 5]);
        assert_eq!(pieces("CAFÉ, words"), [4, 7, 3]);
        assert_eq!(pieces("wordx word"), [7], "a word with an unknown rest counts for nothing");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,60}|[a-zéß.]{0,200}") {
            pieces(&text);
        }
    }
}
