//! `strand bench durability`: does a server keep what it acknowledged when it is killed?
//!
//! Each round starts a server of its own on a directory that lives through all rounds, writes, kills it with SIGKILL at a
//! moment of chance, starts it again and reads every key back. A key's values rise, so its value must be no older than
//! the last one acknowledged and no newer than the last one sent. SIGKILL does not take what the kernel holds: this
//! shows what the server forgets, not what a disk does.

use super::options::{Arguments, Protocol};
use super::random::Random;
use crate::fatal::ExitCode;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Keys that each connection writes, over and over.
const KEYS_PER_CONNECTION: u64 = 1000;

/// A server must take connections so soon.
const START_MAX: Duration = Duration::from_secs(60);

/// A kill comes after a time between these.
const KILL_AFTER_MS: (u64, u64) = (300, 1500);

/// What all rounds found.
#[derive(Debug, Default)]
pub(super) struct Found {
    rounds: u32,
    acknowledged: u64,
    /// Acknowledged writes that were gone.
    lost: u64,
    /// Values that nobody had written, or not yet.
    impossible: u64,
    /// Writes kept without having been acknowledged: allowed.
    kept_unacknowledged: u64,
    slowest_restart: Duration,
    first_problem: Option<String>,
}

impl Found {
    /// Whether everything acknowledged was there.
    pub(super) fn problem(&self) -> Option<String> {
        (self.lost + self.impossible > 0).then(|| {
            let first = self.first_problem.as_deref().unwrap_or_default();
            format!(
                "{} acknowledged writes were lost and {} values were never written. {first}",
                self.lost, self.impossible
            )
        })
    }

    /// As text for people or JSON for programs.
    pub(super) fn report(&self, as_json: bool) -> String {
        let restart_ms = u64::try_from(self.slowest_restart.as_millis()).unwrap_or(u64::MAX);
        if as_json {
            let figures = json!({
                "workload": "durability",
                "kills": self.rounds,
                "acknowledged": self.acknowledged,
                "lost": self.lost,
                "impossible": self.impossible,
                "kept_unacknowledged": self.kept_unacknowledged,
                "slowest_restart_ms": restart_ms,
                "first_problem": self.first_problem,
            });
            return format!("{figures:#}\n");
        }
        let acknowledged = super::report::count(self.acknowledged as f64);
        let kept = super::report::count(self.kept_unacknowledged as f64);
        format!(
            "{} kills: {acknowledged} writes acknowledged, {} lost, {} impossible values. {kept} keys held a newer write that \
             was under way (allowed). Slowest restart: {restart_ms} ms.\n",
            self.rounds, self.lost, self.impossible
        )
    }
}

/// Runs all rounds.
///
/// # Errors
/// A sentence for the user when a server cannot be started or does not answer.
pub(super) fn run(arguments: &Arguments) -> Result<Found, String> {
    let directory = Directory::make()?;
    let mut random = Random::new(arguments.seed);
    let mut found = Found::default();
    let mut writers: Vec<Writer> = (0..arguments.connections()).map(Writer::new).collect();
    for _ in 0..arguments.rounds {
        let server = Server::start(subject(arguments), &directory.path)?;
        let span = KILL_AFTER_MS.1 - KILL_AFTER_MS.0;
        let kill_after = Duration::from_millis(KILL_AFTER_MS.0 + random.below(span));
        write_until_killed(arguments, server, &mut writers, kill_after)?;
        let restarted = Instant::now();
        let server = Server::start(subject(arguments), &directory.path)?;
        found.slowest_restart = found.slowest_restart.max(restarted.elapsed());
        for writer in &mut writers {
            writer.read_back(subject(arguments), server.address, &mut found)?;
        }
        found.rounds += 1;
        drop(server);
    }
    found.acknowledged = writers.iter().map(|writer| writer.acknowledged_writes).sum();
    Ok(found)
}

