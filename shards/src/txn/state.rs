//! What every replica of a group knows of transactions: intents as a participant, records as their coordinator.
//!
//! Changed only by applying log entries; part of snapshots and of the state hash. Maps are ordered, so that whatever is
//! derived from a walk over them is the same everywhere.

use super::message::{Decide, Finish, Open, Prepare, push_version, take_version};
use super::{Kind, TxnId, take_flag};
use crate::command::items;
use crate::command::record::{Malformed, take, take_u8, take_u16, take_u32, take_u64};
use crate::ids::{GroupId, Map, Millis, Version};
use crate::mutants::{Mutant, is_on};
use std::collections::BTreeMap;

/// Locks and values that wait for a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Version of the PREPARE that installed it.
    pub place: Version,
    /// The try that installed it.
    pub attempt: u32,
    /// What is done.
    pub kind: Kind,
    /// The debug fault mode was asked for.
    pub debug: bool,
    /// Keys and values.
    pub items: Vec<u8>,
    /// Stamp of the PREPARE's entry.
    pub since: Millis,
}

/// Where a transaction stands at its coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not decided.
    Pending,
    /// Committed, with the PREPAREs that count.
    Committed(Vec<(GroupId, Version)>),
    /// Aborted.
    Aborted,
}

/// The retry identity of a transaction's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The client's name.
    pub client: Vec<u8>,
    /// The client's number.
    pub seq: u64,
    /// The lowest unanswered number that came with it.
    pub acked: u64,
}

/// A transaction at its coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What is done.
    pub kind: Kind,
    /// Hash of the request.
    pub fingerprint: u64,
    /// Every group that takes part, ascending.
    pub participants: Vec<GroupId>,
    /// For retries.
    pub origin: Option<Origin>,
    /// Where it stands.
    pub status: Status,
}

/// Intents and records of one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnState {
    intents: BTreeMap<TxnId, Intent>,
    /// Looked up for every write while anything is locked; never walked.
    locked: Map<Box<[u8]>, TxnId>,
    records: BTreeMap<Version, Record>,
    /// Bytes of the intents' items.
    intent_bytes: usize,
}

/// What applying a PREPARE came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrepareOutcome {
    /// The intent stands.
    Installed,
    /// Some key is locked by another transaction; nothing changed.
    Locked,
}

impl TxnState {
    /// Whether nothing is locked and nothing is open, the usual case on the request path.
    pub fn is_idle(&self) -> bool {
        self.locked.is_empty() && self.records.is_empty()
    }

    /// The transaction that has locked a key.
    pub fn lock_of(&self, key: &[u8]) -> Option<TxnId> {
        if self.locked.is_empty() { None } else { self.locked.get(key).copied() }
    }

    /// The intent of a transaction.
    pub fn intent(&self, txn: TxnId) -> Option<&Intent> {
        self.intents.get(&txn)
    }

    /// Every intent, by transaction.
    pub fn intents(&self) -> impl Iterator<Item = (TxnId, &Intent)> {
        self.intents.iter().map(|(txn, intent)| (*txn, intent))
    }

    /// Bytes of the intents' items.
    pub fn intent_bytes(&self) -> usize {
        self.intent_bytes
    }

    /// The record of a transaction that this group coordinates.
    pub fn record(&self, opened: Version) -> Option<&Record> {
        self.records.get(&opened)
    }

    /// Every record, by the version of its OPEN.
    pub fn records(&self) -> impl Iterator<Item = (Version, &Record)> {
        self.records.iter().map(|(opened, record)| (*opened, record))
    }

    /// The open transaction of a client's request, so that a retry joins it.
    pub fn open_for(&self, client: &[u8], seq: u64) -> Option<(Version, &Record)> {
        self.records().find(|(_, record)| {
            let pending = record.status == Status::Pending;
            pending
                && record.origin.as_ref().is_some_and(|origin| origin.client == client && origin.seq == seq)
        })
    }

    /// Applies OPEN.
    pub fn open(&mut self, opened: Version, open: Open, origin: Option<Origin>) {
        let Open { kind, fingerprint, participants } = open;
        let record = Record { kind, fingerprint, participants, origin, status: Status::Pending };
        assert!(self.records.insert(opened, record).is_none(), "a version opens one transaction");
    }

    /// Applies PREPARE in one go: all of its locks or none.
    pub fn prepare(
        &mut self,
        place: Version,
        since: Millis,
        prepare: &Prepare<'_>,
        debug: bool,
    ) -> Result<PrepareOutcome, Malformed> {
        let txn = prepare.txn;
        for item in items::iter(prepare.items) {
            let (key, _) = item?;
            if self.is_locked_for(key, txn) {
                return Ok(PrepareOutcome::Locked);
            }
        }
        self.drop_intent(txn);
        for item in items::iter(prepare.items) {
            let (key, _) = item?;
            self.lock(key, txn);
        }
        self.install(place, since, prepare, debug);
        Ok(PrepareOutcome::Installed)
    }

