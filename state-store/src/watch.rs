//! What was committed lately, and those who watch it.
//!
//! ```text
//!  commit ─► History (a bounded number of the last commits) ─► wakes watches
//!                 ▲ each watch has a place of its own in it: one that falls out is told so
//! ```

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::poll_fn,
    sync::{Arc, RwLock},
    task::{Context, Poll, Waker},
};

use crate::{Entry, Revision, StoreError, engine::State};

/// Commits that are kept for those who watch.
const MOST_EVENTS: usize = 4096;
/// Bytes of keys and values that are kept for them.
const MOST_BYTES: usize = 4 << 20;

/// What one commit changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The commit.
    pub revision: Revision,
    /// Keys in the order in which they were changed, each with its record, or `None` if it was taken
    /// away.
    pub changes: Vec<(Vec<u8>, Option<Entry>)>,
}

impl Event {
    fn bytes(&self) -> usize {
        let one = |(key, entry): &(Vec<u8>, Option<Entry>)| {
            key.len() + entry.as_ref().map_or(0, |entry| entry.value.len())
        };
        self.changes.iter().map(one).sum()
    }
}

/// Where a watch's events come from.
pub trait Watched: Send {
    /// The next event, or why there is none any more. Only the last waker is woken.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Event, StoreError>>;
}

/// Commits as they happen.
pub struct Watch(Box<dyn Watched>);

impl Watch {
    /// With events from there.
    pub fn new(source: impl Watched + 'static) -> Self {
        Self(Box::new(source))
    }

    /// Waits for the next commit that changes what is watched. Nothing is lost when the future is
    /// dropped.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if more was committed meanwhile than is kept,
    /// [`StoreError::Closed`] when the store has ended, [`StoreError::Unavailable`].
    pub async fn next(&mut self) -> Result<Event, StoreError> {
        poll_fn(|context| self.0.poll_next(context)).await
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

/// The last commits.
#[derive(Debug, Default)]
pub(crate) struct History {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// All commits after this one are here.
    begins: Revision,
    wakers: HashMap<u64, Waker>,
    next_watch: u64,
    closed: bool,
}

impl History {
    /// Nothing before `begins` is known.
    pub(crate) fn new(begins: Revision) -> Self {
        Self { begins, ..Self::default() }
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.bytes += event.bytes();
        self.events.push_back(Arc::new(event));
        while self.events.len() > MOST_EVENTS || self.bytes > MOST_BYTES {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.bytes();
            self.begins = oldest.revision;
        }
        self.wake();
    }

    fn wake(&mut self) {
        self.wakers.drain().for_each(|(_, waker)| waker.wake());
    }

    /// Nothing is committed any more.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.wake();
    }

    /// Where the first event after `after` stands.
    fn after(&self, after: Revision) -> Result<usize, StoreError> {
        match after < self.begins {
            true => Err(StoreError::Compacted(self.begins)),
            false => Ok(self.events.partition_point(|event| event.revision <= after)),
        }
    }
}

/// A watch of a store in this process.
pub(crate) struct LocalWatch {
    state: Arc<RwLock<State>>,
    prefix: Vec<u8>,
    after: Revision,
    id: u64,
}

impl LocalWatch {
    pub(crate) fn new(
        state: &Arc<RwLock<State>>,
        prefix: &[u8],
        after: Revision,
    ) -> Result<Self, StoreError> {
        let mut now = crate::engine::write(state);
        now.history.after(after)?;
        let id = now.history.next_watch;
        now.history.next_watch += 1;
        drop(now);
        Ok(Self { state: state.clone(), prefix: prefix.to_vec(), after, id })
    }
}

impl Watched for LocalWatch {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Event, StoreError>> {
        let mut now = crate::engine::write(&self.state);
        let start = now.history.after(self.after)?;
        for event in now.history.events.range(start..) {
            self.after = event.revision;
            let mine = event.changes.iter().filter(|(key, _)| key.starts_with(&self.prefix));
            let changes: Vec<_> = mine.cloned().collect();
            if !changes.is_empty() {
                return Poll::Ready(Ok(Event { revision: event.revision, changes }));
            }
        }
        if now.history.closed {
            return Poll::Ready(Err(StoreError::Closed));
        }
        now.history.wakers.insert(self.id, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for LocalWatch {
    fn drop(&mut self) {
        crate::engine::write(&self.state).history.wakers.remove(&self.id);
    }
}
