//! Who is who: names and security identifiers of the server, its users and the well-known groups.
//!
//! ```text
//!  S-1-5-21-a-b-c        the server itself, a, b, c from its identity
//!  S-1-5-21-a-b-c-rid    a user, rid from the folded name
//! ```

use std::sync::Arc;

use smb_protocol::{ntlm::users, security::Sid};

use crate::{Server, server::Current};

/// What a name stands for (`SID_NAME_USE`, MS-LSAT 2.2.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A user.
    User = 1,
    /// A group of this server's users.
    Group = 2,
    /// A domain; here the server.
    Domain = 3,
    /// A group that is built in.
    Alias = 4,
    /// Defined by the system.
    WellKnown = 5,
}

/// Something with a name and an identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its identifier.
    pub sid: Sid,
    /// Where it belongs to.
    pub domain: String,
    /// The identifier of that.
    pub domain_sid: Sid,
    /// What it is called.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

/// Identifier of the group that all users are in, below the server's.
pub const USERS_RID: u32 = 513;
/// Users are numbered from here on.
const FIRST_RID: u32 = 1000;

/// The number of a user, from the folded name. Two names with one number are refused when the
/// configuration is read.
pub fn rid(folded: &str) -> u32 {
    let digest = folded.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    FIRST_RID + ((digest >> 32 ^ digest) as u32 & 0x3fff_ffff)
}

/// The accounts of a server at some moment.
#[derive(Debug)]
pub struct Accounts {
    /// The server's name, which is that of its domain.
    pub name: String,
    /// The server's identifier.
    pub sid: Sid,
    current: Arc<Current>,
}

/// Domain, its identifier, name, identifier and kind of what every server knows.
fn well_known() -> impl Iterator<Item = Account> {
    let nt = Sid::new(5, &[]);
    let builtin = Sid::new(5, &[32]);
    let list = [
        ("", Sid::new(1, &[]), "Everyone", Sid::everyone(), Kind::WellKnown),
        ("", Sid::new(3, &[]), "CREATOR OWNER", Sid::creator_owner(), Kind::WellKnown),
        ("NT AUTHORITY", nt.clone(), "NETWORK", Sid::new(5, &[2]), Kind::WellKnown),
        ("NT AUTHORITY", nt.clone(), "ANONYMOUS LOGON", Sid::new(5, &[7]), Kind::WellKnown),
        (
            "NT AUTHORITY",
            nt.clone(),
            "Authenticated Users",
            Sid::authenticated_users(),
            Kind::WellKnown,
        ),
        ("NT AUTHORITY", nt, "SYSTEM", Sid::new(5, &[18]), Kind::WellKnown),
        ("BUILTIN", builtin.clone(), "Administrators", Sid::administrators(), Kind::Alias),
        ("BUILTIN", builtin.clone(), "Users", Sid::new(5, &[32, 545]), Kind::Alias),
        ("BUILTIN", builtin, "Guests", Sid::new(5, &[32, 546]), Kind::Alias),
    ];
    list.into_iter().map(|(domain, domain_sid, name, sid, kind)| Account {
        sid,
        domain: domain.into(),
        domain_sid,
        name: name.into(),
        kind,
    })
}

impl Accounts {
    /// The accounts as they are now.
    pub fn of(server: &Server) -> Self {
        let current = server.current();
        Self { name: current.config.name.clone(), sid: server.machine_sid(), current }
    }

    /// The users, in the order of their folded names.
    pub fn users(&self) -> impl Iterator<Item = Account> {
        self.current.config.user_names.iter().map(|(folded, name)| self.user(folded, name))
    }

    fn own(&self, name: &str, sid: Sid, kind: Kind) -> Account {
        let domain_sid = self.sid.clone();
        Account { sid, domain: self.name.clone(), domain_sid, name: name.into(), kind }
    }

    fn user(&self, folded: &str, name: &str) -> Account {
        self.own(name, self.sid.below(rid(folded)), Kind::User)
    }

    fn all(&self) -> impl Iterator<Item = Account> {
        let group = self.own("None", self.sid.below(USERS_RID), Kind::Group);
        let machine = self.own("", self.sid.clone(), Kind::Domain);
        self.users().chain([group, machine]).chain(well_known())
    }

    /// What a name means; `DOMAIN\name`, or the name alone.
    pub fn named(&self, text: &str) -> Option<Account> {
        let (domain, name) = match text.split_once('\\') {
            Some((domain, name)) => (Some(users::fold(domain)), users::fold(name)),
            None => (None, users::fold(text)),
        };
        if domain.as_deref().is_none_or(|domain| domain == users::fold(&self.name))
            && let Some(display) = self.current.config.user_names.get(&name)
        {
            return Some(self.user(&name, display));
        }
        let fits = |account: &Account| {
            let whole = if account.kind == Kind::Domain { &account.domain } else { &account.name };
            users::fold(whole) == name
                && domain.as_deref().is_none_or(|domain| domain == users::fold(&account.domain))
        };
        self.all().find(fits)
    }

    /// Whose an identifier is.
    pub fn identified(&self, sid: &Sid) -> Option<Account> {
        self.all().find(|account| account.sid == *sid)
    }

    /// Whether a user, folded, administers the server.
    pub fn administers(&self, user: &str) -> bool {
        self.current.config.admin_users.contains(user)
    }
}
