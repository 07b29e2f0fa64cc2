//! What the generator needs of a protocol: requests as bytes, and replies told apart.
//!
//! Both protocols get the same effort: requests are put together from parts without formatting, every reply is found to its
//! last byte and checked for its status, and the value of a sampled one is compared. Knows no sockets and no time.

use std::ops::Range;

/// What a reply says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Done; for a read, found.
    Success,
    /// A read of something that is not there.
    Absent,
    /// Refused; the bytes say why.
    Error,
}

/// The first reply in some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// It is not all there.
    Partial,
    /// It takes so many bytes.
    Whole {
        /// Bytes of the reply, line end included.
        length: usize,
        /// What it says.
        verdict: Verdict,
    },
    /// These bytes are not the protocol; the text says why.
    Broken(&'static str),
}

/// What one request does, to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Read a value.
    Get,
    /// Write a value.
    Set,
    /// Write several values in one request, the key and those after it.
    BulkSet,
    /// The read of a read-modify-write.
    ReadToModify,
    /// The write of a read-modify-write.
    ModifyRead,
    /// A range of a value index in order, from the key on.
    Range,
    /// Full text; the key is the number of the query.
    Search,
}

/// Everything that makes the bytes of requests, shared by all connections.
#[derive(Debug)]
pub(super) struct Material {
    /// Before the number of a key.
    pub(super) key_prefix: String,
    /// Bytes of a value between its quotes.
    pub(super) value_bytes: usize,
    /// Keys of a bulk write.
    pub(super) batch: usize,
    /// Results of a search or range.
    pub(super) limit: usize,
    /// What a write asks for, where the protocol has it.
    pub(super) durability: Option<&'static str>,
    /// Whether values are objects with a number that an index can order.
    pub(super) objects: bool,
    /// Random letters; a value is cut out of them.
    pub(super) letters: Vec<u8>,
    /// Documents of the text file, by key number; empty for made-up values.
    pub(super) documents: Vec<String>,
    /// Full-text queries, by number.
    pub(super) queries: Vec<String>,
}

/// Digits in a key.
pub(super) const KEY_DIGITS: usize = 12;

/// Beyond the longest value, so that values begin at different letters.
pub(super) const SPARE_LETTERS: usize = 4096;

impl Material {
    /// Appends the bytes of a key.
    pub(super) fn push_key(&self, number: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(self.key_prefix.as_bytes());
        out.extend_from_slice(&digits(number));
    }

    /// Bytes of a key.
    pub(super) fn key_bytes(&self) -> usize {
        self.key_prefix.len() + KEY_DIGITS
    }

    /// Appends a value for this key: as much of the key's digits as fit, last first, then letters that differ by `salt`.
    pub(super) fn push_value(&self, number: u64, salt: u64, out: &mut Vec<u8>) {
        let mark = mark(number);
        let marked = self.value_bytes.min(KEY_DIGITS);
        out.extend_from_slice(&mark[..marked]);
        let start = (salt % SPARE_LETTERS as u64) as usize;
        out.extend_from_slice(&self.letters[start..][..self.value_bytes - marked]);
    }

    /// Whether these bytes are some value that [`Material::push_value`] writes for this key.
    pub(super) fn is_value_of(&self, number: u64, value: &[u8]) -> bool {
        let marked = self.value_bytes.min(KEY_DIGITS);
        value.len() == self.value_bytes && value[..marked] == mark(number)[..marked]
    }
}

/// The digits of a key number.
fn digits(mut number: u64) -> [u8; KEY_DIGITS] {
    let mut digits = [b'0'; KEY_DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    digits
}

/// The digits, last first, so that even a short value tells neighbours apart.
fn mark(number: u64) -> [u8; KEY_DIGITS] {
    let mut mark = digits(number);
    mark.reverse();
    mark
}

/// One request as a protocol writes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub(super) kind: Kind,
    pub(super) key: u64,
    /// Makes values differ.
    pub(super) salt: u64,
    /// Requests before it on its connection.
    pub(super) place: u64,
}

/// A protocol.
pub(super) trait Dialect: Copy + Send + Sync + 'static {
    /// What a connection says before its first request.
    fn greeting(self) -> Vec<u8> {
        Vec::new()
    }

    /// Appends one request.
    fn push(self, material: &Material, question: Question, out: &mut Vec<u8>);

    /// Whole pieces at the beginning of what was received that belong to no reply, in bytes.
    fn noise(self, _bytes: &[u8]) -> usize {
        0
    }

    /// Finds the first reply in the bytes, the answer to a request of this kind.
    fn scan(self, bytes: &[u8], kind: Kind) -> Scan;

    /// Where the value stands in a successful reply to a GET, without its quotes.
    fn value(self, reply: &[u8]) -> Option<Range<usize>>;

    /// A sentence about a reply of [`Verdict::Error`].
    fn explain(self, reply: &[u8]) -> String {
        String::from_utf8_lossy(&reply[..reply.len().min(300)]).trim_end().to_owned()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn material(value_bytes: usize) -> Material {
        Material {
            key_prefix: "key:".to_owned(),
            value_bytes,
            batch: 2,
            limit: 10,
            durability: None,
            objects: false,
            letters: vec![b'x'; value_bytes + SPARE_LETTERS],
            documents: Vec::new(),
            queries: vec!["fox".to_owned()],
        }
    }

    pub(crate) fn question(kind: Kind, key: u64, salt: u64) -> Question {
        Question { kind, key, salt, place: 0 }
    }

    /// Cuts the reply at every byte: all but the whole is partial, and what follows is not touched.
    pub(crate) fn check_scan(dialect: impl Dialect, kind: Kind, reply: &[u8], expected: &Verdict) {
        let mut bytes = reply.to_vec();
        bytes.extend_from_slice(reply);
        for length in 0..reply.len() {
            assert_eq!(dialect.scan(&bytes[..length], kind), Scan::Partial, "{length}");
        }
        let whole = Scan::Whole { length: reply.len(), verdict: expected.clone() };
        for length in reply.len()..bytes.len() {
            assert_eq!(dialect.scan(&bytes[..length], kind), whole);
        }
    }

    #[test]
    fn values_tell_their_key() {
        for value_bytes in [1, 5, 12, 64] {
            let material = material(value_bytes);
            let mut value = Vec::new();
            material.push_value(123, 77, &mut value);
            assert_eq!(value.len(), value_bytes);
            assert!(material.is_value_of(123, &value));
            assert!(!material.is_value_of(124, &value));
            assert!(!material.is_value_of(123, &value[1..]));
        }
    }
}
