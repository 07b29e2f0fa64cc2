//! The binary form of one command, in batches from the router and in log entries.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | operation, [`Op`] |
//! | 1 | 1 | zero |
//! | 2 | 2 | flags |
//! | 4 | 2 | length of the key |
//! | 6 | 2 | length of the session block |
//! | 8 | 4 | length of the value |
//! | 12 | 8 | argument, with [`flag::ARGUMENT`] |
//! | | 1 + n | condition, with [`flag::CONDITION`] |
//! | | | key, value, session block |
//!
//! All numbers are little endian. The session block {seq u64, acked u64, client} stands last, so that everything before
//! it can be hashed to recognise a retry. Operation numbers below 64 are part of the storage format: never renumber them.

use crate::ids::Version;
use xxhash_rust::xxh3::xxh3_64;

/// What a command does. Below 64: logged. From 64: reads. From 96: asked of a leader, turned into other commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Op {
    /// Store a value.
    Set = 1,
    /// Remove a key.
    Delete = 2,
    /// Add the argument to an integer.
    Incr = 3,
    /// Set a time to live, the argument in milliseconds.
    Expire = 4,
    /// Remove a time to live.
    Persist = 5,
    /// Store several values of this shard at once; the value holds [`super::items`].
    BulkSet = 6,
    /// Remove several keys of this shard at once.
    BulkDelete = 7,
    /// Remove those of the keys whose time to live is over at this entry's stamp.
    Expired = 8,
    /// Open a transaction at its coordinator.
    TxnOpen = 9,
    /// Take locks and intents at a participant.
    TxnPrepare = 10,
    /// Decide a transaction at its coordinator: the commit point.
    TxnDecide = 11,
    /// Apply or drop intents at a participant.
    TxnFinish = 12,
    /// Forget a transaction that every participant has finished.
    TxnForget = 13,
    /// Change the index catalogue; the value holds the change.
    Catalog = 14,
    /// Store the reply of a multi-step command for its retries.
    Remember = 15,
    /// Change the cluster's meta state (group 0); the value holds the change.
    Meta = 16,

    /// Read a value.
    Get = 64,
    /// Whether a key exists.
    Exists = 65,
    /// The remaining time to live.
    Ttl = 66,
    /// Read several values with their versions.
    ReadMany = 67,
    /// One page of keys.
    Scan = 68,
    /// Look up a reply stored by [`Op::Remember`] or a plain retry.
    Recall = 69,
    /// Counters of the shard.
    Info = 70,
    /// The index catalogue and the progress of each index.
    Indexes = 71,
    /// First phase of a search.
    SearchStats = 72,
    /// Second phase of a search.
    SearchHits = 73,
    /// One page of a value index.
    QueryIndex = 74,
    /// How a group and its replicas are, as its leader sees them.
    Members = 75,

    /// Run a transaction over several groups.
    TxnStart = 96,
    /// Remove a slice of the keys with a prefix.
    DeletePrefix = 97,
    /// Write a snapshot now.
    Snapshot = 98,
    /// Change the index catalogue.
    CatalogChange = 99,
    /// Change the cluster's meta state.
    MetaChange = 100,
}

impl Op {
    /// The operation with this number.
    #[inline]
    pub fn from_number(number: u8) -> Option<Self> {
        BY_NUMBER.get(usize::from(number)).copied().flatten()
    }

    /// Whether the command changes state and so goes through the log as it is.
    pub fn is_logged(self) -> bool {
        (self as u8) < 64
    }
}

/// Every operation by its number, so that reading one is a single look: it is done for each request, twice.
const BY_NUMBER: [Option<Op>; 128] = {
    use Op::*;
    const ALL: &[Op] = &[
        Set,
        Delete,
        Incr,
        Expire,
        Persist,
        BulkSet,
        BulkDelete,
        Expired,
        TxnOpen,
        TxnPrepare,
        TxnDecide,
        TxnFinish,
        TxnForget,
        Catalog,
        Remember,
        Meta,
        Get,
        Exists,
        Ttl,
        ReadMany,
        Scan,
        Recall,
        Info,
        Indexes,
        SearchStats,
        SearchHits,
        QueryIndex,
        Members,
        TxnStart,
        DeletePrefix,
        Snapshot,
        CatalogChange,
        MetaChange,
    ];
    let mut table = [None; 128];
    let mut at = 0;
    while at < ALL.len() {
        table[ALL[at] as usize] = Some(ALL[at]);
        at += 1;
    }
    table
};

