//! The calls and their results (MS-SWN 3.1.4), as parameters in NDR or NDR64, for both sides.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dce_rpc::{
    Transfer,
    ndr::{Handle, Reader, Writer},
};
use smb_protocol::{
    flag_set,
    wire::{Result, WireError, len32},
};

use crate::{
    Status,
    notice::{Kind, Notice},
    view::NodeState,
};

/// WitnessrGetInterfaceList (MS-SWN 3.1.4.1).
pub const GET_INTERFACE_LIST: u16 = 0;
/// WitnessrRegister (3.1.4.2).
pub const REGISTER: u16 = 1;
/// WitnessrUnRegister (3.1.4.3).
pub const UNREGISTER: u16 = 2;
/// WitnessrAsyncNotify (3.1.4.4).
pub const ASYNC_NOTIFY: u16 = 3;
/// WitnessrRegisterEx (3.1.4.5).
pub const REGISTER_EX: u16 = 4;
/// WitnessrUnRegisterEx (3.1.4.6).
pub const UNREGISTER_EX: u16 = 5;

/// Units of `InterfaceGroupName`.
const NAME_UNITS: usize = 260;
/// Length of a WITNESS_INTERFACE_INFO in bytes.
const INFO_LEN: usize = 552;

flag_set! {
    /// `Flags` of an interface (MS-SWN 2.2.2.5).
    InterfaceFlags: u32 {
        /// The address of IPv4 is one.
        V4 = 1,
        /// The address of IPv6 is one.
        V6 = 2,
        /// Clients may register there.
        WITNESS = 4,
    }
}

/// What a client wants to be told about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Register {
    /// The version of the protocol that the client speaks.
    pub version: u32,
    /// The name by which it reaches the cluster.
    pub net_name: Option<String>,
    /// The share that it uses; version 2 only.
    pub share_name: Option<String>,
    /// The address that it uses.
    pub address: Option<String>,
    /// Its own name.
    pub client: Option<String>,
    /// It wants to be told of all addresses; version 2 only.
    pub all_addresses: bool,
    /// After how many seconds it wants an answer in any case; version 2 only.
    pub keep_alive: u32,
}

/// A call with its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Where can clients register?
    GetInterfaceList,
    /// Version 1.
    Register(Register),
    /// End of a registration.
    Unregister(Handle),
    /// Tell what has happened, when something has.
    AsyncNotify(Handle),
    /// Version 2.
    RegisterEx(Register),
    /// End of a registration whose handle is given back.
    UnregisterEx(Handle),
}

/// One interface of a node, WITNESS_INTERFACE_INFO (MS-SWN 2.2.2.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The interface group: a node.
    pub group: String,
    /// The version that the server speaks.
    pub version: u32,
    /// How it is.
    pub state: NodeState,
    /// Where it is.
    pub address: Option<IpAddr>,
    /// Clients may register there.
    pub witness: bool,
}

/// Results of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To [`Request::GetInterfaceList`].
    Interfaces(std::result::Result<Vec<Interface>, Status>),
    /// To [`Request::Register`] and [`Request::RegisterEx`].
    Registered(std::result::Result<Handle, Status>),
    /// To [`Request::Unregister`].
    Unregistered(Status),
    /// To [`Request::AsyncNotify`].
    Notified(std::result::Result<Notice, Status>),
    /// To [`Request::UnregisterEx`]: the handle that is left.
    UnregisteredEx(Handle, Status),
}

fn parse_register(mut r: Reader<'_>, ex: bool) -> Result<Register> {
    let version = r.u32("register.Version")?;
    let net_name = r.optional_string("register.NetName")?;
    let share_name = if ex { r.optional_string("register.ShareName")? } else { None };
    let address = r.optional_string("register.IpAddress")?;
    let client = r.optional_string("register.ClientComputerName")?;
    let (flags, keep_alive) = match ex {
        true => (r.u32("register.Flags")?, r.u32("register.KeepAliveTimeout")?),
        false => (0, 0),
    };
    let all_addresses = flags & 1 != 0;
    Ok(Register { version, net_name, share_name, address, client, all_addresses, keep_alive })
}

