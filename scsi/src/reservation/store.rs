//! Reservations that outlive a loss of power (APTPL, SPC-4 5.13.5), as bytes for a store.

use std::sync::Arc;

use nom::{
    IResult, Parser,
    bytes::complete::take,
    multi::count,
    number::complete::{be_u8, be_u16, be_u32, be_u64},
};

use super::state::{Kind, MAX_REGISTRATIONS, Registration, Reservation, State, Who};

const VERSION: u8 = 1;
const ALL: u32 = u32::MAX;

/// The state as bytes; nothing if it is not to be kept.
pub(super) fn encode(state: &State) -> Vec<u8> {
    if !state.persist || state.registrations.is_empty() {
        return Vec::new();
    }
    let mut out = vec![VERSION];
    out.extend((state.registrations.len() as u32).to_be_bytes());
    for Registration { who, key } in &state.registrations {
        out.extend((who.initiator.len() as u16).to_be_bytes());
        out.extend(who.initiator.as_bytes());
        out.extend(who.port.to_be_bytes());
        out.extend(key.to_be_bytes());
    }
    let kind = state.reservation.as_ref().map_or(0, |it| it.kind as u8);
    let holder = state.reservation.as_ref().and_then(|it| it.holder.as_ref());
    let at = holder.and_then(|it| state.registrations.iter().position(|other| other.who == *it));
    out.push(kind);
    out.extend(at.map_or(ALL, |at| at as u32).to_be_bytes());
    out
}

/// The state that was encoded, with PRGENERATION 0 as after a power on. `None` if it is none.
pub(super) fn decode(bytes: &[u8]) -> Option<State> {
    if bytes.is_empty() {
        return Some(State::default());
    }
    let (rest, (version, length)) = header(bytes).ok()?;
    let length = usize::try_from(length).ok()?;
    if version != VERSION || length > MAX_REGISTRATIONS {
        return None;
    }
    let (rest, registrations) = count(registration, length).parse(rest).ok()?;
    let (rest, (kind, holder)) = held(rest).ok()?;
    let registrations: Vec<_> = registrations.into_iter().collect::<Option<_>>()?;
    let reservation = match (kind, Kind::of(kind)) {
        (0, _) => None,
        (_, Some(kind)) if kind.all_registrants() => Some(Reservation { kind, holder: None }),
        (_, Some(kind)) => {
            let holder = registrations.get(usize::try_from(holder).ok()?)?.who.clone();
            Some(Reservation { kind, holder: Some(holder) })
        }
        _ => return None,
    };
    rest.is_empty().then_some(State { generation: 0, registrations, reservation, persist: true })
}

fn header(input: &[u8]) -> IResult<&[u8], (u8, u32)> {
    (be_u8, be_u32).parse(input)
}

fn held(input: &[u8]) -> IResult<&[u8], (u8, u32)> {
    (be_u8, be_u32).parse(input)
}

fn registration(input: &[u8]) -> IResult<&[u8], Option<Registration>> {
    let (rest, length) = be_u16(input)?;
    let (rest, (name, port, key)) = (take(length), be_u16, be_u64).parse(rest)?;
    let name = std::str::from_utf8(name).ok();
    let who = name.map(|name| Who { initiator: Arc::from(name), port });
    Ok((rest, who.map(|who| Registration { who, key })))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_kept_comes_back(
            names in proptest::collection::btree_set("[a-z0-9:.,]{1,40}", 1..8),
            kind in proptest::option::of(proptest::sample::select(Kind::ALL.to_vec())),
        ) {
            let registrations: Vec<_> = names
                .iter()
                .enumerate()
                .map(|(n, name)| Registration {
                    who: Who { initiator: name.as_str().into(), port: n as u16 },
                    key: n as u64,
                })
                .collect();
            let holder = registrations.last().map(|it| it.who.clone());
            let reservation = kind.map(|kind| Reservation {
                kind,
                holder: holder.filter(|_| !kind.all_registrants()),
            });
            let state = State { generation: 0, registrations, reservation, persist: true };
            let bytes = encode(&state);
            prop_assert_eq!(decode(&bytes), Some(state));
            for end in 1..bytes.len() {
                prop_assert_eq!(decode(&bytes[..end]), None);
            }
        }

        #[test]
        fn any_bytes_are_a_state_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
