//! Whether a request is let in: its session, its signature, its encryption (MS-SMB2 3.3.5.2.1.1,
//! 3.3.5.2.4, 3.3.5.2.9).

use std::sync::Arc;

use smb_protocol::{
    Command, Header, HeaderFlags, NtStatus, SessionId,
    crypto::{Role, SigningKey},
};
use volume::clock;

use super::{Exchange, answer::Protection};
use crate::{
    command::session_setup::{self, BindingRequest},
    session::{Channel, Session},
};

/// What is known of a request before it is dispatched.
#[derive(Default)]
pub(super) struct Admitted {
    pub(super) channel: Option<Arc<Channel>>,
    /// It wants to bind the connection to a session.
    pub(super) binding: Option<Box<BindingRequest>>,
}

impl Admitted {
    pub(super) fn to(channel: &Arc<Channel>) -> Self {
        Self { channel: Some(channel.clone()), binding: None }
    }
}

/// Refuses what a session may not do any more when its time is over (MS-SMB2 3.3.5.2.9).
pub(super) fn alive(header: &Header, session: &Session) -> Result<(), NtStatus> {
    session.touch();
    let always = [Command::SESSION_SETUP, Command::LOGOFF, Command::CLOSE, Command::LOCK];
    if session.expired(clock::now) && !always.contains(&header.command) {
        return Err(NtStatus::NETWORK_SESSION_EXPIRED);
    }
    Ok(())
}

impl Exchange {
    /// The key that signs the refusal of a signed request: that of its session on this connection
    /// (3.3.4.1.1). Who names a session of other connections, whoever it is, gets nothing signed
    /// with its key (3.3.5.2.4): a replayed request would come back with a second signature under
    /// its nonce.
    pub(super) fn signer(&self, header: &Header) -> Option<Arc<SigningKey>> {
        if !header.flags.has(HeaderFlags::SIGNED) {
            return None;
        }
        self.sessions.get(&header.session_id).map(|channel| channel.signing.clone())
    }

    /// The key that signs the refusal of a request. One that names a session of other connections,
    /// and came with that session's signature, is refused with it, as Windows does: a client drops
    /// what is not signed.
    pub(super) fn refusal_signer(
        &self,
        header: &Header,
        message: &mut [u8],
    ) -> Option<Arc<SigningKey>> {
        if !header.flags.has(HeaderFlags::SIGNED) {
            return None;
        }
        self.signer(header).or_else(|| {
            let session = self.server.sessions.get(header.session_id)?;
            session.signing.verify(message, Role::Client).then(|| self.elsewhere(&session))?
        })
    }

    /// The key that signs what a connection answers about a session of other connections. An AES-GMAC
    /// key signs each message id once, and the ids of this connection are not those of the session's
    /// own: it signs here with the algorithm of this connection (3.1.4.1), or not at all.
    pub(crate) fn elsewhere(&self, session: &Session) -> Option<Arc<SigningKey>> {
        let key = &session.signing;
        if !key.has_nonces() {
            return Some(key.clone());
        }
        key.of_connection(self.negotiated.as_ref()?.signing).map(Arc::new)
    }

    /// Finds the session of a request and checks its protection (MS-SMB2 3.3.5.2.4, 3.3.5.2.9).
    pub(super) fn admit(
        &self,
        header: &Header,
        message: &mut [u8],
        protection: &Protection,
    ) -> Result<Admitted, NtStatus> {
        if header.command == Command::NEGOTIATE {
            return match header.flags.has(HeaderFlags::SIGNED) {
                true => Err(NtStatus::INVALID_PARAMETER),
                false => Ok(Admitted::default()),
            };
        }
        // Another connection may have taken the place of the session (3.3.5.5.3).
        let channel = self.sessions.get(&header.session_id);
        let channel = channel.filter(|channel| !channel.session.ended());
        if let Protection::Sealed(opener) = protection {
            return match channel {
                Some(channel) if Arc::ptr_eq(&channel.session, &opener.session) => {
                    alive(header, &channel.session)?;
                    Ok(Admitted::to(channel))
                }
                _ => Err(NtStatus::USER_SESSION_DELETED),
            };
        }
        let Some(channel) = channel else {
            return match header.command {
                Command::SESSION_SETUP => {
                    let binding = session_setup::binding(&self.server, header, message);
                    let id = header.session_id;
                    let known = id == SessionId(0) || self.authentications.contains_key(&id);
                    match known || session_setup::binds(message) {
                        true => Ok(Admitted { channel: None, binding: binding.map(Box::new) }),
                        false => Err(NtStatus::USER_SESSION_DELETED),
                    }
                }
                // Without session it asks whether anybody is there (3.3.5.17).
                Command::ECHO
                    if header.session_id == SessionId(0)
                        && !header.flags.has(HeaderFlags::SIGNED) =>
                {
                    Ok(Admitted::default())
                }
                _ => Err(NtStatus::USER_SESSION_DELETED),
            };
        };
        let session = &channel.session;
        if header.flags.has(HeaderFlags::SIGNED) {
            if !channel.signing.verify(message, Role::Client) {
                tracing::debug!(peer = %self.peer, "a request with a wrong signature");
                self.meter.bad_signature();
                return Err(NtStatus::ACCESS_DENIED);
            }
        } else if session.must_sign {
            self.meter.unprotected();
            return Err(NtStatus::ACCESS_DENIED);
        }
        alive(header, session)?;
        if session.must_encrypt && header.command != Command::SESSION_SETUP {
            self.meter.unprotected();
            return Err(NtStatus::ACCESS_DENIED);
        }
        Ok(Admitted::to(channel))
    }
}
