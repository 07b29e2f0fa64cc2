//! A front in a thread with a scripted handler, and a client to talk to it.
//!
//! The script's lines are words: an optional `#ID`, a verb and its argument. `now X` is answered at once; `read X`, `write X`,
//! `scatter X` and `barrier X` are taken in that class and answered from `poll`; with the prefix `stall-` only when the test
//! releases them; `big N` and `copy N` answer N bytes shared or copied; `room X` waits for room at a shard; `unordered` is a
//! HELLO; `close` closes.

use crate::doorbell::Doorbell;
use crate::front::{
    Class, Front, FrontCounters, FrontSettings, Handled, LineAt, LineHandler, Listeners, ReplySink, Wait,
};
use shards::batch::ReplyKind;
use shards::ids::{Millis, Token};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a test can tell the script, and what the script tells.
#[derive(Debug, Default)]
pub(super) struct Control {
    pub(super) release: AtomicBool,
    pub(super) room: AtomicBool,
    /// Completes in a scrambled order instead of the order of arrival.
    pub(super) scramble: AtomicBool,
    pub(super) seen: Mutex<Vec<String>>,
    /// Commands sent and not yet carried out: work that a parking front must see like any other.
    commands: AtomicUsize,
}

struct Reply {
    token: Token,
    members: Vec<u8>,
    shared: Option<Arc<[u8]>>,
}

/// The scripted handler.
struct Script {
    control: Arc<Control>,
    open: Vec<Reply>,
    stalled: Vec<Reply>,
    had_room: bool,
    chance: u64,
}

impl Script {
    fn take<'l>(&mut self, at: &LineAt<'_>, verb: &str, argument: &str, id: &'l [u8]) -> Handled<'l> {
        let (verb, stalls) = match verb.strip_prefix("stall-") {
            Some(verb) => (verb, true),
            None => (verb, false),
        };
        let class = match verb {
            "write" => Class::SingleWrite,
            "scatter" => Class::ScatterRead,
            "barrier" => Class::Barrier,
            _ => Class::SingleRead,
        };
        if !at.admits(class) {
            return Handled::Hold(class);
        }
        if verb == "room" && !self.control.room.load(Ordering::SeqCst) {
            return Handled::HoldForRoom;
        }
        let mut reply = Reply { token: at.token(), members: b"\"result\":".to_vec(), shared: None };
        let count = argument.parse().unwrap_or(0);
        match verb {
            "big" => reply.shared = Some(pattern(count).into()),
            "copy" => reply.members.extend(pattern(count)),
            _ => reply.members.extend(format!("\"{argument}\"").into_bytes()),
        }
        let list = if stalls { &mut self.stalled } else { &mut self.open };
        list.push(reply);
        Handled::Taken { class, id }
    }
}

impl LineHandler for Script {
    fn line<'l>(&mut self, at: &mut LineAt<'_>, line: &'l [u8]) -> Handled<'l> {
        let text = std::str::from_utf8(line).unwrap();
        let (id, rest) = match text.strip_prefix('#') {
            Some(rest) => rest.split_once(' ').unwrap(),
            None => ("", text),
        };
        let (verb, argument) = rest.split_once(' ').unwrap_or((rest, ""));
        let handled = match verb {
            "" => Handled::Answered,
            "now" => {
                at.answer(ReplyKind::Success, id.as_bytes(), format!("\"result\":\"{argument}\"").as_bytes());
                Handled::Answered
            }
            "unordered" if !at.admits(Class::Barrier) => Handled::Hold(Class::Barrier),
            "unordered" => {
                at.set_ordered(false);
                at.set_flags(7);
                at.answer(ReplyKind::Ok, id.as_bytes(), b"");
                Handled::Answered
            }
            "flags" => {
                let flags = at.flags();
                at.answer_with(ReplyKind::Success, b"", |out| {
                    out.extend(format!("\"result\":{flags}").into_bytes());
                });
                Handled::Answered
            }
            "close" => Handled::Close,
            _ => self.take(at, verb, argument, id.as_bytes()),
        };
        if matches!(handled, Handled::Taken { .. } | Handled::Answered) {
            self.control.seen.lock().unwrap().push(rest.to_owned());
        }
        handled
    }

    fn flush(&mut self) {}

    fn poll(&mut self, sink: &mut ReplySink<'_>) -> bool {
        if self.control.release.load(Ordering::SeqCst) {
            self.open.append(&mut self.stalled);
        }
        let room = self.control.room.load(Ordering::SeqCst);
        let made_room = room && !std::mem::replace(&mut self.had_room, room);
        let any = made_room || !self.open.is_empty();
        // Scrambled, some replies wait for a later turn.
        let scramble = self.control.scramble.load(Ordering::SeqCst);
        let keep = if scramble { self.open.len() / 2 } else { 0 };
        while self.open.len() > keep {
            let position = if scramble {
                self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (self.chance >> 33) as usize % self.open.len()
            } else {
                0
            };
            let reply = self.open.remove(position);
            sink.complete(reply.token, ReplyKind::Success, &reply.members, reply.shared);
        }
        any
    }

    fn has_work(&mut self) -> bool {
        let released = self.control.release.load(Ordering::SeqCst) && !self.stalled.is_empty();
        let commands = self.control.commands.load(Ordering::SeqCst) > 0;
        commands
            || released
            || !self.open.is_empty()
            || self.control.room.load(Ordering::SeqCst) != self.had_room
    }
}

/// Letters that a JSON reader would not take, but a comparison does.
pub(super) fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|position| b'a' + (position % 23) as u8).collect()
}

