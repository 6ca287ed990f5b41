//! The addresses at which clients find this server, for those that use several at once
//! (FSCTL_QUERY_NETWORK_INTERFACE_INFO, MS-SMB2 3.3.5.15.11).

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use smb_protocol::fscc::fsctl::{InterfaceCapability, NetworkInterface};

/// Speed of an interface that does not say, as virtual ones do: bits per second.
const UNKNOWN_SPEED: u64 = 10_000_000_000;
/// Most addresses that are told.
const MOST: usize = 64;

/// Addresses that a client of `dialled` may use as well: those that `listen` covers at the same
/// port. Who came over the loopback stays there.
pub fn list(listen: &[SocketAddr], dialled: SocketAddr) -> Vec<NetworkInterface> {
    let local = dialled.ip().to_canonical();
    if !local.is_loopback() {
        let serves = |ip: IpAddr| {
            let covers = |at: &SocketAddr| {
                let every = at.ip().is_unspecified() && (at.is_ipv6() || ip.is_ipv4());
                at.port() == dialled.port() && (every || at.ip() == ip)
            };
            usable(ip) && listen.iter().any(covers)
        };
        let mut found: Vec<_> = if_addrs::get_if_addrs()
            .unwrap_or_default()
            .into_iter()
            .filter(|interface| serves(interface.ip()))
            .map(|interface| described(&interface.name, interface.index, interface.ip()))
            .collect();
        found.truncate(MOST);
        if !found.is_empty() {
            return found;
        }
    }
    vec![NetworkInterface {
        index: 1,
        capability: InterfaceCapability::NONE,
        link_speed: UNKNOWN_SPEED,
        address: local,
    }]
}

/// Whether a client elsewhere could reach an address without knowing more than the address.
fn usable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_unspecified() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unspecified() && !v6.is_unicast_link_local(),
    }
}

fn described(name: &str, index: Option<u32>, address: IpAddr) -> NetworkInterface {
    let folder = std::path::Path::new("/sys/class/net").join(name);
    let speed = fs::read_to_string(folder.join("speed")).ok();
    let megabits = speed.and_then(|text| text.trim().parse::<u64>().ok());
    let queues = fs::read_dir(folder.join("queues")).into_iter().flatten().flatten();
    let receives = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("rx-");
    // Clients open several connections to an interface that spreads them over queues.
    let capability = match queues.filter(receives).count() {
        0 | 1 => InterfaceCapability::NONE,
        _ => InterfaceCapability::RSS,
    };
    NetworkInterface {
        index: index.unwrap_or(0),
        capability,
        link_speed: megabits.map_or(UNKNOWN_SPEED, |m| m.saturating_mul(1_000_000)),
        address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(listen: &str, dialled: &str) -> Vec<IpAddr> {
        let found = list(&[listen.parse().unwrap()], dialled.parse().unwrap());
        found.into_iter().map(|interface| interface.address).collect()
    }

    #[test]
    fn who_came_over_the_loopback_stays_there() {
        assert_eq!(addresses("0.0.0.0:445", "127.0.0.1:445"), [IpAddr::from([127, 0, 0, 1])]);
        let mapped = addresses("[::]:445", "[::ffff:127.0.0.1]:445");
        assert_eq!(mapped, [IpAddr::from([127, 0, 0, 1])]);
    }

    #[test]
    fn only_what_is_listened_on_is_told() {
        let fixed = "192.0.2.77:445";
        assert_eq!(addresses(fixed, fixed), ["192.0.2.77".parse::<IpAddr>().unwrap()]);
        let all = addresses("0.0.0.0:445", fixed);
        assert!(all.iter().all(|ip| ip.is_ipv4() && !ip.is_loopback()));
    }
}
