//! How much room the blocks of a thin unit have left below it, and the warning before it ends: the
//! Logical Block Provisioning mode page and log page (SBC-3 4.7.3.8, 6.4.5, 6.5.9), LOG SENSE.
//!
//! There is one threshold, of the available resources, which the program around the unit sets: it
//! knows what lies below. A unit that comes down to it establishes THIN PROVISIONING SOFT THRESHOLD
//! REACHED once, and is armed again when there is more.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::refusal::Refusal;

/// Bytes that one count of a threshold or a resource stands for.
const SET: u64 = 1 << 20;
/// Of the log pages and the mode page.
const PROVISIONING: u8 = 0x0c;
const AVAILABLE: u16 = 0x0001;
const USED: u16 = 0x0002;
/// PC of LOG SENSE: cumulative values, which is what there is.
const CUMULATIVE: u8 = 1;

/// The room below a thin unit, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// What more could be written, before there is no room.
    pub available: u64,
    /// What its blocks take.
    pub used: u64,
    /// Initiators are warned once when no more than this is available; 0: never.
    pub warn_below: u64,
}

#[derive(Debug, Default)]
struct Known {
    space: Space,
    warned: bool,
}

/// What is known of the room below a unit.
#[derive(Debug, Default)]
pub(crate) struct Room(Mutex<Known>);

impl Room {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is known now; whether initiators are to be warned.
    pub(crate) fn set(&self, space: Space) -> bool {
        let mut known = self.lock();
        let low = space.warn_below > 0 && space.available <= space.warn_below;
        let warn = low && !known.warned;
        *known = Known { space, warned: low };
        warn
    }

    /// The Logical Block Provisioning mode page, of which initiators change nothing: `changeable`
    /// asks for that.
    pub(crate) fn mode_page(&self, changeable: bool) -> [u8; 24] {
        let mut page = [0; 24];
        // SPF and the page, the subpage, the length.
        page[..4].copy_from_slice(&[0x5c, 0x02, 0, 20]);
        if changeable {
            return page;
        }
        let below = self.lock().space.warn_below;
        // ENABLED, a count of sets, armed for decreasing.
        page[16] = if below > 0 { 0x80 } else { 0 };
        page[17] = AVAILABLE as u8;
        page[20..].copy_from_slice(&count(below).to_be_bytes());
        page
    }

    fn parameters(&self, pointer: u16) -> Vec<u8> {
        let space = self.lock().space;
        // SCOPE: what is available is there for others as well, what is used is this unit's.
        let all = [(AVAILABLE, space.available, 0x02), (USED, space.used, 0x01)];
        let mut out = Vec::with_capacity(24);
        for (code, bytes, scope) in all.into_iter().filter(|(code, ..)| *code >= pointer) {
            out.extend(code.to_be_bytes());
            // FORMAT AND LINKING: a binary list.
            out.extend([0x03, 8]);
            out.extend(count(bytes).to_be_bytes());
            out.extend([scope, 0, 0, 0]);
        }
        out
    }
}

/// Logical blocks in a threshold set are two to this power (SBC-3 6.6.7, THRESHOLD EXPONENT).
pub(crate) const fn threshold_exponent(block: u32) -> u8 {
    (SET / block as u64).ilog2() as u8
}

fn count(bytes: u64) -> u32 {
    u32::try_from(bytes / SET).unwrap_or(u32::MAX)
}

/// LOG SENSE (SPC-4 6.10): the list of pages, and where the unit is thin what room there is.
///
/// # Errors
/// A page that there is not, values that are none, a pointer behind the last parameter.
pub(crate) fn log_sense(
    room: Option<&Room>,
    (control, page, subpage): (u8, u8, u8),
    pointer: u16,
) -> Result<Vec<u8>, Refusal> {
    let pages: &[u8] = if room.is_some() { &[0x00, PROVISIONING] } else { &[0x00] };
    let body = match (page, subpage, room) {
        (0x00, 0x00, _) => pages.to_vec(),
        (0x00, 0xff, _) => {
            let first = std::iter::once([0x00, 0x00]);
            let rest = pages[1..].iter().map(|page| [*page, 0x00]);
            first.chain([[0x00, 0xff]]).chain(rest).flatten().collect()
        }
        (PROVISIONING, 0x00, Some(room)) => {
            if control != CUMULATIVE {
                return Err(Refusal::in_cdb(2, Some(7)));
            }
            if pointer > USED {
                return Err(Refusal::in_cdb(5, Some(7)));
            }
            room.parameters(pointer)
        }
        (PROVISIONING, ..) | (0x00, ..) => return Err(Refusal::in_cdb(3, Some(7))),
        _ => return Err(Refusal::in_cdb(2, Some(5))),
    };
    // SPF.
    let first = if subpage == 0 { page } else { page | 0x40 };
    let mut out = vec![first, subpage];
    out.extend((body.len() as u16).to_be_bytes());
    out.extend(body);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_comes_once_until_there_is_more_room() {
        let room = Room::default();
        let space = |available| Space { available, used: 7 * SET, warn_below: 10 * SET };
        let seen = [30, 11, 10, 3, 0, 10, 11, 9].map(|left| room.set(space(left * SET)));
        assert_eq!(seen, [false, false, true, false, false, false, false, true]);
        assert!(!room.set(Space { warn_below: 0, ..space(0) }), "nobody asked for one");
    }

    #[test]
    fn the_log_says_what_there_is_in_counts_of_sets() {
        let room = Room::default();
        room.set(Space { available: 5 * SET + 1, used: u64::MAX, warn_below: 3 * SET });
        let all = log_sense(Some(&room), (1, 0x0c, 0), 0).expect("a page");
        assert_eq!(all[..4], [0x0c, 0, 0, 24]);
        assert_eq!(all[4..16], [0, 1, 3, 8, 0, 0, 0, 5, 2, 0, 0, 0]);
        assert_eq!(all[16..], [0, 2, 3, 8, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
        let second = log_sense(Some(&room), (1, 0x0c, 0), 2).expect("a page");
        assert_eq!(second[4..], all[16..]);
        assert_eq!(log_sense(Some(&room), (1, 0, 0), 0), Ok(vec![0, 0, 0, 2, 0, 0x0c]));
        let with_subpages = vec![0x40, 0xff, 0, 6, 0, 0, 0, 0xff, 0x0c, 0];
        assert_eq!(log_sense(Some(&room), (1, 0, 0xff), 0), Ok(with_subpages));
        assert_eq!(log_sense(None, (1, 0, 0), 0), Ok(vec![0, 0, 0, 1, 0]));
        for (wrong, pointer) in
            [((0, 0x0c, 0), 0), ((1, 0x0c, 1), 0), ((1, 0x0c, 0), 3), ((1, 0x0d, 0), 0)]
        {
            assert!(log_sense(Some(&room), wrong, pointer).is_err(), "{wrong:?}");
        }
        assert!(log_sense(None, (1, 0x0c, 0), 0).is_err(), "a thick unit");
    }

    #[test]
    fn the_mode_page_tells_the_threshold_and_lets_nobody_change_it() {
        let room = Room::default();
        assert_eq!(room.mode_page(false)[16..], [0, 1, 0, 0, 0, 0, 0, 0]);
        room.set(Space { warn_below: 258 * SET, ..Space::default() });
        assert_eq!(room.mode_page(false)[16..], [0x80, 1, 0, 0, 0, 0, 1, 2]);
        assert_eq!(room.mode_page(true)[4..], [0; 20]);
        assert_eq!([512, 4096].map(threshold_exponent), [11, 8]);
    }
}
