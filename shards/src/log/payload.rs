//! What batches carry: rkyv archives, little-endian, 32-bit offsets, checked before use.
//!
//! rkyv has no schema evolution, so the types here are frozen: a change makes a `RecordV2` beside `RecordV1` and a new
//! header format that says which to read. The root of an archive stands at its end, so a payload must be cut to its
//! exact length. The encoders borrow what they write; the decoders return views into the bytes they were given.
//! This file must not interpret an entry's data, and never decodes without checking.

use rkyv::rancor;
use rkyv::util::AlignedVec;
use rkyv::with::InlineAsBox;
use rkyv::{Archive, Serialize};

/// A reusable buffer, aligned so that an archive at its start can be read in place.
pub type PayloadBuffer = AlignedVec<16>;

/// Raft's hard state of one group.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[rkyv(derive(Debug))]
pub struct HardStateV1 {
    /// The current term.
    pub term: u64,
    /// Whom this replica voted for in that term; 0 for none.
    pub vote: u64,
    /// The highest index known to be committed.
    pub commit: u64,
}

/// One entry of a group's log.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryV1<'a> {
    /// Term in which it was proposed.
    pub term: u64,
    /// Its index.
    pub index: u64,
    /// Raft's entry type, as the caller numbers it.
    pub kind: u8,
    /// The commands, or the configuration change.
    #[rkyv(with = InlineAsBox)]
    pub data: &'a [u8],
}

/// Payload of an entries batch of one group.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordV1<'a> {
    /// The new hard state, when it changed.
    pub hard_state: Option<HardStateV1>,
    /// Entries to append. The first one's index may lie at or before the end of the group's log: what stood there from
    /// that index on is then replaced.
    #[rkyv(with = InlineAsBox)]
    pub entries: &'a [EntryV1<'a>],
}

/// Raft's configuration of one group, in the words of raft-rs' `ConfState`.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ConfigurationV1<'a> {
    /// Voters of the incoming (or only) configuration.
    #[rkyv(with = InlineAsBox)]
    pub voters: &'a [u64],
    /// Learners.
    #[rkyv(with = InlineAsBox)]
    pub learners: &'a [u64],
    /// Voters of the outgoing configuration, empty outside a joint one.
    #[rkyv(with = InlineAsBox)]
    pub voters_outgoing: &'a [u64],
    /// Voters that become learners when the joint configuration is left.
    #[rkyv(with = InlineAsBox)]
    pub learners_next: &'a [u64],
    /// Whether the joint configuration is left without being asked.
    pub auto_leave: bool,
}

/// One group in a segment start: all that recovery needs when every segment before was cut.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupStartV1<'a> {
    /// The group.
    pub group: u32,
    /// Epoch of its record versions.
    pub epoch: u32,
    /// Hard state after every batch before this segment.
    pub hard_state: HardStateV1,
    /// Configuration after every batch before this segment.
    pub configuration: ConfigurationV1<'a>,
}

/// Payload of a segment start.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartV1<'a> {
    /// Every group that is in this log.
    #[rkyv(with = InlineAsBox)]
    pub groups: &'a [GroupStartV1<'a>],
}

/// A payload that its checksum passed and that is no valid archive: written by other code, or a bug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadError(String);

impl std::fmt::Display for PayloadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the payload of a log batch is not a valid record: {}", self.0)
    }
}

impl std::error::Error for PayloadError {}

impl From<rancor::Error> for PayloadError {
    fn from(error: rancor::Error) -> Self {
        Self(error.to_string())
    }
}

impl RecordV1<'_> {
    /// Replaces the contents of `out` with the archive of this record.
    pub fn encode(&self, out: &mut PayloadBuffer) {
        encode(self, out);
    }
}

impl StartV1<'_> {
    /// Replaces the contents of `out` with the archive of this start.
    pub fn encode(&self, out: &mut PayloadBuffer) {
        encode(self, out);
    }
}

impl ArchivedRecordV1<'_> {
    /// Checks an archive and returns a view of it; copies it to `scratch` first when `payload` is not 16-aligned.
    pub fn view<'a>(payload: &'a [u8], scratch: &'a mut PayloadBuffer) -> Result<&'a Self, PayloadError> {
        Ok(rkyv::access::<Self, rancor::Error>(aligned(payload, scratch))?)
    }
}

impl ArchivedStartV1<'_> {
    /// As [`ArchivedRecordV1::view`].
    pub fn view<'a>(payload: &'a [u8], scratch: &'a mut PayloadBuffer) -> Result<&'a Self, PayloadError> {
        Ok(rkyv::access::<Self, rancor::Error>(aligned(payload, scratch))?)
    }
}

