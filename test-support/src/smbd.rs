//! Our file server as a private process.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    port::Port,
    process::{Stopped, ours, run, wait_for},
};

/// The user that every share admits.
pub const USER: &str = "admin";
/// Its password.
pub const PASSWORD: &str = "pw-of-admin";
/// A second user.
pub const USER2: &str = "second";
/// Its password.
pub const PASSWORD2: &str = "pw-of-second";

/// A running smbd with the shares `vms` (open to both users), `sealed` (encryption required) and
/// `ro` (read-only), all over one folder, and `noperm` over one that nobody may enter.
#[derive(Debug)]
pub struct Smbd {
    process: Option<Stopped>,
    address: SocketAddr,
    /// Its port on loopback, unless it listens elsewhere.
    port: Option<Port>,
    folder: TempDir,
    arguments: Vec<String>,
    program: PathBuf,
    /// The network namespace that it runs in.
    namespace: Option<String>,
}

impl Smbd {
    /// Starts one; `server` and `rest` are put into the `[server]` table and behind it.
    pub fn start(server: &str, rest: &str) -> Self {
        Self::start_in(&std::env::temp_dir(), server, rest)
    }

    /// Starts one whose folders are made in `base`.
    pub fn start_in(base: &Path, server: &str, rest: &str) -> Self {
        let mut server = Self::prepare_here(base, server, rest);
        server.spawn();
        server
    }

    /// Starts one that listens on `address`.
    pub fn start_at(address: SocketAddr, server: &str, rest: &str) -> Self {
        Self::start_at_in(address, &std::env::temp_dir(), server, rest)
    }

    /// The same with its folders in `base`.
    pub fn start_at_in(address: SocketAddr, base: &Path, server: &str, rest: &str) -> Self {
        let mut server = Self::prepare(address, base, server, rest);
        server.spawn();
        server
    }

    /// Starts one below a supervisor, with more arguments for it.
    pub fn supervised(arguments: &[&str], server: &str, rest: &str) -> Self {
        let mut server = Self::prepare_here(&std::env::temp_dir(), server, rest);
        server.arguments = ["--supervise"].iter().chain(arguments).map(|a| a.to_string()).collect();
        server.spawn();
        server
    }

    /// Starts one below a supervisor from a copy of the program, which is put at `program`.
    pub fn supervised_copy(program: &Path, server: &str, rest: &str) -> Self {
        fs::copy(ours("smbd"), program).expect("there is room for a program");
        let mut server = Self::prepare_here(&std::env::temp_dir(), server, rest);
        server.arguments = vec!["--supervise".to_owned()];
        server.program = program.to_owned();
        server.spawn();
        server
    }

    /// Starts one from another program, as one that was built before a change.
    pub fn start_program(program: &Path, server: &str, rest: &str) -> Self {
        let mut server = Self::prepare_here(&std::env::temp_dir(), server, rest);
        server.program = program.to_owned();
        server.spawn();
        server
    }

    /// One at a port of its own on loopback, to be started.
    fn prepare_here(base: &Path, server: &str, rest: &str) -> Self {
        let port = Port::reserve();
        let mut server = Self::prepare(port.address(), base, server, rest);
        server.port = Some(port);
        server
    }

    fn prepare(address: SocketAddr, base: &Path, server: &str, rest: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("bulkhead").tempdir_in(base);
        let folder = folder.expect("a folder");
        for name in ["files", "noperm"] {
            fs::create_dir(folder.path().join(name)).expect("a new folder takes another");
        }
        fs::set_permissions(folder.path().join("noperm"), fs::Permissions::from_mode(0o0))
            .expect("it is ours");
        let config = format!(
            "[server]\nlisten = [\"{address}\"]\nstate_dir = \"{state}\"\n{server}\n\
             [[user]]\nname = \"{USER}\"\npassword = \"{PASSWORD}\"\n\
             [[user]]\nname = \"{USER2}\"\npassword = \"{PASSWORD2}\"\n\
             [[share]]\nname = \"vms\"\npath = \"files\"\nusers = [\"{USER}\", \"{USER2}\"]\n\
             [[share]]\nname = \"sealed\"\npath = \"files\"\nusers = [\"{USER}\"]\n\
             encryption = \"required\"\n\
             [[share]]\nname = \"noperm\"\npath = \"noperm\"\nusers = [\"{USER}\"]\n\
             [[share]]\nname = \"ro\"\npath = \"files\"\nusers = [\"{USER}\"]\nread_only = true\n\
             [[share]]\nname = \"hideunread\"\npath = \"files\"\nusers = [\"{USER}\", \"{USER2}\"]\n\
             access_based_enumeration = true\n\
             {rest}\n",
            state = folder.path().join("state").display(),
        );
        fs::write(folder.path().join("smbd.toml"), config).expect("the folder is writable");
        let (arguments, program) = (Vec::new(), ours("smbd"));
        Self { process: None, address, port: None, folder, arguments, program, namespace: None }
    }

