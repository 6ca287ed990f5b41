//! One connection's share of the load: keep so many requests in flight until time is up.
//!
//! Requests are queued until the depth is reached, sent at once, and whatever answers have come
//! are taken at once: the generator batches as much as the server does.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use smb_client::raw::{Block, RawConnection};
use smb_protocol::NtStatus;

use super::{
    histogram::Histogram,
    verify::{check, fill, next_random},
};

/// Where in the file requests go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Pattern {
    /// Anywhere.
    Rand,
    /// One behind the other.
    Seq,
}

/// Whether a load reads, writes, or does both.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Rw {
    Read,
    Write,
    Mixed,
}

impl Rw {
    /// Reads among 100 operations, of which `mix` are if it is mixed.
    pub fn reads(self, mix: u32) -> u32 {
        match self {
            Self::Read => 100,
            Self::Write => 0,
            Self::Mixed => mix,
        }
    }
}

/// What one connection does.
#[derive(Clone, Debug)]
pub struct Plan {
    pub pattern: Pattern,
    /// Reads among 100 operations.
    pub reads: u32,
    pub block_size: u32,
    pub depth: usize,
    pub verify: bool,
    /// What is written without verification is half zeros.
    pub compressible: bool,
    /// First block of the part of the file this connection works on.
    pub first: u64,
    /// Blocks in it.
    pub blocks: u64,
    pub seed: u64,
}

/// What one connection did.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub reads: Histogram,
    pub writes: Histogram,
    /// Blocks whose content was compared.
    pub verified: u64,
    pub elapsed: Duration,
}

/// A request on its way.
struct Flight {
    block: u64,
    write: bool,
    queued: Instant,
}

/// Keeps one connection busy with requests.
pub struct Worker {
    connection: RawConnection,
    plan: Plan,
    random: u64,
    cursor: u64,
    flight: HashMap<u64, Flight>,
    /// What is written, without verification.
    same: Block,
    /// What is written next, with verification.
    data: Vec<u8>,
    /// With verification: how often each block was written, and whether it is in flight.
    sequences: Vec<u32>,
    busy: Vec<bool>,
    outcome: Outcome,
}

impl Worker {
    /// Takes a connection with its file open.
    pub fn new(connection: RawConnection, plan: Plan) -> anyhow::Result<Self> {
        let known = if plan.verify { plan.blocks as usize } else { 0 };
        let mut data = vec![0; plan.block_size as usize];
        fill(&mut data, plan.seed, 0);
        if plan.compressible && !plan.verify {
            data.chunks_mut(64).step_by(2).for_each(|piece| piece.fill(0));
        }
        Ok(Self {
            connection,
            random: plan.seed,
            cursor: 0,
            flight: HashMap::with_capacity(plan.depth * 2),
            same: Block::new(data.clone()).context("cannot keep a block to write")?,
            data,
            sequences: vec![0; known],
            busy: vec![false; known],
            outcome: Outcome {
                reads: Histogram::new(),
                writes: Histogram::new(),
                verified: 0,
                elapsed: Duration::ZERO,
            },
            plan,
        })
    }

    /// Writes every block once, so that there is something to read and to compare.
    pub fn prepare(&mut self) -> anyhow::Result<()> {
        let depth = self.plan.depth.min(16);
        let mut next = 0;
        while next < self.plan.blocks || !self.flight.is_empty() {
            while next < self.plan.blocks
                && self.flight.len() < depth
                && self.connection.can_queue(self.plan.block_size)
            {
                self.queue(next, true, Instant::now());
                next += 1;
            }
            self.connection.send()?;
            self.receive(false)?;
        }
        Ok(self.connection.flush()?)
    }

    /// Keeps the load up until `until` and waits for the rest of the answers.
    pub fn run(&mut self, until: Instant) -> anyhow::Result<()> {
        let started = Instant::now();
        let mut now = started;
        while now < until || !self.flight.is_empty() {
            if now < until {
                while self.flight.len() < self.plan.depth
                    && self.connection.can_queue(self.plan.block_size)
                {
                    let Some(block) = self.next_block() else { break };
                    let write = self.next_is_write();
                    self.queue(block, write, now);
                }
            }
            if self.flight.is_empty() {
                bail!("the server grants no credits for a request of this size");
            }
            self.connection.send()?;
            self.receive(true)?;
            now = Instant::now();
        }
        self.outcome.elapsed = started.elapsed();
        Ok(())
    }

