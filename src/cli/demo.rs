//! `strand demo`: loads a real text collection into a real server and shows what can be done with it, with timings.
//!
//! Everything goes through the client's public API; the collection is in `demo/corpus.rs`, the server that the demo starts in
//! `demo/server.rs`, and what it shows in `demo/show.rs`. Bounded: loading stops after a minute with what it has by then.

mod corpus;
mod server;
mod show;

use crate::fatal::Fatal;
use clap::Args;
use corpus::{Corpus, Document};
use indicatif::{ProgressBar, ProgressStyle};
use show::Show;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use strand_client::{Client, ClientOptions, Error};

/// `strand demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Use the server at this address instead of starting one. Its keys that begin with `demo:` are replaced.
    #[arg(short, long, value_name = "HOST:PORT", conflicts_with = "serve")]
    address: Option<String>,
    /// Start a server on a free port with a temporary data directory; the default.
    #[arg(long)]
    serve: bool,
    /// Where the started server keeps its data, instead of a temporary directory; it is kept afterwards.
    #[arg(long, value_name = "PATH", conflicts_with = "address")]
    data_dir: Option<PathBuf>,
    /// Load at most this many documents.
    #[arg(long, value_name = "N")]
    documents: Option<usize>,
    /// Which collection to load; the first that is installed otherwise.
    #[arg(long, value_enum)]
    collection: Option<corpus::Name>,
}

/// Longest time spent on loading.
const LOAD_TIME_MAX: Duration = Duration::from_secs(60);
/// Documents sent together.
const DOCUMENTS_TOGETHER: usize = 2_000;

/// Runs `strand demo`.
pub fn run(arguments: &DemoArgs) -> Result<(), Fatal> {
    let mut corpus = corpus::open(arguments.collection).map_err(Fatal::Failed)?;
    corpus.documents.truncate(arguments.documents.unwrap_or(usize::MAX));
    let server = match &arguments.address {
        Some(_) => None,
        None => Some(server::Server::start(arguments.data_dir.as_deref()).map_err(Fatal::Failed)?),
    };
    let address = match (&arguments.address, &server) {
        (Some(address), _) => address.clone(),
        (None, Some(server)) => server.address().to_owned(),
        (None, None) => unreachable!("without an address a server was started"),
    };
    let failed = |error: Error| Fatal::Failed(format!("The demo could not go on: {error}."));
    let options = ClientOptions { timeout: Duration::from_secs(30), ..ClientOptions::default() };
    let mut client = Client::connect_with(&[&address], options).map_err(failed)?;
    let mut show = Show::new(&mut client);
    show.title(&format!("Strand at {address}"));
    load(&mut show, &corpus).map_err(failed)?;
    show.all(&corpus).map_err(failed)?;
    if let Some(server) = server {
        show.stopping();
        server.stop().map_err(Fatal::Failed)?;
    }
    show.end()
}

/// Stores the collection, each document under a key of its own.
fn load(show: &mut Show<'_>, corpus: &Corpus) -> Result<(), Error> {
    show.say(&format!("Loading {} ({} documents)", corpus.title, corpus.documents.len()));
    show.client.delete_prefix("demo:")?;
    let bar = ProgressBar::new(corpus.documents.len() as u64).with_style(style());
    let begin = Instant::now();
    let (mut count, mut bytes) = (0, 0);
    for batch in corpus.documents.chunks(DOCUMENTS_TOGETHER) {
        bytes += store(show.client, batch)?;
        count += batch.len();
        bar.inc(batch.len() as u64);
        let seconds = begin.elapsed().as_secs_f64();
        let (rate, flow) = (count as f64 / seconds, megabytes(bytes) / seconds);
        bar.set_message(format!("{rate:.0} documents/s  {flow:.1} MB/s"));
        if begin.elapsed() > LOAD_TIME_MAX {
            break;
        }
    }
    bar.finish_and_clear();
    let seconds = begin.elapsed().as_secs_f64();
    show.say(&format!(
        "Stored {count} documents, {:.1} MB, in {seconds:.1} s: {:.0} documents/s, {:.1} MB/s, every write acknowledged.",
        megabytes(bytes),
        count as f64 / seconds,
        megabytes(bytes) / seconds,
    ));
    Ok(())
}

/// Stores one batch through a pipeline; gives its size in bytes.
fn store(client: &mut Client, batch: &[Document]) -> Result<usize, Error> {
    let mut pipeline = client.pipeline();
    let mut bytes = 0;
    for document in batch {
        pipeline.set(&document.key, &document.value)?;
        bytes += document.key.len() + document.value.get().len();
    }
    for outcome in pipeline.send() {
        outcome?;
    }
    Ok(bytes)
}

fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("  {bar:32.cyan/dim} {human_pos}/{human_len}  {msg}  {eta} left")
        .expect("the template is a constant")
}
