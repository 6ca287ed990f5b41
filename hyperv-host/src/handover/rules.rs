//! The rules that keep one guest running, and one only, which the simulation breaks one at a time to
//! see that it notices.

/// A rule that a host keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The source's record of the hand-over is durable before the word is given.
    RecordFirst,
    /// The source answers that the VM is the target's only when that is in its record.
    GivenByRecord,
    /// Once it has handed the VM over, the source runs it only when the target says that it never will.
    NoWayBack,
    /// The source's record is gone before the last word is said.
    DeleteFirst,
    /// The target has its verdict durable before the guest runs there.
    VerdictFirst,
    /// A target that has it all runs it by the source's word alone.
    NeverByItself,
    /// That it cannot run is durable before the source is told.
    RefuseFirst,
    /// The VM is in the target's records before what was kept of its arrival goes.
    SettleFirst,
    /// The verdict goes only when the VM is in the records.
    ForgetLast,
    /// The verdict goes only when nothing at the source speaks of the move.
    ForgetByTheSource,
    /// After a start of the host, what had been told to run is settled, not cleared away.
    RecoverByVerdict,
    /// A run at the target is later than any at the source.
    LaterRun,
}

#[cfg(test)]
thread_local! {
    static BROKEN: std::cell::Cell<Option<Rule>> = const { std::cell::Cell::new(None) };
}

/// From now on hosts of this thread break a rule.
#[cfg(test)]
pub fn break_one(rule: Option<Rule>) {
    BROKEN.set(rule);
}

/// Whether a rule is kept.
#[cfg(test)]
pub(crate) fn hold(rule: Rule) -> bool {
    BROKEN.get() != Some(rule)
}

/// Whether a rule is kept: it is.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn hold(_: Rule) -> bool {
    true
}
