//! BERT's word pieces: text to vocabulary numbers.
//!
//! Lower case, canonical decomposition without combining marks (models may want text without either), runs of letters and
//! digits and single other characters; each run is cut greedily into the longest known pieces. A run with an unknown rest
//! counts for nothing.

use hashbrown::HashTable;
use std::borrow::Cow;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;
use xxhash_rust::xxh3::xxh3_64;

/// Longer runs are unknown, as in BERT.
const RUN_BYTES_MAX: usize = 100;

/// What becomes of text before it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Folding {
    pub(super) lower_case: bool,
    pub(super) strip_accents: bool,
    /// Chinese, Japanese and Korean ideographs are words of their own.
    pub(super) splits_ideographs: bool,
}

impl Folding {
    /// As the built-in model wants it.
    pub(super) const PLAIN: Self = Self { lower_case: true, strip_accents: true, splits_ideographs: false };

    /// The text as it is looked up.
    pub(super) fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let lower = match (self.lower_case, text.is_ascii()) {
            (false, _) => Cow::Borrowed(text),
            (true, true) => Cow::Owned(text.to_ascii_lowercase()),
            (true, false) => Cow::Owned(text.chars().flat_map(char::to_lowercase).collect()),
        };
        if !self.strip_accents || lower.is_ascii() {
            return lower;
        }
        Cow::Owned(lower.nfd().filter(|letter| !is_combining_mark(*letter)).collect())
    }
}

/// A vocabulary.
#[derive(Debug)]
pub(crate) struct Pieces {
    folding: Folding,
    tokens: Vec<Box<str>>,
    /// Pieces that begin a word.
    starts: HashTable<u32>,
    /// Pieces that continue one, without their `##`.
    continuations: HashTable<u32>,
    bytes_max: usize,
}

impl Pieces {
    /// The vocabulary of these tokens, numbered from 0. Of equal ones the first counts; one without a name, as numbers
    /// without a token have, is in no text. (Equal keys in a table would cost the square of their number.)
    pub(super) fn new(tokens: Vec<Box<str>>, folding: Folding) -> Self {
        let (starts, continuations) = (HashTable::new(), HashTable::new());
        let mut pieces = Self { folding, tokens, starts, continuations, bytes_max: 0 };
        for (number, token) in pieces.tokens.iter().enumerate() {
            let (table, piece) = match token.strip_prefix("##") {
                Some(piece) if !piece.is_empty() => (&mut pieces.continuations, piece),
                _ => (&mut pieces.starts, &**token),
            };
            pieces.bytes_max = pieces.bytes_max.max(piece.len());
            let (tokens, hash) = (&pieces.tokens, xxh3_64(piece.as_bytes()));
            let piece_at = |other: &u32| {
                let token = &*tokens[*other as usize];
                token.strip_prefix("##").filter(|rest| !rest.is_empty()).unwrap_or(token)
            };
            if !piece.is_empty() && table.find(hash, |other| piece_at(other) == piece).is_none() {
                table.insert_unique(hash, number as u32, |other| xxh3_64(piece_at(other).as_bytes()));
            }
        }
        pieces
    }

    /// Calls `each` with the number of every piece of `text`.
    pub(super) fn each(&self, text: &str, each: &mut impl FnMut(usize)) {
        self.each_run(&self.folding.apply(text), each);
    }

    fn each_run(&self, text: &str, each: &mut impl FnMut(usize)) {
        let mut rest = text;
        while let Some(letter) = rest.chars().next() {
            let stands_alone = |letter: char| {
                !letter.is_alphanumeric() || (self.folding.splits_ideographs && is_ideograph(letter))
            };
            let length = if !stands_alone(letter) {
                rest.find(stands_alone).unwrap_or(rest.len())
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
            let token = &*self.tokens[*number as usize];
            if continues { token.strip_prefix("##") == Some(piece) } else { token == piece }
        };
        table.find(xxh3_64(piece.as_bytes()), same).map(|number| *number as usize)
    }
}

/// The ranges that BERT calls Chinese characters.
fn is_ideograph(letter: char) -> bool {
    matches!(letter, '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{2ceaf}' | '\u{2f800}'..='\u{2fa1f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    static TOKENS: &str = "un\nknown\n##known\n##s\ncafe\n.\n##a\nword";

    fn pieces(text: &str) -> Vec<usize> {
        let mut found = Vec::new();
        let tokens = TOKENS.split('\n').map(Box::from).collect();
        Pieces::new(tokens, Folding::PLAIN).each(text, &mut |piece| found.push(piece));
        found
    }

    #[test]
    fn pieces_by_example() {
        assert_eq!(pieces("Unknowns known."), [0, 2, 3, 1, 5]);
        assert_eq!(pieces("CAFÉ, words"), [4, 7, 3]);
        assert_eq!(pieces("wordx word"), [7], "a word with an unknown rest counts for nothing");
    }

    #[test]
    fn equal_and_nameless_tokens_cost_no_more_than_others() {
        // As from a vocabulary with gaps: with a place in the table for each this takes minutes.
        let mut tokens: Vec<Box<str>> = vec!["".into(); 200_000];
        tokens.extend(vec![Box::<str>::from("boat"); 200_000]);
        let mut found = Vec::new();
        Pieces::new(tokens, Folding::PLAIN).each("boat boats", &mut |piece| found.push(piece));
        assert_eq!(found, [200_000], "the first of equal ones");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,60}|[a-zéß.]{0,200}") {
            pieces(&text);
        }
    }
}
