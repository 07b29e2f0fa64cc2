//! The table of commands: the names, fields and types that the parser accepts and that help, completion and docs print.
//!
//! It drives the parser: which fields exist, which are required and which integers are in range comes from here and from
//! nowhere else. It holds no function that looks at a request.

/// How the router must treat a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Answered by the router itself.
    Connection,
    /// Reads one key.
    Read,
    /// Writes one key.
    Write,
    /// Gathers from several shards.
    ScatterRead,
    /// Writes on several shards: on an ordered connection nothing overtakes it in either direction.
    BarrierWrite,
    /// Looks at or changes the server or the cluster.
    Admin,
}

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FieldKind {
    /// A key: text of 1 to `key_bytes_max` bytes.
    Key,
    /// The beginning of keys: text of at most `key_bytes_max` bytes, perhaps empty.
    Prefix,
    /// Text of 1 to this many bytes.
    Text(usize),
    /// The text of a search, of at most `query_bytes_max` bytes.
    Query,
    /// The cursor of an earlier page, or null for the first page.
    Cursor,
    /// Any JSON, kept as it came.
    Any,
    /// A scalar: anything but an array or object.
    Scalar,
    /// An integer from the first to the second.
    Integer(i64, u64),
    /// A number from the first to the second.
    Number(f64, f64),
    /// true or false.
    Flag,
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// An array of keys.
    Keys,
    /// An object, an array of pairs, or an array of objects with `key` and `value`.
    Items,
    /// An array of field paths.
    Paths,
    /// One of the conditions of `if`.
    Condition,
    /// A filter.
    Filter,
    /// An array of numbers.
    Vector,
    /// A string or an integer that the reply repeats.
    Id,
}

/// One field of a command.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Field {
    /// Its name on the wire.
    pub name: &'static str,
    /// Its type.
    pub kind: FieldKind,
    /// Whether a request without it is refused.
    pub required: bool,
    /// What it means, in a few words.
    pub summary: &'static str,
}

/// One command.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CommandSpec {
    /// Its name on the wire, which is read in any case.
    pub name: &'static str,
    /// How the router treats it.
    pub class: Class,
    /// The deadline of a request that gives no `timeout_ms`.
    pub timeout_ms: u32,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Its own fields; [`COMMON`] comes on top.
    pub fields: &'static [Field],
}

/// The most fields that a command has of its own.
pub const FIELDS_MAX: usize = 12;

/// The largest integer that every JSON library keeps exactly: the bound of `ttl_ms`, about 285,000 years.
pub const EXACT_INTEGER_MAX: u64 = (1 << 53) - 1;

/// The largest `client` in bytes.
pub const CLIENT_BYTES_MAX: usize = 256;
/// The largest field path in bytes.
pub const PATH_BYTES_MAX: usize = 1024;
/// The largest version, node name, analyzer name or address in bytes.
pub const NAME_BYTES_MAX: usize = 256;
/// The largest cursor in bytes: a position and a key, escaped in any way.
pub const CURSOR_BYTES_MAX: usize = 64 << 10;
/// The largest token of HELLO in bytes.
pub const TOKEN_BYTES_MAX: usize = 4096;

/// Deadline of requests on keys.
const SHORT_MS: u32 = 5_000;
/// Deadline of searches, scans and admin commands.
const LONG_MS: u32 = 60_000;

const fn must(name: &'static str, kind: FieldKind, summary: &'static str) -> Field {
    Field { name, kind, required: true, summary }
}

const fn may(name: &'static str, kind: FieldKind, summary: &'static str) -> Field {
    Field { name, kind, required: false, summary }
}

const fn command(
    name: &'static str,
    class: Class,
    timeout_ms: u32,
    summary: &'static str,
    fields: &'static [Field],
) -> CommandSpec {
    assert!(fields.len() <= FIELDS_MAX, "the parser holds FIELDS_MAX fields");
    CommandSpec { name, class, timeout_ms, summary, fields }
}

use FieldKind::{
    Any, Choice, Condition, Cursor, Filter, Flag, Id, Integer, Items, Key, Keys, Number, Paths, Prefix,
    Query, Scalar, Text, Vector,
};

