//! All that a configuration file says, and what of it the processes of a cluster's node have.

use std::path::Path;

use ::cluster::config::Config as ClusterConfig;
use http_api::ApiConfig;

use crate::{
    Beside,
    cluster::{self, witness},
    config::Config,
    declared,
    iscsi::config::IscsiConfig,
    witness::config::WitnessConfig,
};

/// What a configuration file says, by the programs of a server that it is about.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The file server.
    pub config: Config,
    /// Targets of iSCSI.
    pub iscsi: IscsiConfig,
    /// The witness service, if there is one.
    pub witness: Option<WitnessConfig>,
    /// The cluster, if the server is a node of one.
    pub cluster: Option<ClusterConfig>,
    /// The control interface.
    pub api: ApiConfig,
}

/// Which part of a file a process serves.
#[derive(Debug, Clone)]
pub enum Part {
    /// All of it: there is no cluster.
    Whole,
    /// A role of a cluster, by its name.
    Role(String, ClusterConfig),
    /// The witness service of a node.
    Witness(ClusterConfig),
}

impl Parts {
    /// Reads a file.
    ///
    /// # Errors
    /// A text that says what cannot be, and where.
    pub fn load(file: &Path) -> Result<Self, String> {
        let text = declared::whole_text(file)?;
        let config = Config::parse(&text, file).map_err(|error| error.to_string())?;
        let iscsi = IscsiConfig::parse(&text, file).map_err(|error| error.to_string())?;
        let witness = WitnessConfig::load(file).map_err(|error| error.to_string())?;
        let cluster = ClusterConfig::load(file).map_err(|error| error.to_string())?;
        let api = ApiConfig::load(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let parts = Self { config, iscsi, witness, cluster, api };
        if let Some(cluster) = &parts.cluster {
            cluster::check(&parts, cluster)?;
            if !parts.api.listen.is_empty() {
                return Err(
                    "api.listen: the servers of a cluster have local sockets only".to_owned()
                );
            }
        }
        Ok(parts)
    }

    /// What a process has of it. What is a cluster's, a node reads when it starts.
    ///
    /// # Errors
    /// A text: there is no such role, or no witness service any more.
    pub fn of(self, part: &Part) -> Result<Self, String> {
        match part {
            Part::Whole => Ok(self),
            Part::Role(role, cluster) => cluster::of_role(self, cluster, role),
            Part::Witness(_) => witness::of_node(self),
        }
    }

    /// Where the services beside the file server listen.
    pub fn beside(&self) -> Beside<'_> {
        Beside::new(&self.iscsi, self.witness.as_ref(), &self.api)
    }
}
