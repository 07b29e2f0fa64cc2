//! Vector indexes as bytes: the vectors of one moment with the graph over them, so that a restart builds nothing anew.
//!
//! A section holds some slots in order. Version 2, little endian, integers as varints where nothing else is said:
//!
//! ```text
//! u8 version, dimensions, moment
//! u8 graph: 0 none, 1 serving, 2 being built; the last change that it has taken; the moment of the vectors it began with;
//! its entry's slot plus one, or 0
//! number of slots that follow, and for each of them:
//!   slot less the one before it (the first: itself), born, died or 0, key with its length, dimensions x f32
//!   with a graph: levels (0: not in it), and for each level from 0 up: number of neighbours, their slots
//! ```
//!
//! The graph rests while a snapshot is written, and the moment is pinned, so all sections tell of one state. Version 1 held
//! keys and vectors only: number, then key with its length and dimensions x f32 for each.

use super::VectorIndex;
use super::graph::{Graph, LEVEL_MAX, degree_of};
use super::hnsw::{Building, Change, Hnsw};
use super::slots::{NEVER, Pin};
use crate::index::Units;
use crate::index::codec::{Corrupt, Reader, put_bytes, put_varint, put_varint_u64};

const VERSION: u8 = 2;
const VERSION_WITHOUT_GRAPH: u8 = 1;
/// Longest run of free slots that a section may leave out: a bound on what foreign bytes can make the loader allocate.
const GAP_MAX: u32 = 1 << 20;

const NO_GRAPH: u8 = 0;
const SERVING: u8 = 1;
const BUILDING: u8 = 2;

/// A snapshot under way: what it sees.
#[derive(Debug)]
pub(super) struct Writing {
    header: Header,
    pin: Pin,
    slots: u32,
}

/// What has been loaded of an index.
#[derive(Debug, Default)]
pub(super) struct Loading {
    header: Header,
    graph: Graph,
    last_slot: Option<u32>,
}

/// What every section says of the graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Header {
    moment: u64,
    kind: u8,
    taken: u64,
    begun: u64,
    entry: Option<u32>,
}

impl Header {
    fn of(index: &VectorIndex, moment: u64) -> Self {
        let Some(hnsw) = &index.hnsw else { return Self { moment, ..Self::default() } };
        match (&hnsw.serving, &hnsw.building) {
            (Some(graph), _) => {
                Self { moment, kind: SERVING, taken: hnsw.moment, begun: hnsw.moment, entry: graph.entry() }
            }
            (None, Some(building)) => {
                let (taken, begun) = (building.taken, building.moment);
                Self { moment, kind: BUILDING, taken, begun, entry: building.graph.entry() }
            }
            (None, None) => Self { moment, ..Self::default() },
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        put_varint_u64(out, self.moment);
        out.push(self.kind);
        put_varint_u64(out, self.taken);
        put_varint_u64(out, self.begun);
        put_varint_u64(out, self.entry.map_or(0, |entry| u64::from(entry) + 1));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        let moment = reader.varint_u64()?;
        let kind = reader.u8()?;
        let (taken, begun) = (reader.varint_u64()?, reader.varint_u64()?);
        let entry = reader.varint_u64()?.checked_sub(1);
        let entry = entry.map(u32::try_from).transpose().map_err(|_| Corrupt("entry of a graph"))?;
        if kind > BUILDING || taken > moment || begun > moment || moment == NEVER {
            return Err(Corrupt("header of a vector section"));
        }
        Ok(Self { moment, kind, taken, begun, entry })
    }
}

impl VectorIndex {
    /// From now on [`VectorIndex::write_section`] writes the index as it is now.
    pub fn begin_snapshot(&mut self) {
        if let Some(hnsw) = &mut self.hnsw {
            hnsw.settle(&self.slots);
        }
        let header = Header::of(self, self.slots.moment);
        self.writing = Some(Writing { header, pin: self.slots.pin(), slots: self.slots.count() });
    }

    /// Forgets what the snapshot needed.
    pub fn end_snapshot(&mut self) {
        self.writing = None;
    }

