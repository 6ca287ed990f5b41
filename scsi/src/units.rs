//! The set of logical units of a target, as the program around it and a transport see it.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    io,
    sync::{Arc, PoisonError, RwLock},
};

use block_io::Disk;

use crate::{
    Completion, Device, Lun, Nexus, Request, Sense, asc,
    copy::{Blocks, ForeignTokens, Results, TokenData, Tokens},
    dispatch,
    inquiry::naa,
    ports::{AccessState, Alua, PortGroup, Ports},
    reservation::Reservations,
    store::{Kept, UnitStore},
    target::{LunAccess, Target},
    unit::{Limits, LogicalUnit, Space, Unit, Usage, go_on_sanitizing, kept_sanitize},
};

/// Highest number of a logical unit.
const MAX_NUMBER: u16 = 0x3fff;

/// What a set of logical units is made with. [`UnitsOptions::default`]: one port, 1, in one group,
/// 1, that is active and never changes; every initiator sees every unit; reservations end with the
/// process.
pub struct UnitsOptions {
    /// All target port groups, with all ports of the target.
    pub groups: Vec<PortGroup>,
    /// Who changes their states.
    pub alua: Alua,
    /// LUN masking.
    pub access: Arc<dyn LunAccess>,
    /// Where reservations and sanitize operations outlive the process. Without one, no reservation
    /// can be asked to, and an operation ends with it.
    pub store: Option<Arc<dyn UnitStore>>,
    /// Finds what tokens stand for that this target did not make. Without it they are refused.
    pub foreign: Option<Arc<dyn ForeignTokens>>,
}

impl Default for UnitsOptions {
    fn default() -> Self {
        let group = PortGroup {
            id: 1,
            preferred: false,
            state: AccessState::ActiveOptimized,
            ports: vec![1],
        };
        Self {
            groups: vec![group],
            alua: Alua { implicit: true, explicit: false },
            access: Arc::new(|_: &str, _: u16| true),
            store: None,
            foreign: None,
        }
    }
}

/// Why a set of logical units stays as it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnitsError {
    /// Numbers end before this one.
    #[error("{0} is no number of a logical unit: they go from 0 to 16383")]
    Number(u16),
    /// There is one of that number.
    #[error("there is a logical unit {0} already")]
    Taken(u16),
    /// Two units would be one disk to initiators: their identities, or the names made of them, are
    /// the same.
    #[error("logical unit {0} has the same identity")]
    Identity(u16),
    /// There is none of that number.
    #[error("there is no logical unit {0}")]
    Missing(u16),
    /// The disk's sectors are not what logical blocks can be.
    #[error("a disk of {size} bytes in sectors of {sector} cannot be a logical unit")]
    Geometry {
        /// Bytes of the disk.
        size: u64,
        /// Bytes of its logical sector.
        sector: u32,
    },
    /// Initiators are there that know the disk as larger.
    #[error("logical unit {number} cannot shrink from {from} to {to} bytes while it is in use")]
    Shrinks {
        /// Which one.
        number: u16,
        /// Its size in bytes.
        from: u64,
        /// The size it was to get.
        to: u64,
    },
    /// An operation that cannot be broken off is under way.
    #[error("logical unit {0} is being sanitized")]
    Sanitizing(u16),
    /// What the store keeps cannot be read.
    #[error("what is kept of logical unit {0} could not be read")]
    Store(u16, #[source] io::Error),
    /// What the store keeps is no state of reservations.
    #[error(
        "what is kept of the reservations of logical unit {0} is damaged; remove it to go on without them"
    )]
    Damaged(u16),
    /// What the store keeps is no sanitize operation.
    #[error(
        "what is kept of a sanitize operation of logical unit {0} is damaged; remove it, and sanitize \
         the unit again if its data must be gone"
    )]
    DamagedSanitize(u16),
}

/// What [`Units::list`] tells of a logical unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitInfo {
    /// Its number.
    pub number: u16,
    /// Its identity.
    pub identity: [u8; 16],
    /// Its size in bytes.
    pub size: u64,
    /// Its logical block in bytes.
    pub block: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Registrations of persistent reservations.
    pub registrations: usize,
    /// A persistent reservation is in force.
    pub reserved: bool,
    /// It is being sanitized.
    pub sanitizing: bool,
    /// What it has done.
    pub usage: Usage,
}

