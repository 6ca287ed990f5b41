//! One session's protection of messages, and the framing of what goes over the wire.
//!
//! ```text
//!  plain or signed:  │ length 4 │ header 64 │ body … │
//!  sealed:           │ length 4 │ transform 52 │ header 64 │ body … │   (from header on encrypted)
//!  compressed:       its header before header 64; what is sealed is then compressed before
//! ```

use std::{ops::Range, sync::Arc};

use smb_protocol::{
    Dialect, Header, HeaderFlags, NtStatus, SessionId,
    compression::{Compression, Packed},
    crypto::{OpeningKey, Role, SealingKey, SigningKey, TransformHeader},
    header::{FRAME_LEN, HEADER_LEN, PROTOCOL_SMB2, frame_prefix},
};

use crate::{Error, Result, compress};

/// Keys and rules of one session on one connection.
#[derive(Debug)]
pub(crate) struct Crypt {
    pub dialect: Dialect,
    pub session_id: SessionId,
    pub signing: SigningKey,
    /// Whether every message that is not sealed must be signed.
    pub sign: bool,
    /// Keys for sealing, if the server can: one pair for all channels of a session, as no nonce may
    /// be used twice with a key.
    pub sealing: Option<Arc<(SealingKey, OpeningKey)>>,
    /// How messages of the connection are compressed, if they can be.
    pub compression: Option<Compression>,
    /// Whether data that go by RDMA are sealed where their messages are (MS-SMB2 2.2.43).
    pub seals_remote: bool,
}

/// How one request is protected, and its response must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Guard {
    Plain,
    Signed,
    Sealed,
}

/// Begins a frame at the end of `out` and returns where; the header and body follow.
pub(crate) fn begin_frame(out: &mut Vec<u8>, guard: Guard) -> usize {
    let at = out.len();
    let room = if guard == Guard::Sealed { TransformHeader::LEN } else { 0 };
    out.resize(at + FRAME_LEN + room, 0);
    at
}

/// Ends the frame that began at `at`: writes its length and protects its message.
pub(crate) fn end_frame(
    out: &mut [u8],
    at: usize,
    guard: Guard,
    crypt: Option<&Crypt>,
) -> Result<()> {
    let (prefix, message) = out[at..].split_at_mut(FRAME_LEN);
    let len = frame_prefix(message.len()).expect("requests are bounded below 16 MiB");
    prefix.copy_from_slice(&len);
    match (guard, crypt) {
        (Guard::Signed, Some(crypt)) => crypt.signing.sign(message, Role::Client)?,
        (Guard::Sealed, Some(Crypt { sealing: Some(keys), session_id, .. })) => {
            keys.0.seal(session_id.0, message)?;
        }
        (Guard::Plain, _) => {}
        _ => unreachable!("a guard is chosen from the keys there are"),
    }
    Ok(())
}

/// As [`end_frame`], of a WRITE that is compressed if that pays: after it is signed, before it is
/// sealed.
pub(crate) fn end_packed(
    out: &mut Vec<u8>,
    at: usize,
    guard: Guard,
    crypt: &Crypt,
    compression: &Compression,
) -> Result<()> {
    let mut message = at + FRAME_LEN;
    let rest = match guard {
        Guard::Sealed => {
            message += TransformHeader::LEN;
            guard
        }
        Guard::Signed => {
            crypt.signing.sign(&mut out[message..], Role::Client)?;
            Guard::Plain
        }
        Guard::Plain => guard,
    };
    compress::pack(compression, out, message);
    end_frame(out, at, rest, Some(crypt))
}

impl Crypt {
    /// How the next request is to be protected.
    pub fn guard(&self, seal: bool) -> Guard {
        match (seal && self.sealing.is_some(), self.sign) {
            (true, _) => Guard::Sealed,
            (false, true) => Guard::Signed,
            (false, false) => Guard::Plain,
        }
    }

    /// Decrypts a received frame in place if it is encrypted. Gives the range of the plain
    /// messages in it, which may be compressed, and whether they came sealed.
    pub fn open(crypt: Option<&Self>, frame: &mut [u8]) -> Result<(Range<usize>, bool)> {
        let whole = 0..frame.len();
        if frame.starts_with(&PROTOCOL_SMB2) || Packed::starts(frame) {
            return Ok((whole, false));
        }
        if !TransformHeader::starts(frame) {
            return Err(Error::Protocol("a message is neither SMB 2 nor encrypted".into()));
        }
        let Some(Self { sealing: Some(keys), session_id, .. }) = crypt else {
            return Err(Error::Protocol("an encrypted message without a key for it".into()));
        };
        if TransformHeader::parse(frame)?.session_id != session_id.0 {
            return Err(Error::Protocol("an encrypted message of another session".into()));
        }
        keys.1.open(frame)?;
        Ok((TransformHeader::LEN..whole.end, true))
    }

