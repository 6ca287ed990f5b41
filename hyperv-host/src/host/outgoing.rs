//! Moves of which this host is the source: what it answers when it is asked about them, and how one is
//! cancelled.

use std::{collections::HashMap, sync::Mutex};

use super::records::MoveId;
use crate::{handover::Standing, tls::Cutter};
use vmm::platform::bus::lock;

/// The moves that something here speaks of.
#[derive(Debug, Default)]
pub struct Outgoing(Mutex<HashMap<MoveId, Standing>>);

impl Outgoing {
    /// Where a move stands, if anything here speaks of it.
    pub fn get(&self, id: &MoveId) -> Option<Standing> {
        lock(&self.0).get(id).copied()
    }

    /// Says where a move stands; `None` when nothing here speaks of it any more.
    pub fn set(&self, id: &MoveId, standing: Option<Standing>) {
        let mut moves = lock(&self.0);
        match standing {
            Some(standing) => moves.insert(id.clone(), standing),
            None => moves.remove(id),
        };
    }

    /// Takes in a move that begins, if fewer than `limit` are on their way.
    pub fn begin(&self, id: &MoveId, limit: usize) -> bool {
        let mut moves = lock(&self.0);
        let on_their_way = moves.values().filter(|standing| **standing == Standing::Waiting);
        let room = on_their_way.count() < limit;
        if room {
            moves.insert(id.clone(), Standing::Waiting);
        }
        room
    }
}

#[derive(Debug, Default)]
struct Will {
    cancelled: bool,
    /// It is too late.
    decided: bool,
    cutters: Vec<Cutter>,
}

/// What ends a move before its hand-over, from outside.
#[derive(Debug, Default)]
pub struct Cancel(Mutex<Will>);

impl Cancel {
    /// Ends the move: its connections are cut, now and later. Whether it is not too late.
    pub fn cancel(&self) -> bool {
        let mut will = lock(&self.0);
        if will.decided {
            return false;
        }
        will.cancelled = true;
        will.cutters.iter().for_each(Cutter::cut);
        true
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        lock(&self.0).cancelled
    }

    /// From now on it is too late; whether it was not cancelled before.
    pub fn decide(&self) -> bool {
        let mut will = lock(&self.0);
        will.decided = !will.cancelled;
        will.decided
    }

    /// A connection of the move.
    pub fn add(&self, cutter: Cutter) {
        let mut will = lock(&self.0);
        if will.cancelled {
            cutter.cut();
        }
        will.cutters.push(cutter);
    }

    /// Cuts all connections, as a fault of the network would.
    pub fn cut(&self) {
        lock(&self.0).cutters.iter().for_each(Cutter::cut);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_decided_is_not_cancelled_and_the_other_way_round() {
        let (early, late) = (Cancel::default(), Cancel::default());
        assert!(early.cancel() && early.is_cancelled() && !early.decide());
        assert!(late.decide() && !late.cancel() && !late.is_cancelled());
    }

    #[test]
    fn only_moves_on_their_way_count() {
        let ids: Vec<_> = (0..3).map(|_| MoveId::random().unwrap()).collect();
        let outgoing = Outgoing::default();
        assert!(outgoing.begin(&ids[0], 1) && !outgoing.begin(&ids[1], 1));
        assert_eq!(outgoing.get(&ids[1]), None);
        outgoing.set(&ids[0], Some(Standing::Given));
        assert!(outgoing.begin(&ids[1], 1));
        outgoing.set(&ids[0], None);
        assert_eq!(outgoing.get(&ids[0]), None);
    }
}
