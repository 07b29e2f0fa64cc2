//! The hash of everything that happened: two runs of one plan must agree on it.

use xxhash_rust::xxh3::Xxh3;

/// A hash that grows.
pub struct Trace(Xxh3);

impl Default for Trace {
    fn default() -> Self {
        Self(Xxh3::new())
    }
}

impl Trace {
    /// Adds numbers.
    pub fn note(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.0.update(&number.to_le_bytes());
        }
    }

    /// Adds bytes.
    pub fn note_bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash so far.
    pub fn hash(&self) -> u64 {
        self.0.digest()
    }
}
