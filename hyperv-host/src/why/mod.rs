//! Why a virtual disk is slow, as its host sees that: figures of all disks, looked at every ten seconds and
//! whenever somebody asks.
//!
//! ```text
//!  the guest's queue ─► taken from the ring ─► the host's queue ─► wire and server ─► told to the guest
//!   depth                                      whole - storage     storage
//! ```

mod rules;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use host_api::{DiskReport, VmName};
use vmm::devices::virtio::times::DiskFigures;

/// Time between two looks.
pub const EVERY: Duration = Duration::from_secs(10);
/// Looks that are kept.
const KEPT: usize = 4;
/// Less time says little.
const SHORTEST: Duration = Duration::from_secs(5);

/// A disk of a VM: its name and which of its disks.
pub type Place = (VmName, usize);
/// All disks of machines that are there: where each is, and its figures.
pub type Disks = BTreeMap<Place, (String, DiskFigures)>;

/// The disks at one moment.
#[derive(Debug)]
struct Look {
    at: Instant,
    disks: Disks,
}

/// Earlier looks, the oldest first.
#[derive(Debug, Default)]
pub struct Looks(Mutex<VecDeque<Look>>);

/// What is said of a disk: of the shortest time in which something was wrong with it, else of all that is
/// remembered.
fn report(looks: &VecDeque<Look>, now: &Look, place: &Place) -> Option<DiskReport> {
    let (location, figures) = now.disks.get(place)?;
    let of = |before: &Look| {
        let window = now.at.saturating_duration_since(before.at).as_secs_f64();
        let old = before.disks.get(place).filter(|(other, _)| other == location);
        let old = old.map(|(_, figures)| figures.clone()).unwrap_or_default();
        let figures = figures.since(&old);
        let causes = rules::causes(&figures);
        DiskReport {
            vm: place.0.clone(),
            disk: place.1,
            location: location.clone(),
            sentence: rules::sentence(&figures, &causes, window),
            causes,
            window_s: window as u64,
            operations: figures.whole.count(),
            depth: figures.depth(),
            parts: rules::parts(&figures),
        }
    };
    let oldest = looks.front()?;
    let long = |look: &&Look| now.at.saturating_duration_since(look.at) >= SHORTEST;
    let newer = looks.iter().skip(1).rev().filter(long);
    newer.map(of).find(|report| !report.causes.is_empty()).or_else(|| Some(of(oldest)))
}

impl Looks {
    fn with<T>(&self, act: impl FnOnce(&mut VecDeque<Look>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Remembers how the disks are now.
    pub fn look(&self, disks: Disks) {
        let now = Look { at: Instant::now(), disks };
        self.with(|looks| {
            looks.push_back(now);
            while looks.len() > KEPT {
                looks.pop_front();
            }
        });
    }

    /// What can be said by how the disks are now: of those that are named so, or of all. A name is that of a
    /// VM, `VM/number`, or a disk's location.
    pub fn reports(&self, disks: Disks, what: Option<&str>) -> Vec<DiskReport> {
        let now = Look { at: Instant::now(), disks };
        let wanted = |place: &Place, location: &str| {
            what.is_none_or(|what| {
                what == place.0.to_string()
                    || what == format!("{}/{}", place.0, place.1)
                    || what == location
            })
        };
        let places = now.disks.iter().filter(|(place, (location, _))| wanted(place, location));
        let places: Vec<_> = places.map(|(place, _)| place.clone()).collect();
        let of = |looks: &mut VecDeque<Look>| {
            let one = |place: &Place| report(looks, &now, place);
            places.iter().filter_map(one).collect::<Vec<_>>()
        };
        let mut reports = self.with(of);
        // What is wrong first, then what is used most.
        reports.sort_by_key(|it| (it.causes.is_empty(), std::cmp::Reverse(it.operations)));
        reports
    }
}