const KEY: Field = must("key", Key, "the key");
const CLIENT: Field = may("client", Text(CLIENT_BYTES_MAX), "the client's own id, together with seq");
/// The largest `seq`. The number above it is the floor of a client that has every answer.
pub const SEQ_MAX: u64 = u64::MAX - 1;
const SEQ: Field = may("seq", Integer(0, SEQ_MAX), "the client's rising number: a retry applies once");
const ACKED: Field = may("acked", Integer(0, u64::MAX), "the lowest seq still unanswered");
const DURABILITY: Field =
    may("durability", Choice(&["fsync", "memory"]), "fsync waits for the sync, memory need not");
const CONSISTENCY: Field =
    may("consistency", Choice(&["linearizable", "local"]), "local reads this replica as it is");
const WITH_VERSION: Field = may("with_version", Flag, "adds the version beside the result");
const WITH_VALUES: Field = may("with_values", Flag, "adds the values");
const IF: Field =
    may("if", Condition, "{\"absent\":true}, {\"present\":true}, {\"version\":V} or {\"value\":X}");
const DEBUG: Field = may("debug", Flag, "injects storage faults, for tests");
const TTL_MS: Field = may("ttl_ms", Integer(1, EXACT_INTEGER_MAX), "milliseconds until the key expires");
const TOP_K: Field = may("top_k", Integer(0, u32::MAX as u64), "how many hits, 10 by default; 0 gives none");
const OFFSET: Field = may("offset", Integer(0, u32::MAX as u64), "how many hits to pass over");
const FILTER: Field = may("filter", Filter, "a test on fields, or and, or, not over filters");
const PATH: Field = must("field", Text(PATH_BYTES_MAX), "the field's path, such as a.b");
const INDEX_KINDS: FieldKind = Choice(&["value", "text", "vector"]);
const NODE: Field = must("node", Text(NAME_BYTES_MAX), "the node's id");
const CURSOR: Field = may("cursor", Cursor, "where the page before ended");
const QUERY: Field =
    must("query", Query, "words, phrases, +must -not, AND OR NOT, field:word, pre*, word~1, word^2");

/// Fields that every command takes, beside `command` itself.
pub const COMMON: &[Field] = &[
    may("id", Id, "a string or integer that the reply repeats"),
    may("timeout_ms", Integer(1, u32::MAX as u64), "how long to wait for the answer"),
];