    /// Reads every block and compares it with what was last written there.
    pub fn verify_all(&mut self) -> anyhow::Result<()> {
        let mut next = 0;
        while next < self.plan.blocks || !self.flight.is_empty() {
            while next < self.plan.blocks
                && self.flight.len() < self.plan.depth.min(16)
                && self.connection.can_queue(self.plan.block_size)
            {
                self.queue(next, false, Instant::now());
                next += 1;
            }
            self.connection.send()?;
            self.receive(false)?;
        }
        Ok(())
    }

    /// Ends the connection and gives what was done.
    pub fn finish(mut self) -> anyhow::Result<Outcome> {
        self.connection.close()?;
        Ok(self.outcome)
    }

    fn next_is_write(&mut self) -> bool {
        match self.plan.reads {
            0 => true,
            100 => false,
            reads => next_random(&mut self.random) % 100 >= u64::from(reads),
        }
    }

    /// The next block to use. With verification none that is in flight, and none at all if it
    /// takes too long to find one.
    fn next_block(&mut self) -> Option<u64> {
        for _ in 0..64 {
            let block = match self.plan.pattern {
                Pattern::Rand => {
                    let wide = u128::from(next_random(&mut self.random));
                    ((wide * u128::from(self.plan.blocks)) >> 64) as u64
                }
                Pattern::Seq => {
                    let block = self.cursor;
                    self.cursor = (self.cursor + 1) % self.plan.blocks;
                    block
                }
            };
            if !self.plan.verify || !self.busy[block as usize] {
                return Some(block);
            }
        }
        None
    }

    fn queue(&mut self, block: u64, write: bool, queued: Instant) {
        let size = self.plan.block_size;
        let index = self.plan.first + block;
        let offset = index * u64::from(size);
        if self.plan.verify {
            self.busy[block as usize] = true;
        }
        let message = if write {
            if self.plan.verify {
                let sequence = self.sequences[block as usize].wrapping_add(1);
                fill(&mut self.data, index, sequence.into());
                self.sequences[block as usize] = sequence;
                self.connection.queue_write(offset, &self.data)
            } else {
                self.connection.queue_block(offset, &self.same)
            }
        } else {
            self.connection.queue_read(offset, size)
        };
        self.flight.insert(message, Flight { block, write, queued });
    }

    /// Takes the answers that have come.
    fn receive(&mut self, count: bool) -> anyhow::Result<()> {
        let Self { connection, plan, flight, sequences, busy, outcome, .. } = self;
        let mut trouble = None;
        let mut now = None;
        connection.receive(|answer| {
            let now = *now.get_or_insert_with(Instant::now);
            let Some(Flight { block, write, queued }) = flight.remove(&answer.message) else {
                return;
            };
            let index = plan.first + block;
            if answer.status != NtStatus::SUCCESS {
                let what = if write { "write" } else { "read" };
                trouble = Some(format!("{what} of block {index}: {}", answer.status));
                return;
            }
            if !write && answer.data.len() != plan.block_size as usize {
                let len = answer.data.len();
                trouble = Some(format!("read of block {index} gave {len} bytes"));
                return;
            }
            if plan.verify {
                busy[block as usize] = false;
                if !write {
                    let sequence = sequences[block as usize];
                    match check(answer.data, index, sequence.into()) {
                        Ok(()) => outcome.verified += 1,
                        Err(error) => trouble = Some(error),
                    }
                }
            }
            if count {
                let histogram = if write { &mut outcome.writes } else { &mut outcome.reads };
                histogram.add(now.duration_since(queued));
            }
        })?;
        match trouble {
            Some(trouble) => Err(anyhow::Error::msg(trouble)),
            None => Ok(()),
        }
        .context("the server's answer is wrong")
    }
}
