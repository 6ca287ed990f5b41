//! IOCTL (MS-SMB2 2.2.31, 2.2.32).

use nom::Parser;

use crate::{
    fscc::FsctlCode,
    header::{HEADER_LEN, body, file_id},
    ids::FileId,
    parse::{self, region, size32, skip, structure_size, u32},
    wire::{Put, Result, len32},
};

/// `SMB2_0_IOCTL_IS_FSCTL`.
pub const IS_FSCTL: u32 = 1;

/// IOCTL request: asks for a control of a file, of the file system or of the server (MS-SMB2 2.2.31).
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
    /// Reads the body of an IOCTL request, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field or is of another structure, or a region is outside of it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        parse::with(body(bytes), |input| {
            let (i, (_, _, code, file_id, offset, len, max_input, _, max_output, flags)) = (
                structure_size(57, "ioctl.StructureSize"),
                skip(2, "ioctl.Reserved"),
                u32("ioctl.CtlCode").map(FsctlCode),
                file_id("ioctl.FileId"),
                size32("ioctl.InputOffset"),
                size32("ioctl.InputCount"),
                u32("ioctl.MaxInputResponse"),
                skip(8, "ioctl.Output"),
                u32("ioctl.MaxOutputResponse"),
                u32("ioctl.Flags"),
            )
                .parse(input)?;
            let data = region(input, offset, len, "ioctl.Buffer")?.bytes();
            Ok((i, Self { code, file_id, input: data, max_input, max_output, flags }))
        })
    }

    /// Appends the body of an IOCTL request to a message that ends with its header.
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

/// IOCTL response: has the output of the control (MS-SMB2 2.2.32).
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
    /// Reads the body of an IOCTL response, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field or is of another structure, or a region is outside of it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        parse::with(body(bytes), |input| {
            let (i, (_, _, code, file_id, _, offset, len, _)) = (
                structure_size(49, "ioctl.StructureSize"),
                skip(2, "ioctl.Reserved"),
                u32("ioctl.CtlCode").map(FsctlCode),
                file_id("ioctl.FileId"),
                skip(8, "ioctl.Input"),
                size32("ioctl.OutputOffset"),
                size32("ioctl.OutputCount"),
                skip(8, "ioctl.Flags"),
            )
                .parse(input)?;
            let output = region(input, offset, len, "ioctl.Buffer")?.bytes();
            Ok((i, Self { code, file_id, output }))
        })
    }

    /// Appends the body of an IOCTL response to a message that ends with its header.
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
