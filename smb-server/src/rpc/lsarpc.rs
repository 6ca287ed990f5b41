//! lsarpc: names to identifiers and back, and whose server this is (MS-LSAD, MS-LSAT).

use dce_rpc::{
    FaultStatus, SyntaxId,
    ndr::{Handle, Reader, Writer},
};
use smb_protocol::{
    security::Sid,
    wire::{WireError, len32},
};

use super::handles::{Handles, Object};
use crate::rpc::accounts::Account;
use crate::rpc::call::{Caller, Served, bad_stub};

/// MS-LSAD 1.9.
pub const INTERFACE: SyntaxId =
    SyntaxId::new(0x1234_5778, 0x1234, 0xabcd, [0xef, 0, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab], 0, 0);

/// Operations (MS-LSAD 3.1.4, MS-LSAT 3.1.4).
mod op {
    pub const CLOSE: u16 = 0;
    pub const OPEN_POLICY: u16 = 6;
    pub const QUERY_POLICY: u16 = 7;
    pub const LOOKUP_NAMES: u16 = 14;
    pub const LOOKUP_SIDS: u16 = 15;
    pub const OPEN_POLICY2: u16 = 44;
    pub const GET_USER_NAME: u16 = 45;
    pub const QUERY_POLICY2: u16 = 46;
    pub const LOOKUP_SIDS2: u16 = 57;
    pub const LOOKUP_NAMES2: u16 = 58;
    pub const LOOKUP_NAMES3: u16 = 68;
}

const SUCCESS: u32 = 0;
const SOME_NOT_MAPPED: u32 = 0x0000_0107;
const NONE_MAPPED: u32 = 0xc000_0073;
const INVALID_PARAMETER: u32 = 0xc000_000d;
/// `SidTypeUnknown`.
const UNKNOWN: u16 = 8;
/// No domain.
const NOWHERE: u32 = u32::MAX;
/// Names or identifiers of one call (MS-LSAT 3.1.4.5 and following).
const MOST: usize = 1000;

/// Carries out a call: its results in NDR, or a fault.
pub fn serve(caller: &Caller<'_>, handles: &mut Handles, opnum: u16, mut r: Reader<'_>) -> Served {
    match opnum {
        op::CLOSE => {
            handles.close(&r.handle().map_err(bad_stub)?)?;
            let mut w = Writer::new();
            w.handle(&Handle::default()).u32(SUCCESS);
            Ok(w.finish())
        }
        // Anyone who is logged on may look names up; the handle gives no other right.
        op::OPEN_POLICY | op::OPEN_POLICY2 => {
            let handle = handles.add(Object::Policy)?;
            let mut w = Writer::new();
            w.handle(&handle).u32(SUCCESS);
            Ok(w.finish())
        }
        op::GET_USER_NAME => user_name(caller),
        op::QUERY_POLICY | op::QUERY_POLICY2 => {
            policy(handles, &mut r)?;
            let class = r.u16("lsa.InformationClass").map_err(bad_stub)?;
            Ok(query(caller, class))
        }
        op::LOOKUP_NAMES | op::LOOKUP_NAMES2 | op::LOOKUP_NAMES3 => {
            policy(handles, &mut r)?;
            let names = read_names(&mut r).map_err(bad_stub)?;
            Ok(lookup_names(caller, opnum, &names))
        }
        op::LOOKUP_SIDS | op::LOOKUP_SIDS2 => {
            policy(handles, &mut r)?;
            let sids = read_sids(&mut r).map_err(bad_stub)?;
            Ok(lookup_sids(caller, opnum, &sids))
        }
        _ => Err(FaultStatus::OP_RANGE),
    }
}

/// Reads a handle, which must be a policy's.
fn policy(handles: &Handles, r: &mut Reader<'_>) -> Result<(), FaultStatus> {
    match handles.get(&r.handle().map_err(bad_stub)?)? {
        Object::Policy => Ok(()),
        _ => Err(FaultStatus::CONTEXT_MISMATCH),
    }
}

/// LsarGetUserName (MS-LSAT 3.1.4.4).
fn user_name(caller: &Caller<'_>) -> Served {
    let account = caller.accounts.named(&caller.session.user.name);
    let name = account.map_or_else(|| caller.session.user.name.clone(), |account| account.name);
    let mut w = Writer::new();
    w.pointer(true).unicode_header(&name).unicode_body(&name);
    w.pointer(true).pointer(true);
    w.unicode_header(&caller.accounts.name).unicode_body(&caller.accounts.name).u32(SUCCESS);
    Ok(w.finish())
}

/// LsarQueryInformationPolicy (MS-LSAD 3.1.4.4.4).
fn query(caller: &Caller<'_>, class: u16) -> Vec<u8> {
    const PRIMARY_DOMAIN: u16 = 3;
    const ACCOUNT_DOMAIN: u16 = 5;
    const SERVER_ROLE: u16 = 6;
    const DNS_DOMAIN: u16 = 12;
    let mut w = Writer::new();
    let name = &caller.accounts.name;
    match class {
        ACCOUNT_DOMAIN => {
            w.pointer(true).u16(class).unicode_header(name).pointer(true);
            w.unicode_body(name).sid(&caller.accounts.sid);
        }
        // Stand-alone: in a workgroup, which has no identifier.
        PRIMARY_DOMAIN => {
            w.pointer(true).u16(class).unicode_header("WORKGROUP").pointer(false);
            w.unicode_body("WORKGROUP");
        }
        DNS_DOMAIN => {
            w.pointer(true).u16(class).unicode_header("WORKGROUP");
            w.unicode_header("").unicode_header("").bytes(&[0; 16]).pointer(false);
            w.unicode_body("WORKGROUP").unicode_body("").unicode_body("");
        }
        SERVER_ROLE => {
            const PRIMARY: u16 = 3;
            w.pointer(true).u16(class).u16(PRIMARY);
        }
        _ => {
            w.pointer(false).u32(INVALID_PARAMETER);
            return w.finish();
        }
    }
    w.u32(SUCCESS);
    w.finish()
}