    /// Checks that a response is protected at least as its request was.
    pub fn check(
        crypt: Option<&Self>,
        message: &mut [u8],
        header: &Header,
        sealed: bool,
        guard: Guard,
    ) -> Result<()> {
        if sealed {
            return Ok(());
        }
        // MS-SMB2 3.2.5.1.3: interim responses are not signed.
        if header.status == NtStatus::PENDING && header.flags.has(HeaderFlags::ASYNC) {
            return match guard {
                Guard::Sealed => Err(Error::NotAuthentic("it should be encrypted")),
                _ => Ok(()),
            };
        }
        match guard {
            Guard::Sealed => Err(Error::NotAuthentic("it should be encrypted")),
            Guard::Signed if !header.flags.has(HeaderFlags::SIGNED) => {
                Err(Error::NotAuthentic("it should be signed"))
            }
            _ => match crypt {
                Some(crypt)
                    if header.flags.has(HeaderFlags::SIGNED)
                        && !crypt.signing.verify(message, Role::Server) =>
                {
                    Err(Error::NotAuthentic("its signature is wrong"))
                }
                _ => Ok(()),
            },
        }
    }
}

/// The range of the first message in `plain`, which may be a compound. The rest follows it.
pub(crate) fn split_compound(plain: &[u8]) -> Result<(Header, usize)> {
    let header = Header::parse(plain)?;
    let next = header.next_command as usize;
    if next == 0 {
        return Ok((header, plain.len()));
    }
    if next < HEADER_LEN || !next.is_multiple_of(8) || next > plain.len() - HEADER_LEN {
        return Err(Error::Protocol(format!("the next message of a compound is at {next}")));
    }
    Ok((header, next))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smb_protocol::{MessageId, crypto::SigningAlgorithm};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// A compound splits into the messages it was made of, and whatever comes, every step
        /// takes something or gives an error.
        #[test]
        fn compounds_split(
            lens in prop::collection::vec(0..6usize, 1..6),
            change in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let mut all = Vec::new();
            for (i, len) in lens.iter().enumerate() {
                let more = i + 1 < lens.len();
                let next_command = if more { 64 + *len as u32 * 8 } else { 0 };
                let message_id = MessageId(i as u64);
                Header { next_command, message_id, ..Header::default() }.encode(&mut all);
                all.resize(all.len() + len * 8, 0x5a);
            }
            if let Some((index, value)) = &change {
                let index = index.index(all.len());
                all[index] = *value;
            }
            let (mut rest, mut count) = (&all[..], 0);
            while !rest.is_empty() {
                let Ok((header, len)) = split_compound(rest) else { break };
                prop_assert!((HEADER_LEN..=rest.len()).contains(&len));
                if change.is_none() {
                    prop_assert_eq!(header.message_id.0, count);
                    prop_assert_eq!(len, 64 + lens[count as usize] * 8);
                }
                rest = &rest[len..];
                count += 1;
            }
            prop_assert!(change.is_some() || count as usize == lens.len());
        }

        #[test]
        fn opening_is_total(mut bytes in prop::collection::vec(any::<u8>(), 0..150), kind in 0..3u8) {
            if bytes.len() >= 4 {
                match kind {
                    0 => bytes[..4].copy_from_slice(&PROTOCOL_SMB2),
                    1 => bytes[..4].copy_from_slice(&TransformHeader::PROTOCOL_ID),
                    _ => {}
                }
            }
            let crypt = Crypt {
                dialect: Dialect::SMB_3_1_1,
                session_id: SessionId(1),
                signing: SigningKey::new(SigningAlgorithm::AesGmac, &[1; 16]),
                sign: true,
                sealing: None,
                compression: None,
                seals_remote: false,
            };
            match Crypt::open(Some(&crypt), &mut bytes) {
                Ok((range, sealed)) => prop_assert!(!sealed && range == (0..bytes.len())),
                Err(error) => prop_assert!(matches!(error, Error::Protocol(_))),
            }
        }
    }
}
