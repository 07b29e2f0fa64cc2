//! Looks at the machine before the first thread starts: can Strand run here as configured, and if not, what to change.
//!
//! What it finds is a list of [`Check`]s, which `strand doctor` prints and the server judges. The only thing it changes is the
//! process's own soft limits, which it raises as far as the configuration needs. It leaves no file behind.

use crate::fatal::Fatal;
use crate::sys::{self, Limit, Resource};
use crate::tuning::{RouterMode, Tuning, WalSync};
use io_uring::{IoUring, Probe, opcode};
use serde::Serialize;
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// The server runs, worse than it could.
    Warning,
    /// The server cannot run like this.
    Failure,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to change; empty when nothing needs to be.
    pub advice: String,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Good, found: found.into(), advice: String::new() }
    }

    fn warning(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, found: found.into(), advice: advice.into() }
    }

    fn failure(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Failure, found: found.into(), advice: advice.into() }
    }
}

/// Makes every check for a server with this configuration and this many shards, and raises soft limits on the way.
pub fn examine(tuning: &Tuning, shards: u32) -> Vec<Check> {
    vec![
        kernel(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()),
        io_uring_works(),
        locked_memory(tuning, shards),
        open_files(tuning, shards),
        cores(tuning, shards),
        directory(&tuning.data_dir()),
        direct_io(&tuning.data_dir(), tuning),
        free_space(&tuning.data_dir(), tuning, shards),
    ]
}

/// As [`examine`] for a server that is about to start: logs warnings and refuses on failures.
///
/// # Errors
/// [`Fatal::Machine`] with every failure and what to change, or [`Fatal::NoSpace`].
pub fn demand(tuning: &Tuning, shards: u32) -> Result<(), Fatal> {
    let checks = examine(tuning, shards);
    for check in checks.iter().filter(|check| check.verdict == Verdict::Warning) {
        tracing::warn!(check = check.name, found = check.found, "{}", check.advice);
    }
    let failures: Vec<&Check> = checks.iter().filter(|check| check.verdict == Verdict::Failure).collect();
    match failures[..] {
        [] => Ok(()),
        [only] if only.name == FREE_SPACE => {
            let path = existing_part(&tuning.data_dir());
            Err(Fatal::NoSpace { path, needed_bytes: log_bytes_at_start(tuning, shards) })
        }
        _ => {
            let told: Vec<String> = failures
                .iter()
                .map(|check| format!("{}: {}. {}", check.name, check.found, check.advice))
                .collect();
            Err(Fatal::Machine(told.join(" ")))
        }
    }
}

/// The oldest kernel that the server runs on.
const KERNEL_MIN: (u32, u32) = (5, 15);
/// From here on one receive request serves a connection for its whole life, and receive buffers are shared in a ring.
const KERNEL_GOOD: (u32, u32) = (6, 1);

