//! One connection: what comes from its transport and the batching of answers.
//!
//! ```text
//!  transport ─► every complete message ─► exchange ─► output (one buffer) ─► transport
//!                                          │                   ▲
//!                                          └─► waiting futures ┘   one send per batch
//! ```
//!
//! Answers are collected while frames are at hand and sent together, at the latest when
//! `SEND_AT` bytes stand in the output. While a send blocks nothing more is read, so a client
//! that does not read its answers holds what is in these two buffers and no more. What it has begun
//! goes on to its end meanwhile: a channel that fell silent must not keep its requests in progress
//! for the other channels of its session.

mod busy_poll;

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt,
    stream::{FuturesUnordered, StreamExt},
};
use tokio::sync::watch;
use volume::work::Turn;

use crate::{
    Server,
    breaks::delivery::ConnectionMessage,
    census::Counted,
    connection::busy_poll::BusyPoll,
    exchange::{Completion, Exchange, Taken},
    meters::Meter,
    transport::{Transport, give_buffer, take_buffer},
};

pub use crate::dropped::Dropped;

/// After so many turns others have theirs: a client that asks again at once, each time it is
/// answered, would keep a thread for itself.
const TURNS: u32 = 2;
/// Send when this many bytes of answers stand ready: few enough that the client works on them
/// while the next are made, so many that a send costs little beside them.
const SEND_AT: usize = 64 << 10;
/// Bytes of input that a client which has not logged in may hold, whatever the others hold: who
/// logs on with a password is never kept out.
const FREE: usize = 4 << 10;

/// Time between two looks at the network.
const LOOK: Duration = Duration::from_millis(100);

type Waiting = FuturesUnordered<Pin<Box<dyn Future<Output = Completion> + Send>>>;

/// Serves one connection until it ends (MS-SMB2 3.3.5.1).
///
/// # Errors
/// Why it was dropped, if neither its client nor the server ended it.
pub async fn run<T: Transport>(
    transport: T,
    server: Arc<Server>,
    mut stopped: watch::Receiver<bool>,
    counted: &Counted,
) -> Result<(), Dropped> {
    let current = server.current();
    let limits = current.config.limits.clone();
    let busy_poll = BusyPoll::new(current.config.busy_poll);
    drop(current);
    let mut exchange = Exchange::new(server, transport.peer(), transport.local()?);
    exchange.remote_memory = transport.remote_memory();
    exchange.carrier = transport.carrier();
    let mut link = Link {
        transport,
        output: Vec::new(),
        written: 0,
        write_time: Duration::from_secs(limits.write_seconds),
        held: VecDeque::new(),
        busy_poll,
        meter: exchange.meter.clone(),
        stranger: Stranger { server: exchange.server.clone(), counted: 0 },
        arrived: None,
        looked: None,
    };
    let mut waiting = Waiting::new();
    let time = Duration::from_secs(limits.authentication_seconds);
    let result = serve(&mut link, &mut exchange, &mut waiting, &mut stopped, (time, counted)).await;
    if result.as_ref().is_err_and(Dropped::is_of_a_message) {
        // What was answered before is still the client's.
        let _ = link.send(&mut waiting).await;
    }
    // What the disk was given must be over before the files are free for others: a late write
    // must never land on a newer one.
    let (mut unsent, mut turn) = (Vec::new(), Turn::begin());
    for done in link.held.drain(..) {
        let _ = exchange.complete(done, &mut unsent, &mut turn).done().await;
        unsent.clear();
        turn.pass().await;
    }
    while let Some(done) = exchange.finish_io(&mut waiting).await {
        let _ = exchange.complete(done, &mut unsent, &mut turn).done().await;
        unsent.clear();
        turn.pass().await;
    }
    drop(waiting);
    exchange.end();
    result
}

