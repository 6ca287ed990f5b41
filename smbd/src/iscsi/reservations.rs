//! Persistent reservations that outlive the process (APTPL, SPC-4 5.13.2.3), in a state store of
//! their own beside that of the file server.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use scsi::{ReservationStore, StoreFuture};
use state_store::{Batch, LocalStore, Store};

/// Its file in the state folder.
const FILE: &str = "reservations";

/// What is kept of each logical unit.
pub(super) struct Reservations {
    store: Arc<dyn Store>,
    kept: Mutex<HashMap<[u8; 16], Vec<u8>>>,
}

impl Reservations {
    /// Opens the store in the state folder. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// If it cannot be opened or is damaged; the text names the file.
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let opened = LocalStore::open(state_dir, FILE).map_err(io::Error::other)?;
        let unit = |(key, value): (Vec<u8>, Vec<u8>)| Some((key.try_into().ok()?, value));
        let kept = opened.records.into_iter().filter_map(unit).collect();
        Ok(Self { store: opened.store, kept: Mutex::new(kept) })
    }
}

impl ReservationStore for Reservations {
    fn save<'a>(&'a self, unit: [u8; 16], state: &'a [u8]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let batch = match state {
                [] => Batch::new().delete(unit.to_vec()),
                state => Batch::new().put(unit.to_vec(), state.to_vec()),
            };
            self.store.commit(batch).await.map_err(io::Error::other)?;
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            match state {
                [] => kept.remove(&unit),
                state => kept.insert(unit, state.to_vec()),
            };
            Ok(())
        })
    }

    fn load(&self, unit: [u8; 16]) -> StoreFuture<'_, Option<Vec<u8>>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&unit).cloned();
        Box::pin(async move { Ok(kept) })
    }
}
