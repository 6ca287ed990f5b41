//! A raw initiator: it says what a test wants, right or wrong.
#![allow(dead_code, reason = "not every user needs all of it")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use iscsi::{
    Service, ServiceConfig,
    config::TargetConfig,
    pdu::{
        DataOut, Digests, Framer, LoginRequest, LoginResponse, LogoutRequest, NO_TAG, NopOut, Pdu,
        RequestNumbers, ScsiCommand, TaskRequest, frame,
    },
    text,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::memory::Memory;

pub const TARGET: &str = "iqn.2024-01.example:disk";
/// What a test waits for comes, or never will.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct House {
    pub service: Service<Memory>,
    pub memory: Arc<Memory>,
    pub at: SocketAddr,
}

pub async fn house(service: ServiceConfig, target: TargetConfig) -> House {
    let service = Service::new(service);
    let memory = Arc::new(Memory::new(1 << 14));
    service.set_target(target, &memory).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let serving = service.clone();
    tokio::spawn(async move { serving.serve(listener, 1).await });
    House { service, memory, at }
}

pub async fn plain_house() -> House {
    house(ServiceConfig::default(), TargetConfig::open(TARGET)).await
}

pub struct Client {
    pub stream: TcpStream,
    framer: Framer,
    input: BytesMut,
    pub cmd_sn: u32,
    pub exp_stat_sn: u32,
}

pub struct Who<'a> {
    pub isid: u8,
    pub tsih: u16,
    pub cid: u16,
    pub keys: &'a [(&'a str, &'a str)],
}

impl Default for Who<'_> {
    fn default() -> Self {
        Self { isid: 1, tsih: 0, cid: 0, keys: &[] }
    }
}

impl Client {
    pub async fn connect(at: SocketAddr) -> Self {
        let stream = TcpStream::connect(at).await.unwrap();
        let framer = Framer { digests: Digests::default(), max_data: 1 << 24, max_ahs_words: 0 };
        Self { stream, framer, input: BytesMut::new(), cmd_sn: 1, exp_stat_sn: 0 }
    }

    /// Logs in with one request.
    pub async fn log_in(at: SocketAddr, who: Who<'_>) -> (Self, LoginResponse) {
        let mut it = Self::connect(at).await;
        let response = it.ask_in(who).await;
        (it, response)
    }

    pub async fn ask_in(&mut self, who: Who<'_>) -> LoginResponse {
        let request = LoginRequest {
            sn: RequestNumbers { immediate: true, cmd_sn: self.cmd_sn, exp_stat_sn: 0 },
            transit: true,
            more: false,
            current: 1,
            next: 3,
            version_max: 0,
            version_min: 0,
            isid: [0x80, 0, 0, 0, 0, who.isid],
            tsih: who.tsih,
            itt: 0,
            cid: who.cid,
        };
        let mut pairs = vec![("InitiatorName", "iqn.me"), ("TargetName", TARGET)];
        pairs.extend_from_slice(who.keys);
        self.send(Pdu::LoginRequest(request), &text::write(pairs)).await;
        let (pdu, data) = self.next().await.expect("a response");
        let Pdu::LoginResponse(response) = pdu else { panic!("{pdu:?}") };
        let pairs = text::read(&data).unwrap();
        let agreed = |key: &str| pairs.iter().any(|(k, value)| k == key && value == "CRC32C");
        self.framer.digests =
            Digests { header: agreed("HeaderDigest"), data: agreed("DataDigest") };
        self.cmd_sn = response.sn.exp_cmd_sn;
        response
    }

