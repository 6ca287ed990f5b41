//! Metadata items of one's own (MS-VHDX 2.6.1): what a program keeps with an image, by a GUID.
//!
//! ```text
//!  region:  | table | items ...     gap      |        a value goes to a gap, or to the end of a copy
//!               │                    ▲       |        of the region that is larger
//!               └── one commit ──────┘
//! ```
//!
//! Until the commit nothing names the new bytes, so a crash leaves the old items or the new ones.

use std::sync::Arc;

use block_io::File;

use super::{
    MIB,
    edit::{Editor, copy_range, gap},
    load::{Loaded, load, read_up_to},
    metadata::{self, Entry, MAX_USER_ENTRIES, Table},
    region::METADATA_REGION,
    space::SpaceMap,
};
use crate::{Damage, Error, Fault, Guid, Result, Structure};

/// Bytes of the values of all items of the disk together, at most: they are held in memory when an
/// image is forked or merged.
pub const MAX_INHERITED: u64 = 64 << 20;

/// A user metadata item. No program has to know it to use the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserItem {
    /// Identifier of the item (MS-VHDX 2.6.1.2).
    pub id: Guid,
    /// It belongs to the disk: a child that is made has it too, and a merge takes the child's. Else
    /// it belongs to the file.
    pub of_disk: bool,
    /// Its bytes, at most 1 MiB.
    pub value: Vec<u8>,
}

/// What the table says of a user metadata item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserItemInfo {
    /// Identifier of the item (MS-VHDX 2.6.1.2).
    pub id: Guid,
    /// It belongs to the disk rather than to the file.
    pub of_disk: bool,
    /// Bytes of its value.
    pub length: u32,
}

/// The region's place and table of a loaded image.
pub(super) async fn table_of(image: &Loaded) -> Result<(u64, u32, Table)> {
    let Some(region) = image.regions.find(METADATA_REGION) else {
        let fault = Fault::Missing("metadata region");
        let at = super::REGION_TABLE_OFFSETS[0];
        return Err(Damage::new(Structure::RegionTable(1), at, fault).into());
    };
    let bytes = read_up_to(&*image.view, region.offset, metadata::TABLE_SIZE).await?;
    Ok((region.offset, region.length, Table::parse(&bytes, region.offset, region.length)?))
}

/// The user items of a loaded image, without their values.
pub(super) async fn described(image: &Loaded) -> Result<Vec<UserItemInfo>> {
    let (_, _, table) = table_of(image).await?;
    let users = table.entries.iter().filter(|entry| entry.is_user);
    let info = |e: &Entry| UserItemInfo { id: e.id, of_disk: e.is_virtual_disk, length: e.length };
    Ok(users.map(info).collect())
}

/// Reads a user metadata item of the VHDX in `file`; `None` if it has none of this name. Never
/// writes.
///
/// # Errors
/// What the image says.
pub async fn user_item(file: Arc<dyn File>, id: Guid) -> Result<Option<UserItem>> {
    let image = load(file).await?;
    let (base, _, table) = table_of(&image).await?;
    match table.entries.iter().find(|entry| entry.is_user && entry.id == id) {
        Some(entry) => read(&image, base, entry).await.map(Some),
        None => Ok(None),
    }
}

/// Reads the user metadata items that belong to the disk: those that a child of the image is given
/// (MS-VHDX 2.6.1.2). Never writes.
///
/// # Errors
/// [`Error::Unsupported`] if they have more than [`MAX_INHERITED`] bytes; what the image says.
pub async fn inherited_items(file: Arc<dyn File>) -> Result<Vec<UserItem>> {
    let image = load(file).await?;
    let (base, _, table) = table_of(&image).await?;
    let wanted: Vec<&Entry> =
        table.entries.iter().filter(|entry| entry.is_user && entry.is_virtual_disk).collect();
    let bytes: u64 = wanted.iter().map(|entry| u64::from(entry.length)).sum();
    if bytes > MAX_INHERITED {
        return Err(Error::Unsupported(format!("metadata items of the disk of {bytes} bytes")));
    }
    let mut items = Vec::with_capacity(wanted.len());
    for entry in wanted {
        items.push(read(&image, base, entry).await?);
    }
    Ok(items)
}

async fn read(image: &Loaded, base: u64, entry: &Entry) -> Result<UserItem> {
    let at = base + u64::from(entry.offset);
    // At most 1 MiB by the table's rules.
    let value = read_up_to(&*image.view, at, entry.length as usize).await?;
    if value.len() != entry.length as usize {
        return Err(Damage::new(Structure::MetadataItem(entry.id), at, Fault::Truncated).into());
    }
    Ok(UserItem { id: entry.id, of_disk: entry.is_virtual_disk, value })
}

/// Puts a user metadata item into the VHDX in `file`, in place of one of the same name. The image's
/// content has another identity after it (MS-VHDX 2.2.2), so its children refuse it.
///
/// # Errors
/// [`Error::InvalidOptions`] if the value is too long or there are too many items; what the image
/// says.
pub async fn set_user_item(file: Arc<dyn File>, item: &UserItem) -> Result<()> {
    change(file, |entry| entry.id == item.id, std::slice::from_ref(item)).await
}

/// Takes a user metadata item out of the VHDX in `file`; returns whether there was one. If so the
/// image's content has another identity after it.
///
/// # Errors
/// What the image says.
pub async fn remove_user_item(file: Arc<dyn File>, id: Guid) -> Result<bool> {
    if user_item(file.clone(), id).await?.is_none() {
        return Ok(false);
    }
    change(file, |entry| entry.id == id, &[]).await?;
    Ok(true)
}

