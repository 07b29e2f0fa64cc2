//! What nodes say to one another: frames, and the payload of every kind. What is read can be written and read again as
//! the same; what a stranger writes is refused.
//!
//! The first byte chooses the kind of the payload and whether it comes in a sound frame, the second how it is cut into pieces.

use super::{Target, words_of};
use crate::drive::drive;
use crate::engine::{behaviour, class_of};
use crate::forward;
use raft::prelude::{ConfState, Entry, Message, MessageType};
use shards::ids::{GroupId, NodeNumber, ReplicaId};
use shards::log::payload::PayloadBuffer;
use shards::meta::{GroupPlacement, Meta, Node};
use shards::peer::PayloadRefused;
use shards::peer::founding::{Seen, Status};
use shards::peer::frame::{Expected, FrameReader, FrameWriter, Kind};
use shards::peer::gossip::Gossip;
use shards::peer::group_message::{decode_group, encode_group};
use shards::peer::hello::{Card, Hello, Purpose, Refusal, RefusalCode, Welcome};
use shards::peer::meta_codec::{decode_meta, encode_meta};
use shards::peer::pull::{Answer, Ask};
use shards::peer::raft_message::{decode_raft, encode_raft};

const CLUSTER: u128 = 77;
const SESSION: u64 = 5;
const GROUPS: u32 = 8;
const KINDS: u8 = 11;
/// The bit of the first byte that says that the rest is a stream of frames, not a payload.
const RAW_BIT: u8 = 0x80;

/// See the module's head.
pub(super) struct Peers {
    scratch: PayloadBuffer,
    out: PayloadBuffer,
}

impl Peers {
    /// The target.
    pub(super) fn new() -> Self {
        Self { scratch: PayloadBuffer::new(), out: PayloadBuffer::new() }
    }

    fn refused(error: &PayloadRefused) -> u64 {
        let letters: Vec<u8> = error.0.bytes().filter(u8::is_ascii_alphabetic).take(40).collect();
        behaviour(&[9, xxhash_rust::xxh3::xxh3_64(&letters)])
    }

    /// Reads, writes and reads again.
    fn twice<T: PartialEq + std::fmt::Debug>(
        &mut self,
        payload: &[u8],
        read: impl Fn(&[u8], &mut PayloadBuffer) -> Result<T, PayloadRefused>,
        write: impl Fn(&T, &mut PayloadBuffer),
    ) -> Result<T, u64> {
        let found = read(payload, &mut self.scratch).map_err(|error| Self::refused(&error))?;
        write(&found, &mut self.out);
        let again = read(&self.out, &mut self.scratch);
        assert_eq!(again.as_ref(), Ok(&found), "what was read, written and read again");
        Ok(found)
    }

    fn payload(&mut self, kind: u8, payload: &[u8]) -> u64 {
        let told = match kind {
            0 => self.twice(payload, Hello::decode, Hello::encode).map(|hello| {
                assert!(hello.card.id.len() <= 4096);
                [u64::from(hello.common_protocol().is_some()), class_of(hello.card.id.len())]
            }),
            1 => self
                .twice(payload, Welcome::decode, Welcome::encode)
                .map(|welcome| [u64::from(welcome.refusal.is_some()), class_of(welcome.card.host.len())]),
            2 => {
                let write = |message: &Message, out: &mut PayloadBuffer| assert!(encode_raft(message, out));
                self.twice(payload, decode_raft, write).map(|message| {
                    let data: usize = message.entries.iter().map(|entry| entry.data.len()).sum();
                    assert!(data <= payload.len(), "no more data than came");
                    [message.msg_type as u64, class_of(message.entries.len())]
                })
            }
            3 => {
                let read = |bytes: &[u8], _: &mut PayloadBuffer| decode_group(bytes, GROUPS);
                let write = |message: &_, out: &mut PayloadBuffer| {
                    let mut bytes = Vec::new();
                    encode_group(message, &mut bytes);
                    out.clear();
                    out.extend_from_slice(&bytes);
                };
                self.twice(payload, read, write).map(|message| {
                    assert!(message.from.0 < GROUPS && message.to.0 < GROUPS);
                    let body = xxhash_rust::xxh3::xxh3_64(
                        format!("{:?}", std::mem::discriminant(&message.body)).as_bytes(),
                    );
                    [body, 0]
                })
            }
            4 => self
                .twice(payload, Gossip::decode, Gossip::encode)
                .map(|gossip| [u64::from(gossip.meta.is_some()), class_of(gossip.leaders.len())]),
            5 => self
                .twice(payload, Status::decode, Status::encode)
                .map(|status| [class_of(status.seen.len()), u64::from(status.is_primary)]),
            6 => self
                .twice(payload, decode_meta, encode_meta)
                .map(|meta| [class_of(meta.nodes.len()), class_of(meta.groups.len())]),
            7 => {
                let read = |bytes: &[u8], _: &mut PayloadBuffer| Ask::decode(bytes);
                let write = |ask: &Ask, out: &mut PayloadBuffer| {
                    let mut bytes = Vec::new();
                    ask.encode(&mut bytes);
                    out.clear();
                    out.extend_from_slice(&bytes);
                };
                self.twice(payload, read, write).map(|ask| [class_of(ask.bytes_max as usize), 0])
            }
            8 => match Answer::decode(payload) {
                Ok(answer) => {
                    let mut bytes = Vec::new();
                    answer.encode(&mut bytes);
                    assert_eq!(bytes, payload, "an answer has one form");
                    Ok([u64::from(answer == Answer::None), 1])
                }
                Err(error) => Err(Self::refused(&error)),
            },
            9 => forward::judge_requests(payload),
            _ => forward::judge_replies(payload),
        };
        let parts = told.unwrap_or_else(|refused| [refused, 99]);
        behaviour(&[u64::from(kind), parts[0], parts[1]])
    }

