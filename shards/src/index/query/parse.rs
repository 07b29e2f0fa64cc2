//! Reads the query language. Free text never fails: what does not parse is taken as words.
//!
//! ```text
//! clauses = { ["OR"] chain }              alternatives; + - NOT before a lone operand make it required or excluded
//! chain   = operand { "AND" operand }     binds tighter than OR
//! operand = { "+" | "-" | "NOT" } [name ":"] primary ["^" boost]
//! primary = "(" clauses ")" | '"' words '"' ["~" slop] | word ["*" | "~" [edits]]
//! ```

use super::{Ast, BOOST_MAX, DEPTH_MAX, OPERANDS_MAX, QUERY_BYTES_MAX, SLOP_MAX};
use smallvec::SmallVec;

/// Parses a query. `is_field` says which names before a colon are paths of text; others are words.
pub fn parse(text: &str, is_field: &dyn Fn(&str) -> bool) -> Ast {
    let text = &text[..text.floor_char_boundary(QUERY_BYTES_MAX)];
    let mut parser = Parser { text, at: 0, depth: 0, operands: 0, is_field };
    parser.clauses()
}

/// The names that stand before a colon in a query and may be meant as fields, in order of appearance.
pub fn field_names(text: &str) -> Vec<String> {
    let names = std::cell::RefCell::new(Vec::<String>::new());
    parse(text, &|name| {
        let mut names = names.borrow_mut();
        if names.len() < DEPTH_MAX && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
        true
    });
    names.into_inner()
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    operands: usize,
    is_field: &'a dyn Fn(&str) -> bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Occur {
    Should,
    Must,
    MustNot,
}

#[derive(Default)]
struct Clauses {
    must: Vec<Ast>,
    should: Vec<Ast>,
    must_not: Vec<Ast>,
    /// Plain words that follow one another become one node.
    words: String,
}

impl Clauses {
    fn push(&mut self, occur: Occur, clause: Ast) {
        match (occur, clause) {
            (Occur::Should, Ast::Words(words)) => {
                if !self.words.is_empty() {
                    self.words.push(' ');
                }
                self.words.push_str(&words);
            }
            (Occur::Should, clause) => self.should.push(clause),
            (Occur::Must, clause) => self.must.push(clause),
            (Occur::MustNot, clause) => self.must_not.push(clause),
        }
    }

    fn finish(mut self) -> Ast {
        if !self.words.is_empty() {
            self.should.insert(0, Ast::Words(self.words));
        }
        match (self.must.len(), self.should.len(), self.must_not.len()) {
            (0, 1, 0) => self.should.remove(0),
            (1, 0, 0) => self.must.remove(0),
            _ => Ast::Bool { must: self.must, should: self.should, must_not: self.must_not },
        }
    }
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    /// Takes `word` if it stands here between spaces or parentheses and an operand follows it.
    fn take_operator(&mut self, word: &str) -> bool {
        let Some(after) = self.rest().strip_prefix(word) else { return false };
        let stands_alone = after.starts_with(|c: char| c.is_whitespace() || c == '(' || c == '"');
        let operand = after.trim_start();
        if !stands_alone || operand.is_empty() || operand.starts_with(')') {
            return false;
        }
        self.at = self.text.len() - operand.len();
        true
    }

    fn clauses(&mut self) -> Ast {
        let mut clauses = Clauses::default();
        let mut is_first = true;
        loop {
            self.skip_space();
            let rest = self.rest();
            if rest.is_empty() {
                break;
            }
            if rest.starts_with(')') {
                if self.depth > 0 {
                    break;
                }
                self.at += 1;
                continue;
            }
            if !is_first {
                self.take_operator("OR");
            }
            is_first = false;
            self.chain(&mut clauses);
        }
        clauses.finish()
    }

    fn chain(&mut self, clauses: &mut Clauses) {
        let Some((occur, first)) = self.operand() else { return };
        self.skip_space();
        if !self.take_operator("AND") {
            clauses.push(occur, first);
            return;
        }
        let mut chain = Clauses::default();
        let required = |occur| if occur == Occur::MustNot { Occur::MustNot } else { Occur::Must };
        chain.push(required(occur), first);
        loop {
            if let Some((occur, next)) = self.operand() {
                chain.push(required(occur), next);
            }
            self.skip_space();
            if !self.take_operator("AND") {
                break;
            }
        }
        clauses.push(Occur::Should, chain.finish());
    }

