//! The target of a move: who has the VM from its verdict on.

use super::{
    Standing,
    rules::{Rule, hold},
};

/// What a target writes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// It was told to run here, and this host has it from then on.
    Ran,
    /// It never ran here and never will.
    Refused,
    /// It is one of this host's, running.
    Vm,
    /// Nothing is kept of its arrival.
    NoArrival,
    /// There is no verdict.
    NoVerdict,
}

/// How far a move has come at its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Memory and state are on their way.
    Receiving,
    /// Everything is here; the word of the source is not.
    Waiting,
    /// The word is here; the verdict is being written.
    Deciding,
    /// The disks are being opened.
    Opening,
    /// It runs, and is being made one of this host's by the records.
    Running,
    /// It is; what was kept of its arrival is being cleared away.
    Clearing,
    /// It runs, and the verdict is there for the source.
    Settled,
    /// It cannot run; that is being written.
    Refusing,
    /// It does not run here by this move. A verdict may be there for the source.
    Gone,
}

/// What happens to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Memory and state are complete and restored.
    Complete,
    /// It could not be received.
    Failed,
    /// The source is lost.
    Lost,
    /// The source has said where the move stands with it: by the word that is given or taken back, by
    /// its answer, or, with `Never`, by the last word.
    Heard(Standing),
    /// What was to be written is durable, or could not be written.
    Written(bool),
    /// The disks are open, or cannot be.
    Opened(bool),
}

/// What the target does, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Tell the source that all is here.
    SayReady,
    /// Write or delete a record durably, and say whether that is done. What could not be written is
    /// asked for again, after a pause, if it must be.
    Write(Record),
    /// Open the disks, and say whether they are.
    Open,
    /// Have the guest run.
    Run,
    /// Tell who gave the word what came of it: it runs, or it does not and never will.
    Answer(bool),
    /// Ask the source where the move stands, after a pause.
    Ask,
    /// End what came of the guest.
    Drop,
}

/// A move at its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    state: State,
}

impl Default for Target {
    fn default() -> Self {
        Self { state: State::Receiving }
    }
}

impl Target {
    /// A move of which records were found when this host began: whether something is kept of its arrival,
    /// and the verdict (`Some(true)`: ran). `None` if nothing speaks of it.
    pub fn recovered(arrival: bool, verdict: Option<bool>) -> Option<(Self, Vec<Effect>)> {
        let (state, effects) = match (arrival, verdict) {
            (true, Some(true)) if hold(Rule::RecoverByVerdict) => {
                (State::Running, vec![Effect::Write(Record::Vm)])
            }
            (true, _) => (State::Gone, vec![Effect::Write(Record::NoArrival)]),
            (false, Some(true)) => (State::Settled, vec![Effect::Ask]),
            (false, Some(false)) => (State::Gone, vec![Effect::Ask]),
            (false, None) => return None,
        };
        Some((Self { state }, effects))
    }

    /// How far it is.
    pub fn state(self) -> State {
        self.state
    }

    /// Whether the word of the source is what is waited for.
    pub fn is_waiting(self) -> bool {
        self.state == State::Waiting
    }

    /// What came of the source's word, once that is known: whether the guest runs.
    pub fn outcome(self) -> Option<bool> {
        match self.state {
            State::Running | State::Clearing | State::Settled => Some(true),
            State::Gone => Some(false),
            _ => None,
        }
    }

    /// What the source hears when it asks.
    pub fn standing(self) -> Standing {
        match self.outcome() {
            Some(true) => Standing::Given,
            Some(false) => Standing::Never,
            None => Standing::Waiting,
        }
    }

