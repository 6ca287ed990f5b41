//! wkssvc: the server as a computer among others (MS-WKST).

use dce_rpc::{
    FaultStatus, SyntaxId,
    ndr::{Reader, Writer},
};

use crate::rpc::call::{Caller, Served, bad_stub};

/// MS-WKST 1.9.
pub const INTERFACE: SyntaxId = SyntaxId::new(
    0x6bff_d098,
    0xa112,
    0x3610,
    [0x98, 0x33, 0x46, 0xc3, 0xf8, 0x7e, 0x34, 0x5a],
    1,
    0,
);

const GET_INFO: u16 = 0;
const OK: u32 = 0;
const INVALID_LEVEL: u32 = 124;
const ACCESS_DENIED: u32 = 5;
/// What we are: Windows NT and its kin.
const PLATFORM: u32 = 500;
const GROUP: &str = "WORKGROUP";

/// Carries out a call: its results in NDR, or a fault.
pub fn serve(caller: &Caller<'_>, opnum: u16, mut r: Reader<'_>) -> Served {
    if opnum != GET_INFO {
        return Err(FaultStatus::OP_RANGE);
    }
    r.optional_string("wkssvc.ServerName").map_err(bad_stub)?;
    let level = r.u32("wkssvc.Level").map_err(bad_stub)?;
    let mut w = Writer::new();
    w.u32(level);
    // MS-WKST 2.2.5.1 to 2.2.5.3: each level begins as the one before.
    let status = match level {
        102 if !caller.administers() => ACCESS_DENIED,
        100..=102 => OK,
        _ => INVALID_LEVEL,
    };
    w.pointer(status == OK);
    if status == OK {
        w.u32(PLATFORM).pointer(true).pointer(true).u32(6).u32(1);
        if level >= 101 {
            w.pointer(true);
        }
        if level == 102 {
            w.u32(crate::rpc::srvsvc::people(caller.server));
        }
        w.string(&caller.accounts.name).string(GROUP);
        if level >= 101 {
            w.string("");
        }
    }
    w.u32(status);
    Ok(w.finish())
}