    /// Starts one at all addresses of a network namespace, where it is reached at `address`; needs
    /// root and `ip`.
    pub fn start_within(namespace: &str, address: SocketAddr, server: &str, rest: &str) -> Self {
        let every = SocketAddr::from(([0, 0, 0, 0], address.port()));
        let mut server = Self::prepare(every, &std::env::temp_dir(), server, rest);
        (server.address, server.namespace) = (address, Some(namespace.to_owned()));
        server.spawn();
        server
    }

    /// Starts one that becomes `user`, whose number is `uid`, below `base`; needs root.
    pub fn start_as(user: &str, uid: u32, base: &Path) -> Self {
        let mut server = Self::prepare_here(base, &format!("user = \"{user}\""), "");
        for name in ["", "files", "noperm", "smbd.toml"] {
            let path = server.folder.path().join(name);
            std::os::unix::fs::chown(path, Some(uid), Some(uid)).expect("we are root");
        }
        server.spawn();
        server
    }

    fn spawn(&mut self) {
        self.launch();
        wait_for(self.address);
        // The last thing that is there before clients are served.
        let (socket, since) = (self.folder.path().join("state/admin.sock"), Instant::now());
        while UnixStream::connect(&socket).is_err() {
            let running = self.process.as_mut().is_some_and(|p| matches!(p.0.try_wait(), Ok(None)));
            assert!(running && since.elapsed() < Duration::from_secs(30), "smbd does not start");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn launch(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .expect("the folder is writable");
        let mut command = match &self.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        let child = command
            .arg("--config")
            .arg(self.config())
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("smbd starts");
        self.process = Some(Stopped(child));
    }

    /// Leaves in the target folder how long a connection kept a thread, for `make test` to show. A
    /// server that does not answer at once has nothing to say.
    fn note_longest_turn(&self) {
        let Some(turn) = self.longest_turn() else { return };
        let name = thread::current().name().unwrap_or("?").to_owned();
        let binary = std::env::args().next().unwrap_or_default();
        let binary = Path::new(&binary).file_stem().unwrap_or_default().to_string_lossy();
        let folder = ours("smbd").with_file_name("longest-turns");
        let noted = fs::create_dir_all(&folder).and_then(|()| {
            let file = folder.join(format!("{}-{}", std::process::id(), self.port()));
            fs::write(file, format!("{turn} {binary} {name}\n"))
        });
        noted.expect("the target folder is writable");
    }

    /// Longest time that a connection kept a thread, in microseconds.
    pub fn longest_turn(&self) -> Option<u64> {
        let socket = self.folder.path().join("state/admin.sock");
        let mut stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream.write_all(b"{\"op\":\"status\"}\n").ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        let event: serde_json::Value = serde_json::from_str(&line).ok()?;
        event["reply"]["status"]["longest_turn_us"].as_u64()
    }

    /// Kills it without warning and starts it again at the same port.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.spawn();
    }

    /// The same, but nothing waits until it serves; the moment when it was started again.
    pub fn kill_and_launch(&mut self) -> Instant {
        self.kill();
        let since = Instant::now();
        self.launch();
        since
    }

    fn kill(&mut self) {
        self.note_longest_turn();
        if let Some(mut process) = self.process.take() {
            process.0.kill().expect("it runs");
            process.0.wait().expect("it was ours");
        }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, Stopped::pid)
    }

    /// The process that serves: the supervisor's child, if there is one.
    pub fn serving_pid(&self) -> Option<u32> {
        let output = self.admin(&["server", "--json", "status"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        u32::try_from(status["pid"].as_u64()?).ok()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// Runs `bulkhead` against its admin socket.
    pub fn admin(&self, args: &[&str]) -> Output {
        let socket = self.folder.path().join("state/admin.sock");
        let mut command = Command::new(ours("bulkhead"));
        run(command.args(args).env("BULKHEAD_SERVER_SOCKET", socket), Duration::from_secs(60))
    }

    /// The shared folder.
    pub fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("smbd.toml")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// A folder for what the test needs beside the share.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Waits until its log has a line with this text.
    pub fn wait_for_log(&self, text: &str) {
        let since = Instant::now();
        while !fs::read_to_string(self.log()).is_ok_and(|log| log.contains(text)) {
            assert!(since.elapsed() < Duration::from_secs(60), "nothing is said of {text:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        self.process.as_mut().is_some_and(|p| matches!(p.0.try_wait(), Ok(None)))
    }
}

impl Smbd {
    /// Stops it and returns the lines of its log that say that something is wrong.
    pub fn stop(&mut self) -> Vec<String> {
        self.note_longest_turn();
        self.process = None;
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let bad = |l: &&str| [" ERROR ", " WARN ", "panicked"].iter().any(|w| l.contains(w));
        log.lines().filter(bad).map(str::to_owned).collect()
    }
}

impl Drop for Smbd {
    /// Stops it; a warning or error in its log fails the test that caused it.
    fn drop(&mut self) {
        if self.process.is_none() {
            return;
        }
        let bad = self.stop();
        if thread::panicking() {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            eprintln!("--- smbd's log\n{log}");
            return;
        }
        assert!(bad.is_empty(), "smbd complained:\n{}", bad.join("\n"));
    }
}
