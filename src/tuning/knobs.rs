//! The table of knobs: every section and setting of the server, each stated once with type, default, unit, range and reason.
//!
//! The structs that the program reads, the checks, `tuning/default.toml` and the list in `tuning/README.md` all come from this
//! table, so they cannot differ. A knob is added here and nowhere else. Never reads files, flags or the environment.

use super::kinds::{CoreSet, LogFormat, LogLevel, RouterMode, WalSync};
use super::range::Range;
use serde::{Deserialize, Serialize};

/// One setting as it is documented and checked.
#[derive(Clone, Copy, Debug)]
pub struct Knob {
    /// Section and name, such as `wal.segment_mib`.
    pub key: &'static str,
    /// The table in TOML.
    pub section: &'static str,
    /// The name inside the section.
    pub name: &'static str,
    /// What the number counts.
    pub unit: &'static str,
    /// The values allowed.
    pub range: Range,
    /// What it does and why it has this default.
    pub why: &'static str,
}

/// One section as it is documented.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// The table in TOML.
    pub name: &'static str,
    /// What the section is about.
    pub about: &'static str,
}

const fn integer(min: u64, max: u64) -> Range {
    Range::Integer { min, max }
}

const fn power_of_two(min: u64, max: u64) -> Range {
    Range::PowerOfTwo { min, max }
}

