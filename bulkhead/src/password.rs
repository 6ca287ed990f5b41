//! Passwords that a person types.

use std::{
    collections::HashMap,
    io::{self, BufRead, IsTerminal},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, bail};
use smb_client::{CredentialsError, Encryption, Login, SmbUrl};
use zeroize::Zeroizing;

/// Longest password in bytes.
pub const MAX_PASSWORD: u64 = 1024;

/// What the help of every subcommand that uses shares says.
pub const HELP: &str = "\
The password for smb:// comes from BULKHEAD_SMB_PASSWORD, or from the credentials file that \
BULKHEAD_SMB_CREDENTIALS names (lines username=, password= and domain=, mode 600); on a terminal it \
is asked for. With BULKHEAD_SMB_ENCRYPTION=required a server that does not encrypt is refused.
Logical units are named as iscsi://[user@]host[:port]/target/LUN. Their CHAP secret comes from \
BULKHEAD_CHAP_SECRET, with the user of the address or of BULKHEAD_CHAP_USER, or from the file that \
BULKHEAD_CHAP_CREDENTIALS names; BULKHEAD_CHAP_TARGET_USER and BULKHEAD_CHAP_TARGET_SECRET have the \
target prove itself too. BULKHEAD_INITIATOR_NAME is the name of the initiator.";

/// Who logs on at the server of an address: by the environment, else asked for on the terminal,
/// once for each user of a server.
///
/// # Errors
/// Without a name or a password; the text says where they may stand.
pub fn login(url: &SmbUrl) -> anyhow::Result<Login> {
    static ASKED: Mutex<Option<HashMap<String, Login>>> = Mutex::new(None);
    match Login::from_env(url.user.as_deref()) {
        Err(CredentialsError::NoPassword) if io::stdin().is_terminal() => {}
        other => return Ok(other?),
    }
    let user = url.user.as_deref().unwrap_or_default();
    let whose = format!("{user}@{}", url.host);
    let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    let asked = asked.get_or_insert_default();
    if let Some(login) = asked.get(&whose) {
        return Ok(login.clone());
    }
    let login = Login::new(user, &prompt(&format!("Password for {whose}: "))?);
    asked.insert(whose, login.clone());
    Ok(login)
}

/// Whether everything must be encrypted, by the environment.
///
/// # Errors
/// For a value that is neither `required` nor `if-required`.
pub fn encryption() -> anyhow::Result<Encryption> {
    const VARIABLE: &str = "BULKHEAD_SMB_ENCRYPTION";
    match std::env::var(VARIABLE).as_deref() {
        Err(_) | Ok("if-required") => Ok(Encryption::IfRequired),
        Ok("required") => Ok(Encryption::Required),
        Ok(other) => bail!("{VARIABLE} is {other:?}; it can be \"required\" or \"if-required\""),
    }
}

/// The first line of what is read, without its end.
pub fn first_line(input: &mut impl BufRead) -> anyhow::Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(String::new());
    input.read_line(&mut line).context("cannot read the password")?;
    let len = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(len);
    if len as u64 > MAX_PASSWORD {
        bail!("the password is longer than {MAX_PASSWORD} bytes");
    }
    Ok(line)
}

/// Asks on the terminal without showing what is typed.
pub fn prompt(text: &str) -> anyhow::Result<Zeroizing<String>> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = io::stdin();
    let before = tcgetattr(&stdin).context("cannot use the terminal")?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    // Before it is asked: who answers at once is neither shown nor lost.
    tcsetattr(&stdin, OptionalActions::Flush, &silent).context("cannot use the terminal")?;
    eprint!("{text}");
    let line = first_line(&mut stdin.lock());
    tcsetattr(&stdin, OptionalActions::Flush, &before).context("cannot use the terminal")?;
    eprintln!();
    line
}
