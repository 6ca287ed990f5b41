//! Tokens that cross the border of a target: what ours stand for, for others of the same program
//! (a file server), and what theirs stand for, for WRITE USING TOKEN.
//!
//! ```text
//!  FSCTL_OFFLOAD_WRITE ─► the program ─► Units::token ─► TokenData ─► blocks of a unit
//!  WRITE USING TOKEN ──► ForeignTokens (the program) ──► TokenData ─► a file, another target
//! ```
//! Both kinds have the same 512 bytes around what only their makers read (SPC-4 5.16.6, MS-FSCC
//! 2.3.42). Who may use whose is for the program to say.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use super::{offload::MAX_TOKEN_BYTES, tokens::Source, usable};
use crate::{Nexus, asc, cdb::Access, refusal::Refusal, target::Target, unit::Unit};

/// Bytes that are moved at a time.
const CHUNK: u64 = 1 << 20;

/// Why the data of a token cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// They have changed, or whoever made the token has withdrawn it.
    #[error("the token does not stand for its data any more")]
    Void,
    /// Somebody has reserved them, or their unit is not ready.
    #[error("the data of the token are not to be read now")]
    Withheld,
    /// Their storage failed.
    #[error("the data of the token cannot be read")]
    Storage(#[source] block_io::Error),
}

/// How reading the data of a token ends.
pub type TokenRead<'a> = Pin<Box<dyn Future<Output = Result<(), TokenError>> + Send + 'a>>;

/// What a token stands for.
pub trait TokenData: fmt::Debug + Send + Sync {
    /// How many bytes.
    fn length(&self) -> u64;

    /// Fills `buf` from byte `offset` of the data on; both lie within them. What was read counts only
    /// if this ends well.
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> TokenRead<'a>;
}

/// Finds what tokens stand for that a target did not make.
pub trait ForeignTokens: Send + Sync + 'static {
    /// The data of a token (512 bytes), if they are for initiators of this target.
    fn find(&self, token: &[u8]) -> Option<Arc<dyn TokenData>>;
}

/// Blocks of a unit that one of our tokens stands for.
pub(crate) struct Blocks {
    target: Arc<Target>,
    id: u64,
    source: Source,
    stranger: Nexus,
}

impl fmt::Debug for Blocks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Blocks").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Blocks {
    /// What one of a target's tokens stands for; `None` if it does not, or for zeros.
    pub(crate) fn find(target: &Arc<Target>, token: &[u8]) -> Option<Self> {
        let (id, source) = target.tokens.find(token).ok().flatten()?;
        // Whoever reads it is no initiator, so a reservation that keeps others from reading is
        // against it.
        let stranger = Nexus { id: u64::MAX, initiator: Arc::from(""), port: 0 };
        Some(Self { target: target.clone(), id, source, stranger })
    }

    /// Reads bytes of the unit, whole blocks of which it must read even for a part of one.
    async fn piece(&self, unit: &Unit, offset: u64, buf: &mut [u8]) -> Result<(), TokenError> {
        let block = u64::from(unit.block());
        let end = offset + buf.len() as u64;
        let (first, last) = (offset / block, end.div_ceil(block));
        let _guard = unit.ranges.shared(first, last - first).await;
        usable(unit, &self.stranger, Access::Read).map_err(|_| TokenError::Withheld)?;
        let disk = unit.disk();
        if offset.is_multiple_of(block) && end.is_multiple_of(block) {
            disk.read_at(offset, buf).await.map_err(TokenError::Storage)?;
        } else {
            let mut whole = vec![0; ((last - first) * block) as usize];
            disk.read_at(first * block, &mut whole).await.map_err(TokenError::Storage)?;
            let skip = (offset - first * block) as usize;
            buf.copy_from_slice(&whole[skip..skip + buf.len()]);
        }
        if self.target.tokens.holds(self.id) { Ok(()) } else { Err(TokenError::Void) }
    }
}

impl TokenData for Blocks {
    fn length(&self) -> u64 {
        self.source.ranges.iter().map(|(_, len)| len).sum()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> TokenRead<'a> {
        Box::pin(async move {
            let (mut skip, mut rest) = (offset, buf);
            for &(start, len) in &self.source.ranges {
                let gone = skip.min(len);
                skip -= gone;
                let part = (len - gone).min(rest.len() as u64) as usize;
                if part > 0 {
                    let (now, later) = rest.split_at_mut(part);
                    self.piece(&self.source.unit, start + gone, now).await?;
                    rest = later;
                }
            }
            if rest.is_empty() { Ok(()) } else { Err(TokenError::Void) }
        })
    }
}

impl crate::call::Call<'_> {
    /// Writes the data of a token that another made, behind its first `skip` bytes, in whole blocks
    /// as far as they go.
    pub(super) async fn foreign_data(
        &self,
        data: &dyn TokenData,
        mut skip: u64,
        ranges: &[(u64, u64)],
        moved: &mut u64,
    ) -> crate::refusal::Done {
        let block = u64::from(self.unit.block());
        let disk = self.unit.disk();
        let mut left = data.length().saturating_sub(skip) / block * block;
        let mut buffer = vec![0; CHUNK.min(left.min(MAX_TOKEN_BYTES)) as usize];
        for &(offset, len) in ranges {
            let (mut to, end) = (offset, offset + len.min(left));
            left -= end - offset;
            while to < end {
                let part = CHUNK.min(end - to);
                buffer.resize(part as usize, 0);
                data.read_at(skip, &mut buffer).await.map_err(refused)?;
                let guard = self.unit.ranges.shared(to / block, part / block).await;
                (_, buffer) = self.put(guard, &disk, to, buffer).await?;
                (to, skip, *moved) = (to + part, skip + part, *moved + part);
            }
        }
        self.unit.settle(&*disk, false).await
    }
}

fn refused(error: TokenError) -> Refusal {
    match error {
        TokenError::Void => Refusal::illegal(asc::TOKEN_REVOKED),
        TokenError::Withheld => Refusal::Conflict,
        TokenError::Storage(error) => Refusal::reading(error),
    }
}
