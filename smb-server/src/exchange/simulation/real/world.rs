//! The world of the real client: the server, the connections, and the steps that can be taken.

use std::{
    collections::VecDeque,
    io::Read,
    os::unix::fs::{FileExt, MetadataExt},
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use smb_protocol::{Command, Dialect, Header, SessionId, TreeId, crypto::Role};
use test_support::smb_caller::answers;

use super::{
    super::{
        super::{Exchange, Frame, WaitingFuture, tests::signer::SigningClient},
        Broken, Checked, Dice,
        frames::{self, Place},
        store::{Disk, own},
        watch::Watch,
        world::{House, new_server},
    },
    client::{BLOCK, BLOCKS, Client, Heard, Mood, Op},
    network::{CLIENT, Net, SERVER},
};
use crate::{
    Server,
    breaks::delivery::ConnectionMessage,
    transport::{
        Transport,
        memory::{End, ServerEnd},
    },
};

/// A connection as the server sees it, and what is on its way.
struct Wire {
    number: usize,
    transport: ServerEnd,
    exchange: Exchange,
    /// The last message that was received.
    last: Vec<u8>,
    /// Bytes that were sent.
    written: u64,
    waits: Vec<WaitingFuture>,
    /// Nothing comes to the client any more, nothing to the server; nobody is told.
    mute: bool,
    deaf: bool,
}

impl Wire {
    /// Sends messages.
    fn send(&mut self, messages: &[u8]) {
        self.transport.put(messages);
        self.written += messages.len() as u64;
    }

    /// The client has given it up, or its system says that it is gone.
    fn is_left(&self) -> bool {
        self.transport.pipe().is_left()
    }
}

pub(super) struct World<'a> {
    dice: Dice,
    mood: Mood,
    house: &'a House,
    server: Arc<Server>,
    disk: Arc<Mutex<Disk>>,
    net: Arc<Mutex<Net>>,
    wires: Vec<Wire>,
    next_wire: usize,
    pub(super) clients: Vec<Client>,
    heard: Heard,
    watch: Watch,
    /// The clients' own, whose clock stands still while the server works.
    runtime: Option<tokio::runtime::Runtime>,
    tell: bool,
    /// FNV-1a of all that happened.
    pub(super) trace: u64,
}

impl<'a> World<'a> {
    pub(super) fn new(house: &'a House, seed: u64, broken: Broken, tell: bool) -> Self {
        let disk = Disk::new(broken, seed);
        let mut dice = Dice(seed);
        let mood = [Mood::Mixed, Mood::Mixed, Mood::Flushes, Mood::Names, Mood::Losses];
        let rolled = mood[dice.roll(mood.len())];
        let mood = Mood::that_shows(broken).unwrap_or(rolled);
        let room = [100, 1000, 100_000][dice.roll(3)];
        let net = Arc::new(Mutex::new(Net { listens: true, room, ..Net::default() }));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let clients = (0..2)
            .map(|n| Client::new(n, format!("r{seed:x}-{n}"), (mood, broken), &mut dice, &net))
            .collect();
        Self {
            dice,
            mood,
            house,
            server: new_server(house, &disk, broken),
            disk,
            net,
            wires: Vec::new(),
            next_wire: 0,
            clients,
            heard: Heard::default(),
            watch: Watch::default(),
            runtime: Some(runtime),
            tell,
            trace: 0xcbf2_9ce4_8422_2325,
        }
    }

    fn say(&mut self, text: impl FnOnce() -> String) {
        let text = text();
        for byte in text.bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        if self.tell {
            println!("  {text}");
        }
    }

    /// Lets the clients go on for a while. All that needs no time happens first.
    fn pass(&mut self, time: Duration) -> Checked {
        let runtime = self.runtime.as_ref().expect("until the end");
        runtime.block_on(async { tokio::time::sleep(time).await });
        self.meet();
        loop {
            let Some((client, id, result)) = own(&self.heard).pop_front() else { return Ok(()) };
            let what = match &result {
                Ok(_) => "done".to_owned(),
                Err(error) => error.to_string(),
            };
            self.say(|| format!("client {client}: number {id}: {what}"));
            let flushed = self.clients[client].op(id) == Op::Flush && result.is_ok();
            self.clients[client].heard(id, result)?;
            // Then it shows what a flush is worth.
            if flushed && self.mood == Mood::Flushes && self.is_up() && self.dice.roll(3) == 0 {
                self.crash(true)?;
            }
        }
    }

