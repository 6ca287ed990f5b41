//! Fragments put together to the upper layer's messages (MS-SMBD 3.1.5.8).

use super::{engine::Upper, message::Data};

/// What the peer says of fragments and what does not fit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Disorder {
    /// The whole would be longer than we said we put together.
    #[error("a message of {0} bytes is longer than allowed")]
    TooLong(u64),
    /// It does not say of what is to come what the one before it said.
    #[error("a fragment says that {said} bytes are to come, where {due} are")]
    Remaining {
        /// What it says.
        said: u32,
        /// What is still due after it.
        due: u32,
    },
}

/// `Connection.FragmentReassemblyBuffer` and what belongs to it.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    bytes: Vec<u8>,
    /// Bytes that are still to come.
    remaining: u32,
    invalidated: Option<u32>,
}

/// The longest buffer that is made before data fill it: the peer's word alone takes no more memory.
const AHEAD: usize = 64 << 10;

impl Reassembly {
    /// Bytes that it holds.
    pub fn held(&self) -> usize {
        self.bytes.len()
    }

    /// Takes what a message carries; the upper layer's message, if that was its last part. `most` is
    /// `Connection.MaxFragmentedRecvSize`.
    pub fn take(
        &mut self,
        head: &Data,
        message: Vec<u8>,
        invalidated: Option<u32>,
        most: u32,
    ) -> Result<Option<Upper>, Disorder> {
        self.invalidated = invalidated.or(self.invalidated);
        if head.length == 0 {
            // It gives credits or asks for a sign of life, maybe between two fragments.
            return Ok(None);
        }
        let whole = self.bytes.len() as u64 + u64::from(head.length) + u64::from(head.remaining);
        if whole > most.into() {
            return Err(Disorder::TooLong(whole));
        }
        let start = head.offset as usize;
        if self.bytes.is_empty() {
            self.remaining = head.remaining;
            if head.remaining == 0 {
                let end = start + head.length as usize;
                let mut bytes = message;
                bytes.truncate(end);
                let invalidated = self.invalidated.take();
                return Ok(Some(Upper { bytes, start, invalidated }));
            }
            self.bytes.reserve(AHEAD.min(usize::try_from(whole).unwrap_or(AHEAD)));
        } else {
            let due = self.remaining.checked_sub(head.length);
            if due != Some(head.remaining) {
                let due = due.unwrap_or_default();
                return Err(Disorder::Remaining { said: head.remaining, due });
            }
            self.remaining = head.remaining;
        }
        self.bytes.extend_from_slice(&message[start..start + head.length as usize]);
        if self.remaining > 0 {
            return Ok(None);
        }
        let bytes = std::mem::take(&mut self.bytes);
        Ok(Some(Upper { bytes, start: 0, invalidated: self.invalidated.take() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(length: u32, remaining: u32) -> (Data, Vec<u8>) {
        let head = Data { credits_requested: 1, offset: 24, length, remaining, ..Data::default() };
        let mut bytes = head.encode();
        bytes.resize(24 + length as usize, 9);
        (head, bytes)
    }

    fn take(to: &mut Reassembly, length: u32, remaining: u32) -> Result<Option<Upper>, Disorder> {
        let (head, bytes) = fragment(length, remaining);
        to.take(&head, bytes, None, 1000)
    }

    #[test]
    fn fragments_that_end_on_a_boundary_are_whole_messages() {
        let mut all = Reassembly::default();
        assert_eq!(take(&mut all, 100, 200), Ok(None));
        assert_eq!(take(&mut all, 100, 100), Ok(None));
        assert_eq!(all.held(), 200);
        let done = take(&mut all, 100, 0).unwrap().unwrap();
        assert_eq!((done.bytes, done.start), (vec![9; 300], 0));
        assert_eq!(all.held(), 0);
        let alone = take(&mut all, 100, 0).unwrap().unwrap();
        assert_eq!(alone.bytes[alone.start..], [9; 100]);
    }

    #[test]
    fn credits_may_come_between_two_fragments_and_nothing_else() {
        let mut all = Reassembly::default();
        take(&mut all, 100, 50).unwrap();
        let empty = Data { credits_requested: 1, ..Data::default() };
        assert_eq!(all.take(&empty, empty.encode(), Some(5), 1000), Ok(None));
        assert_eq!(take(&mut all, 20, 40), Err(Disorder::Remaining { said: 40, due: 30 }));
        let mut all = Reassembly::default();
        take(&mut all, 100, 50).unwrap();
        assert_eq!(take(&mut all, 60, 0), Err(Disorder::Remaining { said: 0, due: 0 }));
        let mut all = Reassembly::default();
        take(&mut all, 100, 50).unwrap();
        assert_eq!(take(&mut all, 10, 0), Err(Disorder::Remaining { said: 0, due: 40 }));
    }

    #[test]
    fn nothing_is_longer_than_we_said() {
        let mut all = Reassembly::default();
        assert_eq!(take(&mut all, 1, 1000), Err(Disorder::TooLong(1001)));
        assert_eq!(take(&mut all, 1, u32::MAX), Err(Disorder::TooLong(1 << 32)));
        assert!(take(&mut all, 1, 999).unwrap().is_none());
    }

    #[test]
    fn a_token_goes_up_with_the_message_it_came_with() {
        let mut all = Reassembly::default();
        let (head, bytes) = fragment(10, 10);
        assert_eq!(all.take(&head, bytes, Some(7), 1000), Ok(None));
        assert_eq!(take(&mut all, 10, 0).unwrap().unwrap().invalidated, Some(7));
        assert_eq!(take(&mut all, 10, 0).unwrap().unwrap().invalidated, None);
    }
}
