//! The check that stands between a snapshot and the cut of the log: the file's bytes are read as recovery would read them,
//! and their sums compared with those that the state gave when it was written.

use super::snapshots::Verifier;
use crate::snapshot::{Footer, SnapshotReader};

/// See the module's head.
pub struct ReadBack {
    /// Absent once the end was seen.
    reader: Option<SnapshotReader>,
    expected: Footer,
}

impl ReadBack {
    /// A check against the sums that the state gave.
    pub fn new(expected: Footer) -> Self {
        Self { reader: Some(SnapshotReader::new()), expected }
    }
}

impl Verifier for ReadBack {
    fn chunk(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        let reader = self.reader.as_mut().ok_or("it was read to its end before")?;
        while reader.feed(&mut bytes).map_err(|error| error.to_string())?.is_some() {}
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        let reader = self.reader.take().ok_or("it was read to its end before")?;
        let (_, footer) = reader.finish().map_err(|error| error.to_string())?;
        if footer == self.expected { Ok(()) } else { Err("its sums are not those of the state".to_owned()) }
    }
}