enum Command {
    StopAccepting,
    CloseAll,
    Ask(mpsc::Sender<(FrontCounters, bool, usize)>),
    Quit,
}

/// A front in its thread.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) control: Arc<Control>,
    bell: Arc<Doorbell>,
    commands: mpsc::Sender<Command>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(settings: FrontSettings) -> Self {
        let listeners = Listeners::bind(&["127.0.0.1:0".parse().unwrap()], 1024).unwrap();
        let address = listeners.addresses().unwrap()[0];
        let (bell, control) = (Doorbell::new().unwrap(), Arc::new(Control::default()));
        let (commands, orders) = mpsc::channel();
        let thread = {
            let (bell, control) = (Arc::clone(&bell), Arc::clone(&control));
            std::thread::spawn(move || serve(settings, listeners, bell, control, &orders))
        };
        Self { address, control, bell, commands, thread: Some(thread) }
    }

    pub(super) fn client(&self) -> Client {
        Client::connect(self.address)
    }

    pub(super) fn release(&self) {
        self.control.release.store(true, Ordering::SeqCst);
        self.bell.ring();
    }

    pub(super) fn make_room(&self) {
        self.control.room.store(true, Ordering::SeqCst);
        self.bell.ring();
    }

    pub(super) fn stop_accepting(&self) {
        self.command(Command::StopAccepting);
    }

    pub(super) fn close_all(&self) {
        self.command(Command::CloseAll);
    }

    pub(super) fn counters(&self) -> FrontCounters {
        self.ask().0
    }

    pub(super) fn is_drained(&self) -> bool {
        self.ask().1
    }

    /// Undispatched bytes held.
    pub(super) fn input_bytes(&self) -> usize {
        self.ask().2
    }

    pub(super) fn seen(&self) -> Vec<String> {
        self.control.seen.lock().unwrap().clone()
    }

    /// Waits until the front has come to a state; fails after ten seconds.
    pub(super) fn until(&self, what: &str, reached: impl Fn(&FrontCounters) -> bool) -> FrontCounters {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let counters = self.counters();
            if reached(&counters) {
                return counters;
            }
            assert!(Instant::now() < end, "{what} did not happen: {counters:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn ask(&self) -> (FrontCounters, bool, usize) {
        let (answer, answered) = mpsc::channel();
        self.command(Command::Ask(answer));
        answered.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    fn command(&self, command: Command) {
        self.commands.send(command).unwrap();
        self.control.commands.fetch_add(1, Ordering::SeqCst);
        self.bell.ring();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A front that panicked has no receiver any more; the join below tells.
        let _ = self.commands.send(Command::Quit);
        self.control.commands.fetch_add(1, Ordering::SeqCst);
        self.bell.ring();
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

fn serve(
    settings: FrontSettings,
    listeners: Listeners,
    bell: Arc<Doorbell>,
    control: Arc<Control>,
    orders: &mpsc::Receiver<Command>,
) {
    let origin = Instant::now();
    let clock = move || Millis(1_000 + origin.elapsed().as_millis() as u64);
    let mut front = Front::open(settings, listeners, bell, clock).unwrap();
    let pending = Arc::clone(&control);
    let mut script = Script { control, open: Vec::new(), stalled: Vec::new(), had_room: false, chance: 1 };
    loop {
        // So long that a lost wake-up fails a test.
        front.turn(&mut script, Wait::Until(Millis(clock().0 + 60_000))).unwrap();
        while pending.commands.load(Ordering::SeqCst) > 0 {
            let order = orders.recv().unwrap();
            pending.commands.fetch_sub(1, Ordering::SeqCst);
            match order {
                Command::StopAccepting => front.stop_accepting(),
                Command::CloseAll => front.close_all(),
                Command::Ask(answer) => {
                    let input = front.desk.connections.input_bytes;
                    let held: usize = front.desk.connections.list.iter().map(|c| c.input.len()).sum();
                    assert_eq!(input, held, "the budget counts what is held");
                    answer.send((front.counters(), front.is_drained(), input)).unwrap();
                }
                Command::Quit => return,
            }
        }
    }
}

/// A client that reads reply lines and fails rather than hangs.
pub(super) struct Client {
    pub(super) stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Client {
    pub(super) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        let reader = BufReader::with_capacity(1 << 16, stream.try_clone().unwrap());
        Self { stream, reader }
    }

    pub(super) fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    /// The next reply line without its end; empty at the end of the connection.
    pub(super) fn line(&mut self) -> String {
        let mut line = String::new();
        let count = self.reader.read_line(&mut line).unwrap();
        assert!(count == 0 || line.ends_with('\n'), "a reply line ends: {line:?}");
        line.trim_end().to_owned()
    }

    /// The next reply's `result` string, for replies without id.
    pub(super) fn result(&mut self) -> String {
        let line = self.line();
        let result =
            line.strip_prefix("{\"status\":\"success\",\"result\":\"").and_then(|r| r.strip_suffix("\"}"));
        result.unwrap_or_else(|| panic!("no plain success: {line:?}")).to_owned()
    }

    pub(super) fn error(&mut self, code: &str) {
        let line = self.line();
        assert!(line.starts_with(&format!("{{\"status\":\"error\",\"code\":\"{code}\",")), "{line:?}");
        assert!(line.contains("\"retry\":\"") && line.ends_with('}'), "{line:?}");
    }

    pub(super) fn ends(&mut self) {
        assert_eq!(self.line(), "", "the connection ends in order");
    }

    /// Whether the connection is gone, with or without a reset.
    pub(super) fn is_gone(&mut self) -> bool {
        let mut sink = Vec::new();
        match self.reader.read_to_end(&mut sink) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
