//! What becomes of a disk's requests when its storage fails them, and what that means for the machine.
//!
//! ```text
//!  the storage            the request                              the machine
//!  ───────────            ───────────                              ───────────
//!  cannot be reached      is held, and tried again each second     waits while one is held
//!  has no space           likewise, if it is a write               likewise
//!  is silent              is under way                             waits after a while of silence
//!  is another's now       is held for ever                         does not go on ([`Trouble::Fenced`])
//!  fails otherwise        fails                                    runs on
//! ```
//!
//! So a guest sees no error that goes away by itself ([`LossRule::Pause`]). With [`LossRule::Report`] it
//! sees all but the loss of its disk to another. Who owns the machine asks for its [`Trouble`] and parks
//! its vCPUs; what is held ends when the machine does.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use block_io::Error;

use crate::platform::{bus::lock, error::chain, lifecycle::Control};

/// Pause before a request that is held is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// What a queue's time is while nothing of it is under way.
const IDLE: u64 = u64::MAX;

/// What a guest sees of storage that is away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LossRule {
    /// Nothing: its requests and its vCPUs wait.
    #[default]
    Pause,
    /// Errors, as soon as the storage's own patience has ended.
    Report,
}

/// What keeps a machine from going on.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Trouble {
    /// A disk is another's now, for good. Which, and why.
    Fenced(String),
    /// A disk does not answer, or cannot be reached, or is full. Which, and why.
    Away(String),
}

/// What a request does to its storage, as far as that matters when it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It changes nothing.
    Read,
    /// It may need space.
    Write,
    /// It makes durable what was written: one that failed may have lost what it was about, and is
    /// repeated only where the storage itself knows what it has.
    Flush,
}

#[derive(Debug, Default)]
struct HeldBack {
    count: usize,
    why: String,
}

/// The storage of one disk of a machine.
#[derive(Debug)]
pub(super) struct Storage {
    /// Where the disk is, and the machine that cannot go on without it.
    machine: OnceLock<(String, Arc<Control>)>,
    reports: AtomicBool,
    held: Mutex<HeldBack>,
    fenced: OnceLock<String>,
    /// Pause before a request that is held is tried again.
    again: Duration,
    /// When times began to be counted.
    base: Instant,
    /// For each queue, in milliseconds after `base`: since when requests are under way and none has
    /// ended; [`IDLE`] if none is under way.
    silent_since: Vec<AtomicU64>,
}

/// A request that is held, as long as this lives.
#[derive(Debug)]
pub(super) struct Held<'a>(&'a Storage);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        lock(&self.0.held).count -= 1;
        self.0.tell();
    }
}

impl Storage {
    pub(super) fn new(queues: u16) -> Self {
        Self {
            machine: OnceLock::new(),
            reports: AtomicBool::new(false),
            held: Mutex::default(),
            fenced: OnceLock::new(),
            again: AGAIN,
            base: Instant::now(),
            silent_since: (0..queues).map(|_| AtomicU64::new(IDLE)).collect(),
        }
    }

    pub(super) fn belongs_to(&self, machine: &Arc<Control>, location: &str) {
        self.machine.get_or_init(|| (location.to_owned(), machine.clone()));
    }

    pub(super) fn location(&self) -> &str {
        self.machine.get().map_or("", |(location, _)| location)
    }

    pub(super) fn set_rule(&self, rule: LossRule) {
        self.reports.store(rule == LossRule::Report, Ordering::Relaxed);
    }

    /// Has who owns the machine look at it.
    fn tell(&self) {
        if let Some((_, machine)) = self.machine.get() {
            machine.tell();
        }
    }

    /// A queue's requests have gone on at `now`, or the first of them has begun.
    pub(super) fn goes_on(&self, queue: u16, now: Instant) {
        let millis = now.saturating_duration_since(self.base).as_millis();
        self.set(queue, u64::try_from(millis).unwrap_or(IDLE - 1));
    }

    /// Nothing of a queue is under way.
    pub(super) fn rests(&self, queue: u16) {
        self.set(queue, IDLE);
    }

    fn set(&self, queue: u16, millis: u64) {
        if let Some(since) = self.silent_since.get(usize::from(queue)) {
            since.store(millis, Ordering::Relaxed);
        }
    }

