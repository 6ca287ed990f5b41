//! The network of the real client: pipes whose other ends are in the hands of the simulation.

use std::{
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex},
};

use smb_client::{Dialled, Network};

use super::super::store::own;
use crate::transport::memory::{ClientEnd, Pipe};

/// What the clients dial.
#[derive(Debug, Default)]
pub(super) struct Net {
    /// Connections that the server has not met yet.
    pub(super) arrivals: Vec<Arc<Mutex<Pipe>>>,
    /// Whether anybody listens.
    pub(super) listens: bool,
    /// What a system keeps of what a client sends, at most.
    pub(super) room: usize,
}

/// The way of a client to the server.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) net: Arc<Mutex<Net>>,
}

/// Where the server is, and where the clients are.
pub(super) const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
pub(super) const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

impl Network for Way {
    fn connect<'a>(
        &'a self,
        _: &'a str,
        _: u16,
    ) -> Pin<Box<dyn Future<Output = io::Result<Dialled>> + Send + 'a>> {
        let mut net = own(&self.net);
        let dialled = if net.listens {
            let pipe = Pipe::new(net.room);
            net.arrivals.push(pipe.clone());
            let stream = Box::new(ClientEnd::new(pipe));
            Ok(Dialled { stream, local: CLIENT, server: SERVER, direct: None })
        } else {
            Err(io::ErrorKind::ConnectionRefused.into())
        };
        drop(net);
        Box::pin(std::future::ready(dialled))
    }
}
