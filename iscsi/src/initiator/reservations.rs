//! Persistent reservations of a unit (SPC-4 5.13, 6.15, 6.16), by which writers of one unit are kept
//! apart.
//!
//! A registration is of one path. [`IscsiDisk::register`] makes one on each, and a path that comes
//! later joins them as long as the key is still there; with several paths the types for registrants
//! only let all of them write.

use std::sync::{PoisonError, atomic::Ordering};

use bytes::Bytes;

use super::{
    cdb,
    disk::IscsiDisk,
    error::InitiatorError,
    link::Link,
    paths::{Paths, Repeat},
    unit::joined,
};

/// Bytes of an answer.
const ANSWER: u16 = 0x2000;
/// Bytes of an answer with a TransportID for each registration.
const FULL_ANSWER: u16 = 0xfff0;

/// Service actions of PERSISTENT RESERVE OUT.
mod action {
    pub const READ_FULL_STATUS: u8 = 3; // of PERSISTENT RESERVE IN
    pub const RESERVE: u8 = 1;
    pub const RELEASE: u8 = 2;
    pub const CLEAR: u8 = 3;
    pub const PREEMPT: u8 = 4;
    pub const PREEMPT_AND_ABORT: u8 = 5;
    pub const REGISTER_IGNORING: u8 = 6;
    pub const REGISTER_AND_MOVE: u8 = 7;
}

/// What a reservation keeps others from (SPC-4 table 187).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ReservationType {
    /// Others may read.
    WriteExclusive = 1,
    /// Others may neither read nor write.
    ExclusiveAccess = 3,
    /// Only who is registered may write.
    WriteExclusiveRegistrantsOnly = 5,
    /// Only who is registered may read or write.
    ExclusiveAccessRegistrantsOnly = 6,
    /// As for registrants only; all of them hold it.
    WriteExclusiveAllRegistrants = 7,
    /// As for registrants only; all of them hold it.
    ExclusiveAccessAllRegistrants = 8,
}

/// A reservation that is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    /// The holder's key; 0 if all registrants hold it.
    pub key: u64,
    /// The type's code.
    pub kind: u8,
}

/// Registrations and reservation of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservations {
    /// PRGENERATION.
    pub generation: u32,
    /// A key for each registration.
    pub keys: Vec<u64>,
    /// The reservation, if there is one.
    pub reservation: Option<Reservation>,
}

/// An initiator port that is registered (SPC-4 6.15.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registrant {
    /// Its key.
    pub key: u64,
    /// Whether it holds the reservation.
    pub holds: bool,
    /// The initiator's iSCSI name; what a TransportID of another protocol says is left out.
    pub initiator: String,
}

/// Bytes of a basic parameter list.
fn list(ours: u64, other: u64, aptpl: bool) -> Bytes {
    let mut out = Vec::with_capacity(24);
    out.extend(ours.to_be_bytes());
    out.extend(other.to_be_bytes());
    out.extend([0, 0, 0, 0, u8::from(aptpl), 0, 0, 0]);
    out.into()
}

fn ours(paths: &Paths) -> std::sync::MutexGuard<'_, (Option<u64>, Vec<usize>)> {
    paths.registered.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn keys(paths: &Paths, link: &Link) -> Result<(u32, Vec<u64>), InitiatorError> {
    let bytes = paths.asker(link).ask(cdb::reserve_in(0, ANSWER), ANSWER.into()).await?;
    Ok(read_keys(&bytes))
}

fn read_keys(bytes: &[u8]) -> (u32, Vec<u64>) {
    let word = |at: usize| {
        let four = bytes.get(at..).and_then(|rest| rest.first_chunk());
        four.map_or(0, |four| u32::from_be_bytes(*four))
    };
    let length = (word(4) as usize).min(bytes.len().saturating_sub(8));
    let list = bytes.get(8..8 + length).unwrap_or_default();
    (word(0), list.as_chunks::<8>().0.iter().map(|eight| u64::from_be_bytes(*eight)).collect())
}

/// The full status descriptors of an answer, as far as they are whole; each with its TransportID
/// (SPC-4 table 229 and 7.6.4.6).
fn read_registrants(bytes: &[u8]) -> Vec<Registrant> {
    let word = |bytes: &[u8], at: usize| {
        let four = bytes.get(at..).and_then(|rest| rest.first_chunk());
        four.map_or(0, |four| u32::from_be_bytes(*four) as usize)
    };
    let mut rest = bytes.get(8..).unwrap_or_default();
    rest = &rest[..rest.len().min(word(bytes, 4))];
    let mut found = Vec::new();
    while let (Some(key), Some(transport)) = (rest.first_chunk(), rest.get(24..24 + word(rest, 20)))
    {
        let iscsi = transport.first().is_some_and(|first| first & 0x0f == 5);
        let name = transport.get(4..).filter(|_| iscsi).unwrap_or_default();
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        let name = String::from_utf8_lossy(&name[..end]);
        let initiator = name.split(",i,0x").next().unwrap_or_default().to_owned();
        let holds = rest[12] & 1 != 0;
        found.push(Registrant { key: u64::from_be_bytes(*key), holds, initiator });
        rest = &rest[24 + transport.len()..];
    }
    found
}