/// Bits of the flags field.
pub mod flag {
    /// The record has an argument.
    pub const ARGUMENT: u16 = 1;
    /// The record has a condition.
    pub const CONDITION: u16 = 1 << 1;
    /// The reply shall tell the version.
    pub const WITH_VERSION: u16 = 1 << 2;
    /// A fault may be injected into the non-log write of this record.
    pub const DEBUG: u16 = 1 << 3;
    /// The acknowledgement waits for the sync, whatever the floor.
    pub const FSYNC: u16 = 1 << 4;
    /// A read that may be answered from this replica's state as it is.
    pub const LOCAL: u16 = 1 << 5;
    /// Pages carry values.
    pub const WITH_VALUES: u16 = 1 << 6;
}

/// When a write applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition<'a> {
    /// Only if the key is absent.
    Absent,
    /// Only if the key is present.
    Present,
    /// Only if the record has this version.
    Version(Version),
    /// Only if the value is these bytes.
    Value(&'a [u8]),
}

/// Names a write so that a retry applies once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session<'a> {
    /// The client's own name, 1 to 256 bytes.
    pub client: &'a [u8],
    /// Rising number of the write.
    pub seq: u64,
    /// Lowest number still unanswered; 0 when not given.
    pub acked: u64,
}

/// One command, borrowed from the bytes that hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// What to do.
    pub op: Op,
    /// Bits of [`flag`]; those for argument and condition follow from the fields.
    pub flags: u16,
    /// Time to live in ms, amount to add, or page size, as the operation says.
    pub argument: Option<u64>,
    /// When it applies.
    pub condition: Option<Condition<'a>>,
    /// The key, or the prefix; empty where the operation has none.
    pub key: &'a [u8],
    /// The value token, the items, or the operation's own payload.
    pub value: &'a [u8],
    /// For retries.
    pub session: Option<Session<'a>>,
}

/// Bytes before the argument.
const HEAD_BYTES: usize = 12;
/// Bytes of a session block before the client's name.
const SESSION_HEAD_BYTES: usize = 16;

