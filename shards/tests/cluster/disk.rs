//! A replica with its disk: batches become durable after a while, in order, and a crash keeps exactly what was durable.

use super::chance::Chance;
use shards::consensus::group::Append;
use shards::effect::{Effects, SnapshotEffect};
use shards::event::Event;
use shards::ids::{GroupId, Millis, Sequence};
use shards::log::SegmentId;
use shards::log::header::BatchKind;
use shards::log::payload::PayloadBuffer;
use shards::log::replay::ReplayedBatch;
use shards::shard::image::{
    Founding, ImageBuilder, ImageIdentity, SnapshotImage, SnapshotIntake, encode_append,
};
use shards::shard::{Shard, ShardConfig};
use shards::snapshot::SnapshotReader;
use shards::state::SessionLimits;
use std::collections::{BTreeMap, VecDeque};

/// One replica: a shard while its node lives, and what is on its disk.
pub(crate) struct Replica {
    pub(crate) shard: Option<Shard>,
    pub(crate) config: ShardConfig,
    pub(crate) founding: Founding,
    /// Every batch that was handed to the log and not cut.
    log: Vec<Append>,
    durable: Sequence,
    /// Batches on their way to the disk, with the time at which they are durable.
    writing: VecDeque<(u64, Sequence)>,
    file: (u64, Vec<u8>),
    /// The newest whole snapshot on this disk.
    pub(crate) snapshot: Option<(u64, Vec<u8>)>,
    pub(crate) events: Vec<Event>,
    /// Term and data of each entry in the log.
    pub(crate) entries: BTreeMap<u64, (u64, Vec<u8>)>,
}

impl Replica {
    pub(crate) fn new(config: ShardConfig, founding: Founding) -> Self {
        Self {
            shard: None,
            config,
            founding,
            log: Vec::new(),
            durable: Sequence(0),
            writing: VecDeque::new(),
            file: (0, Vec::new()),
            snapshot: None,
            events: Vec::new(),
            entries: BTreeMap::new(),
        }
    }

    /// Recovers the shard from what is on the disk.
    pub(crate) fn start(&mut self, now: Millis) -> Effects {
        let image = load(&self.config, self.snapshot.as_ref().map(|(_, bytes)| &bytes[..]));
        let group = self.config.group;
        let mut builder = ImageBuilder::replica(group, &self.founding, image, SessionLimits::default());
        let mut payload = PayloadBuffer::new();
        for append in &self.log {
            encode_append(append, &mut payload);
            let (kind, sequence) = (BatchKind::Entries, append.sequence);
            builder.batch(&ReplayedBatch {
                kind,
                group,
                sequence,
                payload: &payload,
                segment: SegmentId(1),
                offset: 0,
            });
        }
        let image = builder.finish(self.durable).expect("what was durable makes a shard");
        let mut shard =
            Shard::restore(self.config.clone(), image, now).expect("what was durable makes a shard");
        let mut effects = Effects::default();
        shard.start(now, &mut effects).expect("a shard starts");
        self.shard = Some(shard);
        effects
    }

    /// The node dies: what is not durable is gone.
    pub(crate) fn crash(&mut self) {
        self.shard = None;
        let durable = self.durable;
        self.log.retain(|append| append.sequence <= durable);
        self.entries.clear();
        for append in std::mem::take(&mut self.log) {
            self.note_entries(&append);
            self.log.push(append);
        }
        self.writing.clear();
        self.events.clear();
        self.file.1.clear();
    }

    /// Batches that are durable by now.
    pub(crate) fn sync(&mut self, now: u64) {
        let mut reached = None;
        while self.writing.front().is_some_and(|(at, _)| *at <= now) {
            reached = self.writing.pop_front().map(|(_, sequence)| sequence);
        }
        if let Some(sequence) = reached {
            self.durable = sequence;
            self.events.push(Event::Durable(sequence));
        }
    }

    /// Takes what the disk shall do.
    pub(crate) fn write(
        &mut self,
        effects: &mut Effects,
        now: u64,
        sync_ms: (u64, u64),
        chance: &mut Chance,
    ) {
        for append in effects.appends.drain(..) {
            let before = self.writing.back().map_or(0, |(at, _)| *at);
            let at = before.max(now + chance.between(sync_ms.0, sync_ms.1));
            self.writing.push_back((at, append.sequence));
            self.note_entries(&append);
            self.log.push(append);
        }
        for effect in effects.snapshot.drain(..) {
            self.write_snapshot(effect);
        }
        if let Some(upto) = effects.cut.take() {
            assert!(upto <= self.durable, "only what is durable is cut");
            self.log.retain(|append| append.sequence > upto);
        }
    }

    fn note_entries(&mut self, append: &Append) {
        if append.reset.is_some() {
            self.entries.clear();
        }
        if let Some(first) = append.entries.first() {
            self.entries.split_off(&first.index);
        }
        for entry in &append.entries {
            self.entries.insert(entry.index, (entry.term, entry.data.to_vec()));
        }
    }

    fn write_snapshot(&mut self, effect: SnapshotEffect) {
        match effect {
            SnapshotEffect::Begin { index } => self.file = (index, Vec::new()),
            SnapshotEffect::Write(chunk) => {
                self.file.1.extend_from_slice(chunk.as_slice());
                self.events.push(Event::SnapshotWritten { bytes: chunk.as_slice().len() as u64 });
            }
            SnapshotEffect::Finish(expected) => {
                let mut reader = SnapshotReader::new();
                let mut bytes = &self.file.1[..];
                while reader.feed(&mut bytes).expect("what was written can be read").is_some() {}
                let (_, footer) = reader.finish().expect("what was written is whole");
                assert_eq!(footer, expected, "the file holds what the state counted");
                self.snapshot = Some(std::mem::take(&mut self.file));
                self.events.push(Event::SnapshotFinished(Ok(())));
            }
            SnapshotEffect::Drop => self.file.1.clear(),
        }
    }

    /// A snapshot of another replica reaches this disk.
    pub(crate) fn receive_snapshot(&mut self, found: Option<(u64, Vec<u8>)>, wanted: u64) {
        let event = match found.filter(|(index, _)| *index >= wanted) {
            Some((index, bytes)) => {
                let image = load(&self.config, Some(&bytes)).expect("a file gives an image");
                self.snapshot = Some((index, bytes));
                Event::SnapshotFetched { index, image: Ok(Box::new(image)) }
            }
            None => Event::SnapshotFetched { index: wanted, image: Err("not there".to_owned()) },
        };
        self.events.push(event);
    }
}

fn load(config: &ShardConfig, bytes: Option<&[u8]>) -> Option<SnapshotImage> {
    let group: GroupId = config.group;
    let identity = ImageIdentity { cluster: config.cluster, shard: config.shard, group };
    bytes.map(|bytes| {
        let mut intake = SnapshotIntake::new(identity, SessionLimits::default());
        for piece in bytes.chunks(1000) {
            intake.feed(piece).expect("the snapshot is sound");
        }
        intake.finish().expect("the snapshot is whole")
    })
}
