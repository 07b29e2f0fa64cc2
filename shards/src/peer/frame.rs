//! The frame around everything that nodes say to one another, and taking a stream of frames apart.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `STRF` |
//! | 4 | 1 | version of the frame, 1 |
//! | 5 | 1 | kind, see [`Kind`] |
//! | 6 | 2 | zero |
//! | 8 | 4 | length of the payload |
//! | 12 | 4 | number of the frame in its direction of the connection, from 0, wrapping |
//! | 16 | 16 | cluster id; 0 before there is one |
//! | 32 | 8 | session: drawn by whoever accepted the connection; 0 in the handshake |
//! | 40 | 4 | CRC32C of the payload and its padding |
//! | 44 | 4 | CRC32C of the 44 bytes before |
//! | 48 | | the payload, padded with zeros to a multiple of 16 |
//!
//! Integers are little-endian. Frames are multiples of 16 bytes, so that a payload in a reader's buffer is aligned and
//! its archive can be read in place. Session and number make a frame belong to its place in its connection: a recorded
//! one that is played again, on the same connection or another, is refused. The header has a checksum of its own, so
//! that no length is believed before it was checked; a buffer grows with the bytes that have come and not with those
//! that were announced.

use crate::log::payload::PayloadBuffer;
use std::fmt;

/// Bytes of a frame before its payload.
pub const HEADER_BYTES: usize = 48;
/// Longest payload of a raft or forwarding frame unless the operator says otherwise: the longest log entry is half a
/// segment of the largest size in use, and what stands around it is small.
pub const PAYLOAD_BYTES_MAX: usize = (64 << 20) + (64 << 10);
/// Longest payload in a handshake.
pub const HANDSHAKE_BYTES_MAX: usize = 4 << 10;
/// The version of frames that this code writes and reads.
pub const VERSION: u8 = 1;
/// Frames are whole multiples of this.
const ALIGNMENT: usize = 16;

const MAGIC: [u8; 4] = *b"STRF";
const VERSION_AT: usize = 4;
const KIND_AT: usize = 5;
const LENGTH_AT: usize = 8;
const NUMBER_AT: usize = 12;
const CLUSTER_AT: usize = 16;
const SESSION_AT: usize = 32;
const PAYLOAD_CRC_AT: usize = 40;
const HEADER_CRC_AT: usize = 44;
const _: () = assert!(HEADER_CRC_AT + 4 == HEADER_BYTES && HEADER_BYTES.is_multiple_of(ALIGNMENT));

