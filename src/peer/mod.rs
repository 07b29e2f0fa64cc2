//! Everything between nodes: frames, links, the handshake, snapshots on the way, forwarded requests.
//!
//! | file | duty |
//! |---|---|
//! | `forward` | requests for groups that other nodes lead, and other nodes' requests |
//! | `nodes` | who the nodes are, for commands that describe the cluster |
//! | `view` | who leads each group, as the routers of this node see it |

pub mod forward;
pub mod nodes;
pub mod view;
