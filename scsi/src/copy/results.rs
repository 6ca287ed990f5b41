//! How copies ended, for whoever asks by list identifier (SPC-4 6.16 to 6.25).

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_OFFSET, IDENTIFICATION, MAX_LISTS, MAX_SEGMENT_BYTES,
    MAX_SEGMENTS, MAX_TARGETS, tokens::LENGTH,
};
use crate::{Status, refusal::Refusal};

/// Most results that are kept of all nexuses; the oldest goes first.
const MAX_RESULTS: usize = 512;

/// Which commands' list identifiers are compared with one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// EXTENDED COPY, identifiers of one byte.
    Short,
    /// All others, of four bytes.
    Long,
}

/// How one copy ended.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub nexus: u64,
    pub family: Family,
    pub list: u32,
    /// The service action that began it.
    pub action: u8,
    pub end: Result<(), Refusal>,
    /// It moved less than it was asked for.
    pub partial: bool,
    pub segments: u16,
    /// Bytes; for commands with tokens blocks.
    pub count: u64,
    pub token: Option<Box<[u8; LENGTH]>>,
}

/// The results of a target.
#[derive(Debug, Default)]
pub(crate) struct Results {
    list: Mutex<VecDeque<Outcome>>,
}

impl Results {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Outcome>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keep(&self, outcome: Outcome) {
        let mut list = self.lock();
        list.retain(|it| {
            (it.nexus, it.family, it.list) != (outcome.nexus, outcome.family, outcome.list)
        });
        if list.len() == MAX_RESULTS {
            list.pop_front();
        }
        list.push_back(outcome);
    }

    /// The nexus is gone.
    pub(crate) fn forget(&self, nexus: u64) {
        self.lock().retain(|it| it.nexus != nexus);
    }

    fn find(&self, nexus: u64, family: Family, list: u32) -> Result<Outcome, Refusal> {
        let found = self.lock();
        let found = found
            .iter()
            .find(|it| (it.nexus, it.family, it.list) == (nexus, family, list))
            .cloned();
        found.ok_or(Refusal::in_cdb(2, Some(7)))
    }

    /// COPY STATUS: with a short identifier in its old form.
    ///
    /// # Errors
    /// There was no such copy.
    pub(crate) fn status(&self, nexus: u64, long: bool, list: u32) -> Result<Vec<u8>, Refusal> {
        if long {
            let outcome = self.find(nexus, Family::Long, list)?;
            let mut out = long_status(&outcome);
            finish(&mut out);
            return Ok(out);
        }
        let outcome = self.find(nexus, Family::Short, list)?;
        let mut out = vec![0, 0, 0, 8, if outcome.end.is_ok() { 0x01 } else { 0x02 }];
        out.extend(outcome.segments.to_be_bytes());
        out.push(0);
        out.extend(u32::try_from(outcome.count).unwrap_or(u32::MAX).to_be_bytes());
        Ok(out)
    }

    /// RECEIVE ROD TOKEN INFORMATION.
    ///
    /// # Errors
    /// There was no such command.
    pub(crate) fn token_information(&self, nexus: u64, list: u32) -> Result<Vec<u8>, Refusal> {
        let outcome = self.find(nexus, Family::Long, list)?;
        if !matches!(outcome.action, 0x10 | 0x11) {
            return Err(Refusal::in_cdb(2, Some(7)));
        }
        let mut out = long_status(&outcome);
        match &outcome.token {
            Some(token) => {
                out.extend((2 + LENGTH as u32).to_be_bytes());
                out.extend([0, 0]);
                out.extend(token.iter());
            }
            None => out.extend([0; 4]),
        }
        finish(&mut out);
        Ok(out)
    }
}

/// AVAILABLE DATA.
fn finish(out: &mut [u8]) {
    let available = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&available.to_be_bytes());
}

/// What the answers to identifiers of four bytes have in common, with sense data in front of what
/// follows.
fn long_status(outcome: &Outcome) -> Vec<u8> {
    let (status, code, sense) = match &outcome.end {
        Ok(()) if outcome.partial => (0x03, Status::Good, Vec::new()),
        Ok(()) => (0x01, Status::Good, Vec::new()),
        Err(refusal) => {
            let sense = refusal.sense().map(|it| it.fixed().to_vec()).unwrap_or_default();
            (0x02, refusal.status(), sense)
        }
    };
    let mut out = vec![0, 0, 0, 0, outcome.action, status, 0, 1];
    // ESTIMATED STATUS UPDATE DELAY: it is over.
    out.extend(0xffff_fffeu32.to_be_bytes());
    // Sense data, padded to a multiple of four.
    let field = sense.len().next_multiple_of(4);
    let units = if matches!(outcome.action, 0x10 | 0x11) { 0xf1 } else { 0x00 };
    out.extend([code as u8, field as u8, sense.len() as u8, units]);
    out.extend(outcome.count.to_be_bytes());
    out.extend(outcome.segments.to_be_bytes());
    out.extend([0; 6]);
    out.extend(&sense);
    out.resize(32 + field, 0);
    out
}

/// RECEIVE COPY RESULTS with service action OPERATING PARAMETERS (SPC-4 6.20).
pub(crate) fn operating_parameters() -> Vec<u8> {
    let mut out = vec![0; 44];
    // SNLID.
    out[4] = 0x01;
    out[8..10].copy_from_slice(&(MAX_TARGETS as u16).to_be_bytes());
    out[10..12].copy_from_slice(&(MAX_SEGMENTS as u16).to_be_bytes());
    out[12..16].copy_from_slice(&(MAX_LISTS as u32).to_be_bytes());
    out[16..20].copy_from_slice(&(MAX_SEGMENT_BYTES as u32).to_be_bytes());
    out[34..36].copy_from_slice(&255u16.to_be_bytes());
    out[36] = 255;
    // Segments in units of 512 bytes.
    out[37] = 9;
    let types = [BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_OFFSET, IDENTIFICATION];
    out[43] = types.len() as u8;
    out.extend(types);
    let available = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&available.to_be_bytes());
    out
}
