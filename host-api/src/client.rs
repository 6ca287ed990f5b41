//! A blocking client of the control socket.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use crate::{Event, MAX_LINE, MoveProgress, Reply, Request};

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No host listens there.
    #[error("cannot reach a VM host at {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("the VM host hung up")]
    Io(#[from] io::Error),
    /// The host said something that is not an event.
    #[error("the VM host's answer is not understood")]
    Answer(#[source] serde_json::Error),
    /// The host refused or failed.
    #[error("{0}")]
    Refused(String),
}

/// A connection to a VM host.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the control socket at `path`.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request and waits for its final answer; progress on the way goes to `progress`.
    pub fn call_with(
        &mut self,
        request: &Request,
        mut progress: impl FnMut(MoveProgress),
    ) -> Result<Reply, ClientError> {
        let mut line = serde_json::to_vec(request).map_err(ClientError::Answer)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        loop {
            let mut line = Vec::new();
            let limit = MAX_LINE as u64;
            let got = self.stream.by_ref().take(limit).read_until(b'\n', &mut line)?;
            if got == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            match serde_json::from_slice(&line).map_err(ClientError::Answer)? {
                Event::Progress { progress: step } => progress(step),
                Event::Done { reply } => return Ok(reply),
                Event::Failed { message } => return Err(ClientError::Refused(message)),
            }
        }
    }

    /// Sends a request and waits for its final answer.
    pub fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.call_with(request, |_| {})
    }

    /// After [`Reply::ConsoleAttached`]: what of the console has been read already, and the
    /// connection.
    pub fn into_console(self) -> (Vec<u8>, UnixStream) {
        (self.stream.buffer().to_vec(), self.stream.into_inner())
    }
}
