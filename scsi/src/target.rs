//! What all logical units of a target share.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use crate::{
    Lun, Nexus,
    copy::{ForeignTokens, Results, Tokens},
    ports::Ports,
    reports::number_of,
    reservation::{Who, device_name},
    store::UnitStore,
    unit::Unit,
};

/// Which logical units an initiator sees (LUN masking).
pub trait LunAccess: Send + Sync + 'static {
    /// Whether the initiator of this name (iSCSI: without ISID) sees the unit of this number.
    fn may_see(&self, initiator: &str, unit: u16) -> bool;
}

impl<F: Fn(&str, u16) -> bool + Send + Sync + 'static> LunAccess for F {
    fn may_see(&self, initiator: &str, unit: u16) -> bool {
        self(initiator, unit)
    }
}

pub(crate) struct Target {
    pub units: RwLock<BTreeMap<u16, Arc<Unit>>>,
    pub nexuses: RwLock<HashMap<u64, Nexus>>,
    pub access: RwLock<Arc<dyn LunAccess>>,
    pub ports: Ports,
    pub tokens: Tokens,
    pub foreign: Option<Arc<dyn ForeignTokens>>,
    pub results: Results,
    pub store: Option<Arc<dyn UnitStore>>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("ports", &self.ports).finish_non_exhaustive()
    }
}

impl Target {
    pub(crate) fn all(&self) -> Vec<Arc<Unit>> {
        let units = self.units.read().unwrap_or_else(PoisonError::into_inner);
        units.values().cloned().collect()
    }

    pub(crate) fn present(&self) -> Vec<Nexus> {
        let nexuses = self.nexuses.read().unwrap_or_else(PoisonError::into_inner);
        nexuses.values().cloned().collect()
    }

    fn sees(&self, nexus: &Nexus, number: u16) -> bool {
        let access = Arc::clone(&self.access.read().unwrap_or_else(PoisonError::into_inner));
        access.may_see(device_name(&nexus.initiator), number)
    }

    /// The logical units that a nexus sees, in order.
    pub(crate) fn visible(&self, nexus: &Nexus) -> Vec<Arc<Unit>> {
        let mut units = self.all();
        units.retain(|unit| self.sees(nexus, unit.number));
        units
    }

    /// The logical unit of a number, if the nexus sees it.
    pub(crate) fn unit(&self, nexus: &Nexus, lun: Lun) -> Option<Arc<Unit>> {
        let number = number_of(lun)?;
        let units = self.units.read().unwrap_or_else(PoisonError::into_inner);
        let unit = units.get(&number).cloned();
        drop(units);
        unit.filter(|_| self.sees(nexus, number))
    }

    /// Establishes a unit attention for every nexus but one.
    pub(crate) fn tell_all(&self, unit: &Unit, but: Option<u64>, code: u16) {
        for nexus in self.present() {
            if Some(nexus.id) != but {
                unit.attentions.establish(nexus.id, code);
            }
        }
    }

    /// Establishes unit attentions for those who are there of certain ports.
    pub(crate) fn tell(&self, unit: &Unit, whom: &[(Who, u16)]) {
        if whom.is_empty() {
            return;
        }
        for nexus in self.present() {
            let who = Who::of(&nexus);
            for (_, code) in whom.iter().filter(|(it, _)| *it == who) {
                unit.attentions.establish(nexus.id, *code);
            }
        }
    }
}
