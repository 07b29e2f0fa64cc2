//! Applies what touches several keys of one shard in one command: BULK_SET, BULK_DELETE and the end of times to live.
//!
//! A command may hold 100,000 items, so whoever applies it goes item by item and may pause between any two of them.

use super::answer::Outcome;
use super::context::Context;
use crate::ids::hash_of;
use crate::txn::Kind;

/// Stores an item or removes its key; how much it adds to the command's result: keys stored, or keys that were there.
pub fn change_item(context: &mut Context<'_>, kind: Kind, key: &[u8], value: &[u8], debug: bool) -> i64 {
    match kind {
        Kind::Set => {
            context.put(hash_of(key), key, value, None, debug);
            1
        }
        Kind::Delete => i64::from(context.take_out(hash_of(key), key)),
        Kind::Read => 0,
    }
}

/// Removes those keys whose time to live is over: how many.
pub fn expired(context: &mut Context<'_>, keys: &[&[u8]]) -> Outcome {
    Outcome::Integer(context.expire(keys.iter().copied()) as i64)
}
