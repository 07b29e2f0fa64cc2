//! The bytes that others see: request lines, reply lines, error codes and limits.
//!
//! Clients may depend on this crate and on nothing more. It knows JSON and the protocol; it never knows shards, logs or
//! sockets, it never reads a clock, and no input may make it panic.
//!
//! | module | duty |
//! |---|---|
//! | [`limits`] | how large a line, a key, a batch may be |
//! | [`code`] | the error codes and what a client may do about them |
//! | [`commands`] | the table of commands and fields: what the parser accepts and what help prints |
//! | [`json`] | scanning, unescaping and escaping JSON without building a tree |
//! | [`request`] | one line in, one [`request::Request`] or [`request::Refusal`] out |
//! | [`reply`] | appending one reply line to a buffer |
//! | [`LineEnds`] | where lines end |
//! | [`slot`] | which part of the key space a key belongs to |

pub mod code;
pub mod commands;
pub mod json;
pub mod limits;
mod marks;
pub mod reply;
pub mod request;
pub mod slot;

pub use marks::LineEnds;
