//! One connection of a witness client.
//!
//! ```text
//!  bytes ─► Association ─► Call ─► Engine ─┬─ answer ─────────────► bytes
//!                                          └─ later, by the line ─► bytes
//! ```
//!
//! A client has some seconds to prove who it is and to end a message that it has begun, and a little
//! more until it asks for something; one that waits for an answer may wait. What it does not read is
//! not added to.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dce_rpc::{
    Association, Broken, FaultStatus, SyntaxId, Transfer,
    association::{Limits, MAX_FRAGMENT, Settings, Step},
    security::{Acceptance, AuthType, Host, Logon},
};
use smb_server::{Server, census::Counted};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::{Instant, timeout},
};
use witness::Reply;

use super::{TRANSFERS, Witness, config::Access, endpoint, logons::Guest};

/// Bytes that are read at a time.
const CHUNK: usize = 8 << 10;
/// Security contexts, and presentation contexts, of a connection.
const LOGONS: usize = 4;
const CONTEXTS: usize = 16;

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// The client has left.
    Left,
    /// The network failed.
    Network(io::Error),
    /// What it sent is refused.
    Broken(Broken),
    /// It was too slow with what is named.
    Slow(&'static str),
    /// Others need its place.
    MadeRoom,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left => f.write_str("the client has left"),
            Self::Network(error) => error.fmt(f),
            Self::Broken(broken) => broken.fmt(f),
            Self::Slow(what) => write!(f, "the client is too slow: {what}"),
            Self::MadeRoom => f.write_str("others need its place"),
        }
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Network(error)
    }
}

/// What a connection asks of the server.
struct Door<'a> {
    service: &'a Witness,
    from: IpAddr,
    wait: Arc<Mutex<Duration>>,
    group: Option<u32>,
}

impl Host for Door<'_> {
    fn group(&mut self, wanted: u32) -> u32 {
        *self.group.get_or_insert_with(|| self.service.join(wanted, self.from))
    }

    fn logon(&mut self, kind: AuthType) -> Option<Box<dyn Logon>> {
        let server: &Arc<Server> = &self.service.server;
        let guest = Guest::new(server.clone(), self.from, self.wait.clone());
        let kerberos = server.current().kerberos.clone();
        Some(Box::new(Acceptance::begin(kind, server.ntlm.clone(), kerberos, guest)?))
    }
}

/// What connections of both kinds have.
pub(super) fn association(
    interfaces: &'static [SyntaxId],
    transfers: &'static [Transfer],
    address: SocketAddr,
    access: &Access,
) -> Association {
    let limits = Limits {
        fragment: MAX_FRAGMENT,
        call: access.call,
        contexts: CONTEXTS,
        logons: LOGONS,
        calls: access.pending_calls,
    };
    Association::new(Settings { interfaces, transfers, address: endpoint(address), limits })
}

/// Serves a client until it ends.
pub(super) async fn run(
    service: &Witness,
    stream: TcpStream,
    peer: SocketAddr,
    counted: &Counted,
) -> End {
    const INTERFACES: &[SyntaxId] = &[witness::INTERFACE];
    let _ = stream.set_nodelay(true);
    let access = service.access();
    let Ok(local) = stream.local_addr() else { return End::Left };
    if let Err(error) = crate::listener::notice_death(&stream, access.write) {
        tracing::debug!(%peer, %error, "the system will not notice that the client is gone");
    }
    let (id, answers) = service.open_line(access.pending_calls);
    let wait = Arc::new(Mutex::new(Duration::ZERO));
    let door = Door { service, from: peer.ip(), wait: wait.clone(), group: None };
    let association = association(INTERFACES, TRANSFERS, local, &access);
    let mut connection = Connection {
        id,
        association,
        door,
        stream,
        counted,
        access,
        answers,
        transfers: HashMap::new(),
        began: Instant::now(),
        known: false,
    };
    let end = connection.serve().await;
    let Connection { door, mut stream, .. } = connection;
    service.ended(id, door.group);
    if matches!(end, End::Broken(Broken::Refused)) {
        // A wrong password costs its client some time, as everywhere.
        let wait = *wait.lock().unwrap_or_else(PoisonError::into_inner);
        tokio::time::sleep(wait).await;
    }
    let _ = stream.shutdown().await;
    end
}

