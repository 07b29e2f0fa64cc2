//! `strand import`: stores what `strand export`, or another program, wrote as lines of JSON.
//!
//! A file is read through before anything is stored, so that a damaged or unreadable one changes nothing. Stored are single
//! keys, many at a time; what was stored stays when a later one fails, and importing again stores the same. Through the client's
//! public API only; the lines are `dump.rs`'s.

use super::dump::{Line, Reader};
use crate::fatal::Fatal;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use strand_client::{Client, ClientOptions, Code, Command, If, SetOptions};

const EXAMPLES: &str = "\
Examples:
  strand import all.jsonl                        what strand export wrote
  strand import --keep more.jsonl                keys that are there stay as they are
  zcat all.gz | strand import -a 10.0.0.1:8000 - from another program

A line is {\"key\":...,\"value\":...}, with \"ttl_ms\" if it is to live for a while only. A file that cannot be read to its
end, or is not whole, changes nothing; from a pipe, what comes before is stored.";

/// `strand import`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The file to read, or `-` for stdin.
    file: PathBuf,
    /// Address of any node; may be given several times.
    #[arg(short, long, value_name = "HOST:PORT", default_value = "127.0.0.1:8000")]
    address: Vec<String>,
    /// Token to present, for servers that ask for one.
    #[arg(long, env = "STRAND_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Store only keys that are not there.
    #[arg(long)]
    keep: bool,
    /// Print what was done as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Keys that travel together, at most,
const KEYS_TOGETHER: usize = 1000;
/// and their bytes.
const BYTES_TOGETHER: usize = 4 << 20;

/// Runs the subcommand.
///
/// # Errors
/// When the lines cannot be read, an export is not whole, or the server refuses or does not answer.
pub fn run(arguments: &Arguments) -> Result<(), Fatal> {
    let is_stdin = arguments.file == Path::new("-");
    let bar = if is_stdin {
        ProgressBar::no_length().with_style(style("{spinner} {human_pos}"))
    } else {
        let lines = look_through(&arguments.file)?;
        ProgressBar::new(lines).with_style(style("{bar:32.cyan/dim} {human_pos}/{human_len}"))
    };
    let begin = Instant::now();
    let options = ClientOptions { token: arguments.token.clone(), ..ClientOptions::default() };
    let client = Client::connect_with(&arguments.address, options)
        .map_err(|error| Fatal::Failed(format!("The server did not answer: {error}.")))?;
    let mut import = Import { client, keep: arguments.keep, bar, done: Done::default() };
    let outcome = if is_stdin { import.all(io::stdin().lock()) } else { import.all(open(&arguments.file)?) };
    import.bar.finish_and_clear();
    let Done { keys, kept, indexes } = import.done;
    if let Err(trouble) = outcome {
        return Err(Fatal::Failed(format!(
            "{trouble}. {keys} keys are stored; import again when the cause is gone, which stores the same."
        )));
    }
    let seconds = begin.elapsed().as_secs_f64();
    if arguments.json {
        return super::print(&format!(
            "{}\n",
            json!({ "keys": keys, "kept": kept, "indexes": indexes, "seconds": seconds })
        ));
    }
    let stayed = if arguments.keep { format!(", {kept} were there") } else { String::new() };
    super::print(&format!(
        "Imported {keys} keys{stayed} and {indexes} indexes in {seconds:.1} s ({:.0} keys/s).\n",
        keys as f64 / seconds
    ))
}

fn open(path: &Path) -> Result<BufReader<File>, Fatal> {
    let file = File::open(path)
        .map_err(|error| Fatal::Failed(format!("Cannot read {}: {error}.", path.display())))?;
    Ok(BufReader::with_capacity(1 << 20, file))
}

/// Reads a file to its end without storing anything; gives its lines.
fn look_through(path: &Path) -> Result<u64, Fatal> {
    let mut reader = Reader::new(open(path)?);
    let told = |trouble: String| Fatal::Failed(format!("{}, {trouble}. Nothing was stored.", path.display()));
    while let Some(line) = reader.next_line().map_err(told)? {
        drop(line);
    }
    Ok(reader.number())
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    keys: u64,
    /// Keys that were there and stayed.
    kept: u64,
    indexes: u64,
}

struct Import {
    client: Client,
    keep: bool,
    bar: ProgressBar,
    done: Done,
}

impl Import {
    /// Stores everything; the error says what could not be, and why.
    fn all(&mut self, from: impl BufRead) -> Result<(), String> {
        let mut reader = Reader::new(from);
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(line) = reader.next_line()? {
            match line {
                Line::Head(_) | Line::End(_) => {}
                Line::Index(definition) => {
                    self.index(&definition).map_err(|error| format!("line {}: {error}", reader.number()))?;
                }
                Line::Entry { key, value, ttl_ms } => {
                    bytes += key.len() + value.get().len();
                    let mut options = SetOptions::default();
                    if let Some(ttl_ms) = ttl_ms {
                        options = options.ttl(Duration::from_millis(ttl_ms.max(1)));
                    }
                    if self.keep {
                        options = options.condition(If::absent());
                    }
                    batch.push((key, value.to_owned(), options));
                }
            }
            if batch.len() == KEYS_TOGETHER || bytes >= BYTES_TOGETHER {
                self.store(&mut batch, reader.number())?;
                bytes = 0;
            }
        }
        self.store(&mut batch, reader.number())
    }

    fn index(&mut self, definition: &Map<String, Value>) -> Result<(), String> {
        let mut command = Command::new("CREATE_INDEX");
        for (name, value) in definition {
            command = command.field(name, value).map_err(|error| error.to_string())?;
        }
        self.client.execute(command).map_err(|error| format!("an index cannot be made: {error}"))?;
        self.done.indexes += 1;
        Ok(())
    }

    /// Stores what has gathered, up to line `upto`.
    fn store(&mut self, batch: &mut Vec<Entry>, upto: u64) -> Result<(), String> {
        let mut pipeline = self.client.pipeline();
        for (key, value, options) in batch.iter() {
            pipeline
                .set_with(key, value, options)
                .map_err(|error| format!("key {key:?} cannot be sent: {error}"))?;
        }
        let outcomes = pipeline.send();
        let mut trouble = None;
        for ((key, ..), outcome) in batch.drain(..).zip(outcomes) {
            match outcome {
                Ok(_) => self.done.keys += 1,
                Err(error) if self.keep && error.is(Code::Conflict) => self.done.kept += 1,
                Err(error) => {
                    trouble.get_or_insert_with(|| format!("key {key:?} is not stored: {error}"));
                }
            }
        }
        self.bar.set_position(upto);
        trouble.map_or(Ok(()), Err)
    }
}

/// A key with its value and how it is stored.
type Entry = (String, Box<serde_json::value::RawValue>, SetOptions);

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(&format!("  {template} lines  {{per_sec}}"))
        .expect("the template is a constant")
}
