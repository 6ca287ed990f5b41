//! One target as it is served: which of its LUNs come and go with a reload, and what is told of it
//! meanwhile.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use scsi::{ForeignTokens, LunAccess, UnitInfo, Units, UnitsError, UnitsOptions};
use smb_server::meters::path::{PathFigures, PathMeter};
use tokio::task::JoinSet;

use super::{
    Iscsi,
    config::Target,
    lun::{Disks, Opened},
    unit_state::UnitState,
};

/// Who sees which LUN of a target: a LUN that is not named is seen by all.
type Masks = Arc<RwLock<BTreeMap<u16, Vec<String>>>>;

/// Identities of LUNs, with what each is and the path of its image.
pub(super) type Identities = BTreeMap<[u8; 16], (String, String)>;

/// What to do about two LUNs that are one disk to initiators.
const SET_ID: &str =
    "give one an id of its own, or its image one by `bulkhead disk set --disk-id new`";

/// A target that is served.
pub(super) struct Served {
    pub(super) units: Arc<Units>,
    masks: Masks,
    luns: BTreeMap<u16, Opened>,
}

/// What is told of a target, also while a reload waits for an image.
pub(super) struct Listed {
    pub(super) units: Arc<Units>,
    luns: BTreeMap<u16, Place>,
}

/// Where the image of a LUN is.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    /// How little room below it initiators are warned of, in bytes; 0: of none.
    pub(super) warn_below: u64,
    pub(super) meter: Arc<PathMeter>,
}

impl Place {
    /// Where the time of the LUN's commands goes.
    pub(super) fn times(&self) -> PathFigures {
        self.meter.figures()
    }
}

/// What is being closed; what of it stays.
pub(super) type Closing = JoinSet<Option<Stays>>;

/// A LUN that cannot go now.
pub(super) struct Stays {
    pub(super) target: String,
    pub(super) why: UnitsError,
    number: u16,
    opened: Opened,
}

impl Listed {
    /// Its LUNs as they are now, each with the place of its image.
    pub(super) fn luns(&self) -> impl Iterator<Item = (UnitInfo, &Place)> {
        let place = |unit: UnitInfo| Some((unit.clone(), self.luns.get(&unit.number)?));
        self.units.list().into_iter().filter_map(place)
    }
}

/// Which identities LUNs of other targets than `name` have, with what they are.
pub(super) fn identities(served: &BTreeMap<String, Served>, name: &str) -> Identities {
    let others = served.iter().filter(|(other, _)| *other != name);
    let of = |(name, served): (&String, &Served)| {
        let lun = |(number, opened): (&u16, &Opened)| {
            let what = format!("lun {number} of target {name}");
            (opened.identity(), (what, opened.path()))
        };
        served.luns.iter().map(lun).collect::<Vec<_>>()
    };
    others.flat_map(of).collect()
}

impl Served {
    /// A target without LUNs, which keeps what of them outlives the process in `state`.
    pub(super) fn new(state: &Arc<UnitState>, foreign: Arc<dyn ForeignTokens>) -> Self {
        let masks = Masks::default();
        let units = Units::new(UnitsOptions {
            access: access(&masks),
            store: Some(state.clone()),
            foreign: Some(foreign),
            ..UnitsOptions::default()
        });
        Self { units: Arc::new(units), masks, luns: BTreeMap::new() }
    }

    /// What is told of it.
    pub(super) fn listed(&self) -> Listed {
        let place = |(number, opened): (&u16, &Opened)| (*number, opened.place());
        Listed { units: self.units.clone(), luns: self.luns.iter().map(place).collect() }
    }

    /// Begins to close the LUNs that a configuration does not have any more, or has otherwise.
    pub(super) fn leave(&mut self, target: &Target, closing: &mut Closing) {
        self.mask(target);
        let stays = |number: u16, opened: &Opened| {
            target.luns.iter().any(|lun| lun.number == number && opened.is(lun))
        };
        let gone = self.luns.iter().filter(|(number, opened)| !stays(**number, opened));
        for number in gone.map(|(number, _)| *number).collect::<Vec<_>>() {
            let Some(opened) = self.luns.remove(&number) else { continue };
            let (units, target) = (self.units.clone(), target.config.name.clone());
            closing.spawn(async move {
                match units.remove(number).await {
                    Err(why @ UnitsError::Sanitizing(_)) => {
                        return Some(Stays { target, why, number, opened });
                    }
                    Err(error) => tracing::warn!(%error, "a LUN was gone before it was closed"),
                    Ok(()) => {}
                }
                opened.close().await;
                None
            });
        }
    }

