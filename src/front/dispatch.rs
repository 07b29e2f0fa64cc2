//! From received bytes to lines offered to the handler: what may be dispatched now, what must wait, and for what.
//!
//! Whole lines in a receive buffer are offered in place. Only what cannot be dispatched yet is copied into the connection's
//! input. Nothing here touches the ring: connections whose state changed are marked, and `settle` does the rest.

use super::connection::{Connection, Connections, Life, Wants};
use super::counters::FrontCounters;
use super::handler::{Handled, ID_BYTES_MAX, LineAt, LineHandler};
use super::settings::FrontSettings;
use shards::batch::ReplyKind;
use shards::ids::Millis;
use strand_wire::LineEnds;

/// Everything of the front except its ring.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) connections: Connections,
    pub(super) counters: FrontCounters,
    pub(super) settings: FrontSettings,
    pub(super) now: Millis,
    pub(super) turn: u64,
}

/// How far a stretch of input was dispatched.
struct Offered {
    consumed: usize,
    wants: Wants,
    /// A line over the limit, or the handler's wish to close.
    closes: Option<Closes>,
}

enum Closes {
    LongLine,
    Wish,
}

impl Desk {
    /// Bytes have arrived for a connection.
    pub(super) fn received<H: LineHandler>(&mut self, at: usize, data: &[u8], handler: &mut H) {
        self.counters.bytes_in += data.len() as u64;
        self.connections.touch(at);
        let connection = &mut self.connections.list[at];
        connection.heard = self.now;
        if connection.life != Life::Open {
            return;
        }
        let mut rest = data;
        if !connection.input.is_empty() {
            if connection.wants != Wants::Nothing {
                return self.keep(at, rest);
            }
            // Completes the unfinished line and offers it, so that the rest can be dispatched where it lies.
            let end = memchr::memchr(b'\n', rest);
            let (head, tail) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
            self.keep(at, head);
            self.offer_input(at, handler);
            let connection = &self.connections.list[at];
            if connection.life != Life::Open || tail.is_empty() {
                return;
            }
            if !connection.input.is_empty() {
                return self.keep(at, tail);
            }
            rest = tail;
        }
        let offered = self.offer(at, rest, 0, handler);
        self.keep(at, &rest[offered.consumed..]);
        self.conclude(at, &offered);
    }

    /// The client has shut its writing side.
    pub(super) fn ended(&mut self, at: usize) {
        self.connections.list[at].ended = true;
        self.connections.touch(at);
        self.refuse_remainder(at);
    }

    /// Offers a connection's held lines again.
    pub(super) fn resume<H: LineHandler>(&mut self, at: usize, handler: &mut H) {
        let connection = &mut self.connections.list[at];
        connection.wants = Wants::Nothing;
        connection.heard = self.now;
        self.connections.touch(at);
        self.offer_input(at, handler);
    }

    /// Ends a connection with an error line behind the replies under way.
    pub(super) fn refuse(&mut self, at: usize, members: &[u8]) {
        let connection = &mut self.connections.list[at];
        assert!(connection.life == Life::Open, "only an open connection is told anything");
        let write = |out: &mut Vec<u8>| out.extend_from_slice(members);
        connection.slots.answer(&mut connection.out, ReplyKind::Error, b"", write, None);
        self.close_after_replies(at);
    }

    /// Dispatches nothing more of a connection; it closes once its replies have left.
    pub(super) fn close_after_replies(&mut self, at: usize) {
        self.connections.drop_input(at);
        self.connections.list[at].life = Life::Closing;
        self.connections.touch(at);
    }

    /// Refuses the connections with the most unfinished input until the rest fits the budget.
    pub(super) fn keep_input_budget(&mut self) {
        while self.connections.input_bytes > self.settings.unfinished_bytes_max {
            let weight =
                |connection: &Connection| (connection.wants == Wants::Nothing, connection.input.len());
            let open = self.connections.list.iter().enumerate().filter(|(_, c)| !c.input.is_empty());
            let Some((at, _)) = open.max_by_key(|(_, connection)| weight(connection)) else {
                return;
            };
            self.counters.input_budget_closes += 1;
            self.refuse(at, texts::INPUT_BUDGET);
        }
    }

    fn keep(&mut self, at: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let connection = &mut self.connections.list[at];
        if connection.input.is_empty() {
            connection.line_since = self.now;
        }
        connection.input.append(bytes);
        self.connections.input_bytes += bytes.len();
    }

    fn offer_input<H: LineHandler>(&mut self, at: usize, handler: &mut H) {
        let (bytes, start, searched) = self.connections.list[at].input.lend();
        let offered = self.offer(at, &bytes[start..], searched, handler);
        self.connections.input_bytes -= offered.consumed;
        let connection = &mut self.connections.list[at];
        if offered.consumed > 0 {
            connection.line_since = self.now;
        }
        connection.input.restore(bytes, offered.consumed, offered.wants == Wants::Nothing);
        self.conclude(at, &offered);
    }

