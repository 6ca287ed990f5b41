//! Work that may take long: kept away from the threads that serve connections.
//!
//! ```text
//!  a connection's task ── poll ──► Timed: how long it kept its thread, at most
//!                           │
//!                           └─ aside(work) ─► the thread becomes one for blocking work; its other
//!                                             tasks go on elsewhere at once
//! ```
//!
//! What reads a whole folder, frees the blocks of a large file or closes thousands of opens has no
//! bound that a client could not exceed. A request that can wait becomes a future on a thread for
//! blocking work; what must be done before the next step is done [`aside`].

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::runtime::{Handle, RuntimeFlavor};

/// After so long a connection lets others have their turns.
pub const SLICE: Duration = Duration::from_millis(2);

/// Until when a connection may go on now before others have their turn.
pub fn slice_end() -> Instant {
    #[cfg(any(test, feature = "testing"))]
    if hurry::is_on() {
        return Instant::now();
    }
    Instant::now() + SLICE
}

/// Slices that are over at once, on the thread of a test.
#[cfg(any(test, feature = "testing"))]
pub mod hurry {
    use std::cell::Cell;

    thread_local! {
        static ON: Cell<bool> = const { Cell::new(false) };
    }

    /// From now on they are, or are not.
    pub fn set(on: bool) {
        ON.set(on);
    }

    pub(crate) fn is_on() -> bool {
        ON.get()
    }
}

/// The clock that counts the kernel's ticks, of four milliseconds at most: asked between any two
/// messages, it costs a fifth of the exact one, and a turn is still far below ten milliseconds.
fn ticks() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// A connection's turn on its thread.
#[derive(Debug)]
pub struct Turn {
    /// When it began, by [`ticks`], if it has an end.
    began: Option<Duration>,
    time: Duration,
}

impl Turn {
    /// A turn that begins now.
    pub fn begin() -> Self {
        Self { began: Some(ticks()), time: SLICE }
    }

    /// One without end, for a test that has neither clock nor other tasks.
    #[cfg(any(test, feature = "testing"))]
    pub fn endless() -> Self {
        Self { began: None, time: SLICE }
    }

    /// One that is over after each step.
    #[cfg(any(test, feature = "testing"))]
    pub fn step_by_step() -> Self {
        Self { time: Duration::ZERO, ..Self::begin() }
    }

    /// Between two steps: if the turn is over, others have theirs before the next begins.
    pub async fn pass(&mut self) {
        if self.began.is_some_and(|began| ticks().saturating_sub(began) >= self.time) {
            tokio::task::yield_now().await;
            self.began = Some(ticks());
        }
    }
}

thread_local! {
    /// Time of the current poll that was spent aside.
    static ASIDE: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Does work that may take long, where the tasks of this thread do not wait for it.
pub fn aside<T>(work: impl FnOnce() -> T) -> T {
    let served = Handle::try_current()
        .is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if !served {
        return work();
    }
    let began = Instant::now();
    let done = tokio::task::block_in_place(work);
    ASIDE.set(ASIDE.get() + began.elapsed());
    done
}

/// Does work later, on a thread for blocking work; nobody waits for it.
pub fn later(work: impl FnOnce() + Send + 'static) {
    match Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(work)),
        Err(_) => work(),
    }
}

/// Longest time that a task kept its thread, in nanoseconds.
#[derive(Debug, Default)]
pub struct Longest(AtomicU64);

impl Longest {
    /// The longest turn that was seen.
    pub fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    fn note(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if nanos > self.0.load(Ordering::Relaxed) {
            self.0.fetch_max(nanos, Ordering::Relaxed);
        }
    }
}

/// A task each of whose polls is timed.
pub struct Timed<'a, F> {
    task: Pin<Box<F>>,
    longest: &'a Longest,
}

impl<'a, F> Timed<'a, F> {
    /// Times the polls of `task`.
    pub fn new(task: F, longest: &'a Longest) -> Self {
        Self { task: Box::pin(task), longest }
    }
}

impl<F: Future> Future for Timed<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        ASIDE.set(Duration::ZERO);
        let began = Instant::now();
        let polled = self.task.as_mut().poll(context);
        self.longest.note(began.elapsed().saturating_sub(ASIDE.get()));
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build().unwrap()
    }

    #[test]
    fn what_is_done_aside_keeps_nobody_from_the_only_thread() {
        let runtime = runtime();
        let (go, gone) = mpsc::channel();
        runtime.block_on(async {
            let patience = Duration::from_secs(60);
            let waits = tokio::spawn(async move { aside(|| gone.recv_timeout(patience)) });
            // On the only thread there is, so it runs when the other has left that.
            let goes = tokio::spawn(async move { go.send(()) });
            waits.await.unwrap().expect("another task ran meanwhile");
            goes.await.unwrap().unwrap();
        });
    }

    #[test]
    fn the_longest_turn_is_known_and_what_was_done_aside_does_not_count() {
        let longest = Longest::default();
        let spin = |time: Duration| {
            let began = Instant::now();
            while began.elapsed() < time {}
        };
        let runtime = runtime();
        runtime.block_on(Timed::new(async { spin(Duration::from_millis(3)) }, &longest));
        let turn = longest.get();
        assert!(turn >= Duration::from_millis(3), "{turn:?}");
        let aside = Timed::new(async { aside(|| spin(4 * turn)) }, &longest);
        runtime.block_on(aside);
        assert!(longest.get() < 4 * turn, "{:?} after {turn:?}", longest.get());
    }
}
