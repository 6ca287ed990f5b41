//! smbtorture against our server, with its results counted.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    kdc::{HOST, Kdc, REALM},
    process::{foreign, run, run_into},
    smbd::{PASSWORD, PASSWORD2, Smbd, USER, USER2},
};

/// What a suite came to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Results {
    /// Tests that passed.
    pub passed: Vec<String>,
    /// Tests that failed, or that began and never ended.
    pub failed: Vec<String>,
    /// Tests that did not apply.
    pub skipped: Vec<String>,
    /// The suite ended by itself.
    pub ended: bool,
    /// How long it took.
    pub time: Duration,
    /// Everything that was printed.
    pub output: String,
}

impl Results {
    /// Takes in what some of the tests came to that were tried once more.
    fn add(&mut self, more: Self) {
        self.time += more.time;
        self.passed.extend(more.passed);
        self.skipped.extend(more.skipped);
        if !more.failed.is_empty() {
            self.output.push_str(&more.output);
            self.failed.extend(more.failed);
        }
    }

    /// Takes out the names of the tests left out of which something is so.
    fn left_out(&mut self, what: impl Fn(&str) -> bool) -> Vec<String> {
        let (taken, other) =
            std::mem::take(&mut self.skipped).into_iter().partition(|name| what(name));
        self.skipped = other;
        taken
    }
}

/// A server that suites are run against.
pub trait Served {
    /// Where it listens.
    fn address(&self) -> SocketAddr;
    /// A folder for what a run writes.
    fn scratch(&self) -> &Path;
    /// The folder that is shared as `vms`.
    fn files(&self) -> PathBuf;
    /// Takes a snapshot of the share `vms` and names its time; `None` where there are none.
    fn snapshot(&self) -> Option<String>;
}

impl Served for Smbd {
    fn address(&self) -> SocketAddr {
        Self::address(self)
    }

    fn scratch(&self) -> &Path {
        Self::scratch(self)
    }

    fn files(&self) -> PathBuf {
        Self::files(self)
    }

    fn snapshot(&self) -> Option<String> {
        let taken = self.admin(&["share", "snapshot", "vms"]);
        let time = String::from_utf8_lossy(&taken.stdout).trim().to_owned();
        taken.status.success().then_some(time)
    }
}

/// Runs a suite and expects it to end; `protection` is `sign`, `encrypt` or `off`. `None` if
/// smbtorture is missing.
pub fn suite(server: &Smbd, name: &str, protection: &str, limit: Duration) -> Option<Results> {
    let torture = Torture::installed(server)?;
    let results = torture.attempt(server, name, protection, &[], limit);
    assert!(results.ended, "{name} did not end within {limit:?}:\n{}", results.output);
    Some(results)
}

/// The shares that suites of persistent handles name, of a cluster that fails over and of one that scales
/// out, continuously available and not, as the options of a configuration.
pub fn persistent_shares(files: &Path) -> String {
    let share = |name: &str, more: &str| {
        format!(
            "[[share]]\nname = \"{name}\"\npath = \"{}\"\nusers = [\"{USER}\", \"{USER2}\"]\n{more}\n",
            files.display()
        )
    };
    let kind = |name: &str| match name {
        SCALING_SHARE | "so" => "cluster = \"scale-out\"",
        _ => "cluster = \"failover\"",
    };
    PERSISTENT_SHARES
        .into_iter()
        .map(|(name, available)| {
            share(name, &format!("continuously_available = {available}\n{}", kind(name)))
        })
        .collect()
}

/// The share that suites run on.
const SHARE: &str = "vms";

/// The shares of [`persistent_shares`], and whether they are continuously available.
pub const PERSISTENT_SHARES: [(&str, bool); 5] = [
    (PERSISTENT_SHARE, true),
    ("ca_fo", true),
    ("fo", false),
    (SCALING_SHARE, true),
    ("so", false),
];

/// The share that persistent handles are tried on; its name says what the suite may expect.
const PERSISTENT_SHARE: &str = "ca_fo_max_rwh";
/// The same where several nodes serve it at a time.
const SCALING_SHARE: &str = "ca_so";

/// What has a node of CTDB stopped, by a control of Samba's.
const STOPS_A_NODE: &str = "-failover";

/// Has the client offer AES-GMAC alone.
const GMAC: &str = "--option=client smb3 signing algorithms=aes-128-gmac";

/// Whether a test would bind a connection that AES-GMAC signs to a session of a dialect before 3.1.1.
fn begins_below(name: &str) -> bool {
    ["C30toG", "H2XtoG"].iter().any(|from| name.contains(from))
}

