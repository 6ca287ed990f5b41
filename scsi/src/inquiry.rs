//! INQUIRY: what a logical unit says of itself (SPC-4 6.6, 7.8; SBC-3 6.6).

use crate::{
    cdb::TABLE,
    copy,
    ports::Ports,
    refusal::Refusal,
    unit::{
        MAX_COMPARE, MAX_SAME, MAX_TRANSFER, MAX_UNMAP, MAX_UNMAP_DESCRIPTORS, Provisioning, Unit,
        threshold_exponent,
    },
};

/// T10 VENDOR IDENTIFICATION.
const VENDOR: &[u8; 8] = b"BULKHEAD";
const REVISION: &[u8; 4] = b"0001";
/// SAM-5, SPC-4, SBC-3, no version claimed of any.
const STANDARDS: [u16; 3] = [0x00a0, 0x0460, 0x04c0];

const PAGES: [u8; 9] = [0x00, 0x80, 0x83, 0x86, 0x87, 0x8f, 0xb0, 0xb1, 0xb2];

/// PERIPHERAL QUALIFIER and type where there is no logical unit of that number: LUN 0 is one that
/// could be there, of others the target knows nothing.
pub(crate) fn absent(number: Option<u16>) -> Vec<u8> {
    let mut out = standard_head(if number == Some(0) { 0x20 } else { 0x7f }, 0);
    out.extend(padded("", 16));
    out.extend(REVISION);
    finish_standard(out)
}

/// Standard INQUIRY data.
pub(crate) fn standard(unit: &Unit, ports: &Ports) -> Vec<u8> {
    let mut out = standard_head(0, u8::from(unit.options.removable) << 7);
    // TPGS, 3PC.
    out[5] = ports.tpgs() << 4 | 0x08;
    out.extend(padded(&unit.options.product, 16));
    out.extend(REVISION);
    finish_standard(out)
}

fn standard_head(peripheral: u8, removable: u8) -> Vec<u8> {
    // SPC-4; HISUP and the format of this; MULTIP; CMDQUE.
    let mut out = vec![peripheral, removable, 0x06, 0x12, 0, 0, 0x10, 0x02];
    out.extend(VENDOR);
    out
}

fn finish_standard(mut out: Vec<u8>) -> Vec<u8> {
    out.resize(58, 0);
    out.extend(STANDARDS.iter().flat_map(|it| it.to_be_bytes()));
    out.resize(96, 0);
    out[4] = (out.len() - 5) as u8;
    out
}

/// Printable ASCII, filled up with blanks (SPC-4 4.4.1).
fn padded(text: &str, length: usize) -> Vec<u8> {
    let plain = text.bytes().map(|byte| if (0x20..0x7f).contains(&byte) { byte } else { b'?' });
    let mut out: Vec<u8> = plain.take(length).collect();
    out.resize(length, b' ');
    out
}

