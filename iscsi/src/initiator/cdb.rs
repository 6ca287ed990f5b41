//! Command descriptor blocks (SBC-3 5, SPC-4 6), as an initiator writes them.

/// A descriptor block of 16 bytes; shorter commands end in zeros.
pub(super) type Cdb = [u8; 16];

fn long(opcode: u8, lba: u64, blocks: u32) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

pub(super) fn read(lba: u64, blocks: u32) -> Cdb {
    long(0x88, lba, blocks)
}

pub(super) fn write(lba: u64, blocks: u32) -> Cdb {
    long(0x8a, lba, blocks)
}

/// SYNCHRONIZE CACHE (16) of all.
pub(super) fn synchronize() -> Cdb {
    long(0x91, 0, 0)
}

/// SYNCHRONIZE CACHE (10) of all.
pub(super) fn synchronize_short() -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = 0x35;
    cdb
}

/// WRITE SAME (16) of zeros: `unmap` lets the unit forget them, `no_data` (NDOB) means that no block
/// comes with it.
pub(super) fn write_same(lba: u64, blocks: u32, unmap: bool, no_data: bool) -> Cdb {
    let mut cdb = long(0x93, lba, blocks);
    cdb[1] = u8::from(unmap) << 3 | u8::from(no_data);
    cdb
}

pub(super) fn unmap(length: u16) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = 0x42;
    cdb[7..9].copy_from_slice(&length.to_be_bytes());
    cdb
}

/// The parameter list of UNMAP (SBC-3 5.32).
pub(super) fn unmap_list(ranges: &[(u64, u32)]) -> Vec<u8> {
    let length = u16::try_from(ranges.len() * 16).unwrap_or(u16::MAX);
    let mut out = Vec::with_capacity(8 + usize::from(length));
    out.extend((length + 6).to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend([0; 4]);
    for (lba, blocks) in ranges {
        out.extend(lba.to_be_bytes());
        out.extend(blocks.to_be_bytes());
        out.extend([0; 4]);
    }
    out
}

fn service(action: u8, lba: u64, allocation: u32) -> Cdb {
    let mut cdb = long(0x9e, lba, allocation);
    cdb[1] = action;
    cdb
}

/// READ CAPACITY (16).
pub(super) fn read_capacity() -> Cdb {
    service(0x10, 0, 32)
}

/// GET LBA STATUS.
pub(super) fn lba_status(lba: u64, allocation: u32) -> Cdb {
    service(0x12, lba, allocation)
}

pub(super) fn test_unit_ready() -> Cdb {
    [0; 16]
}

/// INQUIRY, of a page of vital product data if one is named.
pub(super) fn inquiry(page: Option<u8>, allocation: u16) -> Cdb {
    let mut cdb = [0; 16];
    cdb[0] = 0x12;
    cdb[1] = u8::from(page.is_some());
    cdb[2] = page.unwrap_or(0);
    cdb[3..5].copy_from_slice(&allocation.to_be_bytes());
    cdb
}

/// MODE SENSE (6) of all pages, of which the header says whether the unit may be written.
pub(super) fn mode_sense() -> Cdb {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[2], cdb[4]) = (0x1a, 0x08, 0x3f, 192);
    cdb
}

/// REPORT TARGET PORT GROUPS.
pub(super) fn report_groups(allocation: u32) -> Cdb {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0xa3, 0x0a);
    cdb[6..10].copy_from_slice(&allocation.to_be_bytes());
    cdb
}

/// REPORT SUPPORTED OPERATION CODES of one command.
pub(super) fn supported(opcode: u8, allocation: u32) -> Cdb {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[2], cdb[3]) = (0xa3, 0x0c, 1, opcode);
    cdb[6..10].copy_from_slice(&allocation.to_be_bytes());
    cdb
}

/// PERSISTENT RESERVE IN.
pub(super) fn reserve_in(action: u8, allocation: u16) -> Cdb {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x5e, action);
    cdb[7..9].copy_from_slice(&allocation.to_be_bytes());
    cdb
}

/// PERSISTENT RESERVE OUT.
pub(super) fn reserve_out(action: u8, kind: u8, length: u32) -> Cdb {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[2]) = (0x5f, action, kind);
    cdb[5..9].copy_from_slice(&length.to_be_bytes());
    cdb
}
