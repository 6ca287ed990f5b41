//! Both ends of a connection in one process: the semantics of RDMA without a network, for tests.
//!
//! ```text
//!  End ─ post_… ─► Both (one lock) ─► the other side's receives, regions, completions
//! ```
//! What is posted is carried out at once. What a card would not allow ends the connection for both, as
//! a card would: whoever named too much is told that it was terminated, the other one why.

use std::{
    collections::HashMap,
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    memory::{Memory, Part, Refusal, Regions},
    provider::{Completion, Doing, Endpoint, Listener, Lost, Message, Provider},
};

fn own<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Side {
    receives: VecDeque<usize>,
    /// It has posted a receive. Before that it is not there, and what it is sent waits.
    begun: bool,
    early: Vec<Message>,
    regions: Regions,
    completions: VecDeque<Completion>,
    lost: Option<Lost>,
    waker: Option<Waker>,
}

impl Side {
    fn complete(&mut self, done: Completion) {
        self.completions.push_back(done);
        self.waker.take().into_iter().for_each(Waker::wake);
    }

    /// Receives a message; the right of its sender to memory here may end with it.
    fn receive(&mut self, message: &Message) -> Result<(), Lost> {
        let bytes = [&message.head[..], &message.body].concat();
        match self.receives.pop_front() {
            None => return Err(Lost::Protocol("no buffer for a message".to_owned())),
            Some(room) if room < bytes.len() => {
                return Err(Lost::Protocol("message longer than its buffer".to_owned()));
            }
            Some(_) => {}
        }
        let invalidated = message.invalidate;
        if invalidated.is_some_and(|token| !self.regions.invalidate(token)) {
            return Err(Refusal::Token.into());
        }
        self.complete(Completion::Received { bytes, invalidated });
        Ok(())
    }

    fn lose(&mut self, why: Lost) {
        self.lost.get_or_insert(why);
        self.receives.clear();
        self.waker.take().into_iter().for_each(Waker::wake);
    }
}

/// One of a connection's two ends.
#[derive(Debug)]
pub struct End {
    both: Arc<Mutex<[Side; 2]>>,
    at: usize,
    addresses: [SocketAddr; 2],
}

/// Both ends of a new connection between these addresses.
pub fn pair(addresses: [SocketAddr; 2]) -> (End, End) {
    let both: Arc<Mutex<[Side; 2]>> = Arc::default();
    (End { both: both.clone(), at: 0, addresses }, End { both, at: 1, addresses })
}

impl End {
    /// Does something with both sides, ours first; what is refused ends the connection for both.
    fn act(&self, act: impl FnOnce(&mut Side, &mut Side) -> Result<(), Lost>) -> Result<(), Lost> {
        let mut both = own(&self.both);
        let [first, second] = &mut *both;
        let (ours, theirs) = if self.at == 0 { (first, second) } else { (second, first) };
        if let Some(lost) = &ours.lost {
            return Err(lost.clone());
        }
        if theirs.lost.is_some() {
            ours.lose(Lost::Ended);
            return Err(Lost::Ended);
        }
        if let Err(why) = act(ours, theirs) {
            ours.lose(Lost::Terminated(why.to_string()));
            theirs.lose(why.clone());
        }
        Ok(())
    }

    fn leave(&self, why: Lost) {
        let mut both = own(&self.both);
        both[self.at].lose(why);
        both[1 - self.at].lose(Lost::Ended);
    }
}

/// Whether the parts have so many bytes together.
fn fit(parts: &[Part], len: usize) -> Result<(), Lost> {
    let all: u64 = parts.iter().map(|part| u64::from(part.length)).sum();
    if all == len as u64 { Ok(()) } else { Err(Refusal::Bounds.into()) }
}

impl Endpoint for End {
    fn peer(&self) -> SocketAddr {
        self.addresses[1 - self.at]
    }

    fn local(&self) -> SocketAddr {
        self.addresses[self.at]
    }

    fn unacknowledged(&self) -> Box<dyn Fn() -> u64 + Send + Sync> {
        Box::new(|| 0)
    }

    fn register(&mut self, memory: Memory) -> Result<Part, Memory> {
        let side = &mut own(&self.both)[self.at];
        if side.lost.is_some() { Err(memory) } else { side.regions.register(memory) }
    }

