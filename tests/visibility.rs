//! A search sees every write that was acknowledged before it was sent, whoever wrote and however busy the server is.
//!
//! Pairs of connections: one writes and waits for the reply, the other one searches then. What was written must be found, and
//! what was replaced or deleted must be gone, in every form of search, while four other connections write. 2,000 pairs by
//! default; `STRAND_VISIBILITY_PAIRS=100000 cargo test --release --test visibility` is the full form, which takes minutes.

mod support;

use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use support::client::Connection;
use support::random::Random;
use support::server::{Server, Setup};
use support::{from_environment, say, timed};

/// Threads of pairs. Each has keys of its own, so that it knows what they hold.
const WRITERS: u64 = 4;
/// Keys of a thread of pairs.
const KEYS: u64 = 500;
/// Connections that only write.
const OTHERS: u64 = 4;
/// Writes under way on each of these.
const OTHERS_DEPTH: usize = 8;

const COMMON: &[&str] = &[
    "river", "boat", "doctor", "piano", "music", "teacher", "school", "engine", "tree", "bear", "größe",
    "東京",
];

fn words(random: &mut Random, count: u64) -> Vec<&'static str> {
    (0..count).map(|_| COMMON[random.below(COMMON.len() as u64) as usize]).collect()
}

/// A document that a word of its own tells from every other one, ever.
struct Document {
    key: String,
    /// The number of the write; none when it is deleted.
    serial: Option<u64>,
}

fn own_word(writer: u64, serial: u64) -> String {
    format!("own{writer}x{serial}q")
}

fn value(random: &mut Random, writer: u64, serial: u64) -> Value {
    let count = 1 + random.below(20);
    let text = words(random, count).join(" ");
    json!({"n": serial, "v": [serial % 997, writer], "text": format!("{text} {} boat {text}", own_word(writer, serial))})
}

/// Searches that find the document of a serial number, and no other.
fn search(random: &mut Random, writer: u64, serial: u64) -> Value {
    let word = own_word(writer, serial);
    match random.below(8) {
        0 => json!({"command": "SEARCH", "query": word}),
        1 => json!({"command": "SEARCH", "query": format!("\"{word} boat\"")}),
        2 => json!({"command": "SEARCH", "query": format!("+{word} boat doctor"), "with_values": true}),
        3 => json!({"command": "SEARCH", "query": format!("{word}*")}),
        4 => {
            json!({"command": "SEARCH", "query": word, "filter": {"field": "n", "value": serial}, "highlight": true})
        }
        5 => json!({"command": "SEMANTIC_SEARCH", "query": word}),
        6 => json!({"command": "HYBRID_SEARCH", "query": format!("+{word}"), "model": "tfidf", "alpha": 0}),
        _ => json!({"command": "QUERY_INDEX", "field": "n", "value": serial}),
    }
}

fn finds(reply: &Value, key: &str) -> bool {
    let hits = reply.as_array().expect("a list of hits");
    hits.iter().any(|hit| hit == key || hit["key"] == key)
}

