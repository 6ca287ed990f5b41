//! The part of the file that is written as one, in two places by turns.
//!
//! ```text
//!  0        magic "BHTRACK1"          64   points, actives (numbers)
//!  8        sequence                  72   map of changes since the last point: its slot
//!  16       identity of the content   128  64 points of 96 bytes: id, time, slot, name
//!  32       bytes of the disk         6272 256 active regions of 4 bytes
//!  40       bytes of a granule        8188 CRC-32C of all before
//! ```
//!
//! Little-endian. Behind the two states, from 16 KiB on, stand the maps: one bit for each granule,
//! lowest first, in slots of whole 4 KiB.

use crate::{
    Damage, Fault, Guid, Result, Structure,
    bytes::{Fields, checksum, put},
};

/// Bytes of a state.
pub const LENGTH: usize = 8192;
/// Where the two states are.
pub const PLACES: [u64; 2] = [0, LENGTH as u64];
/// Where the maps begin.
pub const MAPS: u64 = 2 * LENGTH as u64;
/// Points at most.
pub const MAX_POINTS: usize = 64;
/// Regions that are active at a time, at most.
pub const MAX_ACTIVE: usize = 256;
/// Granules of a region.
pub const REGION: u64 = 256;
/// Longest name of a point in bytes.
pub const MAX_NAME: usize = 64;
/// Granules of a disk at most: a map is at most 2 MiB.
pub const MAX_GRANULES: u64 = 16 << 20;
/// Smallest granule.
const MIN_GRANULE: u64 = 64 << 10;
const MAGIC: [u8; 8] = *b"BHTRACK1";
const POINT: usize = 96;
const POINTS_AT: usize = 128;
const ACTIVE_AT: usize = POINTS_AT + MAX_POINTS * POINT;
const CHECKSUM_AT: usize = LENGTH - 4;

/// A moment since which changes are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Identity of the disk.
    pub id: Guid,
    /// Its name, at most 64 bytes.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub seconds: u64,
    /// Where the map of the changes from it to the next point is.
    pub(super) slot: u32,
}

/// What is known of an image's changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Counts up with each writing.
    pub(super) sequence: u64,
    /// The identity of the content that this belongs to.
    pub content: Guid,
    /// Bytes of the disk.
    pub disk_size: u64,
    /// Bytes that one bit stands for.
    pub granule: u64,
    /// The points, in the order in which they were made.
    pub points: Vec<Point>,
    /// Regions of which anything may have changed since the last point.
    pub(super) active: Vec<u32>,
}

impl State {
    /// For a disk of so many bytes with such content, without points.
    pub fn new(disk_size: u64, content: Guid) -> Self {
        let mut granule = MIN_GRANULE;
        while disk_size.div_ceil(granule) > MAX_GRANULES {
            granule *= 2;
        }
        Self { sequence: 0, content, disk_size, granule, points: Vec::new(), active: Vec::new() }
    }

    /// Granules of the disk.
    pub fn granules(&self) -> u64 {
        self.disk_size.div_ceil(self.granule)
    }

    /// Where a map is.
    pub(super) fn map_at(&self, slot: u32) -> u64 {
        MAPS + u64::from(slot) * self.map_len()
    }

    /// Bytes of a map.
    pub(super) fn map_len(&self) -> u64 {
        self.granules().div_ceil(8).next_multiple_of(4096)
    }

    /// A slot that no point has.
    pub(super) fn free_slot(&self) -> u32 {
        let used = |slot: &u32| self.points.iter().any(|point| point.slot == *slot);
        (0..=MAX_POINTS as u32).find(|slot| !used(slot)).unwrap_or(MAX_POINTS as u32)
    }

