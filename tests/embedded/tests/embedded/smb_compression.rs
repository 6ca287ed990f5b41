//! Compressed reads and writes between our client and our server, and what Wireshark makes of them.

use std::{path::Path, process::Command as Program, sync::Arc};

use smb_client::{
    Client, Compress, ConnectOptions, Create, Encryption, Login, OpenOptions, Signing,
    raw::RawConnection,
};
use smb_protocol::{NtStatus, compression::CompressionAlgorithm, header::PROTOCOL_COMPRESSED};
use smbd::{Running, Server, config::Config};
use test_support::{
    process::foreign,
    proxy::{Proxy, Recorded, Way},
};

const PASSWORD: &str = "ge heim-42";

/// A server with three shares: of data that are not compressed, may be, and are.
struct Host {
    _directory: tempfile::TempDir,
    _running: Running,
    proxy: Proxy,
}

impl Host {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let d = directory.path().display();
        let mut text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nstate_dir = \"{d}/state\"\nsigning = \"enabled\"\n\
             encryption = \"offered\"\n[[user]]\nname = \"admin\"\npassword = \"{PASSWORD}\"\n"
        );
        for kind in ["off", "on", "force"] {
            std::fs::create_dir(directory.path().join(kind)).unwrap();
            text += &format!(
                "[[share]]\nname = \"{kind}\"\npath = \"{d}/{kind}\"\nusers = [\"admin\"]\n\
                 compression = \"{kind}\"\n"
            );
        }
        let config = Config::parse(&text, Path::new("smbd.toml")).unwrap();
        let running = smbd::start(Arc::new(Server::new(config).unwrap())).unwrap();
        let proxy = Proxy::start(running.addresses()[0]);
        proxy.record();
        Self { _directory: directory, _running: running, proxy }
    }

    fn options(&self) -> ConnectOptions {
        ConnectOptions {
            signing: Signing::IfRequired,
            compress: Compress::Always,
            ..ConnectOptions::new("127.0.0.1", self.proxy.port(), Login::new("admin", PASSWORD))
        }
    }

    /// Bytes that went each way since this was asked last, and whether any of them were compressed
    /// and in the clear.
    fn went(&self) -> ((usize, bool), (usize, bool)) {
        let frames = self.proxy.recorded();
        let of = |which: Way| {
            let frames = frames.iter().filter(|(_, way, _)| *way == which);
            frames.fold((0, false), |(sum, packed), (_, _, frame)| {
                (sum + frame.len(), packed || frame[4..].starts_with(&PROTOCOL_COMPRESSED))
            })
        };
        (of(Way::Request), of(Way::Answer))
    }
}

/// A disk as disks are: a part is empty, a part is text, a part is packed already.
fn disk() -> Vec<u8> {
    let text = (0..60_000usize).flat_map(|n| format!("{n} squared is {}\n", n * n).into_bytes());
    let mut disk = vec![0; 1 << 20];
    disk.extend(text.take(1 << 20));
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    disk.extend((0..1 << 19).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    }));
    disk.resize(3 << 20, 0);
    disk
}

