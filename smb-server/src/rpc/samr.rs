//! samr: the accounts of the server, for those who browse them (MS-SAMR). Nothing can be changed
//! here: users come from the configuration.

use dce_rpc::{
    FaultStatus, SyntaxId,
    ndr::{Handle, Reader, Writer},
};
use smb_protocol::{
    security::Sid,
    wire::{WireError, len32},
};

use super::handles::{Handles, Object};
use crate::rpc::accounts::{Account, Kind, USERS_RID};
use crate::rpc::call::{Caller, Served, bad_stub};

/// MS-SAMR 1.9.
pub const INTERFACE: SyntaxId =
    SyntaxId::new(0x1234_5778, 0x1234, 0xabcd, [0xef, 0, 0x01, 0x23, 0x45, 0x67, 0x89, 0xac], 1, 0);

/// Operations (MS-SAMR 3.1.5).
mod op {
    pub const CONNECT: u16 = 0;
    pub const CLOSE: u16 = 1;
    pub const LOOKUP_DOMAIN: u16 = 5;
    pub const ENUM_DOMAINS: u16 = 6;
    pub const OPEN_DOMAIN: u16 = 7;
    pub const QUERY_DOMAIN: u16 = 8;
    pub const ENUM_GROUPS: u16 = 11;
    pub const ENUM_USERS: u16 = 13;
    pub const ENUM_ALIASES: u16 = 15;
    pub const LOOKUP_NAMES: u16 = 17;
    pub const LOOKUP_RIDS: u16 = 18;
    pub const OPEN_USER: u16 = 34;
    pub const QUERY_USER: u16 = 36;
    pub const GROUPS_OF_USER: u16 = 39;
    pub const QUERY_DOMAIN2: u16 = 46;
    pub const QUERY_USER2: u16 = 47;
    pub const CONNECT2: u16 = 57;
    pub const CONNECT4: u16 = 62;
    pub const CONNECT5: u16 = 64;
}

const SUCCESS: u32 = 0;
const SOME_NOT_MAPPED: u32 = 0x0000_0107;
const MORE_ENTRIES: u32 = 0x0000_0105;
const INVALID_INFO_CLASS: u32 = 0xc000_0003;
const NO_SUCH_USER: u32 = 0xc000_0064;
const NONE_MAPPED: u32 = 0xc000_0073;
const NO_SUCH_DOMAIN: u32 = 0xc000_00df;
/// `SidTypeUnknown`.
const UNKNOWN: u32 = 8;
/// Names or numbers of one call (MS-SAMR 3.1.5.11).
const MOST: usize = 1000;
/// Users of one answer; the rest is got by resuming.
const PAGE: usize = 512;
/// A time that never comes.
const NEVER: u64 = i64::MAX as u64;
/// A span of time without end: the most negative one, as spans are negative.
const FOREVER: u64 = 1 << 63;

