//! Everything between nodes: frames, links, the handshake, snapshots on the way, forwarded requests.
//!
//! | file | duty |
//! |---|---|
//! | `view` | who leads each group, as the routers of this node see it |

pub mod view;
