//! `strand export`: all keys of a running server, as lines of JSON that `strand import` and other programs read.
//!
//! Goes through SCAN page by page, so nothing is locked: every key that is there throughout is written once, each with the value
//! that it has when its page is read. Through the client's public API only; the lines are `dump.rs`'s.

use super::dump::Writer;
use crate::fatal::Fatal;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;
use strand_client::{Client, ClientOptions, Command, Error};

const EXAMPLES: &str = "\
Examples:
  strand export all.jsonl                          every key, and how the indexes are defined
  strand export --prefix user: users.jsonl         only keys that begin so
  strand export -a 10.0.0.1:8000 | gzip > all.gz   to stdout, for other programs
  strand import all.jsonl                          the way back

A line is {\"key\":...,\"value\":...,\"ttl_ms\":...}. What is written while the export runs may be in it or not.";

/// `strand export`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Where to write; stdout if left out or `-`.
    file: Option<PathBuf>,
    /// Address of any node; may be given several times.
    #[arg(short, long, value_name = "HOST:PORT", default_value = "127.0.0.1:8000")]
    address: Vec<String>,
    /// Token to present, for servers that ask for one.
    #[arg(long, env = "STRAND_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Only keys that begin with this; indexes are left out then.
    #[arg(long)]
    prefix: Option<String>,
    /// Write over the file if it is there.
    #[arg(long)]
    force: bool,
}

/// Keys that are asked for at once.
const PAGE_KEYS: u32 = 1000;
/// What CREATE_INDEX takes of what LIST_INDEXES tells.
const DEFINING: [&str; 5] = ["field", "kind", "dim", "metric", "analyzer"];

#[derive(Deserialize)]
struct Page {
    keys: Vec<String>,
    values: Vec<Box<RawValue>>,
    cursor: Option<String>,
}

/// Runs the subcommand.
///
/// # Errors
/// When the file is there already or cannot be written, or the server does not answer.
pub fn run(arguments: &Arguments) -> Result<(), Fatal> {
    let path = arguments.file.as_deref().filter(|path| *path != Path::new("-"));
    let Some(path) = path else {
        return match write(arguments, BufWriter::new(io::stdout().lock())) {
            // A reader that has gone away (`strand export | head`) is no failure.
            Err(Trouble::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            outcome => outcome.map(|_| ()).map_err(|trouble| trouble.told(Path::new("stdout"))),
        };
    };
    if path.exists() && !arguments.force {
        return Err(Fatal::Failed(format!(
            "{} is there already; choose another name or give --force.",
            path.display()
        )));
    }
    // What has the name is whole: an export that breaks off leaves the part behind under another one.
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let told = |trouble: Trouble| trouble.told(&part);
    let file = File::create(&part).map_err(|error| told(Trouble::Output(error)))?;
    let out = write(arguments, BufWriter::with_capacity(1 << 20, file)).map_err(told)?;
    let synced = out.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all());
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    synced
        .and_then(|()| fs::rename(&part, path))
        .and_then(|()| File::open(parent)?.sync_all())
        .map_err(|error| told(Trouble::Output(error)))
}

/// Why an export ended early.
enum Trouble {
    Output(io::Error),
    Server(Error),
}

impl Trouble {
    fn told(self, output: &Path) -> Fatal {
        Fatal::Failed(match self {
            Self::Output(error) => format!("Cannot write to {}: {error}.", output.display()),
            Self::Server(error) => format!("The server did not answer, the export is not whole: {error}."),
        })
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Server(error)
    }
}

/// Writes the whole export; gives back what it was written to.
fn write<W: Write>(arguments: &Arguments, out: W) -> Result<W, Trouble> {
    let begin = Instant::now();
    let options = ClientOptions { token: arguments.token.clone(), ..ClientOptions::default() };
    let mut client = Client::connect_with(&arguments.address, options)?;
    let bar = match (client.info()?["keys"].as_u64(), &arguments.prefix) {
        (Some(keys), None) => {
            ProgressBar::new(keys).with_style(style("{bar:32.cyan/dim} {human_pos}/{human_len}"))
        }
        _ => ProgressBar::no_length().with_style(style("{spinner} {human_pos}")),
    };
    let mut writer = Writer::new(out)?;
    if arguments.prefix.is_none() {
        for definition in definitions(&mut client)? {
            writer.index(&definition)?;
        }
    }
    let mut cursor: Option<String> = None;
    loop {
        let mut scan = Command::new("SCAN").field("limit", &PAGE_KEYS)?.field("with_values", &true)?;
        if let Some(prefix) = &arguments.prefix {
            scan = scan.text("prefix", prefix);
        }
        if let Some(cursor) = &cursor {
            scan = scan.text("cursor", cursor);
        }
        let page: Page = client.execute(scan)?.result()?;
        let ttls = times_to_live(&mut client, &page.keys)?;
        for ((key, value), ttl) in page.keys.iter().zip(&page.values).zip(ttls) {
            match ttl {
                // Gone since its page was read.
                -2 => {}
                ttl => writer.entry(key, value, u64::try_from(ttl).ok())?,
            }
        }
        bar.inc(page.keys.len() as u64);
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    bar.finish_and_clear();
    let (out, keys) = writer.finish()?;
    if io::stderr().is_terminal() || arguments.file.is_some() {
        let seconds = begin.elapsed().as_secs_f64();
        // Nobody may be reading.
        let _ = writeln!(
            io::stderr().lock(),
            "Exported {keys} keys in {seconds:.1} s ({:.0} keys/s).",
            keys as f64 / seconds
        );
    }
    Ok(out)
}

/// What CREATE_INDEX would make each index with. The indexes over all fields come with the first search.
fn definitions(client: &mut Client) -> Result<Vec<Value>, Error> {
    let listed: Vec<Map<String, Value>> = client.execute(Command::new("LIST_INDEXES"))?.result()?;
    let made = listed.into_iter().filter(|index| index.get("field").is_some_and(|field| field != "*"));
    let defining = |index: Map<String, Value>| {
        index.into_iter().filter(|(name, _)| DEFINING.contains(&name.as_str())).collect::<Map<_, _>>()
    };
    Ok(made.map(defining).map(Value::Object).collect())
}

/// Time to live of each key, in milliseconds; -1 for none, -2 where the key is gone.
fn times_to_live(client: &mut Client, keys: &[String]) -> Result<Vec<i64>, Error> {
    let mut pipeline = client.pipeline();
    for key in keys {
        pipeline.command(Command::new("TTL").key(key));
    }
    pipeline.send().into_iter().map(|reply| reply?.result()).collect()
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(&format!("  {template} keys  {{per_sec}}"))
        .expect("the template is a constant")
}
