//! Making new images.

use std::sync::Arc;

use block_io::File;

use super::{
    HEADER_OFFSETS, MAX_DISK, MIB, REGION_TABLE_OFFSETS,
    bat::{BatLayout, BlockState, ENTRY_SIZE, PAGE_ENTRIES, PAGE_SIZE, RawEntry},
    header::{FileIdentifier, Header},
    info::Info,
    items::{self, UserItem},
    locator::ParentLocator,
    metadata::Metadata,
    region::{BAT_REGION, METADATA_REGION, Region, RegionTable},
};
use crate::{Error, Guid, Result};

/// Block size of dynamic images unless told otherwise.
pub const DEFAULT_BLOCK_SIZE: u32 = 32 << 20;

/// Block size of differencing images unless told otherwise: the first write to a block copies the
/// rest of it from the parent.
pub const CHILD_BLOCK_SIZE: u32 = 2 << 20;

/// The disk and the layout of an image that is to be made.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Bytes of the disk: whole logical sectors, at most 64 TiB.
    pub size: u64,
    /// Allocate every block at once.
    pub fixed: bool,
    /// Bytes per block: a power of two from 1 MiB to 256 MiB.
    pub block_size: u32,
    /// 512 or 4096.
    pub logical_sector: u32,
    /// 512 or 4096.
    pub physical_sector: u32,
    /// Bytes of the log, a multiple of 1 MiB; 0: so many that one commit holds the table, or 4 MiB of
    /// it.
    pub log_size: u32,
    /// Identity of the disk; random if `None`.
    pub disk_id: Option<Guid>,
    /// Where the parent is, for a differencing image.
    pub parent: Option<ParentLocator>,
    /// Metadata items of users; of a differencing image those that it is given by its parent
    /// ([`super::inherited_items`]).
    pub user_items: Vec<UserItem>,
}

impl CreateOptions {
    /// A dynamic image of `size` bytes with the usual parameters.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            fixed: false,
            block_size: DEFAULT_BLOCK_SIZE,
            logical_sector: 512,
            physical_sector: 4096,
            log_size: 0,
            disk_id: None,
            parent: None,
            user_items: Vec::new(),
        }
    }

    /// An empty differencing image of the disk that `parent` describes, found from the image's
    /// own folder at `relative_path` (with the separators of either system). The disk keeps its
    /// identity (MS-VHDX 2.6.2.3).
    pub fn child(parent: &Info, relative_path: &str) -> Self {
        Self {
            size: parent.disk_size,
            block_size: CHILD_BLOCK_SIZE,
            logical_sector: parent.logical_sector,
            physical_sector: parent.physical_sector,
            disk_id: Some(parent.disk_id),
            parent: Some(ParentLocator::vhdx(parent.data_write_id, relative_path)),
            ..Self::new(parent.disk_size)
        }
    }

    /// These options with the metadata items that a child of the image in `parent` is given.
    ///
    /// # Errors
    /// As [`super::inherited_items`].
    pub async fn inheriting(self, parent: Arc<dyn File>) -> Result<Self> {
        Ok(Self { user_items: super::inherited_items(parent).await?, ..self })
    }

    /// Whether an image can be made of these: to be asked before a file is made for it.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] saying which value is wrong and what it may be.
    pub fn validate(&self) -> Result<()> {
        self.metadata().map(drop)
    }

    fn metadata(&self) -> Result<Metadata> {
        let invalid = |why: String| Err(Error::InvalidOptions(why));
        if ![512, 4096].contains(&self.logical_sector) {
            return invalid(format!("logical sector size {}: 512 or 4096", self.logical_sector));
        }
        if ![512, 4096].contains(&self.physical_sector) {
            return invalid(format!("physical sector size {}: 512 or 4096", self.physical_sector));
        }
        let block = u64::from(self.block_size);
        if !block.is_power_of_two() || !(MIB..=256 * MIB).contains(&block) {
            return invalid(format!("block size {block}: a power of two from 1 MiB to 256 MiB"));
        }
        if self.size == 0 || self.size > MAX_DISK {
            return invalid(format!("disk size {}: more than nothing, at most 64 TiB", self.size));
        }
        if !self.size.is_multiple_of(u64::from(self.logical_sector)) {
            let sector = self.logical_sector;
            return invalid(format!("disk size {} is not whole {sector}-byte sectors", self.size));
        }
        let log = u64::from(self.log_size);
        if !log.is_multiple_of(MIB) || self.log_size > super::load::MAX_REPLAY {
            return invalid(format!("log size {log}: a multiple of 1 MiB, at most 64 MiB"));
        }
        if self.fixed && self.parent.is_some() {
            return invalid("a differencing image is not fixed".into());
        }
        Ok(Metadata {
            block_size: self.block_size,
            leave_allocated: self.fixed,
            has_parent: self.parent.is_some(),
            disk_size: self.size,
            disk_id: self.disk_id.unwrap_or_else(Guid::random),
            logical_sector: self.logical_sector,
            physical_sector: self.physical_sector,
            parent: self.parent.clone(),
        })
    }
}

