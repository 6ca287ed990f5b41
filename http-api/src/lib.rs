//! The control interface of a daemon over HTTP/1.1 and JSON, below `/v1`.
//!
//! ```text
//!  curl, bulkhead --host ── TLS ──► serve ─► door (who is it?) ─► router ─┬─► Backend: requests of an Interface
//!  api.sock (root, the server's user) ─► serve ─────────────────────────► │
//!                                                                         ├─► own calls: log in, tokens, audit,
//!                                                                         │   events, openapi.json, metrics
//!                                                                         └─► Pages: files for a browser
//! ```
//!
//! - Who may do what is a role in the table of calls; nothing is done before the caller is known, and
//!   no body is read before.
//! - `users`, `tokens` and `patience` (delays after failures) have no socket and are given the time.
//! - `audit` has every change with what was before and after it, whichever way it was asked for.
//! - There are no cookies, so a page elsewhere has nothing to borrow. A call that a browser sends from a
//!   page is carried out for the pages that are served here alone (`browser`).
//!
//! The server around it is behind the trait [`Backend`], what it may be asked behind
//! [`Interface`].

mod audit;
mod browser;
pub mod client;
mod config;
mod door;
mod events;
mod files;
mod openapi;
mod own;
mod pages;
mod patience;
mod respond;
mod router;
mod serve;
mod tokens;
mod users;

use std::{future::Future, pin::Pin};

use control_socket::{Interface, Role};

pub use audit::{Audit, Change, Outcome, Room};
pub use config::{ApiConfig, ApiTable, ConfigError, schema as config_schema};
pub use files::replace_private;
pub use openapi::document;
pub use own::{
    AuditRecords, LogIn, NewToken, OWN, OwnCall, OwnRow, Revoked, TokenInfo, TokenList, TokenMade,
    WhoAmI,
};
pub use pages::Pages;
pub use serve::{Api, Counts, bind};
pub use users::{User, Users, UsersError};

/// Name of the local socket in the server's state folder.
pub const SOCKET: &str = "api.sock";

/// Who asks, and what they may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Their name: a user of the interface, or `uid:` with the number of a user of this machine.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Where they ask from: an address, or which socket of this machine.
    pub from: String,
    /// The token that they showed.
    pub token: Option<u64>,
}

impl Caller {
    /// A user of this machine who may use a socket that is the server's own.
    pub fn local(uid: u32, socket: &str) -> Self {
        let (name, from) = (format!("uid:{uid}"), socket.to_owned());
        Self { name, role: Role::Administrator, from, token: None }
    }
}

/// A request to a server.
pub type RequestOf<B> = <<B as Backend>::Interface as Interface>::Request;

/// An answer of a server.
pub type ReplyOf<B> = <<B as Backend>::Interface as Interface>::Reply;

/// The server that the interface controls.
pub trait Backend: Send + Sync + 'static {
    /// What it may be asked.
    type Interface: Interface;

    /// Carries out a request of somebody whose role allows it, and writes changes down ([`Audit`]). Is
    /// called on a thread that may wait.
    ///
    /// # Errors
    /// Why not, in a line for a person.
    fn carry_out(&self, caller: &Caller, request: RequestOf<Self>)
    -> Result<ReplyOf<Self>, String>;

    /// The page of metrics.
    fn metrics(&self) -> Pin<Box<dyn Future<Output = String> + Send + '_>>;
}
