//! An automaton over UTF-8 bytes that accepts the words within a few edits of a given one.
//!
//! An edit inserts, deletes or replaces a character, or swaps two neighbours (optimal string alignment, as Lucene's fuzzy
//! queries count). The state carries two rows of the dynamic program, so nothing is precomputed.

use super::dictionary::FieldId;
use fst::Automaton;
use smallvec::SmallVec;

/// Longer words match only themselves: the rows of the dynamic program are bounded.
pub(crate) const FUZZY_CHARS_MAX: usize = 64;

type Row = SmallVec<[u8; 24]>;

pub(crate) struct Levenshtein {
    field: [u8; 2],
    word: Vec<char>,
    edits_max: u8,
}

/// What has been read so far.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// Bytes of the field prefix read.
    prefix: u8,
    dead: bool,
    row: Row,
    before: Row,
    last: char,
    /// Bytes of an unfinished character.
    pending: [u8; 4],
    pending_length: u8,
}

impl Levenshtein {
    pub(crate) fn new(field: FieldId, word: &str, edits_max: u8) -> Self {
        let word: Vec<char> = word.chars().collect();
        let edits_max = if word.len() > FUZZY_CHARS_MAX { 0 } else { edits_max.min(2) };
        Self { field: field.to_be_bytes(), word, edits_max }
    }

    /// The distance of what led to `state`, if it is within the bound.
    pub(crate) fn edits(&self, state: &State) -> Option<u8> {
        if state.dead || state.prefix < 2 || state.pending_length > 0 {
            return None;
        }
        state.row.last().copied().filter(|edits| *edits <= self.edits_max)
    }

    fn advance(&self, state: &mut State, letter: char) {
        let beyond = self.edits_max + 1;
        let mut next: Row = SmallVec::with_capacity(state.row.len());
        next.push((state.row[0] + 1).min(beyond));
        for (i, expected) in self.word.iter().enumerate() {
            let replace = state.row[i] + u8::from(*expected != letter);
            let mut edits = replace.min(next[i] + 1).min(state.row[i + 1] + 1);
            if i > 0 && !state.before.is_empty() && *expected == state.last && self.word[i - 1] == letter {
                edits = edits.min(state.before[i - 1] + 1);
            }
            next.push(edits.min(beyond));
        }
        state.dead = next.iter().all(|edits| *edits >= beyond)
            // A swap reaches two rows back, so that row must be spent too.
            && state.row.iter().all(|edits| *edits >= self.edits_max);
        state.before = std::mem::replace(&mut state.row, next);
        state.last = letter;
    }
}

impl Automaton for Levenshtein {
    type State = State;

    fn start(&self) -> State {
        let row = (0..=self.word.len()).map(|n| n.min(usize::from(self.edits_max) + 1) as u8).collect();
        State {
            prefix: 0,
            dead: false,
            row,
            before: Row::new(),
            last: '\0',
            pending: [0; 4],
            pending_length: 0,
        }
    }

    fn is_match(&self, state: &State) -> bool {
        self.edits(state).is_some()
    }

    fn can_match(&self, state: &State) -> bool {
        !state.dead
    }

    fn accept(&self, state: &State, byte: u8) -> State {
        let mut state = state.clone();
        if state.dead {
            return state;
        }
        if state.prefix < 2 {
            state.dead = self.field[usize::from(state.prefix)] != byte;
            state.prefix += 1;
            return state;
        }
        let length = usize::from(state.pending_length);
        if length == 4 {
            state.dead = true;
            return state;
        }
        state.pending[length] = byte;
        state.pending_length += 1;
        let letter = std::str::from_utf8(&state.pending[..=length]).ok().and_then(|text| text.chars().next());
        if let Some(letter) = letter {
            state.pending_length = 0;
            self.advance(&mut state, letter);
        }
        state
    }
}

#[cfg(test)]
pub(crate) fn distance(left: &str, right: &str) -> u8 {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut table = vec![vec![0usize; right.len() + 1]; left.len() + 1];
    for i in 0..=left.len() {
        for j in 0..=right.len() {
            table[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let mut best = table[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
                best = best.min(table[i - 1][j] + 1).min(table[i][j - 1] + 1);
                if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                    best = best.min(table[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    u8::try_from(table[left.len()][right.len()]).unwrap()
}
