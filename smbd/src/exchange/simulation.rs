//! Clients, servers and the network between them in one thread, in any order that a seed makes:
//! frames wait, connections are lost while some of what was sent is still on its way, servers are
//! killed and started again. What comes out is held against a model of the files.
//!
//! ```text
//!  client ─► queue ─► server's exchange ─► I/O under way ─► queue ─► client
//!     ▲        └────────────── each arrow is a step; the seed chooses which is next ──┘
//!     └── loses a connection: repeats on another with the next channel sequence, or logs on
//!         again and takes its opens up
//! ```
//!
//! The model: a file is its client's alone from its CREATE to its CLOSE; a block has the value of
//! its last acknowledged write; a lock is there from its answer to that of its release. The
//! server is the real one on real files. The clients are of this test: they keep the rules of
//! MS-SMB2 3.2, and each rule can be broken ([`Broken`]) to see that the model notices.
//!
//! `BULKHEAD_SEED=n` runs that history alone and tells its steps.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use smb_protocol::{
    Command, Dialect, FileId, Header, HeaderFlags, MessageId, NtStatus, SessionId, TreeId,
    header::{FRAME_LEN, HEADER_LEN, frame_len},
    msg::{
        close,
        context::{DurableV2, ReconnectV2, names},
        create::{self, Access, CreateOptions, Disposition, RawContext, ShareAccess},
        flush, lock, read, tree_connect, write,
    },
};
use state_store::{Batch, Commit, Opened, Records, Store};

use super::{
    Frame, WaitingFuture,
    channels::{Known, Line},
};
use crate::{Server, config::Config};

/// A rule that is broken, to see that the model notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// A client does not count its channel sequence up when it loses a channel.
    ChannelSequence,
    /// A client repeats a CREATE as if it were new.
    ReplayFlag,
    /// A client does not number its locks.
    LockSequence,
    /// The store says that something is durable that is not.
    Durability,
    /// The store loses what is taken away.
    Forgetting,
    /// A server that starts does not look for what the last one knew.
    Recovery,
    /// Locks are not remembered.
    Locks,
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }
}

/// A store whose durability is simulated: what was not waited for may be lost with the server,
/// from the end.
#[derive(Debug)]
struct Disk {
    base: Records,
    log: Vec<Batch>,
    durable: usize,
    broken: Broken,
    /// Which server has it.
    owner: u32,
}

#[derive(Debug)]
struct Shelf {
    disk: Arc<Mutex<Disk>>,
    owner: u32,
}

fn own<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store for Shelf {
    fn commit(&self, batch: Batch) -> Commit {
        let (disk, owner) = (self.disk.clone(), self.owner);
        let mut now = own(&disk);
        if now.owner != owner {
            return Commit::ready(Err(state_store::StoreError::Closed));
        }
        let batch = match now.broken {
            Broken::Forgetting => filter(&batch, |_, value| value.is_some()),
            Broken::Locks => filter(&batch, |key, _| key[0] != b'l'),
            _ => batch,
        };
        now.log.push(batch);
        let end = now.log.len();
        drop(now);
        Commit::new(async move {
            let mut disk = own(&disk);
            if disk.owner == owner && disk.broken != Broken::Durability {
                disk.durable = disk.durable.max(end);
            }
            Ok(())
        })
    }

    fn commits(&self) -> u64 {
        own(&self.disk).durable as u64
    }
}

fn filter(batch: &Batch, keep: impl Fn(&[u8], &Option<Vec<u8>>) -> bool) -> Batch {
    let kept = batch.changes().iter().filter(|(key, value)| keep(key, value));
    kept.fold(Batch::new(), |batch, (key, value)| match value {
        Some(value) => batch.put(key.clone(), value.clone()),
        None => batch.delete(key.clone()),
    })
}

/// One connection: both ends and what is on its way.
struct Wire {
    line: Line,
    to_server: VecDeque<Vec<u8>>,
    to_client: VecDeque<(Header, Vec<u8>)>,
    waits: Vec<WaitingFuture>,
    /// The client has given it up.
    left: bool,
}

