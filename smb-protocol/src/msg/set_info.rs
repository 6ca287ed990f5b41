//! SET_INFO (MS-SMB2 2.2.39, 2.2.40).

use super::query_info::InfoType;
use crate::{
    fscc::InfoClass,
    header::{HEADER_LEN, file_id},
    ids::FileId,
    wire::{Put, Reader, Result, body_region, len16, len32},
};

/// SET_INFO request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request<'a> {
    /// What kind of information.
    pub info_type: InfoType,
    /// Its shape.
    pub class: InfoClass,
    /// Which parts of a security descriptor.
    pub additional: u32,
    /// What to change.
    pub file_id: FileId,
    /// The new information.
    pub input: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads the body.
    pub fn parse(body: &'a [u8]) -> Result<Self> {
        let mut r = Reader::new(body);
        r.structure_size(33, "set_info.StructureSize")?;
        let info_type = InfoType(r.u8("set_info.InfoType")?);
        let class = InfoClass(r.u8("set_info.FileInfoClass")?);
        let len = r.u32("set_info.BufferLength")? as usize;
        let offset = r.u16("set_info.BufferOffset")?.into();
        r.skip(2, "set_info.Reserved")?;
        let additional = r.u32("set_info.AdditionalInformation")?;
        let file_id = file_id(&mut r, "set_info.FileId")?;
        let input = body_region(&r, offset, len, "set_info.Buffer")?;
        Ok(Self { info_type, class, additional, file_id, input })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(33);
        out.put_u8(self.info_type.0);
        out.put_u8(self.class.0);
        out.put_u32(len32(self.input.len()));
        out.put_u16(len16(HEADER_LEN + 32));
        out.put_u16(0);
        out.put_u32(self.additional);
        out.put(&self.file_id.to_bytes());
        out.put(self.input);
    }
}

/// SET_INFO response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Response;

impl Response {
    /// Reads the body.
    pub fn parse(body: &[u8]) -> Result<Self> {
        Reader::new(body).structure_size(2, "set_info.StructureSize").map(|()| Self)
    }

    /// Appends the body.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.put_u16(2);
    }
}
