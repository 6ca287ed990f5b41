//! A blocking client of the control socket.

use std::{os::unix::net::UnixStream, path::Path};

use control_socket::{ClientError, Connection};

use crate::{Event, MAX_LINE, MoveProgress, Reply, Request};

/// A connection to a VM host.
#[derive(Debug)]
pub struct Client(Connection);

impl Client {
    /// Connects to the control socket at `path`.
    ///
    /// # Errors
    /// If nothing listens there or the socket belongs to someone else.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Connection::connect("VM host", path, MAX_LINE).map(Self)
    }

    /// Sends a request and waits for its final answer; progress on the way goes to `progress`.
    ///
    /// # Errors
    /// What the host says, or that the connection broke.
    pub fn call_with(
        &mut self,
        request: &Request,
        mut progress: impl FnMut(MoveProgress),
    ) -> Result<Reply, ClientError> {
        self.0.send(request)?;
        loop {
            match self.0.receive()? {
                Event::Progress { progress: step } => progress(step),
                Event::Done { reply } => return Ok(reply),
                Event::Failed { message } => return Err(ClientError::Refused(message)),
            }
        }
    }

    /// Sends a request and waits for its final answer.
    ///
    /// # Errors
    /// As [`Client::call_with`].
    pub fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.call_with(request, |_| {})
    }

    /// After [`Reply::ConsoleAttached`]: what of the console has been read already, and the
    /// connection.
    pub fn into_console(self) -> (Vec<u8>, UnixStream) {
        self.0.into_parts()
    }
}
