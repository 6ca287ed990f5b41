//! Tells a network that an address has moved here: ARP announcements (RFC 5227 3) and unsolicited
//! neighbour advertisements (RFC 4861 7.2.6).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6},
    num::NonZeroU32,
    os::fd::{AsRawFd, OwnedFd},
    process::Stdio,
};

use rustix::net::{
    AddressFamily, Protocol, SendFlags, SocketFlags, SocketType, bind, ipproto, sendto,
    socket_with, sockopt,
};
use serde::Deserialize;
use tokio::process::Command;

const ARP: u16 = 0x0806;
const ETHERNET: u16 = 1;
const IPV4: u16 = 0x0800;
/// Every node of the link.
const EVERYBODY: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// An ARP message that says who has an address: operation 1 asks, 2 answers; both are needed, since
/// hosts differ in which of them they take.
fn arp(mac: [u8; 6], address: Ipv4Addr, operation: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(28);
    out.extend(ETHERNET.to_be_bytes());
    out.extend(IPV4.to_be_bytes());
    out.extend([6, 4]);
    out.extend(operation.to_be_bytes());
    out.extend(mac);
    out.extend(address.octets());
    out.extend(if operation == 1 { [0; 6] } else { [0xff; 6] });
    out.extend(address.octets());
    out
}

/// A neighbour advertisement that overrides what others know. The kernel fills in its checksum.
fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    const TYPE: u8 = 136;
    const OVERRIDE: u8 = 0x20;
    const TARGET_LINK_LAYER: u8 = 2;
    let mut out = vec![TYPE, 0, 0, 0, OVERRIDE, 0, 0, 0];
    out.extend(address.octets());
    out.extend([TARGET_LINK_LAYER, 1]);
    out.extend(mac);
    out
}

/// An interface, as ip(8) shows it.
#[derive(Debug, Deserialize)]
struct Shown {
    ifindex: u32,
    #[serde(default)]
    address: String,
}

/// The number of an interface and its hardware address, if it has one. `/sys` would tell of the network
/// that it was mounted in.
async fn interface(name: &str) -> io::Result<(u32, Option<[u8; 6]>)> {
    let mut command = Command::new("ip");
    command.args(["-json", "link", "show", "dev", name]).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::new(io::ErrorKind::NotFound, said));
    }
    let mut all: Vec<Shown> = serde_json::from_slice(&output.stdout)?;
    let shown = all.pop().ok_or(io::ErrorKind::NotFound)?;
    let bytes = shown.address.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Result<Vec<u8>, _> = bytes.collect();
    let mac = bytes.ok().and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    Ok((shown.ifindex, mac.filter(|mac| *mac != [0; 6])))
}

#[expect(unsafe_code, reason = "no crate here sends to addresses of the link layer")]
fn send_to_link(socket: &OwnedFd, index: u32, message: &[u8]) -> io::Result<()> {
    // SAFETY: all zeros is a value of this structure of numbers.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_protocol = ARP.to_be();
    to.sll_ifindex = index.cast_signed();
    to.sll_halen = 6;
    to.sll_addr[..6].fill(0xff);
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: message and address live through the call, with the lengths that are said.
    let sent = unsafe {
        let (to, message_ptr) = ((&raw const to).cast(), message.as_ptr().cast());
        libc::sendto(socket.as_raw_fd(), message_ptr, message.len(), 0, to, len)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Tells the network of an interface that an address is here. An interface without a hardware address
/// has nobody to tell.
///
/// # Errors
/// What the system says.
pub async fn announce(name: &str, address: IpAddr) -> io::Result<()> {
    let (index, mac) = interface(name).await?;
    let Some(mac) = mac else { return Ok(()) };
    match address {
        IpAddr::V4(address) => {
            let protocol = NonZeroU32::new(u32::from(ARP.to_be())).map(Protocol::from_raw);
            let (family, kind) = (AddressFamily::PACKET, SocketType::DGRAM);
            let socket = socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?;
            for operation in [1, 2] {
                send_to_link(&socket, index, &arp(mac, address, operation))?;
            }
        }
        IpAddr::V6(address) => {
            let (family, kind) = (AddressFamily::INET6, SocketType::RAW);
            let protocol = Some(ipproto::ICMPV6);
            let socket = socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?;
            sockopt::set_ipv6_multicast_hops(&socket, 255)?;
            bind(&socket, &SocketAddrV6::new(address, 0, 0, index))?;
            let to = SocketAddrV6::new(EVERYBODY, 0, 0, index);
            sendto(&socket, &advertisement(mac, address), SendFlags::empty(), &to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_are_as_the_standards_draw_them() {
        let mac = [2, 0, 0, 0, 0, 9];
        let asked = arp(mac, Ipv4Addr::new(10, 0, 0, 5), 1);
        let wanted =
            [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10, 0, 0, 5, 0, 0, 0, 0, 0, 0, 10, 0, 0, 5];
        assert_eq!(asked, wanted);
        let told = advertisement(mac, "fe80::1".parse().unwrap());
        assert_eq!((told.len(), told[0], told[4]), (32, 136, 0x20));
        assert_eq!(told[24..], [2, 1, 2, 0, 0, 0, 0, 9]);
    }

    #[tokio::test]
    async fn loopback_has_nobody_to_tell() {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        announce("lo", loopback).await.unwrap();
        assert!(announce("no-such-one", loopback).await.is_err());
    }
}
