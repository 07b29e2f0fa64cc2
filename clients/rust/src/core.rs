//! The loop behind every call: route, send, gather, and send again what may be sent again, until the deadline.
//!
//! Invariants: every item ends with exactly one outcome; a sequenced write keeps its number through all its attempts; no
//! item is sent again after a later item of the same call that touches the same key has taken effect.

use crate::command::{Command, Nature, Touches};
use crate::error::{Error, ErrorCode, Outcome};
use crate::link::{Broken, Link};
use crate::options::ClientOptions;
use crate::reply::Reply;
use crate::route::Routes;
use crate::sequence::Sequencer;
use crate::session::Session;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};
use strand_wire::code::{Code, Retry};

/// Redirects that one request follows without a pause.
const HOPS_MAX: u32 = 5;
/// Connections kept open besides the primary one.
const LINKS_MAX: usize = 64;

/// Connections, routes and numbers of one client.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) options: ClientOptions,
    seeds: Vec<String>,
    /// Address of the node that takes whatever has no better route.
    primary: String,
    links: HashMap<String, Link>,
    routes: Routes,
    sequencer: Sequencer,
    random: u64,
}

/// One command of a call and how far it has come.
struct Item {
    command: Command,
    seq: Option<u64>,
    attempts: u32,
    hops: u32,
    /// Where a NOT_LEADER reply sent it.
    directed: Option<String>,
    /// Whether an attempt may have reached a server without its outcome becoming known.
    in_doubt: bool,
    /// How the last attempt ended, while another one is to come.
    last: Option<Result<Reply, Error>>,
    done: Option<Result<Reply, Error>>,
}

impl Core {
    pub(crate) fn connect(seeds: Vec<String>, options: ClientOptions) -> Result<Self, Error> {
        options.check()?;
        let primary =
            seeds.first().cloned().ok_or_else(|| Error::Config("at least one address is needed".into()))?;
        let (id, random) = identity()?;
        let sequencer = Sequencer::new(&id);
        let (links, routes) = (HashMap::new(), Routes::default());
        let mut core = Self { options, seeds, primary, links, routes, sequencer, random };
        let tries = u32::try_from(core.seeds.len()).unwrap_or(u32::MAX);
        let address = core.primary.clone();
        core.ready(&address, Instant::now() + core.options.connect_timeout.saturating_mul(tries))?;
        Ok(core)
    }

    pub(crate) fn client_id(&self) -> &str {
        self.sequencer.client()
    }

    pub(crate) fn address(&self) -> &str {
        &self.primary
    }

    /// Whether the primary connection is open and at rest.
    pub(crate) fn is_healthy(&self) -> bool {
        self.links.get(&self.primary).is_some_and(Link::is_healthy)
    }

    /// How long the primary connection was idle.
    pub(crate) fn idle(&self) -> Duration {
        self.links.get(&self.primary).map_or(Duration::MAX, Link::idle)
    }

    /// Runs one command; an error reply is a reply.
    pub(crate) fn run_one(&mut self, command: Command) -> Result<Reply, Error> {
        self.run(vec![command], None).pop().expect("one command has one outcome")
    }

    /// Runs commands in order over as few exchanges as possible; one outcome each, in the same order.
    pub(crate) fn run(
        &mut self,
        commands: Vec<Command>,
        limit: Option<Duration>,
    ) -> Vec<Result<Reply, Error>> {
        let longest = commands.iter().map(|command| self.patience(command)).max().unwrap_or_default();
        let patience = limit.unwrap_or(longest);
        let deadline = Instant::now() + patience;
        let mut items: Vec<Item> = commands.into_iter().map(|command| self.item(command)).collect();
        loop {
            let open: Vec<usize> = (0..items.len()).filter(|at| items[*at].done.is_none()).collect();
            if open.is_empty() {
                break;
            }
            let attempts = open.iter().map(|at| items[*at].attempts).max().unwrap_or_default();
            let redirected = open.iter().all(|at| items[*at].directed.is_some());
            if attempts > 0 && !redirected && !self.pause(attempts, deadline) {
                open.iter().for_each(|at| items[*at].give_up(patience));
                break;
            }
            self.round(&mut items, &open, deadline, patience);
        }
        for seq in items.iter().filter_map(|item| item.seq) {
            self.sequencer.settle(seq);
        }
        items.into_iter().map(|item| item.done.expect("the loop ends with every item done")).collect()
    }

