//! `strand cluster`: shows a cluster and changes it, through any of its nodes.
//!
//! Everything goes through the client's public API and the commands of the protocol; this file only asks, waits and
//! draws. A change is waited for by asking CLUSTER again and again until its result is seen. Never reads a server's files.

mod balance;
mod recover;
mod table;

use crate::fatal::Fatal;
use crate::tuning::peers;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};
use strand_client::{Client, ClientOptions};

const EXAMPLES: &str = "\
Examples:
  strand cluster status                            nodes, groups, leaders and lag
  strand cluster status -a 10.0.0.1:8000 --json    as one JSON object
  strand cluster add node4@10.0.0.4:8000           make a running, empty node a member, and wait
  strand cluster remove node2                      drain a node, and wait until it holds nothing
  strand cluster transfer node1 --shard 3          have a node lead a shard
  strand cluster balance                           spread replicas and leaders evenly again, and wait
  strand cluster recover --unsafe --data-dir DIR   last resort for a lost majority, on a stopped node

Exit codes: 0 done, 1 the cluster refused, was not reached, or is not done within --wait-s (it goes on by itself).";

/// `strand cluster`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
    /// Address of any node; may be given several times.
    #[arg(short, long, global = true, value_name = "HOST:PORT", default_value = "127.0.0.1:8000")]
    address: Vec<String>,
    /// Token to present, for servers that ask for one.
    #[arg(long, env = "STRAND_TOKEN", hide_env_values = true, global = true)]
    token: Option<String>,
    /// Print the server's own JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show nodes and groups.
    Status,
    /// Make a node a member; its share of replicas is moved to it.
    Add {
        /// `ID@HOST:PORT` or `ID@HOST:PORT:CLUSTER_PORT`.
        node: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Take a node out: what it holds is moved to others first.
    Remove {
        /// Its id.
        node: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Move leadership to a node.
    Transfer {
        /// Its id.
        node: String,
        /// Only this shard.
        #[arg(long)]
        shard: Option<u32>,
    },
    /// Spread replicas and leaders evenly over the nodes; no node is preferred for everything any more.
    Balance {
        #[command(flatten)]
        wait: Wait,
    },
    /// Last resort: make what a stopped node has a cluster of its own, when most nodes are lost for good.
    Recover(Box<recover::Arguments>),
}

#[derive(Debug, Args)]
struct Wait {
    /// How long to wait until the change is complete, in seconds; 0 only asks for it.
    #[arg(long, default_value_t = 3600)]
    wait_s: u64,
}

/// Between two looks at a change under way.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long a node that is to be added may need to ask for it.
const ADD_AGAIN_FOR: Duration = Duration::from_secs(5);

/// Runs the subcommand.
///
/// # Errors
/// When no node answers, the cluster refuses, or a change is not complete in time.
pub fn run(arguments: &Arguments) -> Result<(), Fatal> {
    if let Action::Recover(of_recovery) = &arguments.action {
        return recover::run(of_recovery, arguments.json);
    }
    let options = ClientOptions { token: arguments.token.clone(), ..ClientOptions::default() };
    let mut client = Client::connect_with(&arguments.address, options).map_err(failed)?;
    match &arguments.action {
        Action::Status => {
            let status = client.cluster().map_err(failed)?;
            show(arguments, &status)
        }
        Action::Add { node, wait } => {
            ask_to_add(&mut client, node)?;
            let id = node.split_once('@').map_or(node.as_str(), |(id, _)| id);
            follow(arguments, &mut client, wait, |status| Progress::of_addition(status, id))
        }
        Action::Remove { node, wait } => {
            ask(&mut client, &json!({ "command": "REMOVE_NODE", "node": node }))?;
            follow(arguments, &mut client, wait, |status| Progress::of_removal(status, node))
        }
        Action::Transfer { node, shard } => {
            let mut command = json!({ "command": "TRANSFER_LEADER", "node": node });
            if let Some(shard) = shard {
                command["shard"] = json!(shard);
            }
            ask(&mut client, &command)?;
            super::print("leadership is on its way; see strand cluster status\n")
        }
        Action::Balance { wait } => {
            ask(&mut client, &json!({ "command": "BALANCE" }))?;
            follow(arguments, &mut client, wait, balance::progress)
        }
        Action::Recover(_) => unreachable!("it needs no server"),
    }
}

/// How far a change is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Progress {
    /// What is done and what is to do, in words.
    text: String,
    is_done: bool,
}

impl Progress {
    /// A node that joins: a member that holds replicas, all of them voters.
    fn of_addition(status: &Value, id: &str) -> Self {
        let is_member = nodes(status).any(|node| node["id"] == id);
        let held = replicas_of(status, id);
        let voters = held.iter().filter(|replica| replica["role"] == "voter").count();
        let missing: u64 =
            held.iter().filter(|one| one["role"] != "voter").filter_map(|one| one["lag"].as_u64()).sum();
        let mut text = if is_member {
            format!("{id} is a member and holds {} replicas, {voters} of them voters", held.len())
        } else {
            format!("{id} is not yet a member")
        };
        if voters < held.len() {
            text.push_str(&format!("; the others miss {missing} entries"));
        }
        Self { text, is_done: is_member && !held.is_empty() && voters == held.len() }
    }

