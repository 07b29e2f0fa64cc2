//! From a client's command to the record that its shard takes: the one place where the wire meets [`Record`].
//!
//! Commands on one key borrow everything, so that a router encodes straight into the batch that travels. Commands on
//! several keys are split by group first. Nothing here checks limits (the parser has) or chooses between ways of running
//! a command (the router does).

use super::items;
use super::record::{Condition, Op, Record, Session, flag};
use crate::gather::topology::Topology;
use crate::ids::{GroupId, Version};
use crate::txn::Kind;
use crate::txn::message::Start;
use strand_wire::request::{self, Command, Consistency, Durability, KeyCommand, KeyRequest};

/// The version that no record has: what an `if.version` means that is none of ours.
///
/// Its place is beyond every entry index that a log can reach.
pub const NO_VERSION: Version = Version { epoch: u32::MAX, place: u64::MAX };

/// Bytes of a record beside what its line holds: its header, the sizes of a session block and of the parts of a transaction.
const RECORD_OVERHEAD_BYTES: usize = 4096;
/// What an item takes more in a record than in its line. The shortest form is that of BULK_DELETE: a key, two quotes and a
/// comma, against a key and six bytes of lengths.
const ITEM_OVERHEAD_BYTES: usize = 3;
/// The shortest item in a line.
const ITEM_BYTES_MIN: usize = 4;

/// The longest record that a line of at most so many bytes with at most so many items can become.
pub const fn record_bytes_max(line_bytes_max: usize, items_max: usize) -> usize {
    let fitting = line_bytes_max / ITEM_BYTES_MIN;
    let items = if items_max < fitting { items_max } else { fitting };
    line_bytes_max + items * ITEM_OVERHEAD_BYTES + RECORD_OVERHEAD_BYTES
}

/// The record of a request on one key that was read the quick way: the same as [`one_key`] makes of the whole request.
#[inline]
pub fn key_record<'c>(request: &KeyRequest<'c>) -> Record<'c> {
    let op = match request.command {
        KeyCommand::Set => Op::Set,
        KeyCommand::Get => Op::Get,
        KeyCommand::Delete => Op::Delete,
        KeyCommand::Exists => Op::Exists,
        KeyCommand::Incr => Op::Incr,
    };
    let mut record = Record::plain(op, request.key, request.value);
    if op == Op::Incr {
        record.argument = Some(request.amount() as u64);
    }
    if !request.is_plain() {
        add_options(&mut record, request);
    }
    record
}

#[inline(never)]
fn add_options<'c>(record: &mut Record<'c>, request: &KeyRequest<'c>) {
    record.flags =
        bits(request.durability(), request.with_version(), false) | consistency_bits(request.consistency());
    if let Some(ttl_ms) = request.ttl_ms() {
        record.argument = Some(ttl_ms);
    }
    record.session =
        request.session().map(|(client, seq, acked)| Session { client, seq, acked: acked.unwrap_or(0) });
}

/// The record of a command on one key; `None` for every other command.
#[inline]
pub fn one_key<'c>(command: &'c Command<'_>) -> Option<Record<'c>> {
    Some(match command {
        Command::Get(get) => read(Op::Get, &get.key, get.consistency, get.with_version),
        Command::Set(set) => Record {
            op: Op::Set,
            flags: bits(set.durability, set.with_version, set.debug),
            argument: set.ttl_ms,
            condition: condition(set.condition.as_ref()),
            key: set.key.as_bytes(),
            value: set.value,
            session: session(set.session.as_ref()),
        },
        Command::Incr(incr) => Record {
            flags: bits(incr.durability, false, false),
            argument: Some(incr.amount as u64),
            session: session(incr.session.as_ref()),
            ..Record::plain(Op::Incr, incr.key.as_bytes(), &[])
        },
        Command::Delete(delete) => Record {
            flags: bits(delete.durability, false, false),
            condition: condition(delete.condition.as_ref()),
            session: session(delete.session.as_ref()),
            ..Record::plain(Op::Delete, delete.key.as_bytes(), &[])
        },
        Command::Exists(exists) => read(Op::Exists, &exists.key, exists.consistency, false),
        Command::Ttl(ttl) => read(Op::Ttl, &ttl.key, ttl.consistency, false),
        Command::Expire(expire) => Record {
            argument: Some(expire.ttl_ms),
            session: session(expire.session.as_ref()),
            ..Record::plain(Op::Expire, expire.key.as_bytes(), &[])
        },
        Command::Persist(persist) => Record {
            session: session(persist.session.as_ref()),
            ..Record::plain(Op::Persist, persist.key.as_bytes(), &[])
        },
        _ => return None,
    })
}

