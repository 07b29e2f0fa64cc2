//! An automaton over UTF-8 bytes that accepts the words within a few edits of a given one.
//!
//! An edit inserts, deletes or replaces a character, or swaps two neighbours (optimal string alignment, as Lucene's fuzzy
//! queries count). The state is that of the nondeterministic automaton as bits: in row `d`, bit `i` says that the first `i`
//! characters of the word match what was read with `d` edits. A character costs a few shifts, and nothing is precomputed
//! but a mask for each character of the word.
//!
//! Source: Wu and Manber, "Fast text searching allowing errors" (1992); the swap is added from the row before the last
//! character.

use super::dictionary::FieldId;
use fst::Automaton;
use smallvec::SmallVec;

/// Longer words match only themselves: a row has one bit more than the word has characters.
pub(crate) const FUZZY_CHARS_MAX: usize = 63;
/// Edits from none to two.
const ROWS: usize = 3;

pub(crate) struct Levenshtein {
    field: [u8; 2],
    /// Bit `i` is set where the character is the `i`-th of the word, counted from 1.
    masks: SmallVec<[(char, u64); 16]>,
    /// The same for ASCII: most terms have nothing else.
    ascii: [u64; 128],
    /// A word that is too long for the bits.
    exact: Option<Vec<u8>>,
    /// The bit of the whole word.
    whole: u64,
    edits_max: u8,
}

/// What has been read so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct State {
    rows: [u64; ROWS],
    /// The rows before the last character.
    before: [u64; ROWS],
    /// Where the last character stands in the word.
    last: u64,
    /// Bytes of an unfinished character.
    pending: [u8; 4],
    pending_length: u8,
    /// Bytes of the field prefix read.
    prefix: u8,
    /// Bytes read of a word that only matches itself.
    matched: u16,
}

impl Levenshtein {
    pub(crate) fn new(field: FieldId, word: &str, edits_max: u8) -> Self {
        let length = word.chars().count();
        let exact = (length > FUZZY_CHARS_MAX).then(|| word.as_bytes().to_vec());
        let mut masks: SmallVec<[(char, u64); 16]> = SmallVec::new();
        if exact.is_none() {
            for (n, letter) in word.chars().enumerate() {
                match masks.iter_mut().find(|(known, _)| *known == letter) {
                    Some((_, mask)) => *mask |= 2 << n,
                    None => masks.push((letter, 2 << n)),
                }
            }
        }
        let mut ascii = [0; 128];
        for (letter, mask) in masks.iter().filter(|(letter, _)| letter.is_ascii()) {
            ascii[*letter as usize] = *mask;
        }
        let whole = 1u64.checked_shl(length as u32).unwrap_or(0);
        Self { field: field.to_be_bytes(), masks, ascii, exact, whole, edits_max: edits_max.min(2) }
    }

    /// The distance of what led to `state`, if it is within the bound.
    pub(crate) fn edits(&self, state: &State) -> Option<u8> {
        if state.prefix < 2 || state.pending_length > 0 {
            return None;
        }
        if let Some(exact) = &self.exact {
            return (usize::from(state.matched) == exact.len() && self.can_match(state)).then_some(0);
        }
        (0..=self.edits_max).find(|edits| state.rows[usize::from(*edits)] & self.whole != 0)
    }

    #[inline]
    fn advance(&self, state: &mut State, letter: char) {
        let here = match self.ascii.get(letter as usize) {
            Some(mask) => *mask,
            None => self.masks.iter().find(|(known, _)| *known == letter).map_or(0, |(_, mask)| *mask),
        };
        let old = state.rows;
        // Without an edit only the character itself leads on; the others may also take one more edit than the row before.
        state.rows[0] = (old[0] << 1) & here;
        for edits in 1..=usize::from(self.edits_max) {
            let fewer = old[edits - 1];
            // The two characters crossed: the one read before is the later of the two in the word.
            let swapped = (state.before[edits - 1] << 2) & state.last & (here << 1);
            let replaced_or_inserted = fewer << 1 | fewer;
            let deleted = state.rows[edits - 1] << 1;
            state.rows[edits] = ((old[edits] << 1) & here) | replaced_or_inserted | deleted | swapped;
        }
        let all = self.whole | (self.whole - 1);
        state.rows.iter_mut().for_each(|row| *row &= all);
        state.before = old;
        state.last = here;
    }

    fn fail(state: &mut State) {
        state.rows = [0; ROWS];
    }
}

impl Automaton for Levenshtein {
    type State = State;

    fn start(&self) -> State {
        // With `d` edits the first `d` characters of the word may be missing.
        let rows = [1, 3, 7].map(|row: u64| row & (self.whole | self.whole.wrapping_sub(1)));
        State { rows, before: [0; ROWS], last: 0, pending: [0; 4], pending_length: 0, prefix: 0, matched: 0 }
    }

    fn is_match(&self, state: &State) -> bool {
        self.edits(state).is_some()
    }

    fn can_match(&self, state: &State) -> bool {
        // Every row holds those with fewer edits, so the last one tells.
        state.rows[usize::from(self.edits_max)] != 0
    }

    #[inline]
    fn accept(&self, state: &State, byte: u8) -> State {
        let mut state = *state;
        if state.prefix < 2 {
            if self.field[usize::from(state.prefix)] != byte {
                Self::fail(&mut state);
            }
            state.prefix += 1;
            return state;
        }
        if let Some(exact) = &self.exact {
            match exact.get(usize::from(state.matched)) {
                Some(expected) if *expected == byte => state.matched += 1,
                _ => Self::fail(&mut state),
            }
            return state;
        }
        if state.pending_length == 0 && byte < 0x80 {
            self.advance(&mut state, char::from(byte));
            return state;
        }
        let length = usize::from(state.pending_length);
        if length == 4 {
            Self::fail(&mut state);
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
