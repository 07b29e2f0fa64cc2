//! Puts the sources of the configuration on top of one another: defaults, file, environment, flags.
//!
//! Every value remembers its origin, and every problem names key, value, allowed range and origin. All problems are
//! collected before the first is reported. Reads nothing itself: file text, environment and flags are arguments.

use super::knobs::{KNOBS, Knob, SECTIONS, Tuning, knob};

use super::relations;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;
use strand_wire::commands::nearest;
use toml::{Table, Value};

/// Environment variables of the server begin with this and have a double underscore after the section.
pub const ENVIRONMENT_PREFIX: &str = "STRAND_";

/// Where a value came from. Later ones win.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The file with this path.
    File(String),
    /// The environment variable with this name.
    Environment(String),
    /// The flag as it was given, such as `--port`.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "file {path}"),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// One setting from a flag.
#[derive(Clone, Debug)]
pub struct FlagSetting {
    /// Section and name.
    pub key: String,
    /// The value as text.
    pub text: String,
    /// The flag that set it, for messages.
    pub flag: String,
}

/// What the configuration is made from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Path and text of the configuration file, if one is used.
    pub file: Option<(String, String)>,
    /// The environment; variables without the prefix are ignored.
    pub environment: Vec<(String, String)>,
    /// Settings from flags; of two for one key the later wins.
    pub flags: Vec<FlagSetting>,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Configured {
    /// The values.
    pub tuning: Tuning,
    /// Where each value came from: one entry a knob.
    pub origins: BTreeMap<&'static str, Origin>,
}

/// Everything that is wrong with a configuration; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, problem) in self.0.iter().enumerate() {
            let before = if position == 0 { "" } else { "\n" };
            write!(f, "{before}{problem}")?;
        }
        Ok(())
    }
}

/// Merges and checks the sources.
///
/// # Errors
///
/// Every problem found: unknown keys, values outside their range, settings that contradict each other.
pub fn load(sources: &Sources) -> Result<Configured, Problems> {
    let mut layers = Layers::default();
    if let Some((path, text)) = &sources.file {
        layers.add_file(path, text);
    }
    layers.add_environment(&sources.environment);
    for setting in &sources.flags {
        let origin = Origin::Flag(setting.flag.clone());
        match knob(&setting.key) {
            Some(knob) => layers.set(knob, knob.range.value_of_text(&setting.text), origin),
            None => layers.unknown(&setting.key, &origin),
        }
    }
    layers.finish()
}

static DEFAULTS: LazyLock<Table> =
    LazyLock::new(|| Table::try_from(Tuning::default()).expect("the defaults are plain data and serialise"));

#[derive(Default)]
struct Layers {
    values: BTreeMap<&'static str, (Value, Origin)>,
    problems: Vec<String>,
}

impl Layers {
    fn add_file(&mut self, path: &str, text: &str) {
        let origin = Origin::File(path.to_owned());
        let document = match text.parse::<Table>() {
            Ok(document) => document,
            Err(error) => {
                let told = error.to_string();
                self.problems.push(format!("{path} is not valid TOML: {}", told.trim_end()));
                return;
            }
        };
        for (section, content) in document {
            match content {
                Value::Table(settings) => {
                    for (name, value) in settings {
                        let key = format!("{section}.{name}");
                        match knob(&key) {
                            Some(knob) => self.set(knob, value, origin.clone()),
                            None => self.unknown(&key, &origin),
                        }
                    }
                }
                // A setting above the first section header has no section; the full name is offered.
                _ => self.unknown(&section, &origin),
            }
        }
    }

    fn add_environment(&mut self, environment: &[(String, String)]) {
        for (variable, text) in environment {
            let Some(rest) = variable.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
            // Without the double underscore it is somebody else's: service managers set names such as STRAND_PORT.
            let Some((section, name)) = rest.split_once("__") else { continue };
            let key = format!("{}.{}", section.to_ascii_lowercase(), name.to_ascii_lowercase());
            let origin = Origin::Environment(variable.clone());
            match knob(&key) {
                Some(knob) => self.set(knob, knob.range.value_of_text(text), origin),
                None => self.unknown(&key, &origin),
            }
        }
    }

    fn set(&mut self, knob: &'static Knob, value: Value, origin: Origin) {
        if knob.range.check(&value) {
            self.values.insert(knob.key, (value, origin));
        } else {
            self.problems.push(format!(
                "{} = {} ({origin}) is not allowed. Allowed: {} (unit: {}).",
                knob.key,
                shown(&value),
                knob.range,
                knob.unit
            ));
        }
    }

    fn unknown(&mut self, key: &str, origin: &Origin) {
        let hint = match hint(key) {
            Some(known) => format!("did you mean {known}?"),
            None => "`strand config --documented` lists them all.".to_owned(),
        };
        self.problems.push(format!("{key} ({origin}) is no setting: {hint}"));
    }

    fn finish(mut self) -> Result<Configured, Problems> {
        let mut document = DEFAULTS.clone();
        let mut origins = BTreeMap::new();
        for knob in KNOBS {
            let Some((value, origin)) = self.values.remove(knob.key) else {
                origins.insert(knob.key, Origin::Default);
                continue;
            };
            let section = document.get_mut(knob.section).and_then(Value::as_table_mut);
            section.expect("every section is in the defaults").insert(knob.name.to_owned(), value);
            origins.insert(knob.key, origin);
        }
        // Each value was checked against its range, so what fails here is a hole in the table of knobs: told, not hidden.
        let tuning: Tuning = match Value::Table(document).try_into() {
            Ok(tuning) => tuning,
            Err(error) => {
                self.problems.push(format!("the configuration cannot be read: {error}"));
                return Err(Problems(self.problems));
            }
        };
        relations::check(&tuning, &origins, &mut self.problems);
        if self.problems.is_empty() {
            Ok(Configured { tuning, origins })
        } else {
            Err(Problems(self.problems))
        }
    }
}

