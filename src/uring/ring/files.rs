//! Files: chunks written to a place in a file, and read back into chunks.
//!
//! In: chunk, place, token. Out: completions that say how many bytes were moved; a short one is for the caller to
//! continue. Every operation names its place, so any number may be in flight on one file; a chunk that is being written is
//! pinned, and one that is being read into is out of reach, as with sockets.

use super::{ARENA_BUFFER, Ring};
use crate::uring::error::UringError;
use crate::uring::file::UnnamedFile;
use crate::uring::op::OpKind;
use crate::uring::slab::ChunkId;
use io_uring::opcode;
use io_uring::types::Fd;
use std::rc::Rc;

impl Ring {
    /// Writes `len` filled bytes of a chunk, from `start` on, to the file at `offset`.
    pub fn write_file(
        &mut self,
        file: &Rc<UnnamedFile>,
        chunk: ChunkId,
        (start, len): (u32, u32),
        offset: u64,
        token: u64,
    ) -> Result<(), UringError> {
        self.check_usable()?;
        let Some(address) = self.shared.filled_part(chunk, start, len) else {
            return Err(self.shared.segment_outside(chunk, start, len));
        };
        self.make_room(1)?;
        self.shared.pin(chunk.index());
        let fd = Fd(file.raw());
        let data = self.insert(OpKind::FileWrite { token, chunk, _file: file.clone() });
        let entry = if self.modes.registered {
            opcode::WriteFixed::new(fd, address, len, ARENA_BUFFER).offset(offset).build()
        } else {
            opcode::Write::new(fd, address, len).offset(offset).build()
        };
        // SAFETY: the bytes are a filled part of a chunk that is pinned until this operation completes, so nobody changes
        // or reuses them; the table's entry keeps the file open, and the ring keeps the arena mapped until then.
        unsafe { self.push(&[entry.user_data(data)]) };
        Ok(())
    }

    /// Reads at most `bytes_max` bytes of the file from `offset` on into the tail of a chunk. Until its completion the
    /// chunk has no room.
    pub fn read_file(
        &mut self,
        file: &Rc<UnnamedFile>,
        chunk: ChunkId,
        bytes_max: usize,
        offset: u64,
        token: u64,
    ) -> Result<(), UringError> {
        self.check_usable()?;
        self.make_room(1)?;
        let (start, len) = self.shared.begin_read(chunk, bytes_max)?;
        let fd = Fd(file.raw());
        let data = self.insert(OpKind::FileRead { token, chunk, _file: file.clone() });
        let entry = if self.modes.registered {
            opcode::ReadFixed::new(fd, start, len, ARENA_BUFFER).offset(offset).build()
        } else {
            opcode::Read::new(fd, start, len).offset(offset).build()
        };
        // SAFETY: `begin_read` lent this part of the arena to the kernel alone until `end_read`, at this operation's
        // completion; the table's entry keeps the file open, and the ring keeps the arena mapped until then.
        unsafe { self.push(&[entry.user_data(data)]) };
        Ok(())
    }

    /// Gives the space of a part of the file back to the file system. The part then reads as zeroes.
    pub fn punch_file(&mut self, file: &Rc<UnnamedFile>, offset: u64, len: u64, token: u64) -> Result<(), UringError> {
        self.check_usable()?;
        self.make_room(1)?;
        let data = self.insert(OpKind::FilePunch { token, _file: file.clone() });
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let entry = opcode::Fallocate::new(Fd(file.raw()), len).offset(offset).mode(mode).build();
        // SAFETY: the entry points to nothing; the table's entry keeps the file open.
        unsafe { self.push(&[entry.user_data(data)]) };
        Ok(())
    }
}
