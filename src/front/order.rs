//! Which requests of one connection are outstanding, which may join them, and in which order their replies leave.
//!
//! An ordered connection's requests are numbered; its slots are a ring, and a reply that is ready before its turn waits
//! formatted until those before it have left. An unordered connection's slots are a slab with a generation each, so that a
//! slow request holds nobody up. Either way a reply that names a slot nobody waits in is recognised and dropped. Every
//! reply is written exactly once, into the connection's [`Output`].

use super::output::Output;
use super::reply_line;
use shards::batch::ReplyKind;
use shards::ids::Token;
use std::cmp::Ordering;
use std::sync::Arc;

/// What a request needs of those before it on an ordered connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Reads keys of one shard. Waits only for an active barrier.
    SingleRead,
    /// Writes keys of one shard. Waits for scattered reads too, since those may reach its shard later than it would.
    SingleWrite,
    /// Reads in several shards: a search, a scan, BULK_GET. Waits only for an active barrier.
    ScatterRead,
    /// Waits until nothing is outstanding, and everything behind it waits for its reply: a write over several shards,
    /// HELLO. A barrier on unordered connections too, so a router gives a BULK_SET there another class.
    Barrier,
}

/// Bits of a token that name a request within its connection.
pub(super) const LOCAL_BITS: u32 = 24;
const LOCAL_MASK: u32 = (1 << LOCAL_BITS) - 1;

/// Requests in flight that one connection can have at most, whatever the settings say.
pub const IN_FLIGHT_LIMIT: usize = 1 << 15;

/// Memory that the store of early replies keeps when it falls empty.
const EARLY_KEEP_BYTES: usize = 16 * 1024;

const NO_SLOT: u32 = u32::MAX;

/// Sorts requests under way by connection, and those of an ordered connection as they were taken. Tokens with the router's
/// own uppermost bit come last and stay as they are.
pub fn arrival_order(a: Token, b: Token) -> Ordering {
    let is_router = |token: Token| token.0 >> 63 == 1;
    match (is_router(a), is_router(b)) {
        (true, true) => Ordering::Equal,
        (false, false) => (a.0 >> LOCAL_BITS).cmp(&(b.0 >> LOCAL_BITS)).then_with(|| {
            // The numbers go round; those under way are less than half of all apart.
            let distance = (a.0 as u32).wrapping_sub(b.0 as u32) & LOCAL_MASK;
            if distance == 0 {
                Ordering::Equal
            } else if distance <= LOCAL_MASK / 2 {
                Ordering::Greater
            } else {
                Ordering::Less
            }
        }),
        (a, b) => a.cmp(&b),
    }
}

/// The requests of one connection between their acceptance and their reply.
#[derive(Debug)]
pub(super) struct Slots {
    ordered: bool,
    /// Slots in use: from the oldest unanswered request to the newest in ordered mode, the outstanding ones otherwise.
    used: u32,
    outstanding: [u32; 4],
    /// Number of the oldest slot in use (ordered).
    head: u32,
    /// First free slot (unordered); the others follow through `Rest::start`.
    free: u32,
    slots: Vec<Slot>,
    /// What only some slots have, beside each of them: most requests are answered without a look at it.
    rests: Vec<Rest>,
    /// Formatted replies that wait for their turn, in the order of their completion.
    early: Vec<u8>,
    early_live: usize,
    early_shared_bytes: usize,
}

/// What every request touches: few bytes, since a busy server holds thousands of them.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    state: State,
    generation: u8,
    /// Whether the request gave an id, which then stands in the slot's rest.
    has_id: bool,
}

/// The id of a request that has one; an early reply; a link of the free slots.
#[derive(Debug, Default)]
struct Rest {
    id: Id,
    shared: Option<Arc<[u8]>>,
    start: usize,
    length: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    Outstanding(Class),
    Early,
}

