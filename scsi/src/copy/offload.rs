//! Offloaded transfers (SBC-3 4.28): POPULATE TOKEN makes a token of blocks, WRITE USING TOKEN
//! writes what it stands for.

use std::sync::Arc;

use nom::{
    IResult, Parser,
    bytes::complete::take,
    number::complete::{be_u8, be_u16, be_u32, be_u64},
};

use super::{
    Place, TokenData, move_bytes,
    results::{Family, Outcome},
    tokens::{self, MAX_RANGES, POINT_IN_TIME, Source},
    usable,
};
use crate::{
    asc,
    call::Call,
    cdb::Access,
    media::zero_carried,
    refusal::{Done, Refusal},
};

/// Most bytes that one token stands for, and that one command writes.
pub(super) const MAX_TOKEN_BYTES: u64 = 256 << 20;

/// What a token stands for.
enum Stands {
    Zeros,
    Ours(u64, Source),
    Foreign(Arc<dyn TokenData>),
}

/// Block device range descriptors: offset and length in bytes.
type Ranges = Vec<(u64, u64)>;

impl Call<'_> {
    pub(crate) async fn populate_token(&self, list: u32, length: u32) -> Done {
        let bytes = self.list(length);
        if bytes.is_empty() {
            return Ok(());
        }
        let short = Refusal::illegal(asc::PARAMETER_LIST_LENGTH);
        let (rest, (flags, timeout, kind, ranges)) = populate(bytes).map_err(|_| short)?;
        if flags & 0x02 != 0 && kind != POINT_IN_TIME {
            return Err(Refusal::illegal(asc::TOKEN_TYPE));
        }
        let ranges = self.ranges(rest, ranges, 14)?;
        let count = ranges.iter().map(|(_, len)| len).sum::<u64>();
        let source = Source { unit: self.unit.clone(), ranges };
        let token = self.target.tokens.create(&source, timeout)?;
        self.target.results.keep(Outcome {
            nexus: self.nexus.id,
            family: Family::Long,
            list,
            action: 0x10,
            end: Ok(()),
            partial: false,
            segments: 0,
            count: count / u64::from(self.unit.block()),
            token: Some(Box::new(token)),
        });
        Ok(())
    }

    pub(crate) async fn write_using_token(&self, list: u32, length: u32) -> Done {
        let bytes = self.list(length);
        if bytes.is_empty() {
            return Ok(());
        }
        let short = Refusal::illegal(asc::PARAMETER_LIST_LENGTH);
        let (rest, (flags, skip, token, ranges)) = using(bytes).map_err(|_| short)?;
        let ranges = self.ranges(rest, ranges, 534)?;
        self.unit.writable()?;
        let source = self.token(token)?;
        let block = u64::from(self.unit.block());
        let skip = skip.checked_mul(block).ok_or(Refusal::in_list(8))?;
        let wanted = ranges.iter().map(|(_, len)| len).sum::<u64>();
        let mut moved = 0;
        let (id, end) = match source {
            Stands::Zeros => (None, self.zeros(&ranges, &mut moved).await),
            Stands::Ours(id, source) => {
                (Some(id), self.tokens_data(id, source, skip, &ranges, &mut moved).await)
            }
            Stands::Foreign(data) => {
                (None, self.foreign_data(&*data, skip, &ranges, &mut moved).await)
            }
        };
        // DEL_TKN.
        if let Some(id) = id.filter(|_| flags & 0x02 != 0 && end.is_ok()) {
            self.target.tokens.delete(id);
        }
        self.target.results.keep(Outcome {
            nexus: self.nexus.id,
            family: Family::Long,
            list,
            action: 0x11,
            end,
            partial: moved < wanted,
            segments: 0,
            count: moved / block,
            token: None,
        });
        end
    }

    /// What a token stands for: here, or for others of this program.
    ///
    /// # Errors
    /// It stands for nothing, or not any more, or not for this initiator.
    fn token(&self, token: &[u8]) -> Result<Stands, Refusal> {
        match self.target.tokens.find(token) {
            Ok(None) => Ok(Stands::Zeros),
            Ok(Some((id, source))) => Ok(Stands::Ours(id, source)),
            Err(refusal) => {
                let foreign = self.target.foreign.as_ref();
                foreign.and_then(|it| it.find(token)).map(Stands::Foreign).ok_or(refusal)
            }
        }
    }

    /// The ranges of a list that is `length` bytes long, all of which must be there.
    fn ranges(&self, rest: &[u8], length: u16, at: usize) -> Result<Ranges, Refusal> {
        let length = usize::from(length);
        let list = rest.get(..length).ok_or(Refusal::illegal(asc::PARAMETER_LIST_LENGTH))?;
        if length == 0 || !length.is_multiple_of(16) || length / 16 > MAX_RANGES {
            return Err(Refusal::in_list(at));
        }
        let mut ranges: Ranges = Vec::with_capacity(length / 16);
        for descriptor in list.chunks_exact(16) {
            let short = |_| Refusal::illegal(asc::PARAMETER_LIST_LENGTH);
            let (_, (lba, blocks)) = range(descriptor).map_err(short)?;
            let found = self.unit.bytes(lba, blocks.into())?;
            let overlaps = |it: &(u64, u64)| it.0 < found.0 + found.1 && found.0 < it.0 + it.1;
            if ranges.iter().any(overlaps) {
                return Err(Refusal::in_list(at));
            }
            ranges.push(found);
        }
        if ranges.iter().map(|(_, len)| len).sum::<u64>() > MAX_TOKEN_BYTES {
            return Err(Refusal::in_list(at));
        }
        Ok(ranges)
    }

    async fn zeros(&self, ranges: &[(u64, u64)], moved: &mut u64) -> Done {
        let block = u64::from(self.unit.block());
        let disk = self.unit.disk();
        for &(offset, len) in ranges {
            let guard = self.unit.ranges.shared(offset / block, len / block).await;
            self.still_allowed(Access::Write)?;
            self.target.tokens.changed(self.unit, offset, len);
            zero_carried(guard, &disk, offset, len, self.unit.options.provisioning).await?;
            *moved += len;
        }
        self.unit.settle(&*disk, false).await
    }

    /// Writes the data of a token behind the first `skip` bytes, as far as they go.
    async fn tokens_data(
        &self,
        id: u64,
        source: Source,
        mut skip: u64,
        ranges: &[(u64, u64)],
        moved: &mut u64,
    ) -> Done {
        if !source.unit.block().is_multiple_of(self.unit.block()) {
            return Err(Refusal::illegal(asc::TOKEN_REMOTE));
        }
        let good = || {
            let revoked = Refusal::illegal(asc::TOKEN_REVOKED);
            if self.target.tokens.holds(id) { Ok(()) } else { Err(revoked) }
        };
        usable(&source.unit, self.nexus, Access::Read)?;
        let mut targets = ranges.iter().copied();
        let mut target = targets.next();
        for (offset, len) in source.ranges {
            let gone = skip.min(len);
            skip -= gone;
            let (mut offset, mut left) = (offset + gone, len - gone);
            while let Some((to, room)) = target.filter(|_| left > 0) {
                let part = left.min(room);
                let from = Place { unit: &source.unit, offset };
                let sink = Place { unit: self.unit, offset: to };
                move_bytes(self.target, self.nexus, from, sink, part, good).await?;
                *moved += part;
                (offset, left) = (offset + part, left - part);
                target = if part < room { Some((to + part, room - part)) } else { targets.next() };
            }
        }
        Ok(())
    }
}

/// Flags, time, type, length of the ranges (SBC-3 5.7.2).
fn populate(list: &[u8]) -> IResult<&[u8], (u8, u32, u32, u16)> {
    let (rest, (_, flags, _, timeout, kind, _, ranges)) =
        (be_u16, be_u8, be_u8, be_u32, be_u32, be_u16, be_u16).parse(list)?;
    Ok((rest, (flags, timeout, kind, ranges)))
}

/// Flags, offset into the data in blocks, token, length of the ranges (SBC-3 5.56.2).
fn using(list: &[u8]) -> IResult<&[u8], (u8, u64, &[u8], u16)> {
    let (rest, (_, flags, _, _, skip)) = (be_u16, be_u8, be_u8, be_u32, be_u64).parse(list)?;
    let (rest, (token, _, ranges)) = (take(tokens::LENGTH), take(6usize), be_u16).parse(rest)?;
    Ok((rest, (flags, skip, token, ranges)))
}

fn range(descriptor: &[u8]) -> IResult<&[u8], (u64, u32)> {
    (be_u64, be_u32).parse(descriptor)
}
