//! The target that is tried.

use std::{
    cell::Cell,
    net::{SocketAddr, ToSocketAddrs},
};

use disk_source::{ChapLogin, IscsiUrl};
use iscsi::chap::Account;

use super::{
    Outcome, check,
    conn::{Conn, Moves, ten},
    fail,
    login::{Login, Want},
    started::Started,
};

/// InitiatorName of the suite.
pub(super) const ME: &str = "iqn.2024-01.example.conformance:one";
/// Another initiator.
pub(super) const OTHER: &str = "iqn.2024-01.example.conformance:other";

/// A target that wants CHAP.
pub struct ChapTarget {
    /// TargetName.
    pub target: String,
    /// Who may log in.
    pub account: Account,
    /// How the target proves itself, if it does.
    pub mutual: Option<Account>,
}

/// A logical unit of a target, and what is known of it beforehand.
pub struct Subject {
    /// Its portal.
    pub at: SocketAddr,
    /// TargetName.
    pub target: String,
    /// The logical unit.
    pub lun: u16,
    /// How the suite proves itself, if the target wants that.
    pub account: Option<Account>,
    /// Discovery sessions have to prove themselves by the same.
    pub discovery_chap: bool,
    /// A target to try CHAP with.
    pub chap: Option<ChapTarget>,
    /// Its process, if the suite started it.
    pub started: Option<Box<dyn Started>>,
    next: Cell<u16>,
    block: Cell<usize>,
}

/// Why an address cannot be tried.
#[derive(Debug)]
pub struct UrlError(String);

impl std::fmt::Display for UrlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UrlError {}

impl Subject {
    /// A target that is open to everybody.
    pub fn new(at: SocketAddr, target: &str, lun: u16) -> Self {
        Self {
            at,
            target: target.to_owned(),
            lun,
            account: None,
            discovery_chap: false,
            chap: None,
            started: None,
            next: Cell::new(0),
            block: Cell::new(512),
        }
    }

    /// By `iscsi://[user@]host[:port]/target/lun`; secrets come from where the tools take them.
    ///
    /// # Errors
    /// [`UrlError`] says what of the address or of the credentials cannot be.
    pub fn by_url(url: &str) -> Result<Self, UrlError> {
        let wrong = |error: &dyn std::fmt::Display| UrlError(format!("{url}: {error}"));
        let parsed: IscsiUrl = url.parse().map_err(|error| wrong(&error))?;
        let lun = parsed.lun.ok_or_else(|| wrong(&"name a LUN: iscsi://host/target/0"))?;
        let portal = parsed.portals.first().ok_or_else(|| wrong(&"name a portal"))?;
        let found = portal.to_socket_addrs().map_err(|error| wrong(&error))?.next();
        let at = found.ok_or_else(|| wrong(&"the portal has no address"))?;
        let login = ChapLogin::from_env(parsed.user.as_deref()).map_err(|error| wrong(&error))?;
        let chap = login.ours.clone().map(|account| ChapTarget {
            target: parsed.target.clone(),
            account,
            mutual: login.theirs,
        });
        Ok(Self { account: login.ours, chap, ..Self::new(at, &parsed.target, lun) })
    }

    /// Looks at the logical unit; it must be there and have room.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn prepare(&self) -> Outcome {
        let mut conn = self.log_in(&[])?;
        let answer = conn.quiet(&ten(0x25, 0, 0), Moves::In(8))?;
        answer.good()?;
        check(answer.data.len() == 8, "READ CAPACITY gives no eight bytes")?;
        let word =
            |at: usize| u32::from_be_bytes(answer.data[at..at + 4].try_into().unwrap_or_default());
        let (last, block) = (word(0), word(4));
        check(matches!(block, 512 | 4096), format!("blocks of {block} bytes"))?;
        check(
            u64::from(last) * u64::from(block) >= 8 << 20,
            "the logical unit has less than 8 MiB",
        )?;
        self.block.set(block as usize);
        Ok(())
    }

    pub(super) fn block(&self) -> usize {
        self.block.get()
    }

    pub(super) fn lun_bytes(&self) -> [u8; 8] {
        let [high, low] = self.lun.to_be_bytes();
        // Flat space addressing where one byte does not do (SAM-5 4.7.7.3).
        let high = if self.lun > 255 { high | 0x40 } else { high };
        [high, low, 0, 0, 0, 0, 0, 0]
    }

    /// A login to a session of its own.
    pub(super) fn want(&self) -> Want<'_> {
        let n = self.next.get().wrapping_add(1);
        self.next.set(n);
        let [high, low] = n.to_be_bytes();
        Want {
            initiator: ME,
            target: Some(&self.target),
            isid: [0x80, 0x12, 0x34, 0x56, high, low],
            tsih: 0,
            cid: 1,
            cmd_sn: 0x1000,
            keys: Vec::new(),
        }
    }

    pub(super) fn enter<'a>(&'a self, want: Want<'a>) -> Outcome<Conn> {
        match Login::open(self, want)?.finish()? {
            Ok(conn) => Ok(conn),
            Err(status) => fail(format!("the login is refused: {status:04x}")),
        }
    }

    /// A session of its own with these keys.
    pub(super) fn log_in(&self, keys: &[(&str, &str)]) -> Outcome<Conn> {
        self.enter(Want { keys: keys.to_vec(), ..self.want() })
    }

    /// A session whose commands meet no unit attention.
    pub(super) fn session(&self, keys: &[(&str, &str)]) -> Outcome<Conn> {
        let mut conn = self.log_in(keys)?;
        conn.settle()?;
        Ok(conn)
    }

    /// A login at the operational stage.
    pub(super) fn negotiation(&self) -> Outcome<Login<'_>> {
        let mut login = Login::open(self, self.want())?;
        login.authenticate()?;
        Ok(login)
    }
}
