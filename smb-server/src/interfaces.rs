//! The addresses at which clients find this server, for those that use several at once
//! (FSCTL_QUERY_NETWORK_INTERFACE_INFO, MS-SMB2 3.3.5.15.11).

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use smb_protocol::fscc::fsctl::{InterfaceCapability, NetworkInterface};

use crate::{
    config::{Interface, Interfaces},
    transport::Carrier,
};

/// Speed of an interface that does not say, as virtual ones do: bits per second.
const UNKNOWN_SPEED: u64 = 10_000_000_000;
/// Most addresses that are told.
const MOST: usize = 64;

/// Where the server is reached.
#[derive(Debug, Clone, Copy)]
pub struct Reached<'a> {
    /// The addresses of TCP.
    pub listen: &'a [SocketAddr],
    /// The addresses of SMB Direct.
    pub rdma_listen: &'a [SocketAddr],
    /// What the configuration says of interfaces.
    pub told: &'a Interfaces,
}

/// Whether a listener is reached at an address.
fn covers(at: &SocketAddr, ip: IpAddr) -> bool {
    at.ip() == ip || at.ip().is_unspecified() && (at.is_ipv6() || ip.is_ipv4())
}

/// Addresses that a client of `dialled` may use as well: those that the server listens on at the same
/// port, or at any for a client of SMB Direct, of interfaces that work at the moment; those where it
/// listens for SMB Direct are told to carry it. Who came over the loopback stays there.
pub fn list(server: Reached<'_>, dialled: SocketAddr, carrier: Carrier) -> Vec<NetworkInterface> {
    let local = dialled.ip().to_canonical();
    let direct = |ip: IpAddr| server.rdma_listen.iter().any(|at| covers(at, ip));
    if !local.is_loopback() {
        let same_port = |at: &SocketAddr| carrier == Carrier::Rdma || at.port() == dialled.port();
        let serves = |ip: IpAddr| {
            usable(ip) && server.listen.iter().any(|at| same_port(at) && covers(at, ip))
        };
        let system = Path::new("/sys/class/net");
        let mut found: Vec<_> = if_addrs::get_if_addrs()
            .unwrap_or_default()
            .into_iter()
            // One without a number must not be told (MS-SMB2 3.3.5.15.11).
            .filter_map(|i| Some((i.index.filter(|n| *n != 0)?, i.ip(), i.name)))
            .filter(|(_, ip, _)| serves(*ip))
            .filter_map(|(index, ip, name)| {
                let told = server.told.get(&name);
                described(system, &name, (index, ip), direct(ip), told)
            })
            .collect();
        found.truncate(MOST);
        if !found.is_empty() {
            return found;
        }
    }
    let capability = match direct(local) {
        true => InterfaceCapability::RDMA,
        false => InterfaceCapability::NONE,
    };
    vec![NetworkInterface { index: 1, capability, link_speed: UNKNOWN_SPEED, address: local }]
}

/// The addresses at which a listener is reached from elsewhere: those of all interfaces where it
/// listens at all of them.
#[must_use]
pub fn reached_at(listen: &[SocketAddr]) -> Vec<SocketAddr> {
    let all = if_addrs::get_if_addrs().unwrap_or_default();
    let every = |at: SocketAddr| {
        let covered = move |ip: &IpAddr| usable(*ip) && (at.is_ipv6() || ip.is_ipv4());
        all.iter().map(|i| i.ip()).filter(covered).map(move |ip| SocketAddr::new(ip, at.port()))
    };
    let mut found = Vec::new();
    for at in listen {
        match at.ip().is_unspecified() {
            true => found.extend(every(*at)),
            false => found.push(*at),
        }
    }
    found.sort_unstable();
    found.dedup();
    found.truncate(MOST);
    found
}

/// Whether a client elsewhere could reach an address without knowing more than the address.
fn usable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_unspecified() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unspecified() && !v6.is_unicast_link_local(),
    }
}