/// Sends PERSISTENT RESERVE OUT on one path, again as long as it meets a unit attention.
async fn on_path(
    paths: &Paths,
    link: &Link,
    action: u8,
    data: Bytes,
) -> Result<(), InitiatorError> {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    for _ in 0..32 {
        let command = paths.command(cdb::reserve_out(action, 0, length), data.clone(), 0);
        let reply = link.run(command).await;
        let reply = reply.map_err(|_| InitiatorError::InDoubt)?;
        match (reply.status, super::sense::SenseData::read(&reply.sense)) {
            (0, _) => return Ok(()),
            (2, Some(sense)) if sense.key == super::sense::key::UNIT_ATTENTION => {}
            (2, Some(sense)) => return Err(InitiatorError::Sense(sense)),
            (0x18, _) => return Err(InitiatorError::ReservationConflict),
            (status, _) => return Err(InitiatorError::Status(status)),
        }
    }
    Err(InitiatorError::Unusable("it has a unit attention without an end".to_owned()))
}

impl Paths {
    /// Registers a path that was not there when the others were; not if the key was taken away.
    ///
    /// # Errors
    /// The path cannot be registered: commands on it would meet a conflict that there is not.
    pub(super) async fn join_registration(
        &self,
        link: &Link,
        index: usize,
    ) -> Result<(), InitiatorError> {
        let (key, known) = {
            let ours = ours(self);
            (ours.0, ours.1.contains(&index))
        };
        let Some(key) = key.filter(|_| !known) else { return Ok(()) };
        if !keys(self, link).await?.1.contains(&key) {
            return Ok(());
        }
        on_path(self, link, action::REGISTER_IGNORING, list(0, key, false)).await?;
        ours(self).1.push(index);
        Ok(())
    }
}

impl IscsiDisk {
    /// Registers all paths under a key, whatever they were registered under before; 0 takes the
    /// registrations away. With `aptpl` they outlive a loss of the target's power.
    ///
    /// # Errors
    /// [`InitiatorError`]: the unit refuses, or a path was lost meanwhile.
    pub async fn register(&self, key: u64, aptpl: bool) -> Result<(), InitiatorError> {
        *ours(&self.paths) = (None, Vec::new());
        let mut done = Vec::new();
        for up in self.paths.all_up() {
            let data = list(0, key, aptpl);
            on_path(&self.paths, &up.link, action::REGISTER_IGNORING, data).await?;
            done.push(up.index);
        }
        if done.is_empty() {
            return Err(InitiatorError::Unreachable("none is up".to_owned()));
        }
        if key != 0 {
            *ours(&self.paths) = (Some(key), done);
        }
        Ok(())
    }

    /// Reserves the unit for a registered key.
    ///
    /// # Errors
    /// [`InitiatorError::ReservationConflict`] if another has it.
    pub async fn reserve(&self, key: u64, kind: ReservationType) -> Result<(), InitiatorError> {
        self.reserve_out(action::RESERVE, kind as u8, list(key, 0, false), Repeat::Always).await
    }

    /// Gives the reservation back.
    ///
    /// # Errors
    /// [`InitiatorError`]: the unit refuses.
    pub async fn release(&self, key: u64, kind: ReservationType) -> Result<(), InitiatorError> {
        self.reserve_out(action::RELEASE, kind as u8, list(key, 0, false), Repeat::Always).await
    }

    /// Takes the registrations under `other` away, and its reservation over; with `abort` also ends
    /// what it has under way.
    ///
    /// # Errors
    /// [`InitiatorError::ReservationConflict`] if this initiator, or the other, is not registered.
    pub async fn preempt(
        &self,
        key: u64,
        other: u64,
        kind: ReservationType,
        abort: bool,
    ) -> Result<(), InitiatorError> {
        let action = if abort { action::PREEMPT_AND_ABORT } else { action::PREEMPT };
        // What was taken away once cannot be again: a repetition would meet a conflict.
        self.reserve_out(action, kind as u8, list(key, other, false), Repeat::Never).await
    }

    /// Takes all registrations and the reservation away.
    ///
    /// # Errors
    /// [`InitiatorError`]: the unit refuses; [`InitiatorError::InDoubt`] if the answer was lost.
    pub async fn clear(&self, key: u64) -> Result<(), InitiatorError> {
        self.reserve_out(action::CLEAR, 0, list(key, 0, false), Repeat::Never).await?;
        *ours(&self.paths) = (None, Vec::new());
        Ok(())
    }

