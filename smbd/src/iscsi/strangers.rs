//! What those may try who have not proved who they are, by the file server's rules: a wrong secret
//! costs its address as a wrong password does, and an address has few logins under way.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use iscsi::{Guard, Permit};
use smb_server::{Server, logons::Network};
use tokio::time::Instant;

/// Logins of one address, or of one /64, that may be under way.
const LOGINS: usize = 16;

type UnderWay = Arc<Mutex<HashMap<Network, usize>>>;

/// Guards the portals.
pub(super) struct Strangers {
    server: Arc<Server>,
    under_way: UnderWay,
}

/// A login that is under way.
struct Begun(UnderWay, Network);

impl Drop for Begun {
    fn drop(&mut self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.1);
            }
        }
    }
}

impl Strangers {
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self { server, under_way: UnderWay::default() }
    }

    /// What one failed logon costs an address.
    fn step(&self) -> Duration {
        Duration::from_millis(self.server.current().config.limits.failed_logon_ms)
    }
}

impl Guard for Strangers {
    fn admit(&self, from: IpAddr) -> Option<Permit> {
        let network = Network::from(from);
        if !self.server.logons.may_try(network, "", self.step(), Instant::now()) {
            return None;
        }
        let mut all = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(network).or_default();
        if *count >= LOGINS {
            return None;
        }
        *count += 1;
        Some(Box::new(Begun(self.under_way.clone(), network)))
    }

    fn failed(&self, from: IpAddr) -> Duration {
        self.server.logons.failed(Network::from(from), None, self.step(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use smb_server::config::Config;

    use super::*;

    fn strangers() -> (Strangers, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let text = format!("[server]\nlisten=['127.0.0.1:0']\nstate_dir='{}'\n", state.display());
        let config = Config::parse(&text, &folder.path().join("c")).unwrap();
        (Strangers::new(Arc::new(Server::new(config).unwrap())), folder)
    }

    #[test]
    fn an_address_has_few_logins_under_way_and_others_have_theirs() {
        let (strangers, _folder) = strangers();
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut begun: Vec<_> = (0..LOGINS).map(|_| strangers.admit(one).unwrap()).collect();
        assert!(strangers.admit(one).is_none());
        assert!(strangers.admit(other).is_some());
        begun.pop();
        assert!(strangers.admit(one).is_some());
        drop(begun);
        assert!(strangers.under_way.lock().unwrap().is_empty());
    }

    #[test]
    fn wrong_secrets_cost_their_address_more_and_more_until_none_is_looked_at() {
        let (strangers, _folder) = strangers();
        let one = "192.0.2.1".parse().unwrap();
        let first = strangers.failed(one);
        assert_eq!(first, Duration::ZERO);
        let mut waited = Duration::ZERO;
        for _ in 0..200 {
            waited = waited.max(strangers.failed(one));
        }
        assert!(waited > Duration::from_secs(1), "{waited:?}");
        assert!(strangers.admit(one).is_none());
        assert!(strangers.admit("192.0.2.2".parse().unwrap()).is_some());
    }
}
