//! Finding our binaries and foreign ones, and running them under a time limit.

use std::{
    env,
    fs::File,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{Need, skip};

/// Path of one of our binaries, built by `cargo build --workspace` in the profile of the tests.
///
/// # Panics
/// If it is not built; the text says how to build it.
pub fn ours(name: &str) -> PathBuf {
    let exe = env::current_exe().expect("a running program has a path");
    let folder = exe
        .ancestors()
        .find(|folder| folder.join("deps").is_dir())
        .expect("tests and benchmarks run below the target folder");
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing; run: cargo build --workspace", path.display());
    path
}

/// Path of a foreign program, if it is installed.
pub fn installed(name: &str) -> Option<PathBuf> {
    let folders = env::var("PATH").unwrap_or_default();
    let folders = folders.split(':').chain(["/usr/sbin", "/sbin"]);
    folders.map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

/// Path of a foreign program that a check needs; without it the check is skipped.
pub fn foreign(name: &str) -> Option<PathBuf> {
    let found = installed(name);
    if found.is_none() {
        skip(Need::Programs.because(format_args!("{name} is not installed")));
    }
    found
}

/// Waits until something accepts at a loopback port.
pub fn wait_for_port(port: u16) {
    wait_for(SocketAddr::from(([127, 0, 0, 1], port)));
}

/// Waits until something accepts at an address.
pub fn wait_for(address: SocketAddr) {
    let since = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(since.elapsed() < Duration::from_secs(30), "nothing listens on {address}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a command to its end or to `limit`, with what it prints in the files `output` and
/// `errors`; says whether it ended by itself.
///
/// # Panics
/// If the command cannot be started or the files cannot be made.
pub fn run_into(command: &mut Command, output: &Path, errors: &Path, limit: Duration) -> bool {
    let file = File::create(output).expect("the folder is writable");
    let errors = File::create(errors).expect("the folder is writable");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let since = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if since.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Runs a command to its end, or ends it after `limit` and panics.
pub fn run(command: &mut Command, limit: Duration) -> Output {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let id = child.id();
    let (done, ended) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let _ = done.send(child.wait_with_output());
    });
    match ended.recv_timeout(limit) {
        Ok(output) => output.expect("a child can be waited for"),
        Err(_) => {
            let pid = rustix::process::Pid::from_raw(id.cast_signed()).expect("a child has a pid");
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            panic!("{command:?} did not end within {limit:?}");
        }
    }
}

/// A process that is stopped when this is dropped: asked first, then made to.
#[derive(Debug)]
pub struct Stopped(pub Child);

impl Stopped {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        let since = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) {
            if since.elapsed() > Duration::from_secs(5) {
                let _ = self.0.kill();
                let _ = self.0.wait();
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
