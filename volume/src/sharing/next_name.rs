//! The name that a file is about to get, where the state store must know it first: a server that
//! ends in between leaves the file under the old name or the new, and the next looks at both.
//!
//! ```text
//!  ask ─► Begin: put it into the store ─► known ─► ask ─► Ready: rename, note the name ─► dropped
//!   └──► Wait: one of this file is under way
//! ```
//!
//! There is one at a time for a file, whichever of its opens renames it: the store has room for one,
//! and another would take its place before the file has its name.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use smb_protocol::NtStatus;
use tokio::sync::Notify;

use crate::{fs::path::RelPath, sharing::file::Wake};

/// How long a request waits at most before it looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// What a file is about to be called.
#[derive(Debug, Default)]
pub struct NextName {
    announced: Mutex<Option<Announced>>,
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Announced {
    to: RelPath,
    /// The opens whose records say so.
    opens: Vec<u64>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// On its way to the store.
    Sent,
    /// The store has it, or could not take it.
    Known(Result<(), NtStatus>),
    /// The file is being renamed.
    Used,
}

/// What to do before a file is renamed.
#[derive(Debug)]
pub enum Step {
    /// Put the name into the store, then call [`NextName::known`]; meanwhile wait.
    Begin(Wake),
    /// Wait.
    Wait(Wake),
    /// Rename it.
    Ready(Renaming),
}

/// A file is being renamed, until this is dropped: then its new name has been noted, or it has
/// kept the old one.
#[derive(Debug)]
pub struct Renaming(Arc<NextName>);

impl NextName {
    fn lock(&self) -> MutexGuard<'_, Option<Announced>> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) -> Wake {
        Wake::new(self.changed.clone(), Instant::now() + LOOK_AGAIN)
    }

    /// A file that has these opens in the state store is about to be called `to`.
    ///
    /// # Errors
    /// That of the state store. Then the file keeps its name.
    pub fn ask(self: &Arc<Self>, to: &RelPath, opens: &[u64]) -> Result<Step, NtStatus> {
        let mut announced = self.lock();
        match announced.as_mut() {
            Some(Announced { stage: Stage::Sent | Stage::Used, .. }) => {
                return Ok(Step::Wait(self.wake()));
            }
            Some(ours) if ours.to == *to && ours.opens == opens => {
                let Stage::Known(outcome) = ours.stage else { return Ok(Step::Wait(self.wake())) };
                ours.stage = Stage::Used;
                return match outcome {
                    Ok(()) => Ok(Step::Ready(Renaming(self.clone()))),
                    Err(status) => {
                        *announced = None;
                        Err(status)
                    }
                };
            }
            // Whoever announced another name has not come back for it, or other opens have come.
            Some(_) | None => {}
        }
        *announced = Some(Announced { to: to.clone(), opens: opens.to_vec(), stage: Stage::Sent });
        Ok(Step::Begin(self.wake()))
    }

    /// The store has what was announced, or could not take it.
    pub fn known(&self, outcome: Result<(), NtStatus>) {
        if let Some(announced) = self.lock().as_mut().filter(|it| it.stage == Stage::Sent) {
            announced.stage = Stage::Known(outcome);
        }
        self.changed.notify_waiters();
    }
}

impl Drop for Renaming {
    fn drop(&mut self) {
        *self.0.lock() = None;
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> RelPath {
        RelPath::root().child(name)
    }

    #[test]
    fn a_file_gets_one_name_at_a_time_and_each_is_known_first() {
        let next = Arc::<NextName>::default();
        let ask = |name: &str, opens: &[u64]| next.ask(&path(name), opens);
        assert!(matches!(ask("x", &[1]), Ok(Step::Begin(_))));
        // Whoever comes meanwhile waits, and takes nothing from the first.
        assert!(matches!(ask("y", &[1]), Ok(Step::Wait(_))));
        next.known(Ok(()));
        let Ok(Step::Ready(renaming)) = ask("x", &[1]) else { panic!("it is known") };
        assert!(matches!(ask("y", &[1]), Ok(Step::Wait(_))));
        drop(renaming);
        assert!(matches!(ask("y", &[1]), Ok(Step::Begin(_))));
        next.known(Ok(()));
        // An open that came since has no record of it.
        assert!(matches!(ask("y", &[1, 2]), Ok(Step::Begin(_))));
        next.known(Err(NtStatus::DISK_FULL));
        assert_eq!(ask("y", &[1, 2]).unwrap_err(), NtStatus::DISK_FULL);
        // It was refused, and may be asked again; one that nobody comes back for hinders nobody.
        assert!(matches!(ask("y", &[1, 2]), Ok(Step::Begin(_))));
        next.known(Ok(()));
        assert!(matches!(ask("z", &[1, 2]), Ok(Step::Begin(_))));
    }
}
