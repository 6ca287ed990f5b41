//! EXTENDED COPY (SPC-4 6.4, 6.5): segments of blocks from one logical unit of the target to
//! another, or within one.

use std::sync::Arc;

use nom::{
    IResult, Parser,
    bytes::complete::take,
    number::complete::{be_u8, be_u16, be_u24, be_u32, be_u64},
};

use super::{
    BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_OFFSET, IDENTIFICATION, MAX_LISTS, MAX_SEGMENT_BYTES,
    MAX_SEGMENTS, MAX_TARGETS, Place, move_bytes,
    results::{Family, Outcome},
    usable,
};
use crate::{
    Sense, SenseKey, asc,
    call::Call,
    cdb::Access,
    inquiry::naa,
    refusal::{Done, Refusal},
    unit::Unit,
};

/// A CSCD descriptor that means the logical unit that got the command.
const SELF: u16 = 0xffff;
/// LIST ID USAGE: there is no list identifier.
const NO_LIST: u8 = 3;

/// The fields in front of the descriptors.
#[derive(Debug, Clone, Copy)]
struct Header {
    list: u32,
    usage: u8,
    targets: usize,
    segments: usize,
    inline: usize,
    /// Where the descriptors begin.
    length: usize,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    kind: u8,
    /// The length counts blocks of the destination.
    destination_counts: bool,
    source: u16,
    destination: u16,
    /// Blocks, or bytes where there are offsets in bytes.
    length: u32,
    from: u64,
    to: u64,
    from_bytes: u16,
    to_bytes: u16,
}

