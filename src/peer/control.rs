//! Control links: every node tells every other which meta state it has and who leads what, a few times a second and
//! whenever something changed; and the threads that speak to one node each, which also make the connections that shards
//! and forwarders ask for.
//!
//! A node that is silent for [`SILENT_AFTER_MS`] counts as away in what CLUSTER shows; nothing else follows from that
//! here: leaders are elected by the groups. A thread that waits for a dead node delays nothing but its own.

use super::counters::count;
use super::dial::{self, DialError};
use super::hub::{Hub, Notice, Task};
use super::socket::{Talk, TalkError};
use crate::clock::{self, Clock};
use crate::fatal::{self, Fatal};
use crate::router::ServerFacts;
use shards::ids::{GroupId, NodeNumber};
use shards::log::payload::PayloadBuffer;
use shards::peer::frame::Kind;
use shards::peer::gossip::Gossip;
use shards::peer::hello::{Purpose, RefusalCode};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use super::view::Leader;

/// Time between two words to a node when nothing changes.
pub const SPEAK_EVERY_MS: u64 = 250;
/// A node not heard for so long counts as away.
pub const SILENT_AFTER_MS: u64 = 1500;
/// A control link without a word for so long is closed: its sender has another, or is gone.
const HEARD_WITHIN: Duration = Duration::from_secs(10);
/// Longest wait for a word to be taken.
const SAID_WITHIN: Duration = Duration::from_millis(1000);
/// Pause before a node that could not be reached is tried again: first and longest.
const RETRY_MS: (u64, u64) = (50, 1000);
/// So long a node is told that another process of it is connected before it believes that and ends: a process that died is silent
/// long before. Who has run for [`SETTLED_MS`] waits longer, so that of two it is the newcomer who ends.
const TWICE_MS_MAX: u64 = 5_000;
/// See [`TWICE_MS_MAX`].
const TWICE_SETTLED_MS_MAX: u64 = 15_000;
/// See [`TWICE_MS_MAX`].
const SETTLED_MS: u64 = 60_000;
/// Time between two looks at what INFO is told.
const FIGURES_EVERY: Duration = Duration::from_secs(1);

/// Hears what another node says, until it ends.
///
/// # Errors
/// Why it ended.
pub fn serve(mut talk: Talk, node: NodeNumber, hub: &Arc<Hub>) -> Result<(), TalkError> {
    while !hub.is_stopping() {
        let gossip = talk
            .receive(&[Kind::Gossip], HEARD_WITHIN, |_, payload, scratch| Gossip::decode(payload, scratch))?;
        if hub.nodes.meta().node(node).is_none() {
            // It was removed. Who calls again is told so, and without that it would never know: nobody speaks to it any more.
            return Ok(());
        }
        hub.heard(node, gossip.meta_version);
        if let Some(meta) = gossip.meta {
            hub.notice(Notice::Meta(Arc::new(meta)));
        }
        let known = hub.view.groups();
        for (group, &(term, leader)) in gossip.leaders.iter().enumerate().take(known) {
            // The others' word about this node's own leadership is old news: its shards know better.
            if leader != 0 && NodeNumber(leader) != hub.me {
                let group = GroupId(group as u32);
                if hub.view.learn(group, Leader { term, node: NodeNumber(leader) }) {
                    tracing::debug!(from = node.0, group = group.0, leader, "heard of another leader");
                    hub.leader_changed(group);
                }
            }
        }
    }
    Ok(())
}

