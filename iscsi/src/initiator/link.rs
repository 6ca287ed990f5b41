//! One connection: its socket, its login, and the task that drives its exchange.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::TcpStream,
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};

use super::{
    error::InitiatorError,
    exchange::{Agreed, Broken, Command, Exchange, Lost, Pending, Reply, Times},
    login::{Login, MAX_RECV, Next, Purpose},
};
use crate::pdu::{Digests, Frame, Framer, Pdu, frame};

/// For how long a target may take to answer a logout.
const FAREWELL: Duration = Duration::from_secs(2);
/// Bytes that one receive has room for.
const READ: usize = 128 << 10;
/// Targets that send an initiator on, one to the next.
const MOVES: usize = 4;

/// A connection after its login.
#[derive(Debug)]
pub(super) struct Wire {
    pub stream: TcpStream,
    pub framer: Framer,
    pub input: BytesMut,
    pub agreed: Agreed,
}

/// Connects to a portal and logs in, where it is sent on also elsewhere.
///
/// # Errors
/// [`InitiatorError`]: what keeps it from that.
pub(super) async fn log_in(purpose: &Purpose, time: Duration) -> Result<Wire, InitiatorError> {
    let mut purpose = purpose.clone();
    let attempt = async {
        for _ in 0..MOVES {
            match once(&purpose).await {
                Ok(Ok(wire)) => return Ok(wire),
                // A target may choose a hash and then have no room for it (tgt). It chooses anyhow, so
                // to offer less gives nothing away.
                Err(InitiatorError::Refused { status: 0x0200, .. })
                    if purpose.chap.is_some() && !purpose.old_hashes =>
                {
                    purpose.old_hashes = true;
                }
                Err(error) => return Err(error),
                Ok(Err(address)) => {
                    // The tag of the portal group says nothing here.
                    purpose.portal = address.split(',').next().unwrap_or_default().to_owned();
                }
            }
        }
        let what = "the target is sent on without an end".to_owned();
        Err(InitiatorError::Protocol { portal: purpose.portal.clone(), what })
    };
    timeout(time, attempt).await.unwrap_or(Err(InitiatorError::TimedOut(time)))
}

async fn once(purpose: &Purpose) -> Result<Result<Wire, String>, InitiatorError> {
    let failed = |source: io::Error| InitiatorError::Connect {
        portal: purpose.portal.clone(),
        source: Arc::new(source),
    };
    let wrong = |what: String| InitiatorError::Protocol { portal: purpose.portal.clone(), what };
    let mut stream = TcpStream::connect(&purpose.portal).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let mut framer = Framer { digests: Digests::default(), max_data: MAX_RECV, max_ahs_words: 0 };
    let mut input = BytesMut::new();
    let mut login = Login::new(purpose.clone());
    let (mut request, mut text) = login.first();
    loop {
        let pdu = Pdu::LoginRequest(request).write();
        let bytes = frame::write(pdu, &[], &text, Digests::default());
        stream.write_all(&bytes).await.map_err(failed)?;
        let frame = receive(&mut stream, &framer, &mut input, purpose).await?;
        let Ok(Pdu::LoginResponse(response)) = Pdu::read(&frame.basic) else {
            return Err(wrong("no response to a login".to_owned()));
        };
        match login.answer(response, &frame.data)? {
            Next::Send(next, with) => (request, text) = (next, with),
            Next::Moved(address) => return Ok(Err(address)),
            Next::Done(agreed) => {
                framer.digests = agreed.digests;
                return Ok(Ok(Wire { stream, framer, input, agreed: *agreed }));
            }
        }
    }
}