/// The bytes are no command record: what is wrong with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl<'a> Record<'a> {
    /// A command with neither argument, condition nor session.
    #[inline]
    pub fn plain(op: Op, key: &'a [u8], value: &'a [u8]) -> Self {
        Self { op, flags: 0, argument: None, condition: None, key, value, session: None }
    }

    /// The flags of encoded bytes, for who does not need the rest; none for bytes that are too short.
    pub fn flags_of(bytes: &[u8]) -> u16 {
        bytes.get(2..4).and_then(<[u8]>::first_chunk).map_or(0, |flags| u16::from_le_bytes(*flags))
    }

    /// Whether a flag is set.
    pub fn has(&self, bit: u16) -> bool {
        self.flags & bit != 0
    }

    /// Appends the record's bytes.
    ///
    /// # Panics
    /// When a length does not fit its field; the limits of the wire keep them far below.
    #[inline]
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut flags = self.flags & !(flag::ARGUMENT | flag::CONDITION);
        if self.argument.is_some() {
            flags |= flag::ARGUMENT;
        }
        if self.condition.is_some() {
            flags |= flag::CONDITION;
        }
        let key_length = u16::try_from(self.key.len()).expect("a key fits 16 bits of length");
        let value_length = u32::try_from(self.value.len()).expect("a value fits 32 bits of length");
        let session_length = match self.session {
            Some(s) => u16::try_from(SESSION_HEAD_BYTES + s.client.len()).expect("a client name fits"),
            None => 0,
        };
        let mut head = [0u8; HEAD_BYTES];
        head[0] = self.op as u8;
        head[2..4].copy_from_slice(&flags.to_le_bytes());
        head[4..6].copy_from_slice(&key_length.to_le_bytes());
        head[6..8].copy_from_slice(&session_length.to_le_bytes());
        head[8..12].copy_from_slice(&value_length.to_le_bytes());
        out.extend_from_slice(&head);
        if let Some(argument) = self.argument {
            out.extend_from_slice(&argument.to_le_bytes());
        }
        if let Some(condition) = self.condition {
            encode_condition(condition, out);
        }
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.value);
        if let Some(session) = self.session {
            out.extend_from_slice(&session.seq.to_le_bytes());
            out.extend_from_slice(&session.acked.to_le_bytes());
            out.extend_from_slice(session.client);
        }
    }

    /// Reads a record that fills `bytes`.
    #[inline]
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        // Most have a key and perhaps a value, and nothing else.
        if let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() {
            let flags = u16::from_le_bytes([head[2], head[3]]);
            let key_length = usize::from(u16::from_le_bytes([head[4], head[5]]));
            let has_session = head[6] | head[7] != 0;
            let value_length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
            if flags & (flag::ARGUMENT | flag::CONDITION) == 0
                && !has_session
                && rest.len() == key_length + value_length
                && let Some(op) = Op::from_number(head[0])
            {
                let (key, value) = rest.split_at(key_length);
                return Ok(Self { flags, ..Self::plain(op, key, value) });
            }
        }
        Self::decode_any(bytes)
    }

    #[inline(never)]
    fn decode_any(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let head = bytes.first_chunk::<HEAD_BYTES>().ok_or(Malformed("shorter than its head"))?;
        let op = Op::from_number(head[0]).ok_or(Malformed("unknown operation"))?;
        let flags = u16::from_le_bytes([head[2], head[3]]);
        let key_length = usize::from(u16::from_le_bytes([head[4], head[5]]));
        let session_length = usize::from(u16::from_le_bytes([head[6], head[7]]));
        let value_length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let mut rest = &bytes[HEAD_BYTES..];
        let argument = match flags & flag::ARGUMENT {
            0 => None,
            _ => Some(take_u64(&mut rest)?),
        };
        let condition = match flags & flag::CONDITION {
            0 => None,
            _ => Some(decode_condition(&mut rest)?),
        };
        let key = take(&mut rest, key_length)?;
        let value = take(&mut rest, value_length)?;
        if rest.len() != session_length {
            return Err(Malformed("its lengths do not add up"));
        }
        let session = match session_length {
            0 => None,
            _ => {
                let seq = take_u64(&mut rest)?;
                let acked = take_u64(&mut rest)?;
                Some(Session { client: rest, seq, acked })
            }
        };
        Ok(Self { op, flags, argument, condition, key, value, session })
    }
}

/// The key of an encoded record, for a caller that only needs to place it. Of a record that is damaged elsewhere it may give
/// a key all the same.
#[inline]
pub fn key_of(bytes: &[u8]) -> Result<&[u8], Malformed> {
    if let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>()
        && u16::from_le_bytes([head[2], head[3]]) & (flag::ARGUMENT | flag::CONDITION) == 0
        && let Some(key) = rest.get(..usize::from(u16::from_le_bytes([head[4], head[5]])))
    {
        return Ok(key);
    }
    Record::decode_any(bytes).map(|record| record.key)
}

/// Recognises a retry: the hash of all of an encoded record but its session block.
pub fn fingerprint(bytes: &[u8], session: &Session<'_>) -> u64 {
    let tail = SESSION_HEAD_BYTES + session.client.len();
    assert!(bytes.len() >= HEAD_BYTES + tail, "the session block stands in the record");
    xxh3_64(&bytes[..bytes.len() - tail])
}

/// Splits `length` bytes off the front.
pub(crate) fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (front, back) = rest.split_at_checked(length).ok_or(Malformed("it ends too early"))?;
    *rest = back;
    Ok(front)
}

/// Splits a 64-bit number off the front.
pub(crate) fn take_u64(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let bytes = take(rest, 8)?;
    Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes were taken")))
}

