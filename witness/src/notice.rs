//! What clients are told: the messages in an answer to WitnessrAsyncNotify (MS-SWN 2.2.2.1 to 2.2.2.4).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nom::Parser;
use smb_protocol::{
    flag_set, open_enum,
    parse::{Input, Parsed, array, counted, part, size32, skip, text, u32, with},
    wire::{Put, Result, len32},
};

use crate::view::NodeState;

open_enum! {
    /// `MessageType`.
    Kind: u32 {
        /// Resources have changed.
        RESOURCE_CHANGE = 1,
        /// The client should go elsewhere.
        CLIENT_MOVE = 2,
        /// The share is elsewhere.
        SHARE_MOVE = 3,
        /// Addresses have changed.
        ADDRESS_CHANGE = 4,
    }
}

flag_set! {
    /// `Flags` of an address (MS-SWN 2.2.2.1).
    AddressFlags: u32 {
        /// The address is one of IPv4.
        V4 = 1,
        /// The address is one of IPv6.
        V6 = 2,
        /// It can be used.
        ONLINE = 8,
        /// It cannot.
        OFFLINE = 0x10,
    }
}

/// A resource and how it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The resource: an interface group, a name or an address.
    pub name: String,
    /// How it is.
    pub state: NodeState,
}

/// Addresses, and how each is.
pub type Addresses = Vec<(IpAddr, NodeState)>;

/// What a client is told at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Resources have changed.
    Changed(Vec<Change>),
    /// The client should use these addresses.
    MoveClient(Addresses),
    /// The share is at these addresses.
    MoveShare(Addresses),
    /// How these addresses are now.
    Addresses(Addresses),
}

/// Length of IPADDR_INFO.
const ADDRESS_LEN: usize = 24;
/// Fixed part of IPADDR_INFO_LIST, and of RESOURCE_CHANGE.
const LIST_LEN: usize = 12;
const CHANGE_LEN: usize = 8;

fn put_addresses(list: &Addresses) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u32(len32(LIST_LEN + list.len() * ADDRESS_LEN));
    out.put_u32(0);
    out.put_u32(len32(list.len()));
    for (address, state) in list {
        let (family, v4, v6) = match address {
            IpAddr::V4(v4) => (AddressFlags::V4, v4.octets(), [0; 16]),
            IpAddr::V6(v6) => (AddressFlags::V6, [0; 4], v6.octets()),
        };
        let is = match state {
            NodeState::Up => AddressFlags::ONLINE,
            NodeState::Down => AddressFlags::OFFLINE,
            NodeState::Unknown => AddressFlags::NONE,
        };
        out.put_u32((family | is).0);
        out.put(&v4);
        out.put(&v6);
    }
    out
}

fn put_change(out: &mut Vec<u8>, change: &Change) {
    let units: Vec<u16> = change.name.encode_utf16().chain([0]).collect();
    out.put_u32(len32(CHANGE_LEN + units.len() * 2));
    // Nothing but these two is told of a resource (MS-SWN 3.1.4.4).
    let state = if change.state == NodeState::Down { NodeState::Down } else { NodeState::Up };
    out.put_u32(state.number().into());
    units.iter().for_each(|unit| out.put_u16(*unit));
}

