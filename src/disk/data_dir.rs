//! The data directory: what it is, whose it is, and that only one server uses it.
//!
//! | path | content |
//! |---|---|
//! | `strand.meta` | identity and shape, one checksummed block, written once |
//! | `lock` | held with flock while a server runs; contains its pid |
//! | `shard-0000/wal-00000001.seg` | log segments |
//! | `shard-0000/snap-...` | snapshots |
//!
//! Each shard's directory has a manifest from the beginning (`shards::log::manifest`). Format 1 had none: such a directory is
//! given them when it is opened, and is of format 2 from then on.
//!
//! `strand.meta`, integers little-endian: magic `STRNDDIR` (8), format 2 (u16), length of the node id (u16), shards
//! (u32), cluster id (16), incarnation (16), log key (u64), segment size (u64), node id (UTF-8), CRC32C of all before it
//! (u32). The file is written last when a directory is made, so a directory without it was never in use.
//! This file must not read entropy: the caller draws the ids.

use super::files::RealDisk;
use shards::log::{LogIdentity, LogShape, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use shards::storage::disk::Disk;
use shards::storage::manifest::{MANIFEST_FILE, create_manifest};
use shards::storage::write_atomically;
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The format this code writes.
pub const FORMAT: u16 = 2;
/// The format before it, whose shards have no manifests.
const FORMAT_WITHOUT_MANIFESTS: u16 = 1;
/// What the epochs of a directory of that format are below: they counted seconds since 2020.
const EPOCHS_WITHOUT_MANIFESTS: u32 = 1 << 30;
/// The longest node id in bytes.
pub const NODE_ID_BYTES_MAX: usize = 256;
/// The most shards.
pub const SHARDS_MAX: u32 = 4096;

/// How often a lock of a dead process is tried again, and the pause between: two seconds, when writes of milliseconds are
/// what it waits for.
const LOCK_TRIES_MAX: u32 = 400;
/// The same where the lock names a living process.
const LOCK_TRIES_ALIVE_MAX: u32 = 60;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

const META: &str = "strand.meta";
const LOCK: &str = "lock";
const MAGIC: [u8; 8] = *b"STRNDDIR";
const FORMAT_AT: usize = MAGIC.len();
const NODE_ID_BYTES: usize = FORMAT_AT + 2;
const SHARDS: usize = NODE_ID_BYTES + 2;
const CLUSTER: usize = SHARDS + 4;
const INCARNATION: usize = CLUSTER + 16;
const LOG_KEY: usize = INCARNATION + 16;
const SEGMENT_BYTES: usize = LOG_KEY + 8;
const NODE_ID: usize = SEGMENT_BYTES + 8;
const CRC_BYTES: usize = 4;
const _: () = assert!(NODE_ID == 64);

/// What a data directory is, fixed when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataMeta {
    /// The cluster it belongs to.
    pub cluster: u128,
    /// Random; tells this disk from a blank one that took over its name.
    pub incarnation: u128,
    /// Random and never told to anyone; see [`LogIdentity::key`].
    pub log_key: u64,
    /// The node's name.
    pub node_id: String,
    /// Number of shards, 1 to [`SHARDS_MAX`].
    pub shards: u32,
    /// Size of a log segment in bytes.
    pub segment_bytes: u64,
}

/// Why a data directory cannot be used. The texts say what to do.
#[derive(Debug)]
pub enum DataDirError {
    /// Another server holds the lock; its pid when the lock names one.
    InUse(PathBuf, Option<u32>),
    /// `strand.meta` has a format this version does not know.
    NewerFormat(PathBuf, u16),
    /// `strand.meta` is damaged.
    Damaged(PathBuf),
    /// The directory belongs to another node: the one it has, and the one asked for.
    OtherNode(PathBuf, String, String),
    /// It has another number of shards: the one it has, and the one asked for.
    OtherShards(PathBuf, u32, u32),
    /// It has no `strand.meta`, but files of shards.
    NotEmpty(PathBuf),
    /// Reading or writing failed.
    Io(PathBuf, io::Error),
}

impl fmt::Display for DataDirError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse(path, Some(pid)) => {
                write!(f, "data directory {} is in use by pid {pid}", path.display())
            }
            Self::InUse(path, None) => {
                write!(f, "data directory {} is in use by another process", path.display())
            }
            Self::NewerFormat(path, format) => write!(
                f,
                "data directory {} has format {format}; this version knows up to {FORMAT}: start it with the newer version",
                path.display()
            ),
            Self::Damaged(path) => write!(
                f,
                "{} is damaged: restore it from a backup, or start with an empty directory and let the peers fill it",
                path.join(META).display()
            ),
            Self::OtherNode(path, has, asked) => write!(
                f,
                "data directory {} belongs to node {has:?}, not {asked:?}: start with --id {has}, or with another --data-dir",
                path.display()
            ),
            Self::OtherShards(path, has, asked) => write!(
                f,
                "data directory {} has {has} shards, not {asked}: leave --shards away (any number of cores serves \
                 them), or dump and restore into a new directory",
                path.display()
            ),
            Self::NotEmpty(path) => write!(
                f,
                "data directory {} holds shards but no {META}: restore that file, or choose an empty directory",
                path.display()
            ),
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for DataDirError {}

