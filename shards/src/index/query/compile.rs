//! From a parsed query to numbered terms of analysed fields.

use super::{Ast, EXPANSIONS_MAX, FUZZY_TERMS_MAX, PHRASE_TERMS_MAX, PREFIX_TERMS_MAX, TERMS_MAX, WORDS_MAX};
use crate::index::analyze::{Analyzer, AnalyzerKind};
use std::collections::{BTreeMap, BTreeSet};

/// A field of text that queries can name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryField {
    /// `*` or an escaped path.
    pub path: String,
    /// How its text is analysed.
    pub analyzer: AnalyzerKind,
}

/// A term of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Position in [`CompiledQuery::fields`].
    pub(crate) field: usize,
    pub(crate) term: Vec<u8>,
}

/// A word that stands for the terms that each shard finds for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expansion {
    /// Position in [`CompiledQuery::fields`].
    pub(crate) field: usize,
    pub(crate) word: String,
    /// 0 for a prefix.
    pub(crate) edits: u8,
}

impl Expansion {
    /// How many terms it may stand for.
    pub(crate) fn limit(&self) -> usize {
        if self.edits == 0 { PREFIX_TERMS_MAX } else { FUZZY_TERMS_MAX }
    }
}

/// A clause; numbers are positions among the query's leaves and expansions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Clause {
    Nothing,
    Term { leaf: usize, boost: f64 },
    Phrase { terms: Vec<(usize, u32)>, slop: u32, boost: f64 },
    Expansion { expansion: usize, boost: f64 },
    Bool { must: Vec<Clause>, should: Vec<Clause>, must_not: Vec<Clause> },
}

/// A query ready to be counted and run on any shard with the same definitions.
#[derive(Clone, Debug, PartialEq)]
pub struct CompiledQuery {
    /// The fields that its terms belong to.
    pub(crate) fields: Vec<QueryField>,
    pub(crate) leaves: Vec<Leaf>,
    pub(crate) expansions: Vec<Expansion>,
    pub(crate) root: Clause,
}

impl CompiledQuery {
    /// Compiles a parsed query over `targets`, the fields that unmarked words search; `known` are all fields.
    pub fn new(ast: &Ast, targets: &[QueryField], known: &[QueryField]) -> Self {
        let mut compiler = Compiler::new(known);
        let targets: Vec<usize> = targets.iter().map(|field| compiler.field(field)).collect();
        let root = compiler.clause(ast, &targets, 1.0);
        compiler.finish(root)
    }

    /// Compiles plain words without any syntax: what the cosine compares documents with.
    pub fn words(text: &str, target: &QueryField) -> Self {
        let mut compiler = Compiler::new(&[]);
        let field = compiler.field(target);
        let root = compiler.words(text, &[field], 1.0);
        compiler.finish(root)
    }

    /// The paths of the fields that it searches.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|field| field.path.as_str())
    }

    /// The leaves that stand in clauses which are not excluded: what snippets mark.
    pub(crate) fn wanted_leaves(&self) -> BTreeSet<usize> {
        let mut wanted = BTreeSet::new();
        collect(&self.root, &mut wanted);
        wanted
    }
}

fn collect(clause: &Clause, wanted: &mut BTreeSet<usize>) {
    match clause {
        Clause::Nothing | Clause::Expansion { .. } => {}
        Clause::Term { leaf, .. } => {
            wanted.insert(*leaf);
        }
        Clause::Phrase { terms, .. } => wanted.extend(terms.iter().map(|(leaf, _)| *leaf)),
        Clause::Bool { must, should, .. } => {
            must.iter().chain(should).for_each(|clause| collect(clause, wanted));
        }
    }
}

struct Compiler<'a> {
    known: &'a [QueryField],
    fields: Vec<QueryField>,
    analyzers: Vec<Analyzer>,
    leaves: Vec<Leaf>,
    numbers: BTreeMap<(usize, Vec<u8>), usize>,
    expansions: Vec<Expansion>,
    /// Words that may still be analysed.
    words_left: usize,
}

impl<'a> Compiler<'a> {
    fn new(known: &'a [QueryField]) -> Self {
        Self {
            known,
            fields: Vec::new(),
            analyzers: Vec::new(),
            leaves: Vec::new(),
            numbers: BTreeMap::new(),
            expansions: Vec::new(),
            words_left: WORDS_MAX,
        }
    }

    fn finish(self, root: Clause) -> CompiledQuery {
        let root = flatten(root);
        CompiledQuery { fields: self.fields, leaves: self.leaves, expansions: self.expansions, root }
    }

    fn field(&mut self, field: &QueryField) -> usize {
        if let Some(at) = self.fields.iter().position(|known| known == field) {
            return at;
        }
        self.fields.push(field.clone());
        self.analyzers.push(Analyzer::for_query(field.analyzer));
        self.fields.len() - 1
    }

    fn leaf(&mut self, field: usize, term: &str) -> Option<usize> {
        let key = (field, term.as_bytes().to_vec());
        if let Some(number) = self.numbers.get(&key) {
            return Some(*number);
        }
        if self.leaves.len() == TERMS_MAX {
            return None;
        }
        let number = self.leaves.len();
        self.leaves.push(Leaf { field, term: key.1.clone() });
        self.numbers.insert(key, number);
        Some(number)
    }

    fn tokens(&mut self, field: usize, text: &str) -> Vec<(usize, u32)> {
        let mut tokens: Vec<(String, u32)> = Vec::new();
        let (mut at, mut base) = (0, 0);
        let analyzer = &mut self.analyzers[field];
        while at < text.len() && tokens.len() < self.words_left {
            let end = analyzer.piece_end(text, at);
            base += analyzer.analyze(&text[at..end], |token| {
                tokens.push((token.term.to_owned(), base + token.position));
            });
            at = end;
        }
        tokens.truncate(self.words_left);
        self.words_left -= tokens.len();
        tokens.iter().filter_map(|(term, position)| Some((self.leaf(field, term)?, *position))).collect()
    }

