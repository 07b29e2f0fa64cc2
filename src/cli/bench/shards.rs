//! Which connections a request on one key may take when the server's shards serve clients themselves (`--shard-aware`).
//!
//! The map comes from HELLO, once, before the load. Connections are shared out evenly among the shards' own ports, and a
//! request that replaces an answered one goes out on the same connection if its key is of that shard, or else together with
//! the others of that moment on one connection of its key's shard, so that requests stay together as they do without shards.
//! What is not about one key stays on the connection whose turn it is.

use super::dialect::{Kind, Material};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;
use strand_client::route::{SLOTS, ShardMap, slot_of};

/// Longest wait for HELLO's reply.
const PATIENCE: Duration = Duration::from_secs(10);

/// The shards that serve clients themselves.
#[derive(Debug)]
pub(super) struct Shards {
    /// Where each listens.
    pub(super) addresses: Vec<SocketAddr>,
    /// The shard of each slot, as a place in `addresses`.
    of_slot: Vec<u16>,
}

impl Shards {
    /// Asks the server at this address.
    ///
    /// # Errors
    /// A sentence for the user: it does not answer, or its shards have no ports of their own.
    pub(super) fn ask(address: SocketAddr) -> Result<Self, String> {
        let reply = hello(address).map_err(|error| format!("{address} does not answer HELLO: {error}."))?;
        let map: ShardMap = serde_json::from_value(reply["result"].clone())
            .map_err(|error| format!("{address} tells no shard map ({error}), which --shard-aware needs."))?;
        let mut shards = Self { addresses: Vec::new(), of_slot: vec![0; SLOTS] };
        let mut slots = 0;
        for (range, own) in map.own_addresses(&address.to_string()) {
            let found = own.to_socket_addrs().ok().and_then(|mut found| found.next());
            let found = found.ok_or_else(|| format!("{own} is no address of a shard."))?;
            let known = shards.addresses.iter().position(|known| *known == found);
            let shard = known.unwrap_or(shards.addresses.len());
            if known.is_none() {
                shards.addresses.push(found);
            }
            for slot in range.filter(|slot| usize::from(*slot) < SLOTS) {
                shards.of_slot[usize::from(slot)] = shard as u16;
                slots += 1;
            }
        }
        if slots == SLOTS {
            Ok(shards)
        } else {
            Err(format!(
                "The shards of {address} have no ports of their own: start it with --set router.mode=inline, or leave \
                 --shard-aware out."
            ))
        }
    }
}

fn hello(address: SocketAddr) -> std::io::Result<Value> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{}\n", json!({"command": "HELLO", "client": "strand-bench"})).as_bytes())?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply)?;
    serde_json::from_str(&reply).map_err(std::io::Error::from)
}

/// The ways of one worker's requests to its connections.
#[derive(Debug)]
pub(super) struct Ways<'p> {
    shards: &'p Shards,
    /// The shard of each of the worker's connections.
    of_link: Vec<usize>,
    /// The worker's connections to each shard, with the one that takes what others bring.
    links: Vec<(Vec<usize>, usize)>,
    key: Vec<u8>,
}

impl<'p> Ways<'p> {
    /// For a worker with so many connections, whose `nth` goes to [`Ways::shard_of_link`].
    pub(super) fn new(shards: &'p Shards, thread: usize, links: usize) -> Self {
        let of_link: Vec<usize> = (0..links).map(|nth| Self::shard_of_link(shards, thread, nth)).collect();
        let mut links = vec![(Vec::new(), 0); shards.addresses.len()];
        for (nth, shard) in of_link.iter().enumerate() {
            links[*shard].0.push(nth);
        }
        Self { shards, of_link, links, key: Vec::new() }
    }

    /// Another moment: from now on what goes to a shard from others' connections takes its next one.
    pub(super) fn turn_over(&mut self) {
        for (links, next) in self.links.iter_mut().filter(|(links, _)| !links.is_empty()) {
            *next = (*next + 1) % links.len();
        }
    }

    /// The shard to which a worker's `nth` connection goes.
    pub(super) fn shard_of_link(shards: &Shards, thread: usize, nth: usize) -> usize {
        (thread + nth) % shards.addresses.len()
    }

    /// The connection for a request; `turn` is the one whose turn it is.
    pub(super) fn choose(&mut self, material: &Material, kind: Kind, key: u64, turn: usize) -> usize {
        match kind {
            Kind::Get | Kind::Set | Kind::ReadToModify | Kind::ModifyRead => {}
            Kind::BulkSet | Kind::Range | Kind::Search => return turn,
        }
        self.key.clear();
        material.push_key(key, &mut self.key);
        let shard = usize::from(self.shards.of_slot[slot_of(&self.key).0.index()]);
        if self.of_link[turn] == shard {
            return turn;
        }
        let (links, next) = &self.links[shard];
        // With fewer connections than shards any shard answers for the others.
        links.get(*next).copied().unwrap_or(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::super::dialect::tests::material;
    use super::*;

    #[test]
    fn requests_take_their_shards_connections_and_their_own_first() {
        let addresses = ["127.0.0.1:1", "127.0.0.1:2"].map(|text| text.parse().unwrap()).to_vec();
        let of_slot = (0..SLOTS).map(|slot| u16::from(slot >= SLOTS / 2)).collect();
        let shards = Shards { addresses, of_slot };
        let material = material(8);
        let mut ways = Ways::new(&shards, 1, 5);
        let mut counts = [0; 5];
        for key in 0..1000 {
            let mut bytes = Vec::new();
            material.push_key(key, &mut bytes);
            let shard = usize::from(slot_of(&bytes).0.index() >= SLOTS / 2);
            let turn = key as usize % 5;
            ways.turn_over();
            let link = ways.choose(&material, Kind::Get, key, turn);
            assert_eq!(Ways::shard_of_link(&shards, 1, link), shard);
            assert!(link == turn || Ways::shard_of_link(&shards, 1, turn) != shard);
            counts[link] += 1;
        }
        assert!(counts.iter().all(|count| *count > 100), "{counts:?}");
        assert_eq!(ways.choose(&material, Kind::BulkSet, 1, 3), 3);
        let mut alone = Ways::new(&shards, 0, 1);
        assert!((0..100).all(|key| alone.choose(&material, Kind::Set, key, 0) == 0));
    }
}