    /// Who sees which LUN: what is taken from an initiator waits for no image.
    fn mask(&self, target: &Target) {
        let masks = target.luns.iter().filter(|lun| !lun.initiators.is_empty());
        let masks = masks.map(|lun| (lun.number, lun.initiators.clone())).collect();
        let changed = {
            let mut old = self.masks.write().unwrap_or_else(PoisonError::into_inner);
            let changed = *old != masks;
            *old = masks;
            changed
        };
        if changed {
            self.units.set_access(access(&self.masks));
        }
    }

    /// Takes back a LUN that cannot go now.
    pub(super) fn take_back(&mut self, stays: Stays) {
        self.luns.insert(stays.number, stays.opened);
    }

    /// Serves what a configuration says of a target whose other LUNs have left.
    pub(super) async fn apply(
        &mut self,
        target: &Target,
        others: &Identities,
        service: &Iscsi,
        failures: &mut Vec<String>,
    ) {
        let Iscsi { disks, users, .. } = service;
        self.mask(target);
        for lun in &target.luns {
            if self.luns.contains_key(&lun.number) {
                if let Err(error) = self.units.set_limits(lun.number, lun.limits) {
                    failures.push(format!("target {}: {error}", target.config.name));
                }
                if let Some(opened) = self.luns.get_mut(&lun.number) {
                    opened.set_warn_below(lun.warn_below);
                }
                continue;
            }
            let name = &target.config.name;
            match disks.open(name, lun).await {
                Err(why) => {
                    let users = users(&lun.path);
                    let who = if users.is_empty() { "" } else { "; open by SMB: " };
                    let users = users.join(", ");
                    failures.push(format!("target {name}, lun {}: {why}{who}{users}", lun.number));
                }
                Ok(opened) => match self.serve(lun.number, &opened, others).await {
                    Ok(()) => drop(self.luns.insert(lun.number, opened)),
                    Err(why) => {
                        failures.push(format!("target {name}, lun {}: {why}", lun.number));
                        opened.close().await;
                    }
                },
            }
        }
    }

    /// Initiators take units of one identity for one disk with several paths, whichever target they
    /// are of. The same image, which all only read, is one.
    async fn serve(&self, number: u16, opened: &Opened, others: &Identities) -> Result<(), String> {
        if let Some((other, path)) = others.get(&opened.identity())
            && *path != opened.path()
        {
            return Err(format!("{other} ({path}) has the same identity; {SET_ID}"));
        }
        self.units.add(number, opened.unit()).await.map_err(|error| match error {
            scsi::UnitsError::Identity(_) => format!("{error}; {SET_ID}"),
            error => error.to_string(),
        })
    }

    async fn remove(&mut self, number: u16) -> Result<(), UnitsError> {
        self.units.remove(number).await?;
        if let Some(opened) = self.luns.remove(&number) {
            opened.close().await;
        }
        Ok(())
    }

    /// Opens a LUN's disk anew. What can be seen before is: then the LUN stays as it is. For the rest
    /// it must be closed, since an image has one writer: where it cannot be had again the LUN goes, so
    /// that initiators are told, and a reload can serve it.
    pub(super) async fn resize(&mut self, number: u16, disks: &Disks) -> Result<u64, String> {
        let opened = self.luns.get(&number).ok_or_else(|| format!("there is no lun {number}"))?;
        let size = disks.size(opened).await?;
        self.units.may_resize(number, size).map_err(|error| error.to_string())?;
        let done = self.reopen(number, disks).await;
        let Err(why) = done else { return done };
        if self.luns.contains_key(&number) {
            self.remove(number).await.map_err(|error| format!("{why}; {error}"))?;
            return Err(format!("{why}; the LUN is not served now: mend that, and reload"));
        }
        Err(why)
    }

    async fn reopen(&mut self, number: u16, disks: &Disks) -> Result<u64, String> {
        let opened =
            self.luns.get_mut(&number).ok_or_else(|| format!("there is no lun {number}"))?;
        let disk = disks.grown(opened).await?;
        let size = disk.geometry().size;
        self.units.resize(number, disk.clone()).map_err(|error| error.to_string())?;
        opened.replace(disk);
        Ok(size)
    }

    /// Closes all LUNs at the same time: one whose disk does not answer keeps no other open.
    pub(super) async fn close(self) {
        let close = |(number, opened): (u16, Opened)| {
            let units = self.units.clone();
            async move {
                if let Err(error) = units.close(number).await {
                    tracing::warn!(%error, "a LUN was gone before it was closed");
                }
                opened.close().await;
            }
        };
        self.luns.into_iter().map(close).collect::<JoinSet<()>>().join_all().await;
    }
}

fn access(masks: &Masks) -> Arc<dyn LunAccess> {
    let masks = masks.clone();
    Arc::new(move |initiator: &str, unit: u16| {
        let masks = masks.read().unwrap_or_else(PoisonError::into_inner);
        masks.get(&unit).is_none_or(|seen_by| seen_by.iter().any(|name| name == initiator))
    })
}
