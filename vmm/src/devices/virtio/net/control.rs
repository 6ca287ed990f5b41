//! The control queue (virtio 1.2 §5.1.6.5): a class, a command, its data, and a byte for the answer.

use std::sync::atomic::{AtomicBool, Ordering};

use super::super::{chain::Chain, worker::Served};
use crate::platform::memory::GuestRam;

const ANNOUNCE: u8 = 3;
const ANNOUNCE_ACK: u8 = 0;

const OK: u8 = 0;
const ERROR: u8 = 1;

/// Does a command and answers it; `announce` is whether the guest is asked to announce itself.
pub(super) fn serve(chain: &Chain, mem: &GuestRam, announce: &AtomicBool) -> Served {
    let mut command = [0; 2];
    let answer = match chain.read(mem, 0, &mut command) {
        Ok(()) if command == [ANNOUNCE, ANNOUNCE_ACK] => {
            announce.store(false, Ordering::Release);
            OK
        }
        _ => ERROR,
    };
    let written = u32::from(chain.write(mem, 0, &[answer]).is_ok());
    Served { written, moved: 0 }
}
