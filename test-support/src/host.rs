//! VM hosts as private processes, a VM with the payload guest, and what can be asked of them.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use host_api::{Client, ClientError, MoveOptions, MoveStatistics, Reply, Request, VmName, VmState};
use kvm_ioctls::Kvm;
use payload_guest::{Expected, Line, Report};
use rustix::process::{Pid, Signal, kill_process};

use crate::{Need, process::ours, skip};

/// Longest time anything here is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// KVM; without it the check is skipped.
pub fn kvm() -> Option<Kvm> {
    Kvm::new()
        .inspect_err(|error| {
            skip(Need::Kvm.because(format_args!("/dev/kvm cannot be used: {error}")))
        })
        .ok()
}

/// Checks a raw image that the payload guest wrote.
///
/// # Panics
/// If an acknowledged write is not there, or anything is that was not written.
pub fn check_image(image: &Path, expected: &Expected) -> Report {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(image).expect("the image is there");
    payload_guest::check(expected, |at, bytes| file.read_exact_at(bytes, at)).expect("a good image")
}

/// A VM host process; killed when dropped.
#[derive(Debug)]
pub struct HostProcess {
    child: Child,
    socket: PathBuf,
    /// Its migration address.
    pub address: String,
    log: Arc<Mutex<String>>,
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.socket.display(), self.log.lock().unwrap());
        }
    }
}

impl HostProcess {
    /// Starts a host whose files are in `dir`, at a fixed migration address if it had one.
    pub fn start(dir: &Path, name: &str, port: u16, faults: &[&str]) -> Self {
        Self::start_with(dir, name, port, faults, 20)
    }

    /// As [`HostProcess::start`], with the time after which a silent peer counts as lost.
    pub fn start_with(dir: &Path, name: &str, port: u16, faults: &[&str], timeout_s: u32) -> Self {
        let more = format!(
            "timeout_s = {timeout_s}\n[storage]\nlocations = [{dir:?}]\n[boot]\nfolders = [{dir:?}]\n"
        );
        Self::start_all(dir, name, port, faults, &more)
    }

    /// As [`HostProcess::start`], with this after the first keys of `[migration]`.
    pub fn start_saying(dir: &Path, name: &str, more: &str) -> Self {
        Self::start_all(dir, name, 0, &[], more)
    }

    fn start_all(dir: &Path, name: &str, port: u16, faults: &[&str], more: &str) -> Self {
        let root = dir.join(name);
        if !root.exists() {
            host_api::pki::init(&dir.join("ca"), name, &root).unwrap();
        }
        let config = root.join("host.toml");
        let text = format!(
            "[host]\nstate_dir = {state:?}\ncontrol_socket = {socket:?}\n[migration]\n\
             listen = '127.0.0.1:{port}'\nca = {ca:?}\ncertificate = {certificate:?}\n\
             key = {key:?}\n{more}",
            state = root.join("state"),
            socket = root.join("control.sock"),
            ca = root.join("ca.pem"),
            certificate = root.join("host.pem"),
            key = root.join("host-key.pem"),
        );
        std::fs::write(&config, text).unwrap();
        Self::launch(&root, name, faults)
    }