fn kernel(release: &str) -> Check {
    const NAME: &str = "kernel";
    let release = release.trim();
    match kernel_version(release) {
        None => {
            Check::warning(NAME, format!("{release:?} is no version"), "Strand needs Linux 5.15 or newer.")
        }
        Some(version) if version < KERNEL_MIN => {
            Check::failure(NAME, release, "Strand needs Linux 5.15 or newer: upgrade the kernel.")
        }
        Some(version) if version < KERNEL_GOOD => Check::warning(
            NAME,
            release,
            "Linux 6.1 or newer serves clients with fewer system calls: multishot accept and receive, rings of \
             buffers, completions run by the thread that waits.",
        ),
        Some(_) => Check::good(NAME, release),
    }
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The operations that the log, the client sockets and the file work use.
const OPERATIONS: &[(&str, u8)] = &[
    ("READ", opcode::Read::CODE),
    ("WRITE", opcode::Write::CODE),
    ("READ_FIXED", opcode::ReadFixed::CODE),
    ("WRITE_FIXED", opcode::WriteFixed::CODE),
    ("FSYNC", opcode::Fsync::CODE),
    ("FALLOCATE", opcode::Fallocate::CODE),
    ("OPENAT", opcode::OpenAt::CODE),
    ("CLOSE", opcode::Close::CODE),
    ("ACCEPT", opcode::Accept::CODE),
    ("CONNECT", opcode::Connect::CODE),
    ("RECV", opcode::Recv::CODE),
    ("SEND", opcode::Send::CODE),
    ("SENDMSG", opcode::SendMsg::CODE),
    ("POLL_ADD", opcode::PollAdd::CODE),
    ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
    ("TIMEOUT", opcode::Timeout::CODE),
];

fn io_uring_works() -> Check {
    const NAME: &str = "io_uring";
    let ring = match IoUring::new(8) {
        Ok(ring) => ring,
        Err(error) => return Check::failure(NAME, format!("refused: {error}"), io_uring_advice(&error)),
    };
    let mut probe = Probe::new();
    if let Err(error) = ring.submitter().register_probe(&mut probe) {
        return Check::failure(NAME, format!("cannot be probed: {error}"), io_uring_advice(&error));
    }
    let missing: Vec<&str> =
        OPERATIONS.iter().filter(|(_, code)| !probe.is_supported(*code)).map(|(name, _)| *name).collect();
    let parameters = ring.params();
    let features = [
        ("NODROP", parameters.is_feature_nodrop()),
        ("FAST_POLL", parameters.is_feature_fast_poll()),
        ("EXT_ARG", parameters.is_feature_ext_arg()),
    ];
    let missing: Vec<&str> =
        missing.into_iter().chain(features.iter().filter(|(_, has)| !has).map(|(name, _)| *name)).collect();
    if missing.is_empty() {
        Check::good(NAME, "allowed, with every operation needed")
    } else {
        Check::failure(
            NAME,
            format!("lacks {}", missing.join(", ")),
            "Run on Linux 5.15 or newer, without a sandbox that filters io_uring.",
        )
    }
}

fn io_uring_advice(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            let setting = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
            if matches!(setting.trim(), "1" | "2") {
                "The system switches io_uring off: `sysctl kernel.io_uring_disabled=0` allows it.".to_owned()
            } else {
                "A seccomp filter forbids it, as Docker's default does: start the container with `--security-opt \
                 seccomp=unconfined` or a profile that allows io_uring_setup, io_uring_enter and io_uring_register."
                    .to_owned()
            }
        }
        Some(libc::ENOSYS) => {
            "This kernel has no io_uring, or a sandbox (gVisor, for one) hides it: run on Linux 5.15 or newer.".to_owned()
        }
        Some(libc::ENOMEM) => memlock_advice(0),
        _ => "Strand needs io_uring for its log and its client sockets.".to_owned(),
    }
}

/// Below this soft limit the executor library refuses to start.
const MEMLOCK_FLOOR_BYTES: u64 = 512 << 10;
/// Rings of one executor; each registers the executor's file memory.
const RINGS_PER_EXECUTOR: u64 = 3;

/// Memory that the log's rings register.
fn log_buffer_bytes(tuning: &Tuning, shards: u32) -> u64 {
    let wal = &tuning.wal;
    let buffered = if wal.sync == WalSync::Off { 0 } else { u64::from(wal.commits_in_flight_max) };
    u64::from(shards) * buffered * (u64::from(wal.buffer_kib) << 10)
}

/// Memory that this many shards register with io_uring, which counts against the memlock limit.
fn locked_bytes(tuning: &Tuning, shards: u32) -> u64 {
    let executor_bytes = RINGS_PER_EXECUTOR * (u64::from(tuning.shard.io_memory_kib) << 10);
    u64::from(shards) * executor_bytes + log_buffer_bytes(tuning, shards)
}

fn locked_memory(tuning: &Tuning, shards: u32) -> Check {
    const NAME: &str = "locked memory";
    let needed = locked_bytes(tuning, shards).max(MEMLOCK_FLOOR_BYTES);
    let limit = match raised(Resource::LockedMemory, needed) {
        Ok(limit) => limit,
        Err(error) => return Check::warning(NAME, format!("unknown: {error}"), memlock_advice(needed)),
    };
    judge_locked_memory(needed, limit, may_lock_without_limit())
}

