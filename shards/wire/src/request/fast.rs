//! The fast path: one pass over the common shapes of GET, SET, DELETE, EXISTS and INCR, without an allocation.
//!
//! It gives a request or nothing, never a refusal: whatever it does not recognise at once (an escape in a key, another
//! field, anything malformed or out of bounds) is left to the general path. What it gives equals what that path gives,
//! which a property test holds. A router takes the [`KeyRequest`] as it is; a [`Request`] is made of it for everybody else.

use super::data::{Consistency, Delete, Durability, Get, Incr, KeyRead, Session, Set};
use super::{Command, Request};
use crate::commands::{CLIENT_BYTES_MAX, EXACT_INTEGER_MAX, SEQ_MAX};
use crate::json::{self, Scanner};
use crate::limits::Limits;
use crate::marks::StringEnds;
use std::borrow::Cow;

/// Commands that the fast path knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyCommand {
    /// SET.
    Set,
    /// GET.
    Get,
    /// DELETE.
    Delete,
    /// EXISTS.
    Exists,
    /// INCR.
    Incr,
}

/// A request on one key whose key needs no decoding, as it stands in its line.
#[derive(Clone, Copy, Debug)]
pub struct KeyRequest<'a> {
    /// What is asked.
    pub command: KeyCommand,
    /// The key: valid UTF-8 within the limits.
    pub key: &'a [u8],
    /// The value's JSON token (SET); empty for every other command.
    pub value: &'a [u8],
    /// The JSON token that the reply repeats; empty without one.
    pub id: &'a [u8],
    /// Bits of [`given`].
    given: u32,
    options: Options<'a>,
}

/// What few requests give; what was not given is zero or empty.
#[derive(Clone, Copy, Debug, Default)]
struct Options<'a> {
    amount: i64,
    ttl_ms: u64,
    seq: u64,
    acked: u64,
    client: &'a [u8],
    timeout_ms: u32,
    is_local: bool,
    is_fsync: bool,
    with_version: bool,
}

/// One bit for each member.
mod given {
    pub(super) const COMMAND: u32 = 1;
    pub(super) const KEY: u32 = 1 << 1;
    pub(super) const VALUE: u32 = 1 << 2;
    pub(super) const ID: u32 = 1 << 3;
    pub(super) const AMOUNT: u32 = 1 << 4;
    pub(super) const CLIENT: u32 = 1 << 5;
    pub(super) const SEQ: u32 = 1 << 6;
    pub(super) const ACKED: u32 = 1 << 7;
    pub(super) const TTL: u32 = 1 << 8;
    pub(super) const TIMEOUT: u32 = 1 << 9;
    pub(super) const CONSISTENCY: u32 = 1 << 10;
    pub(super) const DURABILITY: u32 = 1 << 11;
    pub(super) const WITH_VERSION: u32 = 1 << 12;

    /// What every command takes.
    const COMMON: u32 = COMMAND | KEY | ID | TIMEOUT;
    const SESSION: u32 = CLIENT | SEQ | ACKED;
    pub(super) const OF_SET: u32 = COMMON | VALUE | TTL | SESSION | DURABILITY | WITH_VERSION;
    pub(super) const OF_GET: u32 = COMMON | CONSISTENCY | WITH_VERSION;
    pub(super) const OF_DELETE: u32 = COMMON | SESSION | DURABILITY;
    pub(super) const OF_EXISTS: u32 = COMMON | CONSISTENCY;
    pub(super) const OF_INCR: u32 = COMMON | AMOUNT | SESSION | DURABILITY;
    /// What a request can have without any option.
    pub(super) const PLAIN: u32 = COMMAND | KEY | VALUE | ID;
}

impl KeyCommand {
    /// Members that the command may have, and those that it must have.
    #[inline]
    const fn members(self) -> (u32, u32) {
        use given::*;
        match self {
            Self::Set => (OF_SET, KEY | VALUE),
            Self::Get => (OF_GET, KEY),
            Self::Delete => (OF_DELETE, KEY),
            Self::Exists => (OF_EXISTS, KEY),
            Self::Incr => (OF_INCR, KEY),
        }
    }
}