/// Carries out a call: its results in NDR, or a fault.
pub fn serve(caller: &Caller<'_>, handles: &mut Handles, opnum: u16, mut r: Reader<'_>) -> Served {
    let r = &mut r;
    match opnum {
        op::CONNECT | op::CONNECT2 | op::CONNECT4 => opened(handles, Object::Accounts),
        op::CONNECT5 => {
            let handle = handles.add(Object::Accounts)?;
            // Version of the answer, and what we can: nothing beyond the first (MS-SAMR 2.2.7.15).
            let mut w = Writer::new();
            w.u32(1).u32(1).u32(3).u32(0).handle(&handle).u32(SUCCESS);
            Ok(w.finish())
        }
        op::CLOSE => {
            handles.close(&r.handle().map_err(bad_stub)?)?;
            let mut w = Writer::new();
            w.handle(&Handle::default()).u32(SUCCESS);
            Ok(w.finish())
        }
        op::ENUM_DOMAINS => {
            get(handles, r, &[Object::Accounts])?;
            let domains = [(0, caller.accounts.name.as_str()), (1, "Builtin")];
            Ok(enumeration(&domains, 0, domains.len()))
        }
        op::LOOKUP_DOMAIN => {
            get(handles, r, &[Object::Accounts])?;
            lookup_domain(caller, r).map_err(bad_stub)
        }
        op::OPEN_DOMAIN => {
            get(handles, r, &[Object::Accounts])?;
            r.u32("samr.DesiredAccess").map_err(bad_stub)?;
            let sid = r.sid("samr.DomainId").map_err(bad_stub)?;
            if sid == caller.accounts.sid {
                opened(handles, Object::Machine)
            } else if sid == Sid::new(5, &[32]) {
                opened(handles, Object::Builtin)
            } else {
                Ok(closed(NO_SUCH_DOMAIN))
            }
        }
        op::QUERY_DOMAIN | op::QUERY_DOMAIN2 => {
            let domain = get(handles, r, &[Object::Machine, Object::Builtin])?;
            let class = r.u16("samr.DomainInformationClass").map_err(bad_stub)?;
            Ok(query_domain(caller, &domain, class))
        }
        op::ENUM_USERS | op::ENUM_GROUPS | op::ENUM_ALIASES => {
            // As on Windows, which lets nobody else look through its accounts.
            if !caller.administers() {
                return Ok(enumerated_nothing());
            }
            let domain = get(handles, r, &[Object::Machine, Object::Builtin])?;
            let resume = r.u32("samr.EnumerationContext").map_err(bad_stub)?;
            Ok(enumerate(caller, &domain, opnum, resume))
        }
        op::LOOKUP_NAMES => {
            let domain = get(handles, r, &[Object::Machine, Object::Builtin])?;
            let names = read_names(r).map_err(bad_stub)?;
            Ok(lookup_names(caller, &domain, &names))
        }
        op::LOOKUP_RIDS => {
            let domain = get(handles, r, &[Object::Machine, Object::Builtin])?;
            let rids = read_rids(r).map_err(bad_stub)?;
            Ok(lookup_rids(caller, &domain, &rids))
        }
        op::OPEN_USER => {
            let domain = get(handles, r, &[Object::Machine, Object::Builtin])?;
            r.u32("samr.DesiredAccess").map_err(bad_stub)?;
            let rid = r.u32("samr.UserId").map_err(bad_stub)?;
            match user(caller, rid) {
                Some(_) if domain == Object::Machine => opened(handles, Object::User(rid)),
                _ => Ok(closed(NO_SUCH_USER)),
            }
        }
        op::QUERY_USER | op::QUERY_USER2 => {
            let account = user_of(caller, handles, r)?;
            let class = r.u16("samr.UserInformationClass").map_err(bad_stub)?;
            Ok(query_user(caller, &account, class))
        }
        op::GROUPS_OF_USER => {
            user_of(caller, handles, r)?;
            // One group, mandatory, enabled by default, enabled.
            let mut w = Writer::new();
            w.pointer(true).u32(1).pointer(true).u32(1).u32(USERS_RID).u32(7).u32(SUCCESS);
            Ok(w.finish())
        }
        _ => Err(FaultStatus::OP_RANGE),
    }
}

fn opened(handles: &mut Handles, object: Object) -> Served {
    let handle = handles.add(object)?;
    let mut w = Writer::new();
    w.handle(&handle).u32(SUCCESS);
    Ok(w.finish())
}

/// No handle, and why.
fn closed(status: u32) -> Vec<u8> {
    let mut w = Writer::new();
    w.handle(&Handle::default()).u32(status);
    w.finish()
}

/// Reads a handle, which must stand for one of these.
fn get(handles: &Handles, r: &mut Reader<'_>, kinds: &[Object]) -> Result<Object, FaultStatus> {
    let object = handles.get(&r.handle().map_err(bad_stub)?)?;
    match kinds.contains(object) {
        true => Ok(object.clone()),
        false => Err(FaultStatus::CONTEXT_MISMATCH),
    }
}

fn user_of(
    caller: &Caller<'_>,
    handles: &Handles,
    r: &mut Reader<'_>,
) -> Result<Account, FaultStatus> {
    match handles.get(&r.handle().map_err(bad_stub)?)? {
        // Users may go with a reload of the configuration.
        Object::User(rid) => user(caller, *rid).ok_or(FaultStatus::CONTEXT_MISMATCH),
        _ => Err(FaultStatus::CONTEXT_MISMATCH),
    }
}

