//! One writer of a logical unit: the runs of an application take it from one another by a persistent
//! reservation (SPC-4 5.13), as they take files of a share by their instance (MS-SMB2 3.3.5.9.13).
//!
//! ```text
//!  prepare   connects as one of the application's two names and registers the run's number as key
//!  open      preempts the keys of earlier runs, whose commands end, and reserves
//!  close     takes the registration away; the reservation goes with the last one
//! ```
//!
//! The type is Write Exclusive, All Registrants: between a run that closes and the next, which has
//! registered before, the unit is never without its reservation, and nobody else writes it. It
//! outlives the target's power (APTPL), so a host that is gone leaves the unit to its application.
//!
//! An application has two names, as a virtual Fibre Channel adapter has two sets of them: a run takes
//! the one that the last one does not have. A target's list of initiators has both.

use std::sync::{Arc, Mutex, PoisonError};

use block_io::Disk;
use iscsi::initiator::{InitiatorError, IscsiDisk, Registrant, ReservationType};
use smb_client::Instance;
use tokio::runtime::Handle;

use crate::{Claim, Error, IscsiUrl, Result, Servers, lun};

const KIND: ReservationType = ReservationType::WriteExclusiveAllRegistrants;
/// How often the registrations are looked at again while others change them.
const TRIES: usize = 16;

/// The two names of an application as an initiator.
pub fn names(id: [u8; 16]) -> [String; 2] {
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    ["a", "b"].map(|letter| format!("iqn.2024-01.bulkhead.vm:{id}.{letter}"))
}

/// A unit that a run is registered at, and does not write yet.
#[derive(Debug)]
pub(crate) struct Registered {
    disk: Arc<IscsiDisk>,
    run: Instance,
    /// Whether the unit knows reservations.
    knows: bool,
}

/// What is registered for a disk that is opened later; what is never opened is closed.
#[derive(Debug)]
pub(crate) struct Waiting {
    registered: Mutex<Option<Registered>>,
    runtime: Handle,
}

impl Waiting {
    pub fn new(registered: Registered) -> Self {
        Self { registered: Mutex::new(Some(registered)), runtime: Handle::current() }
    }

    /// What waits, once, if it is of this run of the application; that of an earlier one is closed.
    pub async fn take(&self, run: Instance) -> Option<Registered> {
        let waits = self.registered.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        if waits.run == run {
            return Some(waits);
        }
        if let Err(error) = waits.disk.close().await {
            tracing::debug!(%error, "a registration at a logical unit is left to its successor");
        }
        None
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waits = self.registered.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Registered { disk, .. }) = waits {
            self.runtime.spawn(async move {
                if let Err(error) = disk.close().await {
                    tracing::warn!(%error, "a registration at a logical unit may stay");
                }
            });
        }
    }
}

impl Registered {
    /// Connects to a unit for writing and registers a run of an application there.
    ///
    /// # Errors
    /// [`block_io::Error::Busy`] if another application, or a later run of this one, has the unit;
    /// [`Error`] otherwise.
    pub async fn new(url: &IscsiUrl, servers: &dyn Servers, run: Instance) -> Result<Self> {
        let [first, second] = names(run.id);
        // Who looks has nothing to flush, which a reservation of the last run would not let through.
        let looks = lun::connect(url, Claim::Look, servers, &first).await?;
        let all = looks.registrants().await;
        looks.close().await?;
        let all = match all {
            Ok(all) => all,
            Err(InitiatorError::Sense(sense)) if sense.is_illegal() => {
                tracing::warn!(unit = %url, "a logical unit knows no reservations: nothing keeps other writers from it");
                let disk = lun::connect(url, Claim::Write, servers, &first).await?;
                return Ok(Self { disk, run, knows: false });
            }
            Err(error) => return Err(error.into()),
        };
        refuse_others(url, &all, run)?;
        // One name is for one run at a time: what the target has under way of the last one is not
        // mixed with what this one sends.
        let of_first = newest(&all, &first);
        let taken = of_first.is_some() && of_first >= newest(&all, &second);
        let name = if taken { &second } else { &first };
        let disk = lun::connect(url, Claim::Write, servers, name).await?;
        disk.release_on_close();
        match disk.register(run.version, true).await {
            // A target that keeps nothing over a loss of power.
            Err(InitiatorError::Sense(sense)) if sense.is_illegal() => {
                disk.register(run.version, false).await?;
            }
            other => other?,
        }
        Ok(Self { disk, run, knows: true })
    }

    /// Takes the unit from all earlier runs: when this is done, none of them writes any more.
    ///
    /// # Errors
    /// As for [`Registered::new`].
    pub async fn own(self, url: &IscsiUrl) -> Result<Arc<IscsiDisk>> {
        let done = if self.knows { self.take_over(url).await } else { Ok(()) };
        if done.is_err() {
            // The failure that matters is the one that is returned.
            let _ = self.disk.close().await;
        }
        done.map(|()| self.disk)
    }

    async fn take_over(&self, url: &IscsiUrl) -> Result<()> {
        let key = self.run.version;
        for _ in 0..TRIES {
            let all = self.disk.registrants().await?;
            refuse_others(url, &all, self.run)?;
            let done = match all.iter().find(|it| it.key != key) {
                Some(earlier) => self.disk.preempt(key, earlier.key, KIND, true).await,
                None => match self.disk.reserve(key, KIND).await {
                    Ok(()) => return Ok(()),
                    refused => refused,
                },
            };
            match done {
                // It may have been carried out, or another was faster: what is there now tells.
                Ok(()) | Err(InitiatorError::InDoubt | InitiatorError::ReservationConflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(busy(url, "others change its reservations all the time"))
    }
}

fn busy(url: &IscsiUrl, why: &str) -> Error {
    block_io::Error::Busy(format!("{url} is in use: {why}")).into()
}

/// The latest run that is registered under a name.
fn newest(all: &[Registrant], name: &str) -> Option<u64> {
    let of_name = all.iter().filter(|it| it.initiator.eq_ignore_ascii_case(name));
    of_name.map(|it| it.key).max()
}

/// An application takes a unit from earlier runs of its own and from nobody else.
fn refuse_others(url: &IscsiUrl, all: &[Registrant], run: Instance) -> Result<()> {
    let names = names(run.id);
    for it in all {
        let name = &it.initiator;
        if !names.iter().any(|ours| ours.eq_ignore_ascii_case(name)) {
            let who = if name.is_empty() { "an initiator of another protocol" } else { name };
            let why = format!("{who} is registered there with key {:#x}", it.key);
            return Err(busy(url, &why));
        }
        if it.key > run.version {
            return Err(busy(url, &format!("a later run of the same machine has it, as {name}")));
        }
    }
    Ok(())
}

/// Refuses a unit that is reserved by another, for an opener that is no application.
///
/// # Errors
/// [`block_io::Error::Busy`] with who it is.
pub(crate) async fn unreserved(url: &IscsiUrl, disk: &IscsiDisk) -> Result<()> {
    match disk.registrants().await {
        Ok(all) => match all.iter().find(|it| it.holds) {
            Some(holder) => Err(busy(url, &format!("{} has reserved it", holder.initiator))),
            None => Ok(()),
        },
        Err(InitiatorError::Sense(sense)) if sense.is_illegal() => Ok(()),
        Err(error) => Err(error.into()),
    }
}
