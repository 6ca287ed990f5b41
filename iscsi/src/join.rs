//! From a login that is through to a session: a new one, one that takes the place of an older, or
//! another connection of one that is there (RFC 7143 6.3.5, 6.3.6).

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, RwLock, atomic::Ordering},
};

use scsi::{Device, Nexus};
use tokio::sync::{Notify, watch};

use crate::{
    config::{Limits, TargetConfig},
    driver::keep,
    login::{Directory, Established, LoginStatus},
    server::Inner,
    session::{Announce, SendTargets, Session, Setup},
    target::{Driver, Identity, Live, Target, lock},
    task_sets::TaskSets,
    text::Pair,
};

/// Discovery sessions at a time.
const DISCOVERIES: usize = 64;

pub(crate) type Joined<D> = (Option<Arc<Target<D>>>, Arc<Live>, u32, Arc<Notify>);

/// Where a connection came from and to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    from: SocketAddr,
    to: SocketAddr,
    tag: u16,
}

/// Answers SendTargets for a session that came from and to these addresses.
struct Here<D> {
    inner: Arc<Inner<D>>,
    from: IpAddr,
    to: SocketAddr,
    tag: u16,
}

impl<D: Device> Announce for Here<D> {
    fn targets(&self, initiator: &str, own: Option<&str>, which: SendTargets<'_>) -> Vec<Pair> {
        let wanted = |config: &TargetConfig| match (which, own) {
            (SendTargets::All, _) => true,
            (SendTargets::One(""), own) => own == Some(config.name.as_str()),
            // A session with a target learns of no other.
            (SendTargets::One(name), Some(own)) => name == own && config.name == own,
            (SendTargets::One(name), None) => config.name == name.to_lowercase(),
        };
        let configs = self.inner.all().into_iter().map(|target| target.config());
        configs
            .filter(|config| wanted(config) && config.admits(initiator, self.from))
            .flat_map(|config| config.announcement(self.to, self.tag))
            .collect()
    }
}

