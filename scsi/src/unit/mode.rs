//! Mode pages (SPC-4 7.5, SBC-3 6.5): what they say, and what MODE SELECT changes. There is one
//! set for all nexuses; it starts anew with a reset, since nothing is saved.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use super::space::Room;
use crate::{asc, cdb::ModeSense, refusal::Refusal};

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const INFORMATIONAL_EXCEPTIONS: u8 = 0x1c;
const ALL_PAGES: u8 = 0x3f;
/// Subpages: logical block provisioning, and all there are.
const PROVISIONING: u8 = 0x02;
const ALL_SUBPAGES: u8 = 0xff;

const WCE: u8 = 0x04;
const D_SENSE: u8 = 0x04;
const SWP: u8 = 0x08;

/// What can be changed, as bits that are read without a lock.
#[derive(Debug)]
pub(crate) struct Mode {
    pages: Mutex<Pages>,
    default: Pages,
    pub write_cache: AtomicBool,
    pub descriptor_sense: AtomicBool,
    pub write_protect: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pages {
    caching: [u8; 20],
    control: [u8; 12],
    exceptions: [u8; 12],
}

impl Pages {
    const fn new(write_cache: bool) -> Self {
        let mut caching = [0; 20];
        caching[0] = CACHING;
        caching[1] = 18;
        caching[2] = if write_cache { WCE } else { 0 };
        let mut control = [0; 12];
        control[0] = CONTROL;
        control[1] = 10;
        // QUEUE ALGORITHM MODIFIER 1: commands are reordered; QERR 0.
        control[3] = 0x10;
        // BUSY TIMEOUT PERIOD: no limit.
        control[8] = 0xff;
        control[9] = 0xff;
        let mut exceptions = [0; 12];
        exceptions[0] = INFORMATIONAL_EXCEPTIONS;
        exceptions[1] = 10;
        // DEXCPT: there is nothing to warn of.
        exceptions[2] = 0x08;
        Self { caching, control, exceptions }
    }

    /// A bit is set where MODE SELECT can change it.
    const fn changeable() -> Self {
        let mut pages = Self::new(true);
        pages.control[2] = D_SENSE;
        pages.control[3] = 0;
        pages.control[4] = SWP;
        pages.control[8] = 0;
        pages.control[9] = 0;
        pages.exceptions[2] = 0;
        pages
    }

    fn page(&mut self, code: u8) -> Option<&mut [u8]> {
        match code {
            CACHING => Some(&mut self.caching),
            CONTROL => Some(&mut self.control),
            INFORMATIONAL_EXCEPTIONS => Some(&mut self.exceptions),
            _ => None,
        }
    }
}

/// What the header of mode parameters says of the medium.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub blocks: u64,
    pub block: u32,
    pub read_only: bool,
}