/// Receives, answers and sends until the connection ends or the server is to stop.
#[allow(clippy::too_many_lines, reason = "one loop over all that can happen to a connection")]
async fn serve<T: Transport>(
    link: &mut Link<T>,
    exchange: &mut Exchange,
    waiting: &mut Waiting,
    stopped: &mut watch::Receiver<bool>,
    (authentication_time, counted): (Duration, &Counted),
) -> Result<(), Dropped> {
    let authentication = tokio::time::sleep(authentication_time);
    tokio::pin!(authentication);
    let (mut turns, mut begun, mut known) = (0u32, false, false);
    // Messages since the connection last came to rest.
    let mut answered = 0;
    loop {
        if link.output.capacity() == 0 {
            link.output = take_buffer();
        }
        link.stranger.count(exchange, link.transport.held())?;
        exchange.arrived = link.arrived;
        let mut turn = Turn::begin();
        while let Some((message, placed)) = link.transport.next_message(exchange)? {
            answered += 1;
            let taken = match exchange.take(message, placed, &mut link.output, &mut turn) {
                Taken::Done(done) => done,
                Taken::Compound(rest) => rest.await,
            };
            waiting.extend(taken?.waits());
            if link.output.len() >= SEND_AT {
                link.send(waiting).await?;
            }
            turn.pass().await;
        }
        while let Some(done) = link.held.pop_front().or_else(|| next_now(waiting)) {
            let done = exchange.complete(done, &mut link.output, &mut turn).done().await?;
            waiting.extend(done.waits());
            if link.output.len() >= SEND_AT {
                link.send(waiting).await?;
            }
            turn.pass().await;
        }
        while let Some(post) = exchange.post_now() {
            link.handle(post, exchange)?;
            turn.pass().await;
        }
        link.send(waiting).await?;
        exchange.answers_sent();
        if !link.held.is_empty() {
            continue;
        }
        if !begun && exchange.negotiated.is_some() {
            begun = true;
            counted.negotiated();
        }
        if !known && exchange.authenticated() {
            known = counted.known();
            if !known {
                return Err(Dropped::MadeRoom);
            }
        }
        if link.receive_now()?.is_some_and(|got| got > 0) {
            // Nor does a stranger stay by having always more to say.
            if !known && counted.told_to_go().now_or_never().is_some() {
                return Err(Dropped::MadeRoom);
            }
            turns += 1;
            if turns.is_multiple_of(TURNS) {
                tokio::task::yield_now().await;
            }
            if !*stopped.borrow() {
                continue;
            }
        }
        let messages = std::mem::take(&mut answered);
        if messages > 0 && waiting.is_empty() && exchange.authenticated() && !*stopped.borrow() {
            let now = Instant::now();
            if let Some(window) = link.busy_poll.rest(now, messages)
                && link.look_out(now + window).await?
            {
                continue;
            }
        }
        link.rest(exchange.authenticated());
        tokio::select! {
            biased;
            Some(done) = waiting.next(), if !waiting.is_empty() => {
                let mut turn = Turn::begin();
                let done = exchange.complete(done, &mut link.output, &mut turn).done().await?;
            waiting.extend(done.waits());
            }
            Some(post) = exchange.post() => link.handle(post, exchange)?,
            () = told_to_stop(stopped) => {
                let mut turn = Turn::begin();
                while let Some(done) = exchange.finish_io(waiting).await {
                    let done = exchange.complete(done, &mut link.output, &mut turn).done().await?;
            waiting.extend(done.waits());
                    turn.pass().await;
                }
                link.send(waiting).await?;
                return Ok(());
            }
            got = link.receive() => {
                if !got? {
                    return Ok(());
                }
            }
            () = counted.told_to_go(), if !known => {
                return Err(Dropped::MadeRoom);
            }
            () = &mut authentication, if !exchange.authenticated() => {
                return Err(Dropped::Unauthenticated);
            }
        }
    }
}