/// What a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// First frame of who dials: [`super::hello::Hello`].
    Hello = 1,
    /// The answer: [`super::hello::Welcome`].
    Welcome = 2,
    /// A raft message of the link's group.
    Raft = 3,
    /// A message between groups.
    Group = 4,
    /// What a control link says.
    Gossip = 5,
    /// What a node that is not in a cluster says of itself, or asks.
    FoundingStatus = 6,
    /// A meta state for a node that is to store it: the newest, then the first or nothing.
    FoundingOffer = 7,
    /// Asks for bytes of a snapshot.
    SnapshotAsk = 8,
    /// Bytes of a snapshot, or that there are none.
    SnapshotPiece = 9,
    /// A batch of requests for a group that is led elsewhere.
    ForwardRequests = 10,
    /// Their replies.
    ForwardReplies = 11,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Hello,
        Self::Welcome,
        Self::Raft,
        Self::Group,
        Self::Gossip,
        Self::FoundingStatus,
        Self::FoundingOffer,
        Self::SnapshotAsk,
        Self::SnapshotPiece,
        Self::ForwardRequests,
        Self::ForwardReplies,
    ];

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// Why bytes from a peer are no frame of this connection. The connection cannot go on after any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// It does not begin as a frame does.
    NoFrame,
    /// A version that this code does not speak.
    Version(u8),
    /// The header's checksum is wrong.
    HeaderDamaged,
    /// A kind that this code does not know.
    Kind(u8),
    /// Longer than this connection allows.
    TooLong(u32),
    /// The id of another cluster.
    Cluster(u128),
    /// It belongs to another connection.
    Session,
    /// It stands elsewhere in its connection: played again, or something before it is missing.
    Number,
    /// The payload's checksum is wrong.
    PayloadDamaged,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFrame => f.write_str("the bytes are no frame of a Strand node"),
            Self::Version(version) => write!(f, "frame version {version}, and this node speaks {VERSION}"),
            Self::HeaderDamaged => f.write_str("the checksum of a frame's header is wrong"),
            Self::Kind(kind) => write!(f, "frame kind {kind} is not known"),
            Self::TooLong(length) => write!(f, "a frame of {length} bytes is longer than allowed"),
            Self::Cluster(cluster) => write!(f, "a frame of cluster {cluster:032x}, which is not this one"),
            Self::Session => f.write_str("a frame of another connection"),
            Self::Number => f.write_str("a frame out of its order, or played again"),
            Self::PayloadDamaged => f.write_str("the checksum of a frame's payload is wrong"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Writes the frames of one direction of a connection.
#[derive(Clone, Debug)]
pub struct FrameWriter {
    cluster: u128,
    session: u64,
    number: u32,
}

impl FrameWriter {
    /// The frames of a connection's session, or of its handshake when `session` is 0.
    pub fn new(cluster: u128, session: u64) -> Self {
        Self { cluster, session, number: 0 }
    }

    /// Appends a frame around a payload.
    pub fn push(&mut self, out: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
        self.push_with(out, kind, |out| out.extend_from_slice(payload));
    }

    /// Appends a frame whose payload `write` appends; it must not touch what stands there already.
    ///
    /// # Panics
    /// When the payload is 4 GiB or longer: its maker bounds it far below.
    pub fn push_with(&mut self, out: &mut Vec<u8>, kind: Kind, write: impl FnOnce(&mut Vec<u8>)) {
        let begin = out.len();
        out.resize(begin + HEADER_BYTES, 0);
        write(out);
        let length = u32::try_from(out.len() - begin - HEADER_BYTES).expect("a payload is below 4 GiB");
        out.resize(begin + HEADER_BYTES + padded(length), 0);
        let (header, payload) = out[begin..].split_at_mut(HEADER_BYTES);
        header[..4].copy_from_slice(&MAGIC);
        header[VERSION_AT] = VERSION;
        header[KIND_AT] = kind as u8;
        header[LENGTH_AT..][..4].copy_from_slice(&length.to_le_bytes());
        header[NUMBER_AT..][..4].copy_from_slice(&self.number.to_le_bytes());
        header[CLUSTER_AT..][..16].copy_from_slice(&self.cluster.to_le_bytes());
        header[SESSION_AT..][..8].copy_from_slice(&self.session.to_le_bytes());
        header[PAYLOAD_CRC_AT..][..4].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        let crc = crc32c::crc32c(&header[..HEADER_CRC_AT]);
        header[HEADER_CRC_AT..][..4].copy_from_slice(&crc.to_le_bytes());
        self.number = self.number.wrapping_add(1);
    }
}

/// A frame that passed every check. Its payload stands 16-aligned in the reader's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the payload is.
    pub kind: Kind,
    /// The payload, without padding.
    pub payload: &'a [u8],
}

/// What the frames of a connection must say of themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The cluster; `None` takes any, as a handshake does before it has looked at the payload.
    pub cluster: Option<u128>,
    /// The session; 0 in a handshake.
    pub session: u64,
    /// Longest payload in bytes.
    pub payload_bytes_max: usize,
}

/// Takes the bytes of one direction of a connection apart.
///
/// Bytes are read into [`FrameReader::space`], told by [`FrameReader::filled`], and come out by [`FrameReader::next`].
pub struct FrameReader {
    expected: Expected,
    number: u32,
    buffer: PayloadBuffer,
    /// First byte not yet taken; a multiple of the alignment.
    start: usize,
    /// End of what was filled.
    end: usize,
}

impl fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { expected, number, start, end, .. } = self;
        f.debug_struct("FrameReader")
            .field("expected", expected)
            .field("number", number)
            .field("unread", &(end - start))
            .finish_non_exhaustive()
    }
}

impl FrameReader {
    /// A reader at the beginning of a connection.
    pub fn new(expected: Expected) -> Self {
        Self { expected, number: 0, buffer: PayloadBuffer::new(), start: 0, end: 0 }
    }

    /// Goes on with what follows a handshake: frames of a session, numbered from 0. Bytes that came already are kept.
    pub fn begin_session(&mut self, expected: Expected) {
        self.expected = expected;
        self.number = 0;
    }

