//! Tokens of offloaded transfers between shares and LUNs of one smbd: what a token of the one stands
//! for is written to the other, for the user whom the target names and for nobody else.

use std::{fs, os::unix::fs::FileExt, path::Path};

use bulkhead_tests::{
    initiator::{Answer, Client, Moves, Who},
    iscsi::{Served, good, lun, thin},
    raw::ask,
    smbd::{PASSWORD, PASSWORD2, USER, USER2},
};
use smb_client::{ConnectOptions, Login, raw::RawConnection};
use smb_protocol::{
    Command, FileId, NtStatus,
    fscc::{
        FsctlCode,
        offload::{OffloadRead, OffloadReadAnswer, OffloadWrite, Token, parse_offload_written},
    },
    msg::{
        create::{self, Access, CreateOptions, Disposition, ShareAccess},
        ioctl, write,
    },
};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 512;
/// The list identifier of all commands.
const LIST: u32 = 7;
/// Token operations that a target refuses (SPC-4 annex D): unknown, corrupt, of another type, revoked.
const INVALID_TOKEN: (u8, u8) = (5, 0x23);

fn pattern(seed: u8, blocks: usize) -> Vec<u8> {
    (0..blocks * BLOCK).map(|n| (n / 7 % 251) as u8 ^ seed).collect()
}

/// A connection with one file of a share open.
struct File {
    raw: RawConnection,
    file_id: FileId,
}

impl File {
    fn open(served: &Served, (user, password): (&str, &str), share: &str, name: &str) -> Self {
        let login = Login::new(user, password);
        let options = ConnectOptions::new("127.0.0.1", served.server.port(), login);
        // It logs in by a runtime of its own.
        let connect = || RawConnection::connect_share(&options, share).unwrap();
        let mut raw = tokio::task::block_in_place(connect);
        let request = create::Request {
            impersonation: 2,
            access: Access::READ_DATA | Access::WRITE_DATA | Access::READ_ATTRIBUTES,
            share: ShareAccess(7),
            disposition: Disposition::OPEN_IF,
            options: CreateOptions::NON_DIRECTORY_FILE,
            name: name.into(),
            ..Default::default()
        };
        let (status, body) = ask(&mut raw, Command::CREATE, |out| request.encode(out));
        assert_eq!(status, NtStatus::SUCCESS);
        Self { file_id: create::Response::parse(&body).unwrap().file_id, raw }
    }

    /// Writes from the beginning on, in pieces of one credit.
    fn write(&mut self, data: &[u8]) {
        for (data, n) in data.chunks(1 << 16).zip(0..) {
            let (file_id, offset) = (self.file_id, n << 16);
            let length = u32::try_from(data.len()).unwrap();
            let request = write::Request { file_id, offset, length, data, ..Default::default() };
            let (status, _) = ask(&mut self.raw, Command::WRITE, |out| request.encode(out));
            assert_eq!(status, NtStatus::SUCCESS);
        }
    }

    fn control(&mut self, code: FsctlCode, input: &[u8], max_output: u32) -> (NtStatus, Vec<u8>) {
        let (file_id, flags) = (self.file_id, ioctl::IS_FSCTL);
        let request =
            ioctl::Request { code, file_id, input, max_output, flags, ..Default::default() };
        let (status, body) = ask(&mut self.raw, Command::IOCTL, |out| request.encode(out));
        let output = ioctl::Response::parse(&body).map(|it| it.output.to_vec());
        (status, output.unwrap_or_default())
    }

    /// A token for the first `length` bytes.
    fn token(&mut self, length: u64) -> Token {
        let wanted = OffloadRead { size: OffloadRead::LEN, time_to_live: 0, offset: 0, length };
        let mut input = Vec::new();
        wanted.encode(&mut input);
        let (status, output) =
            self.control(FsctlCode::OFFLOAD_READ, &input, OffloadReadAnswer::LEN);
        assert_eq!(status, NtStatus::SUCCESS);
        let answer = OffloadReadAnswer::parse(&output).unwrap();
        assert_eq!(answer.length, length);
        answer.token
    }

