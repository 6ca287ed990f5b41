//! A client of SMB for tests that hand it to the server message by message: it numbers its requests,
//! logs in, and takes answers apart. How a message reaches the server, and what is signed, its user
//! says.
//!
//! ```text
//!  Caller ─► message ─► (signed by the test, if it signs) ─► the server ─► bytes ─► answers
//!    ▲ session, tree, next message id
//!  Asks: whoever brings messages there one by one; then logging in and trees come for nothing
//! ```

use smb_protocol::{
    Command, Header, HeaderFlags, MessageId, NtStatus, SessionId, TreeId,
    crypto::SecretKey,
    header::{FRAME_LEN, HEADER_LEN, frame_len},
    msg::{negotiate, session_setup, tree_connect},
    ntlm::{Credentials, NtHash},
    spnego::Initiator,
};

/// What a client puts into the headers of its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// `MessageId` of the next request.
    pub next_id: u64,
    /// The session that requests are of.
    pub session: SessionId,
    /// The tree that requests are about.
    pub tree: TreeId,
    /// Credits that each request asks for.
    pub credits: u16,
    /// Requests say that they are sent again.
    pub replay: bool,
}

impl Default for Caller {
    fn default() -> Self {
        let (session, tree) = (SessionId(0), TreeId(0));
        Self { next_id: 0, session, tree, credits: 32, replay: false }
    }
}

impl Caller {
    /// The header of the next request, which costs one credit.
    pub fn header(&mut self, command: Command) -> Header {
        let mut header = Header {
            command,
            credit_charge: 1,
            credits: self.credits,
            message_id: MessageId(self.next_id),
            session_id: self.session,
            ..Header::default()
        };
        if self.replay {
            header.flags |= HeaderFlags::REPLAY;
        }
        header.set_tree_id(self.tree);
        self.next_id += 1;
        header
    }

    /// The next request.
    pub fn message(&mut self, command: Command, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut message = self.header(command).to_bytes().to_vec();
        body(&mut message);
        message
    }
}

/// A user who proves the password by NTLM, in two rounds.
#[derive(Debug)]
pub struct Logon(Initiator);

impl Logon {
    /// Of a user with that password.
    pub fn new(user: &str, password: &str) -> Self {
        let hash = NtHash::of_password(password);
        let who = Credentials { user: user.into(), domain: String::new(), hash };
        Self(Initiator::new(who, "", "cifs/s"))
    }

    /// The first token, given what NEGOTIATE was answered with.
    ///
    /// # Panics
    /// The hint is none of a server that speaks NTLM.
    pub fn first(&mut self, hint: &[u8]) -> Vec<u8> {
        self.0.first(hint).expect("the server speaks NTLM")
    }

    /// The second token, given the answer to the first.
    ///
    /// # Panics
    /// The answer is none.
    pub fn second(&mut self, token: &[u8]) -> Vec<u8> {
        self.0.second(token, 0).expect("a challenge")
    }

    /// The key of the session, after the second token.
    ///
    /// # Panics
    /// There was no second token.
    pub fn key(&self) -> &SecretKey {
        self.0.session_key().expect("it has proved the password")
    }
}

/// A SESSION_SETUP with a token.
pub fn setup(token: &[u8]) -> session_setup::Request<'_> {
    session_setup::Request { security_mode: 1, security_buffer: token, ..Default::default() }
}

/// A client that asks for one thing after another.
pub trait Asks {
    /// The answer to a request.
    fn ask(&mut self, command: Command, body: impl FnOnce(&mut Vec<u8>)) -> (Header, Vec<u8>);

    /// What its requests have in their headers.
    fn caller(&mut self) -> &mut Caller;

    /// Negotiates and logs in with the password `p`.
    ///
    /// # Panics
    /// It is refused.
    fn log_in(&mut self, user: &str, offer: &negotiate::Request) {
        assert_eq!(self.try_log_in(user, offer), NtStatus::SUCCESS);
    }

    /// As [`Asks::log_in`]; how the last answer ended.
    ///
    /// # Panics
    /// An answer before that is none.
    fn try_log_in(&mut self, user: &str, offer: &negotiate::Request) -> NtStatus {
        let (_, body) = self.ask(Command::NEGOTIATE, |out| offer.encode(out));
        let hint = negotiate::Response::parse(&body).expect("an answer").security_buffer;
        let mut logon = Logon::new(user, "p");
        let first = logon.first(&hint);
        let (header, body) = self.ask(Command::SESSION_SETUP, |out| setup(&first).encode(out));
        assert_eq!(header.status, NtStatus::MORE_PROCESSING_REQUIRED);
        self.caller().session = header.session_id;
        let answer = session_setup::Response::parse(&body).expect("an answer");
        let second = logon.second(answer.security_buffer);
        self.ask(Command::SESSION_SETUP, |out| setup(&second).encode(out)).0.status
    }

    /// Connects to a share: its tree, and the body of the answer.
    ///
    /// # Panics
    /// It is refused.
    fn tree_connect(&mut self, share: &str) -> (TreeId, Vec<u8>) {
        let request = tree_connect::Request { flags: 0, path: format!("\\\\s\\{share}") };
        let (header, body) = self.ask(Command::TREE_CONNECT, |out| request.encode(out));
        assert_eq!(header.status, NtStatus::SUCCESS);
        (header.tree_id(), body)
    }
}

/// Takes what a server sent apart: the header and the body of each message.
///
/// # Panics
/// A frame or a header is not well formed.
pub fn answers(mut out: &[u8]) -> Vec<(Header, Vec<u8>)> {
    let mut list = Vec::new();
    while let Some(prefix) = out.first_chunk::<FRAME_LEN>() {
        let len = frame_len(*prefix).expect("the length of a frame");
        let mut frame = &out[FRAME_LEN..FRAME_LEN + len];
        out = &out[FRAME_LEN + len..];
        loop {
            let header = Header::parse(frame).expect("a header");
            assert!(header.is_response() || header.message_id == MessageId::UNSOLICITED);
            let next = header.next_command as usize;
            let end = if next == 0 { frame.len() } else { next };
            list.push((header, frame[HEADER_LEN..end].to_vec()));
            if next == 0 {
                break;
            }
            assert!(end.is_multiple_of(8));
            frame = &frame[end..];
        }
    }
    assert!(out.is_empty());
    list
}
