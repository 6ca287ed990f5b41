//! The world of the simulation: the server, the connections and the steps that can be taken.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use smb_protocol::{
    Command, Dialect, FileId, Header, HeaderFlags, MessageId, NtStatus, SessionId, TreeId,
    msg::context::{DurableV2, ReconnectV2, names},
};
use state_store::{Opened, Records, Revision};
use test_support::smb_caller::answers;

use super::{
    super::{WaitingFuture, tests::signer::SigningClient},
    Broken, Checked, Dice,
    client::{BLOCK, BLOCKS, Client, Flight, Kind, Op},
    frames::{self, Place},
    store::{Disk, own},
};
use crate::{Server, config::Config};

/// One connection: both ends and what is on its way.
pub(super) struct Wire {
    pub(super) line: SigningClient,
    pub(super) to_server: VecDeque<Vec<u8>>,
    pub(super) to_client: VecDeque<(Header, Vec<u8>)>,
    pub(super) waits: Vec<WaitingFuture>,
    /// The client has given it up.
    pub(super) left: bool,
}

pub(super) struct World<'a> {
    pub(super) dice: Dice,
    pub(super) broken: Broken,
    pub(super) house: &'a House,
    pub(super) server: Arc<Server>,
    pub(super) disk: Arc<Mutex<Disk>>,
    pub(super) wires: Vec<Option<Wire>>,
    pub(super) clients: Vec<Client>,
    pub(super) tell: bool,
}

/// What all histories share: folders and a runtime.
pub(super) struct House {
    pub(super) folder: tempfile::TempDir,
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) config: Config,
}