    /// Draws the consequences once the input is where it belongs.
    fn conclude(&mut self, at: usize, offered: &Offered) {
        match offered.closes {
            Some(Closes::Wish) => return self.close_after_replies(at),
            Some(Closes::LongLine) => return self.refuse_long_line(at),
            None => {}
        }
        let connection = &mut self.connections.list[at];
        connection.wants = offered.wants;
        match offered.wants {
            Wants::Nothing => {
                connection.input.mark_searched();
                // A carriage return may belong to the line end that is still to come.
                if connection.input.len() > self.settings.line_bytes_max + 1 {
                    return self.refuse_long_line(at);
                }
                self.refuse_remainder(at);
            }
            Wants::Turn => self.connections.make_ready(at),
            Wants::Room => {
                self.counters.holds_for_room += 1;
                self.connections.await_room(at);
            }
            Wants::Class(_) => self.counters.holds += 1,
            Wants::InFlight => self.counters.holds_in_flight += 1,
            Wants::Unsent => self.counters.holds_unsent += 1,
        }
    }

    fn refuse_long_line(&mut self, at: usize) {
        self.counters.long_line_closes += 1;
        let limit = self.settings.line_bytes_max;
        self.refuse(at, texts::long_line(limit).as_bytes());
    }

    /// A line without its end is never dispatched: it may be half of what the client meant.
    fn refuse_remainder(&mut self, at: usize) {
        let connection = &self.connections.list[at];
        let cut = connection.ended && connection.wants == Wants::Nothing && !connection.input.is_empty();
        if cut && connection.life == Life::Open {
            self.refuse(at, texts::CUT_LINE);
        }
    }

    /// Offers the complete lines of `bytes` until one must wait; the first `searched` bytes hold no line end.
    fn offer<H: LineHandler>(
        &mut self,
        at: usize,
        bytes: &[u8],
        searched: usize,
        handler: &mut H,
    ) -> Offered {
        let Self { connections, counters, settings, now, turn } = self;
        let connection = &mut connections.list[at];
        if connection.turn != *turn {
            connection.turn = *turn;
            connection.turn_lines = 0;
        }
        let token_base = Connections::token_base(at, connection.generation);
        let mut consumed = 0;
        for end in LineEnds::new(bytes, searched) {
            let mut line = &bytes[consumed..end];
            if let [content @ .., b'\r'] = line {
                line = content;
            }
            if line.len() > settings.line_bytes_max {
                return Offered { consumed, wants: Wants::Nothing, closes: Some(Closes::LongLine) };
            }
            if let Some(wants) = must_wait(connection, settings) {
                return Offered { consumed, wants, closes: None };
            }
            let Connection { slots, out, flags, .. } = connection;
            let mut line_at = LineAt { token_base, now: *now, slots, out, flags };
            match handler.line(&mut line_at, line) {
                Handled::Answered => {}
                Handled::Taken { class, id } => {
                    assert!(id.len() <= ID_BYTES_MAX, "the handler bounds the id");
                    assert!(connection.slots.admits(class), "the handler takes what is admitted");
                    connection.slots.take(class, id);
                }
                Handled::Hold(class) => {
                    assert!(!connection.slots.admits(class), "a hold waits for replies that will come");
                    return Offered { consumed, wants: Wants::Class(class), closes: None };
                }
                Handled::HoldForRoom => return Offered { consumed, wants: Wants::Room, closes: None },
                Handled::Close => {
                    return Offered { consumed, wants: Wants::Nothing, closes: Some(Closes::Wish) };
                }
            }
            counters.lines += 1;
            connection.turn_lines += 1;
            consumed = end + 1;
        }
        Offered { consumed, wants: Wants::Nothing, closes: None }
    }
}

/// Why the connection's next complete line is not offered now.
#[inline]
fn must_wait(connection: &Connection, settings: &FrontSettings) -> Option<Wants> {
    if connection.slots.used() >= settings.in_flight_max {
        Some(Wants::InFlight)
    } else if connection.unsent() >= settings.unsent_bytes_max {
        Some(Wants::Unsent)
    } else if connection.turn_lines >= settings.lines_per_turn_max {
        Some(Wants::Turn)
    } else {
        None
    }
}

/// The error members that the front itself answers with.
pub(super) mod texts {
    pub(in crate::front) const TOO_MANY_CONNECTIONS: &[u8] = b"\"code\":\"OVERLOADED\",\
        \"error\":\"too many connections; close some or try again later\",\"retry\":\"safe\"";

    pub(in crate::front) const INPUT_BUDGET: &[u8] = b"\"code\":\"OVERLOADED\",\
        \"error\":\"too much unfinished input; send smaller lines or try again later\",\"retry\":\"safe\"";

    pub(in crate::front) const SLOW_LINE: &[u8] = b"\"code\":\"BAD_REQUEST\",\
        \"error\":\"the line did not end in time; send a request without pausing inside it\",\"retry\":\"safe\"";

    pub(in crate::front) const CUT_LINE: &[u8] = b"\"code\":\"BAD_REQUEST\",\
        \"error\":\"the last line has no line end; end every request with a newline\",\"retry\":\"safe\"";

    pub(in crate::front) fn long_line(limit: usize) -> String {
        format!(
            "\"code\":\"TOO_LARGE\",\"error\":\"the line is longer than {limit} bytes; split the request\",\
             \"retry\":\"never\",\"limit\":{limit}"
        )
    }
}
