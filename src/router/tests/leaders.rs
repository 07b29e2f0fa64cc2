//! A router of a cluster: leaders that change, refuse, hold back and answer in any order, and none at all.
//!
//! The replicas here are made of a few lines: they keep the rule of decision 13 (whoever refused a stream in a view
//! refuses it until the view is newer) and apply what they take in order, into one history that all of them share.

use super::world::Client;
use crate::doorbell::Doorbell;
use crate::front::{Front, FrontSettings, Listeners, Wait};
use crate::links::{RouterLink, link};
use crate::peer::nodes::Nodes;
use crate::peer::view::{ClusterView, Leader};
use crate::router::{ClusterParts, Router, RouterBoard, RouterSettings, ServerFacts, StopHandle};
use shards::batch::{NotLeader, ReplyKind, RequestHead};
use shards::command::record::{Op, Record, flag};
use shards::gather::topology::Topology;
use shards::ids::{GroupId, Millis, NodeNumber, ReplicaId};
use shards::meta::{Meta, Node};
use std::cell::Cell;
use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const ME: NodeNumber = NodeNumber(1);
const OTHER: NodeNumber = NodeNumber(2);

/// A request that a replica has, with its bytes.
#[derive(Clone)]
struct Taken {
    head: RequestHead,
    record: Vec<u8>,
}

/// One replica behind one ring: node 1's shard, or node 2's behind the thread that forwards.
struct Replica {
    link: RouterLink,
    node: NodeNumber,
    leads: bool,
    /// No copy of the group: refuses stale reads too.
    is_vacant: bool,
    refused_view: Option<u32>,
    /// Taken, in order, and neither applied nor refused.
    proposed: VecDeque<Taken>,
    seen: Vec<(NodeNumber, u32)>,
}

impl Replica {
    fn refuse(&mut self, taken: &Taken, leader: Leader) {
        let Taken { head, record } = taken;
        let leader_id = if leader.node.0 == 0 { ReplicaId(0) } else { ReplicaId::new(0, leader.node) };
        let (hash, deadline) = (head.hash, head.deadline);
        let refused = NotLeader { leader: leader_id, term: leader.term, hash, deadline, record };
        self.link.batch().push_not_leader(head.token, &refused);
    }
}

/// One router before two replicas of each group, on two nodes.
struct Cluster {
    front: Front,
    router: Router,
    view: Arc<ClusterView>,
    /// By group, then node.
    replicas: Vec<[Replica; 2]>,
    /// What was applied, in order: key and value.
    history: Vec<(String, String)>,
    term: u64,
    clock: Rc<Cell<u64>>,
    address: SocketAddr,
    random: u64,
}

impl Cluster {
    fn new(groups: u16, seed: u64) -> Self {
        let clock = Rc::new(Cell::new(1_000_000));
        let bell = Doorbell::new().unwrap();
        let mut replicas = Vec::new();
        let (mut locals, mut remotes) = (Vec::new(), Vec::new());
        for _ in 0..groups {
            let mut ends = [&mut locals, &mut remotes].map(|ends: &mut Vec<_>| {
                let (at_router, at_shard) = link(64, Arc::clone(&bell), Doorbell::new().unwrap());
                ends.push(at_router);
                Some(at_shard)
            });
            replicas.push([0, 1].map(|place| Replica {
                link: ends[place].take().unwrap(),
                node: NodeNumber(place as u16 + 1),
                leads: false,
                is_vacant: false,
                refused_view: None,
                proposed: VecDeque::new(),
                seen: Vec::new(),
            }));
        }
        let facts = ServerFacts {
            node_id: "a".to_owned(),
            address: "127.0.0.1:8000".to_owned(),
            started: Millis(clock.get()),
            extra: Mutex::new(String::new()),
            shard_ports: Vec::new(),
            routers: RouterBoard::new(1),
            stop: StopHandle::new(Vec::new()),
        };
        let time = Rc::clone(&clock);
        let mut router = Router::new(
            locals,
            Topology::even(groups),
            RouterSettings::default(),
            Arc::new(facts),
            move || Millis(time.get()),
        );
        let node = |number, id: &str, port| Node {
            number,
            id: id.to_owned(),
            host: "127.0.0.1".to_owned(),
            port,
            cluster_port: port + 1000,
            ..Node::default()
        };
        let nodes = vec![node(ME, "a", 8000), node(OTHER, "b", 8001)];
        let nodes = Nodes::new(Arc::new(Meta { version: 1, replicas: 2, nodes, ..Meta::default() }));
        nodes.heard(OTHER, Millis(clock.get()));
        let view = ClusterView::new(ME, usize::from(groups));
        router.join(ClusterParts { view: Arc::clone(&view), nodes, links: remotes });
        let listeners = Listeners::bind(&["127.0.0.1:0".parse().unwrap()], 64).unwrap();
        let address = listeners.addresses().unwrap()[0];
        let time = Rc::clone(&clock);
        let front =
            Front::open(FrontSettings::default(), listeners, bell, move || Millis(time.get())).unwrap();
        Self { front, router, view, replicas, history: Vec::new(), term: 1, clock, address, random: seed | 1 }
    }

