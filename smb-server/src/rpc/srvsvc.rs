//! srvsvc: what the server shares, and who uses it (MS-SRVS).
//!
//! Everyone who is logged on sees the shares that are shown; sessions, open files, and the paths
//! behind shares are for administrators, and so is closing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dce_rpc::{
    FaultStatus, SyntaxId,
    ndr::{Reader, Writer},
};
use smb_protocol::{
    msg::create::Access,
    ntlm::users,
    security::{ALLOW, Ace, AceFlags, Descriptor, Sid, parts},
    wire::{WireError, len32},
};

use crate::rpc::{
    calendar,
    call::{Caller, Served, bad_stub},
};
use crate::{
    Server,
    config::{Share, ShareCompression},
    session::Session,
};

/// MS-SRVS 1.9.
pub const INTERFACE: SyntaxId = SyntaxId::new(
    0x4b32_4fc8,
    0x1670,
    0x01d3,
    [0x12, 0x78, 0x5a, 0x47, 0xbf, 0x6e, 0xe1, 0x88],
    3,
    0,
);

/// Operations (MS-SRVS 3.1.4).
mod op {
    pub const FILE_ENUM: u16 = 9;
    pub const FILE_CLOSE: u16 = 11;
    pub const SESSION_ENUM: u16 = 12;
    pub const SESSION_DEL: u16 = 13;
    pub const SHARE_ENUM: u16 = 15;
    pub const SHARE_GET_INFO: u16 = 16;
    pub const SERVER_GET_INFO: u16 = 21;
    pub const REMOTE_TOD: u16 = 28;
    pub const NAME_VALIDATE: u16 = 33;
    pub const SHARE_ENUM_STICKY: u16 = 36;
}

/// Results (MS-ERREF 2.2, MS-SRVS 2.2.2.10).
mod result {
    pub const OK: u32 = 0;
    pub const ACCESS_DENIED: u32 = 5;
    pub const INVALID_PARAMETER: u32 = 87;
    pub const INVALID_NAME: u32 = 123;
    pub const INVALID_LEVEL: u32 = 124;
    pub const MORE_DATA: u32 = 234;
    pub const SHARE_NOT_FOUND: u32 = 2310;
    pub const CLIENT_NOT_FOUND: u32 = 2312;
    pub const FILE_NOT_FOUND: u32 = 2314;
}

/// Entries of one answer; the rest is got by resuming.
const PAGE: usize = 2048;
/// What we are: Windows NT and its kin, version 6.1.
const PLATFORM: u32 = 500;
const VERSION: (u32, u32) = (6, 1);
/// Workstation, server, NT, NT server (MS-SRVS 2.2.2.7).
const SOFTWARE: u32 = 0x0000_9003;
/// STYPE_DISKTREE; STYPE_IPC | STYPE_SPECIAL (2.2.2.4).
const TYPE_DISK: u32 = 0;
const TYPE_IPC: u32 = 0x8000_0003;
const UNLIMITED: u32 = u32::MAX;
/// SHI1005_FLAGS_RESTRICT_EXCLUSIVE_OPENS and others are not set; caching is off for IPC$.
const FLAGS_NO_CACHING: u32 = 0x30;
/// SHI1005_FLAGS_DFS and SHI1005_FLAGS_DFS_ROOT.
const FLAGS_DFS: u32 = 0x3;
/// SHI1005_FLAGS_COMPRESS_DATA (MS-SRVS 2.2.4.29).
const FLAGS_COMPRESS_DATA: u32 = 0x10_0000;

