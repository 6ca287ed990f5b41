//! The state store at the beginning and the end of a server: opens that outlived the last one are
//! made again before the first client is served (`volume::recover`), and those of clients who are
//! away are handed over to the next.

use std::{io, time::Duration};

use block_io::Engine;
use state_store::{LocalStore, Opened};
use volume::open::{
    record::OpenRecord,
    recover::{Before, Gone, NotWhole, ShareNow},
};

use crate::{Server, server::Current};

/// Name of the store in the state folder.
const STORE: &str = "opens";

/// The share of an open, if its user may still use it.
fn share_of(current: &Current, record: &OpenRecord) -> Result<ShareNow, Gone> {
    let share = current.config.shares.get(&record.share).ok_or(Gone::Share)?;
    let volume = current.volumes.get(&record.share).cloned().ok_or(Gone::Share)?;
    if !share.users.contains(&record.user) {
        return Err(Gone::User);
    }
    Ok(ShareNow {
        volume,
        ceiling: share.maximal_access(),
        continuously_available: share.continuously_available,
    })
}

impl Server {
    /// Opens the state store, if a share needs it or one was there, and makes the opens again that
    /// it holds. To be done before any client is served, inside a tokio runtime; nothing happens
    /// the second time.
    ///
    /// # Errors
    /// If the store cannot be opened or is damaged.
    pub fn recover(&self) -> io::Result<()> {
        let current = self.current();
        let config = &current.config;
        let needed = config.shares.values().any(|share| share.continuously_available);
        let stable = &self.open_files.persistent_opens;
        if stable.is_there() || !needed && !config.state_dir.join(STORE).exists() {
            return Ok(());
        }
        let opened = LocalStore::open(&config.state_dir, STORE).map_err(io::Error::other)?;
        self.recover_from(opened).map_err(io::Error::other)
    }

    /// Makes the opens again that a store holds, and remembers others there.
    ///
    /// # Errors
    /// None on one machine: what is not there is gone.
    pub fn recover_from(&self, opened: Opened) -> Result<(), NotWhole> {
        self.recover_opens(opened, Before::Here)
    }

    /// Makes the opens again that a store holds which goes from node to node, and remembers others there.
    /// The file system may hold the locks of the node before for as long as `locks`.
    ///
    /// # Errors
    /// With `whole`, if files of opens are not there. The process is to end: another node may see them.
    pub fn take_over(&self, opened: Opened, locks: Duration, whole: bool) -> Result<(), NotWhole> {
        self.recover_opens(opened, Before::Elsewhere { locks, whole })
    }

    fn recover_opens(&self, opened: Opened, before: Before) -> Result<(), NotWhole> {
        let current = self.current();
        let engine = Engine::from(current.config.io_engine);
        // No number that is given from now on is that of an open in the store.
        self.ids.belong_to(opened.store.owner());
        self.open_files.recover(opened, engine, &|record| share_of(&current, record), before)
    }

    /// Ends in an orderly way, when nobody is served any more: what clients who are away were
    /// promised is handed over to the server that comes next.
    pub async fn hand_off(&self) {
        let state_dir = self.current().config.state_dir.clone();
        let open = || {
            LocalStore::open(&state_dir, STORE)
                .inspect_err(|error| tracing::warn!(%error, "durable opens are lost"))
                .ok()
        };
        self.open_files.hand_off(open).await;
    }
}
