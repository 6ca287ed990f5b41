//! Requests that name many ranges or attributes of one file, or are about its many streams.

use smb_protocol::{
    fscc::{
        FsctlCode, ea,
        offload::{CopyChunk, CopyChunks, encode_trim},
    },
    msg::{ioctl, query_info},
};

use super::*;

/// Connections that ask at the same time: what one request takes is seen by whoever waits for all.
const CROWD: usize = 40;
/// Requests of each, one behind the other.
const REQUESTS: usize = 2;
/// The locks that one file can have.
const LOCKS: u64 = 16_384;
/// Rounds that an honest client makes at least beside a request that is carried out aside. Beside one
/// that keeps the only thread it makes the one that was under way, and the one that comes next.
const ROUNDS: usize = 6;

/// A connection with one file open.
struct One {
    raw: RawConnection,
    file_id: FileId,
}

impl One {
    fn new(server: &Smbd, name: &str, more: Access) -> Self {
        let mut raw = hostile(server, "vms");
        let mut request = opening(name, Disposition::OPEN_IF, CreateOptions::NONE);
        request.access |= more;
        let file_id = open(&mut raw, &request).unwrap();
        Self { raw, file_id }
    }

    fn control(&mut self, code: FsctlCode, input: &[u8], max_output: u32) -> (NtStatus, Vec<u8>) {
        let flags = ioctl::IS_FSCTL;
        let file_id = self.file_id;
        let request =
            ioctl::Request { code, file_id, input, max_output, flags, ..Default::default() };
        ask(&mut self.raw, Command::IOCTL, |out| request.encode(out))
    }

    /// Takes as many locks as a file can have, far behind its end.
    fn lock_much(&mut self) {
        let flags = LockFlags::EXCLUSIVE | LockFlags::FAIL_IMMEDIATELY;
        let offset = |n: u64| (1 << 40) + 2 * n;
        let locks =
            (0..LOCKS).map(|n| lock::Element { offset: offset(n), length: 1, flags }).collect();
        let request = lock::Request { sequence: 0, file_id: self.file_id, locks };
        let (status, _) = ask(&mut self.raw, Command::LOCK, |out| request.encode(out));
        assert_eq!(status, NtStatus::SUCCESS);
    }
}

/// Everybody of a crowd asks for the same at once; all are answered with `want`.
fn all_ask(
    crowd: &mut [One],
    command: Command,
    want: NtStatus,
    encode: impl Fn(usize, FileId, &mut Vec<u8>),
) {
    for (at, one) in crowd.iter_mut().enumerate() {
        for _ in 0..REQUESTS {
            one.raw.queue_request(command, |out| encode(at, one.file_id, out));
        }
        one.raw.send().unwrap();
    }
    for one in crowd {
        for (_, status, _) in answers(&mut one.raw, REQUESTS) {
            assert_eq!(status, want);
        }
    }
}

fn crowd(server: &Smbd, name: &str, more: Access) -> Vec<One> {
    (0..CROWD).map(|_| One::new(server, name, more)).collect()
}

/// Each range would be compared with each lock of the file: 33 million times for a request.
#[test]
fn no_trim_of_a_file_with_many_locks_keeps_others_waiting() {
    const MOST: u64 = 2048;
    let server = one_thread();
    let mut owner = One::new(&server, "file", Access::NONE);
    owner.lock_much();
    // None of them holds a page, so that all that is done is to look whether they are locked.
    let ranges: Vec<(u64, u64)> = (0..MOST).map(|n| (n * 2 + 1, 1)).collect();
    let mut input = Vec::new();
    encode_trim(&ranges, &mut input);
    let mut crowd = crowd(&server, "file", Access::NONE);
    let honest = Honest::begin(&server);
    all_ask(&mut crowd, Command::IOCTL, NtStatus::NO_RANGES_PROCESSED, |_, file_id, out| {
        let code = FsctlCode::FILE_LEVEL_TRIM;
        let (flags, max_output) = (ioctl::IS_FSCTL, 4);
        let input = &input;
        ioctl::Request { code, file_id, input, max_output, flags, ..Default::default() }
            .encode(out);
    });
    honest.end(&server, "trims under locks");
    let (status, _) = crowd[0].control(FsctlCode::FILE_LEVEL_TRIM, &too_many_trims(), 4);
    assert_eq!(status, NtStatus::INVALID_PARAMETER, "a list without bound");
}

