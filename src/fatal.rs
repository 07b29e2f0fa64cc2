//! The named reasons for which the process ends, and their exit codes.
//!
//! One dead thread must never leave its siblings serving: whoever meets one of these from a thread calls [`exit`]. Reasons
//! are told as a paragraph that says what is wrong and what to do. Never used for what a client did.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

/// What the process says when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Everything asked for is done.
    Done = 0,
    /// It failed, for a reason not named below.
    Failed = 1,
    /// The command line cannot be read.
    Usage = 2,
    /// Data on disk is damaged; starting again does not help.
    Corruption = 70,
    /// Something outside is in the way for now; starting again may help.
    TryAgain = 75,
    /// The configuration or the machine's settings must be changed first.
    Configuration = 78,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// A reason to end the process.
#[derive(Debug)]
pub enum Fatal {
    /// Settings are unknown, out of range or contradict each other; the text names each.
    Configuration(String),
    /// The machine does not let the server run as configured; the text says what to change.
    Machine(String),
    /// Another process holds the data directory; the text names both.
    DirectoryLocked(String),
    /// The file that says what the data directory is cannot be read.
    DirectoryDamaged(PathBuf, String),
    /// The data directory cannot be used.
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The data directory belongs to another configuration, such as another node id.
    DirectoryMismatch(String),
    /// The address for clients cannot be listened on.
    Listen {
        /// Host and port.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// Acknowledged data cannot be read back.
    Corruption {
        /// The shard that found it.
        shard: u32,
        /// File, offset and what is wrong there.
        detail: String,
    },
    /// A write or sync of the log failed, so what is durable is unknown.
    LogFailed {
        /// The shard whose log it is.
        shard: u32,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// There is no room for the log or a snapshot at start.
    NoSpace {
        /// Where.
        path: PathBuf,
        /// How much is needed.
        needed_bytes: u64,
    },
    /// A thread could not be started or its ring not be made.
    Start {
        /// Which.
        thread: String,
        /// What the system said.
        source: io::Error,
    },
    /// A thread ended although nobody asked it to, or its ring failed.
    ThreadLost {
        /// Which.
        thread: String,
        /// Why, as far as known.
        detail: String,
    },
    /// A panic: a defect of the server.
    Panic(String),
    /// A second signal asked to stop without waiting.
    Interrupted,
    /// A subcommand other than the server failed.
    Failed(String),
}

impl Fatal {
    /// The exit code for this reason.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Fatal::Configuration(_) | Fatal::Machine(_) | Fatal::DirectoryMismatch(_) => {
                ExitCode::Configuration
            }
            Fatal::Directory { source, .. } if is_about_rights(source) => ExitCode::Configuration,
            Fatal::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => ExitCode::TryAgain,
            Fatal::Listen { .. } => ExitCode::Configuration,
            Fatal::DirectoryLocked(_) | Fatal::NoSpace { .. } => ExitCode::TryAgain,
            Fatal::Corruption { .. } | Fatal::DirectoryDamaged(..) => ExitCode::Corruption,
            Fatal::Directory { .. }
            | Fatal::LogFailed { .. }
            | Fatal::Start { .. }
            | Fatal::ThreadLost { .. }
            | Fatal::Panic(_)
            | Fatal::Interrupted
            | Fatal::Failed(_) => ExitCode::Failed,
        }
    }
}

