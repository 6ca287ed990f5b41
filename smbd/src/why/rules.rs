//! Why something is slow, by its figures: no clock, no file, no server.
//!
//! A rule speaks where its part of the way takes much of the time and more than it should. Who asks for
//! one thing at a time is no fault, and is told apart from one.

use server_api::{WhyCause, WhyPhase};
use smb_protocol::crypto::Cipher;
use smb_server::meters::path::{PathFigures, Phase, Times};

/// Figures of a share, file or LUN over some time.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Seconds that they are about.
    pub window: f64,
    /// Operations that were answered.
    pub operations: u64,
    /// Where their time went.
    pub path: PathFigures,
    /// What waits now.
    pub waiting: Vec<Waiter>,
    /// Its clients and their networks.
    pub clients: Clients,
    /// The machine.
    pub machine: Machine,
    /// The disk that it lies on, if the system counts what that does.
    pub device: Option<Device>,
    /// The pieces of the image, if they were counted.
    pub pieces: Option<Pieces>,
    /// Commands that waited for a limit that somebody set.
    pub limited: u64,
}

/// A request that waits for another client now.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiter {
    /// For what.
    pub phase: Phase,
    /// For how many seconds.
    pub seconds: f64,
    /// Who has what it wants, if that is known.
    pub holder: Option<String>,
}

/// Clients and their networks, added up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Clients {
    /// Times that answers were sent.
    pub batches: u64,
    /// Requests that were under way at these times, added up.
    pub under_way: u64,
    /// Times among these at which a client had used all its credits.
    pub out_of_credits: u64,
    /// Credits that a client has at most.
    pub credits: u64,
    /// Bytes that went over the connections, both ways.
    pub bytes: u64,
    /// The ciphers that were negotiated.
    pub ciphers: Vec<Cipher>,
    /// The longest round trip in microseconds, and whose it is.
    pub rtt: (u64, String),
    /// Segments that were sent, and those that were sent again.
    pub segments: (u64, u64),
    /// Sessions with fewer channels than they had: whose, how many, and how many it had.
    pub lost: Vec<(String, usize, usize)>,
}

/// What the machine had for the server, in processors: 1 is one processor for all the time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Machine {
    /// Processors.
    pub processors: f64,
    /// What the server used.
    pub used: f64,
    /// What it waited for while others ran.
    pub waited: f64,
    /// What the host below took away.
    pub stolen: f64,
    /// What its control group held back.
    pub held_back: f64,
    /// The processor has instructions for AES.
    pub aes: bool,
}

/// The disk below a share.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Part of the time that it was busy, up to 1.
    pub busy: f64,
    /// Requests that it had at a time, in the mean.
    pub queue: f64,
}

/// The pieces that a file has on its disk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pieces {
    /// How many.
    pub count: u64,
    /// Bytes that they have together.
    pub bytes: u64,
}

/// Least times of a part of the way, for what is said of them to mean anything.
const SOME: u64 = 4;
/// A disk should answer 99 of 100 in this, in microseconds.
const DISK_SLOW: u64 = 20_000;
/// A disk should make durable in this, in microseconds, in the mean.
const SYNC_SLOW: f64 = 10_000.0;
/// One request of a disk that is only busy takes less than this, in microseconds.
const SERVICE_SLOW: f64 = 5_000.0;
/// Requests at a time that fill a disk's queue.
const QUEUE_FULL: f64 = 8.0;
/// Bytes of a piece below which an image is in pieces.
const PIECE: u64 = 64 << 10;
/// Pieces that an image may have.
const PIECES: u64 = 256;
/// A network within one house is quicker, in microseconds.
const RTT_LONG: u64 = 5_000;
/// Nanoseconds a byte that a cipher does not take on a processor with instructions for it.
const CIPHER_SLOW: f64 = 1.0;
/// Bytes of a message of which it is the bytes that cost, not the message.
const LARGE: u64 = 16 << 10;
/// Part of a second of processor time that may be missing.
const TAKEN: f64 = 0.1;
/// A wait for another client that is worth a word, in seconds.
const LONG_WAIT: f64 = 1.0;
/// How often in a second clients may take from each other what they cache.
const BREAKS: f64 = 10.0;

/// The name of a cause, and how much time it costs, for their order.
type Said = (f64, WhyCause);

