//! The indexes of one shard: text, values and vectors. Decides what matches and how well; performs nothing.

pub mod analyze;
pub(crate) mod codec;
pub mod embed;
pub mod extract;
pub mod filter;
pub mod filter_set;
pub mod highlight;
pub mod hybrid;
pub(crate) mod keys;
pub mod query;
mod sections;
pub mod set;
pub mod text;
pub mod value;
pub mod vector;

pub use codec::Corrupt;

/// A budget of work, spent by whoever does it. One unit is about 20 to 40 ns: a posting read, a byte of
/// text indexed.
#[derive(Clone, Copy, Debug)]
pub struct Units {
    left: i64,
}

impl Units {
    /// A budget of so many units. 20,000 stay below a millisecond.
    pub fn new(units: u32) -> Self {
        Self { left: i64::from(units) }
    }

    /// A budget that does not end.
    pub fn unlimited() -> Self {
        Self { left: i64::MAX }
    }

    /// Whether any is left.
    pub fn left(&self) -> bool {
        self.left > 0
    }

    /// Takes units off; what was begun is finished, so the budget may go below nothing.
    pub fn spend(&mut self, units: u64) {
        self.left = self.left.saturating_sub_unsigned(units);
    }

    /// How many are left; less than nothing if the last piece of work was larger than the rest.
    pub fn balance(&self) -> i64 {
        self.left
    }
}

/// What asking a filter about one document is taken to cost.
pub(crate) const ACCEPT_UNITS: u64 = 16;
