//! What is counted: for each case the state it needs, the lines of a round, and how many rounds.
//!
//! Keys have 16 bytes and values 64, as in the other comparisons. Lines are a function of the round and of their place in
//! it, so that every run sends the same.

use crate::server::Server;
use std::fmt::Write as _;

/// Keys that exist before a case is measured.
const KEYS: u64 = 10_000;
/// Documents and objects that searches find.
const DOCUMENTS: u64 = 2_000;
/// Rounds before those that are measured: buffers have grown and tables are warm after them.
const WARM_UP_ROUNDS: u64 = 10;
const VALUE: &str = "0123456789012345678901234567890123456789012345678901234567890123";
/// Keys of one bulk write.
const BULK_KEYS: u64 = 100;

/// One thing that is counted.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Lines that are sent with one write.
    depth: u64,
    rounds: u64,
    prepare: fn(&mut Server),
    /// Sent before each round and not counted.
    before: Option<Line>,
    line: Line,
}

/// Writes one request without its line end; the number counts lines over all rounds.
type Line = fn(&mut String, u64);

const fn case(name: &'static str, depth: u64, rounds: u64, prepare: fn(&mut Server), line: Line) -> Case {
    Case { name, depth, rounds, prepare, before: None, line }
}

/// All cases, in the order of the table.
pub(crate) const CASES: [Case; 11] = [
    case("get", 64, 100, keys, get),
    case("get-alone", 1, 500, keys, get),
    case("set", 64, 100, keys, set),
    case("set-alone", 1, 500, keys, set),
    // As many for each of four shards as one shard has in `get` and `set`.
    case("get-deep", 256, 40, keys, get),
    case("set-deep", 256, 40, keys, set),
    case("incr", 64, 100, counters, incr),
    Case { before: Some(set), ..case("delete", 64, 100, keys, delete) },
    case("bulk-set", 4, 40, keys, bulk_set),
    case("search", 16, 20, documents, search),
    case("query-index", 16, 20, objects, query_index),
];

impl Case {
    /// Runs it on a server of its own; the requests that were counted, and the turns they took.
    pub(crate) fn run(&self, shards: u16) -> (u64, u64) {
        let mut server = Server::new(shards);
        (self.prepare)(&mut server);
        let mut lines = String::new();
        for round in 0..WARM_UP_ROUNDS + self.rounds {
            if let Some(before) = self.before {
                self.fill(&mut lines, before, round);
                server.round(&lines, self.depth, false);
            }
            self.fill(&mut lines, self.line, round);
            server.round(&lines, self.depth, round >= WARM_UP_ROUNDS);
        }
        (self.rounds * self.depth, server.turns_measured())
    }

    fn fill(&self, lines: &mut String, line: Line, round: u64) {
        lines.clear();
        for number in round * self.depth..(round + 1) * self.depth {
            line(lines, number);
            lines.push('\n');
        }
    }
}

/// A key that no cache foresees.
fn key(number: u64) -> u64 {
    number * 7_919 % KEYS
}

fn load(server: &mut Server, count: u64, line: Line) {
    let mut lines = String::new();
    for first in (0..count).step_by(100) {
        lines.clear();
        for number in first..first + 100 {
            line(&mut lines, number);
            lines.push('\n');
        }
        server.round(&lines, 100, false);
    }
}

fn keys(server: &mut Server) {
    load(server, KEYS, set);
}

fn counters(server: &mut Server) {
    load(server, KEYS, incr);
}

fn documents(server: &mut Server) {
    load(server, DOCUMENTS, document);
    // The first search begins the index; the second one finds it whole.
    server.round("{\"command\":\"SEARCH\",\"query\":\"w1\"}\n", 1, false);
    server.round("{\"command\":\"SEARCH\",\"query\":\"w1\"}\n", 1, false);
    server.rest();
}

fn objects(server: &mut Server) {
    server.round("{\"command\":\"CREATE_INDEX\",\"field\":\"n\"}\n", 1, false);
    load(server, DOCUMENTS, object);
    server.rest();
}

fn get(out: &mut String, number: u64) {
    write!(out, "{{\"command\":\"GET\",\"key\":\"key:{:012}\"}}", key(number)).unwrap();
}

fn set(out: &mut String, number: u64) {
    write!(out, "{{\"command\":\"SET\",\"key\":\"key:{:012}\",\"value\":\"{VALUE}\"}}", key(number)).unwrap();
}

fn incr(out: &mut String, number: u64) {
    write!(out, "{{\"command\":\"INCR\",\"key\":\"num:{:012}\"}}", key(number)).unwrap();
}

fn delete(out: &mut String, number: u64) {
    write!(out, "{{\"command\":\"DELETE\",\"key\":\"key:{:012}\"}}", key(number)).unwrap();
}

fn bulk_set(out: &mut String, number: u64) {
    out.push_str("{\"command\":\"BULK_SET\",\"items\":{");
    for item in 0..BULK_KEYS {
        let comma = if item == 0 { "" } else { "," };
        write!(out, "{comma}\"key:{:012}\":\"{VALUE}\"", key(number * BULK_KEYS + item)).unwrap();
    }
    out.push_str("}}");
}

/// A word; small numbers are asked for far more often than large ones, as in a language.
fn word(draw: u64) -> u64 {
    let spread = draw.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    (spread % 3_000) * (spread / 3_000 % 3_000) / 3_000
}

fn document(out: &mut String, number: u64) {
    write!(out, "{{\"command\":\"SET\",\"key\":\"doc:{number:012}\",\"value\":\"").unwrap();
    (0..20).for_each(|at| write!(out, "w{} ", word(number * 20 + at)).unwrap());
    out.push_str("\"}");
}

fn search(out: &mut String, number: u64) {
    let words = [word(number * 2), word(number * 2 + 1)];
    write!(out, "{{\"command\":\"SEARCH\",\"query\":\"w{} w{}\"}}", words[0], words[1]).unwrap();
}

fn object(out: &mut String, number: u64) {
    let key = number * 7_919 % DOCUMENTS;
    write!(
        out,
        "{{\"command\":\"SET\",\"key\":\"doc:{number:012}\",\"value\":{{\"n\":{key},\"v\":\"{VALUE}\"}}}}"
    )
    .unwrap();
}

fn query_index(out: &mut String, number: u64) {
    let from = number * 7_919 % DOCUMENTS;
    write!(out, "{{\"command\":\"QUERY_INDEX\",\"field\":\"n\",\"gte\":{from},\"limit\":10}}").unwrap();
}
