//! The registers and timers of the watchdog, without a clock of its own: who asks says what time it is,
//! as the time that the machine has run.
//!
//! ```text
//!  off ── enable ──► first stage ── preload 1 ──► second stage ── preload 2 ──► expired
//!   ▲                    ▲  └──────── reload ────────┘                             │
//!   └──── disable        └───────────────────────── reload ────────────────────────┘
//! ```
//!
//! A tick is 2¹⁵ cycles of the PCI clock of 33 MHz, or 2⁵ (WDT_PRE_SEL). The preloads and the reload
//! register take a write only after 0x80 and then 0x86 were written to the reload register, each time
//! anew. Interrupts at the end of the first stage are not there: Linux asks for none.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Hertz of the clock that is divided.
const PCI_HZ: u64 = 33_000_000;
/// Bits of a preload.
const PRELOAD: u32 = 0xf_ffff;
/// A timer that expired sooner than that after it began would only keep its host busy.
const SHORTEST: Duration = Duration::from_millis(1);
/// No timer goes on for longer: two preloads of all ones at the slower rate, and a little.
const LONGEST: Duration = Duration::from_secs(2100);

/// Offsets in the window.
const PRELOAD_1: u64 = 0x0;
const PRELOAD_2: u64 = 0x4;
const STATUS: u64 = 0x8;
const RELOAD: u64 = 0xc;

/// What is written to the reload register before another write is taken.
const UNLOCK: [u8; 2] = [0x80, 0x86];
/// Reload register: begin again.
const RELOADS: u16 = 1 << 8;
/// Reload register: it has expired; writing it clears it.
const TIMED_OUT: u16 = 1 << 9;

/// Configuration register: the output does nothing when it expires.
const NO_OUTPUT: u8 = 1 << 5;
/// Configuration register: the faster rate.
const FAST: u8 = 1 << 2;
/// Lock register: nothing here changes until the next reset of the machine.
const LOCKED: u8 = 1 << 0;
/// Lock register: it runs.
const ENABLED: u8 = 1 << 1;
/// Lock register: it begins again by itself when it has expired.
const FREE_RUNNING: u8 = 1 << 2;

/// The registers, and what they say of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    preloads: [u32; 2],
    /// How many of the two values that unlock have been written.
    unlocked: usize,
    config: u8,
    lock: u8,
    timed_out: bool,
    /// When it expires, in the time that the machine has run, while it runs.
    expires: Option<Duration>,
}

/// Saved form of the registers: the time that is left, and no time of a clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedEngine {
    preloads: [u32; 2],
    unlocked: u8,
    config: u8,
    lock: u8,
    timed_out: bool,
    /// Nanoseconds until it expires; none if it does not run.
    left_ns: Option<u64>,
}

impl Default for Engine {
    /// As after a reset of the machine.
    fn default() -> Self {
        Self {
            preloads: [PRELOAD; 2],
            unlocked: 0,
            config: 0,
            lock: 0,
            timed_out: false,
            expires: None,
        }
    }
}

