//! A control interface at a port of its own, with a certificate and a user for each role.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use http_api::{LogIn, TokenMade, User, Users, client::Client};
use server_api::{Method, Role};
use tempfile::TempDir;
use test_support::{
    port::Port,
    process::{ours, run},
};

/// A command that hangs is a failure.
const LIMIT: Duration = Duration::from_secs(60);
/// The users: each has the name of the role, and `pw-` before it as the password.
pub const ROLES: [Role; 3] = [Role::Viewer, Role::Operator, Role::Administrator];

/// What a daemon's `[api]` names.
#[derive(Debug)]
pub struct Interface {
    /// Where it is to listen.
    pub port: Port,
    folder: TempDir,
}

impl Interface {
    /// Makes the files.
    ///
    /// # Panics
    /// If they cannot be written.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("there is room");
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
        let made = made.expect("a certificate for a name");
        let key = folder.path().join("api-key.pem");
        fs::write(folder.path().join("api.pem"), made.cert.pem()).expect("there is room");
        fs::write(&key, made.signing_key.serialize_pem()).expect("there is room");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("it is ours");
        let mut users = Users::none().expect("no users are a file");
        for role in ROLES {
            let user = User::new(&role.to_string(), role, &format!("pw-{role}"));
            users.put(user.expect("a name and a password"));
        }
        let all = Self { port: Port::reserve(), folder };
        users.save(&all.users()).expect("there is room");
        all
    }

    /// The table for a daemon's file, with more keys.
    pub fn table(&self, keys: &str) -> String {
        let place = self.folder().display();
        format!(
            "[api]\nlisten = [\"{}\"]\ncertificate = \"{place}/api.pem\"\nkey = \"{place}/api-key.pem\"\n\
             users_file = \"{place}/api-users.toml\"\n{keys}\n",
            self.port.address()
        )
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The file of its users.
    pub fn users(&self) -> PathBuf {
        self.folder().join("api-users.toml")
    }

    /// The certificate by which clients know it.
    pub fn ca(&self) -> PathBuf {
        self.folder().join("api.pem")
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.port.number())
    }

    /// Somebody without a token.
    ///
    /// # Panics
    /// If the certificate cannot be read.
    pub fn stranger(&self) -> Client {
        Client::remote(&self.url(), Some(&self.ca()), None).expect("an address and a certificate")
    }

    /// Somebody with a token.
    ///
    /// # Panics
    /// As [`Interface::stranger`].
    pub fn client(&self, token: &str) -> Client {
        let token = Some(token.to_owned().into());
        Client::remote(&self.url(), Some(&self.ca()), token).expect("an address and a certificate")
    }

    /// A token of the user of a role, who logs in.
    ///
    /// # Panics
    /// If they are not let in.
    pub fn token(&self, role: Role) -> String {
        let asked = LogIn { user: role.to_string(), password: format!("pw-{role}"), hours: 1 };
        let made = self.stranger().ask(Method::Post, "/v1/login", Some(&asked));
        let made: TokenMade = made.expect("they are let in");
        assert_eq!(made.role, role);
        made.token
    }

    /// `bulkhead` from afar, with a token in a file.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn afar(&self, token: &str, args: &[&str]) -> Output {
        let file = self.folder().join("token");
        fs::write(&file, format!("{token}\n")).expect("there is room");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it is ours");
        let mut command = Command::new(ours("bulkhead"));
        command.arg("--host").arg(self.url()).arg("--token-file").arg(file);
        run(command.arg("--ca-file").arg(self.ca()).args(args), LIMIT)
    }
}

impl Default for Interface {
    fn default() -> Self {
        Self::new()
    }
}
