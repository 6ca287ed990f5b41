//! Parameter lists of PERSISTENT RESERVE OUT (SPC-4 6.15.3, 6.15.4).

use std::sync::Arc;

use nom::{
    IResult, Parser,
    number::complete::{be_u8, be_u16, be_u32, be_u64},
};

use super::{
    state::{Kind, Request, Who},
    transport_id,
};
use crate::{asc, refusal::Refusal};

const SPEC_I_PT: u8 = 0x08;
const ALL_TG_PT: u8 = 0x04;
const APTPL: u8 = 0x01;
/// Bytes of the basic list, and of what stands before the TransportID in the list of a move.
const BASIC: usize = 24;

/// The fields of the command descriptor block, and what the target knows.
#[derive(Debug)]
pub(crate) struct Out<'a> {
    pub action: u8,
    pub scope: u8,
    pub kind: u8,
    pub list: &'a [u8],
    pub who: &'a Who,
    /// Every relative target port identifier.
    pub ports: &'a [u16],
    /// Initiator ports that are logged in now.
    pub present: &'a [Arc<str>],
}

/// What a list asks for.
///
/// # Errors
/// A list of another length than its service action has, and fields that cannot be.
pub(crate) fn parse_out(out: &Out<'_>) -> Result<Request, Refusal> {
    if out.action == 7 {
        return parse_move(out);
    }
    let length = Refusal::illegal(asc::PARAMETER_LIST_LENGTH);
    let (_, (key, new, flags)) = basic(out.list).map_err(|_| length)?;
    let spec = flags & SPEC_I_PT != 0;
    if out.list.len() != BASIC && !(spec && out.action == 0) {
        return Err(length);
    }
    if spec && out.action != 0 {
        return Err(Refusal::in_list(20));
    }
    if matches!(out.action, 1 | 2 | 4 | 5) && out.scope != 0 {
        return Err(Refusal::in_cdb(2, Some(7)));
    }
    let kind = Kind::of(out.kind);
    Ok(match out.action {
        0 | 6 => {
            let others = if new == 0 { Vec::new() } else { others(out, flags)? };
            let (ignore, persist) = (out.action == 6, flags & APTPL != 0);
            Request::Register { key, new, ignore, persist, others }
        }
        1 => Request::Reserve { key, kind: kind.ok_or(Refusal::in_cdb(2, Some(3)))? },
        2 => Request::Release { key, kind: out.kind },
        3 => Request::Clear { key },
        _ => Request::Preempt { key, victim: new, kind, abort: out.action == 5 },
    })
}

fn basic(list: &[u8]) -> IResult<&[u8], (u64, u64, u8)> {
    let (rest, (key, new, _obsolete, flags, _reserved, _)) =
        (be_u64, be_u64, be_u32, be_u8, be_u8, be_u16).parse(list)?;
    Ok((rest, (key, new, flags)))
}

/// Everybody else that a REGISTER names: TransportIDs, and all target ports.
fn others(out: &Out<'_>, flags: u8) -> Result<Vec<Who>, Refusal> {
    let mut names: Vec<Arc<str>> = vec![Arc::clone(&out.who.initiator)];
    if flags & SPEC_I_PT != 0 {
        names.extend(listed(out)?);
    }
    let own = [out.who.port];
    let ports = if flags & ALL_TG_PT != 0 { out.ports } else { &own };
    let mut all = Vec::new();
    for name in names {
        for &port in ports {
            let who = Who { initiator: Arc::clone(&name), port };
            if who != *out.who && !all.contains(&who) {
                all.push(who);
            }
        }
    }
    Ok(all)
}

