//! Being told by another node of a cluster that the one in use is gone, or that there is a better one
//! (MS-SWN 3.2), before a connection would time out.
//!
//! ```text
//!  TREE_CONNECT says CLUSTER ─► which nodes are there? (asked of the node in use)
//!     ─► register with another ─► AsyncNotify … ─┬─ nothing: again
//!                                                └─ our node is down, or move ─► all channels are
//!                                                   given up, and the session goes on where it was
//!                                                   told, with a registration of its own there
//! ```
//!
//! Nothing here is needed: a client without a witness notices by itself, later.

mod rpc;

use std::{
    net::IpAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use smb_protocol::name::same_name;
use tokio::time::timeout;
use witness::{
    NodeState, Notice, Reply, Request, Status, Version,
    message::{Interface, Register},
};

use self::rpc::Rpc;
use crate::{ConnectOptions, Error, Witness, session::Inner};

/// Between tries to register: the first, and the longest, which is what Windows waits (MS-SWN <15>).
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// After how many seconds an answer is wanted in any case, and how long it is waited for
/// (MS-SWN <14>, <9>).
const KEEP_ALIVE: u32 = 120;
const PATIENCE: Duration = Duration::from_secs(180);

/// Why there is no registration.
#[derive(Debug, thiserror::Error)]
enum Unwitnessed {
    /// The session is over.
    #[error("the session has ended")]
    Over,
    /// A node is not reached, or its answers are none.
    #[error("no RPC with {address}")]
    Rpc {
        /// Which.
        address: IpAddr,
        /// Why not.
        #[source]
        source: rpc::RpcError,
    },
    /// A node refuses.
    #[error("the node refuses with {0:?}")]
    Refused(Status),
    /// There is no other node that is up.
    #[error("no other node is up and a witness")]
    Alone,
}

/// Keeps a session registered for a share until it ends.
pub(crate) async fn keep(session: Weak<Inner>, share: String) {
    let mut pause = PAUSE.0;
    loop {
        match watch(&session, &share).await {
            Ok(()) => pause = PAUSE.0,
            Err(Unwitnessed::Over) => return,
            Err(error) => {
                tracing::debug!(share, error = %describe(&error), "no witness");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

fn describe(error: &Unwitnessed) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Registers, and waits to be told something that has the session go elsewhere, or that it has gone
/// there by itself.
async fn watch(session: &Weak<Inner>, share: &str) -> Result<(), Unwitnessed> {
    let (options, used, ended) = {
        let inner = session.upgrade().ok_or(Unwitnessed::Over)?;
        let link = inner.link().await.map_err(|_| Unwitnessed::Over)?;
        let used = link.channels.main().path.server;
        (inner.options.clone(), used, link.channels.ended())
    };
    let watched = async {
        let list = interfaces(&options, used).await?;
        let (mut rpc, handle) = register(&options, used, share, &list).await?;
        let tell = Request::AsyncNotify(handle);
        loop {
            let Ok(answer) = timeout(PATIENCE, rpc.ask(&tell)).await else {
                let source = rpc::RpcError::Ended;
                return Err(Unwitnessed::Rpc { address: rpc.address, source });
            };
            let address = rpc.address;
            match answer.map_err(|source| Unwitnessed::Rpc { address, source })? {
                Reply::Notified(Err(Status::TIMEOUT)) => {}
                Reply::Notified(Err(status)) => return Err(Unwitnessed::Refused(status)),
                Reply::Notified(Ok(notice)) => {
                    if let Some(to) = destination(&notice, used, &list) {
                        // It is of no use any more, and its node may be asked for a new one.
                        let _ = rpc.ask(&Request::Unregister(handle)).await;
                        return Ok((to, address));
                    }
                }
                _ => return Err(Unwitnessed::Rpc { address, source: rpc::RpcError::Ended }),
            }
        }
    };
    tokio::select! {
        told = watched => {
            let (to, by) = told?;
            let inner = session.upgrade().ok_or(Unwitnessed::Over)?;
            tracing::info!(server = %inner.options.address(), %used, ?to, %by, "moved by a witness");
            inner.go_to(to).await.map_err(|_| Unwitnessed::Over)
        }
        // It found its own way.
        () = ended => Ok(()),
    }
}

/// The nodes, as the one in use sees them.
async fn interfaces(options: &ConnectOptions, used: IpAddr) -> Result<Vec<Interface>, Unwitnessed> {
    let asked = async {
        let mut rpc = Rpc::connect(options, used).await?;
        rpc.ask(&Request::GetInterfaceList).await
    };
    let reply = asked.await.map_err(|source| Unwitnessed::Rpc { address: used, source })?;
    match reply {
        Reply::Interfaces(Ok(list)) => Ok(list),
        Reply::Interfaces(Err(status)) => Err(Unwitnessed::Refused(status)),
        _ => Err(Unwitnessed::Rpc { address: used, source: rpc::RpcError::Ended }),
    }
}

/// Registers with the first other node that takes it (MS-SWN 3.2.4.1).
async fn register(
    options: &ConnectOptions,
    used: IpAddr,
    share: &str,
    list: &[Interface],
) -> Result<(Rpc, dce_rpc::ndr::Handle), Unwitnessed> {
    let mut last = Unwitnessed::Alone;
    for interface in list.iter().filter(|it| it.witness && it.state == NodeState::Up) {
        let Some(address) = interface.address else { continue };
        let second = interface.version >= Version::V2.0;
        let wish = Register {
            version: if second { Version::V2.0 } else { Version::V1.0 },
            net_name: Some(options.host.clone()),
            share_name: second.then(|| share.to_owned()),
            address: Some(used.to_string()),
            client: Some(own_name()),
            all_addresses: second,
            keep_alive: KEEP_ALIVE,
        };
        let request = if second { Request::RegisterEx(wish) } else { Request::Register(wish) };
        let asked = async {
            let mut rpc = Rpc::connect(options, address).await?;
            let reply = rpc.ask(&request).await?;
            Ok((rpc, reply))
        };
        last = match asked.await {
            Ok((rpc, Reply::Registered(Ok(handle)))) => {
                tracing::debug!(%used, %address, share, "registered with a witness");
                return Ok((rpc, handle));
            }
            Ok((_, Reply::Registered(Err(status)))) => Unwitnessed::Refused(status),
            Ok(_) => Unwitnessed::Rpc { address, source: rpc::RpcError::Ended },
            Err(source) => Unwitnessed::Rpc { address, source },
        };
    }
    Err(last)
}

/// Our own name, as an administrator sees it.
fn own_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Where the session should go because of a notice; `None` if it stays.
fn destination(notice: &Notice, used: IpAddr, list: &[Interface]) -> Option<Vec<IpAddr>> {
    let own = list.iter().find(|it| it.address == Some(used)).map(|it| it.group.as_str());
    let others = || {
        let other = |it: &&Interface| it.state == NodeState::Up && Some(it.group.as_str()) != own;
        list.iter().filter(other).filter_map(|it| it.address).collect::<Vec<_>>()
    };
    match notice {
        Notice::Changed(changes) => {
            let is_own = |name: &str| {
                own.is_some_and(|own| same_name(own, name)) || name.parse() == Ok(used)
            };
            let lost =
                |it: &witness::notice::Change| it.state == NodeState::Down && is_own(&it.name);
            // An address of no node is one that goes to whoever serves it next.
            let there = || if own.is_some() { others() } else { vec![used] };
            changes.iter().any(lost).then(there)
        }
        Notice::MoveClient(to) | Notice::MoveShare(to) => {
            let to = to.iter().filter(|(_, state)| *state != NodeState::Down);
            let to: Vec<_> = to.map(|(address, _)| *address).collect();
            // Who is there already has nothing to do.
            (!to.is_empty() && !to.contains(&used)).then_some(to)
        }
        Notice::Addresses(all) => all.contains(&(used, NodeState::Down)).then(others),
    }
}

impl Inner {
    /// Has a witness tell of the nodes that serve a share of a cluster.
    pub(crate) fn witness(self: &Arc<Self>, share: &str) {
        // MS-SWN 3.2.4.1: only a name is one of a cluster.
        let by_name = self.options.host.parse::<IpAddr>().is_err();
        if self.options.witness != Witness::Never && by_name && self.note_witnessed(share) {
            tokio::spawn(keep(Arc::downgrade(self), share.to_owned()));
        }
    }

    /// Gives all channels up and goes on at one of these addresses, or where else the server is found.
    async fn go_to(&self, addresses: Vec<IpAddr>) -> crate::Result<()> {
        let link = self.link().await?;
        self.prefer(addresses);
        link.channels.close(&Error::disconnected("a witness told that the server is elsewhere"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use witness::notice::Change;

    use super::*;

    fn list() -> Vec<Interface> {
        let interface = |group: &str, last: u8, state| Interface {
            group: group.into(),
            version: 0x0002_0000,
            state,
            address: Some([192, 0, 2, last].into()),
            witness: true,
        };
        vec![
            interface("ONE", 1, NodeState::Up),
            interface("ONE", 11, NodeState::Up),
            interface("TWO", 2, NodeState::Up),
            interface("THREE", 3, NodeState::Down),
        ]
    }

    fn at(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn a_session_leaves_a_node_that_is_lost_and_no_other() {
        let to = |name: &str, state| {
            let change = Change { name: name.into(), state };
            destination(&Notice::Changed(vec![change]), at(1), &list())
        };
        assert_eq!(to("one", NodeState::Down), Some(vec![at(2)]));
        assert_eq!(to("192.0.2.1", NodeState::Down), Some(vec![at(2)]));
        assert_eq!(to("TWO", NodeState::Down), None);
        assert_eq!(to("ONE", NodeState::Up), None);
    }

    #[test]
    fn a_session_meets_an_address_that_moves_where_it_comes_back() {
        let to = |changes: &[(&str, NodeState)]| {
            let change = |(name, state): &(&str, _)| Change { name: (*name).into(), state: *state };
            let notice = Notice::Changed(changes.iter().map(change).collect());
            destination(&notice, at(50), &list())
        };
        let (down, up) = (("192.0.2.50", NodeState::Down), ("192.0.2.50", NodeState::Up));
        assert_eq!(to(&[down]), Some(vec![at(50)]));
        // It was lost, and is there again: what was connected to it before is not.
        assert_eq!(to(&[down, up]), Some(vec![at(50)]));
        // That it is there says nothing of our connection, which may be newer.
        assert_eq!(to(&[up]), None);
        assert_eq!(to(&[("192.0.2.1", NodeState::Down)]), None);
    }

    #[test]
    fn a_session_goes_where_it_is_told_unless_it_is_there() {
        let to = |addresses| destination(&Notice::MoveClient(addresses), at(1), &list());
        assert_eq!(to(vec![(at(2), NodeState::Up)]), Some(vec![at(2)]));
        assert_eq!(to(vec![(at(2), NodeState::Unknown)]), Some(vec![at(2)]));
        assert_eq!(to(vec![(at(2), NodeState::Down)]), None);
        assert_eq!(to(vec![(at(2), NodeState::Up), (at(1), NodeState::Up)]), None);
        let gone = |address| {
            destination(&Notice::Addresses(vec![(address, NodeState::Down)]), at(1), &list())
        };
        assert_eq!(gone(at(1)), Some(vec![at(2)]));
        assert_eq!(gone(at(2)), None);
    }
}
