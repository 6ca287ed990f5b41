//! Opening logical units of iSCSI targets. What keeps writers of one apart is in [`crate::lun_owner`].

use std::{sync::Arc, time::Duration};

use iscsi::initiator::{
    DiscoveredTarget, DiscoveryOptions, Initiator, IscsiDisk, Options, discover as ask, random_isid,
};

use crate::{ChapLogin, Claim, Error, IscsiUrl, Result, Servers, lun_owner};

/// The name of this initiator.
const NAME: &str = "BULKHEAD_INITIATOR_NAME";
/// Where the system's own initiator has its name.
const SYSTEM_NAME: &str = "/etc/iscsi/initiatorname.iscsi";

/// The name of this initiator: of the environment, the system's, or one made of the host's name.
pub fn initiator_name() -> String {
    let of_file = || {
        let text = std::fs::read_to_string(SYSTEM_NAME).ok()?;
        text.lines().find_map(|line| line.trim().strip_prefix("InitiatorName=").map(str::to_owned))
    };
    let of_host = || {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String = host
            .trim()
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
            .take(63)
            .collect();
        format!("iqn.2024-01.bulkhead.initiator:{}", host.to_ascii_lowercase())
    };
    let sound = |name: &String| iscsi::config::check_name(name).is_ok();
    let named = std::env::var(NAME).ok();
    named.or_else(|| of_file().filter(sound)).unwrap_or_else(of_host)
}

/// Opens the unit that an address names, for an opener that is no application: it is not written if
/// another has reserved it.
///
/// # Errors
/// [`Error`]: it names none, there is no login, the target refuses, another has it, or it is asked to
/// be made.
pub(crate) async fn open(
    url: &IscsiUrl,
    claim: Claim,
    servers: &dyn Servers,
) -> Result<Arc<IscsiDisk>> {
    let disk = connect(url, claim, servers, &initiator_name()).await?;
    if matches!(claim, Claim::Write | Claim::Replace) {
        lun_owner::unreserved(url, &disk).await?;
    }
    Ok(disk)
}

/// Connects to the unit that an address names, as an initiator of this name.
///
/// # Errors
/// As for [`open`], but that nobody is asked whether another has it.
pub(crate) async fn connect(
    url: &IscsiUrl,
    claim: Claim,
    servers: &dyn Servers,
    name: &str,
) -> Result<Arc<IscsiDisk>> {
    let lun = url.lun.ok_or(Error::NoLun)?;
    if claim == Claim::CreateNew {
        return Err(Error::LunExists);
    }
    let login = servers.chap_login(url)?;
    let read_only = matches!(claim, Claim::Look | Claim::Still);
    let new = Options::new(url.portals.clone(), &url.target, lun, name);
    let times = servers.iscsi_times();
    let disk = Initiator::connect(Options {
        chap: login.ours,
        mutual: login.theirs,
        read_only,
        reconnect_time: times.reconnect,
        keep_alive: times.keep_alive,
        ..new?
    })
    .await?;
    if !read_only && block_io::Disk::is_read_only(&*disk) {
        return Err(block_io::Error::ReadOnly.into());
    }
    Ok(disk)
}

/// The targets that the portal at `iscsi://[user@]host[:port]`, or the name server at
/// `isns://host[:port]`, knows, with their portals; the environment has the login at a portal.
///
/// # Errors
/// [`Error`]: the address is none, there is no login, the portal or server cannot be reached or
/// refuses.
pub async fn discover(address: &str) -> Result<Vec<DiscoveredTarget>> {
    if let Some(server) = address.strip_prefix("isns://") {
        let has_port = server.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let port = iscsi::isns::PORT;
        let server = if has_port { server.to_owned() } else { format!("{server}:{port}") };
        return Ok(iscsi::isns::discover(&server, &initiator_name()).await?);
    }
    let (user, portals, rest) = IscsiUrl::authority(address)?;
    if !rest.is_empty() {
        return Err(crate::IscsiUrlError::Portal(format!("{}/{rest}", portals.join(","))).into());
    }
    let login = ChapLogin::from_env(user.as_deref()).map_err(|error| Error::Login(error.into()))?;
    let mut targets: Vec<DiscoveredTarget> = Vec::new();
    for portal in portals {
        let options = DiscoveryOptions {
            portal,
            name: initiator_name(),
            isid: random_isid()?,
            chap: login.ours.clone(),
            mutual: login.theirs.clone(),
        };
        for found in ask(&options).await? {
            match targets.iter_mut().find(|known| known.name == found.name) {
                Some(known) => {
                    let news = found.portals.into_iter().filter(|it| !known.portals.contains(it));
                    let news: Vec<_> = news.collect();
                    known.portals.extend(news);
                }
                None => targets.push(found),
            }
        }
    }
    Ok(targets)
}

/// How patient an initiator is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IscsiTimes {
    /// How long a target that is away is waited for before requests fail.
    pub reconnect: Duration,
    /// Within how long a silent target is noticed.
    pub keep_alive: Duration,
}

impl Default for IscsiTimes {
    fn default() -> Self {
        Self { reconnect: Duration::from_secs(60), keep_alive: Duration::from_secs(5) }
    }
}
