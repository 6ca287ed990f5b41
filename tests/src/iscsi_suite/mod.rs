//! A conformance suite for iSCSI targets: named cases, each with the section that it holds a target
//! to, spoken by a client that can lie.
//!
//! ```text
//!  subject.rs (who is tried) ─► login.rs ─► conn.rs (commands) ─► wire.rs (PDUs, what holds of each)
//!  started.rs (smbd and tgt)       └──────────── cases/ ───────────────┘
//! ```
//! A case gives nothing if the target does what the section says, [`Stop::Failed`] with what came
//! instead, or [`Stop::Skipped`] where the target has not what the case is about. The data of the
//! logical unit are lost.

mod cases;
mod conn;
mod login;
pub mod started;
mod subject;
mod wire;

use std::{panic::AssertUnwindSafe, time::Instant};

use serde_json::{Value, json};

pub use cases::all;
pub use subject::{ChapTarget, Subject, UrlError};

/// Why a case ends before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The target did something else than the section says.
    Failed(String),
    /// The target has not what the case is about.
    Skipped(String),
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(format!("the connection: {error}"))
    }
}

/// What a case and its steps give.
pub type Outcome<T = ()> = Result<T, Stop>;

/// One promise of the specification.
pub struct Case {
    /// `group/what`.
    pub name: String,
    /// Where it stands.
    pub section: &'static str,
    run: Box<dyn Fn(&Subject) -> Outcome>,
}

impl Case {
    fn new(
        name: impl Into<String>,
        section: &'static str,
        run: impl Fn(&Subject) -> Outcome + 'static,
    ) -> Self {
        Self { name: name.into(), section, run: Box::new(run) }
    }
}

/// How a case ended.
#[derive(Debug, Clone)]
pub struct Report {
    /// The case.
    pub name: String,
    /// Its section.
    pub section: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// Milliseconds that it took.
    pub milliseconds: u128,
}

impl Report {
    /// `pass`, `fail` or `skip`.
    pub fn word(&self) -> &'static str {
        match &self.outcome {
            Ok(()) => "pass",
            Err(Stop::Failed(_)) => "fail",
            Err(Stop::Skipped(_)) => "skip",
        }
    }

    /// What came instead, or why nothing was tried.
    pub fn why(&self) -> &str {
        match &self.outcome {
            Ok(()) => "",
            Err(Stop::Failed(why) | Stop::Skipped(why)) => why,
        }
    }

    /// The line of a report.
    pub fn line(&self) -> String {
        let (word, name, section) = (self.word(), &self.name, self.section);
        match &self.outcome {
            Ok(()) => format!("{word}  {name}"),
            Err(_) => format!("{word}  {name}  ({section}): {}", self.why()),
        }
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        json!({
            "name": self.name, "section": self.section, "outcome": self.word(),
            "why": self.why(), "milliseconds": u64::try_from(self.milliseconds).unwrap_or(u64::MAX),
        })
    }
}

/// Tries one case; a target that ended is started again where the suite had started it.
pub fn run(case: &Case, subject: &Subject) -> Report {
    let since = Instant::now();
    let ran = std::panic::catch_unwind(AssertUnwindSafe(|| (case.run)(subject)));
    let mut outcome =
        ran.unwrap_or_else(|_| Err(Stop::Failed("the case itself broke off".to_owned())));
    if let Some(started) = &subject.started
        && started.revive()
    {
        outcome = Err(Stop::Failed("the target's process ended".to_owned()));
    }
    let milliseconds = since.elapsed().as_millis();
    Report { name: case.name.clone(), section: case.section, outcome, milliseconds }
}

fn fail<T>(why: impl Into<String>) -> Outcome<T> {
    Err(Stop::Failed(why.into()))
}

fn skip<T>(why: impl Into<String>) -> Outcome<T> {
    Err(Stop::Skipped(why.into()))
}

fn check(holds: bool, why: impl Into<String>) -> Outcome {
    if holds { Ok(()) } else { fail(why) }
}

/// Asks again and again: nothing tells when a target has noticed what happened to it.
fn soon<T>(mut ask: impl FnMut() -> Outcome<Option<T>>) -> Outcome<T> {
    let until = Instant::now() + wire::PATIENCE;
    while Instant::now() < until {
        if let Some(found) = ask()? {
            return Ok(found);
        }
        std::thread::yield_now();
    }
    fail("the target does not notice what happened")
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Outcome {
    if found == wanted {
        Ok(())
    } else {
        fail(format!("{what} is {found:x?} where {wanted:x?} is due"))
    }
}
