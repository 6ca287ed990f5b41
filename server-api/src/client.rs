//! A blocking client of the admin socket.

use std::path::Path;

use control_socket::{ClientError, Connection};

use crate::{Event, MAX_LINE, Reply, Request};

/// A connection to a file server.
#[derive(Debug)]
pub struct Client(Connection);

impl Client {
    /// Connects to the admin socket at `path`.
    ///
    /// # Errors
    /// If nothing listens there or the socket belongs to someone else.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Connection::connect("file server", path, MAX_LINE).map(Self)
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// What the server says, or that the connection broke.
    pub fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.0.send(request)?;
        match self.0.receive()? {
            Event::Done { reply } => Ok(reply),
            Event::Failed { message } => Err(ClientError::Refused(message)),
        }
    }
}
