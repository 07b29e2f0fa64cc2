//! The vectors of an index in numbered slots, as `f32` and as an int8 copy, with the time at which each came and went.
//!
//! A vector never changes in its slot and no slot ever moves: a record's new vector takes another one. Time is the number of
//! changes so far. A reader pins a moment and sees exactly the vectors of that moment, however long it takes; a slot is
//! used again only when no reader can see its vector any more. Memory grows by blocks, so no growth copies what is there.

use super::kernel::Kernel;
use super::metric::{Metric, sortable};
use crate::ids::hash_of;
use crate::index::keys::KeyTable;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Slots in a block.
pub(super) const BLOCK_SLOTS: usize = 256;
/// When a vector that is still there goes; and when a slot without a vector got one.
pub(super) const NEVER: u64 = u64::MAX;
/// Highest magnitude in the int8 copy.
pub(super) const BYTE_MAX: f64 = 127.0;

/// What is known of a slot beside its vector.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    /// The change with which it came.
    pub(super) born: u64,
    /// The change with which it went.
    pub(super) died: u64,
    /// What one unit of the int8 copy is worth.
    pub(super) scale: f64,
    /// Length of the int8 copy, in units of the vector.
    pub(super) length: f64,
}

const EMPTY: Head = Head { born: NEVER, died: NEVER, scale: 0.0, length: 0.0 };

impl Head {
    /// Whether a reader of that moment sees the vector.
    #[inline]
    pub(super) fn is_visible(&self, moment: u64) -> bool {
        self.born <= moment && moment < self.died
    }

    pub(super) fn is_live(&self) -> bool {
        self.born != NEVER && self.died == NEVER
    }

    pub(super) fn is_used(&self) -> bool {
        self.born != NEVER
    }
}

#[derive(Debug)]
struct Block {
    keys: Vec<Box<[u8]>>,
    heads: Vec<Head>,
    floats: Box<[f32]>,
    bytes: Box<[i8]>,
}

/// The moments that readers hold, each with the number of its readers.
type Pins = Rc<RefCell<BTreeMap<u64, usize>>>;

/// A moment held by a reader; let go of when dropped.
#[derive(Debug)]
pub(super) struct Pin {
    pins: Pins,
    /// Changes up to this one are seen.
    pub(super) moment: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.borrow_mut();
        if let Some(readers) = pins.get_mut(&self.moment) {
            *readers -= 1;
            if *readers == 0 {
                pins.remove(&self.moment);
            }
        }
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) dimensions: usize,
    pub(super) metric: Metric,
    pub(super) kernel: Kernel,
    blocks: Vec<Block>,
    /// Slots that were ever used.
    count: u32,
    by_key: KeyTable,
    free: Vec<u32>,
    /// Slots that nobody but a reader of an earlier moment may look at, with the change by which they went.
    limbo: VecDeque<(u64, u32)>,
    pins: Pins,
    key_bytes: usize,
    /// Changes so far.
    pub(super) moment: u64,
}

impl Slots {
    pub(super) fn new(dimensions: usize, metric: Metric) -> Self {
        Self {
            dimensions,
            metric,
            kernel: Kernel::detect(),
            blocks: Vec::new(),
            count: 0,
            by_key: KeyTable::default(),
            free: Vec::new(),
            limbo: VecDeque::new(),
            pins: Pins::default(),
            key_bytes: 0,
            moment: 0,
        }
    }

    /// Number of vectors that are there now.
    pub(super) fn live(&self) -> usize {
        self.by_key.len()
    }

    /// Slots were numbered below this.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Vectors that went and that the graph still needs.
    pub(super) fn lingering(&self) -> usize {
        self.count as usize - self.live() - self.free.len() - self.limbo.len()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let slot = self.dimensions * 5 + size_of::<Head>() + size_of::<Box<[u8]>>();
        self.blocks.len() * BLOCK_SLOTS * slot
            + self.key_bytes
            + self.by_key.bytes()
            + self.free.capacity() * 4
    }

    /// Pins the present moment.
    pub(super) fn pin(&self) -> Pin {
        *self.pins.borrow_mut().entry(self.moment).or_default() += 1;
        Pin { pins: Rc::clone(&self.pins), moment: self.moment }
    }

    #[inline]
    pub(super) fn head(&self, slot: u32) -> &Head {
        &self.blocks[slot as usize / BLOCK_SLOTS].heads[slot as usize % BLOCK_SLOTS]
    }

    pub(super) fn key(&self, slot: u32) -> &[u8] {
        &self.blocks[slot as usize / BLOCK_SLOTS].keys[slot as usize % BLOCK_SLOTS]
    }

    pub(super) fn floats(&self, slot: u32) -> &[f32] {
        let at = slot as usize % BLOCK_SLOTS * self.dimensions;
        &self.blocks[slot as usize / BLOCK_SLOTS].floats[at..at + self.dimensions]
    }