    /// Whether another transaction than this one has locked a key.
    pub fn is_locked_for(&self, key: &[u8], txn: TxnId) -> bool {
        self.lock_of(key).is_some_and(|holder| holder != txn)
    }

    /// Locks a key: a part of a PREPARE that is applied in slices, after no key was found locked, before
    /// [`TxnState::install`].
    pub fn lock(&mut self, key: &[u8], txn: TxnId) {
        let holder = self.locked.insert(key.into(), txn);
        assert!(holder.is_none_or(|holder| holder == txn), "a locked key is not locked again");
    }

    /// Installs the intent of a PREPARE whose keys are locked.
    pub fn install(&mut self, place: Version, since: Millis, prepare: &Prepare<'_>, debug: bool) {
        let items = prepare.items.to_vec();
        let intent = Intent { place, attempt: prepare.attempt, kind: prepare.kind, debug, items, since };
        self.intent_bytes += intent.items.len();
        let before = self.intents.insert(prepare.txn, intent);
        assert!(before.is_none(), "an earlier intent was dropped before");
    }

    /// Applies DECIDE; tells the record if the decision is this one's, `None` where the record is gone or decided.
    pub fn decide(&mut self, decide: &Decide) -> Option<&Record> {
        let record = self.records.get_mut(&decide.txn.opened)?;
        if record.status != Status::Pending {
            return None;
        }
        record.status =
            if decide.commit { Status::Committed(decide.prepares.clone()) } else { Status::Aborted };
        Some(record)
    }

    /// Applies FINISH: takes the intent out, and tells whether it is to be applied. Its keys stay locked: whoever has applied
    /// it gives back each with [`TxnState::unlock`].
    pub fn finish(&mut self, finish: &Finish) -> Option<(Intent, bool)> {
        let intent = self.intents.remove(&finish.txn)?;
        self.intent_bytes -= intent.items.len();
        let is_applied =
            finish.commit.is_some_and(|place| place == intent.place || is_on(Mutant::FinishAnyPrepare));
        Some((intent, is_applied))
    }

    /// Gives a key back whose intent was taken out.
    pub fn unlock(&mut self, key: &[u8], txn: TxnId) {
        let holder = self.locked.remove(key);
        assert_eq!(holder, Some(txn), "an intent holds the locks of its keys");
    }

    /// Applies FORGET.
    pub fn forget(&mut self, opened: Version) {
        self.records.remove(&opened);
    }

    /// Drops an intent that a later try replaces: the decision names the PREPARE that counts.
    pub fn drop_intent(&mut self, txn: TxnId) {
        let Some(intent) = self.intents.remove(&txn) else { return };
        self.intent_bytes -= intent.items.len();
        for item in items::iter(&intent.items) {
            let (key, _) = item.expect("an installed intent was read before");
            self.unlock(key, txn);
        }
    }

    /// Appends all of it for a snapshot: intents, then records, each list with its count.
    pub fn encode(&self, out: &mut Vec<u8>) {
        push_u32(out, self.intents.len());
        for (txn, intent) in &self.intents {
            txn.encode(out);
            push_version(out, intent.place);
            out.extend_from_slice(&intent.attempt.to_le_bytes());
            out.push(intent.kind as u8);
            out.push(u8::from(intent.debug));
            out.extend_from_slice(&intent.since.0.to_le_bytes());
            push_u32(out, intent.items.len());
            out.extend_from_slice(&intent.items);
        }
        push_u32(out, self.records.len());
        for (opened, record) in &self.records {
            push_version(out, *opened);
            encode_record(record, out);
        }
    }

    /// Reads what [`TxnState::encode`] wrote.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let rest = &mut bytes;
        let mut state = Self::default();
        for _ in 0..take_u32(rest)? {
            let txn = TxnId::decode(rest)?;
            let place = take_version(rest)?;
            let attempt = take_u32(rest)?;
            let kind = Kind::from_number(take_u8(rest)?)?;
            let debug = take_flag(rest)?;
            let since = Millis(take_u64(rest)?);
            let length = take_u32(rest)? as usize;
            let items = take(rest, length)?;
            let prepare = Prepare { txn, attempt, kind, items };
            if state.prepare(place, since, &prepare, debug)? == PrepareOutcome::Locked {
                return Err(Malformed("two intents lock one key"));
            }
        }
        for _ in 0..take_u32(rest)? {
            let opened = take_version(rest)?;
            let record = decode_record(rest)?;
            state.records.insert(opened, record);
        }
        if rest.is_empty() { Ok(state) } else { Err(Malformed("bytes after the transactions")) }
    }
}

