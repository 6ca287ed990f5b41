//! Work on blocks that goes to its end, whatever becomes of its command.
//!
//! ```text
//!  command ──► guard ──► work ── done ──► guard back to the command
//!                         │
//!                      aborted ──► a task of its own: no other command on these blocks ──► end
//! ```
//!
//! What the disk was told to write cannot be called back. It must not land on what a later command
//! wrote, nor after PREEMPT AND ABORT was answered.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::runtime::Handle;

use super::range_lock::Guard;

/// Carries work out under the guard of its blocks, and gives both back. If this is dropped once the work
/// has begun, both go on until the work has ended.
pub(crate) async fn carry<F>(guard: Guard, work: F) -> (Guard, F::Output)
where
    F: Future<Output: Send> + Send + 'static,
{
    Carried { held: Some((guard, Box::pin(work))), begun: false }.await
}

struct Carried<F: Future<Output: Send> + Send + 'static> {
    held: Option<(Guard, Pin<Box<F>>)>,
    begun: bool,
}

impl<F: Future<Output: Send> + Send + 'static> Future for Carried<F> {
    type Output = (Guard, F::Output);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.begun = true;
        let Some((_, work)) = &mut self.held else { return Poll::Pending };
        let Poll::Ready(done) = work.as_mut().poll(context) else { return Poll::Pending };
        match self.held.take() {
            Some((guard, _)) => Poll::Ready((guard, done)),
            None => Poll::Pending,
        }
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for Carried<F> {
    fn drop(&mut self) {
        let Some((mut guard, work)) = self.held.take().filter(|_| self.begun) else { return };
        // Without a runtime the process ends, and the disk's work with it.
        if let Ok(runtime) = Handle::try_current() {
            guard.stay();
            runtime.spawn(async move {
                drop(work.await);
                drop(guard);
            });
        }
    }
}
