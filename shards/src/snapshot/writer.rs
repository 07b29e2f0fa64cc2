//! Writing a snapshot: from the state to chunks of bytes, in slices beside traffic.
//!
//! The caller writes the chunks one after another and does nothing else: heads, checksums and footer are made here. The
//! content is that of the moment of [`SnapshotWriter::begin`], whatever changes afterwards; sections come from modules
//! that see to the same themselves. One table or value is the largest unit of work.

use super::format::{
    BLOCK_HEAD_BYTES, BlockCounts, BlockHead, BlockKind, BlockPlace, FOOTER_BLOCK_BYTES, Footer,
    PAYLOAD_BYTES, SnapshotHeader, identity_of,
};
use super::payload::{Chunk, Payload, PayloadKind};
use crate::state::State;

/// What was written, as the state knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotSummary {
    /// The footer of the file.
    pub footer: Footer,
    /// Records left out by the debug fault; if there are any, reading back must fail.
    pub left_out: u64,
}

/// A snapshot being written. Give it back to [`Self::finish`] or [`Self::abort`]: the state stays in its snapshot else.
#[derive(Debug)]
pub struct SnapshotWriter {
    identity: u64,
    offset: u64,
    ordinal: u32,
    blocks: BlockCounts,
}

impl SnapshotWriter {
    /// Fixes the content of the snapshot and writes the file header. With `faults`, records that carry the debug fault
    /// are lost on the way.
    pub fn begin(header: &SnapshotHeader, faults: bool, state: &mut State, out: &mut Vec<Chunk>) -> Self {
        state.keys.begin_snapshot(faults);
        state.sessions.begin_snapshot();
        let bytes = header.encode();
        out.push(Chunk::Bytes(bytes.to_vec()));
        Self {
            identity: identity_of(&bytes),
            offset: bytes.len() as u64,
            ordinal: 0,
            blocks: BlockCounts::default(),
        }
    }

    /// Writes about `budget_bytes` more, at least one block; whether records or sessions are left to write.
    pub fn slice(&mut self, state: &mut State, budget_bytes: usize, out: &mut Vec<Chunk>) -> bool {
        let mut written = 0;
        while written < budget_bytes.max(1) {
            // What splits took ahead of its turn goes first: it is held in memory until then.
            let sessions_turn = !state.keys.has_payload() && !state.sessions.snapshot_written();
            let payload =
                if sessions_turn { state.sessions.next_payload() } else { state.keys.next_payload() };
            match payload {
                Some(payload) => {
                    written += payload.bytes() + BLOCK_HEAD_BYTES;
                    self.put_payload(payload, out);
                }
                None if sessions_turn => return true,
                None => return !state.sessions.snapshot_written(),
            }
        }
        true
    }

    /// Bytes that the state holds for this snapshot because it changed; writes should slow down while there are many.
    pub fn pending_bytes(state: &State) -> usize {
        state.keys.cut_pending_bytes() + state.sessions.cut_pending_bytes()
    }

    /// Adds bytes to the section of this name (at most 255 bytes long). They are read back in pieces, in order.
    pub fn section(&mut self, name: &str, bytes: &[u8], out: &mut Vec<Chunk>) {
        let name_bytes = u8::try_from(name.len()).expect("the name of a section is short");
        for part in bytes.chunks(PAYLOAD_BYTES - 256) {
            let mut payload = Vec::with_capacity(1 + name.len() + part.len());
            payload.push(name_bytes);
            payload.extend_from_slice(name.as_bytes());
            payload.extend_from_slice(part);
            self.blocks.sections += 1;
            let crc = crc32c::crc32c(&payload);
            self.put_head(BlockKind::Section, payload.len(), crc, out);
            out.push(Chunk::Bytes(payload));
        }
    }

    /// Writes the footer once [`Self::slice`] said that nothing is left. The file ends with it.
    pub fn finish(mut self, state: &mut State, out: &mut Vec<Chunk>) -> SnapshotSummary {
        let records = state.keys.end_snapshot();
        let sessions = state.sessions.end_snapshot();
        let footer = Footer {
            blocks: self.blocks,
            records: records.digest,
            sessions: sessions.digest,
            file_bytes: self.offset + FOOTER_BLOCK_BYTES,
        };
        let payload = footer.encode();
        self.put_head(BlockKind::Footer, payload.len(), crc32c::crc32c(&payload), out);
        out.push(Chunk::Bytes(payload.to_vec()));
        assert_eq!(self.offset, footer.file_bytes, "the footer is the last block");
        SnapshotSummary { footer, left_out: records.left_out }
    }

    /// Gives the snapshot up; what was written so far is of no use.
    pub fn abort(self, state: &mut State) {
        state.keys.abort_snapshot();
        state.sessions.abort_snapshot();
    }

    pub(super) fn put_payload(&mut self, payload: Payload, out: &mut Vec<Chunk>) {
        let kind = match payload.kind {
            PayloadKind::Table => {
                self.blocks.tables += 1;
                BlockKind::Table
            }
            PayloadKind::Sessions => {
                self.blocks.sessions += 1;
                BlockKind::Sessions
            }
        };
        self.put_head(kind, payload.bytes(), payload.crc(), out);
        out.extend(payload.chunks);
    }

    fn put_head(&mut self, kind: BlockKind, payload_bytes: usize, payload_crc: u32, out: &mut Vec<Chunk>) {
        let place = BlockPlace { offset: self.offset, identity: self.identity, ordinal: self.ordinal };
        let payload_bytes = u32::try_from(payload_bytes).expect("a payload is at most 9 MiB long");
        let head = BlockHead { kind, payload_bytes, payload_crc, place };
        out.push(Chunk::Bytes(head.encode().to_vec()));
        self.offset += BLOCK_HEAD_BYTES as u64 + u64::from(payload_bytes);
        self.ordinal += 1;
    }
}
