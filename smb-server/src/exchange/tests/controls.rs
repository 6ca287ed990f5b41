//! Controls: what each must answer, by the specification.

use smb_protocol::{
    dfs::{self, Request},
    fscc::{
        fsctl::FileRange,
        offload::{
            CopyChunk, CopyChunks, CopyResult, Duplicate, OffloadRead, OffloadReadAnswer,
            OffloadWrite, Token, encode_trim, parse_offload_written,
        },
    },
    msg::{create::CreateOptions, ioctl::Response},
};

use super::*;

const ROOM: u32 = 4096;

impl Direct {
    /// One control; the output stands beside an error as well.
    pub(super) fn control(
        &mut self,
        code: FsctlCode,
        file_id: FileId,
        input: &[u8],
    ) -> (NtStatus, Vec<u8>) {
        self.control_with(code, file_id, input, ROOM)
    }

    fn control_with(
        &mut self,
        code: FsctlCode,
        file_id: FileId,
        input: &[u8],
        max_output: u32,
    ) -> (NtStatus, Vec<u8>) {
        let request =
            ioctl::Request { code, file_id, input, max_output, flags: 1, ..Default::default() };
        let (header, body) = self.ask(Command::IOCTL, |out| request.encode(out));
        let output = Response::parse(&body).map(|r| r.output.to_vec()).unwrap_or_default();
        (header.status, output)
    }

    fn put(&mut self, file_id: FileId, offset: u64, data: &[u8]) {
        let request = write::Request { offset, file_id, data, ..Default::default() };
        let (header, _) = self.ask(Command::WRITE, |out| {
            write::Request { length: data.len() as u32, ..request.clone() }.encode(out);
        });
        assert_eq!(header.status, NtStatus::SUCCESS);
    }

    fn get(&mut self, file_id: FileId, offset: u64, length: u32) -> Vec<u8> {
        let request = read::Request { length, offset, file_id, ..Default::default() };
        let (header, body) = self.ask(Command::READ, |out| request.encode(out));
        if header.status == NtStatus::END_OF_FILE {
            return Vec::new();
        }
        assert_eq!(header.status, NtStatus::SUCCESS);
        read::Response::parse(&body).unwrap().data.to_vec()
    }

    fn file(&mut self, name: &str, data: &[u8]) -> FileId {
        let id = self.open(name, CreateOptions::NON_DIRECTORY_FILE);
        for (index, part) in data.chunks(60_000).enumerate() {
            self.put(id, index as u64 * 60_000, part);
        }
        id
    }

    fn key(&mut self, id: FileId) -> [u8; 24] {
        let (status, output) = self.control(FsctlCode::SRV_REQUEST_RESUME_KEY, id, &[]);
        assert_eq!((status, output.len()), (NtStatus::SUCCESS, 32));
        *output.first_chunk().unwrap()
    }

    fn ranges(&mut self, id: FileId, offset: u64, length: u64) -> Vec<(u64, u64)> {
        let mut input = Vec::new();
        FileRange { offset, length }.encode(&mut input);
        let (status, output) = self.control(FsctlCode::QUERY_ALLOCATED_RANGES, id, &input);
        assert_eq!(status, NtStatus::SUCCESS);
        FileRange::parse_list(&output).unwrap().iter().map(|r| (r.offset, r.length)).collect()
    }
}

