//! The port by which a guest's kernel says that it has panicked (QEMU's specification `pvpanic`): a byte
//! whose bits are what has happened, and reading it tells which of them are understood. Linux finds it in
//! the ACPI namespace as `QEMU0001`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use host_api::PanicAction;

use crate::platform::{
    bus::BusDevice,
    lifecycle::{Control, EndReason},
};

/// Its kernel has panicked.
const PANICKED: u8 = 1;
/// Its kernel has panicked, and another that was kept for that writes down what there was.
const CRASH_LOADED: u8 = 2;

/// The port, and what becomes of the machine.
#[derive(Debug)]
pub struct PanicPort {
    control: Arc<Control>,
    action: PanicAction,
    panicked: Arc<AtomicBool>,
}

impl PanicPort {
    /// A port of a machine that is to do `action`; `panicked` is set when its kernel has panicked.
    pub fn new(control: Arc<Control>, action: PanicAction, panicked: Arc<AtomicBool>) -> Self {
        Self { control, action, panicked }
    }
}

impl BusDevice for PanicPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(byte) = data.first_mut() {
            *byte = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let [byte] = data else { return };
        if byte & (PANICKED | CRASH_LOADED) == 0 {
            return;
        }
        if !self.panicked.swap(true, Ordering::AcqRel) {
            self.control.tell();
        }
        // Where another kernel is at work it ends the machine itself.
        if byte & PANICKED == 0 {
            return;
        }
        match self.action {
            PanicAction::Report => {}
            PanicAction::Restart => self.control.end(EndReason::Reset),
            PanicAction::Stop => {
                self.control.end(EndReason::Failed("its kernel has panicked".to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(action: PanicAction, byte: u8) -> (Option<EndReason>, bool) {
        let (control, panicked) = (Arc::new(Control::default()), Arc::default());
        let mut port = PanicPort::new(control.clone(), action, Arc::clone(&panicked));
        let mut can = [0];
        port.read(0, &mut can);
        assert_eq!(can, [3]);
        port.write(0, &[byte]);
        (control.ended(), panicked.load(Ordering::Acquire))
    }

    #[test]
    fn a_panic_does_what_is_wanted() {
        assert_eq!(says(PanicAction::Report, 1), (None, true));
        assert_eq!(says(PanicAction::Restart, 1), (Some(EndReason::Reset), true));
        let (end, panicked) = says(PanicAction::Stop, 1);
        assert!(matches!(end, Some(EndReason::Failed(_))) && panicked);
        // A kernel that writes a dump is left alone; what is not a panic is nothing.
        assert_eq!(says(PanicAction::Stop, 2), (None, true));
        assert_eq!(says(PanicAction::Stop, 0xf0), (None, false));
    }
}
