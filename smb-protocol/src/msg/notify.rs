//! CHANGE_NOTIFY request (MS-SMB2 2.2.35); the response is
//! [`super::query_directory::Response`].

use nom::Parser;

use crate::{
    flag_set,
    header::{body, file_id},
    ids::FileId,
    name, open_enum,
    parse::{self, Input, Parsed, size32, structure_size, text, u16, u32},
    wire::{Put, Result, len32},
};

flag_set! {
    /// `CompletionFilter` (MS-SMB2 2.2.35).
    ChangeFilter: u32 {
        /// Files come, go or are renamed.
        FILE_NAME = 0x1,
        /// Folders come, go or are renamed.
        DIR_NAME = 0x2,
        /// Attributes.
        ATTRIBUTES = 0x4,
        /// Length.
        SIZE = 0x8,
        /// Time of the last write.
        LAST_WRITE = 0x10,
        /// Time of the last access.
        LAST_ACCESS = 0x20,
        /// Time of creation.
        CREATION = 0x40,
        /// Extended attributes.
        EA = 0x80,
        /// Access list.
        SECURITY = 0x100,
        /// Streams come, go or are renamed.
        STREAM_NAME = 0x200,
        /// Length of a stream.
        STREAM_SIZE = 0x400,
        /// Content of a stream.
        STREAM_WRITE = 0x800,
    }
}

open_enum! {
    /// `Action` of an event (MS-FSCC 2.7.1).
    Action: u32 {
        /// It is new.
        ADDED = 1,
        /// It is gone.
        REMOVED = 2,
        /// Its content or attributes changed.
        MODIFIED = 3,
        /// It was called this.
        RENAMED_OLD_NAME = 4,
        /// It is called this now.
        RENAMED_NEW_NAME = 5,
        /// The stream is new.
        ADDED_STREAM = 6,
        /// The stream is gone.
        REMOVED_STREAM = 7,
        /// The stream changed.
        MODIFIED_STREAM = 8,
    }
}

/// One thing that happened in a folder (MS-FSCC 2.7.1, `FILE_NOTIFY_INFORMATION`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub action: Action,
    /// To what, from the folder on.
    pub name: String,
}

impl Event {
    /// Bytes that it takes in an answer, with padding.
    pub fn wire_len(&self) -> usize {
        (12 + name::to_utf16(&self.name).len()).next_multiple_of(4)
    }

    /// The content of an answer.
    pub fn encode_all(events: &[Self]) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, event) in events.iter().enumerate() {
            let start = out.len();
            let name = name::to_utf16(&event.name);
            out.put_u32(0);
            out.put_u32(event.action.0);
            out.put_u32(len32(name.len()));
            out.put(&name);
            if index + 1 < events.len() {
                let len = (out.len() - start).next_multiple_of(4);
                out.resize(start + len, 0);
                out[start..start + 4].copy_from_slice(&len32(len).to_le_bytes());
            }
        }
        out
    }

    /// Reads the content of an answer.
    ///
    /// # Errors
    /// An entry ends before its name does, or its name is not UTF-16.
    pub fn parse_all(bytes: &[u8]) -> Result<Vec<Self>> {
        let mut events = Vec::new();
        let mut left = Input::new(bytes);
        while !left.is_empty() {
            let mut behind = left;
            let (event, next) = parse::step(&mut behind, event)?;
            events.push(event);
            if next == 0 {
                break;
            }
            // The next one begins where this one ends at the earliest: entries that overlap would be
            // more than was sent, or without an end.
            let next = left.position().saturating_add(next).max(behind.position());
            left = parse::from(left, next, "notify.NextEntryOffset").unwrap_or(Input::new(&[]));
        }
        Ok(events)
    }
}

/// Reads an entry, and how far behind its beginning the next one begins.
fn event(input: Input<'_>) -> Parsed<'_, (Event, usize)> {
    let (i, (next, action, len)) = (
        size32("notify.NextEntryOffset"),
        u32("notify.Action").map(Action),
        size32("notify.FileNameLength"),
    )
        .parse(input)?;
    let (i, name) = text(len, "notify.FileName")(i)?;
    Ok((i, (Event { action, name }, next)))
}

/// `SMB2_WATCH_TREE`: everything below, not the directory alone.
pub const WATCH_TREE: u16 = 1;

/// CHANGE_NOTIFY request: waits for changes in a folder (MS-SMB2 2.2.35).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Request {
    /// [`WATCH_TREE`] or 0.
    pub flags: u16,
    /// Most bytes to be answered.
    pub output_len: u32,
    /// The directory.
    pub file_id: FileId,
    /// Which changes count.
    pub filter: u32,
}

impl Request {
    /// Reads the body of a CHANGE_NOTIFY request, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field, or is of another structure.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let fields = (
            structure_size(32, "change_notify.StructureSize"),
            u16("change_notify.Flags"),
            u32("change_notify.OutputBufferLength"),
            file_id("change_notify.FileId"),
            u32("change_notify.CompletionFilter"),
        );
        let request = fields.map(|((), flags, output_len, file_id, filter)| Self {
            flags,
            output_len,
            file_id,
            filter,
        });
        parse::run(body(bytes), request)
    }

    /// Appends the body of a CHANGE_NOTIFY request to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(32);
        out.put_u16(self.flags);
        out.put_u32(self.output_len);
        out.put(&self.file_id.to_bytes());
        out.put_u32(self.filter);
        out.put_u32(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn events_round_trip(events in prop::collection::vec((1u32..9, "[a-zäß\\\\]{0,9}"), 0..6)) {
            let events: Vec<_> =
                events.into_iter().map(|(a, name)| Event { action: Action(a), name }).collect();
            let bytes = Event::encode_all(&events);
            prop_assert!(bytes.len() <= events.iter().map(Event::wire_len).sum());
            prop_assert_eq!(Event::parse_all(&bytes).unwrap(), events);
        }

        #[test]
        fn names_take_no_more_than_was_sent(len in 0u32..2000, next in 0u32..40, count in 1usize..40) {
            let mut bytes = Vec::new();
            for _ in 0..count {
                bytes.put_u32(next);
                bytes.put_u32(1);
                bytes.put_u32(len);
                bytes.put_zeros(next.saturating_sub(12) as usize);
            }
            if let Ok(events) = Event::parse_all(&bytes) {
                let names: usize = events.iter().map(|e| e.name.encode_utf16().count() * 2).sum();
                prop_assert!(names <= bytes.len());
            }
        }

        #[test]
        fn parsing_is_total(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Event::parse_all(&bytes);
        }
    }
}