impl Mode {
    pub(crate) fn new(write_cache: bool) -> Self {
        let default = Pages::new(write_cache);
        Self {
            pages: Mutex::new(default),
            default,
            write_cache: AtomicBool::new(write_cache),
            descriptor_sense: AtomicBool::new(false),
            write_protect: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Back to the defaults.
    pub(crate) fn reset(&self) {
        let mut pages = self.lock();
        *pages = self.default;
        self.publish(&pages);
    }

    fn publish(&self, pages: &Pages) {
        self.write_cache.store(pages.caching[2] & WCE != 0, Ordering::Release);
        self.descriptor_sense.store(pages.control[2] & D_SENSE != 0, Ordering::Release);
        self.write_protect.store(pages.control[4] & SWP != 0, Ordering::Release);
    }

    /// MODE SENSE (SPC-4 6.11): header, block descriptor, pages.
    ///
    /// # Errors
    /// A page that there is not; saved values, which there are not.
    pub(crate) fn sense(
        &self,
        request: &ModeSense,
        shape: Shape,
        room: Option<&Room>,
    ) -> Result<Vec<u8>, Refusal> {
        let mut pages = match request.control {
            0 => *self.lock(),
            1 => Pages::changeable(),
            2 => self.default,
            _ => return Err(Refusal::illegal(asc::SAVING_NOT_SUPPORTED)),
        };
        let protected = shape.read_only || self.write_protect.load(Ordering::Acquire);
        let mut body = Vec::with_capacity(80);
        let descriptor = if request.no_block_descriptors {
            Vec::new()
        } else {
            block_descriptor(shape, request.ten && request.long_lba)
        };
        let (all, every) = (request.page == ALL_PAGES, request.subpage == ALL_SUBPAGES);
        let provisioning = room.filter(|_| {
            (all || request.page == INFORMATIONAL_EXCEPTIONS)
                && (every || request.subpage == PROVISIONING && !all)
        });
        if request.subpage != 0 && provisioning.is_none() && !(every && all) {
            return Err(Refusal::in_cdb(3, Some(7)));
        }
        if all {
            for code in [CACHING, CONTROL, INFORMATIONAL_EXCEPTIONS] {
                body.extend(pages.page(code).iter().flat_map(|page| page.iter()));
            }
        } else if request.subpage != PROVISIONING {
            let page = pages.page(request.page).ok_or(Refusal::in_cdb(2, Some(5)))?;
            body.extend_from_slice(page);
        }
        if let Some(room) = provisioning {
            body.extend(room.mode_page(request.control == 1));
        }
        // WP and DPOFUA.
        let specific = if protected { 0x90 } else { 0x10 };
        let mut out = Vec::with_capacity(100);
        if request.ten {
            let length = (6 + descriptor.len() + body.len()) as u16;
            out.extend(length.to_be_bytes());
            out.extend([0, specific, u8::from(descriptor.len() == 16), 0]);
            out.extend((descriptor.len() as u16).to_be_bytes());
        } else {
            let length = (3 + descriptor.len() + body.len()) as u8;
            out.extend([length, 0, specific, descriptor.len() as u8]);
        }
        out.extend(descriptor);
        out.extend(body);
        Ok(out)
    }

    /// MODE SELECT (SPC-4 6.9). Answers whether anything is different now.
    ///
    /// # Errors
    /// A list that ends too soon; a page that there is not, or bits in it that cannot be changed.
    /// Nothing is changed then.
    pub(crate) fn select(&self, list: &[u8], ten: bool) -> Result<bool, Refusal> {
        let header = if ten { 8 } else { 4 };
        if list.is_empty() {
            return Ok(false);
        }
        let short = Refusal::illegal(asc::PARAMETER_LIST_LENGTH);
        if list.len() < header {
            return Err(short);
        }
        let descriptors = if ten {
            usize::from(u16::from_be_bytes([list[6], list[7]]))
        } else {
            usize::from(list[3])
        };
        let mut at = header + descriptors;
        if at > list.len() {
            return Err(short);
        }
        if !matches!(descriptors, 0 | 8 | 16) || (descriptors == 16) != (ten && list[4] & 1 != 0) {
            return Err(Refusal::in_list(if ten { 6 } else { 3 }));
        }
        let mut pages = self.lock();
        let mut changed = *pages;
        while at < list.len() {
            at = one_page(&mut changed, list, at)?;
        }
        let different = changed != *pages;
        *pages = changed;
        self.publish(&pages);
        Ok(different)
    }
}

/// Takes the page at `at` and answers where the next one begins.
fn one_page(pages: &mut Pages, list: &[u8], at: usize) -> Result<usize, Refusal> {
    let short = Refusal::illegal(asc::PARAMETER_LIST_LENGTH);
    let page = &list[at..];
    if page[0] & 0x40 != 0 {
        return Err(Refusal::in_list(at));
    }
    let code = page[0] & 0x3f;
    let mut writable = Pages::changeable();
    let Some(writable) = writable.page(code) else { return Err(Refusal::in_list(at)) };
    let Some(current) = pages.page(code) else { return Err(Refusal::in_list(at)) };
    if page.len() < current.len() {
        return Err(short);
    }
    if page[1] != current[1] {
        return Err(Refusal::in_list(at + 1));
    }
    for n in 2..current.len() {
        if (page[n] ^ current[n]) & !writable[n] != 0 {
            return Err(Refusal::in_list(at + n));
        }
    }
    let length = current.len();
    current[2..].copy_from_slice(&page[2..length]);
    Ok(at + length)
}

/// Short: 8 bytes with what fits in 32 bits; long: 16 (SBC-3 6.5.2).
fn block_descriptor(shape: Shape, long: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(16);
    if long {
        out.extend(shape.blocks.to_be_bytes());
        out.extend([0; 4]);
        out.extend(shape.block.to_be_bytes());
    } else {
        let blocks = u32::try_from(shape.blocks).unwrap_or(u32::MAX);
        out.extend(blocks.to_be_bytes());
        out.extend((shape.block & 0x00ff_ffff).to_be_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { blocks: 1 << 33, block: 512, read_only: false };

    fn ask(page: u8, control: u8) -> ModeSense {
        ModeSense {
            ten: false,
            no_block_descriptors: true,
            long_lba: false,
            control,
            page,
            subpage: 0,
            allocation: 255,
        }
    }

    #[test]
    fn a_page_is_changed_where_it_says_so_and_nowhere_else() {
        let mode = Mode::new(true);
        let mut list = mode.sense(&ask(CONTROL, 0), SHAPE, None).expect("there is such a page");
        list[0] = 0;
        list[4 + 4] |= SWP;
        assert_eq!(mode.select(&list, false), Ok(true));
        assert!(mode.write_protect.load(Ordering::Acquire));
        assert_eq!(mode.sense(&ask(CONTROL, 0), SHAPE, None).expect("a page")[2] & 0x80, 0x80);
        list[4 + 3] ^= 0x10;
        assert_eq!(mode.select(&list, false), Err(Refusal::in_list(7)));
        mode.reset();
        assert!(!mode.write_protect.load(Ordering::Acquire));
    }

    #[test]
    fn lists_that_end_anywhere_are_refused_without_a_change() {
        let mode = Mode::new(true);
        let mut list = mode.sense(&ask(ALL_PAGES, 0), SHAPE, None).expect("pages");
        list[0] = 0;
        list[4 + 2] = 0;
        for end in 1..list.len() {
            let page_ends = [4, 24, 36].contains(&end);
            assert_eq!(mode.select(&list[..end], false).is_ok(), page_ends, "{end}");
            mode.reset();
        }
    }

    #[test]
    fn a_large_unit_says_its_size_where_it_fits() {
        let mode = Mode::new(true);
        let long =
            ModeSense { ten: true, no_block_descriptors: false, long_lba: true, ..ask(CACHING, 0) };
        let bytes = mode.sense(&long, SHAPE, None).expect("a page");
        assert_eq!(bytes[4..8], [1, 0, 0, 16]);
        assert_eq!(bytes[8..16], (1u64 << 33).to_be_bytes());
        let short = ModeSense { long_lba: false, ..long };
        assert_eq!(mode.sense(&short, SHAPE, None).expect("a page")[8..12], [0xff; 4]);
        assert!(mode.sense(&ask(CACHING, 3), SHAPE, None).is_err(), "saved values");
    }
}
