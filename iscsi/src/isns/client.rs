//! What is asked of an iSNS server, and what its answers say.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::message::{self, Attribute, HEADER, LIMIT, flag, function, node_type, tag};
use crate::{
    initiator::{DiscoveredPortal, DiscoveredTarget},
    pdu::WireError,
};

/// For how long a server may take.
const TIME: Duration = Duration::from_secs(15);
/// Entity Protocol: iSCSI (RFC 4171 6.2.2).
const ISCSI: u32 = 2;
/// No Such Entry (RFC 4171 5.4).
const NO_SUCH_ENTRY: u32 = 9;
/// The most portals and targets that a server's answer may have.
const MOST: usize = 16_384;

/// Why a server did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IsnsError {
    /// It cannot be reached, or went away.
    #[error("iSNS server {0}: {1}")]
    Io(String, #[source] io::Error),
    /// It did not answer in time.
    #[error("iSNS server {0}: no answer within {1:?}")]
    TimedOut(String, Duration),
    /// It refuses (RFC 4171 5.4).
    #[error("iSNS server {server} refuses: {}", status(*.code))]
    Refused {
        /// Its address.
        server: String,
        /// The Status Code.
        code: u32,
    },
    /// It broke the protocol.
    #[error("iSNS server {0} breaks the protocol: {1}")]
    Protocol(String, String),
}

/// What a Status Code means (RFC 4171 5.4).
fn status(code: u32) -> String {
    let text = match code {
        1 => "unknown error",
        2 => "message format error",
        3 => "invalid registration",
        5 => "invalid query",
        6 => "source unknown",
        7 => "source absent",
        8 => "source unauthorized",
        NO_SUCH_ENTRY => "no such entry",
        10 => "version not supported",
        11 => "internal error",
        12 => "busy",
        13 => "option not understood",
        14 => "invalid update",
        15 => "message not supported",
        18 => "attribute not implemented",
        22 => "invalid deregistration",
        23 => "registration feature not supported",
        _ => return format!("status {code}"),
    };
    text.to_owned()
}

/// A target as the name service knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its iSCSI name.
    pub name: String,
    /// Its name for people.
    pub alias: Option<String>,
}

/// All that a target server registers: one entity, each node at each portal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Entity Identifier: names this server among all, such as its host name.
    pub entity: String,
    /// Where it listens.
    pub portals: Vec<SocketAddr>,
    /// The target portal group tag of these portals.
    pub group: u16,
    /// Its targets.
    pub nodes: Vec<Node>,
}

/// Registers, in place of what was registered for this entity before; without a node there is
/// nothing to register. Gives the Registration
/// Period, within which the server wants to hear from it again, if there is one.
///
/// # Errors
/// [`IsnsError`].
pub async fn register(
    server: &str,
    registration: &Registration,
) -> Result<Option<Duration>, IsnsError> {
    let Some(source) = registration.nodes.first() else { return Ok(None) };
    let entity = Attribute::text(tag::ENTITY, &registration.entity);
    let mut attributes = vec![
        Attribute::text(tag::NAME, &source.name),
        entity.clone(),
        Attribute::empty(tag::DELIMITER),
        entity,
        Attribute::number(tag::PROTOCOL, ISCSI),
    ];
    for portal in &registration.portals {
        attributes.push(address(tag::PORTAL_ADDRESS, portal.ip()));
        attributes.push(Attribute::number(tag::PORTAL_PORT, portal.port().into()));
    }
    for node in &registration.nodes {
        attributes.push(Attribute::text(tag::NAME, &node.name));
        attributes.push(Attribute::number(tag::NODE_TYPE, node_type::TARGET));
        if let Some(alias) = &node.alias {
            attributes.push(Attribute::text(tag::ALIAS, alias));
        }
        for portal in &registration.portals {
            attributes.push(Attribute::text(tag::GROUP_NAME, &node.name));
            attributes.push(address(tag::GROUP_ADDRESS, portal.ip()));
            attributes.push(Attribute::number(tag::GROUP_PORT, portal.port().into()));
            attributes.push(Attribute::number(tag::GROUP_TAG, registration.group.into()));
        }
    }
    let answer = ask(server, function::REGISTER, flag::REPLACE, &attributes).await?;
    let period = answer.iter().find(|it| it.tag == tag::PERIOD).and_then(Attribute::as_number);
    Ok(period.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.into())))
}

/// Lets the server hear of an entity, which keeps it registered; whether the server knows it as it
/// was registered. It may have lost it, as one does that was restarted.
///
/// # Errors
/// [`IsnsError`].
pub async fn keep(server: &str, registration: &Registration) -> Result<bool, IsnsError> {
    let Some(source) = registration.nodes.first() else { return Ok(true) };
    let attributes = [
        Attribute::text(tag::NAME, &source.name),
        Attribute::text(tag::ENTITY, &registration.entity),
        Attribute::empty(tag::DELIMITER),
        Attribute::empty(tag::ENTITY),
        Attribute::empty(tag::NAME),
    ];
    let answer = match ask(server, function::QUERY, 0, &attributes).await {
        Ok(answer) => answer,
        // It does not know the source any more, or the entity.
        Err(IsnsError::Refused { code: 6 | 7 | NO_SUCH_ENTRY, .. }) => return Ok(false),
        Err(error) => return Err(error),
    };
    // Discovery domains may hide the entity's other nodes from this one.
    Ok(answer.iter().any(|it| it.tag == tag::NAME && it.as_text() == Some(&source.name)))
}

