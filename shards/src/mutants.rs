//! Known defects that can be switched on, to show that the simulator finds them.
//!
//! Only with the cargo feature `mutants`, which no build that ships turns on: without it [`is_on`] is a constant `false`
//! and every place that asks vanishes. One thread runs one mutant at a time.

/// A defect. The number is its place in the list of docs/SIMULATION.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs, reason = "each is named for what it does, and described where it is asked for")]
pub enum Mutant {
    None,
    AckBeforeSync,
    ShortWriteCounts,
    SyncErrorPassedOver,
    SegmentFreeAtOnce,
    SegmentNameNotSynced,
    SegmentNotSynced,
    SnapshotNotSynced,
    SnapshotNotReadBack,
    SnapshotNameNotSynced,
    RecoveryNotSynced,
    PayloadCrcSkipped,
    DurableUptoTooHigh,
    StaleBatchReplayed,
    RotTakenForTear,
    CutTooFar,
    TransactionsNotKept,
    CatalogueNotKept,
    BacklogNotDrained,
    SessionsNotKept,
    LastEntryLost,
    DedupEntryDropped,
    TombstoneLost,
    ConditionMetByAny,
    VersionNotCompared,
    OverdueIsRead,
    ExpiredBlindly,
    NoCopyBeforeChange,
    DecidedTooEarly,
    PendingNotAborted,
    UnknownNotAnswered,
    ReadThroughLock,
    BulkReadThroughLock,
    MessageBeforeSync,
    FinishAnyPrepare,
    BacklogForgets,
    OldEntryStays,
    SearchDoesNotWait,
    OneRoundIsEnough,
    VoteForgotten,
    StaleRead,
    LeaderCountsUnsynced,
    AppendAckBeforePersist,
    VoteBeforePersist,
    EmptyingNotMarked,
}

impl Mutant {
    /// Every defect.
    pub const ALL: &[Self] = &[
        Self::AckBeforeSync,
        Self::ShortWriteCounts,
        Self::SyncErrorPassedOver,
        Self::SegmentFreeAtOnce,
        Self::SegmentNameNotSynced,
        Self::SegmentNotSynced,
        Self::SnapshotNotSynced,
        Self::SnapshotNotReadBack,
        Self::SnapshotNameNotSynced,
        Self::RecoveryNotSynced,
        Self::PayloadCrcSkipped,
        Self::DurableUptoTooHigh,
        Self::StaleBatchReplayed,
        Self::RotTakenForTear,
        Self::CutTooFar,
        Self::TransactionsNotKept,
        Self::CatalogueNotKept,
        Self::BacklogNotDrained,
        Self::SessionsNotKept,
        Self::LastEntryLost,
        Self::DedupEntryDropped,
        Self::TombstoneLost,
        Self::ConditionMetByAny,
        Self::VersionNotCompared,
        Self::OverdueIsRead,
        Self::ExpiredBlindly,
        Self::NoCopyBeforeChange,
        Self::DecidedTooEarly,
        Self::PendingNotAborted,
        Self::UnknownNotAnswered,
        Self::ReadThroughLock,
        Self::BulkReadThroughLock,
        Self::MessageBeforeSync,
        Self::FinishAnyPrepare,
        Self::BacklogForgets,
        Self::OldEntryStays,
        Self::SearchDoesNotWait,
        Self::OneRoundIsEnough,
        Self::VoteForgotten,
        Self::StaleRead,
        Self::LeaderCountsUnsynced,
        Self::AppendAckBeforePersist,
        Self::VoteBeforePersist,
        Self::EmptyingNotMarked,
    ];
}

#[cfg(feature = "mutants")]
mod switch {
    use super::Mutant;
    use std::cell::Cell;

    thread_local! {
        static ON: Cell<Mutant> = const { Cell::new(Mutant::None) };
    }

    /// Whether this defect is switched on in this thread.
    pub fn is_on(mutant: Mutant) -> bool {
        ON.get() == mutant
    }

    /// Switches one defect on in this thread, and every other off.
    pub fn switch(mutant: Mutant) {
        ON.set(mutant);
    }
}

#[cfg(feature = "mutants")]
pub use switch::{is_on, switch};

/// Whether this defect is switched on: never, in this build.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is_on(_: Mutant) -> bool {
    false
}
