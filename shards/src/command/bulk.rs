//! Applies what touches several keys of one shard in one command: BULK_SET, BULK_DELETE and the end of times to live.

use super::answer::Outcome;
use super::context::Context;
use super::items;
use super::record::{Malformed, Record, flag};
use crate::ids::hash_of;

/// BULK_SET within one shard: the number of keys.
pub fn set(context: &mut Context<'_>, record: &Record<'_>) -> Result<Outcome, Malformed> {
    set_items(context, record.value, record.has(flag::DEBUG)).map(Outcome::Integer)
}

/// BULK_DELETE within one shard: how many keys were there.
pub fn delete(context: &mut Context<'_>, record: &Record<'_>) -> Result<Outcome, Malformed> {
    delete_items(context, record.value).map(Outcome::Integer)
}

/// Removes those keys whose time to live is over: how many.
pub fn expired(context: &mut Context<'_>, keys: &[&[u8]]) -> Outcome {
    Outcome::Integer(context.expire(keys.iter().copied()) as i64)
}

/// Stores each item; how many.
pub fn set_items(context: &mut Context<'_>, bytes: &[u8], debug: bool) -> Result<i64, Malformed> {
    let mut count = 0;
    for item in items::iter(bytes) {
        let (key, value) = item?;
        context.put(hash_of(key), key, value, None, debug);
        count += 1;
    }
    Ok(count)
}

/// Removes each item's key; how many were there.
pub fn delete_items(context: &mut Context<'_>, bytes: &[u8]) -> Result<i64, Malformed> {
    let mut count = 0;
    for item in items::iter(bytes) {
        let (key, _) = item?;
        count += i64::from(context.take_out(hash_of(key), key));
    }
    Ok(count)
}
