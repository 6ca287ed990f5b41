//! READ and WRITE whose data are in the client's memory (MS-SMB2 3.3.5.12, 3.3.5.13).

use std::{
    collections::HashMap,
    io,
    sync::{Mutex, PoisonError},
};

use smb_protocol::msg::rdma::{
    BufferDescriptor, CHANNEL_NONE, CHANNEL_RDMA_TRANSFORM, CHANNEL_RDMA_V1,
    CHANNEL_RDMA_V1_INVALIDATE, Transform,
};

use super::{files::FILE, *};
use crate::transport::{RemoteMemory, Signature, Transfer};

/// Bytes of a message that the client puts together.
const LONGEST: usize = 64 << 10;

/// The client's memory, in this process: buffers by token.
#[derive(Debug, Default)]
struct Memory {
    buffers: Mutex<HashMap<u32, Vec<u8>>>,
    invalidated: Mutex<Vec<(MessageId, u32)>>,
}

impl Memory {
    fn buffer(&self, token: u32) -> Vec<u8> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)[&token].clone()
    }

    fn set(&self, token: u32, bytes: Vec<u8>) {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).insert(token, bytes);
    }

    /// What became of rights to memory since it was last asked.
    fn invalidated(&self) -> Vec<(MessageId, u32)> {
        std::mem::take(&mut *self.invalidated.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl RemoteMemory for Memory {
    fn longest_message(&self) -> usize {
        LONGEST
    }

    fn write(&self, to: &[BufferDescriptor], data: Vec<u8>) -> Transfer<()> {
        let mut all = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest = &data[..];
        let mut done = Ok(());
        for part in to {
            let (here, later) = rest.split_at(rest.len().min(part.length as usize));
            let start = part.offset as usize;
            let place = all.get_mut(&part.token);
            match place.and_then(|buffer| buffer.get_mut(start..start + here.len())) {
                Some(place) => place.copy_from_slice(here),
                None => done = Err(io::ErrorKind::PermissionDenied.into()),
            }
            rest = later;
        }
        assert!(rest.is_empty(), "more than the descriptors have");
        Box::pin(std::future::ready(done))
    }

    fn read(&self, from: &[BufferDescriptor], len: usize) -> Transfer<Vec<u8>> {
        let all = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let part = |part: &BufferDescriptor| {
            let (start, len) = (part.offset as usize, part.length as usize);
            all.get(&part.token).and_then(|buffer| buffer.get(start..start + len))
        };
        let parts: Option<Vec<&[u8]>> = from.iter().map(part).collect();
        let data = parts.map(|parts| parts.concat()[..len].to_vec());
        let data = data.ok_or_else(|| io::ErrorKind::PermissionDenied.into());
        Box::pin(std::future::ready(data))
    }

    fn invalidate(&self, answered: MessageId, token: u32) {
        self.invalidated.lock().unwrap_or_else(PoisonError::into_inner).push((answered, token));
    }

    fn hidden(&self, _: &[MessageId], _: Signature) {}
}

fn client(dialect: Dialect, memory: Option<&Arc<Memory>>) -> (Direct, FileId) {
    let mut direct = Direct::new();
    let offer = negotiate::Request {
        dialects: vec![dialect],
        security_mode: negotiate::SecurityMode::SIGNING_ENABLED,
        capabilities: negotiate::Capabilities::LARGE_MTU,
        ..Default::default()
    };
    direct.exchange.remote_memory = memory.map(|memory| memory.clone() as Arc<dyn RemoteMemory>);
    direct.log_in("u", &offer);
    direct.connect("s");
    let id = direct.open("f", FILE);
    direct.store(id, b"0123456789");
    (direct, id)
}

fn descriptors(all: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (offset, token, length) in all {
        BufferDescriptor { offset: *offset, token: *token, length: *length }.encode(&mut out);
    }
    out
}

/// Reads `length` bytes of the file into the client's memory: status, and the answer's data and
/// `DataRemaining`.
fn read(
    direct: &mut Direct,
    file_id: FileId,
    channel: u32,
    length: u32,
    info: &[u8],
) -> (NtStatus, Vec<u8>, u32) {
    let request =
        read::Request { file_id, length, channel, channel_info: info, ..Default::default() };
    let (header, body) = direct.ask(Command::READ, |out| request.encode(out));
    match header.status {
        NtStatus::SUCCESS => {
            let answer = read::Response::parse(&body).unwrap();
            (header.status, answer.data.to_vec(), answer.remaining)
        }
        status => (status, Vec::new(), 0),
    }
}

fn write(
    direct: &mut Direct,
    file_id: FileId,
    (channel, remaining): (u32, u32),
    offset: u64,
    info: &[u8],
) -> NtStatus {
    let request = write::Request {
        file_id,
        offset,
        channel,
        remaining,
        channel_info: info,
        ..Default::default()
    };
    let (header, body) = direct.ask(Command::WRITE, |out| request.encode_remote(out));
    if header.status == NtStatus::SUCCESS {
        assert_eq!(write::Response::parse(&body).unwrap().count, remaining);
    }
    header.status
}

const REFUSED: (NtStatus, Vec<u8>, u32) = (NtStatus::INVALID_PARAMETER, Vec::new(), 0);

#[test]
fn a_connection_without_remote_memory_refuses_channels_and_smb_2_does_not_look_at_them() {
    let info = descriptors(&[(0, 7, 100)]);
    for dialect in [Dialect::SMB_3_0, Dialect::SMB_3_0_2] {
        let (mut direct, id) = client(dialect, None);
        for channel in [1, 2, 3, 0xffff_ffff] {
            assert_eq!(read(&mut direct, id, channel, 10, &info), REFUSED, "{channel}");
            let status = write(&mut direct, id, (channel, 10), 0, &info);
            assert_eq!(status, NtStatus::INVALID_PARAMETER, "{channel}");
        }
    }
    let (mut direct, id) = client(Dialect::SMB_2_1, None);
    let all = (NtStatus::SUCCESS, b"0123456789".to_vec(), 0);
    assert_eq!(read(&mut direct, id, 1, 10, &info), all);
    let data = b"xy";
    let request = write::Request { file_id: id, channel: 1, data, ..Default::default() };
    let (header, _) = direct.ask(Command::WRITE, |out| request.encode(out));
    assert_eq!(header.status, NtStatus::SUCCESS);
    assert_eq!(direct.content("f"), b"xy23456789");
}

#[test]
fn data_go_to_and_come_from_the_clients_memory() {
    let memory = Arc::new(Memory::default());
    let (mut direct, id) = client(Dialect::SMB_3_0_2, Some(&memory));
    memory.set(7, vec![0; 8]);
    memory.set(8, vec![0; 20]);
    let info = descriptors(&[(2, 7, 6), (0, 8, 20)]);
    let done = read(&mut direct, id, CHANNEL_RDMA_V1, 20, &info);
    // None of the data are in the answer, which says how many went.
    assert_eq!(done, (NtStatus::SUCCESS, Vec::new(), 10));
    assert_eq!(memory.buffer(7), b"\0\x00012345");
    assert_eq!(memory.buffer(8)[..5], *b"6789\0");
    assert_eq!(memory.invalidated(), []);

    let next = MessageId(direct.next_id);
    let done = read(&mut direct, id, CHANNEL_RDMA_V1_INVALIDATE, 3, &info);
    assert_eq!(done, (NtStatus::SUCCESS, Vec::new(), 3));
    assert_eq!(memory.invalidated(), [(next, 7)]);

    memory.set(7, b"..abc".to_vec());
    let info = descriptors(&[(2, 7, 3), (4, 8, 2)]);
    memory.set(8, b"....de".to_vec());
    let next = MessageId(direct.next_id);
    let status = write(&mut direct, id, (CHANNEL_RDMA_V1_INVALIDATE, 5), 8, &info);
    assert_eq!(status, NtStatus::SUCCESS);
    assert_eq!(direct.content("f"), b"01234567abcde");
    assert_eq!(memory.invalidated(), [(next, 7)]);
}

/// A client that does not get its memory back names it anew as it is, and loses its connection by that.
#[test]
fn an_answer_that_refuses_takes_the_memory_back_as_well() {
    let memory = Arc::new(Memory::default());
    let (mut direct, id) = client(Dialect::SMB_3_0_2, Some(&memory));
    memory.set(7, vec![0; 20]);
    let info = descriptors(&[(0, 7, 4)]);
    let channel = CHANNEL_RDMA_V1_INVALIDATE;
    let next = MessageId(direct.next_id);
    assert_eq!(read(&mut direct, id, channel, 10, &info).0, NtStatus::BUFFER_TOO_SMALL);
    assert_eq!(memory.invalidated(), [(next, 7)]);
    let closed = FileId { volatile: id.volatile ^ 1, ..id };
    let next = MessageId(direct.next_id);
    assert_eq!(read(&mut direct, closed, channel, 20, &info).0, NtStatus::FILE_CLOSED);
    assert_eq!(memory.invalidated(), [(next, 7)]);
    let next = MessageId(direct.next_id);
    let status = write(&mut direct, closed, (channel, 4), 0, &info);
    assert_eq!((status, memory.invalidated()), (NtStatus::FILE_CLOSED, vec![(next, 7)]));
    let status = write(&mut direct, id, (channel, 5), 0, &info);
    assert_eq!(status, NtStatus::INVALID_PARAMETER, "more than it has");
    assert_eq!(memory.invalidated().len(), 1);
}

#[test]
fn an_answer_has_no_more_data_than_the_client_puts_together() {
    let memory = Arc::new(Memory::default());
    let (mut direct, id) = client(Dialect::SMB_3_0_2, Some(&memory));
    direct.store(id, &vec![7; LONGEST]);
    let (status, data, _) = read(&mut direct, id, CHANNEL_NONE, LONGEST as u32, &[]);
    assert_eq!(status, NtStatus::SUCCESS);
    assert!(data.len() < LONGEST && data.len() > LONGEST / 2, "{}", data.len());
    memory.set(7, vec![0; LONGEST]);
    let info = descriptors(&[(0, 7, LONGEST as u32)]);
    let (status, _, count) = read(&mut direct, id, CHANNEL_RDMA_V1, LONGEST as u32, &info);
    assert_eq!(
        (status, count as usize),
        (NtStatus::SUCCESS, LONGEST),
        "in its memory there is room"
    );
}

#[test]
fn requests_that_do_not_say_the_same_twice_are_refused_and_change_nothing() {
    let memory = Arc::new(Memory::default());
    memory.set(7, vec![9; 100]);
    let (mut direct, id) = client(Dialect::SMB_3_0, Some(&memory));
    let info = descriptors(&[(0, 7, 100)]);
    // 3.0 knows no invalidation, and nobody the transforms that were not negotiated.
    for channel in [CHANNEL_RDMA_V1_INVALIDATE, 3, 4] {
        assert_eq!(read(&mut direct, id, channel, 5, &info), REFUSED);
        let status = write(&mut direct, id, (channel, 5), 0, &info);
        assert_eq!(status, NtStatus::INVALID_PARAMETER);
    }
    assert_eq!(read(&mut direct, id, 1, 0, &info), REFUSED);
    assert_eq!(read(&mut direct, id, 1, 5, &[]), REFUSED);
    assert_eq!(read(&mut direct, id, 1, 5, &info[..15]), REFUSED);
    let too_small = read(&mut direct, id, 1, 10, &descriptors(&[(0, 7, 4)]));
    assert_eq!(too_small.0, NtStatus::BUFFER_TOO_SMALL);
    let gone = read(&mut direct, id, 1, 10, &descriptors(&[(0, 99, 100)]));
    assert_eq!(gone.0, NtStatus::CONNECTION_DISCONNECTED);
    for (remaining, info) in [
        (0, descriptors(&[(0, 7, 100)])),
        (5, Vec::new()),
        (5, descriptors(&[(0, 7, 0), (0, 7, 100)])),
        (101, descriptors(&[(0, 7, 100)])),
        (u32::MAX, descriptors(&[(0, 7, u32::MAX)])),
        (5, descriptors(&[(0, 7, 100)])[1..].to_vec()),
    ] {
        let status = write(&mut direct, id, (1, remaining), 0, &info);
        assert_eq!(status, NtStatus::INVALID_PARAMETER, "{remaining}");
    }
    // Data in the message and elsewhere are not both.
    let request = write::Request { file_id: id, channel: 1, data: b"zz", ..Default::default() };
    let (header, _) = direct.ask(Command::WRITE, |out| request.encode(out));
    assert_eq!(header.status, NtStatus::INVALID_PARAMETER);
    assert_eq!(direct.content("f"), b"0123456789");
}

#[test]
fn encrypted_data_are_refused_where_that_was_not_agreed_on_or_the_request_is_not_encrypted() {
    let memory = Arc::new(Memory::default());
    memory.set(7, b"abcdef".to_vec());
    let (mut direct, id) = client(Dialect::SMB_3_0_2, Some(&memory));
    let list = descriptors(&[(0, 7, 6)]);
    let (channel, nonce, signature) = (CHANNEL_RDMA_V1, &[1; 12][..], [2; 16]);
    let mut info = Vec::new();
    Transform { channel, nonce, signature, descriptors: &list }.encode(&mut info);
    for agreed in [false, true] {
        direct.exchange.negotiated.as_mut().unwrap().seals_remote = agreed;
        let refused = write(&mut direct, id, (CHANNEL_RDMA_TRANSFORM, 6), 0, &info);
        assert_eq!(refused, NtStatus::INVALID_PARAMETER);
    }
    // What is in the clear goes on as before, where the request is in the clear.
    assert_eq!(write(&mut direct, id, (CHANNEL_RDMA_V1, 6), 0, &list), NtStatus::SUCCESS);
}
