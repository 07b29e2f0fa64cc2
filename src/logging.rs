//! The server's own log lines on stderr: text for people, JSON for machines.
//!
//! Set up once, by the command that runs. Never per request, and never with what a client stored.

use crate::tuning::knobs::Log;
use crate::tuning::{LogFormat, LogLevel};
use std::io::{self, IsTerminal};
use tracing::level_filters::LevelFilter;

/// Whether lines are JSON: as configured, or on anything but a terminal.
fn is_json(format: LogFormat, terminal: bool) -> bool {
    match format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    }
}

fn filter_of(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Sends events of this process to stderr from now on. A second call changes nothing.
pub fn start(settings: &Log) {
    let terminal = io::stderr().is_terminal();
    // NO_COLOR is a convention of terminals, not a setting of Strand.
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(filter_of(settings.level))
        .with_writer(io::stderr)
        .with_ansi(colours)
        .with_target(false);
    // Failing means that a subscriber is set already, which is then the one to keep.
    let _ = if is_json(settings.format, terminal) {
        subscriber.json().flatten_event(true).try_init()
    } else {
        subscriber.try_init()
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_text_on_a_terminal_only() {
        for (format, terminal, json) in [
            (LogFormat::Auto, true, false),
            (LogFormat::Auto, false, true),
            (LogFormat::Text, false, false),
            (LogFormat::Json, true, true),
        ] {
            assert_eq!(is_json(format, terminal), json, "{format:?} {terminal}");
        }
    }

    #[test]
    fn levels_are_ordered() {
        assert_eq!(filter_of(LogLevel::Info), LevelFilter::INFO);
        assert!(filter_of(LogLevel::Error) < filter_of(LogLevel::Trace));
    }
}
