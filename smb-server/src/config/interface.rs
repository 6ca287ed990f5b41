//! `[[interface]]` tables: what clients are told of the system's interfaces where it does not know
//! better, as of virtual ones.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Check, ConfigError};

/// An interface as it is written.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    name: String,
    speed_mbit: Option<u64>,
    rss: Option<bool>,
    rdma: Option<bool>,
    #[serde(default = "super::yes")]
    offered: bool,
}

/// What clients are told of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface {
    /// Bits per second, instead of what the system says.
    pub speed: Option<u64>,
    /// Whether it spreads connections over CPUs, instead of what the system says.
    pub rss: Option<bool>,
    /// Whether it carries SMB Direct, instead of whether the server listens there for it.
    pub rdma: Option<bool>,
    /// Whether clients are told of it at all.
    pub offered: bool,
}

/// What is told of interfaces, by name.
pub type Interfaces = BTreeMap<String, Interface>;

impl Check<'_> {
    /// Reads and checks the tables.
    pub(super) fn interfaces(&self, sections: &[Section]) -> Result<Interfaces, ConfigError> {
        let mut all = Interfaces::new();
        for section in sections {
            let key = format!("interface {:?}", section.name);
            if section.name.is_empty() || section.name.contains('/') {
                return Err(self.bad(&key, "no name of an interface"));
            }
            let speed = section.speed_mbit.map(|mbit| {
                let bits = mbit.checked_mul(1_000_000).filter(|bits| *bits > 0);
                bits.ok_or_else(|| self.bad(&key, "speed_mbit is out of range"))
            });
            let interface = Interface {
                speed: speed.transpose()?,
                rss: section.rss,
                rdma: section.rdma,
                offered: section.offered,
            };
            if all.insert(section.name.clone(), interface).is_some() {
                return Err(self.bad(&key, "defined twice"));
            }
        }
        Ok(all)
    }
}