    /// xorshift64*.
    fn chance(&mut self, of: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % of
    }

    /// Makes a node the leader of a group; it is told when `is_told`, or found out by refusals.
    fn lead(&mut self, group: usize, node: NodeNumber, is_told: bool) {
        self.term += 1;
        let leader = Leader { term: self.term, node };
        for replica in &mut self.replicas[group] {
            replica.leads = replica.node == node;
        }
        let deposed = self.replicas[group].iter_mut().find(|replica| replica.node != node).unwrap();
        // What was proposed is replaced: refused, the youngest first.
        let lost: Vec<Taken> = deposed.proposed.drain(..).rev().collect();
        for taken in &lost {
            deposed.refuse(taken, leader);
        }
        if !lost.is_empty() {
            deposed.refused_view = deposed.refused_view.max(deposed.seen.last().map(|seen| seen.1));
        }
        deposed.link.flush();
        if is_told {
            self.view.learn(GroupId(group as u32), leader);
        }
    }

    fn connect(&mut self) -> Client {
        Client::new(TcpStream::connect(self.address).unwrap())
    }

    /// One turn of the router; each replica takes what has come, and the leaders apply some of it.
    fn turn(&mut self) {
        self.front.turn(&mut self.router, Wait::No).unwrap();
        for group in 0..self.replicas.len() {
            for place in 0..2 {
                let count = self.chance(40) as usize;
                self.step(group, place, count);
            }
        }
    }

    fn step(&mut self, group: usize, place: usize, apply: usize) {
        let leader = self.replicas[group].iter().find(|replica| replica.leads).map(|replica| replica.node);
        let leader = Leader { term: self.term, node: leader.unwrap_or_default() };
        let replica = &mut self.replicas[group][place];
        while let Some(batch) = replica.link.receive() {
            assert_eq!((batch.group, batch.origin), (GroupId(group as u32), 0));
            assert!(place == 0 || batch.node == OTHER);
            replica.seen.push((batch.node, batch.view));
            for head in &batch.heads {
                let taken = Taken { head: *head, record: batch.record(head).to_vec() };
                let is_local = Record::flags_of(&taken.record) & flag::LOCAL != 0;
                let is_fresh = replica.refused_view.is_none_or(|view| batch.view > view);
                if (is_local && !replica.is_vacant) || (replica.leads && is_fresh) {
                    replica.proposed.push_back(taken);
                } else {
                    replica.refused_view = replica.refused_view.max(Some(batch.view));
                    replica.refuse(&taken, leader);
                }
            }
            replica.link.recycle(batch);
        }
        for _ in 0..apply {
            let Some(taken) = replica.proposed.pop_front() else { break };
            let record = Record::decode(&taken.record).unwrap();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let token = taken.head.token;
            let batch = replica.link.batch();
            match record.op {
                Op::Set => {
                    self.history.push((text(record.key), text(record.value)));
                    batch.push(token, ReplyKind::Ok, |_| {});
                }
                Op::Get => {
                    let members = format!("\"result\":{}", replica.node.0);
                    batch.push(token, ReplyKind::Success, |out| out.extend_from_slice(members.as_bytes()));
                }
                Op::Info | Op::Members => {
                    let figures =
                        r#"{"keys":1,"memory_bytes":1,"term":2,"commit_index":3,"applied_index":3}"#;
                    batch.push(token, ReplyKind::Part, |out| out.extend_from_slice(figures.as_bytes()));
                }
                // The end of the shard, and no keys.
                Op::Scan if replica.leads => batch.push(token, ReplyKind::Part, |out| out.push(0)),
                Op::Scan => batch.push(token, ReplyKind::StalePart, |out| {
                    out.extend_from_slice(&77u64.to_le_bytes());
                    out.push(0);
                }),
                other => panic!("{other:?}"),
            }
        }
        replica.link.flush();
    }

