//! LOCK (MS-SMB2 3.3.5.14).

use std::{sync::Arc, time::Instant};

use smb_protocol::{
    NtStatus,
    msg::{
        create::Access,
        lock::{Element, LockFlags, Request},
        simple::Empty,
    },
};
use tokio::sync::oneshot;
use volume::{
    clock,
    open::{LOCK_SEQUENCES, Open, persistent::of_store},
    sharing::locks::Range,
    work::aside,
};

use super::{Ctx, Deferred, Handled, Outcome};
use crate::meters::{
    path::Phase,
    waits::{Wait, WaitInfo},
};

/// Ranges that are quickly locked or released, however many the file has.
const FEW: usize = 64;

/// Carries out a LOCK request.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(body)?;
    let open = ctx.open(request.file_id)?;
    if open.directory {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    // Who may neither read nor write the content keeps nobody from it (NtLockFile asks for one of
    // the two rights; MS-SMB2 3.3.5.14 and MS-FSA 2.1.5.8 name none).
    open.need(Access::READ_DATA.or(Access::WRITE_DATA))?;
    let unlocks = request.locks[0].flags.has(LockFlags::UNLOCK);
    let sequence = Sequence::of(&request);
    if sequence.is_some_and(|sequence| sequence.was_done(&open)) {
        // It may not be durable yet: the first copy may still wait for that.
        return noted(open, out);
    }
    // Each of the list may be looked for among all of its file.
    let many = request.locks.len() > FEW;
    if unlocks {
        let release = || unlock(&open, &request.locks);
        if many { aside(release) } else { release() }?;
    } else {
        // MS-SMB2 3.3.5.2.9 lets an expired session lock. As on Windows it may give up what it has, and
        // take nothing more; its client logs on again and asks once more (3.2.5.1.6).
        if ctx.session()?.expired(clock::now) {
            return Err(NtStatus::NETWORK_SESSION_EXPIRED.into());
        }
        open.break_read_caching()?;
        let take = || lock(&open, &request.locks);
        if let Some((range, exclusive)) = if many { aside(take) } else { take() }? {
            let counted = counted(ctx, &open, range);
            return Ok(wait(open, (range, exclusive), sequence, counted).into());
        }
    }
    if let Some(sequence) = sequence {
        sequence.note(&open);
    }
    noted(open, out)
}

/// Answers when the locks of the open, as they are now, outlive the server as it does.
fn noted(open: Arc<Open>, out: &mut Vec<u8>) -> Handled {
    let Some(noted) = open.note_locks() else {
        Empty.encode(out);
        return Ok(Outcome::SUCCESS);
    };
    Ok(Outcome::Deferred(Deferred::storage(0, async move {
        noted.await.map_err(|error| of_store(&error))?;
        let _open = open;
        let mut body = Vec::new();
        Empty.encode(&mut body);
        Ok(body)
    })))
}

fn range(element: &Element) -> Result<Range, NtStatus> {
    Range::new(element.offset, element.length).ok_or(NtStatus::INVALID_LOCK_RANGE)
}

/// Releases ranges in turn; those before one that cannot be released stay released (3.3.5.14.1).
fn unlock(open: &Open, elements: &[Element]) -> Result<(), NtStatus> {
    for element in elements {
        if element.flags != LockFlags::UNLOCK {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        let found = Range::new(element.offset, element.length)
            .is_some_and(|range| open.unlock_range(range));
        if !found {
            return Err(NtStatus::RANGE_NOT_LOCKED);
        }
    }
    Ok(())
}

/// Takes ranges in turn; none is kept when one cannot be had (3.3.5.14.2). Gives back the range
/// that must be waited for.
fn lock(open: &Open, elements: &[Element]) -> Result<Option<(Range, bool)>, NtStatus> {
    let several = elements.len() > 1;
    let mut taken = Vec::new();
    let mut take = |element: &Element| {
        let now = element.flags.has(LockFlags::FAIL_IMMEDIATELY);
        let exclusive = match element.flags.without(LockFlags::FAIL_IMMEDIATELY) {
            LockFlags::SHARED => false,
            LockFlags::EXCLUSIVE => true,
            _ => return Err(NtStatus::INVALID_PARAMETER),
        };
        if several && !now {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        let range = range(element)?;
        if open.lock_range(range, exclusive)? {
            taken.push(range);
            return Ok(None);
        }
        if now { Err(NtStatus::LOCK_NOT_GRANTED) } else { Ok(Some((range, exclusive))) }
    };
    let mut result = Ok(None);
    for element in elements {
        result = take(element);
        if !matches!(result, Ok(None)) {
            break;
        }
    }
    if result.is_err() {
        for range in taken {
            open.unlock_range(range);
        }
    }
    result
}

/// Begins to time a wait for a range.
fn counted(ctx: &Ctx<'_>, open: &Open, range: Range) -> Wait {
    let meters = &ctx.ex.server.meters;
    let info = WaitInfo {
        phase: Phase::Lock,
        share: open.origin.share.clone(),
        file: Some(open.file.key()),
        range: Some(range),
        since: Instant::now(),
    };
    let share = ctx.tree.as_ref().and_then(|tree| tree.meter.clone());
    meters.waits.begin(info, share, Some(meters.files.of(open)))
}

/// Waits until a range is free.
fn wait(
    open: Arc<Open>,
    (range, exclusive): (Range, bool),
    sequence: Option<Sequence>,
    counted: Wait,
) -> Deferred {
    let (cancel, mut cancelled) = oneshot::channel::<()>();
    let ended = open.closed.clone().notified_owned();
    Deferred::event(0, cancel, async move {
        tokio::pin!(ended);
        loop {
            let changed = open.file.changed();
            if open.lock_range(range, exclusive)? {
                break;
            }
            tokio::select! {
                () = changed => {}
                () = &mut ended => return Err(NtStatus::RANGE_NOT_LOCKED),
                Ok(()) = &mut cancelled => return Err(NtStatus::CANCELLED),
            }
        }
        drop(counted);
        if let Some(sequence) = sequence {
            sequence.note(&open);
        }
        if let Some(noted) = open.note_locks() {
            noted.await.map_err(|error| of_store(&error))?;
        }
        let mut body = Vec::new();
        Empty.encode(&mut body);
        Ok((NtStatus::SUCCESS, body))
    })
}

/// A numbered request: one that comes again is not carried out twice (3.3.5.14).
#[derive(Debug, Clone, Copy)]
struct Sequence {
    index: usize,
    number: u8,
}

impl Sequence {
    fn of(request: &Request) -> Option<Self> {
        let index = (request.sequence >> 4) as usize;
        let number = (request.sequence & 0xf) as u8;
        (1..=LOCK_SEQUENCES).contains(&index).then(|| Self { index: index - 1, number })
    }

    /// Whether it was carried out before; an older number in its place is forgotten.
    fn was_done(self, open: &Open) -> bool {
        let mut state = open.state();
        let Some(numbers) = &mut state.lock_sequences else { return false };
        if numbers[self.index] == self.number {
            return true;
        }
        numbers[self.index] = u8::MAX;
        false
    }

    fn note(self, open: &Open) {
        let mut state = open.state();
        let numbers =
            state.lock_sequences.get_or_insert_with(|| Box::new([u8::MAX; LOCK_SEQUENCES]));
        numbers[self.index] = self.number;
    }
}
