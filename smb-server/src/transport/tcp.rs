//! Direct TCP (MS-SMB2 2.1): each message behind its length.

use std::{io, net::SocketAddr, os::fd::AsRawFd, time::Duration};

use block_io::{LowWater, SplicePipe};
use bytes::BufMut;
use rustix::net::sockopt;
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::TcpStream,
};

use super::{ByteSource, Input, Placement, Transport};
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

    fn abort(&mut self) {
        // Nobody waits for what is still to be sent.
        let _ = sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
    }
}