    /// An operand with what stands before it; `None` if only punctuation was there.
    fn operand(&mut self) -> Option<(Occur, Ast)> {
        if self.operands == OPERANDS_MAX {
            self.at = self.text.len();
            return None;
        }
        let mut occur = Occur::Should;
        loop {
            self.skip_space();
            let rest = self.rest();
            let next = rest.chars().nth(1);
            let binds = next.is_some_and(|c| !c.is_whitespace() && c != ')');
            if rest.starts_with('+') && binds {
                self.at += 1;
                occur = if occur == Occur::MustNot { occur } else { Occur::Must };
            } else if rest.starts_with(['-', '!']) && binds {
                self.at += 1;
                occur = Occur::MustNot;
            } else if self.take_operator("NOT") {
                occur = Occur::MustNot;
            } else {
                break;
            }
        }
        let primary = self.field_or_primary()?;
        self.operands += 1;
        Some((occur, primary))
    }

    fn field_or_primary(&mut self) -> Option<Ast> {
        let rest = self.rest();
        let name_length =
            rest.find(|c: char| c == ':' || c.is_whitespace() || "()\"^~*".contains(c)).unwrap_or(0);
        if name_length > 0 && rest[name_length..].starts_with(':') {
            let after = &rest[name_length + 1..];
            let binds = after.chars().next().is_some_and(|c| !c.is_whitespace() && c != ')');
            let name = &rest[..name_length];
            if binds && (self.is_field)(name) {
                self.at += name_length + 1;
                let inner = self.primary()?;
                return Some(Ast::Field(name.to_owned(), Box::new(inner)));
            }
        }
        self.primary()
    }

    fn primary(&mut self) -> Option<Ast> {
        let rest = self.rest();
        let node = if rest.starts_with('(') && self.depth < DEPTH_MAX {
            self.at += 1;
            self.depth += 1;
            let inner = self.clauses();
            self.depth -= 1;
            if self.rest().starts_with(')') {
                self.at += 1;
            }
            inner
        } else if let Some(quoted) = rest.strip_prefix('"') {
            match quoted.find('"') {
                Some(length) => {
                    self.at += length + 2;
                    let slop = self.number('~').map_or(0, |slop| slop.min(f64::from(SLOP_MAX)) as u32);
                    Ast::Phrase { text: quoted[..length].to_owned(), slop }
                }
                None => {
                    self.at += 1;
                    return None;
                }
            }
        } else {
            self.word()?
        };
        Some(match self.number('^') {
            Some(boost) if boost != 1.0 => Ast::Boost(Box::new(node), boost.min(BOOST_MAX)),
            _ => node,
        })
    }

    fn word(&mut self) -> Option<Ast> {
        let rest = self.rest();
        let length = rest.find(|c: char| c.is_whitespace() || "()\"^~*".contains(c)).unwrap_or(rest.len());
        if length == 0 {
            // Punctuation that means nothing here.
            self.at += rest.chars().next().map_or(0, char::len_utf8);
            return None;
        }
        self.at += length;
        let word = &rest[..length];
        let has_letters = word.contains(char::is_alphanumeric);
        let after = self.rest();
        if after.starts_with('*') && has_letters {
            self.at += 1;
            return Some(beside_names(word, |word| Ast::Prefix(word.to_owned())));
        }
        if after.starts_with('~') && has_letters {
            let edits = self.number('~').unwrap_or_else(|| {
                self.at += 1;
                2.0
            });
            let edits = edits.clamp(0.0, 2.0) as u8;
            return Some(match edits {
                0 => Ast::Words(with_names_apart(word)),
                _ => beside_names(word, |word| Ast::Fuzzy { word: word.to_owned(), edits }),
            });
        }
        Some(Ast::Words(with_names_apart(word)))
    }

    /// Takes `mark` and the decimal number after it, if both are here.
    fn number(&mut self, mark: char) -> Option<f64> {
        let digits = self.rest().strip_prefix(mark)?;
        let length = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
        let number: SmallVec<[u8; 32]> = digits.as_bytes()[..length.min(32)].into();
        let number: f64 = std::str::from_utf8(&number).ok()?.parse().ok()?;
        self.at += mark.len_utf8() + length;
        Some(number)
    }
}