    /// Waits until a request that `error` failed may be tried again; gives the error back if the
    /// guest is to see it. `held` lives until the request has ended.
    pub(super) async fn bear<'a>(
        &'a self,
        error: Error,
        kind: Kind,
        held: &mut Option<Held<'a>>,
    ) -> Result<(), Error> {
        let Some((location, machine)) = self.machine.get() else { return Err(error) };
        let why = chain(&error);
        if matches!(error, Error::Fenced(_)) {
            self.fenced.get_or_init(|| why);
            machine.tell();
            machine.ending().await;
            return Err(error);
        }
        let passes = match error {
            Error::Disconnected(_) => true,
            Error::NoSpace => kind == Kind::Write,
            _ => false,
        };
        if !passes || self.reports.load(Ordering::Relaxed) {
            return Err(error);
        }
        {
            let mut all = lock(&self.held);
            if held.is_none() {
                all.count += 1;
                *held = Some(Held(self));
            }
            all.why = why;
        }
        tracing::debug!(disk = location, error = chain(&error), "a request is held");
        machine.tell();
        tokio::select! {
            () = tokio::time::sleep(self.again) => Ok(()),
            () = machine.ending() => Err(error),
        }
    }

    /// What keeps the machine from going on, if it is this disk; silence of `patience` and longer does.
    pub(super) fn trouble(&self, patience: Duration) -> Option<Trouble> {
        let location = self.location();
        if let Some(why) = self.fenced.get() {
            return Some(Trouble::Fenced(format!(
                "disk {location} was taken from it: another run of the VM has it, or its server has \
                 forgotten who had it ({why}); what the guest had flushed is on the disk"
            )));
        }
        if self.reports.load(Ordering::Relaxed) {
            return None;
        }
        {
            let held = lock(&self.held);
            if held.count > 0 {
                return Some(Trouble::Away(format!("disk {location}: {}", held.why)));
            }
        }
        let now = u64::try_from(self.base.elapsed().as_millis()).unwrap_or(IDLE);
        let limit = u64::try_from(patience.as_millis()).unwrap_or(IDLE);
        let silent = |since: u64| since != IDLE && now.saturating_sub(since) >= limit;
        let is_silent = self.silent_since.iter().any(|since| silent(since.load(Ordering::Relaxed)));
        is_silent.then(|| {
            let seconds = patience.as_secs_f64();
            Trouble::Away(format!("disk {location} has not answered for {seconds} s and longer"))
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn storage() -> (Storage, Arc<Control>) {
        let (storage, control) = (Storage::new(2), Arc::new(Control::default()));
        storage.belongs_to(&control, "smb://h/s/a.vhdx");
        (storage, control)
    }

    fn away(storage: &Storage) -> String {
        match storage.trouble(Duration::from_secs(5)) {
            Some(Trouble::Away(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn silence_of_one_queue_is_trouble_until_it_goes_on_or_rests() {
        let (storage, _control) = storage();
        let limit = Duration::from_secs(5);
        assert_eq!(storage.trouble(limit), None);
        storage.goes_on(0, Instant::now());
        assert_eq!(storage.trouble(limit), None);
        // No time is short enough for what is under way just now.
        assert!(matches!(storage.trouble(Duration::ZERO), Some(Trouble::Away(_))));
        storage.goes_on(1, Instant::now());
        storage.rests(0);
        assert!(matches!(storage.trouble(Duration::ZERO), Some(Trouble::Away(_))));
        storage.rests(1);
        assert_eq!(storage.trouble(Duration::ZERO), None);
        storage.goes_on(0, Instant::now());
        storage.set_rule(LossRule::Report);
        assert_eq!(storage.trouble(Duration::ZERO), None);
    }

    #[tokio::test]
    async fn what_goes_away_by_itself_is_held_and_the_rest_is_told() {
        let (mut storage, _control) = storage();
        storage.again = Duration::ZERO;
        let mut held = None;
        let gone = || Error::Disconnected("no route".into());
        for (error, kind) in
            [(gone(), Kind::Read), (gone(), Kind::Flush), (Error::NoSpace, Kind::Write)]
        {
            storage.bear(error, kind, &mut held).await.unwrap();
            assert!(away(&storage).contains("a.vhdx"));
        }
        assert!(away(&storage).contains("no space"));
        held = None;
        assert_eq!((storage.trouble(Duration::from_secs(5)), held.is_none()), (None, true));
        for (error, kind) in [
            (Error::NoSpace, Kind::Flush),
            (Error::Corrupt("x".into()), Kind::Read),
            (Error::ReadOnly, Kind::Write),
        ] {
            storage.bear(error, kind, &mut held).await.unwrap_err();
            assert!(held.is_none());
        }
        storage.set_rule(LossRule::Report);
        storage.bear(gone(), Kind::Write, &mut held).await.unwrap_err();
    }

    #[tokio::test]
    async fn what_is_held_ends_with_the_machine() {
        use crate::platform::lifecycle::EndReason;

        let (storage, control) = storage();
        let (mut one, mut other) = (None, None);
        let mut fenced = Box::pin(storage.bear(Error::Fenced("x".into()), Kind::Read, &mut one));
        assert!((&mut fenced).now_or_never().is_none());
        let trouble = storage.trouble(AGAIN);
        assert!(matches!(trouble, Some(Trouble::Fenced(why)) if why.contains("a.vhdx")));
        let away = Error::Disconnected("x".into());
        let mut away = Box::pin(storage.bear(away, Kind::Read, &mut other));
        assert!((&mut away).now_or_never().is_none());
        control.end(EndReason::Stopped);
        assert!(matches!(fenced.await, Err(Error::Fenced(_))));
        assert!(matches!(away.await, Err(Error::Disconnected(_))));
    }
}
