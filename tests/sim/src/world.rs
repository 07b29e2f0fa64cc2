//! A whole simulation: machines, clients, and one queue of what happens next on virtual time.
//!
//! Nothing in here reads a clock or draws from anywhere but the plan's seed, so a plan is one history. What must always
//! hold is checked after every turn of every shard; the rest is judged from outside, at the end.

use crate::client::{Client, Pending};
use crate::disk::SimDisk;
use crate::fault::{Fault, FaultCounts};
use crate::machine::Machine;
use crate::members::Operator;
use crate::net::Net;
use crate::plan::Plan;
use crate::replicas::Replicas;
use crate::rng::Rng;
use crate::router::{Answer, AskId};
use crate::scheduled::Scheduled;
use crate::strand::{Out, Stop, class_of};
use crate::trace::Trace;
use crate::work::{self, Workload};
use raft::prelude::Message as RaftMessage;
use shards::batch::{ReplyBatch, RequestBatch};
use shards::effect::SnapshotFetch;
use shards::ids::GroupId;
use shards::meta::Meta;
use shards::shard::Burden;
use shards::txn::message::GroupMessage;
use std::cell::Cell;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;
use std::sync::Arc;

/// What happens next.
pub enum Happening {
    /// A shard takes a turn.
    Turn(usize, u32, usize),
    /// A router sends what it gathered.
    Route(usize, u32),
    /// A router looks at its deadlines.
    Look(usize, u32),
    /// A client's line reaches a machine.
    Line(usize, u32, AskId, String),
    /// A shard's replies reach their router.
    Replies(usize, u32, ReplyBatch),
    /// Something from a machine reaches another, or itself.
    Packet(usize, usize, Packet),
    /// A router hears that the link to a machine broke.
    LinkBroke(usize, u32, usize),
    /// A snapshot from another machine is here, or could not be had.
    Fetched(usize, u32, GroupId, SnapshotFetch),
    /// A client hears an answer, or that its connection is gone.
    Hear(usize, AskId, Option<Answer>),
    /// A client goes on: asks, or asks again.
    Next(usize),
    /// Something goes wrong.
    Fault,
    /// What was switched on ends.
    Calm(usize, Fault),
    /// A machine starts.
    Boot(usize, u32),
    /// A replica that a node was given starts there.
    Seat(usize, u32, usize),
    /// Nodes tell one another what they know, and the operator looks.
    Round,
}

/// What travels between machines.
#[derive(Clone)]
pub enum Packet {
    /// Between two replicas of a group.
    Raft(GroupId, Box<RaftMessage>),
    /// Between two groups.
    Message(GroupMessage),
    /// A router's requests, with the life of its process.
    Requests(u32, Rc<Cell<Option<Box<RequestBatch>>>>),
    /// Replies to the process of this life.
    Replies(u32, Rc<ReplyBatch>),
    /// A meta state, and who leads each group as the sender knows it.
    Gossip(Arc<Meta>, Vec<(u64, Option<usize>)>),
}

/// The cluster of every simulation.
pub const CLUSTER: u128 = 0x51_0000;

/// Virtual time at which a simulation begins: some moment of 2026, in microseconds.
pub const BEGINNING_US: u64 = 1_770_000_000_000_000;
/// After healing, everything under way is answered within this time.
const HEALED_US: u64 = 150_000_000;
/// And all is quiet within this: a router gives up what a machine that is gone has to answer when its client does, a
/// minute later at most.
const QUIET_US: u64 = 90_000_000;
/// As the server's router: its longest sleep.
const ROUTER_SLEEP_US: u64 = 50_000;
/// So many requests in a thousand are followed by a pause; the others by the next one almost at once.
pub const PAUSES_PER_MILLE: u64 = 300;
/// What a disk was to answer with an error when the faults ended may arrive so much later.
const LATE_FAULTS_US: u64 = 5_000_000;
const EVENTS_MAX: u64 = 6_000_000;

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Why it failed.
    pub failure: Option<String>,
    /// The hash of everything that happened.
    pub trace: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// Of them, with success.
    pub succeeded: u64,
    /// Requests whose outcome nobody knows.
    pub unknown: u64,
    /// Faults by class.
    pub faults: FaultCounts,
    /// Virtual time, in microseconds.
    pub virtual_us: u64,
    /// Happenings.
    pub happenings: u64,
    /// Snapshots that were kept.
    pub snapshots: u64,
    /// States compared with an earlier one at the same log index.
    pub compared: u64,
    /// The most that a shard held at once, of each kind.
    pub peak: Burden,
    /// Histories that were too hard to judge.
    pub unjudged: u64,
}