    /// The server accepts who has connected.
    fn meet(&mut self) {
        let arrivals = std::mem::take(&mut own(&self.net).arrivals);
        let _inside = self.house.runtime.enter();
        for pipe in arrivals {
            let number = self.next_wire;
            self.next_wire += 1;
            let transport = ServerEnd::new(pipe, (CLIENT, 40_000).into(), (SERVER, 445).into());
            let (peer, local) = (transport.peer(), (SERVER, 445).into());
            self.wires.push(Wire {
                number,
                transport,
                exchange: Exchange::new(self.server.clone(), peer, local),
                last: Vec::new(),
                written: 0,
                waits: Vec::new(),
                mute: false,
                deaf: false,
            });
            self.say(|| format!("connection {number} is made"));
        }
    }

    /// The server receives up to `most` bytes of a connection, and answers what it can.
    fn take(&mut self, wire: usize, most: usize) -> Checked {
        let w = &mut self.wires[wire];
        if w.deaf {
            return Ok(());
        }
        let number = w.number;
        if most.min(w.transport.pipe().up.len()) == 0 {
            return Ok(());
        }
        w.transport.allow(most);
        let mut out = Vec::new();
        let mut count = 0;
        while w.transport.receive_now().map_err(|e| e.to_string())?.is_some_and(|got| got > 0) {
            while let Some((message, placed)) =
                w.transport.next_message(&mut w.exchange).map_err(|e| e.to_string())?
            {
                count += 1;
                let gmac = frames::signs_with_gmac(&w.exchange);
                self.watch.frame(message, Role::Client, gmac)?;
                w.last.clear();
                w.last.extend_from_slice(message);
                assert_eq!(placed, 0, "no write here is large");
                let (answer, taken) =
                    frames::receive(self.house, &mut w.exchange, &mut w.waits, message);
                self.watch.frames(&answer, gmac)?;
                out.extend(answer);
                match taken {
                    Ok(()) => {}
                    // What comes late for a session that has ended cannot be read any more.
                    Err(_) if w.transport.pipe().is_left() => (w.deaf, w.mute) = (true, true),
                    Err(error) => {
                        return Err(format!("a client that keeps the rules is dropped: {error}"));
                    }
                }
            }
        }
        w.send(&out);
        self.say(|| format!("connection {number}: the server takes {count}: {} bytes", out.len()));
        Ok(())
    }

    /// Something that the server began on a connection is done.
    fn progress(&mut self, wire: usize, which: usize) -> Checked {
        if !self.wires[wire].exchange.waits_for_storage() {
            // It waits for what others have begun.
            for other in 0..self.wires.len() {
                while self.wires[other].exchange.waits_for_storage() {
                    self.complete(other, 0)?;
                }
            }
        }
        if which < self.wires[wire].waits.len() { self.complete(wire, which) } else { Ok(()) }
    }

    fn complete(&mut self, wire: usize, which: usize) -> Checked {
        let w = &mut self.wires[wire];
        let number = w.number;
        let out = frames::complete(self.house, &mut w.exchange, &mut w.waits, which)?;
        self.watch.frames(&out, frames::signs_with_gmac(&w.exchange))?;
        w.send(&out);
        self.say(|| format!("connection {number}: something is done: {} bytes", out.len()));
        Ok(())
    }