    /// Room for at least one more byte, and for `wanted` where memory is had already or the frame under way is known to
    /// need it. Never grows to more than twice of what has come, or `wanted`.
    pub fn space(&mut self, wanted: usize) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.buffer.len() - self.end < wanted.max(1) && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            let length = (self.end * 2).max(wanted).max(HEADER_BYTES);
            self.buffer.resize(length, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// So many bytes of the space hold what came.
    ///
    /// # Panics
    /// When the space was shorter.
    pub fn filled(&mut self, bytes: usize) {
        assert!(bytes <= self.buffer.len() - self.end, "no more than there was space for");
        self.end += bytes;
    }

    /// Bytes that have come and are not yet taken.
    pub fn unread(&self) -> usize {
        self.end - self.start
    }

    /// The next whole frame, if it has come.
    ///
    /// # Errors
    /// When what has come is no frame of this connection; the reader must not be used again.
    #[allow(
        clippy::should_implement_trait,
        reason = "a frame borrows from its reader, which no iterator allows"
    )]
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let Some((kind, length, payload_crc)) = self.header()? else { return Ok(None) };
        let begin = self.start + HEADER_BYTES;
        let Some(body) = self.buffer[begin..self.end].get(..padded(length)) else { return Ok(None) };
        if crc32c::crc32c(body) != payload_crc {
            return Err(FrameError::PayloadDamaged);
        }
        self.start = begin + padded(length);
        self.number = self.number.wrapping_add(1);
        Ok(Some(Frame { kind, payload: &self.buffer[begin..begin + length as usize] }))
    }

    /// Whether [`FrameReader::next`] would return a frame.
    ///
    /// # Errors
    /// As `next`, for what the header tells.
    pub fn has_frame(&self) -> Result<bool, FrameError> {
        let header = self.header()?;
        Ok(header.is_some_and(|(_, length, _)| self.unread() >= HEADER_BYTES + padded(length)))
    }

    /// Memory that an idle connection keeps is given back beyond `keep_bytes`.
    pub fn shrink(&mut self, keep_bytes: usize) {
        if self.start == self.end && self.buffer.len() > keep_bytes {
            self.buffer = PayloadBuffer::new();
            (self.start, self.end) = (0, 0);
        }
    }

    /// Kind, length and payload checksum of the header at the front, checked, once it has come.
    fn header(&self) -> Result<Option<(Kind, u32, u32)>, FrameError> {
        let come = &self.buffer[self.start..self.end];
        let known = come.len().min(MAGIC.len());
        if come[..known] != MAGIC[..known] {
            return Err(FrameError::NoFrame);
        }
        let Some(header) = come.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        // The version comes first: another one may have its checksum elsewhere.
        if header[VERSION_AT] != VERSION {
            return Err(FrameError::Version(header[VERSION_AT]));
        }
        if crc32c::crc32c(&header[..HEADER_CRC_AT]) != u32_at(header, HEADER_CRC_AT) {
            return Err(FrameError::HeaderDamaged);
        }
        let kind = Kind::from_number(header[KIND_AT]).ok_or(FrameError::Kind(header[KIND_AT]))?;
        let cluster =
            u128::from(u64_at(header, CLUSTER_AT)) | u128::from(u64_at(header, CLUSTER_AT + 8)) << 64;
        if self.expected.cluster.is_some_and(|expected| expected != cluster) {
            return Err(FrameError::Cluster(cluster));
        }
        if u64_at(header, SESSION_AT) != self.expected.session {
            return Err(FrameError::Session);
        }
        if u32_at(header, NUMBER_AT) != self.number {
            return Err(FrameError::Number);
        }
        let length = u32_at(header, LENGTH_AT);
        if length as usize > self.expected.payload_bytes_max {
            return Err(FrameError::TooLong(length));
        }
        Ok(Some((kind, length, u32_at(header, PAYLOAD_CRC_AT))))
    }
}

fn padded(length: u32) -> usize {
    (length as usize).next_multiple_of(ALIGNMENT)
}

fn u32_at(header: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(*header[at..].first_chunk().expect("a field of the header"))
}