/// Carries out a call: its results in NDR, or a fault.
pub fn serve(caller: &Caller<'_>, opnum: u16, r: Reader<'_>) -> Served {
    let served = match opnum {
        op::SHARE_ENUM | op::SHARE_ENUM_STICKY => share_enum(caller, r, opnum),
        op::SHARE_GET_INFO => share_get_info(caller, r),
        op::SERVER_GET_INFO => server_get_info(caller, r),
        op::SESSION_ENUM => session_enum(caller, r),
        op::SESSION_DEL => session_del(caller, r),
        op::FILE_ENUM => file_enum(caller, r),
        op::FILE_CLOSE => file_close(caller, r),
        op::REMOTE_TOD => remote_tod(r),
        op::NAME_VALIDATE => name_validate(r),
        _ => return Err(FaultStatus::OP_RANGE),
    };
    served.map_err(bad_stub)
}

type Stub = Result<Vec<u8>, WireError>;

/// Number of users who are logged on.
pub fn people(server: &Server) -> u32 {
    let mut users: Vec<_> = server.sessions.all().iter().map(|s| s.user.id).collect();
    users.sort();
    users.dedup();
    len32(users.len())
}

/// A share as clients see it.
struct Shown<'a> {
    name: &'a str,
    kind: u32,
    comment: &'a str,
    path: String,
    uses: u32,
    flags: u32,
    limit: u32,
    descriptor: Vec<u8>,
}

impl<'a> Shown<'a> {
    fn disk(caller: &Caller<'_>, folded: &str, share: &'a Share) -> Self {
        let path = match caller.administers() {
            true => share.path.display().to_string(),
            false => String::new(),
        };
        let allow = |sid: Sid| Ace::new(ALLOW, AceFlags::NONE, Access::ALL, sid);
        let mut users: Vec<_> = share.users.iter().collect();
        users.sort();
        let descriptor = Descriptor {
            owner: Some(Sid::administrators()),
            group: Some(Sid::administrators()),
            dacl: Some(users.into_iter().map(|u| allow(caller.server.user_sid(u))).collect()),
            ..Descriptor::default()
        };
        let mut bytes = Vec::new();
        descriptor.encode(parts::OWNER | parts::GROUP | parts::DACL, &mut bytes);
        let uses = caller.server.sessions.all().iter().map(|s| s.trees_of(folded)).sum::<usize>();
        let dfs = caller.server.current().config.namespaces.contains_key(folded);
        let compressed = share.compression == ShareCompression::Force;
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        Self {
            name: &share.name,
            kind: TYPE_DISK,
            comment: &share.comment,
            path,
            uses: len32(uses),
            flags: flag(dfs, FLAGS_DFS) | flag(compressed, FLAGS_COMPRESS_DATA),
            limit: UNLIMITED,
            descriptor: bytes,
        }
    }

    fn ipc(caller: &Caller<'_>) -> Self {
        let uses = caller.server.sessions.all().iter().map(|s| s.trees_of("IPC$")).sum::<usize>();
        Self {
            name: "IPC$",
            kind: TYPE_IPC,
            comment: "Remote procedures",
            path: String::new(),
            uses: len32(uses),
            flags: FLAGS_NO_CACHING,
            limit: UNLIMITED,
            descriptor: Vec::new(),
        }
    }

    /// Levels that are known: MS-SRVS 2.2.4.22 to 2.2.4.26, 2.2.4.29.
    fn knows(level: u32, one: bool) -> bool {
        matches!(level, 0 | 1 | 2 | 501 | 502) || one && level == 1005
    }

    /// Levels that show how a share is made, which only administrators learn (MS-SRVS note 62).
    fn is_private(level: u32) -> bool {
        matches!(level, 2 | 502)
    }

    /// The fixed part of the structure.
    fn fixed(&self, level: u32, w: &mut Writer) {
        if level == 1005 {
            w.u32(self.flags);
            return;
        }
        w.pointer(true);
        if level == 0 {
            return;
        }
        w.u32(self.kind).pointer(true);
        match level {
            501 => {
                w.u32(self.flags);
            }
            2 | 502 => {
                w.u32(0).u32(self.limit).u32(self.uses).pointer(true).pointer(false);
                if level == 502 {
                    let len = self.descriptor.len();
                    w.u32(len32(len)).pointer(len > 0);
                }
            }
            _ => {}
        }
    }