/// The logical units of a target; they come and go while it runs. A clone is the same set.
#[derive(Debug, Clone)]
pub struct Units {
    target: Arc<Target>,
}

impl Units {
    /// A set with nothing in it.
    #[must_use]
    pub fn new(options: UnitsOptions) -> Self {
        let target = Target {
            units: RwLock::new(BTreeMap::new()),
            nexuses: RwLock::new(HashMap::new()),
            access: RwLock::new(options.access),
            ports: Ports::new(options.groups, options.alua),
            tokens: Tokens::default(),
            foreign: options.foreign,
            results: Results::default(),
            store: options.store,
        };
        Self { target: Arc::new(target) }
    }

    /// Adds a logical unit, with the reservations that the store keeps of it. A sanitize operation
    /// that was under way when the process ended begins anew, and one that had failed still has.
    /// Initiators that are there are told by REPORTED LUNS DATA HAS CHANGED.
    ///
    /// # Errors
    /// The number or identity is taken, the disk's geometry is none for SCSI, the store failed.
    pub async fn add(&self, number: u16, unit: LogicalUnit) -> Result<(), UnitsError> {
        if number > MAX_NUMBER {
            return Err(UnitsError::Number(number));
        }
        let geometry = unit.disk.geometry();
        let sector = geometry.logical_sector;
        if !matches!(sector, 512 | 4096) || geometry.size < u64::from(sector) {
            return Err(UnitsError::Geometry { size: geometry.size, sector });
        }
        let (mut reservations, mut sanitize) = (None, None);
        if let Some(store) = &self.target.store {
            let failed = |error| UnitsError::Store(number, error);
            reservations = store.load(unit.identity, Kept::Reservations).await.map_err(failed)?;
            sanitize = store.load(unit.identity, Kept::Sanitize).await.map_err(failed)?;
        }
        let reservations =
            Reservations::restore(reservations.as_deref()).ok_or(UnitsError::Damaged(number))?;
        let sanitize =
            kept_sanitize(sanitize.as_deref()).ok_or(UnitsError::DamagedSanitize(number))?;
        let identity = unit.identity;
        let unit = Arc::new(Unit::new(number, unit, reservations));
        let pattern = unit.sanitize.restore(sanitize, unit.read_only());
        {
            let mut units = self.target.units.write().unwrap_or_else(PoisonError::into_inner);
            if units.contains_key(&number) {
                return Err(UnitsError::Taken(number));
            }
            if let Some(other) =
                units.values().find(|it| naa(&it.options.identity) == naa(&identity))
            {
                return Err(UnitsError::Identity(other.number));
            }
            units.insert(number, Arc::clone(&unit));
        }
        if let Some(pattern) = pattern {
            tracing::info!(lun = number, "a sanitize operation that was cut short begins anew");
            go_on_sanitizing(&unit, self.target.store.clone(), pattern);
        }
        self.target.tell_all(&unit, None, asc::POWER_ON);
        self.luns_changed();
        Ok(())
    }

    /// Takes a logical unit out. When this is done no command uses its disk any more. Its
    /// reservations stay in the store.
    ///
    /// # Errors
    /// There is none, or it is being sanitized.
    pub async fn remove(&self, number: u16) -> Result<(), UnitsError> {
        let unit = {
            let mut units = self.target.units.write().unwrap_or_else(PoisonError::into_inner);
            let unit = units.get(&number).ok_or(UnitsError::Missing(number))?;
            if unit.sanitize.running() {
                return Err(UnitsError::Sanitizing(number));
            }
            units.remove(&number).ok_or(UnitsError::Missing(number))?
        };
        self.target.tokens.all_changed(&unit);
        self.luns_changed();
        let _all = unit.ranges.alone(0, u64::MAX).await;
        Ok(())
    }

    /// Takes a logical unit out as [`Units::remove`] does, also while it is being sanitized: that
    /// goes on when the unit is added again, if there is a store.
    ///
    /// # Errors
    /// There is none.
    pub async fn close(&self, number: u16) -> Result<(), UnitsError> {
        let unit = {
            let units = self.target.units.read().unwrap_or_else(PoisonError::into_inner);
            units.get(&number).cloned().ok_or(UnitsError::Missing(number))?
        };
        unit.sanitize.halt();
        let _all = unit.ranges.alone(0, u64::MAX).await;
        let mut units = self.target.units.write().unwrap_or_else(PoisonError::into_inner);
        units.remove(&number).ok_or(UnitsError::Missing(number))?;
        drop(units);
        self.target.tokens.all_changed(&unit);
        self.luns_changed();
        Ok(())
    }

