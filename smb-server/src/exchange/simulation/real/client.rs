//! A client of the simulation: what the program above the real client asks, and what it may
//! expect.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use block_io::File;
use smb_client::{
    Compress, ConnectOptions, Create, Encryption, Error, Login, OpenOptions, RemoteFile, Session,
    Share, Tree, parse_dialect,
};
use smb_protocol::{NtStatus, compression::CompressionAlgorithm};

use super::{
    super::{Broken, Checked, Dice, frames::Place, store::own},
    model::Register,
    network::{Net, Way},
};

pub(super) const BLOCKS: usize = 3;
pub(super) const BLOCK: usize = 64;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Connect,
    /// Makes the file, which must not be there, or opens it.
    Open(Create),
    Write(usize, u8),
    Read(usize),
    Zero(usize),
    Flush,
    Close,
    /// About the client's folder, which has one of two names or is not there.
    Make(usize),
    Rename(usize),
    Delete(usize),
    Exists(usize),
    List,
}

impl Op {
    /// Whether it is about the folder.
    fn is_of_folder(self) -> bool {
        matches!(
            self,
            Self::Make(_) | Self::Rename(_) | Self::Delete(_) | Self::Exists(_) | Self::List
        )
    }
}

/// What a history is mostly about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Mixed,
    /// Flushes, and power that is lost when one was answered.
    Flushes,
    /// Folders.
    Names,
    /// Connections that are lost while there are others.
    Losses,
}

impl Mood {
    /// Histories in which a broken rule shows, where it seldom does in others.
    pub(super) fn that_shows(broken: Broken) -> Option<Self> {
        match broken {
            Broken::ChannelSequence | Broken::WriteReplayFlag => Some(Self::Losses),
            Broken::Flush | Broken::FlushBarrier => Some(Self::Flushes),
            Broken::Names => Some(Self::Names),
            _ => None,
        }
    }
}

/// What comes of it.
pub(super) enum Done {
    Nothing,
    Connected(Session, Tree),
    Opened(RemoteFile),
    Read(Vec<u8>),
    Exists(bool),
    Listed(Vec<String>),
}

/// Answers that nobody has looked at yet: to which operation of which client.
pub(super) type Heard = Arc<Mutex<VecDeque<(usize, u64, Result<Done, Error>)>>>;

/// An operation under way.
#[derive(Debug)]
pub(super) struct Flight {
    id: u64,
    pub(super) op: Op,
    /// Its place in the register of its block; for a flush, how much was written before.
    place: usize,
}

pub(super) struct Client {
    number: usize,
    pub(super) name: String,
    /// Its share is not continuously available: what is not flushed may be lost with the machine,
    /// and opens are with the server.
    pub(super) plain: bool,
    /// Its open is made anew when it was lost and nothing with it.
    reopens: bool,
    options: ConnectOptions,
    tree: Option<(Session, Tree)>,
    file: Option<Arc<RemoteFile>>,
    pub(super) place: Place,
    pub(super) blocks: Vec<Register>,
    /// Which of its names the folder has.
    folder: Option<usize>,
    pub(super) flights: Vec<Flight>,
    next_id: u64,
    next_value: u8,
    /// Writes that were acknowledged, and how many of them when the last flush began that was.
    written: u64,
    flushed: u64,
    /// Writes were lost, and that was told: nobody knows what the file holds.
    blind: bool,
    /// The power was lost before the request with this number was begun, and the client has asked
    /// nothing since that would tell it.
    robbed: Option<u64>,
}

impl Client {
    pub(super) fn new(
        number: usize,
        name: String,
        (mood, broken): (Mood, Broken),
        dice: &mut Dice,
        net: &Arc<Mutex<Net>>,
    ) -> Self {
        let mut options = ConnectOptions::new("server", 445, Login::new("u", "p"));
        options.network = Some(Arc::new(Way { net: net.clone() }));
        options.max_channels = match mood {
            Mood::Losses => 3,
            _ => 1 + dice.roll(3) as u16,
        };
        options.channels_per_interface = 3;
        options.credits = [2, 4, 32][dice.roll(3)];
        options.reconnect_timeout = Duration::from_secs(600);
        options.broken = broken.of_client();
        let plain = mood == Mood::Flushes || mood == Mood::Mixed && dice.roll(3) == 0;
        if dice.roll(4) == 0 {
            options.encryption = Encryption::Required;
        }
        let dialect = ["3.0", "3.0.2", "3.1.1", "3.1.1"][dice.roll(4)];
        options.dialects.1 = parse_dialect(dialect).expect("a dialect");
        // Half of those that can compress what they read and write, each in another way.
        if options.credits != 4 {
            options.compress = Compress::Always;
            options.compress_from = 1;
            let by = usize::from(options.max_channels) % CompressionAlgorithm::ALL.len();
            options.compression.rotate_left(by);
            options.chained_compression = options.credits == 32;
        }
        Self {
            number,
            name,
            plain,
            reopens: plain && dice.roll(2) == 0,
            options,
            tree: None,
            file: None,
            place: Place::Absent,
            blocks: (0..BLOCKS).map(|_| Register::new(0)).collect(),
            folder: None,
            flights: Vec::new(),
            next_id: 0,
            next_value: 1,
            written: 0,
            flushed: 0,
            blind: false,
            robbed: None,
        }
    }

