//! Entropy device (virtio 1.2 §5.4).

use std::sync::Arc;

use super::{
    Backend, Drain, QueueIo, Worker,
    chain::Chain,
    worker::{Served, Source, serve_in_turn},
};
use crate::platform::memory::GuestRam;

/// Most bytes given for one request.
const MOST: u64 = 4096;

/// The virtio entropy device, filled from the kernel's generator.
#[derive(Debug)]
pub struct Rng;

impl Backend for Rng {
    fn name(&self) -> String {
        "the entropy device".into()
    }

    fn kind(&self) -> u16 {
        4
    }

    fn class(&self) -> u32 {
        0x00_ff_00
    }

    fn queues(&self) -> u16 {
        1
    }

    fn serve(self: Arc<Self>, io: QueueIo, drain: Drain) -> Worker {
        Box::pin(serve_in_turn(io, drain, Source::always(), fill))
    }
}

/// Fills a request with random bytes.
fn fill(chain: &Chain, mem: &GuestRam) -> Served {
    let mut bytes = vec![0; chain.writable_len().min(MOST) as usize];
    let flags = rustix::rand::GetRandomFlags::empty();
    let filled = rustix::rand::getrandom(&mut bytes[..], flags).unwrap_or(0);
    let written = match chain.write(mem, 0, &bytes[..filled]) {
        Ok(()) => filled as u32,
        Err(_) => 0,
    };
    Served { written, moved: bytes.len() as u64 }
}