    /// What the fixed part refers to.
    fn behind(&self, level: u32, w: &mut Writer) {
        if level == 1005 {
            return;
        }
        w.string(self.name);
        if level != 0 {
            w.string(self.comment);
        }
        if matches!(level, 2 | 502) {
            w.string(&self.path);
        }
        if level == 502 && !self.descriptor.is_empty() {
            w.u32(len32(self.descriptor.len())).bytes(&self.descriptor);
        }
    }
}

/// What an enumeration asks for: `*_ENUM_STRUCT`, preferred length, where to resume.
struct Asked {
    level: u32,
    resume: Option<u32>,
}

/// Reads it; what clients send in the place of results is skipped.
fn asked(r: &mut Reader<'_>) -> Result<Asked, WireError> {
    let level = r.u32("enum.Level")?;
    r.u32("enum.Switch")?;
    if r.pointer("enum.Container")? {
        // Clients send an empty container: a count and no buffer.
        let count = r.u32("enum.EntriesRead")?;
        if r.pointer("enum.Buffer")? || count != 0 {
            return Err(WireError::Value { field: "enum.Buffer", value: count.into() });
        }
    }
    r.u32("enum.PreferedMaximumLength")?;
    let resume = match r.pointer("enum.ResumeHandle")? {
        true => Some(r.u32("enum.ResumeHandle")?),
        false => None,
    };
    Ok(Asked { level, resume })
}

/// Writes the result of an enumeration, a page of it at most.
fn enumerated<T>(
    asked: &Asked,
    status: u32,
    all: &[T],
    fixed: impl Fn(&T, &mut Writer),
    behind: impl Fn(&T, &mut Writer),
) -> Vec<u8> {
    let start = asked.resume.unwrap_or(0) as usize;
    let page: Vec<_> = all.iter().skip(start).take(PAGE).collect();
    let more = start + page.len() < all.len();
    let mut w = Writer::new();
    w.u32(asked.level).u32(asked.level).pointer(true);
    w.u32(len32(page.len())).pointer(!page.is_empty());
    if !page.is_empty() {
        w.u32(len32(page.len()));
        page.iter().for_each(|entry| fixed(entry, &mut w));
        page.iter().for_each(|entry| behind(entry, &mut w));
    }
    w.u32(len32(all.len().saturating_sub(start)));
    w.pointer(asked.resume.is_some());
    if asked.resume.is_some() {
        w.u32(if more { len32(start + page.len()) } else { 0 });
    }
    w.u32(if status == result::OK && more { result::MORE_DATA } else { status });
    w.finish()
}

/// Writes the result of asking for one thing: a union of a level with a pointer.
fn informed(level: u32, status: u32, write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut w = Writer::new();
    w.u32(level).pointer(status == result::OK);
    if status == result::OK {
        write(&mut w);
    }
    w.u32(status);
    w.finish()
}

fn status_only(status: u32) -> Vec<u8> {
    let mut w = Writer::new();
    w.u32(status);
    w.finish()
}

/// NetrShareEnum and NetrShareEnumSticky (MS-SRVS 3.1.4.8, 3.1.4.9).
fn share_enum(caller: &Caller<'_>, mut r: Reader<'_>, opnum: u16) -> Stub {
    r.optional_string("srvsvc.ServerName")?;
    let asked = asked(&mut r)?;
    let current = caller.server.current();
    let level = asked.level;
    let status = match level {
        level if !Shown::knows(level, false) => result::INVALID_LEVEL,
        level if Shown::is_private(level) && !caller.administers() => result::ACCESS_DENIED,
        _ => result::OK,
    };
    let mut all = Vec::new();
    if status == result::OK {
        let shares = current.config.shares.iter();
        all.extend(
            shares.filter(|(_, s)| s.browseable).map(|(key, s)| Shown::disk(caller, key, s)),
        );
        if opnum == op::SHARE_ENUM {
            all.push(Shown::ipc(caller));
        }
    }
    let fixed = |share: &Shown<'_>, w: &mut Writer| share.fixed(level, w);
    let behind = |share: &Shown<'_>, w: &mut Writer| share.behind(level, w);
    Ok(enumerated(&asked, status, &all, fixed, behind))
}

