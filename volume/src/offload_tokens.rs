//! Tokens of offloaded transfers (MS-FSCC 2.1.11): what each stands for, for how long and whom.
//!
//! ```text
//!  OFFLOAD_READ  ─► issue: source, range, stamp ─► token = id ‖ tag over all of it
//!  OFFLOAD_WRITE ─► redeem: tag, user, time, stamp of the source ─► the data
//! ```
//!
//! A token stands for the data as it was when the token was made. Where the file system shares
//! blocks the table holds a clone without a name; elsewhere the token is void once the source has
//! changed. Tags are made with a secret that ends with the server, so a token cannot be made up
//! or altered, and does not outlive it.
//!
//! Other services of the process may know tokens of their own ([`Elsewhere`]: those of logical
//! units). They are asked for what is not in the table, and say for themselves who may have it.

use std::{
    collections::HashMap,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    time::ClockId,
};
use smb_protocol::{
    NtStatus,
    crypto::{constant_time_eq, kdf, random},
    fscc::offload::Token,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::fs::{descriptor::cluster_size, space, volume::Volume};

/// Tokens at a time.
const MOST: usize = 1024;
/// Those of one user.
const MOST_OF_ONE: usize = 256;
/// How long a token lives if the client does not say.
const LIFE: Duration = Duration::from_secs(60);
/// How long it lives at most.
const LONGEST: Duration = Duration::from_secs(300);
/// Type of our tokens; those from 0xffff0000 up are well-known ones.
const KIND: u32 = 0x4255_4c4b;

/// Id of a token in the table.
type Id = [u8; 16];

/// Says whether a file was changed: when, and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    changed: (i64, u64),
    size: u64,
}

/// Whose a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The user, folded.
    pub user: String,
    /// Of a token: its data go to encrypted requests only. Of a request: it is encrypted.
    pub sealed: bool,
}

impl Owner {
    /// Whether what is this one's may go to the request of another.
    fn serves(&self, asks: &Self) -> bool {
        self.user == asks.user && (asks.sealed || !self.sealed)
    }
}

/// What a token stands for.
#[derive(Debug)]
pub struct Held {
    source: OwnedFd,
    /// Where the data stands in `source`.
    start: u64,
    /// Bytes that there are; behind them there are zeros up to the length of the token.
    filled: u64,
    /// Bytes that the token stands for.
    len: u64,
    /// The source must still be as it was; a clone never changes.
    stamp: Option<Stamp>,
    owner: Owner,
    expires: Instant,
}

/// Data of a token that another service of the process made.
pub trait ElsewhereData: Send + Sync {
    /// How many bytes.
    fn length(&self) -> u64;

    /// Fills `buf` from byte `at` of the data on; both lie within them. Called where a thread may
    /// wait; what was read counts only if this ends well.
    ///
    /// # Errors
    /// INVALID_TOKEN if the token does not stand for them any more; what the storage says.
    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), NtStatus>;
}

/// Tokens that another service of the process made.
pub trait Elsewhere: std::fmt::Debug + Send + Sync {
    /// What one stands for, for a request of `asks`; `None` if it is none of theirs, or not for that
    /// user.
    fn redeem(&self, token: &Token, asks: &Owner) -> Option<Box<dyn ElsewhereData>>;
}

/// What a token stands for, wherever it was made.
pub enum Redeemed {
    /// Data of a file.
    Own(Arc<Held>),
    /// Data of another service.
    Elsewhere(Box<dyn ElsewhereData>),
}

/// Bytes of another service that are moved at a time.
const CHUNK: usize = 1 << 20;
/// Requests at a time that wait for data of another service. Each has a thread of those that may wait and
/// [`CHUNK`] bytes, and the other service may need such a thread to answer it: were all of them taken by
/// who waits, it would have none.
const WAITING: usize = 16;

impl Redeemed {
    /// Bytes that the token stands for.
    pub fn length(&self) -> u64 {
        match self {
            Self::Own(held) => held.len,
            Self::Elsewhere(data) => data.length(),
        }
    }