/// See the module's head.
pub struct World {
    pub(crate) plan: Plan,
    pub(crate) rng: Rng,
    pub(crate) clock: Rc<Cell<u64>>,
    pub(crate) machines: Vec<Machine>,
    pub(crate) clients: Vec<Client>,
    pub(crate) report: Report,
    pub(crate) trace: Trace,
    pub(crate) is_healed: bool,
    /// Since when.
    healed_us: u64,
    queue: BinaryHeap<Scheduled>,
    next_order: u64,
    pub(crate) works: Vec<Box<dyn Workload>>,
    pub(crate) next_ask: AskId,
    tick: u64,
    pub(crate) asked: u32,
    /// State digests by group and log index.
    pub(crate) digests: BTreeMap<(u32, u64), u64>,
    /// The links between machines.
    pub(crate) net: Net,
    /// What must hold among replicas.
    pub(crate) replicas: Replicas,
    /// Who wants nodes to come and go.
    pub(crate) operator: Operator,
    /// A leader stands still or is deaf: when another one leads, and when it hears again.
    pub(crate) lone: Option<(u64, u64)>,
    /// What was found wrong where nothing could be returned.
    pub(crate) complaint: Option<String>,
}

/// Runs a plan.
pub fn run(plan: &Plan) -> Report {
    let mut world = World::new(plan);
    let result = world.live();
    for machine in &mut world.machines {
        world.report.faults.merge(&machine.disk.take_counts());
    }
    world.report.faults.merge(&world.net.counts);
    world.report.virtual_us = world.clock.get() - BEGINNING_US;
    world.report.trace = world.trace.hash();
    if let Err(text) = result {
        world.report.failure = Some(text);
    }
    world.report
}

