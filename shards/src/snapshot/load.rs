//! Loading a snapshot into a state.
//!
//! Records go into tables that are made for them, since each block says which table it is part of. The state is given
//! away only after the whole file proved sound and true, so a wrong value is never served.

use super::content::{SessionBlock, TableBlock};
use super::error::{Fault, SnapshotError};
use super::format::{Footer, SnapshotHeader};
use super::reader::{Block, SnapshotReader};
use crate::ids::Version;
use crate::state::{KeySpace, SessionLimits, Sessions, State, TableLimits};

/// A state in the making.
#[derive(Debug)]
pub struct SnapshotLoader {
    reader: SnapshotReader,
    state: State,
    failed: Option<SnapshotError>,
}

impl SnapshotLoader {
    /// A loader at the beginning of a file.
    pub fn new(tables: TableLimits, sessions: SessionLimits) -> Self {
        let state = State { keys: KeySpace::new(tables), sessions: Sessions::new(sessions) };
        Self { reader: SnapshotReader::new(), state, failed: None }
    }

    /// The file header, once it was read: the caller compares cluster and group before it goes on.
    pub fn header(&self) -> Option<&SnapshotHeader> {
        self.reader.header()
    }

    /// Takes bytes from the front of `input`, at most one block of them, and gives the bytes of sections to `section` with
    /// their name; whether a block was completed. Call it until it was not, then again with more input. Sections are not
    /// proved complete before [`Self::finish`].
    pub fn feed(
        &mut self,
        input: &mut &[u8],
        mut section: impl FnMut(&str, &[u8]),
    ) -> Result<bool, SnapshotError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let loaded = match self.reader.feed(input)? {
            None => return Ok(false),
            Some(Block::Table(block)) => load_table(&mut self.state.keys, &block),
            Some(Block::Sessions(block)) => load_sessions(&mut self.state.sessions, &block),
            Some(Block::Section { name, bytes }) => {
                section(name, bytes);
                Ok(())
            }
            Some(Block::Footer(_)) => Ok(()),
        };
        self.failed = loaded.as_ref().err().cloned();
        loaded.map(|()| true)
    }

    /// The state, at the end of a file that was whole and true.
    pub fn finish(self) -> Result<(State, SnapshotHeader, Footer), SnapshotError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let (header, footer) = self.reader.finish()?;
        let mut state = self.state;
        assert_eq!(state.keys.len() as u64, footer.records.records, "every record read was loaded");
        // Deletes before the snapshot are forgotten: whoever read an absent key before it has to read again.
        let index = header.applied_index.min((1 << 54) - 1);
        state.keys.raise_delete_floor(Version::new(header.epoch, index, 1023));
        Ok((state, header, footer))
    }
}

fn load_table(keys: &mut KeySpace, block: &TableBlock<'_>) -> Result<(), SnapshotError> {
    keys.expect_table(block.first_hash, block.depth, block.table_records as usize);
    block.for_each(|record| {
        if keys.set(record.hash, record.key, record.content) {
            return Err(SnapshotError { offset: record.offset, fault: Fault::DuplicateKey });
        }
        Ok(())
    })
}

fn load_sessions(sessions: &mut Sessions, block: &SessionBlock<'_>) -> Result<(), SnapshotError> {
    block.for_each(|record| {
        if !sessions.restore(record.client, record.replies) {
            return Err(SnapshotError { offset: record.offset, fault: Fault::DuplicateClient });
        }
        Ok(())
    })
}