    #[inline]
    pub(super) fn bytes(&self, slot: u32) -> &[i8] {
        let at = slot as usize % BLOCK_SLOTS * self.dimensions;
        &self.blocks[slot as usize / BLOCK_SLOTS].bytes[at..at + self.dimensions]
    }

    /// How close the vectors of two slots are, by their int8 copies.
    pub(super) fn closeness_between(&self, left: u32, right: u32) -> i64 {
        let (a, b) = (self.head(left), self.head(right));
        let dot = f64::from(self.kernel.dot_bytes(self.bytes(left), self.bytes(right)));
        let dot = dot * a.scale * b.scale;
        sortable(self.metric.closeness(dot, a.length, b.length))
    }

    /// The slot of the key's present vector.
    pub(super) fn find(&self, key: &[u8]) -> Option<u32> {
        self.by_key.find(hash_of(key), |slot| self.key(slot) == key)
    }

    /// Stores a key's vector, whose former one is gone, as a change of its own.
    pub(super) fn insert(&mut self, key: &[u8], vector: &[f32]) -> u32 {
        self.moment += 1;
        self.reclaim();
        let slot = self.free.pop().unwrap_or(self.count);
        let born = self.moment;
        self.put(slot, key, vector, born, NEVER);
        slot
    }

    /// Ends a vector, as a change of its own; [`Slots::release`] must follow once the graph is done with it.
    pub(super) fn remove(&mut self, slot: u32) {
        self.moment += 1;
        let hash = hash_of(self.key(slot));
        assert!(self.by_key.remove(hash, slot), "a live vector is known by its key");
        self.blocks[slot as usize / BLOCK_SLOTS].heads[slot as usize % BLOCK_SLOTS].died = self.moment;
    }

    /// Gives up a slot whose vector has ended: only readers may still look at it.
    pub(super) fn release(&mut self, slot: u32) {
        let died = self.head(slot).died;
        assert!(died != NEVER, "only an ended vector is given up");
        self.limbo.push_back((died, slot));
    }

    /// Frees what no reader sees any more.
    fn reclaim(&mut self) {
        let oldest = self.pins.borrow().keys().next().copied().unwrap_or(NEVER);
        while let Some((_, slot)) = self.limbo.pop_front_if(|(died, _)| *died <= oldest) {
            let block = &mut self.blocks[slot as usize / BLOCK_SLOTS];
            let key = std::mem::take(&mut block.keys[slot as usize % BLOCK_SLOTS]);
            self.key_bytes -= key.len();
            block.heads[slot as usize % BLOCK_SLOTS] = EMPTY;
            self.free.push(slot);
        }
    }

    /// Fills a slot; `born` and `died` are given.
    pub(super) fn put(&mut self, slot: u32, key: &[u8], vector: &[f32], born: u64, died: u64) {
        assert!(
            vector.len() == self.dimensions && born != NEVER,
            "vectors are checked before they are stored"
        );
        while self.blocks.len() <= slot as usize / BLOCK_SLOTS {
            self.blocks.push(Block {
                keys: vec![Box::default(); BLOCK_SLOTS],
                heads: vec![EMPTY; BLOCK_SLOTS],
                floats: vec![0.0; BLOCK_SLOTS * self.dimensions].into(),
                bytes: vec![0; BLOCK_SLOTS * self.dimensions].into(),
            });
        }
        self.count = self.count.max(slot + 1);
        let (at, start) = (slot as usize % BLOCK_SLOTS, slot as usize % BLOCK_SLOTS * self.dimensions);
        let block = &mut self.blocks[slot as usize / BLOCK_SLOTS];
        let bytes = &mut block.bytes[start..start + self.dimensions];
        let scale = quantise(vector, bytes);
        let square = self.kernel.dot_bytes(bytes, bytes);
        let length = f64::from(square).sqrt() * scale;
        block.floats[start..start + self.dimensions].copy_from_slice(vector);
        block.heads[at] = Head { born, died, scale, length };
        block.keys[at] = key.into();
        self.key_bytes += key.len();
        if died == NEVER {
            let Self { by_key, blocks, .. } = self;
            let hash_at =
                |slot: u32| hash_of(&blocks[slot as usize / BLOCK_SLOTS].keys[slot as usize % BLOCK_SLOTS]);
            by_key.insert(hash_of(key), slot, hash_at);
        }
    }

    /// After slots were filled by number: those in between are free.
    pub(super) fn free_the_rest(&mut self) {
        self.free = (0..self.count).rev().filter(|slot| !self.head(*slot).is_used()).collect();
    }
}

/// Writes the int8 copy; what one unit of it is worth.
fn quantise(vector: &[f32], bytes: &mut [i8]) -> f64 {
    let largest = vector.iter().fold(0.0f64, |largest, number| largest.max(f64::from(number.abs())));
    let factor = if largest > 0.0 { BYTE_MAX / largest } else { 0.0 };
    for (byte, number) in bytes.iter_mut().zip(vector) {
        *byte = (f64::from(*number) * factor).round() as i8;
    }
    largest / BYTE_MAX
}