    /// Writes `len` bytes of what the token stands for, from `at`, into `target` at `to`; `len`
    /// must lie within the token. Waits for the storage.
    ///
    /// # Errors
    /// INVALID_TOKEN if the source is no longer as it was; what the file system says.
    pub fn write_to(
        &self,
        at: u64,
        target: BorrowedFd<'_>,
        to: u64,
        len: u64,
    ) -> Result<(), NtStatus> {
        let data = match self {
            Self::Own(held) => return held.write_to(at, target, to, len),
            Self::Elsewhere(data) => data,
        };
        let len = usize::try_from(len).map_err(|_| NtStatus::INVALID_PARAMETER)?;
        let mut buffer = vec![0; len.min(CHUNK)];
        let mut done = 0;
        while done < len {
            let part = &mut buffer[..(len - done).min(CHUNK)];
            data.read(at + done as u64, part)?;
            put(target, to + done as u64, part).map_err(crate::status::of_errno)?;
            done += part.len();
        }
        Ok(())
    }
}

fn put(target: BorrowedFd<'_>, mut to: u64, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(target, bytes, to) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => {
                bytes = &bytes[count..];
                to += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Tokens that were given out.
#[derive(Debug)]
pub struct Tokens {
    secret: [u8; 32],
    table: Mutex<HashMap<Id, Arc<Held>>>,
    elsewhere: OnceLock<Arc<dyn Elsewhere>>,
    turns: Arc<Semaphore>,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            secret: random(),
            table: Mutex::default(),
            elsewhere: OnceLock::new(),
            turns: Arc::new(Semaphore::new(WAITING)),
        }
    }
}

impl Tokens {
    fn lock(&self) -> MutexGuard<'_, HashMap<Id, Arc<Held>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tag of a token: over its id, range, user and end.
    fn tag(&self, id: &Id, held: &Held) -> [u8; 32] {
        let mut text = id.to_vec();
        for number in [held.start, held.filled, held.len] {
            text.extend_from_slice(&number.to_le_bytes());
        }
        text.push(held.owner.sealed.into());
        text.extend_from_slice(held.owner.user.as_bytes());
        let mut tag = [0; 32];
        kdf::derive(&self.secret, b"offload token", &text, &mut tag);
        tag
    }

    /// Makes a token for `range` of `source`, whose length is `len` bytes with what is added to
    /// fill its last sector; lives `life` or as long as tokens do.
    ///
    /// # Errors
    /// INSUFFICIENT_RESOURCES when too many are out; OFFLOAD_READ_FILE_NOT_SUPPORTED when the
    /// source is changed all the time.
    pub fn issue(
        &self,
        volume: &Volume,
        source: BorrowedFd<'_>,
        range: Range<u64>,
        len: u64,
        owner: Owner,
        life: Duration,
    ) -> Result<(Token, Instant), NtStatus> {
        let now = Instant::now();
        self.sweep(now);
        let table = self.lock();
        let own = table.values().filter(|held| held.owner.user == owner.user).count();
        if table.len() >= MOST || own >= MOST_OF_ONE {
            return Err(NtStatus::INSUFFICIENT_RESOURCES);
        }
        drop(table);
        let of_errno = crate::status::of_errno;
        let filled = range.end - range.start;
        let expires = now + if life.is_zero() { LIFE } else { life.min(LONGEST) };
        let clone = if volume.shares_blocks() { clone(volume, source, &range).ok() } else { None };
        let (source, start, stamp) = match clone {
            Some((clone, start)) => (clone, start, None),
            None => {
                let stamp = settled(source).map_err(of_errno)?;
                let stamp = stamp.ok_or(NtStatus::OFFLOAD_READ_FILE_NOT_SUPPORTED)?;
                let kept = rustix::io::fcntl_dupfd_cloexec(source, 0).map_err(of_errno)?;
                (kept, range.start, Some(stamp))
            }
        };
        let held = Held { source, start, filled, len, stamp, owner, expires };
        let id: Id = random();
        let text = [id.as_slice(), &self.tag(&id, &held)].concat();
        self.lock().insert(id, Arc::new(held));
        Ok((Token::new(KIND, &text), expires))
    }

