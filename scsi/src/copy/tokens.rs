//! ROD tokens: what stands for data of a logical unit (SPC-4 5.16.6).
//!
//! A token is good as long as its data are as they were (a point in time copy that is vulnerable to
//! change): whoever changes them voids it. A unit without tokens pays one atomic load for that.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use crate::{SenseKey, asc, inquiry::naa, refusal::Refusal, unit::Unit};

/// Bytes of a token.
pub(crate) const LENGTH: usize = 512;
/// POINT IN TIME COPY – CHANGE VULNERABLE.
pub(crate) const POINT_IN_TIME: u32 = 0x0080_0001;
/// BLOCK DEVICE ZERO ROD TOKEN.
pub(crate) const ZERO: u32 = 0xffff_0001;
/// Most tokens of a target.
const MAX_TOKENS: usize = 1024;
/// Most tokens a target remembers to have voided.
const MAX_VOID: usize = 1024;
/// Most ranges of a token.
pub(crate) const MAX_RANGES: usize = 256;
/// How long a token is good that nobody uses, if its maker says nothing, and at most.
pub(crate) const DEFAULT_TIMEOUT: u32 = 30;
pub(crate) const MAX_TIMEOUT: u32 = 300;

/// Where random bytes begin in a token, and how many they are.
const SECRET: std::ops::Range<usize> = 128..160;

/// Data of one logical unit, in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub unit: Arc<Unit>,
    /// Offset and length of each range, one behind the other.
    pub ranges: Vec<(u64, u64)>,
}

#[derive(Debug)]
struct Token {
    secret: [u8; 32],
    unit: Weak<Unit>,
    ranges: Vec<(u64, u64)>,
    timeout: Duration,
    deadline: Instant,
}

/// All tokens of a target.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    tokens: HashMap<u64, Token>,
    void: std::collections::VecDeque<u64>,
}

impl Table {
    fn remove(&mut self, id: u64) -> bool {
        let Some(token) = self.tokens.remove(&id) else { return false };
        if let Some(unit) = token.unit.upgrade() {
            unit.tokens.fetch_sub(1, Ordering::AcqRel);
        }
        true
    }

    fn revoke(&mut self, id: u64) {
        if self.remove(id) {
            if self.void.len() == MAX_VOID {
                self.void.pop_front();
            }
            self.void.push_back(id);
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let late: Vec<u64> =
            self.tokens.iter().filter(|(_, it)| it.deadline <= now).map(|(id, _)| *id).collect();
        for id in late {
            self.revoke(id);
        }
    }
}

impl Tokens {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a token. `timeout` in seconds; 0: the default.
    ///
    /// # Errors
    /// There are too many, or no random numbers.
    pub(crate) fn create(&self, source: &Source, timeout: u32) -> Result<[u8; LENGTH], Refusal> {
        let full = Refusal::illegal(asc::INSUFFICIENT_RESOURCES);
        let mut secret = [0; 32];
        rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())
            .ok()
            .filter(|length| *length == secret.len())
            .ok_or(Refusal::check(SenseKey::HardwareError, asc::INTERNAL_FAILURE))?;
        let timeout = match timeout {
            0 => DEFAULT_TIMEOUT,
            other => other.min(MAX_TIMEOUT),
        };
        let timeout = Duration::from_secs(timeout.into());
        let mut table = self.lock();
        table.expire();
        if table.tokens.len() >= MAX_TOKENS {
            return Err(full);
        }
        table.next += 1;
        let id = table.next;
        // Counted before anything is looked at: a write that comes now finds the token.
        source.unit.tokens.fetch_add(1, Ordering::AcqRel);
        let deadline = Instant::now() + timeout;
        let (unit, ranges) = (Arc::downgrade(&source.unit), source.ranges.clone());
        table.tokens.insert(id, Token { secret, unit, ranges, timeout, deadline });
        let bytes = source.ranges.iter().map(|(_, len)| u128::from(*len)).sum::<u128>();
        let mut out = [0; LENGTH];
        out[..4].copy_from_slice(&POINT_IN_TIME.to_be_bytes());
        out[6..8].copy_from_slice(&((LENGTH - 8) as u16).to_be_bytes());
        out[8..16].copy_from_slice(&id.to_be_bytes());
        let name = naa(&source.unit.options.identity);
        out[16] = super::IDENTIFICATION;
        out[20..24].copy_from_slice(&[1, 3, 0, name.len() as u8]);
        out[24..24 + name.len()].copy_from_slice(&name);
        out[48..64].copy_from_slice(&bytes.to_be_bytes());
        out[SECRET].copy_from_slice(&secret);
        Ok(out)
    }

    /// The data a token stands for; `None`: zeros.
    ///
    /// # Errors
    /// It stands for nothing, or not any more.
    pub(crate) fn find(&self, token: &[u8]) -> Result<Option<(u64, Source)>, Refusal> {
        let corrupt = Refusal::illegal(asc::TOKEN_CORRUPT);
        if token.len() != LENGTH || token[6..8] != ((LENGTH - 8) as u16).to_be_bytes() {
            return Err(corrupt);
        }
        let number = |at: usize, len: usize| {
            token[at..at + len].iter().fold(0u64, |all, byte| all << 8 | u64::from(*byte))
        };
        match number(0, 4) {
            it if it == u64::from(ZERO) => return Ok(None),
            it if it == u64::from(POINT_IN_TIME) => {}
            _ => return Err(Refusal::illegal(asc::TOKEN_TYPE)),
        }
        let id = number(8, 8);
        let mut table = self.lock();
        table.expire();
        if table.void.contains(&id) {
            return Err(Refusal::illegal(asc::TOKEN_REVOKED));
        }
        let Some(found) = table.tokens.get_mut(&id) else {
            return Err(Refusal::illegal(asc::TOKEN_UNKNOWN));
        };
        if token[SECRET] != found.secret {
            return Err(corrupt);
        }
        found.deadline = Instant::now() + found.timeout;
        let unit = found.unit.upgrade().ok_or(Refusal::illegal(asc::TOKEN_UNKNOWN))?;
        Ok(Some((id, Source { unit, ranges: found.ranges.clone() })))
    }

    /// Whether a token is still good. To be asked after data were read for it and before they are
    /// used: who changes them voids it first.
    pub(crate) fn holds(&self, id: u64) -> bool {
        self.lock().tokens.contains_key(&id)
    }

    /// The maker of a token wants it no more (DEL_TKN).
    pub(crate) fn delete(&self, id: u64) {
        self.lock().remove(id);
    }

    /// Bytes of a unit are about to change: tokens that stand for any of them are void.
    pub(crate) fn changed(&self, unit: &Unit, offset: u64, len: u64) {
        if unit.tokens.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut table = self.lock();
        let overlaps = |(begin, length): &(u64, u64)| {
            *begin < offset.saturating_add(len) && offset < begin.saturating_add(*length)
        };
        let gone: Vec<u64> = table
            .tokens
            .iter()
            .filter(|(_, it)| std::ptr::eq(it.unit.as_ptr(), unit))
            .filter(|(_, it)| it.ranges.iter().any(overlaps))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            table.revoke(id);
        }
    }

    /// All of a unit's data are about to change, or it goes.
    pub(crate) fn all_changed(&self, unit: &Unit) {
        self.changed(unit, 0, u64::MAX);
    }
}
