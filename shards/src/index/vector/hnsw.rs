//! Keeps a graph up with the vectors: what is to be inserted, in which order, and when the graph is built anew.
//!
//! Changes are taken in the order in which they happened, each one whole before the next, so a graph is a function of the
//! changes alone, not of how the work was sliced. A graph is first built from the vectors that are there at one moment, oldest first;
//! what changes meanwhile queues up. Vectors that are not in the graph yet are scanned by searches, so nothing is ever missed.
//! When a third of the nodes is dead the graph is built anew in the same way, while the old one serves.

use super::graph::{Beam, Candidate, Graph, choose, chosen_on, level_of};
use super::probe::Probe;
use super::slots::Slots;
use crate::index::Units;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Slots looked at in one go while the vectors to begin with are gathered.
const GATHERED_SLOTS: u32 = 256;
/// Fewer dead nodes than this are never worth a new graph.
const DEAD_MIN: usize = 64;

/// A change that the graph has not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// When it happened.
    pub(super) moment: u64,
    pub(super) slot: u32,
    /// Whether the vector came; else it went.
    pub(super) is_insert: bool,
}

/// A graph on its way to hold all vectors of one moment.
#[derive(Debug)]
pub(super) struct Building {
    pub(super) graph: Graph,
    pub(super) moment: u64,
    /// The youngest vector that went in.
    pub(super) taken: u64,
    /// The next slot to look at.
    gather: u32,
    slots: u32,
    /// What is to go in, oldest first.
    waiting: BinaryHeap<Reverse<(u64, u32)>>,
}

/// A vector on its way into the graph.
#[derive(Debug)]
struct Insertion {
    slot: u32,
    /// Vectors that went up to here are no neighbours.
    moment: u64,
    probe: Probe,
    /// Chosen neighbours, from level 0 up.
    links: Vec<Vec<u32>>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Enter,
    /// Looking for neighbours on a level, from the top down.
    Walk {
        level: u8,
        beam: Beam,
    },
    /// Telling the neighbours.
    Link {
        back: Vec<(u32, u8)>,
    },
}

/// An old graph whose dead nodes' slots are given up.
#[derive(Debug)]
struct Retired {
    graph: Graph,
    moment: u64,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Hnsw {
    pub(super) serving: Option<Graph>,
    /// The last change that `serving` has taken.
    pub(super) moment: u64,
    pub(super) building: Option<Building>,
    insertion: Option<Insertion>,
    retired: Option<Retired>,
    queue: VecDeque<Change>,
    /// Dead nodes of `serving`.
    dead: usize,
    /// Counts graphs that came to serve, so that a walk can tell that its graph is gone.
    pub(super) generation: u64,
}

impl Hnsw {
    /// Begins with the vectors that are there now.
    pub(super) fn begin(slots: &Slots) -> Self {
        Self { building: Some(Building::new(slots, slots.moment)), ..Self::default() }
    }

    /// As a snapshot has it: changes from the serving graph's moment on come in order by [`Hnsw::note`].
    pub(super) fn serving(graph: Graph, moment: u64, dead: usize) -> Self {
        Self { serving: Some(graph), moment, dead, ..Self::default() }
    }

    /// A graph that was being built when the snapshot was written.
    pub(super) fn building(building: Building) -> Self {
        Self { building: Some(building), ..Self::default() }
    }

    /// A vector has come or gone.
    pub(super) fn note(&mut self, change: Change) {
        self.queue.push_back(change);
    }

    /// Changes after this one are in the queue.
    pub(super) fn queued_after(&self) -> u64 {
        match (&self.serving, &self.building) {
            (None, Some(building)) => building.moment,
            _ => self.moment,
        }
    }

    /// Number of changes that the serving graph has not taken.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The first queued change after `moment`.
    pub(super) fn next_queued(&self, moment: u64) -> Option<Change> {
        self.queue.get(self.queue.partition_point(|change| change.moment <= moment)).copied()
    }

