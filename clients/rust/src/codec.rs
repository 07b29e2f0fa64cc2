//! Commands into lines and bytes into lines; the lowest layer, without sockets and without state beyond one buffer.
//!
//! Invariants: an encoded command is exactly one line; the decoder never holds more than its bound plus one read.

use crate::command::Command;

/// What makes a write apply once: the client's id, the write's number and the lowest number still unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp<'a> {
    /// Unique per client instance.
    pub client: &'a str,
    /// Rising by one a write; the same in every retry of that write.
    pub seq: u64,
    /// Lowest number whose reply has not come yet; at most `seq`.
    pub acked: u64,
}

/// Appends one command as a line.
pub fn encode(command: &Command, stamp: Option<Stamp<'_>>, id: Option<u64>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"command\":");
    write_text(out, command.name());
    if let Some(id) = id {
        out.extend_from_slice(b",\"id\":");
        write_number(out, id);
    }
    out.extend_from_slice(command.body());
    if let Some(stamp) = stamp {
        assert!(stamp.acked <= stamp.seq, "a write is unanswered while it is being sent");
        out.extend_from_slice(b",\"client\":");
        write_text(out, stamp.client);
        out.extend_from_slice(b",\"seq\":");
        write_number(out, stamp.seq);
        out.extend_from_slice(b",\"acked\":");
        write_number(out, stamp.acked);
    }
    out.extend_from_slice(b"}\n");
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a text is always JSON");
}

fn write_number(out: &mut Vec<u8>, number: u64) {
    serde_json::to_writer(out, &number).expect("a number is always JSON");
}

/// Cuts received bytes into lines.
#[derive(Debug)]
pub struct LineDecoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were handed out.
    consumed: usize,
    /// Bytes of `buffer` that are known to hold no line end after `consumed`.
    scanned: usize,
    line_bytes_max: usize,
}

/// A line is longer than the decoder's bound; the connection cannot be used any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineTooLong;

/// Memory that a decoder keeps when it has nothing to decode, in bytes.
const KEEP_BYTES: usize = 64 * 1024;

impl LineDecoder {
    /// A decoder that refuses lines of more than `line_bytes_max` bytes.
    pub fn new(line_bytes_max: usize) -> Self {
        Self { buffer: Vec::new(), consumed: 0, scanned: 0, line_bytes_max }
    }

    /// Takes bytes as they came from the network.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.consumed == self.buffer.len() {
            self.buffer.clear();
            self.buffer.shrink_to(KEEP_BYTES);
            self.scanned = 0;
            self.consumed = 0;
        } else if self.consumed > KEEP_BYTES {
            self.buffer.drain(..self.consumed);
            self.scanned -= self.consumed;
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line without its end, or `None` until more bytes come.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, LineTooLong> {
        let found = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n');
        let Some(offset) = found else {
            self.scanned = self.buffer.len();
            let waiting = self.buffer.len() - self.consumed;
            return if waiting > self.line_bytes_max { Err(LineTooLong) } else { Ok(None) };
        };
        let (start, end) = (self.consumed, self.scanned + offset);
        if end - start > self.line_bytes_max {
            return Err(LineTooLong);
        }
        self.consumed = end + 1;
        self.scanned = self.consumed;
        let line = &self.buffer[start..end];
        Ok(Some(line.strip_suffix(b"\r").unwrap_or(line)))
    }

    /// Whether bytes are waiting that were not handed out.
    pub fn is_empty(&self) -> bool {
        self.consumed == self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamped_command_is_one_line() {
        let command = Command::new("SET").key("a\nb").plain("value", &1);
        let mut out = Vec::new();
        encode(&command, Some(Stamp { client: "c", seq: 5, acked: 4 }), Some(9), &mut out);
        let golden = "{\"command\":\"SET\",\"id\":9,\"key\":\"a\\nb\",\"value\":1,\"client\":\"c\",\"seq\":5,\"acked\":4}\n";
        assert_eq!(String::from_utf8(out).unwrap(), golden);
    }

    #[test]
    fn lines_do_not_depend_on_how_bytes_arrive() {
        let bytes = b"one\r\n\ntwo and more\nrest";
        for step in 1..=bytes.len() {
            let mut decoder = LineDecoder::new(100);
            let mut lines = Vec::new();
            for part in bytes.chunks(step) {
                decoder.push(part);
                while let Some(line) = decoder.next_line().unwrap() {
                    lines.push(line.to_vec());
                }
            }
            assert_eq!(lines, [b"one".to_vec(), b"".to_vec(), b"two and more".to_vec()], "step {step}");
            assert!(!decoder.is_empty());
        }
    }

    #[test]
    fn a_line_over_the_bound_is_refused_with_and_without_its_end() {
        for bytes in [b"123456".to_vec(), b"123456\n".to_vec()] {
            let mut decoder = LineDecoder::new(5);
            decoder.push(&bytes);
            assert_eq!(decoder.next_line(), Err(LineTooLong));
        }
        let mut decoder = LineDecoder::new(5);
        decoder.push(b"12345\n");
        assert_eq!(decoder.next_line(), Ok(Some(&b"12345"[..])));
    }

    #[test]
    fn memory_is_given_back() {
        let mut decoder = LineDecoder::new(10_000_000);
        let mut big = vec![b'x'; 1_000_000];
        big.push(b'\n');
        decoder.push(&big);
        assert!(decoder.next_line().unwrap().is_some());
        decoder.push(b"y\n");
        assert!(decoder.buffer.capacity() <= 2 * KEEP_BYTES);
    }
}
