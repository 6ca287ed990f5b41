//! Target port groups: through which ports a logical unit is reached how well (SPC-4 5.15).

use std::sync::{
    PoisonError, RwLock, RwLockReadGuard,
    atomic::{AtomicBool, Ordering},
};

use crate::{
    SenseKey, asc,
    cdb::Op,
    refusal::{Done, Refusal},
};

/// ASYMMETRIC ACCESS STATE of a target port group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum AccessState {
    /// The best way.
    ActiveOptimized = 0x0,
    /// A way, where the best one is not there.
    ActiveNonOptimized = 0x1,
    /// No way for data; the unit answers what it is.
    Standby = 0x2,
    /// No way for anything but what is needed to see that.
    Unavailable = 0x3,
    /// Not there, and not by a command either.
    Offline = 0xe,
    /// On its way between two of these.
    Transitioning = 0xf,
}

impl AccessState {
    const fn of(code: u8) -> Option<Self> {
        Some(match code {
            0x0 => Self::ActiveOptimized,
            0x1 => Self::ActiveNonOptimized,
            0x2 => Self::Standby,
            0x3 => Self::Unavailable,
            _ => return None,
        })
    }

    const fn active(self) -> bool {
        matches!(self, Self::ActiveOptimized | Self::ActiveNonOptimized)
    }
}

/// Target ports that are always in one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortGroup {
    /// TARGET PORT GROUP.
    pub id: u16,
    /// PREF: whoever can choose is to use this one.
    pub preferred: bool,
    /// How logical units are reached through it.
    pub state: AccessState,
    /// Relative target port identifiers.
    pub ports: Vec<u16>,
}

/// Who changes the access states of target port groups (SPC-4 5.15.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alua {
    /// The target does, on its own.
    pub implicit: bool,
    /// Initiators do, by SET TARGET PORT GROUPS.
    pub explicit: bool,
}

/// All groups of a target.
#[derive(Debug)]
pub(crate) struct Ports {
    groups: RwLock<Vec<PortGroup>>,
    alua: Alua,
    all_active: AtomicBool,
}