    fn item(&mut self, command: Command) -> Item {
        let bytes_max = self.options.request_bytes_max;
        let done = (command.body().len() > bytes_max).then(|| {
            Err(Error::Encode(format!("{} bytes are over the limit of {bytes_max}", command.body().len())))
        });
        let sequenced = command.nature() == Nature::Sequenced && done.is_none();
        let seq = sequenced.then(|| self.sequencer.begin());
        Item { command, seq, attempts: 0, hops: 0, directed: None, in_doubt: false, last: None, done }
    }

    fn patience(&self, command: &Command) -> Duration {
        let usual = if command.is_slow() { self.options.timeout_slow } else { self.options.timeout };
        command.patience().unwrap_or(usual)
    }

    /// Sleeps before another attempt; false when the deadline leaves no time for one.
    fn pause(&mut self, attempts: u32, deadline: Instant) -> bool {
        let random = self.draw();
        let pause = self.options.retry.pause(attempts, random);
        let left = deadline.saturating_duration_since(Instant::now());
        if left <= pause {
            return false;
        }
        std::thread::sleep(pause);
        true
    }

    /// xorshift64*, for jitter only.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// One attempt for every open item, stretch by stretch: what may touch any key waits for what was queued before it,
    /// which may go elsewhere, and what was queued behind it waits for it.
    fn round(&mut self, items: &mut [Item], open: &[usize], deadline: Instant, patience: Duration) {
        let is_one_place = !self.options.uses_map() || !self.options.ordered;
        let touches_many = |at: usize| matches!(items[at].command.touches(), Touches::Many);
        let stretches: Vec<&[usize]> = match is_one_place {
            true => vec![open],
            false => open.chunk_by(|a, b| touches_many(*a) == touches_many(*b)).collect(),
        };
        for stretch in stretches {
            self.attempt(items, stretch, deadline, patience);
        }
        let effects = Effects::of(items);
        for at in open {
            let refused = matches!(items[*at].last, Some(Ok(_)));
            if refused && items[*at].done.is_none() && effects.follow(*at, items[*at].command.touches()) {
                items[*at].give_up(patience);
            }
        }
    }

    /// One attempt for items that may go to several places at once, address by address.
    fn attempt(&mut self, items: &mut [Item], open: &[usize], deadline: Instant, patience: Duration) {
        let mut by_address: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for at in open {
            by_address.entry(self.address_for(&mut items[*at])).or_default().push(*at);
        }
        for (address, batch) in by_address {
            match self.ready(&address, deadline) {
                Ok(address) => self.exchange(&address, items, &batch, deadline, patience),
                Err(error) => {
                    batch
                        .iter()
                        .for_each(|at| items[*at].unreachable(&error, self.options.retry.attempts_max));
                }
            }
        }
    }

    fn address_for(&self, item: &mut Item) -> String {
        if let Some(address) = item.directed.take() {
            return address;
        }
        let routed = item.command.slot().and_then(|slot| self.routes.leader(slot));
        routed.unwrap_or(&self.primary).to_owned()
    }

