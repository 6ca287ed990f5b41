//! What the channels of one session have in common, and which of them a request takes.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
};

use smb_protocol::{FileId, TreeId};
use tokio::sync::{Notify, watch};

use crate::{Compress, ConnectOptions, Error, rules::Rule};

/// One channel, as its group sees it.
pub(crate) trait Channel {
    /// Whether it was lost.
    fn is_closed(&self) -> bool;
    /// Whether it is taken only where no other is: it is silent, or about to be given up.
    fn is_spare(&self) -> bool;
    /// Bytes under way, times the path's slowness: the least has the next request.
    fn weighed_load(&self) -> u64;
    /// Gives it up. The first reason counts.
    fn close(&self, reason: Error);
}

/// What the channels of one session have in common.
#[derive(Debug)]
pub(crate) struct Group<C> {
    /// `Session.ChannelSequence`.
    sequence: AtomicU16,
    /// What a lost channel adds to it: always one, but where a simulation breaks that.
    step: u16,
    /// Whether every request is to be sealed.
    pub seal_all: AtomicBool,
    /// Trees whose reads and writes are compressed: all, or those whose share asks for that.
    compress: Compress,
    compressed: RwLock<Vec<TreeId>>,
    /// Those that were not lost; never more than none again.
    live: watch::Sender<usize>,
    list: RwLock<Vec<Arc<C>>>,
    /// Trees of the opens whose oplock breaks must be answered.
    opens: Mutex<HashMap<FileId, TreeId>>,
    /// There is something to do for the keeper.
    changed: Notify,
}

impl<C: Channel> Group<C> {
    /// Of a session that is about to have its first channel, which is counted in.
    pub fn new(seal_all: bool, options: &ConnectOptions) -> Arc<Self> {
        Arc::new(Self {
            sequence: AtomicU16::new(0),
            step: options.keeps(Rule::ChannelSequence).into(),
            seal_all: AtomicBool::new(seal_all),
            compress: options.compress,
            compressed: RwLock::default(),
            live: watch::Sender::new(1),
            list: RwLock::default(),
            opens: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// The share of a tree asks that its reads and writes be compressed.
    pub fn compress(&self, tree: TreeId) {
        self.compressed.write().unwrap_or_else(PoisonError::into_inner).push(tree);
    }

    /// Whether reads and writes of a tree are to be compressed.
    pub fn compresses(&self, tree: TreeId) -> bool {
        match self.compress {
            Compress::Never => false,
            Compress::Always => true,
            Compress::IfAsked => {
                self.compressed.read().unwrap_or_else(PoisonError::into_inner).contains(&tree)
            }
        }
    }

    /// What requests carry now.
    pub fn sequence(&self) -> u16 {
        self.sequence.load(Ordering::Acquire)
    }

    /// Counts one more channel in; `false` if the session has ended.
    pub fn join(&self) -> bool {
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
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<C> {
        let mut live = self.live.subscribe();
        async move {
            // An error means that the session is gone with all its channels.
            let _ = live.wait_for(|live| *live == 0).await;
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<C>>> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a channel that was counted in.
    pub fn add(&self, channel: Arc<C>) {
        self.list.write().unwrap_or_else(PoisonError::into_inner).push(channel);
    }

    /// All channels, lost ones too if that was just now.
    pub fn all(&self) -> Vec<Arc<C>> {
        self.read().clone()
    }

    /// The oldest channel that is not lost, for what must keep its order. If all are lost, one
    /// that knows why.
    pub fn main(&self) -> Arc<C> {
        let list = self.read();
        let main = list.iter().find(|channel| !channel.is_closed()).or(list.first());
        Arc::clone(main.expect("a group has a channel from its beginning to its end"))
    }

    /// The channel on which the next request will be carried soonest. If all are lost, one that
    /// knows why.
    pub fn pick(&self) -> Arc<C> {
        let list = self.read();
        if let [only] = &list[..] {
            return Arc::clone(only);
        }
        let mut best: Option<(bool, u64, &Arc<C>)> = None;
        for channel in list.iter().filter(|channel| !channel.is_closed()) {
            let (spare, load) = (channel.is_spare(), channel.weighed_load());
            if best.is_none_or(|(its, least, _)| (spare, load) < (its, least)) {
                best = Some((spare, load, channel));
            }
        }
        let best = best.map(|(_, _, channel)| channel).or(list.first());
        Arc::clone(best.expect("a group has a channel from its beginning to its end"))
    }

    /// A channel that is not lost, for those who may outlive the session.
    pub fn any(&self) -> Option<Arc<C>> {
        self.read().iter().find(|channel| !channel.is_closed()).cloned()
    }

    /// Forgets the channels that were lost, but for one.
    pub fn prune(&self) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        prune(&mut list, |channel| channel.is_closed());
    }

    /// Forgets all channels. Nothing is sent after this.
    pub fn clear(&self) {
        self.list.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Waits until there is something to do for the keeper.
    pub async fn wait_for_change(&self) {
        self.changed.notified().await;
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

    /// Forgets an open that was closed.
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