    /// Whether the folder is there, in its one place and no other.
    pub(super) fn folder_is(&self, found: [bool; 2]) -> bool {
        found == [self.folder == Some(0), self.folder == Some(1)]
    }

    /// Whether it is certain to whom the file belongs.
    pub(super) fn is_settled(&self) -> bool {
        !self.plain && !self.flights.iter().any(|f| matches!(f.op, Op::Open(_) | Op::Close))
    }

    /// What the folder may be called.
    pub(super) fn folders(&self) -> [String; 2] {
        ["x", "y"].map(|letter| format!("{}-{letter}", self.name))
    }

    /// What is begun next with the folder.
    fn choose_of_folder(&self, dice: &mut Dice) -> Option<Op> {
        if self.tree.is_none() || self.flights.iter().any(|f| f.op.is_of_folder()) {
            return None;
        }
        Some(match (self.folder, dice.roll(8)) {
            (_, 0) => Op::Exists(dice.roll(2)),
            (_, 1) => Op::List,
            (None, _) => Op::Make(dice.roll(2)),
            (Some(now), 2..5) => Op::Delete(now),
            (Some(now), _) => Op::Rename(now),
        })
    }

    /// What is begun next, if anything can be.
    pub(super) fn choose(&mut self, mood: Mood, dice: &mut Dice) -> Option<Op> {
        if dice.roll(5) < if mood == Mood::Names { 4 } else { 1 } {
            return self.choose_of_folder(dice);
        }
        let alone = |op: &Op| matches!(op, Op::Connect | Op::Open(_) | Op::Close);
        if self.flights.len() >= 5 || self.flights.iter().any(|f| alone(&f.op)) {
            return None;
        }
        let block = dice.roll(if mood == Mood::Losses { 1 } else { BLOCKS });
        let what = match mood {
            Mood::Flushes => dice.roll(20),
            Mood::Losses => dice.roll(16).saturating_sub(dice.roll(8)),
            _ => dice.roll(16),
        };
        Some(match (self.place, what) {
            _ if self.tree.is_none() => Op::Connect,
            (Place::Absent, _) => Op::Open(Create::New),
            (Place::Closed, 0..4) if self.flights.iter().all(|f| f.op.is_of_folder()) => {
                Op::Open(Create::Open)
            }
            (Place::Closed, _) => return None,
            (Place::Open, 0..7) => {
                self.next_value = self.next_value.wrapping_add(1).max(1);
                Op::Write(block, self.next_value)
            }
            (Place::Open, 7..12) => Op::Read(block),
            (Place::Open, 12) => Op::Zero(block),
            (Place::Open, 13 | 14 | 16..) => Op::Flush,
            (Place::Open, _) if self.flights.is_empty() && dice.roll(4) == 0 => Op::Close,
            (Place::Open, _) => return None,
        })
    }

    /// Begins an operation; `false` if too many are under way on its block.
    pub(super) fn begin(
        &mut self,
        op: Op,
        runtime: &tokio::runtime::Runtime,
        heard: &Heard,
        (rarely, seed): (usize, u64),
    ) -> bool {
        let place = match op {
            Op::Write(block, value) => self.blocks[block].write(value),
            Op::Zero(block) => self.blocks[block].write(0),
            Op::Read(block) => self.blocks[block].read(),
            Op::Flush => usize::try_from(self.written).ok(),
            _ => Some(0),
        };
        let Some(place) = place else { return false };
        let id = self.next_id;
        self.next_id += 1;
        self.flights.push(Flight { id, op, place });
        let (tree, file) = (self.tree.clone(), self.file.clone());
        let (options, name, folders) = (self.options.clone(), self.name.clone(), self.folders());
        let (share, reopens) = (if self.plain { "n" } else { "s" }, self.reopens);
        let (heard, number) = (heard.clone(), self.number);
        let tree = tree.map(|(_, tree)| tree);
        let work = async move {
            carry_out(op, options, tree, file, &name, &folders, share, reopens).await
        };
        runtime.spawn(async move {
            let result = Slow { work: Box::pin(work), wait: None, rarely, dice: Dice(seed) }.await;
            own(&heard).push_back((number, id, result));
        });
        true
    }

