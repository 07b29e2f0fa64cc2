//! The flags of `strand bench`, checked and filled with each workload's own defaults.

use super::random::YCSB_THETA;
use crate::fatal::Fatal;
use clap::ValueEnum;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Workloads:
  speed        writes, then reads, one request at a time on many connections
  pipeline     writes, 64 deep on each connection
  throughput   BULK_SET (Redis: MSET), many keys a request
  mixed        reads and writes, 16 deep; --read-ratio says how many read
  durability   writes to a server of its own, kill -9, restart: is all that was acknowledged there?
  search       loads a text file, a document a line, and searches for its words; needs --text
  ycsb-a..f    YCSB's core workloads with zipfian keys: a half reads, b 95% reads, c reads only, d reads of the
               newest, e ranges in order (by a value index), f read-modify-write

Examples:
  strand bench                                        speed, against 127.0.0.1:8000
  strand bench pipeline --connections 50 --depth 64   the most that a server takes
  strand bench mixed --rate 20000                     latency at a steady load (open loop)
  strand bench mixed --protocol resp --address 127.0.0.1:6379     the same load on Redis
  strand bench --address 127.0.0.1:8000,127.0.0.1:8001,127.0.0.1:8002    connections spread over a cluster
  strand bench speed --plot speed.html                with pictures
  strand bench mixed --shard-aware                    each request to its shard's own port (router.mode=inline)
  strand bench mixed --server-pid $(pgrep -x strand)  and the server's CPU time a request
  strand bench durability                             starts and kills servers of its own
  strand bench search --text articles.txt

Closed loop (the default): every connection keeps --depth requests under way, so a slow server is asked less.
Open loop (--rate): requests are due at fixed times and latency counts from then, so a stall is charged to every
request that it delayed. Compare latencies with --rate, capacity without.";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Workload {
    Speed,
    Pipeline,
    Throughput,
    Mixed,
    Durability,
    Search,
    YcsbA,
    YcsbB,
    YcsbC,
    YcsbD,
    YcsbE,
    YcsbF,
}

impl Workload {
    /// Whether every request of it is on one key and no more.
    fn is_single_keys(self) -> bool {
        !matches!(self, Workload::Throughput | Workload::Durability | Workload::Search | Workload::YcsbE)
    }
}

/// Which protocol the server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Protocol {
    /// Strand's JSON lines
    Json,
    /// Redis's protocol
    Resp,
    /// etcd's: gRPC on HTTP/2
    Etcd,
}

/// How keys are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Distribution {
    /// Each equally often
    Uniform,
    /// Few keys very often
    Zipfian,
}

/// What a write asks of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Durability {
    /// Whatever the server's setting is
    Default,
    /// Answer only after the sync
    Fsync,
    /// Need not wait for the sync
    Memory,
}

/// Flags of `strand bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// What to measure
    #[arg(value_enum, default_value = "speed", hide_possible_values = true)]
    pub(super) workload: Workload,
    /// The server, or several of one cluster with commas between: connections take turns among them
    #[arg(short, long, value_name = "HOST:PORT,...", default_value = "127.0.0.1:8000")]
    pub(super) address: String,
    /// The server's protocol
    #[arg(long, value_enum, default_value = "json")]
    pub(super) protocol: Protocol,
    /// Talk to each shard at its own port (Strand with router.mode = "inline"); --connections is over all shards
    #[arg(long)]
    pub(super) shard_aware: bool,
    /// Connections [default: 50; throughput 8, search 4, durability 8]
    #[arg(short, long, value_name = "N")]
    pub(super) connections: Option<usize>,
    /// Requests under way on each connection [default: 1; pipeline 64, mixed, ycsb and durability 16, throughput 4]
    #[arg(short = 'p', long, value_name = "N")]
    pub(super) depth: Option<usize>,
    /// Requests a second over all connections: open loop, latency counts from the time a request was due
    #[arg(long, value_name = "PER_SECOND")]
    pub(super) rate: Option<f64>,
    /// Seconds to measure in each phase
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10.0)]
    pub(super) duration: f64,
    /// Seconds of load before each measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub(super) warm_up: f64,
    /// Threads that make the load; more only if one is the bottleneck
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    pub(super) threads: usize,
    /// Number of keys
    #[arg(short, long, value_name = "N", default_value_t = 100_000)]
    pub(super) keys: u64,
    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    pub(super) value_bytes: usize,
    /// How keys are drawn [default: uniform; ycsb zipfian]
    #[arg(long, value_enum)]
    pub(super) distribution: Option<Distribution>,
    /// Skew of zipfian keys, below 1
    #[arg(long, value_name = "THETA", default_value_t = YCSB_THETA)]
    pub(super) theta: f64,
    /// Share of reads in mixed, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    pub(super) read_ratio: f64,
    /// Keys of one bulk write
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(super) batch: usize,
    /// What each write asks for (Strand only)
    #[arg(long, value_enum, default_value = "default")]
    pub(super) durability: Durability,
    /// A text file for search, one document a line
    #[arg(long, value_name = "FILE")]
    pub(super) text: Option<PathBuf>,
    /// Results of a search
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(super) top_k: usize,
    /// Do not write all keys first
    #[arg(long)]
    pub(super) no_load: bool,
    /// The same seed gives the same requests
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) seed: u64,
    /// Processes of the server or the cluster, on this machine: adds their CPU time a request, for each thread
    #[arg(long, value_name = "PID,...", value_delimiter = ',')]
    pub(super) server_pid: Vec<u32>,
    /// Rounds of kill and restart in durability
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(super) rounds: u32,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(super) json: bool,
    /// Write a page with the throughput over time and the latency distribution
    #[arg(long, value_name = "FILE.html")]
    pub(super) plot: Option<PathBuf>,
}

