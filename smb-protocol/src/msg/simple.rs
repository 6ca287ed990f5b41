//! Bodies that are only a structure size and two reserved bytes: LOGOFF, TREE_DISCONNECT, ECHO,
//! CANCEL and most of their responses (MS-SMB2 2.2.7, 2.2.8, 2.2.11, 2.2.12, 2.2.28-2.2.30).

use crate::wire::{Put, Reader, Result};

/// A body without content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Empty;

impl Empty {
    /// Reads the body.
    pub fn parse(body: &[u8]) -> Result<Self> {
        Reader::new(body).structure_size(4, "empty.StructureSize").map(|()| Self)
    }

    /// Appends the body.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.put_u16(4);
        out.put_u16(0);
    }
}