impl<D: Device> Inner<D> {
    /// A login is through: a new session, or one that is there.
    pub(crate) async fn join(
        self: &Arc<Self>,
        established: &Established,
        from: SocketAddr,
        to: SocketAddr,
        tag: u16,
    ) -> Result<Joined<D>, LoginStatus> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(LoginStatus::ServiceUnavailable);
        }
        let identity = Identity {
            initiator: established.initiator.clone(),
            alias: established.alias.clone(),
            isid: established.request.isid,
            tag,
        };
        let place = Place { from, to, tag };
        let Some(config) = &established.target else {
            return self.discover(established, identity, place);
        };
        let target = self.find(&config.name).ok_or(LoginStatus::TargetRemoved)?;
        if established.request.tsih != 0 {
            let found = lock(&target.sessions).get(&established.request.tsih).cloned();
            let live = found
                .filter(|it| {
                    it.identity.initiator == identity.initiator && it.identity.isid == identity.isid
                })
                .ok_or(LoginStatus::SessionDoesNotExist)?;
            if live.identity.tag != tag {
                return Err(LoginStatus::CannotIncludeInSession);
            }
            let (link, wake) = self.add(&live, established, place)?;
            return Ok((Some(target), live, link, wake));
        }
        loop {
            let same = |it: &Arc<Live>| {
                it.identity.initiator == identity.initiator
                    && it.identity.isid == identity.isid
                    && it.identity.tag == tag
            };
            let older = target.lives().into_iter().find(same);
            if let Some(older) = older {
                // Session reinstatement (RFC 7143 6.3.5): nothing of the old one may still run.
                older.with(None, |it| it.end("its initiator logged in anew"));
                older.wait_gone().await;
                continue;
            }
            let mut sessions = lock(&target.sessions);
            if sessions.values().any(same) {
                continue;
            }
            if sessions.len() >= config.limits.sessions.min(usize::from(u16::MAX) - 1) {
                return Err(LoginStatus::OutOfResources);
            }
            let mut tsih = self.next_tsih.fetch_add(1, Ordering::Relaxed);
            while tsih == 0 || sessions.contains_key(&tsih) {
                tsih = self.next_tsih.fetch_add(1, Ordering::Relaxed);
            }
            let sets = target.sets.clone();
            let live = self.new_live(established, identity, place, tsih, sets);
            sessions.insert(tsih, live.clone());
            drop(sessions);
            target.device.attach(&live.nexus());
            let added = self.add(&live, established, place);
            let silence = config.limits.silence;
            tokio::spawn(keep(Some(target.clone()), live.clone(), self.epoch, silence));
            let (link, wake) = added?;
            // What changed between the login's beginning and now did not see this session.
            if let Some(status) = self.change_of_mind(&target, &live, from) {
                live.with(None, |it| it.end("its target changed during its login"));
                return Err(status);
            }
            tracing::info!(
                session = live.id,
                initiator = live.identity.initiator,
                target = config.name,
                "session begins"
            );
            return Ok((Some(target), live, link, wake));
        }
    }

    fn change_of_mind(
        &self,
        target: &Arc<Target<D>>,
        live: &Live,
        from: SocketAddr,
    ) -> Option<LoginStatus> {
        let config = target.config();
        if self.stopping.load(Ordering::Acquire) {
            Some(LoginStatus::ServiceUnavailable)
        } else if !self.find(&config.name).is_some_and(|it| Arc::ptr_eq(&it, target)) {
            Some(LoginStatus::TargetRemoved)
        } else if !config.admits(&live.identity.initiator, from.ip()) {
            Some(LoginStatus::AuthorizationFailure)
        } else {
            None
        }
    }

    fn discover(
        self: &Arc<Self>,
        established: &Established,
        identity: Identity,
        place: Place,
    ) -> Result<Joined<D>, LoginStatus> {
        if established.request.tsih != 0 {
            return Err(LoginStatus::SessionDoesNotExist);
        }
        let live = {
            let mut discoveries = lock(&self.discoveries);
            discoveries.retain(|live| !*live.gone.borrow());
            if discoveries.len() >= DISCOVERIES {
                return Err(LoginStatus::OutOfResources);
            }
            let tsih = self.next_tsih.fetch_add(1, Ordering::Relaxed).max(1);
            let live = self.new_live(established, identity, place, tsih, Arc::default());
            discoveries.push(live.clone());
            live
        };
        let added = self.add(&live, established, place);
        let silence = Limits::default().silence;
        tokio::spawn(keep::<D>(None, live.clone(), self.epoch, silence));
        let (link, wake) = added?;
        Ok((None, live, link, wake))
    }

    fn new_live(
        self: &Arc<Self>,
        established: &Established,
        identity: Identity,
        place: Place,
        tsih: u16,
        sets: Arc<TaskSets>,
    ) -> Arc<Live> {
        let id = self.next_session.fetch_add(1, Ordering::Relaxed);
        let isid: String = identity.isid.iter().map(|byte| format!("{byte:02x}")).collect();
        let nexus = Nexus {
            id: self.next_nexus.fetch_add(1, Ordering::Relaxed),
            initiator: format!("{},i,0x{isid}", identity.initiator).into(),
            port: place.tag,
        };
        let config = established.target.as_deref();
        let setup = Setup {
            initiator: identity.initiator.clone(),
            target: config.map(|config| config.name.clone()),
            parameters: established.session.clone(),
            wishes: config.map_or_else(|| self.discovery().wishes.clone(), |it| it.wishes.clone()),
            limits: config.map_or_else(Limits::default, |config| config.limits.clone()),
            resets: config.is_some_and(|config| config.resets),
            budget: self.budget.clone(),
            sets,
            announce: Arc::new(Here {
                inner: self.clone(),
                from: place.from.ip(),
                to: place.to,
                tag: place.tag,
            }),
        };
        let enabled = Arc::new(Notify::new());
        let session = Session::new(setup, established.request.sn.cmd_sn);
        let told = enabled.clone();
        session.tell_by(move || told.notify_one());
        Arc::new(Live {
            id,
            tsih,
            identity,
            nexus: RwLock::new(Arc::new(nexus)),
            engine: Mutex::new(session),
            enabled,
            drivers: Mutex::default(),
            changes: watch::Sender::new(0),
            gone: watch::Sender::new(false),
        })
    }

    fn add(
        &self,
        live: &Arc<Live>,
        established: &Established,
        place: Place,
    ) -> Result<(u32, Arc<Notify>), LoginStatus> {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        let cid = established.request.cid;
        let link = live.with(None, |engine| {
            if engine.over().is_some() {
                return Err(LoginStatus::SessionDoesNotExist);
            }
            if !engine.has_room(cid) {
                return Err(LoginStatus::TooManyConnections);
            }
            let stat_sn = established.stat_sn.wrapping_add(1);
            Ok(engine.join(cid, established.connection, stat_sn, now))
        })?;
        let wake = Arc::new(Notify::new());
        let driver = Driver { wake: wake.clone(), from: place.from, to: place.to };
        lock(&live.drivers).insert(link, driver);
        // What happened to the connection before anybody could wake its driver.
        wake.notify_one();
        Ok((link, wake))
    }
}