    pub async fn send(&mut self, pdu: Pdu, data: &[u8]) {
        let bytes = frame::write(pdu.write(), &[], data, self.framer.digests);
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// Sends to a target that may have closed the connection.
    pub async fn try_send(&mut self, pdu: Pdu, data: &[u8]) {
        let bytes = frame::write(pdu.write(), &[], data, self.framer.digests);
        let _ = self.stream.write_all(&bytes).await;
    }

    pub async fn try_function(&mut self, function: u8, unit: u8, itt: u32) {
        let request = TaskRequest {
            sn: self.at_once(),
            function,
            lun: [0, unit, 0, 0, 0, 0, 0, 0],
            itt,
            referenced: NO_TAG,
            ref_cmd_sn: 0,
            exp_data_sn: 0,
        };
        self.try_send(Pdu::TaskRequest(request), &[]).await;
    }

    /// The next PDU; `None` once the target closed the connection.
    pub async fn next(&mut self) -> Option<(Pdu, Bytes)> {
        loop {
            if let Some(frame) = self.framer.next(&mut self.input).unwrap() {
                assert!(frame.intact);
                let mut pdu = Pdu::read(&frame.basic).unwrap();
                let advances = match &pdu {
                    Pdu::DataIn(data) => data.status.is_some(),
                    Pdu::R2t(_) => false,
                    Pdu::NopIn(nop) => nop.itt != NO_TAG,
                    _ => true,
                };
                if advances && let Some(sn) = pdu.numbers() {
                    self.exp_stat_sn = sn.stat_sn.wrapping_add(1);
                }
                return Some((pdu, frame.data));
            }
            let read = self.stream.read_buf(&mut self.input);
            match tokio::time::timeout(PATIENCE, read).await.expect("the target is silent") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    pub fn numbers(&mut self) -> RequestNumbers {
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        let cmd_sn = self.cmd_sn.wrapping_sub(1);
        RequestNumbers { immediate: false, cmd_sn, exp_stat_sn: self.exp_stat_sn }
    }

    pub fn at_once(&self) -> RequestNumbers {
        RequestNumbers { immediate: true, cmd_sn: self.cmd_sn, exp_stat_sn: self.exp_stat_sn }
    }

    /// READ(10) or WRITE(10).
    pub fn transfer(
        &mut self,
        write: bool,
        unit: u8,
        itt: u32,
        block: u8,
        count: u16,
    ) -> ScsiCommand {
        let mut cdb = [0; 16];
        cdb[0] = if write { 0x2a } else { 0x28 };
        cdb[5] = block;
        cdb[7..9].copy_from_slice(&count.to_be_bytes());
        ScsiCommand {
            sn: self.numbers(),
            last: true,
            read: !write,
            write,
            attribute: 1,
            priority: 0,
            lun: [0, unit, 0, 0, 0, 0, 0, 0],
            itt,
            expected: u32::from(count) * 512,
            cdb,
        }
    }

    pub async fn read(&mut self, unit: u8, itt: u32, block: u8, count: u16) {
        let command = self.transfer(false, unit, itt, block, count);
        self.send(Pdu::ScsiCommand(command), &[]).await;
    }

    pub async fn write(&mut self, unit: u8, itt: u32, block: u8, data: &[u8]) {
        let count = u16::try_from(data.len() / 512).unwrap();
        let command = self.transfer(true, unit, itt, block, count);
        self.send(Pdu::ScsiCommand(command), data).await;
    }

    pub async fn function(&mut self, function: u8, unit: u8, itt: u32, referenced: u32) {
        let request = TaskRequest {
            sn: self.at_once(),
            function,
            lun: [0, unit, 0, 0, 0, 0, 0, 0],
            itt,
            referenced,
            ref_cmd_sn: 0,
            exp_data_sn: 0,
        };
        self.send(Pdu::TaskRequest(request), &[]).await;
    }

    pub async fn ping(&mut self, itt: u32) {
        let nop = NopOut { sn: self.at_once(), lun: [0; 8], itt, ttt: NO_TAG };
        self.send(Pdu::NopOut(nop), b"ping").await;
    }

    pub async fn log_out(&mut self, reason: u8, cid: u16) -> u8 {
        let request = LogoutRequest { sn: self.at_once(), reason, itt: 0x77, cid };
        self.send(Pdu::LogoutRequest(request), &[]).await;
        loop {
            if let (Pdu::LogoutResponse(it), _) = self.next().await.expect("a response") {
                return it.response;
            }
        }
    }

    /// Answers R2T from `data` until the task ends; gives its data-in and status.
    pub async fn until_done(&mut self, itt: u32, data: &[u8]) -> (Vec<u8>, u8) {
        let mut found = Vec::new();
        loop {
            match self.next().await.expect("the connection ended") {
                (Pdu::R2t(ask), _) if ask.itt == itt => {
                    let pdu = DataOut {
                        last: true,
                        lun: ask.lun,
                        itt,
                        ttt: ask.ttt,
                        exp_stat_sn: self.exp_stat_sn,
                        data_sn: 0,
                        offset: ask.offset,
                    };
                    let start = ask.offset as usize;
                    let part = &data[start..start + ask.length as usize];
                    self.send(Pdu::DataOut(pdu), part).await;
                }
                (Pdu::DataIn(it), part) if it.itt == itt => {
                    assert_eq!(it.offset as usize, found.len());
                    found.extend_from_slice(&part);
                    if let Some(status) = it.status {
                        return (found, status);
                    }
                }
                (Pdu::ScsiResponse(it), _) if it.itt == itt => return (found, it.status),
                other => panic!("{other:?}"),
            }
        }
    }
}