/// What a client asks of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    Create,
    Write(usize, u8),
    Read(usize),
    Flush,
    Lock(u8),
    Unlock(u8),
    Close,
}

/// An operation under way.
#[derive(Debug, Clone)]
struct Flight {
    op: Op,
    /// Connection and message id, unless it is to be sent again.
    sent: Option<(usize, MessageId)>,
    /// It was sent before.
    again: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Absent,
    Open,
    Closed,
}

const BLOCKS: usize = 3;
const BLOCK: usize = 64;

/// A client with one file.
struct Client {
    guid: u8,
    name: String,
    create_guid: [u8; 16],
    known: Option<Known>,
    previous: SessionId,
    tree: TreeId,
    wires: Vec<usize>,
    sequence: u16,
    file: FileId,
    flights: Vec<Flight>,
    // The model.
    place: Place,
    blocks: [u8; BLOCKS],
    locked: bool,
    lock_number: u8,
    next_value: u8,
}

struct World<'a> {
    dice: Dice,
    broken: Broken,
    house: &'a House,
    server: Arc<Server>,
    disk: Arc<Mutex<Disk>>,
    wires: Vec<Option<Wire>>,
    clients: Vec<Client>,
    tell: bool,
}

/// What all histories share: folders and a runtime.
struct House {
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    config: Config,
}

impl House {
    fn new() -> Self {
        // In memory where there is such a place: the model is about order, not about disks.
        let shm = PathBuf::from("/dev/shm");
        let base = if shm.is_dir() { shm } else { std::env::temp_dir() };
        let folder = tempfile::tempdir_in(base).unwrap();
        std::fs::create_dir(folder.path().join("files")).unwrap();
        let text = format!(
            "[server]\nlisten=['127.0.0.1:0']\nstate_dir='{}'\nsigning='enabled'\n\
             encryption='off'\nio_engine='threads'\n\
             [[user]]\nname='u'\npassword='p'\n\
             [[share]]\nname='s'\npath='files'\nusers=['u']\ncontinuously_available=true\n",
            folder.path().join("state").display()
        );
        let config = Config::parse(&text, &folder.path().join("c")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        Self { folder, runtime, config }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("files").join(name)
    }
}

type Checked = Result<(), String>;

fn new_server(house: &House, disk: &Arc<Mutex<Disk>>, broken: Broken) -> Arc<Server> {
    let server = Arc::new(Server::new(house.config.clone()).unwrap());
    let mut now = own(disk);
    now.owner += 1;
    let mut records = now.base.clone();
    now.log.iter().for_each(|batch| batch.apply(&mut records));
    (now.base, now.log, now.durable) = (records.clone(), Vec::new(), 0);
    let store = Arc::new(Shelf { disk: disk.clone(), owner: now.owner });
    drop(now);
    let records = if broken == Broken::Recovery { Records::new() } else { records };
    server.recover_from(Opened { store, records });
    server
}

impl<'a> World<'a> {
    fn new(house: &'a House, seed: u64, broken: Broken, tell: bool) -> Self {
        let disk = Arc::new(Mutex::new(Disk {
            base: Records::new(),
            log: Vec::new(),
            durable: 0,
            broken,
            owner: 0,
        }));
        let server = new_server(house, &disk, broken);
        let client = |guid: u8| Client {
            guid,
            name: format!("{seed:x}-{guid}"),
            create_guid: [guid; 16],
            known: None,
            previous: SessionId(0),
            tree: TreeId(0),
            wires: Vec::new(),
            sequence: 0,
            file: FileId::default(),
            flights: Vec::new(),
            place: Place::Absent,
            blocks: [0; BLOCKS],
            locked: false,
            lock_number: 0,
            next_value: 1,
        };
        Self {
            dice: Dice(seed),
            broken,
            house,
            server,
            disk,
            wires: Vec::new(),
            clients: vec![client(1), client(2)],
            tell,
        }
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.tell {
            println!("  {}", text());
        }
    }