/// Starts the thread that takes notices and keeps one thread for each other node. `facts` is where INFO's figures go, once
/// there is such a place.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(
    hub: &Arc<Hub>,
    notices: Receiver<Notice>,
    facts: Arc<OnceLock<Arc<ServerFacts>>>,
) -> Result<(), Fatal> {
    let hub = Arc::clone(hub);
    let run = move || {
        employ(&hub);
        let clock = Clock::start();
        let mut next_look_us = 0;
        loop {
            let now_us = clock.elapsed_us();
            if now_us >= next_look_us {
                next_look_us = now_us + FIGURES_EVERY.as_micros() as u64;
                hub.tell_whereabouts();
            }
            match notices.recv_timeout(FIGURES_EVERY) {
                Ok(Notice::Meta(meta)) => {
                    if hub.learn_meta(&meta) {
                        employ(&hub);
                        hub.speak();
                    }
                }
                Ok(Notice::Leader) => hub.speak(),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if let Some(facts) = facts.get() {
                tell(&hub, facts);
            }
        }
    };
    let spawned = std::thread::Builder::new().name("control".to_owned()).spawn(run);
    spawned.map(drop).map_err(|source| Fatal::Start { thread: "control".to_owned(), source })
}

fn tell(hub: &Hub, facts: &ServerFacts) {
    let mut text = String::from("\"peers\":");
    hub.counters.write_json(&mut text);
    // Names that this program gave: nothing in them needs to be escaped.
    let set_aside: Vec<String> = hub.set_aside().iter().map(|name| format!("\"{name}\"")).collect();
    text.push_str(&format!(",\"set_aside\":[{}]", set_aside.join(",")));
    *facts.extra.lock().unwrap_or_else(PoisonError::into_inner) = text;
}

/// Keeps a thread for every other node that is not gone.
fn employ(hub: &Arc<Hub>) {
    if hub.is_stopping() {
        return;
    }
    let others = hub.others();
    let mut workers = hub.workers();
    workers.retain(|node, _| others.contains(node));
    for node in others {
        workers.entry(node).or_insert_with(|| {
            let (tasks, inbox) = channel();
            let hub = Arc::clone(hub);
            let run = move || Worker::new(node, hub).run(&inbox);
            let spawned = std::thread::Builder::new().name(format!("node-{}", node.0)).spawn(run);
            if let Err(error) = spawned {
                tracing::error!(node = node.0, "no thread to speak to a node: {error}");
            }
            tasks
        });
    }
}

/// What the thread for one node has.
struct Worker {
    node: NodeNumber,
    hub: Arc<Hub>,
    link: Option<Talk>,
    clock: Clock,
    next_word_ms: u64,
    next_try_ms: u64,
    failures: u32,
    /// Since when the node says that another process of this one is connected to it.
    twice_since_ms: Option<u64>,
    /// Whether the log has said that the node is away.
    is_away_told: bool,
}

impl Worker {
    fn new(node: NodeNumber, hub: Arc<Hub>) -> Self {
        let clock = Clock::start();
        Self {
            node,
            hub,
            link: None,
            clock,
            next_word_ms: 0,
            next_try_ms: 0,
            failures: 0,
            twice_since_ms: None,
            is_away_told: false,
        }
    }

    fn run(mut self, tasks: &Receiver<Task>) {
        loop {
            let now_ms = self.clock.elapsed_us() / 1000;
            let due_ms =
                if self.link.is_some() { self.next_word_ms } else { self.next_try_ms.max(self.next_word_ms) };
            match tasks.recv_timeout(Duration::from_millis(due_ms.saturating_sub(now_ms))) {
                Ok(Task::Dial(purpose, reply)) => {
                    reply(self.dial(purpose).map(|talk| talk.into_socket(self.node)));
                }
                Ok(Task::Speak) => self.next_word_ms = 0,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.speak();
        }
    }

    fn dial(&mut self, purpose: Purpose) -> Result<Talk, String> {
        let made = dial::member(&self.hub, self.node, purpose);
        count(if made.is_ok() { &self.hub.counters.dialled } else { &self.hub.counters.dial_failures });
        match &made {
            Err(DialError::Refused(refusal)) if refusal.code == RefusalCode::Twice => {
                self.runs_twice(&refusal.text);
            }
            Err(DialError::Refused(refusal)) if refusal.code == RefusalCode::Removed => {
                self.hub.was_removed(&refusal.text);
            }
            _ => self.twice_since_ms = None,
        }
        made.map_err(|error| error.to_string())
    }

    /// The node refuses this process because another one of the same name is connected to it. While that goes on the two could
    /// vote twice, each with nodes that know only one of them; so whoever is told so for long ends, and says why. Neither can
    /// know which of them is the copy.
    fn runs_twice(&mut self, text: &str) {
        let now_ms = self.clock.elapsed_us() / 1000;
        let since_ms = *self.twice_since_ms.get_or_insert(now_ms);
        let is_settled = self.hub.clock.elapsed_us() / 1000 >= SETTLED_MS;
        let patience_ms = if is_settled { TWICE_SETTLED_MS_MAX } else { TWICE_MS_MAX };
        if now_ms - since_ms >= patience_ms {
            fatal::exit(&Fatal::DirectoryMismatch(format!(
                "Node {} refuses this process, since {text}. This one stops. Keep one of the two data directories, the one that \
                 was written last, and remove the other.",
                self.node.0
            )));
        }
    }

    /// Says what is due, over a link that is made when there is none.
    fn speak(&mut self) {
        let now_ms = self.clock.elapsed_us() / 1000;
        if self.link.is_none() && now_ms >= self.next_try_ms {
            match self.dial(Purpose::Control) {
                Ok(link) => self.came_up(link),
                Err(text) => self.failed(now_ms, &text),
            }
        }
        let Some(link) = &mut self.link else { return };
        if now_ms < self.next_word_ms {
            return;
        }
        self.next_word_ms = now_ms + SPEAK_EVERY_MS;
        let mut payload = PayloadBuffer::new();
        word(&self.hub, self.node).encode(&mut payload);
        if let Err(error) = link.send(Kind::Gossip, &payload, SAID_WITHIN) {
            self.link = None;
            self.failed(now_ms, &error.to_string());
        }
    }

    fn came_up(&mut self, link: Talk) {
        if let Some(address) = link.local_address() {
            self.hub.speaks_from(address);
        }
        self.link = Some(link);
        self.failures = 0;
        self.next_word_ms = 0;
        if std::mem::take(&mut self.is_away_told) {
            tracing::info!(node = self.node.0, "a node is reached again");
        }
    }

    fn failed(&mut self, now_ms: u64, text: &str) {
        let pause_ms = (RETRY_MS.0 << self.failures.min(8)).min(RETRY_MS.1);
        // Half of it by chance, so that nodes that lost one another together do not call together.
        self.next_try_ms = now_ms + pause_ms / 2 + clock::random_u64() % (pause_ms / 2 + 1);
        self.failures = self.failures.saturating_add(1);
        if self.failures == 3 && !std::mem::replace(&mut self.is_away_told, true) {
            tracing::warn!(node = self.node.0, "a node cannot be reached: {text}");
        }
    }
}

/// What this node has to say to another.
fn word(hub: &Hub, to: NodeNumber) -> Gossip {
    let meta = hub.nodes.meta();
    let leaders = (0..hub.groups()).map(|group| {
        let leader = hub.view.leader(GroupId(group));
        (leader.term, leader.node.0)
    });
    let is_behind = hub.is_behind(to, meta.version);
    Gossip {
        meta_version: meta.version,
        leaders: leaders.collect(),
        meta: is_behind.then(|| (*meta).clone()),
    }
}

/// A channel for notices; its receiver goes to [`start`].
pub fn notices() -> (Sender<Notice>, Receiver<Notice>) {
    channel()
}