fn cause(cost: f64, name: &str, sentence: String, evidence: Vec<String>) -> Said {
    (cost, WhyCause { cause: name.to_owned(), sentence, evidence, since_s: 0 })
}

/// Microseconds as people read them.
fn shown(micros: f64) -> String {
    match micros {
        micros if micros < 1e3 => format!("{micros:.0} µs"),
        micros if micros < 1e6 => format!("{:.1} ms", micros / 1e3),
        micros => format!("{:.1} s", micros / 1e6),
    }
}

fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

fn line(phase: Phase, times: &Times) -> String {
    let (mean, most) = (shown(times.mean()), shown(times.quantile(0.99) as f64));
    format!(
        "{}: {} times, {mean} in the mean, 99 of 100 within {most}",
        phase.name(),
        times.count()
    )
}

impl Facts {
    fn nanos(&self, phases: &[Phase]) -> u64 {
        phases.iter().map(|phase| self.path.of(*phase).nanos).sum()
    }

    /// The part of the time that parts of the way take, up to 1.
    fn part(&self, phases: &[Phase]) -> f64 {
        self.nanos(phases) as f64 / self.path.nanos().max(1) as f64
    }

    /// Time on the server that an operation takes, in microseconds.
    fn each(&self) -> f64 {
        self.path.nanos() as f64 / 1e3 / self.operations.max(1) as f64
    }

    fn cost(&self, phases: &[Phase]) -> f64 {
        self.nanos(phases) as f64 / 1e9
    }
}

/// All causes, those first that cost most; none if nothing is wrong.
pub fn causes(facts: &Facts) -> Vec<WhyCause> {
    let rules = [
        lock_held,
        contention,
        slow_sync,
        disk,
        lost_channel,
        slow_wire,
        retransmits,
        cipher,
        cpu_taken,
        credits,
        server_queue,
        slow_client,
        limit,
    ];
    let mut said: Vec<Said> = rules.iter().filter_map(|rule| rule(facts)).collect();
    said.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    said.into_iter().map(|(_, cause)| cause).collect()
}

/// How it is, in a sentence.
pub fn sentence(facts: &Facts, causes: &[WhyCause]) -> String {
    if let Some(cause) = causes.first() {
        return cause.sentence.clone();
    }
    let window = facts.window;
    if facts.operations == 0 {
        return format!("Nothing is wrong: nobody asked anything of it in the last {window:.0} s.");
    }
    let Clients { batches, under_way, rtt, .. } = &facts.clients;
    let depth = *under_way as f64 / (*batches).max(1) as f64;
    let each = facts.each();
    let mut said = format!(
        "Nothing is wrong: {} operations in {window:.0} s, of which each took {} here.",
        facts.operations,
        shown(each)
    );
    if *batches >= SOME && depth < 1.2 {
        let turn = each + rtt.0 as f64;
        said += &format!(
            " The client asks for one thing at a time and waits for the answer, with {} on the way: more \
             than {:.0} a second cannot come of that. It is quicker with more requests at a time.",
            shown(rtt.0 as f64),
            1e6 / turn.max(1.0)
        );
    }
    said
}

/// Where the time went.
pub fn phases(path: &PathFigures) -> Vec<WhyPhase> {
    let one = |phase: &Phase| {
        let times = path.of(*phase);
        let (count, p99_us) = (times.count(), times.quantile(0.99));
        WhyPhase { phase: phase.name().to_owned(), count, mean_us: times.mean() as u64, p99_us }
    };
    Phase::ALL.iter().map(one).filter(|phase| phase.count > 0).collect()
}

/// What one in a hundred exceeds, and some do: of few times a single one says nothing.
fn slowest(times: &Times) -> u64 {
    times.quantile((1.0 - SOME as f64 / times.count().max(1) as f64).clamp(0.0, 0.99))
}

fn longest(facts: &Facts, phase: Phase) -> Option<&Waiter> {
    let waiting = facts.waiting.iter().filter(|it| it.phase == phase && it.seconds >= LONG_WAIT);
    waiting.max_by(|one, other| one.seconds.total_cmp(&other.seconds))
}

