//! A watchdog that Linux and others drive out of the box: the timer of Intel's 6300ESB (datasheet 300641,
//! chapter 15; Linux: module `i6300esb`), a PCI function with a window of 16 bytes.
//!
//! ```text
//!  config 0x60  rate, output          BAR 0  0x0, 0x4  preloads
//!         0x68  enabled, locked              0xc       unlock, reload, has expired
//! ```
//!
//! What its registers say is in [`engine`]. The time that counts is that in which the machine runs: a
//! guest that is paused, halted or on its way to another host cannot reload it.

pub mod engine;

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use host_api::WatchdogAction;
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, sync::Notify};

use self::engine::{Engine, SavedEngine};
use super::pci::{
    PciFunction,
    config::{COMMAND, ConfigSpace, SavedConfig},
};
use crate::platform::{
    bus::{Bus, BusDevice, lock},
    error::Error,
    lifecycle::{Control, EndReason},
};

/// Size of BAR 0.
const WINDOW: u32 = 16;
/// The configuration register; one byte of it has bits.
const CONFIG: usize = 0x60;
const LOCK: usize = 0x68;
/// How soon a timer that did not expire is looked at again, at the soonest: one whose machine does not
/// run stands.
const LOOK: Duration = Duration::from_millis(100);

/// How a watchdog stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Standing {
    /// The guest has it run.
    pub enabled: bool,
    /// Time until it expires, while it runs.
    pub left: Option<Duration>,
    /// How often it has expired since the machine is here.
    pub expired: u64,
    /// The machine is paused because of that.
    pub paused: bool,
}

/// What else than the guest looks at.
#[derive(Debug, Default)]
struct Told {
    expired: u64,
    paused: bool,
}

/// The function on the PCI bus.
pub struct Watchdog {
    config: ConfigSpace,
    engine: Engine,
    action: WatchdogAction,
    control: Arc<Control>,
    /// The bus has this function.
    mmio: Weak<Bus>,
    this: Weak<Mutex<Self>>,
    window: Option<u64>,
    told: Told,
    /// The timer was begun anew, or ended.
    changed: Arc<Notify>,
}

/// Saved form: registers, and the time that is left.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedWatchdog {
    config: SavedConfig,
    engine: SavedEngine,
    /// How often it has expired.
    #[serde(default)]
    expired: u64,
    /// The machine stands for that.
    #[serde(default)]
    paused: bool,
}

impl std::fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watchdog").field("engine", &self.engine).finish_non_exhaustive()
    }
}

impl Watchdog {
    /// A watchdog with its window at `bar` on `mmio`, by which a machine does `action` when it expires.
    /// Its time is looked at on `runtime` until the machine ends.
    pub fn new(
        control: &Arc<Control>,
        action: WatchdogAction,
        mmio: &Arc<Bus>,
        bar: u64,
        runtime: &Handle,
    ) -> Arc<Mutex<Self>> {
        let mut config = ConfigSpace::new(0x8086, 0x25ab, 0x08_80_00)
            .with(CONFIG, &[0], &[0x27])
            .with(LOCK, &[0], &[0x07]);
        config.set_bar0(bar as u32, WINDOW);
        let changed = Arc::new(Notify::new());
        let this = Arc::new_cyclic(|this| {
            Mutex::new(Self {
                config,
                engine: Engine::default(),
                action,
                control: control.clone(),
                mmio: Arc::downgrade(mmio),
                this: this.clone(),
                window: None,
                told: Told::default(),
                changed: changed.clone(),
            })
        });
        runtime.spawn(watch(Arc::downgrade(&this), control.clone(), changed));
        this
    }

    /// How the timer stands now, and what has come of it.
    pub fn standing(&self) -> Standing {
        Standing {
            enabled: self.engine.is_enabled(),
            left: self.engine.left(self.control.run_time()),
            expired: self.told.expired,
            paused: self.told.paused,
        }
    }

    /// Says that the machine before this one was reset by its watchdog, which the guest may ask.
    pub fn set_expired_before(&mut self) {
        self.engine.set_timed_out();
    }

    /// Lets a machine run on that was paused because it has expired. It runs again when the guest
    /// reloads it.
    pub fn release(&mut self) -> bool {
        std::mem::take(&mut self.told.paused)
    }

    /// The registers, and the time that is left, as they are moved.
    pub fn save(&self) -> SavedWatchdog {
        let engine = self.engine.save(self.control.run_time());
        let Told { expired, paused } = self.told;
        SavedWatchdog { config: self.config.save(), engine, expired, paused }
    }