struct Connection<'a> {
    id: u64,
    association: Association,
    door: Door<'a>,
    stream: TcpStream,
    counted: &'a Counted,
    access: Access,
    answers: mpsc::Receiver<(u32, Reply)>,
    /// How the data of calls are represented that wait.
    transfers: HashMap<u32, Transfer>,
    /// When the message began that is not whole, or the connection, or when it last did something.
    began: Instant,
    known: bool,
}

impl Connection<'_> {
    async fn serve(&mut self) -> End {
        let mut chunk = vec![0; CHUNK];
        loop {
            if let Err(end) = self.send().await {
                return end;
            }
            let (patience, what) = self.patience();
            let until = self.began + patience;
            tokio::select! {
                read = self.stream.read(&mut chunk) => match read {
                    Ok(0) => return End::Left,
                    Ok(got) => if let Err(end) = self.take(&chunk[..got]).await { return end },
                    Err(error) => return error.into(),
                },
                Some((call, reply)) = self.answers.recv() => self.answer(call, &reply),
                () = tokio::time::sleep_until(until), if !patience.is_zero() => {
                    return End::Slow(what);
                }
                () = self.counted.told_to_go(), if !self.known => return End::MadeRoom,
            }
        }
    }

    /// How long is waited from `began` on, and for what; zero is for ever.
    fn patience(&self) -> (Duration, &'static str) {
        if !self.association.is_known() {
            (self.access.logon, "it has not proved who it is (witness.limits.logon_seconds)")
        } else if self.association.held() > 0 {
            (self.access.logon, "a message is not whole (witness.limits.logon_seconds)")
        } else if self.association.pending() == 0 {
            (self.access.idle, "it asks for nothing (witness.limits.idle_seconds)")
        } else {
            (Duration::ZERO, "")
        }
    }

    /// Sends what is to be sent.
    async fn send(&mut self) -> Result<(), End> {
        while let Some(message) = self.association.transmit() {
            match timeout(self.access.write, self.stream.write_all(&message)).await {
                Ok(sent) => sent?,
                Err(_) => return Err(End::Slow("it does not read (witness.limits.write_seconds)")),
            }
        }
        Ok(())
    }

    /// Takes bytes, and carries out what is whole in them.
    async fn take(&mut self, bytes: &[u8]) -> Result<(), End> {
        let held = self.association.held();
        self.association.push(bytes);
        loop {
            match self.association.step(&mut self.door) {
                Ok(Step::Starved) => break,
                Ok(Step::Moved) => {}
                Ok(Step::GivenUp(call)) => {
                    self.transfers.remove(&call);
                    self.door.service.given_up(self.id, call);
                    self.association.answer(call, Err(FaultStatus::CANCELLED));
                }
                Ok(Step::Call(call)) => {
                    let group = self.association.group().unwrap_or_default();
                    self.transfers.insert(call.id, call.transfer);
                    match self.door.service.call(self.id, group, &call) {
                        Ok(Some(reply)) => self.answer(call.id, &reply),
                        Ok(None) => {}
                        Err(fault) => {
                            self.transfers.remove(&call.id);
                            self.association.answer(call.id, Err(fault));
                        }
                    }
                }
                Err(broken) => {
                    // It is told why.
                    self.send().await?;
                    return Err(End::Broken(broken));
                }
            }
            self.send().await?;
        }
        if self.association.is_known() && !std::mem::replace(&mut self.known, true) {
            // It may have been told to go just now.
            if !self.counted.known() {
                return Err(End::MadeRoom);
            }
            self.began = Instant::now();
        }
        // A message that is begun has its time from its first byte on.
        if self.known && (held == 0 || self.association.held() == 0) {
            self.began = Instant::now();
        }
        Ok(())
    }

    fn answer(&mut self, call: u32, reply: &Reply) {
        // One that was given up has none.
        let Some(transfer) = self.transfers.remove(&call) else { return };
        self.association.answer(call, Ok(&reply.encode(transfer)));
        self.began = Instant::now();
    }
}