    /// Sends what a wire has for the server, all of it, and finishes what it began.
    fn run_out(&mut self, wire: usize) -> Checked {
        while self.wires[wire].as_ref().is_some_and(|w| !w.to_server.is_empty()) {
            self.deliver(wire);
        }
        while self.wires[wire].as_ref().is_some_and(|w| !w.waits.is_empty()) {
            self.progress(wire, 0)?;
        }
        Ok(())
    }

    /// The server gets the next frame of a wire.
    fn deliver(&mut self, wire: usize) {
        let Some(w) = &mut self.wires[wire] else { return };
        let Some(mut message) = w.to_server.pop_front() else { return };
        let mut out = Vec::new();
        let _inside = self.house.runtime.enter();
        match w.line.exchange.receive(&mut message, &mut out) {
            Ok(Frame::Answered) => {}
            Ok(Frame::Waits(waits)) => w.waits.extend(waits),
            Err(error) => panic!("a client that keeps the rules is dropped: {error}"),
        }
        w.to_client.extend(answers(&out));
    }

    /// Something that the server began on a wire is done, or lets wait for longer.
    fn progress(&mut self, wire: usize, which: usize) -> Checked {
        let Some(w) = &mut self.wires[wire] else { return Ok(()) };
        let mut wait = w.waits.swap_remove(which);
        let _inside = self.house.runtime.enter();
        let limit = tokio::time::timeout(Duration::from_secs(20), &mut wait);
        let done = self.house.runtime.block_on(limit);
        let done = done.map_err(|_| "something never ends".to_owned())?;
        let mut out = Vec::new();
        let more = w.line.exchange.complete(done, &mut out).map_err(|e| e.to_string())?;
        w.waits.extend(more);
        w.to_client.extend(answers(&out));
        Ok(())
    }

    /// Sends an operation of a client on one of its connections.
    fn send(&mut self, client: usize, flight: usize) {
        let c = &mut self.clients[client];
        if c.wires.is_empty() {
            return;
        }
        let number = c.wires[self.dice.roll(c.wires.len())];
        let Flight { op, again, .. } = c.flights[flight].clone();
        let Some(wire) = &mut self.wires[number] else { return };
        let id = MessageId(wire.line.next_id);
        wire.line.next_id += 1;
        let mut header = Header {
            credit_charge: 1,
            credits: 32,
            message_id: id,
            session_id: c.known.as_ref().map_or(SessionId(0), |known| known.id),
            ..Header::default()
        };
        header.set_tree_id(c.tree);
        let mut body = Vec::new();
        header.command = c.encode(&op, self.broken, &mut body);
        header.status = NtStatus(c.sequence.into());
        if again && !(op == Op::Create && self.broken == Broken::ReplayFlag) {
            header.flags |= HeaderFlags::REPLAY;
        }
        let mut message = header.to_bytes().to_vec();
        message.extend_from_slice(&body);
        wire.to_server.push_back(message);
        c.flights[flight] = Flight { op: op.clone(), sent: Some((number, id)), again: true };
        self.say(|| format!("client {client} sends {op:?} again={again} on {number}"));
    }

    /// A client begins something.
    fn begin(&mut self, client: usize) {
        let c = &self.clients[client];
        let busy = |what: &dyn Fn(&Op) -> bool| c.flights.iter().any(|f| what(&f.op));
        let all = busy(&|op| matches!(op, Op::Create | Op::Close));
        if all || c.flights.len() >= 4 || c.wires.is_empty() {
            return;
        }
        let block = self.dice.roll(BLOCKS);
        let taken = busy(&|op| matches!(op, Op::Write(b, _) | Op::Read(b) if *b == block));
        let locking = busy(&|op| matches!(op, Op::Lock(_) | Op::Unlock(_)));
        let op = match (c.place, self.dice.roll(12)) {
            (Place::Absent, _) => Op::Create,
            (Place::Closed, _) => return,
            (_, 0..5) if !taken => Op::Write(block, c.next_value),
            (_, 5..8) if !taken => Op::Read(block),
            (_, 8) => Op::Flush,
            (_, 9..11) if !locking => {
                let number = (c.lock_number + 1) % 16;
                if c.locked { Op::Unlock(number) } else { Op::Lock(number) }
            }
            (_, 11) if c.flights.is_empty() && self.dice.roll(4) == 0 => Op::Close,
            _ => return,
        };
        let c = &mut self.clients[client];
        match op {
            Op::Write(..) => c.next_value = c.next_value.wrapping_add(1).max(1),
            Op::Lock(number) | Op::Unlock(number) => c.lock_number = number,
            _ => {}
        }
        c.flights.push(Flight { op, sent: None, again: false });
        let last = c.flights.len() - 1;
        self.send(client, last);
    }