fn user(caller: &Caller<'_>, rid: u32) -> Option<Account> {
    caller
        .accounts
        .identified(&caller.accounts.sid.below(rid))
        .filter(|account| account.kind == Kind::User)
}

/// The identifier of a domain.
fn sid_of(caller: &Caller<'_>, domain: &Object) -> Sid {
    match domain {
        Object::Builtin => Sid::new(5, &[32]),
        _ => caller.accounts.sid.clone(),
    }
}

/// SamrLookupDomainInSamServer (MS-SAMR 3.1.5.11.1).
fn lookup_domain(caller: &Caller<'_>, r: &mut Reader<'_>) -> Result<Vec<u8>, WireError> {
    let name = match r.unicode_header("samr.Name")? {
        true => r.string("samr.Name")?,
        false => String::new(),
    };
    let same = |known: &str| smb_protocol::name::same_name(known, &name);
    let sid = match () {
        () if same(&caller.accounts.name) => Some(caller.accounts.sid.clone()),
        () if same("Builtin") => Some(Sid::new(5, &[32])),
        () => None,
    };
    let mut w = Writer::new();
    w.pointer(sid.is_some());
    if let Some(sid) = &sid {
        w.sid(sid);
    }
    w.u32(if sid.is_some() { SUCCESS } else { NO_SUCH_DOMAIN });
    Ok(w.finish())
}

/// An enumeration that is refused: nothing, and why.
fn enumerated_nothing() -> Vec<u8> {
    let mut w = Writer::new();
    w.u32(0).pointer(false).u32(0).u32(smb_protocol::NtStatus::ACCESS_DENIED.0);
    w.finish()
}

/// Writes a SAMPR_ENUMERATION_BUFFER with where to resume (MS-SAMR 3.1.5.2).
fn enumeration(page: &[(u32, &str)], start: usize, all: usize) -> Vec<u8> {
    let end = start + page.len();
    let count = len32(page.len());
    let mut w = Writer::new();
    w.u32(len32(end)).pointer(true).u32(count).pointer(count > 0);
    if count > 0 {
        w.u32(count);
        for (id, name) in page {
            w.u32(*id).unicode_header(name);
        }
        for (_, name) in page {
            w.unicode_body(name);
        }
    }
    w.u32(count).u32(if end < all { MORE_ENTRIES } else { SUCCESS });
    w.finish()
}

/// SamrEnumerateUsersInDomain, …GroupsInDomain, …AliasesInDomain (MS-SAMR 3.1.5.2).
fn enumerate(caller: &Caller<'_>, domain: &Object, opnum: u16, resume: u32) -> Vec<u8> {
    let below = sid_of(caller, domain);
    let numbered =
        |account: Account| account.sid.number_below(&below).map(|number| (number, account.name));
    let all: Vec<_> = match (domain, opnum) {
        (Object::Machine, op::ENUM_USERS) => caller.accounts.users().filter_map(numbered).collect(),
        (Object::Machine, op::ENUM_GROUPS) => vec![(USERS_RID, "None".to_owned())],
        (Object::Builtin, op::ENUM_ALIASES) => [544, 545, 546]
            .into_iter()
            .filter_map(|rid| caller.accounts.identified(&below.below(rid)))
            .filter_map(numbered)
            .collect(),
        _ => Vec::new(),
    };
    let start = (resume as usize).min(all.len());
    let page: Vec<_> =
        all[start..].iter().take(PAGE).map(|(rid, name)| (*rid, name.as_str())).collect();
    enumeration(&page, start, all.len())
}

