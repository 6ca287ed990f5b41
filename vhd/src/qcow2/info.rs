//! Describing an image without opening it as a disk.

use std::sync::Arc;

use block_io::File;

use super::{
    disk::{header, table},
    entry::l2_offset,
    header::{DIRTY, Header},
};
use crate::{Damage, Fault, Result, Structure, bytes::BigEndian};

/// Internal snapshots that are believed in, as QEMU does.
const MAX_SNAPSHOTS: u32 = 65_536;
/// Longest entry of the snapshot table that is read.
const MAX_ENTRY: usize = 64 << 10;

/// An internal snapshot (QCOW2, "Snapshots").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number, as text.
    pub id: String,
    /// Name of the snapshot, as its maker gave it.
    pub name: String,
    /// When it was taken, in seconds since 1970.
    pub seconds: u32,
    /// Bytes of memory state kept with it.
    pub vm_state: u32,
    /// Its L1 table.
    pub(super) l1: (u64, u32),
}

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// What its header says.
    pub header: Header,
    /// Bytes of the file.
    pub file_size: u64,
    /// Tables of clusters that there are.
    pub tables: u64,
    /// Internal snapshots; they are left out when reading, which sees the active state.
    pub snapshots: Vec<Snapshot>,
    /// Reference counts may be wrong: it was not closed in an orderly way.
    pub dirty: bool,
}

/// Reads what an image is.
///
/// # Errors
/// [`Error::Damaged`](crate::Error::Damaged) for what is no such image; what the file says.
pub async fn info(file: Arc<dyn File>) -> Result<Info> {
    let (header, file_size) = header(&*file).await?;
    let entries = header.l1_needed();
    let l1 = table(&*file, Structure::L1Table, header.l1_offset, entries).await?;
    let tables = l1.iter().filter(|raw| l2_offset(**raw) != 0).count() as u64;
    let snapshots = snapshots(&*file, &header).await?;
    let dirty = header.incompatible & DIRTY != 0;
    Ok(Info { header, file_size, tables, snapshots, dirty })
}

/// Reads the snapshot table.
pub(super) async fn snapshots(file: &dyn File, header: &Header) -> Result<Vec<Snapshot>> {
    if header.snapshots > MAX_SNAPSHOTS {
        let (field, value) = ("nb_snapshots", header.snapshots.into());
        let fault = Fault::Field { field, value, rule: "at most 65536" };
        return Err(Damage::new(Structure::Qcow2Header, 60, fault).into());
    }
    let mut found = Vec::new();
    let mut at = header.snapshots_offset;
    for _ in 0..header.snapshots {
        let mut bytes = vec![0; MAX_ENTRY];
        let got = file.read_at(at, &mut bytes).await?;
        let bytes = &bytes[..got];
        let cut = || Damage::new(Structure::Snapshots, at, Fault::Truncated);
        let word = |at: usize| usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1]);
        if bytes.len() < 40 {
            return Err(cut().into());
        }
        let extra = bytes.u32_be(36) as usize;
        let (id_len, name_len) = (word(12), word(14));
        let id_at = 40usize.saturating_add(extra);
        let text = |from: usize, len: usize| {
            let bytes = bytes.get(from..from.saturating_add(len))?;
            Some(String::from_utf8_lossy(bytes).into_owned())
        };
        let name_at = id_at.saturating_add(id_len);
        let (Some(id), Some(name)) = (text(id_at, id_len), text(name_at, name_len)) else {
            return Err(cut().into());
        };
        found.push(Snapshot {
            id,
            name,
            seconds: bytes.u32_be(16),
            vm_state: bytes.u32_be(32),
            l1: (bytes.u64_be(0), bytes.u32_be(8)),
        });
        at += (name_at + name_len).next_multiple_of(8) as u64;
    }
    Ok(found)
}
