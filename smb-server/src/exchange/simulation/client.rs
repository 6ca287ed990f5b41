//! A client of the simulation: what it asks, and what it knows of its file.

use smb_protocol::{
    Command, FileId, MessageId, NtStatus, SessionId, TreeId,
    msg::{
        close,
        context::{self, DurableV2, Lease, LeaseState, names},
        create::{self, Access, CreateOptions, Disposition, RawContext, ShareAccess},
        flush, lock,
        oplock::OplockLevel,
        read, write,
    },
};

use super::{super::tests::signer::Known, Broken, Checked, frames::Place};

/// What a client asks of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    Create,
    Write(usize, u8),
    Read(usize),
    Flush,
    Lock(u8),
    Unlock(u8),
    Close,
}

/// An operation under way.
#[derive(Debug, Clone)]
pub(super) struct Flight {
    pub(super) op: Op,
    /// Connection and message id, unless it is to be sent again.
    pub(super) sent: Option<(usize, MessageId)>,
    /// It was sent before.
    pub(super) again: bool,
}

pub(super) const BLOCKS: usize = 3;
pub(super) const BLOCK: usize = 64;

/// What is special about a client's open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    /// It has a lease to cache all there is.
    Leased,
    /// Its file was there, and goes when it is closed.
    Deleting,
}

/// A client with one file.
pub(super) struct Client {
    pub(super) kind: Kind,
    pub(super) guid: u8,
    pub(super) name: String,
    pub(super) create_guid: [u8; 16],
    pub(super) known: Option<Known>,
    pub(super) previous: SessionId,
    pub(super) tree: TreeId,
    pub(super) wires: Vec<usize>,
    pub(super) sequence: u16,
    pub(super) file: FileId,
    pub(super) flights: Vec<Flight>,
    // The model.
    /// Another program has made a file of the name since it was deleted.
    pub(super) replaced: bool,
    pub(super) place: Place,
    pub(super) blocks: [u8; BLOCKS],
    pub(super) locked: bool,
    pub(super) lock_number: u8,
    pub(super) next_value: u8,
}

impl Client {
    /// The CREATE, and the one that takes the open up again.
    pub(super) fn create(&self, name: &'static [u8], data: &[u8], out: &mut Vec<u8>) {
        let lease = Lease {
            key: [self.guid; 16],
            state: LeaseState::READ | LeaseState::HANDLE | LeaseState::WRITE,
            flags: 0,
            v2: Some(([0; 16], 0)),
        }
        .to_bytes();
        let leased = self.kind == Kind::Leased;
        let mut contexts = vec![RawContext { name, data }];
        if leased {
            contexts.push(RawContext { name: names::RQLS, data: &lease });
        }
        let deletes = self.kind == Kind::Deleting;
        create::Request {
            oplock: if leased { OplockLevel::LEASE } else { OplockLevel::NONE },
            access: Access(if deletes { 0x0013_019f } else { 0x0012_019f }),
            share: ShareAccess::NONE,
            // It must not be there: a CREATE that is carried out twice fails.
            disposition: if deletes { Disposition::OPEN } else { Disposition::CREATE },
            options: match deletes {
                true => CreateOptions::NON_DIRECTORY_FILE | CreateOptions::DELETE_ON_CLOSE,
                false => CreateOptions::NON_DIRECTORY_FILE,
            },
            name: self.name.clone(),
            impersonation: 2,
            contexts,
            ..Default::default()
        }
        .encode(out);
    }

    /// What the server says of the open that it gives, or gives again.
    pub(super) fn opened(&mut self, body: &[u8]) -> Checked {
        let answer = create::Response::parse(body).map_err(|e| e.to_string())?;
        self.file = answer.file_id;
        let lease = context::find(&answer.contexts, names::RQLS).map(Lease::parse);
        let state = lease.transpose().map_err(|e| e.to_string())?.map(|lease| lease.state);
        let all = LeaseState::READ | LeaseState::HANDLE | LeaseState::WRITE;
        if state != (self.kind == Kind::Leased).then_some(all) {
            return Err(format!("its lease is {state:?}"));
        }
        Ok(())
    }

    /// Whether its file is there when it is closed.
    pub(super) fn stays(&self) -> bool {
        self.kind != Kind::Deleting || self.replaced
    }

    pub(super) fn encode(&self, op: &Op, broken: Broken, out: &mut Vec<u8>) -> Command {
        let file_id = self.file;
        match op {
            Op::Create => {
                let durable = DurableV2 {
                    timeout: 0,
                    flags: DurableV2::PERSISTENT,
                    create_guid: self.create_guid,
                }
                .to_bytes();
                self.create(names::DH2Q, &durable, out);
                Command::CREATE
            }
            Op::Write(block, value) => {
                let data = &[*value; BLOCK];
                let offset = (block * BLOCK) as u64;
                // What stands in the body is counted from the header.
                let request = write::Request { offset, file_id, data, ..Default::default() };
                request.encode(out);
                Command::WRITE
            }
            Op::Read(block) => {
                let (length, offset) = (BLOCK as u32, (block * BLOCK) as u64);
                read::Request { length, offset, file_id, ..Default::default() }.encode(out);
                Command::READ
            }
            Op::Flush => {
                flush::Request { file_id }.encode(out);
                Command::FLUSH
            }
            Op::Lock(number) | Op::Unlock(number) => {
                let flags = if matches!(op, Op::Lock(_)) { 0x12 } else { 4 };
                let index = if broken == Broken::LockSequence { 0 } else { 1 << 4 };
                let locks = vec![lock::Element {
                    offset: 1 << 20,
                    length: 8,
                    flags: lock::LockFlags(flags),
                }];
                lock::Request { file_id, sequence: index | u32::from(*number), locks }.encode(out);
                Command::LOCK
            }
            Op::Close => {
                close::Request { flags: 0, file_id }.encode(out);
                Command::CLOSE
            }
        }
    }

    pub(super) fn answered(&mut self, op: &Op, status: NtStatus, body: &[u8]) -> Checked {
        let eof = matches!(op, Op::Read(_)) && status == NtStatus::END_OF_FILE;
        // Its first copy was carried out.
        let closed = *op == Op::Close && status == NtStatus::FILE_CLOSED;
        if status != NtStatus::SUCCESS && !eof && !closed {
            return Err(format!("{op:?}: {status}"));
        }
        match op {
            Op::Create => {
                self.opened(body)?;
                self.place = Place::Open;
            }
            Op::Write(block, value) => self.blocks[*block] = *value,
            Op::Read(block) => {
                let wanted = self.blocks[*block];
                let data = if eof {
                    &[][..]
                } else {
                    read::Response::parse(body).map_err(|e| e.to_string())?.data
                };
                let short = data.len() != BLOCK && wanted != 0;
                if short || data.iter().any(|byte| *byte != wanted) {
                    return Err(format!("block {block} reads as {data:?}, not {wanted}"));
                }
            }
            Op::Lock(_) => self.locked = true,
            Op::Unlock(_) => self.locked = false,
            Op::Close => (self.place, self.locked) = (Place::Closed, false),
            Op::Flush => {}
        }
        Ok(())
    }
}