    /// Writes `length` bytes of a token's data from `token_offset` on at `offset`; how many went.
    fn redeem(
        &mut self,
        token: Token,
        (offset, length): (u64, u64),
        token_offset: u64,
    ) -> Result<u64, NtStatus> {
        let size = OffloadWrite::LEN;
        let mut input = Vec::new();
        OffloadWrite { size, offset, length, token_offset, token }.encode(&mut input);
        match self.control(FsctlCode::OFFLOAD_WRITE, &input, 16) {
            (NtStatus::SUCCESS, output) => Ok(parse_offload_written(&output).unwrap()),
            (status, _) => Err(status),
        }
    }
}

async fn log_in(served: &Served) -> Client {
    let (client, response) = Client::log_in(served.port.address(), Who::default()).await;
    assert_eq!(response.status, 0, "the login is refused");
    client
}

/// A CDB of third-party copies (SPC-4 6.4, 6.18): operation, service action, and how much goes.
fn third_party(code: u8, action: u8, length: usize) -> Vec<u8> {
    let length = u32::try_from(length).unwrap();
    let mut cdb = vec![code, action, 0, 0, 0, 0];
    if code == 0x84 {
        cdb.truncate(2);
    }
    cdb.extend(LIST.to_be_bytes());
    cdb.resize(10, 0);
    cdb.extend(length.to_be_bytes());
    cdb.resize(16, 0);
    cdb
}

fn ranges(list: &[(u64, u32)]) -> Vec<u8> {
    let mut out = u16::try_from(16 * list.len()).unwrap().to_be_bytes().to_vec();
    for (lba, blocks) in list {
        out.extend(lba.to_be_bytes());
        out.extend(blocks.to_be_bytes());
        out.extend([0; 4]);
    }
    out
}

/// POPULATE TOKEN and RECEIVE ROD TOKEN INFORMATION (SBC-3 5.7, 5.24).
async fn populate(client: &mut Client, unit: u8, list: &[(u64, u32)]) -> Token {
    let mut parameters = vec![0; 14];
    parameters.extend(ranges(list));
    let length = u16::try_from(parameters.len() - 2).unwrap();
    parameters[..2].copy_from_slice(&length.to_be_bytes());
    let cdb = third_party(0x83, 0x10, parameters.len());
    good(&client.scsi_quiet(unit, &cdb, Moves::Out(&parameters)).await);
    let answer = client.scsi(unit, &third_party(0x84, 7, 1024), Moves::In(1024)).await;
    good(&answer);
    let behind = 32 + usize::from(answer.data[13]) + 6;
    Token(answer.data[behind..behind + Token::LEN].try_into().unwrap())
}

/// WRITE USING TOKEN (SBC-3 5.56), from the block `skip` of the token's data on.
async fn redeem(
    client: &mut Client,
    unit: u8,
    token: Token,
    skip: u64,
    list: &[(u64, u32)],
) -> Answer {
    let mut parameters = vec![0; 8];
    parameters.extend(skip.to_be_bytes());
    parameters.extend(token.0);
    parameters.extend([0; 6]);
    parameters.extend(ranges(list));
    let length = u16::try_from(parameters.len() - 2).unwrap();
    parameters[..2].copy_from_slice(&length.to_be_bytes());
    let cdb = third_party(0x83, 0x11, parameters.len());
    client.scsi_quiet(unit, &cdb, Moves::Out(&parameters)).await
}

fn held(image: &Path, block: usize, blocks: usize) -> Vec<u8> {
    let mut bytes = vec![0; blocks * BLOCK];
    fs::File::open(image).unwrap().read_exact_at(&mut bytes, (block * BLOCK) as u64).unwrap();
    bytes
}

fn write_image(image: &Path, data: &[u8]) {
    fs::File::options().write(true).open(image).unwrap().write_all_at(data, 0).unwrap();
}

