//! What a CREATE asks for beside the file: an oplock or lease, a durable handle, an instance of an
//! application (MS-SMB2 3.3.5.9.6 to 3.3.5.9.13).

use std::time::Duration;

use smb_protocol::{
    Dialect, NtStatus,
    msg::{
        context::{self, AppVersion, DurableV2, Lease, LeaseState, names},
        create::{Access, RawContext, Request},
        oplock::OplockLevel,
    },
};
use volume::{
    fs::descriptor::CreateTag,
    open::{Durability, Open},
    sharing::caching::{CachingRequest, LeaseId, LeaseView},
    users::ClientId,
};

/// How long a durable handle is kept if the client does not say (MS-SMB2, note on 3.3.5.9.6).
const DURABLE_TIME: Duration = Duration::from_secs(120);
/// How long a persistent handle is kept if the client does not say (note on 3.3.5.9.10).
const PERSISTENT_TIME: Duration = Duration::from_secs(60);
/// Longest time that a client may ask for.
const DURABLE_MOST: Duration = Duration::from_secs(300);
/// Flags of leases in answers.
const BREAK_IN_PROGRESS: u32 = 2;
const PARENT_KEY_SET: u32 = 4;

/// A request for a durable handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durable {
    /// Version 1.
    V1,
    /// Version 2.
    V2(DurableV2),
}

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct CreateContexts {
    /// An oplock or lease.
    pub caching: Option<CachingRequest>,
    /// A durable handle.
    pub durable: Option<Durable>,
    /// `AppInstanceId`.
    pub app_instance: Option<[u8; 16]>,
    /// `AppInstanceVersion`.
    pub app_version: Option<(u64, u64)>,
}

impl CreateContexts {
    /// Reads them; combinations that make no sense are refused.
    pub fn read(
        request: &Request<'_>,
        dialect: Dialect,
        client: ClientId,
    ) -> Result<Self, NtStatus> {
        let find = |name| context::find(&request.contexts, name);
        let bad = |_| NtStatus::INVALID_PARAMETER;
        let smb3 = dialect.is_smb3();
        let leases = match request.oplock {
            OplockLevel::LEASE => dialect != Dialect::SMB_2_0_2,
            // Servers of Windows 8 and 8.1 look at the context all the same (MS-SMB2, notes 340 and
            // 345), and there are clients of their dialects that rely on it.
            OplockLevel::NONE => [Dialect::SMB_3_0, Dialect::SMB_3_0_2].contains(&dialect),
            _ => false,
        };
        let caching = match request.oplock {
            _ if leases => match find(names::RQLS) {
                Some(data) if data.len() == 32 || data.len() == 52 => {
                    let lease = Lease::parse(data).map_err(bad)?;
                    // Version 2 (MS-SMB2 3.3.5.9.11) has no meaning to SMB 2.1, which then gets no
                    // lease.
                    (smb3 || lease.v2.is_none()).then(|| want(&lease, client))
                }
                Some(_) => return Err(NtStatus::INVALID_PARAMETER),
                None => None,
            },
            level @ (OplockLevel::II | OplockLevel::EXCLUSIVE | OplockLevel::BATCH) => {
                Some(CachingRequest::Oplock(level))
            }
            _ => None,
        };
        // Those of version 2 are known whatever dialect is spoken (MS-SMB2 3.3.5.9.6, 3.3.5.9.10).
        let durable = match (find(names::DHNQ), find(names::DH2Q)) {
            (Some(_), Some(_)) => return Err(NtStatus::INVALID_PARAMETER),
            (_, Some(data)) => Some(Durable::V2(DurableV2::parse(data).map_err(bad)?)),
            (Some(data), _) if data.len() == 16 => Some(Durable::V1),
            (Some(_), _) => return Err(NtStatus::INVALID_PARAMETER),
            (None, None) => None,
        };
        let app_instance = match find(names::APP_INSTANCE_ID).filter(|_| smb3) {
            Some(data) => Some(context::parse_app_instance(data).map_err(bad)?),
            None => None,
        };
        let app_version = match find(names::APP_INSTANCE_VERSION) {
            Some(data) if dialect == Dialect::SMB_3_1_1 => {
                let AppVersion { high, low } = AppVersion::parse(data).map_err(bad)?;
                Some((high, low))
            }
            _ => None,
        };
        Ok(Self { caching, durable, app_instance, app_version })
    }

    /// The lease that is asked for.
    pub fn lease(&self) -> Option<LeaseId> {
        match self.caching {
            Some(CachingRequest::Lease { id, .. }) => Some(id),
            _ => None,
        }
    }