/// Bounds that keep a slip of the finger from taking the machine down.
const CONNECTIONS_MAX: usize = 20_000;
const IN_FLIGHT_MAX: usize = 4_000_000;
const VALUE_BYTES_MAX: usize = 8 << 20;

impl Arguments {
    /// Connections, by flag or workload.
    pub(super) fn connections(&self) -> usize {
        self.connections.unwrap_or(match self.workload {
            Workload::Throughput | Workload::Durability => 8,
            Workload::Search => 4,
            _ => 50,
        })
    }

    /// Requests under way on a connection, by flag or workload.
    pub(super) fn depth(&self) -> usize {
        self.depth.unwrap_or(match self.workload {
            Workload::Speed | Workload::Search => 1,
            Workload::Pipeline => 64,
            Workload::Throughput => 4,
            // An open loop needs room for what a stall holds up.
            _ if self.rate.is_some() => 256,
            _ => 16,
        })
    }

    /// How keys are drawn, by flag or workload.
    pub(super) fn distribution(&self) -> Distribution {
        use Workload::{YcsbA, YcsbB, YcsbC, YcsbD, YcsbE, YcsbF};
        self.distribution.unwrap_or(match self.workload {
            YcsbA | YcsbB | YcsbC | YcsbD | YcsbE | YcsbF => Distribution::Zipfian,
            _ => Distribution::Uniform,
        })
    }

    /// The first address that each name stands for; at least one.
    ///
    /// # Errors
    /// When one stands for none.
    pub(super) fn resolve(&self) -> Result<Vec<SocketAddr>, Fatal> {
        let resolve = |address: &str| {
            let told = |why: String| {
                Fatal::Configuration(format!(
                    "--address {address} {why}. Give it as HOST:PORT, such as 127.0.0.1:8000."
                ))
            };
            let mut found =
                address.to_socket_addrs().map_err(|error| told(format!("cannot be used: {error}")))?;
            found.next().ok_or_else(|| told("names no address".to_owned()))
        };
        self.address.split(',').map(resolve).collect()
    }

    /// Refuses what cannot be measured, each with what to do.
    ///
    /// # Errors
    /// [`Fatal::Configuration`] with the first problem.
    pub(super) fn check(&self) -> Result<(), Fatal> {
        let problem = self.problem();
        problem.map_or(Ok(()), |told| Err(Fatal::Configuration(told)))
    }