    /// What was not made durable is lost, or a part of it.
    fn lose_power(&mut self) -> Checked {
        self.say(|| "and the power is lost".to_owned());
        let platter = own(&self.disk).platter.clone();
        let all = self.dice.roll(2) == 0;
        for client in &mut self.clients {
            let path = self.house.file(&client.name);
            let Ok(mut file) = std::fs::File::options().write(true).read(true).open(&path) else {
                continue;
            };
            let mut cached = Vec::new();
            file.read_to_end(&mut cached).map_err(|e| e.to_string())?;
            let inode = file.metadata().map_err(|e| e.to_string())?.ino();
            let mut durable = platter.content(inode);
            for start in (0..cached.len()).step_by(BLOCK) {
                let end = cached.len().min(start + BLOCK);
                if !all && self.dice.roll(2) == 0 {
                    durable.resize(durable.len().max(end), 0);
                    durable[start..end].copy_from_slice(&cached[start..end]);
                }
            }
            // In place: it stays the file that it is.
            file.set_len(durable.len() as u64).map_err(|e| e.to_string())?;
            file.write_all_at(&durable, 0).map_err(|e| e.to_string())?;
            platter.is_left(inode, durable.clone());
            durable.resize(durable.len().max(BLOCKS * BLOCK), 0);
            client.lose_power(&durable)?;
        }
        Ok(())
    }

    /// Clients are told what the server has to tell them unasked.
    fn pump(&mut self) {
        for w in &mut self.wires {
            while let Some(post) = w.exchange.post_now() {
                match post {
                    ConnectionMessage::Tell(notice, receipt) => {
                        let mut out = Vec::new();
                        match w.exchange.tell(notice, &mut out) {
                            true => receipt.sent(w.written + out.len() as u64),
                            false => receipt.lost(),
                        }
                        w.send(&out);
                    }
                    ConnectionMessage::Arrived(answer) => {
                        let arrived = w.written.saturating_sub(w.transport.unacknowledged());
                        let _ = answer.send(arrived);
                    }
                    ConnectionMessage::Close => {}
                }
            }
        }
    }

    /// Up to `most` bytes of what the server has sent come to the client.
    fn carry(&mut self, wire: usize, most: usize) {
        let w = &mut self.wires[wire];
        if w.mute || w.transport.pipe().end.is_some() || w.transport.on_its_way() == 0 {
            return;
        }
        let len = w.transport.carry(most);
        let number = w.number;
        self.say(|| format!("connection {number}: {len} bytes come to the client"));
    }

    /// A number of bytes: mostly all.
    fn some(&mut self, all: usize) -> usize {
        if all > 1 && self.dice.roll(4) == 0 { self.dice.roll(all) } else { all }
    }

    /// All that a connection can do, it does.
    fn flow(&mut self, wire: usize) -> Checked {
        self.take(wire, usize::MAX)?;
        while !self.wires[wire].waits.is_empty() {
            self.progress(wire, 0)?;
        }
        self.carry(wire, usize::MAX);
        Ok(())
    }

    /// The client's system learns that a connection is gone; some of what was on its way to the
    /// client comes before that, and what is on its way to the server may still come.
    fn cut(&mut self, wire: usize) {
        let most = self.wires[wire].transport.on_its_way() + 1;
        let most = self.dice.roll(most);
        self.carry(wire, most);
        let end = if self.dice.roll(2) == 0 { End::Closed } else { End::Reset };
        let w = &mut self.wires[wire];
        let number = w.number;
        let mut pipe = w.transport.pipe();
        pipe.end.get_or_insert(end);
        pipe.wake();
        drop(pipe);
        self.say(|| format!("connection {number} is cut: {end:?}"));
    }

    /// Who is on the path sends a frame of the client once more; the server takes it for what it
    /// is, and ends the connection unless there is nothing to be taken twice.
    fn replay(&mut self, wire: usize) -> Checked {
        let w = &mut self.wires[wire];
        let mut frame = w.last.clone();
        if frame.is_empty() || w.deaf {
            return Ok(());
        }
        let gmac = frames::signs_with_gmac(&w.exchange);
        let (out, taken) = frames::receive(self.house, &mut w.exchange, &mut w.waits, &mut frame);
        self.watch.frames(&out, gmac)?;
        w.send(&out);
        let number = w.number;
        self.say(|| format!("connection {number}: a frame comes twice: {taken:?}"));
        if taken.is_err() {
            self.wires[wire].deaf = true;
            self.cut(wire);
        }
        Ok(())
    }

