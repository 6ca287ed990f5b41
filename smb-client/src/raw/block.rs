//! Data that are written again and again, sent from the pages that hold them (sendfile(2)).
//!
//! A copy for each send costs a load generator about as much as what it asks for costs the server,
//! and on a machine whose memory is lent by a host, where each new page is slow at its first use,
//! many times that.

use std::{
    fs::File,
    io::{self, Write},
    net::TcpStream,
};

use rustix::{
    fs::{CWD, MemfdFlags, Mode, OFlags, memfd_create, openat, sendfile},
    net::{SendFlags, send},
};

/// The data of writes that are all alike.
#[derive(Debug)]
pub struct Block {
    data: Vec<u8>,
    pages: File,
}

impl Block {
    /// Keeps `data`.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn new(data: Vec<u8>) -> io::Result<Self> {
        // Files of many file systems lie in large pieces of memory, of which sending counts each
        // once; memory without a file does not.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let mut pages = openat(CWD, std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR)
            .or_else(|_| memfd_create("block", MemfdFlags::CLOEXEC))
            .map(File::from)?;
        pages.write_all(&data)?;
        Ok(Self { data, pages })
    }

    /// The data of a READ's answer.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Sends them behind `head`.
    pub(super) fn send_behind(&self, head: &[u8], stream: &mut TcpStream) -> io::Result<()> {
        // One segment has both; what is not taken at once follows as usual.
        let taken = send(&*stream, head, SendFlags::MORE | SendFlags::NOSIGNAL)?;
        stream.write_all(&head[taken..])?;
        self.send(stream)
    }

    fn send(&self, stream: &mut TcpStream) -> io::Result<()> {
        let mut at = 0;
        while let left @ 1.. = self.data.len() - at as usize {
            match sendfile(&*stream, &self.pages, Some(&mut at), left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, net::TcpListener};

    use super::*;

    #[test]
    fn what_is_sent_is_what_was_kept() {
        let data: Vec<u8> = (0..3_000_001u32).map(|at| (at.wrapping_mul(at) >> 5) as u8).collect();
        let block = Block::new(data.clone()).unwrap();
        assert!(block.data() == data);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        let come = std::thread::spawn(move || {
            let mut come = Vec::new();
            receiver.read_to_end(&mut come).unwrap();
            come
        });
        block.send_behind(b"first ", &mut stream).unwrap();
        block.send_behind(b"second ", &mut stream).unwrap();
        drop(stream);
        assert!(come.join().unwrap() == [b"first ", &data[..], b"second ", &data].concat());
    }
}
