//! A TCP proxy that breaks connections at chosen points of the protocol.
//!
//! ```text
//!  client ─► frame ─► rule(direction, command) ─► pass │ cut │ black hole │ half close │ delay ─► server
//!         ◄─────────────────────── the same the other way ◄──────────────────────────────────────
//! ```
//!
//! It reads frames, not bytes, and looks at the command of a frame that is not encrypted. Each
//! direction of each connection has a thread; all end when the proxy is dropped. Connections are
//! numbered from 0, so that the channels of a session fare differently: delays of one and not of
//! another change the order in which their requests arrive.

use std::{
    fmt,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client.
    Request,
    /// From the server.
    Answer,
}

/// What becomes of a frame, and of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Pass,
    /// It is lost, and the connection is closed both ways.
    Cut,
    /// It is lost with all that follows either way, and nobody is told.
    BlackHole,
    /// It goes on, and nothing more in this direction, which is closed.
    HalfClose,
    /// It goes on after that time.
    Delay(Duration),
}

/// A frame that went through: its connection, its way, and its bytes with their prefix.
pub type Recorded = (usize, Way, Vec<u8>);

type Rule = dyn Fn(usize, Way, Option<u16>) -> Fate + Send + Sync;

struct Shared {
    rule: Mutex<Arc<Rule>>,
    streams: Mutex<Vec<(usize, TcpStream)>>,
    /// What went through, where that is recorded.
    recorded: Mutex<Option<Vec<Recorded>>>,
    accepted: AtomicUsize,
    /// Whether somebody has tried to connect since that was last waited for.
    tried: (Mutex<bool>, Condvar),
    /// Whether connections are refused.
    down: AtomicBool,
    over: AtomicBool,
}

/// A proxy in front of a server.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Starts one that passes everything on.
    pub fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            rule: Mutex::new(Arc::new(|_, _, _| Fate::Pass)),
            streams: Mutex::default(),
            recorded: Mutex::default(),
            accepted: AtomicUsize::new(0),
            tried: (Mutex::new(false), Condvar::new()),
            down: AtomicBool::new(false),
            over: AtomicBool::new(false),
        });
        let all = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if all.over.load(Ordering::SeqCst) {
                    return;
                }
                *lock(&all.tried.0) = true;
                all.tried.1.notify_all();
                if all.down.load(Ordering::SeqCst) {
                    continue;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(server)) else {
                    continue;
                };
                let number = all.accepted.fetch_add(1, Ordering::SeqCst);
                let dead = Arc::new(AtomicBool::new(false));
                for (from, to, way) in
                    [(&client, &server, Way::Request), (&server, &client, Way::Answer)]
                {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                    let (all, dead) = (all.clone(), dead.clone());
                    thread::spawn(move || {
                        carry(&all, number, from, to, way, &dead);
                    });
                }
                lock(&all.streams).extend([(number, client), (number, server)]);
            }
        });
        Self { address, shared }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// From now on frames fare by that rule; it is given the way and the command.
    pub fn rule(&self, rule: impl Fn(Way, Option<u16>) -> Fate + Send + Sync + 'static) {
        self.rule_of_each(move |_, way, command| rule(way, command));
    }

    /// Likewise by a rule that is given the connection's number too.
    pub fn rule_of_each(
        &self,
        rule: impl Fn(usize, Way, Option<u16>) -> Fate + Send + Sync + 'static,
    ) {
        *lock(&self.shared.rule) = Arc::new(rule);
    }

    /// Lets the `nth` frame (from 0) of a way and command fare so, once, and all others pass.
    /// The result says whether it has come.
    pub fn once(&self, way: Way, command: u16, nth: usize, fate: Fate) -> Arc<AtomicBool> {
        let struck = Arc::new(AtomicBool::new(false));
        let (told, count) = (struck.clone(), AtomicUsize::new(0));
        self.rule(move |its_way, its_command| {
            if (its_way, its_command) != (way, Some(command))
                || count.fetch_add(1, Ordering::SeqCst) != nth
            {
                return Fate::Pass;
            }
            told.store(true, Ordering::SeqCst);
            fate
        });
        struck
    }

    /// From now on frames that go through are recorded.
    pub fn record(&self) {
        *lock(&self.shared.recorded) = Some(Vec::new());
    }

    /// What was recorded since this or [`Proxy::record`] was called; recording goes on.
    pub fn recorded(&self) -> Vec<Recorded> {
        lock(&self.shared.recorded).as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// How many connections it has had.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Waits until somebody tries to connect, also in vain, if nobody has since the last call.
    pub fn wait_for_attempt(&self) {
        let (tried, changed) = &self.shared.tried;
        let mut tried = lock(tried);
        while !*tried {
            tried = changed.wait(tried).unwrap_or_else(PoisonError::into_inner);
        }
        *tried = false;
    }

    /// Refuses new connections, or no more.
    pub fn set_down(&self, down: bool) {
        self.shared.down.store(down, Ordering::SeqCst);
    }

    /// Closes all connections.
    pub fn cut(&self) {
        for (_, stream) in lock(&self.shared.streams).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Closes one connection.
    pub fn cut_one(&self, number: usize) {
        for (_, stream) in lock(&self.shared.streams).iter().filter(|(n, _)| *n == number) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

/// The next frame with its prefix; `None` at the end.
fn frame(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut frame = vec![0; 4];
    from.read_exact(&mut frame).ok()?;
    let len = u32::from_be_bytes([0, frame[1], frame[2], frame[3]]) as usize;
    frame.resize(4 + len, 0);
    from.read_exact(&mut frame[4..]).ok()?;
    Some(frame)
}

/// The command of a frame that is not encrypted.
fn command(frame: &[u8]) -> Option<u16> {
    let plain = frame.get(4..8)? == b"\xfeSMB";
    let field = frame.get(16..18)?;
    plain.then(|| u16::from_le_bytes([field[0], field[1]]))
}

fn carry(
    all: &Shared,
    number: usize,
    mut from: TcpStream,
    mut to: TcpStream,
    way: Way,
    dead: &AtomicBool,
) {
    let both = |from: &TcpStream, to: &TcpStream| {
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    };
    while let Some(frame) = frame(&mut from) {
        let rule = lock(&all.rule).clone();
        // A connection that fell silent stays so; what comes is read and lost.
        let fate = match dead.load(Ordering::SeqCst) {
            true => Fate::BlackHole,
            false => rule(number, way, command(&frame)),
        };
        match fate {
            Fate::BlackHole => {
                dead.store(true, Ordering::SeqCst);
                continue;
            }
            Fate::Cut => return both(&from, &to),
            Fate::Delay(time) => thread::sleep(time),
            Fate::Pass | Fate::HalfClose => {}
        }
        // Before it goes on: whoever has the answer finds both recorded.
        if let Some(recorded) = &mut *lock(&all.recorded) {
            recorded.push((number, way, frame.clone()));
        }
        if to.write_all(&frame).is_err() {
            return both(&from, &to);
        }
        if fate == Fate::HalfClose {
            let _ = to.shutdown(Shutdown::Write);
            let _ = from.shutdown(Shutdown::Read);
            return;
        }
    }
    if !dead.load(Ordering::SeqCst) {
        both(&from, &to);
    }
}