/// Every command, in the order of the documentation.
pub const COMMANDS: &[CommandSpec] = &[
    command("PING", Class::Connection, SHORT_MS, "answers PONG", &[]),
    command(
        "HELLO",
        Class::Connection,
        SHORT_MS,
        "sets up the connection and describes the server",
        &[
            may("ordered", Flag, "false lets replies overtake one another; true by default"),
            may("redirect", Flag, "answer NOT_LEADER instead of forwarding"),
            may("token", Text(TOKEN_BYTES_MAX), "proves who is calling"),
            may("client", Text(CLIENT_BYTES_MAX), "the client's name, for lists and logs"),
        ],
    ),
    command(
        "SET",
        Class::Write,
        SHORT_MS,
        "stores a value",
        &[
            KEY,
            must("value", Any, "any JSON"),
            TTL_MS,
            IF,
            CLIENT,
            SEQ,
            ACKED,
            DURABILITY,
            WITH_VERSION,
            DEBUG,
        ],
    ),
    command("GET", Class::Read, SHORT_MS, "the value of a key", &[KEY, CONSISTENCY, WITH_VERSION]),
    command("DELETE", Class::Write, SHORT_MS, "removes a key", &[KEY, IF, CLIENT, SEQ, ACKED, DURABILITY]),
    command("EXISTS", Class::Read, SHORT_MS, "whether a key is there", &[KEY, CONSISTENCY]),
    command(
        "INCR",
        Class::Write,
        SHORT_MS,
        "adds to an integer",
        &[
            KEY,
            may("amount", Integer(i64::MIN, i64::MAX as u64), "what to add, 1 by default"),
            CLIENT,
            SEQ,
            ACKED,
            DURABILITY,
        ],
    ),
    command(
        "BULK_SET",
        Class::BarrierWrite,
        SHORT_MS,
        "stores many values, all or nothing",
        &[
            must("items", Items, "{k: v}, [[k, v]] or [{\"key\": k, \"value\": v}]"),
            CLIENT,
            SEQ,
            ACKED,
            DEBUG,
        ],
    ),
    command(
        "BULK_GET",
        Class::ScatterRead,
        SHORT_MS,
        "many values in one consistent snapshot",
        &[must("keys", Keys, "the keys"), CONSISTENCY],
    ),
    command(
        "BULK_DELETE",
        Class::BarrierWrite,
        SHORT_MS,
        "removes many keys, all or nothing",
        &[must("keys", Keys, "the keys"), CLIENT, SEQ, ACKED],
    ),
    command(
        "EXPIRE",
        Class::Write,
        SHORT_MS,
        "gives a key a time to live",
        &[KEY, Field { required: true, ..TTL_MS }, CLIENT, SEQ, ACKED],
    ),
    command("TTL", Class::Read, SHORT_MS, "the time a key has left", &[KEY, CONSISTENCY]),
    command("PERSIST", Class::Write, SHORT_MS, "takes the time to live away", &[KEY, CLIENT, SEQ, ACKED]),
    command(
        "SCAN",
        Class::ScatterRead,
        LONG_MS,
        "a page of the keys, in no order",
        &[
            may("prefix", Prefix, "only keys that begin so"),
            CURSOR,
            may("limit", Integer(1, u32::MAX as u64), "keys in a page, 100 by default"),
            WITH_VALUES,
            CONSISTENCY,
        ],
    ),
    command(
        "DELETE_PREFIX",
        Class::BarrierWrite,
        LONG_MS,
        "removes every key that begins so, in slices",
        &[must("prefix", Prefix, "the beginning; empty means every key"), CLIENT, SEQ, ACKED],
    ),
    command(
        "SEARCH",
        Class::ScatterRead,
        LONG_MS,
        "full-text search, best first",
        &[
            QUERY,
            TOP_K,
            OFFSET,
            may("fields", Paths, "only these paths, such as a.b"),
            FILTER,
            WITH_VALUES,
            may("highlight", Flag, "adds snippets with the words marked"),
            CONSISTENCY,
        ],
    ),
    command(
        "SEMANTIC_SEARCH",
        Class::ScatterRead,
        LONG_MS,
        "search by similarity",
        &[
            Field { required: false, ..QUERY },
            may("vector", Vector, "a vector instead of a query"),
            TOP_K,
            may("model", Text(PATH_BYTES_MAX), "tfidf (default), embedding, or the field of a vector index"),
            FILTER,
            CONSISTENCY,
        ],
    ),
    command(
        "HYBRID_SEARCH",
        Class::ScatterRead,
        LONG_MS,
        "full-text search and similarity together",
        &[
            QUERY,
            TOP_K,
            OFFSET,
            may("model", Text(PATH_BYTES_MAX), "embedding (default) or tfidf"),
            may("alpha", Number(0.0, 1.0), "the weight of similarity, 0.2 by default"),
            may("fusion", Choice(&["convex", "rrf"]), "how scores are joined, convex by default"),
            FILTER,
            CONSISTENCY,
        ],
    ),
    command(
        "CREATE_INDEX",
        Class::BarrierWrite,
        LONG_MS,
        "indexes a field",
        &[
            PATH,
            may("kind", INDEX_KINDS, "value by default"),
            may("dim", Integer(1, u32::MAX as u64), "dimensions of a vector index"),
            may("metric", Choice(&["cosine", "dot", "l2"]), "of a vector index, cosine by default"),
            may("analyzer", Text(NAME_BYTES_MAX), "of a text index"),
        ],
    ),
    command(
        "QUERY_INDEX",
        Class::ScatterRead,
        LONG_MS,
        "keys by the value of an indexed field",
        &[
            PATH,
            may("value", Scalar, "equal to"),
            may("gt", Scalar, "greater than"),
            may("gte", Scalar, "greater than or equal to"),
            may("lt", Scalar, "less than"),
            may("lte", Scalar, "less than or equal to"),
            may("prefix", Prefix, "strings that begin so"),
            may("limit", Integer(1, u32::MAX as u64), "keys in a page, 10,000 by default"),
            CURSOR,
            may("order", Choice(&["asc", "desc"]), "asc by default"),
            WITH_VALUES,
            CONSISTENCY,
        ],
    ),
    command("LIST_INDEXES", Class::Admin, LONG_MS, "the indexes and their state", &[]),
    command(
        "DROP_INDEX",
        Class::BarrierWrite,
        LONG_MS,
        "removes an index",
        &[PATH, may("kind", INDEX_KINDS, "only this kind")],
    ),
    command("INFO", Class::Admin, LONG_MS, "figures of this server", &[]),
    command("CLUSTER", Class::Admin, LONG_MS, "nodes and groups of the cluster", &[]),
    command("SNAPSHOT", Class::Admin, LONG_MS, "writes a snapshot of every shard now", &[]),
    command(
        "ADD_NODE",
        Class::Admin,
        LONG_MS,
        "adds a node to the cluster",
        &[
            must("node", Text(NAME_BYTES_MAX), "its id, or ID@HOST:PORT, or ID@HOST:PORT:CLUSTER_PORT"),
            may("address", Text(NAME_BYTES_MAX), "HOST:PORT or HOST:PORT:CLUSTER_PORT, beside a plain id"),
        ],
    ),
    command("REMOVE_NODE", Class::Admin, LONG_MS, "takes a node out of the cluster", &[NODE]),
    command(
        "TRANSFER_LEADER",
        Class::Admin,
        LONG_MS,
        "moves leadership to a node",
        &[NODE, may("shard", Integer(0, u32::MAX as u64), "only this shard; all shards by default")],
    ),
    command("BALANCE", Class::Admin, LONG_MS, "spreads replicas and leaders evenly over the nodes", &[]),
    command("SHUTDOWN", Class::Admin, LONG_MS, "stops the server in good order", &[]),
];

