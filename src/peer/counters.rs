//! Figures about connections between nodes, counted since the start: written by every thread of this room, read by INFO.
//!
//! Never on the way of a request: what is counted per message is counted by its shard's thread and added now and then.

use shards::peer::frame::FrameError;
use shards::peer::hello::RefusalCode;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// The figures.
#[derive(Debug, Default)]
pub struct PeerCounters {
    /// Connections accepted on the cluster port, before a word was said.
    pub accepted: AtomicU64,
    /// Connections closed because too many had not said who they are.
    pub overflowed: AtomicU64,
    /// Connections that did not say who they are in time, or went away first.
    pub silent: AtomicU64,
    /// Connections welcomed.
    pub welcomed: AtomicU64,
    /// Connections refused for what they said of themselves, by name.
    pub refused_stranger: AtomicU64,
    /// Those of them from another cluster.
    pub refused_cluster: AtomicU64,
    /// Those of them that speak no common protocol or frame version.
    pub refused_version: AtomicU64,
    /// Connections closed because bytes were no frame, or a damaged one.
    pub damaged_frames: AtomicU64,
    /// Connections closed for a frame that was announced longer than allowed.
    pub oversize_frames: AtomicU64,
    /// Connections closed for frames of another connection, or played again.
    pub replayed_frames: AtomicU64,
    /// Connections closed because a payload made no sense.
    pub bad_payloads: AtomicU64,
    /// Raft messages for a replica that is not here, dropped.
    pub misdirected: AtomicU64,
    /// Messages dropped because a link was down or full.
    pub dropped: AtomicU64,
    /// Connections made to others.
    pub dialled: AtomicU64,
    /// Connections that could not be made.
    pub dial_failures: AtomicU64,
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl PeerCounters {
    /// Counts a connection closed for what its frames were.
    pub fn frame_error(&self, error: &FrameError) {
        count(match error {
            FrameError::NoFrame
            | FrameError::HeaderDamaged
            | FrameError::Kind(_)
            | FrameError::PayloadDamaged => &self.damaged_frames,
            FrameError::Version(_) => &self.refused_version,
            FrameError::TooLong(_) => &self.oversize_frames,
            FrameError::Cluster(_) => &self.refused_cluster,
            FrameError::Session | FrameError::Number => &self.replayed_frames,
        });
    }

    /// Counts a connection refused by name.
    pub fn refusal(&self, code: RefusalCode) {
        count(match code {
            RefusalCode::Protocol => &self.refused_version,
            RefusalCode::Cluster => &self.refused_cluster,
            _ => &self.refused_stranger,
        });
    }

    /// Appends a JSON object with every figure.
    pub fn write_json(&self, out: &mut String) {
        let all = [
            ("accepted", &self.accepted),
            ("overflowed", &self.overflowed),
            ("silent", &self.silent),
            ("welcomed", &self.welcomed),
            ("refused_stranger", &self.refused_stranger),
            ("refused_cluster", &self.refused_cluster),
            ("refused_version", &self.refused_version),
            ("damaged_frames", &self.damaged_frames),
            ("oversize_frames", &self.oversize_frames),
            ("replayed_frames", &self.replayed_frames),
            ("bad_payloads", &self.bad_payloads),
            ("misdirected", &self.misdirected),
            ("dropped", &self.dropped),
            ("dialled", &self.dialled),
            ("dial_failures", &self.dial_failures),
        ];
        for (at, (name, counter)) in all.into_iter().enumerate() {
            let separator = if at == 0 { '{' } else { ',' };
            write!(out, "{separator}\"{name}\":{}", counter.load(Ordering::Relaxed))
                .expect("writing to a string cannot fail");
        }
        out.push('}');
    }
}
