//! Networks, as lists of who may come: `192.0.2.0/24`, `2001:db8::/32`, or one address.

use std::{borrow::Cow, fmt, net::IpAddr, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

/// The addresses whose first bits are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no address and no network; write for example \"192.0.2.0/24\" or \"2001:db8::1\""
)]
pub struct NotANetwork(String);

/// An address as it is meant: IPv4 inside IPv6 is IPv4.
fn plain(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// Bits of an address, from the top of 128.
fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    }
}

impl JsonSchema for Network {
    fn schema_name() -> Cow<'static, str> {
        "Network".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An address, or a network: 192.0.2.0/24",
            "type": "string",
            "pattern": "^[0-9a-fA-F.:]+(/[0-9]{1,3})?$",
        })
    }
}

impl Network {
    /// The address that it begins with.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// How many bits of an address count.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether an address lies in it.
    pub fn holds(self, address: IpAddr) -> bool {
        let ((mine, width), (its, other)) = (bits(self.address), bits(plain(address)));
        let mask = u128::MAX.checked_shl(u32::from(128 - self.prefix)).unwrap_or(0);
        width == other && (mine ^ its) & mask == 0
    }
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let refused = || NotANetwork(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address = plain(address.parse().map_err(|_| refused())?);
        let (value, width) = bits(address);
        let prefix = match prefix {
            Some(prefix) => prefix.parse().ok().filter(|p| *p <= width).ok_or_else(refused)?,
            None => width,
        };
        // Bits behind the prefix are a slip of the pen: which network was meant?
        if value.checked_shl(prefix.into()).unwrap_or(0) != 0 {
            return Err(refused());
        }
        Ok(Self { address, prefix })
    }
}

impl TryFrom<String> for Network {
    type Error = NotANetwork;

    fn try_from(text: String) -> Result<Self, NotANetwork> {
        text.parse()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks_hold_their_addresses() {
        for (network, address, holds) in [
            ("192.0.2.0/24", "192.0.2.255", true),
            ("192.0.2.0/24", "192.0.3.0", false),
            ("192.0.2.0/24", "::ffff:192.0.2.7", true),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.6", false),
            ("0.0.0.0/0", "203.0.113.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("2001:db8::/33", "2001:db8:8000::", false),
            ("2001:db8::/33", "2001:db8:7fff::", true),
        ] {
            let network: Network = network.parse().unwrap();
            assert_eq!(network.holds(address.parse().unwrap()), holds, "{network} {address}");
        }
        for text in ["", "x", "192.0.2.1/24", "192.0.2.0/33", "::/129", "192.0.2.0/-1", "1.2.3"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered_and_networks_round_trip(text in "\\PC{0,20}", n in any::<u32>(), prefix in 0u8..=32) {
            let _ = text.parse::<Network>();
            let kept = u32::MAX.checked_shl(u32::from(32 - prefix)).unwrap_or(0);
            let address = IpAddr::from((n & kept).to_be_bytes());
            let network = Network { address, prefix };
            prop_assert_eq!(network.to_string().parse(), Ok(network));
            prop_assert!(network.holds(IpAddr::from(n.to_be_bytes())));
        }
    }
}
