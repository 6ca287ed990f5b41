//! How messages travel between a daemon and a worker: their length, then JSON; files go along with the
//! length.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};

/// Longest message in bytes: what a console keeps, as JSON.
pub const LONGEST: usize = 4 << 20;
/// Most files with one message.
pub const FILES: usize = 32;

/// Sends a message with files.
///
/// # Errors
/// What the socket says, or that it is too long.
pub fn send<T: Serialize>(
    mut socket: &UnixStream,
    message: &T,
    files: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    if body.len() > LONGEST || files.len() > FILES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message that is too long"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let length = (body.len() as u32).to_le_bytes();
    let flags = SendFlags::NOSIGNAL;
    let sent = sendmsg(socket, &[IoSlice::new(&length)], &mut ancillary, flags)?;
    socket.write_all(&length[sent..])?;
    socket.write_all(&body)
}

/// Receives a message with its files; none at the end.
///
/// # Errors
/// What the socket says, or that it is no such message.
pub fn receive<T: DeserializeOwned>(
    mut socket: &UnixStream,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut length)];
    let got = recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let mut files = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    if got == 0 {
        return Ok(None);
    }
    socket.read_exact(&mut length[got..])?;
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long"));
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, files)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn messages_and_files_come_as_they_were_sent() {
        let (one, other) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send(&one, &vec![1, 2, 3], &[file.as_fd(), file.as_fd()]).unwrap();
        let (numbers, files) = receive::<Vec<u8>>(&other).unwrap().unwrap();
        assert_eq!((numbers, files.len()), (vec![1, 2, 3], 2));
        (&one).write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(receive::<Vec<u8>>(&other).is_err(), "it is longer than any");
        drop(one);
        assert!(receive::<Vec<u8>>(&other).unwrap().is_none());
    }
}
