//! What clients do, and what they must see: one file a workload.
//!
//! A workload writes request lines, hears how each ended, and judges the whole at the end. It knows neither shards nor
//! machines, so it runs against whatever answers the lines. A mode with weaker promises (nodes without a leader) brings
//! workloads of its own beside these.

mod bulk;
mod counters;
mod docs;
mod expiry;
mod registers;

use crate::rng::Rng;
use serde_json::Value as Json;

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The line, without its end.
    pub line: String,
    /// The workload's own name for it.
    pub tag: u64,
    /// It may be sent again when nobody knows what became of it: a read, or a write with client and seq.
    pub may_repeat: bool,
}

/// How a request ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The reply of a success.
    Done(Json),
    /// The reply of an error after which nothing has changed.
    Refused(Json),
    /// Nobody knows.
    Unknown,
}

/// When a request was first sent and when its end was heard, as positions in one order.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Sent.
    pub called: u64,
    /// Heard.
    pub returned: u64,
    /// Virtual time of the two, in microseconds.
    pub times_us: (u64, u64),
}

/// What some clients do.
pub trait Workload {
    /// The next request of a client, one at a time.
    fn ask(&mut self, client: usize, rng: &mut Rng) -> Ask;

    /// A request has ended; an error names what must not be.
    fn end(&mut self, client: usize, tag: u64, span: Span, outcome: &Outcome) -> Result<(), String>;

    /// Another request to be made when all is quiet, until there is none.
    fn last(&mut self) -> Option<Ask>;

    /// Judges all that was seen; the number of histories that were too hard to judge.
    fn judge(&mut self) -> Result<u64, String>;

    /// Its name.
    fn name(&self) -> &'static str;
}

/// What workloads may ask for and expect.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    /// Some writes ask for the debug fault.
    pub with_faults: bool,
    /// Some reads are local.
    pub with_local: bool,
    /// What was acknowledged may be lost with the power.
    pub forgets: bool,
    /// Documents are written many at once, and searched for at once.
    pub bursts: bool,
    /// Keys are written anew about when their times to live end.
    pub renewals: bool,
}

/// Number of workloads.
pub const COUNT: usize = 5;

/// The workloads that hold where acknowledged writes may be forgotten: batches are whole, whatever else is lost.
pub const FORGIVING: u32 = 1 << 2;

/// The workload of a number below [`COUNT`].
pub fn make(number: usize, keys: u32, clock_error_ms: u64, promise: Promise) -> Box<dyn Workload> {
    match number {
        0 => Box::new(registers::Registers::new(keys, promise.with_faults, promise.with_local)),
        1 => Box::new(counters::Counters::new(keys)),
        2 => Box::new(bulk::Bulk::new(keys, promise.forgets)),
        3 => Box::new(expiry::Expiry::new(clock_error_ms, promise.renewals)),
        4 => Box::new(docs::Docs::new(promise.bursts)),
        _ => panic!("there are {COUNT} workloads"),
    }
}

/// The value that is written once under this number: an object that repeats it, with a length of its own.
fn value_text(number: u64) -> String {
    // Most are short; some do not fit a record, a few are shared instead of copied.
    let padding = match number % 23 {
        0 => 1500,
        1 => 16_400,
        other => other as usize,
    };
    let letter = char::from(b'a' + (number % 26) as u8);
    format!("{{\"v\":{number},\"p\":\"{}\"}}", letter.to_string().repeat(padding))
}

/// The number of a value as it came back; an error when it is not what was written.
fn number_of(value: &Json) -> Result<Option<u64>, String> {
    if value.is_null() {
        return Ok(None);
    }
    let number = value["v"].as_u64().ok_or_else(|| format!("a value that nobody wrote: {value}"))?;
    let written: Json = serde_json::from_str(&value_text(number)).expect("values are JSON");
    if *value == written { Ok(Some(number)) } else { Err(format!("a value came back altered: {value}")) }
}

/// The code of an error reply.
fn code(reply: &Json) -> &str {
    reply["code"].as_str().unwrap_or("")
}
