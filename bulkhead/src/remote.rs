//! A file server or VM host elsewhere, which commands ask in the place of the one on this machine.

use std::{path::PathBuf, sync::OnceLock};

use anyhow::{Context, bail};
use http_api::client::{self, Client};

/// Where the server is, and what it is shown.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "A server elsewhere")]
pub struct Remote {
    /// Ask the file server or VM host there (`https://host[:port]`) instead of the one on this machine.
    #[arg(long, global = true, value_name = "URL")]
    host: Option<String>,
    /// File with the token that it is shown (mode 0600), as `bulkhead api login` writes it.
    #[arg(long, global = true, value_name = "FILE", env = "BULKHEAD_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// File with the authority of its certificate (PEM), or the certificate itself. Without it those are
    /// trusted that the system trusts.
    #[arg(long, global = true, value_name = "FILE", env = "BULKHEAD_CA_FILE")]
    ca_file: Option<PathBuf>,
}

/// The run's: the command line is read once.
static REMOTE: OnceLock<Remote> = OnceLock::new();

/// Takes what the command line says.
///
/// # Errors
/// If it names a server, and the command is for none.
pub fn choose(remote: Remote, asks_a_server: bool) -> anyhow::Result<()> {
    if remote.host.is_some() && !asks_a_server {
        bail!(
            "--host is for commands that ask a server: server, share, target, lun, witness, vm, \
             why, api, apply, export"
        );
    }
    // The command line is read once.
    let _ = REMOTE.set(remote);
    Ok(())
}

/// Whether the command line names a server.
pub fn is_named() -> bool {
    REMOTE.get().is_some_and(|remote| remote.host.is_some())
}

fn named(with_token: bool) -> anyhow::Result<Option<Client>> {
    let Some(Remote { host: Some(host), token_file, ca_file }) = REMOTE.get() else {
        return Ok(None);
    };
    let token = match token_file {
        Some(path) if with_token => Some(client::token_of(path).context("cannot use the token")?),
        None if with_token => bail!("--host needs --token-file: bulkhead api login writes one"),
        _ => None,
    };
    Ok(Some(Client::remote(host, ca_file.as_deref(), token)?))
}

/// The server that the command line names, if it does.
///
/// # Errors
/// If its address, the token or the authority cannot be used.
pub fn server() -> anyhow::Result<Option<Client>> {
    named(true)
}

/// The same, for who has no token yet.
///
/// # Errors
/// As for [`server`].
pub fn stranger() -> anyhow::Result<Option<Client>> {
    named(false)
}