/// The initiator ports of the list of TransportIDs; an initiator without an ISID is all of its
/// ports that are logged in.
fn listed(out: &Out<'_>) -> Result<Vec<Arc<str>>, Refusal> {
    let short = Refusal::illegal(asc::PARAMETER_LIST_LENGTH);
    let rest = out.list.get(BASIC..).unwrap_or_default();
    let (head, mut rest) = rest.split_first_chunk::<4>().ok_or(short)?;
    if u32::from_be_bytes(*head) as usize != rest.len() {
        return Err(short);
    }
    let mut names = Vec::new();
    while !rest.is_empty() {
        let at = out.list.len() - rest.len();
        let (id, length) = transport_id::decode(rest).ok_or(Refusal::in_list(at))?;
        rest = &rest[length..];
        if id.device {
            let ports = out
                .present
                .iter()
                .filter(|it| transport_id::device_name(it).eq_ignore_ascii_case(&id.name));
            names.extend(ports.cloned());
        } else {
            names.push(known(out, &id.name));
        }
    }
    Ok(names)
}

/// The name as the initiator itself writes it, if it is there.
fn known(out: &Out<'_>, name: &str) -> Arc<str> {
    let found = out.present.iter().find(|it| it.eq_ignore_ascii_case(name));
    found.cloned().unwrap_or_else(|| Arc::from(name))
}

fn parse_move(out: &Out<'_>) -> Result<Request, Refusal> {
    let short = Refusal::illegal(asc::PARAMETER_LIST_LENGTH);
    let (id, (key, new, flags, port, length)) = moving(out.list).map_err(|_| short)?;
    if length as usize != id.len() {
        return Err(short);
    }
    let (to, used) = transport_id::decode(id).ok_or(Refusal::in_list(BASIC))?;
    if used != id.len() || to.device {
        return Err(Refusal::in_list(BASIC));
    }
    if !out.ports.contains(&port) {
        return Err(Refusal::in_list(18));
    }
    let to = Who { initiator: known(out, &to.name), port };
    let (unregister, persist) = (flags & 0x02 != 0, flags & APTPL != 0);
    Ok(Request::Move { key, new, unregister, persist, to })
}

fn moving(list: &[u8]) -> IResult<&[u8], (u64, u64, u8, u16, u32)> {
    let (rest, (key, new, _, flags, port, length)) =
        (be_u64, be_u64, be_u8, be_u8, be_u16, be_u32).parse(list)?;
    Ok((rest, (key, new, flags, port, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out<'a>(action: u8, list: &'a [u8], who: &'a Who, present: &'a [Arc<str>]) -> Out<'a> {
        Out { action, scope: 0, kind: 1, list, who, ports: &[1, 2], present }
    }

    fn who() -> Who {
        Who { initiator: "iqn.x:a,i,0x01".into(), port: 1 }
    }

    #[test]
    fn a_registration_can_name_other_initiators_and_all_ports() {
        let present: [Arc<str>; 2] = ["iqn.x:b,i,0x01".into(), "iqn.x:b,i,0x02".into()];
        let ids = transport_id::encode("iqn.x:b");
        let mut list = vec![0; 20];
        list[15] = 9;
        list.extend([SPEC_I_PT | ALL_TG_PT | APTPL, 0, 0, 0]);
        list.extend((ids.len() as u32).to_be_bytes());
        list.extend(ids);
        let who = who();
        let Ok(Request::Register { new: 9, persist: true, ignore: false, others, .. }) =
            parse_out(&out(0, &list, &who, &present))
        else {
            panic!("a registration");
        };
        // Two ports of b, at two target ports each, and a's own other one.
        assert_eq!(others.len(), 5);
        assert!(parse_out(&out(6, &list, &who, &present)).is_err(), "not with service action 6");
        list.pop();
        assert!(parse_out(&out(0, &list, &who, &present)).is_err());
    }

    #[test]
    fn lists_of_a_wrong_length_are_refused() {
        let who = who();
        for length in (0..40).filter(|length| *length != BASIC) {
            let list = vec![0; length];
            let refused = parse_out(&out(1, &list, &who, &[]));
            assert_eq!(refused, Err(Refusal::illegal(asc::PARAMETER_LIST_LENGTH)), "{length}");
        }
    }
}