    /// Whether an error is one that a client of a server that was killed may see, since its open
    /// was in that server's memory only. That writes were lost may only be said if some were not
    /// flushed, and if it is not said all are there.
    fn is_lost(&mut self, id: u64, op: Op, place: usize, error: &Error) -> bool {
        match (op, error) {
            // It was made, and the answer was lost with the server.
            (Op::Open(Create::New), Error::Status { status, .. })
                if *status == NtStatus::OBJECT_NAME_COLLISION =>
            {
                self.place = Place::Closed;
                return true;
            }
            (Op::Close, _) => {}
            (_, Error::WritesLost { .. }) if self.written > self.flushed => self.blind = true,
            // Then nothing was lost.
            (_, Error::HandleLost { .. }) => {
                self.robbed = self.robbed.filter(|first| id < *first);
            }
            _ => return false,
        }
        if let Op::Write(block, _) | Op::Zero(block) | Op::Read(block) = op {
            self.blocks[block].fail(place);
        }
        self.file = None;
        self.place = Place::Closed;
        true
    }

    /// The machine of the server loses its power, and this is what is left of the file. On a
    /// continuously available share that must be all that was acknowledged. On another, what was
    /// read of a write that has no answer may go, too, which this model does not know how to say.
    pub(super) fn lose_power(&mut self, left: &[u8]) -> Checked {
        if self.plain {
            self.blind |= self.blocks.iter().any(Register::is_peeked);
            self.robbed = Some(self.next_id);
            return Ok(());
        }
        for (number, (block, bytes)) in self.blocks.iter_mut().zip(left.chunks(BLOCK)).enumerate() {
            let same = bytes.iter().all(|byte| *byte == bytes[0]);
            if !same || !block.lose_power(bytes[0]) {
                let client = self.number;
                return Err(format!("client {client}: block {number} is {bytes:?} without power"));
            }
        }
        Ok(())
    }

    /// Whether the file must be as the model says.
    pub(super) fn is_known(&self) -> bool {
        let untold = self.robbed.is_some() && self.written > self.flushed;
        self.place != Place::Absent && !self.blind && !untold
    }

    /// Whether its file is open.
    pub(super) fn is_open(&self) -> bool {
        self.place == Place::Open
    }

    /// What an operation under way is.
    pub(super) fn op(&self, id: u64) -> Op {
        self.flights.iter().find(|f| f.id == id).expect("it was begun").op
    }

    /// An operation has ended.
    pub(super) fn heard(&mut self, id: u64, result: Result<Done, Error>) -> Checked {
        let at = self.flights.iter().position(|f| f.id == id).expect("it was begun");
        let Flight { op, place, .. } = self.flights.remove(at);
        let done = match result {
            Ok(done) => done,
            // The first connection is not tried again by itself.
            Err(Error::Connect { .. } | Error::Disconnected(_) | Error::Timeout { .. })
                if op == Op::Connect =>
            {
                return Ok(());
            }
            Err(error) if self.plain && self.is_lost(id, op, place, &error) => return Ok(()),
            Err(error) => return Err(format!("client {}: {op:?}: {error}", self.number)),
        };
        let asks = matches!(op, Op::Write(..) | Op::Zero(_) | Op::Read(_) | Op::Flush);
        self.robbed = self.robbed.filter(|first| !asks || id < *first);
        match op {
            Op::Write(..) | Op::Zero(_) => self.written += 1,
            Op::Flush => self.flushed = self.flushed.max(place as u64),
            _ => {}
        }
        let wrong = |what: String| Err(format!("client {}: {op:?}: {what}", self.number));
        match (op, done) {
            (Op::Connect, Done::Connected(session, tree)) => self.tree = Some((session, tree)),
            (Op::Open(_), Done::Opened(file)) => {
                self.file = Some(Arc::new(file));
                self.place = Place::Open;
            }
            (Op::Close, _) => {
                // Nobody will say that what was not flushed is lost.
                self.blind |= self.plain && self.written > self.flushed;
                self.file = None;
                self.place = Place::Closed;
            }
            (Op::Read(block), Done::Read(data)) => {
                // Behind the end of the file nothing was written.
                let value = data.first().copied().unwrap_or(0);
                let whole = data.len() == BLOCK || data.is_empty();
                if self.blind {
                    self.blocks[block].fail(place);
                    return Ok(());
                }
                if !whole || data.iter().any(|byte| *byte != value) {
                    return wrong(format!("a mixture: {data:?}"));
                }
                if !self.blocks[block].end(place, Some(value)) {
                    return wrong(format!("{value} is not what it can be"));
                }
            }
            (Op::Make(name), _) => self.folder = Some(name),
            (Op::Rename(from), _) => self.folder = Some(1 - from),
            (Op::Delete(_), _) => self.folder = None,
            (Op::Exists(name), Done::Exists(found)) if found != (self.folder == Some(name)) => {
                return wrong(format!("the folder is {:?}: {found}", self.folder));
            }
            (Op::List, Done::Listed(found)) => {
                let wanted: Vec<_> =
                    self.folder.map(|now| self.folders()[now].clone()).into_iter().collect();
                if found != wanted {
                    return wrong(format!("{found:?} and not {wanted:?}"));
                }
            }
            (Op::Write(block, _) | Op::Zero(block), _)
                if !self.blocks[block].end(place, None) && !self.blind =>
            {
                return wrong("no order explains it".to_owned());
            }
            _ => {}
        }
        Ok(())
    }
}