/// The next PDU, where nothing else is to be done meanwhile.
///
/// # Errors
/// The connection ends, or what comes is no PDU.
pub(super) async fn receive(
    stream: &mut TcpStream,
    framer: &Framer,
    input: &mut BytesMut,
    purpose: &Purpose,
) -> Result<Frame, InitiatorError> {
    let portal = || purpose.portal.clone();
    loop {
        let next = framer.next(input).map_err(|error| InitiatorError::Protocol {
            portal: portal(),
            what: error.to_string(),
        })?;
        if let Some(frame) = next {
            return Ok(frame);
        }
        let got = stream.read_buf(input).await;
        let failed =
            |source| InitiatorError::Connect { portal: portal(), source: Arc::new(source) };
        if got.map_err(failed)? == 0 {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// What callers hold of a connection; a clone is the same. It logs out when all are gone.
#[derive(Debug, Clone)]
pub(super) struct Link {
    commands: mpsc::Sender<Pending>,
    ended: watch::Receiver<()>,
    pub max_burst: u32,
}

impl Link {
    /// Drives a connection from here on, with `queue` commands under way at most.
    pub fn start(wire: Wire, times: Times, queue: usize, portal: String) -> Self {
        let (commands, asked) = mpsc::channel(queue);
        let (ending, ended) = watch::channel(());
        let max_burst = wire.agreed.session.max_burst;
        tokio::spawn(async move {
            let exchange = Exchange::new(wire.agreed.clone(), times, queue, Instant::now());
            let mut driver = Driver { wire, exchange, asked, open: true };
            match driver.run(times).await {
                Ok(()) => tracing::debug!(%portal, "logged out"),
                Err(error) => {
                    tracing::debug!(%portal, %error, "a connection ended");
                    // A target that is merely slow must not take what it has not read yet as still
                    // meant: it is repeated elsewhere.
                    let _ = driver.wire.stream.set_zero_linger();
                }
            }
            driver.asked.close();
            driver.exchange.fail();
            drop(ending);
        });
        Self { commands, ended, max_burst }
    }

    /// Carries out a command.
    ///
    /// # Errors
    /// [`Lost`] if there is no reply.
    pub async fn run(&self, command: Command) -> Result<Reply, Lost> {
        let (done, reply) = oneshot::channel();
        let pending = Pending { command, done };
        self.commands.send(pending).await.map_err(|_| Lost::Connection)?;
        reply.await.unwrap_or(Err(Lost::Connection))
    }

    pub fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }

    /// Waits for the end of the connection.
    pub async fn closed(&self) {
        ended(self.ended.clone()).await;
    }

    /// What tells of the end of the connection, and does not keep it.
    pub fn into_ended(self) -> watch::Receiver<()> {
        self.ended
    }
}

/// Waits for the end of a connection.
pub(super) async fn ended(mut ended: watch::Receiver<()>) {
    // Nothing is ever sent.
    let _ = ended.changed().await;
}

#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Framing(#[from] crate::pdu::FramingError),
}

struct Driver {
    wire: Wire,
    exchange: Exchange,
    asked: mpsc::Receiver<Pending>,
    /// Whether anybody can still ask.
    open: bool,
}

impl Driver {
    async fn run(&mut self, times: Times) -> Result<(), End> {
        let least = times.keep_alive.min(times.function) / 4;
        let mut ticks = tokio::time::interval(least.max(Duration::from_millis(5)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut farewell: Option<Instant> = None;
        loop {
            self.take();
            if !self.open && self.exchange.is_idle() && farewell.is_none() {
                farewell = Some(Instant::now() + FAREWELL);
                self.exchange.log_out();
            }
            self.send()?;
            let got = self.receive()?;
            if self.exchange.logged_out || farewell.is_some_and(|end| Instant::now() >= end) {
                return Ok(());
            }
            if got {
                // Those who were answered ask for more, which then goes out together.
                tokio::task::yield_now().await;
                continue;
            }
            let interest = match self.exchange.out.is_empty() {
                true => Interest::READABLE,
                false => Interest::READABLE | Interest::WRITABLE,
            };
            let room = self.open && self.exchange.has_room();
            tokio::select! {
                ready = self.wire.stream.ready(interest) => { ready?; }
                asked = self.asked.recv(), if room => match asked {
                    Some(pending) => self.exchange.submit(pending, Instant::now()),
                    None => self.open = false,
                },
                _ = ticks.tick() => self.exchange.tick(Instant::now())?,
            }
        }
    }

    /// Takes what callers ask for, as much as there is room.
    fn take(&mut self) {
        let now = Instant::now();
        while self.open && self.exchange.has_room() {
            match self.asked.try_recv() {
                Ok(pending) => self.exchange.submit(pending, now),
                Err(mpsc::error::TryRecvError::Empty) => return,
                Err(mpsc::error::TryRecvError::Disconnected) => self.open = false,
            }
        }
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.exchange.out.is_empty() {
            let slices = self.exchange.out.slices();
            match self.wire.stream.try_write_vectored(&slices) {
                Ok(count) => self.exchange.out.sent(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes what has come; whether anything had.
    fn receive(&mut self) -> Result<bool, End> {
        let Wire { stream, framer, input, .. } = &mut self.wire;
        input.reserve(READ);
        match stream.try_read_buf(input) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let now = Instant::now();
        while let Some(frame) = framer.next(input)? {
            self.exchange.apply(frame, now)?;
        }
        Ok(true)
    }
}

/// A command without data-out.
pub(super) fn plain(lun: [u8; 8], cdb: [u8; 16], read: u32, time: Duration) -> Command {
    Command { lun, cdb, out: Bytes::new(), read, time }
}
