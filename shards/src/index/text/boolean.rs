//! Queries that are more than a disjunction of terms: a tree of cursors, document at a time.
//!
//! A node's score in a document is the sum of the scores of its parts that match, so it equals what
//! [`super::maxscore`] gives where both apply. A scorer looks at one window of documents and then is at its end, so that a
//! search for what is nowhere is bounded too.

use super::cursor::{Cursor, END};
use super::dictionary::FieldId;
use super::maxscore::{TermPlan, contribution};
use super::part::{Lengths, Open};
use super::phrase::Occurrences;
use super::score::{Weigher, to_fixed};

/// What to look for on this shard.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    /// Nothing matches.
    Nothing,
    Term(TermPlan),
    /// Terms at positions relative to one another.
    Phrase {
        terms: Vec<(u32, u32)>,
        slop: u32,
        field: FieldId,
        weigher: Weigher,
    },
    /// Any of the terms, at the same score.
    Constant {
        ids: Vec<u32>,
        score: f64,
    },
    Bool {
        must: Vec<Plan>,
        should: Vec<Plan>,
        must_not: Vec<Plan>,
    },
}

impl Plan {
    /// Postings of all its terms in a part, about: what going through it costs.
    pub(crate) fn postings(&self, open: &Open<'_>) -> u64 {
        let count = |id: &u32| u64::from(open.count(*id));
        match self {
            Self::Nothing => 0,
            Self::Term(term) => count(&term.id),
            Self::Phrase { terms, .. } => terms.iter().map(|(id, _)| count(id)).sum(),
            Self::Constant { ids, .. } => ids.iter().map(count).sum(),
            Self::Bool { must, should, must_not } => {
                must.iter().chain(should).chain(must_not).map(|plan| plan.postings(open)).sum()
            }
        }
    }
}

