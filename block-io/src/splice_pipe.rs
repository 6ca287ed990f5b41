//! A pipe that carries data from a socket to a file without a copy to user space (splice(2)).
//!
//! ```text
//!  socket's pages ──fill──► pipe (references) ──LocalFile::write_piped──► page cache   (the one copy)
//!                             └──pour──► a buffer, when they are wanted here after all
//! ```

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};

/// Room for so much where every page stands alone, as network cards deliver them.
const ROOM: usize = 1 << 20;

/// A pipe and how much is in it.
#[derive(Debug)]
pub struct SplicePipe {
    out: OwnedFd,
    into: OwnedFd,
    held: usize,
}

impl SplicePipe {
    /// An empty pipe.
    ///
    /// # Errors
    /// What pipe(2) says: too many open files.
    pub fn new() -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A smaller one, as users with many pipes get (`pipe-user-pages-soft`), works as well.
        let _ = fcntl_setpipe_size(&into, ROOM);
        Ok(Self { out, into, held: 0 })
    }

    /// Bytes that are in the pipe.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes in what `from` has, at most `most` bytes, and says how many; 0 is its end.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is nothing yet, else what splice(2) says.
    pub fn fill(&mut self, from: impl AsFd, most: usize) -> io::Result<usize> {
        let got = splice(from, None, &self.into, None, most, SpliceFlags::NONBLOCK)?;
        self.held += got;
        Ok(got)
    }

    /// Appends all that is in it to `buf`.
    ///
    /// # Errors
    /// What read(2) says of a pipe.
    pub fn pour(&mut self, buf: &mut Vec<u8>) -> io::Result<()> {
        let from = buf.len();
        buf.resize(from + self.held, 0);
        let mut at = from;
        while self.held > 0 {
            match rustix::io::read(&self.out, &mut buf[at..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => {
                    at += got;
                    self.held -= got;
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    buf.truncate(at);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Moves up to `len` bytes to a file at `offset`, as many of what is left in one call as `piece`
    /// says of an offset and a length; says how many went.
    ///
    /// # Errors
    /// What the file system says; nothing went then.
    pub(crate) fn drain(
        &mut self,
        to: impl AsFd,
        offset: u64,
        len: usize,
        piece: impl Fn(u64, usize) -> usize,
    ) -> io::Result<usize> {
        let mut at = offset;
        let mut done = 0;
        let len = len.min(self.held);
        while done < len {
            let part = piece(at, len - done);
            match splice(&self.out, None, &to, Some(&mut at), part, SpliceFlags::empty()) {
                Ok(0) => break,
                Ok(moved) => {
                    done += moved;
                    self.held -= moved;
                }
                Err(Errno::INTR) => {}
                // The error comes again with the next call.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Seek, Write},
        os::unix::net::UnixStream,
    };

    use super::*;

    fn filled(data: &[u8]) -> SplicePipe {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(data).unwrap();
        let mut pipe = SplicePipe::new().unwrap();
        while pipe.held() < data.len() {
            assert!(pipe.fill(&far, data.len()).unwrap() > 0);
        }
        pipe
    }

    #[test]
    fn what_goes_in_comes_out_in_order_by_either_end() {
        let data: Vec<u8> = (0..100_000u32).map(|at| ((at * 7) >> 3) as u8).collect();
        let mut pipe = filled(&data);
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(pipe.drain(&file, 500, 40_000, |_, len| len.min(7_000)).unwrap(), 40_000);
        assert_eq!(pipe.held(), 60_000);
        let mut rest = b"head".to_vec();
        pipe.pour(&mut rest).unwrap();
        assert_eq!((pipe.held(), &rest[..4]), (0, &b"head"[..]));
        assert!(rest[4..] == data[40_000..]);
        assert_eq!(pipe.drain(&file, 0, 10, |_, len| len).unwrap(), 0, "nothing is left");
        let mut content = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut content).unwrap();
        assert!(content[..500].iter().all(|byte| *byte == 0) && content[500..] == data[..40_000]);
    }

    #[test]
    fn a_file_that_refuses_loses_nothing() {
        let mut pipe = filled(b"precious");
        let refuses = std::fs::File::open("/proc/self/exe").unwrap();
        pipe.drain(&refuses, 0, 8, |_, len| len).unwrap_err();
        let mut back = Vec::new();
        pipe.pour(&mut back).unwrap();
        assert_eq!(back, b"precious");
    }

    #[test]
    fn nothing_yet_and_the_end_are_told_apart() {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let mut pipe = SplicePipe::new().unwrap();
        assert_eq!(pipe.fill(&far, 10).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(near);
        assert_eq!(pipe.fill(&far, 10).unwrap(), 0);
    }
}
