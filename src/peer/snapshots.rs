//! Snapshots between nodes: serving the newest one of a group, and pulling one from another node.
//!
//! A puller asks piece by piece, at a bounded rate, from where it was when the connection broke; every piece has its
//! frame's checksum. What has come whole is synced, read back and checked as a recovery would, and only then gets the name of
//! a snapshot; the shard hears of it when that name is durable, and loads it. Runs on threads of its own; a file that is being served may
//! be removed meanwhile, its bytes stay readable.

use super::dial;
use super::hub::{Hub, News, ShardDoor};
use super::socket::{Talk, TalkError};
use crate::clock::Clock;
use crate::disk::files::RealDisk;
use shards::effect::SnapshotFetch;
use shards::ids::GroupId;
use shards::peer::frame::Kind;
use shards::peer::hello::Purpose;
use shards::peer::pull::{Answer, Ask};
use shards::shard::image::ImageIdentity;
use shards::snapshot::SnapshotReader;
use shards::storage::disk::Disk;
use shards::storage::snapshots::{parse_file_name, read_snapshot, snapshot_file_name};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes asked for at once.
const PIECE_BYTES: u32 = 256 << 10;
/// Snapshots that are served at once; further askers come again.
const SERVED_MAX: usize = 4;
/// Longest silence of a puller before its connection is given up.
const ASKED_WITHIN: Duration = Duration::from_secs(10);
/// Longest wait for a piece.
const PIECE_WITHIN: Duration = Duration::from_secs(5);
/// Connections that may break without a single byte got before a pull is given up.
const TRIES_MAX: u32 = 20;
/// Pause before the next try.
const TRY_PAUSE: Duration = Duration::from_millis(250);

static SERVED: AtomicUsize = AtomicUsize::new(0);

/// Serves the snapshots of a group to one puller until it has enough.
///
/// # Errors
/// Why the connection ended early.
pub fn serve(mut talk: Talk, group: GroupId, hub: &Hub) -> Result<(), TalkError> {
    struct Place;
    impl Drop for Place {
        fn drop(&mut self) {
            SERVED.fetch_sub(1, Ordering::AcqRel);
        }
    }
    let is_full = SERVED.fetch_add(1, Ordering::AcqRel) >= SERVED_MAX;
    let _place = Place;
    if is_full {
        return Err(io::Error::from(io::ErrorKind::ResourceBusy).into());
    }
    let directory = hub.shard_path(group);
    let mut open: Option<(u64, File)> = None;
    let (mut buffer, mut payload) = (Vec::new(), Vec::new());
    while !hub.is_stopping() {
        let ask = talk.receive(&[Kind::SnapshotAsk], ASKED_WITHIN, |_, payload, _| Ask::decode(payload))?;
        payload.clear();
        answer(&directory, ask, &mut open, &mut buffer)?.encode(&mut payload);
        talk.send(Kind::SnapshotPiece, &payload, PIECE_WITHIN)?;
    }
    Ok(())
}

fn answer<'a>(
    directory: &Path,
    ask: Ask,
    open: &mut Option<(u64, File)>,
    buffer: &'a mut Vec<u8>,
) -> io::Result<Answer<'a>> {
    let index = match ask.index {
        0 => newest(directory)?,
        index => Some(index),
    };
    let Some(index) = index else { return Ok(Answer::None) };
    if open.as_ref().is_none_or(|(held, _)| *held != index) {
        match File::open(directory.join(snapshot_file_name(index))) {
            Ok(file) => *open = Some((index, file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Answer::None),
            Err(error) => return Err(error),
        }
    }
    let (_, file) = open.as_ref().expect("it was just opened");
    let length = file.metadata()?.len();
    let bytes = u64::from(ask.bytes_max.min(shards::peer::pull::PIECE_BYTES_MAX))
        .min(length.saturating_sub(ask.offset));
    buffer.resize(bytes as usize, 0);
    file.read_exact_at(buffer, ask.offset)?;
    Ok(Answer::Piece { index, length, bytes: buffer })
}

/// The index of the newest finished snapshot. It looks only: a shard may be writing another one beside it.
fn newest(directory: &Path) -> io::Result<Option<u64>> {
    let found = RealDisk.list(directory)?;
    Ok(found.iter().filter_map(|entry| parse_file_name(&entry.name)).max())
}

