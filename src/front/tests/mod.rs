//! The front against real sockets on the loopback, with a scripted handler in place of the router.

mod bounds;
mod harness;
mod life;
mod lines;
mod ordering;
