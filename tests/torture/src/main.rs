//! The command line of the harness; see docs/TORTURE.md. Arguments are `NAME=VALUE`; the outer process makes the network and
//! runs itself inside it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;
use strand_torture::cluster::{Cluster, Plan, clock_file};
use strand_torture::network::Network;
use strand_torture::report::{Report, summary};
use strand_torture::{cutpoints, fault, founding, keeper, kills, members, powercut, rolling, storm};

/// Nodes of the largest cluster here.
const NODES_MAX: usize = 5;
/// The parts, and how much of the time each may take, in hundredths. The storms come last and take what is left.
const PARTS: &[(&str, u64)] = &[
    ("bite", 5),
    ("founding", 5),
    ("cutpoints", 15),
    ("powercuts", 15),
    ("kills", 15),
    ("rolling", 5),
    ("members", 5),
    ("storm3", 15),
    ("storm5", 20),
];

struct Options {
    words: Vec<(String, String)>,
}

impl Options {
    fn read() -> Result<Self, String> {
        let known = [
            "MINUTES",
            "SEED",
            "PARTS",
            "BINARY",
            "FOLDER",
            "INSIDE",
            "CUTS",
            "WRITES",
            "POINTS",
            "OPERATIONS",
            "KILLS",
            "KEYS",
            "SERVERS",
        ];
        let mut words = Vec::new();
        for word in std::env::args().skip(1) {
            let (name, value) =
                word.split_once('=').ok_or_else(|| format!("{word}: NAME=VALUE is expected"))?;
            if !known.contains(&name) {
                return Err(format!("{name} is unknown; known are {}", known.join(" ")));
            }
            words.push((name.to_owned(), value.to_owned()));
        }
        Ok(Self { words })
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.words.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str, otherwise: u64) -> Result<u64, String> {
        let Some(text) = self.text(name) else { return Ok(otherwise) };
        text.parse().map_err(|error| format!("{name}={text}: {error}"))
    }
}

fn main() -> ExitCode {
    let report = Report::default();
    let result = Options::read().and_then(|options| match options.text("INSIDE") {
        None => outside(&options, report),
        Some(inside) => run_inside(&options, inside, &report),
    });
    match result {
        Ok(code) => code,
        Err(text) => {
            report.say(&format!("FAILED: {text}"));
            ExitCode::FAILURE
        }
    }
}

fn beside_this(name: &str) -> Result<PathBuf, String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    Ok(this.parent().map_or_else(PathBuf::new, Path::to_path_buf).join(name))
}

fn outside(options: &Options, report: Report) -> Result<ExitCode, String> {
    let folder = std::env::temp_dir().join(format!("strand-torture-{}", std::process::id()));
    let folder = options.text("FOLDER").map_or(folder, PathBuf::from);
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with("FOLDER=")).collect();
    let status = keeper::keep(&arguments, NODES_MAX, folder, report)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Run<'a> {
    options: &'a Options,
    report: &'a Report,
    binary: PathBuf,
    clock: Option<PathBuf>,
    folder: PathBuf,
    network: Option<String>,
    seed: u64,
}

fn run_inside(options: &Options, inside: &str, report: &Report) -> Result<ExitCode, String> {
    let binary =
        options.text("BINARY").map_or_else(|| beside_this("strand"), |path| Ok(PathBuf::from(path)))?;
    let clock = Some(beside_this("libstrand_torture_clock.so")?).filter(|path| path.exists());
    let seed = options.number("SEED", std::process::id().into())?;
    let folder = PathBuf::from(options.text("FOLDER").ok_or("the outer process names a folder")?);
    let network = Some(inside.to_owned()).filter(|prefix| !prefix.is_empty());
    let minutes = options.number("MINUTES", 10)?;
    let run = Run { options, report, binary, clock, folder, network, seed };
    report.say(&format!("seed {seed}, {minutes} minutes, {}", run.binary.display()));
    if run.clock.is_none() {
        report.say("no library to move clocks beside the harness: clock jumps are left out");
    }
    let wanted = options.text("PARTS").map(|parts| parts.split(',').collect::<Vec<_>>());
    for (part, percent) in PARTS {
        if wanted.as_ref().is_some_and(|wanted| !wanted.contains(part)) {
            continue;
        }
        let within = match &wanted {
            Some(wanted) => Duration::from_secs(minutes * 60 / wanted.len() as u64),
            None => Duration::from_secs(minutes * 60 * percent / 100),
        };
        let begun = report.elapsed();
        report.say(&format!("==> {part}"));
        run.part(part, within).map_err(|text| format!("{part}: {text}"))?;
        report.say(&format!("<== {part}: {} s", (report.elapsed() - begun).as_secs()));
    }
    Ok(ExitCode::SUCCESS)
}

