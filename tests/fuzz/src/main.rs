//! The fuzzer's command line: `TARGET=lines` (all without it), `EXECUTIONS=1000000`, `SEED=1`, `THREADS=2`. A finding is
//! made small, written to `tests/fuzz/kept/TARGET/`, and the exit code is 1.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use strand_fuzz::engine::{self, Outcome};
use strand_fuzz::kept;
use strand_fuzz::targets::{self, NAMES};

struct Wishes {
    targets: Vec<String>,
    executions: u64,
    seed: u64,
    threads: u64,
}

impl Wishes {
    fn read(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let targets = NAMES.iter().map(ToString::to_string).collect();
        let mut wishes = Self { targets, executions: 1_000_000, seed: 1, threads: cores as u64 };
        for word in words {
            let (name, text) = word.split_once('=').ok_or_else(|| format!("{word} is no NAME=VALUE"))?;
            let number = || text.parse::<u64>().map_err(|_| format!("{word}: a number is wanted"));
            match name {
                "TARGET" => wishes.targets = text.split(',').map(str::to_owned).collect(),
                "EXECUTIONS" => wishes.executions = number()?,
                "SEED" => wishes.seed = number()?,
                "THREADS" => wishes.threads = number()?.max(1),
                _ => return Err(format!("{name} is unknown")),
            }
        }
        match wishes.targets.iter().find(|name| !NAMES.contains(&name.as_str())) {
            Some(name) => Err(format!("no target is called {name}; there are {}", NAMES.join(", "))),
            None => Ok(wishes),
        }
    }
}

fn tell(text: &str) {
    // Nobody listening is no reason to fail.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

fn main() -> ExitCode {
    let wishes = match Wishes::read(std::env::args().skip(1)) {
        Ok(wishes) => wishes,
        Err(text) => {
            tell(&text);
            return ExitCode::from(2);
        }
    };
    let mut found = 0;
    for name in &wishes.targets {
        found += fuzz(name, &wishes);
    }
    if found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn fuzz(name: &str, wishes: &Wishes) -> usize {
    let make = || targets::make(name).expect("names were checked");
    let inputs: Vec<Vec<u8>> = kept::inputs(name).into_iter().map(|(_, input)| input).collect();
    let (begun, shown) = (Instant::now(), AtomicU64::new(0));
    let progress = |done: u64| {
        let second = begun.elapsed().as_secs();
        if second >= shown.load(Ordering::Relaxed) + 30 {
            shown.store(second, Ordering::Relaxed);
            tell(&format!("{name}: {done} of {}", wishes.executions));
        }
    };
    let outcome = engine::fuzz(make, &inputs, wishes.seed, wishes.executions, wishes.threads, progress);
    let took = begun.elapsed().as_secs_f64();
    let Outcome { executions, behaviours, findings } = &outcome;
    tell(&format!(
        "{name}: {executions} executions in {took:.1} s ({:.0} a second), {behaviours} behaviours, {} findings",
        *executions as f64 / took,
        findings.len()
    ));
    for finding in findings {
        tell(&format!("FAILED {name}: {}", finding.text));
        match keep(name, &finding.input) {
            Ok(path) => tell(&format!("  {} bytes kept in {path}", finding.input.len())),
            Err(error) => tell(&format!("  not kept: {error}: {:?}", finding.input)),
        }
    }
    findings.len()
}

fn keep(name: &str, input: &[u8]) -> std::io::Result<String> {
    let directory = Path::new(kept::DIRECTORY).join(name);
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(kept::file_name(input));
    std::fs::write(&path, input)?;
    Ok(path.display().to_string())
}
