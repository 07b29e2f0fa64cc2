//! One reply line, kept as it came and read only as far as the caller needs.
//!
//! Invariant: `result` is a range of `line` that is one whole JSON value, so its bytes are the server's bytes.

use crate::error::{Error, ErrorCode, ServerError, retry_of};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::ops::Range;

/// A reply of the server, a success or an error.
#[derive(Clone, Debug)]
pub struct Reply {
    line: Box<str>,
    result: Option<Range<usize>>,
    found: bool,
    version: Option<Box<str>>,
    cursor: Option<Box<str>>,
    error: Option<Box<ServerError>>,
}

/// The members that every reply may have; others are reached through [`Reply::to_value`].
#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    found: Option<bool>,
    #[serde(borrow)]
    version: Option<Cow<'a, str>>,
    #[serde(borrow)]
    cursor: Option<Cow<'a, str>>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

impl Reply {
    /// Reads one line. Gives the reply and the number in its `id`, when there is one.
    pub fn parse(line: &[u8]) -> Result<(Self, Option<u64>), Error> {
        let text = std::str::from_utf8(line).map_err(|_| Error::Protocol("a reply is not UTF-8".into()))?;
        let line: Box<str> = text.into();
        let members: Members<'_> = serde_json::from_str(&line)
            .map_err(|error| Error::Protocol(format!("{error} in {}", shortened(&line))))?;
        let result = members.result.map(|raw| {
            let start = raw.get().as_ptr() as usize - line.as_ptr() as usize;
            start..start + raw.get().len()
        });
        let error = match &*members.status {
            "success" => None,
            "error" => Some(Box::new(server_error(&line)?)),
            other => return Err(Error::Protocol(format!("a reply has the status {other:?}"))),
        };
        let id = members.id.and_then(|raw| raw.get().parse().ok());
        let found = members.found.unwrap_or(true);
        let version = members.version.map(|text| text.into());
        let cursor = members.cursor.map(|text| text.into());
        Ok((Self { line, result, found, version, cursor, error }, id))
    }

    /// The error, when the server answered with one.
    pub fn error(&self) -> Option<&ServerError> {
        self.error.as_deref()
    }

    /// Turns an error reply into an [`Error`].
    pub fn into_result(self) -> Result<Self, Error> {
        match self.error {
            Some(error) => Err(Error::Server(error)),
            None => Ok(self),
        }
    }

    /// The JSON text of the result, byte for byte; `null` when the reply has none.
    pub fn result_text(&self) -> &str {
        match &self.result {
            Some(range) => &self.line[range.clone()],
            None => "null",
        }
    }

    /// The result as any type that can be read from it.
    pub fn result<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_str(self.result_text())
            .map_err(|error| Error::Decode(format!("{error} in {}", shortened(self.result_text()))))
    }

    /// The result as raw JSON, byte for byte.
    pub fn result_raw(&self) -> Box<RawValue> {
        RawValue::from_string(self.result_text().to_owned()).expect("a part of a parsed reply is JSON")
    }

    /// False when a key was asked for that does not exist.
    pub fn found(&self) -> bool {
        self.found
    }

    /// The version beside the result, when one was asked for.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Where the next page begins; none at the end.
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    /// The whole line as it came.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// The whole reply as a JSON value.
    pub fn to_value(&self) -> Value {
        serde_json::from_str(&self.line).unwrap_or(Value::Null)
    }
}

fn server_error(line: &str) -> Result<ServerError, Error> {
    let value: Value = serde_json::from_str(line).map_err(|error| Error::Protocol(error.to_string()))?;
    let Value::Object(fields) = value else {
        return Err(Error::Protocol("a reply is not an object".into()));
    };
    let word = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let code = ErrorCode::parse(word("code"));
    let message = word("error").to_owned();
    let retry = retry_of(word("retry"));
    Ok(ServerError { code, message, retry, fields })
}

/// At most 120 characters of a text, for messages.
fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}...", &text[..end]).into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strand_wire::code::Retry;

    #[test]
    fn results_keep_their_bytes() {
        let line = br#"{"id":7,"status":"success","result": {"a" : 1.50} ,"version":"1-2"}"#;
        let (reply, id) = Reply::parse(line).unwrap();
        assert_eq!((id, reply.version(), reply.found()), (Some(7), Some("1-2"), true));
        assert_eq!(reply.result_text(), r#"{"a" : 1.50}"#);
        assert_eq!(reply.result_raw().get(), r#"{"a" : 1.50}"#);
    }

    #[test]
    fn null_and_absent_differ_by_found() {
        let absent = Reply::parse(br#"{"status":"success","result":null,"found":false}"#).unwrap().0;
        let null = Reply::parse(br#"{"status":"success","result":null}"#).unwrap().0;
        assert_eq!((absent.found(), null.found()), (false, true));
        assert_eq!(null.result_text(), "null");
    }

    #[test]
    fn errors_keep_their_fields() {
        let line =
            br#"{"status":"error","code":"NOT_LEADER","error":"go","retry":"safe","leader":"h:1","shard":3}"#;
        let error = Reply::parse(line).unwrap().0.into_result().unwrap_err();
        let server = error.server().unwrap();
        assert_eq!((server.leader(), server.shard(), server.retry), (Some("h:1"), Some(3), Retry::Safe));
    }

    #[test]
    fn nonsense_is_a_protocol_error() {
        for bad in [&b"hello"[..], b"{}", b"[]", b"\xff", br#"{"status":"odd"}"#] {
            assert!(matches!(Reply::parse(bad), Err(Error::Protocol(_))), "{bad:?}");
        }
    }
}
