//! The lines of an export: what they say, how they are written, and whether a file of them is whole.
//!
//! One JSON object a line; the head comes first and the end last:
//!
//! ```text
//! {"strand":"export","format":1}
//! {"index":{"field":"price","kind":"value"}}
//! {"key":"a","value":{"price":7},"ttl_ms":60000}
//! {"end":{"keys":1,"crc32c":"5ba1c2d0"}}
//! ```
//!
//! An index line holds what CREATE_INDEX takes, `ttl_ms` is left out where there is none, and the sum is the CRC-32C of all lines
//! before the end with their line breaks. Lines of other origin need neither head nor end, only keys and values.
//! Never talks to a server.

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::io::{self, BufRead, Read, Write};

/// The format of the lines.
pub(super) const FORMAT: u64 = 1;
/// Longest line that is read, in bytes; no server takes a value of this length.
const LINE_BYTES_MAX: usize = 256 << 20;

/// One line.
#[derive(Debug)]
pub(super) enum Line<'a> {
    /// The head, with its format.
    Head(u64),
    /// What CREATE_INDEX takes.
    Index(Map<String, Value>),
    /// A key with its value, byte for byte, and its time to live.
    Entry {
        key: String,
        value: &'a RawValue,
        ttl_ms: Option<u64>,
    },
    End(End),
}

/// What the end of an export states.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct End {
    keys: u64,
    crc32c: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Members<'a> {
    strand: Option<String>,
    format: Option<u64>,
    index: Option<Map<String, Value>>,
    key: Option<String>,
    #[serde(borrow, default, deserialize_with = "given")]
    value: Option<&'a RawValue>,
    ttl_ms: Option<u64>,
    end: Option<End>,
}

/// A value that is given; null is one.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl<'a> Line<'a> {
    /// Reads a line; the error says what it should be.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let members: Members<'a> = serde_json::from_slice(bytes).map_err(|error| {
            format!("not a line of an export ({error}); expected {{\"key\":...,\"value\":...}}")
        })?;
        let Members { strand, format, index, key, value, ttl_ms, end } = members;
        match (strand.as_deref(), format, index, key, value, ttl_ms, end) {
            (Some("export"), Some(format), None, None, None, None, None) => Ok(Self::Head(format)),
            (None, None, Some(index), None, None, None, None) => Ok(Self::Index(index)),
            (None, None, None, Some(key), Some(value), ttl_ms, None) => {
                Ok(Self::Entry { key, value, ttl_ms })
            }
            (None, None, None, None, None, None, Some(end)) => Ok(Self::End(end)),
            _ => Err("neither a key with a value nor another line of an export".to_owned()),
        }
    }
}

/// Sums up the lines of an export as they go by.
#[derive(Clone, Debug, Default)]
struct Sum {
    keys: u64,
    crc: u32,
}

impl Sum {
    /// Counts a line; `bytes` without the line break.
    fn add(&mut self, bytes: &[u8], is_entry: bool) {
        self.crc = crc32c::crc32c_append(crc32c::crc32c_append(self.crc, bytes), b"\n");
        self.keys += u64::from(is_entry);
    }

    fn end(&self) -> End {
        End { keys: self.keys, crc32c: format!("{:08x}", self.crc) }
    }
}

/// Writes an export.
#[derive(Debug)]
pub(super) struct Writer<W> {
    out: W,
    sum: Sum,
    line: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Writes the head.
    pub(super) fn new(out: W) -> io::Result<Self> {
        let mut writer = Self { out, sum: Sum::default(), line: Vec::new() };
        writer.put(&json!({ "strand": "export", "format": FORMAT }))?;
        Ok(writer)
    }

    pub(super) fn index(&mut self, definition: &Value) -> io::Result<()> {
        self.put(&json!({ "index": definition }))
    }

    pub(super) fn entry(&mut self, key: &str, value: &RawValue, ttl_ms: Option<u64>) -> io::Result<()> {
        self.line.clear();
        self.line.extend_from_slice(b"{\"key\":");
        serde_json::to_writer(&mut self.line, key)?;
        self.line.extend_from_slice(b",\"value\":");
        self.line.extend_from_slice(value.get().as_bytes());
        if let Some(ttl_ms) = ttl_ms {
            write!(self.line, ",\"ttl_ms\":{ttl_ms}")?;
        }
        self.line.push(b'}');
        self.sum.add(&self.line, true);
        self.line.push(b'\n');
        self.out.write_all(&self.line)
    }

    /// Writes the end and gives back what was written to, and the number of keys.
    pub(super) fn finish(mut self) -> io::Result<(W, u64)> {
        let End { keys, crc32c } = self.sum.end();
        self.put(&json!({ "end": { "keys": keys, "crc32c": crc32c } }))?;
        self.out.flush()?;
        Ok((self.out, keys))
    }

    fn put(&mut self, line: &Value) -> io::Result<()> {
        let text = line.to_string();
        self.sum.add(text.as_bytes(), false);
        writeln!(self.out, "{text}")
    }
}

/// Reads lines, and checks that a file that begins as an export is a whole one.
#[derive(Debug)]
pub(super) struct Reader<R> {
    from: R,
    bytes: Vec<u8>,
    number: u64,
    sum: Sum,
    is_export: bool,
    has_ended: bool,
}

