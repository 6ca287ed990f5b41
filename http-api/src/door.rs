//! Who is let in: tokens, passwords, and what each may do.

use std::{
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use control_socket::Role;
use http::{HeaderMap, header};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::{
    Caller,
    config::ApiConfig,
    own::{LogIn, NewToken, TokenInfo, TokenMade},
    patience::Patience,
    respond::Refusal,
    tokens::{Token, TokenError, Tokens},
    users::Users,
};

/// Passwords that are hashed at a time: each takes 19 MiB and a processor.
const HASHED_AT_A_TIME: usize = 2;

/// Log-ins that wait for their turn to be hashed.
const WAITING: usize = 16;

/// Longest note of a token in bytes.
const LONGEST_NOTE: usize = 200;

/// Where a request comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The local socket, with who is at its other end.
    Local(Caller),
    /// An address.
    Remote(IpAddr),
}

impl Origin {
    fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Local(_) => None,
            Self::Remote(address) => Some(*address),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Local(caller) => caller.from.clone(),
            Self::Remote(address) => address.to_string(),
        }
    }
}

/// The door.
#[derive(Debug)]
pub(crate) struct Door {
    users: RwLock<(Users, u32)>,
    tokens: Mutex<Tokens>,
    patience: Mutex<Patience>,
    hashing: Semaphore,
    waiting: Semaphore,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Seconds until somebody is heard again, for the header of an answer.
fn seconds(delay: Duration) -> u64 {
    delay.as_secs() + 1
}

impl Door {
    /// A door with the users of a configuration; tokens are kept in the file at `path`.
    ///
    /// # Errors
    /// If the tokens that there are cannot be read.
    pub(crate) fn new(config: &ApiConfig, path: &Path) -> std::io::Result<Self> {
        Ok(Self {
            users: RwLock::new((config.users.clone(), config.token_hours)),
            tokens: Mutex::new(Tokens::open(path)?),
            patience: Mutex::default(),
            hashing: Semaphore::new(HASHED_AT_A_TIME),
            waiting: Semaphore::new(WAITING),
        })
    }

    /// Takes the users of a new configuration: what somebody may not do any more, their tokens are not
    /// good for.
    pub(crate) fn reload(&self, config: &ApiConfig) {
        let new = (config.users.clone(), config.token_hours);
        *self.users.write().unwrap_or_else(PoisonError::into_inner) = new;
    }

    /// How often somebody failed to show who they are.
    pub(crate) fn failures(&self) -> u64 {
        lock(&self.patience).count()
    }

    /// What a token is good for now.
    fn role(&self, token: &Token) -> Option<Role> {
        // A user of this machine, by number: nobody in the file has such a name.
        if token.user.starts_with("uid:") {
            return Some(token.role);
        }
        let users = self.users.read().unwrap_or_else(PoisonError::into_inner);
        Some(users.0.role(&token.user)?.min(token.role))
    }

    /// Who asks, by the token that they show; on the local socket also by who they are to the system.
    pub(crate) fn caller(&self, origin: &Origin, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let shown = headers.get(header::AUTHORIZATION);
        let shown = match (shown, origin) {
            (None, Origin::Local(caller)) => return Ok(caller.clone()),
            (None, Origin::Remote(_)) => return Err(Refusal::Unknown),
            (Some(shown), _) => shown.to_str().ok(),
        };
        let text = shown.and_then(|text| text.strip_prefix("Bearer "));
        let found = text.and_then(|text| {
            let tokens = lock(&self.tokens);
            let token = tokens.check(text, now())?;
            Some((token.clone(), self.role(token)?))
        });
        let Some((token, role)) = found else {
            // Who has had it may go on to show it for a while, as a page that is open does.
            if text.is_some_and(|text| lock(&self.tokens).has_expired(text, now())) {
                return Err(Refusal::Unknown);
            }
            // Only who shows a wrong one waits: others may have the same address, and nobody guesses 256 bits.
            let (address, instant) = (origin.address(), Instant::now());
            let mut patience = lock(&self.patience);
            if let Some(delay) = patience.delay(address, None, instant) {
                return Err(Refusal::Later(seconds(delay)));
            }
            patience.failed(address, None, instant);
            return Err(Refusal::Unknown);
        };
        Ok(Caller { name: token.user, role, from: origin.text(), token: Some(token.id) })
    }

    /// Whether a caller is still who they were: their token is good, and for as much.
    pub(crate) fn still(&self, caller: &Caller) -> bool {
        let Some(id) = caller.token else { return true };
        let tokens = lock(&self.tokens);
        let role = tokens.get(id, now()).and_then(|token| self.role(token));
        role.is_some_and(|role| role >= caller.role)
    }

