//! VMs' network cards on this host: a tap for each, in the bridge that its definition names. A tap and
//! its interface go with the machine that has them.

use std::{io, os::fd::OwnedFd};

use host_api::VmDefinition;
use vmm::devices::virtio::net::{Interface, open_tap};

/// What the kernel calls taps by: the first number that is free.
const PATTERN: &str = "bulkhead%d";

/// Whether this host has an interface of that name, in its own network namespace.
pub fn has_bridge(name: &str) -> bool {
    Interface { name: name.to_owned() }.exists()
}

/// Opens the taps of a machine's cards, in order.
///
/// # Errors
/// What the operating system says of the first that cannot be, with its bridge.
pub fn open_all(definition: &VmDefinition) -> io::Result<Vec<OwnedFd>> {
    definition.nics.iter().map(|nic| open(&nic.bridge)).collect()
}

fn open(bridge: &str) -> io::Result<OwnedFd> {
    let opened = open_tap(PATTERN).and_then(|(tap, interface)| {
        interface.join(bridge)?;
        interface.set_up()?;
        Ok(tap)
    });
    opened.map_err(|error| io::Error::new(error.kind(), format!("bridge {bridge}: {error}")))
}
