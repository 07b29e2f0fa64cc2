//! The receive buffers that all connections share: a ring of free ones that the kernel takes from when data arrives.
//!
//! A buffer belongs to the kernel from [`BufferPool::give`] until a completion names it, and to the front from then until
//! it is given again. The front looks at one buffer at a time and gives it back before it looks at the next.

use io_uring::{IoUring, types::BufRingEntry};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// The group number under which receives name the pool.
pub(super) const GROUP: u16 = 1;

const PAGE: usize = 4096;

/// The shared receive buffers.
#[derive(Debug)]
pub(super) struct BufferPool {
    entries: NonNull<BufRingEntry>,
    data: NonNull<u8>,
    count: u16,
    size: usize,
    /// Where the next free buffer goes; the kernel sees it after [`BufferPool::publish`].
    tail: u16,
}

impl BufferPool {
    /// Registers `count` buffers (a power of two) of `size` bytes with the ring.
    ///
    /// # Errors
    /// When the kernel has no such rings.
    pub(super) fn register(ring: &IoUring, count: u16, size: usize) -> io::Result<Self> {
        let (entries, data) = (allocate(entries_layout(count)), allocate(data_layout(count, size)));
        let mut pool = Self { entries: entries.cast(), data, count, size, tail: 0 };
        // SAFETY: the entries are page-aligned, zeroed, large enough for `count` of them, and live as long as `pool`, which
        // the owner drops after the ring.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(entries.as_ptr() as u64, count, GROUP, 0)?;
        }
        (0..count).for_each(|id| pool.give(id));
        pool.publish();
        Ok(pool)
    }

    /// Gives a buffer to the kernel; it may be used after [`BufferPool::publish`].
    pub(super) fn give(&mut self, id: u16) {
        assert!(id < self.count, "the kernel names only buffers that it was given");
        let position = usize::from(self.tail & (self.count - 1));
        // SAFETY: the position is below `count`, so the entry lies in the allocation; the kernel does not read an entry at
        // or behind the published tail, so nobody else looks at it. The tail field overlaps the reserved part of entry 0,
        // which these setters leave alone.
        let entry = unsafe { &mut *self.entries.as_ptr().add(position) };
        entry.set_addr(self.address(id) as u64);
        entry.set_len(self.size as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel all buffers given so far.
    pub(super) fn publish(&mut self) {
        // SAFETY: the pointer is the ring's first entry, which was initialised by the allocation, and the tail inside it is
        // two-byte aligned and is shared with the kernel by atomic stores only.
        unsafe {
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    /// What was received in a buffer that a completion named and that was not given back since.
    pub(super) fn received(&self, id: u16, length: usize) -> &[u8] {
        assert!(id < self.count && length <= self.size, "a receive fits its buffer");
        // SAFETY: the range lies inside the allocation, which is initialised; the kernel completed its write and does not
        // own the buffer, because `give` needs `&mut self` and so cannot happen while the slice lives.
        unsafe { std::slice::from_raw_parts(self.address(id), length) }
    }

    fn address(&self, id: u16) -> *mut u8 {
        // SAFETY: `id` is below `count`, so the offset stays inside the allocation.
        unsafe { self.data.as_ptr().add(usize::from(id) * self.size) }
    }
}

impl Drop for BufferPool {
    fn drop(&mut self) {
        // SAFETY: both were allocated with these layouts, and the owner dropped the ring before.
        unsafe {
            dealloc(self.entries.as_ptr().cast(), entries_layout(self.count));
            dealloc(self.data.as_ptr(), data_layout(self.count, self.size));
        }
    }
}

fn entries_layout(count: u16) -> Layout {
    let bytes = usize::from(count) * size_of::<BufRingEntry>();
    Layout::from_size_align(bytes, PAGE).expect("the settings bound the number of buffers")
}

fn data_layout(count: u16, size: usize) -> Layout {
    Layout::from_size_align(usize::from(count) * size, PAGE).expect("the settings bound the buffers")
}

fn allocate(layout: Layout) -> NonNull<u8> {
    assert!(layout.size() > 0, "the settings ask for at least two buffers");
    // SAFETY: the layout is not empty.
    NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
}