/// One thread of pairs; returns how many writes were searched for, and how many deletions.
fn pairs(server: &Server, writer: u64, left: &AtomicU64) -> (u64, u64) {
    let mut random = Random::new(from_environment("STRAND_SEED", 1) * 100 + writer);
    let (mut writes, mut reads) = (server.connect(), server.connect());
    let key = |n: u64| format!("pair{writer}-{n}");
    let mut documents: Vec<Document> = (0..KEYS).map(|n| Document { key: key(n), serial: None }).collect();
    // A number that no other thread gives: the value index holds those of all.
    let mut serial = writer;
    let (mut sought, mut gone) = (0, 0);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        let at = random.below(KEYS) as usize;
        let before = documents[at].serial;
        let count = if random.chance(1, 10) { 3 } else { 1 };
        if before.is_some() && random.chance(1, 4) {
            assert_eq!(writes.get(&json!({"command": "DELETE", "key": documents[at].key})), true);
            documents[at].serial = None;
        } else {
            let mut items = Vec::new();
            for place in (at..at + count).map(|place| place % KEYS as usize) {
                serial += WRITERS;
                items.push((documents[place].key.clone(), value(&mut random, writer, serial)));
                documents[place].serial = Some(serial);
            }
            match &items[..] {
                [(key, value)] => {
                    writes.get(&json!({"command": "SET", "key": key, "value": value}));
                }
                _ => {
                    writes.get(&json!({"command": "BULK_SET", "items": items}));
                }
            }
        }
        let Document { key, serial: now } = &documents[at];
        if let Some(now) = now {
            let request = search(&mut random, writer, *now);
            let reply = reads.get(&request);
            assert!(finds(&reply, key), "{key} was acknowledged: {request} -> {reply}");
            sought += 1;
        }
        if let Some(before) = before {
            let request = search(&mut random, writer, before);
            let reply = reads.get(&request);
            assert_eq!(reply, json!([]), "{key} had {before} before, and now {now:?}: {request}");
            gone += u64::from(now.is_none());
        }
    }
    (sought, gone)
}

/// A connection that writes until the pairs are done; returns how many writes were acknowledged.
fn write_on(mut connection: Connection, number: u64, done: &AtomicBool) -> u64 {
    let mut random = Random::new(900 + number);
    let mut count = 0;
    while !done.load(Ordering::Relaxed) {
        let requests: Vec<Value> = (0..OTHERS_DEPTH)
            .map(|_| {
                let key = format!("other{number}-{}", random.below(2000));
                match random.below(5) {
                    0 => json!({"command": "DELETE", "key": key}),
                    _ => json!({"command": "SET", "key": key, "value": words(&mut random, 30).join(" ")}),
                }
            })
            .collect();
        let replies = connection.pipeline(&requests);
        assert!(replies.iter().all(|reply| reply["status"] == "success"), "{replies:?}");
        count += requests.len() as u64;
    }
    count
}

#[test]
fn every_acknowledged_write_is_found_and_every_deleted_document_is_gone() {
    let _timed = timed("write, then search, on separate connections");
    let wanted = from_environment("STRAND_VISIBILITY_PAIRS", 2000);
    let setup = Setup::small("visibility").with(&["--shards", "2"]).set(&["wal.segment_mib=16"]);
    let server = setup.start();
    server.get(&json!({"command": "CREATE_INDEX", "field": "n"}));
    let (left, done) = (AtomicU64::new(wanted), AtomicBool::new(false));
    let began = std::time::Instant::now();
    let (sought, gone, beside) = std::thread::scope(|scope| {
        let others = [(); OTHERS as usize].map(|()| server.connect());
        let others = (0..).zip(others).map(|(number, connection)| {
            let done = &done;
            scope.spawn(move || write_on(connection, number, done))
        });
        let others: Vec<_> = others.collect();
        let threads: Vec<_> = (0..WRITERS)
            .map(|writer| (writer, &server, &left))
            .map(|(writer, server, left)| scope.spawn(move || pairs(server, writer, left)))
            .collect();
        // The other writers end also when a pair was wrong.
        let outcomes: Vec<_> = threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        let beside: u64 = others.into_iter().map(|thread| thread.join().expect("it writes on")).sum();
        let outcomes = outcomes.into_iter().map(|outcome| outcome.expect("every pair was right"));
        let (sought, gone) = outcomes.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        (sought, gone, beside)
    });
    let seconds = began.elapsed().as_secs_f64();
    say(&format!(
        "{wanted} pairs in {seconds:.1} s: {sought} writes found, {gone} deletions seen, {beside} writes beside"
    ));
    assert!(sought + gone == wanted && gone > wanted / 20 && beside > wanted / 4, "each pair searched");
    server.stop();
}
