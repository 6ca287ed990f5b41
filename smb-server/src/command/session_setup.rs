//! SESSION_SETUP (MS-SMB2 3.3.5.5).
//!
//! ```text
//!  SessionId 0 ─────────────► New ──────► a session with its first channel
//!  a session of this          Again ────► the same session and keys, its time prolonged
//!  connection
//!  any session + BINDING ───► Binding ──► one more channel, with a signing key of its own
//! ```

use std::{sync::Arc, time::Duration};

use smb_protocol::{
    Dialect, Header, HeaderFlags, NtStatus, SessionId,
    crypto::{
        OpeningKey, PreauthHash, Role, SealingKey, SecretKey, SigningAlgorithm, SigningKey,
        kdf::{self, Binding},
    },
    header::HEADER_LEN,
    msg::{
        negotiate::SecurityMode,
        session_setup::{Request, RequestFlags, Response, SessionFlags},
    },
    ntlm::{self, users},
    security::Sid,
    spnego::{self, Acceptor, Completed, Step},
};

use tokio::time::Instant;
use volume::{clock, quoted::Quoted};

use super::{Ctx, Deferred, Failure, Handled, Outcome, negotiate::Negotiated};
use crate::{
    Server,
    breaks::clients::NotAdded,
    config::{Config, Encryption, Signing},
    logons::Network,
    session::{ChannelInfo, Keys, Logon, NEVER, NegotiatedContext, Sealing, Session},
};

/// What an authentication is for.
#[derive(Clone)]
enum Purpose {
    New,
    Again(Arc<Session>),
    Binding(Arc<Session>),
}

/// A session that is being authenticated (MS-SMB2 3.3.5.5.1).
pub struct Authentication {
    acceptor: Acceptor,
    purpose: Purpose,
    /// Hash of the negotiation and of this session's setup so far.
    pub preauth: PreauthHash,
}

/// How a binding request is signed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Signed {
    Not,
    Wrong,
    Right,
}

/// A request to bind the connection to a session of another one.
pub struct BindingRequest {
    session: Arc<Session>,
    signed: Signed,
}

/// Whether a message asks to bind the connection to a session.
pub fn binds(message: &[u8]) -> bool {
    let request = message.get(HEADER_LEN..).and_then(|body| Request::parse(body).ok());
    request.is_some_and(|request| request.flags.has(RequestFlags::BINDING))
}

/// Recognises a binding request and verifies its signature with the session's key
/// (MS-SMB2 3.3.5.2.4); `None` for any other request or an unknown session.
pub fn binding(server: &Server, header: &Header, message: &mut [u8]) -> Option<BindingRequest> {
    if !binds(message) {
        return None;
    }
    let session = server.sessions.get(header.session_id).filter(|session| !session.ended())?;
    let signed = if !header.flags.has(HeaderFlags::SIGNED) {
        Signed::Not
    } else if session.signing.verify(message, Role::Client) {
        Signed::Right
    } else {
        Signed::Wrong
    };
    Some(BindingRequest { session, signed })
}

