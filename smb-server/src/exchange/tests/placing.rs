//! Large writes whose data go to their file before all have come.

use std::{io::Write, os::unix::net::UnixStream};

use block_io::SplicePipe;
use proptest::prelude::*;
use smb_protocol::msg::write::DATA_OFFSET;

use super::{files::FILE, *};

/// A WRITE of which parts have come.
struct Coming {
    message: Vec<u8>,
    /// Bytes of the message that have come.
    come: usize,
    input: Vec<u8>,
    placed: usize,
    pipe: SplicePipe,
}

impl Coming {
    fn new(direct: &mut Direct, file_id: FileId, offset: u64, data: &[u8]) -> Self {
        let mut message = direct.header(Command::WRITE).to_bytes().to_vec();
        write::Request { file_id, offset, data, ..Default::default() }.encode(&mut message);
        Self { message, come: 0, input: Vec::new(), placed: 0, pipe: SplicePipe::new().unwrap() }
    }

    /// Some more has come; whether it was placed.
    fn more(&mut self, direct: &mut Direct, bytes: usize) -> bool {
        let end = (self.come + bytes).min(self.message.len());
        self.input.extend_from_slice(&self.message[self.come..end]);
        self.come = end;
        assert!(self.input.len() < HEADER_LEN || Exchange::may_place(&self.input));
        let missing = self.message.len() - end;
        let taken = direct.exchange.place(&mut self.input, self.placed, missing, None);
        let Some(taken) = taken else { return false };
        self.placed += taken;
        self.input.drain(DATA_OFFSET..DATA_OFFSET + taken);
        true
    }

    /// Some more has come, its data through the pipe; whether they were placed.
    fn more_piped(&mut self, direct: &mut Direct, bytes: usize) -> bool {
        if self.come < DATA_OFFSET {
            self.input.extend_from_slice(&self.message[self.come..DATA_OFFSET]);
            self.come = DATA_OFFSET;
        }
        assert_eq!(self.input.len(), DATA_OFFSET);
        let end = (self.come + bytes).min(self.message.len());
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(&self.message[self.come..end]).unwrap();
        while self.come < end {
            self.come += self.pipe.fill(&far, end - self.come).unwrap();
        }
        let missing = self.message.len() - end;
        let pipe = Some(&mut self.pipe);
        let taken = direct.exchange.place(&mut self.input, self.placed, missing, pipe);
        self.placed += taken.unwrap_or(0);
        taken.is_some()
    }

    /// The rest has come: the answer.
    fn rest(mut self, direct: &mut Direct) -> (NtStatus, u32) {
        self.pipe.pour(&mut self.input).unwrap();
        self.input.extend_from_slice(&self.message[self.come..]);
        let (header, body) = direct.send_rest(&mut self.input, self.placed).unwrap().pop().unwrap();
        let count = write::Response::parse(&body).map_or(0, |response| response.count);
        (header.status, count)
    }
}

impl Direct {
    pub(super) fn content(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join("files").join(name)).unwrap()
    }
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31) ^ seed ^ (at >> 8) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn a_write_that_comes_in_pieces_is_the_same_write(
        writes in prop::collection::vec(
            (
                0u64..40_000,
                1usize..60_000,
                prop::collection::vec(1usize..20_000, 0..12),
                any::<bool>(),
            ),
            1..6,
        ),
    ) {
        let mut direct = Direct::new();
        direct.login();
        let id = direct.open("f", FILE);
        let mut model = Vec::new();
        for (seed, (offset, len, cuts, piped)) in writes.iter().enumerate() {
            let data = pattern(seed as u8, *len);
            let mut coming = Coming::new(&mut direct, id, *offset, &data);
            for cut in cuts {
                match piped {
                    true => coming.more_piped(&mut direct, *cut),
                    false => coming.more(&mut direct, *cut),
                };
                let end = coming.placed as u64 + offset;
                prop_assert!(coming.placed == 0 || end.is_multiple_of(4096));
            }
            prop_assert_eq!(coming.rest(&mut direct), (NtStatus::SUCCESS, *len as u32));
            let end = *offset as usize + len;
            model.resize(end.max(model.len()), 0);
            model[*offset as usize..end].copy_from_slice(&data);
            prop_assert!(direct.content("f") == model);
        }
    }
}

