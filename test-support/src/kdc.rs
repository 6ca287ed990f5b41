//! A private Kerberos realm: MIT's KDC on loopback with its database in a folder of its own.

use std::{
    ffi::OsStr,
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    port::Port,
    process::{Stopped, foreign, run, wait_for_port},
};

/// The realm.
pub const REALM: &str = "TEST.BULKHEAD";
/// What the server is called in it.
pub const HOST: &str = "files.test";
const LIMIT: Duration = Duration::from_secs(60);

/// A running KDC.
#[derive(Debug)]
pub struct Kdc {
    _process: Stopped,
    _port: Port,
    folder: TempDir,
}

impl Kdc {
    /// Starts one whose keys have this encryption type; `None` if it is not installed.
    pub fn start(etype: &str) -> Option<Self> {
        for program in ["krb5kdc", "kdb5_util", "kadmin.local", "kinit"] {
            foreign(program)?;
        }
        let folder = tempfile::Builder::new().prefix("kdc").tempdir().ok()?;
        let (root, reserved) = (folder.path().display(), Port::reserve());
        let port = reserved.number();
        let client = format!(
            "[libdefaults]\ndefault_realm = {REALM}\ndns_lookup_kdc = false\n\
             dns_lookup_realm = false\nrdns = false\ndns_canonicalize_hostname = false\n\
             udp_preference_limit = 1\n\
             permitted_enctypes = aes256-cts-hmac-sha1-96 aes128-cts-hmac-sha1-96 \
             aes128-cts-hmac-sha256-128 aes256-cts-hmac-sha384-192\n\
             default_tkt_enctypes = {etype}\ndefault_tgs_enctypes = {etype}\n\
             [realms]\n{REALM} = {{\nkdc = tcp/127.0.0.1:{port}\nkdc = 127.0.0.1:{port}\n}}\n\
             [domain_realm]\n.test = {REALM}\n"
        );
        let server = format!(
            "[kdcdefaults]\nkdc_listen = 127.0.0.1:{port}\nkdc_tcp_listen = 127.0.0.1:{port}\n\
             [realms]\n{REALM} = {{\ndatabase_name = {root}/principal\n\
             key_stash_file = {root}/stash\nacl_file = {root}/acl\n\
             supported_enctypes = {etype}:normal\n}}\n[logging]\nkdc = FILE:{root}/kdc.log\n"
        );
        fs::write(folder.path().join("krb5.conf"), client).ok()?;
        fs::write(folder.path().join("kdc.conf"), server).ok()?;
        run(
            Self::tool(&folder, "kdb5_util")?.args(["create", "-s", "-P", "m", "-r", REALM]),
            LIMIT,
        );
        let child = Self::tool(&folder, "krb5kdc")?
            .arg("-n")
            .arg("-P")
            .arg(folder.path().join("pid"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the KDC starts");
        let process = Stopped(child);
        wait_for_port(port);
        let kdc = Self { _process: process, _port: reserved, folder };
        kdc.admin(&format!("addprinc -randkey cifs/{HOST}"));
        Some(kdc)
    }

    fn tool(folder: &TempDir, name: &str) -> Option<Command> {
        let mut command = Command::new(foreign(name)?);
        command
            .env("KRB5_CONFIG", folder.path().join("krb5.conf"))
            .env("KRB5_KDC_PROFILE", folder.path().join("kdc.conf"));
        Some(command)
    }

    /// Sets what a client needs to find the realm, and where it keeps its tickets.
    pub fn client(&self, command: &mut Command) {
        command
            .env("KRB5_CONFIG", self.folder.path().join("krb5.conf"))
            .env("KRB5CCNAME", format!("FILE:{}", self.tickets().display()));
    }

    /// The file that tells clients where the realm is.
    pub fn configuration(&self) -> PathBuf {
        self.folder.path().join("krb5.conf")
    }

    /// Where tickets are kept.
    pub fn tickets(&self) -> PathBuf {
        self.folder.path().join("tickets")
    }

    /// Runs a query of kadmin.
    pub fn admin(&self, query: &str) {
        let mut tool = Self::tool(&self.folder, "kadmin.local").expect("it was there a moment ago");
        let output = run(tool.args(["-r", REALM, "-q", query]), LIMIT);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !error.contains("while"), "{query}: {error}");
    }

    /// Writes the server's keys, which are made anew, to a file.
    pub fn keytab(&self, path: &Path) {
        self.admin(&format!("ktadd -k {} cifs/{HOST}", path.display()));
        let owner_only = fs::Permissions::from_mode(0o600);
        fs::set_permissions(path, owner_only).expect("it was just written");
    }

    /// Makes a user and gets a ticket for it.
    pub fn log_in(&self, user: &str) {
        self.log_in_for(user, Duration::from_secs(3600));
    }

    /// The same; it and all tickets that are got with it end after `time`.
    pub fn log_in_for(&self, user: &str, time: Duration) {
        self.admin(&format!("addprinc -pw secret {user}"));
        let mut command = Command::new(foreign("kinit").expect("it was there a moment ago"));
        self.client(&mut command);
        let mut child = command
            .args(["-l", &format!("{}s", time.as_secs())])
            .arg(OsStr::new(user))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("kinit starts");
        let mut input = child.stdin.take().expect("it was piped");
        input.write_all(b"secret\n").expect("kinit reads");
        drop(input);
        assert!(child.wait().expect("it was ours").success(), "no ticket for {user}");
    }
}
