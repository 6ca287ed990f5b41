//! The memory connections of the receiving side.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm::platform::{
    bus::lock,
    clock,
    memory::{GuestRam, PAGE},
};

use super::{
    MoveError,
    wire::{self, Kind, Message, WireError, parse_pages, read_frame, send},
};
use crate::{
    handover::target::State,
    host::{Host, arrivals::Arrival, records::MoveId},
    tls::Stream,
};

/// How long a silent peer counts as there.
pub(super) fn timeout(host: &Host) -> Duration {
    let seconds = host.config.migration.as_ref().map_or(1, |migration| migration.timeout_s);
    Duration::from_secs(u64::from(seconds))
}

/// Passes a point where a test may break the move.
pub(super) fn fault(host: &Host, arrival: &Arrival, point: &str) {
    host.faults.pass(point, timeout(host), || {
        for cutter in lock(&arrival.cutters).iter() {
            cutter.cut();
        }
    });
}

/// A memory connection.
pub(super) fn join(
    host: &Arc<Host>,
    mut stream: Stream,
    id: &MoveId,
    token: &str,
) -> Result<(), MoveError> {
    let arrival = host.arrivals.get(id).ok_or(MoveError::Protocol)?;
    let take = |left: usize| left.checked_sub(1);
    let known = arrival.token == token
        && arrival.joins.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok();
    if !known || arrival.at.now().state() != State::Receiving {
        return Err(MoveError::Protocol);
    }
    lock(&arrival.cutters).extend(stream.cutter().ok());
    send(&mut stream, &Message::Joined { now: Some(clock::now()) })?;
    let result = receive_memory(host, &mut stream, &arrival);
    if arrival.at.now().state() == State::Receiving {
        arrival.broken.store(true, Ordering::Release);
    }
    result
}

fn receive_memory(
    host: &Arc<Host>,
    stream: &mut Stream,
    arrival: &Arrival,
) -> Result<(), MoveError> {
    let ram = arrival.vm.ram();
    let mut body = Vec::new();
    loop {
        match read_frame(stream, &[Kind::Pages, Kind::Sync], &mut body)? {
            Kind::Pages => {
                // After the state has been restored memory is the guest's.
                if arrival.at.now().state() != State::Receiving {
                    return Err(MoveError::Protocol);
                }
                store_pages(ram, &body)?;
            }
            _ => {
                fault(host, arrival, "target.precopy");
                wire::write_frame(stream, Kind::Sync, &body)?;
                io::Write::flush(stream).map_err(WireError::from)?;
            }
        }
    }
}

/// Puts a batch into guest memory. Pages of zeros are written only where something was written
/// before: fresh memory is zero and stays unallocated.
fn store_pages(ram: &GuestRam, body: &[u8]) -> Result<(), WireError> {
    const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
    parse_pages(body, |run, data| {
        let bytes = u64::from(run.pages) * PAGE;
        let outside = WireError::Pages("an address outside of memory");
        let Some((region, at)) = ram.to_region_addr(GuestAddress(run.address)) else {
            return Err(outside);
        };
        if bytes > region.len() - at.0 {
            return Err(outside);
        }
        if !run.zero {
            return ram.write_slice(data, GuestAddress(run.address)).map_err(|_| outside);
        }
        let written = region.get_mmap();
        for page in 0..u64::from(run.pages) {
            let offset = at.0 + page * PAGE;
            if written.bitmap().is_addr_set(offset as usize) {
                let address = GuestAddress(run.address + page * PAGE);
                if ram.write_slice(&ZEROS, address).is_err() {
                    return Err(WireError::Pages("an address outside of memory"));
                }
            }
        }
        Ok(())
    })
}
