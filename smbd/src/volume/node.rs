//! One file as all its openers see it: share modes and deletion.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::fs::Stat;
use smb_protocol::{
    NtStatus,
    msg::create::{Access, ShareAccess},
};

use super::RelPath;

/// Identity of a file on this machine: device and inode.
pub type NodeKey = (u64, u64);

/// Key of a file.
pub fn key(stat: &Stat) -> NodeKey {
    (stat.st_dev, stat.st_ino)
}

/// All files that are open.
#[derive(Debug, Default)]
pub struct Nodes {
    shards: [Mutex<HashMap<NodeKey, Arc<Node>>>; 16],
}

/// A file that is open.
#[derive(Debug)]
pub struct Node {
    key: NodeKey,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    users: Vec<Use>,
    delete_pending: bool,
    path: RelPath,
}

#[derive(Debug, Clone, Copy)]
struct Use {
    id: u64,
    access: Access,
    share: ShareAccess,
}

/// Rights that take part in sharing; an opener with none of them neither blocks nor is blocked
/// (MS-FSA 2.1.5.1.2).
const READS: Access = Access(Access::READ_DATA.0 | Access::EXECUTE.0);
const WRITES: Access = Access(Access::WRITE_DATA.0 | Access::APPEND_DATA.0);

/// Marks the opener of a stream among those of its file: it takes part in the sharing of deletion
/// and of nothing else (MS-FSA 2.1.5.1.2.1). No client can ask for this bit.
pub const BESIDE: Access = Access(0x0800_0000);

fn conflicts(access: Access, share: ShareAccess) -> bool {
    access.any(READS) && !share.has(ShareAccess::READ)
        || access.any(WRITES) && !share.has(ShareAccess::WRITE)
        || access.has(Access::DELETE) && !share.has(ShareAccess::DELETE)
}

fn takes_part(access: Access) -> bool {
    access.any(READS.or(WRITES).or(Access::DELETE).or(BESIDE))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nodes {
    fn shard(&self, key: NodeKey) -> &Mutex<HashMap<NodeKey, Arc<Node>>> {
        &self.shards[(key.1 % 16) as usize]
    }

    /// Adds an opener if those that are there agree.
    pub fn join(
        &self,
        stat: &Stat,
        path: &RelPath,
        id: u64,
        access: Access,
        share: ShareAccess,
    ) -> Result<Arc<Node>, NtStatus> {
        let mut shard = lock(self.shard(key(stat)));
        let node = shard.entry(key(stat)).or_insert_with(|| {
            Arc::new(Node {
                key: key(stat),
                state: Mutex::new(State {
                    users: Vec::new(),
                    delete_pending: false,
                    path: path.clone(),
                }),
            })
        });
        let mut state = lock(&node.state);
        if state.delete_pending {
            return Err(NtStatus::DELETE_PENDING);
        }
        if takes_part(access) {
            for other in state.users.iter().filter(|other| takes_part(other.access)) {
                if conflicts(access, other.share) || conflicts(other.access, share) {
                    return Err(NtStatus::SHARING_VIOLATION);
                }
            }
        }
        state.users.push(Use { id, access, share });
        drop(state);
        Ok(node.clone())
    }

    /// Takes an opener away. When it was the last and the file is to be deleted, its path is
    /// returned; the caller removes it while `remove` runs, before anyone can open it again.
    pub fn leave(&self, node: &Node, id: u64, remove: impl FnOnce(&RelPath)) {
        let mut shard = lock(self.shard(node.key));
        let mut state = lock(&node.state);
        state.users.retain(|user| user.id != id);
        if state.users.is_empty() {
            if state.delete_pending {
                remove(&state.path);
            }
            shard.remove(&node.key);
        }
    }

    /// Whether anything strictly below `folder` is open.
    pub fn any_below(&self, device: u64, folder: &RelPath) -> bool {
        self.shards.iter().any(|shard| {
            lock(shard)
                .values()
                .any(|node| node.key.0 == device && lock(&node.state).path.is_below(folder))
        })
    }

    /// Whether the file is open at all.
    pub fn is_open(&self, stat: &Stat) -> bool {
        lock(self.shard(key(stat))).contains_key(&key(stat))
    }

    /// Number of files that are open.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }
}

impl Node {
    /// Marks the file to be deleted when the last opener leaves, or takes that back.
    pub fn set_delete_pending(&self, pending: bool) {
        lock(&self.state).delete_pending = pending;
    }

    /// Whether the file is to be deleted when the last opener leaves.
    pub fn delete_pending(&self) -> bool {
        lock(&self.state).delete_pending
    }

    /// Where the file is now.
    pub fn path(&self) -> RelPath {
        lock(&self.state).path.clone()
    }

    /// Notes that the file was renamed.
    pub fn set_path(&self, path: RelPath) {
        lock(&self.state).path = path;
    }

    /// Whether openers other than `id` forbid that the file is deleted or renamed.
    pub fn others_forbid_delete(&self, id: u64) -> bool {
        lock(&self.state).users.iter().any(|user| {
            user.id != id && takes_part(user.access) && !user.share.has(ShareAccess::DELETE)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Access × sharing of two openers, as MS-FSA 2.1.5.1.2 has it.
    #[test]
    fn sharing_is_symmetric_and_ignores_attribute_opens() {
        let meta = rustix::fs::stat("/").unwrap();
        let path = RelPath::root();
        let r = Access::READ_DATA;
        let w = Access::WRITE_DATA;
        let all = ShareAccess(7);
        for (first, second, ok) in [
            ((r, ShareAccess::READ), (r, ShareAccess::READ), true),
            ((r, ShareAccess::READ), (w, all), false),
            ((w, all), (r, ShareAccess::READ), false),
            ((w, ShareAccess::NONE), (Access::READ_ATTRIBUTES, ShareAccess::NONE), true),
            ((w, ShareAccess::NONE), (r, all), false),
            ((r, ShareAccess::READ), (Access::DELETE, all), false),
        ] {
            let nodes = Nodes::default();
            let node = nodes.join(&meta, &path, 1, first.0, first.1).unwrap();
            assert_eq!(nodes.join(&meta, &path, 2, second.0, second.1).is_ok(), ok);
            nodes.leave(&node, 1, |_| panic!("not to be deleted"));
            nodes.leave(&node, 2, |_| panic!("not to be deleted"));
            assert_eq!(nodes.len(), 0);
        }
    }

    #[test]
    fn the_last_opener_deletes() {
        let meta = rustix::fs::stat("/").unwrap();
        let nodes = Nodes::default();
        let open = |id| nodes.join(&meta, &RelPath::root(), id, Access::NONE, ShareAccess(7));
        let node = open(1).unwrap();
        open(2).unwrap();
        node.set_delete_pending(true);
        assert_eq!(open(3).unwrap_err(), NtStatus::DELETE_PENDING);
        nodes.leave(&node, 1, |_| panic!("one is left"));
        let mut removed = false;
        nodes.leave(&node, 2, |_| removed = true);
        assert!(removed);
    }
}
