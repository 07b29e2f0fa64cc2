//! The frame of a reply line around its members: status, the request's id and the line end.
//!
//! Members come ready-made from the engine or the router and are not looked at.

use shards::batch::ReplyKind;

/// What ends every reply line.
pub(super) const END: &[u8] = b"}\n";

/// The whole reply of [`ReplyKind::Ok`] to a request without an id.
pub(super) const OK: &[u8] = b"{\"status\":\"success\",\"result\":\"OK\"}\n";

/// Writes a reply line from its opening brace to the end of its members; [`END`] and perhaps a shared value remain.
///
/// # Panics
/// On [`ReplyKind::Part`], which is an answer to the router and no client's reply.
#[inline]
pub(super) fn open(out: &mut Vec<u8>, kind: ReplyKind, id: &[u8], members: impl FnOnce(&mut Vec<u8>)) {
    let status: &[u8] = match kind {
        ReplyKind::Ok | ReplyKind::Success => b"{\"status\":\"success\",",
        ReplyKind::Error => b"{\"status\":\"error\",",
        ReplyKind::Part | ReplyKind::StalePart => {
            unreachable!("a part is merged by the router before it becomes a reply")
        }
        ReplyKind::NotLeader => unreachable!("the router sends such a request elsewhere or fails it"),
    };
    out.extend_from_slice(status);
    if !id.is_empty() {
        out.extend_from_slice(b"\"id\":");
        out.extend_from_slice(id);
        out.push(b',');
    }
    if kind == ReplyKind::Ok {
        out.extend_from_slice(b"\"result\":\"OK\"");
    } else {
        members(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: ReplyKind, id: &str, members: &str, expected: &str) {
        let mut out = Vec::new();
        open(&mut out, kind, id.as_bytes(), |out| out.extend_from_slice(members.as_bytes()));
        out.extend_from_slice(END);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn lines_have_status_id_and_members() {
        check(ReplyKind::Ok, "", "", "{\"status\":\"success\",\"result\":\"OK\"}\n");
        check(ReplyKind::Ok, "", "", std::str::from_utf8(OK).unwrap());
        check(ReplyKind::Ok, "7", "", "{\"status\":\"success\",\"id\":7,\"result\":\"OK\"}\n");
        check(
            ReplyKind::Success,
            "\"a\"",
            "\"result\":1",
            "{\"status\":\"success\",\"id\":\"a\",\"result\":1}\n",
        );
        check(ReplyKind::Error, "", "\"code\":\"X\"", "{\"status\":\"error\",\"code\":\"X\"}\n");
    }
}
