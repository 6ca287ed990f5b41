//! Direct TCP (MS-SMB2 2.1): each message behind its length.

use std::{io, net::SocketAddr, os::fd::AsRawFd, time::Duration};

use block_io::{LowWater, SplicePipe};
use bytes::BufMut;
use rustix::net::sockopt;
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::TcpStream,
};

use super::{ByteSource, Input, Network, Placement, Transport};
use crate::dropped::Dropped;

/// A socket with what has come from it.
#[derive(Debug)]
pub struct Tcp {
    stream: TcpStream,
    peer: SocketAddr,
    input: Input,
    low_water: LowWater,
}

impl Tcp {
    /// The connection of `peer`.
    pub fn new(stream: TcpStream, peer: SocketAddr) -> Self {
        Self { stream, peer, input: Input::new(true), low_water: LowWater::default() }
    }
}

impl ByteSource for TcpStream {
    fn read_now(&mut self, into: &mut Vec<u8>, most: usize) -> io::Result<usize> {
        self.try_read_buf(&mut into.limit(most))
    }

    fn splice_now(&mut self, pipe: &mut SplicePipe, most: usize) -> io::Result<usize> {
        self.try_io(Interest::READABLE, || pipe.fill(&*self, most))
    }
}

impl Transport for Tcp {
    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn local(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    fn held(&self) -> usize {
        self.input.held()
    }

    fn receive_now(&mut self) -> Result<Option<usize>, Dropped> {
        self.input.receive_now(&mut self.stream)
    }

    async fn readable(&mut self) -> Result<(), Dropped> {
        self.low_water.wait_for(&self.stream, self.input.wanted());
        Ok(self.stream.readable().await?)
    }

    fn next_message(
        &mut self,
        placement: &mut impl Placement,
    ) -> Result<Option<(&mut [u8], usize)>, Dropped> {
        self.input.next_message(placement)
    }

    fn rest(&mut self, little: usize) {
        self.input.rest(little);
    }

    async fn send(&mut self, messages: &[u8]) -> io::Result<()> {
        self.stream.write_all(messages).await
    }

    #[expect(unsafe_code, reason = "SIOCOUTQ has no safe wrapper")]
    fn unacknowledged(&self) -> u64 {
        let mut bytes: libc::c_int = 0;
        let socket = self.stream.as_raw_fd();
        // SAFETY: the request (the same number as TIOCOUTQ) writes one int, which lives that long.
        let failed = unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut bytes) } < 0;
        // A socket that says nothing has not delivered anything.
        if failed { u64::MAX } else { u64::try_from(bytes).unwrap_or(0) }
    }

    #[expect(unsafe_code, reason = "TCP_INFO has no safe wrapper")]
    fn network(&self) -> Option<Network> {
        // SAFETY: all zeros are a value of a structure of integers.
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        let mut len = size_of_val(&info) as libc::socklen_t;
        let socket = self.stream.as_raw_fd();
        let into = (&raw mut info).cast();
        // SAFETY: at most `len` bytes are written to `info`, which lives that long.
        let failed = unsafe {
            libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut len)
        } < 0;
        // An older kernel fills less; the rest is zero.
        (!failed).then(|| Network {
            rtt: u64::from(info.tcpi_rtt),
            retransmitted: u64::from(info.tcpi_total_retrans),
            sent: u64::from(info.tcpi_segs_out),
            rate: info.tcpi_delivery_rate,
        })
    }

    fn abort(&mut self) {
        // Nobody waits for what is still to be sent.
        let _ = sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
    }
}
