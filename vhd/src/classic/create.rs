//! Making new images.

use std::sync::Arc;

use block_io::File;

use super::{
    MAX_DISK, SECTOR,
    footer::{self, Footer, Kind},
    header::{self, Header, Locator},
    load::Info,
    places::{ABSOLUTE, RELATIVE},
};
use crate::{Error, Guid, Result};

/// Block size unless told otherwise: what every program that makes dynamic images uses.
pub const DEFAULT_BLOCK_SIZE: u32 = 2 << 20;
/// Some readers take the disk's size from the geometry, which may be less, unless they know that
/// the maker does not. This is the maker that all of them know.
const CREATOR: [u8; 4] = *b"win ";
/// Where the header and the table of images made here are.
const HEADER_AT: u64 = footer::LEN as u64;
const TABLE_AT: u64 = HEADER_AT + header::LEN as u64;

/// The parent of a differencing image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Identity of the disk.
    pub id: Guid,
    /// When it was made: seconds since 2000.
    pub timestamp: u32,
    /// Its path from the folder of the child, with the separators of either system.
    pub relative_path: String,
}

/// The disk and the layout of an image that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of the disk: whole sectors, at most 2040 GiB.
    pub size: u64,
    /// All of the disk is in the file at once.
    pub fixed: bool,
    /// Bytes per block: a power of two from 512 KiB to 256 MiB.
    pub block_size: u32,
    /// Identity of the image; random if `None`.
    pub id: Option<Guid>,
    /// The parent, for a differencing image.
    pub parent: Option<Parent>,
}

impl CreateOptions {
    /// A dynamic image of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self { size, fixed: false, block_size: DEFAULT_BLOCK_SIZE, id: None, parent: None }
    }

    /// An empty differencing image of the disk that `parent` describes, found from the image's
    /// own folder at `relative_path`.
    pub fn child(parent: &Info, relative_path: &str) -> Self {
        let (id, timestamp) = (parent.id, parent.timestamp);
        let parent_of = Parent { id, timestamp, relative_path: relative_path.to_owned() };
        Self { parent: Some(parent_of), ..Self::new(parent.disk_size) }
    }

    /// Whether an image can be made of these.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] saying which value is wrong and what it may be.
    pub fn validate(&self) -> Result<()> {
        let invalid = |why: String| Err(Error::InvalidOptions(why));
        if self.size == 0 || self.size > MAX_DISK || !self.size.is_multiple_of(SECTOR) {
            return invalid(format!("disk size {}: whole sectors, at most 2040 GiB", self.size));
        }
        let block = self.block_size;
        if !block.is_power_of_two() || !(512 << 10..=256 << 20).contains(&block) {
            return invalid(format!("block size {block}: a power of two from 512 KiB to 256 MiB"));
        }
        match &self.parent {
            Some(_) if self.fixed => invalid("a differencing image is not fixed".into()),
            Some(parent) if parent.relative_path.len() > 4096 => {
                invalid("the parent's path is longer than 4096 bytes".into())
            }
            _ => Ok(()),
        }
    }
}

/// Replaces the content of `file` by a new, empty image and makes it durable. The footers are
/// written last, so that a crash leaves no image rather than a damaged one.
///
/// # Errors
/// [`Error::InvalidOptions`]; what the file says.
pub async fn create(file: Arc<dyn File>, options: &CreateOptions) -> Result<()> {
    options.validate()?;
    let kind = match (&options.parent, options.fixed) {
        (Some(_), _) => Kind::Differencing,
        (None, true) => Kind::Fixed,
        (None, false) => Kind::Dynamic,
    };
    let footer = Footer {
        kind,
        data_offset: if kind == Kind::Fixed { u64::MAX } else { HEADER_AT },
        timestamp: footer::now(),
        creator: CREATOR,
        original_size: options.size,
        size: options.size,
        id: options.id.unwrap_or_else(Guid::random),
        saved_state: false,
    };
    file.set_len(0).await?;
    let end = if kind == Kind::Fixed {
        file.set_len(options.size).await?;
        match file.allocate(0..options.size).await {
            Ok(()) | Err(block_io::Error::Unsupported(_)) => {}
            Err(error) => return Err(error.into()),
        }
        options.size
    } else {
        write_blocks(&*file, options).await?
    };
    file.flush().await?;
    if kind != Kind::Fixed {
        file.write_at(0, &footer.encode()).await?;
    }
    file.write_at(end, &footer.encode()).await?;
    file.flush().await?;
    Ok(())
}

/// Writes header, table and the parent's paths; returns where they end.
async fn write_blocks(file: &dyn File, options: &CreateOptions) -> Result<u64> {
    const STEP: u64 = 1 << 20;
    let entries = options.size.div_ceil(u64::from(options.block_size));
    let table_end = TABLE_AT + (entries * 4).next_multiple_of(SECTOR);
    let mut at = TABLE_AT;
    while at < table_end {
        let n = STEP.min(table_end - at);
        file.write_at(at, &vec![0xff; n as usize]).await?;
        at += n;
    }
    let mut header = Header {
        table_offset: TABLE_AT,
        // At most 4 Mi: 2040 GiB in blocks of 512 KiB.
        entries: entries as u32,
        block_size: options.block_size,
        parent_id: Guid::ZERO,
        parent_timestamp: 0,
        parent_name: String::new(),
        locators: Vec::new(),
    };
    let mut end = table_end;
    if let Some(parent) = &options.parent {
        header.parent_id = parent.id;
        header.parent_timestamp = parent.timestamp;
        let path = parent.relative_path.replace('/', "\\");
        header.parent_name = path.rsplit('\\').next().unwrap_or_default().to_owned();
        let dotted = path.starts_with("..\\") || path.starts_with(".\\");
        let relative = if dotted { path.clone() } else { format!(".\\{path}") };
        for (platform, path) in [(RELATIVE, relative), (ABSOLUTE, path)] {
            let mut bytes: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
            // Paths were validated to be short.
            let length = bytes.len() as u32;
            let space = (bytes.len() as u64).next_multiple_of(SECTOR);
            bytes.resize(space as usize, 0);
            file.write_at(end, &bytes).await?;
            header.locators.push(Locator { platform, space: space as u32, length, offset: end });
            end += space;
        }
    }
    file.write_at(HEADER_AT, &header.encode()).await?;
    Ok(end)
}
