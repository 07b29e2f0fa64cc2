//! The last resort for a lost majority: what one node has becomes a cluster of that node alone. Offline.
//!
//! The data directory is read and not changed. Beside it a new one is made: the same groups, each a snapshot of everything that
//! this node's replica has (its log applied to the end), under a new cluster id, with this node as the only member. The change
//! is an entry of group 0's log (`MetaChange::Survive`) and stands in the file `recovery.log` of the new directory. When all of
//! it is durable, the old directory is renamed and the new one takes its name. A crash before that changes nothing; one between
//! the two renames is finished by the next call. Replicas of the old cluster that come back speak of another cluster id and are
//! refused by name.

use super::{models, settings};
use crate::clock::{self, Clock};
use crate::disk::data_dir::{self, DataDir, DataDirError, DataMeta};
use crate::disk::files::RealDisk;
use crate::disk::replica_dir;
use crate::fatal::Fatal;
use crate::peer::cluster_file::{self, ClusterFile, Membership};
use crate::peer::founding::file_failed;
use crate::tuning::Tuning;
use shards::batch::{ReplyKind, RequestBatch, RequestHead};
use shards::command::record::{Op, Record};
use shards::effect::{Effects, SnapshotEffect};
use shards::event::Event;
use shards::ids::{GroupId, KeyHash, Millis, NodeNumber, ReplicaId, Token};
use shards::index::set::IndexSettings;
use shards::meta::{Meta, MetaChange, MetaChanged, NodeState};
use shards::shard::image::Founding;
use shards::shard::survive::Remains;
use shards::shard::{Floor, Shard, ShardConfig, ShardImage};
use shards::storage::disk::Disk;
use shards::storage::read_back::ReadBack;
use shards::storage::shard::{ShardPlace, read_shard};
use shards::storage::snapshots::SnapshotWriter;
use std::fs;
use std::io::Write as _;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Ending of the directory that is being made.
const MAKING: &str = ".recovering";
/// Ending of the old directory, with a number behind it.
const BEFORE: &str = ".before-recovery-";
/// The file that says what was done. It is written last: a directory that has it is whole.
const LOG: &str = "recovery.log";
/// Longest wait for a node that may still live.
const ANSWERED_WITHIN: Duration = Duration::from_millis(500);
/// Work units of one slice.
const UNITS: usize = 4096;
/// A shard that does not move for so long never will.
const STUCK_AFTER_US: u64 = 120_000_000;

/// What there is, and what would become of it.
pub struct Plan {
    /// The directory that would be replaced.
    pub path: PathBuf,
    /// What it would be called then.
    pub kept_as: PathBuf,
    /// This node.
    pub node: NodeNumber,
    /// Its id.
    pub node_id: String,
    /// The cluster's id now.
    pub cluster: u128,
    /// The other members: id, address for clients, and whether something answers at their cluster port.
    pub others: Vec<(String, String, bool)>,
    /// What this node has of each group, or why it has nothing.
    pub groups: Vec<Result<Remains, String>>,
    directory: DataDir,
    file: ClusterFile,
    indexes: IndexSettings,
}

/// What was done.
pub struct Recovered {
    /// The new cluster's id.
    pub cluster: u128,
    /// Index of the last entry in each group's snapshot; `None` for a group that begins empty.
    pub applied: Vec<Option<u64>>,
    /// Version of the meta state.
    pub meta_version: u64,
}

/// Looks at a data directory, and whether other members still answer. Changes nothing.
///
/// # Errors
/// When the directory is in use, is none of a cluster's, or cannot be read.
pub fn survey(tuning: &Tuning) -> Result<Plan, Fatal> {
    let path = tuning.data_dir();
    finish_renames(&path)?;
    let failed = |error: DataDirError| super::directory_failed(&path, error);
    if data_dir::look(&path).map_err(failed)?.is_none() {
        let text = format!("{} is no data directory: give --data-dir.", path.display());
        return Err(Fatal::Configuration(text));
    }
    let directory =
        DataDir::open(&path, None, None, || unreachable!("there is a directory")).map_err(failed)?;
    let file = cluster_file::read(&path).map_err(|error| file_failed(&path, error))?;
    let file = file.filter(|file| file.membership.is_some()).ok_or_else(|| {
        let text = format!(
            "The data directory {} is not one of a cluster: start the node as it is.",
            path.display()
        );
        Fatal::DirectoryMismatch(text)
    })?;
    let indexes = models::load(tuning)?;
    let membership = file.membership.as_ref().expect("just looked");
    let (me, meta) = (membership.me, &membership.meta);
    let known =
        meta.nodes.iter().find(|node| node.number == me).expect("the file was checked to have this node");
    let others = meta.nodes.iter().filter(|node| node.number != me && node.state != NodeState::Gone);
    let others = others.map(|node| {
        let address = crate::peer::nodes::address_of(node);
        (node.id.clone(), address, answers(&node.host, node.cluster_port))
    });
    let others = others.collect();
    let read = |number: u32| {
        read_replica(tuning, indexes, &directory, membership, number).map(|image| image.remains())
    };
    let groups = (0..directory.meta().shards).map(read).collect();
    let mut names = (1..).map(|number| beside(&path, &format!("{BEFORE}{number}")));
    let kept_as = names.find(|path| !path.exists()).expect("some number is free");
    let (node_id, cluster) = (known.id.clone(), meta.cluster);
    Ok(Plan { path, kept_as, node: me, node_id, cluster, others, groups, directory, file, indexes })
}

