//! The order among the tasks of a logical unit, of whichever session they are (SAM-5 8.6): the
//! control mode page says that all nexuses have one task set (TST 000b, SPC-4 7.5.8).
//!
//! ```text
//!  a session ─► enter ─► enabled at once, or it waits ─► a task before it leaves ─► a note for its
//!                                                        session, which is told ─► take
//! ```
//! A session keeps the set of the unit that it used last, so that a command takes no lock but that
//! unit's own.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use scsi::{Lun, TaskAttribute};

use crate::session::TaskKey;

/// Sets that are kept without a user: initiators may name more logical units than there are.
const KEPT: usize = 256;

/// A session's number and a task of it.
type Place = (u64, TaskKey);
/// Tells a session that something waits for it; never waits itself.
type Tell = Arc<dyn Fn() + Send + Sync>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The task sets of all logical units of a target.
#[derive(Default)]
pub struct TaskSets {
    sets: Mutex<BTreeMap<Lun, Arc<TaskSet>>>,
    members: Mutex<Members>,
}

#[derive(Default)]
struct Members {
    next: u64,
    all: HashMap<u64, Member>,
}

#[derive(Default)]
struct Member {
    enabled: Vec<TaskKey>,
    tell: Option<Tell>,
}

impl fmt::Debug for TaskSets {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TaskSets").field("sets", &lock(&self.sets).len()).finish_non_exhaustive()
    }
}

impl TaskSets {
    /// A session begins; its number among those of the target.
    #[must_use]
    pub fn join(&self) -> u64 {
        let mut members = lock(&self.members);
        members.next += 1;
        let number = members.next;
        members.all.insert(number, Member::default());
        number
    }

    /// How a session is told that tasks of it may run because others left.
    pub fn tell_by(&self, session: u64, tell: Tell) {
        if let Some(member) = lock(&self.members).all.get_mut(&session) {
            member.tell = Some(tell);
        }
    }

    /// A session is gone; its tasks have left.
    pub fn forget(&self, session: u64) {
        lock(&self.members).all.remove(&session);
    }

    /// The set of a logical unit.
    #[must_use]
    pub fn of(&self, lun: Lun) -> Arc<TaskSet> {
        let mut sets = lock(&self.sets);
        if let Some(set) = sets.get(&lun) {
            return set.clone();
        }
        // Nobody has tasks in a set that only this map holds.
        if sets.len() >= KEPT {
            sets.retain(|_, set| Arc::strong_count(set) > 1);
        }
        let set = Arc::new(TaskSet { lun, tasks: Mutex::default() });
        sets.insert(lun, set.clone());
        set
    }

    /// A task leaves the set that it entered; those of the same session that may run now.
    pub fn leave(&self, set: &TaskSet, place: Place, attribute: TaskAttribute) -> Vec<TaskKey> {
        let mut enabled = Vec::new();
        lock(&set.tasks).leave(place, attribute, &mut enabled);
        if enabled.is_empty() { Vec::new() } else { self.note(place.0, enabled) }
    }

    /// The tasks of a session that may run because others left.
    #[must_use]
    pub fn take(&self, session: u64) -> Vec<TaskKey> {
        let mut members = lock(&self.members);
        members.all.get_mut(&session).map(|it| std::mem::take(&mut it.enabled)).unwrap_or_default()
    }

