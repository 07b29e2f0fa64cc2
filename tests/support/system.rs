//! The few system calls that the tests need: signals, limits of a process, its memory.
#![allow(unsafe_code, reason = "signals and limits have no safe form in the standard library")]

use std::io;
use std::process::Child;

/// A signal to send.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Signal {
    Kill,
    Terminate,
    Interrupt,
    /// Halts it where it is, until [`Signal::Continue`].
    Stop,
    Continue,
}

/// Sends a signal to a child that was not waited for yet, so that its pid cannot belong to anybody else.
pub(crate) fn signal(child: &Child, signal: Signal) -> io::Result<()> {
    let number = match signal {
        Signal::Kill => libc::SIGKILL,
        Signal::Terminate => libc::SIGTERM,
        Signal::Interrupt => libc::SIGINT,
        Signal::Stop => libc::SIGSTOP,
        Signal::Continue => libc::SIGCONT,
    };
    let pid = libc::pid_t::try_from(child.id()).expect("a pid fits its own type");
    // SAFETY: kill takes two integers and touches no memory of ours.
    match unsafe { libc::kill(pid, number) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The open files that this process may have, after raising the limit as far as `wanted` where that is allowed.
pub(crate) fn raise_open_files(wanted: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit that the call fills.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0, "reading a limit");
    if limit.rlim_cur >= wanted {
        return limit.rlim_cur;
    }
    for hard in [limit.rlim_max.max(wanted), limit.rlim_max] {
        let raised = libc::rlimit { rlim_cur: hard.min(wanted), rlim_max: hard };
        // SAFETY: the pointer is to a live rlimit that the call only reads.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
            return raised.rlim_cur;
        }
    }
    limit.rlim_cur
}

/// Sets the longest file that another process of this user may write, in bytes; `None` takes the bound away again.
pub(crate) fn limit_file_bytes(child: &Child, bytes: Option<u64>) -> io::Result<()> {
    // The hard limit stays where it is, so that the soft one can be raised again without privileges.
    let limit =
        libc::rlimit { rlim_cur: bytes.unwrap_or(libc::RLIM_INFINITY), rlim_max: libc::RLIM_INFINITY };
    let pid = libc::pid_t::try_from(child.id()).expect("a pid fits its own type");
    // SAFETY: the new limit is a live rlimit that the call only reads, and the old one is not asked for.
    match unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &raw const limit, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Resident memory of a process in bytes.
pub(crate) fn resident_bytes(child: &Child) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/statm", child.id())).expect("the child is alive");
    let pages: u64 =
        text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("statm has pages");
    pages * 4096
}