    fn clause(&mut self, ast: &Ast, targets: &[usize], boost: f64) -> Clause {
        match ast {
            Ast::Words(text) => self.words(text, targets, boost),
            Ast::Phrase { text, slop } => self.phrase(text, *slop, targets, boost),
            Ast::Prefix(word) => self.expansion(word, 0, targets, boost),
            Ast::Fuzzy { word, edits } => self.expansion(word, *edits, targets, boost),
            Ast::Field(path, inner) => match self.known.iter().find(|field| field.path == *path) {
                Some(field) => {
                    let field = self.field(field);
                    self.clause(inner, &[field], boost)
                }
                None => {
                    let name = self.words(path, targets, boost);
                    any(vec![name, self.clause(inner, targets, boost)])
                }
            },
            Ast::Boost(inner, factor) => self.clause(inner, targets, boost * factor),
            Ast::Bool { must, should, must_not } => {
                let mut all = |clauses: &[Ast], boost| -> Vec<Clause> {
                    clauses.iter().map(|clause| self.clause(clause, targets, boost)).collect()
                };
                let (must, should) = (all(must, boost), all(should, boost));
                let must_not = all(must_not, 1.0);
                // A required clause of stop words only asks for nothing, as its words are not indexed.
                let must = must.into_iter().filter(|clause| *clause != Clause::Nothing).collect();
                Clause::Bool { must, should, must_not }
            }
        }
    }

    fn words(&mut self, text: &str, targets: &[usize], boost: f64) -> Clause {
        let mut terms = Vec::new();
        for field in targets {
            terms.extend(self.tokens(*field, text).into_iter().map(|(leaf, _)| Clause::Term { leaf, boost }));
        }
        any(terms)
    }

    fn phrase(&mut self, text: &str, slop: u32, targets: &[usize], boost: f64) -> Clause {
        let mut alternatives = Vec::new();
        for field in targets {
            let mut terms = self.tokens(*field, text);
            let first = terms.first().map_or(0, |term| term.1);
            terms.truncate(PHRASE_TERMS_MAX);
            for term in &mut terms {
                term.1 -= first;
            }
            terms.retain(|term| term.1 < crate::index::text::phrase::PHRASE_MAX);
            alternatives.push(match terms[..] {
                [] => Clause::Nothing,
                [(leaf, _)] => Clause::Term { leaf, boost },
                _ => Clause::Phrase { terms, slop, boost },
            });
        }
        any(alternatives)
    }

    fn expansion(&mut self, word: &str, edits: u8, targets: &[usize], boost: f64) -> Clause {
        let mut alternatives = Vec::new();
        for field in targets {
            // Words are split as the analyzer splits them, and only the last of them is expanded.
            let start = match self.fields[*field].analyzer {
                AnalyzerKind::Keyword => 0,
                _ => last_word(word),
            };
            alternatives.push(self.words(&word[..start], &[*field], boost));
            if self.expansions.len() == EXPANSIONS_MAX {
                alternatives.push(self.words(&word[start..], &[*field], boost));
                continue;
            }
            let mut sought = self.analyzers[*field].fold(&word[start..]);
            if edits > 0 {
                // Terms are stems, so the neighbours of a stem are looked for.
                let mut stem = None;
                self.analyzers[*field].analyze(&word[start..], |token| stem = Some(token.term.to_owned()));
                sought = stem.unwrap_or(sought);
            }
            self.expansions.push(Expansion { field: *field, word: sought, edits });
            alternatives.push(Clause::Expansion { expansion: self.expansions.len() - 1, boost });
        }
        any(alternatives)
    }
}

/// Where the last word of `text` begins.
fn last_word(text: &str) -> usize {
    use unicode_segmentation::UnicodeSegmentation;
    text.unicode_word_indices().next_back().map_or(0, |(start, _)| start)
}

/// A disjunction, as simple as can be.
fn any(mut clauses: Vec<Clause>) -> Clause {
    clauses.retain(|clause| *clause != Clause::Nothing);
    match clauses.len() {
        0 => Clause::Nothing,
        1 => clauses.remove(0),
        _ => Clause::Bool { must: Vec::new(), should: clauses, must_not: Vec::new() },
    }
}

/// Draws disjunctions within disjunctions up, and adds equal terms of a disjunction together.
fn flatten(clause: Clause) -> Clause {
    let Clause::Bool { must, should, must_not } = clause else { return clause };
    let mut flat: Vec<Clause> = Vec::new();
    let mut terms: BTreeMap<usize, usize> = BTreeMap::new();
    let mut waiting: Vec<Clause> = should.into_iter().map(flatten).rev().collect();
    while let Some(clause) = waiting.pop() {
        match clause {
            Clause::Bool { must, should, must_not } if must.is_empty() && must_not.is_empty() => {
                waiting.extend(should.into_iter().rev());
            }
            Clause::Term { leaf, boost } => match terms.get(&leaf) {
                Some(at) => {
                    if let Clause::Term { boost: sum, .. } = &mut flat[*at] {
                        *sum += boost;
                    }
                }
                None => {
                    terms.insert(leaf, flat.len());
                    flat.push(Clause::Term { leaf, boost });
                }
            },
            Clause::Nothing => {}
            other => flat.push(other),
        }
    }
    let must: Vec<Clause> = must.into_iter().map(flatten).collect();
    let must_not: Vec<Clause> = must_not.into_iter().map(flatten).collect();
    if must.is_empty() && must_not.is_empty() {
        return any(flat);
    }
    Clause::Bool { must, should: flat, must_not }
}