fn lock_held(facts: &Facts) -> Option<Said> {
    let times = facts.path.of(Phase::Lock);
    let now = longest(facts, Phase::Lock);
    if now.is_none() && (times.count() == 0 || times.mean() < LONG_WAIT * 1e6) {
        return None;
    }
    let mut evidence = vec![line(Phase::Lock, times)];
    let who = now.and_then(|it| it.holder.clone()).unwrap_or_else(|| "another client".to_owned());
    let sentence = match now {
        Some(Waiter { seconds, .. }) => {
            let count = facts.waiting.iter().filter(|it| it.phase == Phase::Lock).count();
            evidence.push(format!("{count} requests wait for a byte range now"));
            format!(
                "A request waits for a byte range for {seconds:.0} s: {who} has it locked. `bulkhead server \
                 locks` shows all, `bulkhead server disconnect --open` ends one."
            )
        }
        None => {
            format!("Requests wait for byte ranges that others lock, {} each.", shown(times.mean()))
        }
    };
    let cost = now.map_or(0.0, |it| it.seconds) + facts.cost(&[Phase::Lock]);
    Some(cause(cost, "lock-held", sentence, evidence))
}

fn contention(facts: &Facts) -> Option<Said> {
    let times = facts.path.of(Phase::Break);
    let often = times.count() as f64 / facts.window.max(0.001);
    let now = longest(facts, Phase::Break);
    if now.is_none() && (times.count() < 20 || often < BREAKS) {
        return None;
    }
    let evidence = vec![line(Phase::Break, times), format!("{often:.1} waits a second")];
    let sentence = match now {
        Some(Waiter { seconds, holder, .. }) => format!(
            "A request waits for {seconds:.0} s until {} gives up what it caches or has open: its client \
             does not answer.",
            holder.as_deref().unwrap_or("another client")
        ),
        None => format!(
            "Clients take what they cache from each other {often:.0} times a second, and wait {} each time: \
             several use the same files. Disks of VMs have one user each.",
            shown(times.mean())
        ),
    };
    let cost = now.map_or(0.0, |it| it.seconds) + facts.cost(&[Phase::Break]);
    Some(cause(cost, "lease-contention", sentence, evidence))
}

fn slow_sync(facts: &Facts) -> Option<Said> {
    let times = facts.path.of(Phase::Sync);
    if times.count() < SOME || times.mean() < SYNC_SLOW || facts.part(&[Phase::Sync]) < 0.3 {
        return None;
    }
    let sentence = format!(
        "The disk takes {} to make something durable, which is {} of the time here: look at the disk{}, \
         or give it a write cache that survives a loss of power.",
        shown(times.mean()),
        percent(facts.part(&[Phase::Sync])),
        named(facts),
    );
    let mut evidence = vec![line(Phase::Sync, times)];
    evidence.extend(device(facts));
    Some(cause(facts.cost(&[Phase::Sync]), "slow-sync", sentence, evidence))
}

fn named(facts: &Facts) -> String {
    facts.device.as_ref().map_or_else(String::new, |device| format!(" {}", device.name))
}

fn device(facts: &Facts) -> Option<String> {
    let Device { name, busy, queue } = facts.device.as_ref()?;
    let busy = percent(*busy);
    Some(format!("disk {name}: busy {busy} of the time, {queue:.1} requests at a time"))
}

/// A disk that is slow, has more to do than it can, or has to collect an image from many places.
fn disk(facts: &Facts) -> Option<Said> {
    let both = [Phase::Read, Phase::Write];
    let slow = |phase: &Phase| {
        let times = facts.path.of(*phase);
        times.count() >= SOME && slowest(times) >= DISK_SLOW
    };
    let phase = both.into_iter().filter(slow).max_by_key(|it| facts.path.of(*it).nanos)?;
    let part = facts.part(&both);
    if part < 0.3 {
        return None;
    }
    let times = facts.path.of(phase);
    let most = times.quantile(0.99) as f64;
    let queue = facts.path.storage_queue().max(facts.device.as_ref().map_or(0.0, |it| it.queue));
    let mut evidence = vec![line(phase, times), format!("{queue:.1} requests at a time")];
    evidence.extend(device(facts));
    let cost = facts.cost(&both);
    if let Some(Pieces { count, bytes }) = facts.pieces
        && count >= PIECES
        && bytes / count.max(1) < PIECE
    {
        evidence.push(format!("{count} pieces of {} KiB in the mean", bytes / count / 1024));
        let sentence = format!(
            "The image lies in {count} pieces, so one request of the client is many of the disk: copy it \
             anew (bulkhead disk compact, or a copy to an empty file system). 99 of 100 {}s end within {}.",
            phase.name(),
            shown(most)
        );
        return Some(cause(cost, "fragmented-image", sentence, evidence));
    }
    // What each would take if it were alone.
    if queue >= QUEUE_FULL && most / queue < SERVICE_SLOW {
        let sentence = format!(
            "The disk{} has {queue:.0} requests to do at a time, so each waits for the others: 99 of 100 {}s \
             end within {}. It is not slow, it has more to do than it can.",
            named(facts),
            phase.name(),
            shown(most)
        );
        return Some(cause(cost, "disk-queue", sentence, evidence));
    }
    let sentence = format!(
        "The disk{} is slow: one {} in a hundred takes longer than {}, and {} of the time here is spent \
         waiting for it.",
        named(facts),
        phase.name(),
        shown(most * 0.8),
        percent(part)
    );
    Some(cause(cost, "slow-disk", sentence, evidence))
}

