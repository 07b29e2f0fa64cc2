//! The client front: sockets on an own io_uring, lines in, reply lines out. One thread, and it never blocks.
//!
//! [`Front::turn`] takes what the kernel completed, offers complete lines to a [`LineHandler`] (the router), lets it push
//! its batches and bring replies, submits the sends and either returns or waits. The front keeps each connection's reply
//! order, its holds and its bounds; it knows no command and reads no JSON.
//!
//! Bounds: connections, requests in flight and unsent output of each, the length of a line, unfinished input of all
//! together, lines of one connection in a turn. Every clock is judged against the time that the caller's clock gave at the
//! beginning of the turn.

mod connection;
mod counters;
mod dispatch;
mod handler;
mod input;
mod listen;
mod order;
mod output;
mod reply_line;
mod ring;
mod settings;
mod settle;
#[cfg(test)]
mod tests;
mod turn;

pub use counters::FrontCounters;
pub use handler::{Handled, ID_BYTES_MAX, LineAt, LineHandler, ReplySink};
pub(crate) use listen::bind_patiently;
pub use listen::{Early, Listeners};
pub use order::{Class, IN_FLIGHT_LIMIT, arrival_order};
pub use settings::{Completions, FrontSettings, Receive};
pub use turn::{Front, Turn, Wait};