fn read_names(r: &mut Reader<'_>) -> Result<Vec<String>, WireError> {
    const FIELD: &str = "lsa.Names";
    let count = r.u32(FIELD)?;
    let elements = r.count(8, FIELD)?;
    if u32::try_from(elements) != Ok(count) || elements > MOST {
        return Err(WireError::Value { field: FIELD, value: count.into() });
    }
    let mut present = Vec::new();
    for _ in 0..elements {
        present.push(r.unicode_header(FIELD)?);
    }
    present.into_iter().map(|p| if p { r.string(FIELD) } else { Ok(String::new()) }).collect()
}

fn read_sids(r: &mut Reader<'_>) -> Result<Vec<Sid>, WireError> {
    const FIELD: &str = "lsa.Sids";
    let count = r.u32(FIELD)?;
    if !r.pointer(FIELD)? {
        return Ok(Vec::new());
    }
    let elements = r.count(4, FIELD)?;
    if u32::try_from(elements) != Ok(count) || elements > MOST {
        return Err(WireError::Value { field: FIELD, value: count.into() });
    }
    for _ in 0..elements {
        if !r.pointer(FIELD)? {
            return Err(WireError::Value { field: FIELD, value: 0 });
        }
    }
    (0..elements).map(|_| r.sid(FIELD)).collect()
}

/// The domains that results refer to by their place.
#[derive(Default)]
struct Domains(Vec<(String, Sid)>);

impl Domains {
    fn place(&mut self, account: &Account) -> u32 {
        let known = self.0.iter().position(|(_, sid)| *sid == account.domain_sid);
        len32(known.unwrap_or_else(|| {
            self.0.push((account.domain.clone(), account.domain_sid.clone()));
            self.0.len() - 1
        }))
    }

    /// Appends a pointer to an LSAPR_REFERENCED_DOMAIN_LIST with it (MS-LSAT 2.2.12).
    fn write(&self, w: &mut Writer) {
        let count = len32(self.0.len());
        w.pointer(true).u32(count).pointer(count > 0).u32(32);
        if count > 0 {
            w.u32(count);
            for (name, _) in &self.0 {
                w.unicode_header(name).pointer(true);
            }
            for (name, sid) in &self.0 {
                w.unicode_body(name).sid(sid);
            }
        }
    }
}

fn outcome(found: usize, asked: usize) -> u32 {
    match found {
        _ if found == asked => SUCCESS,
        0 => NONE_MAPPED,
        _ => SOME_NOT_MAPPED,
    }
}

/// LsarLookupNames to LsarLookupNames3 (MS-LSAT 3.1.4.8, .7, .6): they differ in what is told of
/// each name.
fn lookup_names(caller: &Caller<'_>, opnum: u16, names: &[String]) -> Vec<u8> {
    let accounts: Vec<_> = names.iter().map(|name| caller.accounts.named(name)).collect();
    let mut domains = Domains::default();
    let places: Vec<_> =
        accounts.iter().map(|a| a.as_ref().map_or(NOWHERE, |a| domains.place(a))).collect();
    let found = accounts.iter().flatten().count();
    let mut w = Writer::new();
    domains.write(&mut w);
    let count = len32(accounts.len());
    w.u32(count).pointer(count > 0);
    if count > 0 {
        w.u32(count);
    }
    for (account, place) in accounts.iter().zip(&places) {
        w.u16(account.as_ref().map_or(UNKNOWN, |account| account.kind as u16));
        if opnum == op::LOOKUP_NAMES3 {
            w.pointer(account.is_some());
        } else {
            // A domain has no number of its own.
            let rid = account.as_ref().and_then(|a| a.sid.number_below(&a.domain_sid));
            w.u32(rid.unwrap_or(u32::MAX));
        }
        w.u32(*place);
        if opnum != op::LOOKUP_NAMES {
            w.u32(0);
        }
    }
    if opnum == op::LOOKUP_NAMES3 {
        accounts.iter().flatten().for_each(|account| {
            w.sid(&account.sid);
        });
    }
    w.u32(len32(found)).u32(outcome(found, accounts.len()));
    w.finish()
}

/// LsarLookupSids and LsarLookupSids2 (MS-LSAT 3.1.4.11, 3.1.4.10).
fn lookup_sids(caller: &Caller<'_>, opnum: u16, sids: &[Sid]) -> Vec<u8> {
    let accounts: Vec<_> = sids.iter().map(|sid| caller.accounts.identified(sid)).collect();
    let mut domains = Domains::default();
    let mut results = Vec::new();
    for (account, sid) in accounts.iter().zip(sids) {
        results.push(match account {
            Some(account) => (account.kind as u16, account.name.clone(), domains.place(account)),
            None => (UNKNOWN, sid.to_string(), NOWHERE),
        });
    }
    let found = accounts.iter().flatten().count();
    let mut w = Writer::new();
    domains.write(&mut w);
    let count = len32(results.len());
    w.u32(count).pointer(count > 0);
    if count > 0 {
        w.u32(count);
    }
    for (kind, name, place) in &results {
        w.u16(*kind).unicode_header(name).u32(*place);
        if opnum == op::LOOKUP_SIDS2 {
            w.u32(0);
        }
    }
    for (_, name, _) in &results {
        w.unicode_body(name);
    }
    w.u32(len32(found)).u32(outcome(found, results.len()));
    w.finish()
}
