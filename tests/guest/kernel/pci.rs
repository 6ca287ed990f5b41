//! Finds virtio functions by configuration mechanism 1.

use crate::machine::{in32, out32, read8, read32, write8, write16, write32};

const VENDOR_VIRTIO: u32 = 0x1af4;

/// A virtio function's register windows.
#[derive(Clone, Copy)]
pub struct Virtio {
    slot: u32,
    common: u64,
    device: u64,
    notify: u64,
    multiplier: u32,
}

fn config(slot: u32, register: u32) -> u32 {
    out32(0xcf8, 1 << 31 | slot << 11 | register & 0xfc);
    in32(0xcfc)
}

fn set_config(slot: u32, register: u32, value: u32) {
    out32(0xcf8, 1 << 31 | slot << 11 | register & 0xfc);
    out32(0xcfc, value);
}

/// The first function of this virtio type.
pub fn find(kind: u32) -> Option<Virtio> {
    let slot = (0..32).find(|slot| config(*slot, 0) == VENDOR_VIRTIO | (0x1040 + kind) << 16)?;
    set_config(slot, 4, config(slot, 4) & 0xffff | 0x6);
    let bar = |index: u32| u64::from(config(slot, 0x10 + 4 * index) & !0xf);
    let mut this = Virtio { slot, common: 0, device: 0, notify: 0, multiplier: 0 };
    let mut at = config(slot, 0x34) & 0xff;
    while at != 0 {
        let head = config(slot, at);
        if head & 0xff == 9 {
            let window = bar(config(slot, at + 4) & 0xff) + u64::from(config(slot, at + 8));
            match head >> 24 {
                1 => this.common = window,
                2 => {
                    this.notify = window;
                    this.multiplier = config(slot, at + 16);
                }
                4 => this.device = window,
                _ => {}
            }
        }
        at = head >> 8 & 0xff;
    }
    (this.common != 0 && this.notify != 0).then_some(this)
}

impl Virtio {
    /// Resets the device and takes those of `wanted` features that it offers; the version 1
    /// feature must be among them.
    pub fn negotiate(&self, wanted: u64) -> Option<u64> {
        let c = self.common;
        write8(c + 0x14, 0);
        while read8(c + 0x14) != 0 {}
        write8(c + 0x14, 3);
        write32(c, 0);
        let low = read32(c + 4);
        write32(c, 1);
        let high = read32(c + 4);
        let taken = (u64::from(low) | u64::from(high) << 32) & wanted;
        write32(c + 8, 0);
        write32(c + 0xc, taken as u32);
        write32(c + 8, 1);
        write32(c + 0xc, (taken >> 32) as u32);
        write8(c + 0x14, 0xb);
        (taken >> 32 & 1 == 1 && read8(c + 0x14) & 8 != 0).then_some(taken)
    }

    /// Points MSI-X entry 0 at `vector` of the boot processor and switches MSI-X on.
    pub fn enable_msix(&self, vector: u8) -> bool {
        let mut at = config(self.slot, 0x34) & 0xff;
        while at != 0 {
            let head = config(self.slot, at);
            if head & 0xff == 0x11 {
                let table = config(self.slot, at + 4);
                let bar = config(self.slot, 0x10 + 4 * (table & 7)) & !0xf;
                let entry = u64::from(bar + (table & !7));
                write32(entry, 0xfee0_0000);
                write32(entry + 4, 0);
                write32(entry + 8, u32::from(vector));
                write32(entry + 12, 0);
                set_config(self.slot, at, head & 0xffff | (head >> 16 & 0x3fff | 0x8000) << 16);
                return true;
            }
            at = head >> 8 & 0xff;
        }
        false
    }

    /// Gives the device a queue; returns the address of its doorbell.
    pub fn set_queue(&self, queue: u16, size: u16, ring: [u64; 3]) -> u64 {
        let c = self.common;
        write16(c + 0x16, queue);
        write16(c + 0x18, size);
        write16(c + 0x1a, 0);
        for (place, address) in [0x20, 0x28, 0x30].into_iter().zip(ring) {
            write32(c + place, address as u32);
            write32(c + place + 4, (address >> 32) as u32);
        }
        write16(c + 0x1c, 1);
        let offset = read32(c + 0x1c) >> 16;
        self.notify + u64::from(offset) * u64::from(self.multiplier)
    }

    /// Says that the driver is ready.
    pub fn ready(&self) {
        write8(self.common + 0x14, 0xf);
    }

    /// A word of the device's own configuration.
    pub fn device_word(&self, offset: u64) -> u32 {
        read32(self.device + offset)
    }
}