impl Ports {
    pub(crate) fn new(groups: Vec<PortGroup>, alua: Alua) -> Self {
        let ports = Self { groups: RwLock::default(), alua, all_active: AtomicBool::new(true) };
        ports.set(groups);
        ports
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<PortGroup>> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn groups(&self) -> Vec<PortGroup> {
        self.read().clone()
    }

    /// New groups; answers whether anything is different.
    pub(crate) fn set(&self, groups: Vec<PortGroup>) -> bool {
        let mut current = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        let different = *current != groups;
        self.all_active.store(groups.iter().all(|it| it.state.active()), Ordering::Release);
        *current = groups;
        different
    }

    /// TPGS of standard INQUIRY data.
    pub(crate) const fn tpgs(&self) -> u8 {
        self.alua.implicit as u8 | (self.alua.explicit as u8) << 1
    }

    pub(crate) const fn explicit(&self) -> bool {
        self.alua.explicit
    }

    pub(crate) fn group_of(&self, port: u16) -> u16 {
        self.read().iter().find(|it| it.ports.contains(&port)).map_or(0, |it| it.id)
    }

    /// Every relative target port identifier.
    pub(crate) fn all(&self) -> Vec<u16> {
        self.read().iter().flat_map(|it| it.ports.iter().copied()).collect()
    }

    /// Whether a command that came through `port` can be carried out: one atomic load while all
    /// groups are active.
    ///
    /// # Errors
    /// NOT READY with the state (SPC-4 5.15.2.4).
    pub(crate) fn check(&self, port: u16, op: Op) -> Done {
        if self.all_active.load(Ordering::Acquire) {
            return Ok(());
        }
        let state = self.read().iter().find(|it| it.ports.contains(&port)).map(|it| it.state);
        let code = match state {
            None | Some(AccessState::ActiveOptimized | AccessState::ActiveNonOptimized) => {
                return Ok(());
            }
            Some(_) if always(op) => return Ok(()),
            Some(AccessState::Standby) if in_standby(op) => return Ok(()),
            Some(AccessState::Standby) => asc::STANDBY,
            Some(AccessState::Unavailable) => asc::UNAVAILABLE,
            Some(AccessState::Offline) => asc::OFFLINE,
            Some(AccessState::Transitioning) => asc::TRANSITIONING,
        };
        Err(Refusal::check(SenseKey::NotReady, code))
    }

    /// REPORT TARGET PORT GROUPS (SPC-4 6.37).
    pub(crate) fn report(&self, extended: bool) -> Vec<u8> {
        let mut body = Vec::new();
        if extended {
            body.extend([0x10, 0, 0, 0]);
        }
        for group in self.read().iter() {
            body.push(u8::from(group.preferred) << 7 | group.state as u8);
            // Which states there are: all but those by block.
            body.push(0xcf);
            body.extend(group.id.to_be_bytes());
            let count = group.ports.len().min(usize::from(u8::MAX));
            body.extend([0, 0, 0, count as u8]);
            for port in &group.ports[..count] {
                body.extend([0, 0]);
                body.extend(port.to_be_bytes());
            }
        }
        let mut out = (body.len() as u32).to_be_bytes().to_vec();
        out.extend(body);
        out
    }

    /// SET TARGET PORT GROUPS (SPC-4 6.45): all or none. Answers whether anything is different.
    ///
    /// # Errors
    /// A list that ends too soon, a group there is not, a state that cannot be asked for.
    pub(crate) fn request(&self, list: &[u8]) -> Result<bool, Refusal> {
        if list.is_empty() {
            return Ok(false);
        }
        if list.len() < 4 || !list.len().is_multiple_of(4) {
            return Err(Refusal::illegal(asc::PARAMETER_LIST_LENGTH));
        }
        let mut groups = self.groups();
        if groups.iter().any(|it| it.state == AccessState::Transitioning) {
            return Err(Refusal::check(SenseKey::HardwareError, asc::SET_GROUPS_FAILED));
        }
        for (at, descriptor) in list.chunks_exact(4).enumerate().skip(1) {
            let state = AccessState::of(descriptor[0] & 0x0f).filter(|_| descriptor[0] & 0xf0 == 0);
            let id = u16::from_be_bytes([descriptor[2], descriptor[3]]);
            let group = groups.iter_mut().find(|it| it.id == id);
            let group = group.ok_or(Refusal::in_list(4 * at + 2))?;
            group.state = state.ok_or(Refusal::in_list(4 * at))?;
        }
        Ok(self.set(groups))
    }
}

/// In every state there is.
const fn always(op: Op) -> bool {
    matches!(
        op,
        Op::Inquiry
            | Op::ReportLuns
            | Op::RequestSense
            | Op::ReportTargetPortGroups
            | Op::SetTargetPortGroups
    )
}

const fn in_standby(op: Op) -> bool {
    matches!(
        op,
        Op::ModeSelect6
            | Op::ModeSelect10
            | Op::ModeSense6
            | Op::ModeSense10
            | Op::LogSense
            | Op::PersistentReserveIn
            | Op::PersistentReserveOut
            | Op::ReportOpcodes
            | Op::ReportTaskManagement
            | Op::CopyParameters
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> Ports {
        let group = |id, ports: &[u16]| PortGroup {
            id,
            preferred: id == 1,
            state: AccessState::ActiveOptimized,
            ports: ports.to_vec(),
        };
        Ports::new(vec![group(1, &[1, 2]), group(2, &[3])], Alua { implicit: true, explicit: true })
    }

    #[test]
    fn a_group_in_standby_says_what_it_is_and_carries_no_data() {
        let ports = ports();
        assert_eq!(ports.request(&[0, 0, 0, 0, 2, 0, 0, 2]), Ok(true));
        assert!(ports.check(3, Op::Read10).is_err());
        assert!(ports.check(3, Op::ModeSense6).is_ok());
        assert!(ports.check(1, Op::Read10).is_ok());
        let report = ports.report(false);
        assert_eq!(report[..8], [0, 0, 0, 28, 0x80, 0xcf, 0, 1]);
        assert_eq!(report[20], 2);
    }

    #[test]
    fn a_request_is_carried_out_whole_or_not_at_all() {
        let ports = ports();
        assert!(ports.request(&[0, 0, 0, 0, 2, 0, 0, 1, 0, 0, 0, 9]).is_err());
        assert!(ports.request(&[0, 0, 0, 0, 0x0f, 0, 0, 1]).is_err());
        assert!(ports.check(1, Op::Read10).is_ok());
    }
}