/// Below the floor the executor library refuses to start, whatever the process may lock. Between the floor and the need the
/// rings work with buffers that are not registered: slower, and not wrong.
fn judge_locked_memory(needed: u64, limit: Limit, unlimited: bool) -> Check {
    const NAME: &str = "locked memory";
    let found = format!("{} allowed, {} wanted", shown_limit(limit.soft), kib(needed));
    if limit.soft < MEMLOCK_FLOOR_BYTES {
        Check::failure(NAME, found, memlock_advice(needed))
    } else if unlimited {
        Check::good(NAME, "any amount allowed (CAP_IPC_LOCK)")
    } else if limit.soft < needed {
        let advice =
            format!("Buffers that cannot be registered make the log slower. {}", memlock_advice(needed));
        Check::warning(NAME, found, advice)
    } else {
        Check::good(NAME, found)
    }
}

fn memlock_advice(needed: u64) -> String {
    let enough_kib = needed.max(64 << 20).div_ceil(1 << 10);
    format!(
        "Raise the limit: `ulimit -l {enough_kib}` in the shell (or /etc/security/limits.conf), LimitMEMLOCK=infinity in a \
         systemd unit, `--ulimit memlock=-1` with docker. Or need less: fewer --shards, a smaller wal.buffer_kib or \
         shard.io_memory_kib. Processes of one user share what the kernel counts."
    )
}

/// Whether the process has the capability CAP_IPC_LOCK, with which the kernel counts nothing.
fn may_lock_without_limit() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> CAP_IPC_LOCK & 1 == 1)
}

/// Files that a shard holds open: log segments, snapshot files, rings, bells; generous.
const FILES_PER_SHARD: u64 = 64;
/// Files beside connections and shards: listeners, signals, logs, the library's own.
const FILES_BESIDE: u64 = 64;

fn files_needed(tuning: &Tuning, shards: u32) -> u64 {
    // A service listens on a port or two and has a ring.
    let services = u64::from(match tuning.router.mode {
        RouterMode::Thread => tuning.router.threads,
        RouterMode::Inline => shards,
    });
    // A connection that is refused with OVERLOADED is open for a moment too: one in a hundred on top.
    let connections = u64::from(tuning.limits.connections_max);
    connections + connections / 100 + u64::from(shards) * FILES_PER_SHARD + services * 8 + FILES_BESIDE
}

fn open_files(tuning: &Tuning, shards: u32) -> Check {
    const NAME: &str = "open files";
    let needed = files_needed(tuning, shards);
    let advice = || {
        format!(
            "Raise the limit: `ulimit -n {needed}` in the shell (or /etc/security/limits.conf), LimitNOFILE={needed} in a \
             systemd unit, `--ulimit nofile={needed}` with docker. Or lower limits.connections_max."
        )
    };
    match raised(Resource::OpenFiles, needed) {
        Err(error) => Check::warning(NAME, format!("unknown: {error}"), advice()),
        Ok(limit) if limit.soft >= needed => {
            Check::good(NAME, format!("{} allowed, {needed} needed", shown_count(limit.soft)))
        }
        Ok(limit) => Check::failure(NAME, format!("{} allowed, {needed} needed", limit.soft), advice()),
    }
}

/// The limit after raising the soft one as far as needed: beyond the hard limit with the right to, up to it without.
fn raised(resource: Resource, needed: u64) -> io::Result<Limit> {
    let limit = sys::limit(resource)?;
    if limit.soft >= needed {
        return Ok(limit);
    }
    let enough = Limit { soft: needed, hard: limit.hard.max(needed) };
    let wished = [enough, Limit { soft: limit.hard, hard: limit.hard }];
    let applied = wished.into_iter().find(|wish| sys::set_limit(resource, *wish).is_ok());
    Ok(applied.unwrap_or(limit))
}

