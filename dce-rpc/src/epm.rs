//! The endpoint mapper: where an interface is found (C706 appendices L and O, MS-RPCE 2.2.1.2).
//!
//! ```text
//!  tower   2 floors │ interface │ transfer syntax │ RPC, connection-oriented │ TCP port │ IPv4 address │
//!  floor   length, left side (protocol, and what it is) │ length, right side
//! ```
//!
//! Numbers of a tower are little-endian and may stand anywhere, but ports and addresses, which are as
//! the network has them. Only what is reached by TCP is mapped.

use std::net::{Ipv4Addr, SocketAddr};

use nom::Parser;
use smb_protocol::{
    open_enum,
    parse::{Input, Parsed, be_u16, bytes, size16, u16, with},
    wire::{Put, Result, WireError, len16, len32},
};

use crate::{
    FaultStatus, SyntaxId,
    ndr::{Handle, Reader, Writer},
};

/// The interface (C706 appendix O).
pub const INTERFACE: SyntaxId = SyntaxId::new(
    0xe1af_8308,
    0x5d1f,
    0x11c9,
    [0x91, 0xa4, 0x08, 0x00, 0x2b, 0x14, 0xa0, 0xfa],
    3,
    0,
);
/// The port that it is found at.
pub const PORT: u16 = 135;

/// ept_lookup, ept_map and ept_lookup_handle_free.
const LOOKUP: u16 = 2;
const MAP: u16 = 3;
const HANDLE_FREE: u16 = 4;
/// Longest tower (MS-RPCE 2.2.1.2.2), and most that a client may ask for (2.2.1.2.5).
const MAX_TOWER: usize = 2000;
const MAX_ANSWERS: u32 = 500;

open_enum! {
    /// `error_status`.
    Status: u32 {
        /// At least one was found.
        OK = 0,
        /// There is none.
        NOT_REGISTERED = 0x16c9_a0d6,
    }
}

/// Protocol identifiers of floors (C706 appendix I).
const PROTOCOL_UUID: u8 = 0x0d;
const PROTOCOL_CONNECTION: u8 = 0x0b;
const PROTOCOL_TCP: u8 = 0x07;
const PROTOCOL_IP: u8 = 0x09;

/// A way to an interface: what is spoken, and where. As a question, port and address say nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tower {
    /// The interface.
    pub interface: SyntaxId,
    /// The transfer syntax.
    pub transfer: SyntaxId,
    /// The port.
    pub port: u16,
    /// The address.
    pub address: Ipv4Addr,
}

/// Left and right side of a floor.
fn floor(input: Input<'_>) -> Parsed<'_, (&[u8], &[u8])> {
    let (i, len) = size16("tower.LhsLength")(input)?;
    let (i, left) = bytes(len, "tower.Lhs")(i)?;
    let (i, len) = size16("tower.RhsLength")(i)?;
    let (i, right) = bytes(len, "tower.Rhs")(i)?;
    Ok((i, (left, right)))
}

/// What a floor of an interface or transfer syntax names.
fn syntax(input: Input<'_>) -> Parsed<'_, SyntaxId> {
    let (i, (left, right)) = floor(input)?;
    let field = "tower.Syntax";
    match (left, right) {
        ([PROTOCOL_UUID, uuid @ .., a, b], [c, d]) if uuid.len() == 16 => {
            let mut id = SyntaxId::default();
            id.uuid.copy_from_slice(uuid);
            (id.major, id.minor) = (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]));
            Ok((i, id))
        }
        _ => Err(input.impossible(field, left.first().copied().unwrap_or_default())),
    }
}

/// The right side of a floor of one protocol.
fn of_protocol<'a>(
    protocol: u8,
    field: &'static str,
) -> impl Fn(Input<'a>) -> Parsed<'a, &'a [u8]> {
    move |input| match floor(input)? {
        (i, ([found], right)) if *found == protocol => Ok((i, right)),
        (_, (left, _)) => Err(input.impossible(field, left.first().copied().unwrap_or_default())),
    }
}

