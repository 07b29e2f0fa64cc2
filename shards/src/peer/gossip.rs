//! What a control link says every few hundred milliseconds: which meta state its sender has, and who leads each group.

use super::PayloadRefused;
use super::meta_codec::{MetaV1, meta_of};
use crate::ids::SLOTS;
use crate::log::payload::{PayloadBuffer, aligned, encode};
use crate::meta::Meta;
use rkyv::rancor;
use rkyv::{Archive, Serialize};

/// What one node tells another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gossip {
    /// Version of the meta state that the sender has.
    pub meta_version: u64,
    /// The meta state itself, for a receiver that is behind.
    pub meta: Option<Meta>,
    /// Term and node of each group's leader as the sender knows it; node 0 for none.
    pub leaders: Vec<(u64, u16)>,
}

#[derive(Archive, Serialize)]
struct GossipV1 {
    meta_version: u64,
    meta: Option<MetaV1>,
    leaders: Vec<LeaderV1>,
}

#[derive(Archive, Serialize)]
struct LeaderV1 {
    term: u64,
    node: u16,
}

impl Gossip {
    /// Replaces the contents of `out`.
    pub fn encode(&self, out: &mut PayloadBuffer) {
        let written = GossipV1 {
            meta_version: self.meta_version,
            meta: self.meta.as_ref().map(MetaV1::from),
            leaders: self.leaders.iter().map(|&(term, node)| LeaderV1 { term, node }).collect(),
        };
        encode(&written, out);
    }

    /// Reads what [`Gossip::encode`] writes.
    ///
    /// # Errors
    /// When the bytes are none, or the meta state contradicts itself.
    pub fn decode(payload: &[u8], scratch: &mut PayloadBuffer) -> Result<Self, PayloadRefused> {
        let read = rkyv::access::<ArchivedGossipV1, rancor::Error>(aligned(payload, scratch))?;
        if read.leaders.len() > usize::from(SLOTS) {
            return Err("leaders of more groups than there can be".into());
        }
        // Terms share a word with the node's number.
        if read.leaders.iter().any(|leader| leader.term.to_native() >= 1 << 48) {
            return Err("a term that no group reaches".into());
        }
        let meta = read.meta.as_ref().map(meta_of).transpose()?;
        Ok(Self {
            meta_version: read.meta_version.to_native(),
            meta,
            leaders: read
                .leaders
                .iter()
                .map(|leader| (leader.term.to_native(), leader.node.to_native()))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::hex;
    use crate::peer::meta_codec::example;
    use proptest::prelude::*;

    fn gossip(meta: Option<Meta>) -> Gossip {
        Gossip { meta_version: 4, meta, leaders: vec![(3, 1), (0, 0)] }
    }

    #[test]
    fn gossip_survives() {
        for meta in [None, Some(example())] {
            let mut bytes = PayloadBuffer::new();
            gossip(meta.clone()).encode(&mut bytes);
            assert_eq!(Gossip::decode(&bytes, &mut PayloadBuffer::new()), Ok(gossip(meta)));
        }
        let mut bytes = PayloadBuffer::new();
        Gossip { leaders: vec![(1 << 48, 1)], ..gossip(None) }.encode(&mut bytes);
        assert!(Gossip::decode(&bytes, &mut PayloadBuffer::new()).is_err());
    }

    #[test]
    fn golden_bytes() {
        let mut bytes = PayloadBuffer::new();
        gossip(None).encode(&mut bytes);
        assert_eq!(hex(&bytes), include_str!("golden_gossip_v1.hex").trim());
    }

    proptest! {
        #[test]
        fn nothing_a_stranger_writes_panics(flip in any::<prop::sample::Index>()) {
            let mut bytes = PayloadBuffer::new();
            gossip(Some(example())).encode(&mut bytes);
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let _ = Gossip::decode(&bytes, &mut PayloadBuffer::new());
        }
    }
}
