//! The connections of one session: which request goes where, and what holds over all of them.
//!
//! ```text
//!                        ┌── keeper: asks the server's addresses, binds and retires channels
//!                        ▼
//!  request ─► Group::pick ─► channel (Connection) ═══ path ═══ server
//!                │       └─► channel              ═══ path ═══   one session, one table of
//!                │            └ lost: ChannelSequence + 1        opens and trees
//!                └ by bytes under way, weighed with the path's speed; silent ones last
//! ```
//!
//! When a channel is lost, what was under way on it fails to its caller's loop, which sends it
//! again on another with the next `ChannelSequence` and the replay flag (MS-SMB2 3.2.7.1, 3.2.4.1):
//! the server refuses from then on whatever the lost channel still brings, and repeats nothing
//! while its first copy is in progress. The session ends with its last channel.
//!
//! A flush covers the writes that were answered before it was sent. On which channels they were
//! does not matter: an answered write is in the file.

mod keeper;
mod plan;

use std::{
    collections::HashMap,
    future::Future,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
};

use smb_protocol::{Command, FileId, TreeId, msg::simple::Empty};
use tokio::sync::{Notify, watch};

use crate::{ConnectOptions, Error, connection::Connection, rules::Rule};

pub(crate) use self::keeper::keep;

/// Where a connection goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Path {
    /// The server's address.
    pub server: IpAddr,
    /// Our own.
    pub local: IpAddr,
    /// How much slower it is than the fastest, at least 1.
    pub weight: u32,
}

/// What the channels of one session have in common.
#[derive(Debug)]
pub(crate) struct Group {
    /// `Session.ChannelSequence`.
    sequence: AtomicU16,
    /// What a lost channel adds to it: always one, but where a simulation breaks that.
    step: u16,
    /// Whether every request is to be sealed.
    pub seal_all: AtomicBool,
    /// Those that were not lost; never more than none again.
    live: watch::Sender<usize>,
    list: RwLock<Vec<Arc<Connection>>>,
    /// Trees of the opens whose oplock breaks must be answered.
    opens: Mutex<HashMap<FileId, TreeId>>,
    /// There is something to do for the keeper.
    changed: Notify,
}

