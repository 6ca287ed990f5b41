//! The order among the tasks of a logical unit, of whichever session they are (SAM-5 8.6): the
//! control mode page says that all nexuses have one task set (TST 000b, SPC-4 7.5.8).
//!
//! ```text
//!  a session ─► enter ─► enabled at once, or it waits ─► a task before it leaves ─► a note for its
//!                                                        session, which is told ─► take
//! ```

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use scsi::{Lun, TaskAttribute};

use crate::session::TaskKey;

/// Empty sets that are kept, so that a command which comes alone allocates none: initiators may name
/// more logical units than there are.
const KEPT: usize = 256;

/// A session's number and a task of it.
type Place = (u64, TaskKey);
/// Tells a session that something waits for it; never waits itself.
type Tell = Arc<dyn Fn() + Send + Sync>;

/// The task sets of all logical units of a target.
#[derive(Default)]
pub struct TaskSets {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    sets: BTreeMap<Lun, TaskSet>,
    members: HashMap<u64, Member>,
}

#[derive(Default)]
struct Member {
    enabled: Vec<TaskKey>,
    tell: Option<Tell>,
}

impl fmt::Debug for TaskSets {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TaskSets").field("sets", &self.lock().sets.len()).finish_non_exhaustive()
    }
}

impl TaskSets {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session begins; its number among those of the target.
    #[must_use]
    pub fn join(&self) -> u64 {
        let mut inner = self.lock();
        inner.next += 1;
        let number = inner.next;
        inner.members.insert(number, Member::default());
        number
    }

    /// How a session is told that tasks of it may run because others left.
    pub fn tell_by(&self, session: u64, tell: Tell) {
        if let Some(member) = self.lock().members.get_mut(&session) {
            member.tell = Some(tell);
        }
    }

    /// A session is gone with all its tasks.
    pub fn forget(&self, session: u64) {
        let mut enabled = Vec::new();
        let mut inner = self.lock();
        inner.members.remove(&session);
        inner.sets.retain(|_, set| {
            set.forget(session, &mut enabled);
            !set.is_empty()
        });
        inner.note(None, enabled);
    }

    /// A task comes in; whether it may run at once.
    pub fn enter(&self, lun: Lun, place: Place, attribute: TaskAttribute) -> bool {
        self.lock().sets.entry(lun).or_default().enter(place, attribute)
    }

    /// A task leaves; those of the same session that may run now.
    pub fn leave(&self, lun: Lun, place: Place) -> Vec<TaskKey> {
        let mut enabled = Vec::new();
        let mut inner = self.lock();
        if let Some(set) = inner.sets.get_mut(&lun) {
            set.leave(place, &mut enabled);
            if set.is_empty() && inner.sets.len() > KEPT {
                inner.sets.remove(&lun);
            }
        }
        inner.note(Some(place.0), enabled)
    }

    /// The tasks of a session that may run because others left.
    #[must_use]
    pub fn take(&self, session: u64) -> Vec<TaskKey> {
        let mut inner = self.lock();
        inner
            .members
            .get_mut(&session)
            .map(|it| std::mem::take(&mut it.enabled))
            .unwrap_or_default()
    }
}

impl Inner {
    /// Leaves notes for the sessions of tasks that may run; gives those of `own`.
    fn note(&mut self, own: Option<u64>, enabled: Vec<Place>) -> Vec<TaskKey> {
        let mut ours = Vec::new();
        for (session, key) in enabled {
            if Some(session) == own {
                ours.push(key);
            } else if let Some(member) = self.members.get_mut(&session) {
                member.enabled.push(key);
                if let Some(tell) = &member.tell {
                    tell();
                }
            }
        }
        ours
    }
}

/// The tasks of one logical unit.
#[derive(Debug, Default)]
struct TaskSet {
    enabled: HashMap<Place, TaskAttribute>,
    simple: usize,
    ordered: usize,
    head: usize,
    waiting: VecDeque<(Place, TaskAttribute)>,
}

impl TaskSet {
    fn enter(&mut self, place: Place, attribute: TaskAttribute) -> bool {
        let free = self.waiting.is_empty() || attribute == TaskAttribute::HeadOfQueue;
        if free && self.permits(attribute) {
            self.enable(place, attribute);
            return true;
        }
        self.waiting.push_back((place, attribute));
        false
    }

    fn permits(&self, attribute: TaskAttribute) -> bool {
        match attribute {
            TaskAttribute::HeadOfQueue | TaskAttribute::Aca => true,
            TaskAttribute::Ordered => self.simple + self.ordered + self.head == 0,
            TaskAttribute::Simple | TaskAttribute::Untagged => self.ordered + self.head == 0,
        }
    }

    fn count(&mut self, attribute: TaskAttribute) -> &mut usize {
        match attribute {
            TaskAttribute::HeadOfQueue | TaskAttribute::Aca => &mut self.head,
            TaskAttribute::Ordered => &mut self.ordered,
            TaskAttribute::Simple | TaskAttribute::Untagged => &mut self.simple,
        }
    }

