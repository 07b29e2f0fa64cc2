//! Client for Strand, a key-value database with search inside it.
//!
//! - [`Client`]: one connection at a time, a method per command, retries that apply once.
//! - [`Pipeline`]: many commands, sent together.
//! - [`Pool`]: clients shared by threads.
//! - [`session`], [`codec`] and [`retry`]: the same without sockets, for any runtime to drive.
//!
//! Every write carries the client's id and a rising number, so that a write whose reply was lost can be sent again and is
//! applied once. Every call has an overall deadline. Every error says whether the request may have taken effect.
//!
//! ```no_run
//! use strand_client::{Client, SearchOptions};
//!
//! let mut client = Client::connect("127.0.0.1:8000")?;
//! client.set("greeting", "hello, world")?;
//! let hits = client.search("hello", &SearchOptions::default())?;
//! assert_eq!(hits[0].key, "greeting");
//! # Ok::<(), strand_client::Error>(())
//! ```

mod admin;
mod client;
pub mod codec;
mod command;
mod core;
mod error;
mod link;
mod options;
mod pipeline;
mod pool;
mod reply;
pub mod retry;
pub mod route;
mod scan;
mod search;
pub mod sequence;
pub mod session;

pub use client::{Client, Ttl, Versioned};
pub use command::{Command, Nature};
pub use error::{Error, ErrorCode, Outcome, ServerError};
pub use options::{ClientOptions, Consistency, DeleteOptions, Durability, If, SetOptions};
pub use pipeline::Pipeline;
pub use pool::{Pool, PoolOptions, PooledClient};
pub use reply::Reply;
pub use retry::RetryPolicy;
pub use scan::{Scan, ScanItem, ScanOptions};
pub use search::{Fusion, Hit, IndexKind, IndexQuery, Match, Matches, SearchOptions};
pub use strand_wire::code::{Code, Retry};