impl<R: BufRead> Reader<R> {
    pub(super) fn new(from: R) -> Self {
        let (bytes, sum) = (Vec::new(), Sum::default());
        Self { from, bytes, number: 0, sum, is_export: false, has_ended: false }
    }

    /// The number of the line read last, from 1.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The next line but empty ones; `None` at the end of a file that is whole. The error names the line.
    pub(super) fn next_line(&mut self) -> Result<Option<Line<'_>>, String> {
        loop {
            self.bytes.clear();
            let mut limited = (&mut self.from).take(LINE_BYTES_MAX as u64 + 1);
            let read = limited.read_until(b'\n', &mut self.bytes);
            self.number += 1;
            let number = self.number;
            match read {
                Err(error) => return Err(format!("line {number} cannot be read: {error}")),
                Ok(0) if self.is_export && !self.has_ended => {
                    return Err(format!(
                        "the export ends with line {}, before its end: it was cut short",
                        number - 1
                    ));
                }
                Ok(0) => return Ok(None),
                Ok(_) => {}
            }
            if self.bytes.len() > LINE_BYTES_MAX {
                return Err(format!("line {number} is longer than {LINE_BYTES_MAX} bytes"));
            }
            if self.bytes.last() == Some(&b'\n') {
                self.bytes.pop();
            }
            if !self.bytes.iter().all(u8::is_ascii_whitespace) {
                break;
            }
        }
        let number = self.number;
        let line = Line::parse(&self.bytes).map_err(|error| format!("line {number}: {error}"))?;
        let trouble = match &line {
            _ if self.has_ended => Some("something follows the end of the export".to_owned()),
            Line::Head(_) if number > 1 => Some("another export begins".to_owned()),
            Line::Head(FORMAT) => {
                self.is_export = true;
                None
            }
            Line::Head(format) => {
                Some(format!("the export has format {format}; this version knows {FORMAT}: use a newer one"))
            }
            Line::End(end) => {
                self.has_ended = true;
                let expected = self.sum.end();
                (self.is_export && *end != expected).then(|| {
                    format!(
                        "the export is damaged: it states {} keys and the sum {}, and has {} and {}",
                        end.keys, end.crc32c, expected.keys, expected.crc32c
                    )
                })
            }
            Line::Index(_) | Line::Entry { .. } => None,
        };
        if let Some(trouble) = trouble {
            return Err(format!("line {number}: {trouble}"));
        }
        self.sum.add(&self.bytes, matches!(line, Line::Entry { .. }));
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).unwrap();
        writer.index(&json!({ "field": "price", "kind": "value" })).unwrap();
        let value: Box<RawValue> = serde_json::from_str(r#"{"price": 7.00}"#).unwrap();
        writer.entry("a\"\u{e9}", &value, Some(60_000)).unwrap();
        let null: Box<RawValue> = serde_json::from_str("null").unwrap();
        writer.entry("b", &null, None).unwrap();
        writer.finish().unwrap().0
    }

    fn read(bytes: &[u8]) -> Result<Vec<String>, String> {
        let mut reader = Reader::new(bytes);
        let mut read = Vec::new();
        while let Some(line) = reader.next_line()? {
            if let Line::Entry { key, value, ttl_ms } = line {
                read.push(format!("{key} {} {ttl_ms:?}", value.get()));
            }
        }
        Ok(read)
    }

    #[test]
    fn golden_lines_come_back() {
        let bytes = export();
        let golden = "{\"format\":1,\"strand\":\"export\"}\n\
             {\"index\":{\"field\":\"price\",\"kind\":\"value\"}}\n\
             {\"key\":\"a\\\"é\",\"value\":{\"price\": 7.00},\"ttl_ms\":60000}\n\
             {\"key\":\"b\",\"value\":null}\n";
        assert_eq!(String::from_utf8_lossy(&bytes[..golden.len()]), golden);
        assert_eq!(read(&bytes).unwrap(), ["a\"é {\"price\": 7.00} Some(60000)", "b null None"]);
    }

    #[test]
    fn damage_and_cuts_are_told() {
        let whole = export();
        let text = String::from_utf8(whole.clone()).unwrap();
        for (changed, expected) in [
            (text.replace("7.00", "7.01"), "line 5: the export is damaged"),
            (text.replace("{\"key\":\"b\",\"value\":null}\n", ""), "line 4: the export is damaged"),
            (text.replace("\"format\":1", "\"format\":9"), "line 1: the export has format 9"),
            (format!("{text}{{\"key\":\"c\",\"value\":1}}\n"), "line 6: something follows"),
            (format!("{text}{text}"), "line 6: something follows"),
            (text.replace("\"ttl_ms\":60000", "\"tll\":1"), "line 3: not a line of an export"),
        ] {
            let found = read(changed.as_bytes()).unwrap_err();
            assert!(found.starts_with(expected), "{found}");
        }
        let lines: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').collect();
        for cut in &lines[..lines.len() - 1] {
            assert!(read(&whole[..=*cut]).unwrap_err().contains("cut short"));
        }
    }

    #[test]
    fn lines_of_other_origin_need_no_head() {
        assert_eq!(read(b"{\"key\":\"a\",\"value\":[1]}\n\n{\"value\":2,\"key\":\"b\"}").unwrap().len(), 2);
        assert!(read(b"{\"key\":\"a\"}\n").unwrap_err().starts_with("line 1: neither a key with a value"));
    }
}