    /// Frames out of a stream that comes in pieces; the payloads.
    fn frames(stream: &[u8], piece: usize) -> Result<Vec<(Kind, Vec<u8>)>, String> {
        let expected = Expected { cluster: Some(CLUSTER), session: SESSION, payload_bytes_max: 1 << 20 };
        let mut reader = FrameReader::new(expected);
        let mut found = Vec::new();
        for mut rest in stream.chunks(piece.max(1)) {
            while !rest.is_empty() {
                let space = reader.space(64);
                let taken = space.len().min(rest.len());
                space[..taken].copy_from_slice(&rest[..taken]);
                reader.filled(taken);
                rest = &rest[taken..];
                loop {
                    let announced = reader.has_frame().map_err(|error| error.to_string())?;
                    let Some(frame) = reader.next().map_err(|error| error.to_string())? else {
                        assert!(!announced, "a frame that was announced comes");
                        break;
                    };
                    assert!(announced, "a frame comes announced");
                    found.push((frame.kind, frame.payload.to_vec()));
                }
            }
        }
        Ok(found)
    }
}

fn card() -> Card {
    Card {
        id: "node1".to_owned(),
        number: 1,
        incarnation: 9,
        shards: 2,
        host: "127.0.0.1".to_owned(),
        port: 8000,
        cluster_port: 9000,
    }
}

fn meta() -> Meta {
    let node = |number: u16| Node {
        number: NodeNumber(number),
        id: format!("node{number}"),
        incarnation: u128::from(number),
        host: "h".to_owned(),
        port: 8000 + number,
        cluster_port: 9000 + number,
        ..Node::default()
    };
    let replica = |number: u16| ReplicaId::new(0, NodeNumber(number));
    let group = GroupPlacement { replicas: vec![replica(1), replica(2)], preferred: replica(1) };
    Meta {
        version: 3,
        cluster: CLUSTER,
        replicas: 2,
        nodes: vec![node(1), node(2)],
        groups: vec![group.clone(), group],
        next_node: 3,
        next_replica: 1,
    }
}

fn raft_messages() -> Vec<Message> {
    let plain = Message { to: 2, from: 1, term: 4, ..Message::default() };
    let entry = Entry { term: 3, index: 8, data: b"data".to_vec().into(), ..Entry::default() };
    let mut append = Message { msg_type: MessageType::MsgAppend, index: 7, commit: 6, ..plain.clone() };
    append.entries = vec![entry.clone(), Entry { index: 9, ..entry }].into();
    let mut snapshot = Message { msg_type: MessageType::MsgSnapshot, ..plain.clone() };
    let metadata = snapshot.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (100, 3);
    metadata.set_conf_state(ConfState { voters: vec![1, 2], learners: vec![3], ..ConfState::default() });
    let mut heartbeat = Message { msg_type: MessageType::MsgHeartbeat, ..plain.clone() };
    heartbeat.context = b"context".to_vec().into();
    vec![append, snapshot, heartbeat, Message { msg_type: MessageType::MsgRequestVote, ..plain }]
}