    fn deregister(&mut self, token: u32) -> Option<Memory> {
        own(&self.both)[self.at].regions.deregister(token)
    }

    fn post_receive(&mut self, len: usize) -> Result<(), Lost> {
        self.act(|ours, _| {
            ours.receives.push_back(len);
            ours.begun = true;
            std::mem::take(&mut ours.early).iter().try_for_each(|message| ours.receive(message))
        })
    }

    fn post_send(&mut self, message: Message) -> Result<(), Lost> {
        self.act(|ours, theirs| {
            ours.complete(Completion::Sent(message.id));
            if !theirs.begun {
                theirs.early.push(message);
                return Ok(());
            }
            theirs.receive(&message)
        })
    }

    fn post_read(&mut self, id: u64, from: Vec<Part>, mut buffer: Vec<u8>) -> Result<(), Lost> {
        self.act(|ours, theirs| {
            fit(&from, buffer.len())?;
            let mut at = 0;
            for part in from {
                let len = part.length as usize;
                let bytes = theirs.regions.read(part.token, part.offset, len)?;
                buffer[at..at + len].copy_from_slice(&bytes);
                at += len;
            }
            ours.complete(Completion::Read(id, buffer));
            Ok(())
        })
    }

    fn post_write(&mut self, id: u64, to: Vec<Part>, mut data: Bytes) -> Result<(), Lost> {
        self.act(|ours, theirs| {
            fit(&to, data.len())?;
            for part in to {
                let here = data.split_to(part.length as usize);
                theirs.regions.write(part.token, part.offset, &here)?;
            }
            ours.complete(Completion::Written(id));
            Ok(())
        })
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Completion, Lost>> {
        let side = &mut own(&self.both)[self.at];
        if let Some(done) = side.completions.pop_front() {
            return Poll::Ready(Ok(done));
        }
        if let Some(lost) = &side.lost {
            return Poll::Ready(Err(lost.clone()));
        }
        side.waker = Some(context.waker().clone());
        Poll::Pending
    }

    fn disconnect(&mut self) {
        self.leave(Lost::GivenUp);
    }

    fn abort(&mut self) {
        self.leave(Lost::GivenUp);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.leave(Lost::GivenUp);
    }
}

type Listeners = Arc<Mutex<HashMap<SocketAddr, mpsc::Sender<End>>>>;

/// Connections that wait to be accepted at one address, at most.
const BACKLOG: usize = 128;

/// Addresses within one process.
#[derive(Debug, Clone, Default)]
pub struct Fabric {
    listeners: Listeners,
    ports: Arc<AtomicU16>,
}

impl Fabric {
    /// A port that nobody has had.
    fn port(&self) -> u16 {
        49152 + self.ports.fetch_add(1, Ordering::Relaxed) % 16384
    }
}

impl Provider for Fabric {
    fn connect(&self, to: SocketAddr) -> Doing<'_, Box<dyn Endpoint>> {
        Box::pin(async move {
            let listener = own(&self.listeners).get(&to).cloned();
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let local = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port()));
            let (ours, theirs) = pair([local, to]);
            listener.ok_or_else(refused)?.send(theirs).await.map_err(|_| refused())?;
            Ok(Box::new(ours) as Box<dyn Endpoint>)
        })
    }

    fn listen(&self, at: SocketAddr) -> Doing<'_, Box<dyn Listener>> {
        Box::pin(async move {
            let port = if at.port() == 0 { self.port() } else { at.port() };
            let local = SocketAddr::new(at.ip(), port);
            let (sender, arrivals) = mpsc::channel(BACKLOG);
            own(&self.listeners).insert(local, sender);
            let arrivals = tokio::sync::Mutex::new(arrivals);
            Ok(Box::new(Listening { local, arrivals }) as Box<dyn Listener>)
        })
    }
}

/// An address where ends of this process connect.
#[derive(Debug)]
struct Listening {
    local: SocketAddr,
    arrivals: tokio::sync::Mutex<mpsc::Receiver<End>>,
}

impl Listener for Listening {
    fn local(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn accept(&self) -> Doing<'_, Box<dyn Endpoint>> {
        Box::pin(async move {
            let end = self.arrivals.lock().await.recv().await;
            let end = end.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
            Ok(Box::new(end) as Box<dyn Endpoint>)
        })
    }
}
