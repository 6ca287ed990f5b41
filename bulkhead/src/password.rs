//! Passwords that a person types.

use std::{
    collections::HashMap,
    io::{self, BufRead, IsTerminal},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, bail};
use smb_client::{CredentialsError, Login, SmbUrl};
use zeroize::Zeroizing;

/// Longest password in bytes.
pub const MAX_PASSWORD: u64 = 1024;

/// What the help of every subcommand that uses shares says.
pub const HELP: &str = "\
The password for smb:// comes from BULKHEAD_SMB_PASSWORD, or from the credentials file that \
BULKHEAD_SMB_CREDENTIALS names (lines username=, password= and domain=, mode 600); on a terminal it \
is asked for.";

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
