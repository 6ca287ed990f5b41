//! IOCTL (MS-SMB2 2.2.31, 2.2.32).

use crate::{
    fscc::FsctlCode,
    header::{HEADER_LEN, file_id},
    ids::FileId,
    wire::{Put, Reader, Result, body_region, len32},
};

/// `SMB2_0_IOCTL_IS_FSCTL`.
pub const IS_FSCTL: u32 = 1;

/// IOCTL request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request<'a> {
    /// What to do.
    pub code: FsctlCode,
    /// What to do it to.
    pub file_id: FileId,
    /// Input of the control.
    pub input: &'a [u8],
    /// Most bytes of input to be answered.
    pub max_input: u32,
    /// Most bytes of output to be answered.
    pub max_output: u32,
    /// [`IS_FSCTL`].
    pub flags: u32,
}

impl<'a> Request<'a> {
    /// Reads the body.
    pub fn parse(body: &'a [u8]) -> Result<Self> {
        let mut r = Reader::new(body);
        r.structure_size(57, "ioctl.StructureSize")?;
        r.skip(2, "ioctl.Reserved")?;
        let code = FsctlCode(r.u32("ioctl.CtlCode")?);
        let file_id = file_id(&mut r, "ioctl.FileId")?;
        let offset = r.u32("ioctl.InputOffset")? as usize;
        let len = r.u32("ioctl.InputCount")? as usize;
        let max_input = r.u32("ioctl.MaxInputResponse")?;
        r.skip(8, "ioctl.Output")?;
        let max_output = r.u32("ioctl.MaxOutputResponse")?;
        let flags = r.u32("ioctl.Flags")?;
        let input = body_region(&r, offset, len, "ioctl.Buffer")?;
        Ok(Self { code, file_id, input, max_input, max_output, flags })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(57);
        out.put_u32(self.code.0);
        out.put(&self.file_id.to_bytes());
        out.put_u32(len32(HEADER_LEN + 56));
        out.put_u32(len32(self.input.len()));
        out.put_u32(self.max_input);
        out.put_u64(0);
        out.put_u32(self.max_output);
        out.put_u32(self.flags);
        out.put_u32(0);
        if self.input.is_empty() {
            out.put_u8(0);
        } else {
            out.put(self.input);
        }
    }
}

/// IOCTL response.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response<'a> {
    /// The control that was done.
    pub code: FsctlCode,
    /// What it was done to.
    pub file_id: FileId,
    /// Output of the control.
    pub output: &'a [u8],
}

impl<'a> Response<'a> {
    /// Reads the body.
    pub fn parse(body: &'a [u8]) -> Result<Self> {
        let mut r = Reader::new(body);
        r.structure_size(49, "ioctl.StructureSize")?;
        r.skip(2, "ioctl.Reserved")?;
        let code = FsctlCode(r.u32("ioctl.CtlCode")?);
        let file_id = file_id(&mut r, "ioctl.FileId")?;
        r.skip(8, "ioctl.Input")?;
        let offset = r.u32("ioctl.OutputOffset")? as usize;
        let len = r.u32("ioctl.OutputCount")? as usize;
        r.skip(8, "ioctl.Flags")?;
        Ok(Self { code, file_id, output: body_region(&r, offset, len, "ioctl.Buffer")? })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(49);
        out.put_u32(self.code.0);
        out.put(&self.file_id.to_bytes());
        out.put_u32(len32(HEADER_LEN + 48));
        out.put_u32(0);
        out.put_u32(len32(HEADER_LEN + 48));
        out.put_u32(len32(self.output.len()));
        out.put_u64(0);
        out.put(self.output);
    }
}
