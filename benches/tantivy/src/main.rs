//! Strand's text index against tantivy: same documents, same queries, one process, one thread, memory only.
//!
//! `strand-tantivy-bench ROUNDS FILE...` reads documents (`{"id","title","text"}` a line), indexes them with both engines in
//! turns, ROUNDS times, and asks both the same queries in turns. It prints the Markdown of a section of
//! `docs/BENCHMARKS.md`: every cell, also those that Strand loses. `compare.py` beside it makes the corpora and calls it.
//!
//! Two kinds of tantivy index take part: `en_stem` as it comes, which is the opponent, and `en_stem` with the stop words that
//! Strand's default analyzer leaves out, for what the difference in work comes to. It must not favour Strand: tantivy gets the
//! plain text and need not fetch a key for a hit; Strand gets JSON and answers with keys.
//!
//! `strand-tantivy-bench watch SECONDS CLASS FILE...` runs Strand alone, on one class of queries or on `indexing`, for a profiler
//! to look at, and prints what each took. `beside` instead of `watch` asks tantivy the same in turns.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a measuring tool reads the clock")]

mod corpus;
mod indexing;
mod peer;
mod queries;
mod report;
mod sets;
mod strand;

use std::error::Error;
use std::time::{Duration, Instant};

/// What any part of a run may fail with: the run ends and says why.
pub type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, seconds, class, files @ ..] = &arguments[..] {
        if word == "watch" {
            return watch(seconds.parse()?, class, &corpus::read(files)?);
        }
        if word == "beside" {
            let documents = corpus::read(files)?;
            let peer = peer::fill(&documents, peer::Words::All, peer::Commits::AtTheEnd)?;
            let time = Duration::from_secs(seconds.parse()?);
            return queries::beside(&strand::fill(&documents), &peer, class, time);
        }
    }
    let [rounds, files @ ..] = &arguments[..] else {
        return Err("strand-tantivy-bench ROUNDS FILE...".into());
    };
    let rounds: usize = rounds.parse()?;
    if rounds == 0 || files.is_empty() {
        return Err("at least one round and one file".into());
    }
    let documents = corpus::read(files)?;
    let text_bytes: usize = documents.iter().map(|document| document.text.len()).sum();
    println!(
        "{} documents, {:.1} MB of text; medians of {rounds} interleaved rounds.\n",
        documents.len(),
        text_bytes as f64 / 1e6
    );
    let indexed = indexing::compare(&documents, rounds)?;
    report::indexing(&indexed, documents.len(), text_bytes);
    let classes = queries::compare(&indexed, rounds)?;
    report::queries(&classes);
    report::sets(&sets::measure(rounds)?);
    report::building(&sets::build(&documents)?);
    Ok(())
}

/// Strand alone, for a profiler.
fn watch(seconds: u64, class: &str, documents: &[corpus::Document]) -> Outcome<()> {
    let end = Instant::now() + Duration::from_secs(seconds);
    if class == "indexing" {
        while Instant::now() < end {
            let start = Instant::now();
            let index = strand::fill(documents);
            println!("{:.2} s, {} parts", start.elapsed().as_secs_f64(), index.parts());
        }
        return Ok(());
    }
    if class == "building" {
        report::building(&sets::build(documents)?);
        return Ok(());
    }
    queries::watch(&strand::fill(documents), class, Duration::from_secs(seconds))
}
