//! Builds what a shard starts from out of a snapshot's bytes and the log's batches, without a file in sight.
//!
//! The snapshot comes first, whole and checked; then the batches in order. Entries that the snapshot holds are passed
//! over. What does not fit together (a gap, another group's snapshot) is an error that says so: it is damage.

use super::{Shard, ShardImage};
use crate::catalog::Catalog;
use crate::command::record::Malformed;
use crate::consensus::group::{Append, Restored};
use crate::ids::{GroupId, Millis, Sequence};
use crate::index::set::{IndexSet, SetLoader};
use crate::log::header::BatchKind;
use crate::log::payload::{
    ArchivedConfigurationV1, ArchivedRecordV1, ArchivedStartV1, ConfigurationV1, EntryV1, GroupStartV1,
    HardStateV1, PayloadBuffer, RecordV1, StartV1,
};
use crate::log::replay::ReplayedBatch;
use crate::mutants::{Mutant, is_on};
use crate::snapshot::{SnapshotError, SnapshotLoader};
use crate::state::{SessionLimits, Sessions, State, TableLimits};
use crate::txn::state::TxnState;
use raft::prelude::{ConfState, Entry, EntryType, HardState};
use smallvec::SmallVec;
use std::collections::VecDeque;

/// The replica id of a node that is alone: the only voter of each of its groups.
pub const LONE_REPLICA: u64 = 1;

/// Name of the snapshot section with intents and transaction records.
pub(super) const SECTION_TXNS: &str = "transactions";

/// Name of the snapshot section with the index catalogue.
pub(super) const SECTION_CATALOG: &str = "catalogue";
/// Name of the snapshot section with the indexes: pieces of the index room, each behind its length.
pub(super) const SECTION_INDEXES: &str = "indexes";

/// Why snapshot and log make no shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The snapshot is damaged.
    Snapshot(SnapshotError),
    /// The parts do not fit together.
    Mismatch(String),
}

impl std::fmt::Display for ImageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Snapshot(error) => error.fmt(f),
            Self::Mismatch(text) => f.write_str(text),
        }
    }
}

/// Which data the image must belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageIdentity {
    /// The cluster.
    pub cluster: u128,
    /// The shard.
    pub shard: u32,
    /// The group.
    pub group: GroupId,
}

/// A snapshot on its way in.
pub struct SnapshotIntake {
    identity: ImageIdentity,
    loader: SnapshotLoader,
    sections: Sections,
}

/// What the named sections hold.
#[derive(Default)]
struct Sections {
    txns: Vec<u8>,
    catalog: Vec<u8>,
    /// Bytes of a piece of the indexes that has not come whole.
    piece: Vec<u8>,
    indexes: SetLoader,
    has_indexes: bool,
    error: Option<&'static str>,
}

/// What a snapshot held.
#[derive(Default)]
pub struct SnapshotImage {
    state: State,
    txns: TxnState,
    catalog: Catalog,
    indexes: IndexSet,
    applied_index: u64,
    applied_term: u64,
    stamp: Millis,
    epoch: u32,
}

impl std::fmt::Debug for SnapshotImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotImage").field("applied_index", &self.applied_index).finish_non_exhaustive()
    }
}

impl SnapshotIntake {
    /// An intake at the beginning of a file.
    pub fn new(identity: ImageIdentity, sessions: SessionLimits) -> Self {
        Self {
            identity,
            loader: SnapshotLoader::new(TableLimits::default(), sessions),
            sections: Sections::default(),
        }
    }

    /// Takes the next bytes of the file.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), ImageError> {
        let sections = &mut self.sections;
        let mut section = |name: &str, piece: &[u8]| sections.take(name, piece);
        while self.loader.feed(&mut bytes, &mut section).map_err(ImageError::Snapshot)? {}
        Ok(())
    }

    /// The snapshot, at the end of the file.
    pub fn finish(self) -> Result<SnapshotImage, ImageError> {
        let Self { identity, loader, sections } = self;
        let (state, header, _) = loader.finish().map_err(ImageError::Snapshot)?;
        let found = ImageIdentity { cluster: header.cluster, shard: header.shard, group: header.group };
        if found != identity {
            return Err(ImageError::Mismatch(format!(
                "the snapshot belongs to {found:?}, not to {identity:?}"
            )));
        }
        let (txns, catalog, indexes) = sections.finish().map_err(ImageError::Mismatch)?;
        Ok(SnapshotImage {
            state,
            txns,
            catalog,
            indexes,
            applied_index: header.applied_index,
            applied_term: header.applied_term,
            stamp: header.entry_stamp,
            epoch: header.epoch,
        })
    }
}

impl Sections {
    fn take(&mut self, name: &str, piece: &[u8]) {
        match name {
            SECTION_TXNS => self.txns.extend_from_slice(piece),
            SECTION_CATALOG => self.catalog.extend_from_slice(piece),
            SECTION_INDEXES => {
                self.has_indexes = true;
                self.piece.extend_from_slice(piece);
                self.take_index_pieces();
            }
            // A later version may add what this one does not need; the checksums were right.
            _ => {}
        }
    }