/// What a pull needs to know beside the wish.
#[derive(Clone, Debug)]
pub struct PullSettings {
    /// Whose data it must be.
    pub identity: ImageIdentity,
    /// Most bytes a second; 0 for no bound.
    pub bytes_per_s_max: u64,
}

/// A pull under way.
#[derive(Debug)]
pub struct Pull {
    wish: SnapshotFetch,
    is_given_up: Arc<AtomicBool>,
    is_done: Arc<AtomicBool>,
}

impl Pull {
    /// Begins to pull a snapshot for a group; what comes of it is told at its shard's door, unless the pull is dropped.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        hub: &Arc<Hub>,
        group: GroupId,
        wish: SnapshotFetch,
        settings: PullSettings,
    ) -> io::Result<Self> {
        let (is_given_up, is_done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let pulling = Pulling {
            hub: Arc::clone(hub),
            group,
            wish,
            settings,
            directory: hub.shard_path(group),
            is_given_up: Arc::clone(&is_given_up),
            clock: Clock::start(),
        };
        let (door, done) = (hub.door(group).clone(), Arc::clone(&is_done));
        let run = move || pulling.run(&door, &done);
        std::thread::Builder::new().name(format!("pull-{group}")).spawn(run)?;
        Ok(Self { wish, is_given_up, is_done })
    }

    /// Whether it is under way and would bring what is wished for.
    pub fn serves(&self, wish: &SnapshotFetch) -> bool {
        !self.is_done.load(Ordering::Acquire) && self.wish.node == wish.node && self.wish.index >= wish.index
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.is_given_up.store(true, Ordering::Release);
    }
}

struct Pulling {
    hub: Arc<Hub>,
    group: GroupId,
    wish: SnapshotFetch,
    settings: PullSettings,
    directory: PathBuf,
    is_given_up: Arc<AtomicBool>,
    clock: Clock,
}

/// How far a pull is: which file, how long it is, how much of it has come.
struct Progress {
    index: u64,
    length: u64,
    come: u64,
    file: File,
}

impl Pulling {
    fn run(self, door: &ShardDoor, done: &AtomicBool) {
        let temporary = self.directory.join("pulled.part");
        let pulled = self.pull(&temporary).and_then(|index| self.put_in_place(&temporary, index));
        done.store(true, Ordering::Release);
        if self.is_given_up.load(Ordering::Acquire) {
            return;
        }
        match &pulled {
            Ok(index) => {
                tracing::info!(shard = self.group.0, from = self.wish.node.0, index, "a snapshot was pulled");
            }
            Err(text) => {
                tracing::warn!(
                    shard = self.group.0,
                    from = self.wish.node.0,
                    "a snapshot could not be pulled: {text}"
                );
            }
        }
        let index = pulled.as_ref().copied().unwrap_or(self.wish.index);
        door.hand_in(News::Pulled(index, pulled.map(drop)));
    }

    /// Brings the whole file here; its index.
    fn pull(&self, temporary: &Path) -> Result<u64, String> {
        let mut progress = None;
        let mut tries = 0;
        loop {
            if self.is_given_up.load(Ordering::Acquire) || self.hub.is_stopping() {
                return Err("it is not wanted any more".to_owned());
            }
            let before = progress.as_ref().map_or(0, |progress: &Progress| progress.come);
            let failed = match self.pull_over_one_connection(temporary, &mut progress) {
                Ok(index) => return Ok(index),
                Err(text) => text,
            };
            tries =
                if progress.as_ref().is_some_and(|progress| progress.come > before) { 0 } else { tries + 1 };
            if tries == TRIES_MAX {
                return Err(failed);
            }
            std::thread::sleep(TRY_PAUSE);
        }
    }