/// An open, locked data directory.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    meta: DataMeta,
    lock: File,
}

impl DataDir {
    /// Opens the directory at `path`, or makes it with `fresh()` when there is none. `node_id` and `shards` are what the
    /// operator asked for, if anything; they must agree with what is there.
    pub fn open(
        path: &Path,
        node_id: Option<&str>,
        shards: Option<u32>,
        fresh: impl FnOnce() -> DataMeta,
    ) -> Result<Self, DataDirError> {
        let failed = |error| DataDirError::Io(path.to_path_buf(), error);
        std::fs::create_dir_all(path).map_err(failed)?;
        let lock = take_lock(path)?;
        let meta = match std::fs::read(path.join(META)) {
            Ok(bytes) => match decode(&bytes, path)? {
                (meta, FORMAT) => meta,
                (meta, _) => give_manifests(path, meta)?,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(path, fresh())?,
            Err(error) => return Err(failed(error)),
        };
        if let Some(asked) = node_id.filter(|asked| *asked != meta.node_id) {
            return Err(DataDirError::OtherNode(path.to_path_buf(), meta.node_id, asked.to_owned()));
        }
        if let Some(asked) = shards.filter(|asked| *asked != meta.shards) {
            return Err(DataDirError::OtherShards(path.to_path_buf(), meta.shards, asked));
        }
        Ok(Self { path: path.to_path_buf(), meta, lock })
    }

    /// What the directory is.
    pub fn meta(&self) -> &DataMeta {
        &self.meta
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lock. Every log ring registers it, so that it outlives the last write in flight.
    pub fn lock(&self) -> &File {
        &self.lock
    }

    /// Where a shard keeps its files.
    pub fn shard_path(&self, shard: u32) -> PathBuf {
        assert!(shard < self.meta.shards, "the directory has this shard");
        shard_path(&self.path, shard)
    }

    /// The shape of a shard's log.
    pub fn log_shape(&self, shard: u32) -> LogShape {
        assert!(shard < self.meta.shards, "the directory has this shard");
        LogShape::new(log_identity(&self.meta, shard), self.meta.segment_bytes)
    }
}

/// Where a shard of the directory at `path` keeps its files.
pub fn shard_path(path: &Path, shard: u32) -> PathBuf {
    path.join(format!("shard-{shard:04}"))
}

/// Holds the directory at `path`, made if there is none, for one who has to settle something before [`DataDir::open`]; the
/// lock goes with the file.
///
/// # Errors
/// When another server holds it, or the disk refuses.
pub fn hold(path: &Path) -> Result<File, DataDirError> {
    make_durably(path).map_err(|error| DataDirError::Io(path.to_path_buf(), error))?;
    take_lock(path)
}

/// Makes the directory and those above it, and their names durable, as long as nothing says that this was done: what is told to
/// other nodes and stored in here must not vanish with a name.
fn make_durably(path: &Path) -> io::Result<()> {
    let made: Vec<&Path> = path.ancestors().take_while(|above| !above.exists()).collect();
    std::fs::create_dir_all(path)?;
    if path.join(META).exists() {
        return Ok(());
    }
    for name in std::iter::once(path).chain(made).filter(|name| !name.as_os_str().is_empty()) {
        if let Some(parent) = name.canonicalize()?.parent() {
            RealDisk.sync_directory(parent)?;
        }
    }
    Ok(())
}

/// What the directory at `path` is, when it is one.
///
/// # Errors
/// When it cannot be read.
pub fn look(path: &Path) -> Result<Option<DataMeta>, DataDirError> {
    match std::fs::read(path.join(META)) {
        Ok(bytes) => decode(&bytes, path).map(|(meta, _)| Some(meta)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DataDirError::Io(path.to_path_buf(), error)),
    }
}

fn take_lock(path: &Path) -> Result<File, DataDirError> {
    let name = path.join(LOCK);
    let failed = |error| DataDirError::Io(name.clone(), error);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(&name).map_err(failed)?;
    let mut tries = 0;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) => {
                let holder = holder(&mut file);
                // A killed server's last writes keep the lock for a moment; a living one keeps it for long. The file that
                // names it may be damaged, so a name alone settles nothing at once.
                let is_alive = holder.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists());
                if tries >= if is_alive { LOCK_TRIES_ALIVE_MAX } else { LOCK_TRIES_MAX } {
                    return Err(DataDirError::InUse(path.to_path_buf(), holder));
                }
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        tries += 1;
        std::thread::sleep(LOCK_PAUSE);
    }
    let told = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
    told.and_then(|_| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

/// The pid that the lock file names. It names none for a moment while its holder writes it.
fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text));
    read.ok().and_then(|_| text.trim().parse().ok())
}

