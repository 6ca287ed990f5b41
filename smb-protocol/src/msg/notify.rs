//! CHANGE_NOTIFY request (MS-SMB2 2.2.35); the response is
//! [`super::query_directory::Response`].

use crate::{
    header::file_id,
    ids::FileId,
    wire::{Put, Reader, Result},
};

/// `SMB2_WATCH_TREE`: everything below, not the directory alone.
pub const WATCH_TREE: u16 = 1;

/// CHANGE_NOTIFY request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Request {
    /// [`WATCH_TREE`] or 0.
    pub flags: u16,
    /// Most bytes to be answered.
    pub output_len: u32,
    /// The directory.
    pub file_id: FileId,
    /// Which changes count.
    pub filter: u32,
}

impl Request {
    /// Reads the body.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut r = Reader::new(body);
        r.structure_size(32, "change_notify.StructureSize")?;
        let flags = r.u16("change_notify.Flags")?;
        let output_len = r.u32("change_notify.OutputBufferLength")?;
        let file_id = file_id(&mut r, "change_notify.FileId")?;
        Ok(Self { flags, output_len, file_id, filter: r.u32("change_notify.CompletionFilter")? })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(32);
        out.put_u16(self.flags);
        out.put_u32(self.output_len);
        out.put(&self.file_id.to_bytes());
        out.put_u32(self.filter);
        out.put_u32(0);
    }
}
