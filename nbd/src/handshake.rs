//! Fixed newstyle negotiation (proto.md, "Handshake phase").

use std::sync::Arc;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    Device, Error, Export,
    wire::{self, ALLOCATION, ALLOCATION_ID, answer, export, hello, info, option, option_reply},
};

/// Options that one client may send before it chooses an export.
const MAX_OPTIONS: usize = 256;

/// What was agreed on.
#[derive(Debug)]
pub struct Session {
    /// The disk that was chosen.
    pub device: Arc<Device>,
    /// Replies come in chunks.
    pub structured: bool,
    /// The client may ask what is allocated.
    pub allocation: bool,
}

#[derive(Debug, Default)]
struct Agreed {
    no_zeroes: bool,
    structured: bool,
    /// The export whose allocation the client wants to ask about.
    allocation: Option<String>,
}

/// What an option leads to.
enum Next {
    More,
    Leave,
    Go(Session),
}

/// Reads a length and that many bytes as text from the front of `data`.
fn text<'a>(data: &mut &'a [u8]) -> Option<&'a str> {
    let len = data.try_get_u32().ok()? as usize;
    let (head, rest) = data.split_at_checked(len)?;
    *data = rest;
    std::str::from_utf8(head).ok()
}

fn find<'a>(exports: &'a [Export], name: &str) -> Option<&'a Export> {
    let named = exports.iter().find(|export| export.name == name);
    // A client that names none gets the only one there is.
    named.or_else(|| exports.first().filter(|_| name.is_empty() && exports.len() == 1))
}

/// Transmission flags of an export.
fn flags(device: &Device, structured: bool) -> u16 {
    let mut flags = export::HAS_FLAGS | export::SEND_FLUSH | export::SEND_CACHE;
    // Connections share the disk, and a flush on one covers what was answered on any.
    flags |= export::CAN_MULTI_CONN;
    if structured {
        flags |= export::SEND_DF;
    }
    flags
        | match device.is_read_only() {
            true => export::READ_ONLY,
            false => export::SEND_FUA | export::SEND_TRIM | export::SEND_WRITE_ZEROES,
        }
}

/// Greets a client and takes its options; `None` if it leaves without choosing.
///
/// # Errors
/// [`Error`] when the client breaks the protocol or the connection breaks off.
pub async fn negotiate<S>(stream: &mut S, exports: &[Export]) -> Result<Option<Session>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut out = BytesMut::new();
    out.put_u64(wire::INIT);
    out.put_u64(wire::OPTION);
    out.put_u16((hello::FIXED | hello::NO_ZEROES) as u16);
    stream.write_all(&out).await?;
    let theirs = stream.read_u32().await?;
    if theirs & hello::FIXED == 0 || theirs & !(hello::FIXED | hello::NO_ZEROES) != 0 {
        return Err(Error::Protocol("the client does not speak fixed newstyle negotiation"));
    }
    let mut agreed = Agreed { no_zeroes: theirs & hello::NO_ZEROES != 0, ..Agreed::default() };
    for _ in 0..MAX_OPTIONS {
        if stream.read_u64().await? != wire::OPTION {
            return Err(Error::Protocol("not an option"));
        }
        let (code, len) = (stream.read_u32().await?, stream.read_u32().await?);
        if len > wire::MAX_OPTION {
            return Err(Error::Protocol("an option is longer than any can be"));
        }
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data).await?;
        out.clear();
        let next = agreed.take(code, &data, exports, &mut out);
        stream.write_all(&out).await?;
        match next? {
            Next::More => {}
            Next::Leave => return Ok(None),
            Next::Go(session) => return Ok(Some(session)),
        }
    }
    Err(Error::Protocol("too many options"))
}

impl Agreed {
    fn session(&self, export: &Export) -> Session {
        Session {
            device: export.device.clone(),
            structured: self.structured,
            allocation: self.allocation.as_ref() == Some(&export.name),
        }
    }

