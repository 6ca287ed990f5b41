//! One connection to the endpoint mapper, which anybody may ask where the witness service is.

use std::{net::SocketAddr, time::Duration};

use dce_rpc::{
    SyntaxId, Transfer,
    association::Step,
    epm,
    security::{AuthType, Host, Logon},
};
use smb_server::census::Counted;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    Witness,
    connection::{End, association},
};

/// How long somebody has for all questions.
const ASKED: Duration = Duration::from_secs(10);
/// Bytes that are read at a time.
const CHUNK: usize = 4 << 10;

/// Nobody has to prove anything: what is told is no secret.
struct Open;

impl Host for Open {
    fn group(&mut self, wanted: u32) -> u32 {
        if wanted == 0 { 1 } else { wanted }
    }

    fn logon(&mut self, _: AuthType) -> Option<Box<dyn Logon>> {
        None
    }
}

/// Serves somebody until it ends.
pub(super) async fn run(
    service: &Witness,
    stream: TcpStream,
    _: SocketAddr,
    counted: &Counted,
) -> End {
    tokio::select! {
        end = timeout(ASKED, serve(service, stream)) => {
            end.unwrap_or(End::Slow("it has asked the endpoint mapper for long enough"))
        }
        () = counted.told_to_go() => End::MadeRoom,
    }
}

async fn serve(service: &Witness, mut stream: TcpStream) -> End {
    const INTERFACES: &[SyntaxId] = &[epm::INTERFACE];
    let Ok(local) = stream.local_addr() else { return End::Left };
    let access = service.access();
    let mut association = association(INTERFACES, &[Transfer::Ndr], local, &access);
    let mut chunk = vec![0; CHUNK];
    loop {
        match stream.read(&mut chunk).await {
            Ok(0) => return End::Left,
            Ok(got) => association.push(&chunk[..got]),
            Err(error) => return error.into(),
        }
        loop {
            let step = association.step(&mut Open);
            if let Ok(Step::Call(call)) = &step {
                let stub = epm::serve(&service.registered(), local, call.opnum, &call.stub);
                association.answer(call.id, stub.as_deref().map_err(|fault| *fault));
            }
            while let Some(message) = association.transmit() {
                if let Err(error) = stream.write_all(&message).await {
                    return error.into();
                }
            }
            match step {
                Ok(Step::Starved) => break,
                Ok(_) => {}
                Err(broken) => return End::Broken(broken),
            }
        }
    }
}
