//! What an administrator says of a target: names, who may come, limits.

use std::net::{IpAddr, SocketAddr};

use crate::{chap::ChapSettings, negotiate::Wishes, text::Pair};

/// The longest iSCSI name, in bytes (RFC 7143 4.2.7.1).
const NAME_LIMIT: usize = 223;

/// Why a configuration cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A name is not one of iSCSI.
    #[error("{0:?} is no iSCSI name: it begins with iqn., eui. or naa., in lower case")]
    Name(String),
    /// A value is outside of what RFC 7143 permits.
    #[error("{key} is {value}, which is outside of {range}")]
    Range {
        /// The key.
        key: &'static str,
        /// Its value.
        value: u64,
        /// What it may be.
        range: &'static str,
    },
    /// A network has more bits than its addresses.
    #[error("{0}/{1} is no network")]
    Network(IpAddr, u8),
}

/// Addresses at which the same sessions can be reached (RFC 7143 4.1.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortalGroup {
    /// The target portal group tag, and the relative target port identifier.
    pub tag: u16,
    /// Where it listens, as initiators see it.
    pub addresses: Vec<SocketAddr>,
}

/// An initiator that may log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// Its name; `None` for any.
    pub name: Option<String>,
    /// The networks that it may come from: an address and how many of its bits count. None for any.
    pub networks: Vec<(IpAddr, u8)>,
}

impl Admission {
    fn admits(&self, name: &str, from: IpAddr) -> bool {
        let named = self.name.as_deref().is_none_or(|it| it == name);
        named
            && (self.networks.is_empty()
                || self.networks.iter().any(|(net, bits)| within(from, *net, *bits)))
    }
}

fn within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let number = |address: IpAddr| match address.to_canonical() {
        IpAddr::V4(four) => (u128::from(four.to_bits()) << 96, 32),
        IpAddr::V6(six) => (six.to_bits(), 128),
    };
    let ((a, width), (b, other)) = (number(address), number(network));
    let bits = u32::from(bits).min(width);
    width == other && (bits == 0 || (a ^ b) >> (128 - bits) == 0)
}

/// What an initiator can make the target keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Sessions of the target.
    pub sessions: usize,
    /// Commands of a session that wait or run (MaxCmdSN).
    pub window: u32,
    /// Immediate commands of a session beside them.
    pub immediate: u32,
    /// Data-out of one command, in bytes.
    pub command_data: u32,
    /// Data-out that a session's commands wait for or hold, in bytes.
    pub session_data: usize,
    /// Answers that a session may want again (ErrorRecoveryLevel above 0), in bytes.
    pub kept_answers: usize,
    /// Milliseconds of silence after which the initiator is asked for a sign of life, and after
    /// which, without one, its connection ends.
    pub silence: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 256,
            window: 128,
            immediate: 32,
            command_data: 64 << 20,
            session_data: 64 << 20,
            kept_answers: 16 << 20,
            silence: 60_000,
        }
    }
}

/// Where a target went (RFC 7143 11.13.5, class 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirection {
    /// For good, or for now.
    pub permanent: bool,
    /// TargetAddress, as `address:port` and perhaps a tag.
    pub address: String,
}

/// A target as an administrator wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetConfig {
    /// Its iSCSI name.
    pub name: String,
    /// TargetAlias.
    pub alias: Option<String>,
    /// Its portal groups; none for all listeners of the service.
    pub portals: Vec<PortalGroup>,
    /// Who may log in; empty for nobody.
    pub admitted: Vec<Admission>,
    /// How initiators prove who they are; `None` if they need not.
    pub chap: Option<ChapSettings>,
    /// What it offers.
    pub wishes: Wishes,
    /// What initiators can make it keep.
    pub limits: Limits,
    /// Initiators are sent elsewhere.
    pub redirection: Option<Redirection>,
    /// Whether one initiator may reset the whole target.
    pub resets: bool,
}

