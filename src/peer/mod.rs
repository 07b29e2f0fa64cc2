//! Everything between nodes: frames, links, the handshake, snapshots on the way, forwarded requests.
//!
//! What the bytes mean and who is let in is decided without a socket (`shards::peer`, `station`); the rest performs. docs/PEERS.md
//! has the byte maps and the threads.
//!
//! | file | duty |
//! |---|---|
//! | `cluster_file` | this node's place in its cluster, in its data directory |
//! | `control` | gossip about meta state and leaders; one thread for each other node |
//! | `counters` | figures about connections |
//! | `dial` | making a connection |
//! | `forward` | requests for groups that other nodes lead, and other nodes' requests |
//! | `founding` | the first start |
//! | `hub` | what the threads of this room share |
//! | `listener` | the cluster port |
//! | `nodes` | who the nodes are, for commands that describe the cluster |
//! | `raft_links` | raft connections, on the shard's thread |
//! | `snapshots` | serving and pulling snapshots |
//! | `socket` | one connection and its frames |
//! | `station` | who is let in |
//! | `view` | who leads each group, as the routers of this node see it |
//! | `whereabouts` | where this node is reached, as it says itself |

pub mod cluster_file;
pub mod control;
pub mod counters;
pub mod dial;
pub mod forward;
pub mod founding;
pub mod hub;
pub mod listener;
pub mod nodes;
pub mod raft_links;
pub mod snapshots;
pub mod socket;
pub mod station;
pub mod view;
pub mod whereabouts;