    /// A client gets the next answer on a connection.
    fn hear(&mut self, wire: usize) -> Checked {
        let Some(w) = &mut self.wires[wire] else { return Ok(()) };
        let Some((header, body)) = w.to_client.pop_front() else { return Ok(()) };
        if w.left || header.status == NtStatus::PENDING {
            return Ok(());
        }
        for (number, c) in self.clients.iter_mut().enumerate() {
            let mine = |f: &Flight| f.sent == Some((wire, header.message_id));
            let Some(at) = c.flights.iter().position(mine) else { continue };
            let op = c.flights[at].op.clone();
            if header.status == NtStatus::FILE_NOT_AVAILABLE {
                // Its first copy may be in progress yet: once more, later.
                c.flights[at].sent = None;
                return Ok(());
            }
            c.flights.remove(at);
            if self.tell {
                println!("  client {number} is answered {op:?}: {}", header.status);
            }
            return c
                .answered(&op, header.status, &body)
                .map_err(|e| format!("client {number}: {e}"));
        }
        Ok(())
    }

    /// A client loses a connection; what it has sent there goes again elsewhere.
    fn lose(&mut self, wire: usize) {
        let Some(w) = &mut self.wires[wire] else { return };
        if std::mem::replace(&mut w.left, true) {
            return;
        }
        self.say(|| format!("connection {wire} is lost"));
        for c in &mut self.clients {
            if !c.wires.contains(&wire) {
                continue;
            }
            c.wires.retain(|other| *other != wire);
            if !c.wires.is_empty() && self.broken != Broken::ChannelSequence {
                c.sequence = c.sequence.wrapping_add(1);
            }
            for flight in &mut c.flights {
                if flight.sent.is_some_and(|(on, _)| on == wire) {
                    flight.sent = None;
                }
            }
        }
    }

    /// The server notices that a connection is gone.
    fn notice(&mut self, wire: usize) -> Checked {
        while self.wires[wire].as_ref().is_some_and(|w| !w.waits.is_empty()) {
            self.progress(wire, 0)?;
        }
        if let Some(mut w) = self.wires[wire].take() {
            let _inside = self.house.runtime.enter();
            w.line.exchange.end();
        }
        self.say(|| format!("the server notices that connection {wire} is gone"));
        Ok(())
    }

