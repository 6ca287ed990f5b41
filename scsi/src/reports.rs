//! Commands that tell what there is, and change nothing (SPC-4 6, SBC-3 5).

use crate::{
    Lun,
    cdb::{Entry, Features, TABLE},
    refusal::Refusal,
    unit::Unit,
};

/// READ CAPACITY(10): the last block as far as 32 bits reach.
pub(crate) fn capacity_10(unit: &Unit) -> Vec<u8> {
    let last = u32::try_from(unit.blocks().saturating_sub(1)).unwrap_or(u32::MAX);
    let mut out = last.to_be_bytes().to_vec();
    out.extend(unit.block().to_be_bytes());
    out
}

/// READ CAPACITY(16).
pub(crate) fn capacity_16(unit: &Unit) -> Vec<u8> {
    let mut out = unit.blocks().saturating_sub(1).to_be_bytes().to_vec();
    out.extend(unit.block().to_be_bytes());
    // LBPME and LBPRZ.
    out.extend([
        0,
        unit.physical_exponent(),
        if unit.options.provisioning.unmaps() { 0xc0 } else { 0 },
    ]);
    out.resize(32, 0);
    out
}

/// READ DEFECT DATA: a list of the asked kind with nothing in it.
pub(crate) fn defects(ten: bool, format: u8) -> Vec<u8> {
    let mut out = vec![0; if ten { 4 } else { 8 }];
    out[1] = format & 0x1f;
    out
}

/// REPORT LUNS.
///
/// # Errors
/// A kind of list there is not.
pub(crate) fn luns(select: u8, units: &[u16]) -> Result<Vec<u8>, Refusal> {
    let units = match select {
        0x00 | 0x02 | 0x11 => units,
        // Well known logical units, administrative ones, those subsidiary to one: there are none.
        0x01 | 0x10 | 0x12 => &[],
        _ => return Err(Refusal::in_cdb(2, Some(7))),
    };
    let mut out = Vec::with_capacity(8 + 8 * units.len());
    out.extend((8 * units.len() as u32).to_be_bytes());
    out.extend([0; 4]);
    out.extend(units.iter().flat_map(|number| lun_of(*number).0));
    Ok(out)
}

/// A number as peripheral device address, or flat beyond 255 (SAM-5 4.7.7).
pub(crate) fn lun_of(number: u16) -> Lun {
    let [high, low] = number.to_be_bytes();
    let flat = if number > 0xff { 0x40 } else { 0 };
    Lun([flat | high, low, 0, 0, 0, 0, 0, 0])
}

/// The number of a logical unit of this target, whichever way it is written.
pub(crate) fn number_of(lun: Lun) -> Option<u16> {
    let [high, low, rest @ ..] = lun.0;
    if rest != [0; 6] {
        return None;
    }
    match high >> 6 {
        0 if high == 0 => Some(low.into()),
        1 => Some(u16::from_be_bytes([high & 0x3f, low])),
        _ => None,
    }
}

/// REPORT SUPPORTED OPERATION CODES (SPC-4 6.34).
///
/// # Errors
/// The reporting option does not fit the operation code.
pub(crate) fn opcodes(
    features: Features,
    timeouts: bool,
    options: u8,
    code: u8,
    action: u16,
) -> Result<Vec<u8>, Refusal> {
    let there = || TABLE.iter().filter(|entry| entry.exists(features));
    let named = || there().filter(|entry| entry.code == code);
    let with_action = || named().find(|entry| entry.action.map(u16::from) == Some(action));
    let found = match options {
        0 => {
            let list: Vec<u8> = there().flat_map(|entry| descriptor(entry, timeouts)).collect();
            let mut out = (list.len() as u32).to_be_bytes().to_vec();
            out.extend(list);
            return Ok(out);
        }
        1 if named().any(|entry| entry.action.is_some()) => {
            return Err(Refusal::in_cdb(2, Some(2)));
        }
        1 => named().next(),
        2 if named().any(|entry| entry.action.is_none()) => {
            return Err(Refusal::in_cdb(2, Some(2)));
        }
        2 => with_action(),
        3 => named().find(|entry| entry.action.is_none() && action == 0).or_else(with_action),
        _ => return Err(Refusal::in_cdb(2, Some(2))),
    };
    let Some(entry) = found else { return Ok(vec![0, 0x01, 0, 0]) };
    let usage = entry.usage(features);
    // SUPPORT: as the standard says; CTDP.
    let mut out = vec![0, 0x03 | if timeouts { 0x80 } else { 0 }];
    out.extend((usage.len() as u16).to_be_bytes());
    out.extend(usage);
    if timeouts {
        out.extend(NO_TIMEOUTS);
    }
    Ok(out)
}

/// A command timeouts descriptor that names no time.
const NO_TIMEOUTS: [u8; 12] = [0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn descriptor(entry: &Entry, timeouts: bool) -> Vec<u8> {
    let flags = u8::from(entry.action.is_some()) | if timeouts { 0x02 } else { 0 };
    let mut out = vec![entry.code, 0, 0, entry.action.unwrap_or(0), 0, flags];
    out.extend((entry.usage.len() as u16).to_be_bytes());
    if timeouts {
        out.extend(NO_TIMEOUTS);
    }
    out
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS: ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL
/// UNIT RESET, and the target's resets.
pub(crate) fn task_management(extended: bool) -> Vec<u8> {
    let mut out = vec![0xda, 0, 0, 0];
    if extended {
        out.resize(16, 0);
        out[3] = 0x0c;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_the_same_in_both_ways_of_writing_it() {
        for number in [0, 1, 255, 256, 0x3fff] {
            assert_eq!(number_of(lun_of(number)), Some(number));
        }
        assert_eq!(number_of(Lun([0x40, 7, 0, 0, 0, 0, 0, 0])), Some(7));
        assert_eq!(number_of(Lun([0x00, 7, 1, 0, 0, 0, 0, 0])), None);
        assert_eq!(number_of(Lun([0xc1, 1, 0, 0, 0, 0, 0, 0])), None);
    }

    #[test]
    fn every_command_is_told_alone_as_it_is_in_the_list() {
        let all = opcodes(Features::ALL, true, 0, 0, 0).expect("a list");
        assert_eq!(all.len(), 4 + 20 * TABLE.len());
        for one in all[4..].chunks_exact(20) {
            let action = u16::from_be_bytes([one[2], one[3]]);
            let serves = one[5] & 1 != 0;
            let (right, wrong) = if serves { (2, 1) } else { (1, 2) };
            let told = opcodes(Features::ALL, false, right, one[0], action).expect("it is there");
            assert_eq!(told[4], one[0]);
            assert_eq!(told[2..4], one[6..8]);
            assert!(opcodes(Features::ALL, false, wrong, one[0], action).is_err());
        }
        let unknown = opcodes(Features::ALL, false, 1, 0xff, 0).expect("an answer");
        assert_eq!(unknown, [0, 1, 0, 0]);
    }
}
