//! The source of a move: who has the VM until it is handed over.

use super::{
    Standing,
    rules::{Rule, hold},
};

/// What the source's record of the VM says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// It runs here. While it is being sent the record may name the move, which means the same.
    Running,
    /// It is the target's, unless that says that it never ran there and never will.
    HandedOver,
    /// Nothing: the VM is none of this host's.
    Gone,
}

/// How far a move has come at its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Memory and state are on their way; the guest runs, or is paused at the end.
    Sending,
    /// The target has it all; the record of the hand-over is being written.
    Recording,
    /// It is handed over, and what the target does is not known.
    Given,
    /// The target has it; what is left here is being forgotten.
    Leaving,
    /// It stays here; that is being recorded.
    Staying,
    /// It runs here again; that could not be recorded yet.
    Unrecorded,
    /// It has stayed here.
    Stays,
    /// It is the target's, and nothing here speaks of it.
    Gone,
}

/// What happens to the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The target has said that it has it all.
    Ready,
    /// The move cannot go on, or is not wanted any more.
    Failed,
    /// What was to be written is durable, or could not be written.
    Written(bool),
    /// The target has said where the move stands with it.
    Heard(Standing),
    /// The target has said nothing.
    Silence,
    /// The operator has decided: it runs here, or is given up.
    Decided(bool),
}

/// What the source does, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Write a record durably, and say whether it is. One that could not be written is asked for
    /// again, after a pause.
    Write(Record),
    /// Tell the target that the VM is its own, and hear what comes of it.
    Give,
    /// Tell the target that the VM stays here; it gives up at once if it hears that.
    Abort,
    /// Ask the target where the move stands, after a pause.
    Ask,
    /// Have the guest go on here.
    Run,
    /// End what is left of the guest here.
    End,
    /// Tell the target that nobody will ask about the move again.
    LastWord,
}

/// A move at its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    state: State,
}

impl Default for Source {
    fn default() -> Self {
        Self { state: State::Sending }
    }
}

impl Source {
    /// A move that was handed over when this host ended, by its record; and what is done first.
    pub fn recovered() -> (Self, Vec<Effect>) {
        (Self { state: State::Given }, vec![Effect::Ask])
    }

    /// How far it is.
    pub fn state(self) -> State {
        self.state
    }

    /// Whether nothing more is to come.
    pub fn is_over(self) -> bool {
        matches!(self.state, State::Stays | State::Gone)
    }

    /// What the target hears when it asks.
    pub fn standing(self) -> Standing {
        match self.state {
            State::Recording if !hold(Rule::GivenByRecord) => Standing::Given,
            State::Sending | State::Recording => Standing::Waiting,
            State::Given | State::Leaving => Standing::Given,
            State::Staying | State::Unrecorded | State::Stays | State::Gone => Standing::Never,
        }
    }