impl Group {
    /// Of a session that is about to have its first channel, which is counted in.
    pub fn new(seal_all: bool, options: &ConnectOptions) -> Arc<Self> {
        Arc::new(Self {
            sequence: AtomicU16::new(0),
            step: options.keeps(Rule::ChannelSequence).into(),
            seal_all: AtomicBool::new(seal_all),
            live: watch::Sender::new(1),
            list: RwLock::default(),
            opens: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// What requests carry now.
    pub fn sequence(&self) -> u16 {
        self.sequence.load(Ordering::Acquire)
    }

    /// Counts one more channel in; `false` if the session has ended.
    fn join(&self) -> bool {
        self.live.send_if_modified(|live| {
            let lives = *live > 0;
            *live += usize::from(lives);
            lives
        })
    }

    /// A channel is lost. Its requests are not yet told.
    pub fn leave(&self) {
        self.sequence.fetch_add(self.step, Ordering::AcqRel);
        self.live.send_modify(|live| *live = live.saturating_sub(1));
        self.changed.notify_one();
    }

    /// Channels that were not lost.
    pub fn live(&self) -> usize {
        *self.live.borrow()
    }

    /// Waits until the last channel is lost.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut live = self.live.subscribe();
        async move {
            // An error means that the session is gone with all its channels.
            let _ = live.wait_for(|live| *live == 0).await;
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Connection>>> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a channel that was counted in.
    pub fn add(&self, channel: Arc<Connection>) {
        self.list.write().unwrap_or_else(PoisonError::into_inner).push(channel);
    }

    /// All channels, lost ones too if that was just now.
    pub fn all(&self) -> Vec<Arc<Connection>> {
        self.read().clone()
    }

    /// The oldest channel that is not lost, for what must keep its order. If all are lost, one
    /// that knows why.
    pub fn main(&self) -> Arc<Connection> {
        let list = self.read();
        let main = list.iter().find(|channel| !channel.is_closed()).or(list.first());
        Arc::clone(main.expect("a group has a channel from its beginning to its end"))
    }

    /// The channel on which the next request will be carried soonest. If all are lost, one that
    /// knows why.
    pub fn pick(&self) -> Arc<Connection> {
        let list = self.read();
        if let [only] = &list[..] {
            return Arc::clone(only);
        }
        let mut best: Option<(bool, u64, &Arc<Connection>)> = None;
        for channel in list.iter().filter(|channel| !channel.is_closed()) {
            let spare =
                channel.suspect.load(Ordering::Relaxed) || channel.retired.load(Ordering::Relaxed);
            let load = channel.load.load(Ordering::Relaxed) + 1;
            let load = load.saturating_mul(channel.path.weight.into());
            if best.is_none_or(|(its, least, _)| (spare, load) < (its, least)) {
                best = Some((spare, load, channel));
            }
        }
        let best = best.map(|(_, _, channel)| channel).or(list.first());
        Arc::clone(best.expect("a group has a channel from its beginning to its end"))
    }

    /// A channel that is not lost, for those who may outlive the session.
    pub fn any(&self) -> Option<Arc<Connection>> {
        self.read().iter().find(|channel| !channel.is_closed()).cloned()
    }

    /// Forgets the channels that were lost, but for one.
    fn prune(&self) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        prune(&mut list, |channel| channel.is_closed());
    }

    /// Gives all channels up. The first reason counts.
    pub fn close(&self, reason: &Error) {
        for channel in self.all() {
            channel.close(reason.clone());
        }
    }

    fn opens(&self) -> MutexGuard<'_, HashMap<FileId, TreeId>> {
        self.opens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the tree of an open, so that breaks of its oplock can be answered.
    pub fn note_open(&self, file: FileId, tree: TreeId) {
        self.opens().insert(file, tree);
    }

    /// Forgets an open.
    pub fn forget_open(&self, file: FileId) {
        self.opens().remove(&file);
    }

    /// The tree of an open.
    pub fn tree_of(&self, file: FileId) -> Option<TreeId> {
        self.opens().get(&file).copied()
    }

    /// The tree of some open.
    pub fn any_tree(&self) -> TreeId {
        self.opens().values().next().copied().unwrap_or_default()
    }

    /// Has the keeper look again.
    pub fn look_again(&self) {
        self.changed.notify_one();
    }
}

/// Removes what is lost, unless all is. Each is looked at once, since any may be lost meanwhile.
fn prune<T: Clone>(list: &mut Vec<T>, is_lost: impl Fn(&T) -> bool) {
    let live: Vec<T> = list.iter().filter(|one| !is_lost(one)).cloned().collect();
    if !live.is_empty() {
        *list = live;
    }
}

/// Keeps the channels of a session. Dropping it ends the session, which closes all that is open
/// in it.
#[derive(Debug)]
pub(crate) struct Channels(Arc<Group>);

impl Channels {
    /// Of a session with its first channel.
    pub fn new(first: Arc<Connection>) -> Self {
        let group = Arc::clone(&first.group);
        group.add(first);
        Self(group)
    }
}

impl std::ops::Deref for Channels {
    type Target = Arc<Group>;
    fn deref(&self) -> &Arc<Group> {
        &self.0
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        // Behind the closes that were sent last, which went the same way.
        self.main().send_and_forget(Command::LOGOFF, TreeId(0), |out| Empty.encode(out));
        self.close(&Error::Closed);
        self.list.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// The last channel may be lost while the lost ones are removed: one is left all the same.
    #[test]
    fn a_group_is_never_without_a_channel() {
        for alive in 0..20 {
            let looks = Cell::new(0);
            // All are lost once so many looks were taken.
            let is_lost = |_: &u8| looks.replace(looks.get() + 1) >= alive;
            let mut list = vec![1, 2, 3];
            prune(&mut list, is_lost);
            assert!(!list.is_empty() && list.len() <= 3, "{alive}: {list:?}");
        }
        let mut list = vec![1, 2, 3];
        prune(&mut list, |one| *one != 2);
        assert_eq!(list, [2]);
    }
}