    /// Makes a connection ready: to the address asked for, or to any other node known. Gives the address that answered.
    fn ready(&mut self, wanted: &str, deadline: Instant) -> Result<String, Error> {
        let mut candidates = vec![wanted.to_owned(), self.primary.clone()];
        candidates.extend(self.seeds.iter().cloned());
        candidates.extend(self.routes.addresses());
        let mut tried = HashSet::new();
        let mut first_error = None;
        for address in candidates {
            if !tried.insert(address.clone()) {
                continue;
            }
            if self.links.get(&address).is_some_and(Link::is_usable) {
                return Ok(address);
            }
            self.links.remove(&address);
            match Link::connect(&address, &self.options, deadline) {
                Ok(mut link) => {
                    if let Some(map) = link.map.take().filter(|_| self.options.uses_map()) {
                        self.routes.learn_map(&map, &address);
                    }
                    self.keep(&address, link, wanted);
                    return Ok(address);
                }
                Err(error) => {
                    self.routes.forget(&address);
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.expect("there is always an address to try"))
    }

    fn keep(&mut self, address: &str, link: Link, wanted: &str) {
        if self.links.len() >= LINKS_MAX {
            self.links.retain(|open, _| *open == self.primary);
        }
        self.links.insert(address.to_owned(), link);
        if wanted == self.primary {
            address.clone_into(&mut self.primary);
        }
    }

    /// Sends a batch over one link and notes how each item fared.
    fn exchange(
        &mut self,
        address: &str,
        items: &mut [Item],
        batch: &[usize],
        deadline: Instant,
        patience: Duration,
    ) {
        let mut link = self.links.remove(address).expect("the link was made ready just now");
        let numbers = RefCell::new(&mut self.sequencer);
        let mut replies: Vec<(usize, Reply)> = Vec::with_capacity(batch.len());
        let submit = |nth: usize, session: &mut Session| {
            let item = &items[batch[nth]];
            let numbers = numbers.borrow();
            session.submit(batch[nth] as u64, &item.command, item.seq.map(|seq| numbers.stamp(seq)));
        };
        let reply_to = |ticket: u64, reply: Reply| {
            let at = usize::try_from(ticket).expect("a ticket is an index");
            if let (None, Some(seq)) = (reply.error(), items[at].seq) {
                numbers.borrow_mut().settle(seq);
            }
            replies.push((at, reply));
        };
        let ended = link.exchange(batch.len(), self.options.window, deadline, submit, reply_to);
        let mut missing: HashSet<usize> = batch.iter().copied().collect();
        let mut leaving = false;
        for (at, reply) in replies {
            missing.remove(&at);
            leaving |= reply.error().is_some_and(|error| error.code == ErrorCode::Known(Code::ShuttingDown));
            self.replied(&mut items[at], reply);
        }
        match ended {
            Ok(()) if !leaving => drop(self.links.insert(address.to_owned(), link)),
            Ok(()) => self.next_primary(address),
            Err(broken) => {
                let sent: HashMap<u64, bool> = link.unanswered().into_iter().collect();
                for at in missing {
                    let sent = sent.get(&(at as u64)).copied().unwrap_or(false);
                    items[at].broke(&broken, sent, &self.options, patience);
                }
            }
        }
    }

    /// Notes a reply: the end of an item, or the reason for another attempt.
    fn replied(&mut self, item: &mut Item, reply: Reply) {
        item.attempts += 1;
        let Some(error) = reply.error() else {
            item.done = Some(Ok(reply));
            return;
        };
        if error.code == ErrorCode::Known(Code::NotLeader) {
            if let (Some(leader), Some(shard)) = (error.leader(), error.shard()) {
                self.routes.learn(item.command.slot(), shard, leader);
            }
            item.hops += 1;
            if item.hops <= HOPS_MAX && error.leader().is_some() {
                item.directed = error.leader().map(str::to_owned);
                item.last = Some(Ok(reply));
                return;
            }
        }
        let again = self.options.retry.after_reply(item.command.nature(), error.retry, item.attempts);
        item.in_doubt |= error.retry == Retry::SameSeq;
        item.last = Some(Ok(reply));
        if !again {
            item.give_up(Duration::ZERO);
        }
    }

    /// Turns to the seed after the one that is going away.
    fn next_primary(&mut self, leaving: &str) {
        if self.primary == leaving {
            let at = self.seeds.iter().position(|seed| seed == leaving).map_or(0, |at| at + 1);
            self.primary = self.seeds[at % self.seeds.len()].clone();
        }
    }
}

impl Item {
    /// Ends the item with what its last attempt said.
    fn give_up(&mut self, patience: Duration) {
        let doubt = if self.in_doubt { Outcome::Unknown } else { Outcome::NotApplied };
        let settled = |reply: &Reply| reply.error().is_some_and(|error| error.retry != Retry::Safe);
        self.done = Some(match self.last.take() {
            // A refusal of a repetition says nothing about the attempt that got no answer.
            Some(Ok(reply)) if !self.in_doubt || settled(&reply) => Ok(reply),
            Some(Err(Error::Disconnected { source, .. })) => {
                Err(Error::Disconnected { source, outcome: doubt })
            }
            Some(Err(error)) if !self.in_doubt => Err(error),
            _ => Err(Error::Timeout { after: patience, outcome: doubt }),
        });
    }

    /// Notes that the connection broke before the item was answered.
    fn broke(&mut self, broken: &Broken, sent: bool, options: &ClientOptions, patience: Duration) {
        self.attempts += 1;
        self.in_doubt |= sent;
        let again = options.retry.after_break(self.command.nature(), sent, self.attempts);
        if again && matches!(broken, Broken::Io(_)) {
            self.last = Some(Err(broken.error(sent, patience)));
        } else {
            self.done = Some(Err(broken.error(self.in_doubt, patience)));
        }
    }

    /// Notes that no node could be reached.
    fn unreachable(&mut self, error: &Error, attempts_max: u32) {
        self.attempts += 1;
        let (again, error) = match error {
            Error::Connect { address, source } => {
                let source = std::io::Error::new(source.kind(), source.to_string());
                (self.attempts < attempts_max, Error::Connect { address: address.clone(), source })
            }
            Error::Server(refusal) => {
                (refusal.retry == Retry::Safe && self.attempts < attempts_max, Error::Server(refusal.clone()))
            }
            other => (false, Error::Protocol(other.to_string())),
        };
        self.last = Some(Err(error));
        if !again {
            self.give_up(Duration::ZERO);
        }
    }
}

/// Which items of a call took effect, or may have.
#[derive(Default)]
struct Effects {
    last_of_key: HashMap<u64, usize>,
    last_of_many: Option<usize>,
    last: Option<usize>,
}

impl Effects {
    fn of(items: &[Item]) -> Self {
        let mut effects = Self::default();
        // A call of one command has no later one.
        if items.len() < 2 {
            return effects;
        }
        for (at, item) in items.iter().enumerate() {
            let succeeded = matches!(&item.done, Some(Ok(reply)) if reply.error().is_none());
            if !(succeeded || item.in_doubt) {
                continue;
            }
            match item.command.touches() {
                Touches::Key(hash) => drop(effects.last_of_key.insert(hash, at)),
                Touches::Many => effects.last_of_many = Some(at),
                Touches::Nothing => continue,
            }
            effects.last = Some(at);
        }
        effects
    }

    /// Whether something after position `at` that touches the same keys may have taken effect.
    fn follow(&self, at: usize, touches: Touches) -> bool {
        let after = |last: Option<usize>| last.is_some_and(|last| last > at);
        match touches {
            Touches::Key(hash) => after(self.last_of_key.get(&hash).copied()) || after(self.last_of_many),
            Touches::Many => after(self.last),
            Touches::Nothing => false,
        }
    }
}

/// A client id that no other instance has, and a seed for jitter, from the operating system.
fn identity() -> Result<(String, u64), Error> {
    let mut bytes = [0; 20];
    getrandom::fill(&mut bytes).map_err(|error| Error::Config(format!("no randomness: {error}")))?;
    let id = bytes[..12].iter().map(|byte| format!("{byte:02x}")).collect();
    let seed = bytes[12..].iter().fold(0, |seed, byte| seed << 8 | u64::from(*byte));
    Ok((id, seed | 1))
}