    /// Leaves notes for the sessions of tasks that may run; gives those of `own`.
    fn note(&self, own: u64, enabled: Vec<Place>) -> Vec<TaskKey> {
        let mut members = lock(&self.members);
        let mut ours = Vec::new();
        for (session, key) in enabled {
            if session == own {
                ours.push(key);
            } else if let Some(member) = members.all.get_mut(&session) {
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
#[derive(Debug)]
pub struct TaskSet {
    lun: Lun,
    tasks: Mutex<Tasks>,
}

impl TaskSet {
    /// Whose set it is.
    #[must_use]
    pub fn lun(&self) -> Lun {
        self.lun
    }

    /// A task comes in; whether it may run at once. Whoever enters leaves by [`TaskSets::leave`].
    pub fn enter(&self, place: Place, attribute: TaskAttribute) -> bool {
        lock(&self.tasks).enter(place, attribute)
    }
}

/// How many tasks may run, of each attribute, and which wait in their order.
#[derive(Debug, Default)]
struct Tasks {
    simple: usize,
    ordered: usize,
    head: usize,
    waiting: VecDeque<(Place, TaskAttribute)>,
}

impl Tasks {
    fn enter(&mut self, place: Place, attribute: TaskAttribute) -> bool {
        let free = self.waiting.is_empty() || attribute == TaskAttribute::HeadOfQueue;
        if free && self.permits(attribute) {
            *self.count(attribute) += 1;
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

    fn leave(&mut self, place: Place, attribute: TaskAttribute, enabled: &mut Vec<Place>) {
        // One that does not wait was enabled, if only by a note that its session has not taken.
        match self.waiting.iter().position(|(waiting, _)| *waiting == place) {
            Some(at) => drop(self.waiting.remove(at)),
            None => {
                let count = self.count(attribute);
                *count = count.saturating_sub(1);
            }
        }
        while let Some((next, attribute)) = self.waiting.front().copied() {
            if !self.permits(attribute) {
                break;
            }
            self.waiting.pop_front();
            *self.count(attribute) += 1;
            enabled.push(next);
        }
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
        let (me, unit) = (sets.join(), sets.of(UNIT));
        let enter = |itt, attribute| unit.enter((me, key(itt)), attribute);
        let leave = |itt, attribute| sets.leave(&unit, (me, key(itt)), attribute);
        assert!(enter(1, TaskAttribute::Simple));
        assert!(enter(2, TaskAttribute::Simple));
        assert!(!enter(3, TaskAttribute::Ordered));
        assert!(!enter(4, TaskAttribute::Simple));
        assert!(enter(5, TaskAttribute::HeadOfQueue));
        assert!(leave(1, TaskAttribute::Simple).is_empty());
        assert!(leave(2, TaskAttribute::Simple).is_empty());
        assert_eq!(leave(5, TaskAttribute::HeadOfQueue), [key(3)]);
        assert_eq!(leave(3, TaskAttribute::Ordered), [key(4)]);
        assert!(leave(4, TaskAttribute::Simple).is_empty());
        assert!(enter(6, TaskAttribute::Ordered), "nothing is left behind");
    }

    /// An initiator may name units that there are not, each in its turn.
    #[test]
    fn sets_without_users_do_not_grow_without_end() {
        let sets = TaskSets::default();
        let me = sets.join();
        let used = sets.of(UNIT);
        assert!(used.enter((me, key(0)), TaskAttribute::Ordered));
        for n in 1..3 * KEPT as u64 {
            let unit = sets.of(Lun(n.to_be_bytes()));
            assert!(unit.enter((me, key(1)), TaskAttribute::Simple));
            assert!(sets.leave(&unit, (me, key(1)), TaskAttribute::Simple).is_empty());
            assert!(lock(&sets.sets).len() <= KEPT + 1);
        }
        assert!(!sets.of(UNIT).enter((me, key(1)), TaskAttribute::Simple), "the set that is used");
    }

    #[test]
    fn a_waiting_task_that_is_aborted_holds_nobody() {
        let sets = TaskSets::default();
        let (me, unit) = (sets.join(), sets.of(UNIT));
        unit.enter((me, key(1)), TaskAttribute::Simple);
        unit.enter((me, key(2)), TaskAttribute::Ordered);
        unit.enter((me, key(3)), TaskAttribute::Simple);
        assert_eq!(sets.leave(&unit, (me, key(2)), TaskAttribute::Ordered), [key(3)]);
    }

    #[test]
    fn tasks_of_other_sessions_are_in_the_same_set_and_their_sessions_are_told() {
        let sets = TaskSets::default();
        let (me, you, unit) = (sets.join(), sets.join(), sets.of(UNIT));
        let told = Arc::new(AtomicUsize::new(0));
        let count = told.clone();
        let tell = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        sets.tell_by(you, Arc::new(tell));
        assert!(unit.enter((me, key(1)), TaskAttribute::Simple));
        assert!(!unit.enter((you, key(1)), TaskAttribute::Ordered));
        let other = sets.of(Lun([1; 8]));
        assert!(other.enter((you, key(2)), TaskAttribute::Ordered), "another unit");
        assert!(sets.take(you).is_empty());
        assert!(sets.leave(&unit, (me, key(1)), TaskAttribute::Simple).is_empty());
        assert_eq!((sets.take(you), told.load(Ordering::Relaxed)), (vec![key(1)], 1));
        assert!(!unit.enter((me, key(3)), TaskAttribute::Simple));
        // As a session that ends does for all of its tasks.
        assert!(sets.leave(&unit, (you, key(1)), TaskAttribute::Ordered).is_empty());
        sets.forget(you);
        assert_eq!(sets.take(me), [key(3)], "who is gone holds nobody");
    }

    /// The note lies in the session's box when it ends.
    #[test]
    fn a_task_that_was_enabled_by_a_note_leaves_as_one_that_runs() {
        let sets = TaskSets::default();
        let (me, you, unit) = (sets.join(), sets.join(), sets.of(UNIT));
        assert!(unit.enter((me, key(1)), TaskAttribute::Simple));
        assert!(!unit.enter((you, key(1)), TaskAttribute::Ordered));
        assert!(sets.leave(&unit, (me, key(1)), TaskAttribute::Simple).is_empty());
        assert!(sets.leave(&unit, (you, key(1)), TaskAttribute::Ordered).is_empty());
        assert!(unit.enter((me, key(2)), TaskAttribute::Ordered));
    }
}