/// Where the last colon between two letters stands. Unicode's words keep such a colon: `title:bear` is one.
fn last_joint(word: &str) -> Option<usize> {
    word.rmatch_indices(':').map(|(at, _)| at).find(|at| {
        let (before, after) = (&word[..*at], &word[at + 1..]);
        before.ends_with(char::is_alphabetic) && after.starts_with(char::is_alphabetic)
    })
}

/// A word with a name before a colon that is no field: the word as it stands, as a text may have it, and its parts.
fn with_names_apart(word: &str) -> String {
    match last_joint(word) {
        Some(_) => format!("{word} {}", word.replace(':', " ")),
        None => word.to_owned(),
    }
}

/// What `node` makes of the part after the last name that is no field, and the names beside it as words.
fn beside_names(word: &str, node: impl Fn(&str) -> Ast) -> Ast {
    let Some(at) = last_joint(word) else { return node(word) };
    let names = Ast::Words(with_names_apart(&word[..at]));
    Ast::Bool { must: Vec::new(), should: vec![names, node(&word[at + 1..])], must_not: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn show(ast: &Ast) -> String {
        let list = |mark: &str, clauses: &[Ast]| -> Vec<String> {
            clauses.iter().map(|clause| format!("{mark}{}", show(clause))).collect()
        };
        match ast {
            Ast::Words(words) => words.clone(),
            Ast::Phrase { text, slop } => format!("\"{text}\"~{slop}"),
            Ast::Prefix(word) => format!("{word}*"),
            Ast::Fuzzy { word, edits } => format!("{word}~{edits}"),
            Ast::Field(name, inner) => format!("{name}:{}", show(inner)),
            Ast::Boost(inner, boost) => format!("{}^{boost}", show(inner)),
            Ast::Bool { must, should, must_not } => {
                format!("({})", [list("+", must), list("", should), list("-", must_not)].concat().join(", "))
            }
        }
    }

    #[test]
    fn queries_by_example() {
        for (text, expected) in [
            ("two words", "two words"),
            ("", "()"),
            ("\"a phrase\"~2 more", "(more, \"a phrase\"~2)"),
            ("+must -not maybe", "(+must, maybe, -not)"),
            ("a AND b OR c", "(c, (+a, +b))"),
            ("a AND (b OR c) AND NOT d", "(+a, +b c, -d)"),
            ("title:word title: word x:y", "(title: word x:y x y, title:word)"),
            ("a:b:c 1:2 http://y x:pre* x:word~1", "(a:b:c a b c 1:2 http://y, (x, pre*), (x, word~1))"),
            ("title:\"a b\" title:(c d)", "(title:\"a b\"~0, title:c d)"),
            ("pre* word~1 other~ word^2.5", "(pre*, word~1, other~2, word^2.5)"),
            ("AND or OR", "AND or OR"),
            ("well-known - dash)", "well-known - dash"),
            ("\"unclosed (nor this", "unclosed nor this"),
            ("NOT a", "(-a)"),
            ("a AND", "a AND"),
            ("^^ ** ~~ a^x", "a x"),
        ] {
            let shown = show(&parse(text, &|name| name == "title"));
            assert_eq!(shown, expected, "{text}");
        }
        assert_eq!(field_names("a:b c:(d:e) a:x http://y"), ["a", "c", "d", "http"]);
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let deep = format!("{}x{}", "(".repeat(100_000), ")".repeat(100_000));
        assert_eq!(show(&parse(&deep, &|_| false)), "x");
        parse(&"é".repeat(QUERY_BYTES_MAX), &|_| false);
        let Ast::Words(words) = parse(&"many words ".repeat(10_000), &|_| false) else { panic!("words") };
        assert_eq!(words.split(' ').count(), OPERANDS_MAX);
        let Ast::Bool { must, .. } = parse(&"+a ".repeat(10_000), &|_| false) else {
            panic!("required words")
        };
        assert_eq!(must.len(), OPERANDS_MAX);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[ab:\"()+\\-~^*0-9. ANDORT!é]{0,60}|\\PC{0,60}") {
            parse(&text, &|_| true);
            parse(&text, &|_| false);
        }
    }
}