fn write_until_killed(
    arguments: &Arguments,
    mut server: Server,
    writers: &mut [Writer],
    kill_after: Duration,
) -> Result<(), String> {
    let killed = AtomicBool::new(false);
    let (address, subject, depth) = (server.address, subject(arguments), arguments.depth());
    thread::scope(|scope| {
        let killed = &killed;
        let threads: Vec<_> = writers
            .iter_mut()
            .map(|writer| scope.spawn(move || writer.write(subject, address, depth, killed)))
            .collect();
        thread::sleep(kill_after);
        killed.store(true, Ordering::SeqCst);
        server.kill();
        threads.into_iter().try_for_each(|thread| {
            thread.join().map_err(|_| "A thread of the generator panicked; report this.".to_owned())?
        })
    })
}

/// One connection's keys: what was sent and acknowledged of each.
#[derive(Debug)]
struct Writer {
    number: usize,
    sent: Vec<u64>,
    acknowledged: Vec<u64>,
    acknowledged_writes: u64,
    next: u64,
}

impl Writer {
    fn new(number: usize) -> Self {
        let none = vec![0; KEYS_PER_CONNECTION as usize];
        Self { number, sent: none.clone(), acknowledged: none, acknowledged_writes: 0, next: 0 }
    }

    fn key(&self, slot: usize) -> String {
        format!("durable:{}:{slot}", self.number)
    }

    /// Writes until the server is gone.
    fn write(
        &mut self,
        subject: Subject,
        address: SocketAddr,
        depth: usize,
        killed: &AtomicBool,
    ) -> Result<(), String> {
        let mut stream = match Stream::connect(address) {
            Ok(stream) => stream,
            Err(_) if killed.load(Ordering::SeqCst) => return Ok(()),
            Err(error) => return Err(format!("Cannot connect to {address}: {error}.")),
        };
        let mut under_way: VecDeque<(usize, u64)> = VecDeque::new();
        loop {
            let mut out = Vec::new();
            while under_way.len() < depth {
                let slot = (self.next % KEYS_PER_CONNECTION) as usize;
                self.next += 1;
                self.sent[slot] = self.next;
                push_set(subject, &self.key(slot), self.next, &mut out);
                under_way.push_back((slot, self.next));
            }
            // Replies that arrived before the end count, whichever side notices it first.
            let sent = stream.0.get_mut().write_all(&out);
            while let Ok(reply) = stream.line() {
                if !is_ok(subject, &reply) {
                    return Err(format!("A write was refused: {reply}"));
                }
                let (slot, number) = under_way.pop_front().ok_or("a reply came without a request")?;
                self.acknowledged[slot] = number;
                self.acknowledged_writes += 1;
                if under_way.len() <= depth / 2 && sent.is_ok() {
                    break;
                }
            }
            if under_way.len() > depth / 2 || sent.is_err() {
                let gone = killed.load(Ordering::SeqCst);
                return if gone { Ok(()) } else { Err("The server ended before it was killed.".to_owned()) };
            }
        }
    }

    /// Compares every key with what may be there.
    fn read_back(&mut self, subject: Subject, address: SocketAddr, found: &mut Found) -> Result<(), String> {
        let told = |error: std::io::Error| format!("The restarted server does not answer: {error}.");
        let mut stream = Stream::connect(address).map_err(told)?;
        for slot in 0..KEYS_PER_CONNECTION as usize {
            let key = self.key(slot);
            let value = stream.get(subject, &key).map_err(told)?;
            let (acknowledged, sent) = (self.acknowledged[slot], self.sent[slot]);
            let held = match value.as_deref() {
                None => 0,
                Some(text) => text.parse().unwrap_or(u64::MAX),
            };
            if held > sent
                || held % KEYS_PER_CONNECTION
                    != if held == 0 { 0 } else { slot as u64 + 1 } % KEYS_PER_CONNECTION
            {
                found.impossible += 1;
                found
                    .first_problem
                    .get_or_insert_with(|| format!("{key} holds {value:?}; the last sent was {sent}."));
            } else if held < acknowledged {
                // Each key's numbers are a constant step apart.
                found.lost += (acknowledged - held).div_ceil(KEYS_PER_CONNECTION);
                found.first_problem.get_or_insert_with(|| {
                    format!("{key} holds {held}, and {acknowledged} had been acknowledged.")
                });
            } else if held > acknowledged {
                found.kept_unacknowledged += 1;
            }
            // What is there now is the basis of the next round; numbers go on rising.
            self.acknowledged[slot] = held.min(sent);
        }
        Ok(())
    }
}

