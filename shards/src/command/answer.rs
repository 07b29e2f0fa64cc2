//! Writes reply bodies.