async fn write_and_read(
    host: &Host,
    share: &str,
    options: ConnectOptions,
) -> ((usize, bool), (usize, bool)) {
    let session = Client::connect(options).await.unwrap();
    let tree = session.tree(share).await.unwrap();
    let file = tree.open("disk", OpenOptions::create(Create::OpenOrNew)).await.unwrap();
    let disk = disk();
    host.went();
    file.write(0, &disk).await.unwrap();
    file.sync().await.unwrap();
    let mut back = vec![0xee; disk.len()];
    assert_eq!(file.read(0, &mut back).await.unwrap(), disk.len());
    assert!(back == disk, "other data came back");
    let went = host.went();
    drop((file, tree, session));
    went
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_algorithm_in_both_forms_plain_signed_and_sealed() {
    let host = Host::start();
    for by in CompressionAlgorithm::ALL.into_iter().filter(|by| by.is_general()) {
        for chained in [false, true] {
            for (signing, encryption) in [
                (Signing::IfRequired, Encryption::IfRequired),
                (Signing::Required, Encryption::IfRequired),
                (Signing::IfRequired, Encryption::Required),
            ] {
                let what = format!("{by:?} {chained} {signing:?} {encryption:?}");
                let options = ConnectOptions {
                    signing,
                    encryption,
                    compression: vec![by, CompressionAlgorithm::PATTERN_V1],
                    chained_compression: chained,
                    ..host.options()
                };
                let (requests, answers) = write_and_read(&host, "on", options).await;
                let clear = encryption != Encryption::Required;
                assert_eq!((requests.1, answers.1), (clear, clear), "{what}");
                // Of 3 MiB, 512 KiB are random, and 1 MiB is text.
                assert!(
                    requests.0 < 2 << 20 && answers.0 < 2 << 20,
                    "{what} {requests:?} {answers:?}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_and_share_both_have_a_say() {
    let host = Host::start();
    for (share, compress, writes, reads) in [
        ("off", Compress::Always, true, false),
        ("off", Compress::IfAsked, false, false),
        ("on", Compress::Never, false, false),
        ("on", Compress::IfAsked, false, false),
        ("on", Compress::Always, true, true),
        ("force", Compress::Never, false, false),
        ("force", Compress::IfAsked, true, true),
    ] {
        let options = ConnectOptions { compress, ..host.options() };
        let (requests, answers) = write_and_read(&host, share, options).await;
        assert_eq!((requests.1, answers.1), (writes, reads), "{share} {compress:?}");
    }
}

/// The raw client of load generators does the same.
#[test]
fn the_raw_client_reads_and_writes_compressed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let host = runtime.block_on(async { Host::start() });
    let data = &disk()[1 << 20..][..1 << 20];
    for by in CompressionAlgorithm::ALL.into_iter().filter(|by| by.is_general()) {
        let options = ConnectOptions { compression: vec![by], ..host.options() };
        let mut connection = RawConnection::connect(&options, "on", "raw", true).unwrap();
        assert_eq!(connection.compression().unwrap().algorithm(), by);
        let answered = |connection: &mut RawConnection| {
            connection.send().unwrap();
            let mut answer = None;
            while answer.is_none() {
                let show = |it: smb_client::raw::Answer<'_>| {
                    answer = Some((it.status, it.data.to_vec()));
                };
                connection.receive(show).unwrap();
            }
            answer.unwrap()
        };
        connection.queue_write(0, data);
        assert_eq!(answered(&mut connection).0, NtStatus::SUCCESS);
        host.went();
        connection.queue_read(0, 1 << 20);
        let (status, back) = answered(&mut connection);
        assert_eq!(status, NtStatus::SUCCESS);
        assert!(back == data, "{by:?}");
        assert!(host.went().1.1, "{by:?}");
    }
}

/// A capture of what was recorded, as tcpdump writes one.
fn capture(frames: &[Recorded]) -> Vec<u8> {
    // Most bytes of a segment.
    const SEGMENT: usize = 32 << 10;
    let word = |value: u32| value.to_le_bytes();
    // Format 2.4, packets of any length, raw IPv4.
    let mut out =
        [word(0xa1b2_c3d4), [2, 0, 4, 0], word(0), word(0), word(1 << 18), word(101)].concat();
    let mut sent = [1u32, 1];
    for (_, way, frame) in frames {
        let (from, to) = if *way == Way::Request { (0, 1) } else { (1, 0) };
        let ports = [40_000u16, 445];
        for segment in frame.chunks(SEGMENT) {
            let len = 40 + segment.len();
            out.extend([word(0), word(0), word(len as u32), word(len as u32)].concat());
            let addresses = [[192, 0, 2, 1], [192, 0, 2, 2]];
            out.extend([0x45, 0]);
            out.extend((len as u16).to_be_bytes());
            out.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
            out.extend([addresses[from], addresses[to]].concat());
            out.extend([ports[from].to_be_bytes(), ports[to].to_be_bytes()].concat());
            out.extend([sent[from].to_be_bytes(), sent[to].to_be_bytes()].concat());
            out.extend([0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
            out.extend(segment);
            sent[from] += segment.len() as u32;
        }
    }
    out
}

/// Wireshark's dissector decompresses LZNT1, LZ77 and LZ77+Huffman (of no more than 64 KiB), in both
/// forms: it finds each message that was sent, and the data in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wireshark_decompresses_what_both_ends_send() {
    let Some(tshark) = foreign("tshark") else { return };
    const PIECE: usize = 48 << 10;
    let host = Host::start();
    let disk = disk();
    // Zeros at both ends of text, and text before what is packed already.
    let pieces = [1 << 20, (2 << 20) - 40_000, (1 << 20) - 4096, (2 << 20) - 30_000];
    for by in [
        CompressionAlgorithm::LZNT1,
        CompressionAlgorithm::LZ77,
        CompressionAlgorithm::LZ77_HUFFMAN,
    ] {
        for chained in [false, true] {
            host.proxy.recorded();
            let options = ConnectOptions {
                compression: vec![by, CompressionAlgorithm::PATTERN_V1],
                chained_compression: chained,
                ..host.options()
            };
            let session = Client::connect(options).await.unwrap();
            let tree = session.tree("on").await.unwrap();
            let file = tree.open("disk", OpenOptions::create(Create::OpenOrNew)).await.unwrap();
            let mut sent = Vec::new();
            for at in pieces {
                let piece = &disk[at..at + PIECE];
                file.write(at as u64, piece).await.unwrap();
                let mut back = vec![0; PIECE];
                file.read(at as u64, &mut back).await.unwrap();
                assert!(back == piece);
                sent.extend([piece, piece]);
            }
            drop((file, tree, session));
            let frames = host.proxy.recorded();
            let packed = |frame: &&Recorded| frame.2[4..].starts_with(&PROTOCOL_COMPRESSED);
            let what = format!("{by:?} {chained}");
            assert_eq!(frames.iter().filter(packed).count(), sent.len(), "{what}");
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("capture.pcap");
            std::fs::write(&path, capture(&frames)).unwrap();
            let only = "smb2.cmd == 8 || smb2.cmd == 9";
            let mut program = Program::new(&tshark);
            program.args(["-n", "-Y", only, "-T", "fields", "-e", "data.data", "-r"]);
            let output = program.arg(&path).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8(output.stdout).unwrap();
            let found: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
            assert_eq!(found.len(), sent.len(), "{what}: messages with data");
            for (found, sent) in found.into_iter().zip(sent) {
                let hex: String = sent.iter().map(|byte| format!("{byte:02x}")).collect();
                assert!(found == hex, "{what}: other data");
            }
        }
    }
}
