//! `strand tune`: looks at the machine and prints a profile for it, each line with its reason.
//!
//! A starting point: it looks at cores, memory and limits, and measures nothing. It changes nothing.

use crate::fatal::Fatal;
use crate::sys;
use std::fmt::Write;
use std::fs;

const EXAMPLES: &str = "\
Examples:
  strand tune > mine.toml && strand serve --config mine.toml
  strand tune --use cache";

/// Flags of `strand tune`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// What the server is for
    #[arg(long = "use", value_enum, default_value_t = Purpose::Production)]
    purpose: Purpose,
}

/// What a server is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Purpose {
    /// Every acknowledged write is on disk, and the machine is Strand's alone.
    Production,
    /// A cache: no log, a bound on memory.
    Cache,
    /// A developer's machine, shared with other work.
    Development,
}

/// What the profile depends on.
#[derive(Clone, Debug)]
struct Machine {
    /// Cores that the process may use, in rising order.
    cores: Vec<u32>,
    /// Of those, the ones that share a physical core with an earlier one.
    siblings: Vec<u32>,
    /// Memory for the process: the machine's, or its container's if that is less.
    memory_mib: u64,
}

/// Prints a profile.
///
/// # Errors
/// When the cores cannot be read.
pub fn run(arguments: &Arguments) -> Result<(), Fatal> {
    let cores =
        sys::available_cores().map_err(|error| Fatal::Failed(format!("Cannot read the cores: {error}.")))?;
    let machine = Machine { siblings: siblings(&cores), memory_mib: memory_mib(), cores };
    super::print(&profile(&machine, arguments.purpose))
}

fn profile(machine: &Machine, purpose: Purpose) -> String {
    let mut lines = Lines::default();
    lines.head(machine, purpose);
    placement(&mut lines, machine, purpose);
    match purpose {
        Purpose::Production => {
            lines.section("debug");
            lines.set("faults", "false", "clients may not ask for faults");
        }
        Purpose::Cache => {
            lines.section("wal");
            lines.set("sync", "\"off\"", "no log: what is in memory is all there is");
            lines.section("debug");
            lines.set("faults", "false", "clients may not ask for faults");
        }
        Purpose::Development => {
            lines.section("wal");
            lines.set("segment_mib", "36", "about half the disk space of the default");
            lines.set("spare_segments", "1", "as above");
        }
    }
    if machine.memory_mib > 0 {
        // A quarter stays for the kernel's buffers, connections and a snapshot's copies; half on a shared machine.
        let quarters = if purpose == Purpose::Development { 2 } else { 3 };
        let max_mib = (machine.memory_mib * quarters / 4).min(16 << 20);
        lines.section("memory");
        lines.set(
            "max_mib",
            &max_mib.to_string(),
            "the rest is for the system, connections and snapshot copies",
        );
    }
    lines.out
}

/// Which core runs what.
fn placement(lines: &mut Lines, machine: &Machine, purpose: Purpose) {
    let physical: Vec<u32> =
        machine.cores.iter().filter(|core| !machine.siblings.contains(core)).copied().collect();
    if purpose == Purpose::Development {
        lines.section("cores");
        lines.set("pin", "false", "other programs need the cores too");
        return;
    }
    match physical.len() {
        // One core: nothing to place.
        0 | 1 => {}
        2 => {
            lines.section("cores");
            lines.set("router", &format!("[{}]", physical[0]), "where network interrupts commonly arrive");
            lines.set(
                "shard",
                &format!("{:?}", [physical[1], physical[0]]),
                "the second shard shares the router's core",
            );
        }
        count => {
            // A router spends far less on a request than a shard does, so one for eight cores is a point to measure from.
            let routers = count.div_ceil(8).min(16);
            lines.section("router");
            lines.set("threads", &routers.to_string(), "one for each eight cores");
            if count >= 8 {
                lines.set("spin_us", "50", "cores to spare: saves a wake-up at low load");
                lines.section("shard");
                lines.set("spin_before_park_us", "50", "as the router");
            }
            lines.section("cores");
            lines.set("router", &format!("{:?}", &physical[..routers]), "cores of their own");
            lines.set(
                "shard",
                &format!("{:?}", &physical[routers..]),
                "one shard for each other physical core",
            );
        }
    }
}

/// The profile as it grows.
#[derive(Default)]
struct Lines {
    out: String,
}

impl Lines {
    fn head(&mut self, machine: &Machine, purpose: Purpose) {
        let cores = machine.cores.len();
        let shared = machine.siblings.len();
        self.line(format_args!(
            "# A profile for {purpose:?} on {cores} cores ({shared} of them second threads of a core)"
        ));
        self.line(format_args!(
            "# and {} MiB of memory. A starting point: measure, then change.",
            machine.memory_mib
        ));
    }

    fn section(&mut self, name: &str) {
        self.line(format_args!("\n[{name}]"));
    }

    fn set(&mut self, name: &str, value: &str, why: &str) {
        self.line(format_args!("# {why}\n{name} = {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.out, "{line}").expect("writing to a String cannot fail");
    }
}

/// The cores of the list that share a physical core with an earlier one of it.
fn siblings(cores: &[u32]) -> Vec<u32> {
    let shares = |core: &u32| {
        let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
        let Ok(text) = fs::read_to_string(path) else { return false };
        let numbers = text.trim().split([',', '-']).filter_map(|part| part.parse::<u32>().ok());
        numbers.min().is_some_and(|first| first < *core && cores.contains(&first))
    };
    cores.iter().filter(|core| shares(core)).copied().collect()
}

/// The memory that this process may use; 0 when nothing says.
fn memory_mib() -> u64 {
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_mib(&text)).unwrap_or(0);
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok()).map(|bytes| bytes >> 20);
    limit.map_or(total, |limit| limit.min(total))
}

fn total_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? >> 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuning::cores::deal;
    use crate::tuning::layers::{Sources, load};
    use clap::ValueEnum;

    #[test]
    fn every_profile_loads_and_deals() {
        for count in [1, 2, 3, 4, 8, 17, 64, 192] {
            for siblings in [0, count / 2] {
                let cores: Vec<u32> = (0..count).collect();
                let machine = Machine {
                    siblings: cores[(count - siblings) as usize..].to_vec(),
                    memory_mib: 4096,
                    cores,
                };
                for purpose in Purpose::value_variants() {
                    let text = profile(&machine, *purpose);
                    let sources =
                        Sources { file: Some(("profile".to_owned(), text.clone())), ..Sources::default() };
                    let tuning =
                        load(&sources).unwrap_or_else(|problems| panic!("{problems}\n{text}")).tuning;
                    let shards =
                        crate::tuning::cores::shards_of_new_directory(0, &tuning.cores, &machine.cores);
                    assert!(deal(&machine.cores, shards, &tuning.cores, &tuning.router).is_ok(), "{text}");
                }
            }
        }
    }

    #[test]
    fn memory_is_read_from_the_kernels_table() {
        assert_eq!(total_mib("MemFree: 1 kB\nMemTotal:        8165432 kB\n"), Some(7974));
        assert_eq!(total_mib("nothing"), None);
    }
}