/// What a test that waits for a ticket's end may take.
const LIMIT: Duration = Duration::from_secs(120);

/// smbtorture and where it runs: as it is installed here, or in a folder with a system of its own.
pub struct Torture {
    root: Option<PathBuf>,
    program: PathBuf,
    /// Where it writes, as it sees it, and as we do.
    inside: PathBuf,
    folder: PathBuf,
    share: String,
    _own: Option<TempDir>,
}

impl Torture {
    /// The one that is installed; `None`, with one line, without one.
    pub fn installed(server: &Smbd) -> Option<Self> {
        let program = foreign("smbtorture")?;
        let folder = server.scratch().to_owned();
        let share = SHARE.to_owned();
        Some(Self { root: None, program, inside: folder.clone(), folder, share, _own: None })
    }

    /// Runs on another share than the usual one, but for the suites that choose theirs.
    pub fn on_share(self, share: &str) -> Self {
        Self { share: share.to_owned(), ..self }
    }

    /// The one of the system in the folder `root`, which only root may run.
    pub fn of_system(root: &Path) -> Option<Self> {
        let program = PathBuf::from("/usr/bin/smbtorture");
        if !root.join("usr/bin/smbtorture").is_file() {
            return None;
        }
        let own = tempfile::tempdir_in(root.join("tmp")).ok()?;
        let folder = own.path().to_owned();
        let inside = Path::new("/tmp").join(folder.file_name()?);
        let share = SHARE.to_owned();
        Some(Self { root: Some(root.to_owned()), program, inside, folder, share, _own: Some(own) })
    }

    fn command(&self) -> Command {
        match &self.root {
            None => {
                let mut command = Command::new(&self.program);
                command.current_dir(&self.folder);
                command
            }
            Some(root) => {
                let mut command = Command::new("chroot");
                let enter = "cd \"$1\" && shift && exec \"$@\"";
                command.arg(root).args(["sh", "-c", enter, "sh"]);
                command.args([&self.inside, &self.program]);
                command
            }
        }
    }

    /// All suites that it has, but for those that measure, scan or only end with their client.
    pub fn suites(&self) -> BTreeSet<String> {
        const NOT: [&str; 9] = [
            "aio_delay",
            "bench",
            "change_notify_disabled",
            "hold-oplock",
            "hold-sharemode",
            "maxfid",
            "persistent-open-failover",
            "scan",
            "secleak",
        ];
        let output = self.command().arg("--list").output();
        let text = output.map(|it| it.stdout).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let suite = |line: &str| Some(line.strip_prefix("smb2.")?.split('.').next()?.to_owned());
        let all = text.lines().filter_map(suite).filter(|name| !NOT.contains(&name.as_str()));
        all.map(|name| format!("smb2.{name}")).collect()
    }

    /// Runs a suite that may hang, up to `limit`, with more options.
    pub fn attempt(
        &self,
        server: &dyn Served,
        name: &str,
        protection: &str,
        options: &[String],
        limit: Duration,
    ) -> Results {
        let persistent = name.starts_with("smb2.persistent");
        let share = if persistent { PERSISTENT_SHARE } else { &self.share };
        self.attempt_on(share, server, (name, protection), options, limit)
    }

    /// Tries what a suite of persistent handles left out once more, where it applies: on a share of a
    /// cluster that scales out, and then as what must hold of every server but Windows, which is known
    /// not to. What a run of the whole suite on one share leaves out is not left out of the count so.
    pub fn elsewhere(
        &self,
        server: &dyn Served,
        protection: &str,
        results: &mut Results,
        limit: Duration,
    ) {
        let samba = ["--target=samba3".to_owned()];
        for (share, options) in [(SCALING_SHARE, &[][..]), (PERSISTENT_SHARE, &samba[..])] {
            for name in std::mem::take(&mut results.skipped) {
                if name.ends_with(STOPS_A_NODE) {
                    results.skipped.push(name);
                    continue;
                }
                let how = (name.as_str(), protection);
                let more = self.attempt_on(share, server, how, options, limit);
                results.add(more);
            }
        }
    }