/// SamrQueryInformationDomain (MS-SAMR 3.1.5.5.2).
fn query_domain(caller: &Caller<'_>, domain: &Object, class: u16) -> Vec<u8> {
    const PASSWORD: u16 = 1;
    const GENERAL: u16 = 2;
    const LOGOFF: u16 = 3;
    const NAME: u16 = 5;
    const SERVER_ROLE: u16 = 7;
    const MODIFIED: u16 = 8;
    const LOCKOUT: u16 = 12;
    let name = match domain {
        Object::Builtin => "Builtin",
        _ => caller.accounts.name.as_str(),
    };
    let (users, groups, aliases) = match domain {
        Object::Builtin => (0, 0, 3),
        _ => (caller.accounts.users().count(), 1, 0),
    };
    const ENABLED: u32 = 1;
    const PRIMARY: u32 = 3;
    let mut w = Writer::new();
    w.pointer(true).u16(class).align(4);
    match class {
        // Length, history, properties, longest and shortest life.
        PASSWORD => {
            w.u16(0).u16(0).u32(0).split_u64(FOREVER).split_u64(0);
        }
        GENERAL => {
            w.split_u64(FOREVER).unicode_header("").unicode_header(name).unicode_header("");
            w.split_u64(0).u32(ENABLED).u32(PRIMARY).u8(1);
            w.u32(len32(users)).u32(groups).u32(aliases);
            w.unicode_body("").unicode_body(name).unicode_body("");
        }
        LOGOFF => {
            w.split_u64(FOREVER);
        }
        NAME => {
            w.unicode_header(name).unicode_body(name);
        }
        SERVER_ROLE => {
            w.u32(PRIMARY);
        }
        MODIFIED => {
            w.split_u64(0).split_u64(0);
        }
        // Time locked out, window, threshold: never.
        LOCKOUT => {
            w.split_u64(0).split_u64(0).u16(0);
        }
        _ => {
            let mut w = Writer::new();
            w.pointer(false).u32(INVALID_INFO_CLASS);
            return w.finish();
        }
    }
    w.u32(SUCCESS);
    w.finish()
}

fn read_names(r: &mut Reader<'_>) -> Result<Vec<String>, WireError> {
    let elements = elements(r, 8)?;
    let mut present = Vec::new();
    for _ in 0..elements {
        present.push(r.unicode_header("samr.Names")?);
    }
    present
        .into_iter()
        .map(|p| if p { r.string("samr.Names") } else { Ok(String::new()) })
        .collect()
}

fn read_rids(r: &mut Reader<'_>) -> Result<Vec<u32>, WireError> {
    let elements = elements(r, 4)?;
    (0..elements).map(|_| r.u32("samr.RelativeIds")).collect()
}

/// A count, then an array that is conformant to 1000 and varying (MS-SAMR 3.1.5.11.2).
fn elements(r: &mut Reader<'_>, least: usize) -> Result<usize, WireError> {
    const FIELD: &str = "samr.Count";
    let count = r.u32(FIELD)?;
    r.u32(FIELD)?;
    let offset = r.u32(FIELD)?;
    let elements = r.count(least, FIELD)?;
    if u32::try_from(elements) != Ok(count) || elements > MOST || offset != 0 {
        return Err(WireError::Value { field: FIELD, value: count.into() });
    }
    Ok(elements)
}

fn outcome(found: usize, asked: usize) -> u32 {
    match found {
        _ if found == asked => SUCCESS,
        0 => NONE_MAPPED,
        _ => SOME_NOT_MAPPED,
    }
}

/// A SAMPR_ULONG_ARRAY.
fn numbers(w: &mut Writer, list: &[u32]) {
    let count = len32(list.len());
    w.u32(count).pointer(count > 0);
    if count > 0 {
        w.u32(count);
        list.iter().for_each(|number| {
            w.u32(*number);
        });
    }
}

/// SamrLookupNamesInDomain (MS-SAMR 3.1.5.11.2).
fn lookup_names(caller: &Caller<'_>, domain: &Object, names: &[String]) -> Vec<u8> {
    let below = sid_of(caller, domain);
    let found: Vec<_> = names
        .iter()
        .map(|name| {
            let account = caller.accounts.named(name)?;
            Some((account.sid.number_below(&below)?, account.kind as u32))
        })
        .collect();
    let rids: Vec<_> = found.iter().map(|f| f.map_or(0, |(rid, _)| rid)).collect();
    let kinds: Vec<_> = found.iter().map(|f| f.map_or(UNKNOWN, |(_, kind)| kind)).collect();
    let mut w = Writer::new();
    numbers(&mut w, &rids);
    numbers(&mut w, &kinds);
    w.u32(outcome(found.iter().flatten().count(), names.len()));
    w.finish()
}

