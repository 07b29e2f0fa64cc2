//! Methods for whoever runs the server. Their results are the server's own objects, because they grow with it.

use crate::client::Client;
use crate::command::Command;
use crate::error::Error;
use crate::link::CLIENT_NAME;
use serde_json::Value;

impl Client {
    /// Versions, limits, mode and capabilities of the server. Changes nothing on the connection.
    ///
    /// The options of the connection are named again, because HELLO resets what it does not name.
    pub fn hello(&mut self) -> Result<Value, Error> {
        let options = &self.core.options;
        let command = Command::new("HELLO")
            .text("client", CLIENT_NAME)
            .plain("ordered", &options.ordered)
            .plain("redirect", &options.redirect)
            .optional("token", options.token.as_ref());
        self.execute(command)?.result()
    }

    /// Version, uptime, memory, keys, per-shard counts, queue depths, log and snapshot figures.
    pub fn info(&mut self) -> Result<Value, Error> {
        self.execute(Command::new("INFO"))?.result()
    }

    /// Nodes and groups of the cluster, with leaders, terms and lag.
    pub fn cluster(&mut self) -> Result<Value, Error> {
        self.execute(Command::new("CLUSTER"))?.result()
    }

    /// Writes a snapshot of every shard now.
    pub fn snapshot(&mut self) -> Result<Value, Error> {
        self.execute(Command::new("SNAPSHOT"))?.result()
    }

    /// Asks the server to stop: it drains, syncs and exits.
    pub fn shutdown(&mut self) -> Result<Value, Error> {
        self.execute(Command::new("SHUTDOWN"))?.result()
    }
}
