//! The kernel's side of a disk: its requests in the words of FUSE, each answered by [`Shared`]. Decides nothing itself.

use super::mount::{BLOCK_BYTES, Shared, text};
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Nothing is remembered by the kernel.
const NO_CACHE: Duration = Duration::ZERO;

/// The kernel's side.
pub(super) struct Served(pub(super) Arc<Shared>);

fn answer(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn answer_attributes(reply: ReplyAttr, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attributes) => reply.attr(&NO_CACHE, &attributes),
        Err(errno) => reply.error(errno),
    }
}

fn answer_entry(reply: ReplyEntry, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attributes) => reply.entry(&NO_CACHE, &attributes, Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

const OPENED: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);

impl Filesystem for Served {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without it direct writes of an io_uring wait in a helper thread each; with it they are as on a disk.
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.0.powered().and_then(|state| {
            let inode = state.image.find(parent.0, &text(name)?).ok_or(Errno::ENOENT)?;
            state.attributes(inode)
        });
        answer_entry(reply, found);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer_attributes(reply, self.0.powered().and_then(|state| state.attributes(inode.0)));
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let resized = size.map_or(Ok(()), |size| self.0.resize(inode.0, size));
        let attributes = resized.and_then(|()| self.0.powered()?.attributes(inode.0));
        answer_attributes(reply, attributes);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        answer_entry(reply, self.0.create(parent, name, true));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let created = self.0.create(parent, name, false);
        match created.and_then(|attributes| self.0.open(attributes.ino.0).map(|()| attributes)) {
            Ok(attributes) => reply.created(&NO_CACHE, &attributes, Generation(0), FileHandle(0), OPENED),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.0.remove(parent, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.0.remove(parent, name));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let plain = if flags.is_empty() { Ok(()) } else { Err(Errno::EINVAL) };
        answer(reply, plain.and_then(|()| self.0.rename(parent, name, new_parent, new_name)));
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.0.open(inode.0) {
            Ok(()) => reply.opened(FileHandle(0), OPENED),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.0.powered().and_then(|state| {
            let content = &state.file(inode.0)?.live;
            let from = usize::try_from(offset).map_or(content.len(), |from| from.min(content.len()));
            let to = content.len().min(from + size as usize);
            Ok(content[from..to].to_vec())
        });
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.write(inode.0, offset, bytes) {
            Ok(()) => reply.written(u32::try_from(bytes.len()).expect("a request is short")),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.release(inode.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(reply, self.0.sync(inode.0));
    }

    fn fsyncdir(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(reply, self.0.sync(inode.0));
    }

    fn readdir(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let state = match self.0.powered() {
            Ok(state) => state,
            Err(errno) => return reply.error(errno),
        };
        let names = match state.names(inode.0) {
            Ok(names) => names,
            Err(errno) => return reply.error(errno),
        };
        let own = [(".", inode.0), ("..", inode.0)].into_iter();
        let all = own.chain(names.iter().map(|(name, inode)| (name.as_str(), *inode)));
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, (name, found)) in all.enumerate().skip(from) {
            let is_file = state.image.files.contains_key(&found);
            let kind = if is_file { FileType::RegularFile } else { FileType::Directory };
            if reply.add(INodeNo(found), place as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let (capacity, used) = self.0.room();
        let blocks = |bytes: u64| bytes / u64::from(BLOCK_BYTES);
        let free = blocks(capacity.saturating_sub(used));
        reply.statfs(blocks(capacity), free, free, 1 << 20, 1 << 20, BLOCK_BYTES, 255, BLOCK_BYTES);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let now = self.0.powered().and_then(|state| Ok(state.file(inode.0)?.live.len() as u64));
        let wanted = offset + length;
        answer(reply, now.and_then(|now| if wanted > now { self.0.resize(inode.0, wanted) } else { Ok(()) }));
    }
}
