//! Hierarchical navigable small worlds: a graph in which a walk from any vector to the nearest ones is short.
//!
//! Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World
//! graphs" (IEEE TPAMI 42, 2020): levels that thin out upwards, a beam search in each, neighbours chosen so that they lie
//! apart (algorithm 4, filled up with what it pruned). A node's level comes from the hash of its key and equal closeness goes by
//! age, so the graph depends on nothing but the order of its insertions. Never removes a node: it is built anew when too many are dead.

use super::metric::Distance;
use super::probe::Probe;
use super::slots::{BLOCK_SLOTS, Slots};
use crate::index::Units;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Neighbours of a node on the upper levels.
pub(super) const DEGREE: usize = 16;
/// Neighbours of a node on the lowest level.
pub(super) const BASE_DEGREE: usize = 48;
/// Candidates that an insertion chooses its neighbours from.
const CONSTRUCTION_WIDTH: usize = 160;
/// The highest level: 16^7 nodes would be needed to want more.
pub(super) const LEVEL_MAX: u8 = 7;
/// The level of a slot that is not in the graph.
const ABSENT: u8 = u8::MAX;
/// Keeps levels apart from every other use of a key's hash.
const LEVEL_SEED: u64 = 0x686e_7377_5f6c_6576;

/// The level of a key: one in [`DEGREE`] nodes reaches the next one.
pub(super) fn level_of(key: &[u8]) -> u8 {
    (xxh3_64_with_seed(key, LEVEL_SEED).trailing_zeros() / DEGREE.ilog2()).min(u32::from(LEVEL_MAX)) as u8
}

/// Most neighbours on a level.
pub(super) fn degree_of(level: u8) -> usize {
    if level == 0 { BASE_DEGREE } else { DEGREE }
}

/// Neighbours that a new node chooses; others that choose it come on top.
pub(super) fn chosen_on(level: u8) -> usize {
    if level == 0 { BASE_DEGREE / 2 } else { DEGREE }
}

/// Units that comparing two vectors costs.
pub(super) fn units_of(dimensions: usize) -> u64 {
    2 + dimensions as u64 / 64
}

#[derive(Debug)]
struct Block {
    levels: [u8; BLOCK_SLOTS],
    counts: [u8; BLOCK_SLOTS],
    base: Box<[u32]>,
    /// The neighbours of the few nodes with upper levels, from level 1 on.
    upper: Vec<(u8, Vec<Vec<u32>>)>,
}

/// A node met on a walk, the closer the greater; of equally close ones the older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    pub(super) closeness: i64,
    born: Reverse<u64>,
    pub(super) slot: u32,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Graph {
    blocks: Vec<Block>,
    entry: Option<u32>,
    nodes: usize,
    /// Of the longest vector.
    length_max: f64,
}

impl Graph {
    /// Number of nodes, dead ones too.
    pub(super) fn nodes(&self) -> usize {
        self.nodes
    }

    /// The length of the longest vector among the nodes, dead ones too.
    pub(super) fn length_max(&self) -> f64 {
        self.length_max
    }

    pub(super) fn entry(&self) -> Option<u32> {
        self.entry
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.blocks.len() * (size_of::<Block>() + BLOCK_SLOTS * (BASE_DEGREE * 4 + DEGREE / 2))
    }

    /// The level of a node; `None` if the slot is not in the graph.
    pub(super) fn level(&self, slot: u32) -> Option<u8> {
        let block = self.blocks.get(slot as usize / BLOCK_SLOTS)?;
        Some(block.levels[slot as usize % BLOCK_SLOTS]).filter(|level| *level != ABSENT)
    }

    /// The neighbours of a node on a level.
    pub(super) fn links(&self, slot: u32, level: u8) -> &[u32] {
        let Some(block) = self.blocks.get(slot as usize / BLOCK_SLOTS) else { return &[] };
        let at = slot as usize % BLOCK_SLOTS;
        if level == 0 {
            return &block.base[at * BASE_DEGREE..][..usize::from(block.counts[at])];
        }
        let upper = block.upper.iter().find(|(of, _)| usize::from(*of) == at);
        upper.and_then(|(_, levels)| levels.get(usize::from(level) - 1)).map_or(&[], Vec::as_slice)
    }