    /// Tries the tests of tickets that end, which a run without Kerberos left out, once more with the
    /// tickets of `kdc`, of which the server has the keys. Needs root: the server's name in the realm is
    /// one in a private table of hosts.
    pub fn with_tickets(
        &self,
        server: &dyn Served,
        kdc: &Kdc,
        protection: &str,
        results: &mut Results,
    ) {
        let timed = results.left_out(|name| name.contains(".expire"));
        let ([config, hosts], inside) =
            (["krb5.conf", "hosts"].map(|it| self.folder.join(it)), &self.inside);
        fs::copy(kdc.configuration(), config).expect("the folder is writable");
        let line = format!("{} {HOST}\n", server.address().ip());
        fs::write(&hosts, line).expect("the folder is writable");
        let table = self.root.as_deref().unwrap_or(Path::new("/")).join("etc/hosts");
        for name in timed {
            let tested = self.command();
            let mut command = Command::new("unshare");
            let enter = "mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"";
            command.args(["-m", "sh", "-c", enter, "sh"]).arg(&hosts).arg(&table);
            command.arg(tested.get_program()).args(tested.get_args());
            command.env("KRB5_CONFIG", inside.join("krb5.conf"));
            if self.root.is_none() {
                command.current_dir(&self.folder);
            }
            command
                .args(["--use-kerberos=required", "-U", &format!("{USER}@{REALM}%{PASSWORD}")])
                .arg(format!("--option=realm={REALM}"));
            let more = self.finish(command, HOST, &self.share, server, (&name, protection), LIMIT);
            results.add(more);
        }
    }

    /// Tries the tests once more that a run left out because AES-GMAC was not agreed on, and that have no
    /// channel bound, on a server that has none.
    pub fn without_channels(&self, server: &dyn Served, protection: &str, results: &mut Results) {
        let one = |name: &str| {
            name.contains(".signing-") || name.contains(".encryption-") || begins_below(name)
        };
        for name in results.left_out(one) {
            let how = (name.as_str(), protection);
            let more = self.attempt_on(&self.share, server, how, &[], LIMIT);
            results.add(more);
        }
    }

    /// Tries the tests that bind a channel, and that a run left out because it began with a connection
    /// on which AES-GMAC was not agreed on, once more with one that offers nothing else. The tests make
    /// connections of their own, each with the algorithm that it is about. Those that begin below 3.1.1
    /// take what the first one offers, so they are tried on a server without channels, which agrees on
    /// AES-GMAC beside others.
    pub fn binding_with_gmac(&self, server: &dyn Served, protection: &str, results: &mut Results) {
        let binds = |name: &str| name.contains(".bind_negative_") && !begins_below(name);
        let gmac = [GMAC.to_owned()];
        for name in results.left_out(binds) {
            let how = (name.as_str(), protection);
            let more = self.attempt_on(&self.share, server, how, &gmac, LIMIT);
            results.add(more);
        }
    }

    fn attempt_on(
        &self,
        share: &str,
        server: &dyn Served,
        how: (&str, &str),
        options: &[String],
        limit: Duration,
    ) -> Results {
        let mut command = self.command();
        command.args(["-U", &format!("DOM\\{USER}%{PASSWORD}")]).args(options);
        let host = server.address().ip().to_string();
        self.finish(command, &host, share, server, how, limit)
    }

    /// Runs `command`, which says who the user is, against a share of a host.
    fn finish(
        &self,
        mut command: Command,
        host: &str,
        share: &str,
        server: &dyn Served,
        (name, protection): (&str, &str),
        limit: Duration,
    ) -> Results {
        command
            .args(["--format=subunit", "--fullname", "-s", "/dev/null"])
            .args(["-p", &server.address().port().to_string()])
            .arg("--option=client min protocol=SMB2_02")
            .arg(format!("--client-protection={protection}"))
            .arg(format!("--option=torture:user2name={USER2}"))
            .arg(format!("--option=torture:user2password={PASSWORD2}"))
            .arg(format!("--option=torture:share={share}"))
            .args(needs(server, name))
            .arg(format!("//{host}/{share}"))
            .arg(name);
        let file = server.scratch().join(format!("{name}.{protection}.out"));
        let since = Instant::now();
        let errors = file.with_extension("err");
        let ended = run_into(&mut command, &file, &errors, limit);
        let time = since.elapsed();
        let text = [file, errors].map(|path| fs::read(path).unwrap_or_default()).concat();
        let output = String::from_utf8_lossy(&text).into_owned();
        Results { ended, time, ..count(name, output) }
    }

    /// The options with which suites cut connections by a packet filter. Only for a network
    /// namespace of its own, where nothing else is cut. `None`, with one line, where there is no
    /// filter.
    pub fn filter(&self) -> Option<Vec<String>> {
        let program = match &self.root {
            None => foreign("iptables")?,
            Some(_) => PathBuf::from("/usr/sbin/iptables"),
        };
        let try_it = ["-L", "-n"];
        let works = match &self.root {
            None => Command::new(&program).args(try_it).output(),
            Some(root) => Command::new("chroot").arg(root).arg(&program).args(try_it).output(),
        };
        if !works.is_ok_and(|output| output.status.success()) {
            test_support::skip("no packet filter can be set here");
            return None;
        }
        // What the client has received is to be acknowledged before its packets are dropped, which
        // systems do a little later; else the server's would not get through either.
        let text = format!("#!/bin/sh\nsleep 0.06\nexec {} \"$@\"\n", program.display());
        let script = self.folder.join("filter");
        fs::write(&script, text).expect("the folder is writable");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it is ours");
        Some(vec![
            "--option=torture:use_iptables=yes".to_owned(),
            format!("--option=torture:iptables_command={}", self.inside.join("filter").display()),
        ])
    }
}

