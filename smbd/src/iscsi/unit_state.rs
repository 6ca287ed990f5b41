//! What of logical units outlives the process: persistent reservations (APTPL, SPC-4 5.13.2.3) and
//! sanitize operations (SBC-3 4.11), in a state store of their own beside that of the file server.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use scsi::{Kept, StoreFuture, UnitStore};
use state_store::{Batch, LocalStore, Opened, Store};

/// Its file in the state folder.
const FILE: &str = "reservations";
/// What stands behind a unit's identity in the key of its sanitize operation.
const SANITIZE: u8 = b's';

/// What is kept of each logical unit.
pub(super) struct UnitState {
    store: Arc<dyn Store>,
    kept: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
}

impl UnitState {
    /// Opens the store in the state folder. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// If it cannot be opened or is damaged; the text names the file.
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        LocalStore::open(state_dir, FILE).map(Self::on).map_err(io::Error::other)
    }

    /// Keeps it in a store that is open.
    pub(super) fn on(opened: Opened) -> Self {
        let kept = opened.records.into_iter().collect();
        Self { store: opened.store, kept: Mutex::new(kept) }
    }
}

fn key(unit: [u8; 16], kept: Kept) -> Vec<u8> {
    let mut key = unit.to_vec();
    if kept == Kept::Sanitize {
        key.push(SANITIZE);
    }
    key
}

impl UnitStore for UnitState {
    fn save<'a>(&'a self, unit: [u8; 16], kept: Kept, state: &'a [u8]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let key = key(unit, kept);
            let batch = match state {
                [] => Batch::new().delete(key.clone()),
                state => Batch::new().put(key.clone(), state.to_vec()),
            };
            self.store.commit(batch).await.map_err(io::Error::other)?;
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            match state {
                [] => kept.remove(&key),
                state => kept.insert(key, state.to_vec()),
            };
            Ok(())
        })
    }

    fn load(&self, unit: [u8; 16], kept: Kept) -> StoreFuture<'_, Option<Vec<u8>>> {
        let all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.get(&key(unit, kept)).cloned();
        Box::pin(async move { Ok(found) })
    }
}