    /// Live vectors in the serving graph, about.
    pub(super) fn served(&self) -> usize {
        self.serving.as_ref().map_or(0, |graph| graph.nodes() - self.dead)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let graphs = self.serving.iter().chain(self.building.as_ref().map(|building| &building.graph));
        graphs.map(Graph::memory_bytes).sum::<usize>() + self.queue.capacity() * size_of::<Change>()
    }

    /// Whether [`Hnsw::work`] has something to do.
    pub(super) fn has_work(&self) -> bool {
        self.insertion.is_some()
            || self.retired.is_some()
            || self.building.is_some()
            || !self.queue.is_empty()
            || self.is_worn()
    }

    fn is_worn(&self) -> bool {
        let nodes = self.serving.as_ref().map_or(0, Graph::nodes);
        self.dead >= DEAD_MIN && self.dead * 3 > nodes
    }

    /// Goes on until the budget is spent.
    pub(super) fn work(&mut self, slots: &mut Slots, units: &mut Units) {
        while units.left() && self.has_work() {
            units.spend(1);
            if self.insertion.is_some() {
                self.insert_some(slots, units);
            } else if self.retired.is_some() {
                self.reap(slots, units);
            } else if self.building.is_some() {
                self.build_some(slots, units);
            } else if self.is_worn() {
                self.building = Some(Building::new(slots, self.moment));
            } else if let Some(change) = self.queue.front().copied() {
                if change.is_insert {
                    // It stays queued until it is in, since searches scan the queue.
                    self.insertion = Some(Insertion::new(slots, change.slot, change.moment));
                } else {
                    self.queue.pop_front();
                    self.dead += 1;
                    self.moment = change.moment;
                }
            }
        }
    }

    /// Ends an insertion whose node already has neighbours, so that a snapshot never sees half of one; others begin anew.
    pub(super) fn settle(&mut self, slots: &Slots) {
        if self.insertion.as_ref().is_some_and(Insertion::is_linking) {
            self.insert_some(slots, &mut Units::unlimited());
        }
        if let (Some(insertion), Some(building)) = (self.insertion.take(), &mut self.building) {
            building.waiting.push(Reverse((slots.head(insertion.slot).born, insertion.slot)));
        }
    }

    fn insert_some(&mut self, slots: &Slots, units: &mut Units) {
        let Some(insertion) = &mut self.insertion else { return };
        let graph = match (&mut self.building, &mut self.serving) {
            (Some(building), _) => &mut building.graph,
            (None, serving) => serving.get_or_insert_default(),
        };
        if !insertion.step(graph, slots, units) {
            return;
        }
        let (slot, moment) = (insertion.slot, slots.head(insertion.slot).born);
        self.insertion = None;
        if let Some(building) = &mut self.building {
            building.taken = moment;
            return;
        }
        let change = self.queue.pop_front();
        assert!(
            change.is_some_and(|change| change.slot == slot),
            "the first change in the queue was inserted"
        );
        self.moment = moment;
    }

    fn build_some(&mut self, slots: &Slots, units: &mut Units) {
        let Some(building) = &mut self.building else { return };
        if building.gather_some(slots, units) {
            return;
        }
        if let Some(Reverse((_, slot))) = building.waiting.pop() {
            self.insertion = Some(Insertion::new(slots, slot, building.moment));
            return;
        }
        let Some(Building { graph, moment, .. }) = self.building.take() else { return };
        let old = self.serving.replace(graph);
        self.retired = old.map(|graph| Retired { graph, moment });
        (self.moment, self.dead) = (moment, 0);
        self.generation += 1;
    }

    fn reap(&mut self, slots: &mut Slots, units: &mut Units) {
        let Some(retired) = &mut self.retired else { return };
        let Some(nodes) = retired.graph.pop_block() else {
            self.retired = None;
            return;
        };
        for slot in nodes {
            units.spend(1);
            if slots.head(slot).died <= retired.moment {
                slots.release(slot);
            }
        }
    }
}

impl Building {
    fn new(slots: &Slots, moment: u64) -> Self {
        Self::continued(Graph::default(), moment, 0, slots.count())
    }