/// Keys and values by the group that owns them, ascending by group, each group's in the order given.
pub fn split<'k>(
    topology: &Topology,
    entries: impl Iterator<Item = (&'k str, &'k [u8])>,
) -> Vec<(GroupId, Vec<u8>)> {
    let mut by_group: Vec<Vec<u8>> = vec![Vec::new(); topology.groups()];
    for (key, value) in entries {
        items::push(&mut by_group[topology.group_of(key.as_bytes()).0 as usize], key.as_bytes(), value);
    }
    let numbered = (0..).map(GroupId).zip(by_group);
    numbered.filter(|(_, items)| !items.is_empty()).collect()
}

/// Appends the record of a write on several keys, for the lowest of `parts` (see [`split`]): a command of that group
/// when it is the only one, the start of a transaction otherwise.
///
/// # Panics
/// When `parts` is empty or the kind is not a write.
pub fn many_keys(
    kind: Kind,
    parts: &[(GroupId, Vec<u8>)],
    debug: bool,
    session: Option<&request::Session<'_>>,
    out: &mut Vec<u8>,
) {
    let op = match kind {
        Kind::Set => Op::BulkSet,
        Kind::Delete => Op::BulkDelete,
        Kind::Read => unreachable!("reads of several keys are gathered"),
    };
    let flags = if debug { flag::DEBUG } else { 0 };
    let session = self::session(session);
    match parts {
        [] => unreachable!("a write of no keys is answered without a shard"),
        [(_, items)] => Record { flags, session, ..Record::plain(op, &[], items) }.encode(out),
        _ => {
            let mut value = Vec::with_capacity(parts.iter().map(|(_, items)| items.len() + 8).sum());
            start(kind, parts).encode(&mut value);
            Record { flags, session, ..Record::plain(Op::TxnStart, &[], &value) }.encode(out);
        }
    }
}

/// The start of a transaction over `parts`.
pub fn start(kind: Kind, parts: &[(GroupId, Vec<u8>)]) -> Start<'_> {
    Start { kind, parts: parts.iter().map(|(group, items)| (*group, items.as_slice())).collect() }
}

/// The session block of a request.
pub fn session<'c>(session: Option<&'c request::Session<'_>>) -> Option<Session<'c>> {
    session.map(|session| Session {
        client: session.client.as_bytes(),
        seq: session.seq,
        acked: session.acked.unwrap_or(0),
    })
}

/// The flag of a read's consistency.
pub fn consistency_bits(consistency: Consistency) -> u16 {
    match consistency {
        Consistency::Linearizable => 0,
        Consistency::Local => flag::LOCAL,
    }
}

fn read(op: Op, key: &str, consistency: Consistency, with_version: bool) -> Record<'_> {
    let version = if with_version { flag::WITH_VERSION } else { 0 };
    Record { flags: consistency_bits(consistency) | version, ..Record::plain(op, key.as_bytes(), &[]) }
}

fn bits(durability: Durability, with_version: bool, debug: bool) -> u16 {
    let mut flags = 0;
    if durability == Durability::Fsync {
        flags |= flag::FSYNC;
    }
    if with_version {
        flags |= flag::WITH_VERSION;
    }
    if debug {
        flags |= flag::DEBUG;
    }
    flags
}

fn condition<'c>(condition: Option<&'c request::Condition<'_>>) -> Option<Condition<'c>> {
    Some(match condition? {
        request::Condition::Absent => Condition::Absent,
        request::Condition::Present => Condition::Present,
        request::Condition::Version(text) => Condition::Version(version(text)),
        request::Condition::Value(value) => Condition::Value(value),
    })
}

