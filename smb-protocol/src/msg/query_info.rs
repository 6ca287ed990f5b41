//! QUERY_INFO request (MS-SMB2 2.2.37); the response is
//! [`super::query_directory::Response`].

use crate::{
    fscc::InfoClass,
    header::{HEADER_LEN, file_id},
    ids::FileId,
    open_enum,
    wire::{Put, Reader, Result, body_region, len16, len32},
};

open_enum! {
    /// `InfoType`.
    InfoType: u8 {
        /// About the file.
        FILE = 1,
        /// About the file system.
        FILESYSTEM = 2,
        /// Security descriptor.
        SECURITY = 3,
        /// Quota.
        QUOTA = 4,
    }
}

/// QUERY_INFO request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request<'a> {
    /// What kind of information.
    pub info_type: InfoType,
    /// Its shape.
    pub class: InfoClass,
    /// Most bytes to be answered.
    pub output_len: u32,
    /// Which parts of a security descriptor, or the index of an extended attribute.
    pub additional: u32,
    /// Flags.
    pub flags: u32,
    /// What to ask about.
    pub file_id: FileId,
    /// Input of quota and extended-attribute queries.
    pub input: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads the body.
    pub fn parse(body: &'a [u8]) -> Result<Self> {
        let mut r = Reader::new(body);
        r.structure_size(41, "query_info.StructureSize")?;
        let info_type = InfoType(r.u8("query_info.InfoType")?);
        let class = InfoClass(r.u8("query_info.FileInfoClass")?);
        let output_len = r.u32("query_info.OutputBufferLength")?;
        let offset = r.u16("query_info.InputBufferOffset")?.into();
        r.skip(2, "query_info.Reserved")?;
        let len = r.u32("query_info.InputBufferLength")? as usize;
        let additional = r.u32("query_info.AdditionalInformation")?;
        let flags = r.u32("query_info.Flags")?;
        let file_id = file_id(&mut r, "query_info.FileId")?;
        let input = body_region(&r, offset, len, "query_info.Buffer")?;
        Ok(Self { info_type, class, output_len, additional, flags, file_id, input })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(41);
        out.put_u8(self.info_type.0);
        out.put_u8(self.class.0);
        out.put_u32(self.output_len);
        out.put_u16(if self.input.is_empty() { 0 } else { len16(HEADER_LEN + 40) });
        out.put_u16(0);
        out.put_u32(len32(self.input.len()));
        out.put_u32(self.additional);
        out.put_u32(self.flags);
        out.put(&self.file_id.to_bytes());
        if self.input.is_empty() {
            out.put_u8(0);
        } else {
            out.put(self.input);
        }
    }
}