/// All runs of a file are gone through to find the last of them.
#[test]
fn no_number_of_extents_keeps_others_waiting() {
    use std::os::unix::fs::FileExt;

    const RUNS: u64 = 20_000;
    const STEP: u64 = 64 << 10;
    let server = one_thread();
    let file = fs::File::create(server.files().join("file")).unwrap();
    for run in 0..RUNS {
        file.write_all_at(&[7; 4096], run * STEP).unwrap();
    }
    file.sync_all().unwrap();
    let cluster = rustix::fs::fstatvfs(&file).unwrap().f_frsize;
    let last = ((RUNS - 1) * STEP / cluster).to_le_bytes();
    let mut crowd = crowd(&server, "file", Access::NONE);
    let code = FsctlCode::GET_RETRIEVAL_POINTERS;
    let (status, _) = crowd[0].control(code, &last, 32);
    if status == NtStatus::INVALID_DEVICE_REQUEST {
        eprintln!("the file system of temporary files does not tell of extents");
        return;
    }
    assert_eq!(status, NtStatus::SUCCESS);
    let honest = Honest::begin(&server);
    all_ask(&mut crowd, Command::IOCTL, NtStatus::SUCCESS, |_, file_id, out| {
        let (flags, max_output) = (ioctl::IS_FSCTL, 32);
        let input = &last;
        ioctl::Request { code, file_id, input, max_output, flags, ..Default::default() }
            .encode(out);
    });
    honest.end(&server, "extents of a file");
}

/// More ranges than a request may name.
fn too_many_trims() -> Vec<u8> {
    let mut input = Vec::new();
    encode_trim(&vec![(0, 1); 4000], &mut input);
    input
}

/// Each chunk would be compared with each lock, at its source and at its target.
#[test]
fn no_copy_within_a_file_with_many_locks_keeps_others_waiting() {
    const CHUNKS: u64 = 256;
    let server = one_thread();
    fs::write(server.files().join("file"), vec![7; 4096]).unwrap();
    let mut owner = One::new(&server, "file", Access::NONE);
    owner.lock_much();
    let mut crowd = crowd(&server, "file", Access::NONE);
    let chunks: Vec<CopyChunk> =
        (0..CHUNKS).map(|n| CopyChunk { source: n, target: 2048 + n, length: 1 }).collect();
    let inputs: Vec<Vec<u8>> = crowd
        .iter_mut()
        .map(|one| {
            let (status, body) = one.control(FsctlCode::SRV_REQUEST_RESUME_KEY, &[], 32);
            assert_eq!(status, NtStatus::SUCCESS);
            let output = ioctl::Response::parse(&body).unwrap().output.to_vec();
            let key = *output.first_chunk().unwrap();
            let mut input = Vec::new();
            CopyChunks { key, chunks: chunks.clone() }.encode(&mut input);
            input
        })
        .collect();
    let honest = Honest::begin(&server);
    all_ask(&mut crowd, Command::IOCTL, NtStatus::SUCCESS, |at, file_id, out| {
        let code = FsctlCode::SRV_COPYCHUNK;
        let (flags, max_output) = (ioctl::IS_FSCTL, 12);
        let input = &inputs[at];
        ioctl::Request { code, file_id, input, max_output, flags, ..Default::default() }
            .encode(out);
    });
    honest.end(&server, "copies under locks");
}

/// The names of a query, each in 12 bytes.
fn names(count: usize) -> Vec<u8> {
    let mut input = Vec::new();
    for number in 0..count {
        let next: u32 = if number + 1 < count { 12 } else { 0 };
        input.extend_from_slice(&next.to_le_bytes());
        input.push(6);
        input.extend_from_slice(format!("{number:06}\0").as_bytes());
    }
    input
}

