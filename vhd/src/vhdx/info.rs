//! Describing an image without opening it as a disk.

use std::sync::Arc;

use block_io::File;

use super::{
    items::{UserItemInfo, described},
    load::{Loaded, load},
    locator::ParentLocator,
    scan::scan,
};
use crate::{Guid, Result};

/// What kind of image it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Blocks are allocated when they are written.
    Dynamic,
    /// All blocks are allocated.
    Fixed,
    /// Only differences to a parent are held.
    Differencing {
        /// The parent locator's keys and values.
        parent: Vec<(String, String)>,
    },
}

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Dynamic, fixed or differencing.
    pub kind: Kind,
    /// Bytes of the disk.
    pub disk_size: u64,
    /// Bytes of the file, after log replay.
    pub file_size: u64,
    /// Bytes per block.
    pub block_size: u32,
    /// 512 or 4096.
    pub logical_sector: u32,
    /// 512 or 4096.
    pub physical_sector: u32,
    /// Identity of the disk.
    pub disk_id: Guid,
    /// Identity of the disk's content, renewed by each session that changes it.
    pub data_write_id: Guid,
    /// The program that made the file.
    pub creator: String,
    /// Whether a log waits to be replayed: the image was not closed, or is in use.
    pub log_pending: bool,
    /// Payload blocks of the disk.
    pub blocks: u64,
    /// Payload blocks stored in the file, wholly or in part.
    pub allocated_blocks: u64,
    /// Metadata items of users.
    pub user_items: Vec<UserItemInfo>,
}

/// Who an image is and whom it builds on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Identity of the disk, the same in a whole chain.
    pub disk_id: Guid,
    /// Identity of the content, renewed by each session that changes it.
    pub data_write_id: Guid,
    /// Where the parent of a differencing image is.
    pub parent: Option<ParentLocator>,
}

/// Reads who an image is, without its block table. Never writes.
///
/// # Errors
/// [`Error::Damaged`](crate::Error::Damaged) for what is no such image; what the file says.
pub async fn identity(file: Arc<dyn File>) -> Result<Identity> {
    let image = load(file).await?;
    Ok(Identity {
        disk_id: image.metadata.disk_id,
        data_write_id: image.header.1.data_write,
        parent: image.metadata.parent,
    })
}

/// Reads what an image is. Never writes.
///
/// # Errors
/// [`Error::Damaged`](crate::Error::Damaged) for what is no such image; what the file says.
pub async fn info(file: Arc<dyn File>) -> Result<Info> {
    let image = load(file).await?;
    let allocated_blocks = count(&image).await?;
    let user_items = described(&image).await?;
    let metadata = &image.metadata;
    let kind = match &metadata.parent {
        Some(parent) => Kind::Differencing { parent: parent.entries.clone() },
        None if metadata.leave_allocated => Kind::Fixed,
        None => Kind::Dynamic,
    };
    Ok(Info {
        kind,
        disk_size: metadata.disk_size,
        file_size: image.file_len,
        block_size: metadata.block_size,
        logical_sector: metadata.logical_sector,
        physical_sector: metadata.physical_sector,
        disk_id: metadata.disk_id,
        data_write_id: image.header.1.data_write,
        creator: image.identifier.creator.clone(),
        log_pending: image.overlay.is_some(),
        blocks: image.layout.blocks,
        allocated_blocks,
        user_items,
    })
}

async fn count(image: &Loaded) -> Result<u64> {
    let mut allocated = 0;
    let seen = |index, entry: super::bat::RawEntry| {
        allocated += u64::from(entry.is_stored() && image.layout.block(index).is_some());
    };
    scan(image, |_| Ok(()), seen, |_, _| {}).await?;
    Ok(allocated)
}