    /// The key of the lease on the folder that the client says it has.
    pub fn parent_lease(&self) -> Option<[u8; 16]> {
        match self.caching {
            Some(CachingRequest::Lease { v2: Some((key, _)), .. }) => key,
            _ => None,
        }
    }

    /// `CreateGuid`, if there is one.
    pub fn create_guid(&self) -> Option<[u8; 16]> {
        match self.durable {
            Some(Durable::V2(v2)) => Some(v2.create_guid),
            _ => None,
        }
    }

    /// Whether a persistent open is asked for.
    pub fn wants_persistence(&self) -> bool {
        matches!(self.durable, Some(Durable::V2(v2)) if v2.flags & DurableV2::PERSISTENT != 0)
    }

    /// What a file bears that this CREATE of a client makes.
    pub fn mark(&self, client: [u8; 16]) -> Option<CreateTag> {
        let mut mark = [0; 32];
        mark[..16].copy_from_slice(&self.create_guid()?);
        mark[16..].copy_from_slice(&client);
        Some(mark)
    }

    /// For how long a persistent open is kept, if that is what is asked for (MS-SMB2 3.3.5.9.10).
    pub fn persistence(&self) -> Option<Duration> {
        match self.durable {
            Some(Durable::V2(v2)) if v2.flags & DurableV2::PERSISTENT != 0 => {
                Some(match v2.timeout {
                    0 => PERSISTENT_TIME,
                    ms => Duration::from_millis(ms.into()).min(DURABLE_MOST),
                })
            }
            _ => None,
        }
    }

    /// For how long an open that caches `state` is kept when its client is away.
    pub fn durability(&self, open: &Open, state: LeaseState) -> Durability {
        if open.directory || !state.has(LeaseState::HANDLE) {
            return Durability::None;
        }
        match self.durable {
            None => Durability::None,
            Some(Durable::V1) => Durability::Durable(DURABLE_TIME),
            Some(Durable::V2(v2)) => Durability::Durable(match v2.timeout {
                0 => DURABLE_TIME,
                ms => Duration::from_millis(ms.into()).min(DURABLE_MOST),
            }),
        }
    }
}

fn want(lease: &Lease, client: ClientId) -> CachingRequest {
    let parent = |key| (lease.flags & PARENT_KEY_SET != 0).then_some(key);
    CachingRequest::Lease {
        id: LeaseId { client, key: lease.key },
        state: lease.state,
        v2: lease.v2.map(|(key, epoch)| (parent(key), epoch)),
    }
}

/// Rights without which a repeated CREATE is a new one (MS-SMB2 3.3.5.9.10).
pub const REPLAYABLE: Access = Access(
    Access::READ_DATA.0
        | Access::EXECUTE.0
        | Access::WRITE_DATA.0
        | Access::APPEND_DATA.0
        | Access::DELETE.0,
);

/// The answer's contexts about caching and durability, with their bytes.
#[derive(Debug, Default)]
pub struct Answers {
    lease: Option<Vec<u8>>,
    durable_v1: bool,
    durable_v2: Option<[u8; 8]>,
}

impl Answers {
    /// What stands of the open now.
    pub fn of(open: &Open, durable: Option<Durable>) -> Self {
        let granted = open.state().durability;
        let mut answers = Self {
            lease: open.file.lease(open.opener_id()).as_ref().map(lease_bytes),
            ..Self::default()
        };
        let (time, flags) = match granted {
            Durability::Durable(time) => (time, 0),
            Durability::Persistent(time) => (time, DurableV2::PERSISTENT),
            Durability::None | Durability::Resilient(_) => return answers,
        };
        let ms = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        match durable {
            Some(Durable::V1) => answers.durable_v1 = true,
            Some(Durable::V2(_)) => answers.durable_v2 = Some(DurableV2::response(ms, flags)),
            None => {}
        }
        answers
    }

    /// Adds them to the contexts of an answer.
    pub fn add_to<'a>(&'a self, contexts: &mut Vec<RawContext<'a>>) {
        if let Some(data) = &self.lease {
            contexts.push(RawContext { name: names::RQLS, data });
        }
        if self.durable_v1 {
            contexts.push(RawContext { name: names::DHNQ, data: &[0; 8] });
        }
        if let Some(data) = &self.durable_v2 {
            contexts.push(RawContext { name: names::DH2Q, data });
        }
    }
}

fn lease_bytes(view: &LeaseView) -> Vec<u8> {
    let mut flags = if view.breaking { BREAK_IN_PROGRESS } else { 0 };
    let v2 = view.v2.map(|(parent, epoch)| {
        if parent.is_some() {
            flags |= PARENT_KEY_SET;
        }
        (parent.unwrap_or_default(), epoch)
    });
    Lease { key: view.id.key, state: view.state, flags, v2 }.to_bytes()
}
