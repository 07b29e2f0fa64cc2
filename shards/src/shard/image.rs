//! Builds what a shard starts from out of a snapshot's bytes and the log's batches, without a file in sight.
//!
//! The snapshot comes first, whole and checked; then the batches in order. Entries that the snapshot holds are passed
//! over. What does not fit together (a gap, another group's snapshot) is an error that says so: it is damage.

use super::{Shard, ShardImage};
use crate::catalog::Catalog;
use crate::command::record::Malformed;
use crate::consensus::group::{Append, Restored};
use crate::consensus::membership::decode_members;
use crate::consensus::storage::SnapshotOffer;
use crate::ids::{GroupId, Millis, ReplicaId, Sequence};
use crate::index::set::{IndexSet, IndexSettings, SetLoader};
use crate::log::header::BatchKind;
use crate::log::payload::{
    ArchivedConfigurationV1, ArchivedRecordV1, ArchivedStartV1, ConfigurationV1, EntryV1, GroupStartV1,
    HardStateV1, PayloadBuffer, RecordV1, StartV1,
};
use crate::log::replay::ReplayedBatch;
use crate::meta::Meta;
use crate::mutants::{Mutant, is_on};
use crate::peer::meta_codec::decode_meta;
use crate::snapshot::{SnapshotError, SnapshotLoader};
use crate::state::{SessionLimits, Sessions, State, TableLimits};
use crate::txn::state::TxnState;
use raft::prelude::{ConfState, Entry, EntryType, HardState};
use smallvec::SmallVec;
use std::collections::VecDeque;

/// The replica id of a node that is alone: the only voter of each of its groups.
pub const LONE_REPLICA: u64 = 1;

/// Index and term from which the log of a founded group goes on.
const FOUNDING_INDEX: u64 = 1;
/// See [`FOUNDING_INDEX`].
const FOUNDING_TERM: u64 = 1;

/// The kind, in the log, of the marker behind which the log begins anew; its index and term are those of the last entry in
/// the snapshot that takes the place of all before. It stands first in its batch, and raft has no entry type of that number.
pub const RESET_KIND: u8 = 255;

/// Name of the snapshot section with intents and transaction records.
pub(super) const SECTION_TXNS: &str = "transactions";

/// Name of the snapshot section with the index catalogue.
pub(super) const SECTION_CATALOG: &str = "catalogue";
/// Name of the snapshot section with the cluster's meta state (group 0).
pub(super) const SECTION_META: &str = "cluster";
/// Name of the snapshot section with the indexes: pieces of the index room, each behind its length.
pub(super) const SECTION_INDEXES: &str = "indexes";
/// Name of the snapshot section with the group's members, as `consensus::membership` lays them out.
pub(super) const SECTION_MEMBERS: &str = "members";

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
    members: Vec<u8>,
    txns: Vec<u8>,
    catalog: Vec<u8>,
    meta: Vec<u8>,
    /// Bytes of a piece of the indexes that has not come whole.
    piece: Vec<u8>,
    indexes: SetLoader,
    has_indexes: bool,
    error: Option<&'static str>,
}

/// What a snapshot held.
#[derive(Default)]
pub struct SnapshotImage {
    pub(super) state: State,
    pub(super) txns: TxnState,
    pub(super) catalog: Catalog,
    pub(super) meta: Meta,
    pub(super) indexes: IndexSet,
    /// Voters and learners after the last entry; a snapshot from before there were several has none.
    pub(super) members: Option<ConfState>,
    pub(super) applied_index: u64,
    pub(super) applied_term: u64,
    pub(super) stamp: Millis,
    pub(super) epoch: u32,
}