    /// Writes slots from `from` on until `units` are spent; returns where to go on.
    pub fn write_section(&self, from: u32, units: &mut Units, out: &mut Vec<u8>) -> Option<u32> {
        let (header, moment, slots) = match &self.writing {
            Some(writing) => (writing.header, writing.pin.moment, writing.slots),
            None => (Header::of(self, self.slots.moment), self.slots.moment, self.slots.count()),
        };
        // A graph that was begun after the snapshot was is none of its business.
        let graph = self.hnsw.as_ref().filter(|_| header.kind != NO_GRAPH).and_then(|hnsw| {
            hnsw.serving.as_ref().or(hnsw.building.as_ref().map(|building| &building.graph))
        });
        out.push(VERSION);
        put_varint(out, self.slots.dimensions as u32);
        header.put(out);
        let mut written = Vec::new();
        let (mut slot, mut count, mut before) = (from, 0u64, 0);
        while slot < slots && (units.left() || slot == from) {
            let head = self.slots.head(slot);
            let is_node = graph.is_some_and(|graph| graph.level(slot).is_some());
            // Ended vectors are kept for the graph: as its nodes, or as changes that it has not taken.
            let is_needed = is_node
                || head.is_visible(moment)
                || (header.kind != NO_GRAPH && head.born <= moment && head.died > header.begun);
            if is_needed {
                put_varint(&mut written, slot - before);
                put_varint_u64(&mut written, head.born);
                put_varint_u64(&mut written, if head.died <= moment { head.died } else { 0 });
                put_bytes(&mut written, self.slots.key(slot));
                written.extend(self.slots.floats(slot).iter().flat_map(|number| number.to_le_bytes()));
                if let Some(graph) = graph {
                    put_node(graph, slot, &mut written);
                }
                (count, before) = (count + 1, slot);
            }
            units.spend(4 + self.slots.dimensions as u64 / 8);
            slot += 1;
        }
        put_varint_u64(out, count);
        out.extend_from_slice(&written);
        (slot < slots).then_some(slot)
    }

    /// Adds the vectors of one written section; [`VectorIndex::finish_load`] follows the last one.
    ///
    /// # Errors
    /// The bytes are no section of an index of this dimension.
    pub fn load_section(&mut self, bytes: &[u8]) -> Result<(), Corrupt> {
        let mut reader = Reader::new(bytes);
        let version = reader.u8()?;
        if reader.varint()? as usize != self.slots.dimensions {
            return Err(Corrupt("dimensions of a vector section"));
        }
        match version {
            VERSION_WITHOUT_GRAPH => self.load_vectors(&mut reader)?,
            VERSION => self.load_slots(&mut reader)?,
            _ => return Err(Corrupt("version of a vector section")),
        }
        if reader.is_empty() { Ok(()) } else { Err(Corrupt("bytes after a vector section")) }
    }

    fn load_vectors(&mut self, reader: &mut Reader<'_>) -> Result<(), Corrupt> {
        for _ in 0..reader.count(1 + self.slots.dimensions * 4)? {
            let key = reader.bytes()?;
            let vector = read_vector(reader, self.slots.dimensions)?;
            if self.slots.find(key).is_some() {
                return Err(Corrupt("vector of a key that has one"));
            }
            self.slots.insert(key, &vector);
        }
        Ok(())
    }

    fn load_slots(&mut self, reader: &mut Reader<'_>) -> Result<(), Corrupt> {
        let header = Header::read(reader)?;
        let mut loading = self.loading.take().unwrap_or_else(|| Loading { header, ..Loading::default() });
        if loading.header != header {
            return Err(Corrupt("vector sections of two states"));
        }
        let mut before = None;
        for _ in 0..reader.count(4 + self.slots.dimensions * 4)? {
            let step = reader.varint()?;
            let slot = before.map_or(Some(step), |before: u32| before.checked_add(step));
            let slot = slot.ok_or(Corrupt("slot of a vector"))?;
            let is_next = loading.last_slot.is_none_or(|last| slot > last);
            if !is_next || slot > loading.last_slot.unwrap_or(0).saturating_add(GAP_MAX) {
                return Err(Corrupt("slot of a vector"));
            }
            (before, loading.last_slot) = (Some(slot), Some(slot));
            self.load_slot(slot, &header, &mut loading.graph, reader)?;
        }
        self.loading = Some(loading);
        Ok(())
    }

