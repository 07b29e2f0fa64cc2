//! The bytes that others see: request lines, reply lines, error codes and limits.
//!
//! Clients may depend on this crate and on nothing more. It knows JSON and the protocol; it never knows shards, logs or
//! sockets.