impl Call<'_> {
    pub(crate) async fn extended_copy(&self, long: bool, length: u32) -> Done {
        if length == 0 {
            return Ok(());
        }
        let list = self.list(length);
        let short = Refusal::illegal(asc::PARAMETER_LIST_LENGTH);
        if list.len() < length as usize {
            return Err(short);
        }
        let (_, header) = if long { header_4(list) } else { header_1(list) }.map_err(|_| short)?;
        let header = header?;
        let body = &list[header.length..];
        if header.targets + header.segments + header.inline > body.len()
            || header.targets + header.segments > MAX_LISTS
        {
            return Err(short);
        }
        if header.inline != 0 {
            return Err(Refusal::in_list(12));
        }
        let (targets, rest) = body.split_at(header.targets);
        let units = self.targets(targets, header.length)?;
        let segments = segments(&rest[..header.segments], header.length + header.targets)?;
        let mut outcome = Outcome {
            nexus: self.nexus.id,
            family: if long { Family::Long } else { Family::Short },
            list: header.list,
            action: u8::from(long),
            end: Ok(()),
            partial: false,
            segments: 0,
            count: 0,
            token: None,
        };
        for segment in segments {
            match self.segment(&units, segment).await {
                Ok(bytes) => outcome.count += bytes,
                Err(refusal) => {
                    outcome.end = Err(aborted(refusal, outcome.segments));
                    break;
                }
            }
            outcome.segments += 1;
        }
        let end = outcome.end;
        if header.usage != NO_LIST {
            self.target.results.keep(outcome);
        }
        end
    }

    /// The logical units that the list of CSCD descriptors names; `None` for one that is not here.
    fn targets(&self, list: &[u8], base: usize) -> Result<Vec<Option<Arc<Unit>>>, Refusal> {
        if !list.len().is_multiple_of(32) {
            return Err(Refusal::illegal(asc::PARAMETER_LIST_LENGTH));
        }
        if list.len() / 32 > MAX_TARGETS {
            return Err(Refusal::illegal(asc::TOO_MANY_TARGETS));
        }
        let mut units = Vec::with_capacity(list.len() / 32);
        for (n, descriptor) in list.chunks_exact(32).enumerate() {
            let at = base + 32 * n;
            if descriptor[0] != IDENTIFICATION {
                return Err(Refusal::illegal(asc::TARGET_TYPE));
            }
            if descriptor[1] & 0x1f != 0 {
                return Err(Refusal::in_list(at + 1));
            }
            let short = |_| Refusal::illegal(asc::PARAMETER_LIST_LENGTH);
            let (_, (name, block)) = identification(descriptor).map_err(short)?;
            let unit = name.and_then(|name| {
                self.target
                    .visible(self.nexus)
                    .into_iter()
                    .find(|it| naa(&it.options.identity) == *name)
            });
            if unit.as_ref().is_some_and(|it| block != 0 && it.block() != block) {
                return Err(Refusal::in_list(at + 29));
            }
            units.push(unit);
        }
        Ok(units)
    }

    fn unit_of(&self, units: &[Option<Arc<Unit>>], at: u16) -> Result<Arc<Unit>, Refusal> {
        if at == SELF {
            return Ok(Arc::clone(self.unit));
        }
        let unit = units.get(usize::from(at));
        let unit = unit.ok_or(Refusal::illegal(asc::UNREACHABLE_COPY_TARGET))?;
        unit.clone().ok_or(Refusal::illegal(asc::COPY_TARGET_NOT_REACHABLE))
    }

    /// Carries out one segment and answers how many bytes it moved.
    async fn segment(&self, units: &[Option<Arc<Unit>>], segment: Segment) -> Result<u64, Refusal> {
        let from = self.unit_of(units, segment.source)?;
        let to = self.unit_of(units, segment.destination)?;
        let (from_block, to_block) = (u64::from(from.block()), u64::from(to.block()));
        let len = match segment.kind {
            BLOCK_TO_BLOCK if segment.destination_counts => u64::from(segment.length) * to_block,
            BLOCK_TO_BLOCK => u64::from(segment.length) * from_block,
            _ => segment.length.into(),
        };
        // What is not whole blocks on both sides would need data from behind its end.
        let whole = |bytes: u16, block: u64| u64::from(bytes).is_multiple_of(block);
        if len > MAX_SEGMENT_BYTES
            || !len.is_multiple_of(from_block)
            || !len.is_multiple_of(to_block)
            || !whole(segment.from_bytes, from_block)
            || !whole(segment.to_bytes, to_block)
        {
            return Err(Refusal::in_list(8));
        }
        let place = |unit: &Unit, lba: u64, bytes: u16, block: u64| {
            let lba = lba.saturating_add(u64::from(bytes) / block);
            unit.bytes(lba, len / block).map(|(offset, _)| offset)
        };
        let source = place(&from, segment.from, segment.from_bytes, from_block)?;
        let sink = place(&to, segment.to, segment.to_bytes, to_block)?;
        usable(&from, self.nexus, Access::Read)?;
        usable(&to, self.nexus, Access::Write)?;
        let source = Place { unit: &from, offset: source };
        let sink = Place { unit: &to, offset: sink };
        move_bytes(self.target, self.nexus, source, sink, len, || Ok(())).await?;
        Ok(len)
    }
}

/// COPY ABORTED: what went wrong with a segment, and how many were done before it (SPC-4 5.16.7.4).
fn aborted(refusal: Refusal, done: u16) -> Refusal {
    let code = match refusal {
        Refusal::Check(Sense {
            code: code @ (asc::UNREACHABLE_COPY_TARGET | asc::COPY_TARGET_NOT_REACHABLE),
            ..
        }) => code,
        Refusal::Conflict => return Refusal::Conflict,
        _ => asc::NONE,
    };
    Refusal::Check(Sense {
        information: Some(done.into()),
        ..Sense::new(SenseKey::CopyAborted, code)
    })
}

type Parsed<'a, T> = IResult<&'a [u8], T>;

fn header_1(list: &[u8]) -> Parsed<'_, Result<Header, Refusal>> {
    let (rest, (id, flags, targets, _, segments, inline)) =
        (be_u8, be_u8, be_u16, be_u32, be_u32, be_u32).parse(list)?;
    let header = Header {
        list: id.into(),
        usage: flags >> 3 & 3,
        targets: targets.into(),
        segments: segments as usize,
        inline: inline as usize,
        length: 16,
    };
    Ok((rest, limited(header)))
}