impl<'a> KeyRequest<'a> {
    /// Whether the request has nothing but command, key, value and id.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.given & !given::PLAIN == 0
    }

    /// How long the client waits.
    #[inline]
    pub fn timeout_ms(&self) -> Option<u32> {
        self.has(given::TIMEOUT).then_some(self.options.timeout_ms)
    }

    /// Milliseconds until expiry (SET).
    pub fn ttl_ms(&self) -> Option<u64> {
        self.has(given::TTL).then_some(self.options.ttl_ms)
    }

    /// What to add (INCR).
    pub fn amount(&self) -> i64 {
        if self.has(given::AMOUNT) { self.options.amount } else { 1 }
    }

    /// The client's name, which is valid UTF-8, the number of the write and what is answered already.
    pub fn session(&self) -> Option<(&'a [u8], u64, Option<u64>)> {
        let Options { client, seq, acked, .. } = self.options;
        self.has(given::CLIENT).then(|| (client, seq, self.has(given::ACKED).then_some(acked)))
    }

    /// How fresh the answer must be.
    pub fn consistency(&self) -> Consistency {
        if self.options.is_local { Consistency::Local } else { Consistency::Linearizable }
    }

    /// What the reply to a write waits for.
    pub fn durability(&self) -> Durability {
        match (self.has(given::DURABILITY), self.options.is_fsync) {
            (false, _) => Durability::Default,
            (true, true) => Durability::Fsync,
            (true, false) => Durability::Memory,
        }
    }

    /// Whether the reply tells the version.
    pub fn with_version(&self) -> bool {
        self.options.with_version
    }

    #[inline]
    fn has(&self, bit: u32) -> bool {
        self.given & bit != 0
    }

    /// The request as every command has it.
    pub(super) fn whole(&self) -> Request<'a> {
        let key = Cow::Borrowed(text(self.key));
        let (durability, consistency) = (self.durability(), self.consistency());
        let session = self.session().map(|(client, seq, acked)| Session {
            client: Cow::Borrowed(text(client)),
            seq,
            acked,
        });
        let command = match self.command {
            KeyCommand::Set => Command::Set(Set {
                key,
                value: self.value,
                ttl_ms: self.ttl_ms(),
                condition: None,
                session,
                durability,
                with_version: self.with_version(),
                debug: false,
            }),
            KeyCommand::Incr => Command::Incr(Incr { key, amount: self.amount(), session, durability }),
            KeyCommand::Delete => Command::Delete(Delete { key, condition: None, session, durability }),
            KeyCommand::Get => Command::Get(Get { key, consistency, with_version: self.with_version() }),
            KeyCommand::Exists => Command::Exists(KeyRead { key, consistency }),
        };
        let id = self.has(given::ID).then_some(self.id);
        Request { id, timeout_ms: self.timeout_ms(), command }
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the reader takes ASCII, or what it has checked")
}

/// Reads a line if it has one of the common shapes.
#[inline]
pub(super) fn parse<'a>(line: &'a [u8], limits: &Limits) -> Option<KeyRequest<'a>> {
    let mut reader = Reader { line, at: 0, ends: StringEnds::new(line) };
    let mut command = None;
    let (mut key, mut value, mut id) = (&[][..], &[][..], &[][..]);
    let mut options = Options::default();
    let mut given = 0;
    reader.skip_space();
    reader.expect(b'{')?;
    reader.skip_space();
    loop {
        // Escaped names and others than ASCII never equal a known one, and the general path decodes them.
        let name = reader.plain_string()?;
        reader.skip_space();
        reader.expect(b':')?;
        reader.skip_space();
        let bit = match name {
            b"command" => {
                command = Some(command_of(reader.plain_string()?)?);
                given::COMMAND
            }
            b"key" => {
                key = reader.text(limits.key_bytes_max)?;
                given::KEY
            }
            b"value" => {
                value = reader.value(limits.value_depth_max())?;
                if value.len() > limits.value_bytes_max {
                    return None;
                }
                given::VALUE
            }
            b"id" => {
                id = reader.id(limits)?;
                given::ID
            }
            _ => read_option(name, &mut reader, &mut options, limits)?,
        };
        if given & bit != 0 {
            return None;
        }
        given |= bit;
        reader.skip_space();
        if !reader.take(b',') {
            break;
        }
        reader.skip_space();
    }
    reader.expect(b'}')?;
    reader.skip_space();
    let command = command?;
    let (may, must) = command.members();
    let is_whole = reader.at == line.len() && given & !may == 0 && given & must == must;
    // `client` and `seq` come together or not at all, and `acked` only with them.
    let of_session = given & (given::CLIENT | given::SEQ | given::ACKED);
    let is_sound = of_session == 0 || of_session & !given::ACKED == given::CLIENT | given::SEQ;
    (is_whole && is_sound).then_some(KeyRequest { command, key, value, id, given, options })
}