/// Splits a 32-bit number off the front.
pub(crate) fn take_u32(rest: &mut &[u8]) -> Result<u32, Malformed> {
    let bytes = take(rest, 4)?;
    Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes were taken")))
}

/// Splits a 16-bit number off the front.
pub(crate) fn take_u16(rest: &mut &[u8]) -> Result<u16, Malformed> {
    let bytes = take(rest, 2)?;
    Ok(u16::from_le_bytes(bytes.try_into().expect("two bytes were taken")))
}

/// Splits one byte off the front.
pub(crate) fn take_u8(rest: &mut &[u8]) -> Result<u8, Malformed> {
    take(rest, 1).map(|byte| byte[0])
}

fn encode_condition(condition: Condition<'_>, out: &mut Vec<u8>) {
    match condition {
        Condition::Absent => out.push(1),
        Condition::Present => out.push(2),
        Condition::Version(version) => {
            out.push(3);
            out.extend_from_slice(&version.epoch.to_le_bytes());
            out.extend_from_slice(&version.place.to_le_bytes());
        }
        Condition::Value(value) => {
            out.push(4);
            let length = u32::try_from(value.len()).expect("a value fits 32 bits of length");
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(value);
        }
    }
}

fn decode_condition<'a>(rest: &mut &'a [u8]) -> Result<Condition<'a>, Malformed> {
    match take_u8(rest)? {
        1 => Ok(Condition::Absent),
        2 => Ok(Condition::Present),
        3 => Ok(Condition::Version(Version { epoch: take_u32(rest)?, place: take_u64(rest)? })),
        4 => {
            let length = take_u32(rest)? as usize;
            Ok(Condition::Value(take(rest, length)?))
        }
        _ => Err(Malformed("unknown condition")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(record: Record<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(key_of(&bytes), Ok(record.key));
        assert_eq!(Record::decode(&bytes), Record::decode_any(&bytes));
        let mut read = Record::decode(&bytes).unwrap();
        read.flags &= !(flag::ARGUMENT | flag::CONDITION);
        assert_eq!(read, record);
        for end in 0..bytes.len() {
            assert!(Record::decode(&bytes[..end]).is_err(), "cut at {end}");
            assert_eq!(Record::decode(&bytes[..end]), Record::decode_any(&bytes[..end]));
        }
        bytes
    }

    #[test]
    fn records_survive() {
        check(Record::plain(Op::Get, b"k", b""));
        let session = Some(Session { client: b"c1", seq: 9, acked: 4 });
        for condition in [
            None,
            Some(Condition::Absent),
            Some(Condition::Present),
            Some(Condition::Version(Version::new(3, 77, 5))),
            Some(Condition::Value(b"[1]")),
        ] {
            let op = Op::Set;
            check(Record {
                op,
                flags: flag::DEBUG,
                argument: Some(5),
                condition,
                key: b"key",
                value: b"1",
                session,
            });
        }
    }

    #[test]
    fn golden_set() {
        let bytes = check(Record {
            op: Op::Set,
            flags: flag::FSYNC,
            argument: Some(1000),
            condition: Some(Condition::Absent),
            key: b"foo",
            value: b"\"bar\"",
            session: Some(Session { client: b"me", seq: 2, acked: 1 }),
        });
        let golden = "01001300030012000500000 0e80300000000000001666f6f22626172220200000000000000010000000000000 06d65";
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, golden.replace(' ', ""));
    }

    #[test]
    fn fingerprints_ignore_the_session_only() {
        let mut one = Record::plain(Op::Set, b"k", b"1");
        let prints: Vec<u64> = [(1, b"1"), (2, b"1"), (2, b"2")]
            .into_iter()
            .map(|(acked, value)| {
                let session = Session { client: b"c", seq: 5, acked };
                one.session = Some(session);
                one.value = value;
                let mut bytes = Vec::new();
                one.encode(&mut bytes);
                fingerprint(&bytes, &session)
            })
            .collect();
        assert_eq!(prints[0], prints[1]);
        assert_ne!(prints[1], prints[2]);
    }
}