    fn load_slot(
        &mut self,
        slot: u32,
        header: &Header,
        graph: &mut Graph,
        reader: &mut Reader<'_>,
    ) -> Result<(), Corrupt> {
        let (born, died) = (reader.varint_u64()?, reader.varint_u64()?);
        if born == 0 || born > header.moment || died > header.moment || (died != 0 && died <= born) {
            return Err(Corrupt("time of a vector"));
        }
        let died = if died == 0 { NEVER } else { died };
        let key = reader.bytes()?;
        let vector = read_vector(reader, self.slots.dimensions)?;
        if died == NEVER && self.slots.find(key).is_some() {
            return Err(Corrupt("vector of a key that has one"));
        }
        self.slots.put(slot, key, &vector, born, died);
        let levels = if header.kind == NO_GRAPH { 0 } else { reader.u8()? };
        if levels > LEVEL_MAX + 1 {
            return Err(Corrupt("level of a node"));
        }
        let mut links = Vec::new();
        for level in 0..levels {
            let count = reader.count(1)?;
            if count > degree_of(level) {
                return Err(Corrupt("neighbours of a node"));
            }
            links.push((0..count).map(|_| reader.varint()).collect::<Result<Vec<u32>, Corrupt>>()?);
        }
        if !links.is_empty() {
            graph.add(slot, self.slots.head(slot).length, &links);
        }
        Ok(())
    }

    /// Completes a load: checks the graph and finds the changes that it has not taken.
    ///
    /// # Errors
    /// The graph leads to nodes that are not there.
    pub fn finish_load(&mut self) -> Result<(), Corrupt> {
        let Some(Loading { header, mut graph, .. }) = self.loading.take() else { return Ok(()) };
        self.slots.moment = header.moment;
        self.slots.free_the_rest();
        if header.kind == NO_GRAPH {
            return Ok(());
        }
        let nodes: Vec<u32> = (0..self.slots.count()).filter(|slot| graph.level(*slot).is_some()).collect();
        let leads_there = |from: &u32| {
            let levels = 0..=graph.level(*from).unwrap_or(0);
            levels.into_iter().all(|level| {
                let is_there = |to: &u32| graph.level(*to).is_some_and(|top| top >= level);
                graph.links(*from, level).iter().all(is_there)
            })
        };
        let has_entry = header.entry.map_or(nodes.is_empty(), |entry| graph.level(entry).is_some());
        if !has_entry || !nodes.iter().all(leads_there) {
            return Err(Corrupt("neighbours of a node"));
        }
        graph.set_entry(header.entry);
        let mut changes = Vec::new();
        for slot in 0..self.slots.count() {
            let head = self.slots.head(slot);
            if !head.is_used() {
                continue;
            }
            if head.born > header.begun {
                changes.push(Change { moment: head.born, slot, is_insert: true });
            }
            if head.died != NEVER && head.died > header.begun {
                changes.push(Change { moment: head.died, slot, is_insert: false });
            }
            if graph.level(slot).is_some() && head.born > header.taken {
                return Err(Corrupt("node that came too early"));
            }
        }
        changes.sort_unstable_by_key(|change| change.moment);
        let mut hnsw = match header.kind {
            SERVING => {
                let dead = nodes.iter().filter(|slot| self.slots.head(**slot).died <= header.taken).count();
                Hnsw::serving(graph, header.taken, dead)
            }
            _ => Hnsw::building(Building::continued(graph, header.begun, header.taken, self.slots.count())),
        };
        changes.into_iter().for_each(|change| hnsw.note(change));
        self.hnsw = Some(hnsw);
        Ok(())
    }
}

fn put_node(graph: &Graph, slot: u32, out: &mut Vec<u8>) {
    let levels = graph.level(slot).map_or(0, |level| level + 1);
    out.push(levels);
    for level in 0..levels {
        let links = graph.links(slot, level);
        put_varint(out, links.len() as u32);
        links.iter().for_each(|link| put_varint(out, *link));
    }
}

fn read_vector(reader: &mut Reader<'_>, dimensions: usize) -> Result<Vec<f32>, Corrupt> {
    let numbers = (0..dimensions).map(|_| reader.u32().map(f32::from_bits));
    let vector = numbers.collect::<Result<Vec<f32>, Corrupt>>()?;
    if vector.iter().all(|number| number.is_finite()) { Ok(vector) } else { Err(Corrupt("vector")) }
}