fn ready() -> Direct {
    let mut direct = Direct::new();
    direct.login();
    direct
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

#[test]
fn chunks_are_copied_in_order_and_counted() {
    let mut direct = ready();
    let data: Vec<u8> = (0..50_000u32).map(|n| (n % 251) as u8).collect();
    let (source, target) = (direct.file("s", &data), direct.file("t", &[9; 10]));
    let key = direct.key(source);
    let chunk = |source, target, length| CopyChunk { source, target, length };
    let chunks = vec![chunk(0, 100, 40_000), chunk(40_000, 5, 10_000)];
    let input = encoded(|out| CopyChunks { key, chunks }.encode(out));
    let (status, output) = direct.control(FsctlCode::SRV_COPYCHUNK, target, &input);
    assert_eq!(status, NtStatus::SUCCESS);
    let result = CopyResult { chunks: 2, chunk_bytes: 0, total: 50_000 };
    assert_eq!(CopyResult::parse(&output).unwrap(), result);
    let now = direct.get(target, 0, 50_000);
    assert_eq!(now.len(), 40_100);
    assert_eq!(now[..5], [9; 5]);
    assert_eq!(now[5..10_005], data[40_000..]);
    assert_eq!(now[10_005..], data[9_905..40_000]);
}

/// MS-SMB2 3.3.5.15.6.1 and 3.3.5.15.6.2: these failures carry a body.
#[test]
fn a_copy_that_fails_says_how_far_it_came_or_what_the_limits_are() {
    let mut direct = ready();
    let (source, target) = (direct.file("s", &[1; 5000]), direct.file("t", &[]));
    let key = direct.key(source);
    let ask = |direct: &mut Direct, key, lengths: &[u32]| {
        let chunks = lengths
            .iter()
            .map(|length| CopyChunk { source: 0, target: 0, length: *length })
            .collect();
        let input = encoded(|out| CopyChunks { key, chunks }.encode(out));
        let (status, output) = direct.control(FsctlCode::SRV_COPYCHUNK_WRITE, target, &input);
        (status, CopyResult::parse(&output).ok())
    };
    let limits = CopyResult { chunks: 256, chunk_bytes: 1 << 20, total: 16 << 20 };
    let refused = (NtStatus::INVALID_PARAMETER, Some(limits));
    assert_eq!(ask(&mut direct, key, &[(1 << 20) + 1]), refused);
    assert_eq!(ask(&mut direct, key, &[0]), refused);
    assert_eq!(ask(&mut direct, key, &[10; 257]), refused);
    assert_eq!(ask(&mut direct, key, &[1 << 20; 17]), refused);
    let came = CopyResult { chunks: 1, chunk_bytes: 0, total: 4000 };
    let beyond = (NtStatus::INVALID_VIEW_SIZE, Some(came));
    assert_eq!(ask(&mut direct, key, &[4000, 5001]), beyond);
    let mut other = key;
    other[3] ^= 1;
    assert_eq!(ask(&mut direct, other, &[1]), (NtStatus::OBJECT_NAME_NOT_FOUND, None));
    let mut other = key;
    other[20] ^= 1;
    assert_eq!(ask(&mut direct, other, &[1]), (NtStatus::OBJECT_NAME_NOT_FOUND, None));
    let input = encoded(|out| CopyChunks { key, chunks: Vec::new() }.encode(out));
    let small = direct.control_with(FsctlCode::SRV_COPYCHUNK, target, &input, 11);
    assert_eq!(small.0, NtStatus::INVALID_PARAMETER);
    let cut = direct.control(FsctlCode::SRV_COPYCHUNK, target, &input[..30]);
    assert_eq!(CopyResult::parse(&cut.1).unwrap(), limits);
}

#[test]
fn only_sparse_files_show_their_holes() {
    let mut direct = ready();
    let file = direct.file("f", &[1; 300_000]);
    assert_eq!(direct.ranges(file, 10, 1 << 40), [(10, 299_990)]);
    assert_eq!(direct.ranges(file, 300_000, 5), []);
    let zero = [65_536u64.to_le_bytes(), 131_072u64.to_le_bytes()].concat();
    assert_eq!(direct.control(FsctlCode::SET_ZERO_DATA, file, &zero).0, NtStatus::SUCCESS);
    assert_eq!(direct.ranges(file, 0, 300_000), [(0, 300_000)]);
    assert!(direct.get(file, 65_536, 60_000).iter().all(|byte| *byte == 0));
    assert_eq!(direct.control(FsctlCode::SET_SPARSE, file, &[]).0, NtStatus::SUCCESS);
    assert_eq!(direct.control(FsctlCode::SET_ZERO_DATA, file, &zero).0, NtStatus::SUCCESS);
    assert_eq!(direct.ranges(file, 0, 300_000), [(0, 65_536), (131_072, 168_928)]);
    let all = encoded(|out| FileRange { offset: 0, length: 300_000 }.encode(out));
    let (status, output) = direct.control_with(FsctlCode::QUERY_ALLOCATED_RANGES, file, &all, 16);
    assert_eq!((status, output.len()), (NtStatus::BUFFER_OVERFLOW, 16));
    let small = direct.control_with(FsctlCode::QUERY_ALLOCATED_RANGES, file, &all, 15);
    assert_eq!(small.0, NtStatus::BUFFER_TOO_SMALL);
    // Not sparse again: the hole has blocks, the content is as it was.
    assert_eq!(direct.control(FsctlCode::SET_SPARSE, file, &[0]).0, NtStatus::SUCCESS);
    assert_eq!(direct.ranges(file, 0, 300_000), [(0, 300_000)]);
    assert!(direct.get(file, 65_536, 60_000).iter().all(|byte| *byte == 0));
    assert!(direct.get(file, 131_072, 60_000).iter().all(|byte| *byte == 1));
}

#[test]
fn trims_take_whole_pages_of_the_file() {
    let mut direct = ready();
    let file = direct.file("f", &[1; 40_000]);
    let trim = |direct: &mut Direct, ranges: &[(u64, u64)], room| {
        let input = encoded(|out| encode_trim(ranges, out));
        direct.control_with(FsctlCode::FILE_LEVEL_TRIM, file, &input, room)
    };
    let done = |count: u32| (NtStatus::SUCCESS, count.to_le_bytes().to_vec());
    assert_eq!(trim(&mut direct, &[(100, 8192 - 100), (20_000, 10)], 4), done(1));
    let now = direct.get(file, 0, 40_000);
    assert!(now[..4096].iter().all(|byte| *byte == 1));
    assert!(now[4096..8192].iter().all(|byte| *byte == 0));
    assert!(now[8192..].iter().all(|byte| *byte == 1));
    assert_eq!(now.len(), 40_000);
    assert_eq!(trim(&mut direct, &[(0, 4095)], 0).0, NtStatus::NO_RANGES_PROCESSED);
    assert_eq!(trim(&mut direct, &[(0, 4096)], 2).0, NtStatus::INVALID_PARAMETER);
    assert_eq!(trim(&mut direct, &[], 4).0, NtStatus::INVALID_PARAMETER);
    assert_eq!(trim(&mut direct, &[(4096, 4096); 2048], 4), done(2048));
    assert_eq!(trim(&mut direct, &[(4096, 4096); 2049], 4).0, NtStatus::INVALID_PARAMETER);
    let (most, range) = (u64::MAX, (u64::MAX - 1, 1));
    assert_eq!(trim(&mut direct, &[range, (most, most)], 4).0, NtStatus::INTEGER_OVERFLOW);
    assert_eq!(direct.get(file, 0, 40_000), now);
}

#[test]
fn a_token_moves_data_between_files() {
    let mut direct = ready();
    let data: Vec<u8> = (0..10_000u32).map(|n| (n % 241) as u8 + 1).collect();
    let (source, target) = (direct.file("s", &data), direct.file("t", &[200; 30_000]));
    let ask = |direct: &mut Direct, offset, length| {
        let read = OffloadRead { size: 32, time_to_live: 0, offset, length };
        let input = encoded(|out| read.encode(out));
        let (status, output) = direct.control(FsctlCode::OFFLOAD_READ, source, &input);
        (status, OffloadReadAnswer::parse(&output).ok())
    };
    let (status, answer) = ask(&mut direct, 512, 1 << 30);
    assert_eq!(status, NtStatus::SUCCESS);
    let answer = answer.unwrap();
    assert!(answer.zero_beyond && answer.length == 9728, "to the end of the last sector");
    let put = |direct: &mut Direct, offset, length, token_offset, token| {
        let write = OffloadWrite { size: 544, offset, length, token_offset, token };
        let input = encoded(|out| write.encode(out));
        let (status, output) = direct.control(FsctlCode::OFFLOAD_WRITE, target, &input);
        (status, parse_offload_written(&output).ok())
    };
    let written = put(&mut direct, 1024, 1 << 20, 512, answer.token);
    assert_eq!(written, (NtStatus::SUCCESS, Some(9216)));
    let now = direct.get(target, 0, 30_000);
    assert_eq!(now[1024..1024 + 8976], data[1024..]);
    assert_eq!(now[10_000..10_240], [0; 240]);
    assert!(now[..1024].iter().chain(&now[10_240..]).all(|byte| *byte == 200));
    // The well-known token for zeros needs no read; the file does not grow.
    let written = put(&mut direct, 29_696, 4096, 0, Token::zero());
    assert_eq!(written, (NtStatus::SUCCESS, Some(512)));
    let now = direct.get(target, 0, 40_000);
    assert_eq!(now.len(), 30_000);
    assert_eq!(now[29_696..], [0; 304]);
    // What is refused.
    let mut forged = answer.token;
    forged.0[100] ^= 1;
    assert_eq!(put(&mut direct, 0, 512, 0, answer.token).0, NtStatus::SUCCESS);
    forged.0[9] ^= 1;
    assert_eq!(put(&mut direct, 0, 512, 0, forged).0, NtStatus::INVALID_TOKEN);
    assert_eq!(put(&mut direct, 1, 512, 0, answer.token).0, NtStatus::INVALID_PARAMETER);
    assert_eq!(put(&mut direct, 0, 512, 9728, answer.token).0, NtStatus::INVALID_PARAMETER);
    assert_eq!(put(&mut direct, 30_208, 512, 0, answer.token).0, NtStatus::END_OF_FILE);
    assert_eq!(ask(&mut direct, 100, 512).0, NtStatus::INVALID_PARAMETER);
    assert_eq!(ask(&mut direct, 10_240, 512).0, NtStatus::END_OF_FILE);
    let folder = direct.open("d", CreateOptions::DIRECTORY_FILE);
    let read = OffloadRead { size: 32, time_to_live: 0, offset: 0, length: 512 };
    let input = encoded(|out| read.encode(out));
    let refused = NtStatus::OFFLOAD_READ_FILE_NOT_SUPPORTED;
    assert_eq!(direct.control(FsctlCode::OFFLOAD_READ, folder, &input).0, refused);
}

/// MS-FSA 2.1.5.10.20, 2.1.5.10.21: nothing is copied before what it would be copied of is looked at.
#[test]
fn nothing_is_copied_of_whatever_is_open() {
    let mut direct = ready();
    let folder = direct.open("d", CreateOptions::DIRECTORY_FILE);
    let file = direct.file("f", &[1; 100]);
    for id in [file, folder] {
        let read = OffloadRead { size: 32, time_to_live: 0, offset: 1 << 20, length: 0 };
        let input = encoded(|out| read.encode(out));
        let (status, output) = direct.control(FsctlCode::OFFLOAD_READ, id, &input);
        assert_eq!(status, NtStatus::SUCCESS);
        assert_eq!(OffloadReadAnswer::parse(&output).unwrap().length, 0);
        let token = Token::zero();
        let write = OffloadWrite { size: 544, offset: 1 << 20, length: 0, token_offset: 0, token };
        let input = encoded(|out| write.encode(out));
        let (status, output) = direct.control(FsctlCode::OFFLOAD_WRITE, id, &input);
        assert_eq!((status, parse_offload_written(&output)), (NtStatus::SUCCESS, Ok(0)));
    }
    let write =
        OffloadWrite { size: 544, offset: 0, length: 512, token_offset: 0, token: Token::zero() };
    let input = encoded(|out| write.encode(out));
    let refused = NtStatus::OFFLOAD_WRITE_FILE_NOT_SUPPORTED;
    assert_eq!(direct.control(FsctlCode::OFFLOAD_WRITE, folder, &input).0, refused);
}

/// MS-SMB2 3.3.5.15.1, note 383.
#[test]
fn a_file_without_previous_versions_has_a_list_of_none() {
    let mut direct = ready();
    let file = direct.file("f", &[1; 100]);
    for room in [16, 65_536] {
        let (status, output) =
            direct.control_with(FsctlCode::SRV_ENUMERATE_SNAPSHOTS, file, &[], room);
        assert_eq!(status, NtStatus::SUCCESS);
        assert_eq!(output, [0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    }
}

/// On the file system of the tests blocks are shared or, as on ext4, the control is unknown.
#[test]
fn blocks_are_shared_or_the_request_is_refused() {
    let mut direct = ready();
    let (source, target) = (direct.file("s", &[3; 70_000]), direct.file("t", &[4; 40_000]));
    let session = direct.exchange.sessions[&direct.session].clone();
    let shares = session.session.open(direct.tree, source).unwrap().volume().shares_blocks();
    let ask = |direct: &mut Direct, file_id, source, to, length| {
        let ranges = Duplicate { file_id, source, target: to, length, atomic: true };
        let plain = encoded(|out| ranges.encode(out));
        let ex = encoded(|out| ranges.encode_ex(out));
        let first = direct.control(FsctlCode::DUPLICATE_EXTENTS_TO_FILE, target, &plain).0;
        let second = direct.control(FsctlCode::DUPLICATE_EXTENTS_TO_FILE_EX, target, &ex).0;
        assert_eq!(first, second);
        first
    };
    let cut = direct.control(FsctlCode::DUPLICATE_EXTENTS_TO_FILE, target, &[0; 39]).0;
    assert_eq!(cut, NtStatus::INVALID_PARAMETER);
    if !shares {
        assert_eq!(ask(&mut direct, source, 0, 0, 4096), NtStatus::INVALID_DEVICE_REQUEST);
        return;
    }
    // The last block of the source is filled in part; the target does not grow.
    assert_eq!(ask(&mut direct, source, 65_536, 32_768, 8192), NtStatus::SUCCESS);
    let now = direct.get(target, 0, 50_000);
    assert_eq!(now.len(), 40_000);
    assert!(now[..32_768].iter().all(|byte| *byte == 4));
    assert!(now[32_768..37_232].iter().all(|byte| *byte == 3));
    assert!(now[37_232..].iter().all(|byte| *byte == 0));
    assert_eq!(ask(&mut direct, source, 0, 4096, 0), NtStatus::SUCCESS);
    assert_eq!(ask(&mut direct, source, 1, 0, 4096), NtStatus::INVALID_PARAMETER);
    assert_eq!(ask(&mut direct, source, 65_536, 0, 12_288), NtStatus::NOT_SUPPORTED);
    assert_eq!(ask(&mut direct, target, 0, 4096, 8192), NtStatus::NOT_SUPPORTED);
    let nobody = FileId { persistent: 1, volatile: 1 };
    assert_eq!(ask(&mut direct, nobody, 0, 0, 4096), NtStatus::INVALID_HANDLE);
}

/// What no file here has is named as absent, and unknown controls are refused by kind.
#[test]
fn absent_features_are_refused_as_the_specification_says() {
    let mut direct = ready();
    let file = direct.file("f", &[1; 100]);
    let folder = direct.open("d", CreateOptions::DIRECTORY_FILE);
    let absent = NtStatus::INVALID_DEVICE_REQUEST;
    let bad = NtStatus::INVALID_PARAMETER;
    let word = |value: u16| value.to_le_bytes();
    for (code, id, input, want) in [
        (FsctlCode::GET_REPARSE_POINT, file, &[][..], NtStatus::NOT_A_REPARSE_POINT),
        (
            FsctlCode::DELETE_REPARSE_POINT,
            file,
            &[3, 0, 0, 0xa0, 0, 0, 0, 0],
            NtStatus::NOT_A_REPARSE_POINT,
        ),
        (FsctlCode::DELETE_REPARSE_POINT, file, &[0; 8], NtStatus::IO_REPARSE_TAG_INVALID),
        (FsctlCode::DELETE_REPARSE_POINT, file, &[0; 7], NtStatus::IO_REPARSE_DATA_INVALID),
        (FsctlCode::SET_REPARSE_POINT, file, &[0; 3], NtStatus::IO_REPARSE_DATA_INVALID),
        (FsctlCode::SET_REPARSE_POINT, file, &[0; 7], NtStatus::IO_REPARSE_DATA_INVALID),
        (FsctlCode::SET_REPARSE_POINT, file, &[0; 9], NtStatus::IO_REPARSE_DATA_INVALID),
        (FsctlCode::SET_REPARSE_POINT, file, &[0; 16_385], NtStatus::IO_REPARSE_DATA_INVALID),
        (
            FsctlCode::SET_REPARSE_POINT,
            file,
            &[3, 0, 0, 0xa0, 0, 0, 0, 0],
            NtStatus::NOT_A_DIRECTORY,
        ),
        (FsctlCode::QUERY_ON_DISK_VOLUME_INFO, file, &[], absent),
        (FsctlCode::GET_REFS_VOLUME_DATA, file, &[], absent),
        (FsctlCode::QUERY_SHARED_VIRTUAL_DISK_SUPPORT, file, &[], absent),
        (FsctlCode(0x8384_8003), file, &[], absent),
        (FsctlCode(0x0009_fff0), file, &[], NtStatus::NOT_SUPPORTED),
        (FsctlCode::FIND_FILES_BY_SID, folder, &[0; 12], NtStatus::ACCESS_DENIED),
        (FsctlCode::FIND_FILES_BY_SID, file, &[0; 12], bad),
        (FsctlCode::SET_COMPRESSION, file, &word(0), NtStatus::SUCCESS),
        (FsctlCode::SET_COMPRESSION, file, &word(1), absent),
        (FsctlCode::SET_COMPRESSION, file, &word(2), absent),
        (FsctlCode::SET_COMPRESSION, file, &word(9), bad),
        (FsctlCode::SET_COMPRESSION, file, &[0], bad),
        // Before anything of the input is looked at.
        (FsctlCode::GET_INTEGRITY_INFORMATION, file, &[], absent),
        (FsctlCode::GET_INTEGRITY_INFORMATION, folder, &[], absent),
        (FsctlCode::SET_INTEGRITY_INFORMATION, file, &[0xff, 0xff, 0, 0, 0, 0, 0, 0], absent),
        (FsctlCode::SET_INTEGRITY_INFORMATION, folder, &[2, 0, 0, 0, 0, 0, 0, 0], absent),
        (FsctlCode::SET_INTEGRITY_INFORMATION, file, &[3, 0, 0, 0, 9, 0, 0, 0], absent),
        (FsctlCode::SET_INTEGRITY_INFORMATION, file, &[], absent),
        (FsctlCode::SET_INTEGRITY_INFORMATION_EX, file, &[0; 16], absent),
        (FsctlCode::SET_INTEGRITY_INFORMATION_EX, folder, &[], absent),
        (FsctlCode::REFS_STREAM_SNAPSHOT_MANAGEMENT, file, &[0; 16], NtStatus::NOT_SUPPORTED),
        (FsctlCode::SET_SPARSE, folder, &[], bad),
        (FsctlCode::SET_ZERO_DATA, folder, &[0; 16], bad),
        (FsctlCode::SET_ZERO_DATA, file, &[0; 15], bad),
        (FsctlCode::QUERY_ALLOCATED_RANGES, folder, &[0; 16], bad),
        (FsctlCode::QUERY_NETWORK_INTERFACE_INFO, file, &[], bad),
        (FsctlCode::SET_OBJECT_ID, file, &[0; 64], NtStatus::ACCESS_DENIED),
    ] {
        assert_eq!(direct.control(code, id, input).0, want, "{code:?}");
    }
    let (status, output) = direct.control(FsctlCode::GET_COMPRESSION, file, &[]);
    assert_eq!((status, output), (NtStatus::SUCCESS, vec![0, 0]));
    assert_eq!(direct.control_with(FsctlCode::GET_COMPRESSION, file, &[], 1).0, bad);
    let (status, output) = direct.control(FsctlCode::GET_NTFS_VOLUME_DATA, file, &[]);
    assert_eq!((status, output.len()), (NtStatus::SUCCESS, 96));
    let (status, output) = direct.control(FsctlCode::QUERY_FILE_REGIONS, file, &[]);
    assert_eq!((status, output.len()), (NtStatus::SUCCESS, 40));
    assert_eq!(output[16..40], [&[0; 8][..], &[100, 0, 0, 0, 0, 0, 0, 0, 1], &[0; 7]].concat());
}

/// MS-FSA 2.1.5.10.1, .2, .13, .35, .36.
#[test]
fn an_object_id_is_made_kept_changed_and_taken_away() {
    let mut direct = ready();
    let file = direct.file("f", &[1; 100]);
    let folder = direct.open("d", CreateOptions::DIRECTORY_FILE);
    let none = NtStatus::OBJECTID_NOT_FOUND;
    let bad = NtStatus::INVALID_PARAMETER;
    for id in [file, folder] {
        assert_eq!(direct.control(FsctlCode::GET_OBJECT_ID, id, &[]).0, none);
        assert_eq!(direct.control(FsctlCode::SET_OBJECT_ID_EXTENDED, id, &[5; 48]).0, none);
        assert_eq!(direct.control(FsctlCode::DELETE_OBJECT_ID, id, &[]).0, NtStatus::SUCCESS);
        let small = direct.control_with(FsctlCode::CREATE_OR_GET_OBJECT_ID, id, &[], 63);
        assert_eq!(small.0, bad);
        assert_eq!(direct.control(FsctlCode::GET_OBJECT_ID, id, &[]).0, none);
        let (status, made) = direct.control(FsctlCode::CREATE_OR_GET_OBJECT_ID, id, &[]);
        assert_eq!((status, made.len()), (NtStatus::SUCCESS, 64));
        // Born here with it, in no domain.
        assert_eq!((&made[..16], &made[48..]), (&made[32..48], &[0; 16][..]));
        let (_, volume) = direct.file_system(id, 8, 64);
        assert_eq!(made[16..32], volume[..16]);
        for code in [FsctlCode::GET_OBJECT_ID, FsctlCode::CREATE_OR_GET_OBJECT_ID] {
            assert_eq!(direct.control(code, id, &[]), (NtStatus::SUCCESS, made.clone()));
            assert_eq!(direct.control_with(code, id, &[], 63).0, bad);
        }
        for len in [47, 49, 64] {
            let input = vec![5; len];
            assert_eq!(direct.control(FsctlCode::SET_OBJECT_ID_EXTENDED, id, &input).0, bad);
        }
        let set = direct.control(FsctlCode::SET_OBJECT_ID_EXTENDED, id, &[5; 48]).0;
        assert_eq!(set, NtStatus::SUCCESS);
        let (_, now) = direct.control(FsctlCode::GET_OBJECT_ID, id, &[]);
        assert_eq!((&now[..16], &now[16..]), (&made[..16], &[5; 48][..]));
        assert_eq!(direct.control(FsctlCode::SET_OBJECT_ID, id, &[1; 63]).0, bad);
        let denied = direct.control(FsctlCode::SET_OBJECT_ID, id, &[1; 64]).0;
        assert_eq!(denied, NtStatus::ACCESS_DENIED);
        assert_eq!(direct.control(FsctlCode::DELETE_OBJECT_ID, id, &[]).0, NtStatus::SUCCESS);
        assert_eq!(direct.control(FsctlCode::GET_OBJECT_ID, id, &[]).0, none);
    }
    let ids = [file, folder].map(|id| {
        let (status, made) = direct.control(FsctlCode::CREATE_OR_GET_OBJECT_ID, id, &[]);
        assert_eq!(status, NtStatus::SUCCESS);
        made
    });
    assert_ne!(ids[0], ids[1]);
}

/// MS-FSA 2.1.5.10.27: without a journal no change has a number.
#[test]
fn a_file_has_the_record_that_a_journal_would_have_of_it() {
    let mut direct = ready();
    let folder = direct.open("d", CreateOptions::DIRECTORY_FILE);
    let file = direct.file("d\\name", &[1; 100]);
    let number = |direct: &mut Direct, id| {
        let raw = direct.query(id, InfoClass::INTERNAL).unwrap();
        u64::from_le_bytes(*raw.first_chunk().unwrap())
    };
    let (own, above) = (number(&mut direct, file), number(&mut direct, folder));
    let ask = |direct: &mut Direct, input: &[u8], room| {
        direct.control_with(FsctlCode::READ_FILE_USN_DATA, file, input, room)
    };
    let name: Vec<u8> = "name".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let at = |raw: &[u8], at: usize| u64::from_le_bytes(*raw[at..].first_chunk().unwrap());
    for input in [&[][..], &[2, 0, 2, 0], &[0, 0, 2, 0], &[1, 0, 0]] {
        let (status, raw) = ask(&mut direct, input, 72);
        assert_eq!((status, raw.len()), (NtStatus::SUCCESS, 72), "{input:?}");
        assert_eq!(raw[..8], [72, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!((at(&raw, 8), at(&raw, 16)), (own, above));
        assert_eq!(raw[24..52], [0; 28]);
        assert_eq!(raw[52..60], [0x20, 0, 0, 0, 8, 0, 60, 0]);
        assert_eq!((&raw[60..68], &raw[68..]), (&name[..], &[0; 4][..]));
    }
    let (status, raw) = ask(&mut direct, &[2, 0, 9, 0], 88);
    assert_eq!((status, raw.len()), (NtStatus::SUCCESS, 88));
    assert_eq!(raw[..8], [88, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!((at(&raw, 8), at(&raw, 16), at(&raw, 24), at(&raw, 32)), (own, 0, above, 0));
    assert_eq!((&raw[72..76], &raw[76..84]), (&[8, 0, 76, 0][..], &name[..]));
    for input in [[3, 0, 2, 0], [4, 0, 4, 0], [0, 0, 1, 0]] {
        assert_eq!(ask(&mut direct, &input, 100).0, NtStatus::INVALID_PARAMETER, "{input:?}");
    }
    for (input, room) in [(&[][..], 63), (&[], 71), (&[2, 0, 3, 0], 79), (&[2, 0, 3, 0], 87)] {
        assert_eq!(ask(&mut direct, input, room).0, NtStatus::BUFFER_TOO_SMALL, "{room}");
    }
}

/// MS-FSA 2.1.5.10.15, on a file system that tells.
#[test]
fn where_a_file_lies_is_told() {
    let mut direct = ready();
    let file = direct.file("f", &[1; 300_000]);
    let folder = direct.open("d", CreateOptions::DIRECTORY_FILE);
    let code = FsctlCode::GET_RETRIEVAL_POINTERS;
    let from = |start: u64| start.to_le_bytes();
    let bad = NtStatus::INVALID_PARAMETER;
    assert_eq!(direct.control(code, file, &[0; 7]).0, bad);
    assert_eq!(direct.control_with(code, file, &from(0), 31).0, NtStatus::BUFFER_TOO_SMALL);
    assert_eq!(direct.control(code, file, &from(u64::MAX)).0, bad);
    assert_eq!(direct.control(code, folder, &from(0)).0, NtStatus::END_OF_FILE);
    let (status, raw) = direct.control(code, file, &from(0));
    if status == NtStatus::INVALID_DEVICE_REQUEST {
        eprintln!("the file system of temporary files does not tell of extents");
        return;
    }
    assert_eq!(status, NtStatus::SUCCESS);
    let numbers: Vec<u64> =
        raw.as_chunks::<8>().0.iter().map(|raw| u64::from_le_bytes(*raw)).collect();
    let count = numbers[0] as usize;
    assert_eq!((numbers.len(), numbers[1]), (2 + 2 * count, 0));
    let cluster = rustix::fs::statvfs(direct.folder.path()).unwrap().f_frsize;
    assert!(numbers[2 * count] >= 300_000u64.div_ceil(cluster));
    assert!(numbers[3] < u64::MAX, "the file is written");
    let beyond = from(numbers[2 * count]);
    assert_eq!(direct.control(code, file, &beyond).0, NtStatus::END_OF_FILE);
    let empty = direct.file("empty", &[]);
    assert_eq!(direct.control(code, empty, &from(0)).0, NtStatus::END_OF_FILE);
    // A hole between, and room for one run.
    direct.put(file, 16 << 20, &[2; 4096]);
    let (status, raw) = direct.control_with(code, file, &from(0), 32);
    assert_eq!((status, raw.len()), (NtStatus::BUFFER_OVERFLOW, 32));
    let (status, raw) = direct.control(code, file, &from((15 << 20) / cluster));
    assert_eq!(status, NtStatus::SUCCESS);
    assert_eq!((&raw[16..24], &raw[24..32]), (&from((16 << 20) / cluster)[..], &[0xff; 8][..]));
}

/// MS-SMB2 3.3.5.15.9; MS-HVRS demands it of a server.
#[test]
fn an_open_can_be_made_resilient() {
    let mut direct = ready();
    let file = direct.file("f", &[1; 10]);
    let ask = |direct: &mut Direct, millis: u32, len: usize| {
        let input = [millis.to_le_bytes(), [0; 4]].concat();
        direct.control(FsctlCode::LMR_REQUEST_RESILIENCY, file, &input[..len]).0
    };
    let keeps = |direct: &Direct| {
        let session = direct.exchange.sessions[&direct.session].session.clone();
        session.open(direct.tree, file).unwrap().preserve_time()
    };
    assert_eq!(keeps(&direct), None);
    assert_eq!(ask(&mut direct, 300_001, 8), NtStatus::INVALID_PARAMETER);
    assert_eq!(ask(&mut direct, 5000, 7), NtStatus::INVALID_PARAMETER);
    assert_eq!(keeps(&direct), None);
    assert_eq!(ask(&mut direct, 5000, 8), NtStatus::SUCCESS);
    assert_eq!(keeps(&direct), Some(std::time::Duration::from_secs(5)));
    assert_eq!(ask(&mut direct, 0, 8), NtStatus::SUCCESS);
    assert_eq!(keeps(&direct), Some(std::time::Duration::from_secs(120)));
}

/// MS-SMB2 3.3.5.15.2, MS-DFSC 3.2.5.1.
#[test]
fn referrals_are_for_who_has_room_and_of_servers_that_have_namespaces() {
    let mut input = Vec::new();
    Request { level: 4, path: "\\h\\s\\link\\file".into() }.encode(&mut input);
    let ask = |direct: &mut Direct, room| {
        direct.control_with(FsctlCode::DFS_GET_REFERRALS, FileId::RELATED, &input, room)
    };
    let mut plain = ready();
    assert_eq!(ask(&mut plain, 4096).0, NtStatus::FS_DRIVER_REQUIRED);
    let targets: Vec<String> =
        (0..32).map(|number| format!("'\\\\server-{number}\\share'")).collect();
    let more = format!("[[dfs]]\npath='\\s\\link'\ntargets=[{}]\n", targets.join(","));
    let mut direct = Direct::with(&more);
    direct.login();
    let list = |output: &[u8]| dfs::Response::parse(output, "\\h\\s\\link\\file").unwrap().targets;
    let (status, output) = ask(&mut direct, 16_384);
    assert_eq!((status, list(&output).len()), (NtStatus::SUCCESS, 32));
    // Those that have no room are left out, and the best stay.
    let (status, output) = ask(&mut direct, 512);
    assert_eq!(status, NtStatus::SUCCESS);
    let some = list(&output);
    assert!(output.len() <= 512 && (1..32).contains(&some.len()), "{} targets", some.len());
    assert_eq!(some[0], "\\server-0\\share");
    assert_eq!(ask(&mut direct, 60).0, NtStatus::BUFFER_OVERFLOW);
}