/// Carries out a SESSION_SETUP request.
pub fn handle(ctx: &mut Ctx<'_>, message: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(&message[HEADER_LEN..])?;
    if ctx.ex.failed_logons >= ctx.ex.limits().failed_logons_per_connection {
        return Err(Failure::Disconnect("too many logons of the connection have failed"));
    }
    let Some(negotiated) = ctx.ex.negotiated.clone() else {
        return Err(Failure::Disconnect("a request before NEGOTIATE"));
    };
    let server = ctx.ex.server.clone();
    let id = ctx.header.session_id;
    let binds = request.flags.has(RequestFlags::BINDING);
    let purpose = if binds {
        Purpose::Binding(bindable(ctx, &negotiated)?)
    } else if id == SessionId(0) {
        room(ctx)?;
        ctx.header.session_id = server.ids.session();
        Purpose::New
    } else if let Some(channel) = ctx.ex.sessions.get(&id).filter(|c| !c.session.ended()) {
        Purpose::Again(channel.session.clone())
    } else if ctx.ex.authentications.contains_key(&id) {
        Purpose::New
    } else {
        return Err(NtStatus::USER_SESSION_DELETED.into());
    };
    let id = ctx.header.session_id;
    let mut authentication = match ctx.ex.authentications.remove(&id) {
        // A binding that goes on as something else has no session on this connection.
        Some(begun) if matches!(begun.purpose, Purpose::Binding(_)) != binds => {
            return Err(NtStatus::USER_SESSION_DELETED.into());
        }
        Some(begun) => begun,
        None => Authentication {
            acceptor: Acceptor::new(server.ntlm.clone(), server.current().kerberos.clone()),
            purpose,
            preauth: negotiated.preauth,
        },
    };
    authentication.preauth.update(message);
    let current = server.current();
    let (from, step) = (Network::from(ctx.ex.peer.ip()), logon_step(ctx));
    let (mut tried, mut looked_at) = (None, true);
    let lookup = |user: &str, _domain: &str| {
        let user = tried.insert(users::fold(user));
        looked_at = server.logons.may_try(from, user, step, Instant::now());
        current.config.users.get(user).filter(|_| looked_at).cloned()
    };
    let taken = authentication.acceptor.step(request.security_buffer, clock::now(), lookup);
    if !looked_at {
        return Err(Failure::Disconnect("too many logons of its address have failed"));
    }
    match taken {
        Ok(Step::Continue(token)) => {
            Response { flags: SessionFlags::NONE, security_buffer: &token }.encode(out);
            ctx.ex.authentications.insert(id, authentication);
            Ok(Outcome::Done(NtStatus::MORE_PROCESSING_REQUIRED))
        }
        Ok(Step::Done(done)) => {
            let preauth = authentication.preauth;
            let Some(user) = user_of(&current.config, &done) else {
                let who = &done.identity;
                tracing::info!(
                    peer = %ctx.ex.peer,
                    user = %Quoted(&who.user),
                    domain = %Quoted(&who.domain),
                    "a ticket of no user"
                );
                if let Purpose::Again(session) = &authentication.purpose {
                    expel(ctx, session);
                }
                return Err(NtStatus::LOGON_FAILURE.into());
            };
            server.logons.succeeded(from, &user, Instant::now());
            // Others may have their sessions here, and someone mistypes now and then.
            ctx.ex.failed_logons = 0;
            let session = match authentication.purpose {
                Purpose::New => establish(ctx, user, &request, &negotiated, &done, &preauth)?,
                Purpose::Again(session) => again(ctx, session, &user, &done)?,
                Purpose::Binding(session) => {
                    bind(ctx, session, &user, &negotiated, &done, &preauth)?
                }
            };
            Response { flags: flags_of(&session), security_buffer: &done.token }.encode(out);
            Ok(Outcome::SUCCESS)
        }
        Err(error) => match &authentication.purpose {
            Purpose::Again(session) if error == ANONYMOUS => {
                let session = session.clone();
                let token = stand_back(ctx, &session)?;
                Response { flags: flags_of(&session), security_buffer: &token }.encode(out);
                Ok(Outcome::SUCCESS)
            }
            purpose => refused(ctx, purpose, &error, tried.as_deref()),
        },
    }
}

const ANONYMOUS: spnego::Error = spnego::Error::Ntlm(ntlm::Error::Anonymous);

/// A session whose client logs on again as nobody keeps its keys and opens, and may open nothing
/// more until its user is back (3.3.5.5.2). Nobody begins a session that way.
fn stand_back(ctx: &mut Ctx<'_>, session: &Session) -> Result<Vec<u8>, NtStatus> {
    let channel = ctx.ex.sessions.get(&session.id).ok_or(NtStatus::USER_SESSION_DELETED)?;
    ctx.signer = Some(channel.signing.clone());
    session.set_anonymous(true);
    let state = Some(spnego::token::State::Completed);
    Ok(spnego::token::RespToken { state, ..Default::default() }.encode())
}

/// The user, folded, who was authenticated; `None` if a principal stands for no user.
fn user_of(config: &Config, done: &Completed) -> Option<String> {
    let Some(ticket) = &done.ticket else { return Some(users::fold(&done.identity.user)) };
    let user = config.kerberos.as_ref()?.user_of(&ticket.client)?;
    config.user_names.contains_key(&user).then_some(user)
}

