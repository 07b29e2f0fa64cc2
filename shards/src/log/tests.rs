//! Tests of the log as a whole: writer and replay over a disk in memory.
