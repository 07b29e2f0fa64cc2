//! Splits text into Unicode words (UAX #29), with a table-driven path for runs of ASCII.
//!
//! Both paths give the words of `unicode_segmentation::unicode_word_indices`; a property test holds them equal. Words
//! never span ASCII white space, so a stretch with other characters is handed over up to the next such byte.

use unicode_segmentation::UnicodeSegmentation;

const OTHER: u8 = 0;
const LETTER: u8 = 1;
const DIGIT: u8 = 2;
const UNDERSCORE: u8 = 4;
/// Joins two letters: colon.
const MID_LETTER: u8 = 8;
/// Joins two digits: comma, semicolon.
const MID_NUMBER: u8 = 16;
/// Joins two letters or two digits: full stop, apostrophe.
const MID_BOTH: u8 = 24;
const FOREIGN: u8 = 32;
const WORD: u8 = LETTER | DIGIT | UNDERSCORE;

const CLASS: [u8; 256] = {
    let mut table = [OTHER; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => LETTER,
            b'0'..=b'9' => DIGIT,
            b'_' => UNDERSCORE,
            b':' => MID_LETTER,
            b',' | b';' => MID_NUMBER,
            b'.' | b'\'' => MID_BOTH,
            0x80..=0xff => FOREIGN,
            _ => OTHER,
        };
        byte += 1;
    }
    table
};

/// Calls `each(start, word)` for every word of `text` in order; `start` is a byte offset.
pub(crate) fn each_word<'a>(text: &'a str, mut each: impl FnMut(usize, &'a str)) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match CLASS[usize::from(bytes[at])] {
            class if class & WORD != 0 => match ascii_word(bytes, at) {
                Some((end, alphanumeric)) => {
                    if alphanumeric {
                        each(at, &text[at..end]);
                    }
                    at = end;
                }
                None => at = unicode_words(text, at, at, &mut each),
            },
            FOREIGN => at = unicode_words(text, at, at, &mut each),
            // A combining mark belongs to the character before it, so that one goes along; of spaces, which hang together
            // (rule WB3d), all of them.
            _ if bytes.get(at + 1).is_some_and(|next| *next >= 0x80) => {
                let start = text[..=at].trim_end_matches(is_joined_space).len().min(at);
                at = unicode_words(text, start, at, &mut each);
            }
            _ => at += 1,
        }
    }
}

/// The end of the word that starts at `start`, and whether it has a letter or digit; `None` when a character beyond
/// ASCII has a say in it.
#[inline]
fn ascii_word(bytes: &[u8], start: usize) -> Option<(usize, bool)> {
    let class_at = |at: usize| bytes.get(at).map_or(OTHER, |byte| CLASS[usize::from(*byte)]);
    let mut seen = OTHER;
    let mut at = start;
    loop {
        let mut last = OTHER;
        loop {
            let class = class_at(at);
            if class & WORD == 0 {
                break;
            }
            seen |= class;
            last = class;
            at += 1;
        }
        let class = class_at(at);
        if class == FOREIGN {
            return None;
        }
        if class & MID_BOTH != 0 {
            let next = class_at(at + 1);
            if next == FOREIGN {
                return None;
            }
            let joins_letters = class & MID_LETTER != 0 && last == LETTER && next == LETTER;
            let joins_digits = class & MID_NUMBER != 0 && last == DIGIT && next == DIGIT;
            if joins_letters || joins_digits {
                at += 1;
                continue;
            }
        }
        return Some((at, seen & (LETTER | DIGIT) != 0));
    }
}

/// Spaces between which no word begins: the property WSegSpace.
fn is_joined_space(character: char) -> bool {
    matches!(character, ' ' | '\u{1680}' | '\u{2000}'..='\u{2006}' | '\u{2008}'..='\u{200a}' | '\u{205f}' | '\u{3000}')
}

/// Hands the text from `start` to the first ASCII white space behind the character at `at` to the general algorithm; returns
/// where it stopped.
fn unicode_words<'a>(text: &'a str, start: usize, at: usize, each: &mut impl FnMut(usize, &'a str)) -> usize {
    let behind = at + 1;
    let space = text.as_bytes()[behind..].iter().position(u8::is_ascii_whitespace);
    let end = space.map_or(text.len(), |space| behind + space);
    for (offset, word) in text[start..end].unicode_word_indices() {
        each(start + offset, word);
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<(usize, &str)> {
        let mut found = Vec::new();
        each_word(text, |start, word| found.push((start, word)));
        found
    }

    fn general(text: &str) -> Vec<(usize, &str)> {
        text.unicode_word_indices().collect()
    }

    #[test]
    fn words_by_example() {
        let found: Vec<&str> =
            words("Can't stop 3.14, e.g. foo_bar-baz a:b 1,000;2 __ naïve").iter().map(|w| w.1).collect();
        assert!(found.starts_with(&["Can't", "stop", "3.14", "e.g", "foo_bar", "baz"]), "{found:?}");
        assert_eq!(found.last(), Some(&"naïve"));
        assert_eq!(words(""), []);
        for text in [
            "  \u{113c5}",
            "a  \u{113c5}b",
            "\u{3000} \u{113c5}",
            "\t \u{113c5}",
            " \t\u{113c5}",
            "é  \u{113c5} x",
        ] {
            assert_eq!(
                words(text),
                general(text),
                "{text:?}: spaces hang together with the mark behind them"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn ascii_path_agrees_with_unicode(text in "[ab1_:;,.' \n\\-]{0,24}") {
            prop_assert_eq!(words(&text), general(&text));
        }

        #[test]
        fn mixed_text_agrees_with_unicode(text in "[aZ9_:.,' éß東アש’]{0,24}") {
            prop_assert_eq!(words(&text), general(&text));
        }

        #[test]
        fn any_text_agrees_with_unicode(text in "\\PC{0,40}") {
            prop_assert_eq!(words(&text), general(&text));
        }
    }
}