/// The command with this name, in any ASCII case.
pub fn find(name: &str) -> Option<&'static CommandSpec> {
    COMMANDS.iter().find(|spec| spec.name.eq_ignore_ascii_case(name))
}

impl CommandSpec {
    /// The position and description of one of its own fields.
    pub fn field(&self, name: &str) -> Option<(usize, &'static Field)> {
        self.fields.iter().enumerate().find(|(_, field)| field.name == name)
    }

    /// The names of all fields that a request of this command may have, common ones last.
    pub fn field_names(&self) -> impl Iterator<Item = &'static str> {
        self.fields.iter().chain(COMMON).map(|field| field.name).chain(["command"])
    }
}

/// Names longer than this resemble no name of the protocol.
const NEAR_BYTES_MAX: usize = 32;
/// No name of this length is near a longer one: a third of the longer length is less than what one is longer.
const NEAR_CANDIDATE_BYTES_MAX: usize = 48;
const _: () = assert!(NEAR_CANDIDATE_BYTES_MAX + 1 - NEAR_BYTES_MAX > (NEAR_CANDIDATE_BYTES_MAX + 1) / 3);

/// The candidate that takes the fewest edits (insert, delete, replace a character, any case) to become `name`, if it is
/// near enough to be what was meant: at most a third of the longer length, and at least one edit is always near.
pub fn nearest<'n>(name: &str, candidates: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    if name.len() > NEAR_BYTES_MAX {
        return None;
    }
    let mut best = None;
    // Of equally near ones the first counts, so that a later one must be nearer.
    let mut edits_max = usize::MAX;
    for candidate in candidates {
        let near_max = (name.len().max(candidate.len()) / 3).max(1).min(edits_max);
        if let Some(edits) = edits(name, candidate, near_max) {
            best = Some(candidate);
            if edits == 0 {
                break;
            }
            edits_max = edits - 1;
        }
    }
    best
}

