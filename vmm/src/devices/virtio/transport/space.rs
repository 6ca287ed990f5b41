//! What a guest finds of a function in PCI configuration space.

use super::{BAR_SIZE, DEVICE, ISR, NOTIFY, PENDING, TABLE};
use crate::devices::{pci::config::ConfigSpace, virtio::Backend};

/// Configuration space of a function and the places of its BAR window and MSI-X capabilities.
pub(super) fn config_space(backend: &dyn Backend, bar: u32) -> (ConfigSpace, usize, usize) {
    const VENDOR: u8 = 9;
    const MSIX: u8 = 0x11;
    let mut config = ConfigSpace::new(0x1af4, 0x1040 + backend.kind(), backend.class());
    config.set_bar0(bar, BAR_SIZE);
    // cap_len, cfg_type, bar, id, padding, offset, length (virtio 1.2 §4.1.4).
    let capability = |len: u8, kind: u8, offset: u64, size: u32| {
        let mut body = vec![len, kind, 0, 0, 0, 0];
        body.extend((offset as u32).to_le_bytes());
        body.extend(size.to_le_bytes());
        body
    };
    config.add_capability(VENDOR, &capability(16, 1, 0, 0x40), &[]);
    config.add_capability(VENDOR, &capability(16, 3, ISR, 1), &[]);
    config.add_capability(VENDOR, &capability(16, 4, DEVICE, 0x1000), &[]);
    let mut notify = capability(20, 2, NOTIFY, 0x1000);
    notify.extend(4u32.to_le_bytes());
    config.add_capability(VENDOR, &notify, &[]);
    let mut window = capability(20, 5, 0, 0);
    window.extend([0; 4]);
    let writable = [0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let window = config.add_capability(VENDOR, &window, &writable);
    let mut msix = backend.queues().to_le_bytes().to_vec();
    msix.extend((TABLE as u32).to_le_bytes());
    msix.extend((PENDING as u32).to_le_bytes());
    let msix = config.add_capability(MSIX, &msix, &[0, 0xc0]);
    (config, window, msix)
}
