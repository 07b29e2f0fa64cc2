//! The few system calls without a safe wrapper: resource limits, CPU sets, free space, random bytes,
//! writing pages out.
//!
//! Every function is safe to call, returns what the kernel said, and keeps no state. Nothing here decides anything.
#![allow(unsafe_code, reason = "libc is the only way to these calls; each block argues its safety")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A resource limit; [`Limit::UNLIMITED`] means none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What holds now.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

impl Limit {
    /// No limit.
    pub const UNLIMITED: u64 = libc::RLIM_INFINITY;
}

/// The limits that Strand cares about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Memory that may be locked, in bytes; buffers registered with io_uring count.
    LockedMemory,
    /// Open files.
    OpenFiles,
}

impl Resource {
    fn number(self) -> libc::__rlimit_resource_t {
        match self {
            Resource::LockedMemory => libc::RLIMIT_MEMLOCK,
            Resource::OpenFiles => libc::RLIMIT_NOFILE,
        }
    }
}

/// The limit of this process.
///
/// # Errors
/// What getrlimit reports.
pub fn limit(resource: Resource) -> io::Result<Limit> {
    let mut raw = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit that the call fills.
    let result = unsafe { libc::getrlimit(resource.number(), &raw mut raw) };
    checked(result)?;
    Ok(Limit { soft: raw.rlim_cur, hard: raw.rlim_max })
}

/// Writes what the page cache holds of this part of a file out to the device and waits for it; no more is promised, and
/// where the system cannot do that, nothing is done.
///
/// # Errors
/// What went wrong with these pages; a later sync may not tell it again.
pub fn write_out(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let (offset, bytes) = (offset.cast_signed(), bytes.cast_signed());
    // SAFETY: the descriptor is open as long as the file is borrowed, and the call touches no memory of this process.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, bytes, flags) };
    match checked(result) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL | libc::EPERM)) => {
            Ok(())
        }
        done => done,
    }
}

/// Sets the limit of this process.
///
/// # Errors
/// What setrlimit reports, such as a hard limit raised without the right to.
pub fn set_limit(resource: Resource, limit: Limit) -> io::Result<()> {
    let raw = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
    // SAFETY: the pointer is to a live rlimit that the call only reads.
    checked(unsafe { libc::setrlimit(resource.number(), &raw const raw) })
}

/// The cores on which this process may run, in rising order.
///
/// # Errors
/// What sched_getaffinity reports; EINVAL on a machine with more than 1,024 cores.
pub fn available_cores() -> io::Result<Vec<u32>> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: the set is as large as the size says, and the call writes no further.
    checked(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) })?;
    // SAFETY: all zeros is a valid cpu_set_t, a plain bit array, and the call filled it.
    let set = unsafe { set.assume_init() };
    let bits = size_of::<libc::cpu_set_t>() * 8;
    // SAFETY: CPU_ISSET reads a bit below the size of the set.
    let has = |core: &u32| unsafe { libc::CPU_ISSET(*core as usize, &set) };
    Ok((0..bits as u32).filter(has).collect())
}

/// Bytes that this process may still write to the file system of an existing path.
///
/// # Errors
/// What statvfs reports, such as a path that does not exist.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut found = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the path ends in NUL, and the struct is live and written by the call.
    checked(unsafe { libc::statvfs(path.as_ptr(), found.as_mut_ptr()) })?;
    // SAFETY: the call succeeded and filled the struct.
    let found = unsafe { found.assume_init() };
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Fills the buffer with random bytes from the kernel.
///
/// # Errors
/// What getrandom reports; not on a kernel that this server runs on.
pub fn random_bytes(buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        // SAFETY: the pointer and length are those of a live, writable slice.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(count) => filled += count,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Gives free memory of the process's heap back to the kernel, as far as whole pages are free. Takes some milliseconds for each
/// 100 MB that are free, and other threads that allocate may wait for a part of that.
#[cfg(target_env = "gnu")]
pub fn trim_heap() {
    // SAFETY: the call takes the allocator's own locks and touches free memory only.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn trim_heap() {}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Pins the calling thread to one core.
///
/// # Errors
/// What sched_setaffinity reports, such as a core that the process may not use.
pub fn pin_to_core(core: u32) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: an all-zero CPU set is a valid, empty one, and CPU_SET checks the number against the set's size.
    let set = unsafe {
        libc::CPU_SET(core as usize, set.assume_init_mut());
        set.assume_init()
    };
    // SAFETY: the pointer and size name the live set; 0 means the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    checked(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers() {
        let cores = available_cores().unwrap();
        assert!(!cores.is_empty() && cores.is_sorted());
        assert!(free_bytes(Path::new("/")).is_ok());
        assert!(free_bytes(Path::new("/no/such/place")).is_err());
        let files = limit(Resource::OpenFiles).unwrap();
        assert!(files.soft > 0 && files.soft <= files.hard);
        set_limit(Resource::OpenFiles, files).unwrap();
        assert_eq!(limit(Resource::OpenFiles).unwrap(), files);
    }

    #[test]
    fn random_bytes_fill_the_whole_buffer() {
        // The kernel may hand out less than asked beyond 256 bytes.
        let mut buffer = [0; 1 << 16];
        random_bytes(&mut buffer).unwrap();
        assert!(buffer.chunks(64).all(|chunk| chunk.iter().any(|byte| *byte != 0)));
    }
}
