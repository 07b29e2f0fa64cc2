//! Digests of content: equal for equal content, whatever order and layout it was stored in.
//!
//! A digest is the wrapping sum of a 64-bit hash of every record, so digests of disjoint parts add up and neither the
//! order of writes nor the history of splits shows. It finds lost, doubled and altered records with a chance of 2^-64 to
//! miss; it is no defence against somebody who can choose hashes. The formula stands in snapshots: it belongs to their
//! format version.

use super::record::Record;
use super::sessions::{Reply, StoredClient};
use crate::ids::{KeyHash, Millis, Version};
use xxhash_rust::xxh3::xxh3_64;

/// Number and digest of some records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Digest {
    /// How many records.
    pub records: u64,
    /// The wrapping sum of their hashes.
    pub sum: u64,
}

impl Digest {
    /// Adds the records of a disjoint part.
    pub fn add(&mut self, part: Self) {
        self.records += part.records;
        self.sum = self.sum.wrapping_add(part.sum);
    }

    /// Adds one record.
    pub(crate) fn add_record(&mut self, hash: KeyHash, record: &Record<'_>) {
        let value_hash = match record.large {
            Some(large) => large.hash,
            None => xxh3_64(record.value),
        };
        self.add_hashed(hash, value_hash, record.version, record.expires_at, record.flags.bits());
    }

    /// Adds one record by the hashes of its key and value.
    pub(crate) fn add_hashed(
        &mut self,
        hash: KeyHash,
        value_hash: u64,
        version: Version,
        expires_at: Option<Millis>,
        flags: u8,
    ) {
        let mut parts = [0; 38];
        parts[..8].copy_from_slice(&hash.0.to_le_bytes());
        parts[8..16].copy_from_slice(&value_hash.to_le_bytes());
        parts[16..24].copy_from_slice(&version.place.to_le_bytes());
        parts[24..28].copy_from_slice(&version.epoch.to_le_bytes());
        parts[28] = flags;
        if let Some(expires_at) = expires_at {
            parts[29] = 1;
            parts[30..38].copy_from_slice(&expires_at.0.to_le_bytes());
        }
        self.records += 1;
        self.sum = self.sum.wrapping_add(xxh3_64(&parts));
    }
}

/// Numbers and digest of some clients' sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SessionDigest {
    /// How many clients.
    pub clients: u64,
    /// How many remembered replies.
    pub replies: u64,
    /// The wrapping sum of the hashes of clients and replies.
    pub sum: u64,
}

impl SessionDigest {
    /// Adds one client with its replies.
    pub(crate) fn add<'a>(
        &mut self,
        client: &StoredClient<'_>,
        replies: impl IntoIterator<Item = &'a Reply>,
    ) {
        let id_hash = xxh3_64(client.id);
        let numbers = [id_hash, client.floor, client.last_active.0, client.due.0, client.order];
        self.clients += 1;
        self.add_parts(numbers, u8::from(client.idle));
        for reply in replies {
            let numbers = [id_hash, reply.seq, reply.fingerprint, reply.stamp.0, xxh3_64(&reply.body)];
            self.replies += 1;
            self.add_parts(numbers, reply.kind_code());
        }
    }

    fn add_parts(&mut self, numbers: [u64; 5], code: u8) {
        let mut parts = [code; 41];
        for (part, number) in parts.chunks_exact_mut(8).zip(numbers) {
            part.copy_from_slice(&number.to_le_bytes());
        }
        self.sum = self.sum.wrapping_add(xxh3_64(&parts));
    }
}
