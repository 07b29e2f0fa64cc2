//! Commands on one key, and on keys by prefix.
//!
//! A value is never looked into here: it stays the token that came.

use super::fields::{Fields, check_bytes, check_value, ill_typed, text_of};
use super::refusal::Problem;
use crate::commands::NAME_BYTES_MAX;
use crate::json::{self, Members};
use std::borrow::Cow;

/// Stores a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Set<'a> {
    /// The key, unescaped.
    pub key: Cow<'a, str>,
    /// The value's JSON token, byte for byte.
    pub value: &'a [u8],
    /// Milliseconds until expiry; a TTL that the key had is cleared without it.
    pub ttl_ms: Option<u64>,
    /// What must hold.
    pub condition: Option<Condition<'a>>,
    /// Makes retries apply once.
    pub session: Option<Session<'a>>,
    /// What the reply waits for.
    pub durability: Durability,
    /// Whether the reply tells the new version.
    pub with_version: bool,
    /// Whether storage faults are injected.
    pub debug: bool,
}

/// Reads a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Get<'a> {
    /// The key, unescaped.
    pub key: Cow<'a, str>,
    /// How fresh the answer must be.
    pub consistency: Consistency,
    /// Whether the reply tells the version.
    pub with_version: bool,
}

/// Removes a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Delete<'a> {
    /// The key, unescaped.
    pub key: Cow<'a, str>,
    /// What must hold.
    pub condition: Option<Condition<'a>>,
    /// Makes retries apply once.
    pub session: Option<Session<'a>>,
    /// What the reply waits for.
    pub durability: Durability,
}

/// EXISTS or TTL of a key.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyRead<'a> {
    /// The key, unescaped.
    pub key: Cow<'a, str>,
    /// How fresh the answer must be.
    pub consistency: Consistency,
}

/// Adds to an integer.
#[derive(Clone, Debug, PartialEq)]
pub struct Incr<'a> {
    /// The key, unescaped.
    pub key: Cow<'a, str>,
    /// What to add.
    pub amount: i64,
    /// Makes retries apply once.
    pub session: Option<Session<'a>>,
    /// What the reply waits for.
    pub durability: Durability,
}

/// Gives a key a time to live.
#[derive(Clone, Debug, PartialEq)]
pub struct Expire<'a> {
    /// The key, unescaped.
    pub key: Cow<'a, str>,
    /// Milliseconds until expiry, 1 or more.
    pub ttl_ms: u64,
    /// Makes retries apply once.
    pub session: Option<Session<'a>>,
}

/// Takes a key's time to live away.
#[derive(Clone, Debug, PartialEq)]
pub struct Persist<'a> {
    /// The key, unescaped.
    pub key: Cow<'a, str>,
    /// Makes retries apply once.
    pub session: Option<Session<'a>>,
}

/// A page of the keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Scan<'a> {
    /// Only keys that begin so; empty for all.
    pub prefix: Cow<'a, str>,
    /// Where the page before ended; absent (or null in the request) for the first page.
    pub cursor: Option<Cow<'a, str>>,
    /// Keys in the page.
    pub limit: u64,
    /// Whether values come with the keys.
    pub with_values: bool,
    /// How fresh the answer must be.
    pub consistency: Consistency,
}

/// Removes every key that begins so.
#[derive(Clone, Debug, PartialEq)]
pub struct DeletePrefix<'a> {
    /// The beginning; empty means every key.
    pub prefix: Cow<'a, str>,
    /// Makes retries apply once.
    pub session: Option<Session<'a>>,
}

/// What must hold of a key for a write to happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition<'a> {
    /// The key is not there.
    Absent,
    /// The key is there.
    Present,
    /// The key has this version.
    Version(Cow<'a, str>),
    /// The key's value is these bytes.
    Value(&'a [u8]),
}

/// Names a write of a client, so that a retry is recognised.
#[derive(Clone, Debug, PartialEq)]
pub struct Session<'a> {
    /// The client's own id, 1 to 256 bytes.
    pub client: Cow<'a, str>,
    /// The number of this write.
    pub seq: u64,
    /// The lowest number that the client has no answer to.
    pub acked: Option<u64>,
}

/// What a write's reply waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// What the operator's floor asks for.
    #[default]
    Default,
    /// The sync.
    Fsync,
    /// No sync, where the floor allows that.
    Memory,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write acknowledged before the read was sent.
    #[default]
    Linearizable,
    /// This replica's state as it is.
    Local,
}

/// Keys in a page of SCAN without `limit`.
const SCAN_LIMIT_DEFAULT: u64 = 100;

pub(super) fn set<'a>(fields: &Fields<'a, '_>) -> Result<Set<'a>, Problem> {
    let value = fields.needed("value");
    let key = fields.key()?;
    check_value(value, "field \"value\"", fields.limits)?;
    Ok(Set {
        key,
        value,
        ttl_ms: fields.unsigned("ttl_ms")?,
        condition: condition(fields)?,
        session: session(fields)?,
        durability: durability(fields)?,
        with_version: fields.flag("with_version")?,
        debug: fields.flag("debug")?,
    })
}