/// The known key that an unknown one was probably meant to be.
fn hint(key: &str) -> Option<&'static str> {
    let name = key.rsplit_once('.').map_or(key, |(_, name)| name);
    let same_name = || KNOBS.iter().find(|knob| knob.name == name).map(|knob| knob.key);
    let close_name = || {
        let section = key.split_once('.')?.0;
        let in_section = || KNOBS.iter().filter(|knob| knob.section == section);
        let best = nearest(name, alike(name, in_section().map(|knob| knob.name)))?;
        in_section().find(|knob| knob.name == best).map(|knob| knob.key)
    };
    let section = || SECTIONS.iter().find(|section| section.name == key).map(|section| section.name);
    section()
        .or_else(same_name)
        .or_else(close_name)
        .or_else(|| nearest(key, alike(key, KNOBS.iter().map(|knob| knob.key))))
}

/// The candidates of about the same length: no other can be near.
fn alike<'n>(name: &str, candidates: impl Iterator<Item = &'n str>) -> impl Iterator<Item = &'n str> {
    let length = name.len();
    candidates.filter(move |other| length.abs_diff(other.len()) <= (length.max(other.len()) / 3).max(1))
}

/// A value as it is repeated in a message: on one line and not endless.
fn shown(value: &Value) -> String {
    const CHARS_MAX: usize = 100;
    let text = value.to_string().replace(['\n', '\r'], " ");
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(key: &str, text: &str) -> FlagSetting {
        FlagSetting { key: key.to_owned(), text: text.to_owned(), flag: format!("--set {key}") }
    }

    fn file(text: &str) -> Sources {
        Sources { file: Some(("a.toml".to_owned(), text.to_owned())), ..Sources::default() }
    }

    /// The one problem of these sources.
    fn problem(sources: &Sources) -> String {
        let Problems(mut problems) = load(sources).expect_err("the sources have a problem");
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.remove(0)
    }

    #[test]
    fn nothing_set_gives_the_defaults() {
        let configured = load(&Sources::default()).unwrap();
        assert_eq!(configured.tuning, Tuning::default());
        assert_eq!(configured.origins.len(), KNOBS.len());
        assert!(configured.origins.values().all(|origin| *origin == Origin::Default));
    }

    #[test]
    fn flags_win_over_environment_over_file() {
        let mut sources = file("[server]\nport = 1\nid = \"file\"\n[log]\nlevel = \"debug\"");
        sources.environment = vec![
            ("STRAND_SERVER__PORT".into(), "2".into()),
            ("STRAND_SERVER__ID".into(), "environment".into()),
            ("STRAND_SERVICE_HOST".into(), "ignored".into()),
            ("OTHER__THING".into(), "ignored".into()),
        ];
        sources.flags = vec![flag("server.port", "3"), flag("server.port", "4")];
        let Configured { tuning, origins } = load(&sources).unwrap();
        assert_eq!((tuning.server.port, tuning.server.id.as_str()), (4, "environment"));
        assert_eq!(tuning.log.level, super::super::LogLevel::Debug);
        assert_eq!(origins["server.port"], Origin::Flag("--set server.port".to_owned()));
        assert_eq!(origins["server.id"], Origin::Environment("STRAND_SERVER__ID".to_owned()));
        assert_eq!(origins["log.level"], Origin::File("a.toml".to_owned()));
        assert_eq!(origins["server.host"], Origin::Default);
    }

    #[test]
    fn a_problem_names_key_value_range_and_origin() {
        let told = problem(&file("[wal]\nsync = \"sometimes\""));
        for part in ["wal.sync", "\"sometimes\"", "interval:MS", "file a.toml"] {
            assert!(told.contains(part), "{part} is missing in: {told}");
        }
        let sources = Sources { flags: vec![flag("server.port", "70000")], ..Sources::default() };
        let told = problem(&sources);
        for part in ["server.port", "70000", "1 to 65535", "flag --set server.port"] {
            assert!(told.contains(part), "{part} is missing in: {told}");
        }
    }

    #[test]
    fn unknown_keys_come_with_the_nearest_name() {
        for (text, hint) in [
            ("[server]\nprot = 1", "did you mean server.port?"),
            ("[sever]\nport = 1", "did you mean server.port?"),
            ("segment_mib = 1", "did you mean wal.segment_mib?"),
            ("[wal]\nport = 1", "did you mean server.port?"),
            ("[wal]\nzzzzzzzzzz = 1", "`strand config --documented` lists them all."),
        ] {
            let told = problem(&file(text));
            assert!(told.contains(hint), "{text:?} gave: {told}");
        }
    }

    #[test]
    fn all_problems_are_told_at_once_and_none_is_fatal_to_the_reader() {
        let mut sources = file("[server]\nport = 0\nhots = 1");
        sources.environment = vec![("STRAND_WAL__SYNC".into(), "x".repeat(10_000))];
        let Problems(problems) = load(&sources).expect_err("three problems");
        assert_eq!(problems.len(), 3);
        assert!(problems.iter().all(|problem| problem.len() < 400));
        assert!(problem(&file("[server\nport")).contains("is not valid TOML"));
    }
}