impl Tower {
    /// Reads a tower of RPC over TCP.
    ///
    /// # Errors
    /// It ends within a floor, or is of other protocols.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        with(Input::new(bytes), |input| {
            let (i, floors) = u16("tower.Floors")(input)?;
            if floors != 5 {
                return Err(input.impossible("tower.Floors", floors));
            }
            let (i, (interface, transfer, _, port, address)) = (
                syntax,
                syntax,
                of_protocol(PROTOCOL_CONNECTION, "tower.Rpc"),
                of_protocol(PROTOCOL_TCP, "tower.Tcp"),
                of_protocol(PROTOCOL_IP, "tower.Ip"),
            )
                .parse(i)?;
            let port = be_u16("tower.Port")(Input::new(port))?.1;
            let address: [u8; 4] =
                address.try_into().map_err(|_| i.impossible("tower.Address", 0u8))?;
            Ok((i, Self { interface, transfer, port, address: address.into() }))
        })
    }

    /// The tower's bytes: the count of its floors, and these.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u16(5);
        let mut floor = |left: &[u8], right: &[u8]| {
            out.put_u16(len16(left.len()));
            out.put(left);
            out.put_u16(len16(right.len()));
            out.put(right);
        };
        let syntax = |id: &SyntaxId| {
            let mut left = vec![PROTOCOL_UUID];
            left.put(&id.uuid);
            left.put_u16(id.major);
            (left, id.minor.to_le_bytes())
        };
        let (interface, transfer) = (syntax(&self.interface), syntax(&self.transfer));
        floor(&interface.0, &interface.1);
        floor(&transfer.0, &transfer.1);
        floor(&[PROTOCOL_CONNECTION], &[0, 0]);
        floor(&[PROTOCOL_TCP], &self.port.to_be_bytes());
        floor(&[PROTOCOL_IP], &self.address.octets());
        out
    }
}

/// An interface that is served, and at which port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registered {
    /// The interface.
    pub interface: SyntaxId,
    /// The port.
    pub port: u16,
}

/// Carries out a call of somebody who reached this server at `reached`: its results, or a fault. The
/// interface is served in NDR only.
///
/// # Errors
/// The fault: there is no such operation, or its parameters are none.
pub fn serve(
    registered: &[Registered],
    reached: SocketAddr,
    opnum: u16,
    stub: &[u8],
) -> std::result::Result<Vec<u8>, FaultStatus> {
    let bad = |_: WireError| FaultStatus::BAD_STUB;
    let r = Reader::new(stub);
    match opnum {
        MAP => {
            let (asked, most) = parse_map(r).map_err(bad)?;
            if most > MAX_ANSWERS {
                return Err(FaultStatus::BAD_STUB);
            }
            let found = asked.and_then(|asked| find(registered, reached, &asked));
            Ok(map_answer(found.filter(|_| most > 0), most))
        }
        LOOKUP => Err(FaultStatus::ACCESS_DENIED),
        HANDLE_FREE => {
            let mut w = Writer::new();
            w.handle(&Handle::default()).u32(Status::OK.0);
            Ok(w.finish())
        }
        _ => Err(FaultStatus::OP_RANGE),
    }
}

