//! Judges of what was seen from outside.

pub mod linear;
