//! The client connections as the front sees them, and the lists of those that need something.
//!
//! A connection's place is reused, its generation is not (before a million reuses), so a token of a closed connection
//! finds nothing. A place is free again only when the ring has let go of its socket and buffers.

use super::input::Input;
use super::order::{LOCAL_BITS, Slots};
use super::output::Output;
use shards::ids::{Millis, Token};
use std::collections::VecDeque;
use std::net::TcpStream;

const GENERATION_BITS: u32 = 20;
const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;

/// Where a connection is between accept and close.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Life {
    /// The place is free.
    #[default]
    Free,
    /// Read and dispatched.
    Open,
    /// Nothing more is dispatched; replies under way still leave, input is thrown away.
    Closing,
    /// Everything was sent and the writing side is shut; input is thrown away until the client closes too.
    Lingering,
    /// Shut; waits until the ring has let go.
    Dead,
}

/// What a connection with undispatched lines waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Wants {
    /// More input.
    #[default]
    Nothing,
    /// Its next turn: it had its share of lines in this one.
    Turn,
    /// That a request of this class is admitted.
    Class(super::order::Class),
    /// Fewer requests in flight.
    InFlight,
    /// Less unsent output.
    Unsent,
    /// Room at a shard.
    Room,
}

/// Whether the ring receives for the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Receiving {
    #[default]
    Idle,
    Armed,
    /// Cancelled; the last completion has not come.
    Stopping,
}

/// How long a connection rests before its buffers are given up.
const TRIM_MS: u64 = 1_000;

/// One client connection.
#[derive(Debug, Default)]
pub(super) struct Connection {
    pub(super) generation: u32,
    pub(super) life: Life,
    pub(super) wants: Wants,
    pub(super) receiving: Receiving,
    /// The ring holds a send of this connection.
    pub(super) sending: bool,
    /// The client has shut its writing side.
    pub(super) ended: bool,
    /// Over the limit of connections: only here to be told so.
    pub(super) refused: bool,
    /// Not read at present, for the front's own reasons.
    pub(super) paused: bool,
    touched: bool,
    ready: bool,
    pub(super) watched: bool,
    /// The handler's flags.
    pub(super) flags: u32,
    /// The turn in which `turn_lines` were dispatched.
    pub(super) turn: u64,
    pub(super) turn_lines: usize,
    /// Bytes that the ring's send still has to hand over.
    pub(super) sending_bytes: usize,
    pub(super) slots: Slots,
    pub(super) out: Output,
    pub(super) input: Input,
    /// When something last arrived.
    pub(super) heard: Millis,
    /// When the unfinished line began.
    pub(super) line_since: Millis,
    /// When the kernel last took output, or the send began.
    pub(super) write_since: Millis,
    pub(super) linger_until: Millis,
    pub(super) socket: Option<TcpStream>,
}

impl Connection {
    /// Reply bytes that the kernel has not taken.
    #[inline]
    pub(super) fn unsent(&self) -> usize {
        self.out.len() + self.sending_bytes + self.slots.early_bytes()
    }

    /// Whether nothing is owed to the client.
    pub(super) fn is_settled(&self) -> bool {
        self.slots.used() == 0 && !self.sending && self.out.is_empty()
    }

    /// Gives up the buffers of a connection that has rested for a while, so that thousands of idle ones cost little; false
    /// when it has not rested long enough and should be asked again.
    pub(super) fn trim(&mut self, now: Millis) -> bool {
        if matches!(self.life, Life::Free | Life::Dead) {
            return true;
        }
        if !self.is_settled() || now.0.saturating_sub(self.heard.0) < TRIM_MS {
            return false;
        }
        self.out = Output::default();
        self.slots.trim();
        if self.input.is_empty() {
            self.input = Input::default();
        }
        true
    }
}

/// All connections, by place.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) list: Vec<Connection>,
    free: VecDeque<u32>,
    places_max: usize,
    /// To be settled before the turn ends.
    touched: Vec<u32>,
    /// To be offered their held lines.
    ready: Vec<u32>,
    /// Waiting for room at a shard.
    for_room: Vec<u32>,
    /// With a clock running.
    pub(super) watched: Vec<u32>,
    /// Undispatched bytes of all connections.
    pub(super) input_bytes: usize,
}

impl Connections {
    pub(super) fn new(places_max: usize) -> Self {
        Self {
            list: Vec::new(),
            free: VecDeque::new(),
            places_max,
            touched: Vec::new(),
            ready: Vec::new(),
            for_room: Vec::new(),
            watched: Vec::new(),
            input_bytes: 0,
        }
    }