macro_rules! sections {
    ($(
        $(#[doc = $about:literal])+
        $section:ident: $Struct:ident {
            $(
                $(#[doc = $why:literal])+
                $name:ident: $kind:ty = $default:expr, $unit:literal, $range:expr;
            )+
        }
    )+) => {
        /// Every setting of a server, checked: what the rest of the program may rely on.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Tuning {
            $( $(#[doc = $about])+ pub $section: $Struct, )+
        }

        $(
            $(#[doc = $about])+
            #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
            #[serde(deny_unknown_fields)]
            pub struct $Struct {
                $(
                    $(#[doc = $why])+
                    #[doc = concat!("\n\nUnit: ", $unit, ".")]
                    pub $name: $kind,
                )+
            }

            impl Default for $Struct {
                fn default() -> Self {
                    Self { $( $name: $default, )+ }
                }
            }
        )+

        /// The sections, in the order in which they are printed.
        pub const SECTIONS: &[Section] = &[
            $( Section { name: stringify!($section), about: concat!($($about),+) }, )+
        ];

        /// The knobs, grouped by section, in the order in which they are printed.
        pub const KNOBS: &[Knob] = &[
            $( $(
                Knob {
                    key: concat!(stringify!($section), ".", stringify!($name)),
                    section: stringify!($section),
                    name: stringify!($name),
                    unit: $unit,
                    range: $range,
                    why: concat!($($why),+),
                },
            )+ )+
        ];
    };
}

sections! {
    /// Who the server is and where it listens.
    server: Server {
        /// Address that clients connect to. Loopback by default, because there is no authentication; another address
        /// needs `server.insecure`.
        host: String = "127.0.0.1".to_owned(), "address or host name", Range::Text(255);
        /// TCP port for clients.
        port: u16 = 8000, "port", integer(1, 65_535);
        /// Name of this node: in logs, in INFO, and in a cluster.
        id: String = "node1".to_owned(), "name", Range::Text(64);
        /// Directory of the log and the snapshots; empty means `data/ID`. One server at a time holds it.
        data_dir: String = String::new(), "path", Range::Text(4096);
        /// Shards of a new data directory; 0 means one for each core that may be used. Fixed when the directory is made: an
        /// existing directory keeps its number, and its shards are dealt onto the cores that there are.
        shards: u32 = 0, "shards", integer(0, 256);
        /// Allows an address other than loopback although anybody who reaches it may read and write everything.
        insecure: bool = false, "switch", Range::Switch;
    }

    /// The other nodes, for a cluster.
    cluster: Cluster {
        /// The other nodes at a first start: `[ID@]HOST:PORT[:CLUSTER_PORT]` or `ID:PORT:CLUSTER_PORT` each. A later start finds
        /// them in the data directory.
        peers: Vec<String> = Vec::new(), "list of peers", Range::Texts(63);
        /// TCP port for the other nodes; 0 means `server.port` + 1000. Without peers it makes a node that others can be added
        /// to.
        port: u16 = 0, "port", integer(0, 65_535);
        /// Host that clients and other nodes are told to use for this node, where the one that they see is not the right one, as
        /// behind address translation; empty means the one under which it was named or seen. It may change at any start.
        advertise: String = String::new(), "address or host name", Range::Text(255);
        /// Prefers this node as leader of every group at first start. Needs peers or a cluster port.
        primary: bool = false, "switch", Range::Switch;
        /// Copies of each group, on as many nodes; all founders must say the same. Three bear the loss of one node, five of two.
        replicas: u16 = 3, "copies", integer(1, 9);
        /// Most that one shard pulls a second when it needs another node's snapshot, so that a joining node does not take the
        /// network and the disk from requests; 0 means no limit.
        snapshot_mib_per_s_max: u32 = 64, "MiB a second", integer(0, 100_000);
        /// Log that the leader of each shard keeps in memory for followers that lack it, four times as much while one of them is
        /// filled from a snapshot; replicas that follow keep an eighth. A follower that was away for longer gets a snapshot. It is
        /// needed only while a follower is behind, and comes on top of `memory.max_mib`.
        catch_up_mib: u32 = 128, "MiB", integer(1, 65_536);
    }

    /// Which core runs what.
    cores: Cores {
        /// The cores that may be used, out of those that the system (taskset, a container's cpuset) gives to the process.
        allowed: CoreSet = CoreSet::ALL, "core numbers", Range::CoresOrAll;
        /// The core of each shard, one entry a shard; empty means dealt in turn, the routers' cores last.
        shard: Vec<u32> = Vec::new(), "core numbers", Range::Cores;
        /// The core of each router thread, one entry a thread; empty means the first cores allowed, where network interrupts
        /// commonly arrive too.
        router: Vec<u32> = Vec::new(), "core numbers", Range::Cores;
        /// Pins each thread to its core, so that its caches stay warm and its timings steady. Turn off only on a machine
        /// shared with other work, where a pinned thread would queue behind it.
        pin: bool = true, "switch", Range::Switch;
    }

    /// The threads that hold the client connections.
    router: Router {
        /// Which threads those are. `thread`: `router.threads` of their own, so that parsing and the shards' work overlap.
        /// `inline`: each shard's thread serves clients itself, on the common port and on a port of the shard's own, so
        /// that requests for its own keys cross no thread and there is no router to be the bottleneck. Best with clients
        /// that know the shards (HELLO tells them), with one shard, or where every core has a shard. The knobs below hold
        /// for each thread that serves clients.
        mode: RouterMode = RouterMode::Thread, "word", Range::Word(&["thread", "inline"]);
        /// First of the shards' own ports with `router.mode = "inline"`: shard N listens on this plus N. 0 means that the
        /// system chooses, which serves clients as well, since HELLO tells them; firewalls want to know beforehand.
        shard_port: u16 = 0, "port", integer(0, 65_535);
        /// Router threads, with `router.mode = "thread"`. One serves about four million pipelined requests a second; add one when it is busy all the time
        /// and the shards are not.
        threads: u32 = 1, "threads", integer(1, 16);
        /// Entries of a router's io_uring. A turn that needs more submits twice.
        ring_entries: u32 = 1024, "entries", power_of_two(64, 32_768);
        /// Receive buffers that the kernel fills, shared by all connections of a router. When they run out, receiving waits a
        /// turn.
        recv_buffers: u32 = 512, "buffers", power_of_two(16, 32_768);
        /// Size of one receive buffer. 16 KiB holds more than a hundred pipelined requests of 100 bytes.
        recv_buffer_bytes: u32 = 16_384, "bytes", integer(1024, 1 << 20);
        /// Request lines read from one connection before the next one has its turn, so that a deep pipeline does not starve
        /// the others.
        lines_per_turn_max: u32 = 256, "lines", integer(16, 65_536);
        /// How long a router polls before it sleeps. Saves about 30 us of wake-up a request at low load, and burns a core:
        /// only with a core to spare. A shard that serves clients itself follows `shard.spin_before_park_us`.
        spin_us: u32 = 0, "microseconds", integer(0, 10_000);
        /// Requests that one router may have unanswered at one shard; above that it stops reading from the connections that
        /// ask for more. Bounds the queues in between. In inline mode the shards' threads share it, with 1024 each at least.
        outstanding_per_shard_max: u32 = 65_536, "requests", integer(1024, 1 << 20);
    }

    /// The threads that own the data, one for each shard.
    shard: Shard {
        /// Longest slice of background work (searches, scans, index merges, snapshot slices) between two looks at the inbox.
        /// Longer slices finish searches sooner and make small requests wait.
        work_slice_us: u32 = 200, "microseconds", integer(10, 1000);
        /// How long an idle shard polls before it sleeps; as `router.spin_us`, only with a core to spare.
        spin_before_park_us: u32 = 0, "microseconds", integer(0, 10_000);
        /// Request batches taken from each router's ring in one turn of the driver.
        inbox_batches_max: u32 = 256, "batches", power_of_two(16, 4096);
        /// Memory that the executor reserves for files. Strand opens its files elsewhere, so the least is enough; it is
        /// registered with three rings and counts three times against the memlock limit.
        io_memory_kib: u32 = 512, "KiB", integer(256, 65_536);
    }

    /// The write-ahead log.
    wal: Wal {
        /// When a write is acknowledged. `always`: once it is synced. `interval:MS`: once it is applied, with a sync at least
        /// every MS milliseconds. `off`: no log, a cache. A cluster takes `always` only.
        sync: WalSync = WalSync::Always, "rule", Range::Sync;
        /// Size of a segment file. It is written with zeros once and then used again and again: writing into a file that
        /// already has its blocks costs half of extending it. The longest command, with what its log record adds, must fit
        /// half a segment.
        segment_mib: u32 = 64, "MiB", integer(2, 1024);
        /// Zeroed segments kept ready for each shard. Without one, writes wait or get DISK_FULL.
        spare_segments: u32 = 2, "segments", integer(1, 64);
        /// Commits that may be on their way to the disk at once. More hide the disk's latency; each holds a buffer.
        commits_in_flight_max: u32 = 8, "commits", integer(2, 24);
        /// Size of one registered write buffer; there is one for each commit in flight. A longer batch is written from memory
        /// that is not registered.
        buffer_kib: u32 = 256, "KiB", integer(64, 16_384);
        /// While a commit is on its way to the disk, the next one waits for at least so many commands, or for the first to
        /// be durable. No timer: an idle log writes at once. Under `interval` and `off` nothing waits.
        gather_commands_min: u32 = 16, "commands", integer(1, 1024);
        /// Bytes of commands after which a log entry ends; one larger command stands alone.
        entry_bytes_max: u32 = 1 << 20, "bytes", integer(4096, 16 << 20);
        /// Commands after which a log entry ends. 1024 is the most that a record's version can number.
        entry_commands_max: u32 = 1024, "commands", integer(1, 1024);
    }

    /// Snapshots, which shorten the log.
    snapshot: Snapshot {
        /// Log of one shard after which a snapshot begins. Smaller: less disk space, quicker restarts, more writing. The log
        /// may grow to about twice this while the snapshot is written.
        every_mib: u32 = 512, "MiB", integer(4, 1 << 20);
        /// A snapshot begins after this time if anything changed; 0 means by log size only.
        every_s: u32 = 3600, "seconds", integer(0, 604_800);
        /// Most that one shard writes to its snapshot a second, so that it does not take the disk from the log; 0 means no
        /// limit.
        mib_per_s_max: u32 = 200, "MiB a second", integer(0, 100_000);
        /// Memory of one shard for records that change before the snapshot has come to them, as they were; above it writes
        /// wait, and the snapshot goes as fast as the disk takes it.
        buffer_mib_max: u32 = 64, "MiB", integer(1, 4096);
    }

    /// How much memory the data may take.
    memory: Memory {
        /// Most that keys, values, indexes, remembered replies and writes on their way may take in the whole server, shared
        /// out evenly among the shards; above it writes that add data answer OUT_OF_MEMORY, and reads and deletes go on.
        /// Connections come on top. 0 means no bound.
        max_mib: u32 = 0, "MiB", integer(0, 16 << 20);
        /// Bytes of requests that one shard may have taken and not yet applied. From half of it on it takes no more from
        /// the routers, which slows clients down; beyond it writes answer OVERLOADED.
        outstanding_mib: u32 = 128, "MiB", integer(32, 65_536);
        /// Clients whose retries one shard remembers. The one idle longest goes first.
        sessions_max: u32 = 65_536, "clients", integer(1, 10_000_000);
        /// Replies remembered for one client, for its retries; an older `seq` answers SEQ_EXPIRED.
        session_replies_max: u32 = 1024, "replies", integer(1, 1024);
        /// How long a reply is remembered.
        session_s: u32 = 3600, "seconds", integer(1, 604_800);
        /// How long a client without remembered replies keeps its lowest `seq`, so that an old retry is still refused.
        session_idle_s: u32 = 86_400, "seconds", integer(60, 2_592_000);
        /// Memory for remembered replies of one shard; above it writes that ask to be remembered answer OVERLOADED.
        session_mib_max: u32 = 256, "MiB", integer(1, 65_536);
    }

    /// What one client may ask for; HELLO tells them.
    limits: Limits {
        /// Longest request line. A longer one is answered with TOO_LARGE and the connection is closed.
        line_bytes_max: u32 = 16 << 20, "bytes", integer(1024, 256 << 20);
        /// Longest key after unescaping.
        key_bytes_max: u32 = 4096, "bytes", integer(1, 4096);
        /// Longest value, as JSON text.
        value_bytes_max: u32 = 8 << 20, "bytes", integer(64, 8 << 20);
        /// Deepest nesting of a request's JSON.
        depth_max: u32 = 64, "levels", integer(4, 128);
        /// Most items in a BULK command.
        batch_items_max: u32 = 100_000, "items", integer(1, 1_000_000);
        /// Requests of one connection that may be unanswered; above that it is not read until replies have left.
        in_flight_max: u32 = 1024, "requests", integer(1, 32_767);
        /// Client connections of the whole server; each takes an open file. One more is answered with OVERLOADED and closed.
        connections_max: u32 = 10_000, "connections", integer(1, 500_000);
        /// Unfinished lines of all connections together, so that many slow senders cannot fill the memory.
        unfinished_input_mib_max: u32 = 256, "MiB", integer(16, 65_536);
        /// Replies waiting for one slow reader; above that its connection is neither read nor dispatched.
        output_bytes_max: u32 = 1 << 20, "bytes", integer(65_536, 64 << 20);
    }

    /// How long to wait for what.
    timeouts: Timeouts {
        /// A connection without traffic is closed after this; 0 means never.
        idle_s: u32 = 0, "seconds", integer(0, 604_800);
        /// Time to finish a line once it has begun, while its sender is slower than `timeouts.min_bytes_per_s`.
        unfinished_line_s: u32 = 10, "seconds", integer(1, 86_400);
        /// A sender at least this fast may take longer for its line.
        min_bytes_per_s: u32 = 16_384, "bytes a second", integer(1, 1 << 30);
        /// A connection that takes none of its replies for this long is closed.
        slow_reader_s: u32 = 30, "seconds", integer(1, 86_400);
        /// Time for open requests at shutdown, before the rest is told SHUTTING_DOWN.
        drain_s: u32 = 10, "seconds", integer(0, 3600);
    }

    /// What a search may ask for, and how vectors are found.
    search: Search {
        /// A shard with so many vectors in an index finds them by a graph (HNSW): faster than a flat scan, which is exact. All nodes
        /// of a cluster must have the same.
        hnsw_from: u32 = 1_000_000, "vectors", integer(1000, 4_000_000_000);
        /// The model of word embeddings: a .semb file, or a model2vec folder with model.safetensors and tokenizer.json. Empty is the
        /// one compiled in. Embeddings that another model made are made anew at the start.
        model_path: String = String::new(), "path", Range::Text(4096);
        /// Furthest result that a search may ask for: offset + top_k.
        window_max: u32 = 10_000, "results", integer(10, 10_000);
    }

    /// Faults on request.
    debug: Debug {
        /// Accepts `"debug": true` in SET and BULK_SET, which makes one snapshot write in a hundred fail on purpose to show that
        /// nothing is lost. Production profiles turn it off; the field then answers FORBIDDEN.
        faults: bool = true, "switch", Range::Switch;
    }

    /// The server's own log lines, on stderr.
    log: Log {
        /// `text` for people, `json` for machines, `auto`: text on a terminal and JSON otherwise.
        format: LogFormat = LogFormat::Auto, "word", Range::Word(&["auto", "text", "json"]);
        /// Least important lines to write.
        level: LogLevel = LogLevel::Info, "word", Range::Word(&["error", "warn", "info", "debug", "trace"]);
    }
}

/// The knob with this key.
pub fn knob(key: &str) -> Option<&'static Knob> {
    KNOBS.iter().find(|knob| knob.key == key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use toml::Value;

    #[test]
    fn every_default_lies_in_its_range() {
        let defaults = Value::try_from(Tuning::default()).unwrap();
        for knob in KNOBS {
            let value = &defaults[knob.section][knob.name];
            assert!(knob.range.check(value), "{} = {value} is outside {}", knob.key, knob.range);
        }
    }

    #[test]
    fn every_range_fits_the_type_it_is_read_into() {
        for knob in KNOBS {
            let (Range::Integer { max, .. } | Range::PowerOfTwo { max, .. }) = knob.range else { continue };
            let mut table = Value::try_from(Tuning::default()).unwrap();
            table[knob.section][knob.name] = Value::Integer(max as i64);
            assert!(table.try_into::<Tuning>().is_ok(), "{} cannot hold {max}", knob.key);
        }
    }

    #[test]
    fn keys_are_unique_and_say_why() {
        for (position, knob) in KNOBS.iter().enumerate() {
            assert!(KNOBS[..position].iter().all(|other| other.key != knob.key), "{} twice", knob.key);
            assert!(knob.why.len() > 20 && knob.why.ends_with('.'), "{} has no reason", knob.key);
        }
        assert_eq!(knob("wal.sync").map(|knob| knob.name), Some("sync"));
    }
}