fn create(path: &Path, meta: DataMeta) -> Result<DataMeta, DataDirError> {
    let failed = |error| DataDirError::Io(path.to_path_buf(), error);
    assert!((1..=SHARDS_MAX).contains(&meta.shards), "the caller checked the number of shards");
    assert!((1..=NODE_ID_BYTES_MAX).contains(&meta.node_id.len()), "the caller checked the node id");
    for shard in 0..meta.shards {
        let directory = shard_path(path, shard);
        // An interrupted first start leaves directories with a manifest at most; anything else in one means that the meta
        // file was lost.
        let is_rest = |name: &str| name.strip_suffix(".tmp").unwrap_or(name) == MANIFEST_FILE;
        if RealDisk.list(&directory).is_ok_and(|found| found.iter().any(|entry| !is_rest(&entry.name))) {
            return Err(DataDirError::NotEmpty(path.to_path_buf()));
        }
        std::fs::create_dir_all(&directory)
            .and_then(|()| create_manifest(&RealDisk, &directory, log_identity(&meta, shard), 0))
            .map_err(failed)?;
    }
    RealDisk
        .sync_directory(path)
        .and_then(|()| write_atomically(&RealDisk, path, META, &encode(&meta)))
        .map_err(failed)?;
    if let Some(parent) = path.canonicalize().map_err(failed)?.parent() {
        RealDisk.sync_directory(parent).map_err(failed)?;
    }
    Ok(meta)
}

/// Brings a directory of the format without manifests to this one: the manifests first, so that an interruption is repeated.
fn give_manifests(path: &Path, meta: DataMeta) -> Result<DataMeta, DataDirError> {
    for shard in 0..meta.shards {
        let directory = shard_path(path, shard);
        create_manifest(&RealDisk, &directory, log_identity(&meta, shard), EPOCHS_WITHOUT_MANIFESTS)
            .map_err(|error| DataDirError::Io(directory, error))?;
    }
    write_atomically(&RealDisk, path, META, &encode(&meta))
        .map_err(|error| DataDirError::Io(path.to_path_buf(), error))?;
    Ok(meta)
}

fn log_identity(meta: &DataMeta, shard: u32) -> LogIdentity {
    LogIdentity { cluster: meta.cluster, key: meta.log_key, shard }
}

fn encode(meta: &DataMeta) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(NODE_ID + meta.node_id.len() + CRC_BYTES);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    let length = u16::try_from(meta.node_id.len()).expect("a node id is short");
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&meta.shards.to_le_bytes());
    bytes.extend_from_slice(&meta.cluster.to_le_bytes());
    bytes.extend_from_slice(&meta.incarnation.to_le_bytes());
    bytes.extend_from_slice(&meta.log_key.to_le_bytes());
    bytes.extend_from_slice(&meta.segment_bytes.to_le_bytes());
    assert_eq!(bytes.len(), NODE_ID, "the byte map holds");
    bytes.extend_from_slice(meta.node_id.as_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

/// What the directory is, and the format that says so.
fn decode(bytes: &[u8], path: &Path) -> Result<(DataMeta, u16), DataDirError> {
    let damaged = || DataDirError::Damaged(path.to_path_buf());
    let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or_else(damaged)?;
    if !body.starts_with(&MAGIC) || crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return Err(damaged());
    }
    let format = u16::from_le_bytes(field(body, FORMAT_AT).ok_or_else(damaged)?);
    if format != FORMAT && format != FORMAT_WITHOUT_MANIFESTS {
        return Err(DataDirError::NewerFormat(path.to_path_buf(), format));
    }
    decode_fields(body).map(|meta| (meta, format)).ok_or_else(damaged)
}

fn decode_fields(body: &[u8]) -> Option<DataMeta> {
    let node_id = body.get(NODE_ID..)?;
    let meta = DataMeta {
        cluster: u128::from_le_bytes(field(body, CLUSTER)?),
        incarnation: u128::from_le_bytes(field(body, INCARNATION)?),
        log_key: u64::from_le_bytes(field(body, LOG_KEY)?),
        node_id: String::from_utf8(node_id.to_vec()).ok()?,
        shards: u32::from_le_bytes(field(body, SHARDS)?),
        segment_bytes: u64::from_le_bytes(field(body, SEGMENT_BYTES)?),
    };
    let length = usize::from(u16::from_le_bytes(field(body, NODE_ID_BYTES)?));
    let sound = length == node_id.len()
        && (1..=SHARDS_MAX).contains(&meta.shards)
        && (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&meta.segment_bytes);
    sound.then_some(meta)
}

