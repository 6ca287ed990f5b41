//! What is around the engine: a clock, etcd, and a [`Runner`] that knows what a role is.

use std::{pin::Pin, sync::Arc, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use state_store::etcd::{
    CallError, Client, Code,
    wire::{
        Compare, DeleteRequest, EQUAL, LEASE, MOD, Op, PutRequest, RequestOp, TxnRequest, With,
    },
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    engine::{Effect, Engine, Event, Now, Outcome, Renewal, Settings},
    record::{Keys, Run},
    transaction::Transaction,
    watch,
};

/// How long what was begun may take once the node has left.
const LAST: Duration = Duration::from_secs(2);

/// The steady clock: it goes on while the machine is suspended.
pub fn steady() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The time in milliseconds since 1970.
pub fn wall() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A role that is this node's now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    /// Its name.
    pub role: String,
    /// The commit that made it this node's.
    pub revision: i64,
    /// Its generation.
    pub generation: u64,
    /// This node could not serve it several times in a row, and nobody else has.
    pub tried: bool,
    /// Until when changes may be made, by the steady clock.
    pub gate: Duration,
}

/// Says what became of roles.
#[derive(Debug, Clone)]
pub struct Reports(mpsc::UnboundedSender<Event>);

impl Reports {
    /// A role is served.
    pub fn started(&self, role: &str) {
        let _ = self.0.send(Event::Started(role.to_owned()));
    }

    /// Nothing of a role runs any more: no process of it, nothing that could still change something.
    pub fn stopped(&self, role: &str) {
        let _ = self.0.send(Event::Stopped(role.to_owned()));
    }

    /// A role cannot be served here, for that reason, and nothing of it runs.
    pub fn failed(&self, role: &str, why: String) {
        let _ = self.0.send(Event::Failed(role.to_owned(), why));
    }
}

/// What becomes of a fence agent.
pub type Fencing = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Starts and stops what a role is. Nothing here waits: what takes time is told to [`Reports`].
pub trait Runner: Send {
    /// Begins to serve a role.
    fn start(&mut self, role: Ownership, reports: Reports);
    /// Ends a role: in an orderly way, or at once. [`Reports::stopped`] when nothing of it runs.
    fn stop(&mut self, role: &str, orderly: bool);
    /// Changes may be made until then, by the steady clock.
    fn gate(&mut self, until: Duration);
    /// Ends a node by force; resolves when it can do nothing any more.
    fn fence(&mut self, run: Run) -> Fencing;
    /// Something changed of this node: whether it is a member, and if not, why.
    fn standing(&mut self, why_alone: Option<&str>);
}

/// Runs a node until it has left, which `leave` tells it to.
pub async fn run(
    client: Arc<Client>,
    settings: Settings,
    mut runner: impl Runner,
    leave: impl Future<Output = ()>,
) {
    let (keys, node) = (settings.keys.clone(), settings.node);
    let (send, mut events) = mpsc::unbounded_channel();
    let mut view = watch::follow(client.clone(), keys.clone());
    let mut pulses = watch::listen(client.clone(), keys.clone());
    let mut engine = Engine::new(settings);
    let mut tasks = JoinSet::new();
    let mut leave = std::pin::pin!(leave);
    let (mut leaving, mut said) = (false, None);
    loop {
        let wait = engine.wake().saturating_sub(steady());
        let event = tokio::select! {
            Some(event) = events.recv() => event,
            Ok(()) = view.changed() => {
                let Some(view) = view.borrow_and_update().clone() else { continue };
                Event::Seen(Box::new(view))
            }
            Some((run, revision)) = pulses.recv() => Event::Heard { run, revision },
            () = &mut leave, if !leaving => {
                leaving = true;
                Event::Leave
            }
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            () = sleep(wait) => Event::Tick,
        };
        let now = Now { steady: steady(), wall: wall() };
        let effects = engine.on(now, event);
        let why = (!engine.is_member()).then(|| engine.why_alone().unwrap_or_default());
        if said.as_ref() != Some(&why) {
            runner.standing(why.as_deref());
            said = Some(why);
        }
        for effect in effects {
            let reports = Reports(send.clone());
            match effect {
                Effect::Start { role, revision, generation, tried } => {
                    let gate = engine.gate();
                    runner.start(Ownership { role, revision, generation, tried, gate }, reports);
                }
                Effect::Stop { role, orderly } => runner.stop(&role, orderly),
                Effect::Gate(until) => runner.gate(until),
                Effect::Fence(run) => {
                    let (fencing, send) = (runner.fence(run), send.clone());
                    tasks.spawn(async move {
                        let _ = send.send(Event::Fenced(run, fencing.await));
                    });
                }
                Effect::Left => {
                    let rest = async { while tasks.join_next().await.is_some() {} };
                    let _ = timeout(LAST, rest).await;
                    return;
                }
                effect => {
                    let (client, keys, send) = (client.clone(), keys.clone(), send.clone());
                    // Before anything is sent: the answer counts from here.
                    let sent = steady();
                    tasks.spawn(async move {
                        if let Some(event) = ask(&client, (&keys, node), effect, sent).await {
                            let _ = send.send(event);
                        }
                    });
                }
            }
        }
    }
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

/// Asks etcd for something.
async fn ask(
    client: &Client,
    (keys, node): (&Keys, u16),
    effect: Effect,
    sent: Duration,
) -> Option<Event> {
    Some(match effect {
        Effect::Grant(ttl) => {
            let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
            match client.grant(ttl).await {
                Ok(granted) => {
                    Event::Granted { lease: granted.id, ttl: seconds(granted.ttl), sent }
                }
                Err(error) => {
                    tracing::debug!(%error, "no lease");
                    Event::NotGranted
                }
            }
        }
        Effect::Renew(lease) => renew(client, keys, lease, sent).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "a lease is not known to have begun anew");
            Event::NotRenewed
        }),
        Effect::Pulse(lease) => {
            let outcome = match client.txn_now(&pulse(keys, node, lease)).await {
                Ok(answer) if answer.succeeded => {
                    Outcome::Carried(answer.header.unwrap_or_default().revision)
                }
                Ok(_) => Outcome::Refused,
                Err(CallError::Refused { code, .. }) if code == Code::NOT_FOUND => Outcome::Refused,
                // Whatever else etcd refuses says nothing of the run.
                Err(error) => {
                    tracing::debug!(%error, "a pulse is in doubt");
                    Outcome::Unknown
                }
            };
            Event::Pulsed { lease, sent, outcome }
        }
        Effect::Revoke(lease) => {
            if let Err(error) = client.revoke(lease).await {
                tracing::debug!(%error, "a lease is not given back and ends by itself");
            }
            return None;
        }
        Effect::Transact(transaction) => {
            let id = transaction.id;
            Event::Done { id, outcome: transact(client, transaction).await }
        }
        _ => return None,
    })
}

