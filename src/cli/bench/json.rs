//! Strand's protocol: a JSON object a line.

use super::dialect::{Dialect, Kind, Material, Question, Scan, Verdict};
use serde_json::value::RawValue;
use std::ops::Range;
use strand_wire::reply::{push_string, push_unsigned};

/// Strand's protocol.
#[derive(Clone, Copy, Debug)]
pub(super) struct Json;

const SUCCESS: &[u8] = b"{\"status\":\"success\"";
/// How a found or absent value begins where the reply has no id.
const RESULT: &[u8] = b"{\"status\":\"success\",\"result\":";
const ABSENT: &[u8] = b"{\"status\":\"success\",\"result\":null";

impl Dialect for Json {
    fn push(self, material: &Material, question: Question, out: &mut Vec<u8>) {
        let Question { kind, key, salt, .. } = question;
        match kind {
            Kind::Get | Kind::ReadToModify => {
                out.extend_from_slice(b"{\"command\":\"GET\",\"key\":\"");
                material.push_key(key, out);
                out.extend_from_slice(b"\"}\n");
            }
            Kind::Set | Kind::ModifyRead => {
                out.extend_from_slice(b"{\"command\":\"SET\",\"key\":\"");
                material.push_key(key, out);
                out.extend_from_slice(b"\",\"value\":");
                push_value(material, key, salt, out);
                if let Some(durability) = material.durability {
                    out.extend_from_slice(b",\"durability\":\"");
                    out.extend_from_slice(durability.as_bytes());
                    out.push(b'"');
                }
                out.extend_from_slice(b"}\n");
            }
            Kind::BulkSet => {
                out.extend_from_slice(b"{\"command\":\"BULK_SET\",\"items\":[");
                for number in key..key + material.batch as u64 {
                    out.extend_from_slice(if number == key { b"[\"" } else { b",[\"" });
                    material.push_key(number, out);
                    out.extend_from_slice(b"\",");
                    push_value(material, number, salt, out);
                    out.push(b']');
                }
                out.extend_from_slice(b"]}\n");
            }
            Kind::Range => {
                out.extend_from_slice(b"{\"command\":\"QUERY_INDEX\",\"field\":\"n\",\"gte\":");
                push_unsigned(out, key);
                // YCSB reads 1 to 100 records, each length equally often.
                out.extend_from_slice(b",\"limit\":");
                push_unsigned(out, salt % material.limit as u64 + 1);
                out.extend_from_slice(b",\"with_values\":true}\n");
            }
            Kind::Search => {
                out.extend_from_slice(b"{\"command\":\"SEARCH\",\"query\":");
                push_string(out, &material.queries[key as usize]);
                out.extend_from_slice(b",\"top_k\":");
                push_unsigned(out, material.limit as u64);
                out.extend_from_slice(b"}\n");
            }
        }
    }

    fn scan(self, bytes: &[u8], kind: Kind) -> Scan {
        let Some(end) = memchr::memchr(b'\n', bytes) else { return Scan::Partial };
        let reply = &bytes[..end];
        let is_read = matches!(kind, Kind::Get | Kind::ReadToModify);
        let verdict = if !reply.starts_with(SUCCESS) {
            Verdict::Error
        } else if is_read && reply.starts_with(ABSENT) {
            Verdict::Absent
        } else {
            Verdict::Success
        };
        Scan::Whole { length: end + 1, verdict }
    }

    fn value(self, reply: &[u8]) -> Option<Range<usize>> {
        let rest = reply.strip_prefix(RESULT)?.strip_suffix(b"}\n")?;
        // The whole line must be JSON, or a value that ends too early would pass.
        let _: &RawValue = serde_json::from_slice(reply).ok()?;
        let quoted = rest.len() >= 2 && rest.starts_with(b"\"") && rest.ends_with(b"\"");
        quoted.then(|| RESULT.len() + 1..reply.len() - 3)
    }
}

/// Appends a value as JSON.
fn push_value(material: &Material, key: u64, salt: u64, out: &mut Vec<u8>) {
    if let Some(document) = material.documents.get(key as usize) {
        return push_string(out, document);
    }
    if material.objects {
        out.extend_from_slice(b"{\"n\":");
        push_unsigned(out, key);
        out.extend_from_slice(b",\"v\":");
    }
    out.push(b'"');
    material.push_value(key, salt, out);
    out.push(b'"');
    if material.objects {
        out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use super::super::dialect::tests::{check_scan, material, question};
    use super::*;

    fn check(kind: Kind, expected: &str) {
        let mut out = Vec::new();
        Json.push(&material(3), question(kind, 7, 4), &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}\n"));
    }

    #[test]
    fn requests_are_lines() {
        check(Kind::Get, r#"{"command":"GET","key":"key:000000000007"}"#);
        check(Kind::Set, r#"{"command":"SET","key":"key:000000000007","value":"700"}"#);
        check(
            Kind::BulkSet,
            r#"{"command":"BULK_SET","items":[["key:000000000007","700"],["key:000000000008","800"]]}"#,
        );
        check(Kind::Range, r#"{"command":"QUERY_INDEX","field":"n","gte":7,"limit":5,"with_values":true}"#);
    }

    #[test]
    fn a_write_may_ask_for_a_sync_and_a_search_is_quoted() {
        let mut material = material(3);
        material.durability = Some("fsync");
        material.queries = vec!["a \"b\"".to_owned()];
        let mut out = Vec::new();
        Json.push(&material, question(Kind::Set, 7, 0), &mut out);
        Json.push(&material, question(Kind::Search, 0, 0), &mut out);
        let expected = concat!(
            r#"{"command":"SET","key":"key:000000000007","value":"700","durability":"fsync"}"#,
            "\n",
            r#"{"command":"SEARCH","query":"a \"b\"","top_k":10}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn replies_are_told_apart() {
        check_scan(Json, Kind::Set, b"{\"status\":\"success\",\"result\":\"OK\"}\n", &Verdict::Success);
        check_scan(Json, Kind::Get, b"{\"status\":\"success\",\"result\":\"v\"}\n", &Verdict::Success);
        let absent = b"{\"status\":\"success\",\"result\":null,\"found\":false}\n";
        check_scan(Json, Kind::Get, absent, &Verdict::Absent);
        check_scan(Json, Kind::Get, b"{\"status\":\"error\",\"code\":\"X\"}\n", &Verdict::Error);
        check_scan(Json, Kind::Get, b"\n", &Verdict::Error);
    }

    #[test]
    fn values_are_found_in_whole_replies_only() {
        let reply = b"{\"status\":\"success\",\"result\":\"abc\"}\n";
        assert_eq!(&reply[Json.value(reply).unwrap()], b"abc");
        assert_eq!(Json.value(b"{\"status\":\"success\",\"result\":7}\n"), None);
        assert_eq!(Json.value(b"{\"status\":\"success\",\"result\":\"a\"\"}\n"), None);
    }
}