/// Ends when the server is to stop.
async fn told_to_stop(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// A completion that is ready now.
fn next_now(waiting: &mut Waiting) -> Option<Completion> {
    if waiting.is_empty() {
        return None;
    }
    let mut context = Context::from_waker(std::task::Waker::noop());
    match waiting.poll_next_unpin(&mut context) {
        Poll::Ready(done) => done,
        Poll::Pending => None,
    }
}

/// The transport with what is to be sent.
struct Link<T> {
    transport: T,
    output: Vec<u8>,
    /// Bytes that were sent.
    written: u64,
    write_time: Duration,
    /// What ended while a send was under way.
    held: VecDeque<Completion>,
    busy_poll: BusyPoll,
    meter: Arc<Meter>,
    stranger: Stranger,
    /// When something was received last.
    arrived: Option<Instant>,
    /// When somebody looked how the network is.
    looked: Option<Instant>,
}

/// What a client that has not logged in holds of the memory that all such clients have together.
struct Stranger {
    server: Arc<Server>,
    counted: usize,
}

impl Stranger {
    /// It holds so many bytes of input, or has logged in and is no stranger any more.
    fn count(&mut self, exchange: &Exchange, held: usize) -> Result<(), Dropped> {
        let held = if exchange.authenticated() { 0 } else { held.saturating_sub(FREE) };
        if held <= self.counted {
            self.release(self.counted - held);
            return Ok(());
        }
        let more = held - self.counted;
        let all = self.server.unauthenticated_bytes.fetch_add(more, Ordering::Relaxed) + more;
        self.counted = held;
        match all as u64 > exchange.limits().unauthenticated_bytes.0 {
            true => Err(Dropped::Crowded),
            false => Ok(()),
        }
    }

    fn release(&mut self, bytes: usize) {
        self.counted -= bytes;
        self.server.unauthenticated_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.release(self.counted);
    }
}

impl<T: Transport> Link<T> {
    /// Receives what is there; `Some(0)` at the end, `None` if there is nothing yet.
    fn receive_now(&mut self) -> Result<Option<usize>, Dropped> {
        let got = self.transport.receive_now()?;
        if let Some(got) = got {
            self.meter.received(got);
            self.arrived = Some(Instant::now());
        }
        Ok(got)
    }

    /// Looks for input until then, while others have their turns; whether some came.
    async fn look_out(&mut self, until: Instant) -> Result<bool, Dropped> {
        loop {
            tokio::task::yield_now().await;
            match self.receive_now()? {
                Some(0) => return Ok(false),
                Some(_) => return Ok(true),
                None if Instant::now() < until => {}
                None => {
                    self.busy_poll.missed();
                    return Ok(false);
                }
            }
        }
    }

    /// Waits for input; `false` at its end. An idle connection holds no buffer meanwhile.
    async fn receive(&mut self) -> Result<bool, Dropped> {
        self.transport.readable().await?;
        Ok(self.receive_now()? != Some(0))
    }

    /// Gives buffers back that hold nothing, and of a stranger those that hold little: what is not
    /// counted of its input is not to cost a whole buffer, which once held much.
    fn rest(&mut self, authenticated: bool) {
        self.look_at_network(Instant::now());
        self.transport.rest(if authenticated { 0 } else { FREE });
        if self.output.is_empty() && self.output.capacity() > 0 {
            give_buffer(std::mem::take(&mut self.output));
        }
    }

    /// Notes how the network is, if nobody looked of late.
    fn look_at_network(&mut self, now: Instant) {
        if self.looked.is_some_and(|looked| now.saturating_duration_since(looked) < LOOK) {
            return;
        }
        self.looked = Some(now);
        if let Some(network) = self.transport.network() {
            self.meter.network(network);
        }
    }

    /// Does what others ask of this connection.
    fn handle(&mut self, post: ConnectionMessage, exchange: &Exchange) -> Result<(), Dropped> {
        match post {
            ConnectionMessage::Tell(notice, receipt) => {
                match exchange.tell(notice, &mut self.output) {
                    true => receipt.sent(self.written + self.output.len() as u64),
                    false => receipt.lost(),
                }
            }
            ConnectionMessage::Arrived(answer) => {
                let arrived = self.written.saturating_sub(self.transport.unacknowledged());
                let _ = answer.send(arrived);
            }
            ConnectionMessage::Close => {
                self.transport.abort();
                return Err(Dropped::Silent);
            }
        }
        Ok(())
    }

    async fn send(&mut self, waiting: &mut Waiting) -> Result<(), Dropped> {
        if self.output.is_empty() {
            return Ok(());
        }
        let held = &mut self.held;
        let work = async {
            let write = self.transport.send(&self.output);
            tokio::pin!(write);
            loop {
                tokio::select! {
                    biased;
                    sent = &mut write => return sent,
                    Some(done) = waiting.next(), if !waiting.is_empty() => held.push_back(done),
                }
            }
        };
        let sent = tokio::time::timeout(self.write_time, work).await;
        sent.map_err(|_| Dropped::NotReading)??;
        if let Some(now) = self.meter.answers_sent() {
            self.look_at_network(now);
        }
        self.meter.sent(self.output.len());
        self.written += self.output.len() as u64;
        self.output.clear();
        Ok(())
    }
}

impl<T> Drop for Link<T> {
    fn drop(&mut self) {
        give_buffer(std::mem::take(&mut self.output));
    }
}

#[cfg(test)]
mod tests;