    /// A node that leaves: gone from the list, or without a replica.
    fn of_removal(status: &Value, id: &str) -> Self {
        let is_member = nodes(status).any(|node| node["id"] == id && node["role"] != "gone");
        let held = replicas_of(status, id).len();
        let is_known = array(&status["groups"]).iter().all(|group| !group["leader"].is_null());
        Self {
            text: format!("{id} still holds {held} replicas"),
            is_done: !is_member && is_known && held == 0,
        }
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn nodes(status: &Value) -> impl Iterator<Item = &Value> {
    array(&status["nodes"]).iter()
}

fn replicas_of<'s>(status: &'s Value, id: &str) -> Vec<&'s Value> {
    let replicas = array(&status["groups"]).iter().flat_map(|group| array(&group["replicas"]));
    replicas.filter(|replica| replica["node"] == id).collect()
}

/// ADD_NODE, asked again for a moment while it is refused: a node that was started just before may not have asked to join yet.
fn ask_to_add(client: &mut Client, node: &str) -> Result<(), Fatal> {
    let begun = Instant::now();
    // What is no name of a node is refused for good.
    let may_come = !node.contains(':') || peers::parse(node).is_ok();
    loop {
        let reply = client.send_command(&json!({ "command": "ADD_NODE", "node": node })).map_err(failed)?;
        let is_early = may_come && reply["code"] == "BAD_REQUEST" && begun.elapsed() < ADD_AGAIN_FOR;
        if !is_early {
            return judge(&reply);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Sends a command; an error reply ends the subcommand with its text.
fn ask(client: &mut Client, command: &Value) -> Result<(), Fatal> {
    judge(&client.send_command(command).map_err(failed)?)
}

fn judge(reply: &Value) -> Result<(), Fatal> {
    if reply["status"] == "success" {
        return Ok(());
    }
    let text = reply["error"].as_str().unwrap_or("the reply is no reply of Strand");
    Err(Fatal::Failed(format!("The cluster refused: {text}.")))
}

/// Tells of a change until it is complete.
fn follow(
    arguments: &Arguments,
    client: &mut Client,
    wait: &Wait,
    progress_of: impl Fn(&Value) -> Progress,
) -> Result<(), Fatal> {
    let is_drawn = io::stderr().is_terminal() && !arguments.json;
    let mut told = String::new();
    let looks = wait.wait_s.saturating_mul(1000) / LOOK_EVERY.as_millis() as u64;
    for _ in 0..=looks {
        let status = client.cluster().map_err(failed)?;
        let progress = progress_of(&status);
        if progress.is_done {
            if is_drawn {
                tell("\r\x1b[K");
            }
            return show(arguments, &status);
        }
        if is_drawn {
            tell(&format!("\r\x1b[K{}", progress.text));
        } else if progress.text != told && !arguments.json {
            tell(&format!("{}\n", progress.text));
        }
        told = progress.text;
        if wait.wait_s == 0 {
            return show(arguments, &status);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    if is_drawn {
        tell("\n");
    }
    Err(Fatal::Failed(format!("The change goes on, but is not complete after {} s: {told}.", wait.wait_s)))
}

fn show(arguments: &Arguments, status: &Value) -> Result<(), Fatal> {
    if arguments.json {
        return super::print(&format!("{status}\n"));
    }
    super::print(&table::draw(status, io::stdout().is_terminal()))
}

/// Progress goes to stderr; a reader that has gone away is no failure.
fn tell(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[allow(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
fn failed(error: strand_client::Error) -> Fatal {
    Fatal::Failed(format!("The cluster did not answer: {error}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(groups: &Value) -> Value {
        json!({ "mode": "cluster", "nodes": [{"id": "a"}, {"id": "b", "role": "leaving"}], "groups": groups })
    }

    #[test]
    fn an_addition_is_complete_when_the_node_votes() {
        let of = |role: &str| {
            let replicas = json!([{"node": "a", "role": "voter"}, {"node": "b", "role": role}]);
            status(&json!([{ "group": 0, "leader": "a", "replicas": replicas }]))
        };
        assert!(!Progress::of_addition(&of("learner"), "b").is_done);
        assert!(Progress::of_addition(&of("voter"), "b").is_done);
        assert!(!Progress::of_addition(&of("voter"), "c").is_done, "not yet a member");
    }

    #[test]
    fn a_removal_is_complete_when_nothing_is_left() {
        let one = json!([{"node": "a", "role": "voter"}]);
        let led = status(&json!([{ "group": 0, "leader": "a", "replicas": one }]));
        assert!(!Progress::of_removal(&led, "b").is_done, "it is still a member");
        assert!(Progress::of_removal(&led, "c").is_done);
        assert!(!Progress::of_removal(&led, "a").is_done);
        let unknown = status(&json!([{ "group": 0, "leader": null }]));
        assert!(!Progress::of_removal(&unknown, "c").is_done, "a group that cannot say may hold it");
    }
}
