//! BULK_SET, BULK_GET and BULK_DELETE: many keys in one line, repeated ones merged.
//!
//! Keys are compared after unescaping. Repeats are found by sorting hashes, and keys only within equal hashes, so no
//! choice of keys costs more than n log n.

use super::data::{Consistency, Session, consistency, session};
use super::fields::{Fields, at_of, check_key, check_value, key_of, shown};
use super::refusal::Problem;
use crate::json::{self, Elements, Fault, Members, Text};
use std::borrow::Cow;

/// A key, unescaped, and its value's JSON token, byte for byte.
pub type Item<'a> = (Cow<'a, str>, &'a [u8]);

/// Stores many values, all or nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct BulkSet<'a> {
    /// Distinct keys in the order of their first appearance, each with the value that it was given last.
    pub items: Vec<Item<'a>>,
    /// Makes retries apply once.
    pub session: Option<Session<'a>>,
    /// Whether storage faults are injected.
    pub debug: bool,
}

/// Reads many values in one snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct BulkGet<'a> {
    /// Distinct keys in the order of their first appearance.
    pub keys: Vec<Cow<'a, str>>,
    /// How fresh the answer must be.
    pub consistency: Consistency,
}

/// Removes many keys, all or nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct BulkDelete<'a> {
    /// Distinct keys in the order of their first appearance.
    pub keys: Vec<Cow<'a, str>>,
    /// Makes retries apply once.
    pub session: Option<Session<'a>>,
}

pub(super) fn bulk_set<'a>(fields: &Fields<'a, '_>) -> Result<BulkSet<'a>, Problem> {
    let (session, debug) = (session(fields)?, fields.flag("debug")?);
    let mut items = read_items(fields)?;
    merge(&mut items, |item| &item.0, |first, last| first.1 = last.1);
    Ok(BulkSet { items, session, debug })
}

pub(super) fn bulk_get<'a>(fields: &Fields<'a, '_>) -> Result<BulkGet<'a>, Problem> {
    Ok(BulkGet { keys: read_keys(fields)?, consistency: consistency(fields)? })
}

pub(super) fn bulk_delete<'a>(fields: &Fields<'a, '_>) -> Result<BulkDelete<'a>, Problem> {
    Ok(BulkDelete { keys: read_keys(fields)?, session: session(fields)? })
}

fn read_keys<'a>(fields: &Fields<'a, '_>) -> Result<Vec<Cow<'a, str>>, Problem> {
    let token = fields.needed("keys");
    if token.first() != Some(&b'[') {
        return Err(Problem::bad(format!(
            "field \"keys\" must be an array of keys, not {}",
            json::kind_of(token)
        )));
    }
    let mut keys = Vec::new();
    for element in Elements::new(token, fields.limits.value_depth_max()) {
        let element = element.map_err(|fault| malformed(fields, token, fault))?;
        check_room(keys.len(), "keys", fields)?;
        // The message is needed only in the error, so the usual string is taken without one.
        keys.push(match json::Scanner::new(element).string().ok().and_then(|text| usual_key(text, fields)) {
            Some(key) => Cow::Borrowed(key),
            None => key_of(element, &format!("keys[{}]", keys.len()), fields.limits)?,
        });
    }
    merge(&mut keys, |key| key, |_, _| {});
    Ok(keys)
}

fn read_items<'a>(fields: &Fields<'a, '_>) -> Result<Vec<Item<'a>>, Problem> {
    let token = fields.needed("items");
    let depth_max = fields.limits.value_depth_max();
    let mut items = Vec::new();
    match token.first() {
        Some(b'{') => {
            for member in Members::new(token, depth_max) {
                let (name, value) = member.map_err(|fault| malformed(fields, token, fault))?;
                check_room(items.len(), "items", fields)?;
                let key = match usual_key(name, fields) {
                    Some(key) => Cow::Borrowed(key),
                    None => decode_key(name, &format!("key {} of field \"items\"", items.len()), fields)?,
                };
                check_item_value(value, items.len(), fields)?;
                items.push((key, value));
            }
        }
        Some(b'[') => {
            for element in Elements::new(token, depth_max + 1) {
                let element = element.map_err(|fault| malformed(fields, token, fault))?;
                check_room(items.len(), "items", fields)?;
                let item = match element.first() {
                    Some(b'[') => read_pair(element, items.len(), fields)?,
                    Some(b'{') => read_object(element, items.len(), fields)?,
                    _ => return Err(no_item(element, items.len())),
                };
                check_item_value(item.1, items.len(), fields)?;
                items.push(item);
            }
        }
        _ => {
            let kind = json::kind_of(token);
            let shapes = "{k: v}, [[k, v]] or [{\"key\": k, \"value\": v}]";
            return Err(Problem::bad(format!("field \"items\" must be one of {shapes}, not {kind}")));
        }
    }
    Ok(items)
}

/// `[key, value]`.
fn read_pair<'a>(token: &'a [u8], position: usize, fields: &Fields<'a, '_>) -> Result<Item<'a>, Problem> {
    let mut elements = Elements::new(token, fields.limits.value_depth_max());
    let mut next = || elements.next().transpose().map_err(|fault| malformed(fields, token, fault));
    let (Some(key), Some(value), None) = (next()?, next()?, next()?) else {
        return Err(no_item(token, position));
    };
    Ok((item_key(key, position, fields)?, value))
}

