//! Where this node is reached, as it says itself: told to group 0 when the meta state says otherwise.
//!
//! Ports are what the node listens on. A host is changed only for a reason that cannot be a guess gone wrong: the operator says
//! one (`cluster.advertise`), or the one known is an address (not a name) at which the node does not listen any more. A name
//! stays, since whoever gave it may mean a way to the node that the node itself does not see.

use shards::meta::{Node, NodeAddress};
use std::net::{IpAddr, UdpSocket};

/// What the node knows of its own place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// What the operator says others shall use; empty for nothing.
    pub advertised: String,
    /// Where the node listens.
    pub host: String,
    /// Port for clients.
    pub port: u16,
    /// Port for nodes.
    pub cluster_port: u16,
}

impl Whereabouts {
    /// What has to be told, if anything: `known` is what the meta state says of this node, `seen_from` the address from which
    /// it speaks to others.
    pub fn news(&self, known: &Node, seen_from: Option<IpAddr>) -> Option<NodeAddress> {
        let host = self.host_now(&known.host, seen_from);
        let is_known = (host.as_str(), self.port, self.cluster_port)
            == (known.host.as_str(), known.port, known.cluster_port);
        let Self { port, cluster_port, .. } = *self;
        (!is_known).then_some(NodeAddress { node: known.number, host, port, cluster_port })
    }

    fn host_now(&self, known: &str, seen_from: Option<IpAddr>) -> String {
        if !self.advertised.is_empty() {
            return self.advertised.clone();
        }
        let Some(known_address) = address_of(known) else { return known.to_owned() };
        match address_of(&self.host) {
            Some(listens) if listens.is_unspecified() && is_of_this_machine(known_address) => {
                known.to_owned()
            }
            Some(listens) if listens.is_unspecified() => {
                seen_from.map_or_else(|| known.to_owned(), |address| address.to_string())
            }
            Some(listens) if listens == known_address => known.to_owned(),
            Some(listens) => listens.to_string(),
            // It listens at a name, `localhost` for one: what others have seen stays while it is this machine's.
            None if is_of_this_machine(known_address) => known.to_owned(),
            None => self.host.clone(),
        }
    }
}

/// Where a node is reached that says this host of itself and speaks from this address: at what it says, unless that means
/// everywhere. A machine with several addresses, or behind translation, speaks from one at which it does not listen.
pub fn reached_at(said: &str, seen: IpAddr) -> String {
    match address_of(said) {
        Some(listens) if !listens.is_unspecified() => listens.to_string(),
        None if !said.is_empty() => said.to_owned(),
        _ => seen.to_string(),
    }
}

fn address_of(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

/// Whether the machine has this address: only then a socket may be bound to it.
fn is_of_this_machine(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use shards::ids::NodeNumber;

    fn check(advertised: &str, listens: &str, known: &str, expected: Option<&str>) {
        let here = Whereabouts {
            advertised: advertised.to_owned(),
            host: listens.to_owned(),
            port: 8000,
            cluster_port: 9000,
        };
        let node = Node {
            number: NodeNumber(3),
            host: known.to_owned(),
            port: 8000,
            cluster_port: 9000,
            ..Node::default()
        };
        let seen_from = "10.1.2.3".parse().ok();
        let news = here.news(&node, seen_from).map(|news| news.host);
        assert_eq!(news.as_deref(), expected, "{advertised:?} {listens} {known}");
        let moved = Whereabouts { port: 8001, ..here }.news(&node, seen_from).expect("its port changed");
        assert_eq!((moved.port, moved.cluster_port, moved.node), (8001, 9000, NodeNumber(3)));
    }

    #[test]
    fn a_node_is_reached_where_it_says() {
        let seen = "10.1.2.3".parse().unwrap();
        for (said, expected) in [
            ("0.0.0.0", "10.1.2.3"),
            ("[::]", "10.1.2.3"),
            ("", "10.1.2.3"),
            ("10.9.9.9", "10.9.9.9"),
            ("[::1]", "::1"),
            ("db.example", "db.example"),
        ] {
            assert_eq!(reached_at(said, seen), expected, "{said}");
        }
    }

    #[test]
    fn a_host_changes_for_a_reason_only() {
        check("", "127.0.0.1", "127.0.0.1", None);
        check("", "0.0.0.0", "127.0.0.1", None);
        check("", "0.0.0.0", "node2.example", None);
        check("", "127.0.0.1", "node2.example", None);
        check("", "[::1]", "::1", None);
        // An address of documentation (RFC 5737) is no machine's own.
        check("", "0.0.0.0", "192.0.2.7", Some("10.1.2.3"));
        check("", "127.0.0.1", "192.0.2.7", Some("127.0.0.1"));
        check("", "localhost", "192.0.2.7", Some("localhost"));
        check("db.example", "0.0.0.0", "127.0.0.1", Some("db.example"));
        check("db.example", "0.0.0.0", "db.example", None);
    }
}