fn lost_channel(facts: &Facts) -> Option<Said> {
    let (who, has, had) = facts.clients.lost.first()?;
    let evidence = facts.clients.lost.iter();
    let evidence =
        evidence.map(|(who, has, had)| format!("{who}: {has} of {had} channels")).collect();
    let sentence = format!(
        "{who} has {has} of the {had} channels that it had: look at the cables, ports and addresses of the \
         others. Its client makes them anew when it can."
    );
    Some(cause(facts.window, "lost-channel", sentence, evidence))
}

fn slow_wire(facts: &Facts) -> Option<Said> {
    let (rtt, who) = &facts.clients.rtt;
    // Where nothing was timed nobody knows what an operation takes here.
    let timed = facts.path.nanos() > 0;
    if *rtt < RTT_LONG || *rtt as f64 <= facts.each() || facts.operations == 0 || !timed {
        return None;
    }
    let sentence = format!(
        "The way to {who} and back takes {}, and an operation {} here: the network is what is slow.",
        shown(*rtt as f64),
        shown(facts.each())
    );
    let evidence = vec![format!("round trip to {who}: {}", shown(*rtt as f64))];
    let cost = *rtt as f64 / 1e6 * facts.operations as f64;
    Some(cause(cost, "slow-wire", sentence, evidence))
}

fn retransmits(facts: &Facts) -> Option<Said> {
    let (sent, again) = facts.clients.segments;
    let part = again as f64 / sent.max(1) as f64;
    if again < 5 || part < 0.01 {
        return None;
    }
    let sentence = format!(
        "{} of what is sent to clients is lost on its way and sent again: look at cables, ports and the \
         load of switches.",
        percent(part)
    );
    let evidence = vec![format!("{again} of {sent} segments were sent again")];
    // The least time after which Linux sends again.
    Some(cause(again as f64 * 0.2, "retransmits", sentence, evidence))
}

fn cipher(facts: &Facts) -> Option<Said> {
    let times = facts.path.of(Phase::Crypto);
    let (part, of_one) =
        (facts.part(&[Phase::Crypto]), facts.cost(&[Phase::Crypto]) / facts.window.max(0.001));
    let Clients { bytes, ciphers, .. } = &facts.clients;
    let nanos = times.nanos as f64 / (*bytes).max(1) as f64;
    let large = bytes / times.count().max(1) >= LARGE;
    let software = !facts.machine.aes;
    let serial = |cipher: &&Cipher| matches!(cipher, Cipher::Aes128Ccm | Cipher::Aes256Ccm);
    let serial = ciphers.iter().find(serial).filter(|_| large && nanos >= CIPHER_SLOW);
    let much = if software || serial.is_some() { 0.2 } else { 0.5 };
    if times.count() < SOME || part < much || of_one < 0.2 {
        return None;
    }
    let why = match (software, serial) {
        (true, _) => "this processor has no instructions for AES, so programs do it".to_owned(),
        (false, Some(cipher)) => format!(
            "a client has negotiated {}, which takes one block after the other; have it offer AES-GCM",
            spelt(*cipher)
        ),
        (false, None) => "all that is read and written is encrypted or signed".to_owned(),
    };
    let sentence = format!(
        "Signatures and encryption take {} of the time here and {of_one:.1} processors: {why}.",
        percent(part)
    );
    let mut evidence = vec![line(Phase::Crypto, times)];
    if large {
        evidence.push(format!("{nanos:.1} ns for each byte that was sent or received"));
    }
    if !ciphers.is_empty() {
        let all: Vec<_> = ciphers.iter().map(|cipher| spelt(*cipher)).collect();
        evidence.push(format!("negotiated: {}", all.join(", ")));
    }
    Some(cause(facts.cost(&[Phase::Crypto]), "cipher", sentence, evidence))
}

