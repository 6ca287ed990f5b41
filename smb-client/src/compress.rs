//! Compressed messages on their way (MS-SMB2 3.2.4.1.9, 3.2.5.1.1.2).
//!
//! ```text
//!  options ─► negotiate ─► Compression, for the connection
//!  share flag, options ──► Group::compresses, for each tree
//!      READ asks for a compressed answer; WRITE is signed ─► packed ─► sealed
//! ```

use bytes::{Bytes, BytesMut};
use smb_protocol::{
    compression::{CAPABILITY_CHAINED, Compression, CompressionAlgorithm, Packed},
    header::HEADER_LEN,
    msg::negotiate::{self, Context},
};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::{Compress, ConnectOptions, Error, Result};

/// Bytes of a WRITE before its data, which stay as they are: header and fixed part of the body.
const LEAD: usize = HEADER_LEN + 48;
/// What takes less than a millisecond is done where it is.
const INLINE: usize = 64 << 10;

/// Does work that takes milliseconds, where the other tasks of this thread do not wait for it.
fn aside<T>(work: impl FnOnce() -> T) -> T {
    let shared = Handle::try_current()
        .is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if shared { tokio::task::block_in_place(work) } else { work() }
}

/// Compresses the message of a WRITE that stands at the end of `out` from `at` on, if that pays.
pub(crate) fn pack(compression: &Compression, out: &mut Vec<u8>, at: usize) {
    let message = &out[at..];
    let mut packed = Vec::new();
    let mut pack = || compression.compress(message, LEAD, &mut packed);
    if if message.len() > INLINE { aside(pack) } else { pack() } {
        out.truncate(at);
        out.extend_from_slice(&packed);
    }
}

/// Puts what a compressed message holds behind what is in `into`. `largest` is the longest payload
/// that the server was asked for.
pub(crate) fn unpack(
    compression: Option<&Compression>,
    message: &[u8],
    largest: usize,
    into: &mut Vec<u8>,
) -> Result<()> {
    let Some(compression) = compression else {
        return Err(Error::Protocol("a compressed message, which was not agreed on".into()));
    };
    let packed = Packed::parse(compression, message, largest)?;
    let mut unpack = || packed.unpack(into);
    if packed.len() > INLINE { aside(unpack) } else { unpack() }?;
    Ok(())
}

/// What a frame holds from `at` on: the messages in it, decompressed.
pub(crate) fn messages(
    compression: Option<&Compression>,
    frame: BytesMut,
    largest: usize,
) -> Result<BytesMut> {
    if !Packed::starts(&frame) {
        return Ok(frame);
    }
    let mut whole = Vec::new();
    unpack(compression, &frame, largest, &mut whole)?;
    Ok(Bytes::from(whole).into())
}

/// The context that offers compression, where the options want it.
pub(crate) fn offer(options: &ConnectOptions) -> Option<Context> {
    let offered = options.compress != Compress::Never && !options.compression.is_empty();
    offered.then(|| Context::Compression {
        flags: if options.chained_compression { CAPABILITY_CHAINED } else { 0 },
        algorithms: options.compression.clone(),
    })
}

/// What was agreed on, by the answer to the offer (3.2.5.2).
pub(crate) fn accept(
    response: &negotiate::Response,
    options: &ConnectOptions,
) -> Result<Option<Compression>> {
    let mut answers = response.contexts.iter().filter_map(|context| match context {
        Context::Compression { flags, algorithms } => Some((*flags, algorithms)),
        _ => None,
    });
    let Some((flags, chosen)) = answers.next() else { return Ok(None) };
    let none = chosen[..] == [CompressionAlgorithm::NONE];
    let twice = chosen.iter().enumerate().any(|(at, one)| chosen[..at].contains(one));
    let offered = |one: &CompressionAlgorithm| options.compression.contains(one);
    let asked = options.compress != Compress::Never;
    let possible = none || (!chosen.is_empty() && !twice && chosen.iter().all(offered));
    if answers.next().is_some() || !asked || !possible {
        return Err(Error::Protocol(format!("chose to compress with {chosen:?}")));
    }
    let chained = options.chained_compression && flags & CAPABILITY_CHAINED != 0;
    Ok(Compression::agreed(&options.compression, chosen, chained))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Login;

    /// MS-SMB2 3.2.5.2.
    #[test]
    fn answers_to_what_was_not_offered_are_refused() {
        const LZ4: CompressionAlgorithm = CompressionAlgorithm::LZ4;
        const LZ77: CompressionAlgorithm = CompressionAlgorithm::LZ77;
        const NONE: CompressionAlgorithm = CompressionAlgorithm::NONE;
        let mut options = ConnectOptions::new("h", 445, Login::new("u", "p"));
        assert_eq!(offer(&options), None);
        let answer = |options: &ConnectOptions, lists: &[&[CompressionAlgorithm]]| {
            let contexts = lists.iter().map(|list| Context::Compression {
                flags: CAPABILITY_CHAINED,
                algorithms: list.to_vec(),
            });
            let contexts = contexts.collect();
            accept(&negotiate::Response { contexts, ..Default::default() }, options)
        };
        assert!(answer(&options, &[&[LZ4]]).is_err(), "nothing was offered");
        options.compress = Compress::Always;
        options.compression = vec![LZ77, LZ4];
        assert!(offer(&options).is_some());
        assert_eq!(answer(&options, &[]).unwrap(), None);
        assert_eq!(answer(&options, &[&[NONE]]).unwrap(), None);
        let agreed = answer(&options, &[&[LZ4, LZ77]]).unwrap().unwrap();
        assert_eq!((agreed.algorithm(), agreed.is_chained()), (LZ77, true));
        options.chained_compression = false;
        assert!(!answer(&options, &[&[LZ4]]).unwrap().unwrap().is_chained());
        for wrong in [&[&[][..]][..], &[&[LZ4, LZ4]], &[&[LZ4], &[LZ77]], &[&[NONE, LZ4]]] {
            assert!(answer(&options, wrong).is_err(), "{wrong:?}");
        }
        let other = CompressionAlgorithm::LZNT1;
        assert!(answer(&options, &[&[LZ4, other]]).is_err());
        assert!(answer(&options, &[&[CompressionAlgorithm(32)]]).is_err());
    }

    #[test]
    fn a_compressed_message_without_an_agreement_is_refused() {
        let mut frame = BytesMut::from(&smb_protocol::header::PROTOCOL_COMPRESSED[..]);
        frame.resize(80, 0);
        assert!(matches!(messages(None, frame, 1 << 20), Err(Error::Protocol(_))));
    }
}