impl Request {
    /// Reads the parameters of an operation; `None` if there is no such operation.
    ///
    /// # Errors
    /// The parameters are none.
    pub fn parse(opnum: u16, stub: &[u8], transfer: Transfer) -> Result<Option<Self>> {
        let mut r = Reader::of(stub, transfer);
        Ok(Some(match opnum {
            GET_INTERFACE_LIST => Self::GetInterfaceList,
            REGISTER => Self::Register(parse_register(r, false)?),
            UNREGISTER => Self::Unregister(r.handle()?),
            ASYNC_NOTIFY => Self::AsyncNotify(r.handle()?),
            REGISTER_EX => Self::RegisterEx(parse_register(r, true)?),
            UNREGISTER_EX => Self::UnregisterEx(r.handle()?),
            _ => return Ok(None),
        }))
    }

    /// The operation and its parameters.
    pub fn encode(&self, transfer: Transfer) -> (u16, Vec<u8>) {
        let mut w = Writer::of(transfer);
        let opnum = match self {
            Self::GetInterfaceList => GET_INTERFACE_LIST,
            Self::Register(register) => {
                put_register(&mut w, register, false);
                REGISTER
            }
            Self::RegisterEx(register) => {
                put_register(&mut w, register, true);
                REGISTER_EX
            }
            Self::Unregister(handle) => {
                w.handle(handle);
                UNREGISTER
            }
            Self::AsyncNotify(handle) => {
                w.handle(handle);
                ASYNC_NOTIFY
            }
            Self::UnregisterEx(handle) => {
                w.handle(handle);
                UNREGISTER_EX
            }
        };
        (opnum, w.finish())
    }
}

fn put_register(w: &mut Writer, register: &Register, ex: bool) {
    let put = |w: &mut Writer, text: &Option<String>| {
        w.pointer(text.is_some());
        if let Some(text) = text {
            w.string(text);
        }
    };
    w.u32(register.version);
    put(w, &register.net_name);
    if ex {
        put(w, &register.share_name);
    }
    put(w, &register.address);
    put(w, &register.client);
    if ex {
        w.u32(register.all_addresses.into()).u32(register.keep_alive);
    }
}

fn put_interface(w: &mut Writer, interface: &Interface) {
    let mut units: Vec<u16> = interface.group.encode_utf16().take(NAME_UNITS - 1).collect();
    units.resize(NAME_UNITS, 0);
    w.align(4);
    for unit in units {
        w.u16(unit);
    }
    w.u32(interface.version).u16(interface.state.number());
    let (flags, v4, v6) = match interface.address {
        Some(IpAddr::V4(v4)) => (InterfaceFlags::V4, v4.octets(), [0; 16]),
        Some(IpAddr::V6(v6)) => (InterfaceFlags::V6, [0; 4], v6.octets()),
        None => (InterfaceFlags::NONE, [0; 4], [0; 16]),
    };
    // Both stand as the network has them, whatever the order of other numbers.
    w.u32(u32::from_le_bytes(v4));
    w.bytes(&v6);
    let witness = if interface.witness { InterfaceFlags::WITNESS } else { InterfaceFlags::NONE };
    w.u32((flags | witness).0);
}

fn parse_interface(r: &mut Reader<'_>) -> Result<Interface> {
    r.align(4)?;
    let mut units = Vec::with_capacity(NAME_UNITS);
    for _ in 0..NAME_UNITS {
        units.push(r.u16("interface.Group")?);
    }
    units.truncate(units.iter().position(|unit| *unit == 0).unwrap_or(NAME_UNITS));
    let group = String::from_utf16_lossy(&units);
    let version = r.u32("interface.Version")?;
    let state = NodeState::of(r.u16("interface.State")?.into());
    let v4 = r.u32("interface.IPV4")?.to_le_bytes();
    let mut v6 = [0; 16];
    v6.copy_from_slice(r.bytes(16, "interface.IPV6")?);
    let flags = InterfaceFlags(r.u32("interface.Flags")?);
    let address = match (flags.has(InterfaceFlags::V4), flags.has(InterfaceFlags::V6)) {
        (true, _) => Some(Ipv4Addr::from(v4).into()),
        (false, true) => Some(Ipv6Addr::from(v6).into()),
        (false, false) => None,
    };
    let witness = flags.has(InterfaceFlags::WITNESS);
    Ok(Interface { group, version, state, address, witness })
}

