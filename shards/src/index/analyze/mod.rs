//! Analyzers: from text to terms with positions and byte offsets.
//!
//! Documents and queries of a field go through the same analyzer, whose name and [`ANALYZER_VERSION`] are stored with the
//! index; terms written by another version are not comparable, so such an index is built anew. Terms longer than
//! [`TERM_BYTES_MAX`] are cut at a character boundary before stemming (the rest of the word is dropped).

mod stem;
mod words;

use frostem::{Algorithm, Stemmer};
use std::fmt;
pub(crate) use stem::NO_MEMO;
use stem::{CachedStemmer, ENGLISH_STOP_WORDS};

/// Rises with every change of what any analyzer makes of any text: our rules, frostem's stems, the Unicode tables.
pub const ANALYZER_VERSION: u32 = 2;

/// Text is analysed in pieces of this many bytes at most, cut before white space, so that a long text can be taken in slices.
/// A run of as many bytes without ASCII white space is cut anywhere, and a word there in two.
pub const PIECE_BYTES_MAX: usize = 16 << 10;

/// Longest term in bytes.
pub const TERM_BYTES_MAX: usize = 255;

/// One term of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    /// What is indexed.
    pub term: &'a str,
    /// Number of words before it in the text, stop words counted.
    pub position: u32,
    /// Byte offset of the word in the text.
    pub start: usize,
    /// Byte offset after the word.
    pub end: usize,
}

/// How a field's text becomes terms. The name is what is stored and what clients give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AnalyzerKind {
    /// Unicode words, lower case, Snowball English, without Lucene's 33 English stop words.
    #[default]
    English,
    /// Unicode words in lower case.
    Standard,
    /// The whole text as one term, as it is.
    Keyword,
    /// Unicode words, lower case and the Snowball stemmer of a language, by its canonical name; no stop words.
    Snowball(Algorithm),
}

impl AnalyzerKind {
    /// The analyzer of a name: `english`, `standard`, `keyword` or a Snowball algorithm such as `german`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "english" => Some(Self::English),
            "standard" => Some(Self::Standard),
            "keyword" => Some(Self::Keyword),
            _ => Algorithm::from_name(name).ok().filter(|found| found.name() == name).map(Self::Snowball),
        }
    }

    /// The name that [`AnalyzerKind::from_name`] reads.
    pub fn name(self) -> &'static str {
        match self {
            Self::English => "english",
            Self::Standard => "standard",
            Self::Keyword => "keyword",
            Self::Snowball(algorithm) => algorithm.name(),
        }
    }
}

impl fmt::Display for AnalyzerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An analyzer at work: the rules, a stem cache and a buffer.
#[derive(Clone, Debug)]
pub struct Analyzer {
    kind: AnalyzerKind,
    stemmer: Option<CachedStemmer>,
    buffer: String,
}

impl Analyzer {
    /// An analyzer of this kind for many texts: it remembers stems, in a megabyte.
    pub fn new(kind: AnalyzerKind) -> Self {
        Self::with_cache(kind, true)
    }

    /// An analyzer of this kind for a query or another short text. The terms are the same.
    pub fn for_query(kind: AnalyzerKind) -> Self {
        Self::with_cache(kind, false)
    }

    fn with_cache(kind: AnalyzerKind, is_caching: bool) -> Self {
        let snowball =
            |algorithm, stop_words| Some(CachedStemmer::new(Stemmer::new(algorithm), stop_words, is_caching));
        let stemmer = match kind {
            AnalyzerKind::English => snowball(Algorithm::English, &ENGLISH_STOP_WORDS[..]),
            AnalyzerKind::Snowball(algorithm) => snowball(algorithm, &[]),
            AnalyzerKind::Standard | AnalyzerKind::Keyword => None,
        };
        Self { kind, stemmer, buffer: String::new() }
    }

    /// Which rules it follows.
    pub fn kind(&self) -> AnalyzerKind {
        self.kind
    }

