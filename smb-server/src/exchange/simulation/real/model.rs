//! What a block of a file may hold, whatever overlaps: linearizability of one register.
//!
//! ```text
//!  begin(write 7) ─┬─► states: {value, what took effect, what reads saw}
//!  begin(read)    ─┘      │ before each end: every order in which what is under way may have
//!  end(read, 7)  ────────►│ taken effect is added
//!                         └─► only the states that the answer allows stay; none left: not as one
//!                             register would be
//! ```

use std::collections::BTreeSet;

/// Operations on one block that may be under way together.
pub(super) const MOST: usize = 4;

/// One way in which things may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    value: u8,
    /// Whether what is under way in each place has taken effect.
    done: [bool; MOST],
    /// What a read in each place saw, if it has taken effect.
    seen: [u8; MOST],
}

/// What is under way in one place.
#[derive(Debug, Clone, Copy)]
enum Action {
    Write(u8),
    Read,
}

/// A block.
#[derive(Debug)]
pub(super) struct Register {
    states: BTreeSet<State>,
    /// The same without what reads saw: what may be durable where writes are when they end.
    durable: BTreeSet<State>,
    places: [Option<Action>; MOST],
    /// Which of these are writes that have failed, and may have taken effect.
    failed: [bool; MOST],
    /// A read was answered while writes were under way, which still are.
    peeked: bool,
}

impl Register {
    /// One that holds a value.
    pub(super) fn new(value: u8) -> Self {
        let state = State { value, done: [false; MOST], seen: [0; MOST] };
        Self {
            states: BTreeSet::from([state]),
            durable: BTreeSet::from([state]),
            places: [None; MOST],
            failed: [false; MOST],
            peeked: false,
        }
    }

    fn begin(&mut self, action: Action) -> Option<usize> {
        let place = self.places.iter().position(Option::is_none)?;
        self.places[place] = Some(action);
        Some(place)
    }

    /// A write begins; gives its place, if there is one. One at a time: a client repeats a write
    /// whose answer is lost, and so may put it over another that overlaps it.
    pub(super) fn write(&mut self, value: u8) -> Option<usize> {
        let busy = (0..MOST)
            .any(|at| matches!(self.places[at], Some(Action::Write(_))) && !self.failed[at]);
        if busy { None } else { self.begin(Action::Write(value)) }
    }

    /// A read begins; gives its place, if there is one.
    pub(super) fn read(&mut self) -> Option<usize> {
        self.begin(Action::Read)
    }

    /// Adds every state that what is under way may have led to.
    fn spread(&mut self) {
        for (states, reads) in [(&mut self.states, true), (&mut self.durable, false)] {
            let mut new: Vec<_> = states.iter().copied().collect();
            while let Some(state) = new.pop() {
                for (place, action) in self.places.iter().enumerate() {
                    let Some(action) = action.filter(|_| !state.done[place]) else { continue };
                    let mut next = state;
                    next.done[place] = true;
                    match action {
                        Action::Write(value) => next.value = value,
                        Action::Read if reads => next.seen[place] = state.value,
                        Action::Read => continue,
                    }
                    if states.insert(next) {
                        new.push(next);
                    }
                }
            }
        }
    }

    /// What is in a place ends, for a read with what it saw. `false` if no order explains it.
    pub(super) fn end(&mut self, place: usize, saw: Option<u8>) -> bool {
        self.spread();
        let allowed = |state: &State| {
            let right = saw.is_none_or(|saw| state.seen[place] == saw);
            (state.done[place] && right).then(|| {
                let mut state = *state;
                (state.done[place], state.seen[place]) = (false, 0);
                state
            })
        };
        self.states = self.states.iter().filter_map(allowed).collect();
        let read = matches!(self.places[place].take(), Some(Action::Read));
        if !read {
            self.durable = self.durable.iter().filter_map(allowed).collect();
        }
        let writes = self.places.iter().any(|action| matches!(action, Some(Action::Write(_))));
        self.peeked = writes && (self.peeked || read);
        !self.states.is_empty()
    }

    /// Whether a read may have seen a write that has no answer.
    pub(super) fn is_peeked(&self) -> bool {
        self.peeked
    }

    /// The power is lost where writes are durable when they end, and this value is left; `false` if
    /// it cannot be. What was read of a write that has not ended may be gone, and come again.
    pub(super) fn lose_power(&mut self, left: u8) -> bool {
        self.spread();
        self.durable.retain(|state| state.value == left);
        let is_read = |place: usize| matches!(self.places[place], Some(Action::Read));
        let mut states = BTreeSet::new();
        for (durable, before) in
            self.durable.iter().flat_map(|now| self.states.iter().map(move |then| (now, then)))
        {
            let mut state = *durable;
            for place in (0..MOST).filter(|place| is_read(*place)) {
                (state.done[place], state.seen[place]) = (before.done[place], before.seen[place]);
            }
            states.insert(state);
        }
        self.states = states;
        self.peeked = false;
        !self.durable.is_empty()
    }

    /// What is in a place has failed: a read saw nothing, a write may take effect yet.
    pub(super) fn fail(&mut self, place: usize) {
        self.spread();
        self.failed[place] = true;
        if matches!(self.places[place], Some(Action::Read)) {
            self.failed[place] = false;
            let forget = |state: &State| {
                let mut state = *state;
                (state.done[place], state.seen[place]) = (false, 0);
                state
            };
            self.states = self.states.iter().map(forget).collect();
            self.places[place] = None;
        }
    }

    /// Whether it may hold a value now.
    pub(super) fn may_be(&mut self, value: u8) -> bool {
        self.spread();
        self.states.iter().any(|state| state.value == value)
    }
}

#[test]
fn a_register_knows_what_overlaps() {
    // Reads beside a write see it or not; once it was seen it is there.
    for (first, second, right) in [(0, 0, true), (0, 1, true), (1, 1, true), (1, 0, false)] {
        let mut block = Register::new(0);
        let (write, read) = (block.write(1).unwrap(), block.read().unwrap());
        assert!(block.write(2).is_none());
        assert!(block.end(read, Some(first)));
        let read = block.read().unwrap();
        assert_eq!(block.end(read, Some(second)), right);
        assert!(!right || block.end(write, None) && block.may_be(1) && !block.may_be(0));
    }
    // What was acknowledged before a write began does not come back.
    let mut block = Register::new(0);
    for value in [1, 2] {
        let write = block.write(value).unwrap();
        assert!(block.end(write, None));
    }
    assert!(!block.may_be(1));
    let read = block.read().unwrap();
    assert!(!block.end(read, Some(1)));
    // What was acknowledged outlives the power; what was only seen does not.
    let mut block = Register::new(0);
    let write = block.write(1).unwrap();
    let read = block.read().unwrap();
    assert!(block.end(read, Some(1)) && block.lose_power(0));
    let read = block.read().unwrap();
    assert!(block.end(read, Some(0)) && block.end(write, None));
    assert!(block.may_be(1) && !block.may_be(0) && !block.lose_power(0));
    // A write that failed may be there or not.
    let mut block = Register::new(0);
    let write = block.write(1).unwrap();
    block.fail(write);
    assert!(block.may_be(0) && block.may_be(1) && block.write(2).is_some());
}