impl Engine {
    /// How long it goes on from a reload, by the registers.
    fn period(&self) -> Duration {
        let shift = if self.config & FAST != 0 { 5 } else { 15 };
        // In free-running mode the first stage is left out.
        let stages =
            if self.lock & FREE_RUNNING != 0 { &self.preloads[1..] } else { &self.preloads };
        let cycles = stages.iter().map(|preload| u64::from(*preload) << shift).sum::<u64>();
        let nanos = u128::from(cycles) * 1_000_000_000 / u128::from(PCI_HZ);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).clamp(SHORTEST, LONGEST)
    }

    fn begin(&mut self, now: Duration) {
        self.expires = Some(now.saturating_add(self.period()));
    }

    /// The configuration register.
    pub(super) fn config(&self) -> u8 {
        self.config
    }

    /// The lock register.
    pub(super) fn lock(&self) -> u8 {
        self.lock
    }

    /// Whether it runs or has expired while it did.
    pub fn is_enabled(&self) -> bool {
        self.lock & ENABLED != 0
    }

    /// Whether it has expired since somebody cleared that.
    pub fn has_timed_out(&self) -> bool {
        self.timed_out
    }

    /// Says that it has expired before the machine was reset, which firmware and drivers may ask.
    pub fn set_timed_out(&mut self) {
        self.timed_out = true;
    }

    /// Time until it expires; none if it does not run.
    pub fn left(&self, now: Duration) -> Option<Duration> {
        Some(self.expires?.saturating_sub(now))
    }

    /// Has it expire if it is time; whether the machine is to be dealt with. That is told once.
    pub fn poll(&mut self, now: Duration) -> bool {
        if self.left(now).is_none_or(|left| !left.is_zero()) {
            return false;
        }
        self.timed_out = true;
        // A guest that comes back reloads it, and is watched again.
        self.expires = None;
        if self.lock & FREE_RUNNING != 0 {
            self.begin(now);
        }
        self.config & NO_OUTPUT == 0
    }

    /// Reads a byte of the window.
    pub fn read(&self, offset: u64) -> u8 {
        let value = match offset & !3 {
            PRELOAD_1 => self.preloads[0],
            PRELOAD_2 => self.preloads[1],
            // No interrupt is there to be active.
            STATUS => 0,
            RELOAD if self.timed_out => u32::from(TIMED_OUT),
            _ => 0,
        };
        value.to_le_bytes()[(offset & 3) as usize]
    }

    /// Takes a write to the window; of a register that is not written from its beginning on nothing
    /// comes.
    pub fn write(&mut self, offset: u64, data: &[u8], now: Duration) {
        let mut bytes = [0; 4];
        let len = data.len().min(4);
        bytes[..len].copy_from_slice(&data[..len]);
        let value = u32::from_le_bytes(bytes);
        let low = bytes[0];
        if offset == RELOAD && self.unlocked < UNLOCK.len() {
            let right = value <= 0xff && low == UNLOCK[self.unlocked];
            // The first of the two begins anew wherever it stands.
            self.unlocked = if right { self.unlocked + 1 } else { usize::from(low == UNLOCK[0]) };
            return;
        }
        if std::mem::take(&mut self.unlocked) < UNLOCK.len() {
            return;
        }
        match offset {
            PRELOAD_1 => self.preloads[0] = value & PRELOAD,
            PRELOAD_2 => self.preloads[1] = value & PRELOAD,
            RELOAD => {
                let said = value as u16;
                if said & TIMED_OUT != 0 {
                    self.timed_out = false;
                }
                if said & RELOADS != 0 && self.is_enabled() {
                    self.begin(now);
                }
            }
            _ => {}
        }
    }

    /// Takes what was written to the configuration register.
    pub fn configure(&mut self, value: u8) {
        self.config = value;
    }

    /// Takes what was written to the lock register; what it says from then on.
    pub fn set_lock(&mut self, value: u8, now: Duration) -> u8 {
        if self.lock & LOCKED == 0 {
            let was = std::mem::replace(&mut self.lock, value & (LOCKED | ENABLED | FREE_RUNNING));
            match (was & ENABLED != 0, self.is_enabled()) {
                (false, true) => self.begin(now),
                (_, false) => self.expires = None,
                (true, true) => {}
            }
        }
        self.lock
    }

    /// The registers, and the time that is left, as they are moved.
    pub fn save(&self, now: Duration) -> SavedEngine {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        SavedEngine {
            preloads: self.preloads,
            unlocked: self.unlocked as u8,
            config: self.config,
            lock: self.lock,
            timed_out: self.timed_out,
            left_ns: self.left(now).map(nanos),
        }
    }

    /// Puts in place what was saved, where the machine has run for `now`. What another host says beyond
    /// what a register has is left out.
    pub fn restore(&mut self, saved: &SavedEngine, now: Duration) {
        let left = |nanos| Duration::from_nanos(nanos).min(LONGEST);
        *self = Self {
            preloads: saved.preloads.map(|preload| preload & PRELOAD),
            unlocked: usize::from(saved.unlocked).min(UNLOCK.len()),
            config: saved.config,
            lock: saved.lock & (LOCKED | ENABLED | FREE_RUNNING),
            timed_out: saved.timed_out,
            expires: saved.left_ns.map(|nanos| now.saturating_add(left(nanos))),
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// Writes after the two values that unlock.
    fn put(engine: &mut Engine, offset: u64, value: u32, now: Duration) {
        engine.write(RELOAD, &[0x80, 0], now);
        engine.write(RELOAD, &[0x86, 0], now);
        engine.write(offset, &value.to_le_bytes(), now);
    }

    /// As Linux' driver sets it up, for so many seconds.
    fn set_up(seconds: u32, now: Duration) -> Engine {
        let mut engine = Engine::default();
        engine.configure(3);
        engine.set_lock(0, now);
        put(&mut engine, RELOAD, (TIMED_OUT | RELOADS).into(), now);
        put(&mut engine, PRELOAD_1, seconds << 9, now);
        put(&mut engine, PRELOAD_2, seconds << 9, now);
        put(&mut engine, RELOAD, RELOADS.into(), now);
        assert_eq!(engine.left(now), None, "it is not enabled");
        engine.set_lock(ENABLED, now);
        engine
    }

    #[test]
    fn it_expires_when_nobody_reloads_it_and_says_so_once() {
        let mut engine = set_up(30, S);
        let lasts = engine.left(S).unwrap();
        // 30 × 1024 ticks of 0.993 ms.
        assert_eq!(lasts.as_millis(), 30504);
        for turn in 1..10 {
            let now = S + 20 * S * turn;
            assert!(!engine.poll(now));
            put(&mut engine, RELOAD, RELOADS.into(), now);
            assert_eq!(engine.left(now), Some(lasts));
        }
        let last = S + 180 * S;
        assert!(!engine.poll(last + 30 * S));
        assert!(engine.poll(last + 31 * S) && engine.has_timed_out());
        assert!(!engine.poll(last + 1000 * S), "it is told once");
        assert_eq!(engine.read(RELOAD + 1), 2);
        // A guest that comes back is watched again, and clears what it has seen.
        put(&mut engine, RELOAD, (RELOADS | TIMED_OUT).into(), last + 1000 * S);
        assert!(!engine.has_timed_out() && !engine.poll(last + 1030 * S));
        assert!(engine.poll(last + 1031 * S));
    }

    #[test]
    fn nothing_changes_without_both_values_before_it() {
        let mut engine = set_up(1, S);
        let before = engine.clone();
        for sequence in [&[][..], &[0x80], &[0x86], &[0x86, 0x80], &[0x80, 0x180], &[0x80, 0x85]] {
            for value in sequence {
                engine.write(RELOAD, &u16::to_le_bytes(*value), S);
            }
            engine.write(PRELOAD_1, &[7, 0, 0, 0], S);
            engine.write(PRELOAD_2, &[7, 0, 0, 0], S);
            engine.write(RELOAD, &[0, 3], S + S / 2);
            assert_eq!(engine, before, "after {sequence:x?}");
        }
        put(&mut engine, PRELOAD_1, u32::MAX, S);
        assert_eq!([0, 1, 2, 3].map(|at| engine.read(at)), [0xff, 0xff, 0xf, 0]);
        engine.write(PRELOAD_1, &[7, 0, 0, 0], S);
        assert_eq!(engine.read(PRELOAD_1), 0xff, "one write for each time that it is unlocked");
    }

    #[test]
    fn one_that_is_locked_is_not_switched_off() {
        let mut engine = set_up(1, S);
        assert_eq!(engine.set_lock(0, S), 0);
        assert_eq!(engine.left(S), None);
        assert_eq!(engine.set_lock(ENABLED | LOCKED, S), ENABLED | LOCKED);
        assert_eq!(engine.set_lock(0, S), ENABLED | LOCKED);
        assert!(engine.poll(3 * S));
    }

    #[test]
    fn free_running_begins_again_and_a_faster_rate_is_faster() {
        let mut engine = set_up(1, S);
        engine.set_lock(0, S);
        engine.configure(3 | FAST | NO_OUTPUT);
        engine.set_lock(ENABLED | FREE_RUNNING, S);
        let lasts = engine.left(S).unwrap();
        // 512 ticks of 0.97 µs are less than what is the least.
        assert_eq!(lasts, SHORTEST);
        put(&mut engine, PRELOAD_2, PRELOAD, S);
        put(&mut engine, RELOAD, RELOADS.into(), S);
        assert_eq!(engine.left(S).unwrap().as_millis(), 1016);
        assert!(!engine.poll(3 * S), "its output is switched off");
        assert!(engine.has_timed_out() && engine.left(3 * S).is_some());
    }

    /// What is left goes along, whatever the clocks of the two hosts say.
    #[test]
    fn time_left_moves_with_it() {
        let engine = set_up(30, 5000 * S);
        let saved = engine.save(5020 * S);
        let text = serde_json::to_string(&saved).unwrap();
        let mut there = Engine::default();
        there.restore(&serde_json::from_str(&text).unwrap(), Duration::ZERO);
        assert_eq!(there.left(Duration::ZERO).unwrap().as_millis(), 10504);
        assert!(!there.poll(10 * S) && there.poll(11 * S));
        let mut saved = saved;
        saved.left_ns = Some(u64::MAX);
        (saved.unlocked, saved.preloads) = (200, [u32::MAX; 2]);
        there.restore(&saved, S);
        assert!(there.left(S).unwrap() <= LONGEST);
        there.write(RELOAD, &[0, 1], S);
        assert!(there.left(S).unwrap() <= LONGEST);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever is written: nothing runs that is not enabled, no timer is longer than the registers
        /// can say, and it is the same where it is moved.
        #[test]
        fn any_writes_are_survived(
            writes in prop::collection::vec(
                (0u64..20, prop::collection::vec(any::<u8>(), 1..9), 0u64..5_000_000_000), 0..100),
        ) {
            let mut engine = Engine::default();
            let mut now = Duration::ZERO;
            for (offset, data, nanos) in writes {
                now += Duration::from_nanos(nanos);
                match offset {
                    16 => engine.configure(data[0]),
                    17 => { engine.set_lock(data[0], now); }
                    18 => { engine.write(RELOAD, &[0x80, 0], now); engine.write(RELOAD, &[0x86, 0], now); }
                    19 => { engine.poll(now); }
                    _ => engine.write(offset, &data, now),
                }
                prop_assert!(engine.is_enabled() || engine.left(now).is_none());
                let left = engine.left(now);
                prop_assert!(left.is_none_or(|left| left <= LONGEST));
                let mut there = Engine::default();
                there.restore(&engine.save(now), 7 * S);
                prop_assert_eq!(there.left(7 * S), left);
            }
        }
    }
}
