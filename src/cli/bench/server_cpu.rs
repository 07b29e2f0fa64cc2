//! The CPU time of a server on this machine, thread by thread, from the scheduler's own accounting.
//!
//! `/proc/PID/task/TID/schedstat` counts nanoseconds on a processor, so it holds on a busy machine where rates do not.

use std::collections::BTreeMap;
use std::fs;

/// CPU time of every thread of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CpuTimes {
    /// Name and nanoseconds by thread id.
    threads: BTreeMap<u32, (String, u64)>,
}

/// CPU time that one thread, or several of one name, used.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct ThreadCpu {
    pub(super) name: String,
    pub(super) cpu_ns: u64,
}

impl CpuTimes {
    /// What the threads of these processes used so far; none where one cannot be read, or there are none.
    pub(super) fn read(pids: &[u32]) -> Option<Self> {
        let mut threads = BTreeMap::new();
        for pid in pids {
            Self::read_process(*pid, &mut threads)?;
        }
        (!threads.is_empty()).then_some(Self { threads })
    }

    fn read_process(pid: u32, threads: &mut BTreeMap<u32, (String, u64)>) -> Option<()> {
        for entry in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
            let path = entry.ok()?.path();
            let Some(id) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
            // A thread may end between the listing and the reading.
            let Ok(times) = fs::read_to_string(path.join("schedstat")) else { continue };
            let Some(cpu_ns) = times.split_whitespace().next().and_then(|text| text.parse().ok()) else {
                continue;
            };
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            threads.insert(id, (name.trim_end().to_owned(), cpu_ns));
        }
        Some(())
    }

    /// What each thread used since, the busiest first; threads that used nothing are left out.
    pub(super) fn since(&self, earlier: &CpuTimes) -> Vec<ThreadCpu> {
        let used = self.threads.iter().filter_map(|(id, (name, cpu_ns))| {
            let before = earlier.threads.get(id).map_or(0, |(_, cpu_ns)| *cpu_ns);
            let cpu_ns = cpu_ns.saturating_sub(before);
            (cpu_ns > 0).then(|| ThreadCpu { name: name.clone(), cpu_ns })
        });
        // Nodes of a cluster have threads of one name each: what they used is told together.
        let mut by_name: BTreeMap<String, u64> = BTreeMap::new();
        used.for_each(|thread| *by_name.entry(thread.name).or_default() += thread.cpu_ns);
        let mut used: Vec<ThreadCpu> =
            by_name.into_iter().map(|(name, cpu_ns)| ThreadCpu { name, cpu_ns }).collect();
        used.sort_by(|a, b| b.cpu_ns.cmp(&a.cpu_ns).then_with(|| a.name.cmp(&b.name)));
        used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_busy_thread_is_seen() {
        let before = CpuTimes::read(&[std::process::id()]).unwrap();
        let since = Instant::now();
        let mut sum = 0u64;
        while since.elapsed() < Duration::from_millis(30) {
            sum = std::hint::black_box(sum + 1);
        }
        let used = CpuTimes::read(&[std::process::id()]).unwrap().since(&before);
        assert!(used.iter().any(|thread| thread.cpu_ns > 1_000_000), "{used:?}");
        assert!(used.is_sorted_by(|a, b| a.cpu_ns >= b.cpu_ns));
    }

    #[test]
    fn no_process_no_times() {
        assert_eq!(CpuTimes::read(&[u32::MAX]), None);
        assert_eq!(CpuTimes::read(&[std::process::id(), u32::MAX]), None);
        assert_eq!(CpuTimes::read(&[]), None);
    }
}
