//! Telling clients something unasked, on a connection that reaches them (MS-SMB2 3.3.4.6,
//! 3.3.4.7).
//!
//! ```text
//!  break ─► first outbox that is not silent ─► connection's task ─► socket
//!              ▲                                                    │ acknowledged by the
//!              │                                                    ▼ client's system?
//!              └── the next outbox ◄── silent for PATIENCE: closed ───┘
//! ```
//!
//! TCP takes what is sent to a client that is gone, so a notice counts as delivered when the
//! client's system has acknowledged its bytes. A connection whose bytes nobody acknowledges has
//! failed: it is closed, and the notice goes out once more on another. The client's last
//! connection gets more time, but less than the holder of an oplock or lease has. What the client
//! has done as told meanwhile, on whichever connection, is not repeated. It may get a notice twice
//! all the same, which does no harm: the second answer finds nothing to be done.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use smb_protocol::{SessionId, msg::oplock};
use tokio::{
    sync::{mpsc::UnboundedSender, oneshot},
    time::{self, Instant},
};

use crate::session::ConnectionId;

/// How long a client's system may acknowledge nothing before a notice is repeated elsewhere: a
/// packet that was lost has been sent again several times by then. It is less where a client has so many
/// connections that not all could be tried until [`LAST`].
const PATIENCE: Duration = Duration::from_secs(1);
/// The least that it is, however many connections there are.
const LEAST: Duration = Duration::from_millis(250);
/// How long after the notice was first sent the last connection of a client is given up. It is
/// before the break times out, so that who waits finds the opens of the dead client closed.
const LAST: Duration = Duration::from_secs(30);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(100);

/// Something that a client is told unasked.
#[derive(Debug, Clone, Copy)]
pub struct BreakNotification {
    /// The session it is about, if it is about one.
    pub session: Option<SessionId>,
    /// What.
    pub message: oplock::Message,
}

/// What a connection's task is asked to do.
#[derive(Debug)]
pub enum ConnectionMessage {
    /// Tell the client.
    Tell(BreakNotification, SendMark),
    /// Say how many of the bytes that were sent the client's system has acknowledged.
    Arrived(oneshot::Sender<u64>),
    /// End the connection, which has failed.
    Close,
}

/// Where a notice ends among the bytes that its connection sends.
#[derive(Debug, Clone, Default)]
pub struct SendMark(Arc<AtomicU64>);

impl SendMark {
    /// It ends `end` bytes after the beginning of the connection.
    pub fn sent(&self, end: u64) {
        self.0.store(end, Ordering::Release);
    }

    /// It cannot be sent there.
    pub fn lost(&self) {
        self.0.store(u64::MAX, Ordering::Release);
    }

    fn end(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// What became of a notice on a outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    /// The client's system has it.
    Arrived,
    /// The connection has ended, or cannot carry it.
    Gone,
    /// The connection's task has had other things to do.
    Busy,
    /// The client's system acknowledges nothing.
    Silent,
}

/// A connection as the way to a client.
#[derive(Debug)]
pub struct Outbox {
    /// The connection.
    pub connection: ConnectionId,
    posts: UnboundedSender<ConnectionMessage>,
}

impl Outbox {
    /// The outbox to the connection that receives these.
    pub fn new(connection: ConnectionId, posts: UnboundedSender<ConnectionMessage>) -> Arc<Self> {
        Arc::new(Self { connection, posts })
    }

    fn post(&self, post: ConnectionMessage) -> bool {
        self.posts.send(post).is_ok()
    }

    fn tell(&self, notice: BreakNotification) -> Option<SendMark> {
        let receipt = SendMark::default();
        self.post(ConnectionMessage::Tell(notice, receipt.clone())).then_some(receipt)
    }

    /// How far the client's system has acknowledged what it was sent.
    async fn arrived(&self, patience: Duration) -> Result<u64, Delivery> {
        let (answer, arrived) = oneshot::channel();
        if !self.post(ConnectionMessage::Arrived(answer)) {
            return Err(Delivery::Gone);
        }
        match time::timeout(patience, arrived).await {
            Ok(arrived) => arrived.map_err(|_| Delivery::Gone),
            Err(_) => Err(Delivery::Busy),
        }
    }

