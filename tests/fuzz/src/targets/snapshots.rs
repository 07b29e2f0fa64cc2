//! Snapshot files: whatever stands in one, it is refused or it is a state, never a panic. Checksums are set right after
//! most mutations, so that what stands behind them is read.

use super::{Target, words_of};
use crate::drive::{CLUSTER, drive};
use crate::engine::{behaviour, class_of};
use shards::ids::GroupId;
use shards::ids::Sequence;
use shards::shard::image::{ImageBuilder, ImageError, ImageIdentity, SnapshotIntake};
use shards::state::SessionLimits;
use strand_sim::rng::Rng;
use xxhash_rust::xxh3::xxh3_64;

// The byte map of shards/src/snapshot/format.rs.
const FILE_HEADER_BYTES: usize = 580;
const HEAD_BYTES: usize = 40;
const HEAD_MAGIC: &[u8; 4] = b"SBLK";

/// See the module's head.
pub(super) struct Snapshots {
    files: Vec<(GroupId, Vec<u8>)>,
}

impl Snapshots {
    /// The target.
    pub(super) fn new() -> Self {
        Self { files: drive().snapshots }
    }
}

fn put(bytes: &mut [u8], at: usize, number: &[u8]) {
    bytes[at..at + number.len()].copy_from_slice(number);
}

/// Sets lengths, places and checksums of all blocks right, from front to back as far as there are blocks.
pub(super) fn seal(file: &mut [u8]) {
    if file.len() < FILE_HEADER_BYTES {
        return;
    }
    let crc = crc32c::crc32c(&file[..FILE_HEADER_BYTES - 4]);
    put(file, FILE_HEADER_BYTES - 4, &crc.to_le_bytes());
    let identity = xxh3_64(&file[..FILE_HEADER_BYTES]);
    let (mut at, mut ordinal) = (FILE_HEADER_BYTES, 0_u32);
    while file.len() >= at + HEAD_BYTES {
        let payload = at + HEAD_BYTES;
        // A payload ends where the next head begins, so that what grew or shrank is still a block.
        let next =
            (payload..file.len().saturating_sub(3)).find(|place| file[*place..].starts_with(HEAD_MAGIC));
        let end = next.unwrap_or(file.len());
        let is_footer = file[at + 4] == 4;
        if is_footer && end - payload == 72 {
            put(file, payload + 64, &(end as u64).to_le_bytes());
        }
        put(file, at, HEAD_MAGIC);
        put(file, at + 8, &((end - payload) as u32).to_le_bytes());
        let crc = crc32c::crc32c(&file[payload..end]);
        put(file, at + 12, &crc.to_le_bytes());
        put(file, at + 16, &(at as u64).to_le_bytes());
        put(file, at + 24, &identity.to_le_bytes());
        put(file, at + 32, &ordinal.to_le_bytes());
        let crc = crc32c::crc32c(&file[at..at + 36]);
        put(file, at + 36, &crc.to_le_bytes());
        (at, ordinal) = (end, ordinal + 1);
    }
}

impl Target for Snapshots {
    fn seeds(&self) -> Vec<Vec<u8>> {
        self.files.iter().map(|(_, file)| file.clone()).collect()
    }

    fn words(&self) -> Vec<Vec<u8>> {
        let mut words =
            words_of(&["SBLK", "transactions", "catalogue", "cluster", "indexes", "members", "STRNDSNP"]);
        words.extend([vec![0; 4], vec![0xff; 4], vec![0xff; 8], vec![1, 0, 0, 0]]);
        words
    }

    fn bytes_max(&self) -> usize {
        8 << 10
    }

    fn seal(&self, _: &mut Rng, input: &mut Vec<u8>) {
        seal(input);
    }

    fn run(&mut self, input: &[u8]) -> u64 {
        let group = GroupId(input.get(32).map_or(0, |byte| u32::from(byte & 1)));
        let identity = ImageIdentity { cluster: CLUSTER, shard: group.0, group };
        let mut intake = SnapshotIntake::new(identity, SessionLimits::default());
        let read = input.chunks(1 + input.len() / 3).try_for_each(|piece| intake.feed(piece));
        let read = read.and_then(|()| intake.finish());
        let read = read.and_then(|image| {
            ImageBuilder::new(group, Some(image), SessionLimits::default()).finish(Sequence(0))
        });
        match read {
            Ok(image) => {
                // What was taken can be summed and counted.
                let digest = image.state.keys.digest();
                behaviour(&[1, class_of(digest.records as usize)])
            }
            Err(error) => {
                let text = match &error {
                    ImageError::Snapshot(error) => error.to_string(),
                    ImageError::Mismatch(text) => text.clone(),
                };
                let letters: Vec<u8> = text.bytes().filter(u8::is_ascii_alphabetic).take(60).collect();
                behaviour(&[2, xxh3_64(&letters)])
            }
        }
    }
}