    /// The server's system learns that a connection is gone.
    fn notice(&mut self, wire: usize) -> Checked {
        while !self.wires[wire].waits.is_empty() {
            self.progress(wire, 0)?;
        }
        let mut w = self.wires.remove(wire);
        let _inside = self.house.runtime.enter();
        w.exchange.end();
        {
            let mut pipe = w.transport.pipe();
            pipe.end.get_or_insert(End::Reset);
            pipe.wake();
        }
        let number = w.number;
        drop(w);
        self.say(|| format!("the server notices that connection {number} is gone"));
        Ok(())
    }

    /// The server is killed.
    fn crash(&mut self, power: bool) -> Checked {
        own(&self.net).listens = false;
        for wire in 0..self.wires.len() {
            if !self.wires[wire].mute {
                self.cut(wire);
            }
        }
        self.server.open_files.persistent_opens.kill();
        // A process that ends lets go of all that it has locked.
        self.server.open_files.claim_nothing();
        own(&self.disk).crash(&mut self.dice);
        let _inside = self.house.runtime.enter();
        // What was under way goes no further.
        self.wires.clear();
        self.server.open_files.disconnected.clear();
        self.say(|| "the server is killed".to_owned());
        if power { self.lose_power() } else { Ok(()) }
    }

    /// A server starts where one was killed.
    fn restart(&mut self, broken: Broken) {
        let _inside = self.house.runtime.enter();
        self.server = new_server(self.house, &self.disk, broken);
        own(&self.net).listens = true;
        self.say(|| "a server starts".to_owned());
    }

    fn is_up(&self) -> bool {
        own(&self.net).listens
    }

    /// Another program's open of a client's file goes together with what the model says.
    fn intrude(&mut self, client: usize) -> Checked {
        let c = &self.clients[client];
        if c.place == Place::Absent || !c.is_settled() || !self.is_up() {
            return Ok(());
        }
        let (place, name) = (c.place, c.name.clone());
        let _inside = self.house.runtime.enter();
        let mut line = SigningClient::new(&self.server, 9, Dialect::SMB_3_0_2, &[]);
        let session = line.login().id;
        let command = Command::TREE_CONNECT;
        let connected = self.ask(&mut line, session, TreeId(0), command, frames::share)?;
        let tree = connected.ok_or("no answer")?.0.tree_id();
        let request = frames::intrusion(&name);
        let encode = |out: &mut Vec<u8>| request.encode(out);
        let opened = self.ask(&mut line, session, tree, Command::CREATE, encode)?;
        line.exchange.end();
        let Some((Header { status, .. }, _)) = opened else {
            self.say(|| "another waits and gives up".to_owned());
            return match place {
                Place::Open => Ok(()),
                _ => Err(format!("nobody has the file of client {client}, and another waits")),
            };
        };
        self.say(|| format!("another is told {status}"));
        frames::judge(client, place, true, status)
    }

    /// Asks on a connection of another client and waits for the answer, if it comes in time.
    fn ask(
        &mut self,
        line: &mut SigningClient,
        session: SessionId,
        tree: TreeId,
        command: Command,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Option<(Header, Vec<u8>)>, String> {
        let (_, mut message) = frames::request(&mut line.caller, session, tree, command, body);
        let mut out = Vec::new();
        let mut waits = VecDeque::new();
        match line.exchange.receive(&mut message, &mut out).map_err(|e| e.to_string())? {
            Frame::Answered => {}
            Frame::Waits(more) => waits.extend(more),
        }
        let mut rounds = 0;
        while let Some(mut wait) = waits.pop_front() {
            let done = if line.exchange.waits_for_storage() {
                let limit = async { tokio::time::timeout(LIMIT, &mut wait).await };
                Some(self.house.runtime.block_on(limit).map_err(|_| "it never ends".to_owned())?)
            } else {
                // It waits for what others have begun, or for a client to give up its oplock.
                self.pump();
                for other in (0..self.wires.len()).filter(|_| rounds < PATIENCE) {
                    self.flow(other)?;
                }
                self.pass(Duration::from_millis(1))?;
                rounds += 1;
                match wait.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(done) => Some(done),
                    Poll::Pending if rounds < PATIENCE => {
                        waits.push_back(wait);
                        None
                    }
                    Poll::Pending => return Ok(None),
                }
            };
            if let Some(done) = done {
                waits.extend(
                    line.exchange.complete_at_once(done, &mut out).map_err(|e| e.to_string())?,
                );
            }
        }
        Ok(answers(&out).pop())
    }