/// Does what the plan says. Groups of which this node has nothing begin empty.
///
/// # Errors
/// When something cannot be read or written; the old directory is then as it was.
pub fn perform(plan: &Plan, tuning: &Tuning) -> Result<Recovered, Fatal> {
    let making = beside(&plan.path, MAKING);
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Fatal::Directory { path, source }
    };
    if making.exists() {
        fs::remove_dir_all(&making).map_err(io(&making))?;
    }
    let old = plan.directory.meta();
    let cluster = clock::random_u128();
    let fresh = || DataMeta {
        cluster,
        incarnation: clock::random_u128(),
        log_key: clock::random_u64(),
        node_id: old.node_id.clone(),
        ..old.clone()
    };
    let made =
        DataDir::open(&making, None, None, fresh).map_err(|error| super::directory_failed(&making, error))?;
    let mut applied = Vec::new();
    let mut meta = plan.membership().meta.as_ref().clone();
    for number in 0..old.shards {
        let remains = match &plan.groups[number as usize] {
            Ok(remains) => remains,
            Err(_) if number == 0 => {
                plan.survive(&mut meta, &made)?;
                applied.push(None);
                continue;
            }
            Err(_) => {
                applied.push(None);
                continue;
            }
        };
        let mut offline = plan.revive(tuning, &made, number, remains)?;
        if number == 0 {
            if offline.shard.meta().version > 0 {
                meta = offline.shard.meta().clone();
                let change = plan.change(&meta, &made);
                let mut value = Vec::new();
                change.encode(&mut value);
                offline.ask(&Record::plain(Op::MetaChange, &[], &value))?;
                meta = offline.shard.meta().clone();
            } else {
                plan.survive(&mut meta, &made)?;
            }
        }
        offline.ask(&Record::plain(Op::Snapshot, &[], &[]))?;
        applied.push(Some(offline.shard.applied_index()));
    }
    if meta.cluster != cluster {
        return Err(Fatal::Failed("The meta state was not changed: this is a defect.".to_owned()));
    }
    let meta_version = meta.version;
    let meta = Arc::new(meta);
    let membership =
        Membership { me: plan.node, meta: Arc::clone(&meta), first: Some(meta), began_alone: false };
    let file = ClusterFile {
        incarnation: made.meta().incarnation,
        log_key: made.meta().log_key,
        membership: Some(membership),
    };
    cluster_file::write(&making, &file).map_err(|error| file_failed(&making, error))?;
    let recovered = Recovered { cluster, applied, meta_version };
    write_log(plan, &making, &recovered).map_err(io(&making))?;
    fs::rename(&plan.path, &plan.kept_as).map_err(io(&plan.path))?;
    put_in_place(&making, &plan.path)?;
    Ok(recovered)
}

impl Plan {
    fn membership(&self) -> &Membership {
        self.file.membership.as_ref().expect("the survey looked")
    }

    /// The change of the meta state: this node alone, with the replicas that it has.
    fn change(&self, meta: &Meta, made: &DataDir) -> MetaChange {
        let new = ReplicaId::new(meta.next_replica.max(1), self.node);
        let replica = |group: &Result<Remains, String>| group.as_ref().map_or(new, |remains| remains.replica);
        MetaChange::Survive {
            node: self.node,
            incarnation: made.meta().incarnation,
            cluster: made.meta().cluster,
            replicas: self.groups.iter().map(replica).collect(),
        }
    }

    /// Applies the change where there is no group 0 to log it.
    fn survive(&self, meta: &mut Meta, made: &DataDir) -> Result<(), Fatal> {
        let change = self.change(meta, made);
        match meta.change(&change) {
            MetaChanged::Yes => Ok(()),
            refused => Err(Fatal::Failed(format!("The meta state does not allow it: {refused:?}."))),
        }
    }

