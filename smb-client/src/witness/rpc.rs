//! RPC over TCP with one node, one call at a time.

use std::{io, net::IpAddr, sync::Arc};

use dce_rpc::{
    FaultStatus, SyntaxId, Transfer,
    association::MAX_FRAGMENT,
    client::{Client, ClientError, ClientStep, Spnego},
    epm,
    pdu::HEADER_LEN,
    security::Level,
};
use smb_protocol::WireError;
use tokio::time::timeout;
use witness::{Reply, Request};

use crate::{
    ConnectOptions, Network, Witness, handshake,
    wire::{self, Wire},
};

/// Why a call has no results.
#[derive(Debug, thiserror::Error)]
pub(super) enum RpcError {
    /// The network.
    #[error(transparent)]
    Network(#[from] io::Error),
    /// What the node says is refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The node answers with a fault.
    #[error("fault {0:?}")]
    Fault(FaultStatus),
    /// Its results are none.
    #[error(transparent)]
    Results(#[from] WireError),
    /// The node has no witness service.
    #[error("the endpoint mapper knows no witness service")]
    NotMapped,
    /// It has ended the connection, or is silent.
    #[error("the connection has ended")]
    Ended,
}

/// A bound connection to the witness service of a node.
pub(super) struct Rpc {
    /// Where it is.
    pub address: IpAddr,
    bound: Bound,
}

struct Bound {
    wire: Wire,
    client: Client,
}

impl Bound {
    async fn connect(
        network: Option<&Arc<dyn Network>>,
        (address, port): (IpAddr, u16),
        client: Client,
    ) -> Result<Self, RpcError> {
        let wire = wire::dial(network, &address.to_string(), port).await?;
        let mut bound = Self { wire, client };
        match bound.step().await? {
            ClientStep::Bound => Ok(bound),
            _ => Err(RpcError::Ended),
        }
    }

    async fn step(&mut self) -> Result<ClientStep, RpcError> {
        loop {
            while let Some(message) = self.client.transmit() {
                self.wire.send(&message).await?;
            }
            match self.client.step()? {
                ClientStep::Starved if self.client.has_output() => {}
                ClientStep::Starved => self.receive().await?,
                step => return Ok(step),
            }
        }
    }

    /// Takes one message, whose header says how long it is (C706 12.6.3.1).
    async fn receive(&mut self) -> Result<(), RpcError> {
        let mut message = vec![0; HEADER_LEN];
        self.wire.receive_exactly(&mut message).await?;
        let len = usize::from(u16::from_le_bytes([message[8], message[9]]));
        if !(HEADER_LEN..=MAX_FRAGMENT.into()).contains(&len) {
            return Err(RpcError::Ended);
        }
        message.resize(len, 0);
        self.wire.receive_exactly(&mut message[HEADER_LEN..]).await?;
        self.client.push(&message);
        Ok(())
    }

    async fn call(&mut self, opnum: u16, stub: &[u8]) -> Result<Vec<u8>, RpcError> {
        let call = self.client.call(opnum, stub);
        loop {
            if let ClientStep::Answer(answer) = self.step().await?
                && answer.call == call
            {
                return answer.result.map_err(RpcError::Fault);
            }
        }
    }
}

impl Rpc {
    /// Connects to a node within the time that connecting may take, and proves who we are.
    pub async fn connect(options: &ConnectOptions, address: IpAddr) -> Result<Self, RpcError> {
        let work = async {
            let network = options.network.as_ref();
            let port = match options.witness {
                Witness::Port(port) => port,
                _ => {
                    let client = Client::new(epm::INTERFACE, &[Transfer::Ndr], None);
                    let mut mapper = Bound::connect(network, (address, epm::PORT), client).await?;
                    let (opnum, stub) = epm::question(witness::INTERFACE, SyntaxId::NDR);
                    let answer = mapper.call(opnum, &stub).await?;
                    epm::parse_answer(&answer)?.ok_or(RpcError::NotMapped)?
                }
            };
            let target = format!("cifs/{}", options.host);
            let login = options.login.0.clone();
            let proof = Spnego::new(login, "", &target, handshake::now());
            let proof = Some((Box::new(proof) as _, Level::Privacy));
            let transfers = [Transfer::Ndr, Transfer::Ndr64];
            let client = Client::new(witness::INTERFACE, &transfers, proof);
            Bound::connect(network, (address, port), client).await
        };
        let bound = timeout(options.connect_timeout, work).await.map_err(|_| RpcError::Ended)??;
        Ok(Self { address, bound })
    }

    /// Makes a call and waits for its results.
    pub async fn ask(&mut self, request: &Request) -> Result<Reply, RpcError> {
        let transfer = self.bound.client.transfer();
        let (opnum, stub) = request.encode(transfer);
        let stub = self.bound.call(opnum, &stub).await?;
        Ok(Reply::parse(opnum, &stub, transfer)?)
    }
}