/// Which server is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Strand,
    Redis,
}

fn subject(arguments: &Arguments) -> Subject {
    if arguments.protocol == Protocol::Resp { Subject::Redis } else { Subject::Strand }
}

fn push_set(subject: Subject, key: &str, number: u64, out: &mut Vec<u8>) {
    let request = match subject {
        Subject::Strand => format!("{{\"command\":\"SET\",\"key\":\"{key}\",\"value\":{number}}}\n"),
        Subject::Redis => {
            let value = number.to_string();
            format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n{value}\r\n", key.len(), value.len())
        }
    };
    out.extend_from_slice(request.as_bytes());
}

fn is_ok(subject: Subject, reply: &str) -> bool {
    match subject {
        Subject::Strand => reply.starts_with("{\"status\":\"success\""),
        Subject::Redis => reply == "+OK",
    }
}

/// A blocking connection that reads lines.
struct Stream(BufReader<TcpStream>);

impl Stream {
    fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = Vec::new();
        std::io::BufRead::read_until(&mut self.0, b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        String::from_utf8(line).map_err(|_| std::io::ErrorKind::InvalidData.into())
    }

    /// The value of a key; none where it is absent.
    fn get(&mut self, subject: Subject, key: &str) -> std::io::Result<Option<String>> {
        let request = match subject {
            Subject::Strand => format!("{{\"command\":\"GET\",\"key\":\"{key}\"}}\n"),
            Subject::Redis => format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()),
        };
        self.0.get_mut().write_all(request.as_bytes())?;
        let reply = self.line()?;
        let invalid = || std::io::Error::other(format!("it answered {reply}"));
        match subject {
            Subject::Strand => {
                let value: Value = serde_json::from_str(&reply).map_err(|_| invalid())?;
                if value["status"] != "success" {
                    return Err(invalid());
                }
                Ok(value["result"].as_u64().map(|number| number.to_string()))
            }
            Subject::Redis if reply == "$-1" => Ok(None),
            Subject::Redis => {
                let length: usize =
                    reply.strip_prefix('$').and_then(|digits| digits.parse().ok()).ok_or_else(invalid)?;
                let mut bytes = vec![0; length.min(64) + 2];
                self.0.read_exact(&mut bytes)?;
                Ok(Some(String::from_utf8_lossy(&bytes).trim_end().to_owned()))
            }
        }
    }
}

/// A directory that goes when it is no longer needed.
struct Directory {
    path: PathBuf,
}

