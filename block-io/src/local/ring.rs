//! The io_uring engine: one thread per process that owns the ring and every buffer in flight.
//!
//! ```text
//!  callers ── Job ──► queue ──(eventfd when the thread sleeps)──► thread ──► SQ
//!     ▲                                                             │
//!     └───────────────── oneshot: result and buffer ◄───────────────┴──── CQ
//! ```
//!
//! A job's buffer and file descriptor belong to the thread from hand-over until the kernel has
//! answered, whether or not anyone still waits for the answer.
#![expect(unsafe_code, reason = "io_uring submission takes raw pointers to buffers")]

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use io_uring::{IoUring, opcode, squeue, types};
use tokio::sync::oneshot;

use crate::{Error, Result};

/// Submission queue size; the completion queue has twice as many.
const ENTRIES: u32 = 256;
/// Jobs given to the kernel at most at one time; the rest wait in the queue.
const IN_FLIGHT: usize = 256;
/// `user_data` of the read on the wake-up eventfd.
const WAKE: u64 = u64::MAX;
/// One submission moves at most this much, as read(2) does.
const MAX_IO: usize = 1 << 30;

type Answer = (io::Result<usize>, Vec<u8>);

/// A handle to the ring's thread.
#[derive(Debug)]
pub(super) struct Ring {
    queue: Mutex<Queue>,
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// The thread waits, or is about to: it must be woken.
    asleep: bool,
    /// The ring failed; jobs are refused.
    dead: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Sync,
}

#[derive(Debug)]
struct Job {
    kind: Kind,
    fd: Arc<OwnedFd>,
    offset: u64,
    buf: Vec<u8>,
    done: usize,
    answer: oneshot::Sender<Answer>,
}

/// The process's ring, or `None` where the kernel gives none.
pub(super) fn shared() -> Option<Arc<Ring>> {
    static RING: OnceLock<Option<Arc<Ring>>> = OnceLock::new();
    RING.get_or_init(|| match Ring::start() {
        Ok(ring) => Some(ring),
        Err(error) => {
            tracing::info!(%error, "no io_uring here, using blocking threads");
            None
        }
    })
    .clone()
}

