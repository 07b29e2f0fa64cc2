//! Changes as bytes, and what each does to the state.

use super::*;

fn node(id: &str, incarnation: u128) -> Node {
    let (host, port, cluster_port) = ("h".to_owned(), 8000, 9000);
    Node { id: id.to_owned(), incarnation, host, port, cluster_port, ..Node::default() }
}

fn placement(replicas: &[(u64, u16)]) -> GroupPlacement {
    let replicas: Vec<_> =
        replicas.iter().map(|(number, node)| ReplicaId::new(*number, NodeNumber(*node))).collect();
    GroupPlacement { preferred: replicas[0], replicas }
}

#[test]
fn changes_survive_their_bytes() {
    let one = NodeNumber(1);
    let place = placement(&[(0, 1), (7, 2)]);
    let changes = [
        (
            MetaChange::AddNode(node("n2", 0x22)),
            "01220000000000000000000000000000000200 6e32 0100 68 401f 2823",
        ),
        (MetaChange::RemoveNode(one), "02 0100"),
        (MetaChange::Gone { node: one, planned_on: 3 }, "03 0100 0300000000000000"),
        (
            MetaChange::Place { group: GroupId(5), placement: place, planned_on: 9 },
            "04 0900000000000000 05000000 0100000000000000 0100000000000000 0200070000000000",
        ),
        (MetaChange::Primary(NodeNumber(0)), "06 0000"),
        (
            MetaChange::Address(NodeAddress {
                node: one,
                host: "h".to_owned(),
                port: 8000,
                cluster_port: 9000,
            }),
            "05 0100 0100 68 401f 2823",
        ),
        (MetaChange::Prefer { group: GroupId(5), node: one }, "07 0100 05000000"),
        (
            MetaChange::Replace { group: GroupId(5), lost: ReplicaId::new(7, one) },
            "08 05000000 0100070000000000",
        ),
        (
            MetaChange::Survive {
                node: one,
                incarnation: 2,
                cluster: 3,
                replicas: vec![ReplicaId::new(7, one)],
            },
            "09 0100 02000000000000000000000000000000 03000000000000000000000000000000 0100070000000000",
        ),
    ];
    for (change, golden) in changes {
        let mut bytes = Vec::new();
        change.encode(&mut bytes);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden.replace(' ', ""));
        assert_eq!(MetaChange::decode(&bytes), Ok(change));
        let whole = bytes.len();
        bytes.push(0);
        assert!(MetaChange::decode(&bytes).is_err());
        assert!(
            (0..whole).all(|length| MetaChange::decode(&bytes[..length]).is_err() || ends_in_a_list(golden))
        );
    }
}

/// Cut behind an item, a list that takes the rest is a shorter one.
fn ends_in_a_list(golden: &str) -> bool {
    golden.starts_with("04") || golden.starts_with("09")
}

#[test]
fn a_lost_replica_is_replaced_once_and_only_where_the_others_are_a_majority() {
    let replica = |number, node| ReplicaId::new(number, NodeNumber(node));
    let two = placement(&[(0, 1), (0, 2)]);
    let three = placement(&[(0, 2), (0, 1), (0, 3)]);
    let mut meta = Meta { next_replica: 4, groups: vec![two.clone(), three], ..Meta::default() };
    let replace = |group, lost| MetaChange::Replace { group: GroupId(group), lost };
    assert_eq!(meta.change(&replace(0, replica(0, 2))), MetaChanged::No);
    assert_eq!(meta.change(&replace(1, replica(9, 2))), MetaChanged::No, "no such replica");
    assert_eq!(meta.change(&replace(1, replica(0, 2))), MetaChanged::Yes);
    assert_eq!(meta.change(&replace(1, replica(0, 2))), MetaChanged::No, "said again");
    let expected = placement(&[(4, 2), (0, 1), (0, 3)]);
    assert_eq!((meta.groups.clone(), meta.next_replica), (vec![two, expected], 5));
}

#[test]
fn a_node_is_where_it_says() {
    let mut meta = Meta { next_node: 1, ..Meta::default() };
    meta.change(&MetaChange::AddNode(node("a", 1)));
    let to = |host: &str, port| {
        MetaChange::Address(NodeAddress {
            node: NodeNumber(1),
            host: host.to_owned(),
            port,
            cluster_port: 9000,
        })
    };
    assert_eq!(meta.change(&to("h", 8000)), MetaChanged::No);
    assert_eq!(meta.change(&to("", 8000)), MetaChanged::No, "no host is no address");
    assert_eq!(meta.change(&to("i", 0)), MetaChanged::No);
    assert_eq!(meta.change(&to("i", 8001)), MetaChanged::Yes);
    let known = meta.node(NodeNumber(1)).unwrap();
    assert_eq!((known.host.as_str(), known.port, known.cluster_port), ("i", 8001, 9000));
}

