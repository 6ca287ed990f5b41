//! Targets, their sessions, and what administrators see and do of them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use scsi::{Device, Nexus};
use tokio::sync::{Notify, watch};

use crate::{
    config::TargetConfig,
    pdu::outcome,
    session::{Outside, Reach, Session, TaskKey},
    task_sets::TaskSets,
};

/// What is behind a lock holds whatever its last holder did: nothing here is left half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// Names it to [`crate::Service::disconnect`].
    pub id: u64,
    /// The target.
    pub target: String,
    /// InitiatorName.
    pub initiator: String,
    /// InitiatorAlias.
    pub alias: Option<String>,
    /// The initiator's part of its identifier.
    pub isid: [u8; 6],
    /// The target's part.
    pub tsih: u16,
    /// The portal group.
    pub tag: u16,
    /// The initiator's address and the portal's, of each connection.
    pub connections: Vec<(SocketAddr, SocketAddr)>,
    /// Commands that wait or run.
    pub commands: usize,
    /// ErrorRecoveryLevel.
    pub error_recovery_level: u8,
}

/// A connection's driver, as the rest of its session knows it.
pub(crate) struct Driver {
    pub wake: Arc<Notify>,
    pub from: SocketAddr,
    pub to: SocketAddr,
}

/// What tells sessions apart at their login (RFC 7143 6.3.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub initiator: String,
    pub alias: Option<String>,
    pub isid: [u8; 6],
    pub tag: u16,
}

/// A session with its drivers.
pub(crate) struct Live {
    pub id: u64,
    pub tsih: u16,
    pub identity: Identity,
    pub nexus: RwLock<Arc<Nexus>>,
    pub engine: Mutex<Session>,
    pub drivers: Mutex<BTreeMap<u32, Driver>>,
    /// Changes when something ended that others may wait for.
    pub changes: watch::Sender<u64>,
    /// Tasks of it may run because those of others left.
    pub enabled: Arc<Notify>,
    /// Whether all of it is gone.
    pub gone: watch::Sender<bool>,
}

impl Live {
    pub fn nexus(&self) -> Arc<Nexus> {
        self.nexus.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does something to the session, and tells whom it concerns.
    pub fn with<T>(&self, own: Option<u32>, change: impl FnOnce(&mut Session) -> T) -> T {
        let mut touched = Vec::new();
        let (result, news) = {
            let mut engine = lock(&self.engine);
            let result = change(&mut engine);
            engine.take_touched(&mut touched);
            (result, engine.take_news())
        };
        self.tell(&touched, own, news);
        result
    }

    /// Wakes the drivers of `touched` but one's own, and those that wait for news.
    pub fn tell(&self, touched: &[u32], own: Option<u32>, news: bool) {
        if touched.iter().any(|link| Some(*link) != own) {
            let drivers = lock(&self.drivers);
            for link in touched {
                if let Some(driver) = drivers.get(link) {
                    driver.wake.notify_one();
                }
            }
        }
        if news {
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Waits until none of these tasks is at the device.
    async fn ended(&self, keys: &[TaskKey]) {
        let mut changes = self.changes.subscribe();
        while {
            let engine = lock(&self.engine);
            keys.iter().any(|key| engine.has(*key))
        } {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until nothing of the session is left.
    pub async fn wait_gone(&self) {
        // It fails if the sender is gone, which `self` holds.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }
}

/// A target with its device.
pub(crate) struct Target<D> {
    pub config: RwLock<Arc<TargetConfig>>,
    pub device: Arc<D>,
    pub sessions: Mutex<BTreeMap<u16, Arc<Live>>>,
    pub sets: Arc<TaskSets>,
}

impl<D: Device> Target<D> {
    pub fn config(&self) -> Arc<TargetConfig> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn lives(&self) -> Vec<Arc<Live>> {
        lock(&self.sessions).values().cloned().collect()
    }

    pub fn infos(&self) -> Vec<SessionInfo> {
        let target = self.config().name.clone();
        let info = |live: &Arc<Live>| {
            let drivers = lock(&live.drivers);
            let connections = drivers.values().map(|it| (it.from, it.to)).collect();
            drop(drivers);
            let engine = lock(&live.engine);
            SessionInfo {
                id: live.id,
                target: target.clone(),
                initiator: live.identity.initiator.clone(),
                alias: live.identity.alias.clone(),
                isid: live.identity.isid,
                tsih: live.tsih,
                tag: live.identity.tag,
                connections,
                commands: engine.commands(),
                error_recovery_level: engine.parameters().error_recovery_level,
            }
        };
        self.lives().iter().map(info).collect()
    }

    /// Carries out what a task management function wants beyond its session.
    pub async fn carry_out(&self, live: &Arc<Live>, outside: Outside, fresh: u64) {
        let nexus = live.nexus();
        let unit = match outside.reach {
            Reach::Unit(lun)
            | Reach::Attention(lun)
            | Reach::ClearTaskSet(lun)
            | Reach::ResetUnit(lun) => Some(lun),
            Reach::ResetTarget { .. } | Reach::ResetNexus => None,
        };
        if unit.is_some_and(|lun| !self.device.has_unit(&nexus, lun)) {
            live.with(None, |it| it.function_done(outside.token, Some(outcome::NO_UNIT)));
            return;
        }
        let others: Vec<Arc<Live>> =
            self.lives().into_iter().filter(|other| other.id != live.id).collect();
        match outside.reach {
            Reach::Unit(_) => {}
            Reach::Attention(lun) => {
                let waits = self.device.has_attention(&nexus, lun);
                let response = waits.then_some(outcome::SUCCEEDED);
                live.with(None, |it| it.function_done(outside.token, response));
                return;
            }
            Reach::ClearTaskSet(lun) => {
                let mut affected = Vec::new();
                for other in &others {
                    if self.clear(other, Some(lun)).await {
                        affected.push((*other.nexus()).clone());
                    }
                }
                self.device.tasks_cleared(&nexus, lun, &affected);
            }
            Reach::ResetUnit(lun) => {
                for other in &others {
                    self.clear(other, Some(lun)).await;
                }
                self.device.reset_unit(&nexus, lun);
            }
            Reach::ResetTarget { cold } => {
                for other in &others {
                    self.clear(other, None).await;
                }
                self.device.reset_target(&nexus);
                if cold {
                    for other in &others {
                        other.with(None, |it| it.drop_all("the target was reset"));
                    }
                }
            }
            Reach::ResetNexus => {
                self.device.detach(&nexus);
                let next = Arc::new(Nexus { id: fresh, ..(*nexus).clone() });
                self.device.attach(&next);
                *live.nexus.write().unwrap_or_else(PoisonError::into_inner) = next;
            }
        }
        live.with(None, |it| it.function_done(outside.token, None));
    }

    async fn clear(&self, other: &Live, lun: Option<scsi::Lun>) -> bool {
        let (waiting, affected) = other.with(None, |it| it.clear(lun));
        other.ended(&waiting).await;
        affected
    }
}