    /// Goes on with a graph that holds the vectors of `moment` that came up to `taken`.
    pub(super) fn continued(graph: Graph, moment: u64, taken: u64, slots: u32) -> Self {
        Self { graph, moment, taken, gather: 0, slots, waiting: BinaryHeap::new() }
    }

    /// Gathers vectors of the moment; false when all are gathered.
    fn gather_some(&mut self, slots: &Slots, units: &mut Units) -> bool {
        let end = self.slots.min(self.gather + GATHERED_SLOTS);
        if self.gather == end {
            return false;
        }
        units.spend(u64::from(end - self.gather));
        for slot in self.gather..end {
            let head = slots.head(slot);
            if head.is_visible(self.moment) && head.born > self.taken {
                self.waiting.push(Reverse((head.born, slot)));
            }
        }
        self.gather = end;
        true
    }
}

impl Insertion {
    fn new(slots: &Slots, slot: u32, moment: u64) -> Self {
        let levels = usize::from(level_of(slots.key(slot))) + 1;
        let links = vec![Vec::new(); levels];
        Self { slot, moment, probe: Probe::of_slot(slots, slot), links, stage: Stage::Enter }
    }

    fn is_linking(&self) -> bool {
        matches!(self.stage, Stage::Link { .. })
    }

    /// Goes on until the budget is spent; true when the node is in and all its neighbours know it.
    fn step(&mut self, graph: &mut Graph, slots: &Slots, units: &mut Units) -> bool {
        while units.left() {
            match &mut self.stage {
                Stage::Enter => self.enter(graph, slots, units),
                Stage::Walk { level, beam } => {
                    if beam.step(graph, slots, &self.probe, units, &mut |_| true) {
                        let level = *level;
                        self.choose(level, graph, slots, units);
                    }
                }
                Stage::Link { back } => {
                    let Some((neighbour, level)) = back.pop() else {
                        graph.offer_entry(self.slot);
                        return true;
                    };
                    graph.link_back(slots, neighbour, self.slot, level, units);
                }
            }
        }
        false
    }

    fn enter(&mut self, graph: &mut Graph, slots: &Slots, units: &mut Units) {
        let own = u8::try_from(self.links.len() - 1).expect("levels are few");
        let top = graph.entry().and_then(|entry| graph.level(entry));
        let level = top.map_or(0, |top| top.min(own));
        let Some(start) = graph.descend(slots, &self.probe, level, units) else {
            return self.add(graph, slots);
        };
        let mut beam = Beam::of_insertion(slots, level);
        beam.start(start, &mut |_| true);
        self.stage = Stage::Walk { level, beam };
    }

    /// Takes what the walk on a level found, and goes to the next one.
    fn choose(&mut self, level: u8, graph: &mut Graph, slots: &Slots, units: &mut Units) {
        let Stage::Walk { beam, .. } = std::mem::replace(&mut self.stage, Stage::Enter) else { return };
        let found = beam.into_sorted();
        let is_there = |node: &&Candidate| slots.head(node.slot).died > self.moment;
        let mut near: Vec<Candidate> = found.iter().filter(is_there).copied().collect();
        if near.is_empty() {
            // Only dead nodes are left of the graph: they lead on to what comes later.
            near.clone_from(&found);
        }
        self.links[usize::from(level)] = choose(slots, &near, chosen_on(level), units);
        let Some(below) = level.checked_sub(1) else { return self.add(graph, slots) };
        let mut beam = Beam::of_insertion(slots, below);
        found.into_iter().for_each(|node| beam.start(node, &mut |_| true));
        self.stage = Stage::Walk { level: below, beam };
    }

    fn add(&mut self, graph: &mut Graph, slots: &Slots) {
        graph.add(self.slot, slots.head(self.slot).length, &self.links);
        let back =
            (0u8..).zip(&self.links).flat_map(|(level, links)| links.iter().map(move |slot| (*slot, level)));
        self.stage = Stage::Link { back: back.collect() };
    }
}