/// Which replica starts, and with which members its group begins when neither log nor snapshot says more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Founding {
    /// A node that is alone: the one voter of each of its groups.
    Alone,
    /// One of the first voters of a cluster's group.
    Voter {
        /// This replica.
        replica: ReplicaId,
        /// All first voters, itself included; the same list on each of them.
        voters: Vec<ReplicaId>,
    },
    /// A replica that was added later and waits to be filled by the leader.
    Empty {
        /// This replica.
        replica: ReplicaId,
    },
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

    /// Says what the operator wants of indexes; before the first bytes.
    #[must_use]
    pub fn with_indexes(mut self, settings: IndexSettings) -> Self {
        self.sections.indexes = SetLoader::new(settings);
        self
    }

    /// Takes the next bytes of the file.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), ImageError> {
        let sections = &mut self.sections;
        let mut section = |name: &str, piece: &[u8]| sections.take(name, piece);
        while self.loader.feed(&mut bytes, &mut section).map_err(ImageError::Snapshot)? {}
        Ok(())
    }

    /// Which data it must belong to.
    pub fn identity(&self) -> ImageIdentity {
        self.identity
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
        let (members, txns, catalog, meta, indexes) = sections.finish().map_err(ImageError::Mismatch)?;
        Ok(SnapshotImage {
            members,
            state,
            txns,
            catalog,
            meta,
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
            SECTION_MEMBERS => self.members.extend_from_slice(piece),
            SECTION_TXNS => self.txns.extend_from_slice(piece),
            SECTION_CATALOG => self.catalog.extend_from_slice(piece),
            SECTION_META => self.meta.extend_from_slice(piece),
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

    fn finish(self) -> Result<(Option<ConfState>, TxnState, Catalog, Meta, IndexSet), String> {
        let told = |what: &str, malformed: Malformed| format!("its {what} cannot be read: {}", malformed.0);
        if let Some(error) = self.error {
            return Err(format!("its indexes cannot be read: {error}"));
        }
        if !self.piece.is_empty() {
            return Err("its indexes end too early".to_owned());
        }
        let members = match self.members.is_empty() {
            true => None,
            false => Some(decode_members(&self.members).map_err(|malformed| told("members", malformed))?),
        };
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
        let meta = match self.meta.is_empty() {
            true => Meta::default(),
            false => decode_meta(&self.meta, &mut PayloadBuffer::new())
                .map_err(|refused| format!("its meta state cannot be read: {}", refused.0))?,
        };
        let indexes = match self.has_indexes {
            true => self
                .indexes
                .finish()
                .map_err(|corrupt| format!("its indexes cannot be read: {}", corrupt.0))?,
            false => IndexSet::default(),
        };
        Ok((members, txns, catalog, meta, indexes))
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
    /// What is read of the log parted from what the snapshot holds; a reset or a rewritten tail ends that.
    is_stale: bool,
    error: Option<ImageError>,
}

impl ImageBuilder {
    /// Begins with a snapshot, or with nothing, for a node that is alone.
    pub fn new(group: GroupId, snapshot: Option<SnapshotImage>, sessions: SessionLimits) -> Self {
        Self::replica(group, &Founding::Alone, snapshot, sessions)
    }

    /// Begins with a snapshot, or as this replica was founded.
    pub fn replica(
        group: GroupId,
        founding: &Founding,
        snapshot: Option<SnapshotImage>,
        sessions: SessionLimits,
    ) -> Self {
        let is_new = snapshot.is_none();
        let mut snapshot = snapshot.unwrap_or_else(|| SnapshotImage {
            state: State { sessions: Sessions::new(sessions), ..State::default() },
            ..SnapshotImage::default()
        });
        if is_on(Mutant::SessionsNotKept) {
            snapshot.state.sessions = Sessions::new(sessions);
        }
        let mut hard_state = HardState::default();
        let (replica, first) = match founding {
            Founding::Alone => (LONE_REPLICA, vec![LONE_REPLICA]),
            Founding::Voter { replica, voters } => {
                assert!(voters.contains(replica), "a first voter stands in the list of them");
                if is_new {
                    // As if a snapshot of nothing stood there: so a replica that is added later, which knows no members,
                    // can never be filled from the first entry on, and always gets a snapshot that tells them.
                    (snapshot.applied_index, snapshot.applied_term) = (FOUNDING_INDEX, FOUNDING_TERM);
                    (hard_state.term, hard_state.commit) = (FOUNDING_TERM, FOUNDING_INDEX);
                }
                (replica.0, voters.iter().map(|voter| voter.0).collect())
            }
            Founding::Empty { replica } => (replica.0, Vec::new()),
        };
        let founded = ConfState { voters: first, ..ConfState::default() };
        let restored = Restored {
            replica,
            hard_state,
            conf_state: snapshot.members.clone().unwrap_or(founded),
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
            is_stale: false,
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
        if is_on(Mutant::VoteForgotten) {
            self.restored.hard_state.vote = 0;
        }
        if is_on(Mutant::LastEntryLost)
            && self.restored.entries.len() as u64 + self.restored.snapshot_index
                > self.restored.hard_state.commit
        {
            self.restored.entries.pop();
        }
        self.restored.needs_reset = self.is_stale;
        let last = self.restored.entries.last().map_or(self.restored.snapshot_index, |entry| entry.index);
        if self.restored.hard_state.commit > last {
            let commit = self.restored.hard_state.commit;
            let text = format!("the log says that entry {commit} is committed but ends at entry {last}");
            return Err(ImageError::Mismatch(text));
        }
        let SnapshotImage { state, txns, stamp, catalog, meta, indexes, members, .. } = self.snapshot;
        let (index, term) = (self.restored.snapshot_index, self.restored.snapshot_term);
        let offer = members.map(|conf_state| SnapshotOffer { index, term, conf_state });
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
            meta,
            indexes,
            offer,
        })
    }

    fn take_start(&mut self, payload: &[u8]) -> Result<(), String> {
        let start = ArchivedStartV1::view(payload, &mut self.scratch).map_err(|error| error.to_string())?;
        // A start is written together with the batch that did not fit before it, and after that batch was handed over: the
        // commit index in it may name entries of that batch, also under an index that another entry has here, which the batch
        // would have replaced. When a cut keeps the start and not the batch, that other entry must not count as committed. So
        // the commit index is that of the batches; every batch tells its own, so nothing is missed.
        for group in start.groups.iter().filter(|group| group.group.to_native() == self.group.0) {
            let hard_state = &group.hard_state;
            self.restored.hard_state = HardState {
                term: hard_state.term.to_native(),
                vote: hard_state.vote.to_native(),
                commit: self.restored.hard_state.commit,
                ..HardState::default()
            };
            // Its members are those of the moment at which the segment began. Raft wants those of the snapshot and applies
            // every change after it once more.
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
            if archived.kind == RESET_KIND {
                reset(&mut self.restored, archived.index.to_native())?;
                self.is_stale = false;
                self.history.clear();
                continue;
            }
            let entry = Entry {
                term: archived.term.to_native(),
                index: archived.index.to_native(),
                entry_type: entry_type(archived.kind)?,
                data: archived.data.to_vec().into(),
                ..Entry::default()
            };
            put(&mut self.restored, &mut self.is_stale, entry)?;
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
    let reset = append.reset.map(|(index, term)| EntryV1 { term, index, kind: RESET_KIND, data: &[] });
    let entries = append.entries.iter().map(|entry| {
        let kind = entry_kind(entry.entry_type);
        EntryV1 { term: entry.term, index: entry.index, kind, data: &entry.data }
    });
    let entries: SmallVec<[EntryV1<'_>; 4]> = reset.into_iter().chain(entries).collect();
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

/// The log begins anew behind an index: what stood before is void. A snapshot of that index or a later one was durable
/// before this was written.
fn reset(restored: &mut Restored, index: u64) -> Result<(), String> {
    if restored.snapshot_index < index {
        let end = restored.snapshot_index;
        return Err(format!(
            "the log begins behind entry {index}, but the newest snapshot ends at entry {end}"
        ));
    }
    restored.entries.clear();
    Ok(())
}

/// Appends an entry, or replaces what stood from its index on. What follows an entry that is not the snapshot's last one,
/// though it has its index, was never committed: the snapshot came from another replica and its reset was not logged.
fn put(restored: &mut Restored, is_stale: &mut bool, entry: Entry) -> Result<(), String> {
    let base = restored.snapshot_index;
    if entry.index <= base {
        restored.entries.clear();
        *is_stale = entry.index < base || entry.term != restored.snapshot_term;
        return Ok(());
    }
    if *is_stale {
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

#[cfg(test)]
mod tests;
