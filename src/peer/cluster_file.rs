//! The file `cluster` in a data directory: who this node is in its cluster, and the newest meta state it heard of.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `STRNDCLU` |
//! | 8 | 2 | format, 1 |
//! | 10 | 2 | this node's number; 0 before the cluster is founded |
//! | 12 | 4 | length of the newest meta state; 0 before |
//! | 16 | 4 | length of the first meta state; 0 for a node that came later |
//! | 20 | 4 | 1 if the node ran alone before, and its logs began then; 0 otherwise |
//! | 24 | 8 | key of the logs to be made |
//! | 32 | 16 | incarnation |
//! | 48 | | the newest meta state, then the first, as `shards::peer::meta_codec` writes them |
//! | end | 4 | CRC32C of all before |
//!
//! Integers are little-endian. A first start writes the file with the incarnation before it says that to anybody; the
//! founding writes it again with the meta state, before the node says that it has it and before any log is made. The first
//! meta state stays: it is the configuration with which the groups' logs begin. The file is replaced as a whole and never
//! changed in place.

use crate::disk::files::RealDisk;
use shards::ids::{GroupId, NodeNumber, ReplicaId};
use shards::log::payload::PayloadBuffer;
use shards::meta::Meta;
use shards::peer::meta_codec::{decode_meta, encode_meta};
use shards::shard::image::Founding;
use shards::storage::write_atomically;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The file's name.
pub const NAME: &str = "cluster";
const MAGIC: [u8; 8] = *b"STRNDCLU";
const FORMAT: u16 = 1;
const FORMAT_AT: usize = 8;
const NUMBER_AT: usize = 10;
const META_BYTES_AT: usize = 12;
const FIRST_BYTES_AT: usize = 16;
const ALONE_AT: usize = 20;
const LOG_KEY_AT: usize = 24;
const INCARNATION_AT: usize = 32;
const HEADER_BYTES: usize = 48;
const CRC_BYTES: usize = 4;
/// The longest file that is read: far above what the most nodes and groups need.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterFile {
    /// Drawn when the data directory was made.
    pub incarnation: u128,
    /// For the logs to be made.
    pub log_key: u64,
    /// What is known since the cluster was founded.
    pub membership: Option<Membership>,
}

/// A node's place in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Its number.
    pub me: NodeNumber,
    /// The newest meta state.
    pub meta: Arc<Meta>,
    /// The first one, for a node that was there.
    pub first: Option<Arc<Meta>>,
    /// The node ran alone before, and its logs began then.
    pub began_alone: bool,
}

impl Membership {
    /// How a replica of this node began: as one of the first voters, or empty, to be filled by its leader.
    pub fn founding(&self, group: GroupId, replica: ReplicaId) -> Founding {
        let first = self.first.as_ref().and_then(|first| first.groups.get(group.0 as usize));
        match first.filter(|placement| placement.replicas.contains(&replica)) {
            Some(_) if self.began_alone => Founding::Alone,
            Some(placement) => Founding::Voter { replica, voters: placement.replicas.clone() },
            None => Founding::Empty { replica },
        }
    }
}

/// Why the file cannot be used.
#[derive(Debug)]
pub enum ClusterFileError {
    /// Reading or writing failed.
    Io(io::Error),
    /// It is damaged, or contradicts itself; the text says how.
    Damaged(String),
    /// A format that this version does not know.
    NewerFormat(u16),
}

impl std::fmt::Display for ClusterFileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => write!(f, "the file {NAME}: {error}"),
            Self::Damaged(text) => write!(f, "the file {NAME} is damaged: {text}"),
            Self::NewerFormat(format) => {
                write!(f, "the file {NAME} has format {format}; this version knows up to {FORMAT}")
            }
        }
    }
}

impl std::error::Error for ClusterFileError {}

/// Reads the file in a data directory; `None` when there is none.
///
/// # Errors
/// When it cannot be read or is not what it must be.
pub fn read(directory: &Path) -> Result<Option<ClusterFile>, ClusterFileError> {
    let path = directory.join(NAME);
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ClusterFileError::Io(error)),
        Ok(found) if found.len() > FILE_BYTES_MAX => {
            return Err(ClusterFileError::Damaged(format!("it has {} bytes", found.len())));
        }
        Ok(_) => {}
    }
    decode(&std::fs::read(path).map_err(ClusterFileError::Io)?).map(Some)
}

/// Writes the file durably in place of the one before.
///
/// # Errors
/// When the disk refuses; the old file is then still there.
pub fn write(directory: &Path, file: &ClusterFile) -> Result<(), ClusterFileError> {
    write_atomically(&RealDisk, directory, NAME, &encode(file)).map_err(ClusterFileError::Io)
}