    /// Replaces the neighbours of a node on a level.
    fn set_links(&mut self, slot: u32, level: u8, links: &[u32]) {
        assert!(links.len() <= degree_of(level), "neighbours are chosen within the degree");
        let at = slot as usize % BLOCK_SLOTS;
        let block = &mut self.blocks[slot as usize / BLOCK_SLOTS];
        if level == 0 {
            block.base[at * BASE_DEGREE..][..links.len()].copy_from_slice(links);
            block.counts[at] = links.len() as u8;
            return;
        }
        let upper = block.upper.iter_mut().find(|(of, _)| usize::from(*of) == at);
        let levels = &mut upper.expect("a node of this level has room for its neighbours").1;
        links.clone_into(&mut levels[usize::from(level) - 1]);
    }

    /// Adds a node, whose vector has this length, with its neighbours from level 0 up, which do not know it yet.
    pub(super) fn add(&mut self, slot: u32, length: f64, links: &[Vec<u32>]) {
        self.length_max = self.length_max.max(length);
        while self.blocks.len() <= slot as usize / BLOCK_SLOTS {
            self.blocks.push(Block {
                levels: [ABSENT; BLOCK_SLOTS],
                counts: [0; BLOCK_SLOTS],
                base: vec![0; BLOCK_SLOTS * BASE_DEGREE].into(),
                upper: Vec::new(),
            });
        }
        let level = u8::try_from(links.len() - 1).expect("levels are few");
        let at = slot as usize % BLOCK_SLOTS;
        let block = &mut self.blocks[slot as usize / BLOCK_SLOTS];
        assert!(block.levels[at] == ABSENT, "a slot is inserted once");
        block.levels[at] = level;
        if level > 0 {
            block.upper.push((at as u8, vec![Vec::new(); usize::from(level)]));
        }
        for (level, links) in (0u8..).zip(links) {
            self.set_links(slot, level, links);
        }
        self.nodes += 1;
    }

    /// Makes a node the entry if it is the first one or higher than the entry is.
    pub(super) fn offer_entry(&mut self, slot: u32) {
        let top = self.entry.and_then(|entry| self.level(entry));
        if top.is_none_or(|top| self.level(slot).is_some_and(|level| level > top)) {
            self.entry = Some(slot);
        }
    }

    /// Tells `neighbour` of a new node; a neighbour with too many chooses among them.
    pub(super) fn link_back(
        &mut self,
        slots: &Slots,
        neighbour: u32,
        slot: u32,
        level: u8,
        units: &mut Units,
    ) {
        let links = self.links(neighbour, level);
        if links.len() < degree_of(level) {
            let links = [links, &[slot]].concat();
            return self.set_links(neighbour, level, &links);
        }
        let candidate = |other: u32| Candidate {
            closeness: slots.closeness_between(neighbour, other),
            born: Reverse(slots.head(other).born),
            slot: other,
        };
        let mut candidates: Vec<Candidate> =
            links.iter().chain([&slot]).map(|other| candidate(*other)).collect();
        candidates.sort_unstable_by(|a, b| b.cmp(a));
        // Room is left for the next ones, so that not each of them costs a choice.
        let chosen = choose(slots, &candidates, degree_of(level) * 5 / 6, units);
        self.set_links(neighbour, level, &chosen);
    }

    /// The closest node to a probe that a greedy walk over the levels above `bottom` finds.
    pub(super) fn descend(
        &self,
        slots: &Slots,
        probe: &Probe,
        bottom: u8,
        units: &mut Units,
    ) -> Option<Candidate> {
        let mut here = candidate(slots, probe, self.entry?);
        for level in (bottom + 1..=self.level(here.slot)?).rev() {
            loop {
                let links = self.links(here.slot, level);
                units.spend(units_of(slots.dimensions) * links.len() as u64);
                let best = links.iter().map(|slot| candidate(slots, probe, *slot)).max();
                match best {
                    Some(best) if best > here => here = best,
                    _ => break,
                }
            }
        }
        Some(here)
    }

    /// Drops the last block; the slots in it that were nodes. `None` when all are gone.
    pub(super) fn pop_block(&mut self) -> Option<impl Iterator<Item = u32>> {
        let block = self.blocks.pop()?;
        let first = (self.blocks.len() * BLOCK_SLOTS) as u32;
        Some((first..).zip(block.levels).filter(|(_, level)| *level != ABSENT).map(|(slot, _)| slot))
    }

