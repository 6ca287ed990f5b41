//! Merging of concurrent flushes.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{Error, Result};

/// Lets many callers share one run of an expensive flush.
///
/// A caller is answered by a run that *began* after its call, so everything it had completed
/// before is covered. Callers that come while a run is under way share the next one.
///
/// ```text
///  call A ─► run 1 ████████
///  call B      └─ waits ──► run 2 ████████   (B and C share run 2)
///  call C            └────►
/// ```
///
/// A failed run fails everyone who shared it **and every later one**: after a failed flush the
/// operating system may have dropped the pages, so a later success would prove nothing.
#[derive(Debug, Default)]
pub struct FlushGroup {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Number of runs begun.
    begun: u64,
    /// Highest run that succeeded.
    done: u64,
    running: bool,
    failed: Option<Arc<Error>>,
}

impl FlushGroup {
    /// A group with no run under way.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns when a run of `flush` that began after this call has succeeded.
    ///
    /// The future may be dropped at any time; a waiting caller then begins a run of its own.
    ///
    /// # Errors
    /// What the flush that covers this call says.
    pub async fn run<F, Fut>(&self, flush: F) -> Result<()>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<()>>,
    {
        let want = self.lock().begun + 1;
        let run = loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the state is looked at, so that no change is missed.
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                if let Some(error) = &state.failed {
                    return Err(again(error));
                }
                if state.done >= want {
                    return Ok(());
                }
                if !state.running {
                    state.running = true;
                    state.begun += 1;
                    break state.begun;
                }
            }
            changed.await;
        };
        let mut leader = Leader { group: self, outcome: None };
        let result = flush().await;
        leader.outcome = Some(match result {
            Ok(()) => Ok(run),
            Err(error) => Err(Arc::new(error)),
        });
        match &leader.outcome {
            Some(Err(error)) => Err(again(error)),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a run when its caller finishes or is dropped.
struct Leader<'a> {
    group: &'a FlushGroup,
    outcome: Option<std::result::Result<u64, Arc<Error>>>,
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        let mut state = self.group.lock();
        state.running = false;
        match self.outcome.take() {
            Some(Ok(run)) => state.done = state.done.max(run),
            Some(Err(error)) => {
                state.failed.get_or_insert(error);
            }
            None => {}
        }
        drop(state);
        self.group.changed.notify_waiters();
    }
}

/// The shared failure, once more for another caller.
fn again(error: &Arc<Error>) -> Error {
    match &**error {
        Error::NoSpace => Error::NoSpace,
        Error::Closed => Error::Closed,
        Error::ReadOnly => Error::ReadOnly,
        Error::Fenced(why) => Error::Fenced(why.clone()),
        Error::Disconnected(why) => Error::Disconnected(why.clone()),
        Error::Busy(why) => Error::Busy(why.clone()),
        Error::Corrupt(why) => Error::Corrupt(why.clone()),
        other => Error::Io {
            context: format!("a flush failed: {other}"),
            source: std::io::Error::other(error.clone()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[tokio::test]
    async fn callers_during_a_run_share_the_next_one() {
        let group = Arc::new(FlushGroup::new());
        let runs = Arc::new(AtomicU64::new(0));
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let call = |group: Arc<FlushGroup>| {
            let (runs, gate) = (runs.clone(), gate.clone());
            tokio::spawn(async move {
                group
                    .run(|| async {
                        runs.fetch_add(1, Ordering::SeqCst);
                        gate.acquire().await.expect("never closed").forget();
                        Ok(())
                    })
                    .await
            })
        };
        let first = call(group.clone());
        while runs.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..10).map(|_| call(group.clone())).collect();
        // Each of the ten polls once and waits behind the first.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(2);
        first.await.unwrap().unwrap();
        for other in others {
            other.await.unwrap().unwrap();
        }
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_dropped_leader_hands_over() {
        let group = Arc::new(FlushGroup::new());
        let stuck = tokio::spawn({
            let group = group.clone();
            async move { group.run(std::future::pending).await }
        });
        tokio::task::yield_now().await;
        let waiter = tokio::spawn({
            let group = group.clone();
            async move { group.run(|| async { Ok(()) }).await }
        });
        tokio::task::yield_now().await;
        stuck.abort();
        waiter.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_failure_stays() {
        let group = FlushGroup::new();
        assert!(matches!(group.run(|| async { Err(Error::NoSpace) }).await, Err(Error::NoSpace)));
        assert!(matches!(group.run(|| async { Ok(()) }).await, Err(Error::NoSpace)));
    }
}