    /// Puts in place what was saved of one whose machine has not run here.
    ///
    /// # Errors
    /// [`Error::Config`] if registers and configuration space do not say the same.
    pub fn restore(&mut self, saved: &SavedWatchdog) -> Result<(), Error> {
        self.config.restore(&saved.config);
        self.engine.restore(&saved.engine, self.control.run_time());
        if self.byte(CONFIG) != self.engine.config() || self.byte(LOCK) != self.engine.lock() {
            return Err(Error::Config("a watchdog's state that says two things".into()));
        }
        self.told = Told { expired: saved.expired, paused: saved.paused };
        self.follow_bar();
        self.changed.notify_one();
        if saved.paused {
            self.control.tell();
        }
        Ok(())
    }

    fn byte(&self, offset: usize) -> u8 {
        let mut byte = [0];
        self.config.read(offset, &mut byte);
        byte[0]
    }

    /// Has the window where the guest has put BAR 0, and nowhere while it answers no memory accesses.
    fn follow_bar(&mut self) {
        let wanted = self.config.memory_enabled().then(|| u64::from(self.config.bar0()));
        if wanted == self.window {
            return;
        }
        let (Some(mmio), Some(this)) = (self.mmio.upgrade(), self.this.upgrade()) else { return };
        let this: Arc<Mutex<dyn BusDevice>> = this;
        if let Some(old) = self.window.take() {
            mmio.remove(old, &this);
        }
        if let Some(at) = wanted {
            mmio.insert(at..at + u64::from(WINDOW), this);
        }
        self.window = wanted;
    }

    /// Deals with the machine if it is time.
    fn look(&mut self) {
        // A machine that is about to move is dealt with where it goes on, with no time left.
        if !self.control.is_running() || !self.engine.poll(self.control.run_time()) {
            return;
        }
        self.told.expired += 1;
        match self.action {
            WatchdogAction::Reset => self.control.end(EndReason::Watchdog),
            WatchdogAction::Stop => {
                self.control.end(EndReason::Failed("its watchdog has expired".to_owned()));
            }
            // Who watches over the machine has it stand.
            WatchdogAction::Pause => self.told.paused = true,
            WatchdogAction::Nothing => {}
        }
        self.control.tell();
    }
}