impl House {
    pub(super) fn new() -> Self {
        // In memory where there is such a place: the model is about order, not about disks.
        let shm = PathBuf::from("/dev/shm");
        let base = if shm.is_dir() { shm } else { std::env::temp_dir() };
        let folder = tempfile::tempdir_in(base).unwrap();
        std::fs::create_dir(folder.path().join("files")).unwrap();
        let text = format!(
            "[server]\nlisten=['127.0.0.1:0']\nstate_dir='{}'\nsigning='enabled'\n\
             encryption='offered'\nio_engine='threads'\n\
             [[user]]\nname='u'\npassword='p'\n\
             [[share]]\nname='s'\npath='files'\nusers=['u']\ncontinuously_available=true\n\
             [[share]]\nname='n'\npath='files'\nusers=['u']\n",
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

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("files").join(name)
    }
}

pub(super) fn new_server(house: &House, disk: &Arc<Mutex<Disk>>, broken: Broken) -> Arc<Server> {
    let server = Arc::new(Server::new(house.config.clone()).unwrap());
    let (store, records) = Disk::take_over(disk);
    let (platter, seed) = {
        let disk = own(disk);
        (disk.platter.clone(), disk.seed)
    };
    server.open_files.faults.begin(broken.of_server(), platter, seed);
    let records = if broken == Broken::Recovery { Records::new() } else { records };
    server.recover_from(Opened { store, records, revision: Revision(0) }).unwrap();
    server
}

impl<'a> World<'a> {
    pub(super) fn new(house: &'a House, seed: u64, broken: Broken, tell: bool) -> Self {
        let disk = Disk::new(broken, seed);
        let server = new_server(house, &disk, broken);
        let client = |guid: u8, kind: Kind| Client {
            kind,
            replaced: false,
            guid,
            // Those of every other history have a named stream.
            name: match kind {
                Kind::Plain if seed % 2 == 1 => format!("{seed:x}-{guid}:s"),
                _ => format!("{seed:x}-{guid}"),
            },
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
        let world = Self {
            dice: Dice(seed),
            broken,
            house,
            server,
            disk,
            wires: Vec::new(),
            clients: vec![
                client(1, Kind::Plain),
                client(2, Kind::Leased),
                client(3, Kind::Deleting),
            ],
            tell,
        };
        for client in world.clients.iter().filter(|client| client.kind == Kind::Deleting) {
            std::fs::write(house.file(&client.name), []).unwrap();
        }
        world
    }

    pub(super) fn say(&self, text: impl FnOnce() -> String) {
        if self.tell {
            println!("  {}", text());
        }
    }

    /// Sends what a wire has for the server, all of it, and finishes what it began.
    pub(super) fn run_out(&mut self, wire: usize) -> Checked {
        while self.wires[wire].as_ref().is_some_and(|w| !w.to_server.is_empty()) {
            self.deliver(wire);
        }
        while self.wires[wire].as_ref().is_some_and(|w| !w.waits.is_empty()) {
            self.progress(wire, 0)?;
        }
        Ok(())
    }

    /// The server gets the next frame of a wire.
    pub(super) fn deliver(&mut self, wire: usize) {
        let Some(w) = &mut self.wires[wire] else { return };
        let Some(mut message) = w.to_server.pop_front() else { return };
        let exchange = &mut w.line.exchange;
        let (out, taken) = frames::receive(self.house, exchange, &mut w.waits, &mut message);
        if let Err(error) = taken {
            panic!("a client that keeps the rules is dropped: {error}");
        }
        w.to_client.extend(answers(&out));
    }

    /// Something that the server began on a wire is done, or lets wait for longer.
    pub(super) fn progress(&mut self, wire: usize, which: usize) -> Checked {
        let Some(w) = &mut self.wires[wire] else { return Ok(()) };
        let out = frames::complete(self.house, &mut w.line.exchange, &mut w.waits, which)?;
        w.to_client.extend(answers(&out));
        Ok(())
    }

    /// Sends an operation of a client on one of its connections.
    pub(super) fn send(&mut self, client: usize, flight: usize) {
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
        let marked = match op {
            Op::Create => self.broken != Broken::CreateReplayFlag,
            Op::Write(..) => self.broken != Broken::WriteReplayFlag,
            _ => true,
        };
        if again && marked {
            header.flags |= HeaderFlags::REPLAY;
        }
        let mut message = header.to_bytes().to_vec();
        message.extend_from_slice(&body);
        wire.to_server.push_back(message);
        c.flights[flight] = Flight { op: op.clone(), sent: Some((number, id)), again: true };
        self.say(|| format!("client {client} sends {op:?} again={again} on {number}"));
    }

    /// A client begins something.
    pub(super) fn begin(&mut self, client: usize) {
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
    pub(super) fn hear(&mut self, wire: usize) -> Checked {
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
    pub(super) fn lose(&mut self, wire: usize) {
        let Some(w) = &mut self.wires[wire] else { return };
        if std::mem::replace(&mut w.left, true) {
            return;
        }
        // No sequence keeps a late copy of a LOCK from being carried out (MS-SMB2 3.3.5.2.10).
        w.to_server.retain(|frame| {
            Header::parse(frame).is_ok_and(|header| header.command != Command::LOCK)
        });
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
    pub(super) fn notice(&mut self, wire: usize) -> Checked {
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
    pub(super) fn come_back(&mut self, client: usize) -> Checked {
        let c = &mut self.clients[client];
        let mut line = SigningClient::new(&self.server, c.guid, Dialect::SMB_3_0_2, &[]);
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
        let (header, _) =
            self.ask(number, session, TreeId(0), Command::TREE_CONNECT, frames::share)?;
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
        let mut body = Vec::new();
        c.create(names::DH2C, &reconnect, &mut body);
        let (header, answer) = self.ask(number, session, tree, Command::CREATE, |out| {
            out.extend_from_slice(&body);
        })?;
        let c = &mut self.clients[client];
        let closing = c.flights.iter().any(|f| f.op == Op::Close);
        match header.status {
            NtStatus::SUCCESS => c.opened(&answer),
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
    pub(super) fn ask(
        &mut self,
        wire: usize,
        session: SessionId,
        tree: TreeId,
        command: Command,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(Header, Vec<u8>), String> {
        let w = self.wires[wire].as_mut().expect("just made");
        let (id, message) = frames::request(&mut w.line.caller, session, tree, command, body);
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
    pub(super) fn run_out_once(&mut self, wire: usize) -> Checked {
        self.deliver(wire);
        for other in 0..self.wires.len() {
            if self.wires[other].as_ref().is_some_and(|w| !w.waits.is_empty()) {
                self.progress(other, 0)?;
            }
        }
        Ok(())
    }

    /// A client adds a connection to its session.
    pub(super) fn bind(&mut self, client: usize) {
        let c = &mut self.clients[client];
        let Some(known) = c.known.as_ref().filter(|_| c.wires.len() == 1) else { return };
        let mut line = SigningClient::new(&self.server, c.guid, Dialect::SMB_3_0_2, &[]);
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
    pub(super) fn crash(&mut self) {
        self.say(|| "the server is killed".to_owned());
        for wire in 0..self.wires.len() {
            self.lose(wire);
        }
        self.server.open_files.persistent_opens.kill();
        // A process that ends lets go of all that it has locked.
        self.server.open_files.claim_nothing();
        own(&self.disk).crash(&mut self.dice);
        let _inside = self.house.runtime.enter();
        // What was under way goes no further; its effect on files may be there or not.
        self.wires.iter_mut().for_each(|wire| *wire = None);
        self.server.open_files.disconnected.clear();
        self.server = new_server(self.house, &self.disk, self.broken);
        // The old server's connections are gone, and with them what the clients knew of them.
        self.wires.clear();
        for c in &mut self.clients {
            c.wires.clear();
        }
    }

    /// Another program's open of a client's file goes together with what the model says.
    pub(super) fn intrude(&mut self, client: usize) -> Checked {
        let c = &self.clients[client];
        let (place, settled) =
            (c.place, c.flights.iter().all(|f| f.op != Op::Close && f.op != Op::Create));
        if place == Place::Absent || !settled {
            return Ok(());
        }
        let (name, there) = (c.name.clone(), c.stays());
        if c.kind == Kind::Leased && place == Place::Open {
            // It would have to give up its lease.
            return Ok(());
        }
        let mut line = SigningClient::new(&self.server, 9, Dialect::SMB_3_0_2, &[]);
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
        let (header, _) =
            self.ask(number, session, TreeId(0), Command::TREE_CONNECT, frames::share)?;
        let tree = header.tree_id();
        let request = frames::intrusion(&name);
        let (header, _) =
            self.ask(number, session, tree, Command::CREATE, |out| request.encode(out))?;
        self.notice(number)?;
        frames::judge(client, place, there, header.status)
    }

    /// Another program makes a file of the name that one had which was deleted when it was closed.
    /// Nothing that is still on its way from a connection that was lost can mean it.
    fn replace(&mut self) -> Checked {
        let late = self.wires.iter().flatten().any(|wire| wire.left);
        let goes = |c: &&mut Client| c.place == Place::Closed && !c.stays();
        let Some(c) = self.clients.iter_mut().find(goes).filter(|_| !late) else { return Ok(()) };
        let path = self.house.file(&c.name);
        if path.exists() {
            return Err(format!("{} is closed and not deleted", c.name));
        }
        std::fs::write(path, OTHERS).unwrap();
        c.replaced = true;
        Ok(())
    }

    /// A history from its beginning to its end.
    pub(super) fn run(&mut self) -> Checked {
        for client in 0..self.clients.len() {
            self.come_back(client)?;
            self.bind(client);
        }
        for _ in 0..150 {
            self.step()?;
        }
        self.end()
    }

    /// One of the connections of which something is so.
    pub(super) fn pick(&mut self, what: impl Fn(&Wire) -> bool) -> Option<usize> {
        let fit = |(number, wire): (usize, &Option<Wire>)| {
            wire.as_ref().is_some_and(&what).then_some(number)
        };
        let all: Vec<_> = self.wires.iter().enumerate().filter_map(fit).collect();
        (!all.is_empty()).then(|| all[self.dice.roll(all.len())])
    }

    /// One step.
    pub(super) fn step(&mut self) -> Checked {
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
            98 if self.dice.roll(4) == 0 => self.replace()?,
            _ => self.intrude(client)?,
        }
        Ok(())
    }

    /// A client comes back if it has to, and sends again what has no answer.
    pub(super) fn resend(&mut self, client: usize) -> Checked {
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
    pub(super) fn end(&mut self) -> Checked {
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
            if c.place == Place::Closed && c.kind == Kind::Deleting {
                let found = std::fs::read(self.house.file(&c.name)).ok();
                if found.as_deref() != c.replaced.then_some(&OTHERS[..]) {
                    return Err(format!("client {client}: its file is deleted, and {found:?}"));
                }
                continue;
            }
            if c.name.contains(':') {
                // Where streams are is the server's affair; reads have seen it.
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

/// What another program writes.
const OTHERS: [u8; 7] = *b"another";
