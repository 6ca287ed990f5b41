//! How the tools ask the daemons: on the same machine one JSON object a line over a unix socket, from afar
//! calls of HTTP.
//!
//! ```text
//!  bulkhead ── Connection::send ──► one line ──► daemon
//!           ◄─ Connection::receive ── one line ──┘
//! ```
//!
//! What the objects are is for `host-api` and `server-api` to say, and which call of HTTP each is
//! ([`Interface`]). This end blocks.

mod calls;

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

pub use calls::{Call, Found, HttpCall, Interface, Method, Role, find};
use serde::{Serialize, de::DeserializeOwned};

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens there, or it is not ours to ask.
    #[error("cannot reach a {peer} at {path}")]
    Connect {
        /// Who was to be there: "file server".
        peer: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("the {peer} hung up")]
    HungUp {
        /// Who.
        peer: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The answer is not what it should be, or longer than it may be.
    #[error("the {peer}'s answer is not understood")]
    Answer {
        /// Whose.
        peer: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The daemon refused or failed.
    #[error("{0}")]
    Refused(String),
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Connection {
    peer: &'static str,
    most: u64,
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Connects to the socket at `path`. `peer` is for messages ("file server"); an answer has at
    /// most `most` bytes.
    ///
    /// # Errors
    /// If nothing listens there or the socket belongs to someone else.
    pub fn connect(peer: &'static str, path: &Path, most: usize) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| ClientError::Connect {
            peer,
            path: path.to_owned(),
            source,
        })?;
        Ok(Self { peer, most: most as u64, stream: BufReader::new(stream) })
    }

    fn hung_up(&self, source: io::Error) -> ClientError {
        ClientError::HungUp { peer: self.peer, source }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// If the connection broke.
    pub fn send(&mut self, request: &impl Serialize) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(request)
            .map_err(|source| ClientError::Answer { peer: self.peer, source })?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(|error| self.hung_up(error))
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// If the connection broke, or the answer is none.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<T, ClientError> {
        let mut line = Vec::new();
        let read = self.stream.by_ref().take(self.most).read_until(b'\n', &mut line);
        if read.map_err(|error| self.hung_up(error))? == 0 {
            return Err(self.hung_up(io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_slice(&line)
            .map_err(|source| ClientError::Answer { peer: self.peer, source })
    }

    /// What has been received and not read, and the stream: for what follows the last answer.
    pub fn into_parts(self) -> (Vec<u8>, UnixStream) {
        (self.stream.buffer().to_vec(), self.stream.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;

    /// A daemon that answers the first request with `answer` and hangs up.
    fn asked(answer: &'static [u8], most: usize) -> Result<u32, ClientError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let daemon = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            assert_eq!(line, "\"who\"\n");
            stream.write_all(answer).unwrap();
        });
        let mut connection = Connection::connect("daemon", &path, most)?;
        connection.send(&"who")?;
        let answer = connection.receive();
        daemon.join().unwrap();
        answer
    }

    #[test]
    fn an_answer_is_one_line() {
        assert_eq!(asked(b"7\n8\n", 100).unwrap(), 7);
    }

    #[test]
    fn no_answer_a_wrong_one_and_too_long_a_one_are_told_apart() {
        assert!(matches!(asked(b"", 100), Err(ClientError::HungUp { .. })));
        assert!(matches!(asked(b"{\n", 100), Err(ClientError::Answer { .. })));
        assert!(matches!(asked(b"[7777777]\n", 4), Err(ClientError::Answer { .. })));
        let error = Connection::connect("daemon", Path::new("/nowhere"), 1).unwrap_err();
        assert_eq!(error.to_string(), "cannot reach a daemon at /nowhere");
    }
}
