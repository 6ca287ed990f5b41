//! A client of RPC over TCP that waits for what it asks.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use dce_rpc::{
    FaultStatus, SyntaxId, Transfer,
    client::{Client, ClientError, ClientStep, Initiate, Spnego},
    security::Level,
};
use smb_protocol::ntlm::{Credentials, NtHash};
use witness::{Reply, Request};

/// Longest that a server may take for anything.
const LIMIT: Duration = Duration::from_secs(60);

/// A bound connection.
pub struct Rpc {
    /// The client's side of it.
    pub client: Client,
    /// Where it goes.
    pub stream: TcpStream,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failed {
    /// The server has ended the connection, or cannot be reached.
    Ended,
    /// What it sent is refused.
    Refused(ClientError),
    /// It answers with a fault.
    Fault(FaultStatus),
}

impl From<io::Error> for Failed {
    fn from(_: io::Error) -> Self {
        Self::Ended
    }
}

/// A proof by SPNEGO and NTLM.
pub fn login(user: &str, password: &str) -> Box<dyn Initiate> {
    let hash = NtHash::of_password(password);
    let who = Credentials { user: user.to_owned(), domain: String::new(), hash };
    Box::new(Spnego::new(who, "CLIENT", "cifs/server", 0))
}

impl Rpc {
    /// Connects and binds.
    pub fn bind(
        address: SocketAddr,
        interface: SyntaxId,
        transfer: Transfer,
        proof: Option<(Box<dyn Initiate>, Level)>,
    ) -> Result<Self, Failed> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        let mut rpc = Self { client: Client::new(interface, &[transfer], proof), stream };
        match rpc.step()? {
            ClientStep::Bound => Ok(rpc),
            other => panic!("{other:?} before it is bound"),
        }
    }

    /// To the witness service, as a user.
    pub fn witness(address: SocketAddr, user: &str, password: &str) -> Result<Self, Failed> {
        let proof = Some((login(user, password), Level::Privacy));
        Self::bind(address, witness::INTERFACE, Transfer::Ndr64, proof)
    }

    /// Sends what is to be sent, and waits for what comes of it.
    pub fn step(&mut self) -> Result<ClientStep, Failed> {
        let mut chunk = [0; 8192];
        loop {
            while let Some(message) = self.client.transmit() {
                self.stream.write_all(&message)?;
            }
            match self.client.step().map_err(Failed::Refused)? {
                ClientStep::Starved if self.client.has_output() => {}
                ClientStep::Starved => match self.stream.read(&mut chunk)? {
                    0 => return Err(Failed::Ended),
                    got => self.client.push(&chunk[..got]),
                },
                step => {
                    while let Some(message) = self.client.transmit() {
                        self.stream.write_all(&message)?;
                    }
                    return Ok(step);
                }
            }
        }
    }

    /// Makes a call and waits for its results.
    pub fn call(&mut self, opnum: u16, stub: &[u8]) -> Result<Vec<u8>, Failed> {
        let call = self.client.call(opnum, stub);
        loop {
            match self.step()? {
                ClientStep::Answer(answer) if answer.call == call => {
                    return answer.result.map_err(Failed::Fault);
                }
                _ => {}
            }
        }
    }

    /// Makes a call of the witness service.
    pub fn ask(&mut self, request: &Request) -> Result<Reply, Failed> {
        let transfer = self.client.transfer();
        let (opnum, stub) = request.encode(transfer);
        let stub = self.call(opnum, &stub)?;
        Ok(Reply::parse(opnum, &stub, transfer).expect("the server's own results"))
    }

    /// Whether the server ends the connection, whatever it says before.
    pub fn is_ended(&mut self) -> bool {
        let mut chunk = [0; 8192];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }
}
