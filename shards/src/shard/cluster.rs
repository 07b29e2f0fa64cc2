//! The cluster's meta state in group 0, the planner on its leader, and what every leader does for it.
//!
//! Each leader reports its group to group 0 once a round; group 0's leader plans on the reports and its state
//! ([`crate::placement`]) and asks leaders for one step each. Reports and requests may be lost or late: the next round says
//! them again, and a leader judges every request by its own configuration. A shard that knows of no cluster does nothing
//! here.

use super::members::number_or_null;
use super::outbox::{Waiter, reply};
use super::{Shard, ShardFault};
use crate::batch::{ReplyKind, RequestHead};
use crate::command::answer::{Failure, Outcome};
use crate::command::record::{Op, Record};
use crate::consensus::progress::Follower;
use crate::effect::Effects;
use crate::ids::{GroupId, Millis, ReplicaId};
use crate::meta::{Meta, MetaChange, MetaChanged, NodeState};
use crate::placement::{self, Progress, Report, Step};
use crate::txn::message::{GroupMessage, Message};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;

/// Time between two reports of a group, and between two rounds of planning.
const ROUND_MS: u64 = 300;
/// A report older than this says nothing any more.
const REPORT_AGE_MS_MAX: u64 = 3000;
/// The group that owns the meta state.
const OWNER: GroupId = GroupId(0);

/// What a shard knows of the cluster.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    /// The meta state as of the last applied entry; empty in every group but 0.
    state: Meta,
    /// The newest meta state that this node has heard of.
    known: Option<Arc<Meta>>,
    /// What leaders said last, and when (group 0's leader only).
    reports: BTreeMap<GroupId, (Millis, Report)>,
    /// The planner's own entries that are not applied.
    plans_in_flight: usize,
    next_round: Millis,
    /// Since when this replica plans: before a while is over, a report that is missing says nothing.
    plans_since: Option<Millis>,
}

impl Cluster {
    /// The room as a snapshot had it.
    pub(super) fn restored(state: Meta) -> Self {
        Self { state, ..Self::default() }
    }

    /// A snapshot of another replica takes the place of the state.
    pub(super) fn take_over(&mut self, state: Meta) {
        self.state = state;
        self.leadership_lost();
    }

    /// The meta state, to be stored; version 0 where there is none.
    pub(super) fn state(&self) -> &Meta {
        &self.state
    }

    /// Another replica plans from now on.
    pub(super) fn leadership_lost(&mut self) {
        self.reports.clear();
        self.plans_in_flight = 0;
        self.plans_since = None;
    }
}

impl Shard {
    /// The node has heard of a newer meta state.
    pub(super) fn hear_meta(&mut self, meta: Arc<Meta>) {
        if self.cluster.known.as_ref().is_none_or(|known| known.version < meta.version) {
            self.cluster.known = Some(meta);
        }
    }

    /// What this leader knows of its group.
    fn report(&self) -> Report {
        let followers = self.group.followers();
        let of = |is_voter: bool| {
            let of_kind = followers.iter().filter(move |follower| follower.is_voter == is_voter);
            of_kind.map(|follower| follower.replica).collect::<Vec<ReplicaId>>()
        };
        let progress = |follower: &Follower| Progress {
            replica: follower.replica,
            matched: follower.matched,
            is_active: follower.is_active,
        };
        Report {
            term: self.group.term(),
            leader: self.group.replica(),
            commit: self.group.commit_index(),
            is_changing: self.group.is_changing_members()
                || self.group.is_change_news()
                || self.group.is_transferring(),
            voters: of(true),
            learners: of(false),
            progress: followers.iter().map(progress).collect(),
        }
    }

    /// Reports or plans, when a round is due.
    pub(super) fn cluster_tick(&mut self, effects: &mut Effects) {
        if self.cluster.known.is_none() || !self.is_ready || self.now < self.cluster.next_round {
            return;
        }
        self.cluster.next_round = Millis(self.now.0 + ROUND_MS);
        let report = self.report();
        if self.config.group == OWNER {
            self.hear_report(OWNER, report);
            self.plan(effects);
        } else {
            self.tell(OWNER, Message::Report(Box::new(report)), effects);
        }
    }

    /// A report, or a request of the planner.
    pub(super) fn hear_of_members(&mut self, message: GroupMessage) {
        match message.body {
            Message::Report(report) if self.config.group == OWNER => self.hear_report(message.from, *report),
            Message::Member(step) if message.from == OWNER => self.take_step(&step),
            Message::Lost(lost) if self.config.group == OWNER => {
                self.plan_if_news(&MetaChange::Replace { group: message.from, lost });
            }
            Message::Moved(address) if self.config.group == OWNER => {
                self.plan_if_news(&MetaChange::Address(*address));
            }
            _ => {}
        }
    }