    /// A place for a new connection, or nothing when all are taken.
    pub(super) fn claim(&mut self, socket: TcpStream, now: Millis) -> Option<usize> {
        let at = match self.free.pop_front() {
            Some(at) => at as usize,
            None if self.list.len() < self.places_max => {
                self.list.push(Connection::default());
                self.list.len() - 1
            }
            None => return None,
        };
        let connection = &mut self.list[at];
        assert!(connection.life == Life::Free, "a place is claimed once");
        connection.life = Life::Open;
        connection.heard = now;
        connection.socket = Some(socket);
        Some(at)
    }

    /// Frees a place whose socket the ring has let go of; dropping the socket closes it.
    pub(super) fn release(&mut self, at: usize) {
        let connection = &mut self.list[at];
        assert!(connection.life == Life::Dead && !connection.sending, "the ring has let go");
        let Connection { generation, touched, ready, watched, .. } = *connection;
        *connection = Connection { generation, touched, ready, watched, ..Connection::default() };
        self.free.push_back(at as u32);
    }

    /// Forgets what a connection would have sent or dispatched; its tokens are void from here on.
    pub(super) fn void(&mut self, at: usize) {
        self.drop_input(at);
        let connection = &mut self.list[at];
        connection.generation = (connection.generation + 1) & GENERATION_MASK;
        connection.slots = Slots::default();
        connection.out = Output::default();
    }

    pub(super) fn drop_input(&mut self, at: usize) {
        let connection = &mut self.list[at];
        self.input_bytes -= connection.input.len();
        connection.input = Input::default();
        connection.wants = Wants::Nothing;
    }

    /// The upper bits of the connection's tokens.
    pub(super) fn token_base(at: usize, generation: u32) -> u64 {
        (at as u64) << (LOCAL_BITS + GENERATION_BITS) | u64::from(generation) << LOCAL_BITS
    }

    /// The place of a token's connection, if that lives, and the number of its request.
    #[inline]
    pub(super) fn find(&self, token: Token) -> Option<(usize, u32)> {
        let at = (token.0 >> (LOCAL_BITS + GENERATION_BITS)) as usize;
        let connection = self.list.get(at)?;
        let generation = (token.0 >> LOCAL_BITS) as u32 & GENERATION_MASK;
        (connection.generation == generation).then_some((at, token.0 as u32 & ((1 << LOCAL_BITS) - 1)))
    }

    /// Has the connection settled before the turn ends.
    #[inline]
    pub(super) fn touch(&mut self, at: usize) {
        let connection = &mut self.list[at];
        if !connection.touched {
            connection.touched = true;
            self.touched.push(at as u32);
        }
    }

    /// Has the connection's held lines offered again.
    pub(super) fn make_ready(&mut self, at: usize) {
        let connection = &mut self.list[at];
        if !connection.ready {
            connection.ready = true;
            self.ready.push(at as u32);
        }
    }

    /// Has the connection's held lines offered again when there is room at a shard.
    pub(super) fn await_room(&mut self, at: usize) {
        self.for_room.push(at as u32);
    }

    /// Makes those ready that waited for room, in the order in which they came.
    pub(super) fn room_was_made(&mut self) {
        for at in std::mem::take(&mut self.for_room) {
            if self.list[at as usize].wants == Wants::Room {
                self.make_ready(at as usize);
            }
        }
    }

    pub(super) fn watch(&mut self, at: usize) {
        let connection = &mut self.list[at];
        if !connection.watched {
            connection.watched = true;
            self.watched.push(at as u32);
        }
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Swaps the list of ready connections with an empty one; [`Connections::pick_ready`] confirms each.
    pub(super) fn swap_ready(&mut self, list: &mut Vec<u32>) {
        std::mem::swap(&mut self.ready, list);
    }

    /// Takes the mark of a connection from the ready list; false when it closed meanwhile.
    pub(super) fn pick_ready(&mut self, at: usize) -> bool {
        let connection = &mut self.list[at];
        connection.ready = false;
        connection.life == Life::Open && connection.wants != Wants::Nothing
    }

    /// The next connection to settle.
    pub(super) fn pop_touched(&mut self) -> Option<usize> {
        let at = self.touched.pop()? as usize;
        self.list[at].touched = false;
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> TcpStream {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap()
    }

    #[test]
    fn a_token_dies_with_its_connection() {
        let mut connections = Connections::new(1);
        let at = connections.claim(socket(), Millis(0)).unwrap();
        assert!(connections.claim(socket(), Millis(0)).is_none(), "one place only");
        let token = Token(Connections::token_base(at, connections.list[at].generation) | 5);
        assert_eq!(connections.find(token), Some((at, 5)));
        connections.list[at].life = Life::Dead;
        connections.void(at);
        assert_eq!(connections.find(token), None);
        connections.release(at);
        assert_eq!(connections.claim(socket(), Millis(0)), Some(at));
        assert_eq!(connections.find(token), None);
        assert_eq!(connections.find(Token(u64::MAX)), None);
    }
}