fn cores(tuning: &Tuning, shards: u32) -> Check {
    const NAME: &str = "cores";
    match sys::available_cores() {
        Err(error) => {
            Check::warning(NAME, format!("unknown: {error}"), "List them in cores.allowed (--cores).")
        }
        Ok(cores) => {
            let beside = match tuning.router.mode {
                RouterMode::Thread => " and the router",
                RouterMode::Inline => "",
            };
            let found = format!("{} for {shards} shards{beside}", cores.len());
            if (cores.len() as u64) < u64::from(shards) {
                let advice =
                    "More shards than cores take turns; it works, and a move to a larger machine is easy.";
                Check::warning(NAME, found, advice)
            } else {
                Check::good(NAME, found)
            }
        }
    }
}

/// The path itself, or the nearest directory above it that exists.
fn existing_part(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|part| !part.as_os_str().is_empty() && part.exists());
    found.map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// A file that is gone again when the value is dropped.
struct Trial(PathBuf);

impl Trial {
    fn create(directory: &Path, flags: i32) -> io::Result<Self> {
        let path = directory.join(format!(".strand-trial-{}-{flags}", std::process::id()));
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).custom_flags(flags).open(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // An empty file that stays behind is noise, not damage.
        let _ = fs::remove_file(&self.0);
    }
}

fn directory(path: &Path) -> Check {
    const NAME: &str = "data directory";
    let existing = existing_part(path);
    let found = path.display().to_string();
    if !existing.is_dir() {
        return Check::failure(
            NAME,
            format!("{} is no directory", existing.display()),
            "Give another --data-dir.",
        );
    }
    match Trial::create(&existing, 0) {
        Ok(_) => Check::good(NAME, format!("{found} can be written")),
        Err(error) => Check::failure(
            NAME,
            format!("{} cannot be written: {error}", existing.display()),
            "Make it writable for this user (chown), mount it read-write, or give another --data-dir.",
        ),
    }
}

fn direct_io(path: &Path, tuning: &Tuning) -> Check {
    const NAME: &str = "direct I/O";
    if tuning.wal.sync == WalSync::Off {
        return Check::good(NAME, "not needed: no log is written");
    }
    match Trial::create(&existing_part(path), libc::O_DIRECT) {
        Ok(_) => Check::good(NAME, "possible in the data directory"),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Check::warning(
            NAME,
            "the data directory's file system has none",
            "The log goes through the page cache, which costs time and memory: put --data-dir on ext4 or XFS on a local disk.",
        ),
        Err(error) => {
            Check::warning(NAME, format!("could not be tried: {error}"), "See the data directory's check.")
        }
    }
}

const FREE_SPACE: &str = "free space";

/// What a new data directory writes before it serves: the first segment of each shard and its spares.
fn log_bytes_at_start(tuning: &Tuning, shards: u32) -> u64 {
    let wal = &tuning.wal;
    let segments = if wal.sync == WalSync::Off { 0 } else { 1 + u64::from(wal.spare_segments) };
    u64::from(shards) * segments * (u64::from(wal.segment_mib) << 20)
}