    /// Hands on every piece of the indexes that has come whole.
    fn take_index_pieces(&mut self) {
        let mut taken = 0;
        while let Some((length, rest)) = self.piece[taken..].split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            let Some(section) = rest.get(..length) else { break };
            if let Err(corrupt) = self.indexes.section(section) {
                self.error.get_or_insert(corrupt.0);
            }
            taken += 4 + length;
        }
        self.piece.drain(..taken);
    }

    fn finish(self) -> Result<(TxnState, Catalog, IndexSet), String> {
        let told = |what: &str, malformed: Malformed| format!("its {what} cannot be read: {}", malformed.0);
        if let Some(error) = self.error {
            return Err(format!("its indexes cannot be read: {error}"));
        }
        if !self.piece.is_empty() {
            return Err("its indexes end too early".to_owned());
        }
        let txns = match self.txns.is_empty() {
            true => TxnState::default(),
            false => TxnState::decode(&self.txns).map_err(|malformed| told("transactions", malformed))?,
        };
        let catalog = match self.catalog.is_empty() {
            true => Catalog::default(),
            false => {
                Catalog::decode(&self.catalog).map_err(|malformed| told("index catalogue", malformed))?
            }
        };
        let indexes = match self.has_indexes {
            true => self
                .indexes
                .finish()
                .map_err(|corrupt| format!("its indexes cannot be read: {}", corrupt.0))?,
            false => IndexSet::default(),
        };
        Ok((txns, catalog, indexes))
    }
}

/// Puts the log behind a snapshot.
pub struct ImageBuilder {
    group: GroupId,
    snapshot: SnapshotImage,
    restored: Restored,
    epoch: u32,
    history: VecDeque<(u64, Sequence)>,
    log_bytes: u64,
    scratch: PayloadBuffer,
    error: Option<ImageError>,
}

impl ImageBuilder {
    /// Begins with a snapshot, or with nothing.
    pub fn new(group: GroupId, snapshot: Option<SnapshotImage>, sessions: SessionLimits) -> Self {
        let snapshot = snapshot.unwrap_or_else(|| SnapshotImage {
            state: State { sessions: Sessions::new(sessions), ..State::default() },
            ..SnapshotImage::default()
        });
        let mut snapshot = snapshot;
        if is_on(Mutant::SessionsNotKept) {
            snapshot.state.sessions = Sessions::new(sessions);
        }
        let conf_state = ConfState { voters: vec![LONE_REPLICA], ..ConfState::default() };
        let restored = Restored {
            replica: LONE_REPLICA,
            conf_state,
            snapshot_index: snapshot.applied_index,
            snapshot_term: snapshot.applied_term,
            ..Restored::default()
        };
        Self {
            group,
            epoch: snapshot.epoch,
            snapshot,
            restored,
            history: VecDeque::new(),
            log_bytes: 0,
            scratch: PayloadBuffer::new(),
            error: None,
        }
    }

    /// Takes the next batch of the log. An error is kept and told by [`ImageBuilder::finish`].
    pub fn batch(&mut self, batch: &ReplayedBatch<'_>) {
        if self.error.is_some() {
            return;
        }
        let taken = match batch.kind {
            BatchKind::SegmentStart => self.take_start(batch.payload),
            BatchKind::Entries => self.take_entries(batch),
            BatchKind::Seal => Ok(()),
        };
        if let Err(text) = taken {
            let (segment, offset) = (batch.segment, batch.offset);
            self.error =
                Some(ImageError::Mismatch(format!("log segment {segment}, offset {offset}: {text}")));
        }
    }