    /// One of the connections of which something is so.
    fn pick(&mut self, what: impl Fn(&Wire) -> bool) -> Option<usize> {
        let all: Vec<_> = (0..self.wires.len()).filter(|at| what(&self.wires[*at])).collect();
        (!all.is_empty()).then(|| all[self.dice.roll(all.len())])
    }

    /// A history from its beginning to its end.
    pub(super) fn run(&mut self, broken: Broken) -> Checked {
        for _ in 0..STEPS {
            self.step(broken)?;
        }
        self.end(broken)
    }

    /// A client begins something.
    fn begin(&mut self, client: usize) {
        if let Some(op) = self.clients[client].choose(self.mood, &mut self.dice) {
            self.begin_with(client, op);
        }
    }

    fn begin_with(&mut self, client: usize, op: Op) {
        let slow = (if self.mood == Mood::Flushes { 3 } else { 8 }, self.dice.0);
        let runtime = self.runtime.as_ref().expect("until the end");
        if self.clients[client].begin(op, runtime, &self.heard, slow) {
            self.say(|| format!("client {client} begins {op:?}"));
        }
    }

    fn step(&mut self, broken: Broken) -> Checked {
        if !self.is_up() && self.dice.roll(10) == 0 {
            self.restart(broken);
        }
        match self.dice.roll(100) {
            0..25 => {
                let client = self.dice.roll(self.clients.len());
                self.begin(client);
            }
            25..45 => self.pass(Duration::from_millis(1))?,
            45..50 => {
                let time = [5, 20, 100, 500, 1500][self.dice.roll(5)];
                self.pass(Duration::from_millis(time))?;
            }
            50..60 => {
                if let Some(wire) = self.pick(|w| !w.is_left()) {
                    self.flow(wire)?;
                }
            }
            60..74 => {
                // What is on its way on a lost connection may come late.
                let late = self.dice.roll(6) == 0;
                let holds = |w: &Wire| !w.deaf && !w.transport.pipe().up.is_empty();
                if let Some(wire) = self.pick(|w| w.is_left() == late && holds(w)) {
                    let all = self.wires[wire].transport.pipe().up.len();
                    let some = self.some(all);
                    self.take(wire, some)?;
                }
            }
            74..82 => {
                let late = self.dice.roll(6) == 0;
                if let Some(wire) = self.pick(|w| w.is_left() == late && !w.waits.is_empty()) {
                    let which = self.dice.roll(self.wires[wire].waits.len());
                    self.progress(wire, which)?;
                }
            }
            82..92 => {
                if let Some(wire) = self.pick(|w| w.transport.on_its_way() > 0) {
                    let all = self.wires[wire].transport.on_its_way();
                    let some = self.some(all);
                    self.carry(wire, some);
                }
            }
            92..94 => {
                let others = self.wires.iter().filter(|w| !w.is_left()).count() > 3;
                if self.mood == Mood::Losses && !others {
                    return Ok(());
                }
                if let Some(wire) = self.pick(|w| !w.is_left()) {
                    self.cut(wire);
                }
            }
            94 if self.dice.roll(3) == 0 => {
                if let Some(wire) = self.pick(|w| !w.is_left()) {
                    self.replay(wire)?;
                }
            }
            94 => {
                if let Some(wire) = self.pick(|w| !w.is_left()) {
                    let (mute, deaf) =
                        [(true, true), (true, false), (false, true)][self.dice.roll(3)];
                    let w = &mut self.wires[wire];
                    (w.mute, w.deaf) = (w.mute || mute, w.deaf || deaf);
                    let number = w.number;
                    self.say(|| format!("connection {number} falls silent: {mute} {deaf}"));
                }
            }
            95..97 => {
                if let Some(wire) = self.pick(Wire::is_left) {
                    // What it still has may be carried out first.
                    if self.dice.roll(2) == 0 {
                        self.flow(wire)?;
                    }
                    self.notice(wire)?;
                }
            }
            97 => {
                if self.is_up() && self.dice.roll(2) == 0 {
                    let power = self.dice.roll(2) == 0;
                    self.crash(power)?;
                }
            }
            _ => {
                let client = self.dice.roll(self.clients.len());
                self.intrude(client)?;
            }
        }
        Ok(())
    }