    /// Plans what a node says of itself, unless it is so already or another plan is on its way: nodes say it again.
    fn plan_if_news(&mut self, change: &MetaChange) {
        let is_free = self.cluster.state.version > 0 && self.cluster.plans_in_flight == 0;
        if is_free && self.cluster.state.clone().change(change) == MetaChanged::Yes {
            self.plan_change(change);
        }
    }

    /// Group 0's leader hears how another group is.
    pub(super) fn hear_report(&mut self, group: GroupId, report: Report) {
        let known = self.cluster.reports.get(&group);
        if known.is_none_or(|(_, known)| known.term <= report.term) {
            self.cluster.reports.insert(group, (self.now, report));
        }
    }

    fn plan(&mut self, effects: &mut Effects) {
        let now = self.now;
        self.cluster.plans_since.get_or_insert(now);
        self.cluster.reports.retain(|_, (heard, _)| heard.0 + REPORT_AGE_MS_MAX > now.0);
        if self.cluster.state.version == 0 {
            if let (Some(known), 0) = (self.cluster.known.clone(), self.cluster.plans_in_flight) {
                self.plan_change(&MetaChange::Found(Box::new((*known).clone())));
            }
            return;
        }
        if self.cluster.plans_in_flight == 0
            && let Some(change) = self.next_change()
        {
            self.plan_change(&change);
        }
        let reports =
            self.cluster.reports.iter().map(|(group, (_, report))| (*group, report.clone())).collect();
        for (group, step) in placement::steps(&self.cluster.state, &reports) {
            if group == OWNER {
                self.take_step(&step);
            } else {
                self.tell(group, Message::Member(step), effects);
            }
        }
    }

    /// The planner's next change of the meta state.
    fn next_change(&self) -> Option<MetaChange> {
        let Cluster { state, reports, .. } = &self.cluster;
        let planned_on = state.version;
        let is_busy = |group: GroupId| {
            let placement = &state.groups[group.0 as usize];
            reports.get(&group).is_none_or(|(_, report)| !placement::is_settled(placement, report))
        };
        let latest = reports.iter().map(|(group, (_, report))| (*group, report.clone())).collect();
        let planned = placement::replan(state, &latest).or_else(|| placement::wish(state, is_busy));
        if let Some((group, placement)) = planned {
            return Some(MetaChange::Place { group, placement, planned_on });
        }
        let is_named = |node| {
            let wanted = state.groups.iter().any(|p| p.replicas.iter().any(|held| held.node() == node));
            let mut members =
                reports.values().flat_map(|(_, report)| report.voters.iter().chain(&report.learners));
            wanted || members.any(|replica| replica.node() == node)
        };
        let all_reported = reports.len() == state.groups.len();
        let leaving =
            state.nodes.iter().filter(|node| node.state == NodeState::Leaving).map(|node| node.number);
        let gone = leaving.into_iter().find(|node| all_reported && !is_named(*node));
        gone.map(|node| MetaChange::Gone { node, planned_on })
    }

    fn plan_change(&mut self, change: &MetaChange) {
        let mut value = Vec::new();
        change.encode(&mut value);
        self.cluster.plans_in_flight += 1;
        let mut bytes = Vec::new();
        Record::plain(Op::Meta, &[], &value).encode(&mut bytes);
        self.gather(&bytes, Waiter::nobody(), None);
    }

    /// Does what group 0 asks of this leader, if its group allows it.
    pub(super) fn take_step(&mut self, step: &Step) {
        // Refused means not now: the planner asks again while it wants it.
        let _ = match step {
            Step::Change(changes) => self.change_members(changes).map(drop),
            Step::Transfer(to) => self.transfer(*to),
        };
    }

    /// A change of the cluster that an operator asks for.
    pub(super) fn admit_meta(
        &mut self,
        router: u8,
        head: &RequestHead,
        record: &Record<'_>,
        effects: &mut Effects,
    ) {
        let refusal = match MetaChange::decode(record.value) {
            Err(malformed) => Some(format!("the router sent a change that cannot be read: {}", malformed.0)),
            Ok(_) if self.config.group != OWNER => Some("only group 0 changes the cluster".to_owned()),
            Ok(_) => None,
        };
        if let Some(text) = refusal {
            return self.refuse(router, head, Failure::Internal(text), effects);
        }
        if self.cluster.state.version == 0 {
            let text =
                "this node runs alone and has no members to change; start nodes with --peers for a cluster";
            return self.refuse(router, head, Failure::BadRequest(text.to_owned()), effects);
        }
        if let Some(text) = MetaChange::decode(record.value).ok().and_then(|change| self.objection(&change)) {
            return self.refuse(router, head, Failure::BadRequest(text), effects);
        }
        if self.is_done_already(record.value) {
            return reply(effects, router, head.token, &Outcome::Ok);
        }
        let mut bytes = Vec::new();
        Record::plain(Op::Meta, &[], record.value).encode(&mut bytes);
        self.gather(&bytes, Waiter::client(router, head, false), None);
    }