impl Ring {
    fn start() -> io::Result<Arc<Self>> {
        let ring = IoUring::new(ENTRIES)?;
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        for code in [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE] {
            if !probe.is_supported(code) {
                return Err(io::ErrorKind::Unsupported.into());
            }
        }
        let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Self { queue: Mutex::default(), wake });
        let driver = Driver {
            shared: shared.clone(),
            ring,
            flights: Vec::new(),
            free: Vec::new(),
            wake_armed: false,
            wake_buf: Box::new([0; 8]),
        };
        thread::Builder::new().name("block-io-ring".into()).spawn(move || driver.run())?;
        Ok(shared)
    }

    /// Fills `buf` from `offset`; fewer bytes only at the end of the file.
    pub(super) async fn read(&self, fd: Arc<OwnedFd>, offset: u64, buf: Vec<u8>) -> Result<Answer> {
        self.submit(Kind::Read, fd, offset, buf).await
    }

    /// Writes all of `buf` at `offset`.
    pub(super) async fn write(
        &self,
        fd: Arc<OwnedFd>,
        offset: u64,
        buf: Vec<u8>,
    ) -> Result<io::Result<()>> {
        Ok(self.submit(Kind::Write, fd, offset, buf).await?.0.map(drop))
    }

    /// `fdatasync`.
    pub(super) async fn sync(&self, fd: Arc<OwnedFd>) -> Result<io::Result<()>> {
        Ok(self.submit(Kind::Sync, fd, 0, Vec::new()).await?.0.map(drop))
    }

    async fn submit(
        &self,
        kind: Kind,
        fd: Arc<OwnedFd>,
        offset: u64,
        buf: Vec<u8>,
    ) -> Result<Answer> {
        let (answer, wait) = oneshot::channel();
        let gone = || Error::io("submitting to io_uring", io::ErrorKind::BrokenPipe.into());
        let wake = {
            let mut queue = self.lock();
            if queue.dead {
                return Err(gone());
            }
            queue.jobs.push_back(Job { kind, fd, offset, buf, done: 0, answer });
            std::mem::take(&mut queue.asleep)
        };
        if wake {
            rustix::io::write(&self.wake, &1u64.to_ne_bytes())
                .map_err(|e| Error::io("waking the io_uring thread", e.into()))?;
        }
        wait.await.map_err(|_| gone())
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Driver {
    shared: Arc<Ring>,
    ring: IoUring,
    flights: Vec<Option<Job>>,
    free: Vec<usize>,
    wake_armed: bool,
    wake_buf: Box<[u8; 8]>,
}

impl Driver {
    fn run(mut self) {
        loop {
            if let Err(error) = self.turn() {
                tracing::error!(%error, "io_uring failed; its requests are lost");
                let mut queue = self.shared.lock();
                queue.dead = true;
                queue.jobs.clear();
                drop(queue);
                // The kernel may still write to these buffers: they are never freed.
                std::mem::forget(std::mem::take(&mut self.flights));
                std::mem::forget(self.wake_buf);
                return;
            }
        }
    }

    /// Takes new jobs, submits, waits for one completion and answers all there are.
    fn turn(&mut self) -> io::Result<()> {
        self.take_jobs()?;
        let sleep = {
            let mut queue = self.shared.lock();
            queue.asleep = queue.jobs.is_empty();
            queue.asleep || self.in_flight() >= IN_FLIGHT
        };
        if sleep && !self.wake_armed {
            self.arm_wake()?;
        }
        let submitted = if sleep { self.ring.submit_and_wait(1) } else { self.ring.submit() };
        match submitted {
            Ok(_) => {}
            // Interrupted, or the completion queue must be drained first.
            Err(e)
                if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(e) => return Err(e),
        }
        self.shared.lock().asleep = false;
        let completed: Vec<(u64, i32)> =
            self.ring.completion().map(|c| (c.user_data(), c.result())).collect();
        for (id, result) in completed {
            if id == WAKE {
                self.wake_armed = false;
            } else {
                self.complete(id as usize, result)?;
            }
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    fn take_jobs(&mut self) -> io::Result<()> {
        while self.in_flight() < IN_FLIGHT {
            let Some(job) = self.shared.lock().jobs.pop_front() else { break };
            let id = match self.free.pop() {
                Some(id) => id,
                None => {
                    self.flights.push(None);
                    self.flights.len() - 1
                }
            };
            self.flights[id] = Some(job);
            self.push(id)?;
        }
        Ok(())
    }

    fn complete(&mut self, id: usize, result: i32) -> io::Result<()> {
        let Some(job) = self.flights.get_mut(id).and_then(Option::as_mut) else {
            return Err(io::Error::other("a completion for no request"));
        };
        let outcome = match result {
            r if r == -libc::EINTR || r == -libc::EAGAIN => None,
            r if r < 0 => Some(Err(io::Error::from_raw_os_error(-r))),
            0 if job.kind == Kind::Write && job.done < job.buf.len() => {
                Some(Err(io::ErrorKind::WriteZero.into()))
            }
            r => {
                job.done += r as usize;
                let ended = r == 0 || job.kind == Kind::Sync || job.done >= job.buf.len();
                ended.then_some(Ok(job.done))
            }
        };
        match outcome {
            None => self.push(id),
            Some(outcome) => {
                if let Some(job) = self.flights[id].take() {
                    self.free.push(id);
                    // Nobody waiting any more is fine.
                    let _ = job.answer.send((outcome, job.buf));
                }
                Ok(())
            }
        }
    }

    /// Submits what is left of a job.
    fn push(&mut self, id: usize) -> io::Result<()> {
        let Some(job) = self.flights[id].as_mut() else { return Ok(()) };
        let fd = types::Fd(job.fd.as_raw_fd());
        let rest = &mut job.buf[job.done..];
        let len = rest.len().min(MAX_IO) as u32;
        let at = job.offset + job.done as u64;
        let entry = match job.kind {
            Kind::Read => opcode::Read::new(fd, rest.as_mut_ptr(), len).offset(at).build(),
            Kind::Write => opcode::Write::new(fd, rest.as_ptr(), len).offset(at).build(),
            Kind::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        };
        self.enqueue(entry.user_data(id as u64))
    }

    fn arm_wake(&mut self) -> io::Result<()> {
        let fd = types::Fd(self.shared.wake.as_raw_fd());
        let entry = opcode::Read::new(fd, self.wake_buf.as_mut_ptr(), 8).build();
        self.wake_armed = true;
        self.enqueue(entry.user_data(WAKE))
    }

    fn enqueue(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: the entry points into a job's heap buffer (or `wake_buf`) and names its file
        // descriptor; both stay in `self.flights` (or `self`) unmoved until the completion with
        // this `user_data` arrives, and are leaked if the ring fails before.
        if unsafe { self.ring.submission().push(&entry) }.is_ok() {
            return Ok(());
        }
        self.ring.submit()?;
        // SAFETY: as above.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| io::Error::other("the submission queue stays full"))
    }
}