    /// A client without connections comes back: a new session, its open taken up.
    fn come_back(&mut self, client: usize) -> Checked {
        let c = &mut self.clients[client];
        let mut line = Line::new(&self.server, c.guid, Dialect::SMB_3_0_2, &[]);
        line.previous = c.previous;
        let known = line.login();
        (c.previous, c.sequence) = (known.id, 0);
        let session = known.id;
        c.known = Some(known);
        let number = self.wires.len();
        c.wires = vec![number];
        let wire = Wire {
            line,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            waits: Vec::new(),
            left: false,
        };
        self.wires.push(Some(wire));
        self.say(|| format!("client {client} is back on connection {number}"));
        let connect = tree_connect::Request { flags: 0, path: "\\\\s\\s".into() };
        let (header, _) =
            self.ask(number, session, TreeId(0), Command::TREE_CONNECT, |out| connect.encode(out))?;
        if header.status != NtStatus::SUCCESS {
            return Err(format!("tree connect: {}", header.status));
        }
        let tree = header.tree_id();
        let c = &mut self.clients[client];
        c.tree = tree;
        if c.place != Place::Open {
            return Ok(());
        }
        let reconnect = ReconnectV2 {
            file_id: c.file,
            create_guid: c.create_guid,
            flags: DurableV2::PERSISTENT,
        }
        .to_bytes();
        let request = c.create(vec![RawContext { name: names::DH2C, data: &reconnect }]);
        let mut body = Vec::new();
        request.encode(&mut body);
        let (header, answer) = self.ask(number, session, tree, Command::CREATE, |out| {
            out.extend_from_slice(&body);
        })?;
        let c = &mut self.clients[client];
        let closing = c.flights.iter().any(|f| f.op == Op::Close);
        match header.status {
            NtStatus::SUCCESS => {
                c.file = create::Response::parse(&answer).map_err(|e| e.to_string())?.file_id;
                Ok(())
            }
            // It was closed, and only the answer is missing.
            NtStatus::OBJECT_NAME_NOT_FOUND if closing => {
                c.flights.clear();
                (c.place, c.locked) = (Place::Closed, false);
                Ok(())
            }
            status => Err(format!("client {client} does not get its open back: {status}")),
        }
    }

