//! The portable engine: tokio's blocking threads. Buffers move into the thread and back.

use std::{io, os::fd::OwnedFd, sync::Arc};

use super::piece;
use crate::{Error, Result};

/// Runs `call` on a blocking thread.
pub(super) async fn run<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(call)
        .await
        .map_err(|e| Error::io("running on a blocking thread", io::Error::other(e)))
}

/// Fills `buf` from `offset`; fewer bytes only at the end of the file.
pub(super) async fn read(
    fd: Arc<OwnedFd>,
    offset: u64,
    mut buf: Vec<u8>,
) -> Result<(io::Result<usize>, Vec<u8>)> {
    run(move || {
        let mut done = 0;
        while done < buf.len() {
            match rustix::io::pread(&*fd, &mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return (Err(e.into()), buf),
            }
        }
        (Ok(done), buf)
    })
    .await
}

/// Writes all of `buf` at `offset`, at most `most` bytes by one call. Once begun it is carried through,
/// whoever waits for it.
pub(super) async fn write(
    fd: Arc<OwnedFd>,
    offset: u64,
    buf: Vec<u8>,
    most: usize,
) -> Result<io::Result<()>> {
    run(move || {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let part = &buf[done..done + piece(most, at, buf.len() - done)];
            match rustix::io::pwrite(&*fd, part, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    })
    .await
}

/// `fdatasync`.
pub(super) async fn sync(fd: Arc<OwnedFd>) -> Result<io::Result<()>> {
    run(move || rustix::fs::fdatasync(&*fd).map_err(io::Error::from)).await
}
