//! The configuration: file, environment and flags, as text. What is taken can be written out and read again.
//!
//! A zero byte ends the file; lines behind it are `NAME=VALUE` of the environment, those behind a second one flags.

use super::{Target, words_of};
use crate::engine::{behaviour, class_of};
use crate::tuning::knobs::KNOBS;
use crate::tuning::layers::{FlagSetting, Sources, load};
use crate::tuning::{peers, reference};

/// See the module's head.
pub(super) struct Config;

impl Config {
    /// The target.
    pub(super) fn new() -> Self {
        Self
    }
}

const PROFILES: [&str; 2] = [
    include_str!("../../../../tuning/throughput.toml"),
    "[server]\nid = \"n1\"\nport = 8000\n[wal]\nsync = \"interval:20\"\n[memory]\nmax_mib = 512\n",
];

fn pairs(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter_map(|line| line.split_once('='));
    lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

impl Target for Config {
    fn seeds(&self) -> Vec<Vec<u8>> {
        let mut seeds: Vec<Vec<u8>> = PROFILES.iter().map(|text| text.as_bytes().to_vec()).collect();
        seeds.push(b"\0STRAND_SERVER__PORT=7000\nSTRAND_CORES__ALLOWED=0-1,3\0server.port=1".to_vec());
        seeds.push(b"\0\0cluster.peers=n2@[::1]:8001:9001,h:1\nwal.sync=off\nlog.level=debug".to_vec());
        seeds
    }

    fn words(&self) -> Vec<Vec<u8>> {
        let mut words = words_of(&[
            "[server]\n",
            "[wal]\n",
            " = ",
            "true",
            "false",
            "\"\"",
            "''",
            "\"\"\"",
            "[]",
            "{}",
            "[[a]]",
            "1_000",
            "0x10",
            "1e3",
            "nan",
            "inf",
            "-1",
            "1979-05-27",
            "interval:0",
            "interval:",
            "always",
            "off",
            "STRAND_",
            "__",
            "0-3",
            "0-",
            "3-0",
            "auto",
            "#",
            "\\u0000",
            "\n",
            "=",
            "node2:6380:7380",
            "@",
            "[::1]",
            ":",
            ",",
            "65536",
        ]);
        words.extend(KNOBS.iter().map(|knob| format!("{} = ", knob.name).into_bytes()));
        words.extend(KNOBS.iter().map(|knob| format!("\0\0{}=", knob.key).into_bytes()));
        words
    }

    fn bytes_max(&self) -> usize {
        2400
    }

    fn bytes_usual(&self) -> usize {
        200
    }

    fn run(&mut self, input: &[u8]) -> u64 {
        let text = String::from_utf8_lossy(input);
        let mut parts = text.splitn(3, '\0');
        let file = parts.next().unwrap_or_default();
        let environment = parts.next().map(pairs).unwrap_or_default();
        let flags = parts.next().map(pairs).unwrap_or_default().into_iter();
        let flags = flags.map(|(key, text)| FlagSetting { flag: format!("--{key}"), key, text }).collect();
        let file = (!file.is_empty()).then(|| ("file.toml".to_owned(), file.to_owned()));
        let peer = peers::parse(text.get(..text.len().min(80)).unwrap_or_default());
        let sources = Sources { file, environment, flags };
        match load(&sources) {
            Ok(configured) => {
                assert_eq!(configured.origins.len(), KNOBS.len(), "every value has an origin");
                let written = reference::effective(&configured.tuning, None);
                let again = Sources { file: Some(("again.toml".to_owned(), written)), ..Sources::default() };
                let again =
                    load(&again).unwrap_or_else(|problems| panic!("written and not read: {problems}"));
                assert_eq!(again.tuning, configured.tuning, "written, and read as another");
                behaviour(&[1, class_of(sources.environment.len()), u64::from(peer.is_ok())])
            }
            Err(problems) => {
                assert!(!problems.0.is_empty() && problems.0.iter().all(|told| !told.is_empty()));
                let first = problems.0[0].bytes().filter(u8::is_ascii_alphabetic).take(40).map(u64::from);
                let count = class_of(problems.0.len());
                behaviour(&[count, u64::from(peer.is_ok())].into_iter().chain(first).collect::<Vec<_>>())
            }
        }
    }
}