/// NetrShareGetInfo (MS-SRVS 3.1.4.10).
fn share_get_info(caller: &Caller<'_>, mut r: Reader<'_>) -> Stub {
    r.optional_string("srvsvc.ServerName")?;
    let folded = users::fold(&r.string("srvsvc.NetName")?);
    let level = r.u32("srvsvc.Level")?;
    let current = caller.server.current();
    let shown = match current.config.shares.get(&folded) {
        Some(share) => Some(Shown::disk(caller, &folded, share)),
        None if folded == "IPC$" => Some(Shown::ipc(caller)),
        None => None,
    };
    let status = match &shown {
        _ if !Shown::knows(level, true) => result::INVALID_LEVEL,
        _ if Shown::is_private(level) && !caller.administers() => result::ACCESS_DENIED,
        None => result::SHARE_NOT_FOUND,
        Some(_) => result::OK,
    };
    Ok(informed(level, status, |w| {
        if let Some(share) = &shown {
            share.fixed(level, w);
            share.behind(level, w);
        }
    }))
}

/// NetrServerGetInfo (MS-SRVS 3.1.4.17): levels 100 to 102, each begins as the one before.
fn server_get_info(caller: &Caller<'_>, mut r: Reader<'_>) -> Stub {
    r.optional_string("srvsvc.ServerName")?;
    let level = r.u32("srvsvc.Level")?;
    let status = match level {
        102 if !caller.administers() => result::ACCESS_DENIED,
        100..=102 => result::OK,
        _ => result::INVALID_LEVEL,
    };
    let current = caller.server.current();
    Ok(informed(level, status, |w| {
        w.u32(PLATFORM).pointer(true);
        if level >= 101 {
            w.u32(VERSION.0).u32(VERSION.1).u32(SOFTWARE).pointer(true);
        }
        if level == 102 {
            const NO_AUTODISCONNECT: u32 = u32::MAX;
            // Users, disconnect, hidden, announce, its variation, licences, path.
            w.u32(UNLIMITED).u32(NO_AUTODISCONNECT).u32(0).u32(240).u32(3000).u32(0).pointer(true);
        }
        w.string(&caller.accounts.name);
        if level >= 101 {
            w.string(&current.config.comment);
        }
        if level == 102 {
            w.string("");
        }
    }))
}

/// A session as administrators see it.
struct Logged {
    computer: String,
    user: String,
    opens: u32,
    active: u32,
    idle: u32,
}

impl Logged {
    fn of(session: &Session) -> Self {
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        Self {
            computer: computer(session),
            user: session.user.name.clone(),
            opens: len32(session.open_count()),
            active: seconds(session.age()),
            idle: seconds(session.idle()),
        }
    }

    fn knows(level: u32) -> bool {
        matches!(level, 0 | 1 | 2 | 10 | 502)
    }

    /// MS-SRVS 2.2.4.11 to 2.2.4.15.
    fn fixed(&self, level: u32, w: &mut Writer) {
        w.pointer(true);
        if level == 0 {
            return;
        }
        w.pointer(true);
        if level != 10 {
            w.u32(self.opens);
        }
        w.u32(self.active).u32(self.idle);
        if level != 10 {
            w.u32(0);
        }
        if level == 2 || level == 502 {
            w.pointer(true);
        }
        if level == 502 {
            w.pointer(true);
        }
    }

    fn behind(&self, level: u32, w: &mut Writer) {
        w.string(&self.computer);
        if level != 0 {
            w.string(&self.user);
        }
        if level == 2 || level == 502 {
            w.string("");
        }
        if level == 502 {
            w.string("");
        }
    }
}

/// The address that a session came from.
fn computer(session: &Session) -> String {
    let first = session.channels().first().map(|channel| channel.peer.ip().to_canonical());
    first.map_or_else(String::new, |address| address.to_string())
}