    /// Brings one shard to the end of its log as the only replica of its group, writing to the new directory.
    fn revive(
        &self,
        tuning: &Tuning,
        made: &DataDir,
        number: u32,
        remains: &Remains,
    ) -> Result<Offline, Fatal> {
        let told = |text: String| Fatal::Corruption { shard: number, detail: text };
        let read = read_replica(tuning, self.indexes, &self.directory, self.membership(), number);
        let mut image = read.map_err(told)?;
        let epoch = image.epoch.saturating_add(1);
        image.go_on_alone(epoch);
        let directory = made.shard_path(number);
        let shape = made.log_shape(number);
        replica_dir::prepare(&directory, remains.replica, shape.identity)
            .map_err(|source| Fatal::Directory { path: directory.clone(), source })?;
        let config = settings::shard(tuning, self.indexes, made.meta().cluster, number, made.meta().shards);
        let config = ShardConfig {
            floor: Floor::Always,
            log_payload_bytes_max: shape.payload_bytes_max(),
            snapshot_bytes_per_s_max: 0,
            ..config
        };
        Offline::begin(config, image, directory).map_err(told)
    }
}

/// A shard without threads, sockets or a log: what it hands to the log counts as durable, since the snapshot at the end is.
struct Offline {
    shard: Shard,
    directory: PathBuf,
    clock: Clock,
    events: Vec<Event>,
    effects: Effects,
    writer: Option<SnapshotWriter<RealDisk>>,
    answer: Option<Result<(), String>>,
}

impl Offline {
    /// Elects the shard and applies its log to the end.
    fn begin(config: ShardConfig, image: ShardImage, directory: PathBuf) -> Result<Self, String> {
        let clock = Clock::start();
        let shard = Shard::restore(config, image, clock.now()).map_err(|fault| fault.to_string())?;
        let (events, effects) = (Vec::new(), Effects::default());
        let mut offline = Self { shard, directory, clock, events, effects, writer: None, answer: None };
        let now = offline.clock.now();
        offline.shard.start(now, &mut offline.effects).map_err(|fault| fault.to_string())?;
        offline.perform()?;
        offline.until(|this| {
            let shard = &this.shard;
            shard.is_ready() && !shard.is_applying() && shard.applied_index() == shard.group().last_index()
        })?;
        Ok(offline)
    }

    /// Asks one thing and goes on until it is answered.
    fn ask(&mut self, record: &Record<'_>) -> Result<(), Fatal> {
        let mut batch = RequestBatch::default();
        record.encode(&mut batch.bytes);
        let length = u32::try_from(batch.bytes.len()).expect("a command is short");
        let (token, hash, deadline) = (Token(1), KeyHash(0), Millis(u64::MAX / 2));
        batch.heads.push(RequestHead { token, hash, deadline, start: 0, length });
        self.events.push(Event::Requests { router: 0, batch: Box::new(batch) });
        self.answer = None;
        let answered = self.until(|this| this.answer.is_some());
        let answered = answered.and_then(|()| self.answer.take().expect("it was waited for"));
        answered.map_err(|text| Fatal::Failed(format!("The recovery failed: {text}.")))
    }