impl TargetConfig {
    /// A target of that name, open to everybody.
    #[must_use]
    pub fn open(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            alias: None,
            portals: Vec::new(),
            admitted: vec![Admission { name: None, networks: Vec::new() }],
            chap: None,
            wishes: Wishes::default(),
            limits: Limits::default(),
            redirection: None,
            resets: true,
        }
    }

    /// Whether all of it can be.
    ///
    /// # Errors
    /// [`ConfigError`] says what cannot.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_name(&self.name)?;
        for admission in &self.admitted {
            admission.name.as_deref().map_or(Ok(()), check_name)?;
            for (network, bits) in &admission.networks {
                if u32::from(*bits) > if network.is_ipv4() { 32 } else { 128 } {
                    return Err(ConfigError::Network(*network, *bits));
                }
            }
        }
        let range = |key, value: u64, ok: bool, range| {
            if ok { Ok(()) } else { Err(ConfigError::Range { key, value, range }) }
        };
        let length = |key, value: u32| {
            range(key, value.into(), (512..=0xff_ffff).contains(&value), "512 to 16777215 bytes")
        };
        let w = &self.wishes;
        length("MaxRecvDataSegmentLength", w.max_recv_data)?;
        length("MaxBurstLength", w.max_burst)?;
        length("FirstBurstLength", w.first_burst)?;
        let first = u64::from(w.first_burst);
        range("FirstBurstLength", first, w.first_burst <= w.max_burst, "MaxBurstLength")?;
        let times = w.time2wait.max(w.time2retain);
        range(
            "DefaultTime2Wait or DefaultTime2Retain",
            times.into(),
            times <= 3600,
            "0 to 3600 s",
        )?;
        let level = w.error_recovery_level;
        range("ErrorRecoveryLevel", level.into(), level <= 2, "0 to 2")?;
        range("MaxConnections", w.max_connections.into(), w.max_connections > 0, "1 to 65535")?;
        let r2ts = w.max_outstanding_r2t;
        range("MaxOutstandingR2T", r2ts.into(), r2ts > 0, "1 to 65535")?;
        let window = self.limits.window;
        range("the window of commands", window.into(), (1..=4096).contains(&window), "1 to 4096")
    }

    /// Whether that initiator may log in from there.
    #[must_use]
    pub fn admits(&self, initiator: &str, from: IpAddr) -> bool {
        self.admitted.iter().any(|admission| admission.admits(initiator, from))
    }

    /// Whether it can be reached by that portal group.
    #[must_use]
    pub fn is_at(&self, tag: u16) -> bool {
        self.portals.is_empty() || self.portals.iter().any(|group| group.tag == tag)
    }

    /// What SendTargets says of it (RFC 7143 appendix C); `here` is the address that was asked.
    #[must_use]
    pub fn announcement(&self, here: SocketAddr, tag: u16) -> Vec<Pair> {
        let mut out = vec![("TargetName".to_owned(), self.name.clone())];
        let mut say = |address: SocketAddr, tag: u16| {
            // Initiators know no addresses of IPv4 in the form of IPv6.
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            out.push(("TargetAddress".to_owned(), format!("{address},{tag}")));
        };
        if self.portals.is_empty() {
            say(here, tag);
        }
        for group in &self.portals {
            for address in &group.addresses {
                say(*address, group.tag);
            }
        }
        out
    }
}

/// Whether a text is an iSCSI name in its normal form (RFC 7143 4.2.7).
///
/// # Errors
/// [`ConfigError::Name`].
pub fn check_name(name: &str) -> Result<(), ConfigError> {
    let wrong = || ConfigError::Name(name.to_owned());
    let known = ["iqn.", "eui.", "naa."].iter().any(|kind| name.starts_with(kind));
    let sound = |c: char| !c.is_ascii_uppercase() && !c.is_control() && !c.is_whitespace();
    if known && name.len() <= NAME_LIMIT && name.len() > 4 && name.chars().all(sound) {
        Ok(())
    } else {
        Err(wrong())
    }
}

/// What initiators meet that ask which targets there are.
#[derive(Debug, Clone, Default)]
pub struct Discovery {
    /// How they prove who they are; `None` if they need not.
    pub chap: Option<ChapSettings>,
    /// What is offered to them.
    pub wishes: Wishes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initiators_are_admitted_by_name_and_network() {
        let mut config = TargetConfig::open("iqn.2024-01.example:disk");
        let from = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(config.admits("iqn.any", from("10.0.0.1")));
        config.admitted = vec![
            Admission {
                name: Some("iqn.a".to_owned()),
                networks: vec![(from("10.1.0.0"), 16), (from("fd00::"), 8)],
            },
            Admission { name: Some("iqn.b".to_owned()), networks: Vec::new() },
        ];
        assert!(config.admits("iqn.a", from("10.1.255.1")));
        assert!(config.admits("iqn.a", from("::ffff:10.1.255.1")));
        assert!(config.admits("iqn.a", from("fd12::1")));
        assert!(!config.admits("iqn.a", from("10.2.0.1")));
        assert!(config.admits("iqn.b", from("10.2.0.1")));
        assert!(!config.admits("iqn.c", from("10.1.0.1")));
        config.admitted.clear();
        assert!(!config.admits("iqn.a", from("10.1.255.1")));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let sound = TargetConfig::open("iqn.2024-01.example:disk");
        assert_eq!(sound.check(), Ok(()));
        for name in ["disk", "IQN.2024-01.example", "iqn.a b", "iqn."] {
            assert!(TargetConfig::open(name).check().is_err(), "{name}");
        }
        let mut config = sound.clone();
        config.wishes.first_burst = config.wishes.max_burst + 1;
        assert!(matches!(config.check(), Err(ConfigError::Range { .. })));
        let mut config = sound.clone();
        config.limits.window = 0;
        assert!(config.check().is_err());
        let mut config = sound;
        config.admitted[0].networks.push(("10.0.0.0".parse().unwrap(), 33));
        assert!(matches!(config.check(), Err(ConfigError::Network(..))));
    }

    #[test]
    fn an_announcement_names_every_portal_with_its_group() {
        let mut config = TargetConfig::open("iqn.2024-01.example:disk");
        let here = "[::ffff:127.0.0.1]:3260".parse().unwrap();
        assert_eq!(config.announcement(here, 3)[1].1, "127.0.0.1:3260,3");
        config.portals = vec![
            PortalGroup { tag: 1, addresses: vec!["10.0.0.1:3260".parse().unwrap()] },
            PortalGroup { tag: 2, addresses: vec!["[fd00::1]:860".parse().unwrap()] },
        ];
        let said = config.announcement(here, 1);
        let values: Vec<&str> = said.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["iqn.2024-01.example:disk", "10.0.0.1:3260,1", "[fd00::1]:860,2"]);
        assert!(config.is_at(2) && !config.is_at(3));
    }
}
