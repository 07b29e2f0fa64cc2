//! The flags that configure a server, the same for every subcommand that needs a configuration.
//!
//! A named flag is a short name for one setting; `--set` reaches all of them. Reads the file and the environment and hands
//! them to the layers, which do the checking.

use crate::fatal::Fatal;
use crate::tuning::layers::{self, Configured, ENVIRONMENT_PREFIX, FlagSetting, Sources};
use std::path::PathBuf;

/// Flags that configure a server.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Configuration")]
pub struct ConfigurationFlags {
    /// A TOML file with settings, such as tuning/throughput.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of this node [default: node1]
    #[arg(long, visible_alias = "node-id", value_name = "NAME")]
    id: Option<String>,
    /// Address for clients [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// Port for clients [default: 8000]
    #[arg(short, long, value_name = "PORT")]
    port: Option<String>,
    /// Directory of log and snapshots [default: data/ID]
    #[arg(short, long, value_name = "DIRECTORY")]
    data_dir: Option<String>,
    /// Number of shards of a new data directory [default: one for each core]
    #[arg(long, value_name = "N")]
    shards: Option<String>,
    /// Cores that may be used, such as 0-3,6 [default: all]
    #[arg(long, value_name = "CORES")]
    cores: Option<String>,
    /// Allow an address that other machines reach, although the server asks nobody for a password
    #[arg(long)]
    insecure: bool,
    /// When a write is acknowledged: always (after its sync), interval:MS, off (a cache)
    #[arg(long, value_name = "RULE")]
    wal_sync: Option<String>,
    /// Most memory for data in MiB, 0 for no bound [default: 0]
    #[arg(long, value_name = "MIB")]
    memory_max_mib: Option<String>,
    /// Log lines: auto, text or json [default: auto]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Least important log lines: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// The other nodes: [ID@]HOST:PORT[:CLUSTER_PORT] or ID:PORT:CLUSTER_PORT, separated by commas
    #[arg(long, value_name = "PEERS")]
    peers: Vec<String>,
    /// Port for the other nodes [default: the client port + 1000]
    #[arg(long, value_name = "PORT")]
    cluster_port: Option<String>,
    /// Host that clients and other nodes are told to use for this node [default: the one that they see]
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// Prefer this node as leader at first start
    #[arg(long)]
    primary: bool,
    /// Any setting, such as wal.segment_mib=128; may be repeated (`strand config --documented` lists them)
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigurationFlags {
    /// The checked configuration of these flags, the environment and the file.
    ///
    /// # Errors
    /// [`Fatal::Configuration`] with every problem.
    pub fn load(&self) -> Result<Configured, Fatal> {
        let sources = Sources { file: self.file()?, environment: environment(), flags: self.settings()? };
        layers::load(&sources).map_err(|problems| Fatal::Configuration(problems.to_string()))
    }

    fn file(&self) -> Result<Option<(String, String)>, Fatal> {
        let Some(path) = &self.config else { return Ok(None) };
        let shown = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some((shown, text))),
            Err(error) => {
                Err(Fatal::Configuration(format!("The configuration file {shown} cannot be read: {error}.")))
            }
        }
    }

    /// What the flags set, `--set` first: a named flag is the more deliberate one.
    fn settings(&self) -> Result<Vec<FlagSetting>, Fatal> {
        let mut settings = Vec::new();
        for pair in &self.set {
            let Some((key, text)) = pair.split_once('=') else {
                let told = format!("--set {pair} has no value: write --set section.key=value.");
                return Err(Fatal::Configuration(told));
            };
            let key = key.trim().to_owned();
            settings.push(FlagSetting { flag: format!("--set {key}"), key, text: text.to_owned() });
        }
        let peers = (!self.peers.is_empty()).then(|| self.peers.join(","));
        let switch = |on: bool| on.then(|| "true".to_owned());
        for (key, flag, text) in [
            ("server.id", "--id", self.id.clone()),
            ("server.host", "--host", self.host.clone()),
            ("server.port", "--port", self.port.clone()),
            ("server.data_dir", "--data-dir", self.data_dir.clone()),
            ("server.shards", "--shards", self.shards.clone()),
            ("server.insecure", "--insecure", switch(self.insecure)),
            ("cores.allowed", "--cores", self.cores.clone()),
            ("wal.sync", "--wal-sync", self.wal_sync.clone()),
            ("memory.max_mib", "--memory-max-mib", self.memory_max_mib.clone()),
            ("log.format", "--log-format", self.log_format.clone()),
            ("log.level", "--log-level", self.log_level.clone()),
            ("cluster.peers", "--peers", peers),
            ("cluster.port", "--cluster-port", self.cluster_port.clone()),
            ("cluster.advertise", "--advertise", self.advertise.clone()),
            ("cluster.primary", "--primary", switch(self.primary)),
        ] {
            if let Some(text) = text {
                settings.push(FlagSetting { key: key.to_owned(), text, flag: flag.to_owned() });
            }
        }
        Ok(settings)
    }
}

/// The variables of the process that may be settings. One that is not UTF-8 is kept readable, so that it is refused by name.
fn environment() -> Vec<(String, String)> {
    let readable = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    let all = std::env::vars_os().map(|(name, value)| (readable(name), readable(value)));
    let mut ours: Vec<_> = all.filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX)).collect();
    ours.sort();
    ours
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuning::knobs::knob;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Holder {
        #[command(flatten)]
        flags: ConfigurationFlags,
    }

    fn settings(line: &str) -> Vec<(String, String)> {
        let holder = Holder::try_parse_from(std::iter::once("test").chain(line.split_whitespace())).unwrap();
        holder.flags.settings().unwrap().into_iter().map(|setting| (setting.key, setting.text)).collect()
    }

    #[test]
    fn every_named_flag_is_a_known_setting() {
        let line = "--id a --host h --port 1 --data-dir d --shards 1 --cores 0 --insecure --wal-sync off \
                    --memory-max-mib 1 --log-format text --log-level info --peers p:1 --cluster-port 2 --advertise h --primary";
        let settings = settings(line);
        assert_eq!(settings.len(), 15);
        for (key, _) in settings {
            assert!(knob(&key).is_some(), "{key}");
        }
    }

    #[test]
    fn names_of_the_protocol_page_are_accepted() {
        assert_eq!(settings("--node-id n1"), [("server.id".to_owned(), "n1".to_owned())]);
        let peers = settings("--peers a:1,b:2 --peers c:3");
        assert_eq!(peers, [("cluster.peers".to_owned(), "a:1,b:2,c:3".to_owned())]);
        let set = settings("--set wal.sync=interval:5 --port 9");
        assert_eq!(set[0], ("wal.sync".to_owned(), "interval:5".to_owned()));
        assert_eq!(set[1].0, "server.port");
    }
}