/// The raw `id` token of a request: short ones in place, so that a request allocates nothing.
#[derive(Debug)]
enum Id {
    Short { length: u8, bytes: [u8; Id::SHORT] },
    Long(Box<[u8]>),
}

impl Default for Id {
    fn default() -> Self {
        Self::Short { length: 0, bytes: [0; Self::SHORT] }
    }
}

impl Id {
    const SHORT: usize = 22;

    /// Takes over an id; what lies behind a short one in its place means nothing.
    #[inline]
    fn set(&mut self, id: &[u8]) {
        match self {
            Self::Short { length, .. } if id.is_empty() => *length = 0,
            Self::Short { length, bytes } if id.len() <= Self::SHORT => {
                *length = id.len() as u8;
                bytes[..id.len()].copy_from_slice(id);
            }
            _ => *self = Self::made_of(id),
        }
    }

    #[cold]
    fn made_of(id: &[u8]) -> Self {
        if id.len() > Self::SHORT {
            return Self::Long(id.into());
        }
        let mut bytes = [0; Self::SHORT];
        bytes[..id.len()].copy_from_slice(id);
        Self::Short { length: id.len() as u8, bytes }
    }

    #[inline]
    fn get(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

const _: () =
    assert!(size_of::<Slot>() <= 4 && size_of::<Rest>() <= 64, "a line of cache has many slots, or one rest");
const _: () = assert!(
    IN_FLIGHT_LIMIT < 1 << (LOCAL_BITS - 8),
    "an unordered slot's number leaves room for its generation"
);

impl Default for Slots {
    fn default() -> Self {
        Self {
            ordered: true,
            used: 0,
            outstanding: [0; 4],
            head: 0,
            free: NO_SLOT,
            slots: Vec::new(),
            rests: Vec::new(),
            early: Vec::new(),
            early_live: 0,
            early_shared_bytes: 0,
        }
    }
}

impl Slots {
    pub(super) fn is_ordered(&self) -> bool {
        self.ordered
    }

    /// Switches the order of replies.
    ///
    /// # Panics
    /// While anything is outstanding.
    pub(super) fn set_ordered(&mut self, ordered: bool) {
        assert!(self.used == 0, "the order changes only when nothing is outstanding");
        if self.ordered == ordered {
            return;
        }
        *self = Self { ordered, head: self.head, ..Self::default() };
    }

    /// Gives up memory when no slot is in use. The numbers go on.
    pub(super) fn trim(&mut self) {
        if self.used == 0 && self.ordered {
            self.slots = Vec::new();
            self.rests = Vec::new();
            self.early = Vec::new();
        }
    }

    /// Slots in use; bounded by the connection's limit of requests in flight.
    pub(super) fn used(&self) -> usize {
        self.used as usize
    }

    /// Requests of one class whose reply has not come.
    pub(super) fn outstanding(&self, class: Class) -> u32 {
        self.outstanding[class as usize]
    }

    /// Bytes of the replies that wait for their turn.
    pub(super) fn early_bytes(&self) -> usize {
        self.early_live + self.early_shared_bytes
    }

    /// Whether a request of this class may be taken now.
    #[inline]
    pub(super) fn admits(&self, class: Class) -> bool {
        if self.outstanding(Class::Barrier) > 0 {
            return false;
        }
        match class {
            Class::Barrier => self.outstanding == [0; 4],
            Class::SingleWrite => !self.ordered || self.outstanding(Class::ScatterRead) == 0,
            Class::SingleRead | Class::ScatterRead => true,
        }
    }

    /// The number that the next request taken will have.
    #[inline]
    pub(super) fn next(&self) -> u32 {
        if self.ordered {
            return (self.head + self.used) & LOCAL_MASK;
        }
        match self.slots.get(self.free as usize) {
            Some(slot) => local(self.free, slot.generation),
            None => local(self.slots.len() as u32, 0),
        }
    }

    /// Takes the slot that [`Slots::next`] named.
    #[inline]
    pub(super) fn take(&mut self, class: Class, id: &[u8]) {
        let position = self.claim();
        let slot = &mut self.slots[position];
        slot.state = State::Outstanding(class);
        slot.has_id = !id.is_empty();
        if slot.has_id {
            self.rests[position].id.set(id);
        }
        self.outstanding[class as usize] += 1;
    }

    /// Answers a request that was not taken, in its turn.
    pub(super) fn answer(
        &mut self,
        out: &mut Output,
        kind: ReplyKind,
        id: &[u8],
        members: impl FnOnce(&mut Vec<u8>),
        shared: Option<Arc<[u8]>>,
    ) {
        if !self.ordered || self.used == 0 {
            return write(out, kind, id, members, shared);
        }
        let (start, shared_length) = (self.early.len(), shared.as_ref().map_or(0, |value| value.len()));
        reply_line::open(&mut self.early, kind, id, members);
        let length = self.early.len() - start;
        let position = self.claim();
        self.slots[position] = Slot { state: State::Early, has_id: false, ..self.slots[position] };
        self.rests[position].keep(start, length, shared);
        self.early_live += length;
        self.early_shared_bytes += shared_length;
    }

    /// Whether a reply to `number` would find its request.
    pub(super) fn awaits(&self, number: u32) -> bool {
        self.position(number).is_some()
    }

    /// Writes the reply to request `number`, and those behind it that it held up; false when nobody waits for it.
    #[inline]
    pub(super) fn complete(
        &mut self,
        out: &mut Output,
        number: u32,
        kind: ReplyKind,
        members: impl FnOnce(&mut Vec<u8>),
        shared: Option<Arc<[u8]>>,
    ) -> bool {
        let Some((position, class)) = self.position(number) else {
            return false;
        };
        self.outstanding[class as usize] -= 1;
        let slot = self.slots[position];
        let id = if slot.has_id { self.rests[position].id.get() } else { &[] };
        if !self.ordered {
            write(out, kind, id, members, shared);
            let generation = slot.generation.wrapping_add(1);
            self.slots[position] = Slot { state: State::Free, generation, has_id: false };
            self.rests[position] = Rest { start: self.free as usize, ..Rest::default() };
            self.free = position as u32;
            self.used -= 1;
        } else if number == self.head {
            write(out, kind, id, members, shared);
            self.release_head();
            // Nothing waits for its turn where replies come in order.
            if self.early_live > 0 {
                self.release_early(out);
            }
        } else {
            let start = self.early.len();
            reply_line::open(&mut self.early, kind, id, members);
            let length = self.early.len() - start;
            self.early_live += length;
            self.early_shared_bytes += shared.as_ref().map_or(0, |value| value.len());
            self.slots[position].state = State::Early;
            self.rests[position].keep(start, length, shared);
        }
        true
    }

    /// The slot that waits for the reply to `number`, and the class of its request.
    #[inline]
    fn position(&self, number: u32) -> Option<(usize, Class)> {
        let position = if self.ordered {
            let distance = number.wrapping_sub(self.head) & LOCAL_MASK;
            if distance >= self.used {
                return None;
            }
            number as usize & (self.slots.len() - 1)
        } else {
            let position = (number >> 8) as usize;
            if self.slots.get(position)?.generation != number as u8 {
                return None;
            }
            position
        };
        match self.slots[position].state {
            State::Outstanding(class) => Some((position, class)),
            State::Free | State::Early => None,
        }
    }

    /// The position of the next free slot, now in use.
    #[inline]
    fn claim(&mut self) -> usize {
        assert!(self.used() <= IN_FLIGHT_LIMIT, "the front bounds the requests in flight");
        let position = if self.ordered {
            if self.used() == self.slots.len() {
                self.grow_ring();
            }
            (self.head + self.used) as usize & (self.slots.len() - 1)
        } else if self.free == NO_SLOT {
            self.slots.push(Slot::default());
            self.rests.push(Rest::default());
            self.slots.len() - 1
        } else {
            let position = self.free as usize;
            self.free = self.rests[position].start as u32;
            position
        };
        self.used += 1;
        assert!(self.slots[position].state == State::Free, "a slot is claimed once");
        position
    }

    /// Doubles the ring; slots keep their numbers and move to where the wider mask puts them.
    fn grow_ring(&mut self) {
        let old = self.slots.len();
        let new = (old * 2).max(8);
        let mut wider = vec![Slot::default(); new];
        let mut rests: Vec<Rest> = Vec::with_capacity(new);
        rests.resize_with(new, Rest::default);
        for offset in 0..self.used {
            let number = (self.head + offset) as usize;
            wider[number & (new - 1)] = self.slots[number & (old - 1)];
            rests[number & (new - 1)] = std::mem::take(&mut self.rests[number & (old - 1)]);
        }
        (self.slots, self.rests) = (wider, rests);
    }

    #[inline]
    fn release_head(&mut self) {
        let position = self.head as usize & (self.slots.len() - 1);
        let slot = &mut self.slots[position];
        slot.state = State::Free;
        if slot.has_id
            && let Id::Long(_) = self.rests[position].id
        {
            self.rests[position].id = Id::default();
        }
        self.head = (self.head + 1) & LOCAL_MASK;
        self.used -= 1;
    }

    /// Writes the early replies whose turn has come.
    fn release_early(&mut self, out: &mut Output) {
        while self.used > 0 {
            let position = self.head as usize & (self.slots.len() - 1);
            if self.slots[position].state != State::Early {
                break;
            }
            let rest = &mut self.rests[position];
            let length = rest.length as usize;
            out.bytes.extend_from_slice(&self.early[rest.start..][..length]);
            self.early_live -= length;
            if let Some(value) = rest.shared.take() {
                self.early_shared_bytes -= value.len();
                out.push_shared(value);
            }
            out.bytes.extend_from_slice(reply_line::END);
            self.release_head();
        }
        if self.early_live == 0 {
            self.early.clear();
            self.early.shrink_to(EARLY_KEEP_BYTES);
        } else if self.early.len() > EARLY_KEEP_BYTES && self.early_live < self.early.len() / 2 {
            self.compact_early();
        }
    }

    /// Drops the replies already written from the store. Paid for by at least as many bytes written since the last time.
    fn compact_early(&mut self) {
        let mut kept = Vec::with_capacity(self.early_live);
        for offset in 0..self.used {
            let position = (self.head + offset) as usize & (self.slots.len() - 1);
            if self.slots[position].state == State::Early {
                let rest = &mut self.rests[position];
                let start = kept.len();
                kept.extend_from_slice(&self.early[rest.start..][..rest.length as usize]);
                rest.start = start;
            }
        }
        assert!(kept.len() == self.early_live, "every live early reply has a slot");
        self.early = kept;
    }
}

impl Rest {
    fn keep(&mut self, start: usize, length: usize, shared: Option<Arc<[u8]>>) {
        self.start = start;
        self.length = u32::try_from(length).expect("a reply is at most 64 MiB");
        self.shared = shared;
    }
}

fn local(position: u32, generation: u8) -> u32 {
    position << 8 | u32::from(generation)
}

#[inline]
fn write(
    out: &mut Output,
    kind: ReplyKind,
    id: &[u8],
    members: impl FnOnce(&mut Vec<u8>),
    shared: Option<Arc<[u8]>>,
) {
    if kind == ReplyKind::Ok && id.is_empty() && shared.is_none() {
        return out.bytes.extend_from_slice(reply_line::OK);
    }
    reply_line::open(&mut out.bytes, kind, id, members);
    if let Some(value) = shared {
        out.push_shared(value);
    }
    out.bytes.extend_from_slice(reply_line::END);
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
