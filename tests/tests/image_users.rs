//! One writer for an image on every path: clients of a share, `bulkhead disk` and QEMU's programs on the
//! server's own path, in both directions and over the death of the server. Needs qemu-img, qemu-io and
//! qemu-nbd, and fails without them.

use std::{
    io::Read,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use block_io::File;
use bulkhead_tests::{
    process::{Stopped, ours, run},
    smbd::{PASSWORD, Smbd, USER},
};
use rustix::process::Signal;
use smb_client::{Client, ConnectOptions, Login, OpenOptions, RemoteFile, Share, Tree};
use smb_protocol::NtStatus;

const SHARE: &str = "[[share]]\nname = \"ca\"\npath = \"files\"\nusers = [\"admin\"]\n\
                     continuously_available = true";
const LIMIT: Duration = Duration::from_secs(120);

fn program(name: &str, args: &[&str]) -> Output {
    run(Command::new(name).args(args), LIMIT)
}

fn bulkhead(args: &[&str]) -> Output {
    program(ours("bulkhead").to_str().unwrap(), args)
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A server with a VHDX on its shares, and where that is on the server.
fn server() -> (Smbd, PathBuf) {
    let server = Smbd::start("encryption = \"offered\"", SHARE);
    let image = server.files().join("a.vhdx");
    let made = bulkhead(&["disk", "create", image.to_str().unwrap(), "--size", "64M"]);
    assert!(made.status.success(), "{}", told(&made));
    (server, image)
}

async fn tree(server: &Smbd, share: &str) -> Tree {
    let login = Login::new(USER, PASSWORD);
    let options = ConnectOptions::new("127.0.0.1", server.port(), login);
    Client::connect(options).await.unwrap().tree(share).await.unwrap()
}

/// How a client opens a file to read it as it is.
fn still() -> OpenOptions {
    OpenOptions { share: Share::Read, ..OpenOptions::read() }
}

/// What QEMU's programs do that writes an image.
fn qemu_writes(image: &Path) -> Vec<(&'static str, Vec<String>)> {
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let path = image.to_str().unwrap();
    let socket = image.with_extension("refused");
    vec![
        ("qemu-io", words(&["-f", "vhdx", "-c", "write 0 64k", path])),
        ("qemu-io", words(&["-f", "raw", "-c", "write 0 512", path])),
        ("qemu-img", words(&["resize", "-f", "raw", path, "128M"])),
        ("qemu-nbd", words(&["-f", "vhdx", "-k", socket.to_str().unwrap(), path])),
    ]
}

fn qemu_reads(image: &Path) -> Vec<(&'static str, Vec<String>)> {
    let copy = image.with_extension("copy");
    let words = ["convert", "-f", "vhdx", "-O", "raw"].map(str::to_owned);
    let paths = [image, &copy].map(|path| path.display().to_string());
    vec![("qemu-img", [words.as_slice(), &paths].concat())]
}

fn expect_qemu(lines: Vec<(&'static str, Vec<String>)>, done: bool) {
    for (name, words) in lines {
        let output = program(name, &words.iter().map(String::as_str).collect::<Vec<_>>());
        let error = told(&output);
        assert_eq!(output.status.success(), done, "{name} {words:?}: {error}");
        assert!(done || error.contains("another process using the image"), "{name}: {error}");
    }
}

/// Every subcommand that needs the image for itself, or as it is, is refused by the server's name.
fn refused_here(image: &Path, lists: &[&[&[&str]]]) {
    let before = std::fs::read(image).unwrap();
    let copy = image.with_file_name("copy.vhdx").display().to_string();
    // All at once: each is patient for a while.
    std::thread::scope(|scope| {
        for words in lists.iter().copied().flatten() {
            let words = words.iter().map(|word| match *word {
                "FILE" => image.to_str().unwrap(),
                "COPY" => &copy,
                word => word,
            });
            let words: Vec<_> = words.collect();
            scope.spawn(move || {
                let output = bulkhead(&words);
                let error = told(&output);
                assert!(!output.status.success(), "{words:?} went through");
                assert!(error.contains("in use by ") && error.contains("smbd (pid "), "{error}");
                assert!(error.contains("bulkhead share snapshot"), "no way out is told: {error}");
            });
        }
    });
    assert!(std::fs::read(image).unwrap() == before, "it was changed");
}

const WRITES: &[&[&str]] = &[
    &["disk", "compact", "FILE"],
    &["disk", "resize", "FILE", "128M"],
    &["disk", "trim", "FILE"],
    &["disk", "check", "FILE", "--repair"],
];
const READS: &[&[&str]] = &[
    &["disk", "snapshot", "FILE"],
    &["disk", "convert", "FILE", "COPY"],
    &["disk", "clone", "FILE", "COPY"],
    &["disk", "create", "COPY", "--parent", "FILE"],
    &["disk", "check", "FILE"],
];

/// A program of QEMU's that has the image, once it has.
fn qemu_nbd(image: &Path) -> Stopped {
    let socket = image.with_extension("nbd");
    let mut command = Command::new("qemu-nbd");
    command.args(["-t", "-f", "vhdx", "-k"]).arg(&socket).arg(image);
    let child = Stopped(command.spawn().expect("qemu-nbd is installed"));
    let since = Instant::now();
    // It makes its socket before it opens the image, and greets afterwards.
    let greets = || UnixStream::connect(&socket)?.read_exact(&mut [0; 8]);
    while greets().is_err() {
        assert!(since.elapsed() < LIMIT, "qemu-nbd does not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn assert_busy(outcome: smb_client::Result<RemoteFile>, what: &str) {
    let status = outcome.map(|_| ()).unwrap_err().nt_status();
    assert_eq!(status, Some(NtStatus::SHARING_VIOLATION), "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_a_client_uses_is_left_alone_on_the_servers_own_path() {
    let (server, image) = server();
    for share in ["vms", "ca"] {
        let tree = tree(&server, share).await;
        // A writer is alone.
        let file = tree.open("a.vhdx", OpenOptions::write()).await.unwrap();
        expect_qemu(qemu_writes(&image), false);
        expect_qemu(qemu_reads(&image), false);
        refused_here(&image, &[WRITES, READS]);
        assert!(bulkhead(&["disk", "info", image.to_str().unwrap()]).status.success());
        File::close(&file).await.unwrap();
        // A reader that lets nobody write: others may read.
        let file = tree.open("a.vhdx", still()).await.unwrap();
        expect_qemu(qemu_writes(&image), false);
        expect_qemu(qemu_reads(&image), true);
        refused_here(&image, &[WRITES]);
        File::close(&file).await.unwrap();
        // One that lets others write, and then nobody: nothing is held.
        let file = tree.open("a.vhdx", OpenOptions::read()).await.unwrap();
        let write = ["-f", "vhdx", "-c", "write 0 64k", image.to_str().unwrap()];
        let written = program("qemu-io", &write);
        assert!(written.status.success(), "{}", told(&written));
        File::close(&file).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_qemu_writes_is_refused_to_clients() {
    let (server, image) = server();
    let tree = tree(&server, "vms").await;
    let before = std::fs::read(&image).unwrap();
    let holder = qemu_nbd(&image);
    assert_busy(tree.open("a.vhdx", OpenOptions::write()).await, "writing");
    assert_busy(tree.open("a.vhdx", still()).await, "reading it as it is");
    let emptied = OpenOptions::create(smb_client::Create::Replace);
    assert_busy(tree.open("a.vhdx", emptied).await, "emptying");
    assert!(std::fs::read(&image).unwrap().len() == before.len(), "it was cut");
    let looks = tree.open("a.vhdx", OpenOptions::read()).await.unwrap();
    File::close(&looks).await.unwrap();
    drop(holder);
    let file = tree.open("a.vhdx", OpenOptions::write()).await.unwrap();
    File::close(&file).await.unwrap();
}

/// A client that was promised its open back finds it, and nobody was there meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_persistent_open_has_its_image_again_before_anyone_is_served() {
    let (mut server, image) = server();
    let tree = tree(&server, "ca").await;
    let file = tree.open("a.vhdx", OpenOptions::write()).await.unwrap();
    assert!(file.is_durable());
    for _ in 0..3 {
        // Ready for clients is ready for these, too.
        server.kill_and_restart();
        expect_qemu(qemu_writes(&image), false);
        refused_here(&image, &[&WRITES[..1], &READS[..1]]);
    }
    let mut bytes = [0; 8];
    assert_eq!(file.read_at(0, &mut bytes).await.unwrap(), 8);
    assert_eq!(&bytes, b"vhdxfile");
    File::close(&file).await.unwrap();
    expect_qemu(qemu_writes(&image).drain(..1).collect(), true);
}

/// Who took the image while the server was dead keeps it: the client is told that its open is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_taken_while_the_server_was_dead_is_not_taken_back() {
    let (mut server, image) = server();
    let tree = tree(&server, "ca").await;
    let file = tree.open("a.vhdx", OpenOptions::write()).await.unwrap();
    server.signal(Signal::KILL);
    let since = Instant::now();
    while server.alive() {
        assert!(since.elapsed() < LIMIT, "it does not die");
        std::thread::sleep(Duration::from_millis(5));
    }
    let holder = qemu_nbd(&image);
    server.kill_and_restart();
    server.wait_for_log("an open is lost to another program");
    let late = file.write_at(0, b"late").await;
    assert!(late.is_err(), "two writers");
    assert_eq!(&std::fs::read(&image).unwrap()[..8], b"vhdxfile");
    drop(holder);
    let bad = server.stop();
    assert!(bad.iter().all(|line| line.contains("lost to another program")), "{bad:?}");
}

/// The rule on the tool's way to a share is the server's: its arbiter refuses, whoever comes second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subcommands_on_a_share_keep_the_same_rule() {
    let (server, _) = server();
    let tree = tree(&server, "vms").await;
    let url = format!("smb://{USER}@127.0.0.1:{}/vms/a.vhdx", server.port());
    let subcommand = |args: &[&str]| {
        let args = args.iter().map(|word| if *word == "URL" { url.as_str() } else { word });
        let mut command = Command::new(ours("bulkhead"));
        run(command.args(args).env("BULKHEAD_SMB_PASSWORD", PASSWORD), LIMIT)
    };
    let copy = server.scratch().join("o.raw").display().to_string();
    let convert = ["disk", "convert", "URL", copy.as_str(), "--force"];
    let resize = ["disk", "resize", "URL", "128M"];
    let file = tree.open("a.vhdx", OpenOptions::write()).await.unwrap();
    for words in [convert.as_slice(), &resize, &["disk", "snapshot", "URL"]] {
        let output = subcommand(words);
        assert!(!output.status.success(), "{words:?} beside a writer");
        assert!(told(&output).contains("SHARING_VIOLATION"), "{}", told(&output));
    }
    File::close(&file).await.unwrap();
    let file = tree.open("a.vhdx", still()).await.unwrap();
    assert!(subcommand(&convert).status.success());
    assert!(!subcommand(&resize).status.success());
    File::close(&file).await.unwrap();
    assert!(subcommand(&resize).status.success());
}
