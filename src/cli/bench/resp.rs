//! Redis's protocol, RESP2 and the scalar types of RESP3, so that the same generator can load Redis and its relatives.

use super::dialect::{Dialect, Kind, Material, Question, Scan, Verdict};
use std::ops::Range;
use strand_wire::reply::push_unsigned;

/// Redis's protocol.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resp;

/// Replies nest no deeper than this; deeper ones are not Redis's.
const DEPTH_MAX: usize = 8;

impl Dialect for Resp {
    fn push(self, material: &Material, question: Question, out: &mut Vec<u8>) {
        let Question { kind, key, salt, .. } = question;
        match kind {
            Kind::Get | Kind::ReadToModify => {
                out.extend_from_slice(b"*2\r\n$3\r\nGET\r\n");
                push_key(material, key, out);
            }
            Kind::Set | Kind::ModifyRead => {
                out.extend_from_slice(b"*3\r\n$3\r\nSET\r\n");
                push_key(material, key, out);
                push_value(material, key, salt, out);
            }
            Kind::BulkSet => {
                out.push(b'*');
                push_unsigned(out, 2 * material.batch as u64 + 1);
                out.extend_from_slice(b"\r\n$4\r\nMSET\r\n");
                for number in key..key + material.batch as u64 {
                    push_key(material, number, out);
                    push_value(material, number, salt, out);
                }
            }
            Kind::Range | Kind::Search => {
                unreachable!("the plan refuses workloads that Redis's strings cannot answer")
            }
        }
    }

    fn scan(self, bytes: &[u8], _kind: Kind) -> Scan {
        match item(bytes, 0) {
            Item::Partial => Scan::Partial,
            Item::Broken(why) => Scan::Broken(why),
            Item::Whole(length) => {
                let verdict = match bytes[0] {
                    b'-' | b'!' => Verdict::Error,
                    b'$' | b'*' if bytes[1] == b'-' => Verdict::Absent,
                    b'_' => Verdict::Absent,
                    _ => Verdict::Success,
                };
                Scan::Whole { length, verdict }
            }
        }
    }

    fn value(self, reply: &[u8]) -> Option<Range<usize>> {
        if reply.first() != Some(&b'$') {
            return None;
        }
        let end = memchr::memchr(b'\n', reply)?;
        reply.ends_with(b"\r\n").then(|| end + 1..reply.len() - 2)
    }
}

fn push_key(material: &Material, key: u64, out: &mut Vec<u8>) {
    push_length(material.key_bytes(), out);
    material.push_key(key, out);
    out.extend_from_slice(b"\r\n");
}

fn push_value(material: &Material, key: u64, salt: u64, out: &mut Vec<u8>) {
    push_length(material.value_bytes, out);
    material.push_value(key, salt, out);
    out.extend_from_slice(b"\r\n");
}

fn push_length(length: usize, out: &mut Vec<u8>) {
    out.push(b'$');
    push_unsigned(out, length as u64);
    out.extend_from_slice(b"\r\n");
}

enum Item {
    Partial,
    Whole(usize),
    Broken(&'static str),
}

/// The extent of the first reply.
fn item(bytes: &[u8], depth: usize) -> Item {
    let Some(end) = memchr::memchr(b'\n', bytes) else { return Item::Partial };
    let Some(head) = bytes[..end].strip_suffix(b"\r") else { return Item::Broken("a line ends without CR") };
    match head.first() {
        Some(b'+' | b'-' | b':' | b'_' | b',' | b'#') => Item::Whole(end + 1),
        Some(b'$' | b'!' | b'=') => match count(&head[1..]) {
            Some(None) => Item::Whole(end + 1),
            Some(Some(length)) => {
                let whole = end + 1 + length + 2;
                match bytes.get(whole - 2..whole) {
                    None => Item::Partial,
                    Some(b"\r\n") => Item::Whole(whole),
                    Some(_) => Item::Broken("a string is longer than it says"),
                }
            }
            None => Item::Broken("a string has no length"),
        },
        Some(b'*' | b'~') if depth < DEPTH_MAX => match count(&head[1..]) {
            Some(count) => items(bytes, end + 1, count.unwrap_or(0), depth + 1),
            None => Item::Broken("an array has no length"),
        },
        _ => Item::Broken("a reply begins with a byte that is none of its types"),
    }
}

fn items(bytes: &[u8], mut at: usize, count: usize, depth: usize) -> Item {
    for _ in 0..count {
        match item(&bytes[at..], depth) {
            Item::Whole(length) => at += length,
            other => return other,
        }
    }
    Item::Whole(at)
}

/// A length; `Some(None)` is -1, which stands for nothing.
fn count(digits: &[u8]) -> Option<Option<usize>> {
    if digits == b"-1" {
        return Some(None);
    }
    let sound = !digits.is_empty() && digits.len() < 10 && digits.iter().all(u8::is_ascii_digit);
    sound.then(|| Some(digits.iter().fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'))))
}

#[cfg(test)]
mod tests {
    use super::super::dialect::tests::{check_scan, material, question};
    use super::*;

    fn check(kind: Kind, expected: &str) {
        let mut out = Vec::new();
        Resp.push(&material(3), question(kind, 7, 4), &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn requests_are_arrays() {
        let key = |n: u64| format!("$16\r\nkey:{n:012}\r\n");
        check(Kind::Get, &format!("*2\r\n$3\r\nGET\r\n{}", key(7)));
        check(Kind::Set, &format!("*3\r\n$3\r\nSET\r\n{}$3\r\n700\r\n", key(7)));
        let expected = format!("*5\r\n$4\r\nMSET\r\n{}$3\r\n700\r\n{}$3\r\n800\r\n", key(7), key(8));
        check(Kind::BulkSet, &expected);
    }

    #[test]
    fn replies_are_told_apart() {
        check_scan(Resp, Kind::Set, b"+OK\r\n", &Verdict::Success);
        check_scan(Resp, Kind::Set, b"-ERR unknown command\r\n", &Verdict::Error);
        check_scan(Resp, Kind::Get, b"$5\r\na\r\nbc\r\n", &Verdict::Success);
        check_scan(Resp, Kind::Get, b"$0\r\n\r\n", &Verdict::Success);
        check_scan(Resp, Kind::Get, b"$-1\r\n", &Verdict::Absent);
        check_scan(Resp, Kind::Get, b"*2\r\n$1\r\na\r\n*1\r\n:7\r\n", &Verdict::Success);
    }

    #[test]
    fn other_bytes_are_no_replies() {
        for bytes in [&b"HTTP/1.1 200 OK\r\n"[..], b"+OK\n", b"$x\r\n", b"$1\r\nabc\r\n", b"*\r\n"] {
            assert!(matches!(Resp.scan(bytes, Kind::Get), Scan::Broken(_)), "{bytes:?}");
        }
        let deep = b"*1\r\n".repeat(DEPTH_MAX + 1);
        assert!(matches!(Resp.scan(&deep, Kind::Get), Scan::Broken(_)));
    }

    #[test]
    fn values_are_found() {
        let reply = b"$5\r\na\r\nbc\r\n";
        assert_eq!(&reply[Resp.value(reply).unwrap()], b"a\r\nbc");
        assert_eq!(Resp.value(b"+OK\r\n"), None);
    }
}
