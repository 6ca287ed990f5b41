//! SMB Direct (MS-SMBD): messages as the crate `rdma` brings them, and the client's memory.
//!
//! ```text
//!  rdma::Connection ─► messages that have come ─► next_message
//!         ▲   ▲
//!         │   └── read, write, at once      RemoteMemory: READ and WRITE with a channel
//!         └────── send, with the token that the answer to a request takes back
//! ```
//! No message comes in pieces here, so no data of a WRITE are placed before it is whole: large data
//! come by RDMA read, and not in messages.

use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use rdma::{Connection, Handle, Part, smbd::Upper};
use smb_protocol::{
    Header, MessageId, NtStatus,
    crypto::TransformHeader,
    header::{FRAME_LEN, frame_len},
    msg::rdma::BufferDescriptor,
};

use super::{Carrier, Placement, RemoteMemory, Signature, Transfer, Transport};
use crate::dropped::Dropped;

/// About so many bytes of messages are taken at once, so that answers to them go out meanwhile.
const AT_ONCE: usize = 256 << 10;
/// Room beyond the payload that a message may have: headers, contexts, names.
const OVERHEAD: usize = 64 << 10;
/// Tokens that may wait for the answers with which they are taken back: no more than requests.
const MOST_TOKENS: usize = 8192;

/// A connection of SMB Direct.
#[derive(Debug)]
pub struct Rdma {
    connection: Connection,
    memory: Arc<Memory>,
    /// Messages that have come and that nobody has looked at.
    waiting: VecDeque<Upper>,
    waiting_bytes: usize,
    /// Bytes that have come and of which nobody was told.
    untold: usize,
    /// The message that is looked at.
    current: Vec<u8>,
}

/// The client's memory, and which of it is taken back with which answer.
#[derive(Debug)]
struct Memory {
    handle: Handle,
    tokens: Mutex<HashMap<Taking, u32>>,
}

/// A message that takes a token back as it goes out.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Taking {
    /// One with the answer to a request.
    Answer(MessageId),
    /// An encrypted one.
    Encrypted(Signature),
}

impl Rdma {
    /// A connection that both ends have agreed on.
    pub fn new(connection: Connection) -> Self {
        let handle = connection.handle().clone();
        Self {
            connection,
            memory: Arc::new(Memory { handle, tokens: Mutex::default() }),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            untold: 0,
            current: Vec::new(),
        }
    }

    fn handle(&self) -> &Handle {
        &self.memory.handle
    }

    fn keep(&mut self, upper: Upper) {
        let len = upper.bytes.len() - upper.start;
        self.waiting_bytes += len;
        self.untold += len;
        self.waiting.push_back(upper);
    }
}

impl Memory {
    /// The token that a message takes back: that of the first answer in it that has one.
    fn token(&self, mut message: &[u8]) -> Option<u32> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.is_empty() {
            return None;
        }
        if TransformHeader::starts(message) {
            let signature = message.get(TransformHeader::SIGNATURE)?.first_chunk()?;
            return tokens.remove(&Taking::Encrypted(*signature));
        }
        let mut found = None;
        while let Ok(header) = Header::parse(message) {
            // The memory may be used still while an answer is pending.
            if header.status != NtStatus::PENDING {
                found = found.or(tokens.remove(&Taking::Answer(header.message_id)));
            }
            let next = header.next_command as usize;
            match message.get(next..).filter(|_| next > 0) {
                Some(rest) => message = rest,
                None => break,
            }
        }
        found
    }
}

impl Transport for Rdma {
    fn peer(&self) -> SocketAddr {
        self.handle().peer()
    }

    fn local(&self) -> io::Result<SocketAddr> {
        Ok(self.handle().local())
    }

    fn carrier(&self) -> Carrier {
        Carrier::Rdma
    }

    fn held(&self) -> usize {
        self.waiting_bytes + self.current.len() + self.connection.held()
    }

    fn receive_now(&mut self) -> Result<Option<usize>, Dropped> {
        // What came before the end has come when the end is known.
        let ended = self.handle().lost().is_some();
        while self.waiting_bytes < AT_ONCE
            && let Some(upper) = self.connection.receive_now()
        {
            self.keep(upper);
        }
        match std::mem::take(&mut self.untold) {
            0 if ended && self.waiting.is_empty() => Ok(Some(0)),
            0 => Ok(None),
            got => Ok(Some(got)),
        }
    }