/// Whether a session is meant by a client and a user, either of which may be left out.
fn is_meant(session: &Session, client: Option<&str>, user: Option<&str>) -> bool {
    let given = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
    given(client).is_none_or(|client| client.trim_start_matches('\\') == computer(session))
        && given(user).is_none_or(|user| users::fold(&user) == session.user.name)
}

/// NetrSessionEnum (MS-SRVS 3.1.4.5).
fn session_enum(caller: &Caller<'_>, mut r: Reader<'_>) -> Stub {
    r.optional_string("srvsvc.ServerName")?;
    let client = r.optional_string("srvsvc.ClientName")?;
    let user = r.optional_string("srvsvc.UserName")?;
    let asked = asked(&mut r)?;
    let level = asked.level;
    let status = match level {
        _ if !Logged::knows(level) => result::INVALID_LEVEL,
        _ if !caller.administers() => result::ACCESS_DENIED,
        _ => result::OK,
    };
    let mut all = Vec::new();
    if status == result::OK {
        let sessions = caller.server.sessions.all();
        let meant = sessions.iter().filter(|s| is_meant(s, client.as_deref(), user.as_deref()));
        all.extend(meant.map(|session| Logged::of(session)));
    }
    let fixed = |session: &Logged, w: &mut Writer| session.fixed(level, w);
    let behind = |session: &Logged, w: &mut Writer| session.behind(level, w);
    Ok(enumerated(&asked, status, &all, fixed, behind))
}

/// NetrSessionDel (MS-SRVS 3.1.4.6).
fn session_del(caller: &Caller<'_>, mut r: Reader<'_>) -> Stub {
    r.optional_string("srvsvc.ServerName")?;
    let client = r.optional_string("srvsvc.ClientName")?;
    let user = r.optional_string("srvsvc.UserName")?;
    if !caller.administers() {
        return Ok(status_only(result::ACCESS_DENIED));
    }
    if [&client, &user].iter().all(|text| text.as_deref().is_none_or(str::is_empty)) {
        return Ok(status_only(result::INVALID_PARAMETER));
    }
    let mut found = false;
    for session in caller.server.sessions.all() {
        if is_meant(&session, client.as_deref(), user.as_deref()) {
            found = true;
            tracing::info!(
                user = session.user.name,
                by = caller.session.user.name,
                "session ended"
            );
            caller.server.sessions.end(session.id);
        }
    }
    Ok(status_only(if found { result::OK } else { result::CLIENT_NOT_FOUND }))
}

/// An open file as administrators see it.
struct Opened {
    id: u32,
    permissions: u32,
    locks: u32,
    path: String,
    user: String,
}

/// NetrFileEnum (MS-SRVS 3.1.4.2): levels 2 and 3.
fn file_enum(caller: &Caller<'_>, mut r: Reader<'_>) -> Stub {
    r.optional_string("srvsvc.ServerName")?;
    let base = r.optional_string("srvsvc.BasePath")?.map(|base| users::fold(&base));
    let user = r.optional_string("srvsvc.UserName")?.map(|user| users::fold(&user));
    let asked = asked(&mut r)?;
    let level = asked.level;
    let status = match level {
        _ if !matches!(level, 2 | 3) => result::INVALID_LEVEL,
        _ if !caller.administers() => result::ACCESS_DENIED,
        _ => result::OK,
    };
    let mut all = Vec::new();
    if status == result::OK {
        let current = caller.server.current();
        for open in caller.server.open_files.all_opens() {
            const READ: u32 = 1;
            const WRITE: u32 = 2;
            const CREATE: u32 = 4;
            let share = current.config.shares.get(&open.origin.share);
            let share = share.map_or(open.origin.share.as_str(), |share| &share.name);
            let name = open.full_name().unwrap_or_default();
            let path = format!("\\{share}\\{}", name.trim_start_matches('\\'));
            let reads = open.access.any(Access::READ_DATA.or(Access::EXECUTE));
            let writes = open.access.any(Access::WRITE_DATA.or(Access::APPEND_DATA));
            let creates = open.directory && writes;
            if base.as_ref().is_some_and(|base| !users::fold(&path).starts_with(base.as_str()))
                || user.as_ref().is_some_and(|user| *user != open.origin.user.name)
            {
                continue;
            }
            all.push(Opened {
                id: open.id.volatile as u32,
                permissions: if reads { READ } else { 0 }
                    | if writes { WRITE } else { 0 }
                    | if creates { CREATE } else { 0 },
                locks: len32(open.file.locks_of(open.opener_id()).len()),
                path,
                user: open.origin.user.name.clone(),
            });
        }
        all.sort_by_key(|open| open.id);
    }
    let fixed = |open: &Opened, w: &mut Writer| {
        w.u32(open.id);
        if level == 3 {
            w.u32(open.permissions).u32(open.locks).pointer(true).pointer(true);
        }
    };
    let behind = |open: &Opened, w: &mut Writer| {
        if level == 3 {
            w.string(&open.path).string(&open.user);
        }
    };
    Ok(enumerated(&asked, status, &all, fixed, behind))
}

