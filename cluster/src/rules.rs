//! The rules that keep two nodes from owning a role at once, which the simulation breaks one at a time to
//! see that it notices.

/// A rule that a node keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The gate's time begins when the lease was asked for, not when the answer came.
    FromAsking,
    /// The gate closes earlier than the lease is over.
    Margin,
    /// A renewal counts if a quorum was read in the same term after it.
    SameTerm,
    /// Who has lost its lease stops everything before it has another one.
    StopWhenIsolated,
    /// A role has ended here before it is given up.
    StopFirst,
    /// A role is taken from nobody, or from the dead.
    OnlyTheDead,
    /// It is taken if it is still as it was seen.
    AsItWas,
    /// A node is counted dead if it still has not said anything since it was last heard.
    StillSilent,
    /// With agents, one has ended a dead node before anything is taken from it.
    FenceFirst,
}

#[cfg(test)]
thread_local! {
    static BROKEN: std::cell::Cell<Option<Rule>> = const { std::cell::Cell::new(None) };
}

/// From now on nodes of this thread break a rule.
#[cfg(test)]
pub(crate) fn break_one(rule: Option<Rule>) {
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