    /// Whom to ask for what a token stands for that is not in the table; the first call counts.
    pub fn ask_elsewhere(&self, elsewhere: Arc<dyn Elsewhere>) {
        let _ = self.elsewhere.set(elsewhere);
    }

    /// Waits for a turn to have the data of a token, if another service may be asked for them. Who has it
    /// may call [`Tokens::redeem_any`] and wait for what that gives.
    pub fn turn(
        &self,
        token: &Token,
    ) -> impl Future<Output = Option<OwnedSemaphorePermit>> + Send + use<> {
        let here = |id: &[u8; 16]| self.lock().contains_key(id);
        let own = token.id().first_chunk::<16>().is_some_and(here);
        let asks = !own && token.kind() != Token::ZERO_DATA && self.elsewhere.get().is_some();
        let turns = asks.then(|| self.turns.clone());
        async move { turns?.acquire_owned().await.ok() }
    }

    /// What a token stands for, for a request of its owner, here or elsewhere in the process.
    ///
    /// # Errors
    /// Those of [`Tokens::redeem`].
    pub fn redeem_any(&self, token: &Token, asks: &Owner) -> Result<Redeemed, NtStatus> {
        self.redeem(token, asks).map(Redeemed::Own).or_else(|status| {
            let elsewhere = self.elsewhere.get().and_then(|it| it.redeem(token, asks));
            elsewhere.map(Redeemed::Elsewhere).ok_or(status)
        })
    }

    /// What a token stands for, for a request of its owner.
    ///
    /// # Errors
    /// INVALID_TOKEN for one that was not given out, has ended, is someone else's or must not leave
    /// in the clear.
    pub fn redeem(&self, token: &Token, asks: &Owner) -> Result<Arc<Held>, NtStatus> {
        const VOID: NtStatus = NtStatus::INVALID_TOKEN;
        let (id, tag) = token.id().split_first_chunk::<16>().ok_or(VOID)?;
        let held = self.lock().get(id).cloned().ok_or(VOID)?;
        let genuine = constant_time_eq(&self.tag(id, &held), tag);
        let ended = held.expires <= Instant::now();
        if token.kind() != KIND || !genuine || !held.owner.serves(asks) || ended {
            return Err(VOID);
        }
        Ok(held)
    }

    /// Number of tokens that are out.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Forgets the tokens whose time is over.
    pub fn sweep(&self, now: Instant) {
        self.lock().retain(|_, held| held.expires > now);
    }
}

impl Held {
    /// Bytes that the token stands for.
    pub fn length(&self) -> u64 {
        self.len
    }

    /// Writes `len` bytes of what the token stands for, from `at`, into `target` at `to`; `len`
    /// must lie within the token.
    ///
    /// # Errors
    /// INVALID_TOKEN if the source is no longer as it was.
    pub fn write_to(
        &self,
        at: u64,
        target: BorrowedFd<'_>,
        to: u64,
        len: u64,
    ) -> Result<(), NtStatus> {
        let of_errno = crate::status::of_errno;
        self.check()?;
        let data = len.min(self.filled.saturating_sub(at));
        let (done, ended) = space::copy(self.source.as_fd(), self.start + at, target, to, data);
        ended.map_err(of_errno)?;
        if done < data {
            return Err(NtStatus::INVALID_TOKEN);
        }
        space::zero(target, to + data..to + len, false).map_err(of_errno)?;
        // Changed meanwhile: what was written may be of two times.
        self.check()
    }