/// NetrFileClose (MS-SRVS 3.1.4.4).
fn file_close(caller: &Caller<'_>, mut r: Reader<'_>) -> Stub {
    r.optional_string("srvsvc.ServerName")?;
    let id = r.u32("srvsvc.FileId")?;
    if !caller.administers() {
        return Ok(status_only(result::ACCESS_DENIED));
    }
    let opens = caller.server.open_files.all_opens();
    let Some(open) = opens.into_iter().find(|open| open.id.volatile as u32 == id) else {
        return Ok(status_only(result::FILE_NOT_FOUND));
    };
    tracing::info!(user = open.origin.user.name, by = caller.session.user.name, "open closed");
    open.close_for_good();
    Ok(status_only(result::OK))
}

/// NetrRemoteTOD (MS-SRVS 3.1.4.21): the time, in UTC.
fn remote_tod(mut r: Reader<'_>) -> Stub {
    r.optional_string("srvsvc.ServerName")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = now.as_secs();
    let (year, month, day) = calendar::date(seconds / 86_400);
    let narrow = |value: u64| value as u32;
    let mut w = Writer::new();
    w.pointer(true)
        .u32(narrow(seconds))
        .u32(now.as_millis() as u32)
        .u32(narrow(seconds / 3600 % 24))
        .u32(narrow(seconds / 60 % 60))
        .u32(narrow(seconds % 60))
        .u32(now.subsec_millis() / 10)
        // Minutes west of Greenwich; length of a clock tick in units of 0.1 ms.
        .u32(0)
        .u32(310)
        .u32(day)
        .u32(month)
        .u32(year)
        // 1970-01-01 was a Thursday.
        .u32(narrow((seconds / 86_400 + 4) % 7))
        .u32(result::OK);
    Ok(w.finish())
}

/// NetprNameValidate (MS-SRVS 3.1.4.32) for users, computers and shares.
fn name_validate(mut r: Reader<'_>) -> Stub {
    r.optional_string("srvsvc.ServerName")?;
    let name = r.string("srvsvc.Name")?;
    let kind = r.u32("srvsvc.NameType")?;
    r.u32("srvsvc.Flags")?;
    const USER: u32 = 1;
    const COMPUTER: u32 = 5;
    const SHARE: u32 = 9;
    let most = match kind {
        USER => 256,
        COMPUTER => 15,
        SHARE => 80,
        _ => return Ok(status_only(result::INVALID_PARAMETER)),
    };
    let plain = |c: char| !c.is_control() && !"\"\\/[]:|<>+=;,*?".contains(c);
    let right = (1..=most).contains(&name.chars().count()) && name.chars().all(plain);
    Ok(status_only(if right { result::OK } else { result::INVALID_NAME }))
}
