//! What is fuzzed, one file each.

mod config;
mod models;
mod peers;
mod queries;
mod requests;
mod snapshots;
mod wal;

use strand_sim::rng::Rng;

/// A run ends after so many different findings.
pub const FINDINGS_MAX: usize = 8;

/// The names of all targets.
pub const NAMES: [&str; 8] =
    ["lines", "requests", "peers", "wal", "snapshots", "queries", "models", "config"];

/// Something that reads bytes.
pub trait Target {
    /// Inputs to begin with.
    fn seeds(&self) -> Vec<Vec<u8>>;

    /// Texts that its format is made of.
    fn words(&self) -> Vec<Vec<u8>>;

    /// Longest input.
    fn bytes_max(&self) -> usize;

    /// Longest of most inputs, where a long one costs many times what a short one does: longer ones come now and then.
    fn bytes_usual(&self) -> usize {
        self.bytes_max()
    }

    /// Reads an input and judges what came of it; panics when that must not be. The number tells ways of behaving apart.
    fn run(&mut self, input: &[u8]) -> u64;

    /// Sets checksums and lengths right after mutations, so that what stands behind them is reached.
    fn seal(&self, rng: &mut Rng, input: &mut Vec<u8>) {
        let _ = (rng, input);
    }
}

/// The target of a name.
pub fn make(name: &str) -> Option<Box<dyn Target>> {
    Some(match name {
        "lines" => Box::new(crate::front::lines::Lines::new()),
        "requests" => Box::new(requests::Requests::new()),
        "peers" => Box::new(peers::Peers::new()),
        "wal" => Box::new(wal::WalBatches::new()),
        "snapshots" => Box::new(snapshots::Snapshots::new()),
        "queries" => Box::new(queries::Queries::new()),
        "models" => Box::new(models::Models::new()),
        "config" => Box::new(config::Config::new()),
        _ => return None,
    })
}

fn words_of(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}