impl World {
    fn new(plan: &Plan) -> Self {
        let mut rng = Rng::new(plan.seed ^ 0x5eed_0000);
        let clock = Rc::new(Cell::new(BEGINNING_US));
        let machines = (0..plan.nodes + plan.spares)
            .map(|number| {
                let disk = SimDisk::new(rng.fork(100 + u64::from(number)));
                let machine = Machine::new(plan, number as usize, disk, &mut rng);
                machine
                    .disk
                    .set_faults(|faults| (faults.lies, faults.slow_us) = (plan.lying_disk, plan.slow_us));
                machine
            })
            .collect();
        let clock_error_ms = machine_clock_error_ms(plan);
        let chosen: Vec<usize> = (0..work::COUNT).filter(|number| plan.work & 1 << number != 0).collect();
        let promise = work::Promise {
            with_faults: plan.faults.has(Fault::LostRecord),
            with_local: plan.generation > 1,
            forgets: plan.interval_ms > 0,
            bursts: plan.bursts,
            renewals: plan.renewals,
        };
        let works =
            chosen.iter().map(|number| work::make(*number, plan.keys, clock_error_ms, promise)).collect();
        let clients = (0..plan.clients as usize)
            .map(|number| Client::new(number % chosen.len(), rng.fork(number as u64)))
            .collect();
        Self {
            plan: plan.clone(),
            rng,
            clock,
            machines,
            clients,
            report: Report::default(),
            trace: Trace::default(),
            is_healed: false,
            healed_us: 0,
            queue: BinaryHeap::new(),
            next_order: 0,
            works,
            next_ask: 0,
            tick: 0,
            asked: 0,
            digests: BTreeMap::new(),
            net: Net::new(plan.generation > 1),
            replicas: Replicas::new(plan.has_meta),
            operator: Operator::default(),
            lone: None,
            complaint: None,
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.clock.get()
    }

    pub(crate) fn schedule(&mut self, after_us: u64, happening: Happening) {
        self.next_order += 1;
        let at = self.now() + after_us;
        let happening = Box::new(happening);
        self.queue.push(Scheduled { at, order: self.next_order, happening });
    }

    /// Runs until `is_over`, or until so much time has gone by.
    fn run_until(&mut self, longest_us: u64, is_over: impl Fn(&Self) -> bool) -> Result<bool, String> {
        let end = self.now() + longest_us;
        while !is_over(self) {
            match self.queue.peek() {
                Some(next) if next.at <= end => {}
                _ => return Ok(false),
            }
            let Some(next) = self.queue.pop() else { return Ok(false) };
            self.clock.set(next.at);
            self.report.happenings += 1;
            if self.report.happenings > EVENTS_MAX {
                return Err(format!("more than {EVENTS_MAX} happenings: something spins"));
            }
            self.happen(*next.happening)?;
            if let Some(text) = self.complaint.take() {
                return Err(text);
            }
        }
        Ok(true)
    }

    fn live(&mut self) -> Result<(), String> {
        if self.plan.has_meta {
            self.found();
        }
        for number in 0..self.machines.len() {
            self.schedule(0, Happening::Boot(number, 0));
        }
        for client in 0..self.clients.len() {
            let after = self.rng.below(20_000) + 5_000;
            self.schedule(after, Happening::Next(client));
        }
        let after = self.rng.around(self.plan.fault_every_ms * 1000);
        self.schedule(after, Happening::Fault);
        let requests = self.plan.requests;
        self.run_until(self.plan.lasts_us * 3 + 5_000_000, |world| world.asked >= requests)?;
        self.heal();
        let is_over = |world: &Self| world.asked >= requests && world.clients.iter().all(Client::is_idle);
        if !self.run_until(HEALED_US, is_over)? {
            return Err(format!("healed, and after {HEALED_US} us not all is answered: {}", self.describe()));
        }
        if self.plan.has_meta && !self.run_until(HEALED_US, Self::is_arranged)? {
            let wish = &self.operator.wish;
            return Err(format!(
                "healed, and after {HEALED_US} us the members are not as wished ({wish:?}): {}",
                self.describe()
            ));
        }
        self.settle()?;
        if self.rng.chance(600) {
            // What was acknowledged is there after the power went everywhere.
            for number in 0..self.machines.len() {
                self.power_off(number);
                self.schedule(1000, Happening::Boot(number, self.machines[number].life));
            }
            self.settle()?;
        }
        self.ask_last()?;
        self.settle()?;
        if !self.run_until(QUIET_US, Self::is_at_rest)? {
            let left: Vec<_> = self.burdens().collect();
            return Err(format!("all is quiet, and something is left: {left:?}"));
        }
        for work in &mut self.works {
            let name = work.name();
            self.report.unjudged += work.judge().map_err(|text| format!("{name}: {text}"))?;
        }
        self.refuse_vacuous()
    }

    /// Who waits for what, for complaints.
    fn describe(&self) -> String {
        let pending = self.clients.iter().filter_map(|client| client.pending.as_ref());
        let waiting: Vec<String> =
            pending.map(|pending| format!("{:?} {}", pending.ask, pending.line)).collect();
        let states: Vec<String> = self.machines.iter().map(Machine::describe).collect();
        format!("clients wait for {waiting:?}; machines: {states:?}")
    }

    /// Waits until every machine serves and nothing is under way.
    fn settle(&mut self) -> Result<(), String> {
        if self.run_until(QUIET_US, |world| world.machines.iter().all(Machine::is_quiet))? {
            return Ok(());
        }
        Err(format!("healed, and not quiet after {QUIET_US} us: {}", self.describe()))
    }

    fn burdens(&self) -> impl Iterator<Item = (usize, usize, Burden)> {
        let strands = self.machines.iter().enumerate().flat_map(|(number, machine)| {
            let strands = machine.strands.iter().enumerate();
            strands.filter_map(move |(shard, strand)| Some((number, shard, strand.as_ref()?.shard.burden())))
        });
        strands.filter(|(_, _, burden)| !burden.is_none())
    }

    /// Whether no shard holds anything of what was asked.
    fn is_at_rest(&self) -> bool {
        self.burdens().next().is_none()
    }

    fn ask_last(&mut self) -> Result<(), String> {
        for number in 0..self.works.len() {
            while let Some(ask) = self.works[number].last() {
                let mut client = Client::new(number, self.rng.fork(77));
                client.pending = Some(Pending::new(ask, self.next_tick(), self.now()));
                client.is_last = true;
                self.clients.push(client);
                let place = self.clients.len() - 1;
                self.schedule(1, Happening::Next(place));
                let is_over = |world: &Self| world.clients[place].pending.is_none();
                if !self.run_until(HEALED_US, is_over)? {
                    let line = self.clients[place].pending.as_ref().map(|pending| pending.line.clone());
                    return Err(format!("no answer in the quiet at the end to {line:?}"));
                }
                self.clients.pop();
            }
        }
        Ok(())
    }

    fn refuse_vacuous(&self) -> Result<(), String> {
        let Report { succeeded, answered, .. } = self.report;
        let requests = u64::from(self.plan.requests);
        // A disk that stays full may refuse most writes; otherwise half of what was asked must have worked.
        let share = if self.plan.faults.has(Fault::DiskFull) { 20 } else { 4 };
        if succeeded < requests / share {
            return Err(format!("vacuous: {succeeded} of {answered} answers tell of success"));
        }
        Ok(())
    }

    pub(crate) fn next_tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Turn(machine, life, shard) => {
                if self.machines[machine].is_alive(life)
                    && let Some(strand) = &mut self.machines[machine].strands[shard]
                    && strand.wake_at.is_some_and(|at| at <= self.clock.get())
                {
                    strand.wake_at = None;
                    return self.turn(machine, shard);
                }
            }
            Happening::Route(machine, life) => {
                if self.machines[machine].is_alive(life) {
                    self.route(machine);
                }
            }
            Happening::Look(machine, life) => {
                if self.machines[machine].is_alive(life) {
                    let now = self.machines[machine].moment(self.clock.get()).wall;
                    self.machines[machine].router.send_refused(now);
                    self.route(machine);
                    self.schedule(ROUTER_SLEEP_US, Happening::Look(machine, life));
                }
            }
            Happening::Line(machine, life, ask, line) => {
                if self.machines[machine].is_alive(life) && self.machines[machine].is_listening {
                    self.trace.note(&[1, machine as u64, self.clock.get(), ask]);
                    let now = self.machines[machine].moment(self.clock.get()).wall;
                    self.machines[machine].router.line(now, ask, &line);
                    let after = self.rng.below(30);
                    self.schedule(after, Happening::Route(machine, life));
                }
            }
            Happening::Replies(machine, life, batch) => self.take_replies(machine, life, &batch),
            Happening::Packet(from, to, packet) => self.arrive(from, to, packet),
            Happening::LinkBroke(machine, life, other) => {
                if self.machines[machine].is_alive(life) {
                    self.machines[machine].router.link_broke(other);
                    self.route(machine);
                }
            }
            Happening::Fetched(machine, life, group, fetch) => {
                if self.machines[machine].is_alive(life) {
                    return self.fetched(machine, group, fetch);
                }
            }
            Happening::Hear(client, ask, answer) => return self.hear(client, ask, answer.as_ref()),
            Happening::Next(client) => self.go_on(client),
            Happening::Fault => {
                if !self.is_healed {
                    self.inject();
                    let after = self.rng.around(self.plan.fault_every_ms * 1000);
                    self.schedule(after, Happening::Fault);
                }
            }
            Happening::Calm(machine, fault) => self.calm(machine, fault),
            Happening::Boot(machine, life) => {
                let place = &self.machines[machine];
                if place.life == life && !place.is_up && place.node.is_some() {
                    return self.boot(machine);
                }
            }
            Happening::Seat(machine, life, shard) => {
                if self.machines[machine].is_alive(life) {
                    return self.seat(machine, shard);
                }
            }
            Happening::Round => self.round(),
        }
        Ok(())
    }

    /// Has a shard take a turn soon.
    pub(crate) fn wake(&mut self, machine: usize, shard: usize, after_us: u64) {
        let at = self.now().max(self.machines[machine].paused_until_us) + after_us;
        self.wake_at(machine, shard, at);
    }

    fn wake_at(&mut self, machine: usize, shard: usize, at: u64) {
        let at = at.max(self.machines[machine].paused_until_us);
        let life = self.machines[machine].life;
        let Some(strand) = &mut self.machines[machine].strands[shard] else { return };
        if strand.wake_at.is_none_or(|earlier| at < earlier) {
            strand.wake_at = Some(at);
            let after = at - self.now();
            self.schedule(after, Happening::Turn(machine, life, shard));
        }
    }

    fn turn(&mut self, number: usize, shard: usize) -> Result<(), String> {
        let now_us = self.now();
        let machine = &mut self.machines[number];
        let moment = machine.moment(now_us);
        let mut out = Out::default();
        let strand = machine.strands[shard].as_mut().expect("only a replica has turns");
        strand.known_term = machine.views[shard].0;
        let turned = strand.turn(moment, &machine.disk, &mut machine.fuse, &mut out);
        let applied = strand.shard.group().commit_index();
        self.trace.note(&[2, number as u64, shard as u64, now_us, applied, out.messages.len() as u64]);
        let strand = self.machines[number].strands[shard].as_ref().expect("it is still there");
        self.replicas.note_durable(number, shard as u32, strand);
        self.send_out(number, shard, out);
        match turned {
            Ok(is_busy) => {
                // What left the shard may have brought the end of its own machine.
                let machine = &self.machines[number];
                let Some(strand) = &machine.strands[shard] else { return Ok(()) };
                let due = strand.due(moment, now_us);
                let at = if is_busy { now_us + self.plan.turn_us } else { due.max(now_us + 1) };
                let serves = !machine.is_listening && machine.running().all(|strand| strand.shard.is_ready());
                self.machines[number].is_listening |= serves;
                self.inspect(number, shard)?;
                self.wake_at(number, shard, at);
                if self.plan.has_meta {
                    return self.dismiss(number, shard);
                }
                Ok(())
            }
            Err(stop) if self.machines[number].is_up => self.stopped(number, stop),
            Err(_) => Ok(()),
        }
    }

    /// A process ended on its own account.
    pub(crate) fn stopped(&mut self, number: usize, stop: Stop) -> Result<(), String> {
        self.trace.note(&[3, number as u64, self.clock.get()]);
        if let Some(class) = class_of(&stop) {
            self.report.faults.add(class);
        }
        match stop {
            Stop::Cut => self.power_off(number),
            Stop::Killed => self.kill(number),
            Stop::Named(text) => {
                // A process may stop by name only when something was done to it.
                if self.is_healed && self.now() > self.healed_us + LATE_FAULTS_US {
                    return Err(format!("stopped without a fault: {text}"));
                }
                self.kill(number);
            }
            Stop::LaterFormat(text) => {
                self.kill(number);
                let is_later = self.machines[number].damage.iter().any(|damage| damage.is_later_format);
                if !self.machines[number].repair() || !is_later {
                    return Err(format!("files of this version are refused as later ones: {text}"));
                }
            }
            Stop::Corrupt(text) => {
                self.kill(number);
                if !self.machines[number].repair() {
                    return Err(format!("a sound disk is refused: {text}"));
                }
            }
        }
        let after = 1000 + self.rng.below(300_000);
        self.schedule(after, Happening::Boot(number, self.machines[number].life));
        Ok(())
    }

    fn boot(&mut self, number: usize) -> Result<(), String> {
        let booted = self.machines[number].boot(&self.plan, &self.clock, self.is_healed);
        self.trace.note(&[4, number as u64, self.clock.get(), u64::from(booted.is_ok())]);
        match booted {
            Ok(outs) => {
                for (shard, out) in outs {
                    self.send_out(number, shard, out);
                    self.wake(number, shard, 1);
                }
                self.schedule(1, Happening::Look(number, self.machines[number].life));
                Ok(())
            }
            Err(stop) => self.stopped(number, stop),
        }
    }

    /// Sends what a router has gathered, to shards and to clients.
    pub(crate) fn route(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let now = machine.moment(self.clock.get()).wall;
        machine.router.end_late(now);
        let views = machine.views.clone();
        let life = machine.life;
        let target = |group: GroupId| views[group.0 as usize].1.unwrap_or(number);
        let batches = machine.router.take_batches(target);
        let answers = std::mem::take(&mut machine.router.answers);
        for (group, batch) in batches {
            let packet = Packet::Requests(life, Rc::new(Cell::new(Some(batch))));
            self.send(number, target(group), &packet, false);
        }
        for answer in answers {
            let Some(client) = self.client_of(answer.ask) else { continue };
            let after = 20 + self.rng.below(100);
            self.schedule(after, Happening::Hear(client, answer.ask, Some(answer)));
        }
    }

    /// The faults end; everything that is down comes back.
    fn heal(&mut self) {
        self.is_healed = true;
        self.healed_us = self.now();
        self.net.heal();
        for number in 0..self.machines.len() {
            self.machines[number].heal(self.plan.lying_disk);
            if !self.machines[number].is_up {
                self.schedule(1000, Happening::Boot(number, self.machines[number].life));
            }
        }
    }
}

/// How far a clock may be from another of the same machine, an hour of virtual time taken together.
fn machine_clock_error_ms(plan: &Plan) -> u64 {
    let jumps = plan.faults.has(Fault::ClockJump) || plan.faults.has(Fault::ClockSkew);
    // Expiry runs beside traffic and is judged by entry stamps: the clock of the last tick, and what was under way.
    if jumps { u64::MAX / 4000 } else { 50 }
}
