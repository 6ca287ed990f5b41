//! Bodies that are only a structure size and two reserved bytes: LOGOFF, TREE_DISCONNECT, ECHO,
//! CANCEL and most of their responses (MS-SMB2 2.2.7, 2.2.8, 2.2.11, 2.2.12, 2.2.28-2.2.30).

use nom::Parser;

use crate::{
    header::body,
    parse::{self, structure_size},
    wire::{Put, Result},
};

/// A body without content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Empty;

impl Empty {
    /// Reads the body; what follows its size is not looked at.
    ///
    /// # Errors
    /// The body ends within a field, or is of another structure.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        parse::run(body(bytes), structure_size(4, "empty.StructureSize").map(|()| Self))
    }

    /// Appends the body to a message that ends with its header.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.put_u16(4);
        out.put_u16(0);
    }
}
