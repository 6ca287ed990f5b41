//! A VM host: the one on this machine by its control socket, or one elsewhere by calls of HTTP.

use std::path::Path;

use anyhow::bail;
use host_api::{MoveProgress, Reply, Request, VmHost};

use crate::remote;

/// A VM host that can be asked.
#[derive(Debug)]
pub enum Client {
    /// The one on this machine.
    Here(host_api::Client),
    /// One elsewhere.
    There(http_api::client::Client),
}

impl Client {
    /// The host that the command line names, else the one whose control socket is at `path`.
    ///
    /// # Errors
    /// If nothing listens there, or what the command line says cannot be used.
    pub fn connect(path: &Path) -> anyhow::Result<Self> {
        Ok(match remote::server()? {
            Some(host) => Self::There(host),
            None => Self::Here(host_api::Client::connect(path)?),
        })
    }

    /// Sends a request and waits for its final answer; progress on the way goes to `progress`, from a host
    /// on this machine.
    ///
    /// # Errors
    /// What the host says, or that it cannot be asked.
    pub fn call_with(
        &mut self,
        request: &Request,
        progress: impl FnMut(MoveProgress),
    ) -> anyhow::Result<Reply> {
        Ok(match self {
            Self::Here(host) => host.call_with(request, progress)?,
            Self::There(host) => host.call::<VmHost>(request)?,
        })
    }

    /// Sends a request and waits for its final answer.
    ///
    /// # Errors
    /// As [`Client::call_with`].
    pub fn call(&mut self, request: &Request) -> anyhow::Result<Reply> {
        self.call_with(request, |_| {})
    }

    /// The connection of a request that lasts as long as its connection.
    ///
    /// # Errors
    /// If the host is elsewhere.
    pub fn here(self) -> anyhow::Result<host_api::Client> {
        match self {
            Self::Here(host) => Ok(host),
            Self::There(_) => {
                bail!("that can be asked for on the VM host itself only, without --host")
            }
        }
    }
}