    /// Registers another initiator's port (`name,i,0x` and the ISID) at a target port under
    /// `new`, and gives it the reservation; with `leave` this path's registration goes.
    ///
    /// # Errors
    /// [`InitiatorError`]: the unit refuses; [`InitiatorError::InDoubt`] if the answer was lost.
    pub async fn register_and_move(
        &self,
        key: u64,
        new: u64,
        initiator: &str,
        port: u16,
        leave: bool,
    ) -> Result<(), InitiatorError> {
        // TransportID of an initiator port (SPC-4 7.6.4.6).
        let length = (initiator.len() + 1).next_multiple_of(4).max(20);
        let short = u16::try_from(length).ok().filter(|length| *length <= 256);
        let short = short.ok_or(InitiatorError::Options("the name is too long".to_owned()))?;
        let mut out = Vec::new();
        out.extend(key.to_be_bytes());
        out.extend(new.to_be_bytes());
        out.extend([0, u8::from(leave) << 1]);
        out.extend(port.to_be_bytes());
        out.extend((u32::from(short) + 4).to_be_bytes());
        out.extend([0x45, 0]);
        out.extend(short.to_be_bytes());
        out.extend(initiator.as_bytes());
        out.resize(24 + 4 + length, 0);
        let kind = self.reservations().await?.reservation.map_or(0, |it| it.kind);
        self.reserve_out(action::REGISTER_AND_MOVE, kind, out.into(), Repeat::Never).await
    }

    /// Registrations and reservation as they are now.
    ///
    /// # Errors
    /// [`InitiatorError`]: the unit refuses, or cannot be reached.
    pub async fn reservations(&self) -> Result<Reservations, InitiatorError> {
        let answer = async |action| {
            let cdb = cdb::reserve_in(action, ANSWER);
            let command = self.paths.command(cdb, Bytes::new(), ANSWER.into());
            self.run(command).await.map(|reply| joined(&reply))
        };
        let (generation, keys) = read_keys(&answer(0).await?);
        let bytes = answer(1).await?;
        let key = bytes.get(8..16).and_then(|eight| eight.first_chunk());
        let reservation = match (key, bytes.get(21)) {
            (Some(key), Some(kind)) if bytes.get(4..8) != Some(&[0; 4]) => {
                Some(Reservation { key: u64::from_be_bytes(*key), kind: kind & 0x0f })
            }
            _ => None,
        };
        Ok(Reservations { generation, keys, reservation })
    }

    /// Who is registered, in no particular order.
    ///
    /// # Errors
    /// [`InitiatorError::Sense`] with ILLEGAL REQUEST if the unit knows no persistent reservations;
    /// others if it cannot be reached.
    pub async fn registrants(&self) -> Result<Vec<Registrant>, InitiatorError> {
        let cdb = cdb::reserve_in(action::READ_FULL_STATUS, FULL_ANSWER);
        let command = self.paths.command(cdb, Bytes::new(), FULL_ANSWER.into());
        Ok(read_registrants(&joined(&self.run(command).await?)))
    }

    /// Has [`block_io::Disk::close`] take this opener's registrations away.
    pub fn release_on_close(&self) {
        self.releases.store(true, Ordering::Relaxed);
    }

    async fn reserve_out(
        &self,
        action: u8,
        kind: u8,
        data: Bytes,
        repeat: Repeat,
    ) -> Result<(), InitiatorError> {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let command = self.paths.command(cdb::reserve_out(action, kind, length), data, 0);
        self.paths.run(command, repeat).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A parameter list of two registrations: the second holds, over another protocol.
    fn full_status() -> Vec<u8> {
        let mut out = vec![0, 0, 0, 9, 0, 0, 0, 0];
        let name = b"iqn.a:x,i,0x800000000001\0\0\0\0";
        for (key, flags, transport) in [(7u64, 0, &[0x45, 0, 0, 28][..]), (8, 1, &[0x06; 24])] {
            out.extend(key.to_be_bytes());
            out.extend([0, 0, 0, 0, flags, 7, 0, 0, 0, 0, 0, 1]);
            let name: &[u8] = if key == 7 { name } else { &[] };
            out.extend(u32::try_from(transport.len() + name.len()).unwrap().to_be_bytes());
            out.extend(transport);
            out.extend(name);
        }
        let length = u32::try_from(out.len() - 8).unwrap();
        out[4..8].copy_from_slice(&length.to_be_bytes());
        out
    }

    #[test]
    fn registrants_are_read_with_their_names() {
        let found = read_registrants(&full_status());
        assert_eq!(
            found,
            [
                Registrant { key: 7, holds: false, initiator: "iqn.a:x".into() },
                Registrant { key: 8, holds: true, initiator: String::new() },
            ]
        );
    }

    /// What is cut off, or says that it is longer than it is, gives the whole ones before it.
    #[test]
    fn what_is_cut_off_is_left_out() {
        let whole = full_status();
        for end in 0..whole.len() {
            assert!(read_registrants(&whole[..end]).len() < 2);
        }
        let mut lying = whole;
        lying[28..32].copy_from_slice(&[0xff; 4]);
        assert!(read_registrants(&lying).is_empty());
    }
}
