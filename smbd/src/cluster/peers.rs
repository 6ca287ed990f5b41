//! Who is connected to a role, noted where the node finds it that has the role next (see `tickle.rs`).
//!
//! A note is late by design: nobody waits for it, and many changes make one. What is missing in it
//! costs a client the time in which it notices by itself, and what is too much costs nothing.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use state_store::etcd::{
    Client,
    wire::{Compare, EQUAL, MOD, Op, PutRequest, RequestOp, TxnRequest, With},
};
use tokio::{sync::Notify, time::sleep};

/// How long changes gather before they are noted.
const GATHER: Duration = Duration::from_millis(100);
/// Connections that are noted at most: etcd takes 1.5 MiB, and one is 95 bytes at most.
const MOST: usize = 10_000;

/// Both ends of a connection: the client's, and ours.
pub(super) type Ends = (SocketAddr, SocketAddr);

/// The connections of a role's clients.
#[derive(Debug, Default)]
pub struct Peers {
    all: Mutex<BTreeSet<Ends>>,
    changed: Notify,
}

/// A connection that is noted as long as this is there.
#[derive(Debug)]
pub struct Noted {
    peers: Arc<Peers>,
    ends: Ends,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<Ends>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a connection of the client at `peer` with our address `local`.
    pub fn enter(self: &Arc<Self>, peer: SocketAddr, local: SocketAddr) -> Noted {
        let ends = (peer, local);
        self.lock().insert(ends);
        self.changed.notify_one();
        Noted { peers: self.clone(), ends }
    }

    fn text(&self) -> String {
        let all = self.lock();
        all.iter().take(MOST).map(|(peer, local)| format!("{peer} {local}\n")).collect()
    }
}

/// Initiators are clients as others are.
impl iscsi::Presence for Peers {
    fn enter(self: Arc<Self>, peer: SocketAddr, local: SocketAddr) -> Box<dyn Send> {
        Box::new(Self::enter(&self, peer, local))
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.peers.lock().remove(&self.ends);
        self.peers.changed.notify_one();
    }
}

/// Notes under a key who is connected, again and again, for as long as a role is what it was at a
/// revision: who has lost it does not write over what its successor notes.
pub(super) async fn note(
    peers: Arc<Peers>,
    client: Arc<Client>,
    key: String,
    (role, since): (String, i64),
) {
    loop {
        peers.changed.notified().await;
        sleep(GATHER).await;
        let put = PutRequest {
            key: key.clone().into_bytes(),
            value: peers.text().into_bytes(),
            lease: 0,
        };
        let ours = Compare {
            result: EQUAL,
            target: MOD,
            key: role.clone().into_bytes(),
            with: Some(With::ModRevision(since)),
        };
        let request = TxnRequest {
            compare: vec![ours],
            success: vec![RequestOp { request: Some(Op::Put(put)) }],
            failure: Vec::new(),
        };
        match client.txn(&request).await {
            Ok(answer) if answer.succeeded => {}
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(%error, "who is connected is not noted now");
                peers.changed.notify_one();
            }
        }
    }
}

/// The connections that a note has with one of these addresses of ours; what is no line of one is left out.
pub(super) fn parse(note: &[u8], ours: &[IpAddr]) -> Vec<Ends> {
    let text = String::from_utf8_lossy(note);
    let ends = |line: &str| {
        let (peer, local) = line.split_once(' ')?;
        Some((peer.parse().ok()?, local.parse().ok()?))
    };
    let all = text.lines().filter_map(ends).take(MOST);
    all.filter(|(_, local): &Ends| ours.contains(&local.ip())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_connected_is_noted_until_it_leaves_and_read_as_it_was() {
        let peers = Arc::<Peers>::default();
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (here, there) = (at("192.0.2.50:445"), at("[2001:db8::50]:445"));
        let first = peers.enter(at("192.0.2.7:40000"), here);
        let second = peers.enter(at("[2001:db8::7]:40001"), there);
        let text = peers.text();
        assert_eq!(
            text,
            "192.0.2.7:40000 192.0.2.50:445\n[2001:db8::7]:40001 [2001:db8::50]:445\n"
        );
        let both = [(first.ends.0, here), (second.ends.0, there)];
        assert_eq!(parse(text.as_bytes(), &[here.ip(), there.ip()]), both);
        assert_eq!(parse(text.as_bytes(), &[there.ip()]), both[1..]);
        drop(first);
        assert_eq!(peers.text(), "[2001:db8::7]:40001 [2001:db8::50]:445\n");
        assert!(parse(b"\xff\nx y\n1.2.3.4:1\n", &[here.ip()]).is_empty());
    }
}