    async fn readable(&mut self) -> Result<(), Dropped> {
        if !self.waiting.is_empty() {
            return Ok(());
        }
        let came = poll_fn(|context| self.connection.poll_receive(context)).await;
        if let Some(upper) = came {
            self.keep(upper);
        }
        Ok(())
    }

    fn next_message(
        &mut self,
        placement: &mut impl Placement,
    ) -> Result<Option<(&mut [u8], usize)>, Dropped> {
        self.current = Vec::new();
        let Some(upper) = self.waiting.pop_front() else { return Ok(None) };
        let len = upper.bytes.len() - upper.start;
        self.waiting_bytes -= len;
        if len > placement.max_message() + OVERHEAD {
            return Err(Dropped::TooLong(len));
        }
        self.current = upper.bytes;
        Ok(Some((&mut self.current[upper.start..], 0)))
    }

    fn rest(&mut self, _: usize) {
        self.current = Vec::new();
    }

    async fn send(&mut self, mut messages: &[u8]) -> io::Result<()> {
        while let Some((prefix, rest)) = messages.split_first_chunk::<FRAME_LEN>() {
            let len = frame_len(*prefix).map_err(|_| io::ErrorKind::InvalidData)?;
            let (message, next) = rest.split_at_checked(len).ok_or(io::ErrorKind::InvalidData)?;
            let token = self.memory.token(message);
            self.memory.handle.send(Bytes::copy_from_slice(message), token).await?;
            messages = next;
        }
        Ok(())
    }

    fn unacknowledged(&self) -> u64 {
        self.handle().unacknowledged()
    }

    fn abort(&mut self) {
        self.handle().abort();
    }

    fn remote_memory(&self) -> Option<Arc<dyn RemoteMemory>> {
        Some(self.memory.clone())
    }
}

fn parts(descriptors: &[BufferDescriptor]) -> Vec<Part> {
    let part =
        |it: &BufferDescriptor| Part { offset: it.offset, token: it.token, length: it.length };
    descriptors.iter().map(part).collect()
}

impl RemoteMemory for Memory {
    fn longest_message(&self) -> usize {
        self.handle.agreed().max_fragmented_send_size as usize
    }

    fn write(&self, to: &[BufferDescriptor], data: Vec<u8>) -> Transfer<()> {
        let (handle, to) = (self.handle.clone(), parts(to));
        Box::pin(async move { handle.write(&to, data.into()).await })
    }

    fn read(&self, from: &[BufferDescriptor], len: usize) -> Transfer<Vec<u8>> {
        let (handle, from) = (self.handle.clone(), parts(from));
        Box::pin(async move { handle.read(&from, len).await })
    }

    fn invalidate(&self, answered: MessageId, token: u32) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() < MOST_TOKENS {
            tokens.insert(Taking::Answer(answered), token);
        }
    }

    fn hidden(&self, answered: &[MessageId], signature: Signature) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = answered.iter().map(|id| tokens.remove(&Taking::Answer(*id)));
        if let Some(token) = taken.fold(None, Option::or) {
            tokens.insert(Taking::Encrypted(signature), token);
        }
    }
}

#[cfg(test)]
mod tests {
    use rdma::{Memory as Granted, Parameters, in_process::pair};
    use smb_protocol::Command;

    use super::*;

    struct Whole;

    impl Placement for Whole {
        fn max_message(&self) -> usize {
            1 << 20
        }

        fn may_place(&self, _: &[u8]) -> bool {
            unreachable!("messages are whole")
        }

        fn place(
            &mut self,
            _: &mut [u8],
            _: usize,
            _: usize,
            _: Option<&mut block_io::SplicePipe>,
        ) -> Option<usize> {
            unreachable!("messages are whole")
        }
    }

    async fn connected() -> (Connection, Rdma) {
        let [ours, theirs] = ["192.0.2.1:5445", "192.0.2.2:7"].map(|at| at.parse().unwrap());
        let (client, server) = pair([theirs, ours]);
        let (client, server) = tokio::join!(
            Connection::active(Box::new(client), Parameters::active()),
            Connection::passive(Box::new(server), Parameters::passive())
        );
        (client.unwrap(), Rdma::new(server.unwrap()))
    }