    /// Takes one option and puts the answers to it.
    fn take(
        &mut self,
        code: u32,
        data: &[u8],
        exports: &[Export],
        out: &mut BytesMut,
    ) -> Result<Next, Error> {
        let mut reply = |kind, data: &[u8]| option_reply(out, code, kind, data);
        match code {
            option::EXPORT_NAME => {
                let name = std::str::from_utf8(data).ok();
                let export = name.and_then(|name| find(exports, name));
                // This option has no answer that says no.
                let export = export.ok_or(Error::Protocol("an export that is not there"))?;
                out.put_u64(export.device.size());
                out.put_u16(flags(&export.device, self.structured));
                if !self.no_zeroes {
                    out.put_bytes(0, 124);
                }
                return Ok(Next::Go(self.session(export)));
            }
            option::ABORT => {
                reply(answer::ACK, &[]);
                return Ok(Next::Leave);
            }
            option::LIST if !data.is_empty() => reply(answer::ERR_INVALID, b"LIST has no data"),
            option::LIST => {
                for export in exports {
                    let mut item = BytesMut::new();
                    item.put_u32(export.name.len() as u32);
                    item.put_slice(export.name.as_bytes());
                    item.put_slice(export.description.as_bytes());
                    reply(answer::SERVER, &item);
                }
                reply(answer::ACK, &[]);
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                reply(answer::ACK, &[]);
            }
            option::STRUCTURED_REPLY => {
                reply(answer::ERR_INVALID, b"STRUCTURED_REPLY has no data");
            }
            option::INFO | option::GO => {
                let mut rest = data;
                let name = text(&mut rest);
                let count = rest.try_get_u16().map(|count| usize::from(count) * 2);
                let Some(name) = name.filter(|_| count == Ok(rest.len())) else {
                    reply(answer::ERR_INVALID, b"not a name and a list of numbers");
                    return Ok(Next::More);
                };
                let Some(export) = find(exports, name) else {
                    reply(answer::ERR_UNKNOWN, b"no such export");
                    return Ok(Next::More);
                };
                let wanted =
                    rest.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
                for item in self.facts(export, wanted) {
                    reply(answer::INFO, &item);
                }
                reply(answer::ACK, &[]);
                if code == option::GO {
                    return Ok(Next::Go(self.session(export)));
                }
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta(code, data, exports, &mut reply);
            }
            _ => reply(answer::ERR_UNSUP, b"not an option of this server"),
        }
        Ok(Next::More)
    }

    /// What is told of an export: its size always, its block sizes because it has some, the rest
    /// when it is asked for.
    fn facts(&self, export: &Export, wanted: impl Iterator<Item = u16>) -> Vec<BytesMut> {
        let item = |kind: u16, fill: &dyn Fn(&mut BytesMut)| {
            let mut item = BytesMut::new();
            item.put_u16(kind);
            fill(&mut item);
            item
        };
        let device = &export.device;
        let mut items = vec![
            item(info::EXPORT, &|out| {
                out.put_u64(device.size());
                out.put_u16(flags(device, self.structured));
            }),
            item(info::BLOCK_SIZE, &|out| {
                let (smallest, preferred) = device.block_sizes();
                out.put_u32(smallest);
                out.put_u32(preferred);
                out.put_u32(wire::MAX_REQUEST);
            }),
        ];
        for kind in wanted.take(16) {
            match kind {
                info::NAME => items.push(item(kind, &|out| out.put_slice(export.name.as_bytes()))),
                info::DESCRIPTION => {
                    items.push(item(kind, &|out| out.put_slice(export.description.as_bytes())));
                }
                _ => {}
            }
        }
        items
    }

    /// LIST_META_CONTEXT and SET_META_CONTEXT: there is one context.
    fn meta(
        &mut self,
        code: u32,
        data: &[u8],
        exports: &[Export],
        reply: &mut impl FnMut(u32, &[u8]),
    ) {
        let mut rest = data;
        let parsed = text(&mut rest).and_then(|name| {
            let count = rest.try_get_u32().ok()?;
            // Each has a length at least, so `rest` bounds the count.
            let queries: Option<Vec<&str>> = (0..count).map(|_| text(&mut rest)).collect();
            queries.filter(|_| rest.is_empty()).map(|queries| (name, queries))
        });
        let sets = code == option::SET_META_CONTEXT;
        if sets {
            self.allocation = None;
        }
        let Some((name, queries)) = parsed.filter(|_| self.structured || !sets) else {
            reply(answer::ERR_INVALID, b"not a name and queries, or without structured replies");
            return;
        };
        let Some(export) = find(exports, name) else {
            reply(answer::ERR_UNKNOWN, b"no such export");
            return;
        };
        let lists_all = !sets && (queries.is_empty() || queries.contains(&"base:"));
        if lists_all || queries.contains(&ALLOCATION) {
            let mut item = BytesMut::new();
            item.put_u32(if sets { ALLOCATION_ID } else { 0 });
            item.put_slice(ALLOCATION.as_bytes());
            reply(answer::META_CONTEXT, &item);
            if sets {
                self.allocation = Some(export.name.clone());
            }
        }
        reply(answer::ACK, &[]);
    }
}
