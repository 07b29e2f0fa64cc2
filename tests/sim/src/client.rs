//! A client: one request at a time, asked again when it may be and when nothing has happened yet.

use crate::rng::Rng;
use crate::router::{Answer, AskId};
use crate::work::{Ask, Outcome, Span};
use serde_json::Value as Json;
use shards::batch::ReplyKind;

/// A request that a client waits for.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The line.
    pub line: String,
    /// The workload's name for it.
    pub tag: u64,
    /// Its name on the connection that it went out on; none while it waits to go out.
    pub ask: Option<AskId>,
    /// Where it went.
    pub machine: usize,
    may_repeat: bool,
    called: u64,
    called_us: u64,
}

/// A client.
pub struct Client {
    /// Which workload is its own.
    pub work: usize,
    /// Its own chance.
    pub rng: Rng,
    /// What it waits for.
    pub pending: Option<Pending>,
    /// It asks in the quiet at the end, where nothing may be refused.
    pub is_last: bool,
}

impl Client {
    /// A client of a workload.
    pub fn new(work: usize, rng: Rng) -> Self {
        Self { work, rng, pending: None, is_last: false }
    }

    /// Whether it waits for nothing.
    pub fn is_idle(&self) -> bool {
        self.pending.is_none()
    }
}

impl Pending {
    /// A request that is about to go out.
    pub fn new(ask: Ask, called: u64, called_us: u64) -> Self {
        let Ask { line, tag, may_repeat } = ask;
        Self { line, tag, ask: None, machine: 0, may_repeat, called, called_us }
    }

    /// From the first try to now.
    pub fn span(&self, returned: u64, returned_us: u64) -> Span {
        Span { called: self.called, returned, times_us: (self.called_us, returned_us) }
    }

    /// How the request ended by this answer, or by a lost connection; none when it is to be asked again.
    /// `forgets` says that an hour may have gone by on the server's clock, after which it forgets what it answered.
    pub fn judge(&self, answer: Option<&Answer>, forgets: bool) -> Result<Option<Outcome>, String> {
        let Some(answer) = answer else { return Ok(self.lost()) };
        let members = match answer.kind {
            ReplyKind::Ok => b"\"result\":\"OK\"".to_vec(),
            _ => answer.members.clone(),
        };
        let text = String::from_utf8(members).map_err(|_| "a reply that is no text".to_owned())?;
        let reply: Json = serde_json::from_str(&format!("{{{text}}}"))
            .map_err(|error| format!("no JSON: {error}: {text}"))?;
        if answer.kind != ReplyKind::Error {
            return Ok(Some(Outcome::Done(reply)));
        }
        let code = reply["code"].as_str().unwrap_or("");
        match code {
            "TIMEOUT" if reply["outcome"] == "unknown" => Ok(self.lost()),
            // Nothing has happened by this try; an earlier one may still be open.
            "TIMEOUT" | "DISK_FULL" | "OVERLOADED" | "NOT_LEADER" | "NO_QUORUM" => {
                Ok((!self.may_repeat).then_some(Outcome::Refused(reply)))
            }
            "SEQ_EXPIRED" if forgets => Ok(Some(Outcome::Unknown)),
            "CONFLICT" | "NO_SUCH_INDEX" | "INDEX_EXISTS" | "WRONG_TYPE" => Ok(Some(Outcome::Refused(reply))),
            // A snapshot that a faulty disk refused.
            "INTERNAL" if self.line.contains("SNAPSHOT") => Ok(Some(Outcome::Refused(reply))),
            _ => Err(format!("an answer that should not be: {reply} to {}", self.line)),
        }
    }

    fn lost(&self) -> Option<Outcome> {
        (!self.may_repeat).then_some(Outcome::Unknown)
    }
}