fn encode_record(record: &Record, out: &mut Vec<u8>) {
    out.push(record.kind as u8);
    out.extend_from_slice(&record.fingerprint.to_le_bytes());
    push_u32(out, record.participants.len());
    for group in &record.participants {
        out.extend_from_slice(&group.0.to_le_bytes());
    }
    out.push(u8::from(record.origin.is_some()));
    if let Some(origin) = &record.origin {
        out.extend_from_slice(&origin.seq.to_le_bytes());
        out.extend_from_slice(&origin.acked.to_le_bytes());
        let length = u16::try_from(origin.client.len()).expect("a client name fits");
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&origin.client);
    }
    match &record.status {
        Status::Pending => out.push(0),
        Status::Aborted => out.push(1),
        Status::Committed(prepares) => {
            out.push(2);
            push_u32(out, prepares.len());
            for (group, place) in prepares {
                out.extend_from_slice(&group.0.to_le_bytes());
                push_version(out, *place);
            }
        }
    }
}

fn decode_record(rest: &mut &[u8]) -> Result<Record, Malformed> {
    let kind = Kind::from_number(take_u8(rest)?)?;
    let fingerprint = take_u64(rest)?;
    let mut participants = Vec::new();
    for _ in 0..take_u32(rest)? {
        participants.push(GroupId(take_u32(rest)?));
    }
    let origin = match take_flag(rest)? {
        false => None,
        true => {
            let (seq, acked) = (take_u64(rest)?, take_u64(rest)?);
            let length = usize::from(take_u16(rest)?);
            Some(Origin { client: take(rest, length)?.to_vec(), seq, acked })
        }
    };
    let status = match take_u8(rest)? {
        0 => Status::Pending,
        1 => Status::Aborted,
        2 => {
            let mut prepares = Vec::new();
            for _ in 0..take_u32(rest)? {
                prepares.push((GroupId(take_u32(rest)?), take_version(rest)?));
            }
            Status::Committed(prepares)
        }
        _ => return Err(Malformed("unknown status of a transaction")),
    };
    Ok(Record { kind, fingerprint, participants, origin, status })
}

fn push_u32(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u32::try_from(count).expect("counts fit 32 bits").to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(keys: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for key in keys {
            items::push(&mut bytes, key.as_bytes(), b"1");
        }
        bytes
    }

    fn txn(index: u64) -> TxnId {
        TxnId { group: GroupId(0), opened: Version::new(0, index, 0) }
    }

    #[test]
    fn locks_are_all_or_none_and_a_decision_names_its_prepare() {
        let mut state = TxnState::default();
        let ab = items(&["a", "b"]);
        let bc = items(&["b", "c"]);
        let first = Prepare { txn: txn(1), attempt: 1, kind: Kind::Set, items: &ab };
        let second = Prepare { txn: txn(2), attempt: 1, kind: Kind::Set, items: &bc };
        let place = Version::new(0, 10, 0);
        assert_eq!(state.prepare(place, Millis(1), &first, false), Ok(PrepareOutcome::Installed));
        assert_eq!(state.prepare(place, Millis(1), &second, false), Ok(PrepareOutcome::Locked));
        assert_eq!(state.lock_of(b"c"), None);
        let other = Finish { txn: txn(1), commit: Some(Version::new(0, 9, 0)) };
        let (intent, is_applied) = state.finish(&other).unwrap();
        assert!(!is_applied, "an intent at another place is dropped");
        assert_eq!(state.lock_of(b"a"), Some(txn(1)), "until its keys are given back");
        for item in items::iter(&intent.items) {
            state.unlock(item.unwrap().0, txn(1));
        }
        assert_eq!((state.lock_of(b"a"), state.finish(&other)), (None, None));
        assert_eq!(state.prepare(place, Millis(1), &second, false), Ok(PrepareOutcome::Installed));
        let finish = Finish { txn: txn(2), commit: Some(place) };
        assert_eq!(state.finish(&finish).map(|(intent, applied)| (intent.items, applied)), Some((bc, true)));
        state.unlock(b"b", txn(2));
        state.unlock(b"c", txn(2));
        assert!(state.is_idle());
    }

    #[test]
    fn it_survives_a_snapshot() {
        let mut state = TxnState::default();
        let ab = items(&["a", "b"]);
        let prepare = Prepare { txn: txn(1), attempt: 3, kind: Kind::Delete, items: &ab };
        state.prepare(Version::new(1, 5, 0), Millis(7), &prepare, true).unwrap();
        let origin = Origin { client: b"me".to_vec(), seq: 4, acked: 2 };
        let open = |kind| Open { kind, fingerprint: 1, participants: vec![GroupId(0), GroupId(1)] };
        state.open(txn(1).opened, open(Kind::Delete), Some(origin));
        state.open(txn(2).opened, open(Kind::Set), None);
        let decide = |index, commit| Decide {
            txn: txn(index),
            commit,
            result: 2,
            prepares: vec![(GroupId(1), Version::new(0, 9, 9))],
        };
        assert!(state.decide(&decide(2, true)).is_some());
        assert!(state.decide(&decide(2, false)).is_none(), "decided once");
        assert!(state.open_for(b"me", 4).is_some());
        let mut bytes = Vec::new();
        state.encode(&mut bytes);
        assert_eq!(TxnState::decode(&bytes), Ok(state));
        for end in 0..bytes.len() {
            assert!(TxnState::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
    }
}
