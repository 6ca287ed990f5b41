//! An iSCSI initiator (RFC 7143) that gives a logical unit as a [`block_io::Disk`].
//!
//! ```text
//!  Disk ─► disk.rs ─► paths.rs (which path, again) ─► link.rs (a task for each connection)
//!            │            │                             └─ exchange.rs: tasks, window, R2T, functions
//!  reservations.rs    unit.rs: what the unit is          output.rs: what is sent together
//!                     login.rs: texts, CHAP          cdb.rs, sense.rs: SCSI in bytes
//! ```
//! `login`, `exchange`, `output`, `cdb` and `sense` know neither sockets nor a clock. There is one
//! session with one connection for each portal, at ErrorRecoveryLevel 0: what is lost with a
//! connection is repeated on the next one, within `reconnect_time`.
//!
//! A target that loses its power with a volatile write cache loses what was not flushed; commands of
//! another initiator are kept apart by [`IscsiDisk::reserve`] only.

mod cdb;
mod discovery;
mod disk;
mod error;
mod exchange;
#[cfg(test)]
mod exchange_tests;
mod link;
mod login;
mod output;
mod paths;
mod reservations;
mod sense;
mod unit;

use std::{sync::Arc, time::Duration};

use aws_lc_rs::rand;
pub use discovery::{DiscoveredPortal, DiscoveredTarget, DiscoveryOptions, discover};
pub use disk::IscsiDisk;
pub use error::InitiatorError;
pub use reservations::{Registrant, Reservation, ReservationType, Reservations};
pub use sense::SenseData;

use crate::{chap::Account, config::check_name, negotiate::DigestWish};

/// The port of targets.
pub const PORT: u16 = 3260;
/// Highest number of a logical unit in the flat and the peripheral format (SAM-5 4.7).
const HIGHEST_LUN: u16 = 0x3fff;

/// Which logical unit an initiator opens, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// `host:port` of each portal; each becomes a path.
    pub portals: Vec<String>,
    /// TargetName.
    pub target: String,
    /// InitiatorName.
    pub name: String,
    /// ISID of the first path; others count up from it. A second session of one name and ISID ends
    /// the first one.
    pub isid: [u8; 6],
    /// By which this initiator proves who it is.
    pub chap: Option<Account>,
    /// By which the target has to.
    pub mutual: Option<Account>,
    /// HeaderDigest.
    pub header_digest: DigestWish,
    /// DataDigest.
    pub data_digest: DigestWish,
    /// The number of the logical unit.
    pub lun: u16,
    /// Writes are refused.
    pub read_only: bool,
    /// For how long a command waits for a path, and is repeated, before it fails.
    pub reconnect_time: Duration,
    /// After which a command is overdue, and is aborted to be repeated.
    pub command_time: Duration,
    /// Silence after which a target is asked for a sign of life; after twice as much it is given up.
    pub keep_alive: Duration,
    /// Commands under way at once.
    pub queue: usize,
}

impl Options {
    /// Options with usual times, an ISID that nobody else has, and no login.
    ///
    /// # Errors
    /// [`InitiatorError::Options`] if there is no randomness.
    pub fn new(
        portals: Vec<String>,
        target: impl Into<String>,
        lun: u16,
        name: impl Into<String>,
    ) -> Result<Self, InitiatorError> {
        Ok(Self {
            portals,
            target: target.into(),
            name: name.into(),
            isid: random_isid()?,
            chap: None,
            mutual: None,
            header_digest: DigestWish::Allowed,
            data_digest: DigestWish::Allowed,
            lun,
            read_only: false,
            reconnect_time: Duration::from_secs(60),
            command_time: Duration::from_secs(30),
            keep_alive: Duration::from_secs(5),
            queue: 128,
        })
    }

    fn check(&self) -> Result<(), InitiatorError> {
        let wrong = |what: &str| Err(InitiatorError::Options(what.to_owned()));
        for name in [&self.target, &self.name] {
            check_name(name).map_err(|error| InitiatorError::Options(error.to_string()))?;
        }
        if self.portals.is_empty() || self.portals.len() > 64 {
            return wrong("1 to 64 portals");
        }
        if self.lun > HIGHEST_LUN {
            return wrong("numbers of logical units go from 0 to 16383");
        }
        if !(1..=4096).contains(&self.queue) {
            return wrong("a queue has 1 to 4096 commands");
        }
        if self.mutual.is_some() && self.chap.is_none() {
            return wrong("a target proves who it is only to an initiator that does");
        }
        if self.command_time.is_zero() || self.keep_alive.is_zero() {
            return wrong("times are not zero");
        }
        Ok(())
    }
}

/// An ISID with a random qualifier (RFC 7143 11.12.5, type 10b).
///
/// # Errors
/// [`InitiatorError::Options`] if there is no randomness.
pub fn random_isid() -> Result<[u8; 6], InitiatorError> {
    let mut isid = [0; 6];
    let none = |_| InitiatorError::Options("no random numbers".to_owned());
    rand::fill(&mut isid[1..4]).map_err(none)?;
    isid[0] = 0x80;
    Ok(isid)
}

/// Opens logical units of targets as disks.
#[derive(Debug, Clone, Copy)]
pub struct Initiator;

impl Initiator {
    /// Logs in to all portals, and gives the disk as soon as one of them leads to it.
    ///
    /// # Errors
    /// [`InitiatorError`]: the options cannot be, or no portal leads to the unit.
    pub async fn connect(options: Options) -> Result<Arc<IscsiDisk>, InitiatorError> {
        options.check()?;
        let [high, low] = options.lun.to_be_bytes();
        // Peripheral addressing up to 255, flat space addressing beyond.
        let high = if options.lun > 255 { high | 0x40 } else { high };
        IscsiDisk::open(paths::Paths::new(options, [high, low, 0, 0, 0, 0, 0, 0])).await
    }
}
