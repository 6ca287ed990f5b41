//! The image formats there are, and opening a disk in any of them.

use std::{fmt, path::Path, str::FromStr, sync::Arc};

use block_io::{Disk, File, RawDisk};

use crate::{
    Result,
    classic::{self, Vhd},
    qcow2::Qcow2,
    vhdx::{OpenOptions, Vhdx},
    vmdk::Vmdk,
};

/// How the bytes of a disk are arranged in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// VHDX (MS-VHDX): read and written.
    Vhdx,
    /// The format before it, with a footer.
    Vhd,
    /// QEMU's; read, or written whole.
    Qcow2,
    /// VMware's; read.
    Vmdk,
}

impl Format {
    /// The format that a path's ending names, the same in every program: `.vhdx` and `.avhdx`; `.vhd`,
    /// `.avhd` and `.vpc`; `.qcow2` and `.qcow`; `.vmdk`; raw for `.raw`, `.img`, `.bin` and `.iso`. A
    /// set (`.vhds`, [`crate::set`]) is no image. Of raw ones see [`crate::probe`].
    pub fn from_path(path: impl AsRef<Path>) -> Option<Self> {
        let ending = path.as_ref().extension()?.to_str()?.to_ascii_lowercase();
        match ending.as_str() {
            "vhdx" | "avhdx" => Some(Self::Vhdx),
            "vhd" | "vpc" | "avhd" => Some(Self::Vhd),
            "qcow2" | "qcow" => Some(Self::Qcow2),
            "vmdk" => Some(Self::Vmdk),
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
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
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
            "qcow2" => Ok(Self::Qcow2),
            "vmdk" => Ok(Self::Vmdk),
            _ => Err(format!("unknown image format {name:?}: raw, vhdx, vhd, qcow2 or vmdk")),
        }
    }
}

/// Opens `file` as a disk of this format, for reading only if the file is or the format is one that
/// is only read. An image that is more than its file is opened by [`crate::chain::open_disk`].
///
/// # Errors
/// What opening an image of the format says.
pub async fn open_disk(file: Arc<dyn File>, format: Format) -> Result<Arc<dyn Disk>> {
    Ok(match format {
        Format::Raw => Arc::new(RawDisk::open(file, 512).await?),
        Format::Vhdx => Arc::new(Vhdx::open(file, OpenOptions::default()).await?),
        Format::Vhd => Arc::new(Vhd::open(file, classic::OpenOptions::default()).await?),
        Format::Qcow2 => Arc::new(Qcow2::open(file, None).await?),
        Format::Vmdk => Arc::new(Vmdk::open(file).await?),
    })
}
