//! How much one client, one line and one command may ask for. Plain numbers: nothing here enforces anything.
//!
//! The defaults are the protocol's. A server may lower or raise them; HELLO's reply states them.

use crate::json::DEPTH_CEILING;

/// Bounds on what clients send. Sizes are in bytes unless the name says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A request line without its newline. A longer one is refused and its connection closed.
    pub line_bytes_max: usize,
    /// A key after unescaping; the least is 1.
    pub key_bytes_max: usize,
    /// A value's JSON token.
    pub value_bytes_max: usize,
    /// How deep arrays and objects may nest inside one value; at most [`DEPTH_CEILING`] less the batch envelope.
    pub depth_max: u32,
    /// Items or keys in one BULK_SET, BULK_GET or BULK_DELETE, counted before repeated keys are merged.
    pub batch_items_max: usize,
    /// Requests of one connection that are not yet answered.
    pub in_flight_max: usize,
    /// Open client connections.
    pub connections_max: usize,
    /// The JSON token of a request's `id`, which is held until the reply is written.
    pub id_bytes_max: usize,
    /// The text of a search.
    pub query_bytes_max: usize,
    /// `offset + top_k` of a search.
    pub window_max: u64,
    /// `limit` of one page of SCAN or QUERY_INDEX.
    pub page_items_max: u64,
    /// `timeout_ms` of a request.
    pub timeout_ms_max: u32,
    /// Nodes (and, or, not, tests) in one filter.
    pub filter_nodes_max: usize,
    /// Paths in the `fields` of a search.
    pub paths_max: usize,
    /// Dimensions of a vector.
    pub dimensions_max: usize,
}

/// Levels that the array of pairs or objects of a BULK_SET adds around a value.
pub const BATCH_ENVELOPE_DEPTH: u32 = 2;

impl Default for Limits {
    fn default() -> Self {
        Self {
            line_bytes_max: 16 << 20,
            key_bytes_max: 4096,
            value_bytes_max: 8 << 20,
            depth_max: 64,
            batch_items_max: 100_000,
            in_flight_max: 1024,
            connections_max: 10_000,
            id_bytes_max: 256,
            query_bytes_max: 64 << 10,
            window_max: 10_000,
            page_items_max: 10_000,
            timeout_ms_max: 3_600_000,
            filter_nodes_max: 1024,
            paths_max: 64,
            dimensions_max: 4096,
        }
    }
}

impl Limits {
    /// The depth that the scanner can really hold for a value: `depth_max`, or less where it exceeds the scanner's stack.
    pub fn value_depth_max(&self) -> u32 {
        self.depth_max.min(DEPTH_CEILING - BATCH_ENVELOPE_DEPTH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_protocol() {
        let limits = Limits::default();
        assert_eq!(limits.line_bytes_max, 16 * 1024 * 1024);
        assert_eq!(limits.value_bytes_max, 8 * 1024 * 1024);
        assert_eq!((limits.key_bytes_max, limits.depth_max), (4096, 64));
        assert_eq!((limits.batch_items_max, limits.in_flight_max), (100_000, 1024));
        assert_eq!((limits.connections_max, limits.window_max), (10_000, 10_000));
        assert_eq!(limits.value_depth_max(), 64);
    }

    #[test]
    fn depth_stays_below_the_scanner_s_stack() {
        let limits = Limits { depth_max: u32::MAX, ..Limits::default() };
        assert_eq!(limits.value_depth_max() + BATCH_ENVELOPE_DEPTH, DEPTH_CEILING);
    }
}
