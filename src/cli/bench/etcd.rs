//! etcd's protocol, as far as single keys need it: gRPC on HTTP/2 without TLS, many requests under way on one connection.
//!
//! A request is a stream of its own: a HEADERS frame whose bytes never change (no header is indexed, so the connection has no
//! compression state) and a DATA frame. The reply to a call is the one DATA frame of its message; settings, response headers
//! and trailers around it are [`Dialect::noise`]. Streams may be answered in any order; replies are counted against requests
//! in the order sent, so latencies keep their sum and, since etcd answers writes in log order, nearly their shape.
//!
//! Flow control: the connection's receive window is opened to the protocol's limit at the start, which is enough for some
//! fifty million small replies a connection; what is under way towards the server stays far below its window.
//! (RFC 9113 frames, RFC 7541 header fields, the gRPC protocol on HTTP/2, and etcd's `rpc.proto`.)

use super::dialect::{Dialect, Kind, Material, Question, Scan, Verdict};
use std::ops::Range;

/// etcd's protocol.
#[derive(Clone, Copy, Debug)]
pub(super) struct Etcd;

/// Bytes before a frame's payload: length (3), type, flags, stream (4).
const FRAME_HEAD: usize = 9;
/// Bytes before a message: compressed or not, length (4).
const MESSAGE_HEAD: usize = 5;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status 200` in the static table. It opens response headers; trailers never hold it.
const STATUS_OK: u8 = 0x88;
/// From the initial window of 65,535 bytes to the most there can be.
const WINDOW_STEP: u32 = (1 << 31) - 1 - 65_535;

const PUT: &[u8] = b"/etcdserverpb.KV/Put";
const RANGE: &[u8] = b"/etcdserverpb.KV/Range";

impl Dialect for Etcd {
    fn greeting(self) -> Vec<u8> {
        let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        push_frame(SETTINGS, 0, 0, &[], &mut out);
        push_frame(WINDOW_UPDATE, 0, 0, &WINDOW_STEP.to_be_bytes(), &mut out);
        out
    }

    fn push(self, material: &Material, question: Question, out: &mut Vec<u8>) {
        let Question { kind, key, salt, place } = question;
        let (path, value_bytes) = match kind {
            Kind::Get | Kind::ReadToModify => (RANGE, None),
            Kind::Set | Kind::ModifyRead => (PUT, Some(material.value_bytes)),
            Kind::BulkSet | Kind::Range | Kind::Search => unreachable!("the options allow single keys only"),
        };
        // A client's streams are odd and rise.
        let stream = u32::try_from(2 * place + 1).expect("a connection has a thousand million streams");
        let headers = out.len();
        push_frame(HEADERS, END_HEADERS, stream, &[], out);
        push_header_fields(path, out);
        set_length(headers, out);
        let data = out.len();
        push_frame(DATA, END_STREAM, stream, &[0; MESSAGE_HEAD], out);
        push_field(1, material.key_bytes(), out);
        material.push_key(key, out);
        if let Some(value_bytes) = value_bytes {
            push_field(2, value_bytes, out);
            material.push_value(key, salt, out);
        }
        set_length(data, out);
        let message = data + FRAME_HEAD;
        let length = (out.len() - message - MESSAGE_HEAD) as u32;
        out[message + 1..message + MESSAGE_HEAD].copy_from_slice(&length.to_be_bytes());
    }

    fn noise(self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while let Some(frame) = Frame::first(&bytes[at..])
            && frame.is_noise()
        {
            at += frame.length();
        }
        at
    }

    fn scan(self, bytes: &[u8], kind: Kind) -> Scan {
        let Some(frame) = Frame::first(bytes) else {
            // Another protocol's first bytes make an absurd frame; one would wait for its end for ever.
            let absurd = bytes.len() >= FRAME_HEAD && bytes[3] > 9;
            return if absurd { Scan::Broken("this is no frame of HTTP/2") } else { Scan::Partial };
        };
        let length = frame.length();
        match frame.kind {
            DATA => match message(frame.payload) {
                None => Scan::Broken("a message is not whole in its frame"),
                Some(reply) => {
                    let is_read = matches!(kind, Kind::Get | Kind::ReadToModify);
                    let is_absent = is_read && field(reply, 2).is_none();
                    Scan::Whole {
                        length,
                        verdict: if is_absent { Verdict::Absent } else { Verdict::Success },
                    }
                }
            },
            // A refusal: headers and trailers in one, or a stream that is cut off.
            HEADERS | RST_STREAM => Scan::Whole { length, verdict: Verdict::Error },
            GOAWAY => Scan::Broken("it says goodbye"),
            _ => Scan::Broken("this is no frame of HTTP/2"),
        }
    }

    fn value(self, reply: &[u8]) -> Option<Range<usize>> {
        let found = field(message(Frame::first(reply)?.payload)?, 2).and_then(|record| field(record, 5))?;
        let start = found.as_ptr() as usize - reply.as_ptr() as usize;
        Some(start..start + found.len())
    }
}

/// A whole frame at the beginning of some bytes.
struct Frame<'b> {
    kind: u8,
    flags: u8,
    payload: &'b [u8],
}

impl<'b> Frame<'b> {
    fn first(bytes: &'b [u8]) -> Option<Self> {
        let head = bytes.get(..FRAME_HEAD)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = bytes.get(FRAME_HEAD..FRAME_HEAD + length)?;
        Some(Self { kind: head[3], flags: head[4], payload })
    }

    fn length(&self) -> usize {
        FRAME_HEAD + self.payload.len()
    }

    fn is_noise(&self) -> bool {
        match self.kind {
            // The end of a stream may be a frame without a message.
            DATA => self.payload.is_empty(),
            HEADERS => self.flags & END_STREAM == 0 || self.payload.first() != Some(&STATUS_OK),
            // PRIORITY, SETTINGS, PUSH_PROMISE, PING, WINDOW_UPDATE, CONTINUATION.
            2 | SETTINGS | 5 | 6 | WINDOW_UPDATE | 9 => true,
            _ => false,
        }
    }
}

fn push_frame(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Says in the frame that begins here that it goes up to the end.
fn set_length(start: usize, out: &mut [u8]) {
    let length = (out.len() - start - FRAME_HEAD) as u32;
    out[start..start + 3].copy_from_slice(&length.to_be_bytes()[1..]);
}

/// Header fields of a call: indexed where the static table has the whole field, else literals that nobody remembers.
fn push_header_fields(path: &[u8], out: &mut Vec<u8>) {
    let literal = |name: &[u8], value: &[u8], out: &mut Vec<u8>| {
        out.extend_from_slice(name);
        out.push(value.len() as u8);
        out.extend_from_slice(value);
    };
    // `:method POST` and `:scheme http`.
    out.extend_from_slice(&[0x83, 0x86]);
    // Names by their place in the static table: `:path` 4, `:authority` 1, `content-type` 31.
    literal(&[0x04], path, out);
    literal(&[0x01], b"etcd", out);
    literal(&[0x0f, 31 - 15], b"application/grpc", out);
    literal(b"\x00\x02te", b"trailers", out);
}

/// Appends the tag and length of a field of bytes.
fn push_field(number: u8, length: usize, out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    let mut rest = length;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// The message of a DATA frame that holds one whole.
fn message(payload: &[u8]) -> Option<&[u8]> {
    let (head, message) = payload.split_at_checked(MESSAGE_HEAD)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    (head[0] == 0 && length == message.len()).then_some(message)
}

/// The first field of this number that holds bytes.
fn field(mut message: &[u8], wanted: u64) -> Option<&[u8]> {
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let length = match tag & 7 {
            0 => {
                varint(&mut message)?;
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (bytes, rest) = message.split_at_checked(length)?;
        if tag == wanted << 3 | 2 {
            return Some(bytes);
        }
        message = rest;
    }
    None
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::dialect::tests::{check_scan, material};
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        push_frame(kind, flags, 1, payload, &mut out);
        out
    }

    fn reply(message: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 0, 0, 0, message.len() as u8];
        payload.extend_from_slice(message);
        frame(DATA, 0, &payload)
    }

    #[test]
    fn a_request_is_two_frames_of_its_own_stream() {
        let mut out = Vec::new();
        let question = Question { kind: Kind::Set, key: 7, salt: 0, place: 3 };
        Etcd.push(&material(3), question, &mut out);
        let headers = Frame::first(&out).unwrap();
        assert_eq!((headers.kind, headers.flags, &out[5..9]), (HEADERS, END_HEADERS, &[0, 0, 0, 7][..]));
        // Golden: the header block as an independent encoder writes it without indexing.
        let expected =
            b"\x83\x86\x04\x14/etcdserverpb.KV/Put\x01\x04etcd\x0f\x10\x10application/grpc\x00\x02te\x08trailers";
        assert_eq!(headers.payload, expected);
        let data = &out[headers.length()..];
        let body = Frame::first(data).unwrap();
        assert_eq!((body.kind, body.flags, body.length()), (DATA, END_STREAM, data.len()));
        assert_eq!(message(body.payload).unwrap(), b"\x0a\x10key:000000000007\x12\x03700");
    }

    #[test]
    fn long_values_have_long_lengths() {
        let mut out = Vec::new();
        push_field(2, 300, &mut out);
        assert_eq!(out, [0x12, 0xac, 0x02]);
        out.extend_from_slice(&[7; 300]);
        assert_eq!(field(&out, 2).unwrap().len(), 300);
        assert_eq!(field(&out, 1), None);
    }

    #[test]
    fn replies_are_told_apart() {
        let record = [&b"\x0a\x01k\x10\x05\x2a\x03700"[..]].concat();
        let mut found = vec![0x0a, 2, 0x08, 1, 0x12, record.len() as u8];
        found.extend_from_slice(&record);
        let found = reply(&found);
        check_scan(Etcd, Kind::Get, &found, &Verdict::Success);
        assert_eq!(&found[Etcd.value(&found).unwrap()], b"700");
        check_scan(Etcd, Kind::Get, &reply(b"\x0a\x02\x08\x01"), &Verdict::Absent);
        check_scan(Etcd, Kind::Set, &reply(b"\x0a\x02\x08\x01"), &Verdict::Success);
        check_scan(Etcd, Kind::Set, &frame(HEADERS, END_HEADERS | END_STREAM, b"\x88abc"), &Verdict::Error);
        assert!(matches!(Etcd.scan(b"HTTP/1.1 400 Bad Request\r\n", Kind::Set), Scan::Broken(_)));
        assert!(matches!(Etcd.scan(&frame(GOAWAY, 0, &[0; 8]), Kind::Set), Scan::Broken(_)));
    }

    #[test]
    fn what_is_no_reply_is_passed_over() {
        let mut bytes = frame(SETTINGS, 0, &[0; 6]);
        bytes.extend(frame(WINDOW_UPDATE, 0, &[0; 4]));
        bytes.extend(frame(HEADERS, END_HEADERS, b"\x88rest"));
        let noise = bytes.len();
        bytes.extend(reply(b"\x0a\x02\x08\x01"));
        assert_eq!(Etcd.noise(&bytes), noise);
        for length in 0..noise {
            assert!(Etcd.noise(&bytes[..length]) <= length);
        }
        // Trailers end a stream that was answered.
        let trailers = frame(HEADERS, END_HEADERS | END_STREAM, b"\x40\x0bgrpc-status\x010");
        assert_eq!(Etcd.noise(&trailers), trailers.len());
    }
}
