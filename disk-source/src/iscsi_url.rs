//! `iscsi://[user@]host[:port][,host[:port]…]/target/LUN`: a logical unit of an iSCSI target.

use std::{fmt, str::FromStr};

use iscsi::{config::check_name, initiator::PORT};

/// Most portals of one address.
const PORTALS: usize = 16;

/// Address of a logical unit, by one or several portals.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IscsiUrl {
    /// The name under which this initiator proves who it is, if the address has one.
    pub user: Option<String>,
    /// `host:port` of each portal; IPv6 in brackets.
    pub portals: Vec<String>,
    /// The target's iSCSI name.
    pub target: String,
    /// The number of the logical unit; none names the target itself.
    pub lun: Option<u16>,
}

/// Why a text is no address. Texts with a secret in them are not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IscsiUrlError {
    /// The scheme is missing or another.
    #[error("an address of a logical unit starts with iscsi://")]
    Scheme,
    /// A secret stands in it.
    #[error(
        "a secret must not stand in an address; use BULKHEAD_CHAP_SECRET or a credentials file \
         (BULKHEAD_CHAP_CREDENTIALS)"
    )]
    Secret,
    /// A portal is none.
    #[error("{0:?} is no host:port")]
    Portal(String),
    /// The target's name is none.
    #[error("{0:?} is no name of a target: they begin with iqn., eui. or naa., in lower case")]
    Target(String),
    /// The number of the unit is none.
    #[error("{0:?} is no number of a logical unit: they go from 0 to 16383")]
    Lun(String),
}

/// `host:port` of a text that may leave the port out.
///
/// # Errors
/// [`IscsiUrlError::Portal`].
pub fn portal(text: &str) -> Result<String, IscsiUrlError> {
    let wrong = || IscsiUrlError::Portal(text.to_owned());
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            let port = match rest {
                "" => None,
                rest => Some(rest.strip_prefix(':').ok_or_else(wrong)?),
            };
            (format!("[{host}]"), port)
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (text.to_owned(), None),
        },
    };
    let sound = |c: char| c.is_ascii_alphanumeric() || "-._[]:".contains(c);
    if host.is_empty() || !host.chars().all(sound) {
        return Err(wrong());
    }
    let port = port.map_or(Some(PORT), |port| port.parse().ok().filter(|port| *port > 0));
    Ok(format!("{}:{}", host.to_ascii_lowercase(), port.ok_or_else(wrong)?))
}

impl IscsiUrl {
    /// Whether a text is meant to be an address of a logical unit.
    #[must_use]
    pub fn looks_like(text: &str) -> bool {
        text.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("iscsi://"))
    }

    /// The user and the portals of an address, and what follows them.
    ///
    /// # Errors
    /// [`IscsiUrlError`].
    pub fn authority(text: &str) -> Result<(Option<String>, Vec<String>, &str), IscsiUrlError> {
        if !Self::looks_like(text) {
            return Err(IscsiUrlError::Scheme);
        }
        let (authority, rest) = text[8..].split_once('/').unwrap_or((&text[8..], ""));
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, _)) if user.contains(['%', ':']) => return Err(IscsiUrlError::Secret),
            Some((user, hosts)) => (Some(user.to_owned()).filter(|user| !user.is_empty()), hosts),
            None => (None, authority),
        };
        let portals = hosts.split(',').map(portal).collect::<Result<Vec<_>, _>>()?;
        if portals.len() > PORTALS {
            return Err(IscsiUrlError::Portal(hosts.to_owned()));
        }
        Ok((user, portals, rest))
    }

    /// Whether a unit that `other` names is among what this address names: all its portals, its
    /// target, and its unit if it names one.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.target == other.target
            && other.portals.iter().all(|portal| self.portals.contains(portal))
            && self.lun.is_none_or(|lun| other.lun == Some(lun))
    }
}

impl FromStr for IscsiUrl {
    type Err = IscsiUrlError;

    fn from_str(text: &str) -> Result<Self, IscsiUrlError> {
        let (user, portals, rest) = Self::authority(text)?;
        let (target, lun) = match rest.split_once('/') {
            Some((target, lun)) => (target, Some(lun)),
            None => (rest, None),
        };
        check_name(target).map_err(|_| IscsiUrlError::Target(target.to_owned()))?;
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let lun = text.parse::<u16>().ok().filter(|lun| digits && *lun <= 0x3fff);
            lun.ok_or_else(|| IscsiUrlError::Lun(text.to_owned()))
        };
        let lun = lun.filter(|lun| !lun.is_empty()).map(number).transpose()?;
        Ok(Self { user, portals, target: target.to_owned(), lun })
    }
}

impl fmt::Display for IscsiUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "iscsi://")?;
        if let Some(user) = &self.user {
            write!(out, "{user}@")?;
        }
        write!(out, "{}/{}", self.portals.join(","), self.target)?;
        self.lun.map_or(Ok(()), |lun| write!(out, "/{lun}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "iqn.2024-01.example:disk";

    #[test]
    fn an_address_names_portals_target_and_unit() {
        let url = format!("iSCSI://carol@Store.example,[fd00::1]:860,10.0.0.1/{TARGET}/300");
        let url = url.parse::<IscsiUrl>().unwrap();
        assert_eq!(url.portals, ["store.example:3260", "[fd00::1]:860", "10.0.0.1:3260"]);
        assert_eq!(
            (url.user.as_deref(), &*url.target, url.lun),
            (Some("carol"), TARGET, Some(300))
        );
        assert_eq!(url.to_string().parse::<IscsiUrl>().unwrap(), url);
        let whole = format!("iscsi://10.0.0.1/{TARGET}").parse::<IscsiUrl>().unwrap();
        assert_eq!(whole.lun, None);
        assert!(!whole.covers(&url));
        let one = format!("iscsi://10.0.0.1:3260/{TARGET}/3").parse::<IscsiUrl>().unwrap();
        assert!(whole.covers(&one) && !one.covers(&whole) && one.covers(&one));
    }

    #[test]
    fn what_is_none_is_refused_and_no_secret_is_repeated() {
        let parse = |text: &str| text.parse::<IscsiUrl>().unwrap_err();
        for bad in ["iscsi://u%topsecret@h/iqn.a/0", "iscsi://u:topsecret@h/iqn.a/0"] {
            assert!(!parse(bad).to_string().contains("topsecret"));
        }
        for (bad, right) in [
            ("smb://h/s", IscsiUrlError::Scheme),
            ("iscsi://h:0/iqn.a/0", IscsiUrlError::Portal("h:0".into())),
            ("iscsi:///iqn.a/0", IscsiUrlError::Portal(String::new())),
            ("iscsi://h:x/iqn.a/0", IscsiUrlError::Portal("h:x".into())),
            ("iscsi://[::1/iqn.a/0", IscsiUrlError::Portal("[::1".into())),
            ("iscsi://h/disk/0", IscsiUrlError::Target("disk".into())),
            ("iscsi://h/iqn.a/+1", IscsiUrlError::Lun("+1".into())),
            ("iscsi://h/iqn.a/16384", IscsiUrlError::Lun("16384".into())),
        ] {
            assert_eq!(parse(bad), right, "{bad}");
        }
    }
}