/// The way to what a tower asks for.
fn find(registered: &[Registered], reached: SocketAddr, asked: &Tower) -> Option<Tower> {
    let served = registered.iter().find(|it| it.interface.serves(&asked.interface))?;
    let known = [SyntaxId::NDR, SyntaxId::NDR64].contains(&asked.transfer);
    let address = match reached.ip().to_canonical() {
        std::net::IpAddr::V4(address) => address,
        // Towers have no room for more; clients use the address that they had.
        std::net::IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    known.then_some(Tower { port: served.port, address, ..*asked })
}

/// Parameters of ept_map: the tower, and how many are wanted. A tower of other protocols is none.
fn parse_map(mut r: Reader<'_>) -> Result<(Option<Tower>, u32)> {
    if r.pointer("map.Object")? {
        r.bytes(16, "map.Object")?;
    }
    let mut tower = None;
    if r.pointer("map.Tower")? {
        let len = r.count(1, "map.TowerLength")?;
        if r.u32("map.TowerLength")? as usize != len || len > MAX_TOWER {
            return Err(WireError::Value { field: "map.TowerLength", value: len as u64 });
        }
        tower = Tower::parse(r.bytes(len, "map.Tower")?).ok();
    }
    r.handle()?;
    Ok((tower, r.u32("map.MaxTowers")?))
}

fn map_answer(found: Option<Tower>, most: u32) -> Vec<u8> {
    let mut w = Writer::new();
    let count = found.is_some().into();
    w.handle(&Handle::default()).u32(count).u32(most).u32(0).u32(count);
    let status = match found {
        None => Status::NOT_REGISTERED,
        Some(tower) => {
            let tower = tower.encode();
            w.pointer(true).u32(len32(tower.len())).u32(len32(tower.len())).bytes(&tower);
            Status::OK
        }
    };
    w.u32(status.0);
    w.finish()
}

/// The question where an interface is found, as the stub of ept_map (operation 3).
pub fn question(interface: SyntaxId, transfer: SyntaxId) -> (u16, Vec<u8>) {
    let tower = Tower { interface, transfer, port: 0, address: Ipv4Addr::UNSPECIFIED }.encode();
    let mut w = Writer::new();
    w.pointer(false).pointer(true);
    w.u32(len32(tower.len())).u32(len32(tower.len())).bytes(&tower);
    w.handle(&Handle::default()).u32(1);
    (MAP, w.finish())
}

/// The port in the answer to it; `None` if the interface is not there.
///
/// # Errors
/// The answer is none.
pub fn parse_answer(stub: &[u8]) -> Result<Option<u16>> {
    let mut r = Reader::new(stub);
    r.handle()?;
    let count = r.u32("map.NumTowers")?;
    let (_, _, there) = (r.u32("map.MaxCount")?, r.u32("map.Offset")?, r.u32("map.ActualCount")?);
    if count == 0 || there == 0 || !r.pointer("map.Tower")? {
        return Ok(None);
    }
    // The first is as good as the others.
    for _ in 1..there {
        r.pointer("map.Tower")?;
    }
    let len = r.count(1, "map.TowerLength")?;
    r.u32("map.TowerLength")?;
    Ok(Some(Tower::parse(r.bytes(len, "map.Tower")?)?.port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SERVED: SyntaxId = SyntaxId::new(0xccd8_c074, 0xd0e5, 0x4a40, [7; 8], 1, 1);

    fn ask(interface: SyntaxId) -> Option<u16> {
        let served = [Registered { interface: SERVED, port: 49_152 }];
        let (opnum, stub) = question(interface, SyntaxId::NDR);
        let reached = "192.0.2.1:135".parse().unwrap();
        parse_answer(&serve(&served, reached, opnum, &stub).unwrap()).unwrap()
    }

    #[test]
    fn what_is_served_is_found_and_nothing_else() {
        assert_eq!(ask(SERVED), Some(49_152));
        assert_eq!(ask(SyntaxId { minor: 0, ..SERVED }), Some(49_152));
        assert_eq!(ask(SyntaxId { minor: 2, ..SERVED }), None);
        assert_eq!(ask(INTERFACE), None);
    }

    /// The tower of C706 appendix L for RPC over TCP, floor by floor.
    #[test]
    fn a_tower_is_written_as_the_standard_has_it() {
        let address = Ipv4Addr::new(192, 0, 2, 1);
        let tower = Tower { interface: INTERFACE, transfer: SyntaxId::NDR, port: 135, address };
        let bytes = tower.encode();
        assert_eq!(bytes.len(), 2 + 25 + 25 + 7 + 7 + 9);
        assert_eq!(bytes[..8], [5, 0, 19, 0, 0x0d, 0x08, 0x83, 0xaf]);
        assert_eq!(
            bytes[52..],
            [1, 0, 0x0b, 2, 0, 0, 0, 1, 0, 7, 2, 0, 0, 135, 1, 0, 9, 4, 0, 192, 0, 2, 1]
        );
        assert_eq!(Tower::parse(&bytes), Ok(tower));
    }

    #[test]
    fn operations_that_are_not_there_are_faults() {
        let reached = "127.0.0.1:135".parse().unwrap();
        assert_eq!(serve(&[], reached, 0, &[]), Err(FaultStatus::OP_RANGE));
        assert_eq!(serve(&[], reached, LOOKUP, &[]), Err(FaultStatus::ACCESS_DENIED));
        assert_eq!(serve(&[], reached, MAP, &[1]), Err(FaultStatus::BAD_STUB));
        let freed = serve(&[], reached, HANDLE_FREE, &[0; 20]).unwrap();
        assert_eq!(freed, [0; 24]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn towers_round_trip_and_noise_is_survived(
            uuid: [u8; 16], major: u16, minor: u16, port: u16, address: [u8; 4],
            at in any::<prop::sample::Index>(), value: u8, noise in prop::collection::vec(any::<u8>(), 0..120),
        ) {
            let interface = SyntaxId { uuid, major, minor };
            let tower = Tower { interface, transfer: SyntaxId::NDR64, port, address: address.into() };
            let mut bytes = tower.encode();
            prop_assert_eq!(Tower::parse(&bytes), Ok(tower));
            let at = at.index(bytes.len());
            bytes[at] = value;
            let _ = Tower::parse(&bytes);
            let _ = Tower::parse(&noise);
            let _ = parse_answer(&noise);
            let reached = "[::1]:135".parse().unwrap();
            for opnum in 0..6 {
                if let Ok(stub) = serve(&[Registered { interface, port }], reached, opnum, &noise) {
                    prop_assert!(stub.len() < 200);
                }
            }
        }
    }
}
