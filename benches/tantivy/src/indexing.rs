//! Indexes the documents with both engines in turns and keeps the last index of each.

use crate::Outcome;
use crate::corpus::Document;
use crate::peer::{self, Commits, Peer, Words};
use crate::strand;
use shards::index::text::TextIndex;
use std::time::Instant;

/// Documents between two commits of the tantivy that must show what it has.
pub const COMMIT_DOCUMENTS: usize = 1000;

/// Seconds of one run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// By the clock.
    pub wall_s: f64,
    /// Of all threads of this process.
    pub cpu_s: f64,
}

/// What indexing came to.
pub struct Indexed {
    /// Strand's index as it stands after the last document.
    pub live: TextIndex,
    /// The same with all merging done.
    pub settled: TextIndex,
    /// tantivy, `en_stem`.
    pub peer: Peer,
    /// tantivy without stop words.
    pub peer_no_stop_words: Peer,
    /// By round.
    pub strand_costs: Vec<Cost>,
    /// By round.
    pub peer_costs: Vec<Cost>,
    /// By round.
    pub peer_no_stop_words_costs: Vec<Cost>,
    /// One run, committing every [`COMMIT_DOCUMENTS`].
    pub peer_committing_cost: Cost,
}

/// Runs the rounds; who goes first alternates.
pub fn compare(documents: &[Document], rounds: usize) -> Outcome<Indexed> {
    let (mut strand_costs, mut peer_costs, mut no_stop_words_costs) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = None;
    for round in 0..rounds {
        drop(last.take());
        let mut live = None;
        if round % 2 == 0 {
            live = Some(timed(&mut strand_costs, || Ok(strand::fill(documents)))?);
        }
        let peer = timed(&mut peer_costs, || peer::fill(documents, Words::All, Commits::AtTheEnd))?;
        let no_stop_words =
            timed(&mut no_stop_words_costs, || peer::fill(documents, Words::NoStopWords, Commits::AtTheEnd))?;
        let live = match live {
            Some(live) => live,
            None => timed(&mut strand_costs, || Ok(strand::fill(documents)))?,
        };
        last = Some((live, peer, no_stop_words));
    }
    let (live, peer, peer_no_stop_words) = last.ok_or("no round was run")?;
    let mut settled = strand::fill(documents);
    strand::settle(&mut settled);
    let mut committing = Vec::new();
    timed(&mut committing, || peer::fill(documents, Words::All, Commits::Every(COMMIT_DOCUMENTS)))?;
    Ok(Indexed {
        live,
        settled,
        peer,
        peer_no_stop_words,
        strand_costs,
        peer_costs,
        peer_no_stop_words_costs: no_stop_words_costs,
        peer_committing_cost: committing[0],
    })
}

fn timed<T>(costs: &mut Vec<Cost>, run: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    let (start, before_s) = (Instant::now(), cpu_s()?);
    let made = run()?;
    costs.push(Cost { wall_s: start.elapsed().as_secs_f64(), cpu_s: cpu_s()? - before_s });
    Ok(made)
}

/// CPU time of this process, all threads, in ticks of 10 ms.
fn cpu_s() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, after_name) = stat.rsplit_once(')').ok_or("/proc/self/stat without a name")?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks =
        fields.get(11).ok_or("utime")?.parse::<u64>()? + fields.get(12).ok_or("stime")?.parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}