    /// Starts a host by the file `host.toml` in `root`, where its socket is to be `control.sock`.
    ///
    /// # Panics
    /// If it does not start, with what it said.
    pub fn launch(root: &Path, name: &str, faults: &[&str]) -> Self {
        let mut command = Command::new(ours("hyperv-host"));
        command.arg("--config").arg(root.join("host.toml")).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env_remove("NOTIFY_SOCKET");
        for fault in faults {
            command.arg("--fault").arg(fault);
        }
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (sink, stderr) = (log.clone(), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = sink.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let address = ready.trim().rsplit_once("migration=").map(|(_, address)| address.to_owned());
        let Some(address) = address else {
            let _ = child.wait();
            panic!("{name} does not start: {}", log.lock().unwrap());
        };
        Self { child, socket: root.join("control.sock"), address, log }
    }

    /// Its migration address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The port of the migration address.
    pub fn port(&self) -> u16 {
        self.address.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// Asks the host.
    pub fn call(&self, request: &Request) -> Result<Reply, ClientError> {
        Client::connect(&self.socket)?.call(request)
    }

    /// The definition of a VM.
    pub fn definition(&self, name: &VmName) -> host_api::VmDefinition {
        match self.call(&Request::Show { name: name.clone() }) {
            Ok(Reply::Show { vm }) => vm.definition,
            other => panic!("{name}: {other:?}"),
        }
    }

    /// State of a VM; `None` if the host has none of that name or is not there.
    pub fn state(&self, name: &VmName) -> Option<VmState> {
        match self.call(&Request::Show { name: name.clone() }) {
            Ok(Reply::Show { vm }) => Some(vm.summary.state),
            _ => None,
        }
    }

    /// Moves a VM to another host.
    pub fn move_to(&self, name: &VmName, to: &Self) -> Result<MoveStatistics, ClientError> {
        let options = MoveOptions { to: to.address.clone(), ..MoveOptions::default() };
        match self.call(&Request::Move { name: name.clone(), options })? {
            Reply::Moved { statistics } => Ok(*statistics),
            other => panic!("{other:?}"),
        }
    }

    /// What the host has logged up to now.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Whether the host logged a line with `text`; gives the log a moment to arrive.
    pub fn said(&self, text: &str) -> bool {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            if self.log.lock().unwrap().contains(text) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// How many lines of the log have `text`.
    pub fn lines_with(&self, text: &str) -> usize {
        self.log.lock().unwrap().lines().filter(|line| line.contains(text)).count()
    }

    /// Its control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Whether the process ends by itself within `limit`.
    pub fn ends(&mut self, limit: Duration) -> bool {
        let since = Instant::now();
        while self.is_alive() {
            if since.elapsed() > limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process is still there.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until the process has died.
    pub fn wait_dead(&mut self) {
        assert!(self.ends(PATIENCE), "it is still alive");
    }

    /// Attaches to a console.
    pub fn console(&self, name: &VmName) -> Option<Console> {
        let mut client = Client::connect(&self.socket).ok()?;
        match client.call(&Request::Console { name: name.clone(), replay: true }) {
            Ok(Reply::ConsoleAttached) => {
                let (first, stream) = client.into_console();
                stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
                Some(Console { text: String::from_utf8_lossy(&first).into_owned(), stream })
            }
            _ => None,
        }
    }

    /// Waits until a VM is in a state.
    pub fn wait_state(&self, name: &VmName, wanted: Option<VmState>) {
        let deadline = Instant::now() + PATIENCE;
        while self.state(name) != wanted {
            assert!(Instant::now() < deadline, "{name} is {:?}, not {wanted:?}", self.state(name));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// An attached console.
#[derive(Debug)]
pub struct Console {
    /// What was read so far.
    pub text: String,
    stream: std::os::unix::net::UnixStream,
}

impl Console {
    /// Reads what comes within half a second; false at the end.
    pub fn read(&mut self) -> bool {
        let mut bytes = [0; 16384];
        match std::io::Read::read(&mut self.stream, &mut bytes) {
            Ok(0) => false,
            Ok(got) => {
                self.text.push_str(&String::from_utf8_lossy(&bytes[..got]));
                true
            }
            Err(error) => matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            ),
        }
    }

    /// Reads until the end, as when the host dies or the VM goes.
    pub fn read_to_end(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.read() {
            assert!(Instant::now() < deadline, "the console goes on:\n{}", self.text);
        }
    }

    /// The last line that starts with `word`; waits for one that is not `after`.
    pub fn next_line(&mut self, word: &str) -> Line {
        let seen = self.text.len();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let start = self.text[..seen].rfind('\n').map_or(0, |at| at + 1);
            if let Some(line) = Line::last(&self.text[start..], word) {
                return line;
            }
            assert!(self.read() && Instant::now() < deadline, "no {word}:\n{}", self.text);
        }
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) {
        std::io::Write::write_all(&mut self.stream, format!("{line}\n").as_bytes()).unwrap();
    }
}

/// A VM with the payload guest on a raw local disk.
#[derive(Debug)]
pub struct Payload {
    /// Name of the VM.
    pub name: VmName,
    /// Its disk.
    pub image: PathBuf,
    /// `blocks=` that the guest will say.
    pub blocks: u64,
    /// `seed=`.
    pub seed: u64,
}

impl Payload {
    /// Writes kernel and disk and creates the VM on a host.
    pub fn create(dir: &Path, host: &HostProcess, memory_mib: u64, more: &str) -> Self {
        let kernel = dir.join("guest.elf");
        std::fs::write(&kernel, payload_guest::GUEST).unwrap();
        let image = dir.join("disk.raw");
        std::fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
        let definition = host_api::VmDefinition::from_toml(&format!(
            "name = 'payload'\nmemory_mib = {memory_mib}\nvcpus = 2\nconsole = 'virtio'\n[boot]\n\
             kernel = {kernel:?}\ncmdline = 'span=16 seed=11 {more}'\n[[disk]]\n\
             location = {image:?}\n"
        ))
        .unwrap();
        let name = definition.name.clone();
        assert_eq!(host.call(&Request::Create { definition }).unwrap(), Reply::Ok);
        Self { name, image, blocks: 4096, seed: 11 }
    }

    /// Verifies every write up to `acked` in the image.
    pub fn verify(&self, acked: u64, submitted: u64) -> Report {
        let expected = Expected { seed: self.seed, blocks: self.blocks, acked, submitted };
        check_image(&self.image, &expected)
    }
}