    /// Whether a node that is to be removed leaves already. It stays so, whoever leads, so the answer needs no entry: one that
    /// an operator asks for again and again would keep followers that are being filled from ever catching up, where no entries
    /// are kept for them (seed 7670 of the simulator).
    fn is_done_already(&self, change: &[u8]) -> bool {
        let Ok(MetaChange::RemoveNode(number)) = MetaChange::decode(change) else { return false };
        self.cluster.state.node(number).is_some_and(|node| node.state == NodeState::Leaving)
    }

    /// Why a change that an operator asks for would do harm now, by what leaders report. A change that passes may still be
    /// refused by the state.
    fn objection(&self, change: &MetaChange) -> Option<String> {
        let Cluster { state, reports, .. } = &self.cluster;
        let latest = reports.iter().map(|(group, (_, report))| (*group, report.clone())).collect();
        match change {
            MetaChange::RemoveNode(node) => {
                let since = self.cluster.plans_since.unwrap_or(self.now);
                let all_had_time = self.now.0 >= since.0 + REPORT_AGE_MS_MAX;
                placement::removal_objection(state, &latest, *node, all_had_time)
            }
            MetaChange::Primary(node) | MetaChange::Prefer { node, .. } => {
                let silent = placement::silent_nodes(&latest);
                let named = state.node(*node).filter(|node| silent.contains(&node.number))?;
                let id = &named.id;
                Some(format!("{id:?} does not answer, so it cannot lead; start it again and ask once more"))
            }
            MetaChange::Survive { .. } if !self.group.is_alone() => {
                Some("the group has other members; a recovery is done offline".to_owned())
            }
            _ => None,
        }
    }

    /// Applies a change of the meta state.
    pub(super) fn apply_meta(
        &mut self,
        record: &Record<'_>,
        is_own: bool,
        effects: &mut Effects,
    ) -> Result<Outcome, ShardFault> {
        let change = MetaChange::decode(record.value)?;
        let is_plan = match change {
            MetaChange::Found(_) | MetaChange::Place { .. } | MetaChange::Gone { .. } => true,
            MetaChange::Address(_) | MetaChange::Replace { .. } => true,
            MetaChange::AddNode(_) | MetaChange::RemoveNode(_) => false,
            MetaChange::Primary(_) | MetaChange::Prefer { .. } | MetaChange::Survive { .. } => false,
        };
        if is_own && is_plan {
            self.cluster.plans_in_flight = self.cluster.plans_in_flight.saturating_sub(1);
        }
        match self.cluster.state.change(&change) {
            MetaChanged::Refused(text) => return Ok(Outcome::Failed(Failure::BadRequest(text))),
            MetaChanged::No => {}
            MetaChanged::Yes => {
                let state = Arc::new(self.cluster.state.clone());
                self.hear_meta(Arc::clone(&state));
                effects.meta = Some(state);
            }
        }
        Ok(Outcome::Ok)
    }

    /// How this group is, as JSON for CLUSTER: answered by its leader.
    pub(super) fn answer_members(&self, router: u8, head: &RequestHead, effects: &mut Effects) {
        let (report, followers) = (self.report(), self.group.followers());
        effects.replies_to(router).push(head.token, ReplyKind::Part, |out| {
            let begun = write!(
                out,
                "{{\"group\":{},\"term\":{},\"leader\":{},\"commit_index\":{},\"applied_index\":{},\"changing\":{},\"replicas\":[",
                self.config.group,
                report.term,
                report.leader.node(),
                report.commit,
                self.applied,
                report.is_changing,
            );
            begun.expect("a vector takes every byte");
            for (number, one) in followers.iter().enumerate() {
                let written = write!(
                    out,
                    "{}{{\"node\":{},\"voter\":{},\"active\":{},\"match_index\":{},\"applied_index\":{},\"lag\":{}}}",
                    if number == 0 { "" } else { "," },
                    one.replica.node(),
                    one.is_voter,
                    one.is_active,
                    one.matched,
                    number_or_null(one.applied),
                    one.lag(report.commit),
                );
                written.expect("a vector takes every byte");
            }
            out.extend_from_slice(b"]}");
        });
    }
}
