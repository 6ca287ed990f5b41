//! LOCK request (MS-SMB2 2.2.26); the response is [`super::simple::Empty`].

use nom::Parser;

use crate::{
    flag_set,
    header::{body, file_id},
    ids::FileId,
    parse::{self, Input, Parsed, counted, skip, structure_size, such, u16, u32, u64},
    wire::{Put, Result, len16},
};

flag_set! {
    /// `Flags` of one element.
    LockFlags: u32 {
        /// Others may lock it shared too.
        SHARED = 1,
        /// Nobody else may lock it.
        EXCLUSIVE = 2,
        /// Release.
        UNLOCK = 4,
        /// Do not wait for a conflicting lock.
        FAIL_IMMEDIATELY = 0x10,
    }
}

/// One range to lock or unlock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Element {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// What to do.
    pub flags: LockFlags,
}

fn element(input: Input<'_>) -> Parsed<'_, Element> {
    (u64("lock.Offset"), u64("lock.Length"), u32("lock.Flags"), skip(4, "lock.Reserved"))
        .map(|(offset, length, flags, ())| Element { offset, length, flags: LockFlags(flags) })
        .parse(input)
}

/// LOCK request: asks to lock or unlock ranges of a file (MS-SMB2 2.2.26).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// `LockSequenceNumber` (4 bits) and `LockSequenceIndex` (28 bits).
    pub sequence: u32,
    /// What to lock in.
    pub file_id: FileId,
    /// Ranges.
    pub locks: Vec<Element>,
}

impl Request {
    /// Reads the body of a LOCK request, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field or before the ranges that it counts, counts none, or is of
    /// another structure.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        parse::with(body(bytes), |input| {
            let (i, (_, count, sequence, file_id)) = (
                structure_size(48, "lock.StructureSize"),
                such(u16, "lock.LockCount", |count| count > 0),
                u32("lock.LockSequence"),
                file_id("lock.FileId"),
            )
                .parse(input)?;
            let (i, locks) = counted(count.into(), 24, "lock.Locks", element).parse(i)?;
            Ok((i, Self { sequence, file_id, locks }))
        })
    }

    /// Appends the body of a LOCK request to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(48);
        out.put_u16(len16(self.locks.len()));
        out.put_u32(self.sequence);
        out.put(&self.file_id.to_bytes());
        for lock in &self.locks {
            out.put_u64(lock.offset);
            out.put_u64(lock.length);
            out.put_u32(lock.flags.0);
            out.put_u32(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn element() -> impl Strategy<Value = Element> {
        any::<(u64, u64, u32)>().prop_map(|(offset, length, flags)| Element {
            offset,
            length,
            flags: LockFlags(flags),
        })
    }

    proptest! {
        #[test]
        fn requests_round_trip(
            sequence in any::<u32>(),
            id in any::<[u64; 2]>(),
            locks in prop::collection::vec(element(), 1..70),
        ) {
            let file_id = FileId { persistent: id[0], volatile: id[1] };
            let request = Request { sequence, file_id, locks };
            let mut body = Vec::new();
            request.encode(&mut body);
            prop_assert_eq!(body.len(), 24 + 24 * request.locks.len());
            prop_assert_eq!(Request::parse(&body).unwrap(), request);
            prop_assert!(Request::parse(&body[..body.len() - 1]).is_err());
        }

        /// The count is the peer's word: it gives nothing that is not there.
        #[test]
        fn parsing_is_total(mut body in prop::collection::vec(any::<u8>(), 4..200), count in any::<u16>()) {
            body[..2].copy_from_slice(&[48, 0]);
            body[2..4].copy_from_slice(&count.to_le_bytes());
            match Request::parse(&body) {
                Ok(request) => {
                    prop_assert_eq!(request.locks.len(), usize::from(count));
                    prop_assert!(body.len() >= 24 + 24 * usize::from(count));
                }
                Err(_) => prop_assert!(count == 0 || body.len() < 24 + 24 * usize::from(count)),
            }
        }
    }
}