async fn change(file: Arc<dyn File>, out: impl Fn(&Entry) -> bool, add: &[UserItem]) -> Result<()> {
    let mut editor = Editor::open(file).await?;
    let mut space = editor.space().await?;
    stage(&mut editor, &mut space, out, add).await?;
    editor.begin(Some(Guid::random())).await?;
    editor.commit(&space).await?;
    editor.finish().await.map(drop)
}

/// Gives the image the items of the disk that another has, in place of its own. If that changes
/// anything, `content` is the identity of its content from then on.
pub(crate) async fn replace_inherited(
    file: Arc<dyn File>,
    items: &[UserItem],
    content: Guid,
) -> Result<()> {
    if inherited_items(file.clone()).await? == items {
        return Ok(());
    }
    let mut editor = Editor::open(file).await?;
    let mut space = editor.space().await?;
    stage(&mut editor, &mut space, |entry| entry.is_virtual_disk, items).await?;
    editor.begin(Some(content)).await?;
    editor.commit(&space).await?;
    editor.finish().await.map(drop)
}

/// Writes the values of `add` to where nothing is and stages a table that has them, without the
/// user items that are `out`.
async fn stage(
    editor: &mut Editor,
    space: &mut SpaceMap,
    out: impl Fn(&Entry) -> bool,
    add: &[UserItem],
) -> Result<()> {
    let (base, old_length, old) = table_of(&editor.image).await?;
    let kept = old.entries.iter().filter(|entry| !(entry.is_user && out(entry)));
    let table = with(kept.copied().collect(), add)?;
    // What is taken out stays in its place until the commit.
    let mut taken: Vec<Entry> = old.entries.clone();
    if let Some(placed) = place(&mut taken, add, old_length) {
        let table = named(table, &placed);
        for (entry, item) in placed.iter().zip(add) {
            editor.file().write_at(base + u64::from(entry.offset), &item.value).await?;
        }
        return editor.stage(base, &table.encode()).await;
    }
    let more: u64 = add.iter().map(|item| (item.value.len() as u64).next_multiple_of(4096)).sum();
    let larger = (u64::from(old_length) + more).next_multiple_of(MIB);
    let Ok(length) = u32::try_from(larger) else { return Err(too_many()) };
    let to = editor.take_space(space, larger).await?;
    copy_range(&**editor.file(), base..base + u64::from(old_length), to).await?;
    let mut taken: Vec<Entry> = old.entries;
    let placed = place(&mut taken, add, length).ok_or_else(too_many)?;
    for (entry, item) in placed.iter().zip(add) {
        editor.file().write_at(to + u64::from(entry.offset), &item.value).await?;
    }
    editor.file().write_at(to, &named(table, &placed).encode()).await?;
    editor.move_region(METADATA_REGION, to, length).await
}

fn too_many() -> Error {
    Error::InvalidOptions(format!(
        "a VHDX has at most {MAX_USER_ENTRIES} metadata items of users, each of 1 MiB at most"
    ))
}

/// A table of the entries that stay and of the items to come, which have no place yet.
fn with(mut entries: Vec<Entry>, add: &[UserItem]) -> Result<Table> {
    entries.extend(add.iter().map(|item| Entry {
        id: item.id,
        offset: 0,
        length: item.value.len() as u32,
        is_user: true,
        is_virtual_disk: item.of_disk,
        is_required: false,
    }));
    let users = entries.iter().filter(|entry| entry.is_user).count();
    let long = add.iter().any(|item| item.value.len() as u64 > MIB);
    if users > MAX_USER_ENTRIES || long { Err(too_many()) } else { Ok(Table { entries }) }
}

/// The table, whose last entries are those that were given a place.
fn named(mut table: Table, placed: &[Entry]) -> Table {
    let first = table.entries.len() - placed.len();
    for (entry, placed) in table.entries[first..].iter_mut().zip(placed) {
        entry.offset = placed.offset;
    }
    table
}

/// Finds gaps for the items among the entries that are taken, or `None` if there is no room.
fn place(taken: &mut Vec<Entry>, add: &[UserItem], region_len: u32) -> Option<Vec<Entry>> {
    let mut placed = Vec::with_capacity(add.len());
    for entry in with(Vec::new(), add).ok()?.entries {
        let offset = match entry.length {
            0 => 0,
            length => gap(taken.iter(), region_len, length as usize)?,
        };
        let entry = Entry { offset, ..entry };
        taken.push(entry);
        placed.push(entry);
    }
    Some(placed)
}

/// The first bytes of a metadata region that has these items besides what `region` has.
pub(super) fn append(region: Vec<u8>, add: &[UserItem]) -> Result<Vec<u8>> {
    if add.is_empty() {
        return Ok(region);
    }
    let old = Table::parse(&region, 0, region.len() as u32)?;
    let table = with(old.entries.clone(), add)?;
    let mut taken = old.entries;
    let placed = place(&mut taken, add, u32::MAX).ok_or_else(too_many)?;
    let mut region = region;
    for (entry, item) in placed.iter().zip(add) {
        let end = entry.offset as usize + item.value.len();
        if region.len() < end {
            region.resize(end, 0);
        }
        region[entry.offset as usize..end].copy_from_slice(&item.value);
    }
    region[..metadata::TABLE_SIZE].copy_from_slice(&named(table, &placed).encode());
    Ok(region)
}
