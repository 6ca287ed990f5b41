//! Why something is slow: figures of shares, of the files that are used most and of LUNs, looked at every
//! ten seconds and whenever somebody asks.
//!
//! ```text
//!  meters, sessions, TCP_INFO ─┐
//!  Iscsi (times of LUNs)       ├─► Snapshot, kept for a while ─► Facts of two ─► rules ─► WhyReport
//!  machine (/proc, /sys)       ┘
//! ```

mod collect;
pub mod machine;
pub mod rules;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use server_api::WhyReport;
use smb_protocol::ntlm::users;
use smb_server::Server;

use self::collect::{Snapshot, Subject};
use crate::iscsi::Iscsi;

/// Time between two looks.
pub const EVERY: Duration = Duration::from_secs(10);
/// Looks that are kept.
const KEPT: usize = 4;
/// Less time says little.
const SHORTEST: Duration = Duration::from_secs(5);

/// Causes that were seen at the last look: the subject, the cause, and since when.
type Seen = HashMap<(String, String), Instant>;

/// What looks at the server.
pub struct Watch {
    server: Arc<Server>,
    iscsi: Arc<Iscsi>,
    state: Mutex<State>,
}

struct State {
    /// Earlier looks, the oldest first; there is always one.
    looks: VecDeque<Snapshot>,
    seen: Seen,
}

impl Watch {
    /// Begins to look at a server; what is said is about the time from now on. On a thread that may
    /// wait, inside a tokio runtime.
    pub fn new(server: Arc<Server>, iscsi: Arc<Iscsi>) -> Self {
        let looks = VecDeque::from([Snapshot::take(&server, &iscsi)]);
        Self { server, iscsi, state: Mutex::new(State { looks, seen: Seen::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks, and remembers it. On a thread that may wait.
    pub fn look(&self) {
        let now = Snapshot::take(&self.server, &self.iscsi);
        let mut state = self.lock();
        let State { looks, seen } = &mut *state;
        let subjects = now.subjects();
        let mut still = Seen::new();
        for subject in &subjects {
            let report = self.report(&now, looks, subject);
            for cause in report.into_iter().flat_map(|report| report.causes) {
                let key = (subject.name.clone(), cause.cause);
                let since = seen.get(&key).copied().unwrap_or(now.at);
                still.insert(key, since);
            }
        }
        *seen = still;
        looks.push_back(now);
        while looks.len() > KEPT {
            looks.pop_front();
        }
        drop(state);
        self.server.meters.files.age();
    }

    /// What is said of a subject: of the shortest time in which something was wrong with it, so that a good
    /// half minute hides no fault that began after it; of all the time that is remembered where nothing
    /// was wrong. `None` before the first look.
    fn report(
        &self,
        now: &Snapshot,
        looks: &VecDeque<Snapshot>,
        subject: &Subject,
    ) -> Option<WhyReport> {
        let oldest = looks.front()?;
        let long = |look: &&Snapshot| now.at.saturating_duration_since(look.at) >= SHORTEST;
        let newer = looks.iter().skip(1).rev().filter(long);
        let of = |before| collect::report(&self.server, now, before, subject);
        newer.map(of).find(|report| !report.causes.is_empty()).or_else(|| Some(of(oldest)))
    }

    /// What can be said now: of one subject by its name, or of all. On a thread that may wait.
    ///
    /// # Errors
    /// Nothing has that name.
    pub fn reports(&self, what: Option<&str>) -> Result<Vec<WhyReport>, String> {
        let now = Snapshot::take(&self.server, &self.iscsi);
        let subjects = now.subjects();
        let wanted: Vec<_> = match what {
            None => subjects,
            Some(what) => {
                let folded = folded(what);
                let found = subjects.into_iter().filter(|it| folded == self::folded(&it.name));
                let found: Vec<Subject> = found.collect();
                if found.is_empty() {
                    return Err(format!(
                        "{what} is no share, no LUN (target/number) and none of the files that are used \
                         most (share/path): `bulkhead why` shows all"
                    ));
                }
                found
            }
        };
        let mut state = self.lock();
        let State { looks, seen } = &mut *state;
        let mut reports = Vec::new();
        for subject in &wanted {
            let report = self.report(&now, looks, subject);
            let mut report = report.ok_or("nobody has looked yet")?;
            for cause in &mut report.causes {
                let key = (subject.name.clone(), cause.cause.clone());
                let since = *seen.entry(key).or_insert(now.at);
                cause.since_s = now.at.saturating_duration_since(since).as_secs();
            }
            reports.push(report);
        }
        // What is wrong first, then what is used most.
        reports.sort_by_key(|it| (it.causes.is_empty(), std::cmp::Reverse(it.operations)));
        Ok(reports)
    }
}

/// A name as it is compared.
fn folded(name: &str) -> String {
    users::fold(name.replace('\\', "/").trim_matches('/'))
}
