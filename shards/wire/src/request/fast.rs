//! The fast path: one pass over the common shapes of GET, SET, DELETE, EXISTS and INCR, without an allocation.
//!
//! It gives a request or nothing, never a refusal: whatever it does not recognise at once (an escape, another field,
//! anything malformed or out of bounds) is left to the general path. What it gives equals what that path gives, which a
//! property test holds.

use super::data::{Consistency, Delete, Durability, Get, Incr, KeyRead, Session, Set};
use super::{Command, Request};
use crate::commands::{CLIENT_BYTES_MAX, EXACT_INTEGER_MAX, SEQ_MAX};
use crate::json::{self, FaultKind, Scanner};
use crate::limits::Limits;
use std::borrow::Cow;

/// Commands that the fast path knows.
#[derive(Clone, Copy)]
enum Verb {
    Set,
    Get,
    Delete,
    Exists,
    Incr,
}

/// The members seen so far, as tokens or texts.
#[derive(Default)]
struct Seen<'a> {
    verb: Option<Verb>,
    key: Option<&'a str>,
    value: Option<&'a [u8]>,
    id: Option<&'a [u8]>,
    amount: Option<i64>,
    client: Option<&'a str>,
    seq: Option<u64>,
    acked: Option<u64>,
    ttl_ms: Option<u64>,
    timeout_ms: Option<u32>,
    consistency: Option<Consistency>,
    durability: Option<Durability>,
    with_version: Option<bool>,
}

pub(super) fn parse<'a>(line: &'a [u8], limits: &Limits) -> Option<Request<'a>> {
    let mut scanner = Scanner::new(line);
    let mut seen = Seen::default();
    scanner.skip_space();
    scanner.expect(b'{', FaultKind::Object).ok()?;
    scanner.skip_space();
    loop {
        // Escaped names never equal one of the known ones, and the general path decodes them.
        let name = scanner.name().ok()?.inner();
        read_member(name, &mut scanner, &mut seen, limits)?;
        scanner.skip_space();
        if !scanner.take(b',') {
            break;
        }
        scanner.skip_space();
    }
    scanner.expect(b'}', FaultKind::CommaOrBrace).ok()?;
    scanner.end().ok()?;
    build(&seen)
}

/// Reads one member's value; `None` for an unknown or repeated member and for anything but the plainest value.
#[inline]
fn read_member<'a>(
    name: &[u8],
    scanner: &mut Scanner<'a>,
    seen: &mut Seen<'a>,
    limits: &Limits,
) -> Option<()> {
    match name {
        b"command" => put(&mut seen.verb, verb(scanner.string().ok()?.inner())?),
        b"key" => {
            let key = scanner.string().ok()?.plain()?;
            put(&mut seen.key, key).filter(|()| (1..=limits.key_bytes_max).contains(&key.len()))
        }
        b"value" => {
            let value = scanner.value(limits.value_depth_max()).ok()?;
            put(&mut seen.value, value).filter(|()| value.len() <= limits.value_bytes_max)
        }
        b"id" => {
            let id = scanner.value(0).ok()?;
            let sound = id.len() <= limits.id_bytes_max && (id[0] == b'"' || json::is_integer(id));
            put(&mut seen.id, id).filter(|()| sound)
        }
        b"amount" => put(&mut seen.amount, json::signed(scanner.value(0).ok()?)?),
        b"client" => {
            let client = scanner.string().ok()?.plain()?;
            put(&mut seen.client, client).filter(|()| (1..=CLIENT_BYTES_MAX).contains(&client.len()))
        }
        b"seq" => {
            let seq = json::unsigned(scanner.value(0).ok()?)?;
            put(&mut seen.seq, seq).filter(|()| seq <= SEQ_MAX)
        }
        b"acked" => put(&mut seen.acked, json::unsigned(scanner.value(0).ok()?)?),
        _ => read_option(name, scanner, seen, limits),
    }
}