/// Takes an entity with all its nodes and portals away, as it was registered.
///
/// # Errors
/// [`IsnsError`]; not that the server does not know it.
pub async fn deregister(server: &str, registration: &Registration) -> Result<(), IsnsError> {
    let Some(source) = registration.nodes.first() else { return Ok(()) };
    let attributes = [
        Attribute::text(tag::NAME, &source.name),
        Attribute::empty(tag::DELIMITER),
        Attribute::text(tag::ENTITY, &registration.entity),
    ];
    match ask(server, function::DEREGISTER, 0, &attributes).await {
        Ok(_) | Err(IsnsError::Refused { code: 6 | 7 | NO_SUCH_ENTRY, .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The targets that the initiator of this name may use, by the server's discovery domains.
///
/// # Errors
/// [`IsnsError`].
pub async fn discover(server: &str, initiator: &str) -> Result<Vec<DiscoveredTarget>, IsnsError> {
    // A server answers those whom it knows (RFC 4171 5.6.1).
    let attributes = [
        Attribute::text(tag::NAME, initiator),
        Attribute::number(tag::NODE_TYPE, node_type::TARGET),
        Attribute::empty(tag::DELIMITER),
        Attribute::empty(tag::NAME),
        Attribute::empty(tag::GROUP_NAME),
        Attribute::empty(tag::GROUP_ADDRESS),
        Attribute::empty(tag::GROUP_PORT),
        Attribute::empty(tag::GROUP_TAG),
    ];
    let answer = match ask(server, function::QUERY, 0, &attributes).await {
        Ok(answer) => answer,
        Err(IsnsError::Refused { code: NO_SUCH_ENTRY, .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    read_targets(&answer).map_err(|what| IsnsError::Protocol(server.to_owned(), what.to_owned()))
}

/// Puts nodes and portal groups of an answer together.
///
/// # Errors
/// Why the answer cannot be.
pub fn read_targets(answer: &[Attribute]) -> Result<Vec<DiscoveredTarget>, &'static str> {
    let mut targets: BTreeMap<String, Vec<DiscoveredPortal>> = BTreeMap::new();
    let (mut name, mut ip, mut port) = (None, None, None);
    let mut portals = 0;
    for it in answer {
        match it.tag {
            tag::NAME => {
                let node = node_name(it).ok_or("a name that is no text")?;
                targets.entry(node.to_owned()).or_default();
            }
            tag::GROUP_NAME => (name, ip, port) = (node_name(it), None, None),
            tag::GROUP_ADDRESS => ip = read_address(&it.value),
            tag::GROUP_PORT => port = it.as_number().and_then(|port| u16::try_from(port).ok()),
            // The last of a portal group's; one without a number leads to no node.
            tag::GROUP_TAG => {
                let number = it.as_number().and_then(|number| u16::try_from(number).ok());
                let (Some(name), Some(ip), Some(port), Some(tag)) = (name, ip, port, number) else {
                    continue;
                };
                portals += 1;
                let address = SocketAddr::new(ip, port).to_string();
                let portal = DiscoveredPortal { address, tag };
                targets.entry(name.to_owned()).or_default().push(portal);
            }
            _ => {}
        }
        if portals > MOST || targets.len() > MOST {
            return Err("more targets than can be");
        }
    }
    Ok(targets.into_iter().map(|(name, portals)| DiscoveredTarget { name, portals }).collect())
}

/// The name of a node. None has control characters, and whoever shows it to a person
/// would carry them out.
fn node_name(attribute: &Attribute) -> Option<&str> {
    attribute.as_text().filter(|name| !name.contains(char::is_control))
}

/// IPv4 in the form of RFC 4291 2.5.5.2 (RFC 4171 6.3.1).
fn address(tag: u32, ip: IpAddr) -> Attribute {
    let six = match ip {
        IpAddr::V4(four) => four.to_ipv6_mapped(),
        IpAddr::V6(six) => six,
    };
    Attribute { tag, value: six.octets().into() }
}

fn read_address(value: &[u8]) -> Option<IpAddr> {
    Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?)).to_canonical())
}

/// Sends a request and gives the attributes of its response.
async fn ask(
    server: &str,
    function: u16,
    flags: u16,
    attributes: &[Attribute],
) -> Result<Vec<Attribute>, IsnsError> {
    static TRANSACTION: AtomicU16 = AtomicU16::new(1);
    let transaction = TRANSACTION.fetch_add(1, Ordering::Relaxed);
    let request = message::write(function, flag::CLIENT | flags, transaction, attributes);
    let exchange = async {
        let failed = |error| IsnsError::Io(server.to_owned(), error);
        let mut stream = TcpStream::connect(server).await.map_err(failed)?;
        stream.write_all(&request).await.map_err(failed)?;
        receive(&mut stream, server, function | function::RESPONSE, transaction).await
    };
    let answer = timeout(TIME, exchange).await;
    let answer = answer.unwrap_or_else(|_| Err(IsnsError::TimedOut(server.to_owned(), TIME)))?;
    let (code, attributes) =
        message::read_response(&answer).map_err(|error| wrong(server, error))?;
    match code {
        0 => Ok(attributes),
        code => Err(IsnsError::Refused { server: server.to_owned(), code }),
    }
}

fn wrong(server: &str, error: WireError) -> IsnsError {
    IsnsError::Protocol(server.to_owned(), error.to_string())
}

/// Puts the PDUs of one response together; others on their way are passed over.
async fn receive(
    stream: &mut TcpStream,
    server: &str,
    function: u16,
    transaction: u16,
) -> Result<Vec<u8>, IsnsError> {
    let failed = |error| IsnsError::Io(server.to_owned(), error);
    let protocol = |what: &str| IsnsError::Protocol(server.to_owned(), what.to_owned());
    let (mut payload, mut next, mut taken) = (Vec::new(), 0u16, 0);
    loop {
        let mut bytes = vec![0; HEADER];
        stream.read_exact(&mut bytes).await.map_err(failed)?;
        let length = message::payload_length(&bytes).map_err(|error| wrong(server, error))?;
        bytes.resize(HEADER + length, 0);
        stream.read_exact(&mut bytes[HEADER..]).await.map_err(failed)?;
        taken += bytes.len();
        if taken > LIMIT {
            return Err(protocol("a message without an end"));
        }
        let (_, pdu) = message::read_pdu(&bytes).map_err(|error| wrong(server, error))?;
        if (pdu.function, pdu.transaction) != (function, transaction) {
            continue;
        }
        if pdu.sequence != next {
            return Err(protocol("parts of a message are missing"));
        }
        next = next.wrapping_add(1);
        payload.extend_from_slice(pdu.payload);
        if pdu.flags & flag::LAST != 0 {
            return Ok(payload);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, ip: &str, port: u32, number: Option<u32>) -> [Attribute; 4] {
        let number = number.map(|number| Attribute::number(tag::GROUP_TAG, number));
        [
            Attribute::text(tag::GROUP_NAME, name),
            address(tag::GROUP_ADDRESS, ip.parse().unwrap()),
            Attribute::number(tag::GROUP_PORT, port),
            number.unwrap_or_else(|| Attribute::empty(tag::GROUP_TAG)),
        ]
    }

    #[test]
    fn groups_belong_to_their_nodes_wherever_they_stand() {
        let mut answer =
            vec![Attribute::text(tag::NAME, "iqn.b"), Attribute::text(tag::NAME, "iqn.a")];
        answer.extend(group("iqn.a", "192.0.2.1", 3260, Some(1)));
        answer.extend(group("iqn.b", "2001:db8::1", 3261, Some(2)));
        // By which its node is not reached (RFC 4171 6.5.4), and a port of UDP.
        answer.extend(group("iqn.b", "192.0.2.9", 3260, None));
        answer.extend(group("iqn.b", "192.0.2.9", 0x1_0cbc, Some(1)));
        let targets = read_targets(&answer).unwrap();
        let found: Vec<_> = targets
            .iter()
            .map(|it| {
                (
                    it.name.as_str(),
                    it.portals.iter().map(|p| (p.address.as_str(), p.tag)).collect::<Vec<_>>(),
                )
            })
            .collect();
        let right =
            [("iqn.a", vec![("192.0.2.1:3260", 1)]), ("iqn.b", vec![("[2001:db8::1]:3261", 2)])];
        assert_eq!(found, right);
    }

    #[test]
    fn a_name_with_control_characters_is_none() {
        for name in ["iqn.\u{1b}[2J", "iqn.a\nb", "iqn.\u{9b}2J"] {
            assert!(read_targets(&[Attribute::text(tag::NAME, name)]).is_err(), "{name:?}");
            let answer = group(name, "192.0.2.1", 3260, Some(1));
            assert_eq!(read_targets(&answer).unwrap().len(), 0, "{name:?}");
        }
    }

    #[test]
    fn what_is_missing_is_no_portal() {
        let [name, ip, port, number] = group("iqn.a", "192.0.2.1", 3260, Some(1));
        for at in 0..3 {
            let mut answer = vec![name.clone(), ip.clone(), port.clone(), number.clone()];
            answer.remove(at);
            let targets = read_targets(&answer).unwrap();
            assert!(targets.iter().all(|target| target.portals.is_empty()), "{at}");
        }
    }
}
