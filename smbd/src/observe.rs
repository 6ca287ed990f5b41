//! Looks at the server every ten seconds: for [`crate::why`], and for [`crate::history`].

use std::{path::Path, sync::Arc};

use smb_server::Server;

use crate::{
    history::{History, Look},
    iscsi::Iscsi,
    why::{EVERY, Watch, machine::Counters},
};

/// What looks at the server.
pub struct Observer {
    server: Arc<Server>,
    iscsi: Arc<Iscsi>,
    /// Says why something is slow.
    pub watch: Watch,
    /// What was, if the state folder takes it.
    pub history: Option<History>,
}

fn look(server: &Server, iscsi: &Iscsi) -> Look {
    let mut look = Look {
        smb: server.meters.summary(),
        sessions: (server.sessions.count() + iscsi.sessions().len()) as u64,
        opens: server.open_files.open_count() as u64,
        used: Counters::now().used,
        ..Look::default()
    };
    for (_, unit, _) in iscsi.times() {
        let usage = unit.usage;
        let counts = [usage.reads, usage.writes, usage.others];
        look.commands.iter_mut().zip(counts).for_each(|(all, one)| *all += one);
        look.bytes[0] += usage.bytes_written;
        look.bytes[1] += usage.bytes_read;
        look.failed += usage.failed;
    }
    look
}

impl Observer {
    /// Begins. On a thread that may wait, inside a tokio runtime.
    pub fn new(server: Arc<Server>, iscsi: Arc<Iscsi>, state_dir: &Path) -> Self {
        let history = History::open(state_dir, &look(&server, &iscsi));
        let history = history
            .inspect_err(|error| tracing::warn!(%error, "there is no history of figures"))
            .ok();
        let watch = Watch::new(server.clone(), iscsi.clone());
        Self { server, iscsi, watch, history }
    }

    /// Looks as long as it is polled.
    pub async fn run(self: Arc<Self>) {
        let mut turn = tokio::time::interval(EVERY);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first is at once.
        turn.tick().await;
        loop {
            turn.tick().await;
            let observer = self.clone();
            let looked = tokio::task::spawn_blocking(move || {
                observer.watch.look();
                if let Some(history) = &observer.history {
                    history.note(&look(&observer.server, &observer.iscsi));
                }
            });
            if let Err(error) = looked.await {
                tracing::error!(%error, "the server could not be looked at");
            }
        }
    }

    /// Writes down what the history does not have yet. On a thread that may wait.
    pub fn end(&self) {
        if let Some(history) = &self.history {
            history.close(&look(&self.server, &self.iscsi));
        }
    }
}