    /// Waits until a notice has arrived, or nothing has until `deadline` and for so long as there is
    /// `patience`. A slow outbox is not a silent one.
    async fn fate(
        &self,
        receipt: &SendMark,
        deadline: Instant,
        patience: Duration,
    ) -> Result<Delivery, Delivery> {
        // What is posted is taken up in turn, so the notice has been sent when this is answered.
        let mut before = self.arrived(patience).await?;
        let mut since = Instant::now();
        loop {
            if receipt.end() == u64::MAX {
                return Ok(Delivery::Gone);
            }
            if receipt.end() <= before {
                return Ok(Delivery::Arrived);
            }
            let until = deadline.max(since + patience);
            if Instant::now() >= until {
                return Ok(Delivery::Silent);
            }
            time::sleep_until(until.min(Instant::now() + LOOK)).await;
            let arrived = self.arrived(patience).await?;
            if arrived > before {
                (before, since) = (arrived, Instant::now());
            }
        }
    }
}

/// Tells a client something on the first of its connections that takes it, and on another when
/// it does not arrive and is still `awaited`; `false` if none takes it. `outboxes` gives those that
/// there are at the moment.
pub fn tell(
    outboxes: impl Fn() -> Vec<Arc<Outbox>> + Send + 'static,
    notice: BreakNotification,
    awaited: impl Fn() -> bool + Send + 'static,
) -> bool {
    let Some((outbox, receipt)) = send(outboxes(), &[], notice) else { return false };
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(deliver(outboxes, outbox, receipt, notice, awaited));
    }
    true
}

/// Sends on a outbox that was not tried.
fn send(
    outboxes: Vec<Arc<Outbox>>,
    tried: &[ConnectionId],
    notice: BreakNotification,
) -> Option<(Arc<Outbox>, SendMark)> {
    let mut others = outboxes.into_iter().filter(|outbox| !tried.contains(&outbox.connection));
    others.find_map(|outbox| outbox.tell(notice).map(|receipt| (outbox, receipt)))
}

/// How many have not been tried.
fn untried(outboxes: Vec<Arc<Outbox>>, tried: &[ConnectionId]) -> u32 {
    let count = outboxes.iter().filter(|it| !tried.contains(&it.connection)).count();
    u32::try_from(count).unwrap_or(u32::MAX - 1)
}