impl Run<'_> {
    fn part(&self, part: &str, within: Duration) -> Result<(), String> {
        match part {
            "bite" => self.bite(within),
            "founding" => self.founding(within),
            "cutpoints" => self.cutpoints(within),
            "powercuts" => self.powercuts(within),
            "kills" => self.kills(within),
            "rolling" => self.rolling(),
            "members" => self.members(),
            "storm3" => self.storm(part, 3, 3, within),
            _ => self.storm(part, 5, 3, within),
        }
    }

    /// A plan with a folder and ports of its own.
    fn plan(&self, part: &str, nodes: usize, replicas: usize, shards: usize) -> Result<Plan, String> {
        let folder = self.folder.join(part);
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        if nodes > 1 {
            for node in 0..nodes {
                fault::write_clock(&clock_file(&folder, node), "0")?;
            }
        }
        Ok(Plan {
            binary: self.binary.clone(),
            folder,
            nodes,
            replicas,
            shards,
            network: self.network.as_ref().filter(|_| nodes > 1).map(|prefix| Network::named(prefix, nodes)),
            has_disks: true,
            first_port: 29_400,
            settings: Vec::new(),
            clock: self.clock.clone().filter(|_| nodes > 1),
        })
    }

    fn campaign(&self, lies: bool, within: Duration) -> Result<cutpoints::Campaign, String> {
        Ok(cutpoints::Campaign {
            operations: self.options.number("OPERATIONS", if lies { 2000 } else { 20_000 })?,
            points: if lies { 40 } else { self.options.number("POINTS", 10_000)? },
            servers: usize::try_from(self.options.number("SERVERS", 2)?)
                .map_err(|error| error.to_string())?,
            writers: 4,
            seed: self.seed,
            lies,
            within,
        })
    }

    /// A disk that lies must be seen to lose data: else the harness shows nothing.
    fn bite(&self, within: Duration) -> Result<(), String> {
        let plan = self.plan("bite", 1, 1, 2)?;
        let done = cutpoints::run(&plan, &self.campaign(true, within)?, |text| self.report.say(text))?;
        self.report
            .say(&format!("lying syncs: {} of {} cuts lost acknowledged writes", done.bad, done.points));
        if done.bad == 0 {
            return Err("a disk that lies about syncs lost nothing: the harness is blind".to_owned());
        }
        self.lying_cluster()?;
        self.stale_reads()
    }

    /// The same of three nodes whose power goes at once.
    fn lying_cluster(&self) -> Result<(), String> {
        let mut cluster = Cluster::prepare(&self.plan("bite3", 3, 3, 3)?)?;
        let load_within = Duration::from_secs(5);
        let campaign = |cuts| powercut::Campaign {
            cuts,
            writes_per_cut: 2000,
            writers: 3,
            seed: self.seed,
            load_within,
        };
        // The founding is honest: a cluster that was never founded has nothing to lose.
        powercut::run(&mut cluster, &campaign(1), |_| ())?;
        (0..cluster.len()).for_each(|node| cluster.kill(node));
        for disk in &cluster.disks {
            disk.faults().lies.store(true, Ordering::SeqCst);
        }
        match powercut::run(&mut cluster, &campaign(8), |_| ()) {
            Ok(done) => {
                Err(format!("three lying disks lost nothing in {} cuts: the harness is blind", done.cuts))
            }
            Err(text) => {
                let first = text.lines().take(2).collect::<Vec<_>>().join(" ");
                self.report
                    .say(&format!("three lying disks, found out: {}", first.get(..300).unwrap_or(&first)));
                Ok(())
            }
        }
    }

    /// Reads of the past, as `local` reads at a node that is cut off are, must be found out by the judges.
    fn stale_reads(&self) -> Result<(), String> {
        if self.network.is_none() {
            return Ok(());
        }
        let mut cluster = Cluster::prepare(&self.plan("bitestale", 3, 3, 3)?)?;
        let within = Duration::from_secs(60);
        let only = Some(fault::Class::Isolate);
        let storm = storm::Storm { within, seed: self.seed, clients: 6, consistency: "local", only };
        match storm::run(&mut cluster, &storm, self.report) {
            Err(text) if text.contains("is no register") || text.contains("half a batch") => {
                self.report.say("reads of the past, found out");
                Ok(())
            }
            Err(text) => Err(text),
            Ok(_) => Err("reads of the past were not found out: the judges are blind".to_owned()),
        }
    }

    fn founding(&self, within: Duration) -> Result<(), String> {
        let begun = self.report.elapsed();
        let is_over = || self.report.elapsed() - begun > within;
        let done = founding::run(&self.plan("founding", 3, 3, 2)?, u64::MAX, self.seed, is_over)?;
        let (clusters, cuts, kills) = (done.clusters, done.cuts, done.kills);
        self.report
            .say(&format!("{clusters} clusters founded over {cuts} power cuts and {kills} kills of nodes"));
        Ok(())
    }

    fn cutpoints(&self, within: Duration) -> Result<(), String> {
        let settings = ["snapshot.every_s=1", "snapshot.every_mib=4"].map(str::to_owned).to_vec();
        let plan = Plan { settings, ..self.plan("cutpoints", 1, 1, 2)? };
        let done = cutpoints::run(&plan, &self.campaign(false, within)?, |text| self.report.say(text))?;
        self.report.say(&format!(
            "{} points of a log of {} operations ({} syncs, {} acknowledged writes): {} keys compared, {} points bad",
            done.points, done.operations, done.syncs, done.acked, done.keys, done.bad
        ));
        if done.bad > 0 { Err(format!("seed {}: {}", self.seed, done.findings.join("\n"))) } else { Ok(()) }
    }

    fn powercuts(&self, within: Duration) -> Result<(), String> {
        let plan =
            Plan { settings: vec!["snapshot.every_s=3".to_owned()], ..self.plan("powercuts", 3, 3, 3)? };
        let mut cluster = Cluster::prepare(&plan)?;
        let cuts = self.options.number("CUTS", (within.as_secs() / 8).max(2))?;
        let campaign = powercut::Campaign {
            cuts,
            writes_per_cut: self.options.number("WRITES", 20_000)?,
            writers: 6,
            seed: self.seed,
            load_within: Duration::from_secs(within.as_secs() / cuts.max(1)).max(Duration::from_secs(2)),
        };
        let done = powercut::run(&mut cluster, &campaign, |text| self.report.say(text))
            .map_err(|text| format!("{text}\n{}", cluster.tails()))?;
        self.report.say(&format!(
            "{} all-node power cuts, {} more during starts, {} acknowledged writes, {} keys compared, none lost; slowest start {} ms",
            done.cuts,
            done.cuts_of_starts,
            done.acked,
            done.keys,
            done.slowest_start.as_millis()
        ));
        Ok(())
    }

    fn kills(&self, within: Duration) -> Result<(), String> {
        let plan = Plan { settings: vec!["snapshot.every_s=2".to_owned()], ..self.plan("kills", 3, 3, 6)? };
        let mut cluster = Cluster::prepare(&plan)?;
        let rounds = self.options.number("KILLS", 100)?;
        let done = kills::run(&mut cluster, rounds, within, self.seed, self.report)?;
        self.report.say(&done.text());
        let p99 = strand_torture::report::percentile(&done.led, 99);
        if p99 > kills::GAP_MAX {
            Err(format!("the gap at p99 is {p99:?}, the bar is {:?}", kills::GAP_MAX))
        } else {
            Ok(())
        }
    }

    fn rolling(&self) -> Result<(), String> {
        let plan = Plan { settings: vec!["snapshot.every_s=2".to_owned()], ..self.plan("rolling", 3, 3, 6)? };
        let mut cluster = Cluster::prepare(&plan)?;
        let done = rolling::run(&mut cluster, 2, self.seed)?;
        self.report.say(&format!(
            "{} restarts, {} requests, none failed; longest request of a restart: {}; end after SIGTERM: {}",
            done.restarts,
            done.judged.requests,
            summary(&done.longest),
            summary(&done.ends)
        ));
        Ok(())
    }

    fn members(&self) -> Result<(), String> {
        let keys = self.options.number("KEYS", 1_000_000)?;
        for (name, second) in [("members", members::Second::Drained), ("membersdead", members::Second::Dead)]
        {
            let settings = vec!["snapshot.every_s=10".to_owned()];
            let plan = Plan { settings, has_disks: false, ..self.plan(name, 5, 3, 16)? };
            let mut cluster = Cluster::prepare(&plan)?;
            let done = members::run(&mut cluster, keys, second, self.seed, self.report)?;
            self.report.say(&done.text());
            if let Some((what, _, longest)) = done.steps.iter().find(|step| step.2 > members::PAUSE_MAX) {
                return Err(format!(
                    "{what}: a request took {longest:?}, the bar is {:?}",
                    members::PAUSE_MAX
                ));
            }
        }
        Ok(())
    }

    fn storm(&self, part: &str, nodes: usize, replicas: usize, within: Duration) -> Result<(), String> {
        let plan =
            Plan { settings: vec!["snapshot.every_s=2".to_owned()], ..self.plan(part, nodes, replicas, 6)? };
        let mut cluster = Cluster::prepare(&plan)?;
        let (seed, consistency, only) = (self.seed, "linearizable", None);
        let storm = storm::Storm { within, seed, clients: 6, consistency, only };
        let done = storm::run(&mut cluster, &storm, self.report)?;
        self.report.say(&done.text());
        Ok(())
    }
}
