//! Lines into commands, commands to the server, replies to the printer.
//!
//! Connects with the first command that needs a server, so that `help` needs none. Invariant: output stands in the order of
//! the lines, also when they travelled together.

use super::print::Printer;
use super::{Ended, help, words};
use std::time::Instant;
use strand_client::{Client, ClientOptions, Command, Error, Reply};

/// A client that connects when needed, and where its output goes.
pub(super) struct Session {
    addresses: Vec<String>,
    token: Option<String>,
    client: Option<Client>,
    pub(super) printer: Printer,
    over: bool,
}

impl Session {
    pub(super) fn new(addresses: Vec<String>, token: Option<String>, printer: Printer) -> Self {
        Self { addresses, token, client: None, printer, over: false }
    }

    /// Whether the user has had enough.
    pub(super) fn is_over(&self) -> bool {
        self.over || self.printer.is_closed()
    }

    /// The address that the prompt shows.
    pub(super) fn address(&self) -> &str {
        self.client.as_ref().map_or(self.addresses[0].as_str(), Client::address)
    }

    /// Connects, if there is no connection yet.
    pub(super) fn connect(&mut self) -> Result<&mut Client, Error> {
        if self.client.is_none() {
            let options = ClientOptions { token: self.token.clone(), ..ClientOptions::default() };
            self.client = Some(Client::connect_with(&self.addresses, options)?);
        }
        Ok(self.client.as_mut().expect("it was connected just now"))
    }

    /// Runs one command given as words.
    pub(super) fn words(&mut self, words: &[String]) -> Ended {
        if words[0].eq_ignore_ascii_case("help") {
            return self.help(words.get(1).map(String::as_str));
        }
        match words::command(words) {
            Ok(command) => self.send(vec![command]),
            Err(error) => self.unreadable(&error),
        }
    }

    /// Runs lines in order; commands that stand together travel together.
    pub(super) fn lines(&mut self, lines: &[String]) -> Ended {
        let mut worst = Ended::Well;
        let mut together = Vec::new();
        for line in
            lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            match read_line(line) {
                Ok(Line::Command(command)) => together.push(command),
                other => {
                    worst = worst.max(self.send(std::mem::take(&mut together)));
                    match other {
                        Ok(Line::Help(topic)) => worst = worst.max(self.help(topic.as_deref())),
                        Err(error) => worst = worst.max(self.unreadable(&error)),
                        _ => {
                            self.over = true;
                            return worst;
                        }
                    }
                }
            }
        }
        worst.max(self.send(together))
    }

    fn help(&mut self, topic: Option<&str>) -> Ended {
        match help::text(topic, self.printer.is_coloured()) {
            Ok(text) => {
                self.printer.line(&text);
                Ended::Well
            }
            Err(error) => self.unreadable(&error),
        }
    }

    fn unreadable(&mut self, error: &str) -> Ended {
        self.printer.failure(error, "");
        Ended::Unreadable
    }

    fn send(&mut self, commands: Vec<Command>) -> Ended {
        if commands.is_empty() {
            return Ended::Well;
        }
        let address = self.addresses.join(", ");
        let client = match self.connect() {
            Ok(client) => client,
            Err(error) => {
                let advice = format!(
                    "Is a server running on {address}? Start one with `strand serve`, or name another with -a HOST:PORT."
                );
                self.printer.failure(&error.to_string(), &advice);
                return Ended::Failed;
            }
        };
        let alone = commands.len() == 1;
        let requests: Vec<Command> = commands.clone();
        let begin = Instant::now();
        let mut pipeline = client.pipeline();
        for command in commands {
            pipeline.command(command);
        }
        let outcomes = pipeline.send_raw();
        let elapsed = alone.then(|| begin.elapsed());
        let mut worst = Ended::Well;
        for (command, outcome) in requests.iter().zip(outcomes) {
            worst = worst.max(match outcome {
                Ok(reply) => self.show(command, &reply, elapsed),
                Err(error) => {
                    self.printer.failure(&error.to_string(), "");
                    Ended::Failed
                }
            });
        }
        worst
    }

    fn show(&mut self, command: &Command, reply: &Reply, elapsed: Option<std::time::Duration>) -> Ended {
        if self.printer.is_raw() {
            self.printer.line(reply.line());
        } else if let Some(error) = reply.error() {
            self.printer.refusal(error);
        } else {
            let hits = self.printer.has_tables().then(|| super::print::hits_of(command, reply)).flatten();
            match hits {
                Some(hits) => {
                    let keys: Vec<&str> = hits.iter().map(|hit| hit.key.as_str()).collect();
                    // Only for reading: a search whose values cannot be fetched still shows its hits.
                    let values = self
                        .client
                        .as_mut()
                        .and_then(|client| client.bulk_get(&keys).ok())
                        .unwrap_or_default();
                    self.printer.hits(command, &hits, &values, elapsed);
                }
                None => self.printer.success(command, reply, elapsed),
            }
        }
        if reply.error().is_some() { Ended::Failed } else { Ended::Well }
    }
}

enum Line {
    Command(Command),
    Help(Option<String>),
    End,
}

fn read_line(line: &str) -> Result<Line, String> {
    if line.starts_with('{') {
        return Command::from_json(line).map(Line::Command).map_err(|error| error.to_string());
    }
    let words = words::split(line)?;
    Ok(match words[0].to_ascii_lowercase().as_str() {
        "help" | "?" => Line::Help(words.get(1).cloned()),
        "exit" | "quit" => Line::End,
        _ => Line::Command(words::command(&words)?),
    })
}
