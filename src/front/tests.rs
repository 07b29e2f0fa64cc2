//! The front against real sockets on the loopback, with small handlers in place of the router.