    /// The network and the server are well from now on.
    fn heal(&mut self, broken: Broken) -> Checked {
        if !self.is_up() {
            self.restart(broken);
        }
        while let Some(wire) = self.wires.iter().position(|w| w.mute || w.deaf || w.is_left()) {
            self.notice(wire)?;
        }
        for wire in 0..self.wires.len() {
            self.flow(wire)?;
        }
        Ok(())
    }

    /// All that is under way ends well, and the files are as the model says.
    fn end(&mut self, broken: Broken) -> Checked {
        self.settle(broken)?;
        for client in 0..self.clients.len() {
            let open = self.clients[client].is_open();
            for block in (0..BLOCKS).filter(|_| open) {
                self.begin_with(client, Op::Read(block));
            }
        }
        self.settle(broken)?;
        for client in 0..self.clients.len() {
            self.intrude(client)?;
            self.look(client)?;
        }
        Ok(())
    }

    /// All that is under way ends well.
    fn settle(&mut self, broken: Broken) -> Checked {
        for round in 0.. {
            self.heal(broken)?;
            self.pass(Duration::from_millis(if round % 4 == 3 { 100 } else { 1 }))?;
            if self.clients.iter().all(|c| c.flights.is_empty()) {
                break;
            }
            if round > 2000 {
                let left: Vec<_> = self.clients.iter().map(|c| &c.flights).collect();
                return Err(format!("what is under way does not end: {left:?}"));
            }
        }
        Ok(())
    }

    /// The file of a client on the disk is as the model says.
    fn look(&mut self, client: usize) -> Checked {
        let c = &mut self.clients[client];
        let folders = c.folders().map(|name| self.house.file(&name).is_dir());
        if !c.folder_is(folders) {
            return Err(format!("client {client}: its folder is {folders:?}"));
        }
        if !c.is_known() {
            return Ok(());
        }
        let mut found = std::fs::read(self.house.file(&c.name)).map_err(|e| e.to_string())?;
        found.resize(found.len().max(BLOCKS * BLOCK), 0);
        for (block, bytes) in found.chunks(BLOCK).enumerate() {
            let same = bytes.iter().all(|byte| *byte == bytes[0]);
            if !same || !c.blocks.get_mut(block).is_some_and(|b| b.may_be(bytes[0])) {
                return Err(format!("client {client}: block {block} is {bytes:?}"));
            }
        }
        Ok(())
    }

    /// Takes everything apart and removes the files.
    pub(super) fn clean(mut self) {
        self.server.open_files.persistent_opens.kill();
        // A process that ends lets go of all that it has locked.
        self.server.open_files.claim_nothing();
        for client in self.clients.drain(..) {
            let _ = std::fs::remove_file(self.house.file(&client.name));
            for folder in client.folders() {
                let _ = std::fs::remove_dir(self.house.file(&folder));
            }
        }
        self.runtime = None;
        let _inside = self.house.runtime.enter();
        self.wires.clear();
        self.server.open_files.disconnected.clear();
    }
}

/// Steps of a history before it comes to its end.
const STEPS: usize = 500;
/// How often another client that waits for the file of one is looked after.
const PATIENCE: usize = 12;
/// Longest wait for what the server's threads do.
const LIMIT: Duration = Duration::from_secs(60);