    fn reply(&mut self, client: &mut Client) -> String {
        let begun = Instant::now();
        loop {
            if let Some(line) = client.line() {
                return line;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "no reply in time");
            self.turn();
            self.clock.set(self.clock.get() + 1);
        }
    }

    fn ask(&mut self, client: &mut Client, line: &str) -> String {
        client.send(line);
        self.reply(client)
    }

    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.turn();
            self.clock.set(self.clock.get() + 1);
        }
    }
}

const OK: &str = "{\"status\":\"success\",\"result\":\"OK\"}";

fn set(key: &str, value: usize) -> String {
    format!("{{\"command\":\"SET\",\"key\":\"{key}\",\"value\":{value}}}")
}

#[test]
fn pipelined_writes_keep_their_order_over_changes_of_the_leader() {
    let mut came_back = 0;
    for seed in 1..25 {
        let mut cluster = Cluster::new(2, seed * 7919);
        let mut clients: Vec<Client> = (0..3).map(|_| cluster.connect()).collect();
        let mut replies = [0; 3];
        const WRITES: usize = 400;
        let mut sent = 0;
        for group in 0..2 {
            cluster.lead(group, if seed % 2 == 0 { ME } else { OTHER }, true);
        }
        let begun = Instant::now();
        while replies.iter().sum::<usize>() < 3 * WRITES {
            assert!(begun.elapsed() < Duration::from_secs(30), "seed {seed}: {replies:?} replies");
            if sent < WRITES {
                let burst = (cluster.chance(30) as usize + 1).min(WRITES - sent);
                for number in sent..sent + burst {
                    for (client, key) in clients.iter_mut().zip(["a", "b", "c"]) {
                        client.send(&set(key, number));
                    }
                }
                sent += burst;
            }
            if cluster.chance(6) == 0 {
                let (group, is_told) = (cluster.chance(2) as usize, cluster.chance(2) == 0);
                let node = if cluster.chance(2) == 0 { ME } else { OTHER };
                cluster.lead(group, node, is_told);
            }
            cluster.turns(3);
            for (client, replies) in clients.iter_mut().zip(&mut replies) {
                while let Some(line) = client.line() {
                    assert_eq!(line, OK);
                    *replies += 1;
                }
            }
        }
        for key in ["a", "b", "c"] {
            let values = cluster.history.iter().filter(|(of, _)| of == key);
            let values: Vec<usize> = values.map(|(_, value)| value.parse().unwrap()).collect();
            assert_eq!(values, (0..WRITES).collect::<Vec<_>>(), "seed {seed}, key {key}");
        }
        assert!(cluster.router.is_quiet());
        came_back += cluster.router.counters().came_back;
        // Views rise, and a batch of another node's view never reached this node.
        for replica in cluster.replicas.iter().flatten() {
            assert!(replica.seen.is_sorted_by_key(|(_, view)| *view), "seed {seed}");
        }
    }
    assert!(came_back > 500, "only {came_back} requests were refused");
}

