//! The image formats there are, and opening a disk in any of them.

use std::{fmt, path::Path, str::FromStr, sync::Arc};

use block_io::{Disk, File, RawDisk};

use crate::{
    Result,
    classic::{self, Vhd},
    vhdx::{OpenOptions, Vhdx},
};

/// An image format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// MS-VHDX.
    Vhdx,
    /// The format before it, with a footer.
    Vhd,
}

impl Format {
    /// The format that a path's ending names: `.vhdx`, `.vhd`, or raw for `.raw`, `.img`, `.bin` and `.iso`.
    pub fn from_path(path: impl AsRef<Path>) -> Option<Self> {
        let ending = path.as_ref().extension()?.to_str()?.to_ascii_lowercase();
        match ending.as_str() {
            "vhdx" => Some(Self::Vhdx),
            "vhd" | "vpc" => Some(Self::Vhd),
            "raw" | "img" | "bin" | "iso" => Some(Self::Raw),
            _ => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Vhdx => "vhdx",
            Self::Vhd => "vhd",
        })
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name.to_ascii_lowercase().as_str() {
            "raw" => Ok(Self::Raw),
            "vhdx" => Ok(Self::Vhdx),
            "vhd" | "vpc" => Ok(Self::Vhd),
            _ => Err(format!("unknown image format {name:?}: raw, vhdx or vhd")),
        }
    }
}

/// Opens `file` as a disk of this format, for reading only if the file is.
pub async fn open_disk(file: Arc<dyn File>, format: Format) -> Result<Arc<dyn Disk>> {
    Ok(match format {
        Format::Raw => Arc::new(RawDisk::open(file, 512).await?),
        Format::Vhdx => Arc::new(Vhdx::open(file, OpenOptions::default()).await?),
        Format::Vhd => Arc::new(Vhd::open(file, classic::OpenOptions::default()).await?),
    })
}