/// A plan opened on one part. Stands on a matching document, or at [`END`].
pub(crate) enum Scorer<'a> {
    Nothing,
    Term { cursor: Box<Cursor<'a>>, weigher: Weigher, lengths: Lengths<'a>, norms: &'a [f32] },
    Phrase(Box<Phrase<'a>>),
    Constant { documents: Vec<u32>, at: usize, score: i64 },
    Bool(Box<Bool<'a>>),
}

pub(crate) struct Phrase<'a> {
    cursors: Vec<(Cursor<'a>, u32)>,
    occurrences: Occurrences,
    slop: u32,
    weigher: Weigher,
    lengths: Lengths<'a>,
    /// Sloppy frequency in the current document.
    frequency: f64,
    /// Where the window ends.
    end: u32,
}

pub(crate) struct Bool<'a> {
    must: Vec<Scorer<'a>>,
    should: Vec<Scorer<'a>>,
    must_not: Vec<Scorer<'a>>,
    document: u32,
    /// Where the window ends.
    end: u32,
}

impl<'a> Scorer<'a> {
    /// Opens `plan` on a part, at its first match from `from` on and below `end`.
    pub(crate) fn new(plan: &Plan, open: &'a Open<'_>, from: u32, end: u32) -> Self {
        let mut scorer = match plan {
            Plan::Nothing => Self::Nothing,
            Plan::Term(term) => match open.cursor(term.id, false) {
                Some(cursor) => Self::Term {
                    cursor: Box::new(cursor),
                    weigher: term.weigher,
                    lengths: open.lengths(term.field),
                    norms: open.norms(),
                },
                None => Self::Nothing,
            },
            Plan::Phrase { terms, slop, field, weigher } => {
                let cursors = terms.iter().map(|(id, offset)| Some((open.cursor(*id, true)?, *offset)));
                match cursors.collect::<Option<Vec<_>>>() {
                    Some(cursors) => {
                        let occurrences = Occurrences::new(cursors.len());
                        let lengths = open.lengths(*field);
                        let mut phrase = Phrase {
                            cursors,
                            occurrences,
                            slop: *slop,
                            weigher: *weigher,
                            lengths,
                            frequency: 0.0,
                            end,
                        };
                        phrase.advance(from);
                        Self::Phrase(Box::new(phrase))
                    }
                    None => Self::Nothing,
                }
            }
            Plan::Constant { ids, score } => {
                Self::Constant { documents: union(ids, open, from, end), at: 0, score: to_fixed(*score) }
            }
            Plan::Bool { must, should, must_not } => {
                let open_all =
                    |plans: &[Plan]| plans.iter().map(|plan| Self::new(plan, open, from, end)).collect();
                let (must, should, must_not) = (open_all(must), open_all(should), open_all(must_not));
                let mut node = Bool { must, should, must_not, document: 0, end };
                node.find(from);
                Self::Bool(Box::new(node))
            }
        };
        scorer.advance(from);
        scorer
    }

    pub(crate) fn document(&self) -> u32 {
        match self {
            Self::Nothing => END,
            Self::Term { cursor, .. } => cursor.document(),
            Self::Phrase(phrase) => phrase.cursors[0].0.document(),
            Self::Constant { documents, at, .. } => documents.get(*at).copied().unwrap_or(END),
            Self::Bool(node) => node.document,
        }
    }

    /// Moves to the first match at or after `document`.
    pub(crate) fn advance(&mut self, document: u32) {
        if self.document() >= document {
            return;
        }
        match self {
            Self::Nothing => {}
            Self::Term { cursor, .. } => cursor.advance(document),
            Self::Phrase(phrase) => phrase.advance(document),
            Self::Constant { documents, at, .. } => {
                *at += documents[*at..].partition_point(|other| *other < document);
            }
            Self::Bool(node) => node.find(document),
        }
    }

    /// The score of the document that it stands on.
    pub(crate) fn score(&mut self) -> i64 {
        match self {
            Self::Nothing => 0,
            Self::Term { cursor, weigher, lengths, norms } => {
                let frequency = cursor.frequency();
                contribution(*weigher, *lengths, norms, cursor.document(), frequency)
            }
            Self::Phrase(phrase) => {
                phrase.weigher.by_length(phrase.frequency, phrase.lengths.get(phrase.cursors[0].0.document()))
            }
            Self::Constant { score, .. } => *score,
            Self::Bool(node) => node.score(),
        }
    }
}

/// The documents of a window that hold any of the terms, in order.
fn union(ids: &[u32], open: &Open<'_>, from: u32, end: u32) -> Vec<u32> {
    let end = end.min(open.documents());
    let mut seen = vec![0u64; (end.saturating_sub(from) as usize).div_ceil(64)];
    for id in ids {
        let Some(mut cursor) = open.cursor(*id, false) else { continue };
        cursor.advance(from);
        while cursor.document() < end {
            let taken = cursor.take_below(end);
            for (document, _) in cursor.taken(taken) {
                seen[(document - from) as usize / 64] |= 1 << ((document - from) % 64);
            }
            cursor.pass(taken);
        }
    }
    let mut documents = Vec::new();
    for (at, word) in seen.iter().enumerate() {
        let mut bits = *word;
        while bits != 0 {
            documents.push(from + at as u32 * 64 + bits.trailing_zeros());
            bits &= bits - 1;
        }
    }
    documents
}

impl Bool<'_> {
    /// Moves to the first match at or after `from`.
    fn find(&mut self, mut from: u32) {
        loop {
            let document =
                if self.must.is_empty() { self.next_optional(from) } else { self.next_required(from) };
            self.document = if document >= self.end { END } else { document };
            if self.document == END {
                return;
            }
            let excluded = self.must_not.iter_mut().any(|scorer| {
                scorer.advance(document);
                scorer.document() == document
            });
            if !excluded {
                return;
            }
            from = document + 1;
        }
    }

    fn next_optional(&mut self, from: u32) -> u32 {
        let mut next = END;
        for scorer in &mut self.should {
            scorer.advance(from);
            next = next.min(scorer.document());
        }
        next
    }

    fn next_required(&mut self, mut from: u32) -> u32 {
        'again: loop {
            for scorer in &mut self.must {
                scorer.advance(from);
                let document = scorer.document();
                if document >= self.end {
                    return END;
                }
                if document > from {
                    from = document;
                    continue 'again;
                }
            }
            return from;
        }
    }

    fn score(&mut self) -> i64 {
        let document = self.document;
        let mut score = 0;
        for scorer in &mut self.must {
            score += scorer.score();
        }
        for scorer in &mut self.should {
            scorer.advance(document);
            if scorer.document() == document {
                score += scorer.score();
            }
        }
        score
    }
}

impl Phrase<'_> {
    /// Moves to the first document at or after `from` in which the phrase stands.
    fn advance(&mut self, mut from: u32) {
        'again: loop {
            for (cursor, _) in &mut self.cursors {
                cursor.advance(from);
                let document = cursor.document();
                if document >= self.end {
                    self.cursors[0].0.advance(END);
                    return;
                }
                if document > from {
                    from = document;
                    continue 'again;
                }
            }
            self.frequency = self.count();
            if self.frequency > 0.0 {
                return;
            }
            from += 1;
        }
    }

    /// The phrase's frequency in the document that all cursors stand on.
    fn count(&mut self) -> f64 {
        for (n, (cursor, offset)) in self.cursors.iter_mut().enumerate() {
            self.occurrences.read(n, cursor, *offset);
        }
        self.occurrences.frequency(self.slop)
    }
}
