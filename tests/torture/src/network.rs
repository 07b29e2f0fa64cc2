//! Network namespaces: one for each node, one with the bridge between them, in which the harness lives too.
//!
//! Nothing of it touches the machine's own network: bridge, addresses and routes exist inside the namespaces only. Made and
//! removed by the keeper ([`crate::keeper`]); the harness inside changes what nodes hear of one another.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

/// Part of a hundred of the packets that a lossy node loses of what it hears.
const LOSS_PERCENT: u32 = 25;

/// The namespaces of one run.
#[derive(Clone, Debug)]
pub struct Network {
    prefix: String,
    nodes: usize,
    /// Who does not hear whom: (speaker, listener).
    deaf: BTreeSet<(usize, usize)>,
    /// Who loses packets.
    lossy: BTreeSet<usize>,
}

fn run(program: &str, arguments: &[&str], input: Option<&str>) -> io::Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn()?;
    if let (Some(mut stdin), Some(text)) = (child.stdin.take(), input) {
        stdin.write_all(text.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("{program} {}: {said}", arguments.join(" "))))
}

impl Network {
    /// The network whose namespaces begin with this name.
    pub fn named(prefix: &str, nodes: usize) -> Self {
        Self { prefix: prefix.to_owned(), nodes, deaf: BTreeSet::new(), lossy: BTreeSet::new() }
    }

    /// The namespace of the bridge and of the clients.
    pub fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    /// The namespace of a node.
    pub fn namespace(&self, node: usize) -> String {
        format!("{}-{node}", self.prefix)
    }

    /// A node's address: of the range that is set apart for tests of networks, and known inside the namespaces only.
    pub fn address(node: usize) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(198, 18, 77, 10 + u8::try_from(node).expect("nodes are few")))
    }

    /// Makes all namespaces, the bridge and the cables.
    ///
    /// # Errors
    /// With the tool's words, where the machine does not allow it.
    pub fn make(&self) -> io::Result<()> {
        let hub = self.hub();
        run("ip", &["netns", "add", &hub], None)?;
        run("ip", &["-n", &hub, "link", "set", "lo", "up"], None)?;
        run("ip", &["-n", &hub, "link", "add", "name", "bridge0", "type", "bridge"], None)?;
        run("ip", &["-n", &hub, "addr", "add", "198.18.77.1/24", "dev", "bridge0"], None)?;
        run("ip", &["-n", &hub, "link", "set", "bridge0", "up"], None)?;
        for node in 0..self.nodes {
            let namespace = self.namespace(node);
            let (cable, address) = (format!("cable{node}"), format!("{}/24", Self::address(node)));
            run("ip", &["netns", "add", &namespace], None)?;
            run("ip", &["-n", &namespace, "link", "set", "lo", "up"], None)?;
            let name = ["link", "add", "name", &cable, "type", "veth", "peer", "name", "uplink", "netns"];
            run("ip", &[&["-n", &hub][..], &name, &[&namespace]].concat(), None)?;
            run("ip", &["-n", &hub, "link", "set", &cable, "master", "bridge0", "up"], None)?;
            run("ip", &["-n", &namespace, "addr", "add", &address, "dev", "uplink"], None)?;
            run("ip", &["-n", &namespace, "link", "set", "uplink", "up"], None)?;
        }
        Ok(())
    }

    /// Removes all namespaces, and what still runs in them. Does as much as it can.
    pub fn remove(&self) {
        for namespace in (0..self.nodes).map(|node| self.namespace(node)).chain([self.hub()]) {
            let pids = Command::new("ip").args(["netns", "pids", &namespace]).output();
            let pids = pids.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            for pid in pids.unwrap_or_default().split_whitespace() {
                drop(run("kill", &["-9", pid], None));
            }
            drop(run("ip", &["netns", "del", &namespace], None));
        }
    }

    /// Takes packets of the speaker away from the listener.
    pub fn deafen(&mut self, speaker: usize, listener: usize) {
        self.deaf.insert((speaker, listener));
    }

    /// A node loses packets that it hears from nodes.
    pub fn lose(&mut self, listener: usize) {
        self.lossy.insert(listener);
    }

    /// Everything is heard again, once [`Self::apply`] has told the kernel.
    pub fn heal(&mut self) {
        self.deaf.clear();
        self.lossy.clear();
    }

    /// Tells the kernel who hears whom.
    ///
    /// # Errors
    /// With the tool's words.
    pub fn apply(&self) -> io::Result<()> {
        for listener in 0..self.nodes {
            let mut rules = String::new();
            for (speaker, _) in self.deaf.iter().filter(|(_, deaf)| *deaf == listener) {
                rules.push_str(&format!("    ip saddr {} drop\n", Self::address(*speaker)));
            }
            if self.lossy.contains(&listener) {
                let others = (0..self.nodes).filter(|other| *other != listener);
                for other in others {
                    let from = Self::address(other);
                    rules.push_str(&format!(
                        "    ip saddr {from} numgen random mod 100 < {LOSS_PERCENT} drop\n"
                    ));
                }
            }
            let script = format!(
                "add table ip torture\ndelete table ip torture\ntable ip torture {{\n  chain heard {{\n    type filter hook input priority 0;\n{rules}  }}\n}}\n"
            );
            let namespace = format!("--net=/run/netns/{}", self.namespace(listener));
            run("nsenter", &[&namespace, "nft", "-f", "-"], Some(&script))?;
        }
        Ok(())
    }

    /// Makes a node's cable narrow, with a queue that delays what is sent, or as wide as it was.
    ///
    /// # Errors
    /// With the tool's words.
    pub fn narrow(&self, node: usize, is_narrow: bool) -> io::Result<()> {
        let namespace = format!("--net=/run/netns/{}", self.namespace(node));
        let words: &[&str] = if is_narrow {
            &[
                "qdisc", "replace", "dev", "uplink", "root", "tbf", "rate", "4mbit", "burst", "16kb",
                "latency", "300ms",
            ]
        } else {
            &["qdisc", "del", "dev", "uplink", "root"]
        };
        run("nsenter", &[&[namespace.as_str(), "tc"], words].concat(), None)
    }
}