impl Reply {
    /// The results as a stub.
    pub fn encode(&self, transfer: Transfer) -> Vec<u8> {
        let mut w = Writer::of(transfer);
        let status = match self {
            Self::Interfaces(Ok(list)) => {
                w.pointer(true).align_wide().u32(len32(list.len())).pointer(true);
                w.wide(len32(list.len()));
                list.iter().for_each(|interface| put_interface(&mut w, interface));
                Status::SUCCESS
            }
            Self::Interfaces(Err(status)) | Self::Notified(Err(status)) => {
                w.pointer(false);
                *status
            }
            Self::Registered(Ok(handle)) => {
                w.handle(handle);
                Status::SUCCESS
            }
            Self::Registered(Err(status)) => {
                w.handle(&Handle::default());
                *status
            }
            Self::Unregistered(status) => *status,
            Self::UnregisteredEx(handle, status) => {
                w.handle(handle);
                *status
            }
            Self::Notified(Ok(notice)) => {
                let (kind, messages, bytes) = notice.encode();
                w.pointer(true).align_wide();
                w.u32(kind.0).u32(len32(bytes.len())).u32(messages).pointer(true);
                w.wide(len32(bytes.len())).bytes(&bytes);
                Status::SUCCESS
            }
        };
        w.u32(status.0);
        w.finish()
    }

    /// Reads the results of an operation, as its client.
    ///
    /// # Errors
    /// They are none, or those of an operation that there is not.
    pub fn parse(opnum: u16, stub: &[u8], transfer: Transfer) -> Result<Self> {
        let mut r = Reader::of(stub, transfer);
        let status = |r: &mut Reader<'_>| r.u32("reply.Status").map(Status);
        Ok(match opnum {
            GET_INTERFACE_LIST => {
                let mut list = Vec::new();
                if r.pointer("reply.InterfaceList")? {
                    r.align_wide()?;
                    r.u32("reply.NumberOfInterfaces")?;
                    if r.pointer("reply.InterfaceInfo")? {
                        for _ in 0..r.count(INFO_LEN, "reply.NumberOfInterfaces")? {
                            list.push(parse_interface(&mut r)?);
                        }
                    }
                }
                Self::Interfaces(outcome(list, status(&mut r)?))
            }
            REGISTER | REGISTER_EX => {
                let handle = r.handle()?;
                Self::Registered(outcome(handle, status(&mut r)?))
            }
            UNREGISTER => Self::Unregistered(status(&mut r)?),
            UNREGISTER_EX => Self::UnregisteredEx(r.handle()?, status(&mut r)?),
            ASYNC_NOTIFY => Self::Notified(parse_notified(&mut r)?),
            other => return Err(WireError::Value { field: "opnum", value: other.into() }),
        })
    }
}

fn outcome<T>(value: T, status: Status) -> std::result::Result<T, Status> {
    if status == Status::SUCCESS { Ok(value) } else { Err(status) }
}

