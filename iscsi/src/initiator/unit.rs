//! What a logical unit is, asked over one path (SPC-4 6.6, 7.8; SBC-3 5.16, 6.5).

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::{
    cdb,
    error::InitiatorError,
    exchange::Reply,
    link::{Link, plain},
    sense::{SenseData, code, key},
};

/// Unit attentions that may wait at the beginning.
const ATTENTIONS: usize = 32;
/// Between questions to a unit that is not ready yet.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a list.
const LIST: u16 = 4096;

/// What a logical unit says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Facts {
    /// The designator that names the unit in all the world; empty if it has none.
    pub identity: Vec<u8>,
    pub capacity: Capacity,
    pub limits: Limits,
    /// UNMAP is there (LBPU).
    pub unmaps: bool,
    /// WRITE SAME (16) with UNMAP is there (LBPWS).
    pub unmaps_same: bool,
    /// WRITE SAME (16) knows NDOB; not every unit that does not refuses the bit.
    pub same_without_data: bool,
    /// It may not be written.
    pub protected: bool,
    /// It has target port groups.
    pub has_groups: bool,
    /// The target port group of this path.
    pub group: Option<u16>,
}

/// What READ CAPACITY (16) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Capacity {
    pub blocks: u64,
    pub block: u32,
    /// Bytes of a physical block.
    pub physical: u32,
    /// Blocks can be unmapped (LBPME).
    pub thin: bool,
    /// Unmapped blocks read as zeros (LBPRZ).
    pub zeros: bool,
}

impl Capacity {
    pub fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block.into())
    }
}

/// The page of block limits, in blocks; 0 where the unit says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Limits {
    pub transfer: u32,
    pub unmap: u32,
    pub unmap_descriptors: u32,
    pub unmap_granularity: u32,
    pub same: u64,
}

/// One path's view of a unit.
#[derive(Debug)]
pub(super) struct Asker<'a> {
    pub link: &'a Link,
    pub lun: [u8; 8],
    pub number: u16,
    pub time: Duration,
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..).and_then(|rest| rest.first_chunk());
    four.map_or(0, |four| u32::from_be_bytes(*four))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    let eight = bytes.get(at..).and_then(|rest| rest.first_chunk());
    eight.map_or(0, |eight| u64::from_be_bytes(*eight))
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    let two = bytes.get(at..).and_then(|rest| rest.first_chunk());
    two.map_or(0, |two| u16::from_be_bytes(*two))
}

pub(super) fn joined(reply: &Reply) -> Bytes {
    match &reply.data[..] {
        [] => Bytes::new(),
        [one] => one.clone(),
        many => many.concat().into(),
    }
}

