//! Reads the entries of `--peers`: where the other nodes are.
//!
//! Forms: `[ID@]HOST:PORT[:CLUSTER_PORT]`, IPv6 addresses in brackets, and `ID:PORT:CLUSTER_PORT`. Without `@` a three-part
//! form names an id, whose host is that name if it resolves and 127.0.0.1 otherwise. Never resolves names itself: that
//! is an argument of [`Peer::host_by`].

use std::fmt;

/// Distance from a client port to the cluster port that is meant when none is given.
pub const CLUSTER_PORT_OFFSET: u16 = 1000;

/// One other node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name, when the entry gives one.
    pub id: Option<String>,
    /// Where to find it.
    pub host: PeerHost,
    /// Port for clients.
    pub port: u16,
    /// Port for other nodes.
    pub cluster_port: u16,
}

/// How an entry names the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerHost {
    /// An address or a name to look up; brackets of an IPv6 address are taken off.
    Stated(String),
    /// The id of a three-part entry: the host of that name if there is one, this machine otherwise.
    SameAsId(String),
}

/// What is wrong with an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerError {
    entry: String,
    reason: &'static str,
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the peer {:?} cannot be read: {}. Write [ID@]HOST:PORT[:CLUSTER_PORT] (IPv6 in brackets) or \
             ID:PORT:CLUSTER_PORT.",
            self.entry, self.reason
        )
    }
}

impl Peer {
    /// The host to connect to; `resolves` says whether a name is known. The flag is true when this machine was assumed
    /// because the name is not, which is worth a log line.
    pub fn host_by(&self, resolves: impl FnOnce(&str) -> bool) -> (&str, bool) {
        match &self.host {
            PeerHost::Stated(host) => (host, false),
            PeerHost::SameAsId(name) if resolves(name) => (name, false),
            PeerHost::SameAsId(_) => ("127.0.0.1", true),
        }
    }
}

/// Reads one entry.
///
/// # Errors
///
/// When it has none of the known forms.
pub fn parse(entry: &str) -> Result<Peer, PeerError> {
    let text = entry.trim();
    let fail = |reason| PeerError { entry: text.to_owned(), reason };
    let (id, place) = match text.split_once('@') {
        Some((id, _)) if !super::relations::valid_id(id) => {
            return Err(fail("an id is 1 to 64 letters, digits, '.', '_' or '-'"));
        }
        Some((id, place)) => (Some(id.to_owned()), place),
        None => (None, text),
    };
    let (host, bracketed, ports) = split_host(place).map_err(fail)?;
    let (port, cluster_port) = match ports.split_once(':') {
        Some((port, cluster_port)) => (port, Some(cluster_port)),
        None => (ports, None),
    };
    let port = parse_port(port).ok_or_else(|| fail("PORT is a number from 1 to 65535"))?;
    let three_part = cluster_port.is_some();
    let cluster_port = match cluster_port {
        Some(text) => parse_port(text).ok_or_else(|| fail("CLUSTER_PORT is a number from 1 to 65535"))?,
        None => port
            .checked_add(CLUSTER_PORT_OFFSET)
            .ok_or_else(|| fail("PORT + 1000 is beyond 65535, so it needs a CLUSTER_PORT"))?,
    };
    // An address is never meant as an id, so `127.0.0.1:8001:9001` keeps its host.
    let is_address = bracketed || host.parse::<std::net::Ipv4Addr>().is_ok() || host == "localhost";
    if id.is_none() && three_part && !is_address {
        if !super::relations::valid_id(host) {
            return Err(fail("an id is 1 to 64 letters, digits, '.', '_' or '-'"));
        }
        let name = host.to_owned();
        return Ok(Peer { id: Some(name.clone()), host: PeerHost::SameAsId(name), port, cluster_port });
    }
    Ok(Peer { id, host: PeerHost::Stated(host.to_owned()), port, cluster_port })
}

/// Splits the host from what follows its colon; the flag says whether it stood in brackets.
fn split_host(place: &str) -> Result<(&str, bool, &str), &'static str> {
    if let Some(rest) = place.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("a bracket is not closed")?;
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err("what stands in brackets is no IPv6 address");
        }
        let ports = after.strip_prefix(':').ok_or("the port is missing")?;
        return Ok((host, true, ports));
    }
    if place.matches(':').count() > 2 {
        return Err("it has too many colons; an IPv6 address stands in brackets");
    }
    let (host, ports) = place.split_once(':').ok_or("the port is missing")?;
    let named = !host.is_empty() && host.len() <= 255 && host.bytes().all(|b| b.is_ascii_graphic());
    if named { Ok((host, false, ports)) } else { Err("the host is missing or is no name") }
}

fn parse_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(entry: &str, id: Option<&str>, host: &str, port: u16, cluster_port: u16) {
        let peer = parse(entry).unwrap();
        assert_eq!(peer.id.as_deref(), id, "{entry}");
        assert_eq!(peer.host, PeerHost::Stated(host.to_owned()), "{entry}");
        assert_eq!((peer.port, peer.cluster_port), (port, cluster_port), "{entry}");
    }

    #[test]
    fn hosts_with_ports() {
        check("127.0.0.1:8001", None, "127.0.0.1", 8001, 9001);
        check(" db.example:8001 ", None, "db.example", 8001, 9001);
        check("127.0.0.1:8001:7001", None, "127.0.0.1", 8001, 7001);
        check("localhost:8001:7001", None, "localhost", 8001, 7001);
        check("n2@db.example:8001", Some("n2"), "db.example", 8001, 9001);
        check("n2@db.example:8001:7001", Some("n2"), "db.example", 8001, 7001);
        check("[::1]:8001", None, "::1", 8001, 9001);
        check("[fe80::1]:8001:7001", None, "fe80::1", 8001, 7001);
        check("n2@[::1]:8001", Some("n2"), "::1", 8001, 9001);
    }

    #[test]
    fn three_parts_without_at_name_an_id() {
        let peer = parse("node2:6380:7380").unwrap();
        assert_eq!(peer.id.as_deref(), Some("node2"));
        assert_eq!((peer.port, peer.cluster_port), (6380, 7380));
        assert_eq!(peer.host_by(|name| name == "node2"), ("node2", false));
        assert_eq!(peer.host_by(|_| false), ("127.0.0.1", true));
        assert_eq!(parse("10.0.0.1:1").unwrap().host_by(|_| false), ("10.0.0.1", false));
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        for (entry, reason) in [
            ("", "the port is missing"),
            ("host", "the port is missing"),
            (":8001", "the host is missing"),
            ("host:", "PORT is a number"),
            ("host:0", "PORT is a number"),
            ("host:+1", "PORT is a number"),
            ("host:65536", "PORT is a number"),
            ("host:65000", "needs a CLUSTER_PORT"),
            ("host:1:x", "CLUSTER_PORT is a number"),
            ("::1:8001", "too many colons"),
            ("[::1:8001", "not closed"),
            ("[::1]8001", "the port is missing"),
            ("[host]:8001", "no IPv6 address"),
            ("@host:1", "an id is"),
            ("a b:1:2", "the host is missing or is no name"),
        ] {
            let told = parse(entry).expect_err(entry).to_string();
            assert!(told.contains(reason), "{entry:?} gave: {told}");
        }
    }
}
