//! The outer process: makes the namespaces, runs the harness inside, and leaves nothing behind however that ends.
//!
//! Namespaces carry the keeper's process id in their names; a keeper that was killed itself is cleaned up after by the next one.

use crate::network::Network;
use crate::report::Report;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How the names of all namespaces begin.
const PREFIX: &str = "torture";

/// The namespaces and the folder of one run; gone with the value.
struct Kept {
    network: Option<Network>,
    folder: PathBuf,
    keep_folder: bool,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(network) = &self.network {
            network.remove();
        }
        unmount_below(&self.folder);
        if !self.keep_folder {
            // What is left behind harms nothing.
            drop(fs::remove_dir_all(&self.folder));
        }
    }
}

/// Unmounts what is mounted below a folder.
fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for place in places.filter(|place| Path::new(place).starts_with(folder)) {
        drop(Command::new("umount").args(["-l", place]).status());
    }
}

/// Removes the namespaces of keepers that are no more.
fn remove_stale() {
    let listed = Command::new("ip").args(["netns", "list"]).output();
    let listed =
        listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    for name in listed.lines().filter_map(|line| line.split_whitespace().next()) {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            drop(Command::new("ip").args(["netns", "del", name]).status());
        }
    }
}

/// Runs this program again with these arguments inside namespaces for so many nodes, or outside where they cannot be made.
///
/// # Errors
/// When the program cannot be run.
pub fn keep(
    arguments: &[String],
    nodes: usize,
    folder: PathBuf,
    report: Report,
) -> Result<ExitStatus, String> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(|error| error.to_string())?;
    }
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    remove_stale();
    let network = Network::named(&format!("{PREFIX}{}", std::process::id()), nodes);
    let mut kept = Kept { network: None, folder, keep_folder: true };
    match network.make().and_then(|()| network.apply()) {
        Ok(()) => kept.network = Some(network),
        Err(error) => {
            network.remove();
            report.say(&format!("no network namespaces here ({error}): faults of the network are left out"));
        }
    }
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut words: Vec<String> = Vec::new();
    if let Some(network) = &kept.network {
        words.extend(["nsenter".to_owned(), format!("--net=/run/netns/{}", network.hub())]);
    }
    words.extend(["setpriv", "--pdeathsig", "KILL"].map(str::to_owned));
    words.push(this.to_string_lossy().into_owned());
    words.extend(arguments.iter().cloned());
    words.push(format!("FOLDER={}", kept.folder.display()));
    words.push(format!("INSIDE={}", kept.network.as_ref().map_or(String::new(), |_| prefix_of(&kept))));
    let child = Command::new(&words[0]).args(&words[1..]).spawn();
    let status = wait(child.map_err(|error| error.to_string())?, &stop)?;
    kept.keep_folder = !status.success() && !stop.load(Ordering::SeqCst);
    if kept.keep_folder {
        report.say(&format!("kept for a look: {}", kept.folder.display()));
    }
    Ok(status)
}

fn prefix_of(kept: &Kept) -> String {
    let hub = kept.network.as_ref().map(Network::hub).unwrap_or_default();
    hub.trim_end_matches("-hub").to_owned()
}

fn wait(mut child: Child, stop: &AtomicBool) -> Result<ExitStatus, String> {
    loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return Ok(status);
        }
        if stop.load(Ordering::SeqCst) {
            // It may have ended by the same signal.
            drop(child.kill());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
