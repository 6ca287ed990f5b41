//! Opens that are in the way when a name changes: of what is below a folder, of a file that is
//! replaced (MS-FSA 2.1.4.2, 2.1.5.15.12), of the folder that the name is to be in. A client may have
//! closed its file long ago and keep the handle: before it stands in the way, it is asked for that.
//!
//! ```text
//!  find ─► none ─► go on
//!    │
//!    ├─ one that caches no handle, or whose client is away and will be back ─► refused
//!    ├─ one that is being asked ─► wait
//!    ├─ as many as when the last was asked, or only such as came since ─► refused
//!    └─ ask one ─► wait ─► find again
//! ```
//! They are asked one after the other: one that stays spares the rest. That there must be fewer each
//! time ends it. Who comes meanwhile is not asked, and is in the way at the end only: NTFS counts all
//! alike (MS-FSA, note on 2.1.5.15.12), so that what others are asked depends on whether it or they are
//! quicker. Which there were is remembered by the request that asks ([`Asked`]), and ends with it,
//! however it ends.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::fs::Stat;
use smb_protocol::{
    NtStatus,
    msg::{
        context::LeaseState,
        create::{Access, ShareAccess},
    },
};

use crate::{
    fs::path::RelPath,
    open::{Open, table::OpenFileTable},
    sharing::{
        caching::{BreakReason, GrantOwner, LeaseId},
        file::{OpenFile, Refused, State, Use, lock},
        modes::{STREAM_BASE, conflicts, takes_part},
    },
};

/// Nobody who asks has a part in what he asks for: of a folder's open, or of a file that another one
/// replaces, the lease is none of what is below or replaced.
const NOBODY: (u64, Option<LeaseId>) = (0, None);
/// How long a stream that is being closed takes to leave its file as well.
const A_MOMENT: Duration = Duration::from_millis(50);

/// How many opens were in the way of a request when it had the last of them asked to close, and the
/// newest of them: whoever came since has a higher number. It begins anew with each request, and goes
/// with it from one attempt to the next.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Asked(Option<(usize, u64)>);

/// An open that is in the way.
struct InTheWay {
    open: u64,
    /// What it is known by: a file, for a stream the file that it belongs to.
    file: Arc<OpenFile>,
    stream: bool,
}

impl InTheWay {
    fn of(file: &Arc<OpenFile>, state: &State, which: impl Fn(&RelPath) -> bool) -> Vec<Self> {
        let named = |user: &&Use| state.links.get(user.link).is_some_and(|link| which(&link.path));
        let users = state.users.iter().filter(named);
        users
            .map(|user| Self {
                open: user.id,
                file: file.clone(),
                stream: user.access.without(STREAM_BASE) == Access::NONE,
            })
            .collect()
    }
}

impl OpenFileTable {
    /// All opens strictly below a folder, which stands at that place from the root of the system.
    fn below(&self, device: u64, folder: &RelPath) -> Vec<InTheWay> {
        self.each_file(|file| {
            let here = file.key().0 == device;
            here.then(|| InTheWay::of(file, &lock(&file.state), |path| path.is_below(folder)))
        })
    }

    /// All opens of a file.
    fn opens_of(&self, stat: &Stat) -> Vec<InTheWay> {
        let Some(file) = self.get(stat) else { return Vec::new() };
        InTheWay::of(&file, &lock(&file.state), |_| true)
    }

    /// Adds an opener to a folder for a moment, as far as those who have it open can say: fails if
    /// they do not agree, once those who cache it were asked to close it.
    ///
    /// # Errors
    /// `SHARING_VIOLATION`, or that the request must wait.
    pub fn enter(&self, stat: &Stat, access: Access, share: ShareAccess) -> Result<(), Refused> {
        let Some(folder) = self.get(stat) else { return Ok(()) };
        let hindering: Vec<u64> = {
            let state = lock(&folder.state);
            let hinders = |user: &&Use| {
                takes_part(user.access)
                    && (conflicts(access, user.share) || conflicts(user.access, share))
            };
            state.users.iter().filter(hinders).map(|user| user.id).collect()
        };
        if hindering.is_empty() {
            return Ok(());
        }
        let concerns =
            |_: &GrantOwner, opens: &[u64]| opens.iter().any(|open| hindering.contains(open));
        self.break_where(&folder, BreakReason::Sharing, NOBODY, concerns)?;
        Err(NtStatus::SHARING_VIOLATION.into())
    }
}

impl Open {
    /// Fails if anything below this folder is open, once those who cache it were asked to close it.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, or that the request must wait.
    pub fn clear_below(&self, asked: &mut Asked) -> Result<(), Refused> {
        let Some(folder) = self.file.path(self.opener_id()) else { return Ok(()) };
        let device = self.file.key().0;
        self.clear(asked, || self.table().below(device, &folder))
    }

    /// Fails if a file is open whose name this one is to have, once those who cache it were asked to
    /// close it.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, or that the request must wait.
    pub fn clear_replaced(&self, stat: &Stat, asked: &mut Asked) -> Result<(), Refused> {
        self.clear(asked, || self.table().opens_of(stat))
    }

    fn clear(&self, asked: &mut Asked, find: impl Fn() -> Vec<InTheWay>) -> Result<(), Refused> {
        loop {
            let mut all = find();
            if all.is_empty() {
                return Ok(());
            }
            let denied = Err(NtStatus::ACCESS_DENIED.into());
            if let Some((_, newest)) = asked.0 {
                all.retain(|open| open.open <= newest);
            }
            let Some(first) = all.first() else { return denied };
            let Some(first) = self.holder_of(first) else {
                return Err(first.file.wake(Instant::now() + A_MOMENT));
            };
            let (mut holder, mut waits) = (first, false);
            for open in &all {
                let Some(its) = self.holder_of(open) else { continue };
                let (state, breaking) = self.caches(open, &its);
                if !state.has(LeaseState::HANDLE) {
                    return denied;
                }
                if breaking && !waits {
                    (holder, waits) = (its, true);
                }
            }
            if !waits {
                if asked.0.is_some_and(|(before, _)| all.len() >= before) {
                    return denied;
                }
                let newest = all.iter().map(|open| open.open).max();
                *asked = Asked(newest.map(|newest| (all.len(), newest)));
            }
            self.table().break_for(&holder, BreakReason::Rename, NOBODY)?;
            // Nobody was there to be asked, and then it is closed; or time was over.
        }
    }

    /// Where what an open caches is kept; `None` if it is being closed.
    fn holder_of(&self, open: &InTheWay) -> Option<Arc<OpenFile>> {
        match open.stream {
            true => self.table().open(open.open).map(|open| open.file.clone()),
            false => Some(open.file.clone()),
        }
    }

    /// What an open caches that could be asked for, and whether it is being asked already.
    fn caches(&self, open: &InTheWay, holder: &OpenFile) -> (LeaseState, bool) {
        let away = self.table().disconnected.get(open.open);
        match away.is_some_and(|open| open.is_resilient()) {
            // Its client will be back, and what it caches is not taken away meanwhile.
            true => (LeaseState::NONE, false),
            false => holder.caching(open.open),
        }
    }
}