/// Members that come less often.
fn read_option<'a>(
    name: &[u8],
    scanner: &mut Scanner<'a>,
    seen: &mut Seen<'a>,
    limits: &Limits,
) -> Option<()> {
    let token = match name {
        b"ttl_ms" | b"timeout_ms" | b"consistency" | b"durability" | b"with_version" => {
            scanner.value(0).ok()?
        }
        _ => return None,
    };
    match (name, token) {
        (b"ttl_ms", _) => {
            let ttl_ms = json::unsigned(token)?;
            put(&mut seen.ttl_ms, ttl_ms).filter(|()| (1..=EXACT_INTEGER_MAX).contains(&ttl_ms))
        }
        (b"timeout_ms", _) => {
            let timeout_ms = u32::try_from(json::unsigned(token)?).ok()?;
            put(&mut seen.timeout_ms, timeout_ms)
                .filter(|()| (1..=limits.timeout_ms_max).contains(&timeout_ms))
        }
        (b"consistency", b"\"local\"") => put(&mut seen.consistency, Consistency::Local),
        (b"consistency", b"\"linearizable\"") => put(&mut seen.consistency, Consistency::Linearizable),
        (b"durability", b"\"fsync\"") => put(&mut seen.durability, Durability::Fsync),
        (b"durability", b"\"memory\"") => put(&mut seen.durability, Durability::Memory),
        (b"with_version", b"true") => put(&mut seen.with_version, true),
        (b"with_version", b"false") => put(&mut seen.with_version, false),
        _ => None,
    }
}

/// Fills an empty slot.
#[inline]
fn put<T>(slot: &mut Option<T>, value: T) -> Option<()> {
    if slot.is_some() {
        return None;
    }
    *slot = Some(value);
    Some(())
}

#[inline]
fn verb(name: &[u8]) -> Option<Verb> {
    match name {
        b"SET" | b"set" => Some(Verb::Set),
        b"GET" | b"get" => Some(Verb::Get),
        b"DELETE" | b"delete" => Some(Verb::Delete),
        b"EXISTS" | b"exists" => Some(Verb::Exists),
        b"INCR" | b"incr" => Some(Verb::Incr),
        _ => None,
    }
}

/// Puts the members together, if they are those that the command takes.
#[inline]
fn build<'a>(seen: &Seen<'a>) -> Option<Request<'a>> {
    let verb = seen.verb?;
    let key = Cow::Borrowed(seen.key?);
    let session = match (seen.client, seen.seq) {
        (Some(client), Some(seq)) => Some(Session { client: Cow::Borrowed(client), seq, acked: seen.acked }),
        (None, None) if seen.acked.is_none() => None,
        _ => return None,
    };
    let durability = seen.durability.unwrap_or_default();
    let consistency = seen.consistency.unwrap_or_default();
    let with_version = seen.with_version.unwrap_or(false);
    if !takes_what_was_seen(verb, seen) {
        return None;
    }
    let command = match verb {
        Verb::Set => Command::Set(Set {
            key,
            value: seen.value?,
            ttl_ms: seen.ttl_ms,
            condition: None,
            session,
            durability,
            with_version,
            debug: false,
        }),
        Verb::Incr => Command::Incr(Incr { key, amount: seen.amount.unwrap_or(1), session, durability }),
        Verb::Delete => Command::Delete(Delete { key, condition: None, session, durability }),
        Verb::Get => Command::Get(Get { key, consistency, with_version }),
        Verb::Exists => Command::Exists(KeyRead { key, consistency }),
    };
    Some(Request { id: seen.id, timeout_ms: seen.timeout_ms, command })
}

/// Whether every member seen is one that the command has.
#[inline]
fn takes_what_was_seen(verb: Verb, seen: &Seen<'_>) -> bool {
    let (set, get) = (matches!(verb, Verb::Set), matches!(verb, Verb::Get));
    let read = get || matches!(verb, Verb::Exists);
    (set || (seen.value.is_none() && seen.ttl_ms.is_none()))
        && (matches!(verb, Verb::Incr) || seen.amount.is_none())
        && (read || seen.consistency.is_none())
        && (!read || (seen.durability.is_none() && seen.client.is_none()))
        && (set || get || seen.with_version.is_none())
}