    /// Takes what happened; what is done next. What does not belong to the state changes nothing.
    #[must_use]
    pub fn apply(&mut self, event: Event) -> Vec<Effect> {
        use Effect::{Answer, Ask, Drop, Open, Run, SayReady, Write};
        use Standing::{Given, Never, Waiting};
        let (state, effects) = match (self.state, event) {
            (State::Receiving, Event::Complete) => (State::Waiting, vec![SayReady]),
            (State::Receiving, Event::Failed | Event::Lost | Event::Heard(Never))
            | (State::Waiting, Event::Heard(Never)) => {
                (State::Gone, vec![Drop, Write(Record::NoArrival)])
            }
            (State::Waiting, Event::Lost) if !hold(Rule::NeverByItself) => {
                (State::Deciding, vec![Write(Record::Ran)])
            }
            (State::Waiting, Event::Lost | Event::Heard(Waiting)) => (State::Waiting, vec![Ask]),
            (State::Waiting, Event::Heard(Given)) if !hold(Rule::VerdictFirst) => {
                (State::Opening, vec![Open])
            }
            (State::Waiting, Event::Heard(Given)) => (State::Deciding, vec![Write(Record::Ran)]),
            (State::Deciding, Event::Written(true)) => (State::Opening, vec![Open]),
            // A verdict that could not be written may be there after a loss of power.
            (State::Deciding, Event::Written(false)) | (State::Opening, Event::Opened(false)) => {
                let early = (!hold(Rule::RefuseFirst)).then_some(Answer(false));
                let order = early.into_iter().chain([Write(Record::Refused)]);
                (State::Refusing, order.collect())
            }
            (State::Opening, Event::Opened(true)) => {
                let first = if hold(Rule::SettleFirst) { Record::Vm } else { Record::NoArrival };
                // The source waits for the answer with its guest paused: the records come after it.
                (State::Running, vec![Run, Answer(true), Write(first)])
            }
            (State::Refusing, Event::Written(true)) => {
                (State::Gone, vec![Answer(false), Drop, Write(Record::NoArrival)])
            }
            // The source may take it back only after this is written.
            (State::Refusing, Event::Written(false)) => {
                (State::Refusing, vec![Write(Record::Refused)])
            }
            (State::Running, Event::Written(true)) => {
                let next = if hold(Rule::SettleFirst) { Record::NoArrival } else { Record::Vm };
                (State::Clearing, vec![Write(next)])
            }
            (State::Running, Event::Written(false)) => (State::Running, vec![Write(Record::Vm)]),
            (State::Clearing, Event::Written(true)) => (State::Settled, Vec::new()),
            (State::Clearing, Event::Written(false)) => {
                (State::Clearing, vec![Write(Record::NoArrival)])
            }
            (State::Gone, Event::Written(false)) => (State::Gone, vec![Write(Record::NoArrival)]),
            (State::Running | State::Clearing, Event::Heard(Never)) if !hold(Rule::ForgetLast) => {
                (self.state, vec![Write(Record::NoVerdict)])
            }
            (State::Settled | State::Gone, Event::Heard(Never)) => {
                (self.state, vec![Write(Record::NoVerdict)])
            }
            (State::Settled, Event::Heard(_) | Event::Lost) if !hold(Rule::ForgetByTheSource) => {
                (self.state, vec![Write(Record::NoVerdict)])
            }
            // It has the last word still to say.
            (State::Settled | State::Gone, Event::Heard(_) | Event::Lost) => {
                (self.state, vec![Ask])
            }
            (state, _) => (state, Vec::new()),
        };
        self.state = state;
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(events: &[Event]) -> (Target, Vec<Effect>) {
        let mut target = Target::default();
        let mut effects = Vec::new();
        for event in events {
            effects = target.apply(*event);
        }
        (target, effects)
    }

    const GIVEN: Event = Event::Heard(Standing::Given);
    const NEVER: Event = Event::Heard(Standing::Never);

    #[test]
    fn a_move_that_goes_well() {
        let all = [Event::Complete, GIVEN, Event::Written(true), Event::Opened(true)];
        assert_eq!(after(&all[..1]).1, [Effect::SayReady]);
        assert_eq!(after(&all[..2]).1, [Effect::Write(Record::Ran)]);
        assert_eq!(after(&all[..3]).1, [Effect::Open]);
        let (mut target, runs) = after(&all);
        assert_eq!(runs, [Effect::Run, Effect::Answer(true), Effect::Write(Record::Vm)]);
        assert_eq!(target.standing(), Standing::Given);
        // The last word comes too early for the verdict to go.
        assert_eq!(target.apply(NEVER), []);
        assert_eq!(target.apply(Event::Written(true)), [Effect::Write(Record::NoArrival)]);
        assert_eq!(target.apply(NEVER), []);
        assert_eq!(target.apply(Event::Written(true)), []);
        assert_eq!(target.state(), State::Settled);
        assert_eq!(target.apply(Event::Lost), [Effect::Ask]);
        assert_eq!(target.apply(NEVER), [Effect::Write(Record::NoVerdict)]);
    }

    #[test]
    fn who_cannot_run_it_says_so_when_that_is_durable() {
        let cannot = [Event::Complete, GIVEN, Event::Written(true), Event::Opened(false)];
        let unwritten = [Event::Complete, GIVEN, Event::Written(false)];
        for events in [&cannot[..], &unwritten] {
            let (mut target, refuses) = after(events);
            assert_eq!(refuses, [Effect::Write(Record::Refused)]);
            assert_eq!((target.outcome(), target.standing()), (None, Standing::Waiting));
            assert_eq!(target.apply(Event::Written(false)), [Effect::Write(Record::Refused)]);
            let told = target.apply(Event::Written(true));
            assert!(told.contains(&Effect::Answer(false)));
            assert_eq!(target.standing(), Standing::Never);
        }
    }

    #[test]
    fn a_word_that_is_given_twice_is_taken_once() {
        let (mut target, _) = after(&[Event::Complete, GIVEN]);
        assert_eq!(target.apply(GIVEN), []);
        assert_eq!(target.apply(Event::Written(true)), [Effect::Open]);
        assert_eq!(target.apply(GIVEN), []);
        assert_eq!(target.apply(NEVER), []);
    }

    #[test]
    fn after_a_start_the_verdict_says() {
        let state = |arrival, verdict| Target::recovered(arrival, verdict).map(|it| it.0.state());
        assert_eq!(state(true, Some(true)), Some(State::Running));
        assert_eq!(state(true, None), Some(State::Gone));
        assert_eq!(state(true, Some(false)), Some(State::Gone));
        assert_eq!(state(false, Some(true)), Some(State::Settled));
        assert_eq!(state(false, None), None);
    }
}
