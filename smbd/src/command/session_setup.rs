//! SESSION_SETUP (MS-SMB2 3.3.5.5).

use std::sync::Arc;

use smb_protocol::{
    Dialect, NtStatus, SessionId,
    crypto::{
        OpeningKey, PreauthHash, SealingKey, SecretKey, SigningKey,
        kdf::{self, Binding},
    },
    header::HEADER_LEN,
    msg::{
        negotiate::SecurityMode,
        session_setup::{Request, RequestFlags, Response, SessionFlags},
    },
    ntlm::users,
    security::Sid,
    spnego::{Acceptor, Step},
};

use super::{Ctx, Fail, Handled, negotiate::Negotiated};
use crate::{
    config::{Encryption, Signing},
    server,
    session::{Keys, Session},
};

/// A session that is being authenticated.
pub struct Authentication {
    acceptor: Acceptor,
    /// Hash of the negotiation and of this session's setup so far.
    pub preauth: PreauthHash,
}

/// Handles a SESSION_SETUP.
pub fn handle(ctx: &mut Ctx<'_>, message: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(&message[HEADER_LEN..])?;
    let Some(negotiated) = ctx.ex.negotiated.clone() else {
        return Err(Fail::Drop("a request before NEGOTIATE"));
    };
    if request.flags.has(RequestFlags::BINDING) {
        // Multichannel is not offered, so there is nothing to bind to (3.3.5.5, step 4).
        return Err(NtStatus::REQUEST_NOT_ACCEPTED.into());
    }
    let server = ctx.ex.server.clone();
    let id = match ctx.header.session_id {
        SessionId(0) => {
            let busy = ctx.ex.sessions.len() + ctx.ex.authentications.len();
            if busy >= ctx.ex.limits().sessions_per_connection {
                return Err(NtStatus::REQUEST_NOT_ACCEPTED.into());
            }
            server.new_session_id()
        }
        id if ctx.ex.authentications.contains_key(&id) || ctx.ex.sessions.contains_key(&id) => id,
        _ => return Err(NtStatus::USER_SESSION_DELETED.into()),
    };
    let mut authentication = ctx.ex.authentications.remove(&id).unwrap_or_else(|| Authentication {
        acceptor: Acceptor::new(server.ntlm.clone()),
        preauth: negotiated.preauth,
    });
    authentication.preauth.update(message);
    let current = server.current();
    let lookup = |user: &str, _domain: &str| current.config.users.get(&users::fold(user)).cloned();
    let step = authentication.acceptor.step(request.security_buffer, server::now(), lookup);
    ctx.header.session_id = id;
    match step {
        Ok(Step::Continue(token)) => {
            Response { flags: SessionFlags::NONE, security_buffer: &token }.encode(out);
            ctx.ex.authentications.insert(id, authentication);
            Ok(NtStatus::MORE_PROCESSING_REQUIRED)
        }
        Ok(Step::Done(done)) => {
            let user = users::fold(&done.identity.user);
            if let Some(existing) = ctx.ex.sessions.get(&id) {
                // Authenticated anew; keys stay (3.3.5.5.3), and so must the user.
                if existing.user != user {
                    return Err(NtStatus::LOGON_FAILURE.into());
                }
                ctx.signer = Some(existing.clone());
                let flags = flags_of(existing);
                Response { flags, security_buffer: &done.token }.encode(out);
                return Ok(NtStatus::SUCCESS);
            }
            let client_signs = SecurityMode(request.security_mode.into());
            let must_sign = current.config.signing == Signing::Required
                || client_signs.has(SecurityMode::SIGNING_REQUIRED);
            let keys = derive(&negotiated, &done.session_key, &authentication.preauth);
            let must_encrypt = current.config.encryption == Encryption::Required
                || current.config.encryption == Encryption::Desired && keys.sealing.is_some();
            if must_encrypt && keys.sealing.is_none() {
                return Err(NtStatus::ACCESS_DENIED.into());
            }
            let sids = vec![server.user_sid(&user), Sid::everyone(), Sid::authenticated_users()];
            let session = Arc::new(Session::new(id, user, sids, keys, must_sign, must_encrypt));
            session.link(ctx.ex.id, ctx.ex.notices());
            if request.previous_session != SessionId(0) && request.previous_session != id {
                replace_previous(ctx, request.previous_session, &session.user);
            }
            tracing::info!(peer = %ctx.ex.peer, user = session.user, "session established");
            Response { flags: flags_of(&session), security_buffer: &done.token }.encode(out);
            server.sessions.add(session.clone());
            ctx.ex.sessions.insert(id, session.clone());
            ctx.signer = Some(session);
            Ok(NtStatus::SUCCESS)
        }
        Err(error) => {
            tracing::info!(peer = %ctx.ex.peer, %error, "authentication failed");
            if error.is_malformed() {
                Err(NtStatus::INVALID_PARAMETER.into())
            } else {
                Err(NtStatus::LOGON_FAILURE.into())
            }
        }
    }
}

fn flags_of(session: &Session) -> SessionFlags {
    if session.must_encrypt { SessionFlags::ENCRYPT_DATA } else { SessionFlags::NONE }
}

/// A client that lost its connection gives up what it had (3.3.5.5.3, step 8), if it is its own.
fn replace_previous(ctx: &mut Ctx<'_>, previous: SessionId, user: &str) {
    let server = &ctx.ex.server;
    if server.sessions.get(previous).is_some_and(|session| session.user == user) {
        ctx.ex.sessions.remove(&previous);
        server.sessions.end(previous);
    }
}

/// Keys of a new session (3.3.5.5.3).
fn derive(negotiated: &Negotiated, session_key: &SecretKey, preauth: &PreauthHash) -> Keys {
    let short = session_key.first_16();
    if !negotiated.dialect.is_smb3() {
        return Keys { signing: SigningKey::new(negotiated.signing, &short), sealing: None };
    }
    let binding = if negotiated.dialect == Dialect::SMB_3_1_1 {
        Binding::Smb311(preauth)
    } else {
        Binding::Smb30
    };
    let signing = kdf::signing_key(&short, binding).first_16();
    let sealing = negotiated.cipher.map(|cipher| {
        let keys = kdf::cipher_keys(session_key, cipher, binding);
        (
            SealingKey::new(cipher, &keys.server_to_client),
            OpeningKey::new(cipher, &keys.client_to_server),
        )
    });
    Keys { signing: SigningKey::new(negotiated.signing, &signing), sealing }
}
