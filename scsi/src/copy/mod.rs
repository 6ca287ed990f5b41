//! Third-party copies (SPC-4 5.16): data go from logical unit to logical unit without passing an
//! initiator.
//!
//! ```text
//!  EXTENDED COPY ──► extended.rs ──► segments ─────┐
//!  POPULATE TOKEN ─► offload.rs ───► tokens.rs     ├──► move_bytes ──► disks
//!  WRITE USING TOKEN ► offload.rs ─► ranges ───────┘        │
//!                          └► foreign.rs: tokens of files and of other targets
//!  RECEIVE COPY …  ◄── results.rs ◄─────────────────────────┘ how it ended, by list identifier
//! ```

mod extended;
mod foreign;
mod offload;
mod page;
mod results;
mod tokens;

pub(crate) use foreign::Blocks;
pub use foreign::{ForeignTokens, TokenData, TokenError, TokenRead};
pub(crate) use page::third_party_page;
pub(crate) use results::{Results, operating_parameters};
pub(crate) use tokens::Tokens;

use crate::{
    Nexus,
    cdb::Access,
    media::write_carried,
    refusal::{Done, Refusal},
    target::Target,
    unit::Unit,
};

/// Identification descriptor CSCD descriptor.
const IDENTIFICATION: u8 = 0xe4;
/// Block device to block device, and the same with offsets in bytes.
const BLOCK_TO_BLOCK: u8 = 0x02;
const BLOCK_TO_BLOCK_OFFSET: u8 = 0x0a;

/// Most CSCD descriptors of one list.
const MAX_TARGETS: usize = 16;
/// Most segment descriptors of one list.
const MAX_SEGMENTS: usize = 64;
/// Most bytes of both lists together.
const MAX_LISTS: usize = MAX_TARGETS * 32 + MAX_SEGMENTS * 28;
/// Most bytes of one segment.
const MAX_SEGMENT_BYTES: u64 = 16 << 20;
/// Bytes that are moved at a time.
const CHUNK: u64 = 1 << 20;

/// Bytes of one logical unit.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    unit: &'a Unit,
    offset: u64,
}

/// What a logical unit says to a copy that reads of it or writes to it.
///
/// # Errors
/// A reservation, an operation or a state that is against it.
fn usable(unit: &Unit, nexus: &Nexus, access: Access) -> Done {
    unit.reservations.check(nexus, access)?;
    unit.has_medium()?;
    unit.sanitize.check()?;
    if access == Access::Write {
        unit.not_crowded()?;
        unit.writable()?;
    }
    Ok(())
}

/// Moves bytes, from the end backwards where that is needed so that no byte is written over
/// before it was read. `still_good` is asked between reading and writing.
async fn move_bytes(
    target: &Target,
    nexus: &Nexus,
    from: Place<'_>,
    to: Place<'_>,
    len: u64,
    still_good: impl Fn() -> Done,
) -> Done {
    let backwards = std::ptr::eq(from.unit, to.unit) && from.offset < to.offset;
    let (source, sink) = (from.unit.disk(), to.unit.disk());
    let mut buffer = vec![0; CHUNK.min(len) as usize];
    let mut done = 0;
    while done < len {
        let part = CHUNK.min(len - done);
        let at = if backwards { len - done - part } else { done };
        buffer.truncate(part as usize);
        {
            let block = u64::from(from.unit.block());
            let offset = from.offset + at;
            let _guard = from.unit.ranges.shared(offset / block, part.div_ceil(block)).await;
            usable(from.unit, nexus, Access::Read)?;
            source.read_at(offset, &mut buffer).await.map_err(Refusal::reading)?;
        }
        still_good()?;
        let block = u64::from(to.unit.block());
        let offset = to.offset + at;
        let guard = to.unit.ranges.shared(offset / block, part.div_ceil(block)).await;
        usable(to.unit, nexus, Access::Write)?;
        target.tokens.changed(to.unit, offset, part);
        (_, buffer) = write_carried(guard, &sink, offset, buffer).await?;
        done += part;
    }
    to.unit.settle(&*sink, false).await
}
