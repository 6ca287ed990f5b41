//! Loopback ports for servers that cannot be handed a bound socket.

use std::{net::SocketAddr, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with,
    sockopt::set_socket_reuseaddr,
};

/// A TCP port that is kept for one server as long as this lives.
///
/// A socket is bound to it that does not listen. Linux lets another socket bind the same port
/// explicitly (both have `SO_REUSEADDR`), which the server does that was told its number, and gives
/// the port to nobody who asks for any. So the server can also end and come back to it.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _bound: OwnedFd,
}

impl Port {
    /// Takes one that nobody has.
    ///
    /// # Panics
    /// If the system has no port left.
    pub fn reserve() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let take = || {
            let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
            let bound = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
            set_socket_reuseaddr(&bound, true)?;
            bind(&bound, &any)?;
            let address = SocketAddr::try_from(getsockname(&bound)?)?;
            Ok::<_, rustix::io::Errno>(Self { number: address.port(), _bound: bound })
        };
        take().expect("loopback has free ports")
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// It on loopback.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.number))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Its server gets it, again and again, and nobody gets it by chance.
    #[test]
    fn a_port_is_its_servers_alone() {
        let port = Port::reserve();
        for _ in 0..3 {
            let server = TcpListener::bind(port.address()).unwrap();
            TcpStream::connect(port.address()).unwrap();
            server.accept().unwrap();
        }
        let others: Vec<_> = (0..500).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let reserved: Vec<_> = (0..100).map(|_| Port::reserve()).collect();
        assert!(others.iter().all(|other| other.local_addr().unwrap() != port.address()));
        assert!(reserved.iter().all(|other| other.number() != port.number()));
    }
}