fn header_4(list: &[u8]) -> Parsed<'_, Result<Header, Refusal>> {
    let (rest, (format, flags, length, _, kind)) =
        (be_u8, be_u8, be_u16, take(12usize), be_u8).parse(list)?;
    let (rest, (_, id, _, targets, segments, inline)) =
        (be_u24, be_u32, take(18usize), be_u16, be_u16, be_u16).parse(rest)?;
    if (format, length, kind) != (1, 0x20, 0xff) {
        return Ok((rest, Err(Refusal::in_list(0))));
    }
    let header = Header {
        list: id,
        usage: flags >> 3 & 3,
        targets: targets.into(),
        segments: segments.into(),
        inline: inline.into(),
        length: 48,
    };
    Ok((rest, limited(header)))
}

/// Lengths that can be added without overflow.
fn limited(header: Header) -> Result<Header, Refusal> {
    if header.segments > 1 << 24 || header.inline > 1 << 24 {
        return Err(Refusal::illegal(asc::PARAMETER_LIST_LENGTH));
    }
    Ok(header)
}

/// The NAA name in an identification descriptor, if it has one of ours, and the block length.
fn identification(descriptor: &[u8]) -> Parsed<'_, (Option<&[u8]>, u32)> {
    let (rest, (_, code_set, kind, _, length)) =
        (be_u32, be_u8, be_u8, be_u8, be_u8).parse(descriptor)?;
    let (rest, (name, _, block)) = (take(20usize), be_u8, be_u24).parse(rest)?;
    let ours = code_set & 0x0f == 1 && kind & 0x3f == 3 && length == 8;
    Ok((rest, (ours.then_some(&name[..8]), block)))
}

fn segments(mut list: &[u8], base: usize) -> Result<Vec<Segment>, Refusal> {
    let short = Refusal::illegal(asc::PARAMETER_LIST_LENGTH);
    let whole = list.len();
    let mut all = Vec::new();
    while !list.is_empty() {
        if all.len() == MAX_SEGMENTS {
            return Err(Refusal::illegal(asc::TOO_MANY_SEGMENTS));
        }
        let at = base + whole - list.len();
        let (rest, (kind, length)) = segment_head(list).map_err(|_| short)?;
        let expected = match kind {
            BLOCK_TO_BLOCK => 0x18,
            BLOCK_TO_BLOCK_OFFSET => 0x1c,
            _ => return Err(Refusal::illegal(asc::SEGMENT_TYPE)),
        };
        if length != expected {
            return Err(Refusal::in_list(at + 2));
        }
        if rest.len() < usize::from(length) {
            return Err(short);
        }
        let (_, segment) = segment(list).map_err(|_| short)?;
        all.push(segment);
        list = &rest[usize::from(length)..];
    }
    Ok(all)
}

fn segment_head(list: &[u8]) -> Parsed<'_, (u8, u16)> {
    let (rest, (kind, _, length)) = (be_u8, be_u8, be_u16).parse(list)?;
    Ok((rest, (kind, length)))
}

fn segment(list: &[u8]) -> Parsed<'_, Segment> {
    let (rest, (kind, flags, _, source, destination, length, from, to)) =
        (be_u8, be_u8, be_u16, be_u16, be_u16, be_u32, be_u64, be_u64).parse(list)?;
    let offset = kind == BLOCK_TO_BLOCK_OFFSET;
    let (rest, (from_bytes, to_bytes)) =
        if offset { (be_u16, be_u16).parse(rest)? } else { (rest, (0, 0)) };
    Ok((
        rest,
        Segment {
            kind,
            destination_counts: flags & 0x02 != 0,
            source,
            destination,
            length: if offset { length } else { length & 0xffff },
            from,
            to,
            from_bytes,
            to_bytes,
        },
    ))
}