    /// What a ROD token of this target stands for; `None` if it stands for nothing, for zeros, or was
    /// not made here. The caller has seen to it that its user may have the data.
    #[must_use]
    pub fn token(&self, token: &[u8]) -> Option<Arc<dyn TokenData>> {
        Blocks::find(&self.target, token).map(|found| Arc::new(found) as Arc<dyn TokenData>)
    }

    /// Whether a logical unit can have another size at all now, and that one if it is known. A caller
    /// that must close the disk to see its size asks before.
    ///
    /// # Errors
    /// Those of [`Units::resize`].
    pub fn may_resize(&self, number: u16, size: Option<u64>) -> Result<(), UnitsError> {
        let unit = {
            let units = self.target.units.read().unwrap_or_else(PoisonError::into_inner);
            units.get(&number).cloned().ok_or(UnitsError::Missing(number))?
        };
        if unit.sanitize.running() {
            return Err(UnitsError::Sanitizing(number));
        }
        let from = unit.disk().geometry().size;
        match size {
            Some(to) if to < from && !self.target.present().is_empty() => {
                Err(UnitsError::Shrinks { number, from, to })
            }
            _ => Ok(()),
        }
    }

    /// Gives a logical unit the same disk with another size, opened anew or seen anew by its
    /// caller. Initiators are told by CAPACITY DATA HAS CHANGED.
    ///
    /// # Errors
    /// There is none, the sector is another, or it would shrink while initiators are there.
    pub fn resize(&self, number: u16, disk: Arc<dyn Disk>) -> Result<(), UnitsError> {
        let unit = {
            let units = self.target.units.read().unwrap_or_else(PoisonError::into_inner);
            units.get(&number).cloned().ok_or(UnitsError::Missing(number))?
        };
        let (from, to) = (unit.disk().geometry(), disk.geometry());
        if to.logical_sector != from.logical_sector || to.size < u64::from(to.logical_sector) {
            return Err(UnitsError::Geometry { size: to.size, sector: to.logical_sector });
        }
        self.may_resize(number, Some(to.size))?;
        unit.set_disk(disk);
        if to.size != from.size {
            self.target.tell_all(&unit, None, asc::CAPACITY_CHANGED);
        }
        Ok(())
    }

    /// Sets how much a logical unit may do in a second, from now on.
    ///
    /// # Errors
    /// There is none.
    pub fn set_limits(&self, number: u16, limits: Limits) -> Result<(), UnitsError> {
        let units = self.target.units.read().unwrap_or_else(PoisonError::into_inner);
        units.get(&number).ok_or(UnitsError::Missing(number))?.meter.set_limits(limits);
        Ok(())
    }

    /// Tells a logical unit how much room there is below it. Initiators are warned by THIN
    /// PROVISIONING SOFT THRESHOLD REACHED when it is thin and comes down to the threshold.
    ///
    /// # Errors
    /// There is none.
    pub fn set_space(&self, number: u16, space: Space) -> Result<(), UnitsError> {
        let unit = {
            let units = self.target.units.read().unwrap_or_else(PoisonError::into_inner);
            units.get(&number).cloned().ok_or(UnitsError::Missing(number))?
        };
        if unit.room().is_some_and(|room| room.set(space)) {
            self.target.tell_all(&unit, None, asc::SPACE_LOW);
        }
        Ok(())
    }

    /// All logical units, in order of their numbers.
    #[must_use]
    pub fn list(&self) -> Vec<UnitInfo> {
        let info = |unit: Arc<Unit>| {
            let reservations = unit.reservations.read();
            UnitInfo {
                number: unit.number,
                identity: unit.options.identity,
                size: unit.disk().geometry().size,
                block: unit.block(),
                read_only: unit.read_only(),
                registrations: reservations.registrations.len(),
                reserved: reservations.reservation.is_some(),
                sanitizing: unit.sanitize.running(),
                usage: unit.meter.usage(),
            }
        };
        self.target.all().into_iter().map(info).collect()
    }