    /// Fills `buf` from byte `at` of what the token stands for on; both lie within it. Waits for the
    /// storage.
    ///
    /// # Errors
    /// INVALID_TOKEN if the source is no longer as it was; what the file system says.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), NtStatus> {
        self.check()?;
        let there = usize::try_from(self.filled.saturating_sub(at)).unwrap_or(usize::MAX);
        let (data, behind) = buf.split_at_mut(there.min(buf.len()));
        behind.fill(0);
        let mut done = 0;
        while done < data.len() {
            let from = self.start + at + done as u64;
            match rustix::io::pread(&self.source, &mut data[done..], from) {
                Ok(0) => return Err(NtStatus::INVALID_TOKEN),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(crate::status::of_errno(error)),
            }
        }
        // Changed meanwhile: what was read may be of two times.
        self.check()
    }

    fn check(&self) -> Result<(), NtStatus> {
        match self.stamp {
            Some(stamp) if stamp_of(self.source.as_fd()) != Ok(stamp) => {
                Err(NtStatus::INVALID_TOKEN)
            }
            _ => Ok(()),
        }
    }
}

fn stamp_of(fd: BorrowedFd<'_>) -> Result<Stamp, Errno> {
    let stat = rustix::fs::fstat(fd)?;
    let changed = (stat.st_ctime, stat.st_ctime_nsec);
    Ok(Stamp { changed, size: u64::try_from(stat.st_size).unwrap_or(0) })
}