fn field<const N: usize>(body: &[u8], at: usize) -> Option<[u8; N]> {
    body.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::Scratch;

    fn meta() -> DataMeta {
        DataMeta {
            cluster: 0x0102,
            incarnation: 0x0304,
            log_key: 0x0506,
            node_id: "n1".into(),
            shards: 2,
            segment_bytes: 64 << 20,
        }
    }

    #[test]
    fn golden_bytes() {
        let hex: String = encode(&meta())[..NODE_ID + 2].iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = concat!(
            "5354524e44444952",
            "0200",
            "0200",
            "02000000",
            "02010000000000000000000000000000",
            "04030000000000000000000000000000",
            "0605000000000000",
            "0000000400000000",
            "6e31"
        );
        assert_eq!(hex, golden);
        assert_eq!(decode(&encode(&meta()), Path::new("")).unwrap(), (meta(), FORMAT));
    }

    #[test]
    fn every_flipped_bit_and_truncation_is_refused() {
        let bytes = encode(&meta());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped, Path::new("")).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length], Path::new("")).is_err());
        }
    }

    #[test]
    fn a_directory_is_made_once_and_then_kept() {
        let scratch = Scratch::new();
        let path = scratch.path().join("data");
        let made = DataDir::open(&path, Some("n1"), Some(2), meta).unwrap();
        assert!(made.shard_path(1).is_dir());
        drop(made);
        let again = DataDir::open(&path, None, None, || panic!("it is there")).unwrap();
        assert_eq!(*again.meta(), meta());
    }

    #[test]
    fn a_second_server_is_refused_and_told_by_whom() {
        let scratch = Scratch::new();
        let held = DataDir::open(scratch.path(), None, None, meta).unwrap();
        let refused = DataDir::open(scratch.path(), None, None, meta).unwrap_err().to_string();
        assert!(refused.ends_with(&format!("is in use by pid {}", std::process::id())), "{refused}");
        drop(held);
        DataDir::open(scratch.path(), None, None, meta).unwrap();
    }

    #[test]
    fn another_id_shard_count_or_format_is_refused_with_advice() {
        let scratch = Scratch::new();
        drop(DataDir::open(scratch.path(), None, None, meta).unwrap());
        let open =
            |id, shards| DataDir::open(scratch.path(), id, shards, meta).map(drop).unwrap_err().to_string();
        assert!(open(Some("n2"), None).contains("start with --id n1"));
        assert!(open(None, Some(3)).contains("has 2 shards, not 3"));
        std::fs::write(scratch.path().join(META), of_format(3)).unwrap();
        assert!(open(None, None).contains("has format 3"));
    }

    fn of_format(format: u8) -> Vec<u8> {
        let mut bytes = encode(&meta());
        bytes[FORMAT_AT] = format;
        bytes.truncate(bytes.len() - CRC_BYTES);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    #[test]
    fn a_directory_of_the_first_format_gets_its_manifests() {
        let scratch = Scratch::new();
        let made = DataDir::open(scratch.path(), None, None, meta).unwrap();
        let manifest = made.shard_path(1).join(MANIFEST_FILE);
        std::fs::remove_file(&manifest).unwrap();
        drop(made);
        std::fs::write(scratch.path().join(META), of_format(1)).unwrap();
        let opened = DataDir::open(scratch.path(), None, None, meta).unwrap();
        let shape = opened.log_shape(1);
        let found =
            shards::storage::manifest::read_manifest(&RealDisk, &opened.shard_path(1), &shape.identity);
        assert_eq!(found.unwrap().epoch, EPOCHS_WITHOUT_MANIFESTS);
        assert_eq!(std::fs::read(scratch.path().join(META)).unwrap(), encode(&meta()));
    }

    #[test]
    fn shards_without_meta_are_never_taken_for_a_blank_directory() {
        let scratch = Scratch::new();
        let made = DataDir::open(scratch.path(), None, None, meta).unwrap();
        std::fs::write(made.shard_path(1).join("wal-00000001.seg"), b"x").unwrap();
        drop(made);
        std::fs::remove_file(scratch.path().join(META)).unwrap();
        let refused = DataDir::open(scratch.path(), None, None, meta);
        assert!(matches!(refused, Err(DataDirError::NotEmpty(_))));
    }
}