/// When the right that was proven ends.
fn expiry(done: &Completed) -> u64 {
    done.ticket.as_ref().map_or(NEVER, |ticket| ticket.expires)
}

/// Logons that one connection may have begun and not ended: what a stranger can make the server
/// hold, times the connections.
const UNFINISHED: usize = 2;

/// Fails when the connection has as many sessions as it may have.
fn room(ctx: &mut Ctx<'_>) -> Result<(), NtStatus> {
    ctx.ex.sessions.retain(|_, channel| !channel.session.ended());
    let unfinished = ctx.ex.authentications.len() + Arc::strong_count(&ctx.ex.refusals) - 1;
    let busy = ctx.ex.sessions.len() + unfinished;
    if busy >= ctx.ex.limits().sessions_per_connection || unfinished >= UNFINISHED {
        return Err(NtStatus::REQUEST_NOT_ACCEPTED);
    }
    Ok(())
}

/// The session that a connection may be bound to, or why not (3.3.5.5, the steps for
/// SMB2_SESSION_FLAG_BINDING).
fn bindable(ctx: &mut Ctx<'_>, negotiated: &Negotiated) -> Result<Arc<Session>, NtStatus> {
    let multichannel = ctx.ex.server.current().config.multichannel;
    if let Some(BindingRequest { session, signed: Signed::Right }) = &ctx.binding {
        // All answers until the channel has a key of its own, refusals too (3.3.4.1.1).
        ctx.signer = ctx.ex.elsewhere(session);
    }
    let ours = negotiated.signing == SigningAlgorithm::AesGmac;
    let theirs = ctx.binding.as_ref().map(|b| b.session.signing.algorithm());
    // AES-GMAC is negotiated for all channels or none; of the others each signs as it agreed.
    match theirs.map(|theirs| theirs == SigningAlgorithm::AesGmac) {
        Some(true) if !ours => return Err(NtStatus::REQUEST_OUT_OF_SEQUENCE),
        Some(false) if ours => return Err(NtStatus::NOT_SUPPORTED),
        _ => {}
    }
    let theirs = theirs == Some(SigningAlgorithm::AesGmac);
    // It may be a channel of that session already, or one that has no channels because of how it
    // is signed.
    if !negotiated.dialect.is_smb3() || !multichannel || theirs || ctx.session.is_some() {
        return Err(NtStatus::REQUEST_NOT_ACCEPTED);
    }
    let Some(BindingRequest { session, signed }) = ctx.binding.take() else {
        return Err(NtStatus::USER_SESSION_DELETED);
    };
    let origin = session.origin;
    if origin.dialect != negotiated.dialect
        || origin.cipher != negotiated.cipher
        || signed == Signed::Not
    {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    if session.expired(clock::now) {
        return Err(NtStatus::NETWORK_SESSION_EXPIRED);
    }
    if signed == Signed::Wrong {
        return Err(NtStatus::ACCESS_DENIED);
    }
    if !ctx.ex.authentications.contains_key(&session.id) {
        room(ctx)?;
    }
    Ok(session)
}

/// Makes a new session with its first channel (3.3.5.5.3).
fn establish(
    ctx: &mut Ctx<'_>,
    user: String,
    request: &Request<'_>,
    negotiated: &Negotiated,
    done: &Completed,
    preauth: &PreauthHash,
) -> Result<Arc<Session>, Failure> {
    let server = ctx.ex.server.clone();
    let current = server.current();
    let id = ctx.header.session_id;
    let client_signs = SecurityMode(request.security_mode.into());
    let must_sign = current.config.signing == Signing::Required
        || client_signs.has(SecurityMode::SIGNING_REQUIRED);
    let keys = derive(negotiated, &done.session_key, preauth);
    #[cfg(test)]
    if !server.open_files.faults.keeps(volume::faults::Rule::Nonces)
        && let Some(sealing) = &keys.sealing
    {
        sealing.seals.repeat_nonces();
    }
    let must_encrypt = current.config.encryption == Encryption::Required
        || current.config.encryption == Encryption::Desired && keys.sealing.is_some();
    if must_encrypt && keys.sealing.is_none() {
        return Err(NtStatus::ACCESS_DENIED.into());
    }
    let mut sids = vec![server.user_sid(&user), Sid::everyone(), Sid::authenticated_users()];
    if current.config.admin_users.contains(&user) {
        sids.push(Sid::administrators());
    }
    let logon = Logon {
        id,
        sids,
        user: server.open_files.users.get(&user),
        keys,
        must_sign,
        must_encrypt,
        origin: NegotiatedContext {
            dialect: negotiated.dialect,
            cipher: negotiated.cipher,
            client_guid: negotiated.client_guid,
        },
        expires: expiry(done),
    };
    let session = Arc::new(Session::new(logon));
    // Before anything of the client's other sessions is touched.
    make_known(ctx, &session, negotiated.dialect)?;
    if request.previous_session != SessionId(0) && request.previous_session != id {
        replace_previous(ctx, request.previous_session, &session.user.name);
    }
    enter(ctx, &session, session.signing.clone())?;
    server.sessions.add(session.clone());
    tracing::info!(peer = %ctx.ex.peer, user = session.user.name, "session established");
    Ok(session)
}

/// Has the client known by this connection (3.3.5.5.3, verification of the dialect).
fn make_known(ctx: &Ctx<'_>, session: &Session, dialect: Dialect) -> Result<(), NtStatus> {
    let (clients, outbox) = (&ctx.ex.server.clients, ctx.ex.outbox());
    let (peer, user) = (ctx.ex.peer, &session.user.name);
    match clients.add(ctx.client_guid(), dialect, outbox, &session.user) {
        Ok(()) => Ok(()),
        Err(NotAdded::OtherDialect) => {
            tracing::info!(%peer, user, "refused: the client speaks another dialect elsewhere");
            Err(NtStatus::USER_SESSION_DELETED)
        }
        Err(NotAdded::TooMany) => {
            let most = ctx.ex.limits().user_percent;
            tracing::info!(
                %peer,
                user,
                "refused: the user has {most} % of all connections (limits.user_percent)"
            );
            Err(NtStatus::REQUEST_NOT_ACCEPTED)
        }
    }
}

/// Makes the connection a channel of the session.
fn enter(
    ctx: &mut Ctx<'_>,
    session: &Arc<Session>,
    signing: Arc<SigningKey>,
) -> Result<(), NtStatus> {
    let outbox = ctx.ex.outbox().clone();
    let (connection, peer, carrier) = (ctx.ex.id, ctx.ex.peer, ctx.ex.carrier);
    let seals_remote = ctx.ex.negotiated.as_ref().is_some_and(|it| it.seals_remote);
    let info = ChannelInfo { connection, peer, carrier, seals_remote, outbox };
    let channel = session.join(info, signing)?;
    ctx.signer = Some(channel.signing.clone());
    ctx.ex.sessions.insert(session.id, channel);
    Ok(())
}

/// Prolongs a session whose user logged on once more; keys stay (3.3.5.5.2), and so must the
/// user.
fn again(
    ctx: &mut Ctx<'_>,
    session: Arc<Session>,
    user: &str,
    done: &Completed,
) -> Result<Arc<Session>, Failure> {
    if session.user.name != user {
        expel(ctx, &session);
        return Err(NtStatus::LOGON_FAILURE.into());
    }
    session.renew(expiry(done));
    session.set_anonymous(false);
    let channel = ctx.ex.sessions.get(&session.id).ok_or(NtStatus::USER_SESSION_DELETED)?;
    ctx.signer = Some(channel.signing.clone());
    Ok(session)
}

/// Adds the connection to a session of the same user.
fn bind(
    ctx: &mut Ctx<'_>,
    session: Arc<Session>,
    user: &str,
    negotiated: &Negotiated,
    done: &Completed,
    preauth: &PreauthHash,
) -> Result<Arc<Session>, Failure> {
    if session.user.name != user {
        // What clients know; the specification names STATUS_NOT_SUPPORTED.
        return Err(NtStatus::ACCESS_DENIED.into());
    }
    make_known(ctx, &session, negotiated.dialect)?;
    let signing = Arc::new(signing_key(negotiated, &done.session_key, preauth));
    enter(ctx, &session, signing)?;
    tracing::debug!(peer = %ctx.ex.peer, user = session.user.name, "a channel joined its session");
    Ok(session)
}

/// What a failed authentication comes to: a session that failed to log on again is over, one
/// that a channel failed to join is not concerned.
///
/// The refusal waits, longer with each that fails ([`crate::logons`]).
fn refused(
    ctx: &mut Ctx<'_>,
    purpose: &Purpose,
    error: &spnego::Error,
    user: Option<&str>,
) -> Handled {
    let server = &ctx.ex.server;
    if server.strangers.may_log() {
        tracing::info!(
            peer = %ctx.ex.peer,
            error = %Quoted(error),
            user = %Quoted(user.unwrap_or_default()),
            "authentication failed"
        );
    }
    let from = Network::from(ctx.ex.peer.ip());
    let wait = server.logons.failed(from, user, logon_step(ctx), Instant::now());
    ctx.ex.failed_logons += 1;
    if let Purpose::Again(session) = purpose {
        expel(ctx, session);
    }
    let status = match error.is_malformed() {
        true => NtStatus::INVALID_PARAMETER,
        false => NtStatus::LOGON_FAILURE,
    };
    if wait.is_zero() {
        return Err(status.into());
    }
    let counted = ctx.ex.refusals.clone();
    Ok(Outcome::Deferred(Deferred::refusal(async move {
        tokio::time::sleep(wait).await;
        drop(counted);
        status
    })))
}

/// What a failed logon costs its address.
fn logon_step(ctx: &Ctx<'_>) -> Duration {
    Duration::from_millis(ctx.ex.limits().failed_logon_ms)
}

/// Ends a session. Its channel stays until the connection needs the room, so that what is still
/// asked of it gets a signed refusal.
fn expel(ctx: &mut Ctx<'_>, session: &Session) {
    ctx.ex.server.sessions.end(session.id);
}

fn flags_of(session: &Session) -> SessionFlags {
    if session.must_encrypt { SessionFlags::ENCRYPT_DATA } else { SessionFlags::NONE }
}

/// A client that lost its connection gives up what it had (3.3.5.5.3, step 8), if it is its own.
fn replace_previous(ctx: &mut Ctx<'_>, previous: SessionId, user: &str) {
    let server = &ctx.ex.server;
    if server.sessions.get(previous).is_some_and(|session| session.user.name == user) {
        server.sessions.end(previous);
    }
}

/// `Session.SigningKey` or, of a further connection, `Channel.SigningKey` (3.3.5.5.3).
fn signing_key(
    negotiated: &Negotiated,
    session_key: &SecretKey,
    preauth: &PreauthHash,
) -> SigningKey {
    let short = session_key.first_16();
    if !negotiated.dialect.is_smb3() {
        return SigningKey::new(negotiated.signing, &short);
    }
    let key = kdf::signing_key(&short, context(negotiated, preauth)).first_16();
    SigningKey::new(negotiated.signing, &key)
}

fn context<'a>(negotiated: &Negotiated, preauth: &'a PreauthHash) -> Binding<'a> {
    match negotiated.dialect {
        Dialect::SMB_3_1_1 => Binding::Smb311(preauth),
        _ => Binding::Smb30,
    }
}

/// Keys of a new session (3.3.5.5.3).
fn derive(negotiated: &Negotiated, session_key: &SecretKey, preauth: &PreauthHash) -> Keys {
    let cipher = negotiated.cipher.filter(|_| negotiated.dialect.is_smb3());
    let sealing = cipher.map(|cipher| {
        let keys = kdf::cipher_keys(session_key, cipher, context(negotiated, preauth));
        Sealing {
            seals: SealingKey::new(cipher, keys.server_to_client),
            opens: OpeningKey::new(cipher, &keys.client_to_server),
        }
    });
    Keys { signing: signing_key(negotiated, session_key, preauth), sealing }
}