fn free_space(path: &Path, tuning: &Tuning, shards: u32) -> Check {
    // A directory in use has its segments already.
    let needed = if path.exists() { 0 } else { log_bytes_at_start(tuning, shards) };
    // A snapshot begins after `every_mib` of log, and the log grows on while it is written.
    let growth = 2 * u64::from(shards) * (u64::from(tuning.snapshot.every_mib) << 20);
    match sys::free_bytes(&existing_part(path)) {
        Err(error) => Check::warning(FREE_SPACE, format!("unknown: {error}"), "Look with df."),
        Ok(free) if free < needed => Check::failure(
            FREE_SPACE,
            format!("{} free, {} needed to start", mib(free), mib(needed)),
            "Free space, or use smaller or fewer segments (wal.segment_mib, wal.spare_segments, --shards).",
        ),
        Ok(free) if tuning.wal.sync != WalSync::Off && free < growth => Check::warning(
            FREE_SPACE,
            format!("{} free, the log may grow to {}", mib(free), mib(growth)),
            "Lower snapshot.every_mib, or watch the space: without it writes answer DISK_FULL.",
        ),
        Ok(free) => Check::good(FREE_SPACE, mib(free)),
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn kib(bytes: u64) -> String {
    format!("{} KiB", bytes.div_ceil(1 << 10))
}

fn shown_limit(bytes: u64) -> String {
    if bytes == Limit::UNLIMITED { "any amount".to_owned() } else { kib(bytes) }
}

fn shown_count(count: u64) -> String {
    if count == Limit::UNLIMITED { "any number".to_owned() } else { count.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_judged_by_version() {
        for (release, verdict) in [
            ("6.18.44-fc", Verdict::Good),
            ("6.1.0", Verdict::Good),
            ("10.0", Verdict::Good),
            ("5.15.0-91-generic\n", Verdict::Warning),
            ("5.14.21", Verdict::Failure),
            ("4.19", Verdict::Failure),
            ("", Verdict::Warning),
        ] {
            assert_eq!(kernel(release).verdict, verdict, "{release}");
        }
    }

    #[test]
    fn locked_memory_is_summed_from_its_holders() {
        let mut tuning = Tuning::default();
        tuning.shard.io_memory_kib = 1024;
        tuning.wal.commits_in_flight_max = 4;
        tuning.wal.buffer_kib = 256;
        assert_eq!(locked_bytes(&tuning, 2), 2 * (3 + 1) * (1 << 20));
        tuning.wal.sync = WalSync::Off;
        assert_eq!(locked_bytes(&tuning, 2), 2 * 3 * (1 << 20));
    }

    #[test]
    fn locked_memory_is_judged_against_limit_and_capability() {
        let limit = |soft| Limit { soft, hard: soft };
        let check = |needed, soft, unlimited| judge_locked_memory(needed, limit(soft), unlimited).verdict;
        assert_eq!(check(1 << 20, 1 << 20, false), Verdict::Good);
        assert_eq!(check(1 << 20, (1 << 20) - 1, false), Verdict::Warning);
        assert_eq!(check(1 << 20, (512 << 10) - 1, false), Verdict::Failure);
        assert_eq!(check(1 << 30, 1 << 20, true), Verdict::Good);
        assert_eq!(check(1 << 30, 1 << 18, true), Verdict::Failure, "the library looks at the number alone");
        let advice = judge_locked_memory(1 << 30, limit(0), false).advice;
        for part in ["ulimit -l 1048576", "LimitMEMLOCK", "--ulimit memlock"] {
            assert!(advice.contains(part), "{part} is missing in {advice}");
        }
    }

    #[test]
    fn open_files_cover_connections_and_shards() {
        let tuning = Tuning::default();
        assert!(files_needed(&tuning, 2) >= u64::from(tuning.limits.connections_max) + 2 * FILES_PER_SHARD);
        assert!(files_needed(&tuning, 3) > files_needed(&tuning, 2));
    }

    #[test]
    fn a_directory_is_tried_and_left_clean() {
        let base = std::env::temp_dir().join(format!("strand-preflight-{}", std::process::id()));
        fs::create_dir_all(&base).unwrap();
        assert_eq!(directory(&base.join("not/yet/there")).verdict, Verdict::Good);
        assert_eq!(fs::read_dir(&base).unwrap().count(), 0, "the trial file is gone");
        fs::write(base.join("file"), "").unwrap();
        assert_eq!(directory(&base.join("file/data")).verdict, Verdict::Failure);
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn refusals_say_what_to_change() {
        let advice = |code| io_uring_advice(&io::Error::from_raw_os_error(code));
        assert!(advice(libc::EPERM).contains("seccomp") || advice(libc::EPERM).contains("sysctl"));
        assert!(advice(libc::ENOSYS).contains("5.15"));
        assert!(advice(libc::ENOMEM).contains("ulimit -l"));
    }
}