impl Directory {
    fn make() -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("strand-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path)
            .map_err(|error| format!("Cannot make {}: {error}.", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed is left in the system's folder for such things.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// A server that this process started, and that dies with it.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts it and waits until it answers.
    fn start(subject: Subject, directory: &Path) -> Result<Self, String> {
        let since = Instant::now();
        loop {
            match Self::try_start(subject, directory)? {
                Some(server) => return Ok(server),
                // What a killed process had under way in the kernel may hold its directory for a moment.
                None if since.elapsed() < START_MAX => thread::sleep(Duration::from_millis(20)),
                None => {
                    return Err(format!("The server asked for another try for {} s.", START_MAX.as_secs()));
                }
            }
        }
    }

    /// Starts it once; none when it ended with the exit code for "try again".
    fn try_start(subject: Subject, directory: &Path) -> Result<Option<Self>, String> {
        let port = free_port().map_err(|error| format!("No port is free: {error}."))?;
        let mut command = match subject {
            Subject::Strand => strand(port, directory)?,
            Subject::Redis => redis(port, directory),
        };
        let log = directory.join("log");
        let file = std::fs::File::create(&log)
            .map_err(|error| format!("Cannot write {}: {error}.", log.display()))?;
        let second = file.try_clone().map_err(|error| format!("Cannot write {}: {error}.", log.display()))?;
        let spawned = command.stdin(Stdio::null()).stdout(file).stderr(second).spawn();
        let child = spawned.map_err(|error| {
            let program = command.get_program().to_string_lossy();
            format!(
                "Cannot start {program}: {error}. (redis-server comes with `apt-get install redis-server`.)"
            )
        })?;
        let mut server = Self { child, address: SocketAddr::from(([127, 0, 0, 1], port)) };
        let since = Instant::now();
        while since.elapsed() < START_MAX {
            if let Ok(Some(status)) = server.child.try_wait() {
                if status.code() == Some(i32::from(ExitCode::TryAgain as u8)) {
                    return Ok(None);
                }
                return Err(format!("The server ended at its start ({status}): {}", last_line(&log)));
            }
            if server.answers(subject) {
                return Ok(Some(server));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err(format!("The server took no connection for {} s: {}", START_MAX.as_secs(), last_line(&log)))
    }

    /// Whether it reads and answers: Redis takes connections while it still loads.
    fn answers(&self, subject: Subject) -> bool {
        Stream::connect(self.address).and_then(|mut stream| stream.get(subject, "durable:probe")).is_ok()
    }

    /// SIGKILL, at once.
    fn kill(&mut self) {
        // It may have ended already; waiting takes its entry out of the process table.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn strand(port: u16, directory: &Path) -> Result<Command, String> {
    let program =
        std::env::current_exe().map_err(|error| format!("This program cannot find itself: {error}."))?;
    let mut command = Command::new(program);
    command.args(["serve", "--log-level", "warn", "--port", &port.to_string(), "--data-dir"]);
    command.arg(directory.join("strand"));
    Ok(command)
}

fn redis(port: u16, directory: &Path) -> Command {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"]);
    command.args(["--appendonly", "yes", "--appendfsync", "always", "--dir"]).arg(directory);
    command
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().last().unwrap_or("it said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each GET with what `held` says.
    fn read_back(held: impl Fn(u64) -> Option<u64> + Send + 'static) -> Found {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let mut stream = Stream(BufReader::new(listener.accept().unwrap().0));
            for slot in 0..KEYS_PER_CONNECTION {
                assert!(stream.line().unwrap().contains(&format!("durable:0:{slot}\"")));
                let value = held(slot).map_or("null".to_owned(), |number| number.to_string());
                let reply = format!("{{\"status\":\"success\",\"result\":{value}}}\n");
                stream.0.get_mut().write_all(reply.as_bytes()).unwrap();
            }
        });
        let mut writer = Writer::new(0);
        for slot in 0..KEYS_PER_CONNECTION {
            // Two writes each were acknowledged, a third was sent.
            writer.acknowledged[slot as usize] = slot + 1 + KEYS_PER_CONNECTION;
            writer.sent[slot as usize] = slot + 1 + 2 * KEYS_PER_CONNECTION;
        }
        let mut found = Found::default();
        writer.read_back(Subject::Strand, address, &mut found).unwrap();
        server.join().unwrap();
        found
    }

    #[test]
    fn what_was_acknowledged_or_under_way_may_be_there() {
        let found = read_back(|slot| Some(slot + 1 + (1 + slot % 2) * KEYS_PER_CONNECTION));
        assert_eq!(
            (found.lost, found.impossible, found.kept_unacknowledged),
            (0, 0, KEYS_PER_CONNECTION / 2)
        );
        assert_eq!(found.problem(), None);
    }

    #[test]
    fn what_is_missing_is_counted_by_writes() {
        let found = read_back(|slot| match slot {
            0 => None,
            1 => Some(slot + 1),
            2 => Some(slot + 2 + KEYS_PER_CONNECTION),
            3 => Some(slot + 1 + 3 * KEYS_PER_CONNECTION),
            _ => Some(slot + 1 + KEYS_PER_CONNECTION),
        });
        // Key 0 lost two writes, key 1 one; key 2 holds another key's value, key 3 one that was never sent.
        assert_eq!((found.lost, found.impossible), (3, 2));
        assert!(found.problem().unwrap().contains("3 acknowledged writes were lost"));
    }
}