/// A cipher as MS-SMB2 2.2.3.1.2 spells it.
fn spelt(cipher: Cipher) -> &'static str {
    match cipher {
        Cipher::Aes128Ccm => "AES-128-CCM",
        Cipher::Aes128Gcm => "AES-128-GCM",
        Cipher::Aes256Ccm => "AES-256-CCM",
        Cipher::Aes256Gcm => "AES-256-GCM",
    }
}

fn cpu_taken(facts: &Facts) -> Option<Said> {
    let Machine { processors, used, waited, stolen, held_back, .. } = facts.machine;
    let all = [
        (stolen, "the host below takes processor time from this machine"),
        (held_back, "the limit of its control group holds the server back"),
        // Some waiting is that of its own threads for each other.
        (if waited > used { waited } else { 0.0 }, "other programs have the processors"),
    ];
    let (taken, why) = all.into_iter().max_by(|(one, _), (other, _)| one.total_cmp(other))?;
    if taken < TAKEN {
        return None;
    }
    let sentence = format!(
        "The server has not the processors that it needs: {why}. It used {used:.1} of {processors:.0} and \
         went without {taken:.1}."
    );
    let evidence = vec![
        format!("waited for a processor: {waited:.2} (1 is all the time)"),
        format!("taken by the host: {stolen:.2}"),
        format!("held back by its control group: {held_back:.2}"),
    ];
    Some(cause(taken * facts.window, "cpu-taken", sentence, evidence))
}

fn credits(facts: &Facts) -> Option<Said> {
    let Clients { batches, out_of_credits, credits, under_way, .. } = facts.clients;
    let part = out_of_credits as f64 / batches.max(1) as f64;
    if batches < 16 || part < 0.5 || credits < 2 {
        return None;
    }
    let sentence = format!(
        "Clients have used all their credits {} of the time and wait until they may ask again: raise \
         limits.credits, which is {credits}.",
        percent(part)
    );
    let depth = under_way as f64 / batches as f64;
    let evidence = vec![format!("{depth:.1} requests at a time, {credits} credits at most")];
    Some(cause(facts.window * part * 0.5, "credits", sentence, evidence))
}

fn server_queue(facts: &Facts) -> Option<Said> {
    let times = facts.path.of(Phase::Queue);
    let part = facts.part(&[Phase::Queue]);
    // Before a LUN there is no other queue than that of its limit, which has a rule of its own.
    if facts.limited >= SOME {
        return None;
    }
    if times.count() < SOME || slowest(times) < DISK_SLOW || part < 0.3 {
        return None;
    }
    let sentence = format!(
        "Requests wait for the server itself: {} of the time here, one in a hundred longer than {}. More \
         connections (multichannel) or processors help.",
        percent(part),
        shown(times.quantile(0.99) as f64 * 0.8)
    );
    Some(cause(
        facts.cost(&[Phase::Queue]),
        "server-queue",
        sentence,
        vec![line(Phase::Queue, times)],
    ))
}

fn slow_client(facts: &Facts) -> Option<Said> {
    let times = facts.path.of(Phase::Send);
    let part = facts.part(&[Phase::Send]);
    if times.count() < SOME || slowest(times) < DISK_SLOW || part < 0.5 {
        return None;
    }
    let sentence = format!(
        "Answers wait to be sent, {} of the time here: the client, or the network to it, takes them slower \
         than the server makes them.",
        percent(part)
    );
    Some(cause(facts.cost(&[Phase::Send]), "slow-client", sentence, vec![line(Phase::Send, times)]))
}

fn limit(facts: &Facts) -> Option<Said> {
    let part = facts.limited as f64 / facts.operations.max(1) as f64;
    if facts.limited < SOME || part < 0.1 {
        return None;
    }
    let sentence = format!(
        "{} of the commands wait for the limit of this LUN: raise max_iops or max_bandwidth, or let its \
         users have less.",
        percent(part.min(1.0))
    );
    let evidence = vec![format!("{} of {} commands waited", facts.limited, facts.operations)];
    Some(cause(facts.window * part.min(1.0), "limit", sentence, evidence))
}

#[cfg(test)]
mod tests;
