//! FLUSH request (MS-SMB2 2.2.17); the response is [`super::simple::Empty`].

use crate::{
    header::file_id,
    ids::FileId,
    wire::{Put, Reader, Result},
};

/// FLUSH request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Request {
    /// What to flush.
    pub file_id: FileId,
}

impl Request {
    /// Reads the body.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut r = Reader::new(body);
        r.structure_size(24, "flush.StructureSize")?;
        r.skip(6, "flush.Reserved")?;
        Ok(Self { file_id: file_id(&mut r, "flush.FileId")? })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(24);
        out.put_zeros(6);
        out.put(&self.file_id.to_bytes());
    }
}