#[test]
fn without_a_leader_requests_wait_and_then_say_so() {
    let mut cluster = Cluster::new(2, 3);
    let (mut waits, mut works) = (cluster.connect(), cluster.connect());
    cluster.lead(1, OTHER, true);
    let key_of = |group: u32| {
        let topology = Topology::even(2);
        (0..).map(|n| format!("k{n}")).find(|key| topology.group_of(key.as_bytes()).0 == group).unwrap()
    };
    let get = |key: &str| format!("{{\"command\":\"GET\",\"key\":\"{key}\",\"timeout_ms\":300}}");
    waits.send(&get(&key_of(0)));
    waits.send(r#"{"command":"SCAN","timeout_ms":300}"#);
    cluster.turns(50);
    assert!(waits.line().is_none());
    assert!(cluster.router.next_deadline(Millis(cluster.clock.get())).is_some());
    assert_eq!(cluster.ask(&mut works, &set(&key_of(1), 5)), OK, "the other group is undisturbed");
    for _ in 0..2 {
        let reply = cluster.reply(&mut waits);
        assert!(reply.contains("\"code\":\"NO_QUORUM\"") && reply.contains("\"retry\":\"safe\""), "{reply}");
    }
    // CLUSTER tells what there is.
    let reply = cluster.ask(&mut works, r#"{"command":"CLUSTER"}"#);
    let told: serde_json::Value = serde_json::from_str(&reply).unwrap();
    let result = &told["result"];
    assert!(result["groups"][0]["leader"].is_null(), "{reply}");
    assert_eq!(
        (&result["groups"][1]["leader"], &result["mode"]),
        (&"b".into(), &"cluster".into()),
        "{reply}"
    );
    assert_eq!((&result["nodes"][1]["id"], &result["nodes"][1]["state"]), (&"b".into(), &"up".into()));
    // A leader comes before the deadline.
    waits.send(&get(&key_of(0)));
    cluster.turns(20);
    cluster.lead(0, ME, true);
    assert!(cluster.reply(&mut waits).contains("\"result\":1"));
    assert_eq!(cluster.router.counters().no_quorum, 3);
}

#[test]
fn reads_that_may_be_stale_stay_here_if_there_is_a_replica() {
    let mut cluster = Cluster::new(1, 5);
    let mut client = cluster.connect();
    let local = r#"{"command":"GET","key":"a","consistency":"local"}"#;
    assert!(cluster.ask(&mut client, local).contains("\"result\":1"), "nobody leads, and it is answered");
    cluster.lead(0, OTHER, true);
    assert!(cluster.ask(&mut client, local).contains("\"result\":1"));
    assert!(cluster.ask(&mut client, r#"{"command":"GET","key":"a"}"#).contains("\"result\":2"));
    let scan = r#"{"command":"SCAN","consistency":"local"}"#;
    let scanned = cluster.ask(&mut client, scan);
    assert!(
        scanned.contains("\"keys\":[]") && scanned.contains("\"stale\":true,\"applied_index\":{\"0\":77}")
    );
    assert_eq!(cluster.replicas[0][1].seen.len(), 1, "only one request went to the other node");
    cluster.replicas[0][0].is_vacant = true;
    for _ in 0..3 {
        assert!(cluster.ask(&mut client, local).contains("\"result\":2"), "the other node has one");
    }
    assert_eq!(cluster.router.counters().came_back, 1, "the lack of a replica is remembered");
    // This node's figures are nobody else's.
    assert!(cluster.ask(&mut client, r#"{"command":"INFO"}"#).contains("\"shards\":[null]"));
}

#[test]
fn who_asks_for_redirects_gets_the_leaders_address() {
    let mut cluster = Cluster::new(2, 9);
    cluster.lead(0, OTHER, true);
    cluster.lead(1, OTHER, true);
    cluster.turns(3);
    let (mut plain, mut client) = (cluster.connect(), cluster.connect());
    let hello = cluster.ask(&mut client, r#"{"command":"HELLO","redirect":true}"#);
    let hello: serde_json::Value = serde_json::from_str(&hello).unwrap();
    let leader = &hello["result"]["leaders"][1];
    assert_eq!((&leader["node"], &leader["address"]), (&"b".into(), &"127.0.0.1:8001".into()));
    assert_eq!((&hello["result"]["node"], &hello["result"]["mode"]), (&"a".into(), &"cluster".into()));
    let reply = cluster.ask(&mut client, &set("a", 1));
    let told: serde_json::Value = serde_json::from_str(&reply).unwrap();
    assert_eq!(
        (&told["code"], &told["leader"], &told["retry"]),
        (&"NOT_LEADER".into(), &"127.0.0.1:8001".into(), &"safe".into())
    );
    assert!(told["shard"].is_u64(), "{reply}");
    assert_eq!(cluster.ask(&mut plain, &set("a", 1)), OK, "others are forwarded");
    assert!(cluster.ask(&mut client, r#"{"command":"SCAN"}"#).contains("\"keys\":[]"), "gathers are, too");
    assert!(
        cluster
            .ask(&mut client, r#"{"command":"GET","key":"a","consistency":"local"}"#)
            .contains("\"result\":1")
    );
    cluster.lead(0, ME, true);
    cluster.lead(1, ME, true);
    assert_eq!(cluster.ask(&mut client, &set("a", 2)), OK);
    assert_eq!(cluster.router.counters().redirects, 1);
}

#[test]
fn a_leader_that_keeps_refusing_is_asked_ever_more_seldom() {
    let mut cluster = Cluster::new(1, 11);
    // The view says node 2 leads, and node 2 says that it does.
    cluster.lead(0, OTHER, true);
    cluster.replicas[0][1].leads = false;
    let mut client = cluster.connect();
    client.send(&set("a", 1));
    cluster.turns(1000);
    let asked = cluster.replicas[0][1].seen.len();
    assert!((10..40).contains(&asked), "asked {asked} times in a second");
    cluster.replicas[0][1].leads = true;
    assert_eq!(cluster.reply(&mut client), OK);
    assert_eq!(cluster.history.len(), 1);
}
