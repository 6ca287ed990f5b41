//! Several requests in one message (MS-SMB2 3.2.4.1.4), for what is opened, used and closed at
//! once: the server gets all of it or nothing, so that no open is left behind when the connection
//! is lost before it was answered.

use std::sync::Arc;

use smb_protocol::{
    Command, HeaderFlags, TreeId, crypto::Role, header::HEADER_LEN, msg::simple::Empty,
};

use super::{Connection, Cost, Response, Ticket};
use crate::{
    Error, Result,
    crypt::{Guard, begin_frame, end_frame},
};

/// How often a server is asked for more credits before it is believed to have none.
const TRIES: usize = 8;

/// One request of a chain. But for the first, it is about the file of the one before it.
pub(crate) struct Part<'a> {
    pub command: Command,
    pub encode: &'a (dyn Fn(&mut Vec<u8>) + Sync),
}

impl Connection {
    /// Sends requests as one message and waits for the answers, whatever their status.
    pub async fn chain(
        self: &Arc<Self>,
        tree: TreeId,
        parts: &[Part<'_>],
    ) -> Result<Vec<Response>> {
        let count = u16::try_from(parts.len()).unwrap_or(u16::MAX);
        self.gather(count).await?;
        self.acquire(count).await?;
        let tickets = self.send_chain(tree, parts)?;
        let mut answers = Vec::with_capacity(parts.len());
        for ticket in tickets {
            answers.push(ticket.reply().await?);
        }
        Ok(answers)
    }

    /// Has the server grant enough credits for a chain.
    async fn gather(self: &Arc<Self>, count: u16) -> Result<()> {
        for _ in 0..TRIES {
            // One is kept for the question for a sign of life.
            if self.total_credits() > u32::from(count) {
                return Ok(());
            }
            self.call(Command::ECHO, TreeId(0), |out| Empty.encode(out)).await?;
        }
        Err(Error::NotOffered("credits for several requests"))
    }

    fn send_chain(self: &Arc<Self>, tree: TreeId, parts: &[Part<'_>]) -> Result<Vec<Ticket>> {
        let guard = self.crypt.guard(self.is_sealed());
        let first = self.take_numbers(parts.len() as u64);
        let mut out = Vec::with_capacity(1024);
        let at = begin_frame(&mut out, guard);
        let mut pending = Vec::with_capacity(parts.len());
        let mut tickets = Vec::with_capacity(parts.len());
        for (number, part) in (first..).zip(parts) {
            let begins = out.len();
            let mut header = self.header(part.command, tree, number, Cost::LEAST);
            if number > first {
                header.flags |= HeaderFlags::RELATED;
            }
            header.encode(&mut out);
            (part.encode)(&mut out);
            if number + 1 < first + parts.len() as u64 {
                let len = (out.len() - begins).next_multiple_of(8);
                out.resize(begins + len, 0);
                header.next_command = u32::try_from(len).unwrap_or(u32::MAX);
                out[begins..begins + HEADER_LEN].copy_from_slice(&header.to_bytes());
            }
            if guard == Guard::Signed {
                self.crypt.signing.sign(&mut out[begins..], Role::Client)?;
            }
            let (waits, ticket) = self.expected(part.command, number, Cost::LEAST, guard);
            pending.push((number, waits));
            tickets.push(ticket);
        }
        let frame = if guard == Guard::Signed { Guard::Plain } else { guard };
        end_frame(&mut out, at, frame, Some(&self.crypt))?;
        self.enqueue(out, pending)?;
        Ok(tickets)
    }
}
