//! A blocking client of the admin socket.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use crate::{Event, MAX_LINE, Reply, Request};

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No server listens there, or it is not ours to ask.
    #[error("cannot reach a file server at {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("the file server hung up")]
    Io(#[from] io::Error),
    /// The server said something that is not an event.
    #[error("the file server's answer is not understood")]
    Answer(#[source] serde_json::Error),
    /// The server refused or failed.
    #[error("{0}")]
    Refused(String),
}

/// A connection to a file server.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the admin socket at `path`.
    ///
    /// # Errors
    /// If nothing listens there or the socket belongs to someone else.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// What the server says, or that the connection broke.
    pub fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let mut line = serde_json::to_vec(request).map_err(ClientError::Answer)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        let mut line = Vec::new();
        if self.stream.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match serde_json::from_slice(&line).map_err(ClientError::Answer)? {
            Event::Done { reply } => Ok(reply),
            Event::Failed { message } => Err(ClientError::Refused(message)),
        }
    }
}