    /// Takes an entry as a snapshot has it, once all nodes are there.
    pub(super) fn set_entry(&mut self, entry: Option<u32>) {
        self.entry = entry;
    }
}

pub(super) fn candidate(slots: &Slots, probe: &Probe, slot: u32) -> Candidate {
    Candidate { closeness: probe.closeness(slots, slot), born: Reverse(slots.head(slot).born), slot }
}

/// Algorithm 4 of the paper: of candidates, closest first, those that are closer to the new node than to any one chosen
/// before; what room is left goes to the closest of the others.
pub(super) fn choose(slots: &Slots, candidates: &[Candidate], limit: usize, units: &mut Units) -> Vec<u32> {
    let mut chosen: Vec<u32> = Vec::with_capacity(limit);
    let mut others = Vec::new();
    let mut comparisons = 0;
    for candidate in candidates {
        if chosen.len() == limit {
            break;
        }
        let mut is_apart = true;
        for before in &chosen {
            comparisons += 1;
            if slots.closeness_between(*before, candidate.slot) > candidate.closeness {
                is_apart = false;
                break;
            }
        }
        if is_apart { chosen.push(candidate.slot) } else { others.push(candidate.slot) }
    }
    let room = limit - chosen.len();
    chosen.extend(others.into_iter().take(room));
    units.spend(comparisons * units_of(slots.dimensions));
    chosen
}

/// The slots that a walk has met.
#[derive(Debug, Default)]
struct Visited {
    bits: Vec<u64>,
    met: usize,
}

impl Visited {
    fn new(slots: u32) -> Self {
        Self { bits: vec![0; (slots as usize).div_ceil(64)], met: 0 }
    }

    /// Whether a slot is met for the first time. Slots that came after the walk began count as met.
    fn insert(&mut self, slot: u32) -> bool {
        let Some(word) = self.bits.get_mut(slot as usize / 64) else { return false };
        let bit = 1 << (slot % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        self.met += usize::from(is_new);
        is_new
    }
}

/// Algorithm 2 of the paper, a step at a time: the best `width` admitted nodes of a level.
#[derive(Debug)]
pub(super) struct Beam {
    frontier: BinaryHeap<Candidate>,
    best: BinaryHeap<Reverse<Candidate>>,
    visited: Visited,
    width: usize,
    level: u8,
    /// For a search: how far to go. An insertion goes on while nodes are better than the worst of the best `width`.
    reach: Option<Reach>,
}

/// How far a search's walk goes: until no node is left that is less than [`REACH`] times as far as the worst of its best few.
///
/// Where neighbours lie in clusters that is soon, where all vectors are about equally far it is nearly the whole graph, and
/// the search gives way to a flat scan. (Al-Jazzazi and others, "Distance Adaptive Beam Search for Provably Accurate
/// Graph-Based Nearest Neighbor Search", 2025: a walk that ends so cannot miss a neighbour that is much nearer.)
#[derive(Debug)]
struct Reach {
    distance: Distance,
    few: usize,
    best: BinaryHeap<Reverse<i64>>,
    steps: usize,
    /// The closeness at which the walk's reach ends.
    edge: i64,
    /// Nodes that the walk may meet.
    met_max: usize,
    gave_up: bool,
}

/// How many times as far as the best few a walk looks. At 1.05 walks among 100,000 independent vectors find .78 of the best
/// ten, at 1.1 (without giving way to a scan) .98; vectors of texts take 5 in 100 of the graph at 1.1 and 7 in 100 at 1.2.
const REACH: f64 = 1.1;
/// A walk has so many steps at least.
const STEPS_MIN: usize = 100;
/// Steps between two looks at how far a walk still has to go.
const STEPS_A_LOOK: usize = 64;

impl Reach {
    fn new(distance: Distance, few: usize, met_max: usize) -> Self {
        Self { distance, few, best: BinaryHeap::new(), steps: 0, edge: i64::MIN, met_max, gave_up: false }
    }

    fn found(&mut self, closeness: i64) {
        if self.best.len() == self.few {
            if self.best.peek().is_some_and(|Reverse(worst)| closeness <= *worst) {
                return;
            }
            self.best.pop();
        }
        self.best.push(Reverse(closeness));
        if let Some(Reverse(worst)) = self.best.peek().filter(|_| self.best.len() == self.few) {
            self.edge = self.distance.closeness_at(*worst, REACH);
        }
    }