    fn pull_over_one_connection(
        &self,
        temporary: &Path,
        progress: &mut Option<Progress>,
    ) -> Result<u64, String> {
        let told = |error: &dyn std::fmt::Display| error.to_string();
        let link = dial::member(&self.hub, self.wish.node, Purpose::Snapshot(self.group));
        let mut talk = link.map_err(|error| told(&error))?;
        let mut payload = Vec::new();
        let begun_us = self.clock.elapsed_us();
        let mut come_here = 0u64;
        loop {
            let (index, offset) =
                progress.as_ref().map_or((0, 0), |progress| (progress.index, progress.come));
            payload.clear();
            Ask { index, offset, bytes_max: PIECE_BYTES }.encode(&mut payload);
            talk.send(Kind::SnapshotAsk, &payload, PIECE_WITHIN).map_err(|error| told(&error))?;
            let taken = talk.receive(&[Kind::SnapshotPiece], PIECE_WITHIN, |_, payload, _| {
                Answer::decode(payload).map(|answer| self.take(&answer, temporary, progress))
            });
            let bytes = taken.map_err(|error| told(&error))??;
            come_here += bytes;
            if let Some(progress) = progress.as_ref().filter(|progress| progress.come == progress.length) {
                return Ok(progress.index);
            }
            if self.is_given_up.load(Ordering::Acquire) {
                return Err("it is not wanted any more".to_owned());
            }
            self.hold_back(begun_us, come_here);
        }
    }

    /// Takes one answer; how many bytes came.
    fn take(
        &self,
        answer: &Answer<'_>,
        temporary: &Path,
        progress: &mut Option<Progress>,
    ) -> Result<u64, String> {
        let Answer::Piece { index, length, bytes } = *answer else {
            *progress = None;
            return Err("the other node has no such snapshot".to_owned());
        };
        if index < self.wish.index {
            *progress = None;
            return Err(format!(
                "the other node's snapshot is of entry {index}, and {} is needed",
                self.wish.index
            ));
        }
        let progress = match progress {
            Some(progress) if progress.index == index && progress.length == length => progress,
            Some(_) => {
                *progress = None;
                return Err("the other node's snapshot changed".to_owned());
            }
            None => {
                let made = OpenOptions::new().write(true).create(true).truncate(true).open(temporary);
                let file = made.map_err(|error| format!("{}: {error}", temporary.display()))?;
                progress.insert(Progress { index, length, come: 0, file })
            }
        };
        if bytes.is_empty() && progress.come < progress.length
            || bytes.len() as u64 > progress.length - progress.come
        {
            return Err("the other node's snapshot has another length than it said".to_owned());
        }
        progress.file.write_all(bytes).map_err(|error| format!("{}: {error}", temporary.display()))?;
        progress.come += bytes.len() as u64;
        Ok(bytes.len() as u64)
    }

    /// Sleeps until as many bytes would have come at the bounded rate.
    fn hold_back(&self, begun_us: u64, bytes: u64) {
        // No rate stands for 0, which is no bound.
        let taken_us =
            bytes.saturating_mul(1_000_000).checked_div(self.settings.bytes_per_s_max).unwrap_or(0);
        let early_us = (begun_us + taken_us).saturating_sub(self.clock.elapsed_us());
        std::thread::sleep(Duration::from_micros(early_us));
    }

    /// Syncs the file, reads it back, and gives it its name; its index.
    fn put_in_place(&self, temporary: &Path, index: u64) -> Result<u64, String> {
        let told = |error: io::Error| format!("{}: {error}", temporary.display());
        File::open(temporary).and_then(|file| file.sync_all()).map_err(told)?;
        let mut reader = SnapshotReader::new();
        read_snapshot(&RealDisk, temporary, &mut |mut bytes| {
            while reader.feed(&mut bytes).map_err(|error| error.to_string())?.is_some() {}
            Ok(())
        })
        .map_err(|error| error.to_string())?;
        let (header, _) = reader.finish().map_err(|error| error.to_string())?;
        let found = ImageIdentity { cluster: header.cluster, shard: header.shard, group: header.group };
        if found != self.settings.identity || header.applied_index != index {
            return Err(format!("it belongs to {found:?}, entry {}", header.applied_index));
        }
        if self.is_given_up.load(Ordering::Acquire) {
            return Err("it is not wanted any more".to_owned());
        }
        RealDisk.rename(temporary, &self.directory.join(snapshot_file_name(index))).map_err(told)?;
        RealDisk.sync_directory(&self.directory).map_err(told)?;
        Ok(index)
    }
}