/// Has a lease begin anew, and asks a quorum after it: a leader that was cut off answers for a second
/// or two that it has begun anew, and its successor knows nothing of that.
async fn renew(
    client: &Client,
    keys: &Keys,
    lease: i64,
    sent: Duration,
) -> Result<Event, CallError> {
    let answer = client.keep_alive(lease).await?;
    if answer.ttl <= 0 {
        return Ok(Event::Gone(lease));
    }
    let quorum = client.get(keys.cluster().as_bytes()).await?;
    Ok(Event::Renewed(Renewal {
        lease,
        ttl: seconds(answer.ttl),
        sent,
        term: answer.header.unwrap_or_default().raft_term,
        quorum_term: quorum.header.unwrap_or_default().raft_term,
    }))
}

/// A node's pulse: set as long as its run is a member's.
fn pulse(keys: &Keys, node: u16, lease: i64) -> TxnRequest {
    let is_member = Compare {
        result: EQUAL,
        target: LEASE,
        key: keys.member(node).into_bytes(),
        with: Some(With::Lease(lease)),
    };
    let put = PutRequest { key: keys.pulse(node).into_bytes(), value: Vec::new(), lease };
    TxnRequest {
        compare: vec![is_member],
        success: vec![RequestOp { request: Some(Op::Put(put)) }],
        failure: Vec::new(),
    }
}

/// A transaction in the words of etcd.
pub(crate) fn request(transaction: &Transaction) -> TxnRequest {
    let condition = |(key, revision): &(String, i64)| Compare {
        result: EQUAL,
        target: MOD,
        key: key.clone().into_bytes(),
        with: Some(With::ModRevision(*revision)),
    };
    let put = |(key, value, lease): &(String, Vec<u8>, Option<i64>)| {
        let (key, value) = (key.clone().into_bytes(), value.clone());
        Op::Put(PutRequest { key, value, lease: lease.unwrap_or(0) })
    };
    let delete = |key: &String| Op::Delete(DeleteRequest { key: key.clone().into_bytes() });
    let steps = transaction.puts.iter().map(put).chain(transaction.deletes.iter().map(delete));
    TxnRequest {
        compare: transaction.conditions.iter().map(condition).collect(),
        success: steps.map(|step| RequestOp { request: Some(step) }).collect(),
        failure: Vec::new(),
    }
}

async fn transact(client: &Client, transaction: Transaction) -> Outcome {
    match client.txn(&request(&transaction)).await {
        Ok(answer) if answer.succeeded => {
            Outcome::Carried(answer.header.unwrap_or_default().revision)
        }
        Ok(_) => Outcome::Refused,
        Err(CallError::Refused { code, message }) => {
            if code != Code::NOT_FOUND {
                tracing::warn!(message, "etcd refuses a transaction");
            }
            Outcome::Refused
        }
        Err(error) => {
            tracing::debug!(%error, purpose = ?transaction.purpose, "a transaction is in doubt");
            Outcome::Unknown
        }
    }
}