    /// The bytes.
    ///
    /// # Panics
    /// If there are more points or active regions than [`MAX_POINTS`] and [`MAX_ACTIVE`]; nothing
    /// makes more.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; LENGTH];
        put(&mut out, 0, &MAGIC);
        put(&mut out, 8, &self.sequence.to_le_bytes());
        put(&mut out, 16, &self.content.to_bytes());
        put(&mut out, 32, &self.disk_size.to_le_bytes());
        put(&mut out, 40, &self.granule.to_le_bytes());
        put(&mut out, 64, &(self.points.len() as u32).to_le_bytes());
        put(&mut out, 68, &(self.active.len() as u32).to_le_bytes());
        for (i, point) in self.points.iter().enumerate() {
            let at = POINTS_AT + i * POINT;
            put(&mut out, at, &point.id.to_bytes());
            put(&mut out, at + 16, &point.seconds.to_le_bytes());
            put(&mut out, at + 24, &point.slot.to_le_bytes());
            put(&mut out, at + 28, &(point.name.len() as u32).to_le_bytes());
            put(&mut out, at + 32, point.name.as_bytes());
        }
        for (i, region) in self.active.iter().enumerate() {
            put(&mut out, ACTIVE_AT + i * 4, &region.to_le_bytes());
        }
        let sum = checksum(&out, CHECKSUM_AT);
        put(&mut out, CHECKSUM_AT, &sum.to_le_bytes());
        out
    }

    /// Reads the bytes that stand at `place` in the file.
    ///
    /// # Errors
    /// [`crate::Error::Damaged`] naming what is wrong.
    pub fn parse(bytes: &[u8], place: u64) -> Result<Self> {
        let damage = |at: usize, fault| Damage::new(Structure::Tracking, place + at as u64, fault);
        if bytes.len() < LENGTH {
            return Err(damage(0, Fault::Truncated).into());
        }
        let bytes = &bytes[..LENGTH];
        if bytes[..8] != MAGIC {
            return Err(damage(0, Fault::Signature).into());
        }
        let (stored, computed) = (bytes.u32(CHECKSUM_AT), checksum(bytes, CHECKSUM_AT));
        if stored != computed {
            return Err(damage(CHECKSUM_AT, Fault::Checksum { stored, computed }).into());
        }
        let field = |at: usize, field: &'static str, value: u64, rule: &'static str| {
            crate::Error::from(damage(at, Fault::Field { field, value, rule }))
        };
        let (disk_size, granule) = (bytes.u64(32), bytes.u64(40));
        if !granule.is_power_of_two() || !(MIN_GRANULE..=1 << 40).contains(&granule) {
            return Err(field(40, "granule", granule, "a power of two from 64 KiB"));
        }
        if disk_size == 0 || disk_size.div_ceil(granule) > MAX_GRANULES {
            return Err(field(32, "disk size", disk_size, "at most 16 Mi granules"));
        }
        let (points, active) = (bytes.u32(64) as usize, bytes.u32(68) as usize);
        if points > MAX_POINTS {
            return Err(field(64, "points", points as u64, "at most 64"));
        }
        if active > MAX_ACTIVE {
            return Err(field(68, "active regions", active as u64, "at most 256"));
        }
        let mut state = Self {
            sequence: bytes.u64(8),
            content: bytes.guid(16),
            disk_size,
            granule,
            points: Vec::with_capacity(points),
            active: Vec::with_capacity(active),
        };
        for i in 0..points {
            let at = POINTS_AT + i * POINT;
            let (slot, len) = (bytes.u32(at + 24), bytes.u32(at + 28) as usize);
            if slot > MAX_POINTS as u32 || state.points.iter().any(|p| p.slot == slot) {
                return Err(field(at + 24, "slot", slot.into(), "its own, at most 64"));
            }
            let name = bytes.get(at + 32..at + 32 + len.min(MAX_NAME + 1)).unwrap_or_default();
            let name = str::from_utf8(name).ok().filter(|_| len <= MAX_NAME);
            let Some(name) = name else {
                return Err(field(at + 28, "name", len as u64, "64 bytes of UTF-8 at most"));
            };
            state.points.push(Point {
                id: bytes.guid(at),
                name: name.to_owned(),
                seconds: bytes.u64(at + 16),
                slot,
            });
        }
        let regions = state.granules().div_ceil(REGION);
        for i in 0..active {
            let at = ACTIVE_AT + i * 4;
            let region = bytes.u32(at);
            if u64::from(region) >= regions {
                return Err(field(at, "active region", region.into(), "a region of the disk"));
            }
            state.active.push(region);
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_state() -> impl Strategy<Value = State> {
        let points =
            prop::collection::vec((any::<[u8; 16]>(), "[a-zä ]{0,20}", any::<u64>()), 0..64);
        let active = prop::collection::vec(0u32..4, 0..MAX_ACTIVE);
        (any::<u64>(), any::<[u8; 16]>(), (64u64 << 20)..(1 << 46), points, active).prop_map(
            |(sequence, content, size, points, active)| {
                let mut state = State::new(size, Guid::from_bytes(content));
                state.sequence = sequence;
                for (id, name, seconds) in points {
                    let slot = state.free_slot();
                    state.points.push(Point { id: Guid::from_bytes(id), name, seconds, slot });
                }
                state.active = active;
                state
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn states_come_back_and_noise_is_seen(
            state in any_state(), at in 0..LENGTH, noise in 1u8..=255, mended: bool,
        ) {
            let mut bytes = state.encode();
            prop_assert_eq!(&State::parse(&bytes, 0).unwrap(), &state);
            bytes[at] ^= noise;
            if mended {
                // Whoever makes the checksum right comes to the other checks.
                let sum = checksum(&bytes, CHECKSUM_AT);
                put(&mut bytes, CHECKSUM_AT, &sum.to_le_bytes());
                if let Ok(read) = State::parse(&bytes, 0) {
                    prop_assert!(read.granules() <= MAX_GRANULES);
                }
            } else {
                prop_assert!(State::parse(&bytes, 0).is_err());
            }
            prop_assert!(State::parse(&bytes[..at], 0).is_err());
        }
    }
}
