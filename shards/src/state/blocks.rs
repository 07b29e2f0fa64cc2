//! The memory that a table's records stand in: blocks of at most 32 KiB, filled one after another.
//!
//! A position names a block and an offset and stays valid until the record is moved by its table. The last block grows
//! in steps, so that an empty or small table costs little; the others are full. Nothing is ever freed one by one: the
//! table counts garbage and copies what lives into new blocks.

use super::record::{self, Draft, RECORD_BYTES_MAX};

const BLOCK_BITS: u32 = 15;
const BLOCK_BYTES: usize = 1 << BLOCK_BITS;
/// The first allocation of a block.
const FIRST_BYTES: usize = 512;
/// A block doubles up to this size and grows by as much afterwards, so at most this much stands unused in a table.
const STEP_BYTES: usize = 4096;
const _: () = assert!(RECORD_BYTES_MAX <= BLOCK_BYTES);

#[derive(Debug, Default)]
pub(super) struct Blocks {
    blocks: Vec<Vec<u8>>,
    /// Sum of the blocks' capacities and of the outer vector.
    allocated_bytes: usize,
}

impl Blocks {
    /// The stored record at `position` and what follows it in its block.
    #[inline]
    pub(super) fn at(&self, position: u32) -> &[u8] {
        &self.blocks[(position >> BLOCK_BITS) as usize][position as usize & (BLOCK_BYTES - 1)..]
    }

    pub(super) fn at_mut(&mut self, position: u32) -> &mut [u8] {
        &mut self.blocks[(position >> BLOCK_BITS) as usize][position as usize & (BLOCK_BYTES - 1)..]
    }

    /// Stores a new record.
    pub(super) fn append(&mut self, draft: &Draft<'_>) -> u32 {
        let (position, block) = self.room_for(draft.bytes());
        draft.append(block);
        position
    }

    /// Stores a copy of a record from other blocks.
    pub(super) fn append_copy(&mut self, stored: &[u8]) -> u32 {
        let (position, block) = self.room_for(record::Head::read(stored).used_bytes());
        record::copy(stored, block);
        position
    }

    /// Bytes allocated, used or not.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.allocated_bytes
    }

    fn room_for(&mut self, bytes: usize) -> (u32, &mut Vec<u8>) {
        assert!(bytes <= RECORD_BYTES_MAX, "a record has a largest size");
        if self.blocks.last().is_none_or(|block| block.len() + bytes > BLOCK_BYTES) {
            let outer_before = self.blocks.capacity();
            self.blocks.push(Vec::new());
            self.allocated_bytes += (self.blocks.capacity() - outer_before) * size_of::<Vec<u8>>();
        }
        let number = self.blocks.len() - 1;
        // Four gibibytes of inline records in one table: the node's memory budget ends long before.
        assert!(number < 1 << (32 - BLOCK_BITS), "a table's blocks fit its positions");
        let block = &mut self.blocks[number];
        let needed = block.len() + bytes;
        if needed > block.capacity() {
            let before = block.capacity();
            let grown = if before < STEP_BYTES { (before * 2).max(FIRST_BYTES) } else { before + STEP_BYTES };
            // Rounded to what allocators hand out anyway; never beyond the block's full size.
            let target = grown.max(needed.next_multiple_of(64)).min(BLOCK_BYTES);
            block.reserve_exact(target - block.len());
            self.allocated_bytes += block.capacity() - before;
        }
        ((number << BLOCK_BITS | block.len()) as u32, block)
    }
}
