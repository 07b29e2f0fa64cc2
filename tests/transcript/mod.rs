//! Reads the examples of docs/PROTOCOL.md: blocks of requests and the replies that must come back.
//!
//! Inside ```` ```transcript ```` a line after `> ` is sent and the line after `< ` is expected. Replies are compared as JSON: the
//! string `"..."` stands for any value, and members that are not shown may be there.

use serde_json::Value;

/// One request line and what must come back.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The line to send, without its newline.
    pub request: String,
    /// The reply to compare with.
    pub reply: Value,
    /// Line number of the request in the page, for messages.
    pub line: usize,
}

/// The page's blocks, each of which is one connection.
///
/// # Panics
/// On a block that is not made of requests and replies in turn.
pub fn blocks(text: &str) -> Vec<Vec<Exchange>> {
    let mut blocks = Vec::new();
    let mut request: Option<(usize, String)> = None;
    let mut open: Option<Vec<Exchange>> = None;
    for (line, content) in text.lines().enumerate().map(|(index, content)| (index + 1, content)) {
        if content.starts_with("```") {
            assert!(request.is_none(), "line {line}: {request:?} has no reply");
            blocks.extend(open.take());
            open = (content == "```transcript").then(Vec::new);
            continue;
        }
        let Some(block) = &mut open else { continue };
        if let Some(sent) = content.strip_prefix("> ") {
            assert!(request.is_none(), "line {line}: {request:?} has no reply");
            request = Some((line, sent.to_owned()));
        } else if let Some(reply) = content.strip_prefix("< ") {
            let (line, request) = request.take().expect("a reply follows its request");
            let reply = serde_json::from_str(reply).unwrap_or_else(|error| panic!("line {line}: {error}: {reply}"));
            block.push(Exchange { request, reply, line });
        } else {
            assert!(content.is_empty(), "line {line} is neither request nor reply: {content}");
        }
    }
    blocks
}

/// Whether a reply is what the example shows.
pub fn matches(shown: &Value, reply: &Value) -> bool {
    match (shown, reply) {
        (Value::String(text), _) if text == "..." => true,
        (Value::Object(shown), Value::Object(reply)) => {
            shown.iter().all(|(name, shown)| reply.get(name).is_some_and(|reply| matches(shown, reply)))
        }
        (Value::Array(shown), Value::Array(reply)) => {
            shown.len() == reply.len() && shown.iter().zip(reply).all(|(shown, reply)| matches(shown, reply))
        }
        _ => shown == reply,
    }
}