    /// The image. `last_sequence` is that of the log's last batch.
    pub fn finish(mut self, last_sequence: Sequence) -> Result<ShardImage, ImageError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        self.restored.sequence = last_sequence;
        if is_on(Mutant::LastEntryLost)
            && self.restored.entries.len() as u64 + self.restored.snapshot_index
                > self.restored.hard_state.commit
        {
            self.restored.entries.pop();
        }
        let last = self.restored.entries.last().map_or(self.restored.snapshot_index, |entry| entry.index);
        if self.restored.hard_state.commit > last {
            let commit = self.restored.hard_state.commit;
            let text = format!("the log says that entry {commit} is committed but ends at entry {last}");
            return Err(ImageError::Mismatch(text));
        }
        let SnapshotImage { state, txns, stamp, catalog, indexes, .. } = self.snapshot;
        let (history, log_bytes) = (self.history, self.log_bytes);
        Ok(ShardImage {
            group: self.restored,
            state,
            txns,
            stamp,
            epoch: self.epoch,
            history,
            log_bytes,
            catalog,
            indexes,
        })
    }

    fn take_start(&mut self, payload: &[u8]) -> Result<(), String> {
        let start = ArchivedStartV1::view(payload, &mut self.scratch).map_err(|error| error.to_string())?;
        for group in start.groups.iter().filter(|group| group.group.to_native() == self.group.0) {
            let hard_state = &group.hard_state;
            self.restored.hard_state = HardState {
                term: hard_state.term.to_native(),
                vote: hard_state.vote.to_native(),
                commit: hard_state.commit.to_native(),
                ..HardState::default()
            };
            if !group.configuration.voters.is_empty() {
                self.restored.conf_state = conf_state(&group.configuration);
            }
            self.epoch = self.epoch.max(group.epoch.to_native());
        }
        Ok(())
    }

    fn take_entries(&mut self, batch: &ReplayedBatch<'_>) -> Result<(), String> {
        if batch.group != self.group {
            return Err(format!("a batch of group {} in the log of group {}", batch.group, self.group));
        }
        self.log_bytes += batch.payload.len() as u64;
        let record =
            ArchivedRecordV1::view(batch.payload, &mut self.scratch).map_err(|error| error.to_string())?;
        if let Some(hard_state) = record.hard_state.as_ref() {
            self.restored.hard_state = HardState {
                term: hard_state.term.to_native(),
                vote: hard_state.vote.to_native(),
                commit: hard_state.commit.to_native(),
                ..HardState::default()
            };
        }
        for archived in record.entries.iter() {
            let entry = Entry {
                term: archived.term.to_native(),
                index: archived.index.to_native(),
                entry_type: entry_type(archived.kind)?,
                data: archived.data.to_vec().into(),
                ..Entry::default()
            };
            put(&mut self.restored, entry)?;
        }
        if let Some(last) = record.entries.last() {
            let index = last.index.to_native();
            while self.history.back().is_some_and(|(before, _)| *before >= index) {
                self.history.pop_back();
            }
            self.history.push_back((index, batch.sequence));
        }
        Ok(())
    }
}

/// Replaces the contents of `out` with the log payload of a batch.
pub fn encode_append(append: &Append, out: &mut PayloadBuffer) {
    let entries: SmallVec<[EntryV1<'_>; 4]> = append
        .entries
        .iter()
        .map(|entry| {
            let kind = entry_kind(entry.entry_type);
            EntryV1 { term: entry.term, index: entry.index, kind, data: &entry.data }
        })
        .collect();
    let HardState { term, vote, commit, .. } = append.hard_state;
    let hard_state = Some(HardStateV1 { term, vote, commit });
    RecordV1 { hard_state, entries: &entries }.encode(out);
}

/// Replaces the contents of `out` with the payload of a segment start.
pub fn encode_start(shard: &Shard, out: &mut PayloadBuffer) {
    let HardState { term, vote, commit, .. } = *shard.group().hard_state();
    let configuration = configuration(shard.group().conf_state());
    let hard_state = HardStateV1 { term, vote, commit };
    let group = GroupStartV1 { group: shard.config.group.0, epoch: shard.epoch, hard_state, configuration };
    StartV1 { groups: &[group] }.encode(out);
}

/// A configuration in the words of the log.
pub(crate) fn configuration(conf_state: &ConfState) -> ConfigurationV1<'_> {
    ConfigurationV1 {
        voters: &conf_state.voters,
        learners: &conf_state.learners,
        voters_outgoing: &conf_state.voters_outgoing,
        learners_next: &conf_state.learners_next,
        auto_leave: conf_state.auto_leave,
    }
}

/// A configuration in the words of raft-rs.
pub(crate) fn conf_state(configuration: &ArchivedConfigurationV1<'_>) -> ConfState {
    let ids = |list: &[rkyv::rend::u64_le]| list.iter().map(|id| id.to_native()).collect::<Vec<_>>();
    ConfState {
        voters: ids(&configuration.voters),
        learners: ids(&configuration.learners),
        voters_outgoing: ids(&configuration.voters_outgoing),
        learners_next: ids(&configuration.learners_next),
        auto_leave: configuration.auto_leave,
        ..ConfState::default()
    }
}

/// The number of an entry's type in the log.
pub fn entry_kind(entry_type: EntryType) -> u8 {
    match entry_type {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    }
}

/// The entry type with a number in the log.
pub(crate) fn entry_type(kind: u8) -> Result<EntryType, String> {
    match kind {
        0 => Ok(EntryType::EntryNormal),
        1 => Ok(EntryType::EntryConfChange),
        2 => Ok(EntryType::EntryConfChangeV2),
        _ => Err(format!("an entry of unknown kind {kind}")),
    }
}

/// Appends an entry, or replaces what stood from its index on.
fn put(restored: &mut Restored, entry: Entry) -> Result<(), String> {
    let base = restored.snapshot_index;
    if entry.index <= base {
        return Ok(());
    }
    let place = (entry.index - base - 1) as usize;
    if place > restored.entries.len() {
        let next = base + restored.entries.len() as u64 + 1;
        return Err(format!("entry {} follows where entry {next} is expected", entry.index));
    }
    restored.entries.truncate(place);
    restored.entries.push(entry);
    Ok(())
}