fn address(input: Input<'_>) -> Parsed<'_, Option<(IpAddr, NodeState)>> {
    let (i, (flags, v4, v6)) =
        (u32("address.Flags"), array::<4>("address.IPV4"), array::<16>("address.IPV6"))
            .parse(input)?;
    let flags = AddressFlags(flags);
    let state = match (flags.has(AddressFlags::ONLINE), flags.has(AddressFlags::OFFLINE)) {
        (true, false) => NodeState::Up,
        (false, true) => NodeState::Down,
        _ => NodeState::Unknown,
    };
    let found: Option<IpAddr> = match (flags.has(AddressFlags::V4), flags.has(AddressFlags::V6)) {
        (true, false) => Some(Ipv4Addr::from(v4).into()),
        (false, true) => Some(Ipv6Addr::from(v6).into()),
        _ => None,
    };
    Ok((i, found.map(|address| (address, state))))
}

/// IPADDR_INFO_LIST. Addresses of no known family are left out.
fn addresses(input: Input<'_>) -> Parsed<'_, Addresses> {
    let (i, (_, _, count)) =
        (u32("addresses.Length"), skip(4, "addresses.Reserved"), size32("addresses.Instances"))
            .parse(input)?;
    let (i, list) = counted(count, ADDRESS_LEN, "addresses.Instances", address).parse(i)?;
    Ok((i, list.into_iter().flatten().collect()))
}

/// RESOURCE_CHANGE, which says how long it is.
fn change(input: Input<'_>) -> Parsed<'_, Change> {
    const FIELD: &str = "change.Length";
    let (_, len) = size32(FIELD)(input)?;
    if len < CHANGE_LEN {
        return Err(input.impossible(FIELD, len as u64));
    }
    let (rest, whole) = part(len, FIELD)(input)?;
    let (name, (_, state)) = (skip(4, FIELD), u32("change.ChangeType")).parse(whole)?;
    let (_, mut name) = text(name.len() & !1, "change.ResourceName")(name)?;
    name.truncate(name.find('\0').unwrap_or(name.len()));
    Ok((rest, Change { name, state: NodeState::of(state) }))
}

impl Notice {
    /// What it is, how many messages it has, and these.
    pub fn encode(&self) -> (Kind, u32, Vec<u8>) {
        match self {
            Self::Changed(changes) => {
                let mut out = Vec::new();
                changes.iter().for_each(|change| put_change(&mut out, change));
                (Kind::RESOURCE_CHANGE, len32(changes.len()), out)
            }
            Self::MoveClient(list) => (Kind::CLIENT_MOVE, 1, put_addresses(list)),
            Self::MoveShare(list) => (Kind::SHARE_MOVE, 1, put_addresses(list)),
            Self::Addresses(list) => (Kind::ADDRESS_CHANGE, 1, put_addresses(list)),
        }
    }

    /// Reads the messages of a kind; `None` if the kind is not known.
    ///
    /// # Errors
    /// They end within a field, or count more than is there.
    pub fn parse(kind: Kind, messages: u32, bytes: &[u8]) -> Result<Option<Self>> {
        let input = Input::new(bytes);
        let list = || with(input, addresses);
        Ok(Some(match kind {
            Kind::RESOURCE_CHANGE => {
                let count = usize::try_from(messages).unwrap_or(usize::MAX);
                let read = |input| counted(count, CHANGE_LEN, "Messages", change).parse(input);
                Self::Changed(with(input, read)?)
            }
            Kind::CLIENT_MOVE => Self::MoveClient(list()?),
            Kind::SHARE_MOVE => Self::MoveShare(list()?),
            Kind::ADDRESS_CHANGE => Self::Addresses(list()?),
            _ => return Ok(None),
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The notification of MS-SWN 4.1: 28 bytes, GENERALFS is unavailable.
    #[test]
    fn a_change_is_that_of_the_specification() {
        let change = Change { name: "GENERALFS".into(), state: NodeState::Down };
        let (kind, messages, bytes) = Notice::Changed(vec![change]).encode();
        assert_eq!((kind, messages, bytes.len()), (Kind(1), 1, 28));
        assert_eq!(bytes[..12], [28, 0, 0, 0, 0xff, 0, 0, 0, b'G', 0, b'E', 0]);
    }

    #[test]
    fn addresses_stand_in_the_order_of_the_network() {
        let list = vec![([192, 0, 2, 7].into(), NodeState::Up)];
        let (kind, messages, bytes) = Notice::MoveClient(list).encode();
        assert_eq!((kind, messages, bytes.len()), (Kind(2), 1, 36));
        assert_eq!(bytes[..12], [36, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[12..20], [9, 0, 0, 0, 192, 0, 2, 7]);
    }

    fn state() -> impl Strategy<Value = NodeState> {
        prop_oneof![Just(NodeState::Up), Just(NodeState::Down)]
    }

    fn notice() -> impl Strategy<Value = Notice> {
        let list = || prop::collection::vec((any::<IpAddr>(), state()), 0..6);
        let change =
            ("[a-zA-Zäß€𝄞]{0,20}", state()).prop_map(|(name, state)| Change { name, state });
        prop_oneof![
            prop::collection::vec(change, 0..5).prop_map(Notice::Changed),
            list().prop_map(Notice::MoveClient),
            list().prop_map(Notice::MoveShare),
            list().prop_map(Notice::Addresses),
        ]
    }

    proptest! {
        #[test]
        fn notices_round_trip(notice in notice()) {
            let (kind, messages, bytes) = notice.encode();
            prop_assert_eq!(Notice::parse(kind, messages, &bytes), Ok(Some(notice)));
        }

        #[test]
        fn noise_is_survived(noise in prop::collection::vec(any::<u8>(), 0..150), kind in 0..6u32, count: u32) {
            let _ = Notice::parse(Kind(kind), count, &noise);
            let _ = Notice::parse(Kind(kind), count % 4, &noise);
        }
    }
}