    fn expires(&self, hours: u32) -> Result<(u64, u64), Refusal> {
        let most = self.users.read().unwrap_or_else(PoisonError::into_inner).1;
        if !(1..=most).contains(&hours) {
            let why = format!("a token is good for 1 to {most} hours");
            return Err(Refusal::Malformed(why));
        }
        let now = now();
        Ok((now, now + u64::from(hours) * 3600))
    }

    /// Gives a token for a password.
    pub(crate) async fn log_in(
        self: &Arc<Self>,
        origin: &Origin,
        asked: LogIn,
    ) -> Result<(Caller, TokenMade), Refusal> {
        let times = self.expires(asked.hours)?;
        let address = origin.address();
        let delay = lock(&self.patience).delay(address, Some(&asked.user), Instant::now());
        if let Some(delay) = delay {
            return Err(Refusal::Later(seconds(delay)));
        }
        // Who waits holds little; who finds too many waiting is sent away.
        let Ok(_waits) = self.waiting.try_acquire() else { return Err(Refusal::Later(1)) };
        let Ok(_turn) = self.hashing.acquire().await else { return Err(Refusal::Failed) };
        let (door, origin) = (self.clone(), origin.clone());
        let done = tokio::task::spawn_blocking(move || door.verify(&origin, asked, times));
        done.await.map_err(|_| Refusal::Failed)?
    }

    /// On a thread that may wait.
    fn verify(
        &self,
        origin: &Origin,
        asked: LogIn,
        times: (u64, u64),
    ) -> Result<(Caller, TokenMade), Refusal> {
        let LogIn { user, password, .. } = asked;
        let password = Zeroizing::new(password);
        let users = self.users.read().unwrap_or_else(PoisonError::into_inner).0.clone();
        let Some(role) = users.verify(&user, &password).then(|| users.role(&user)).flatten() else {
            lock(&self.patience).failed(origin.address(), Some(&user), Instant::now());
            tracing::debug!(from = origin.text(), "a log-in to the control interface failed");
            return Err(Refusal::Unknown);
        };
        lock(&self.patience).succeeded(&user);
        let made = self.make((&user, role), times, ("log-in", true))?;
        let caller = Caller { name: user, role, from: origin.text(), token: Some(made.id) };
        Ok((caller, made))
    }

    fn make(
        &self,
        whose: (&str, Role),
        times: (u64, u64),
        note: (&str, bool),
    ) -> Result<TokenMade, Refusal> {
        match lock(&self.tokens).make(whose, times, note) {
            Ok((Token { id, role, expires, .. }, token)) => {
                Ok(TokenMade { token: token.to_string(), id, role, expires })
            }
            Err(error @ TokenError::TooMany) => Err(Refusal::Refused(error.to_string())),
            Err(TokenError::Io(error)) => {
                tracing::error!(%error, "a token of the control interface could not be kept");
                Err(Refusal::Failed)
            }
        }
    }

    /// Makes a token for a caller, for what they may do at most. On a thread that may wait, as is
    /// [`Door::revoke`].
    pub(crate) fn new_token(
        &self,
        caller: &Caller,
        asked: &NewToken,
    ) -> Result<TokenMade, Refusal> {
        let role = asked.role.unwrap_or(caller.role);
        if role > caller.role {
            return Err(Refusal::Forbidden("a token is good for no more than its maker may do"));
        }
        if asked.note.len() > LONGEST_NOTE {
            return Err(Refusal::Malformed(format!("a note has at most {LONGEST_NOTE} bytes")));
        }
        self.make((&caller.name, role), self.expires(asked.hours)?, (&asked.note, false))
    }

    /// Tokens that a caller may see.
    pub(crate) fn tokens(&self, caller: &Caller) -> Vec<TokenInfo> {
        let tokens = lock(&self.tokens);
        let seen = |token: &&Token| sees(caller, token);
        let info = |token: &Token| TokenInfo {
            id: token.id,
            user: token.user.clone(),
            role: token.role,
            created: token.created,
            expires: token.expires,
            note: token.note.clone(),
        };
        tokens.all(now()).filter(seen).map(info).collect()
    }

    /// Revokes a token that a caller may see.
    pub(crate) fn revoke(&self, caller: &Caller, id: u64) -> Result<(), Refusal> {
        let mut tokens = lock(&self.tokens);
        if !tokens.get(id, now()).is_some_and(|token| sees(caller, token)) {
            return Err(Refusal::Gone("there is no such token"));
        }
        tokens.revoke(id).map(drop).map_err(|error| {
            tracing::error!(%error, "a token of the control interface could not be revoked");
            Refusal::Failed
        })
    }
}

fn sees(caller: &Caller, token: &Token) -> bool {
    caller.role == Role::Administrator || token.user == caller.name
}