    /// Calls `each` for every term of `text` in order, and returns the number of positions that the text takes.
    pub fn analyze(&mut self, text: &str, mut each: impl FnMut(Token<'_>)) -> u32 {
        self.analyze_with_memos(text, |token, _| each(token))
    }

    /// As [`Analyzer::analyze`]; `each` may leave a number with each word, and finds it, or else [`NO_MEMO`], when the word
    /// comes again. Two words of one term have each their own.
    pub(crate) fn analyze_with_memos(
        &mut self,
        text: &str,
        mut each: impl FnMut(Token<'_>, &mut u32),
    ) -> u32 {
        if self.kind == AnalyzerKind::Keyword {
            if text.is_empty() {
                return 0;
            }
            each(Token { term: cut(text), position: 0, start: 0, end: text.len() }, &mut { NO_MEMO });
            return 1;
        }
        let (mut position, mut at) = (0u32, 0);
        while at < text.len() {
            let end = self.piece_end(text, at);
            let Self { stemmer, buffer, .. } = self;
            words::each_word(&text[at..end], |start, word| {
                lower_case(word, buffer);
                let start = at + start;
                let mut emit = |term: &str, memo: &mut u32| {
                    each(Token { term, position, start, end: start + word.len() }, memo);
                };
                match stemmer {
                    Some(stemmer) => stemmer.stem(buffer, emit),
                    None => emit(buffer, &mut { NO_MEMO }),
                }
                position = position.saturating_add(1);
            });
            at = end;
        }
        position
    }

    /// Forgets what was left with words.
    pub(crate) fn forget_memos(&mut self) {
        if let Some(stemmer) = &mut self.stemmer {
            stemmer.forget_memos();
        }
    }

    /// Where the piece of `text` that begins at `start` ends. Analysing the pieces one by one comes to the same terms as
    /// analysing the text, with the positions counted on.
    pub fn piece_end(&self, text: &str, start: usize) -> usize {
        if text.len() - start <= PIECE_BYTES_MAX || self.kind == AnalyzerKind::Keyword {
            return text.len();
        }
        let last = text.floor_char_boundary(start + PIECE_BYTES_MAX);
        let space = text.as_bytes()[start + 1..=last].iter().rposition(u8::is_ascii_whitespace);
        space.map_or(last, |at| start + 1 + at)
    }

    /// The lower-case form of a word that is not to be stemmed: what prefix and fuzzy queries look for.
    pub fn fold(&self, word: &str) -> String {
        let mut folded = String::new();
        match self.kind {
            AnalyzerKind::Keyword => cut(word).clone_into(&mut folded),
            _ => lower_case(word, &mut folded),
        }
        folded
    }
}

/// Writes the lower-case form of `word`, cut to [`TERM_BYTES_MAX`], with typographic apostrophes made plain.
fn lower_case(word: &str, out: &mut String) {
    out.clear();
    if word.is_ascii() {
        out.push_str(&word[..word.len().min(TERM_BYTES_MAX)]);
        out.make_ascii_lowercase();
        return;
    }
    for letter in word.chars().flat_map(char::to_lowercase) {
        let letter = if letter == '\u{2019}' { '\'' } else { letter };
        if out.len() + letter.len_utf8() > TERM_BYTES_MAX {
            return;
        }
        out.push(letter);
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TERM_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: &str, text: &str, expected: &[(&str, u32)]) {
        let mut found = Vec::new();
        let mut analyzer = Analyzer::new(AnalyzerKind::from_name(kind).unwrap());
        analyzer.analyze(text, |token| found.push((token.term.to_owned(), token.position)));
        let found: Vec<(&str, u32)> =
            found.iter().map(|(term, position)| (term.as_str(), *position)).collect();
        assert_eq!(found, expected, "{kind}: {text}");
    }

    #[test]
    fn analyzers_by_example() {
        check("english", "The runners RAN to the Élysée", &[("runner", 1), ("ran", 2), ("élysé", 5)]);
        check("english", "John’s and John's", &[("john", 0), ("john", 2)]);
        check("standard", "The runners RAN", &[("the", 0), ("runners", 1), ("ran", 2)]);
        check("keyword", "The runners RAN", &[("The runners RAN", 0)]);
        check("german", "Die Häuser", &[("die", 0), ("haus", 1)]);
    }

    #[test]
    fn pieces_make_the_same_terms() {
        let words: Vec<String> = (0..9000).map(|n| format!("wörd{n} it's")).collect();
        for text in [words.join(" "), "é".repeat(40_000), format!("{} b", "a".repeat(50_000))] {
            let mut analyzer = Analyzer::new(AnalyzerKind::Standard);
            let (mut whole, mut pieces) = (Vec::new(), Vec::new());
            analyzer.analyze(&text, |token| whole.push((token.term.to_owned(), token.position, token.start)));
            let (mut at, mut base, mut count) = (0, 0, 0);
            while at < text.len() {
                let end = analyzer.piece_end(&text, at);
                base += analyzer.analyze(&text[at..end], |token| {
                    pieces.push((token.term.to_owned(), base + token.position, at + token.start));
                });
                (at, count) = (end, count + 1);
            }
            assert!(count > 2 && whole == pieces, "{count} pieces");
        }
        // Pieces are cut at white space, so the words are those of the text in one.
        let long = words.join(" ");
        let mut count = 0;
        words::each_word(&long, |_, _| count += 1);
        assert_eq!(Analyzer::new(AnalyzerKind::Standard).analyze(&long, |_| {}), count);
    }

    #[test]
    fn names_round_trip() {
        for name in ["english", "standard", "keyword", "french", "porter"] {
            match AnalyzerKind::from_name(name) {
                Some(kind) => assert_eq!(kind.name(), name),
                None => panic!("{name} is not known"),
            }
        }
        assert_eq!(AnalyzerKind::from_name("fr"), None, "aliases would make two names for one definition");
        assert_eq!(AnalyzerKind::from_name("klingon"), None);
    }

    #[test]
    fn long_words_are_cut_at_a_character() {
        let word = "é".repeat(200);
        let mut lengths = Vec::new();
        Analyzer::new(AnalyzerKind::Standard).analyze(&word, |token| lengths.push(token.term.len()));
        assert_eq!(lengths, [254]);
    }
}