impl Target for Peers {
    fn seeds(&self) -> Vec<Vec<u8>> {
        let mut payloads: Vec<(u8, Vec<u8>)> = Vec::new();
        let mut out = PayloadBuffer::new();
        for purpose in [Purpose::Raft(GroupId(1)), Purpose::Control, Purpose::Founding] {
            let to = NodeNumber(2);
            Hello { protocols: (1, 1), cluster: CLUSTER, card: card(), to, purpose, nonce: 6 }
                .encode(&mut out);
            payloads.push((0, out.to_vec()));
        }
        for refusal in [None, Some(Refusal { code: RefusalCode::NotMe, text: "no".to_owned() })] {
            Welcome { protocol: 1, cluster: CLUSTER, card: card(), session: 5, echo: 6, refusal }
                .encode(&mut out);
            payloads.push((1, out.to_vec()));
        }
        for message in raft_messages() {
            assert!(encode_raft(&message, &mut out));
            payloads.push((2, out.to_vec()));
        }
        for message in &drive().messages {
            let mut bytes = Vec::new();
            encode_group(message, &mut bytes);
            payloads.push((3, bytes));
        }
        Gossip { meta_version: 3, meta: Some(meta()), leaders: vec![(4, 1), (5, 0)] }.encode(&mut out);
        payloads.push((4, out.to_vec()));
        let seen = Seen { id: "n".to_owned(), host: "h".to_owned(), ..Seen::default() };
        Status { seen: vec![seen], missing: 1, shards: 2, replicas: 3, ..Status::default() }.encode(&mut out);
        payloads.push((5, out.to_vec()));
        encode_meta(&meta(), &mut out);
        payloads.push((6, out.to_vec()));
        let mut bytes = Vec::new();
        Ask { index: 7, offset: 4096, bytes_max: 100 }.encode(&mut bytes);
        payloads.push((7, bytes.clone()));
        bytes.clear();
        Answer::Piece { index: 7, length: 9, bytes: b"abc" }.encode(&mut bytes);
        payloads.push((8, bytes));
        payloads.push((9, forward::requests()));
        payloads.push((10, forward::replies()));
        let mut seeds: Vec<Vec<u8>> =
            payloads.iter().map(|(kind, bytes)| [&[*kind, 7][..], bytes].concat()).collect();
        let mut stream = Vec::new();
        let mut writer = FrameWriter::new(CLUSTER, SESSION);
        for (_, payload) in payloads.iter().take(3) {
            writer.push(&mut stream, Kind::Raft, payload);
        }
        seeds.push([&[RAW_BIT, 40][..], &stream].concat());
        seeds
    }

    fn words(&self) -> Vec<Vec<u8>> {
        let mut words = words_of(&["STRF", "node1", "h"]);
        words.extend([
            vec![0; 8],
            vec![0xff; 4],
            vec![0xfe, 0xff, 0xff, 0xff],
            vec![0xff; 8],
            vec![1, 0, 0, 0],
        ]);
        words
    }

    fn bytes_max(&self) -> usize {
        1200
    }

    fn run(&mut self, input: &[u8]) -> u64 {
        let [first, piece, rest @ ..] = input else { return 0 };
        let piece = usize::from(*piece) + 1;
        if first & RAW_BIT != 0 {
            let found = Self::frames(rest, piece);
            assert_eq!(found, Self::frames(rest, rest.len()), "pieces change nothing");
            return match found {
                Ok(frames) => behaviour(&[7, class_of(frames.len())]),
                Err(text) => {
                    let letters: Vec<u8> = text.bytes().filter(u8::is_ascii_alphabetic).take(40).collect();
                    behaviour(&[8, xxhash_rust::xxh3::xxh3_64(&letters)])
                }
            };
        }
        // What is said in a sound frame arrives as it was said.
        let mut stream = Vec::new();
        let mut writer = FrameWriter::new(CLUSTER, SESSION);
        writer.push(&mut stream, Kind::Gossip, rest);
        writer.push(&mut stream, Kind::Group, b"next");
        let frames = Self::frames(&stream, piece).expect("our own frames");
        assert!(frames.len() == 2 && frames[0] == (Kind::Gossip, rest.to_vec()), "a frame there and back");
        self.payload(first % KINDS, rest)
    }
}
