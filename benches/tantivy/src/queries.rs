//! Asks both engines the same queries in turns.

use crate::Outcome;
use crate::indexing::Indexed;
use crate::peer::Peer;
use crate::strand;
use shards::index::text::TextIndex;
use std::time::{Duration, Instant};

/// Hits asked for.
const LIMIT: usize = 10;
/// Turns of each query in a round.
const TURNS: usize = 20;

/// Queries by class. No word but those of phrases is a stop word, so that both engines look for the same terms; the last
/// class is whole sentences, which tantivy's `en_stem` searches word for word.
const CLASSES: &[(&str, &[&str])] = &[
    ("one rare term", &["zebra", "xylophone", "quasar", "ptarmigan"]),
    ("one frequent term", &["genus", "person", "small", "act"]),
    ("two terms", &["chemical compound", "military officer", "small bird", "water plant"]),
    ("three mixed", &["large african antelope", "state mind quasar", "musical wind instrument"]),
    ("phrase", &["\"musical instrument\"", "\"united states\"", "\"small bird\"", "\"common name\""]),
    ("phrase of three", &["\"genus of plants\"", "\"act of making\"", "\"state of being\""]),
    (
        "ten terms",
        &[
            "large animal living water rivers lakes long tail sharp teeth",
            "act making something order change state person thing place time",
        ],
    ),
    (
        "a sentence",
        &[
            "a large animal living in the water of rivers and lakes with long tail and sharp teeth",
            "the act of making or doing something in order to change the state of a person or thing",
        ],
    ),
    ("all of two", &["+genus +plant", "+person +act", "+metal +gold"]),
    ("one and not another", &["+genus -plant", "+bird -small"]),
];

/// Queries that tantivy's parser does not have, for Strand alone.
const OWN_CLASSES: &[(&str, &[&str])] = &[
    ("prefix", &["electro*", "photo*", "anti*"]),
    ("one edit", &["elefant~1", "instrment~1", "genis~1"]),
    ("two edits", &["elefant~2", "instrment~2", "genis~2"]),
    ("near one another", &["\"musical instrument\"~3", "\"small bird\"~2"]),
];

/// Medians of a class, in microseconds.
pub struct Class {
    /// What it is called.
    pub name: &'static str,
    /// Strand, as it stands after the last document.
    pub live_us: f64,
    /// Strand with all merging done.
    pub settled_us: f64,
    /// tantivy, `en_stem`; not for the classes of Strand alone.
    pub peer_us: Option<f64>,
    /// tantivy without stop words.
    pub peer_no_stop_words_us: Option<f64>,
    /// Of Strand live to tantivy, by round: least, middle, most.
    pub ratio: Option<[f64; 3]>,
}

/// Runs the rounds; the engines answer each query in turns.
pub fn compare(indexed: &Indexed, rounds: usize) -> Outcome<Vec<Class>> {
    let mut classes = Vec::new();
    for (name, queries) in CLASSES {
        let mut times: [Vec<f64>; 4] = Default::default();
        let mut ratios = Vec::new();
        for _ in 0..rounds {
            let mut round: [Vec<f64>; 4] = Default::default();
            for turn in 0..TURNS * queries.len() {
                let query = queries[turn % queries.len()];
                for place in 0..4 {
                    let engine = (place + turn / queries.len()) % 4;
                    let start = Instant::now();
                    let found = match engine {
                        0 => strand::search(&indexed.live, query, LIMIT)?.len(),
                        1 => strand::search(&indexed.settled, query, LIMIT)?.len(),
                        2 => indexed.peer.search(query, LIMIT)?,
                        _ => indexed.peer_no_stop_words.search(query, LIMIT)?,
                    };
                    round[engine].push(us(start.elapsed()));
                    if found == 0 {
                        return Err(format!("{query} finds nothing").into());
                    }
                }
            }
            ratios
                .push(mean_of_medians(&round[0], queries.len()) / mean_of_medians(&round[2], queries.len()));
            for (all, round) in times.iter_mut().zip(&round) {
                all.push(mean_of_medians(round, queries.len()));
            }
        }
        let [live, settled, peer, no_stop_words] = times.map(median);
        ratios.sort_by(f64::total_cmp);
        classes.push(Class {
            name,
            live_us: live,
            settled_us: settled,
            peer_us: Some(peer),
            peer_no_stop_words_us: Some(no_stop_words),
            ratio: Some([ratios[0], ratios[ratios.len() / 2], ratios[ratios.len() - 1]]),
        });
    }
    for (name, queries) in OWN_CLASSES {
        let mut times: [Vec<f64>; 2] = Default::default();
        for turn in 0..rounds * TURNS * queries.len() {
            for (index, times) in [&indexed.live, &indexed.settled].into_iter().zip(&mut times) {
                let start = Instant::now();
                strand::search(index, queries[turn % queries.len()], LIMIT)?;
                times.push(us(start.elapsed()));
            }
        }
        let [live_us, settled_us] = times.map(|times| mean_of_medians(&times, queries.len()));
        let (peer_us, peer_no_stop_words_us, ratio) = (None, None, None);
        classes.push(Class { name, live_us, settled_us, peer_us, peer_no_stop_words_us, ratio });
    }
    Ok(classes)
}

/// Asks Strand alone the queries of the classes whose names begin so, for a while each, and prints each query's median.
pub fn watch(index: &TextIndex, class: &str, time: Duration) -> Outcome<()> {
    let classes = CLASSES.iter().chain(OWN_CLASSES).filter(|(name, _)| name.starts_with(class));
    for (name, queries) in classes {
        let mut times = vec![Vec::new(); queries.len()];
        let end = Instant::now() + time;
        while Instant::now() < end {
            for (query, times) in queries.iter().zip(&mut times) {
                let start = Instant::now();
                strand::search(index, query, LIMIT)?;
                times.push(us(start.elapsed()));
            }
        }
        let each: Vec<String> =
            queries.iter().zip(times).map(|(q, t)| format!("{q}: {:.1}", median(t))).collect();
        println!("{name}: {}", each.join(", "));
    }
    Ok(())
}

/// As [`watch`], with tantivy in turns: for each query Strand's median, tantivy's, and their ratio.
pub fn beside(index: &TextIndex, peer: &Peer, class: &str, time: Duration) -> Outcome<()> {
    for (name, queries) in CLASSES.iter().filter(|(name, _)| name.starts_with(class)) {
        println!("{name}");
        for query in queries.iter() {
            let (mut own, mut others) = (Vec::new(), Vec::new());
            let end = Instant::now() + time / queries.len() as u32;
            while Instant::now() < end {
                let start = Instant::now();
                strand::search(index, query, LIMIT)?;
                let middle = Instant::now();
                peer.search(query, LIMIT)?;
                own.push(us(middle - start));
                others.push(us(middle.elapsed()));
            }
            let (own, other) = (median(own), median(others));
            println!("  {query}: {own:.1} : {other:.1} = {:.2}", own / other);
        }
    }
    Ok(())
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The mean over a class's queries of each one's median: no query hides behind the others.
fn mean_of_medians(times: &[f64], queries: usize) -> f64 {
    let of = |query: usize| median(times.iter().skip(query).step_by(queries).copied().collect());
    (0..queries).map(of).sum::<f64>() / queries as f64
}

/// The middle of some figures.
pub fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}