/// Replaces the content of `file` by a new, empty image and makes it durable. The file
/// identifier is written last, so that a crash leaves no image rather than a damaged one.
///
/// A fixed image's space is reserved where the file can; it reads as zeros.
///
/// # Errors
/// [`Error::InvalidOptions`]; what the file says.
pub async fn create(file: Arc<dyn File>, options: &CreateOptions) -> Result<()> {
    let metadata = options.metadata()?;
    let items = items::append(metadata.encode(), &options.user_items)?;
    let metadata_length = (items.len() as u64).next_multiple_of(MIB);
    let layout = BatLayout::new(&metadata);
    let log_offset = MIB;
    let log_size = match options.log_size {
        0 => log_size(&layout),
        given => given,
    };
    let metadata_offset = log_offset + u64::from(log_size);
    let bat_offset = metadata_offset + metadata_length;
    let bat_length = (layout.entries * ENTRY_SIZE).next_multiple_of(MIB);
    let payload = bat_offset + bat_length;

    // ext4 writes a file that was cut to nothing out when it is closed, and has its user wait.
    if file.len().await? > 0 {
        file.set_len(0).await?;
    }
    let blocks = if options.fixed { layout.blocks } else { 0 };
    let len = payload + blocks * layout.block_size;
    file.set_len(len).await?;
    if options.fixed {
        match file.allocate(payload..len).await {
            Ok(()) | Err(block_io::Error::Unsupported(_)) => {}
            Err(error) => return Err(error.into()),
        }
        write_fixed_bat(&*file, &layout, bat_offset, payload).await?;
    }
    file.write_at(metadata_offset, &items).await?;
    let region = |id, offset, length: u64| Region {
        id,
        offset,
        // At most 64 Mi entries of 8 bytes and their bitmap entries: under 1 GiB.
        length: length as u32,
        required: true,
    };
    let regions = vec![
        region(BAT_REGION, bat_offset, bat_length),
        region(METADATA_REGION, metadata_offset, metadata_length),
    ];
    let table = RegionTable { regions }.encode();
    for at in REGION_TABLE_OFFSETS {
        file.write_at(at, &table).await?;
    }
    let mut header = Header {
        sequence: 0,
        file_write: Guid::random(),
        data_write: Guid::random(),
        log: Guid::ZERO,
        log_version: 0,
        log_length: log_size,
        log_offset,
    };
    for at in HEADER_OFFSETS {
        file.write_at(at, &header.encode()).await?;
        header.sequence += 1;
    }
    file.flush().await?;
    let creator = concat!("Bulkhead ", env!("CARGO_PKG_VERSION")).to_owned();
    let mut identifier = FileIdentifier { creator }.encode();
    identifier.resize(PAGE_SIZE as usize, 0);
    file.write_at(0, &identifier).await?;
    file.flush().await?;
    Ok(())
}

/// Bytes of a log half of which holds the pages of the table, or a thousand of them: else writes all
/// over a large disk have to wait for one commit after the other.
fn log_size(layout: &BatLayout) -> u32 {
    const MOST_PAGES: u64 = 1000;
    let pages = layout.pages().min(MOST_PAGES);
    // A page has a descriptor of 32 bytes besides, in sectors of their own.
    let entry = pages * PAGE_SIZE + (pages / 100 + 1) * PAGE_SIZE;
    // At most 9 MiB.
    (2 * entry).next_multiple_of(MIB) as u32
}

/// Writes the table of a fixed image: every block present, one after the other.
async fn write_fixed_bat(
    file: &dyn File,
    layout: &BatLayout,
    bat_offset: u64,
    payload: u64,
) -> Result<()> {
    const PAGES_AT_ONCE: u64 = 256;
    let step = PAGE_ENTRIES * PAGES_AT_ONCE;
    let mut first = 0;
    while first < layout.entries {
        let count = step.min(layout.entries - first);
        let mut bytes = Vec::with_capacity((count * ENTRY_SIZE) as usize);
        for index in first..first + count {
            let entry = layout.block(index).map_or(RawEntry::default(), |block| {
                RawEntry::new(BlockState::FullyPresent, payload + block * layout.block_size)
            });
            bytes.extend(entry.0.to_le_bytes());
        }
        file.write_at(bat_offset + first * ENTRY_SIZE, &bytes).await?;
        first += count;
    }
    Ok(())
}
