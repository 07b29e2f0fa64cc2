//! Holds the memory that a key costs beyond its own bytes, everything counted, and the state's own account of it.
#![allow(unsafe_code, reason = "a counting allocator has to be one")]

use shards::ids::{Version, hash_of};
use shards::state::record::Content;
use shards::state::{KeySpace, RecordFlags};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator with the arguments it came with; the counter owns no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // What an allocator adds: rounding to 16 and a word in front.
        ALLOCATED.fetch_add((layout.size() + 8).next_multiple_of(16), Ordering::Relaxed);
        // SAFETY: the caller keeps the promises of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub((layout.size() + 8).next_multiple_of(16), Ordering::Relaxed);
        // SAFETY: the pointer came from `alloc` above with the same layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn fill(keys: &mut KeySpace, from: u64, to: u64, value: &[u8]) {
    for number in from..to {
        let key = format!("key:{number:012}");
        let version = Version::new(0, number >> 10, (number & 1023) as u16);
        let content = Content { value, version, expires_at: None, flags: RecordFlags::NONE };
        keys.set(hash_of(key.as_bytes()), key.as_bytes(), content);
    }
}

#[test]
fn a_key_costs_at_most_fifty_bytes_beyond_its_own() {
    let before = ALLOCATED.load(Ordering::Relaxed);
    let mut keys = KeySpace::default();
    let mut done = 0;
    let mut worst = 0.0f64;
    // From just after a round of splits to just before the next: the index is fullest and emptiest on the way.
    for count in [100_000, 130_000, 200_000, 235_000, 300_000, 1_000_000] {
        fill(&mut keys, done, count, &[b'v'; 64]);
        done = count;
        let used = ALLOCATED.load(Ordering::Relaxed) - before;
        let overhead = used as f64 / count as f64 - 80.0;
        println!("{count} keys in {} tables: {overhead:.1} bytes a key beyond 16 + 64", keys.tables());
        worst = worst.max(overhead);
        let accounted = keys.bytes() as f64 / used as f64;
        assert!((0.97..=1.03).contains(&accounted), "the state accounts for {accounted:.3} of what it uses");
    }
    assert!(worst <= 50.0, "{worst:.1} bytes a key beyond its own");
    drop(keys);
    // The test harness keeps the lines printed above; nothing else may stay.
    let left = ALLOCATED.load(Ordering::Relaxed).saturating_sub(before);
    assert!(left < 64 << 10, "{left} bytes are not given back");
}