/// Optimal string alignment distance over bytes (Levenshtein with swaps of neighbours), without regard to ASCII case;
/// nothing if it is more than `edits_max`. Allocates nothing: a reader of many wrong names asks often.
fn edits(left: &str, right: &str, edits_max: usize) -> Option<usize> {
    let is_long = left.len() > NEAR_BYTES_MAX || right.len() > NEAR_CANDIDATE_BYTES_MAX;
    if is_long || left.len().abs_diff(right.len()) > edits_max {
        return None;
    }
    let (left, right) = (left.as_bytes(), right.as_bytes());
    // An edit takes at most one kind of letter away and brings at most one.
    let (kinds, others) = (kinds_of(left), kinds_of(right));
    if (kinds & !others).count_ones().max((others & !kinds).count_ones()) as usize > edits_max {
        return None;
    }
    let same = |a: u8, b: u8| a.eq_ignore_ascii_case(&b);
    let mut before_last = [0; NEAR_CANDIDATE_BYTES_MAX + 1];
    let mut last: [u8; NEAR_CANDIDATE_BYTES_MAX + 1] = std::array::from_fn(|length| length as u8);
    let mut row = [0; NEAR_CANDIDATE_BYTES_MAX + 1];
    let mut last_least = 0;
    for i in 0..left.len() {
        row[0] = i as u8 + 1;
        let mut least = row[0];
        for j in 0..right.len() {
            let replaced = last[j] + u8::from(!same(left[i], right[j]));
            let mut best = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && same(left[i], right[j - 1]) && same(left[i - 1], right[j]) {
                best = best.min(before_last[j - 1] + 1);
            }
            row[j + 1] = best;
            least = least.min(best);
        }
        // Every further row comes from these two, and never goes below them.
        if usize::from(least.min(last_least)) > edits_max {
            return None;
        }
        last_least = least;
        (before_last, last, row) = (last, row, before_last);
    }
    Some(usize::from(last[right.len()])).filter(|edits| *edits <= edits_max)
}

/// Which letters a name has, a bit each without regard to case; other bytes share their bits.
fn kinds_of(name: &[u8]) -> u32 {
    name.iter().fold(0, |kinds, byte| kinds | 1 << (byte & 31))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_fields_too() {
        let names: BTreeSet<&str> = COMMANDS.iter().map(|spec| spec.name).collect();
        assert_eq!(names.len(), COMMANDS.len());
        for spec in COMMANDS {
            let fields: BTreeSet<&str> = spec.field_names().collect();
            assert_eq!(fields.len(), spec.fields.len() + COMMON.len() + 1, "{}", spec.name);
        }
    }

    #[test]
    fn the_nearest_name_is_found() {
        let nearest = |name| nearest(name, COMMANDS.iter().map(|spec| spec.name));
        assert_eq!(nearest("GTE"), Some("GET"));
        assert_eq!(nearest("serch"), Some("SEARCH"));
        assert_eq!(nearest("BULKSET"), Some("BULK_SET"));
        assert_eq!(nearest("FROBNICATE"), None);
        assert_eq!(nearest(&"x".repeat(1000)), None);
    }

    /// The definition, every row kept.
    fn distance(left: &[u8], right: &[u8]) -> usize {
        let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
        for (i, j) in (0..=left.len()).flat_map(|i| (0..=right.len()).map(move |j| (i, j))) {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
                let swapped = (i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1])
                    .then(|| rows[i - 2][j - 2] + 1);
                replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(swapped.unwrap_or(usize::MAX))
            };
        }
        rows[left.len()][right.len()]
    }

    #[test]
    fn a_bound_on_edits_changes_no_answer() {
        let fields = COMMANDS.iter().flat_map(CommandSpec::field_names);
        let names: BTreeSet<&str> = fields.chain(COMMANDS.iter().map(|spec| spec.name)).chain([""]).collect();
        for left in &names {
            for right in &names {
                let exact = distance(
                    &left.to_ascii_lowercase().into_bytes(),
                    &right.to_ascii_lowercase().into_bytes(),
                );
                for edits_max in [0, 1, 2, 3, 5, 8, 100] {
                    let expected = (exact <= edits_max).then_some(exact);
                    assert_eq!(edits(left, right, edits_max), expected, "{left} {right} {edits_max}");
                }
            }
        }
    }
}