    /// Takes what happened; what is done next. What does not belong to the state changes nothing.
    #[must_use]
    pub fn apply(&mut self, event: Event) -> Vec<Effect> {
        use Effect::{Abort, Ask, End, Give, LastWord, Run, Write};
        let (state, effects) = match (self.state, event) {
            (State::Sending, Event::Ready) if !hold(Rule::RecordFirst) => {
                (State::Given, vec![Give, Write(Record::HandedOver)])
            }
            (State::Sending, Event::Ready) => (State::Recording, vec![Write(Record::HandedOver)]),
            (State::Sending, Event::Failed) | (State::Recording, Event::Written(false)) => {
                (State::Staying, vec![Abort, Write(Record::Running)])
            }
            (State::Recording, Event::Written(true)) => (State::Given, vec![Give]),
            (State::Given, Event::Heard(Standing::Given) | Event::Decided(false)) => {
                let order = [End, Write(Record::Gone)];
                let early = (!hold(Rule::DeleteFirst)).then_some(LastWord);
                (State::Leaving, early.into_iter().chain(order).collect())
            }
            (State::Given, Event::Heard(Standing::Never) | Event::Decided(true)) => {
                (State::Staying, vec![Write(Record::Running)])
            }
            // It has not heard the word, which is given again.
            (State::Given, Event::Heard(Standing::Waiting)) => (State::Given, vec![Give]),
            (State::Given, Event::Silence) if !hold(Rule::NoWayBack) => {
                (State::Staying, vec![Write(Record::Running)])
            }
            (State::Given, Event::Silence) => (State::Given, vec![Ask]),
            (State::Leaving, Event::Written(true)) => (State::Gone, vec![LastWord]),
            // As long as a record speaks of it this host asks the target about it after a start, and
            // the answer must be there: so the last word waits.
            (State::Leaving, Event::Written(false)) => (State::Leaving, vec![Write(Record::Gone)]),
            (State::Staying, Event::Written(true)) => (State::Stays, vec![Run, LastWord]),
            // The record says that it was handed over, at worst, and the target will say that it never
            // runs there. So the guest need not wait, but nobody else may do anything with it.
            (State::Staying, Event::Written(false)) => {
                (State::Unrecorded, vec![Run, Write(Record::Running)])
            }
            (State::Unrecorded, Event::Written(false)) => {
                (State::Unrecorded, vec![Write(Record::Running)])
            }
            (State::Unrecorded, Event::Written(true)) => (State::Stays, vec![LastWord]),
            (state, _) => (state, Vec::new()),
        };
        self.state = state;
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(events: &[Event]) -> (Source, Vec<Effect>) {
        let mut source = Source::default();
        let mut effects = Vec::new();
        for event in events {
            effects = source.apply(*event);
        }
        (source, effects)
    }

    #[test]
    fn a_move_that_goes_well() {
        let (source, first) = after(&[Event::Ready]);
        assert_eq!(first, [Effect::Write(Record::HandedOver)]);
        assert_eq!(source.standing(), Standing::Waiting);
        let (source, given) = after(&[Event::Ready, Event::Written(true)]);
        assert_eq!((source.standing(), given), (Standing::Given, vec![Effect::Give]));
        let all = [Event::Ready, Event::Written(true), Event::Heard(Standing::Given)];
        let (mut source, leaving) = after(&all);
        assert_eq!(leaving, [Effect::End, Effect::Write(Record::Gone)]);
        assert_eq!(source.apply(Event::Written(false)), [Effect::Write(Record::Gone)]);
        assert_eq!(source.apply(Event::Written(true)), [Effect::LastWord]);
        assert!(source.is_over());
        assert_eq!(source.standing(), Standing::Never);
    }

    #[test]
    fn before_the_hand_over_it_stays_and_after_it_the_target_says() {
        let stays = [Effect::Abort, Effect::Write(Record::Running)];
        assert_eq!(after(&[Event::Failed]).1, stays);
        assert_eq!(after(&[Event::Ready, Event::Written(false)]).1, stays);
        let (mut source, _) = after(&[Event::Ready, Event::Written(true)]);
        assert_eq!(source.apply(Event::Failed), []);
        assert_eq!(source.apply(Event::Silence), [Effect::Ask]);
        assert_eq!(source.apply(Event::Heard(Standing::Waiting)), [Effect::Give]);
        assert_eq!(source.apply(Event::Heard(Standing::Never)), [Effect::Write(Record::Running)]);
        let mut unrecorded = source;
        assert_eq!(source.apply(Event::Written(true)), [Effect::Run, Effect::LastWord]);
        assert_eq!(source.state(), State::Stays);
        let again = Effect::Write(Record::Running);
        assert_eq!(unrecorded.apply(Event::Written(false)), [Effect::Run, again]);
        assert_eq!(unrecorded.apply(Event::Written(false)), [again]);
        assert!(!unrecorded.is_over());
        assert_eq!(unrecorded.apply(Event::Written(true)), [Effect::LastWord]);
    }

    #[test]
    fn an_operator_ends_a_doubt_and_nothing_else() {
        for (run, record) in [(true, Record::Running), (false, Record::Gone)] {
            let (mut source, first) = Source::recovered();
            assert_eq!(first, [Effect::Ask]);
            assert!(source.apply(Event::Decided(run)).contains(&Effect::Write(record)));
        }
        assert_eq!(after(&[Event::Decided(false)]).1, []);
    }
}
