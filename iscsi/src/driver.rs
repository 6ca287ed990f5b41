//! What moves a session: the task of each connection between socket, session and device, and the
//! one task that keeps the session's time.

use std::{
    collections::{BTreeSet, VecDeque},
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::BytesMut;
use futures_util::{StreamExt, future::Abortable, stream::FuturesUnordered};
use scsi::{Completion, Device, Nexus, Request};
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    pdu::Framer,
    session::{Close, Output, Run, TaskKey},
    target::{Live, Target, lock},
};

/// Bytes that are read at once: a connection that sends little keeps a small buffer.
const READ: usize = 128 << 10;
pub(crate) const READ_LITTLE: usize = 4 << 10;
/// A connection that has so much to send reads nothing and begins nothing, in bytes.
const HIGH_WATER: usize = 2 << 20;
/// Pieces of one system call.
const PIECES: usize = 256;
/// Milliseconds that a peer has to take the last bytes before its connection closes.
const LAST_WORDS: u64 = 5_000;
/// Milliseconds between looks at the clock.
const TICK: u64 = 500;

/// The end of a command: its sense data as the logical unit lays them out, and its data-in.
struct End {
    completion: Completion,
    sense: Vec<u8>,
    data_in: Vec<u8>,
}

/// How a command ended; `None` if it was aborted.
type Ended = (TaskKey, Option<End>);
type Running = Pin<Box<dyn Future<Output = Ended> + Send>>;

fn start<D: Device>(device: &Arc<D>, nexus: &Arc<Nexus>, run: Run) -> Running {
    let (device, nexus) = (device.clone(), nexus.clone());
    Box::pin(async move {
        let Run { key, lun, cdb, data_out, attribute, rank, abort } = run;
        let work = async {
            let mut data_in = Vec::new();
            let request = Request { lun, cdb: cdb.bytes(), data_out: &data_out, attribute, rank };
            let completion = device.execute(&nexus, request, &mut data_in).await;
            let encode = |sense| device.encode_sense(lun, sense);
            let sense = completion.sense.as_ref().map_or_else(Vec::new, encode);
            End { completion, sense, data_in }
        };
        (key, Abortable::new(work, abort).await.ok())
    })
}

/// Commands at the device.
#[derive(Default)]
struct Inflight {
    /// Commands that were not begun.
    ready: VecDeque<Run>,
    futures: FuturesUnordered<Running>,
    keys: BTreeSet<(u32, u64)>,
    done: Vec<Ended>,
}

impl Inflight {
    /// Begins a command; most are done at once and cost no wake-up.
    fn begin<D: Device>(&mut self, device: &Arc<D>, nexus: &Arc<Nexus>, run: Run) -> usize {
        let key = run.key;
        let mut running = start(device, nexus, run);
        match running.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ended) => {
                let bytes = ended.1.as_ref().map_or(0, |end| end.data_in.len());
                self.done.push(ended);
                bytes
            }
            // The set polls it again, with a waker.
            Poll::Pending => {
                self.keys.insert((key.itt, key.id));
                self.futures.push(running);
                0
            }
        }
    }

    fn finished(&mut self, ended: Ended) {
        self.keys.remove(&(ended.0.itt, ended.0.id));
        self.done.push(ended);
    }

    /// Tells the session how commands ended.
    fn report(&mut self, live: &Live, own: Option<u32>) {
        if self.done.is_empty() {
            return;
        }
        live.with(own, |engine| {
            for (key, end) in self.done.drain(..) {
                match end {
                    Some(it) => engine.complete(key, &it.completion, &it.sense, it.data_in),
                    None => engine.ended(key),
                }
            }
        });
    }

    /// Drops all that runs or would: it is aborted.
    fn drop_all(&mut self, live: &Live) {
        self.futures.clear();
        let begun = std::mem::take(&mut self.keys).into_iter();
        self.done.extend(begun.map(|(itt, id)| (TaskKey { itt, id }, None)));
        self.done.extend(self.ready.drain(..).map(|run| (run.key, None)));
        self.report(live, None);
    }

    /// Begins all that is ready.
    fn begin_all<D: Device>(&mut self, device: &Arc<D>, nexus: &Arc<Nexus>) {
        while let Some(run) = self.ready.pop_front() {
            self.begin(device, nexus, run);
        }
    }
}

