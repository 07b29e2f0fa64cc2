//! How often a phrase stands in a document, from the positions of its terms.

use super::cursor::Cursor;

/// More than any offset in a phrase.
pub(crate) const PHRASE_MAX: u32 = 1 << 16;

/// Positions of a phrase's terms in one document, less their places in the phrase; kept to be used again.
#[derive(Debug, Default)]
pub(crate) struct Occurrences {
    lists: Vec<Vec<u32>>,
    offsets: Vec<u32>,
    at: Vec<usize>,
}

impl Occurrences {
    /// For a phrase of so many terms.
    pub(crate) fn new(terms: usize) -> Self {
        Self { lists: vec![Vec::new(); terms], offsets: vec![0; terms], at: vec![0; terms] }
    }

    /// Reads the positions of a term at its place in the phrase.
    pub(crate) fn read(&mut self, term: usize, cursor: &mut Cursor<'_>, offset: u32) {
        self.offsets[term] = PHRASE_MAX - offset;
        let list = &mut self.lists[term];
        cursor.positions(list);
        for position in list {
            // A position before its place in the phrase cannot underflow: all are moved up alike.
            *position = position.saturating_add(PHRASE_MAX - offset);
        }
    }

    /// The sum of 1 / (1 + distance) over the matches.
    ///
    /// Terms match when their positions, less their places in the phrase, lie within `slop` of one another.
    pub(crate) fn frequency(&mut self, slop: u32) -> f64 {
        if slop == 0
            && let [left, right] = &self.lists[..]
        {
            return f64::from(common(left, right));
        }
        self.at.fill(0);
        let mut frequency = 0.0;
        loop {
            let (mut low, mut high, mut lowest) = (u32::MAX, 0, 0);
            for (n, positions) in self.lists.iter().enumerate() {
                let Some(position) = positions.get(self.at[n]).copied() else { return frequency };
                if position < low {
                    (low, lowest) = (position, n);
                }
                high = high.max(position);
            }
            if high - low <= slop && (slop == 0 || self.is_distinct()) {
                frequency += 1.0 / f64::from(1 + high - low);
            }
            self.at[lowest] += 1;
        }
    }

    /// Whether no two terms of the phrase stand on one and the same word of the document.
    fn is_distinct(&self) -> bool {
        let place = |n: usize| self.lists[n][self.at[n]] - self.offsets[n];
        (0..self.at.len()).all(|left| (left + 1..self.at.len()).all(|right| place(left) != place(right)))
    }
}

/// How many numbers two rising lists share.
fn common(left: &[u32], right: &[u32]) -> u32 {
    let (mut l, mut r, mut count) = (0, 0, 0);
    while let (Some(a), Some(b)) = (left.get(l), right.get(r)) {
        count += u32::from(a == b);
        l += usize::from(a <= b);
        r += usize::from(b <= a);
    }
    count
}