fn parse_notified(r: &mut Reader<'_>) -> Result<std::result::Result<Notice, Status>> {
    const FIELD: &str = "reply.Resp";
    let mut notice = None;
    if r.pointer(FIELD)? {
        r.align_wide()?;
        let (kind, _, messages) = (r.u32(FIELD)?, r.u32(FIELD)?, r.u32(FIELD)?);
        let mut bytes: &[u8] = &[];
        if r.pointer(FIELD)? {
            let len = r.count(1, FIELD)?;
            bytes = r.bytes(len, FIELD)?;
        }
        notice = Notice::parse(Kind(kind), messages, bytes)?;
    }
    let status = Status(r.u32("reply.Status")?);
    Ok(match (status, notice) {
        (Status::SUCCESS, Some(notice)) => Ok(notice),
        // One of a kind that is not known is as good as none.
        (Status::SUCCESS, None) => Err(Status::TIMEOUT),
        (status, _) => Err(status),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::notice::Change;

    fn text() -> impl Strategy<Value = Option<String>> {
        prop::option::of("[a-zA-Zäß€𝄞.]{0,20}")
    }

    fn register() -> impl Strategy<Value = Register> {
        let fields = (any::<u32>(), text(), text(), text(), text(), any::<bool>(), any::<u32>());
        fields.prop_map(
            |(version, net_name, share_name, address, client, all_addresses, keep_alive)| {
                Register {
                    version,
                    net_name,
                    share_name,
                    address,
                    client,
                    all_addresses,
                    keep_alive,
                }
            },
        )
    }

    fn handle() -> impl Strategy<Value = Handle> {
        any::<[u8; 20]>().prop_map(Handle)
    }

    fn request() -> impl Strategy<Value = Request> {
        prop_oneof![
            Just(Request::GetInterfaceList),
            register().prop_map(|register| Request::Register(Register {
                share_name: None,
                all_addresses: false,
                keep_alive: 0,
                ..register
            })),
            register().prop_map(Request::RegisterEx),
            handle().prop_map(Request::Unregister),
            handle().prop_map(Request::UnregisterEx),
            handle().prop_map(Request::AsyncNotify),
        ]
    }

    fn interface() -> impl Strategy<Value = Interface> {
        let state =
            prop_oneof![Just(NodeState::Up), Just(NodeState::Down), Just(NodeState::Unknown)];
        ("[A-Z0-9-]{1,15}", any::<u32>(), state, prop::option::of(any::<IpAddr>()), any::<bool>())
            .prop_map(|(group, version, state, address, witness)| Interface {
                group,
                version,
                state,
                address,
                witness,
            })
    }

    fn reply() -> impl Strategy<Value = (u16, Reply)> {
        let status = prop_oneof![Just(Status::TIMEOUT), Just(Status::NOT_FOUND)];
        let change = Change { name: "node".into(), state: NodeState::Down };
        prop_oneof![
            prop::collection::vec(interface(), 0..4)
                .prop_map(|list| (0, Reply::Interfaces(Ok(list)))),
            handle().prop_map(|handle| (1, Reply::Registered(Ok(handle)))),
            status.clone().prop_map(|status| (4, Reply::Registered(Err(status)))),
            status.clone().prop_map(|status| (0, Reply::Interfaces(Err(status)))),
            status.clone().prop_map(|status| (2, Reply::Unregistered(status))),
            (handle(), status.clone())
                .prop_map(|(h, status)| (5, Reply::UnregisteredEx(h, status))),
            status.prop_map(|status| (3, Reply::Notified(Err(status)))),
            Just((3, Reply::Notified(Ok(Notice::Changed(vec![change]))))),
        ]
    }

    /// The call of MS-SWN 4.1: generalfs, 192.168.1.200, CLIENT01.contoso.com.
    #[test]
    fn a_registration_is_that_of_the_specification() {
        let register = Register {
            version: 0x0001_0001,
            net_name: Some("generalfs".into()),
            address: Some("192.168.1.200".into()),
            client: Some("CLIENT01.contoso.com".into()),
            ..Register::default()
        };
        let (opnum, stub) = Request::Register(register).encode(Transfer::Ndr);
        assert_eq!(opnum, 1);
        assert_eq!(stub[..4], [1, 0, 1, 0]);
        assert_eq!(stub[8..20], [10, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0]);
        assert_eq!(stub[40..44], [0x08, 0, 2, 0]);
        assert_eq!(stub[44..48], [14, 0, 0, 0]);
    }

    /// MS-SWN 4.1 has two bytes of padding behind the state.
    #[test]
    fn an_interface_has_the_layout_of_the_specification() {
        let interface = Interface {
            group: "NODE02".into(),
            version: 0x0002_0000,
            state: NodeState::Up,
            address: Some([192, 168, 1, 22].into()),
            witness: true,
        };
        let stub = Reply::Interfaces(Ok(vec![interface])).encode(Transfer::Ndr);
        assert_eq!(stub.len(), 4 + 8 + 4 + INFO_LEN + 4);
        let info = &stub[16..];
        assert_eq!(info[..4], [b'N', 0, b'O', 0]);
        assert_eq!(info[520..532], [0, 0, 2, 0, 1, 0, 0, 0, 192, 168, 1, 22]);
        assert_eq!(info[544..556], [0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn requests_round_trip(request in request(), wide: bool) {
            let transfer = if wide { Transfer::Ndr64 } else { Transfer::Ndr };
            let (opnum, stub) = request.encode(transfer);
            prop_assert_eq!(Request::parse(opnum, &stub, transfer), Ok(Some(request)));
        }

        #[test]
        fn replies_round_trip((opnum, reply) in reply(), wide: bool) {
            let transfer = if wide { Transfer::Ndr64 } else { Transfer::Ndr };
            let stub = reply.encode(transfer);
            prop_assert_eq!(Reply::parse(opnum, &stub, transfer), Ok(reply));
        }

        #[test]
        fn noise_is_survived(noise in prop::collection::vec(any::<u8>(), 0..200), opnum in 0..8u16, wide: bool) {
            let transfer = if wide { Transfer::Ndr64 } else { Transfer::Ndr };
            let _ = Request::parse(opnum, &noise, transfer);
            let _ = Reply::parse(opnum, &noise, transfer);
        }
    }
}