    /// Other rules of LUN masking. Initiators are told to look again.
    pub fn set_access(&self, access: Arc<dyn LunAccess>) {
        *self.target.access.write().unwrap_or_else(PoisonError::into_inner) = access;
        self.luns_changed();
    }

    /// All target port groups as they are now.
    #[must_use]
    pub fn groups(&self) -> Vec<PortGroup> {
        self.target.ports.groups()
    }

    /// Other target port groups, or other states of them. Initiators are told by ASYMMETRIC ACCESS
    /// STATE CHANGED if anything is different.
    pub fn set_groups(&self, groups: Vec<PortGroup>) {
        if self.target.ports.set(groups) {
            for unit in self.target.all() {
                self.target.tell_all(&unit, None, asc::ACCESS_CHANGED);
            }
        }
    }

    /// Another state of one target port group; whether there is such a group.
    pub fn set_state(&self, group: u16, state: AccessState) -> bool {
        let mut groups = self.groups();
        let Some(found) = groups.iter_mut().find(|it| it.id == group) else { return false };
        found.state = state;
        self.set_groups(groups);
        true
    }

    /// What is behind a number.
    #[cfg(test)]
    pub(crate) fn unit_for_tests(&self, nexus: &Nexus, lun: Lun) -> Option<Arc<Unit>> {
        self.target.unit(nexus, lun)
    }

    fn luns_changed(&self) {
        for unit in self.target.all() {
            self.target.tell_all(&unit, None, asc::LUNS_CHANGED);
        }
    }

    fn reset(&self, unit: &Unit, code: u16) {
        unit.reset();
        self.target.tell_all(unit, None, code);
    }
}

impl Device for Units {
    fn attach(&self, nexus: &Nexus) {
        let mut nexuses = self.target.nexuses.write().unwrap_or_else(PoisonError::into_inner);
        nexuses.insert(nexus.id, nexus.clone());
        drop(nexuses);
        for unit in self.target.all() {
            unit.attentions.establish(nexus.id, asc::POWER_ON);
        }
    }

    fn detach(&self, nexus: &Nexus) {
        let mut nexuses = self.target.nexuses.write().unwrap_or_else(PoisonError::into_inner);
        nexuses.remove(&nexus.id);
        drop(nexuses);
        for unit in self.target.all() {
            unit.detach(nexus.id);
        }
        self.target.results.forget(nexus.id);
    }

    fn execute<'a>(
        &'a self,
        nexus: &'a Nexus,
        request: Request<'a>,
        data_in: &'a mut Vec<u8>,
    ) -> impl Future<Output = Completion> + Send + 'a {
        dispatch::execute(&self.target, nexus, request, data_in)
    }

    fn has_unit(&self, nexus: &Nexus, lun: Lun) -> bool {
        self.target.unit(nexus, lun).is_some()
    }

    fn has_attention(&self, nexus: &Nexus, lun: Lun) -> bool {
        self.target.unit(nexus, lun).is_some_and(|unit| unit.attentions.waits(nexus.id))
    }

    fn reset_unit(&self, nexus: &Nexus, lun: Lun) {
        if let Some(unit) = self.target.unit(nexus, lun) {
            self.reset(&unit, asc::DEVICE_RESET);
        }
    }

    fn reset_target(&self, _nexus: &Nexus) {
        for unit in self.target.all() {
            self.reset(&unit, asc::POWER_ON);
        }
    }

    fn encode_sense(&self, lun: Lun, sense: &Sense) -> Vec<u8> {
        let number = crate::reports::number_of(lun);
        let units = self.target.units.read().unwrap_or_else(PoisonError::into_inner);
        let unit = number.and_then(|number| units.get(&number));
        let descriptor = unit.is_some_and(|unit| {
            unit.mode.descriptor_sense.load(std::sync::atomic::Ordering::Acquire)
        });
        if descriptor { sense.descriptor() } else { sense.fixed().to_vec() }
    }

    fn tasks_cleared(&self, nexus: &Nexus, lun: Lun, others: &[Nexus]) {
        if let Some(unit) = self.target.unit(nexus, lun) {
            for other in others.iter().filter(|other| other.id != nexus.id) {
                unit.attentions.establish(other.id, asc::COMMANDS_CLEARED);
            }
        }
    }
}
