//! Has clients notice at once that the node is lost that had an address before.
//!
//! ```text
//!  we: ACK out of window, from the address that has come here ─► client: "I am at this number" (ACK)
//!  we: the kernel knows no such connection: RST with that number ─► client: connection reset
//! ```
//!
//! Nobody has to know the numbers of a lost connection (RFC 9293 3.10.7.4: a segment that is not
//! acceptable is answered by an ACK; 3.10.7.1 and 3.10.7.2: an ACK to no connection by a RST). To a
//! connection that lives, and to none at all, the segment does nothing.

use std::{
    io,
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
};

use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, bind, ipproto, sendto, socket_with,
};

use super::peers::Ends;

/// Protocol number of TCP.
const TCP: u8 = 6;
const ACK: u8 = 0x10;
/// A window is told as if there were room.
const WINDOW: u16 = 1024;

/// The sum of RFC 1071 over bytes, added to `sum`.
fn sum(bytes: &[u8], sum: u32) -> u32 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    bytes.chunks(2).map(word).fold(sum, u32::wrapping_add)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A segment from us to a client that its connection does not expect: sequence and acknowledgment
/// number 0, no data (RFC 9293 3.1).
fn segment((peer, local): Ends) -> Vec<u8> {
    let mut out = Vec::with_capacity(20);
    out.extend(local.port().to_be_bytes());
    out.extend(peer.port().to_be_bytes());
    out.extend([0; 8]);
    out.extend([5 << 4, ACK]);
    out.extend(WINDOW.to_be_bytes());
    out.extend([0; 4]);
    // The pseudo-header has the same sum in IPv4 and IPv6 (RFC 8200 8.1).
    let ends = sum(&octets(peer.ip()), sum(&octets(local.ip()), 0));
    let mut all = sum(&out, ends + u32::from(TCP) + 20);
    while all > 0xffff {
        all = (all & 0xffff) + (all >> 16);
    }
    let checksum = !(all as u16);
    out[16..18].copy_from_slice(&checksum.to_be_bytes());
    out
}

/// Sends the segment to one client. The address must be here.
///
/// # Errors
/// What the system says: without CAP_NET_RAW it refuses.
fn one(ends: Ends) -> io::Result<()> {
    let (peer, local) = ends;
    let protocol = Some(ipproto::TCP);
    let raw = |family| socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol);
    let message = segment(ends);
    match (peer, local) {
        (SocketAddr::V4(peer), SocketAddr::V4(local)) => {
            let socket = raw(AddressFamily::INET)?;
            bind(&socket, &SocketAddrV4::new(*local.ip(), 0))?;
            sendto(&socket, &message, SendFlags::DONTWAIT, &SocketAddrV4::new(*peer.ip(), 0))?;
        }
        (SocketAddr::V6(peer), SocketAddr::V6(local)) => {
            let socket = raw(AddressFamily::INET6)?;
            bind(&socket, &SocketAddrV6::new(*local.ip(), 0, 0, local.scope_id()))?;
            let to = SocketAddrV6::new(*peer.ip(), 0, 0, peer.scope_id());
            sendto(&socket, &message, SendFlags::DONTWAIT, &to)?;
        }
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    Ok(())
}

/// Tells clients that their connections are gone; says in the log how many could not be told.
pub(super) fn tickle(all: &[Ends]) {
    let failed: Vec<_> = all.iter().filter_map(|ends| one(*ends).err()).collect();
    if let Some(error) = failed.first() {
        let count = failed.len();
        tracing::warn!(%error, count, "clients of lost connections were not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_segment_has_its_ports_its_flag_and_a_sum_that_comes_to_nothing() {
        for (peer, local) in [
            (at("192.0.2.7:40000"), at("192.0.2.50:445")),
            (at("[2001:db8::7]:65535"), at("[2001:db8::50]:445")),
        ] {
            let out = segment((peer, local));
            assert_eq!(out.len(), 20);
            assert_eq!(out[..2], 445u16.to_be_bytes());
            assert_eq!(out[2..4], peer.port().to_be_bytes());
            assert_eq!(out[12..14], [0x50, 0x10]);
            // Whoever receives it adds all of it up, as RFC 1071 says.
            let ends = sum(&octets(peer.ip()), sum(&octets(local.ip()), 0));
            let mut all = sum(&out, ends + 6 + 20);
            while all > 0xffff {
                all = (all & 0xffff) + (all >> 16);
            }
            assert_eq!(all, 0xffff);
        }
    }
}