/// Replaces the contents of `out` with the archive of a value.
pub(crate) fn encode<T>(value: &T, out: &mut PayloadBuffer)
where
    T: for<'a> Serialize<
        rkyv::api::high::HighSerializer<PayloadBuffer, rkyv::ser::allocator::ArenaHandle<'a>, rancor::Error>,
    >,
{
    let mut buffer = std::mem::take(out);
    buffer.clear();
    *out = rkyv::api::high::to_bytes_in::<_, rancor::Error>(value, buffer)
        .expect("writing to memory fails only beyond 2 GiB, and a batch is smaller");
}

/// The payload where it can be read in place: itself, or a copy in `scratch` when it is not 16-aligned.
pub(crate) fn aligned<'a>(payload: &'a [u8], scratch: &'a mut PayloadBuffer) -> &'a [u8] {
    if payload.as_ptr().addr().is_multiple_of(16) {
        return payload;
    }
    scratch.clear();
    scratch.extend_from_slice(payload);
    scratch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record<'a>(entries: &'a [EntryV1<'a>]) -> RecordV1<'a> {
        RecordV1 { hard_state: Some(HardStateV1 { term: 3, vote: 1, commit: 41 }), entries }
    }

    #[test]
    fn records_survive_their_bytes_at_any_alignment() {
        let large = vec![0xab; 17 << 20];
        let entries = [
            EntryV1 { term: 3, index: 42, kind: 0, data: b"set" },
            EntryV1 { term: 3, index: 43, kind: 1, data: b"" },
            EntryV1 { term: 3, index: 44, kind: 0, data: &large },
        ];
        let mut bytes = PayloadBuffer::new();
        record(&entries).encode(&mut bytes);
        let mut shifted = vec![0; 1];
        shifted.extend_from_slice(&bytes);
        for payload in [&bytes[..], &shifted[1..]] {
            let mut scratch = PayloadBuffer::new();
            let view = ArchivedRecordV1::view(payload, &mut scratch).unwrap();
            let hard_state = view.hard_state.as_ref().unwrap();
            assert_eq!([hard_state.term, hard_state.vote, hard_state.commit], [3, 1, 41]);
            assert_eq!(view.entries.len(), 3);
            for (read, written) in view.entries.iter().zip(&entries) {
                assert_eq!((read.term.to_native(), read.index.to_native()), (written.term, written.index));
                assert_eq!((read.kind, &read.data[..]), (written.kind, written.data));
            }
        }
    }

    #[test]
    fn starts_survive_their_bytes() {
        let configuration =
            ConfigurationV1 { voters: &[1, 2, 3], learners: &[9], auto_leave: true, ..Default::default() };
        let groups = [GroupStartV1 { group: 5, epoch: 2, hard_state: HardStateV1::default(), configuration }];
        let mut bytes = PayloadBuffer::new();
        StartV1 { groups: &groups }.encode(&mut bytes);
        let mut scratch = PayloadBuffer::new();
        let view = ArchivedStartV1::view(&bytes, &mut scratch).unwrap();
        assert_eq!(view.groups.len(), 1);
        let group = &view.groups[0];
        assert_eq!((group.group.to_native(), group.epoch.to_native()), (5, 2));
        let voters: Vec<u64> = group.configuration.voters.iter().map(|id| id.to_native()).collect();
        assert_eq!(voters, [1, 2, 3]);
        assert_eq!(group.configuration.learners.len(), 1);
        assert!(group.configuration.auto_leave);
    }

    #[test]
    fn golden_bytes() {
        let entries = [EntryV1 { term: 3, index: 42, kind: 7, data: b"abc" }];
        let mut bytes = PayloadBuffer::new();
        record(&entries).encode(&mut bytes);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden_record_v1.hex").trim());
    }

    #[test]
    fn broken_archives_are_refused_without_panic() {
        let entries = [EntryV1 { term: 3, index: 42, kind: 7, data: b"abc" }];
        let mut bytes = PayloadBuffer::new();
        record(&entries).encode(&mut bytes);
        let mut scratch = PayloadBuffer::new();
        for length in 0..bytes.len() {
            let _ = ArchivedRecordV1::view(&bytes[..length], &mut scratch);
        }
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(view) = ArchivedRecordV1::view(&bytes, &mut scratch) {
                assert!(view.entries.iter().map(|entry| entry.data.len()).sum::<usize>() <= 4096);
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(ArchivedRecordV1::view(b"", &mut scratch).is_err());
    }
}
