//! Gathers under way: who waits for each, until when, and which call's answer belongs to which.
//!
//! A call's token has bit 63 set, which no client's token has; below stand the generation and place of its gather and the
//! call's number. Bit 62 of any token marks a read that went to this node's replica whoever leads. A gather that has ended leaves its generation, so late answers find nothing. Bounds: gathers, and the
//! bytes that all of them hold.

use shards::batch::ReplyKind;
use shards::gather::{Gather, Step};
use shards::ids::{GroupId, Millis, Token};
use std::collections::BTreeMap;
use strand_wire::code::Code;
use strand_wire::reply::push_unsigned;

/// Marks the token of a gather's call.
const CALL_BIT: u64 = 1 << 63;
/// Marks the token of a read that goes to this node's replica.
const LOCAL_BIT: u64 = 1 << 62;
const GENERATION_MASK: u32 = (1 << 30) - 1;

/// The marked token of a read that goes to this node's replica.
#[inline]
pub(super) fn mark_local(token: Token) -> Token {
    Token(token.0 | LOCAL_BIT)
}

/// The token without the mark, if it has the mark.
#[inline]
pub(super) fn unmark_local(token: Token) -> Option<Token> {
    (token.0 & LOCAL_BIT != 0).then_some(Token(token.0 & !LOCAL_BIT))
}

/// Whether a client's token leaves the router's bits alone.
#[inline]
pub(super) fn is_plain(token: Token) -> bool {
    token.0 & (CALL_BIT | LOCAL_BIT) == 0
}

/// Whether a token belongs to a gather's call.
#[inline]
pub(super) fn is_call(token: Token) -> bool {
    token.0 & CALL_BIT != 0
}

/// One gather and its client.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) client: Token,
    pub(super) deadline: Millis,
    pub(super) gather: Gather,
    held_bytes: usize,
    /// Groups that answered from a replica that does not lead, with its applied index.
    stale: BTreeMap<GroupId, u64>,
}

/// Names a gather.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GatherId {
    place: u16,
    generation: u32,
}

#[derive(Debug, Default)]
struct Place {
    generation: u32,
    running: Option<Running>,
}

/// All gathers of a router.
#[derive(Debug)]
pub(super) struct Gathers {
    places: Vec<Place>,
    free: Vec<u16>,
    gathers_max: usize,
    held_bytes: usize,
    held_bytes_max: usize,
    /// No gather's deadline is before this.
    next_deadline: Millis,
}

/// What an answer came to.
pub(super) enum Heard {
    /// Its gather has ended before.
    Late,
    /// The gather goes on.
    GoesOn(GatherId, Step),
    /// The gather has ended with a reply to this client.
    Ended(Token, ReplyKind, Vec<u8>),
}

impl Gathers {
    pub(super) fn new(gathers_max: usize, held_bytes_max: usize) -> Self {
        assert!((1..=1 << 16).contains(&gathers_max), "a gather's place fits its tokens");
        Self {
            places: Vec::new(),
            free: Vec::new(),
            gathers_max,
            held_bytes: 0,
            held_bytes_max,
            next_deadline: Millis(u64::MAX),
        }
    }

    /// Gathers under way.
    pub(super) fn count(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Bytes that they hold.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether another gather that begins with a request of `bytes` may start. A lone one always may.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let count = self.count();
        count == 0 || (count < self.gathers_max && self.held_bytes + bytes <= self.held_bytes_max)
    }

    /// When [`Gathers::take_late`] could find something.
    pub(super) fn next_deadline(&self) -> Option<Millis> {
        (self.count() > 0).then_some(self.next_deadline)
    }

