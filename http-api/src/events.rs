//! Lists that are followed: server-sent events (HTML, "Server-sent events"), one with the whole list
//! each time that it has changed.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Channel, channel::Sender};
use hyper::body::{Body, Frame};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{
    Backend, Caller, RequestOf,
    respond::{self, Answer, Refusal},
    router::Router,
};

/// Lists that are followed at a time.
const MOST: usize = 32;

/// How often a list is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// After so many looks without a change something is said, so that who has gone is noticed.
const SILENCE: u32 = 15;

/// How many lists are followed now.
#[derive(Debug)]
pub(crate) struct Streams(Arc<Semaphore>);

impl Default for Streams {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MOST)))
    }
}

/// What one follower was told last.
#[derive(Default)]
struct Told {
    list: Mutex<Option<String>>,
}

impl Told {
    /// Whether a list is another than the last.
    fn is_new(&self, list: &str) -> bool {
        let mut told = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let new = told.as_deref() != Some(list);
        if new {
            *told = Some(list.to_owned());
        }
        new
    }
}

/// Begins to tell a caller of a list, for as long as they listen and their token is good.
pub(crate) fn follow<S: Backend>(
    router: &Arc<Router<S>>,
    caller: Caller,
    name: &'static str,
) -> Result<Answer, Refusal> {
    let request = serde_json::from_value(json!({ "op": name })).map_err(|_| Refusal::NoCall)?;
    let permit = router.streams.0.clone().try_acquire_owned();
    let permit = permit.map_err(|_| Refusal::Later(LOOK.as_secs()))?;
    let (sender, body) = Channel::<Bytes, Infallible>::new(1);
    let (gone, ended) = oneshot::channel();
    let telling = tell(router.clone(), caller, (request, name), sender);
    tokio::spawn(async move {
        tokio::select! {
            () = telling => {}
            // Nobody sends anything on it.
            _ = ended => {}
        }
    });
    let body = Followed { body, _permit: permit, _gone: gone };
    Ok(respond::with(body.boxed(), "text/event-stream"))
}

/// What a follower is told. The connection drops it as soon as the follower has gone: then its place is
/// free and nobody looks for it any more.
struct Followed {
    body: Channel<Bytes, Infallible>,
    _permit: OwnedSemaphorePermit,
    _gone: oneshot::Sender<()>,
}

impl Body for Followed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }
}

async fn tell<S: Backend>(
    router: Arc<Router<S>>,
    caller: Caller,
    (request, name): (RequestOf<S>, &'static str),
    mut sender: Sender<Bytes, Infallible>,
) {
    let mut tick = tokio::time::interval(LOOK);
    let (told, mut number, mut silent) = (Told::default(), 0u64, 0);
    loop {
        tick.tick().await;
        if !router.door.still(&caller) {
            return;
        }
        let (backend, caller, request) = (router.backend.clone(), caller.clone(), request.clone());
        let list = tokio::task::spawn_blocking(move || backend.carry_out(&caller, request)).await;
        let Ok(Ok(list)) = list else { return };
        // One line: JSON has no end of line within.
        let Ok(list) = serde_json::to_string(&list) else { return };
        let text = if told.is_new(&list) {
            number += 1;
            silent = 0;
            format!("event: {name}\nid: {number}\ndata: {list}\n\n")
        } else if silent + 1 >= SILENCE {
            silent = 0;
            ": nothing new\n\n".to_owned()
        } else {
            silent += 1;
            continue;
        };
        if sender.send_data(text.into()).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_has_gone_holds_no_place_and_is_not_told_any_more() {
        let streams = Streams::default();
        let permit = streams.0.clone().try_acquire_owned().unwrap();
        let (gone, ended) = oneshot::channel();
        let (_sender, body) = Channel::new(1);
        let body = Followed { body, _permit: permit, _gone: gone };
        assert_eq!(streams.0.available_permits(), MOST - 1);
        drop(body.boxed());
        assert_eq!(streams.0.available_permits(), MOST);
        assert!(ended.await.is_err(), "the task that looks for it ends");
    }
}