/// One connection in the full feature phase.
pub(crate) struct Connection<D> {
    pub target: Option<Arc<Target<D>>>,
    pub live: Arc<Live>,
    pub link: u32,
    pub stream: TcpStream,
    pub framer: Framer,
    pub input: BytesMut,
    /// Bytes to make room for.
    pub want: usize,
    pub output: Output,
    /// The session may have more to send than `output`.
    pub behind: bool,
    pub wake: Arc<Notify>,
    pub epoch: Instant,
    /// Numbers of nexuses.
    pub fresh: Arc<std::sync::atomic::AtomicU64>,
}

fn now(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl<D: Device> Connection<D> {
    /// Serves the connection to its end.
    pub async fn serve(mut self) {
        let mut inflight = Inflight::default();
        let end = self.turn(&mut inflight).await;
        if let Err(error) = &end {
            tracing::debug!(session = self.live.id, %error, "the connection broke");
        }
        if lock(&self.live.engine).over().is_some() {
            inflight.drop_all(&self.live);
        }
        if matches!(end, Ok(Close::AfterOutput)) {
            let limit = Duration::from_millis(LAST_WORDS);
            let _ = tokio::time::timeout(limit, self.flush(&mut inflight)).await;
        }
        let Self { target, live, link, stream, epoch, .. } = self;
        drop(stream);
        lock(&live.drivers).remove(&link);
        live.with(None, |engine| engine.lose(link, now(epoch)));
        // What runs goes on if another connection may ask for its answer.
        let recovers = {
            let engine = lock(&live.engine);
            engine.over().is_none() && engine.parameters().error_recovery_level == 2
        };
        if recovers && let Some(target) = &target {
            inflight.begin_all(&target.device, &live.nexus());
            inflight.report(&live, None);
            let mut changes = live.changes.subscribe();
            while !inflight.keys.is_empty() && lock(&live.engine).over().is_none() {
                tokio::select! {
                    Some(ended) = inflight.futures.next() => inflight.finished(ended),
                    _ = changes.changed() => {}
                }
                inflight.report(&live, None);
            }
        }
        inflight.drop_all(&live);
    }

    async fn turn(&mut self, inflight: &mut Inflight) -> io::Result<Close> {
        let mut rounds = 0u32;
        loop {
            let close = self.exchange(&mut inflight.ready);
            self.run(inflight);
            if let Some(close) = close {
                return Ok(close);
            }
            let mut sent = self.send()?;
            // What the session had to say meanwhile had to wait for this.
            while sent && self.behind {
                self.take(&mut inflight.ready);
                sent = self.send()?;
            }
            // Who does not read is not read: nothing grows behind what waits to be sent.
            let may_read =
                self.output.bytes() < HIGH_WATER && inflight.ready.is_empty() && !self.behind;
            // What is there already is read without asking the reactor.
            let read = may_read && self.read()?;
            if read || (sent && !inflight.ready.is_empty()) {
                rounds += 1;
                if rounds.is_multiple_of(16) {
                    tokio::task::yield_now().await;
                }
                continue;
            }
            rounds = 0;
            let (waits_to_send, runs) = (!self.output.is_empty(), !inflight.futures.is_empty());
            tokio::select! {
                ended = inflight.futures.next(), if runs => {
                    if let Some(ended) = ended {
                        inflight.finished(ended);
                    }
                    // Those that ended together are told together.
                    while let Poll::Ready(Some(ended)) = inflight
                        .futures
                        .poll_next_unpin(&mut Context::from_waker(Waker::noop()))
                    {
                        inflight.finished(ended);
                    }
                }
                () = self.wake.notified() => {
                    // Also the ping of a connection that is idle, whose buffer others may have.
                    if self.input.is_empty() {
                        self.input = BytesMut::new();
                        self.want = READ_LITTLE;
                    }
                }
                it = self.stream.readable(), if may_read => it?,
                it = self.stream.writable(), if waits_to_send => it?,
            }
            inflight.report(&self.live, Some(self.link));
        }
    }

    /// Gives the session what came, and takes what it has.
    fn exchange(&mut self, ready: &mut VecDeque<Run>) -> Option<Close> {
        let now = now(self.epoch);
        let (framer, link) = (self.framer, self.link);
        let (input, output) = (&mut self.input, &mut self.output);
        self.behind |= !output.is_empty();
        let (close, outside) = self.live.with(Some(link), |engine| {
            loop {
                match framer.next(input) {
                    Ok(Some(frame)) => engine.receive(link, &frame, now),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(%error, "a connection is dropped");
                        engine.offend(link);
                        break;
                    }
                }
            }
            (engine.take(link, output, ready), engine.take_outside())
        });
        if let Some(target) = &self.target {
            for it in outside {
                let (target, live) = (target.clone(), self.live.clone());
                let fresh = self.fresh.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tokio::spawn(async move { target.carry_out(&live, it, fresh).await });
            }
        }
        close
    }

    /// Begins what is ready, as long as there is room for the answers.
    fn run(&mut self, inflight: &mut Inflight) {
        let Some(target) = &self.target else { return };
        if inflight.ready.is_empty() {
            return;
        }
        // Others may wait for the end of what was aborted before it began.
        let Inflight { ready, done, .. } = inflight;
        ready.retain(|run| {
            let aborted = run.abort.handle().is_aborted();
            if aborted {
                done.push((run.key, None));
            }
            !aborted
        });
        inflight.report(&self.live, Some(self.link));
        let mut bytes = self.output.bytes();
        if self.behind || bytes >= HIGH_WATER {
            return;
        }
        let nexus = self.live.nexus();
        while bytes < HIGH_WATER
            && let Some(run) = inflight.ready.pop_front()
        {
            bytes += inflight.begin(&target.device, &nexus, run);
        }
        inflight.report(&self.live, Some(self.link));
        self.take(&mut inflight.ready);
    }

    /// Takes what the session has to send and to run.
    fn take(&mut self, ready: &mut VecDeque<Run>) {
        let (link, output) = (self.link, &mut self.output);
        self.behind = !output.is_empty();
        self.live.with(Some(link), |engine| engine.take(link, output, ready));
    }

    /// Sends as much as the socket takes; whether that was all.
    fn send(&mut self) -> io::Result<bool> {
        while !self.output.is_empty() {
            let mut slices: Vec<IoSlice<'_>> = Vec::new();
            self.output.slices(&mut slices, PIECES);
            match self.stream.try_write_vectored(&slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.output.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Reads what is there; whether anything was.
    fn read(&mut self) -> io::Result<bool> {
        if self.input.capacity() - self.input.len() < self.want / 4 {
            self.input.reserve(self.want);
        }
        let room = self.input.capacity() - self.input.len();
        match self.stream.try_read_buf(&mut self.input) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                if count == room {
                    self.want = (self.want * 4).min(READ);
                }
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn flush(&mut self, inflight: &mut Inflight) -> io::Result<()> {
        loop {
            if self.send()? {
                self.take(&mut inflight.ready);
                if self.output.is_empty() {
                    return Ok(());
                }
            } else {
                self.stream.writable().await?;
            }
        }
    }
}

/// Keeps a session's time, runs what has no connection, and clears away when it is over.
pub(crate) async fn keep<D: Device>(
    target: Option<Arc<Target<D>>>,
    live: Arc<Live>,
    epoch: Instant,
    silence: u64,
) {
    let mut inflight = Inflight::default();
    let mut changes: watch::Receiver<u64> = live.changes.subscribe();
    // What happened before this task came to its turn.
    changes.mark_changed();
    let period = Duration::from_millis(TICK.min(silence / 4).max(10));
    loop {
        let runs = !inflight.futures.is_empty();
        tokio::select! {
            Some(ended) = inflight.futures.next(), if runs => inflight.finished(ended),
            _ = changes.changed() => {}
            () = live.enabled.notified() => {}
            () = tokio::time::sleep(period) => {}
        }
        inflight.report(&live, None);
        let (stray, over, idle) = live.with(None, |engine| {
            engine.take_enabled();
            engine.tick(now(epoch));
            (engine.take_stray(), engine.over(), engine.is_idle())
        });
        if let Some(target) = &target {
            let nexus = live.nexus();
            inflight.ready.extend(stray);
            inflight.begin_all(&target.device, &nexus);
            inflight.report(&live, None);
        }
        if over.is_some() {
            inflight.drop_all(&live);
        }
        if let Some(why) = over
            && idle
        {
            tracing::info!(
                session = live.id,
                initiator = live.identity.initiator,
                why,
                "session ended"
            );
            break;
        }
    }
    if let Some(target) = &target {
        target.device.detach(&live.nexus());
        let mut sessions = lock(&target.sessions);
        if sessions.get(&live.tsih).is_some_and(|it| it.id == live.id) {
            sessions.remove(&live.tsih);
        }
    }
    live.gone.send_replace(true);
}
