//! Parameter data of PERSISTENT RESERVE IN (SPC-4 6.14).

use super::{
    state::{Kind, State},
    transport_id,
};

pub(super) fn report(state: &State, action: u8, can_persist: bool) -> Vec<u8> {
    match action {
        0 => with_generation(state, keys(state)),
        1 => with_generation(state, reservation(state)),
        2 => capabilities(state, can_persist),
        _ => with_generation(state, full_status(state)),
    }
}

fn with_generation(state: &State, body: Vec<u8>) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + body.len());
    out.extend(state.generation.to_be_bytes());
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(body);
    out
}

fn keys(state: &State) -> Vec<u8> {
    state.registrations.iter().flat_map(|it| it.key.to_be_bytes()).collect()
}

/// The key is 0 where all registrants hold it.
fn reservation(state: &State) -> Vec<u8> {
    let Some(reservation) = &state.reservation else { return Vec::new() };
    let key = reservation.holder.as_ref().and_then(|it| state.key_of(it)).unwrap_or(0);
    let mut out = Vec::with_capacity(16);
    out.extend(key.to_be_bytes());
    out.extend([0, 0, 0, 0, 0, reservation.kind as u8, 0, 0]);
    out
}

fn capabilities(state: &State, can_persist: bool) -> Vec<u8> {
    // CRH, SIP_C, ATP_C, PTPL_C.
    let first = 0x1c | u8::from(can_persist);
    // TMV, PTPL_A.
    let second = 0x80 | u8::from(state.persist);
    let mask = Kind::ALL.into_iter().fold(0u16, |mask, kind| {
        mask | match kind {
            Kind::WriteExclusiveAll => 0x8000,
            Kind::ExclusiveAccessRegistrants => 0x4000,
            Kind::WriteExclusiveRegistrants => 0x2000,
            Kind::ExclusiveAccess => 0x0800,
            Kind::WriteExclusive => 0x0200,
            Kind::ExclusiveAccessAll => 0x0001,
        }
    });
    let mask = mask.to_be_bytes();
    vec![0, 8, first, second, mask[0], mask[1], 0, 0]
}

fn full_status(state: &State) -> Vec<u8> {
    let mut out = Vec::new();
    for registration in &state.registrations {
        let holds = state.holds(&registration.who);
        let kind = state.reservation.as_ref().filter(|_| holds).map_or(0, |it| it.kind as u8);
        let id = transport_id::encode(&registration.who.initiator);
        out.extend(registration.key.to_be_bytes());
        out.extend([0, 0, 0, 0, u8::from(holds), kind, 0, 0, 0, 0]);
        out.extend(registration.who.port.to_be_bytes());
        out.extend((id.len() as u32).to_be_bytes());
        out.extend(id);
    }
    out
}