    fn enable(&mut self, place: Place, attribute: TaskAttribute) {
        *self.count(attribute) += 1;
        self.enabled.insert(place, attribute);
    }

    fn drop_enabled(&mut self, place: Place) -> bool {
        let Some(attribute) = self.enabled.remove(&place) else { return false };
        let count = self.count(attribute);
        *count = count.saturating_sub(1);
        true
    }

    fn leave(&mut self, place: Place, enabled: &mut Vec<Place>) {
        if !self.drop_enabled(place) {
            self.waiting.retain(|(waiting, _)| *waiting != place);
        }
        self.go_on(enabled);
    }

    fn forget(&mut self, session: u64, enabled: &mut Vec<Place>) {
        let places: Vec<Place> =
            self.enabled.keys().filter(|place| place.0 == session).copied().collect();
        for place in places {
            self.drop_enabled(place);
        }
        self.waiting.retain(|(place, _)| place.0 != session);
        self.go_on(enabled);
    }

    fn go_on(&mut self, enabled: &mut Vec<Place>) {
        while let Some((next, attribute)) = self.waiting.front().copied() {
            if !self.permits(attribute) {
                break;
            }
            self.waiting.pop_front();
            self.enable(next, attribute);
            enabled.push(next);
        }
    }

    fn is_empty(&self) -> bool {
        self.enabled.is_empty() && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const UNIT: Lun = Lun([0; 8]);

    fn key(itt: u32) -> TaskKey {
        TaskKey { itt, id: u64::from(itt) }
    }

    #[test]
    fn ordered_tasks_wait_for_all_before_and_hold_all_behind() {
        let sets = TaskSets::default();
        let me = sets.join();
        let enter = |itt, attribute| sets.enter(UNIT, (me, key(itt)), attribute);
        let leave = |itt| sets.leave(UNIT, (me, key(itt)));
        assert!(enter(1, TaskAttribute::Simple));
        assert!(enter(2, TaskAttribute::Simple));
        assert!(!enter(3, TaskAttribute::Ordered));
        assert!(!enter(4, TaskAttribute::Simple));
        assert!(enter(5, TaskAttribute::HeadOfQueue));
        assert!(leave(1).is_empty());
        assert!(leave(2).is_empty());
        assert_eq!(leave(5), [key(3)]);
        assert_eq!(leave(3), [key(4)]);
        assert!(leave(4).is_empty());
        assert!(sets.lock().sets.values().all(TaskSet::is_empty));
    }

    /// An initiator may name units that there are not, each in its turn.
    #[test]
    fn empty_sets_do_not_grow_without_end() {
        let sets = TaskSets::default();
        let me = sets.join();
        for n in 0..2 * KEPT as u64 {
            let unit = Lun(n.to_be_bytes());
            assert!(sets.enter(unit, (me, key(1)), TaskAttribute::Simple));
            assert!(sets.leave(unit, (me, key(1))).is_empty());
        }
        assert_eq!(sets.lock().sets.len(), KEPT);
        sets.forget(me);
        assert!(sets.lock().sets.is_empty());
    }

    #[test]
    fn a_waiting_task_that_is_aborted_holds_nobody() {
        let sets = TaskSets::default();
        let me = sets.join();
        sets.enter(UNIT, (me, key(1)), TaskAttribute::Simple);
        sets.enter(UNIT, (me, key(2)), TaskAttribute::Ordered);
        sets.enter(UNIT, (me, key(3)), TaskAttribute::Simple);
        assert_eq!(sets.leave(UNIT, (me, key(2))), [key(3)]);
    }

    #[test]
    fn tasks_of_other_sessions_are_in_the_same_set_and_their_sessions_are_told() {
        let sets = TaskSets::default();
        let (me, you) = (sets.join(), sets.join());
        let told = Arc::new(AtomicUsize::new(0));
        let count = told.clone();
        sets.tell_by(
            you,
            Arc::new(move || {
                count.fetch_add(1, Ordering::Relaxed);
            }),
        );
        assert!(sets.enter(UNIT, (me, key(1)), TaskAttribute::Simple));
        assert!(!sets.enter(UNIT, (you, key(1)), TaskAttribute::Ordered));
        assert!(sets.enter(Lun([1; 8]), (you, key(2)), TaskAttribute::Ordered), "another unit");
        assert!(sets.take(you).is_empty());
        assert!(sets.leave(UNIT, (me, key(1))).is_empty());
        assert_eq!((sets.take(you), told.load(Ordering::Relaxed)), (vec![key(1)], 1));
        assert!(!sets.enter(UNIT, (me, key(3)), TaskAttribute::Simple));
        sets.forget(you);
        assert_eq!(sets.take(me), [key(3)], "who is gone holds nobody");
    }
}