/// Looks at a watchdog's time until its machine ends.
async fn watch(watchdog: Weak<Mutex<Watchdog>>, control: Arc<Control>, changed: Arc<Notify>) {
    loop {
        let left = {
            let Some(watchdog) = watchdog.upgrade() else { return };
            let mut watchdog = lock(&watchdog);
            watchdog.look();
            watchdog.standing().left
        };
        let expires = async {
            match left {
                Some(left) => tokio::time::sleep(left.max(LOOK)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = expires => {}
            () = changed.notified() => {}
            () = control.ending() => return,
        }
    }
}

impl BusDevice for Watchdog {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.engine.read(offset + index as u64);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // What has come too late has.
        self.look();
        self.engine.write(offset, data, self.control.run_time());
        self.changed.notify_one();
    }
}

impl PciFunction for Watchdog {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        let touches = |from: usize, len: usize| offset < from + len && offset + data.len() > from;
        self.config.write(offset, data);
        if touches(COMMAND, 0x14 - COMMAND) {
            self.follow_bar();
        }
        if touches(CONFIG, 1) {
            self.engine.configure(self.byte(CONFIG));
        }
        if touches(LOCK, 1) {
            self.look();
            let lock = self.engine.set_lock(self.byte(LOCK), self.control.run_time());
            self.config.write(LOCK, &[lock]);
            self.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rig {
        watchdog: Arc<Mutex<Watchdog>>,
        mmio: Arc<Bus>,
        control: Arc<Control>,
        runtime: tokio::runtime::Runtime,
    }

    fn rig(action: WatchdogAction) -> Rig {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (mmio, control) = (Arc::new(Bus::default()), Arc::new(Control::default()));
        let watchdog = Watchdog::new(&control, action, &mmio, 0xc000_0000, runtime.handle());
        Rig { watchdog, mmio, control, runtime }
    }

    impl Rig {
        fn config(&self, offset: usize, data: &[u8]) {
            lock(&self.watchdog).config_write(offset, data);
        }

        fn put(&self, offset: u64, value: u32) {
            for unlock in [0x80u16, 0x86] {
                self.mmio.write_to(0xc000_000c, &unlock.to_le_bytes());
            }
            self.mmio.write_to(0xc000_0000 + offset, &value.to_le_bytes());
        }

        /// A driver has it run, for two times so many ticks of a millisecond.
        fn start(&self, ticks: u32) {
            self.config(COMMAND, &[2, 0]);
            self.config(CONFIG, &[3, 0]);
            self.put(0, ticks);
            self.put(4, ticks);
            self.config(LOCK, &[2]);
        }
    }

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_machine_that_runs_is_dealt_with_as_its_definition_says() {
        let rig = rig(WatchdogAction::Reset);
        rig.start(1);
        assert_eq!(rig.control.wait_end(Duration::from_millis(300)), None, "it does not run");
        rig.control.run();
        assert_eq!(rig.control.wait_end(PATIENCE), Some(EndReason::Watchdog));
        assert_eq!(lock(&rig.watchdog).standing().expired, 1);

        let rig = self::rig(WatchdogAction::Stop);
        rig.start(1);
        rig.control.run();
        assert!(matches!(rig.control.wait_end(PATIENCE), Some(EndReason::Failed(_))));

        for (action, paused) in [(WatchdogAction::Pause, true), (WatchdogAction::Nothing, false)] {
            let rig = self::rig(action);
            rig.start(1);
            rig.control.run();
            let mut seen = 0;
            assert_eq!(rig.control.wait_news(&mut seen, PATIENCE), None);
            let standing = lock(&rig.watchdog).standing();
            assert_eq!((standing.expired, standing.paused), (1, paused), "{action:?}");
            assert_eq!(standing.left, None);
            assert_eq!(lock(&rig.watchdog).release(), paused);
            drop(rig.runtime);
        }
    }

    /// Its time is over as the machine is about to move; and what it did goes along.
    #[test]
    fn what_expires_while_a_machine_moves_is_dealt_with_where_it_goes_on() {
        let source = rig(WatchdogAction::Pause);
        source.start(1);
        let watchdog = lock(&source.watchdog);
        source.control.run();
        while watchdog.engine.left(source.control.run_time()) != Some(Duration::ZERO) {
            std::thread::yield_now();
        }
        source.control.hold();
        drop(watchdog);
        let look = || lock(&source.watchdog).look();
        look();
        let saved = lock(&source.watchdog).save();
        assert_eq!((saved.expired, saved.paused), (0, false));
        let target = rig(WatchdogAction::Pause);
        lock(&target.watchdog).restore(&saved).unwrap();
        target.control.run();
        let mut seen = 0;
        assert_eq!(target.control.wait_news(&mut seen, PATIENCE), None);
        let saved = lock(&target.watchdog).save();
        assert_eq!((saved.expired, saved.paused), (1, true));
        let next = rig(WatchdogAction::Pause);
        lock(&next.watchdog).restore(&saved).unwrap();
        assert!(lock(&next.watchdog).standing().paused, "it stands there, too");
    }

    #[test]
    fn its_window_and_registers_are_where_a_driver_finds_them() {
        let rig = rig(WatchdogAction::Nothing);
        let mut ids = [0; 4];
        lock(&rig.watchdog).config_read(0, &mut ids);
        assert_eq!(u32::from_le_bytes(ids), 0x25ab_8086);
        rig.start(1000);
        let mut value = [0; 4];
        rig.mmio.read(0xc000_0004, &mut value);
        assert_eq!(u32::from_le_bytes(value), 1000);
        let standing = lock(&rig.watchdog).standing();
        assert!(standing.enabled && standing.left.is_some_and(|left| !left.is_zero()));
        rig.config(LOCK, &[3]);
        rig.config(LOCK, &[0]);
        let mut lock_register = [0];
        lock(&rig.watchdog).config_read(LOCK, &mut lock_register);
        assert_eq!(lock_register, [3]);
        // It goes on where it is moved.
        let saved = lock(&rig.watchdog).save();
        let there = self::rig(WatchdogAction::Nothing);
        lock(&there.watchdog).restore(&saved).unwrap();
        let same = |rig: &Rig| lock(&rig.watchdog).standing();
        assert_eq!(same(&there), same(&rig));
        there.mmio.read(0xc000_0004, &mut value);
        assert_eq!(u32::from_le_bytes(value), 1000);
        // The window goes when the guest takes it away.
        rig.config(COMMAND, &[0, 0]);
        rig.mmio.read(0xc000_0004, &mut value);
        assert_eq!(value, [0xff; 4]);
    }
}