/// `{"key": key, "value": value}`.
fn read_object<'a>(token: &'a [u8], position: usize, fields: &Fields<'a, '_>) -> Result<Item<'a>, Problem> {
    let (mut key, mut value) = (None, None);
    for member in Members::new(token, fields.limits.value_depth_max()) {
        let (name, token) = member.map_err(|fault| malformed(fields, token, fault))?;
        let name = name.decode().unwrap_or(Cow::Borrowed("\\u"));
        let slot = match &*name {
            "key" => &mut key,
            "value" => &mut value,
            other => {
                let message =
                    format!("items[{position}] has no field {}; it takes key and value", shown(other));
                return Err(Problem::bad(message));
            }
        };
        if slot.replace(token).is_some() {
            return Err(Problem::bad(format!("items[{position}] gives field {} twice", shown(&name))));
        }
    }
    let (Some(key), Some(value)) = (key, value) else { return Err(no_item(token, position)) };
    Ok((item_key(key, position, fields)?, value))
}

fn item_key<'a>(token: &'a [u8], position: usize, fields: &Fields<'a, '_>) -> Result<Cow<'a, str>, Problem> {
    match json::Scanner::new(token).string().ok().and_then(|text| usual_key(text, fields)) {
        Some(key) => Ok(Cow::Borrowed(key)),
        None => key_of(token, &format!("the key of items[{position}]"), fields.limits),
    }
}

/// A key without escapes and of a legal length; anything else takes the way that words its refusal.
fn usual_key<'a>(text: Text<'a>, fields: &Fields<'a, '_>) -> Option<&'a str> {
    text.plain().filter(|key| (1..=fields.limits.key_bytes_max).contains(&key.len()))
}

fn decode_key<'a>(text: Text<'a>, what: &str, fields: &Fields<'a, '_>) -> Result<Cow<'a, str>, Problem> {
    let key = text.decode().map_err(|_| Problem::bad(format!("{what} must not hold a lone surrogate")))?;
    check_key(&key, what, fields.limits)?;
    Ok(key)
}

fn check_item_value(token: &[u8], position: usize, fields: &Fields<'_, '_>) -> Result<(), Problem> {
    if token.len() <= fields.limits.value_bytes_max {
        return Ok(());
    }
    check_value(token, &format!("the value of items[{position}]"), fields.limits)
}

fn check_room(count: usize, name: &str, fields: &Fields<'_, '_>) -> Result<(), Problem> {
    let limit = fields.limits.batch_items_max;
    if count < limit { Ok(()) } else { Err(Problem::too_large(&format!("field \"{name}\""), limit, "items")) }
}

fn no_item(token: &[u8], position: usize) -> Problem {
    let kind = json::kind_of(token);
    Problem::bad(format!(
        "items[{position}] must be [key, value] or {{\"key\": k, \"value\": v}}; this is {kind} of another shape"
    ))
}

/// A fault inside a token that the first pass accepted: only the depth of one value is left to refuse.
fn malformed(fields: &Fields<'_, '_>, token: &[u8], fault: Fault) -> Problem {
    Problem::json(fault, at_of(fields.line, token), fields.limits)
}

/// Keeps the first of the entries with equal keys, after `absorb` gave it what the last of them has.
fn merge<T>(entries: &mut Vec<T>, key_of: impl Fn(&T) -> &Cow<'_, str>, absorb: impl Fn(&mut T, &T)) {
    if entries.len() < 2 {
        return;
    }
    let mut order: Vec<(u64, u32)> =
        (0u32..).zip(entries.iter()).map(|(place, entry)| (hash(key_of(entry).as_bytes()), place)).collect();
    order.sort_unstable_by(|left, right| {
        let keys = || key_of(&entries[left.1 as usize]).cmp(key_of(&entries[right.1 as usize]));
        left.0.cmp(&right.0).then_with(keys).then(left.1.cmp(&right.1))
    });
    let mut repeated = vec![false; entries.len()];
    let mut any = false;
    for run in order.chunk_by(|left, right| {
        left.0 == right.0 && key_of(&entries[left.1 as usize]) == key_of(&entries[right.1 as usize])
    }) {
        for (_, place) in &run[1..] {
            repeated[*place as usize] = true;
            any = true;
        }
    }
    if any {
        absorb_last(entries, &order, &repeated, &absorb);
        let mut repeated = repeated.iter();
        entries.retain(|_| !repeated.next().expect("one mark an entry"));
    }
}

/// In each run of equal keys, which `order` holds by position, gives the first entry what the last one has.
fn absorb_last<T>(entries: &mut [T], order: &[(u64, u32)], repeated: &[bool], absorb: &impl Fn(&mut T, &T)) {
    let mut first = 0;
    for (_, place) in order {
        let place = *place as usize;
        if !repeated[place] {
            first = place;
            continue;
        }
        assert!(first < place, "a run is in the order of the line");
        let (before, after) = entries.split_at_mut(place);
        absorb(&mut before[first], &after[0]);
    }
}

/// A quick hash (multiply and fold, eight bytes a step). It need not resist an attacker: equal hashes only cost
/// comparisons in the sort.
fn hash(key: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let fold = |sum: u64, word: u64| {
        let product = u128::from(sum ^ word) * u128::from(FACTOR);
        (product as u64) ^ (product >> 64) as u64
    };
    let (words, rest) = key.as_chunks::<8>();
    let sum = words.iter().fold(key.len() as u64 ^ FACTOR, |sum, word| fold(sum, u64::from_le_bytes(*word)));
    let mut tail = [0; 8];
    tail[..rest.len()].copy_from_slice(rest);
    fold(sum, u64::from_le_bytes(tail))
}
