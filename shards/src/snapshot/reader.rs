//! Reading and verifying a snapshot from bytes that come in pieces of any size.
//!
//! Nothing is given out before its checksums and its structure were checked. Whether the file is complete and holds what
//! the state had is known at the end only: [`SnapshotReader::finish`] says it, and until then what was read is not to be
//! used. Memory is bounded by the longest payload. Never finds a key that stands in the file twice by itself, but then
//! the counts or the digest differ.

use super::content::{SessionBlock, TableBlock};
use super::error::{Fault, SnapshotError};
use super::format::{
    BLOCK_HEAD_BYTES, BlockCounts, BlockHead, BlockKind, BlockPlace, FILE_HEADER_BYTES, Footer,
    SnapshotHeader, identity_of,
};
use crate::state::{Digest, SessionDigest};

/// A block, checked.
#[derive(Debug)]
pub enum Block<'a> {
    /// Records of one table.
    Table(TableBlock<'a>),
    /// Sessions of some clients.
    Sessions(SessionBlock<'a>),
    /// The next bytes of a section.
    Section {
        /// The section's name.
        name: &'a str,
        /// What the section's writer gave.
        bytes: &'a [u8],
    },
    /// The end of the file.
    Footer(Footer),
}

/// What the reader gathers bytes for.
#[derive(Clone, Copy, Debug)]
enum Awaited {
    FileHeader,
    Head,
    Payload(BlockHead),
    Nothing,
}

/// An incremental reader that checks everything it reads.
#[derive(Debug)]
pub struct SnapshotReader {
    awaited: Awaited,
    buffer: Vec<u8>,
    /// The buffer holds what was given out last and is to be emptied first.
    spent: bool,
    /// Offset in the file of the first byte in the buffer.
    offset: u64,
    header: Option<SnapshotHeader>,
    identity: u64,
    ordinal: u32,
    blocks: BlockCounts,
    records: Digest,
    sessions: SessionDigest,
    footer: Option<Footer>,
    failed: Option<SnapshotError>,
}

impl Default for SnapshotReader {
    fn default() -> Self {
        Self::new()
    }
}

impl SnapshotReader {
    /// A reader at the beginning of a file.
    pub fn new() -> Self {
        Self {
            awaited: Awaited::FileHeader,
            buffer: Vec::new(),
            spent: false,
            offset: 0,
            header: None,
            identity: 0,
            ordinal: 0,
            blocks: BlockCounts::default(),
            records: Digest::default(),
            sessions: SessionDigest::default(),
            footer: None,
            failed: None,
        }
    }

    /// The file header, once it was read.
    pub fn header(&self) -> Option<&SnapshotHeader> {
        self.header.as_ref()
    }

    /// Takes bytes from the front of `input` until a block is complete or the input is used up (`None`). After an error
    /// every further call returns the same error.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Block<'_>>, SnapshotError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let head = match self.gather(input) {
            Ok(None) => return Ok(None),
            Ok(Some(head)) => head,
            Err(error) => return Err(self.failed.insert(error).clone()),
        };
        let checked = check_payload(&head, &self.buffer, self.offset).and_then(|block| {
            match &block {
                Block::Table(table) => {
                    self.blocks.tables += 1;
                    table.verify(&mut self.records)?;
                }
                Block::Sessions(clients) => {
                    self.blocks.sessions += 1;
                    clients.verify(&mut self.sessions)?;
                }
                Block::Section { .. } => self.blocks.sections += 1,
                Block::Footer(footer) => self.footer = Some(*footer),
            }
            Ok(block)
        });
        match checked {
            Ok(block) => Ok(Some(block)),
            Err(error) => Err(self.failed.insert(error).clone()),
        }
    }

    /// Says at the end of the file whether it was whole and true to the state; the counts of the footer are then those of
    /// the blocks.
    pub fn finish(self) -> Result<(SnapshotHeader, Footer), SnapshotError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let end = self.offset + self.buffer.len() as u64;
        let (Some(header), Some(footer), Awaited::Nothing) = (self.header, self.footer, self.awaited) else {
            return Err(SnapshotError { offset: end, fault: Fault::Truncated });
        };
        let counts = [
            ("bytes", footer.file_bytes, end),
            ("table blocks", footer.blocks.tables, self.blocks.tables),
            ("session blocks", footer.blocks.sessions, self.blocks.sessions),
            ("section blocks", footer.blocks.sections, self.blocks.sections),
            ("records", footer.records.records, self.records.records),
            ("clients", footer.sessions.clients, self.sessions.clients),
            ("replies", footer.sessions.replies, self.sessions.replies),
        ];
        for (of, expected, found) in counts {
            if expected != found {
                return Err(SnapshotError { offset: end, fault: Fault::Count { of, expected, found } });
            }
        }
        if footer.records != self.records || footer.sessions != self.sessions {
            return Err(SnapshotError { offset: end, fault: Fault::Digest });
        }
        Ok((header, footer))
    }

    /// Gathers bytes up to the end of the next payload and gives its head.
    fn gather(&mut self, input: &mut &[u8]) -> Result<Option<BlockHead>, SnapshotError> {
        loop {
            if self.spent {
                self.offset += self.buffer.len() as u64;
                self.buffer.clear();
                self.spent = false;
            }
            let needed = match self.awaited {
                Awaited::FileHeader => FILE_HEADER_BYTES,
                Awaited::Head => BLOCK_HEAD_BYTES,
                Awaited::Payload(head) => head.payload_bytes as usize,
                Awaited::Nothing if input.is_empty() => return Ok(None),
                Awaited::Nothing => return Err(self.error(Fault::BytesAfterFooter)),
            };
            let part = input.len().min(needed - self.buffer.len());
            self.buffer.extend_from_slice(&input[..part]);
            *input = &input[part..];
            if self.buffer.len() < needed {
                return Ok(None);
            }
            self.spent = true;
            match self.awaited {
                Awaited::FileHeader => {
                    let header = SnapshotHeader::decode(&self.buffer).map_err(|fault| self.error(fault))?;
                    self.identity = identity_of(&self.buffer);
                    self.header = Some(header);
                    self.awaited = Awaited::Head;
                }
                Awaited::Head => {
                    let place =
                        BlockPlace { offset: self.offset, identity: self.identity, ordinal: self.ordinal };
                    let head = BlockHead::decode(&self.buffer, place).map_err(|fault| self.error(fault))?;
                    self.ordinal = self.ordinal.wrapping_add(1);
                    self.awaited = Awaited::Payload(head);
                }
                Awaited::Payload(head) => {
                    self.awaited =
                        if head.kind == BlockKind::Footer { Awaited::Nothing } else { Awaited::Head };
                    return Ok(Some(head));
                }
                Awaited::Nothing => unreachable!("handled above"),
            }
        }
    }

    fn error(&self, fault: Fault) -> SnapshotError {
        SnapshotError { offset: self.offset, fault }
    }
}

/// Checks a complete payload against its head and reads its frame.
fn check_payload<'a>(head: &BlockHead, payload: &'a [u8], offset: u64) -> Result<Block<'a>, SnapshotError> {
    let error = |fault| SnapshotError { offset, fault };
    if crc32c::crc32c(payload) != head.payload_crc {
        return Err(error(Fault::PayloadChecksum));
    }
    match head.kind {
        BlockKind::Table => TableBlock::parse(payload, offset).map(Block::Table),
        BlockKind::Sessions => Ok(Block::Sessions(SessionBlock::new(payload, offset))),
        BlockKind::Section => {
            let malformed = || error(Fault::Malformed("a section's name is cut or is not UTF-8"));
            let (name_bytes, rest) = payload.split_first().ok_or_else(malformed)?;
            let (name, bytes) = rest.split_at_checked(usize::from(*name_bytes)).ok_or_else(malformed)?;
            let name = std::str::from_utf8(name).map_err(|_| malformed())?;
            Ok(Block::Section { name, bytes })
        }
        BlockKind::Footer => Footer::decode(payload).map(Block::Footer).map_err(error),
    }
}