/// A program that does not always see at once what has come.
struct Slow<T> {
    work: Pin<Box<dyn Future<Output = T> + Send>>,
    wait: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Once in so many times.
    rarely: usize,
    dice: Dice,
}

impl<T> Future for Slow<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let rarely = self.rarely;
        if self.wait.is_none() && self.dice.roll(rarely) == 0 {
            let time = [1, 30, 300, 3000, 10_000][self.dice.roll(5)];
            self.wait = Some(Box::pin(tokio::time::sleep(Duration::from_millis(time))));
        }
        if let Some(wait) = &mut self.wait {
            std::task::ready!(wait.as_mut().poll(context));
            self.wait = None;
        }
        self.work.as_mut().poll(context)
    }
}

#[expect(clippy::too_many_arguments, reason = "all that a program has")]
async fn carry_out(
    op: Op,
    options: ConnectOptions,
    tree: Option<Tree>,
    file: Option<Arc<RemoteFile>>,
    name: &str,
    folders: &[String; 2],
    share_name: &str,
    reopen: bool,
) -> Result<Done, Error> {
    let share = || tree.as_ref().ok_or(Error::Closed);
    let file = || file.as_ref().ok_or(Error::Closed);
    let at = |block: usize| (block * BLOCK) as u64;
    Ok(match op {
        Op::Connect => {
            let session = smb_client::Client::connect(options).await?;
            let tree = session.tree(share_name).await?;
            Done::Connected(session, tree)
        }
        Op::Open(create) => {
            let options = OpenOptions { share: Share::None, reopen, ..OpenOptions::create(create) };
            Done::Opened(share()?.open(name, options).await?)
        }
        Op::Write(block, value) => {
            file()?.write(at(block), &[value; BLOCK]).await?;
            Done::Nothing
        }
        Op::Zero(block) => {
            file()?.zero(at(block)..at(block + 1)).await?;
            Done::Nothing
        }
        Op::Read(block) => {
            let mut data = vec![0; BLOCK];
            let got = file()?.read(at(block), &mut data).await?;
            data.truncate(got);
            Done::Read(data)
        }
        Op::Flush => {
            file()?.sync().await?;
            Done::Nothing
        }
        Op::Make(name) => {
            share()?.mkdir(&folders[name]).await?;
            Done::Nothing
        }
        Op::Rename(from) => {
            share()?.rename(&folders[from], &folders[1 - from], false).await?;
            Done::Nothing
        }
        Op::Delete(name) => {
            share()?.delete(&folders[name]).await?;
            Done::Nothing
        }
        Op::Exists(name) => Done::Exists(share()?.exists(&folders[name]).await?),
        Op::List => {
            let entries = share()?.read_dir("").await?.into_iter();
            let mine = entries.map(|entry| entry.name).filter(|name| folders.contains(name));
            Done::Listed(mine.collect())
        }
        Op::Close => {
            // What a disk does at its end.
            if let Err(error) = file()?.close().await {
                return Err(Error::Path(error.to_string()));
            }
            Done::Nothing
        }
    })
}
