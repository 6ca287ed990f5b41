//! The exchange for fuzz targets of other crates (feature `testing`): one connection without a socket.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use volume::work::Turn;

use super::{Exchange, Frame};
use crate::Server;

/// A client's connection to a server in the same process.
pub struct Wireless(Exchange);

impl Wireless {
    /// A new connection.
    ///
    /// # Panics
    /// Never: the address is one.
    pub fn new(server: Arc<Server>) -> Self {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        Self(Exchange::new(server, address, address))
    }

    /// Gives a message to the server: the frames of its answers, or `None` when the connection is
    /// dropped. What waits for storage is waited for, what waits for other clients is not.
    pub async fn send(&mut self, message: &mut [u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let mut turn = Turn::endless();
        let mut waits = VecDeque::new();
        if let Frame::Waits(more) =
            self.0.take(message, 0, &mut out, &mut turn).done().await.ok()?
        {
            waits.extend(more);
        }
        while let Some(wait) = waits.pop_front() {
            let storage = self.0.waits_for_storage();
            let limit = if storage { Duration::from_secs(10) } else { Duration::ZERO };
            if let Ok(done) = tokio::time::timeout(limit, wait).await {
                let done = self.0.complete(done, &mut out, &mut turn).done().await.ok()?;
                waits.extend(done.waits());
            }
        }
        Some(out)
    }
}
