//! Entropy device (virtio 1.2 §5.4).

use std::sync::Arc;

use super::{Backend, Drain, QueueIo, Turn, Worker};

/// Most bytes given for one request.
const MOST: u64 = 4096;

/// The device.
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

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        1
    }

    fn queue_size(&self) -> u16 {
        64
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn serve(self: Arc<Self>, io: QueueIo, drain: Drain) -> Worker {
        Box::pin(serve(io, drain))
    }
}

async fn serve(mut io: QueueIo, mut drain: Drain) -> QueueIo {
    let mut turn = Turn::default();
    loop {
        turn.renew().await;
        if *drain.borrow_and_update() {
            return io;
        }
        let mut any = false;
        while !turn.is_over()
            && let Some(chain) = io.pop()
        {
            let len = chain.writable_len().min(MOST) as usize;
            let mut bytes = vec![0; len];
            let filled =
                rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
                    .unwrap_or(0);
            let written = match chain.write(&io.mem, 0, &bytes[..filled]) {
                Ok(()) => filled as u32,
                Err(_) => 0,
            };
            io.push(chain.head, written);
            turn.took(len as u64);
            any = true;
        }
        if any {
            io.signal();
        }
        if io.rearm(any) {
            continue;
        }
        tokio::select! {
            () = io.kick.wait() => turn.took(0),
            changed = drain.changed() => if changed.is_err() { return io },
        }
    }
}
