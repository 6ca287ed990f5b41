//! Faults on demand, so that a test can break a move at every point and see who goes on.
//!
//! A point is passed by its name ([`POINTS`]); `--fault POINT=ACTION` says what happens there:
//! `die` kills the process, `drop` cuts the move's connections, `stall` stops the move's thread
//! for two timeouts. Each acts once.

use std::{str::FromStr, sync::Mutex, time::Duration};

use vmm::platform::bus::lock;

/// All points, in the order in which a move passes them.
pub const POINTS: [&str; 21] = [
    "target.accepted",
    "source.connected",
    "source.precopy",
    "target.precopy",
    "source.paused",
    "source.disk-closed",
    "source.state-sent",
    "target.state",
    "target.ready",
    "source.ready",
    "source.recorded",
    "source.commit-sent",
    "target.commit",
    "target.recorded",
    "target.disk-open",
    "target.running",
    "target.settle",
    "target.settled",
    "source.running",
    "source.gone",
    "target.forgotten",
];

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The process is killed.
    Die,
    /// The connections of the move are cut.
    Drop,
    /// The thread stops for two timeouts.
    Stall,
}

/// A point and what happens there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// One of [`POINTS`].
    pub point: String,
    /// What happens when the point is passed.
    pub action: Action,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (point, action) = text.split_once('=').ok_or("POINT=ACTION")?;
        if !POINTS.contains(&point) {
            return Err(format!("points are {}", POINTS.join(", ")));
        }
        let action = match action {
            "die" => Action::Die,
            "drop" => Action::Drop,
            "stall" => Action::Stall,
            _ => return Err("actions are die, drop, stall".into()),
        };
        Ok(Self { point: point.to_owned(), action })
    }
}

/// The faults that are still to come.
#[derive(Debug, Default)]
pub struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    /// The faults of the command line, each of which acts once.
    pub fn new(faults: Vec<Fault>) -> Self {
        Self(Mutex::new(faults))
    }

    /// Passes a point; `cut` cuts the connections of the move.
    pub fn pass(&self, point: &str, timeout: Duration, cut: impl FnOnce()) {
        debug_assert!(POINTS.contains(&point), "{point}");
        let action = {
            let mut faults = lock(&self.0);
            let Some(index) = faults.iter().position(|fault| fault.point == point) else { return };
            faults.remove(index).action
        };
        tracing::warn!(point, ?action, "a fault that was asked for");
        match action {
            Action::Die => {
                let _ = rustix::process::kill_process(
                    rustix::process::getpid(),
                    rustix::process::Signal::KILL,
                );
            }
            Action::Drop => cut(),
            Action::Stall => std::thread::sleep(timeout * 2),
        }
    }
}