    fn answers(ids: &[u64]) -> Vec<u8> {
        let mut out = Vec::new();
        for (at, id) in ids.iter().enumerate() {
            let last = at + 1 == ids.len();
            let header = Header {
                command: Command::READ,
                message_id: MessageId(*id),
                next_command: if last { 0 } else { 64 },
                ..Header::default()
            };
            header.encode(&mut out);
        }
        let mut framed = u32::try_from(out.len()).unwrap().to_be_bytes().to_vec();
        framed.extend(out);
        framed
    }

    #[tokio::test]
    async fn messages_come_and_go_without_their_frames_and_each_token_with_its_answer() {
        let (mut client, mut server) = connected().await;
        assert_eq!(server.peer(), "192.0.2.2:7".parse().unwrap());
        assert_eq!(server.receive_now().unwrap(), None);
        let mut came = 0;
        for message in [&b"one"[..], b"three"] {
            client.handle().send(Bytes::copy_from_slice(message), None).await.unwrap();
        }
        let mut got = Vec::new();
        while got.len() < 2 {
            server.readable().await.unwrap();
            came += server.receive_now().unwrap().unwrap();
            while let Some((message, placed)) = server.next_message(&mut Whole).unwrap() {
                got.push((message.to_vec(), placed));
            }
        }
        assert_eq!(got, [(b"one".to_vec(), 0), (b"three".to_vec(), 0)]);
        assert_eq!((came, server.held()), (8, 0));
        let part = client.handle().register(Granted::writable(vec![0; 9])).await.unwrap();
        let memory = server.remote_memory().unwrap();
        let to = BufferDescriptor { offset: part.offset, token: part.token, length: part.length };
        memory.write(&[to], b"data".to_vec()).await.unwrap();
        memory.invalidate(MessageId(8), part.token);
        // What says that the answer is pending has not done with the memory.
        let mut pending = answers(&[8]);
        pending[FRAME_LEN + 8..][..4].copy_from_slice(&NtStatus::PENDING.0.to_le_bytes());
        server.send(&pending).await.unwrap();
        assert_eq!(client.receive().await.unwrap().invalidated, None);
        // Two messages in one send; the second has the answer, as the second of a compound.
        server.send(&[answers(&[5]), answers(&[7, 8])].concat()).await.unwrap();
        let first = client.receive().await.unwrap();
        assert_eq!((first.bytes.len() - first.start, first.invalidated), (64, None));
        let second = client.receive().await.unwrap();
        assert_eq!(
            (second.bytes.len() - second.start, second.invalidated),
            (128, Some(part.token))
        );
        let buffer = client.handle().deregister(part.token).await.unwrap().into_vec();
        assert_eq!(buffer, b"data\0\0\0\0\0");
        // An answer that cannot be looked into.
        let part = client.handle().register(Granted::writable(vec![0; 9])).await.unwrap();
        memory.invalidate(MessageId(10), part.token);
        memory.hidden(&[MessageId(9), MessageId(10)], [6; 16]);
        for (signature, token) in [(7, None), (6, Some(part.token)), (6, None)] {
            let mut sealed = vec![0, 0, 0, TransformHeader::LEN as u8];
            sealed.extend(TransformHeader::PROTOCOL_ID);
            sealed.extend([signature; 16]);
            sealed.resize(FRAME_LEN + TransformHeader::LEN, 0);
            server.send(&sealed).await.unwrap();
            assert_eq!(client.receive().await.unwrap().invalidated, token);
        }
        drop(client);
        // The end is seen behind everything that came before it.
        server.readable().await.unwrap();
        assert_eq!(server.receive_now().unwrap(), Some(0));
    }

    #[tokio::test]
    async fn a_message_that_is_longer_than_any_may_be_is_refused() {
        let (client, mut server) = connected().await;
        client.handle().send(vec![0; (1 << 20) + OVERHEAD + 1].into(), None).await.unwrap();
        server.readable().await.unwrap();
        let refused = server.next_message(&mut Whole);
        assert!(matches!(refused, Err(Dropped::TooLong(_))));
    }
}
