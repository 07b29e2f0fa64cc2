//! Commands about the connection, the server and the cluster.

use super::fields::Fields;
use super::refusal::Problem;
use std::borrow::Cow;

/// Sets up a connection; what it does not name goes back to its default.
#[derive(Clone, Debug, PartialEq)]
pub struct Hello<'a> {
    /// Whether replies come in the order of the requests.
    pub ordered: bool,
    /// Whether a node that does not lead answers NOT_LEADER instead of forwarding.
    pub redirect: bool,
    /// Proves who is calling.
    pub token: Option<Cow<'a, str>>,
    /// The client's name, for lists and logs.
    pub client: Option<Cow<'a, str>>,
}

/// Adds a node to the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct AddNode<'a> {
    /// The node's id, or `[ID@]HOST:PORT[:CLUSTER_PORT]`, not yet looked into.
    pub node: Cow<'a, str>,
    /// `HOST:PORT` or `HOST:PORT:CLUSTER_PORT` when `node` is only the id; not yet looked into.
    pub address: Option<Cow<'a, str>>,
}

/// Moves leadership.
#[derive(Clone, Debug, PartialEq)]
pub struct TransferLeader<'a> {
    /// The node that shall lead.
    pub node: Cow<'a, str>,
    /// Only this shard; every shard that has a replica there without it.
    pub shard: Option<u32>,
}

pub(super) fn hello<'a>(fields: &Fields<'a, '_>) -> Result<Hello<'a>, Problem> {
    Ok(Hello {
        ordered: fields.optional_flag("ordered")?.unwrap_or(true),
        redirect: fields.flag("redirect")?,
        token: fields.text("token")?,
        client: fields.text("client")?,
    })
}

pub(super) fn add_node<'a>(fields: &Fields<'a, '_>) -> Result<AddNode<'a>, Problem> {
    Ok(AddNode { node: fields.needed_text("node")?, address: fields.text("address")? })
}

pub(super) fn transfer_leader<'a>(fields: &Fields<'a, '_>) -> Result<TransferLeader<'a>, Problem> {
    let shard = fields.unsigned("shard")?;
    let shard = shard.map(|shard| u32::try_from(shard).expect("the table's range fits 32 bits"));
    Ok(TransferLeader { node: fields.needed_text("node")?, shard })
}