    /// Asks on a connection and sees to it that there is an answer, whatever else is under way.
    fn ask(
        &mut self,
        wire: usize,
        session: SessionId,
        tree: TreeId,
        command: Command,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(Header, Vec<u8>), String> {
        let w = self.wires[wire].as_mut().expect("just made");
        let mut header = Header {
            command,
            credit_charge: 1,
            credits: 64,
            message_id: MessageId(w.line.next_id),
            session_id: session,
            ..Header::default()
        };
        w.line.next_id += 1;
        header.set_tree_id(tree);
        let id = header.message_id;
        let mut message = header.to_bytes().to_vec();
        body(&mut message);
        w.to_server.push_back(message);
        loop {
            self.run_out_once(wire)?;
            let w = self.wires[wire].as_mut().expect("the server runs");
            let mine = |(header, _): &(Header, Vec<u8>)| {
                header.message_id == id && header.status != NtStatus::PENDING
            };
            if let Some(at) = w.to_client.iter().position(mine) {
                return Ok(w.to_client.remove(at).expect("it is there"));
            }
        }
    }

    /// Everything that the server has begun anywhere goes on by one step; `wire` is served first.
    fn run_out_once(&mut self, wire: usize) -> Checked {
        self.deliver(wire);
        for other in 0..self.wires.len() {
            if self.wires[other].as_ref().is_some_and(|w| !w.waits.is_empty()) {
                self.progress(other, 0)?;
            }
        }
        Ok(())
    }

    /// A client adds a connection to its session.
    fn bind(&mut self, client: usize) {
        let c = &mut self.clients[client];
        let Some(known) = c.known.as_ref().filter(|_| c.wires.len() == 1) else { return };
        let mut line = Line::new(&self.server, c.guid, Dialect::SMB_3_0_2, &[]);
        if line.bind(known).is_err() {
            return;
        }
        c.wires.push(self.wires.len());
        self.wires.push(Some(Wire {
            line,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            waits: Vec::new(),
            left: false,
        }));
        self.say(|| format!("client {client} has a second connection"));
    }

    /// The server is killed, and another started.
    fn crash(&mut self) {
        self.say(|| "the server is killed".to_owned());
        for wire in 0..self.wires.len() {
            self.lose(wire);
        }
        self.server.nodes.stable.kill();
        {
            let mut disk = own(&self.disk);
            let loose = disk.log.len() - disk.durable;
            let kept = disk.durable + self.dice.roll(loose + 1);
            let kept = if disk.broken == Broken::Durability { disk.durable } else { kept };
            disk.log.truncate(kept);
            disk.owner += 1;
        }
        let _inside = self.house.runtime.enter();
        // What was under way goes no further; its effect on files may be there or not.
        self.wires.iter_mut().for_each(|wire| *wire = None);
        self.server.nodes.kept.clear();
        self.server = new_server(self.house, &self.disk, self.broken);
        // The old server's connections are gone, and with them what the clients knew of them.
        self.wires.clear();
        for c in &mut self.clients {
            c.wires.clear();
        }
    }

    /// Another program's open of a client's file goes together with what the model says.
    fn intrude(&mut self, client: usize) -> Checked {
        let c = &self.clients[client];
        let (place, settled) =
            (c.place, c.flights.iter().all(|f| f.op != Op::Close && f.op != Op::Create));
        if place == Place::Absent || !settled {
            return Ok(());
        }
        let name = c.name.clone();
        let mut line = Line::new(&self.server, 9, Dialect::SMB_3_0_2, &[]);
        let known = line.login();
        let session = known.id;
        let number = self.wires.len();
        self.wires.push(Some(Wire {
            line,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            waits: Vec::new(),
            left: true,
        }));
        let connect = tree_connect::Request { flags: 0, path: "\\\\s\\s".into() };
        let (header, _) =
            self.ask(number, session, TreeId(0), Command::TREE_CONNECT, |out| connect.encode(out))?;
        let tree = header.tree_id();
        let request = create::Request {
            access: Access(0x0012_019f),
            share: ShareAccess::NONE,
            disposition: Disposition::OPEN,
            name,
            impersonation: 2,
            ..Default::default()
        };
        let (header, _) =
            self.ask(number, session, tree, Command::CREATE, |out| request.encode(out))?;
        self.notice(number)?;
        let refused =
            matches!(header.status, NtStatus::SHARING_VIOLATION | NtStatus::FILE_NOT_AVAILABLE);
        match (place, header.status) {
            (Place::Open, _) if refused => Ok(()),
            (Place::Closed, NtStatus::SUCCESS) => Ok(()),
            (_, status) => Err(format!(
                "another opens the file of client {client}, which is {place:?}: {status}"
            )),
        }
    }

    /// A history from its beginning to its end.
    fn run(&mut self) -> Checked {
        for client in 0..self.clients.len() {
            self.come_back(client)?;
            self.bind(client);
        }
        for _ in 0..120 {
            self.step()?;
        }
        self.end()
    }

    /// One of the connections of which something is so.
    fn pick(&mut self, what: impl Fn(&Wire) -> bool) -> Option<usize> {
        let fit = |(number, wire): (usize, &Option<Wire>)| {
            wire.as_ref().is_some_and(&what).then_some(number)
        };
        let all: Vec<_> = self.wires.iter().enumerate().filter_map(fit).collect();
        (!all.is_empty()).then(|| all[self.dice.roll(all.len())])
    }

    /// One step.
    fn step(&mut self) -> Checked {
        let client = self.dice.roll(self.clients.len());
        match self.dice.roll(100) {
            0..30 => self.begin(client),
            30..52 => {
                // What is on its way on a lost connection may come late.
                let late = self.dice.roll(6) == 0;
                if let Some(wire) = self.pick(|w| w.left == late && !w.to_server.is_empty()) {
                    self.say(|| format!("connection {wire} delivers"));
                    self.deliver(wire);
                }
            }
            52..64 => {
                if let Some(wire) = self.pick(|w| !w.waits.is_empty()) {
                    let waits = self.wires[wire].as_ref().map_or(0, |w| w.waits.len());
                    let which = self.dice.roll(waits);
                    self.progress(wire, which)?;
                }
            }
            64..82 => {
                if let Some(wire) = self.pick(|w| !w.left && !w.to_client.is_empty()) {
                    self.hear(wire)?;
                }
            }
            82..88 => self.resend(client)?,
            88..91 => {
                if let Some(wire) = self.pick(|w| !w.left) {
                    self.lose(wire);
                }
            }
            91 => {
                if let Some(wire) = self.pick(|w| w.left) {
                    // What it still has may be carried out first.
                    if self.dice.roll(2) == 0 {
                        self.run_out(wire)?;
                    }
                    self.notice(wire)?;
                }
            }
            92..97 => self.bind(client),
            97 => {
                if self.dice.roll(2) == 0 {
                    self.crash();
                }
            }
            _ => self.intrude(client)?,
        }
        Ok(())
    }

    /// A client comes back if it has to, and sends again what has no answer.
    fn resend(&mut self, client: usize) -> Checked {
        if self.clients[client].wires.is_empty() {
            self.come_back(client)?;
        }
        for flight in 0..self.clients[client].flights.len() {
            if self.clients[client].flights[flight].sent.is_none() {
                self.send(client, flight);
            }
        }
        Ok(())
    }

    /// All that is under way ends well, and the files are as the model says.
    fn end(&mut self) -> Checked {
        for round in 0.. {
            for client in 0..self.clients.len() {
                self.resend(client)?;
            }
            for wire in 0..self.wires.len() {
                self.run_out(wire)?;
                while self.wires[wire].as_ref().is_some_and(|w| !w.to_client.is_empty()) {
                    self.hear(wire)?;
                }
            }
            if self.clients.iter().all(|c| c.flights.is_empty()) {
                break;
            }
            if round > 50 {
                return Err("what is under way does not end".to_owned());
            }
        }
        for client in 0..self.clients.len() {
            self.intrude(client)?;
            let c = &self.clients[client];
            if c.place == Place::Absent {
                continue;
            }
            let found = std::fs::read(self.house.file(&c.name)).map_err(|e| e.to_string())?;
            for (block, value) in c.blocks.iter().enumerate() {
                let start = (block * BLOCK).min(found.len());
                let bytes = &found[start..((block + 1) * BLOCK).min(found.len())];
                if bytes.iter().any(|byte| byte != value) || *value != 0 && bytes.len() != BLOCK {
                    return Err(format!(
                        "client {client}: block {block} is {bytes:?}, not {value}"
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Client {
    fn create<'b>(&self, contexts: Vec<RawContext<'b>>) -> create::Request<'b> {
        create::Request {
            access: Access(0x0012_019f),
            share: ShareAccess::NONE,
            // It must not be there: a CREATE that is carried out twice fails.
            disposition: Disposition::CREATE,
            options: CreateOptions::NON_DIRECTORY_FILE,
            name: self.name.clone(),
            impersonation: 2,
            contexts,
            ..Default::default()
        }
    }

    fn encode(&self, op: &Op, broken: Broken, out: &mut Vec<u8>) -> Command {
        let file_id = self.file;
        match op {
            Op::Create => {
                let durable = DurableV2 {
                    timeout: 0,
                    flags: DurableV2::PERSISTENT,
                    create_guid: self.create_guid,
                }
                .to_bytes();
                self.create(vec![RawContext { name: names::DH2Q, data: &durable }]).encode(out);
                Command::CREATE
            }
            Op::Write(block, value) => {
                let data = &[*value; BLOCK];
                let offset = (block * BLOCK) as u64;
                // What stands in the body is counted from the header.
                let request = write::Request { offset, file_id, data, ..Default::default() };
                request.encode(out);
                Command::WRITE
            }
            Op::Read(block) => {
                let (length, offset) = (BLOCK as u32, (block * BLOCK) as u64);
                read::Request { length, offset, file_id, ..Default::default() }.encode(out);
                Command::READ
            }
            Op::Flush => {
                flush::Request { file_id }.encode(out);
                Command::FLUSH
            }
            Op::Lock(number) | Op::Unlock(number) => {
                let flags = if matches!(op, Op::Lock(_)) { 0x12 } else { 4 };
                let index = if broken == Broken::LockSequence { 0 } else { 1 << 4 };
                let locks = vec![lock::Element {
                    offset: 1 << 20,
                    length: 8,
                    flags: lock::LockFlags(flags),
                }];
                lock::Request { file_id, sequence: index | u32::from(*number), locks }.encode(out);
                Command::LOCK
            }
            Op::Close => {
                close::Request { flags: 0, file_id }.encode(out);
                Command::CLOSE
            }
        }
    }

    fn answered(&mut self, op: &Op, status: NtStatus, body: &[u8]) -> Checked {
        let eof = matches!(op, Op::Read(_)) && status == NtStatus::END_OF_FILE;
        // Its first copy was carried out.
        let closed = *op == Op::Close && status == NtStatus::FILE_CLOSED;
        if status != NtStatus::SUCCESS && !eof && !closed {
            return Err(format!("{op:?}: {status}"));
        }
        match op {
            Op::Create => {
                self.file = create::Response::parse(body).map_err(|e| e.to_string())?.file_id;
                self.place = Place::Open;
            }
            Op::Write(block, value) => self.blocks[*block] = *value,
            Op::Read(block) => {
                let wanted = self.blocks[*block];
                let data = if eof {
                    &[][..]
                } else {
                    read::Response::parse(body).map_err(|e| e.to_string())?.data
                };
                let short = data.len() != BLOCK && wanted != 0;
                if short || data.iter().any(|byte| *byte != wanted) {
                    return Err(format!("block {block} reads as {data:?}, not {wanted}"));
                }
            }
            Op::Lock(_) => self.locked = true,
            Op::Unlock(_) => self.locked = false,
            Op::Close => (self.place, self.locked) = (Place::Closed, false),
            Op::Flush => {}
        }
        Ok(())
    }
}

/// Takes what the server sent apart.
fn answers(mut out: &[u8]) -> Vec<(Header, Vec<u8>)> {
    let mut list = Vec::new();
    while let Some(prefix) = out.first_chunk::<FRAME_LEN>() {
        let len = frame_len(*prefix).unwrap();
        let frame = &out[FRAME_LEN..FRAME_LEN + len];
        out = &out[FRAME_LEN + len..];
        let header = Header::parse(frame).unwrap();
        assert_eq!(header.next_command, 0);
        list.push((header, frame[HEADER_LEN..].to_vec()));
    }
    list
}

/// Runs one history.
fn history(house: &House, seed: u64, broken: Broken, tell: bool) -> Checked {
    let mut world = World::new(house, seed, broken, tell);
    let result = world.run();
    world.server.nodes.stable.kill();
    let _inside = house.runtime.enter();
    world.wires.clear();
    world.server.nodes.kept.clear();
    for client in &world.clients {
        let _ = std::fs::remove_file(house.file(&client.name));
    }
    result
}

fn histories(seeds: std::ops::Range<u64>) {
    let house = House::new();
    if let Some(seed) = std::env::var("BULKHEAD_SEED").ok().and_then(|seed| seed.parse().ok()) {
        if let Err(why) = history(&house, seed, Broken::Nothing, true) {
            panic!("seed {seed}: {why}");
        }
        return;
    }
    for seed in seeds {
        if let Err(why) = history(&house, seed, Broken::Nothing, false) {
            panic!("BULKHEAD_SEED={seed}: {why}");
        }
    }
}

#[test]
fn histories_are_as_the_model_says_1() {
    histories(0..2500);
}

#[test]
fn histories_are_as_the_model_says_2() {
    histories(2500..5000);
}

#[test]
fn histories_are_as_the_model_says_3() {
    histories(5000..7500);
}

#[test]
fn histories_are_as_the_model_says_4() {
    histories(7500..10_000);
}

/// Each rule, broken, is noticed in some history.
#[test]
fn a_broken_rule_is_noticed() {
    let house = House::new();
    for broken in [
        Broken::ChannelSequence,
        Broken::ReplayFlag,
        Broken::LockSequence,
        Broken::Durability,
        Broken::Forgetting,
        Broken::Recovery,
        Broken::Locks,
    ] {
        let noticed = (0..3000)
            .find_map(|seed| history(&house, seed, broken, false).err().map(|why| (seed, why)));
        let (seed, why) = noticed.unwrap_or_else(|| panic!("{broken:?} is not noticed"));
        println!("{broken:?} is noticed with seed {seed}: {why}");
    }
}