fn u64_at(header: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(*header[at..].first_chunk().expect("a field of the header"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::hex;
    use proptest::prelude::*;

    const EXPECTED: Expected = Expected { cluster: Some(7), session: 9, payload_bytes_max: 1 << 20 };

    fn feed(reader: &mut FrameReader, mut bytes: &[u8], wanted: usize) {
        while !bytes.is_empty() {
            let space = reader.space(wanted);
            let taken = space.len().min(bytes.len());
            space[..taken].copy_from_slice(&bytes[..taken]);
            reader.filled(taken);
            bytes = &bytes[taken..];
        }
    }

    fn all(bytes: &[u8], piece: usize) -> Result<Vec<(Kind, Vec<u8>)>, FrameError> {
        let mut reader = FrameReader::new(EXPECTED);
        let mut found = Vec::new();
        for part in bytes.chunks(piece.max(1)) {
            feed(&mut reader, part, 16);
            while let Some(frame) = reader.next()? {
                assert!(frame.payload.as_ptr().addr().is_multiple_of(16), "payloads are aligned");
                found.push((frame.kind, frame.payload.to_vec()));
            }
        }
        Ok(found)
    }

    #[test]
    fn golden_bytes() {
        let mut bytes = Vec::new();
        FrameWriter::new(7, 9).push(&mut bytes, Kind::Raft, b"abc");
        let golden = concat!(
            "53545246",
            "01",
            "03",
            "0000",
            "03000000",
            "00000000",
            "07000000000000000000000000000000",
            "0900000000000000",
            "14225840",
            "5262207b",
            "61626300000000000000000000000000",
        );
        assert_eq!(hex(&bytes), golden);
        assert_eq!(all(&bytes, 1).unwrap(), [(Kind::Raft, b"abc".to_vec())]);
    }

    #[test]
    fn frames_belong_to_their_place_in_their_connection() {
        let mut writer = FrameWriter::new(7, 9);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        writer.push(&mut first, Kind::Group, b"first");
        writer.push(&mut second, Kind::Raft, b"");
        assert_eq!(all(&[&first[..], &second].concat(), 100).unwrap().len(), 2);
        assert_eq!(all(&[&first[..], &first].concat(), 7), Err(FrameError::Number), "played again");
        assert_eq!(all(&second, 7), Err(FrameError::Number), "one is missing");
        for (cluster, session, error) in [(8, 9, FrameError::Cluster(8)), (7, 8, FrameError::Session)] {
            let mut bytes = Vec::new();
            FrameWriter::new(cluster, session).push(&mut bytes, Kind::Raft, b"x");
            assert_eq!(all(&bytes, 100), Err(error));
        }
    }

    #[test]
    fn an_announced_length_allocates_nothing() {
        let mut bytes = Vec::new();
        FrameWriter::new(7, 9).push(&mut bytes, Kind::Raft, &vec![0; 1 << 20]);
        let mut reader = FrameReader::new(EXPECTED);
        feed(&mut reader, &bytes[..100], 16);
        assert_eq!(reader.next(), Ok(None));
        assert!(reader.buffer.capacity() < 4096, "{}", reader.buffer.capacity());
        bytes.clear();
        FrameWriter::new(7, 9).push(&mut bytes, Kind::Raft, &vec![0; (1 << 20) + 1]);
        assert_eq!(all(&bytes[..HEADER_BYTES], 100), Err(FrameError::TooLong((1 << 20) + 1)));
    }

    #[test]
    fn a_session_follows_a_handshake_in_the_same_bytes() {
        let mut bytes = Vec::new();
        FrameWriter::new(0, 0).push(&mut bytes, Kind::Hello, b"who");
        FrameWriter::new(7, 9).push(&mut bytes, Kind::Raft, b"what");
        let mut reader =
            FrameReader::new(Expected { cluster: None, session: 0, payload_bytes_max: HANDSHAKE_BYTES_MAX });
        feed(&mut reader, &bytes, 16);
        assert_eq!(reader.next(), Ok(Some(Frame { kind: Kind::Hello, payload: b"who" })));
        reader.begin_session(EXPECTED);
        assert_eq!(reader.next(), Ok(Some(Frame { kind: Kind::Raft, payload: b"what" })));
        assert_eq!(reader.next(), Ok(None));
        assert_eq!(reader.unread(), 0);
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_in_any_pieces(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            piece in 1..700_usize,
        ) {
            let mut writer = FrameWriter::new(7, 9);
            let mut bytes = Vec::new();
            for payload in &payloads {
                writer.push(&mut bytes, Kind::Gossip, payload);
            }
            let read = all(&bytes, piece).unwrap();
            prop_assert_eq!(read.into_iter().map(|(_, payload)| payload).collect::<Vec<_>>(), payloads);
        }

        #[test]
        fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 1..4000), piece in 1..500_usize) {
            prop_assume!(bytes[0] != MAGIC[0]);
            prop_assert_eq!(all(&bytes, piece), Err(FrameError::NoFrame));
        }

        #[test]
        fn every_flip_is_refused_and_every_truncation_waits(
            payload in prop::collection::vec(any::<u8>(), 0..200),
            bit in any::<prop::sample::Index>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = Vec::new();
            FrameWriter::new(7, 9).push(&mut bytes, Kind::Raft, &payload);
            prop_assert_eq!(all(&bytes[..cut.index(bytes.len())], 64).unwrap(), []);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(all(&bytes, 64).is_err(), "bit {}", bit);
        }
    }
}