/// Versions are compared as texts, so another spelling of the same numbers is another version.
fn version(text: &str) -> Version {
    Version::parse(text).filter(|version| version.to_string() == text).unwrap_or(NO_VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use strand_wire::limits::Limits;

    fn check(line: &str, expected: &Record<'_>) {
        let request = request::parse(line.as_bytes(), &Limits::default()).unwrap();
        let record = one_key(&request.command).unwrap();
        assert_eq!(&record, expected, "{line}");
        if let Some(request) = request::key_request(line.as_bytes(), &Limits::default()) {
            assert_eq!(&key_record(&request), expected, "{line}");
        }
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let mut read = Record::decode(&bytes).unwrap();
        read.flags &= !(flag::ARGUMENT | flag::CONDITION);
        assert_eq!(&read, expected, "{line}");
    }

    #[test]
    fn commands_become_records() {
        check(
            r#"{"command":"GET","key":"a\n","consistency":"local","with_version":true}"#,
            &Record { flags: flag::LOCAL | flag::WITH_VERSION, ..Record::plain(Op::Get, b"a\n", b"") },
        );
        check(r#"{"command":"EXISTS","key":"k"}"#, &Record::plain(Op::Exists, b"k", b""));
        check(
            r#"{"command":"TTL","key":"k","consistency":"local"}"#,
            &Record { flags: flag::LOCAL, ..Record::plain(Op::Ttl, b"k", b"") },
        );
        check(
            r#"{"command":"SET","key":"k","value":[1, 2],"ttl_ms":7,"if":{"value":"x"},"client":"c","seq":3,"acked":2,
               "durability":"fsync","debug":true}"#
                .replace('\n', " ")
                .as_str(),
            &Record {
                flags: flag::FSYNC | flag::DEBUG,
                argument: Some(7),
                condition: Some(Condition::Value(b"\"x\"")),
                session: Some(Session { client: b"c", seq: 3, acked: 2 }),
                ..Record::plain(Op::Set, b"k", b"[1, 2]")
            },
        );
        check(
            r#"{"command":"INCR","key":"k","amount":-2,"durability":"memory"}"#,
            &Record { argument: Some(-2i64 as u64), ..Record::plain(Op::Incr, b"k", b"") },
        );
        check(
            r#"{"command":"DELETE","key":"k","if":{"present":true}}"#,
            &Record { condition: Some(Condition::Present), ..Record::plain(Op::Delete, b"k", b"") },
        );
        let session = Some(Session { client: b"c", seq: 1, acked: 0 });
        check(
            r#"{"command":"EXPIRE","key":"k","ttl_ms":9,"client":"c","seq":1}"#,
            &Record { argument: Some(9), session, ..Record::plain(Op::Expire, b"k", b"") },
        );
        check(
            r#"{"command":"PERSIST","key":"k","client":"c","seq":1}"#,
            &Record { session, ..Record::plain(Op::Persist, b"k", b"") },
        );
    }

    #[test]
    fn the_quick_way_makes_the_same_records() {
        let members = [
            r#""id":7"#,
            r#""timeout_ms":9"#,
            r#""ttl_ms":5"#,
            r#""amount":-3"#,
            r#""consistency":"local""#,
            r#""consistency":"linearizable""#,
            r#""durability":"fsync""#,
            r#""durability":"memory""#,
            r#""with_version":true"#,
            r#""client":"c","seq":4"#,
            r#""client":"c","seq":4,"acked":2"#,
        ];
        let mut quick = 0;
        for command in ["GET", "SET", "DELETE", "EXISTS", "INCR"] {
            let value = if command == "SET" { r#","value":{"a":1}"# } else { "" };
            for (first, second) in members.iter().flat_map(|one| members.map(|other| (*one, other))) {
                let line = format!(r#"{{"command":"{command}","key":"k"{value},{first},{second}}}"#);
                let Some(request) = request::key_request(line.as_bytes(), &Limits::default()) else {
                    continue;
                };
                let whole = request::parse_any(line.as_bytes(), &Limits::default()).unwrap();
                assert_eq!(key_record(&request), one_key(&whole.command).unwrap(), "{line}");
                assert_eq!(request.timeout_ms(), whole.timeout_ms, "{line}");
                assert_eq!(request.id, whole.id.unwrap_or_default(), "{line}");
                quick += 1;
            }
        }
        assert!(quick > 100, "{quick}");
    }

    #[test]
    fn versions_that_are_none_of_ours_equal_nothing() {
        assert_eq!(version("1-2c"), Version { epoch: 1, place: 0x2c });
        for text in ["", "x", "01-2c", "1-2C", "ffffffff-ffffffffffffffff0"] {
            assert_eq!(version(text), NO_VERSION, "{text}");
        }
        // Entry indexes have 54 bits, and the highest of them is never reached.
        assert_ne!(Version::new(u32::MAX, (1 << 54) - 2, 1023), NO_VERSION);
    }

    #[test]
    fn many_keys_go_to_their_groups() {
        let topology = Topology::even(3);
        let keys: Vec<String> = (0..60).map(|number| format!("key{number}")).collect();
        let parts = split(&topology, keys.iter().map(|key| (key.as_str(), &b"1"[..])));
        assert_eq!(parts.iter().map(|(group, _)| group.0).collect::<Vec<_>>(), [0, 1, 2]);
        let mut count = 0;
        for (group, bytes) in &parts {
            for item in items::iter(bytes) {
                let (key, value) = item.unwrap();
                assert_eq!((topology.group_of(key), value), (*group, &b"1"[..]));
                count += 1;
            }
        }
        assert_eq!(count, keys.len());

        let mut bytes = Vec::new();
        many_keys(Kind::Set, &parts, true, None, &mut bytes);
        let record = Record::decode(&bytes).unwrap();
        assert!(record.op == Op::TxnStart && record.has(flag::DEBUG));
        assert_eq!(Start::decode(record.value).unwrap(), start(Kind::Set, &parts));
        bytes.clear();
        many_keys(Kind::Delete, &parts[1..2], false, None, &mut bytes);
        let record = Record::decode(&bytes).unwrap();
        assert_eq!((record.op, record.value), (Op::BulkDelete, parts[1].1.as_slice()));
    }
}