#[test]
fn what_may_not_be_written_is_not_placed() {
    let mut direct = Direct::new();
    direct.login();
    let id = direct.open("f", FILE);
    direct.store(id, &pattern(1, 20_000));
    let reader = create::Request {
        access: create::Access::READ_DATA,
        share: create::ShareAccess(7),
        disposition: create::Disposition::OPEN,
        name: "f".into(),
        impersonation: 2,
        ..Default::default()
    };
    let (_, body) = direct.ask(Command::CREATE, |out| reader.encode(out));
    let reads = create::Response::parse(&body).unwrap().file_id;
    let lock = lock::Request {
        file_id: direct.open("f", FILE),
        locks: vec![lock::Element {
            offset: 16_000,
            length: 1,
            flags: lock::LockFlags::EXCLUSIVE | lock::LockFlags::FAIL_IMMEDIATELY,
        }],
        ..Default::default()
    };
    assert_eq!(direct.ask(Command::LOCK, |out| lock.encode(out)).0.status, NtStatus::SUCCESS);
    let before = direct.content("f");
    let unknown = FileId { volatile: 77, ..id };
    for (file, offset, status) in [
        (reads, 0, NtStatus::ACCESS_DENIED),
        (unknown, 0, NtStatus::FILE_CLOSED),
        (id, 8192, NtStatus::FILE_LOCK_CONFLICT),
        (id, i64::MAX as u64, NtStatus::INVALID_PARAMETER),
    ] {
        for more in [Coming::more, Coming::more_piped] {
            let mut coming = Coming::new(&mut direct, file, offset, &pattern(2, 8192));
            assert!(!more(&mut coming, &mut direct, 6000), "{status:?}");
            assert_eq!(coming.rest(&mut direct).0, status);
            assert!(direct.content("f") == before, "{status:?}");
        }
    }
}

#[test]
fn a_write_that_names_more_than_it_has_changes_nothing() {
    let mut direct = Direct::new();
    direct.login();
    let id = direct.open("f", FILE);
    for more in [Coming::more, Coming::more_piped] {
        let mut coming = Coming::new(&mut direct, id, 0, &pattern(2, 30_000));
        // Length (MS-SMB2 2.2.21): one byte more than there is.
        coming.message[HEADER_LEN + 4..HEADER_LEN + 8].copy_from_slice(&30_001u32.to_le_bytes());
        assert!(!more(&mut coming, &mut direct, 20_000));
        assert_eq!(coming.rest(&mut direct).0, NtStatus::INVALID_PARAMETER);
        assert!(direct.content("f").is_empty());
    }
}

#[test]
fn what_ends_meanwhile_ends_the_placing() {
    for more in [Coming::more, Coming::more_piped] {
        ends_meanwhile(more);
    }
}

fn ends_meanwhile(more: fn(&mut Coming, &mut Direct, usize) -> bool) {
    let mut direct = Direct::new();
    direct.login();
    let id = direct.open("f", FILE);
    let mut coming = Coming::new(&mut direct, id, 0, &pattern(3, 30_000));
    assert!(more(&mut coming, &mut direct, DATA_OFFSET + 10_000));
    direct.close(id);
    assert!(!more(&mut coming, &mut direct, 10_000));
    assert_eq!(coming.rest(&mut direct).0, NtStatus::FILE_CLOSED);
    assert!(direct.content("f") == pattern(3, 8192), "whole pages of what came before the close");

    let id = direct.open("f", FILE);
    let mut coming = Coming::new(&mut direct, id, 8192, &pattern(4, 30_000));
    assert!(more(&mut coming, &mut direct, DATA_OFFSET + 10_000));
    let (header, _) = direct.ask(Command::LOGOFF, |out| Empty.encode(out));
    assert_eq!(header.status, NtStatus::SUCCESS);
    assert!(!more(&mut coming, &mut direct, 10_000));
    assert_eq!(coming.rest(&mut direct).0, NtStatus::USER_SESSION_DELETED);
    assert_eq!(direct.content("f").len(), 16_384);
}

#[test]
fn only_a_plain_write_that_stands_alone_is_placed() {
    let mut direct = Direct::new();
    direct.login();
    let plain = direct.header(Command::WRITE);
    let changed = |change: &dyn Fn(&mut Header)| {
        let mut header = plain;
        change(&mut header);
        Exchange::may_place(&header.to_bytes())
    };
    assert!(changed(&|_| {}));
    assert!(!changed(&|h| h.flags |= HeaderFlags::SIGNED));
    assert!(!changed(&|h| h.flags |= HeaderFlags::RELATED));
    assert!(!changed(&|h| h.flags |= HeaderFlags::ASYNC));
    assert!(!changed(&|h| h.flags |= HeaderFlags::RESPONSE));
    assert!(!changed(&|h| h.next_command = 120));
    assert!(!changed(&|h| h.command = Command::READ));
    assert!(!Exchange::may_place(&plain.to_bytes()[..HEADER_LEN - 1]));
}
