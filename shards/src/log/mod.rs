//! The write-ahead log as bytes: batch framing, placement in segments, and replay.