    fn problem(&self) -> Option<String> {
        let (connections, depth) = (self.connections(), self.depth());
        let resp = self.protocol == Protocol::Resp;
        let rules: [(bool, String); 15] = [
            (
                (1..=CONNECTIONS_MAX).contains(&connections),
                format!("--connections must be 1 to {CONNECTIONS_MAX}, not {connections}."),
            ),
            (
                depth >= 1 && depth.saturating_mul(connections) <= IN_FLIGHT_MAX,
                format!("--depth times --connections must be 1 to {IN_FLIGHT_MAX}."),
            ),
            (
                (1..=connections).contains(&self.threads) && self.threads <= 64,
                format!("--threads must be 1 to 64 and at most one for each of the {connections} connections."),
            ),
            (
                self.duration > 0.0 && self.duration <= 86_400.0,
                "--duration must be above 0 and at most a day (86400).".to_owned(),
            ),
            ((0.0..=3600.0).contains(&self.warm_up), "--warm-up must be 0 to 3600 seconds.".to_owned()),
            (
                self.rate.is_none_or(|rate| rate > 0.0 && rate <= 1e8),
                "--rate must be above 0 requests a second.".to_owned(),
            ),
            (
                (1..=1_000_000_000).contains(&self.keys),
                "--keys must be 1 to 1000000000.".to_owned(),
            ),
            (
                (1..=VALUE_BYTES_MAX).contains(&self.value_bytes),
                format!("--value-bytes must be 1 to {VALUE_BYTES_MAX}."),
            ),
            (
                (0.0..=1.0).contains(&self.read_ratio),
                "--read-ratio is a share from 0 (only writes) to 1 (only reads).".to_owned(),
            ),
            (self.theta > 0.0 && self.theta < 1.0, "--theta must be between 0 and 1, such as 0.99.".to_owned()),
            (
                self.batch >= 1 && self.batch as u64 <= self.keys.min(100_000),
                "--batch must be 1 to 100000 and at most --keys.".to_owned(),
            ),
            (
                self.workload != Workload::Search || self.text.is_some(),
                "search needs --text FILE: a text file, one document a line. Any will do: the log of a project, a dump \
                 of articles, a book."
                    .to_owned(),
            ),
            (
                !self.shard_aware || (!resp && self.workload != Workload::Durability),
                "--shard-aware needs a Strand that runs already: leave it out with --protocol resp and with durability."
                    .to_owned(),
            ),
            (
                !resp || !matches!(self.workload, Workload::Search | Workload::YcsbE),
                "Redis's strings have neither search nor ranges in order: this workload needs --protocol json.".to_owned(),
            ),
            (
                self.protocol != Protocol::Etcd || self.workload.is_single_keys(),
                "etcd is asked to read and write single keys: speed, pipeline, mixed and ycsb-a to d and f.".to_owned(),
            ),
        ];
        let broken = rules.into_iter().find(|(holds, _)| !holds);
        let broken = broken.map(|(_, told)| told);
        broken.or_else(|| {
            let asked = self.protocol != Protocol::Json && self.durability != Durability::Default;
            asked.then(|| {
                "Only Strand has durability by request: configure the server (Redis: appendfsync) and leave --durability \
                 out."
                    .to_owned()
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(line: &str) -> Arguments {
        Line::try_parse_from(format!("bench {line}").split_whitespace()).unwrap().arguments
    }

    fn check(line: &str, problem: Option<&str>) {
        let told = parse(line).problem();
        match problem {
            None => assert_eq!(told, None, "{line}"),
            Some(part) => assert!(told.as_deref().unwrap_or_default().contains(part), "{line}: {told:?}"),
        }
    }

    #[test]
    fn slips_are_told() {
        check("", None);
        check("ycsb-e --keys 10 --batch 5", None);
        check("--connections 0", Some("--connections"));
        check("--connections 4 --threads 5", Some("--threads"));
        check("--connections 1000 --depth 100000", Some("--depth"));
        check("--rate 0", Some("--rate"));
        check("mixed --read-ratio 95", Some("share"));
        check("--keys 10", Some("--batch"));
        check("search", Some("--text"));
        check("ycsb-e --protocol resp", Some("json"));
        check("--protocol resp --durability fsync", Some("appendfsync"));
        check("mixed --shard-aware", None);
        check("--shard-aware --protocol resp", Some("--shard-aware"));
        check("durability --shard-aware", Some("--shard-aware"));
        check("mixed --protocol etcd", None);
        check("throughput --protocol etcd", Some("single keys"));
        check("mixed --protocol etcd --durability fsync", Some("durability"));
    }

    #[test]
    fn workloads_have_defaults_of_their_own() {
        assert_eq!((parse("").connections(), parse("").depth()), (50, 1));
        assert_eq!(parse("pipeline").depth(), 64);
        assert_eq!(parse("pipeline --depth 3").depth(), 3);
        assert_eq!(parse("ycsb-a").distribution(), Distribution::Zipfian);
        assert!(parse("--address nowhere").resolve().is_err());
        assert!(parse("--address 127.0.0.1:1,nowhere").resolve().is_err());
        let ports = |line| parse(line).resolve().unwrap().iter().map(SocketAddr::port).collect::<Vec<_>>();
        assert_eq!(ports(""), [8000]);
        assert_eq!(ports("--address 127.0.0.1:1,127.0.0.1:2"), [1, 2]);
        assert_eq!(parse("--server-pid 7,8").server_pid, [7, 8]);
    }
}