    /// Whether nothing from this closeness on is worth a step.
    fn is_beyond(&self, closeness: i64) -> bool {
        closeness < self.edge && self.steps >= STEPS_MIN.max(self.few)
    }
}

impl Beam {
    pub(super) fn new(slots: &Slots, level: u8, width: usize) -> Self {
        let (frontier, best) = (BinaryHeap::new(), BinaryHeap::with_capacity(width + 1));
        Self { frontier, best, visited: Visited::new(slots.count()), width, level, reach: None }
    }

    /// A beam for a search that wants the best few, and gives up when it would meet more than so many nodes.
    pub(super) fn of_search(
        slots: &Slots,
        width: usize,
        few: usize,
        distance: Distance,
        met_max: usize,
    ) -> Self {
        assert!(few <= width, "the few are among those that are kept");
        Self { reach: Some(Reach::new(distance, few, met_max)), ..Self::new(slots, 0, width) }
    }

    /// A beam of the width that insertions need.
    pub(super) fn of_insertion(slots: &Slots, level: u8) -> Self {
        Self::new(slots, level, CONSTRUCTION_WIDTH)
    }

    /// Whether a search's walk has ended because it would meet too many nodes: what it found is of no use.
    pub(super) fn gave_up(&self) -> bool {
        self.reach.as_ref().is_some_and(|reach| reach.gave_up)
    }

    /// Looks now and then at how far a search's walk still has to go, as far as can be told from what waits within its reach.
    fn look_ahead(&mut self) {
        let (met, Some(reach)) = (self.visited.met, &mut self.reach) else { return };
        if reach.steps < STEPS_MIN || !reach.steps.is_multiple_of(STEPS_A_LOOK) {
            return;
        }
        let waiting = self.frontier.iter().filter(|node| node.closeness >= reach.edge).count();
        // Each step meets fewer new nodes than the ones before it.
        reach.gave_up = met + waiting * (met / reach.steps) / 4 > reach.met_max;
    }

    /// A node to begin with.
    pub(super) fn start(&mut self, node: Candidate, admit: &mut dyn FnMut(u32) -> bool) {
        if self.visited.insert(node.slot) {
            self.take(node, admit);
        }
    }

    fn take(&mut self, node: Candidate, admit: &mut dyn FnMut(u32) -> bool) {
        let is_full = self.best.len() == self.width;
        let is_among_best = !is_full || self.best.peek().is_none_or(|Reverse(worst)| node >= *worst);
        let leads_on = match &self.reach {
            Some(reach) => !reach.is_beyond(node.closeness),
            None => is_among_best,
        };
        if leads_on {
            self.frontier.push(node);
        }
        if is_among_best && admit(node.slot) {
            if is_full {
                self.best.pop();
            }
            self.best.push(Reverse(node));
            if let Some(reach) = &mut self.reach {
                reach.found(node.closeness);
            }
        }
    }

    /// Whether the closest node that waits need not be looked at, and so none.
    fn is_over(&mut self, closest: Candidate) -> bool {
        match &mut self.reach {
            Some(reach) => {
                reach.steps += 1;
                reach.is_beyond(closest.closeness)
            }
            None => {
                let worst = self.best.peek().filter(|_| self.best.len() == self.width);
                worst.is_some_and(|Reverse(worst)| closest < *worst)
            }
        }
    }

    /// Walks on until the budget is spent; true when nothing closer can be found, or the walk gives up.
    pub(super) fn step(
        &mut self,
        graph: &Graph,
        slots: &Slots,
        probe: &Probe,
        units: &mut Units,
        admit: &mut dyn FnMut(u32) -> bool,
    ) -> bool {
        let cost = units_of(slots.dimensions);
        while units.left() {
            let Some(node) = self.frontier.pop() else { return true };
            if self.is_over(node) {
                return true;
            }
            self.look_ahead();
            if self.gave_up() {
                return true;
            }
            units.spend(2);
            for slot in graph.links(node.slot, self.level) {
                if self.visited.insert(*slot) {
                    units.spend(cost);
                    self.take(candidate(slots, probe, *slot), admit);
                }
            }
        }
        false
    }

    /// What was found, closest first.
    pub(super) fn into_sorted(self) -> Vec<Candidate> {
        // The reverse order of the reverse order: the heap's greatest is the least close.
        self.best.into_sorted_vec().into_iter().map(|Reverse(node)| node).collect()
    }
}