fn target(keys: &str, luns: &[&Path]) -> String {
    let luns = luns.iter().zip(0..).map(|(path, number)| lun(number, path, ""));
    format!("authentication = \"none\"\n{keys}\n{}", luns.collect::<String>())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_a_lun_is_written_to_a_file_for_the_user_whom_the_target_names() {
    let folder = tempfile::tempdir().unwrap();
    let image = thin(folder.path(), "a.raw", 16 * MIB);
    let data = pattern(1, 6000);
    write_image(&image, &data);
    let served = Served::start(&target(&format!("offload_user = \"{USER}\""), &[&image]));
    let mut client = log_in(&served).await;
    let token = populate(&mut client, 0, &[(4000, 2000), (0, 1000)]).await;
    let stands = [&data[4000 * BLOCK..], &data[..1000 * BLOCK]].concat();

    let mut file = File::open(&served, (USER, PASSWORD), "vms", "copy.bin");
    file.write(&vec![9; 3010 * BLOCK]);
    let all = (3000 * BLOCK) as u64;
    assert_eq!(file.redeem(token, (0, all), 0), Ok(all));
    let copied = fs::read(served.server.files().join("copy.bin")).unwrap();
    assert!(copied[..3000 * BLOCK] == stands[..], "both ranges, one behind the other");
    assert!(copied[3000 * BLOCK..].iter().all(|byte| *byte == 9), "and nothing behind");
    // A part of it, from the middle, and no more than there is.
    let (skip, to) = ((2500 * BLOCK) as u64, (10 * BLOCK) as u64);
    assert_eq!(file.redeem(token, (to, MIB), skip), Ok((500 * BLOCK) as u64));
    let copied = fs::read(served.server.files().join("copy.bin")).unwrap();
    assert!(copied[10 * BLOCK..510 * BLOCK] == stands[2500 * BLOCK..]);

    let mut other = File::open(&served, (USER2, PASSWORD2), "vms", "other.bin");
    other.write(&[9; BLOCK]);
    let one = (0, BLOCK as u64);
    assert_eq!(other.redeem(token, one, 0), Err(NtStatus::INVALID_TOKEN), "another user");
    let mut forged = token;
    forged.0[130] ^= 1;
    assert_eq!(file.redeem(forged, one, 0), Err(NtStatus::INVALID_TOKEN));
    // A reservation that keeps others from reading keeps files from it, too.
    good(&client.scsi(0, &[0x16, 0, 0, 0, 0, 0], Moves::Nothing).await);
    assert_eq!(file.redeem(token, one, 0), Err(NtStatus::ACCESS_DENIED));
    good(&client.scsi(0, &[0x17, 0, 0, 0, 0, 0], Moves::Nothing).await);
    assert_eq!(file.redeem(token, one, 0), Ok(BLOCK as u64));
    // Who changes the data voids the token.
    let write10 = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    good(&client.scsi(0, &write10, Moves::Out(&[0; BLOCK])).await);
    assert_eq!(file.redeem(token, one, 0), Err(NtStatus::INVALID_TOKEN));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_a_file_is_written_to_a_lun_whose_target_names_its_user() {
    let folder = tempfile::tempdir().unwrap();
    let image = thin(folder.path(), "a.raw", 16 * MIB);
    let served = Served::start(&target(&format!("offload_user = \"{USER}\""), &[&image]));
    let mut client = log_in(&served).await;
    let mut file = File::open(&served, (USER, PASSWORD), "vms", "source.bin");
    let data = pattern(2, 3000);
    file.write(&data);
    let token = file.token(data.len() as u64);
    good(&redeem(&mut client, 0, token, 0, &[(100, 2000), (10_000, 1000)]).await);
    assert!(held(&image, 100, 2000) == data[..2000 * BLOCK]);
    assert!(held(&image, 10_000, 1000) == data[2000 * BLOCK..]);
    assert!(held(&image, 2100, 1).iter().all(|byte| *byte == 0), "nothing behind");
    // From the middle, with more room than there are data: what there is, and the count says so.
    good(&redeem(&mut client, 0, token, 2990, &[(20_000, 50)]).await);
    assert!(held(&image, 20_000, 10) == data[2990 * BLOCK..]);
    assert!(held(&image, 20_010, 40).iter().all(|byte| *byte == 0));
    let answer = client.scsi(0, &third_party(0x84, 7, 1024), Moves::In(1024)).await;
    assert_eq!(answer.data[16..24], 10u64.to_be_bytes(), "TRANSFER COUNT");

    let refused = |answer: &Answer| answer.sense_code().map(|(key, code, _)| (key, code));
    let mut forged = token;
    forged.0[12] ^= 1;
    let answer = redeem(&mut client, 0, forged, 0, &[(0, 1)]).await;
    assert_eq!(refused(&answer), Some(INVALID_TOKEN));
    let mut other = File::open(&served, (USER2, PASSWORD2), "vms", "other.bin");
    other.write(&data);
    let theirs = other.token(data.len() as u64);
    let answer = redeem(&mut client, 0, theirs, 0, &[(0, 1)]).await;
    assert_eq!(refused(&answer), Some(INVALID_TOKEN), "a token of another user");
    // iSCSI does not encrypt, and data of this share leave encrypted only.
    let mut sealed = File::open(&served, (USER, PASSWORD), "sealed", "source.bin");
    let sealed = sealed.token(data.len() as u64);
    let answer = redeem(&mut client, 0, sealed, 0, &[(0, 1)]).await;
    assert_eq!(refused(&answer), Some(INVALID_TOKEN), "a token of a share that must be encrypted");
}

/// Whoever demands it, the share or the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_passes_from_a_server_that_encrypts_all() {
    let folder = tempfile::tempdir().unwrap();
    let image = thin(folder.path(), "a.raw", 16 * MIB);
    let named = target(&format!("offload_user = \"{USER}\""), &[&image]);
    let served = Served::start_with("encryption = \"required\"", &named);
    let mut client = log_in(&served).await;
    let mut file = File::open(&served, (USER, PASSWORD), "vms", "secret.bin");
    let data = pattern(6, 8);
    file.write(&data);
    let token = file.token(data.len() as u64);
    let answer = redeem(&mut client, 0, token, 0, &[(0, 8)]).await;
    let refused = answer.sense_code().map(|(key, code, _)| (key, code));
    assert_eq!(refused, Some(INVALID_TOKEN));
    assert!(held(&image, 0, 8).iter().all(|byte| *byte == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_passes_where_the_target_names_nobody_and_a_reload_changes_that() {
    let folder = tempfile::tempdir().unwrap();
    let image = thin(folder.path(), "a.raw", 16 * MIB);
    let data = pattern(3, 8);
    write_image(&image, &data);
    let served = Served::start(&target("", &[&image]));
    let mut client = log_in(&served).await;
    let mut file = File::open(&served, (USER, PASSWORD), "vms", "file.bin");
    file.write(&pattern(4, 8));
    let (of_file, of_lun) = (file.token(4096), populate(&mut client, 0, &[(0, 8)]).await);
    let answer = redeem(&mut client, 0, of_file, 0, &[(100, 8)]).await;
    assert_eq!(answer.sense_code().map(|(key, code, _)| (key, code)), Some(INVALID_TOKEN));
    let whole = (0, 4096);
    assert_eq!(file.redeem(of_lun, whole, 0), Err(NtStatus::INVALID_TOKEN));
    served.reload(&target(&format!("offload_user = \"{USER}\""), &[&image])).unwrap();
    good(&redeem(&mut client, 0, of_file, 0, &[(100, 8)]).await);
    assert!(held(&image, 100, 8) == pattern(4, 8));
    assert_eq!(file.redeem(of_lun, whole, 0), Ok(4096));
    assert!(fs::read(served.server.files().join("file.bin")).unwrap() == data);
    served.reload(&target("", &[&image])).unwrap();
    assert_eq!(file.redeem(of_lun, whole, 0), Err(NtStatus::INVALID_TOKEN));
}