/// A stamp that every later change differs from: changes are stamped with a coarse clock, so the
/// last one must lie before its present tick. `None` if changes do not cease.
fn settled(fd: BorrowedFd<'_>) -> Result<Option<Stamp>, Errno> {
    for _ in 0..20 {
        let stamp = stamp_of(fd)?;
        let now = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
        if (now.tv_sec, u64::try_from(now.tv_nsec).unwrap_or(0)) > stamp.changed {
            return Ok(Some(stamp));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(None)
}

/// A nameless file with the blocks of `range`, and where in it the range begins.
fn clone(
    volume: &Volume,
    source: BorrowedFd<'_>,
    range: &Range<u64>,
) -> Result<(OwnedFd, u64), Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let clone = rustix::fs::openat(volume.root(), ".", flags, Mode::from_raw_mode(0o600))?;
    let cluster = cluster_size(source)?;
    let from = range.start - range.start % cluster;
    let end = range.end.next_multiple_of(cluster).min(stamp_of(source)?.size);
    space::share(source, from, clone.as_fd(), 0, end.saturating_sub(from))?;
    Ok((clone, range.start - from))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt};

    use super::*;

    fn owner(user: &str, sealed: bool) -> Owner {
        Owner { user: user.into(), sealed }
    }

    fn volume() -> (tempfile::TempDir, Volume) {
        let folder = tempfile::tempdir().unwrap();
        let volume = Volume::open(folder.path()).unwrap();
        (folder, volume)
    }

    fn content(file: &File, len: usize) -> Vec<u8> {
        let mut all = vec![0; len];
        file.read_exact_at(&mut all, 0).unwrap();
        all
    }

    #[test]
    fn a_token_gives_its_range_to_its_user_only() {
        let (_folder, volume) = volume();
        let tokens = Tokens::default();
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(&[1; 1000], 0).unwrap();
        let life = Duration::from_secs(60);
        let issue =
            |user| tokens.issue(&volume, source.as_fd(), 512..1000, 512, owner(user, false), life);
        let (token, _) = issue("ANN").unwrap();
        assert_eq!(
            tokens.redeem(&token, &owner("BOB", true)).unwrap_err(),
            NtStatus::INVALID_TOKEN
        );
        let target = tempfile::tempfile().unwrap();
        target.write_all_at(&[9; 2048], 0).unwrap();
        let held = tokens.redeem(&token, &owner("ANN", false)).unwrap();
        assert_eq!(held.length(), 512);
        held.write_to(0, target.as_fd(), 1024, 512).unwrap();
        let now = content(&target, 2048);
        assert!(now[..1024].iter().chain(&now[1536..]).all(|b| *b == 9));
        assert!(now[1024..1512].iter().all(|b| *b == 1));
        assert!(now[1512..1536].iter().all(|b| *b == 0), "behind the end of the source");
    }

    #[derive(Debug)]
    struct Nobody;

    impl Elsewhere for Nobody {
        fn redeem(&self, _: &Token, _: &Owner) -> Option<Box<dyn ElsewhereData>> {
            None
        }
    }

    /// Who waits for another service takes few of the threads of which that may need one itself.
    #[test]
    fn few_wait_for_another_service_at_a_time() {
        use futures_util::FutureExt;

        let (_folder, volume) = volume();
        let tokens = Tokens::default();
        let stranger = Token::new(1, &[7; 48]);
        assert!(tokens.turn(&stranger).now_or_never().unwrap().is_none(), "there is no other");
        tokens.ask_elsewhere(Arc::new(Nobody));
        let all: Vec<_> =
            (0..WAITING).map(|_| tokens.turn(&stranger).now_or_never().unwrap()).collect();
        assert!(all.iter().all(Option::is_some));
        let mut next = std::pin::pin!(tokens.turn(&stranger));
        assert!(next.as_mut().now_or_never().is_none());
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(&[1; 512], 0).unwrap();
        let life = Duration::from_secs(60);
        let (own, _) =
            tokens.issue(&volume, source.as_fd(), 0..512, 512, owner("ANN", false), life).unwrap();
        assert!(
            tokens.turn(&own).now_or_never().unwrap().is_none(),
            "one of ours waits for nobody"
        );
        drop(all);
        assert!(next.now_or_never().unwrap().is_some());
    }

    #[test]
    fn altered_and_expired_tokens_are_void() {
        let (_folder, volume) = volume();
        let tokens = Tokens::default();
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(&[1; 512], 0).unwrap();
        let life = Duration::from_secs(60);
        let (token, expires) =
            tokens.issue(&volume, source.as_fd(), 0..512, 512, owner("ANN", false), life).unwrap();
        for at in [0, 7, 8, 30, 55] {
            let mut altered = token;
            altered.0[at] ^= 1;
            assert!(tokens.redeem(&altered, &owner("ANN", false)).is_err(), "byte {at}");
        }
        assert!(
            Tokens::default().redeem(&token, &owner("ANN", false)).is_err(),
            "of another server"
        );
        tokens.sweep(expires);
        assert!(tokens.redeem(&token, &owner("ANN", false)).is_err());
    }

    #[test]
    fn a_changed_source_voids_the_token_or_the_token_keeps_the_old_data() {
        let (_folder, volume) = volume();
        let tokens = Tokens::default();
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(&[1; 4096], 0).unwrap();
        let life = Duration::from_secs(60);
        let (token, _) = tokens
            .issue(&volume, source.as_fd(), 0..4096, 4096, owner("ANN", false), life)
            .unwrap();
        source.write_all_at(&[2; 4096], 0).unwrap();
        let target = tempfile::tempfile().unwrap();
        target.set_len(4096).unwrap();
        let held = tokens.redeem(&token, &owner("ANN", false)).unwrap();
        match held.write_to(0, target.as_fd(), 0, 4096) {
            Ok(()) => assert_eq!(content(&target, 4096), [1; 4096]),
            Err(status) => assert_eq!(status, NtStatus::INVALID_TOKEN),
        }
    }

    #[test]
    fn the_table_is_bounded() {
        let (_folder, volume) = volume();
        let tokens = Tokens::default();
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(&[1; 512], 0).unwrap();
        let issue = |user, life| {
            tokens.issue(&volume, source.as_fd(), 0..512, 512, owner(user, false), life)
        };
        let users: Vec<_> = (0..MOST / MOST_OF_ONE).map(|n| format!("USER{n}")).collect();
        for user in &users {
            for _ in 0..MOST_OF_ONE {
                issue(user, Duration::from_secs(60)).unwrap();
            }
            // One user takes nothing from the others.
            let full = issue(user, Duration::from_secs(60)).unwrap_err();
            assert_eq!(full, NtStatus::INSUFFICIENT_RESOURCES);
        }
        assert!(issue("ANN", Duration::from_secs(60)).is_err());
        tokens.sweep(Instant::now() + LONGEST);
        issue("ANN", Duration::ZERO).unwrap();
    }
}