/// SamrLookupIdsInDomain (MS-SAMR 3.1.5.11.3).
fn lookup_rids(caller: &Caller<'_>, domain: &Object, rids: &[u32]) -> Vec<u8> {
    let below = sid_of(caller, domain);
    let found: Vec<_> =
        rids.iter().map(|rid| caller.accounts.identified(&below.below(*rid))).collect();
    let names: Vec<_> = found.iter().map(|f| f.as_ref().map_or("", |a| a.name.as_str())).collect();
    let kinds: Vec<_> =
        found.iter().map(|f| f.as_ref().map_or(UNKNOWN, |a| a.kind as u32)).collect();
    let count = len32(names.len());
    let mut w = Writer::new();
    w.u32(count).pointer(count > 0);
    if count > 0 {
        w.u32(count);
        names.iter().for_each(|name| {
            w.unicode_header(name);
        });
        names.iter().for_each(|name| {
            w.unicode_body(name);
        });
    }
    numbers(&mut w, &kinds);
    w.u32(outcome(found.iter().flatten().count(), rids.len()));
    w.finish()
}

/// SamrQueryInformationUser (MS-SAMR 3.1.5.5.6).
fn query_user(caller: &Caller<'_>, account: &Account, class: u16) -> Vec<u8> {
    const GENERAL: u16 = 1;
    const NAME: u16 = 6;
    const ACCOUNT_NAME: u16 = 7;
    const FULL_NAME: u16 = 8;
    const PRIMARY_GROUP: u16 = 9;
    const CONTROL: u16 = 16;
    const ALL: u16 = 21;
    /// A normal account whose password does not expire (MS-SAMR 2.2.1.12).
    const FLAGS: u32 = 0x0000_0210;
    let name = account.name.as_str();
    let rid = account.sid.number_below(&caller.accounts.sid).unwrap_or_default();
    let mut w = Writer::new();
    w.pointer(true).u16(class).align(4);
    match class {
        GENERAL => {
            w.unicode_header(name).unicode_header("").u32(USERS_RID);
            w.unicode_header("").unicode_header("");
            w.unicode_body(name).unicode_body("").unicode_body("").unicode_body("");
        }
        NAME => {
            w.unicode_header(name).unicode_header("").unicode_body(name).unicode_body("");
        }
        ACCOUNT_NAME => {
            w.unicode_header(name).unicode_body(name);
        }
        FULL_NAME => {
            w.unicode_header("").unicode_body("");
        }
        PRIMARY_GROUP => {
            w.u32(USERS_RID);
        }
        CONTROL => {
            w.u32(FLAGS);
        }
        ALL => all(&mut w, name, rid, FLAGS),
        _ => {
            let mut w = Writer::new();
            w.pointer(false).u32(INVALID_INFO_CLASS);
            return w.finish();
        }
    }
    w.u32(SUCCESS);
    w.finish()
}

/// SAMPR_USER_ALL_INFORMATION (MS-SAMR 2.2.6.6) with what is known of a user.
fn all(w: &mut Writer, name: &str, rid: u32, flags: u32) {
    /// Texts of the structure: the user's name comes first, the others are empty.
    const TEXTS: usize = 10;
    /// Every field but passwords and private data.
    const FIELDS: u32 = 0x00ff_ffff;
    const HOURS: u16 = 168;
    // Last logon, last logoff, password set, account expires, may and must change.
    for time in [0, 0, 0, NEVER, 0, NEVER] {
        w.split_u64(time);
    }
    w.unicode_header(name);
    for _ in 1..TEXTS {
        w.unicode_header("");
    }
    // Hashes are not told; private data and descriptor are empty.
    for _ in 0..2 {
        w.align(4).u16(0).u16(0).pointer(false);
    }
    w.unicode_header("").u32(0).pointer(false);
    w.u32(rid).u32(USERS_RID).u32(flags).u32(FIELDS);
    // Hours of the week in which a logon is possible: all.
    w.u16(HOURS).align(4).pointer(true);
    // Bad passwords, logons, country, code page; four flags.
    w.u16(0).u16(0).u16(0).u16(0).u8(0).u8(0).u8(0).u8(0);
    w.unicode_body(name);
    for _ in 1..TEXTS {
        w.unicode_body("");
    }
    w.unicode_body("");
    w.u32(1260).u32(0).u32(u32::from(HOURS) / 8).bytes(&[0xff; HOURS as usize / 8]);
}