impl Asker<'_> {
    /// Asks once for all: unit attentions are taken note of by asking again.
    pub async fn ask(&self, cdb: cdb::Cdb, read: u32) -> Result<Bytes, InitiatorError> {
        let until = Instant::now() + self.time;
        for _ in 0..ATTENTIONS {
            let reply = self.link.run(plain(self.lun, cdb, read, self.time)).await;
            let reply = reply
                .map_err(|_| InitiatorError::Unreachable("the connection ended".to_owned()))?;
            let sense = SenseData::read(&reply.sense);
            match (reply.status, sense) {
                (0, _) if !reply.failed => return Ok(joined(&reply)),
                (2, Some(sense)) if sense.key == key::UNIT_ATTENTION => {}
                (2, Some(sense)) if sense.key == key::ABORTED_COMMAND => sleep(PAUSE).await,
                (2, Some(sense))
                    if sense.key == key::NOT_READY
                        && matches!(sense.code, code::BECOMING_READY | code::TRANSITIONING)
                        && Instant::now() < until =>
                {
                    sleep(PAUSE).await;
                }
                (2, Some(sense)) if sense.code == code::UNIT_NOT_SUPPORTED => {
                    return Err(InitiatorError::NoUnit(self.number));
                }
                (2, Some(sense)) => return Err(InitiatorError::Sense(sense)),
                (0x08 | 0x28, _) if Instant::now() < until => sleep(PAUSE).await,
                (0x18, _) => return Err(InitiatorError::ReservationConflict),
                (status, _) => return Err(InitiatorError::Status(status)),
            }
        }
        Err(InitiatorError::Unusable("it has a unit attention without an end".to_owned()))
    }

    async fn page(&self, page: u8) -> Result<Bytes, InitiatorError> {
        let bytes = self.ask(cdb::inquiry(Some(page), LIST), LIST.into()).await?;
        let length = usize::from(be16(&bytes, 2)) + 4;
        if bytes.get(1) != Some(&page) {
            return Err(InitiatorError::Unusable(format!("page {page:#04x} is another")));
        }
        Ok(bytes.slice(..length.min(bytes.len())))
    }

    /// Asks for all that is to be known of the unit.
    ///
    /// # Errors
    /// There is none, it is no disk, or the path is gone.
    pub async fn look(&self) -> Result<Facts, InitiatorError> {
        // Takes what waits of unit attentions; what else is wrong shows below.
        if let Err(error @ (InitiatorError::NoUnit(_) | InitiatorError::Unreachable(_))) =
            self.ask(cdb::test_unit_ready(), 0).await
        {
            return Err(error);
        }
        let inquiry = self.ask(cdb::inquiry(None, 96), 96).await?;
        match inquiry.first().copied().unwrap_or(0x7f) {
            0 => {}
            0x20 | 0x7f => return Err(InitiatorError::NoUnit(self.number)),
            kind => {
                let what = format!("it is no disk but a device of type {:#04x}", kind & 0x1f);
                return Err(InitiatorError::Unusable(what));
            }
        }
        let has_groups = inquiry.get(5).is_some_and(|flags| flags & 0x30 != 0);
        let capacity = self.capacity().await?;
        let mut facts = Facts { capacity, has_groups, ..Facts::default() };
        let pages = self.page(0).await.unwrap_or_default();
        let pages = pages.get(4..).unwrap_or_default();
        if pages.contains(&0x83) {
            let page = self.page(0x83).await?;
            facts.identity = identity(&page);
            facts.group = designator(&page, 1, 5).map(|it| be16(it, 2));
        }
        if pages.contains(&0xb0) {
            let page = self.page(0xb0).await?;
            facts.limits = Limits {
                transfer: be32(&page, 8),
                unmap: be32(&page, 20),
                unmap_descriptors: be32(&page, 24),
                unmap_granularity: be32(&page, 28),
                same: be64(&page, 36),
            };
        }
        if pages.contains(&0xb2) {
            let flags = self.page(0xb2).await?.get(5).copied().unwrap_or(0);
            facts.unmaps = capacity.thin && flags & 0x80 != 0;
            facts.unmaps_same = capacity.thin && flags & 0x40 != 0;
        }
        match self.ask(cdb::supported(0x93, 20), 20).await {
            Ok(usage) => {
                let known = usage.get(1).is_some_and(|byte| byte & 7 == 3);
                let bit = usage.get(5).is_some_and(|byte| byte & 1 != 0);
                facts.same_without_data = known && bit;
            }
            Err(error @ InitiatorError::Unreachable(_)) => return Err(error),
            Err(_) => {}
        }
        match self.ask(cdb::mode_sense(), 192).await {
            Ok(header) => {
                facts.protected = header.get(2).is_some_and(|flags| flags & 0x80 != 0);
            }
            Err(error @ InitiatorError::Unreachable(_)) => return Err(error),
            // Not every unit has mode pages.
            Err(_) => {}
        }
        Ok(facts)
    }

    /// READ CAPACITY (16).
    ///
    /// # Errors
    /// Its blocks are none that a disk can have, or it cannot be asked.
    pub async fn capacity(&self) -> Result<Capacity, InitiatorError> {
        let bytes = self.ask(cdb::read_capacity(), 32).await?;
        let block = be32(&bytes, 8);
        if !matches!(block, 512 | 4096) {
            return Err(InitiatorError::Unusable(format!("its blocks are of {block} bytes")));
        }
        let exponent = bytes.get(13).map_or(0, |byte| byte & 0x0f).min(8);
        let flags = bytes.get(14).copied().unwrap_or(0);
        let capacity = Capacity {
            blocks: be64(&bytes, 0).saturating_add(1),
            block,
            physical: block << exponent,
            thin: flags & 0x80 != 0,
            zeros: flags & 0x40 != 0,
        };
        match capacity.blocks.checked_mul(block.into()) {
            Some(_) => Ok(capacity),
            None => Err(InitiatorError::Unusable("it is larger than can be".to_owned())),
        }
    }

    /// How good the paths of each target port group are: the lower the better, from [`UNUSED`] on
    /// only if there is none better (SPC-4 5.15).
    ///
    /// # Errors
    /// The unit cannot be asked.
    pub async fn ranks(&self) -> Result<Vec<(u16, u8)>, InitiatorError> {
        let bytes = self.ask(cdb::report_groups(LIST.into()), LIST.into()).await?;
        let mut rest = bytes.get(4..).unwrap_or_default();
        let mut ranks = Vec::new();
        while let [state, _, high, low, _, _, _, ports, after @ ..] = rest {
            let least = match state & 0x0f {
                0 => 0,
                1 | 4 => 2,
                2 => UNUSED,
                15 => UNUSED + 2,
                _ => UNUSED + 4,
            };
            let rank = least + u8::from(state & 0x80 == 0);
            ranks.push((u16::from_be_bytes([*high, *low]), rank));
            rest = after.get(usize::from(*ports) * 4..).unwrap_or_default();
        }
        Ok(ranks)
    }
}

/// A path from this rank on is used only if there is none better.
pub(super) const UNUSED: u8 = 8;

/// The first designator of an association and a type (SPC-4 7.8.6).
fn designator(page: &[u8], association: u8, kind: u8) -> Option<&[u8]> {
    let mut rest = page.get(4..)?;
    while let [_, what, _, length, after @ ..] = rest {
        let body = after.get(..usize::from(*length))?;
        if (what >> 4 & 3, what & 0x0f) == (association, kind) {
            return Some(body);
        }
        rest = &after[usize::from(*length)..];
    }
    None
}

/// The unit's best name: NAA, EUI-64, SCSI name string, T10 vendor identification.
fn identity(page: &[u8]) -> Vec<u8> {
    let found = [3, 2, 8, 1]
        .into_iter()
        .find_map(|kind| designator(page, 0, kind).map(|body| [&[kind], body].concat()));
    found.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_best_name_is_taken() {
        let mut page = vec![0, 0x83, 0, 0];
        page.extend(b"\x02\x01\x00\x04ABCD");
        page.extend(b"\x01\x15\x00\x04\x00\x00\x00\x07");
        page.extend(b"\x01\x03\x00\x08\x60\x01\x02\x03\x04\x05\x06\x07");
        assert_eq!(identity(&page), b"\x03\x60\x01\x02\x03\x04\x05\x06\x07");
        assert_eq!(designator(&page, 1, 5).map(|it| be16(it, 2)), Some(7));
    }

    proptest! {
        #[test]
        fn any_page_has_a_name_or_none(page in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = identity(&page);
        }
    }
}