    pub(super) fn insert(&mut self, client: Token, deadline: Millis, gather: Gather) -> GatherId {
        assert!(self.count() < self.gathers_max, "there was room when the gather started");
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            u16::try_from(self.places.len() - 1).expect("the places were bounded")
        });
        self.next_deadline = self.next_deadline.min(deadline);
        let held_bytes = gather.held_bytes();
        self.held_bytes += held_bytes;
        let entry = &mut self.places[usize::from(place)];
        entry.running = Some(Running { client, deadline, gather, held_bytes, stale: BTreeMap::new() });
        GatherId { place, generation: entry.generation }
    }

    /// The gather of this name, while it runs.
    pub(super) fn get(&self, id: GatherId) -> Option<&Running> {
        let place = self.places.get(usize::from(id.place))?;
        place.running.as_ref().filter(|_| place.generation == id.generation)
    }

    /// Gives an answer to its gather.
    pub(super) fn hear(
        &mut self,
        token: Token,
        kind: ReplyKind,
        body: &[u8],
        awaits: impl FnOnce(Token) -> bool,
    ) -> Heard {
        let (id, number) = read_token(token);
        let Some(place) = self.places.get_mut(usize::from(id.place)) else { return Heard::Late };
        let Some(running) = place.running.as_mut().filter(|_| place.generation == id.generation) else {
            return Heard::Late;
        };
        if running.gather.is_read() && !awaits(running.client) {
            // The client is gone, and nothing was to be changed.
            self.end(id);
            return Heard::Late;
        }
        let mut step = running.gather.part(number, kind, body);
        let held_bytes = running.gather.held_bytes();
        self.held_bytes = self.held_bytes - running.held_bytes + held_bytes;
        running.held_bytes = held_bytes;
        let client = running.client;
        if self.held_bytes > self.held_bytes_max && self.count() > 1 && !matches!(step, Step::Done { .. }) {
            let text = "the results under way hold all the memory that they may; try again, or ask for less";
            step = Step::failed(Code::Overloaded, text);
        }
        match step {
            Step::Done { kind, mut members } => {
                let ended = self.end(id);
                if kind == ReplyKind::Success {
                    write_stale(&mut members, &ended.map(|running| running.stale).unwrap_or_default());
                }
                Heard::Ended(client, kind, members)
            }
            step => Heard::GoesOn(id, step),
        }
    }

    /// Notes that a call's answer comes from a replica that does not lead.
    pub(super) fn note_stale(&mut self, token: Token, group: GroupId, applied: u64) {
        let id = read_token(token).0;
        let place =
            self.places.get_mut(usize::from(id.place)).filter(|place| place.generation == id.generation);
        if let Some(running) = place.and_then(|place| place.running.as_mut()) {
            running.stale.insert(group, applied);
        }
    }

    /// Ends the gathers whose clients have stopped waiting.
    pub(super) fn take_late(&mut self, now: Millis) -> Vec<Running> {
        if now < self.next_deadline {
            return Vec::new();
        }
        let mut late = Vec::new();
        let mut next = Millis(u64::MAX);
        for number in 0..self.places.len() {
            let entry = &self.places[number];
            let Some(running) = &entry.running else { continue };
            if running.deadline > now {
                next = next.min(running.deadline);
                continue;
            }
            let id = GatherId { place: number as u16, generation: entry.generation };
            late.extend(self.end(id));
        }
        self.next_deadline = next;
        late
    }

    fn end(&mut self, id: GatherId) -> Option<Running> {
        let place = &mut self.places[usize::from(id.place)];
        let running = place.running.take()?;
        place.generation = (place.generation + 1) & GENERATION_MASK;
        self.free.push(id.place);
        self.held_bytes -= running.held_bytes;
        Some(running)
    }
}

impl GatherId {
    /// The token of its call of this number.
    pub(super) fn token(self, number: u16) -> Token {
        let (generation, place) = (u64::from(self.generation), u64::from(self.place));
        Token(CALL_BIT | generation << 32 | place << 16 | u64::from(number))
    }
}

/// Says which groups' answers may be stale, and how far their replicas were.
fn write_stale(out: &mut Vec<u8>, stale: &BTreeMap<GroupId, u64>) {
    if stale.is_empty() {
        return;
    }
    out.extend_from_slice(b",\"stale\":true,\"applied_index\":{");
    for (number, (group, applied)) in stale.iter().enumerate() {
        out.extend_from_slice(if number > 0 { b",\"" } else { b"\"" });
        push_unsigned(out, u64::from(group.0));
        out.extend_from_slice(b"\":");
        push_unsigned(out, *applied);
    }
    out.push(b'}');
}

/// The gather that a call's token names.
pub(super) fn gather_of(token: Token) -> GatherId {
    read_token(token).0
}

fn read_token(token: Token) -> (GatherId, u16) {
    let generation = (token.0 >> 32) as u32 & GENERATION_MASK;
    (GatherId { place: (token.0 >> 16) as u16, generation }, token.0 as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shards::gather::snapshot::Snapshot;
    use shards::gather::topology::Topology;

    fn gather() -> Gather {
        Snapshot::start(&Topology::even(2)).0
    }

    #[test]
    fn answers_find_their_gather_until_it_ends() {
        let mut gathers = Gathers::new(2, 100);
        let first = gathers.insert(Token(5), Millis(50), gather());
        let second = gathers.insert(Token(6), Millis(40), gather());
        assert!(!gathers.has_room(0));
        assert_eq!(gathers.next_deadline(), Some(Millis(40)));
        for (id, number) in [(first, 0), (second, 1)] {
            let token = id.token(number);
            assert!(is_call(token) && !is_call(Token(5)));
            assert_eq!(read_token(token), (id, number));
            assert!(matches!(
                gathers.hear(token, ReplyKind::Ok, &[], |_| true),
                Heard::GoesOn(_, Step::Wait)
            ));
        }
        let heard = gathers.hear(first.token(1), ReplyKind::Ok, &[], |_| true);
        assert!(matches!(heard, Heard::Ended(Token(5), ReplyKind::Ok, _)));
        assert!(matches!(gathers.hear(first.token(1), ReplyKind::Ok, &[], |_| true), Heard::Late));
        let third = gathers.insert(Token(7), Millis(90), gather());
        assert_eq!(third.place, first.place);
        assert!(gathers.get(first).is_none() && gathers.get(third).is_some());

        assert!(gathers.take_late(Millis(39)).is_empty());
        let late = gathers.take_late(Millis(40));
        assert_eq!(late.iter().map(|running| running.client).collect::<Vec<_>>(), [Token(6)]);
        assert_eq!(gathers.next_deadline(), Some(Millis(90)));
        assert!(matches!(gathers.hear(second.token(0), ReplyKind::Ok, &[], |_| true), Heard::Late));
        assert_eq!((gathers.count(), gathers.held_bytes()), (1, 0));
    }
}
