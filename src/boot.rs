//! Starts a server: cores, preflight, threads.
//!
//! Decides nothing about data. Returns when the server has stopped in good order.

use crate::fatal::Fatal;
use crate::preflight;
use crate::sys;
use crate::tuning::Tuning;
use crate::tuning::cores;

/// Runs a server with this configuration until it is asked to stop.
///
/// # Errors
/// The reason for which it could not start or had to stop.
pub fn serve(tuning: Tuning) -> Result<(), Fatal> {
    let available =
        sys::available_cores().map_err(|source| Fatal::Start { thread: "main".to_owned(), source })?;
    let told = |error: cores::DealError| Fatal::Configuration(error.to_string());
    let usable = cores::usable(&available, &tuning.cores.allowed).map_err(told)?;
    let shards = cores::shards_of_new_directory(tuning.server.shards, &tuning.cores, &usable);
    let deal = cores::deal(&usable, shards, &tuning.cores, &tuning.router).map_err(told)?;
    preflight::demand(&tuning, shards)?;
    tracing::info!(shards, cores = ?deal, "ready to start");
    drop(tuning);
    Err(Fatal::Failed("This build has no engine yet: src/boot.rs is where it is started.".to_owned()))
}
