//! Line framing: a stream of bytes gives the same lines to the router however it is cut into pieces, whatever is held.
//!
//! The first byte chooses the limit of a line and how the router holds lines back; the rest is the stream. It is delivered
//! whole, byte by byte, and in two pieces cut at every place (at a few places when it is long).

use crate::engine::{behaviour, class_of};
use crate::front::connection::{Connection, Connections, Life};
use crate::front::counters::FrontCounters;
use crate::front::dispatch::Desk;
use crate::front::handler::{Handled, LineAt, LineHandler, ReplySink};
use crate::front::settings::FrontSettings;
use crate::targets::Target;
use shards::ids::Millis;

/// Streams up to this length are cut at every place.
const CUT_EVERYWHERE_BYTES: usize = 24;

/// See the module's head.
pub(crate) struct Lines;

impl Lines {
    /// The target.
    pub(crate) fn new() -> Self {
        Self
    }
}

/// A router that notes lines, and holds some of them once.
struct Recorder {
    lines: Vec<Vec<u8>>,
    /// Lines whose number has these bits are held for room the first time they are offered.
    hold_mask: usize,
    is_held: bool,
    closes_at: Option<usize>,
}

impl LineHandler for Recorder {
    fn line<'l>(&mut self, _: &mut LineAt<'_>, line: &'l [u8]) -> Handled<'l> {
        let number = self.lines.len();
        if self.closes_at == Some(number) {
            return Handled::Close;
        }
        if self.hold_mask != 0 && number & self.hold_mask == self.hold_mask && !self.is_held {
            self.is_held = true;
            return Handled::HoldForRoom;
        }
        self.is_held = false;
        self.lines.push(line.to_vec());
        Handled::Answered
    }

    fn flush(&mut self) {}

    fn poll(&mut self, _: &mut ReplySink<'_>) -> bool {
        true
    }

    fn has_work(&mut self) -> bool {
        false
    }
}

#[derive(Clone, Copy)]
struct Options {
    line_bytes_max: usize,
    hold_mask: usize,
    lines_per_turn_max: usize,
    closes_at: Option<usize>,
    ends: bool,
}

impl Options {
    fn of(byte: u8) -> Self {
        Self {
            line_bytes_max: [3, 8, 40, 1 << 20][usize::from(byte & 3)],
            hold_mask: [0, 1, 2, 3][usize::from(byte >> 2 & 3)],
            lines_per_turn_max: [1, 2, 256, 256][usize::from(byte >> 4 & 3)],
            closes_at: (byte & 0x40 != 0).then_some(2),
            ends: byte & 0x80 != 0,
        }
    }
}

/// How a connection ended up: the lines, whether it was closed, and what it was told.
#[derive(Debug, PartialEq, Eq)]
struct End {
    lines: Vec<Vec<u8>>,
    is_open: bool,
    told_bytes: usize,
}

#[allow(clippy::field_reassign_with_default, reason = "other fields are the connection's own")]
fn deliver(options: Options, pieces: &mut dyn Iterator<Item = &[u8]>) -> End {
    let settings = FrontSettings {
        line_bytes_max: options.line_bytes_max,
        lines_per_turn_max: options.lines_per_turn_max,
        ..FrontSettings::default()
    };
    let mut connections = Connections::new(1);
    let mut connection = Connection::default();
    connection.life = Life::Open;
    connections.list.push(connection);
    let counters = FrontCounters::default();
    let mut desk = Desk { connections, counters, settings, now: Millis(1), turn: 0 };
    let mut recorder = Recorder {
        lines: Vec::new(),
        hold_mask: options.hold_mask,
        is_held: false,
        closes_at: options.closes_at,
    };
    for piece in pieces {
        desk.turn += 1;
        desk.received(0, piece, &mut recorder);
        turn(&mut desk, &mut recorder);
    }
    for _ in 0..100_000 {
        desk.turn += 1;
        if !turn(&mut desk, &mut recorder) {
            break;
        }
    }
    if options.ends {
        desk.ended(0);
    }
    while desk.connections.pop_touched().is_some() {}
    let connection = &desk.connections.list[0];
    assert_eq!(desk.connections.input_bytes, connection.input.len(), "the budget counts what is held");
    End { lines: recorder.lines, is_open: connection.life == Life::Open, told_bytes: connection.out.len() }
}

/// What the rest of a turn does with held lines; whether there were any.
fn turn(desk: &mut Desk, recorder: &mut Recorder) -> bool {
    desk.connections.room_was_made();
    let mut ready = Vec::new();
    desk.connections.swap_ready(&mut ready);
    let any = !ready.is_empty();
    for at in ready {
        if desk.connections.pick_ready(at as usize) {
            desk.resume(at as usize, recorder);
        }
    }
    any
}

/// What the stream means: its lines up to the first that is too long, and whether the connection lives.
fn expected(options: Options, stream: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let mut lines = Vec::new();
    let mut rest = stream;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        if line.len() > options.line_bytes_max || options.closes_at == Some(lines.len()) {
            return (lines, false);
        }
        lines.push(line.to_vec());
        rest = &rest[end + 1..];
    }
    let is_cut = options.ends && !rest.is_empty();
    (lines, rest.len() <= options.line_bytes_max + 1 && !is_cut)
}

impl Target for Lines {
    fn seeds(&self) -> Vec<Vec<u8>> {
        let stream = b"{\"command\":\"PING\"}\n\r\n\nabc\r\n\r\r\nhalf";
        (0..=255u8).step_by(7).map(|options| [&[options][..], &stream[..]].concat()).collect()
    }

    fn words(&self) -> Vec<Vec<u8>> {
        ["\n", "\r\n", "\r", "\n\n", "\r\r\n", "abc\n", "12345678\r\n", "\0\n"]
            .map(|word| word.as_bytes().to_vec())
            .to_vec()
    }

    fn bytes_max(&self) -> usize {
        120
    }

    fn run(&mut self, input: &[u8]) -> u64 {
        let Some((options, stream)) = input.split_first() else { return 0 };
        let options = Options::of(*options);
        let whole = deliver(options, &mut std::iter::once(stream));
        let (lines, lives) = expected(options, stream);
        assert_eq!(whole.lines, lines, "the lines of the stream");
        assert_eq!(whole.is_open, lives, "whether the connection lives");
        assert_eq!(deliver(options, &mut stream.chunks(1)), whole, "byte by byte");
        let step = if stream.len() <= CUT_EVERYWHERE_BYTES { 1 } else { stream.len() / 4 };
        for cut in (1..stream.len()).step_by(step) {
            let (first, second) = stream.split_at(cut);
            assert_eq!(deliver(options, &mut [first, second].into_iter()), whole, "cut at {cut}");
        }
        let lengths = lines.iter().take(4).fold(0, |sum, line| sum << 3 | class_of(line.len()));
        behaviour(&[u64::from(input[0]), class_of(lines.len()), u64::from(lives), lengths])
    }
}