    fn until(&mut self, is_done: impl Fn(&Self) -> bool) -> Result<(), String> {
        let (mut moved_us, mut at) = (self.clock.elapsed_us(), 0);
        while !is_done(self) {
            let now = self.clock.now();
            self.shard.step(now, &mut self.events, &mut self.effects).map_err(|fault| fault.to_string())?;
            self.perform()?;
            self.shard.work(now, UNITS, &mut self.effects).map_err(|fault| fault.to_string())?;
            self.perform()?;
            let is_moving = !self.events.is_empty() || self.shard.applied_index() > at;
            if is_moving {
                (moved_us, at) = (self.clock.elapsed_us(), self.shard.applied_index());
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
            if self.clock.elapsed_us() - moved_us > STUCK_AFTER_US {
                return Err(format!("its log does not come to an end behind entry {at}"));
            }
        }
        Ok(())
    }

    fn perform(&mut self) -> Result<(), String> {
        if let Some(last) = self.effects.appends.drain(..).next_back() {
            self.events.push(Event::Durable(last.sequence));
        }
        for effect in std::mem::take(&mut self.effects.snapshot) {
            self.perform_snapshot(effect)?;
        }
        for batch in &mut self.effects.replies {
            for head in &batch.heads {
                let text = String::from_utf8_lossy(batch.body(head)).into_owned();
                self.answer = Some(if head.kind == ReplyKind::Ok { Ok(()) } else { Err(text) });
            }
            batch.clear(0);
        }
        // Nobody is there to hear the rest.
        self.effects = Effects { replies: std::mem::take(&mut self.effects.replies), ..Effects::default() };
        Ok(())
    }

    fn perform_snapshot(&mut self, effect: SnapshotEffect) -> Result<(), String> {
        match effect {
            SnapshotEffect::Begin { index } => {
                let writer = SnapshotWriter::create(RealDisk, &self.directory, index);
                self.writer = Some(writer.map_err(|error| error.to_string())?);
            }
            SnapshotEffect::Write(chunk) => {
                let writer = self.writer.as_mut().ok_or("no snapshot is under way")?;
                writer.append(chunk.as_slice()).map_err(|error| error.to_string())?;
                self.events.push(Event::SnapshotWritten { bytes: chunk.as_slice().len() as u64 });
            }
            SnapshotEffect::Finish(footer) => {
                let writer = self.writer.take().ok_or("no snapshot is under way")?;
                let finished = writer.finish(&mut ReadBack::new(footer)).map(drop);
                self.events.push(Event::SnapshotFinished(finished.map_err(|error| error.to_string())));
            }
            SnapshotEffect::Drop => {
                if let Some(writer) = self.writer.take() {
                    writer.abort();
                }
            }
        }
        Ok(())
    }
}

/// This node's replica of a group as its files have it, or why there is nothing to go on with.
fn read_replica(
    tuning: &Tuning,
    indexes: IndexSettings,
    directory: &DataDir,
    membership: &Membership,
    number: u32,
) -> Result<ShardImage, String> {
    let group = GroupId(number);
    let path = directory.shard_path(number);
    let Ok(Some(held)) = replica_dir::held(&path) else {
        return Err("its directory is gone, was emptied, or its log was damaged and set aside".to_owned());
    };
    let replica = ReplicaId::new(held, membership.me);
    let founding = membership.founding(group, replica);
    let place = ShardPlace {
        directory: &path,
        shape: directory.log_shape(number),
        group,
        sessions: settings::sessions(tuning),
        indexes,
        founding: &founding,
    };
    let image = read_shard(&RealDisk, &place).map_err(|error| error.to_string())?;
    if image.remains().snapshot_index == 0 && matches!(founding, Founding::Empty { .. }) {
        return Err("this node has no replica of it, or an empty one".to_owned());
    }
    if image.remains().last_index == 0 {
        return Err("this node's replica has no entry".to_owned());
    }
    Ok(image)
}

/// Whether something answers at a node's cluster port.
fn answers(host: &str, port: u16) -> bool {
    let addresses = (host, port).to_socket_addrs();
    addresses
        .into_iter()
        .flatten()
        .any(|address| TcpStream::connect_timeout(&address, ANSWERED_WITHIN).is_ok())
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(ending);
    path.with_file_name(name)
}

/// Says in the new directory what was done, behind what an earlier recovery said there.
fn write_log(plan: &Plan, making: &Path, recovered: &Recovered) -> std::io::Result<()> {
    let mut text = fs::read_to_string(plan.path.join(LOG)).unwrap_or_default();
    let Recovered { cluster, applied, meta_version } = recovered;
    text.push_str(&format!(
        "format 1, unsafe recovery at {} ms since 1970: node {} (number {}) of cluster {:032x} goes on alone as cluster {cluster:032x}, \
         meta state {meta_version}; what was before is kept as {}\n",
        Clock::start().now().0,
        plan.node_id,
        plan.node,
        plan.cluster,
        plan.kept_as.display()
    ));
    for (group, (had, applied)) in plan.groups.iter().zip(applied).enumerate() {
        text.push_str(&match (had, applied) {
            (Ok(had), Some(applied)) => format!(
                "group {group}: snapshot {} committed {} last {} term {} -> {applied}\n",
                had.snapshot_index, had.commit_index, had.last_index, had.term
            ),
            (Err(why), _) => format!("group {group}: begins empty, {why}\n"),
            (Ok(_), None) => unreachable!("what was there was taken over"),
        });
    }
    let mut file = fs::File::create(making.join(LOG))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    RealDisk.sync_directory(making)
}

fn put_in_place(making: &Path, path: &Path) -> Result<(), Fatal> {
    let failed = |source| Fatal::Directory { path: path.to_path_buf(), source };
    fs::rename(making, path).map_err(failed)?;
    match path.canonicalize().map_err(failed)?.parent() {
        Some(parent) => RealDisk.sync_directory(parent).map_err(failed),
        None => Ok(()),
    }
}

/// Finishes a recovery that a crash cut off between its two renames.
fn finish_renames(path: &Path) -> Result<(), Fatal> {
    let making = beside(path, MAKING);
    if path.exists() || !making.join(LOG).exists() {
        return Ok(());
    }
    put_in_place(&making, path)?;
    Err(Fatal::Failed(format!(
        "An earlier recovery was cut off; it is finished now. Start the node on {}.",
        path.display()
    )))
}