/// An address as clients are told of it; `None` if its interface is not offered or has no link. `direct`
/// says whether the server listens there for SMB Direct.
fn described(
    system: &Path,
    name: &str,
    (index, address): (u32, IpAddr),
    direct: bool,
    told: Option<&Interface>,
) -> Option<NetworkInterface> {
    let folder = system.join(name);
    let read = |file: &str| fs::read_to_string(folder.join(file)).ok();
    if told.is_some_and(|told| !told.offered) || read("carrier").is_some_and(|c| c.trim() == "0") {
        return None;
    }
    let megabits = read("speed").and_then(|text| text.trim().parse::<u64>().ok());
    let queues = fs::read_dir(folder.join("queues")).into_iter().flatten().flatten();
    let receives = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("rx-");
    // Clients open several connections to an interface that spreads them over queues.
    let spreads = queues.filter(receives).count() > 1;
    let mut capability = InterfaceCapability::NONE;
    if told.and_then(|told| told.rss).unwrap_or(spreads) {
        capability |= InterfaceCapability::RSS;
    }
    // That a card could do it does not mean that somebody serves it.
    if told.and_then(|told| told.rdma).unwrap_or(direct) {
        capability |= InterfaceCapability::RDMA;
    }
    let speed = megabits.map_or(UNKNOWN_SPEED, |m| m.saturating_mul(1_000_000));
    let link_speed = told.and_then(|told| told.speed).unwrap_or(speed);
    Some(NetworkInterface { index, capability, link_speed, address })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(listen: &str, direct: &[&str], dialled: &str, by: Carrier) -> Vec<NetworkInterface> {
        let listen = &[listen.parse().unwrap()];
        let direct: Vec<SocketAddr> = direct.iter().map(|at| at.parse().unwrap()).collect();
        let reached = Reached { listen, rdma_listen: &direct, told: &Interfaces::new() };
        list(reached, dialled.parse().unwrap(), by)
    }

    fn addresses(listen: &str, dialled: &str) -> Vec<IpAddr> {
        let found = listed(listen, &[], dialled, Carrier::Tcp);
        found.into_iter().map(|interface| interface.address).collect()
    }

    #[test]
    fn where_smb_direct_is_listened_for_is_told_whoever_asks() {
        let rdma = InterfaceCapability::RDMA;
        let loopback = |direct: &[&str], dialled: &str, by| {
            let found = listed("127.0.0.1:445", direct, dialled, by);
            assert_eq!(found.len(), 1);
            found[0].capability
        };
        let tcp = |direct: &[&str]| loopback(direct, "127.0.0.1:445", Carrier::Tcp);
        assert_eq!(tcp(&[]), InterfaceCapability::NONE);
        assert_eq!(tcp(&["192.0.2.1:5445"]), InterfaceCapability::NONE);
        assert_eq!((tcp(&["0.0.0.0:5445"]), tcp(&["[::]:5445"])), (rdma, rdma));
        assert_eq!(loopback(&["127.0.0.1:5445"], "127.0.0.1:5445", Carrier::Rdma), rdma);
        // Who came by SMB Direct, at its port, is told of the same addresses as the others.
        let of = |dialled: &str, by| listed("0.0.0.0:445", &["0.0.0.0:5445"], dialled, by);
        let direct = of("192.0.2.1:5445", Carrier::Rdma);
        let others = of("192.0.2.1:445", Carrier::Tcp);
        assert_eq!(direct.len(), others.len());
    }

    #[test]
    fn who_came_over_the_loopback_stays_there() {
        assert_eq!(addresses("0.0.0.0:445", "127.0.0.1:445"), [IpAddr::from([127, 0, 0, 1])]);
        let mapped = addresses("[::]:445", "[::ffff:127.0.0.1]:445");
        assert_eq!(mapped, [IpAddr::from([127, 0, 0, 1])]);
    }

    #[test]
    fn a_listener_at_one_address_is_reached_there_and_one_at_all_at_each() {
        let one: SocketAddr = "127.0.0.1:3260".parse().unwrap();
        assert_eq!(reached_at(&[one, one]), [one]);
        let all = reached_at(&["0.0.0.0:3260".parse().unwrap()]);
        let from_elsewhere = |at: &SocketAddr| usable(at.ip()) && at.is_ipv4() && at.port() == 3260;
        assert!(all.iter().all(from_elsewhere), "{all:?}");
    }

    #[test]
    fn only_what_is_listened_on_is_told() {
        let fixed = "192.0.2.77:445";
        assert_eq!(addresses(fixed, fixed), ["192.0.2.77".parse::<IpAddr>().unwrap()]);
        let all = addresses("0.0.0.0:445", fixed);
        assert!(all.iter().all(|ip| ip.is_ipv4() && !ip.is_loopback()));
    }

    /// An interface as the system shows it.
    fn system(carrier: &str, speed: &str, queues: usize) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let interface = folder.path().join("eth7");
        fs::create_dir_all(&interface).unwrap();
        fs::write(interface.join("carrier"), carrier).unwrap();
        fs::write(interface.join("speed"), speed).unwrap();
        for queue in 0..queues {
            fs::create_dir_all(interface.join(format!("queues/rx-{queue}"))).unwrap();
            fs::create_dir_all(interface.join(format!("queues/tx-{queue}"))).unwrap();
        }
        folder
    }

    fn told(system: &tempfile::TempDir, told: Option<Interface>) -> Option<(u64, u32)> {
        let address = "192.0.2.1".parse().unwrap();
        let told = described(system.path(), "eth7", (7, address), false, told.as_ref())?;
        assert_eq!((told.index, told.address), (7, address));
        Some((told.link_speed, told.capability.0))
    }

    #[test]
    fn the_system_says_what_an_interface_can_and_the_configuration_knows_better() {
        assert_eq!(told(&system("1\n", "25000\n", 8), None), Some((25_000_000_000, 1)));
        assert_eq!(told(&system("1\n", "-1\n", 1), None), Some((UNKNOWN_SPEED, 0)));
        assert_eq!(told(&system("0\n", "1000\n", 1), None), None, "no link");
        let plain = Interface { speed: None, rss: None, rdma: None, offered: true };
        assert_eq!(told(&system("1\n", "1000\n", 2), Some(plain)), Some((1_000_000_000, 1)));
        let other = Interface { speed: Some(7), rss: Some(false), rdma: Some(true), offered: true };
        assert_eq!(told(&system("1\n", "1000\n", 2), Some(other)), Some((7, 2)));
        let hidden = Interface { offered: false, ..plain };
        assert_eq!(told(&system("1\n", "1000\n", 2), Some(hidden)), None);
    }
}
