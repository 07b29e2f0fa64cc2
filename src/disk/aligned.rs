//! Memory that O_DIRECT accepts: whole blocks, aligned to a block. Never grows, never moves.
#![allow(unsafe_code, reason = "the allocator's interface for alignments that Vec cannot give")]

use shards::log::header::BLOCK_BYTES;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A block-aligned buffer of fixed size, zeroed at first.
pub(super) struct AlignedBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer owns its memory exclusively, as a Vec does, and is not tied to a thread.
unsafe impl Send for AlignedBuffer {}

impl AlignedBuffer {
    /// A buffer of at least `bytes`, rounded up to whole blocks.
    pub(super) fn zeroed(bytes: usize) -> Self {
        let bytes = bytes.max(1).next_multiple_of(BLOCK_BYTES);
        let layout =
            Layout::from_size_align(bytes, BLOCK_BYTES).expect("a buffer is smaller than the address space");
        // SAFETY: the layout has a size above zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, layout }
    }

    /// The address for the kernel.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout by `zeroed` and freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is initialised, as long as the layout says, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}
