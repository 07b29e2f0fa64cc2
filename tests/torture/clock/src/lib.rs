//! Moves the wall clock of the process that it is preloaded into, and of no other: the machine's clock is never touched.
//!
//! The environment variable `TORTURE_CLOCK` names a file whose first eight bytes, little-endian, say by how many seconds the
//! wall clock is wrong; the harness changes them while the process runs. The monotonic clock is as it is.
#![allow(unsafe_code, reason = "it stands in the place of a function of the C library")]

use std::ffi::CStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

/// The mapped seconds; `None` when there is no file.
fn offset() -> Option<&'static AtomicI64> {
    static OFFSET: OnceLock<Option<&'static AtomicI64>> = OnceLock::new();
    *OFFSET.get_or_init(map)
}

fn map() -> Option<&'static AtomicI64> {
    // SAFETY: the name is a string that ends with a zero; the result is checked and read before the environment can change,
    // since the harness's processes do not change it.
    let path = unsafe { libc::getenv(c"TORTURE_CLOCK".as_ptr()) };
    if path.is_null() {
        return None;
    }
    // SAFETY: getenv gave a string that ends with a zero.
    let path = unsafe { CStr::from_ptr(path) };
    // SAFETY: the path is such a string too; the descriptor is checked.
    let file = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if file < 0 {
        return None;
    }
    // SAFETY: a fresh shared mapping of a page of an open file; the result is checked. The harness makes the file eight bytes
    // long before the process starts and never shorter, so that its first page may be read for ever.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), 8, libc::PROT_READ, libc::MAP_SHARED, file, 0) };
    // SAFETY: the descriptor is ours; the mapping outlives it.
    unsafe { libc::close(file) };
    if mapped == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the mapping is aligned to a page, eight bytes long, never unmapped, and read as an atomic number only.
    Some(unsafe { &*mapped.cast::<AtomicI64>() })
}

/// The C library's `clock_gettime`, with the wall clock moved.
///
/// # Safety
/// As the original: `time` points to a `timespec` that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    // SAFETY: the kernel checks both arguments, and the caller promises the second.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    let moves = clock == libc::CLOCK_REALTIME || clock == libc::CLOCK_REALTIME_COARSE;
    if result == 0
        && moves
        && let Some(offset) = offset()
    {
        let seconds = i64::from_le(offset.load(Ordering::Relaxed));
        // SAFETY: the call has just filled it.
        unsafe { (*time).tv_sec = (*time).tv_sec.saturating_add(seconds) };
    }
    if result == 0 { 0 } else { -1 }
}