/// A vital product data page.
///
/// # Errors
/// There is no such page.
pub(crate) fn page(unit: &Unit, ports: &Ports, port: u16, code: u8) -> Result<Vec<u8>, Refusal> {
    let body = match code {
        0x00 => PAGES.to_vec(),
        0x80 => hex(&unit.options.identity).into_bytes(),
        0x83 => identification(unit, ports, port),
        0x86 => extended(),
        // MODE PAGE POLICY: one set of all pages for all ports.
        0x87 => vec![0x3f, 0xff, 0x00, 0x00],
        0x8f => copy::third_party_page(unit),
        0xb0 => limits(unit),
        0xb1 => characteristics(unit),
        0xb2 => provisioning(unit),
        _ => return Err(Refusal::in_cdb(2, Some(7))),
    };
    let mut out = vec![0, code];
    out.extend((body.len() as u16).to_be_bytes());
    out.extend(body);
    Ok(out)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// NAA 3: locally assigned, 60 bits mixed from the 128 of the identity (SPC-4 7.8.6.6.4).
pub(crate) fn naa(identity: &[u8; 16]) -> [u8; 8] {
    // The finalizer of MurmurHash3: each bit of the one half turns half of the bits of the result.
    const fn mixed(mut word: u64) -> u64 {
        word ^= word >> 33;
        word = word.wrapping_mul(0xff51_afd7_ed55_8ccd);
        word ^= word >> 33;
        word = word.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        word ^ word >> 33
    }
    let whole = u128::from_be_bytes(*identity);
    let name = mixed(mixed((whole >> 64) as u64).wrapping_add(whole as u64));
    (name & (u64::MAX >> 4) | 3 << 60).to_be_bytes()
}

fn designator(out: &mut Vec<u8>, code_set: u8, kind: u8, value: &[u8]) {
    out.extend([code_set, kind, 0, value.len() as u8]);
    out.extend(value);
}

/// The names of the logical unit, and of the port it is asked through.
fn identification(unit: &Unit, ports: &Ports, port: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    designator(&mut out, 1, 0x03, &naa(&unit.options.identity));
    let mut vendor = VENDOR.to_vec();
    vendor.extend(hex(&unit.options.identity).into_bytes());
    designator(&mut out, 2, 0x01, &vendor);
    let [high, low] = port.to_be_bytes();
    designator(&mut out, 1, 0x14, &[0, 0, high, low]);
    let [high, low] = ports.group_of(port).to_be_bytes();
    designator(&mut out, 1, 0x15, &[0, 0, high, low]);
    out
}

/// Extended INQUIRY data: all task attributes but ACA, a volatile cache, and that nothing clears a
/// unit attention of another nexus.
fn extended() -> Vec<u8> {
    let mut out = vec![0; 60];
    out[1] = 0x07;
    out[2] = 0x01;
    out
}

/// Block limits, in blocks.
fn limits(unit: &Unit) -> Vec<u8> {
    let block = u64::from(unit.block());
    let transfer = (MAX_TRANSFER / block) as u32;
    let optimal = ((1 << 20) / block) as u32;
    let granularity = 1u16 << unit.physical_exponent();
    let discard = (u64::from(unit.disk().geometry().discard_granularity) / block).max(1) as u32;
    let unmaps = unit.options.provisioning.unmaps();
    // WSNZ: a WRITE SAME says how long it is.
    let mut out = vec![0x01, MAX_COMPARE as u8];
    out.extend(granularity.to_be_bytes());
    out.extend(transfer.to_be_bytes());
    out.extend(optimal.to_be_bytes());
    out.extend([0; 4]);
    out.extend(if unmaps { MAX_UNMAP } else { 0 }.to_be_bytes());
    out.extend(if unmaps { MAX_UNMAP_DESCRIPTORS } else { 0 }.to_be_bytes());
    out.extend(if unmaps { discard } else { 0 }.to_be_bytes());
    // UGAVALID, aligned with the first block.
    out.extend([if unmaps { 0x80 } else { 0 }, 0, 0, 0]);
    out.extend(u64::from(MAX_SAME).to_be_bytes());
    let atomic = unit.options.atomic_blocks.min(transfer).min(u32::from(u16::MAX));
    out.extend(atomic.to_be_bytes());
    out.resize(60, 0);
    out
}

/// Block device characteristics: no rotation, blocks that can be read after a block erase, FUA
/// that is honoured.
fn characteristics(unit: &Unit) -> Vec<u8> {
    let mut out = vec![0; 60];
    out[1] = 0x01;
    out[3] = if unit.options.provisioning.unmaps() { 0x40 } else { 0 };
    out[4] = 0x03;
    out
}

/// LBPU, LBPWS, LBPWS10, LBPRZ, ANC_SUP and the type, where blocks can be unmapped; a threshold where the
/// unit is thin.
fn provisioning(unit: &Unit) -> Vec<u8> {
    match unit.options.provisioning {
        Provisioning::Thin => vec![threshold_exponent(unit.block()), 0xe4, 0x02, 0],
        Provisioning::Resource => vec![0, 0xe6, 0x01, 0],
        Provisioning::Full => vec![0; 4],
    }
}

/// Operation codes that VPD page 8Fh lists, with their service actions.
pub(crate) fn copy_commands() -> Vec<(u8, Vec<u8>)> {
    [0x83, 0x84]
        .map(|code| {
            let rows = TABLE.iter().filter(|entry| entry.code == code);
            (code, rows.filter_map(|entry| entry.action).collect())
        })
        .to_vec()
}