fn encode(file: &ClusterFile) -> Vec<u8> {
    let archive = |meta: Option<&Arc<Meta>>| {
        let mut bytes = PayloadBuffer::new();
        if let Some(meta) = meta {
            encode_meta(meta, &mut bytes);
        }
        bytes
    };
    let membership = file.membership.as_ref();
    let newest = archive(membership.map(|membership| &membership.meta));
    let first = archive(membership.and_then(|membership| membership.first.as_ref()));
    let me = membership.map_or(0, |membership| membership.me.0);
    let length = |bytes: &PayloadBuffer| u32::try_from(bytes.len()).expect("a meta state is small");
    let mut out = Vec::with_capacity(HEADER_BYTES + newest.len() + first.len() + CRC_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&me.to_le_bytes());
    out.extend_from_slice(&length(&newest).to_le_bytes());
    out.extend_from_slice(&length(&first).to_le_bytes());
    let began_alone = membership.is_some_and(|membership| membership.began_alone);
    out.extend_from_slice(&u32::from(began_alone).to_le_bytes());
    out.extend_from_slice(&file.log_key.to_le_bytes());
    out.extend_from_slice(&file.incarnation.to_le_bytes());
    assert_eq!(out.len(), HEADER_BYTES, "the byte map holds");
    out.extend_from_slice(&newest);
    out.extend_from_slice(&first);
    out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
    out
}

fn decode(bytes: &[u8]) -> Result<ClusterFile, ClusterFileError> {
    let damaged = |text: &str| ClusterFileError::Damaged(text.to_owned());
    let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or_else(|| damaged("it is too short"))?;
    if !body.starts_with(&MAGIC) || crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return Err(damaged("its checksum is wrong"));
    }
    let short = || damaged("it is too short");
    let format = u16::from_le_bytes(field(body, FORMAT_AT).ok_or_else(short)?);
    if format != FORMAT {
        return Err(ClusterFileError::NewerFormat(format));
    }
    let archives = body.get(HEADER_BYTES..).ok_or_else(short)?;
    let length_at = |at: usize| field(body, at).map(u32::from_le_bytes).ok_or_else(short);
    let (newest, rest) = archives.split_at_checked(length_at(META_BYTES_AT)? as usize).ok_or_else(short)?;
    if rest.len() != length_at(FIRST_BYTES_AT)? as usize {
        return Err(damaged("its lengths contradict each other"));
    }
    let meta = |bytes: &[u8]| -> Result<Option<Arc<Meta>>, ClusterFileError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let read = decode_meta(bytes, &mut PayloadBuffer::new());
        read.map(|meta| Some(Arc::new(meta))).map_err(|error| damaged(&error.to_string()))
    };
    let me = NodeNumber(u16::from_le_bytes(field(body, NUMBER_AT).ok_or_else(short)?));
    let membership = match meta(newest)? {
        Some(newest) if newest.nodes.iter().any(|node| node.number == me) => {
            Some(Membership { me, meta: newest, first: meta(rest)?, began_alone: length_at(ALONE_AT)? != 0 })
        }
        None if me.0 == 0 && rest.is_empty() => None,
        _ => return Err(damaged("its meta state does not have this node")),
    };
    Ok(ClusterFile {
        incarnation: u128::from_le_bytes(field(body, INCARNATION_AT).ok_or_else(short)?),
        log_key: u64::from_le_bytes(field(body, LOG_KEY_AT).ok_or_else(short)?),
        membership,
    })
}

fn field<const N: usize>(body: &[u8], at: usize) -> Option<[u8; N]> {
    body.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::Scratch;
    use shards::peer::founding::{Seen, Status, first_meta};

    fn founded() -> ClusterFile {
        let seen = ["a", "b"].map(|id| Seen {
            id: id.into(),
            incarnation: u128::from(id.as_bytes()[0]),
            host: "h".into(),
            port: 1,
            cluster_port: 2,
        });
        let status = Status { seen: seen.to_vec(), shards: 2, replicas: 3, ..Status::default() };
        let first = Arc::new(first_meta(77, &status, None));
        let meta = Arc::new(Meta { version: 9, ..(*first).clone() });
        let membership = Some(Membership { me: NodeNumber(2), meta, first: Some(first), began_alone: false });
        ClusterFile { incarnation: 98, log_key: 5, membership }
    }

    #[test]
    fn the_file_survives_blank_and_founded() {
        let scratch = Scratch::new();
        assert!(read(scratch.path()).unwrap().is_none());
        for file in [ClusterFile { membership: None, ..founded() }, founded()] {
            write(scratch.path(), &file).unwrap();
            assert_eq!(read(scratch.path()).unwrap(), Some(file));
        }
    }

    #[test]
    fn golden_bytes() {
        let hex: String = encode(&ClusterFile { membership: None, ..founded() })
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let golden = concat!(
            "5354524e44434c55",
            "0100",
            "0000",
            "00000000",
            "00000000",
            "00000000",
            "0500000000000000",
            "62000000000000000000000000000000"
        );
        assert_eq!(hex[..golden.len()], *golden);
    }

    #[test]
    fn every_flipped_bit_and_truncation_is_refused() {
        let bytes = encode(&founded());
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{length}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_founders_replicas_begin_with_the_founders_as_voters() {
        let membership = founded().membership.unwrap();
        let mine = ReplicaId::new(0, NodeNumber(2));
        let Founding::Voter { voters, .. } = membership.founding(GroupId(1), mine) else {
            panic!("it was there")
        };
        assert_eq!(voters.len(), 2);
        let later = ReplicaId::new(4, NodeNumber(2));
        assert_eq!(membership.founding(GroupId(1), later), Founding::Empty { replica: later });
        let late = Membership { first: None, ..membership.clone() };
        assert_eq!(late.founding(GroupId(1), mine), Founding::Empty { replica: mine });
        let alone = Membership { began_alone: true, ..membership };
        assert_eq!(alone.founding(GroupId(1), mine), Founding::Alone);
    }
}
