//! Commands that queue up and travel together.
//!
//! Invariant: one outcome a command, in the order of queueing. Nothing is sent before [`Pipeline::send`]. When the connection
//! breaks, the commands without a reply are sent again in order; a read among them may then see a write queued after it.

use crate::client::Client;
use crate::command::Command;
use crate::error::Error;
use crate::options::SetOptions;
use crate::reply::Reply;
use serde::Serialize;
use std::time::Duration;

/// A queue of commands for one client.
///
/// ```no_run
/// # let mut client = strand_client::Client::connect("127.0.0.1:8000")?;
/// let mut pipeline = client.pipeline();
/// pipeline.set("a", &1)?;
/// pipeline.incr("a", 2);
/// pipeline.get("a");
/// let replies = pipeline.send();
/// assert_eq!(replies.len(), 3);
/// for reply in replies {
///     println!("{}", reply?.result_text());
/// }
/// # Ok::<(), strand_client::Error>(())
/// ```
#[derive(Debug)]
pub struct Pipeline<'a> {
    client: &'a mut Client,
    commands: Vec<Command>,
    timeout: Option<Duration>,
}

impl<'a> Pipeline<'a> {
    pub(crate) fn new(client: &'a mut Client) -> Self {
        Self { client, commands: Vec::new(), timeout: None }
    }

    /// Sets the overall deadline of the whole pipeline; otherwise it is that of its slowest command.
    pub fn timeout(&mut self, timeout: Duration) -> &mut Self {
        self.timeout = Some(timeout);
        self
    }

    /// Queues any command.
    pub fn command(&mut self, command: Command) -> &mut Self {
        self.commands.push(command);
        self
    }

    /// Queues a SET.
    pub fn set<V: Serialize + ?Sized>(&mut self, key: &str, value: &V) -> Result<&mut Self, Error> {
        Ok(self.command(Command::set(key, value)?))
    }

    /// Queues a SET with optional fields.
    pub fn set_with<V>(&mut self, key: &str, value: &V, options: &SetOptions) -> Result<&mut Self, Error>
    where
        V: Serialize + ?Sized,
    {
        Ok(self.command(options.apply(Command::set(key, value)?)))
    }

    /// Queues a GET.
    pub fn get(&mut self, key: &str) -> &mut Self {
        self.command(Command::get(key))
    }

    /// Queues an INCR.
    pub fn incr(&mut self, key: &str, amount: i64) -> &mut Self {
        self.command(Command::incr(key, amount))
    }

    /// Queues a DELETE.
    pub fn delete(&mut self, key: &str) -> &mut Self {
        self.command(Command::new("DELETE").key(key))
    }

    /// Queues an EXISTS.
    pub fn exists(&mut self, key: &str) -> &mut Self {
        self.command(Command::new("EXISTS").key(key))
    }

    /// How many commands are queued.
    pub fn len(&self) -> usize {
        self.commands.len()
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Sends everything and gives one outcome a command. The pipeline is empty afterwards and can be used again.
    pub fn send(&mut self) -> Vec<Result<Reply, Error>> {
        self.send_raw().into_iter().map(|outcome| outcome.and_then(Reply::into_result)).collect()
    }

    /// As [`Pipeline::send`], with error replies as replies.
    pub fn send_raw(&mut self) -> Vec<Result<Reply, Error>> {
        let commands = std::mem::take(&mut self.commands);
        self.client.core.run(commands, self.timeout)
    }
}