fn is_about_rights(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | NotADirectory)
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fatal::Configuration(told) | Fatal::Machine(told) | Fatal::DirectoryMismatch(told) => {
                f.write_str(told)
            }
            Fatal::DirectoryLocked(told) => {
                write!(f, "{told}. Stop it first, or give this server another --data-dir or --id.")
            }
            Fatal::DirectoryDamaged(path, told) => write!(
                f,
                "The data directory {} is damaged: {told}. Keep it as it is and restore a backup elsewhere.",
                path.display()
            ),
            Fatal::Directory { path, source } => write!(
                f,
                "The data directory {} cannot be used: {source}. Check that it exists or can be made, and that this user may \
                 write there; or give another --data-dir.",
                path.display()
            ),
            Fatal::Listen { address, source } => write!(
                f,
                "Cannot listen on {address}: {source}. Is another server running there? Otherwise give another --port or \
                 --host."
            ),
            Fatal::Corruption { shard, detail } => write!(
                f,
                "Acknowledged data of shard {shard} is damaged: {detail}. The server stops rather than answer from it. Keep the \
                 directory as it is and restore a snapshot or backup elsewhere; docs/OPERATIONS.md says how."
            ),
            Fatal::LogFailed { shard, action, source } => write!(
                f,
                "The log of shard {shard} failed to {action}: {source}. What is on disk is unknown after that, so the server \
                 stops; check the disk (dmesg), then start again: recovery finds what was acknowledged."
            ),
            Fatal::NoSpace { path, needed_bytes } => write!(
                f,
                "{} has no room for {} MiB that the log needs to start. Free space, or use smaller or fewer segments \
                 (wal.segment_mib, wal.spare_segments, --shards for a new directory).",
                path.display(),
                needed_bytes.div_ceil(1 << 20)
            ),
            Fatal::Start { thread, source } => write!(
                f,
                "The thread {thread} could not start: {source}. `strand doctor` checks limits and io_uring and says what to \
                 change."
            ),
            Fatal::ThreadLost { thread, detail } => write!(
                f,
                "The thread {thread} is lost: {detail}. The server stops as a whole; start it again, and report this."
            ),
            Fatal::Panic(told) => {
                write!(f, "A defect in Strand stopped it: {told}. Start it again, and report this line.")
            }
            Fatal::Interrupted => f.write_str("A second signal: stopped at once, without draining."),
            Fatal::Failed(told) => f.write_str(told),
        }
    }
}

impl std::error::Error for Fatal {}

/// Tells the reason: as a log line once logging is set up, as a paragraph on stderr before.
pub fn tell(reason: &Fatal) {
    if tracing::dispatcher::has_been_set() {
        tracing::error!(exit_code = reason.exit_code() as u8, "{reason}");
    } else {
        // Nobody is left to tell when stderr is gone.
        let _ = writeln!(io::stderr().lock(), "strand: {reason}");
    }
}

/// Tells the reason and ends the process, from whichever thread.
pub fn exit(reason: &Fatal) -> ! {
    tell(reason);
    std::process::exit(reason.exit_code() as i32)
}

/// From now on a panic in any thread ends the process with its reason told.
pub fn exit_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let message = payload.downcast_ref::<&str>().copied();
        let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let place = info.location().map_or_else(String::new, |place| format!(" at {place}"));
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("without a name");
        exit(&Fatal::Panic(format!("thread {thread} panicked{place}: {}", message.unwrap_or("no message"))));
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(reason: &Fatal, code: u8) {
        assert_eq!(reason.exit_code() as u8, code, "{reason:?}");
        let told = reason.to_string();
        assert!(!told.contains('\n') && !told.contains("  "), "one paragraph: {told:?}");
    }

    #[test]
    fn reasons_have_the_documented_codes() {
        let error = io::Error::from;
        check(&Fatal::Configuration("port".into()), 78);
        check(&Fatal::DirectoryLocked("d".into()), 75);
        check(&Fatal::Directory { path: "d".into(), source: error(io::ErrorKind::PermissionDenied) }, 78);
        check(&Fatal::Directory { path: "d".into(), source: error(io::ErrorKind::Other) }, 1);
        check(&Fatal::Listen { address: "a:1".into(), source: error(io::ErrorKind::AddrInUse) }, 75);
        check(&Fatal::Listen { address: "a:1".into(), source: error(io::ErrorKind::AddrNotAvailable) }, 78);
        check(&Fatal::Corruption { shard: 1, detail: "segment 2".into() }, 70);
        check(&Fatal::LogFailed { shard: 1, action: "sync", source: error(io::ErrorKind::Other) }, 1);
        check(&Fatal::NoSpace { path: "d".into(), needed_bytes: 1 }, 75);
        check(&Fatal::Panic("x".into()), 1);
    }
}