#[test]
fn one_node_goes_on_alone_as_another_cluster() {
    let mut meta = Meta { next_node: 1, next_replica: 3, cluster: 7, ..Meta::default() };
    meta.change(&MetaChange::AddNode(node("a", 1)));
    meta.change(&MetaChange::AddNode(node("b", 2)));
    meta.groups = vec![placement(&[(0, 1), (0, 2)]), placement(&[(2, 1)])];
    let mine = |number| ReplicaId::new(number, NodeNumber(2));
    let survive = |replicas: &[ReplicaId]| MetaChange::Survive {
        node: NodeNumber(2),
        incarnation: 9,
        cluster: 8,
        replicas: replicas.to_vec(),
    };
    assert!(matches!(meta.change(&survive(&[mine(0)])), MetaChanged::Refused(_)));
    assert_eq!(meta.change(&survive(&[mine(0), mine(3)])), MetaChanged::Yes);
    assert_eq!(meta.change(&survive(&[mine(0), mine(3)])), MetaChanged::No);
    assert!(meta.node(NodeNumber(1)).is_none() && meta.node(NodeNumber(2)).unwrap().incarnation == 9);
    assert_eq!(meta.groups, [placement(&[(0, 2)]), placement(&[(3, 2)])]);
    assert_eq!((meta.cluster, meta.next_replica), (8, 4));
}

#[test]
fn nodes_come_and_go_once() {
    let mut meta = Meta { next_node: 1, next_replica: 1, replicas: 3, ..Meta::default() };
    assert_eq!(meta.change(&MetaChange::AddNode(node("a", 1))), MetaChanged::Yes);
    assert_eq!(meta.change(&MetaChange::AddNode(node("a", 1))), MetaChanged::No);
    assert!(matches!(meta.change(&MetaChange::AddNode(node("a", 2))), MetaChanged::Refused(_)));
    assert!(matches!(meta.change(&MetaChange::RemoveNode(NodeNumber(1))), MetaChanged::Refused(_)));
    assert_eq!(meta.change(&MetaChange::AddNode(node("b", 2))), MetaChanged::Yes);
    meta.groups = vec![placement(&[(0, 1)])];
    assert_eq!(meta.change(&MetaChange::RemoveNode(NodeNumber(1))), MetaChanged::Yes);
    let gone = |meta: &Meta| MetaChange::Gone { node: NodeNumber(1), planned_on: meta.version };
    let early = gone(&meta);
    assert_eq!(meta.change(&early), MetaChanged::No, "a group still names it");
    let place = |meta: &Meta, number| MetaChange::Place {
        group: GroupId(0),
        placement: placement(&[(number, 2)]),
        planned_on: meta.version,
    };
    let moved = place(&meta, 1);
    assert_eq!(meta.change(&moved), MetaChanged::Yes);
    assert_eq!(meta.change(&moved), MetaChanged::No, "planned on an older version");
    assert_eq!(meta.next_replica, 2);
    let gone = gone(&meta);
    assert_eq!(meta.change(&gone), MetaChanged::Yes);
    assert!(meta.node(NodeNumber(1)).is_none() && meta.node_by_id("b").is_some());
    assert!(matches!(meta.change(&MetaChange::AddNode(node("c", 1))), MetaChanged::Refused(_)));
    assert_eq!(meta.change(&MetaChange::AddNode(node("a", 3))), MetaChanged::Yes);
    assert_eq!(meta.node_by_id("a").unwrap().number, NodeNumber(3), "numbers are never given twice");
}

#[test]
fn one_node_is_primary_or_none() {
    let mut meta = Meta { next_node: 1, ..Meta::default() };
    meta.change(&MetaChange::AddNode(node("a", 1)));
    meta.change(&MetaChange::AddNode(node("b", 2)));
    assert_eq!(meta.change(&MetaChange::Primary(NodeNumber(1))), MetaChanged::Yes);
    assert_eq!(meta.change(&MetaChange::Primary(NodeNumber(1))), MetaChanged::No);
    assert_eq!(meta.change(&MetaChange::Primary(NodeNumber(2))), MetaChanged::Yes);
    assert_eq!(meta.nodes.iter().map(|node| node.is_primary).collect::<Vec<_>>(), [false, true]);
    assert!(matches!(meta.change(&MetaChange::Primary(NodeNumber(9))), MetaChanged::Refused(_)));
    assert_eq!(meta.change(&MetaChange::Primary(NodeNumber(0))), MetaChanged::Yes);
}
