//! `bulkhead api`: who may use a server's control interface over HTTP, and what was done by it.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};
use http_api::{
    AuditRecords, LogIn, NewToken, Revoked, TokenList, TokenMade, User, Users, WhoAmI,
    client::Client,
};
use server_api::{Method, Role};

use super::{
    server::{json, table},
    user::read_password,
};
use crate::remote;

/// Arguments of `bulkhead api`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The server's control socket: api.sock in its state folder.
    #[arg(
        long,
        global = true,
        env = "BULKHEAD_API_SOCKET",
        default_value = "/var/lib/bulkhead/api.sock"
    )]
    api_socket: PathBuf,
    /// Print JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the file of users of the interface (api.users_file).
    #[command(subcommand)]
    User(UserCommand),
    /// Show a password and keep the token that is given for it, in a new file of mode 0600.
    Login {
        /// Name of the user.
        #[arg(long)]
        user: String,
        /// Take the password from the first line of this file; `-` is standard input.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// How long the token is to be good, in hours.
        #[arg(long, default_value_t = 12)]
        hours: u32,
        /// Where the token goes.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Who one is there, and what one may do.
    Whoami,
    /// Make, list and revoke tokens.
    #[command(subcommand)]
    Token(TokenCommand),
    /// The last changes, the last first, one line of JSON each.
    Audit {
        /// How many.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(..=1000))]
        limit: u32,
    },
    /// Print the description of all calls (OpenAPI 3.1).
    Describe,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Add a user, or change role and password with --replace.
    Add {
        /// Name of the user.
        name: String,
        /// What they may do.
        #[arg(long)]
        role: RoleName,
        /// The file; made if it is missing.
        #[arg(long)]
        file: PathBuf,
        /// Change a user who is there.
        #[arg(long)]
        replace: bool,
        /// Take the password from the first line of this file; `-` is standard input.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Remove a user: their tokens are good no more once the server has read the file again.
    Remove {
        /// Name of the user.
        name: String,
        /// The file.
        #[arg(long)]
        file: PathBuf,
    },
    /// List users with their roles.
    List {
        /// The file.
        #[arg(long)]
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token for oneself, in a new file of mode 0600.
    Create {
        /// How long it is to be good, in hours.
        #[arg(long)]
        hours: u32,
        /// What it is good for; the default is all that one may do.
        #[arg(long)]
        role: Option<RoleName>,
        /// What it is for.
        #[arg(long, default_value = "")]
        note: String,
        /// Where the token goes.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// List one's tokens; administrators see all.
    List,
    /// Revoke a token.
    Revoke {
        /// Its number.
        id: u64,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleName {
    /// Looks.
    Viewer,
    /// Ends sessions, takes snapshots.
    Operator,
    /// Changes what is served.
    Administrator,
}

impl RoleName {
    fn role(self) -> Role {
        match self {
            Self::Viewer => Role::Viewer,
            Self::Operator => Role::Operator,
            Self::Administrator => Role::Administrator,
        }
    }
}

/// Runs the subcommand that the arguments name.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { api_socket, json: as_json, command } = args;
    let server = || -> anyhow::Result<Client> {
        Ok(remote::server()?.unwrap_or_else(|| Client::local(&api_socket)))
    };
    match command {
        Command::User(command) => user(command, as_json),
        Command::Login { user, password_file, hours, out } => {
            let there = remote::stranger()?.unwrap_or_else(|| Client::local(&api_socket));
            let password = read_password(password_file.as_deref())?.to_string();
            let asked = LogIn { user, password, hours };
            let made: TokenMade = there.ask(Method::Post, "/v1/login", Some(&asked))?;
            keep(&made, &out, as_json)
        }
        Command::Whoami => {
            let me: WhoAmI = server()?.ask(Method::Get, "/v1/whoami", None::<&()>)?;
            if as_json {
                return json(&me);
            }
            say!("{}, {}, from {}", me.user, me.role, me.from);
            Ok(())
        }
        Command::Token(command) => token(command, &server()?, as_json),
        Command::Audit { limit } => {
            let path = format!("/v1/audit?limit={limit}");
            let all: AuditRecords = server()?.ask(Method::Get, &path, None::<&()>)?;
            all.records.iter().try_for_each(json)
        }
        Command::Describe => json(&http_api::document::<server_api::Server>()),
    }
}

/// Puts a token into a new file.
fn keep(made: &TokenMade, out: &Path, as_json: bool) -> anyhow::Result<()> {
    let failed = || format!("cannot write the token to {}", out.display());
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(out);
    writeln!(file.with_context(failed)?, "{}", made.token).with_context(failed)?;
    if as_json {
        let TokenMade { id, role, expires, .. } = made;
        return json(&serde_json::json!({ "id": id, "role": role, "expires": expires }));
    }
    say!("token {} for a {} in {}", made.id, made.role, out.display());
    Ok(())
}

fn user(command: UserCommand, as_json: bool) -> anyhow::Result<()> {
    match command {
        UserCommand::Add { name, role, file, replace, password_file } => {
            let mut users = if file.exists() { Users::load(&file)? } else { Users::none()? };
            if users.role(&name).is_some() && !replace {
                bail!("user {name:?} is there already; --replace changes role and password");
            }
            let password = read_password(password_file.as_deref())?;
            users.put(User::new(&name, role.role(), &password)?);
            Ok(users.save(&file)?)
        }
        UserCommand::Remove { name, file } => {
            let mut users = Users::load(&file)?;
            if users.remove(&name).is_none() {
                bail!("there is no user {name:?} in {}", file.display());
            }
            Ok(users.save(&file)?)
        }
        UserCommand::List { file } => {
            let users = Users::load(&file)?;
            if as_json {
                let all: Vec<_> = users
                    .all()
                    .map(|user| serde_json::json!({ "name": user.name, "role": user.role }))
                    .collect();
                return json(&all);
            }
            table(
                &["USER", "ROLE"],
                users.all().map(|user| [user.name.clone(), user.role.to_string()]),
            );
            Ok(())
        }
    }
}

fn token(command: TokenCommand, server: &Client, as_json: bool) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create { hours, role, note, out } => {
            let asked = NewToken { hours, role: role.map(RoleName::role), note };
            let made: TokenMade = server.ask(Method::Post, "/v1/tokens", Some(&asked))?;
            keep(&made, &out, as_json)
        }
        TokenCommand::List => {
            let list: TokenList = server.ask(Method::Get, "/v1/tokens", None::<&()>)?;
            if as_json {
                return json(&list.tokens);
            }
            let rows = list.tokens.into_iter().map(|token| {
                let (id, expires) = (token.id.to_string(), token.expires.to_string());
                [id, token.user, token.role.to_string(), expires, token.note]
            });
            table(&["TOKEN", "USER", "ROLE", "EXPIRES", "NOTE"], rows);
            Ok(())
        }
        TokenCommand::Revoke { id } => {
            let path = format!("/v1/tokens/{id}");
            let gone: Revoked = server.ask(Method::Delete, &path, None::<&()>)?;
            say!("token {} is good no more", gone.id);
            Ok(())
        }
    }
}