/// Sees to it that a notice arrives, on one outbox after the other.
async fn deliver(
    outboxes: impl Fn() -> Vec<Arc<Outbox>>,
    mut outbox: Arc<Outbox>,
    mut receipt: SendMark,
    notice: BreakNotification,
    awaited: impl Fn() -> bool,
) {
    let last = Instant::now() + LAST;
    let mut tried = Vec::new();
    loop {
        tried.push(outbox.connection);
        let now = Instant::now();
        let share = last.saturating_duration_since(now) / (untried(outboxes(), &tried) + 1);
        let patience = share.clamp(LEAST, PATIENCE);
        let mut fate = outbox.fate(&receipt, now, patience).await;
        if fate == Ok(Delivery::Silent) && untried(outboxes(), &tried) == 0 {
            // Perhaps it comes back, or the client comes on another.
            fate = outbox.fate(&receipt, last, patience).await;
        }
        match fate.unwrap_or_else(|fate| fate) {
            Delivery::Arrived => return,
            Delivery::Silent => {
                tracing::debug!(connection = outbox.connection.0, "silent, so it is closed");
                outbox.post(ConnectionMessage::Close);
            }
            Delivery::Busy | Delivery::Gone => {}
        }
        if !awaited() {
            return;
        }
        let Some(next) = send(outboxes(), &tried, notice) else { return };
        (outbox, receipt) = next;
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{self, UnboundedReceiver};

    use super::*;

    /// A connection whose task the test is.
    struct Task {
        outbox: Arc<Outbox>,
        posts: Option<UnboundedReceiver<ConnectionMessage>>,
        written: u64,
        arrived: u64,
        told: usize,
    }

    /// How a connection is.
    #[derive(Clone, Copy, PartialEq)]
    enum Is {
        Well,
        /// What it sends comes slowly.
        Slow,
        /// What it sends does not come.
        Silent,
        /// Its task is stuck in something.
        Stuck,
    }
    use Is::*;

    impl Task {
        fn new(id: u64) -> Self {
            let (sender, posts) = mpsc::unbounded_channel();
            let outbox = Outbox::new(ConnectionId(id), sender);
            Self { outbox, posts: Some(posts), written: 0, arrived: 0, told: 0 }
        }

        fn closed(&self) -> bool {
            self.posts.is_none()
        }

        /// Does for some milliseconds what a connection does.
        fn work(&mut self, is: Is) {
            self.arrived = match is {
                Well => self.written,
                Slow => self.written.min(self.arrived + 1),
                Silent | Stuck => self.arrived,
            };
            while is != Stuck
                && let Some(Ok(post)) = self.posts.as_mut().map(UnboundedReceiver::try_recv)
            {
                match post {
                    ConnectionMessage::Tell(_, receipt) => {
                        self.written += 500;
                        self.told += 1;
                        receipt.sent(self.written);
                    }
                    ConnectionMessage::Arrived(answer) => drop(answer.send(self.arrived)),
                    ConnectionMessage::Close => self.posts = None,
                }
            }
        }
    }

    fn notice() -> BreakNotification {
        let message = oplock::Message::LeaseBreak(oplock::LeaseBreak {
            epoch: 1,
            flags: 1,
            key: [1; 16],
            current: 7,
            new: 3,
        });
        BreakNotification { session: None, message }
    }

    /// Lets the clock, which is the test's, go on by `seconds` while the connections work.
    async fn pass(seconds: u32, tasks: &mut [Task], are: &[Is]) {
        for _ in 0..seconds * 100 {
            time::sleep(Duration::from_millis(10)).await;
            for (task, is) in tasks.iter_mut().zip(are) {
                task.work(*is);
            }
        }
    }

    fn three() -> [Task; 3] {
        [1, 2, 3].map(Task::new)
    }

    fn outboxes(tasks: &[Task]) -> impl Fn() -> Vec<Arc<Outbox>> + Send + Clone + use<> {
        let outboxes: Vec<_> = tasks.iter().map(|task| task.outbox.clone()).collect();
        move || outboxes.iter().filter(|outbox| !outbox.posts.is_closed()).cloned().collect()
    }

    fn told(tasks: &[Task]) -> Vec<(usize, bool)> {
        tasks.iter().map(|task| (task.told, task.closed())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_arrives_is_told_once() {
        for first in [Well, Slow] {
            let mut tasks = three();
            assert!(tell(outboxes(&tasks), notice(), || true));
            pass(60, &mut tasks, &[first, Well, Well]).await;
            assert_eq!(told(&tasks), [(1, false), (0, false), (0, false)]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_arrive_is_repeated_on_the_next_line() {
        let mut tasks = three();
        assert!(tell(outboxes(&tasks), notice(), || true));
        pass(60, &mut tasks, &[Silent, Silent, Well]).await;
        assert_eq!(told(&tasks), [(1, true), (1, true), (1, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_done_as_told_is_not_repeated() {
        let mut tasks = three();
        let all = outboxes(&tasks);
        let waits = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let awaited = waits.clone();
        assert!(tell(all, notice(), move || awaited.load(Ordering::Relaxed)));
        tasks[0].work(Silent);
        tasks[0].posts = None;
        waits.store(false, Ordering::Relaxed);
        pass(60, &mut tasks, &[Well; 3]).await;
        assert_eq!(told(&tasks), [(1, true), (0, false), (0, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_line_has_time_to_come_back() {
        let mut tasks = three();
        assert!(tell(outboxes(&tasks), notice(), || true));
        let all = [Silent; 3];
        pass(25, &mut tasks, &all).await;
        assert_eq!(told(&tasks), [(1, true), (1, true), (1, false)]);
        pass(1, &mut tasks, &[Silent, Silent, Well]).await;
        pass(60, &mut tasks, &all).await;
        assert!(!tasks[2].closed(), "it had arrived");
        assert!(tell(outboxes(&tasks), notice(), || true));
        pass(29, &mut tasks, &all).await;
        assert!(!tasks[2].closed());
        pass(3, &mut tasks, &all).await;
        assert!(tasks[2].closed());
        assert!(!tell(outboxes(&tasks), notice(), || true));
    }

    /// However many there are, and although each of them takes a little longer than it should: who waits
    /// for the break waits no longer than it may take.
    #[tokio::test(start_paused = true)]
    async fn all_lines_of_a_client_are_tried_before_the_break_times_out() {
        let mut tasks: Vec<_> = (0..32).map(Task::new).collect();
        assert!(tell(outboxes(&tasks), notice(), || true));
        pass(29, &mut tasks, &[Silent; 32]).await;
        assert!(!tasks[31].closed());
        pass(3, &mut tasks, &[Silent; 32]).await;
        assert_eq!(told(&tasks), [(1, true); 32]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_line_is_passed_over_but_not_closed() {
        let mut tasks = three();
        assert!(tell(outboxes(&tasks), notice(), || true));
        pass(40, &mut tasks, &[Stuck, Stuck, Well]).await;
        pass(40, &mut tasks, &[Well; 3]).await;
        assert_eq!(told(&tasks), [(1, false), (1, false), (1, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_has_ended_is_passed_over() {
        let mut tasks = three();
        let all = outboxes(&tasks);
        tasks[0].posts = None;
        assert!(tell(all.clone(), notice(), || true));
        tasks[1].posts = None;
        pass(5, &mut tasks, &[Well; 3]).await;
        assert_eq!(told(&tasks), [(0, true), (0, true), (1, false)]);
    }
}
