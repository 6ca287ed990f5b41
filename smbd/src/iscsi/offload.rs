//! Tokens of offloaded transfers that go from shares to LUNs and back (MS-FSCC 2.3.41, SPC-4 5.16.6).
//!
//! ```text
//!  FSCTL_OFFLOAD_WRITE ─► volume's tokens ─ not theirs ─► Offload ─► units of targets of that user
//!  WRITE USING TOKEN ──► a target's tokens ─ not its own ─► Foreign ─┬► units of that user's targets
//!                                                                    └► volume's tokens, as that user
//! ```
//! A token is its maker's. Who that is on the other side only an administrator can say: `offload_user`
//! of a `[[target]]` names the user of shares who stands for its initiators. Without it no token
//! passes. Nothing of iSCSI is encrypted, so tokens of shares that must be are refused there.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError, RwLock, Weak},
};

use block_io::Error;
use scsi::{ForeignTokens, TokenData, TokenError, TokenRead, Units};
use smb_protocol::{NtStatus, fscc::offload::Token, ntlm::users};
use tokio::runtime::Handle;
use volume::offload_tokens::{Elsewhere, ElsewhereData, Held, Owner, Tokens};

/// A target whose tokens may pass.
struct Entry {
    user: String,
    units: Arc<Units>,
}

/// The targets whose tokens may pass, by name.
#[derive(Default)]
struct Table(RwLock<BTreeMap<String, Entry>>);

impl Table {
    /// What a token of a target of `user` stands for; targets of the name `but` are not asked.
    fn find(&self, token: &[u8], user: &str, but: Option<&str>) -> Option<Arc<dyn TokenData>> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut others =
            table.iter().filter(|(name, entry)| Some(name.as_str()) != but && entry.user == user);
        others.find_map(|(_, entry)| entry.units.token(token))
    }
}

/// The border between the tokens of files and those of LUNs.
pub(super) struct Offload {
    table: Arc<Table>,
    tokens: Weak<Tokens>,
    runtime: Handle,
}

impl fmt::Debug for Offload {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Offload").finish_non_exhaustive()
    }
}

impl Offload {
    /// Stands beside the tokens of a file server, which ask it from now on. Must run inside a runtime.
    pub(super) fn new(tokens: &Arc<Tokens>) -> Arc<Self> {
        let (table, runtime) = (Arc::default(), Handle::current());
        let offload = Arc::new(Self { table, tokens: Arc::downgrade(tokens), runtime });
        tokens.ask_elsewhere(offload.clone());
        offload
    }

    /// What a target finds its foreign tokens by.
    pub(super) fn foreign(&self, target: &str) -> Arc<dyn ForeignTokens> {
        let (table, tokens) = (self.table.clone(), self.tokens.clone());
        Arc::new(Foreign { target: target.to_owned(), table, tokens })
    }

    /// Says for which user of shares the initiators of a target stand; `None`: for nobody.
    pub(super) fn set(&self, target: &str, user: Option<&str>, units: &Arc<Units>) {
        let mut table = self.table.0.write().unwrap_or_else(PoisonError::into_inner);
        match user {
            Some(user) => {
                let entry = Entry { user: users::fold(user), units: units.clone() };
                table.insert(target.to_owned(), entry);
            }
            None => drop(table.remove(target)),
        }
    }

    /// A target is not served any more.
    pub(super) fn forget(&self, target: &str) {
        self.table.0.write().unwrap_or_else(PoisonError::into_inner).remove(target);
    }
}

impl Elsewhere for Offload {
    fn redeem(&self, token: &Token, asks: &Owner) -> Option<Box<dyn ElsewhereData>> {
        let data = self.table.find(&token.0, &asks.user, None)?;
        Some(Box::new(OfUnit { data, runtime: self.runtime.clone() }))
    }
}

/// Blocks of a unit, for a file.
struct OfUnit {
    data: Arc<dyn TokenData>,
    runtime: Handle,
}

impl ElsewhereData for OfUnit {
    fn length(&self) -> u64 {
        self.data.length()
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), NtStatus> {
        self.runtime.block_on(self.data.read_at(at, buf)).map_err(|error| match error {
            TokenError::Void => NtStatus::INVALID_TOKEN,
            TokenError::Withheld => NtStatus::ACCESS_DENIED,
            other => {
                tracing::warn!(error = %other, "the data of a LUN's token could not be read");
                NtStatus::IO_DEVICE_ERROR
            }
        })
    }
}

/// What a target finds its foreign tokens by.
struct Foreign {
    target: String,
    table: Arc<Table>,
    tokens: Weak<Tokens>,
}

impl ForeignTokens for Foreign {
    fn find(&self, token: &[u8]) -> Option<Arc<dyn TokenData>> {
        let user = {
            let table = self.table.0.read().unwrap_or_else(PoisonError::into_inner);
            table.get(&self.target)?.user.clone()
        };
        if let Some(found) = self.table.find(token, &user, Some(&self.target)) {
            return Some(found);
        }
        let token = Token(token.try_into().ok()?);
        let held = self.tokens.upgrade()?.redeem(&token, &Owner { user, sealed: false }).ok()?;
        Some(Arc::new(OfFile(held)))
    }
}

/// A range of a file, for a unit.
#[derive(Debug)]
struct OfFile(Arc<Held>);

impl TokenData for OfFile {
    fn length(&self) -> u64 {
        self.0.length()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> TokenRead<'a> {
        Box::pin(async move {
            let (held, mut bytes) = (self.0.clone(), vec![0; buf.len()]);
            let read = move || held.read(offset, &mut bytes).map(|()| bytes);
            let ended = tokio::task::spawn_blocking(read).await;
            let failed = |text: String| {
                let source = std::io::Error::other(text);
                TokenError::Storage(Error::io("reading what a token stands for", source))
            };
            match ended.map_err(|error| failed(error.to_string()))? {
                Ok(bytes) => buf.copy_from_slice(&bytes),
                Err(NtStatus::INVALID_TOKEN) => return Err(TokenError::Void),
                Err(status) => return Err(failed(format!("{status:?}"))),
            }
            Ok(())
        })
    }
}