/// What some suites need to be told.
fn needs(server: &dyn Served, suite: &str) -> Vec<String> {
    let file = || {
        let made = fs::write(server.files().join("file"), [7; 100_000]);
        made.expect("the share is writable");
        "--option=torture:filename=file".to_owned()
    };
    match suite {
        "smb2.twrp" => past(server),
        "smb2.set-sparse-ioctl" => vec![file(), "--option=torture:set_sparse=true".to_owned()],
        "smb2.zero-data-ioctl" => vec![
            file(),
            "--option=torture:offset=4096".to_owned(),
            "--option=torture:beyond_final_zero=65536".to_owned(),
        ],
        // It is for somebody who looks on, because it says what it finds.
        "smb2.create" => vec!["--option=torture:interactive=yes".to_owned()],
        // Samba 4.17's client cancels by a MessageId of 0 when it signs with AES-CMAC and has not seen
        // the interim answer, which names no request (MS-SMB2 3.2.4.24); with AES-GMAC it does not.
        cancels if ["smb2.notify", "smb2.compound"].iter().any(|of| cancels.starts_with(of)) => {
            vec![GMAC.to_owned()]
        }
        _ => Vec::new(),
    }
}

/// Puts a file with a stream on the share and takes a snapshot; the options that tell of it. None
/// where the share's file system cannot.
fn past(server: &dyn Served) -> Vec<String> {
    const STREAM: &str = "a stream";
    let local = server.scratch().join("local");
    fs::write(&local, STREAM).expect("the folder is writable");
    let Some(client) = foreign("smbclient") else { return Vec::new() };
    let put = run(
        Command::new(client)
            .args(["-s", "/dev/null", "-p", &server.address().port().to_string()])
            .args(["-U", &format!("{USER}%{PASSWORD}")])
            .arg(format!("//{}/vms", server.address().ip()))
            .args(["-c", &format!("put {0} file; put {0} file:stream", local.display())]),
        Duration::from_secs(60),
    );
    let (files, below) = (server.files(), server.files().join("subdir"));
    let linked = fs::create_dir(&below)
        .and_then(|()| fs::hard_link(files.join("file"), below.join("hardlink")));
    linked.expect("the share is writable");
    let Some(time) = server.snapshot().filter(|_| put.status.success()) else {
        return Vec::new();
    };
    vec![
        format!("--option=torture:twrp_snapshot={time}"),
        "--option=torture:twrp_file=file".to_owned(),
        "--option=torture:twrp_stream=stream".to_owned(),
        format!("--option=torture:twrp_stream_size={}", STREAM.len()),
    ]
}

/// Reads the names of tests and what became of them from what a suite printed.
fn count(suite: &str, output: String) -> Results {
    let mut results = Results::default();
    let mut begun = BTreeSet::new();
    for line in output.lines() {
        let Some((kind, name)) = line.split_once(": ") else { continue };
        // The reason for a failure follows in brackets, on the same line and those after it.
        let name = name.trim_end_matches('[').trim().to_owned();
        let list = match kind {
            "test" => {
                begun.insert(name);
                continue;
            }
            "success" => &mut results.passed,
            "failure" | "error" => &mut results.failed,
            "skip" => &mut results.skipped,
            _ => continue,
        };
        begun.remove(&name);
        list.push(name);
    }
    results.failed.extend(begun);
    if results.passed.len() + results.failed.len() + results.skipped.len() == 0 {
        results.failed.push(suite.to_owned());
    }
    results.output = output;
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_never_ends_has_failed() {
        let text = "time: 2026\ntest: s.a\nsuccess: s.a\ntest: s.b\nskip: s.b [\nnot here\n]\n\
                    test: s.c\nfailure: s.c [\nwhy\n]\ntest: s.d\n";
        let results = count("s", text.to_owned());
        assert_eq!(results.passed, ["s.a"]);
        assert_eq!(results.skipped, ["s.b"]);
        assert_eq!(results.failed, ["s.c", "s.d"]);
        assert_eq!(count("s", "Connection refused".to_owned()).failed, ["s"]);
    }
}