pub(super) fn get<'a>(fields: &Fields<'a, '_>) -> Result<Get<'a>, Problem> {
    let with_version = fields.flag("with_version")?;
    Ok(Get { key: fields.key()?, consistency: consistency(fields)?, with_version })
}

pub(super) fn delete<'a>(fields: &Fields<'a, '_>) -> Result<Delete<'a>, Problem> {
    let (condition, session) = (condition(fields)?, session(fields)?);
    Ok(Delete { key: fields.key()?, condition, session, durability: durability(fields)? })
}

pub(super) fn key_read<'a>(fields: &Fields<'a, '_>) -> Result<KeyRead<'a>, Problem> {
    Ok(KeyRead { key: fields.key()?, consistency: consistency(fields)? })
}

pub(super) fn incr<'a>(fields: &Fields<'a, '_>) -> Result<Incr<'a>, Problem> {
    let amount = fields.signed("amount")?.unwrap_or(1);
    Ok(Incr { key: fields.key()?, amount, session: session(fields)?, durability: durability(fields)? })
}

pub(super) fn expire<'a>(fields: &Fields<'a, '_>) -> Result<Expire<'a>, Problem> {
    let ttl_ms = fields.unsigned("ttl_ms")?.expect("required fields are checked before commands are read");
    Ok(Expire { key: fields.key()?, ttl_ms, session: session(fields)? })
}

pub(super) fn persist<'a>(fields: &Fields<'a, '_>) -> Result<Persist<'a>, Problem> {
    Ok(Persist { key: fields.key()?, session: session(fields)? })
}

pub(super) fn scan<'a>(fields: &Fields<'a, '_>) -> Result<Scan<'a>, Problem> {
    Ok(Scan {
        prefix: fields.text("prefix")?.unwrap_or_default(),
        cursor: fields.text("cursor")?,
        limit: page_limit(fields, SCAN_LIMIT_DEFAULT)?,
        with_values: fields.flag("with_values")?,
        consistency: consistency(fields)?,
    })
}

pub(super) fn delete_prefix<'a>(fields: &Fields<'a, '_>) -> Result<DeletePrefix<'a>, Problem> {
    Ok(DeletePrefix { prefix: fields.needed_text("prefix")?, session: session(fields)? })
}

/// `limit` of a page, within `page_items_max`.
pub(super) fn page_limit(fields: &Fields<'_, '_>, default: u64) -> Result<u64, Problem> {
    let max = fields.limits.page_items_max;
    Ok(fields.unsigned_up_to("limit", max)?.unwrap_or(default.min(max)))
}

/// `client` and `seq` come together or not at all, and `acked` only with them.
pub(super) fn session<'a>(fields: &Fields<'a, '_>) -> Result<Option<Session<'a>>, Problem> {
    let acked = fields.unsigned("acked")?;
    match (fields.text("client")?, fields.unsigned("seq")?) {
        (Some(client), Some(seq)) => Ok(Some(Session { client, seq, acked })),
        (None, None) if acked.is_none() => Ok(None),
        _ => {
            Err(Problem::bad("give \"client\" and \"seq\" together, and \"acked\" only with them".to_owned()))
        }
    }
}

pub(super) fn consistency(fields: &Fields<'_, '_>) -> Result<Consistency, Problem> {
    let chosen = fields.choice("consistency", &[Consistency::Linearizable, Consistency::Local])?;
    Ok(chosen.unwrap_or_default())
}

fn durability(fields: &Fields<'_, '_>) -> Result<Durability, Problem> {
    Ok(fields.choice("durability", &[Durability::Fsync, Durability::Memory])?.unwrap_or_default())
}

fn condition<'a>(fields: &Fields<'a, '_>) -> Result<Option<Condition<'a>>, Problem> {
    let Some(token) = fields.raw("if").0 else { return Ok(None) };
    let expected = || {
        let shapes = "{\"absent\":true}, {\"present\":true}, {\"version\":V} or {\"value\":X}";
        ill_typed("if", &format!("one of {shapes}"), token)
    };
    let mut members = Members::new(token, json::DEPTH_CEILING);
    let (Some(Ok((name, value))), None) = (members.next(), members.next()) else { return Err(expected()) };
    let name = name.decode().map_err(|_| expected())?;
    match (&*name, value) {
        ("absent", b"true") => Ok(Some(Condition::Absent)),
        ("present", b"true") => Ok(Some(Condition::Present)),
        ("version", _) => {
            let version = text_of(value, "\"version\" of field \"if\"")?;
            check_bytes(&version, "\"version\" of field \"if\"", NAME_BYTES_MAX)?;
            Ok(Some(Condition::Version(version)))
        }
        ("value", _) => {
            check_value(value, "\"value\" of field \"if\"", fields.limits)?;
            Ok(Some(Condition::Value(value)))
        }
        _ => Err(expected()),
    }
}
