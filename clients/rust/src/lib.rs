//! Client for Strand.