#[inline]
fn command_of(name: &[u8]) -> Option<KeyCommand> {
    match name {
        b"SET" | b"set" => Some(KeyCommand::Set),
        b"GET" | b"get" => Some(KeyCommand::Get),
        b"DELETE" | b"delete" => Some(KeyCommand::Delete),
        b"EXISTS" | b"exists" => Some(KeyCommand::Exists),
        b"INCR" | b"incr" => Some(KeyCommand::Incr),
        _ => None,
    }
}

/// Reads the value of a member that comes less often and gives its bit; `None` for an unknown one and for anything but the
/// plainest value.
#[inline(never)]
fn read_option<'a>(
    name: &[u8],
    reader: &mut Reader<'a>,
    options: &mut Options<'a>,
    limits: &Limits,
) -> Option<u32> {
    if name == b"client" {
        options.client = reader.text(CLIENT_BYTES_MAX)?;
        return Some(given::CLIENT);
    }
    // A value of an unknown member may nest, and the general path has a bound for that.
    let token = reader.value(0)?;
    let is_flag = token == b"true";
    match name {
        b"amount" => {
            options.amount = json::signed(token)?;
            Some(given::AMOUNT)
        }
        b"seq" => {
            options.seq = json::unsigned(token).filter(|seq| *seq <= SEQ_MAX)?;
            Some(given::SEQ)
        }
        b"acked" => {
            options.acked = json::unsigned(token)?;
            Some(given::ACKED)
        }
        b"ttl_ms" => {
            options.ttl_ms =
                json::unsigned(token).filter(|ttl_ms| (1..=EXACT_INTEGER_MAX).contains(ttl_ms))?;
            Some(given::TTL)
        }
        b"timeout_ms" => {
            let timeout_ms = u32::try_from(json::unsigned(token)?).ok()?;
            options.timeout_ms = timeout_ms;
            (1..=limits.timeout_ms_max).contains(&timeout_ms).then_some(given::TIMEOUT)
        }
        b"consistency" => {
            options.is_local = token == b"\"local\"";
            (options.is_local || token == b"\"linearizable\"").then_some(given::CONSISTENCY)
        }
        b"durability" => {
            options.is_fsync = token == b"\"fsync\"";
            (options.is_fsync || token == b"\"memory\"").then_some(given::DURABILITY)
        }
        b"with_version" => {
            options.with_version = is_flag;
            (is_flag || token == b"false").then_some(given::WITH_VERSION)
        }
        _ => None,
    }
}

/// A position in a line whose strings' ends are marked ahead.
struct Reader<'a> {
    line: &'a [u8],
    at: usize,
    ends: StringEnds<'a>,
}

impl<'a> Reader<'a> {
    #[inline]
    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.line.get(self.at) {
            self.at += 1;
        }
    }

    #[inline]
    fn take(&mut self, byte: u8) -> bool {
        let found = self.line.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Option<()> {
        self.take(byte).then_some(())
    }

    /// The inside of a string of ASCII without escapes; nothing for any other, and then the position means nothing.
    #[inline]
    fn plain_string(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let start = self.at;
        let end = self.ends.next(start);
        if self.line.get(end) != Some(&b'"') {
            return None;
        }
        self.at = end + 1;
        Some(&self.line[start..end])
    }

    /// The inside of a string without escapes, of 1 to `bytes_max` bytes.
    #[inline]
    fn text(&mut self, bytes_max: usize) -> Option<&'a [u8]> {
        let start = self.at;
        let text = match self.plain_string() {
            Some(text) => text,
            None => self.text_beyond_ascii(start)?,
        };
        (1..=bytes_max).contains(&text.len()).then_some(text)
    }

    #[cold]
    fn text_beyond_ascii(&mut self, start: usize) -> Option<&'a [u8]> {
        let mut scanner = Scanner::resume(self.line, start);
        let text = scanner.string().ok()?.plain()?;
        self.at = scanner.at();
        Some(text.as_bytes())
    }

    /// The token of any value.
    #[inline]
    fn value(&mut self, depth_max: u32) -> Option<&'a [u8]> {
        let start = self.at;
        match self.plain_string() {
            Some(_) => Some(&self.line[start..self.at]),
            None => self.other_value(start, depth_max),
        }
    }

    #[inline(never)]
    fn other_value(&mut self, start: usize, depth_max: u32) -> Option<&'a [u8]> {
        let mut scanner = Scanner::resume(self.line, start);
        let token = scanner.value(depth_max).ok()?;
        self.at = scanner.at();
        Some(token)
    }

    /// A string or an integer.
    #[inline(never)]
    fn id(&mut self, limits: &Limits) -> Option<&'a [u8]> {
        let id = self.value(0)?;
        (id.len() <= limits.id_bytes_max && (id[0] == b'"' || json::is_integer(id))).then_some(id)
    }
}