/// A query names attributes by the thousand; a file has as many as fit.
#[test]
fn no_list_of_names_of_attributes_keeps_others_waiting() {
    let server = one_thread();
    let mut crowd = crowd(&server, "file", Access::READ_EA | Access::WRITE_EA);
    let all: Vec<ea::Ea> = (0..200)
        .map(|n| ea::Ea { flags: 0, name: format!("A{n:03}"), value: b"v".to_vec() })
        .collect();
    let mut input = Vec::new();
    ea::encode(all.iter(), 60_000, &mut input);
    let (file_id, class) = (crowd[0].file_id, InfoClass::FULL_EA);
    let info_type = InfoType::FILE;
    let input = &input;
    let request = set_info::Request { info_type, class, file_id, input, ..Default::default() };
    let (status, _) = ask(&mut crowd[0].raw, Command::SET_INFO, |out| request.encode(out));
    assert_eq!(status, NtStatus::SUCCESS);
    let query = |input: &[u8], file_id, out: &mut Vec<u8>| {
        let output_len = 65_536;
        query_info::Request { info_type, class, output_len, file_id, input, ..Default::default() }
            .encode(out);
    };
    let honest = Honest::begin(&server);
    let most = names(4000);
    all_ask(&mut crowd, Command::QUERY_INFO, NtStatus::SUCCESS, |_, file_id, out| {
        query(&most, file_id, out);
    });
    // One name is answered once, however often it is asked for.
    let same = [12, 0, 0, 0, 4, b'A', b'0', b'0', b'1', 0, 0, 0].repeat(4000);
    let same = &same[..same.len() - 12];
    let same = [same, &[0, 0, 0, 0, 4, b'A', b'0', b'0', b'1', 0, 0, 0]].concat();
    let (status, body) = ask(&mut crowd[0].raw, Command::QUERY_INFO, |out| {
        query(&same, file_id, out);
    });
    assert_eq!(status, NtStatus::SUCCESS);
    assert!(body.len() < 100, "{} bytes", body.len());
    // More than the attributes of any file is not gone through.
    let more = names(6000);
    all_ask(&mut crowd, Command::QUERY_INFO, NtStatus::INVALID_PARAMETER, |_, file_id, out| {
        query(&more, file_id, out);
    });
    honest.end(&server, "names of attributes");
}

/// A file that has streams by the thousand is asked for their names, and goes with them.
#[test]
fn no_number_of_streams_keeps_others_waiting() {
    let server = one_thread();
    let honest = Honest::begin(&server);
    // On a machine that is busy otherwise the honest client may be the one that is held up, so it has
    // several tries; where it is kept waiting by the server it has none that goes well.
    let mut most = (0, 0);
    for attempt in 0..5 {
        let (list, end) = streams_listed_and_ended(&server, &honest, &format!("file{attempt}"));
        most = (list.max(most.0), end.max(most.1));
        if most.0 >= ROUNDS && most.1 >= ROUNDS {
            break;
        }
    }
    assert!(most.0 >= ROUNDS, "{} rounds beside a list of streams", most.0);
    assert!(most.1 >= ROUNDS, "{} rounds beside the end of a file with many streams", most.1);
    honest.end(&server, "1,500 streams");
    let kept = fs::read_dir(server.files().join(".bulkhead/streams")).unwrap().count();
    assert_eq!(kept, 0, "streams went with their files");
}

/// The rounds of the honest client beside a list of many streams, and beside the end of their file.
fn streams_listed_and_ended(server: &Smbd, honest: &Honest, file: &str) -> (usize, usize) {
    const STREAMS: usize = 1500;
    let mut one = One::new(server, file, Access::NONE);
    for number in 0..STREAMS {
        let name = format!("{file}:{}{number:04}", "s".repeat(100));
        let stream = opening(&name, Disposition::CREATE, CreateOptions::NONE);
        let file_id = open(&mut one.raw, &stream).unwrap();
        let request = close::Request { flags: 0, file_id };
        ask(&mut one.raw, Command::CLOSE, |out| request.encode(out));
    }
    let file_id = one.file_id;
    let (status, list) = honest.beside(|| {
        let request = query_info::Request {
            info_type: InfoType::FILE,
            class: InfoClass::STREAM,
            output_len: 60_000,
            file_id,
            ..Default::default()
        };
        ask(&mut one.raw, Command::QUERY_INFO, |out| request.encode(out)).0
    });
    assert_eq!(status, NtStatus::BUFFER_OVERFLOW);
    let disposition = set_info::Request {
        info_type: InfoType::FILE,
        class: InfoClass::DISPOSITION,
        file_id,
        input: &[1],
        ..Default::default()
    };
    let (status, _) = ask(&mut one.raw, Command::SET_INFO, |out| disposition.encode(out));
    assert_eq!(status, NtStatus::SUCCESS);
    let (status, end) = honest.beside(|| {
        let request = close::Request { flags: 0, file_id };
        ask(&mut one.raw, Command::CLOSE, |out| request.encode(out)).0
    });
    assert_eq!(status, NtStatus::SUCCESS);
    assert!(!server.files().join(file).exists());
    (list, end)
}
