//! What a connection has to send: headers in one buffer, long data as views behind them, so that
//! one system call with many pieces sends all.

use std::io::IoSlice;

use bytes::Bytes;

use crate::pdu::{Basic, Digests, frame::digest};

/// Data up to here are copied behind their header: cheaper than a piece of their own.
const COPIED: usize = 512;

#[derive(Debug, Clone)]
enum Piece {
    /// The next bytes of the headers.
    Heads(usize),
    Data(Bytes),
}

/// PDUs in the order in which they go out.
#[derive(Debug, Default)]
pub struct Output {
    heads: Vec<u8>,
    pieces: Vec<Piece>,
    bytes: usize,
    /// What was sent: whole pieces, bytes of the next one, and bytes of the headers.
    sent: (usize, usize, usize),
}

impl Output {
    /// Bytes that were not sent.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether all was sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Adds a PDU to what is to be sent.
    pub fn push(&mut self, mut basic: Basic, data: Bytes, digests: Digests) {
        basic.data_length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let header = basic.write();
        self.head(&header);
        if digests.header {
            self.head(&digest(&header));
        }
        if data.is_empty() {
            return;
        }
        let padding = data.len().next_multiple_of(4) - data.len();
        let check = digests.data.then(|| {
            let sum = crc32c::crc32c(&data);
            crc32c::crc32c_append(sum, &[0; 3][..padding]).to_le_bytes()
        });
        if data.len() <= COPIED {
            self.head(&data);
        } else {
            self.bytes += data.len();
            self.pieces.push(Piece::Data(data));
        }
        self.head(&[0; 3][..padding]);
        if let Some(check) = check {
            self.head(&check);
        }
    }

    /// Adds bytes that are PDUs already.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        self.head(bytes);
    }

    fn head(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.bytes += bytes.len();
        self.heads.extend_from_slice(bytes);
        match self.pieces.last_mut() {
            Some(Piece::Heads(length)) => *length += bytes.len(),
            _ => self.pieces.push(Piece::Heads(bytes.len())),
        }
    }

    /// What is to be sent next, in as many slices as `slices` takes.
    pub fn slices<'a>(&'a self, slices: &mut Vec<IoSlice<'a>>, most: usize) {
        let (piece, mut skip, mut head) = self.sent;
        for piece in &self.pieces[piece..] {
            if slices.len() == most {
                return;
            }
            match piece {
                Piece::Heads(length) => {
                    let end = head + length - skip;
                    slices.push(IoSlice::new(&self.heads[head..end]));
                    head = end;
                }
                Piece::Data(data) => slices.push(IoSlice::new(&data[skip..])),
            }
            skip = 0;
        }
    }

    /// Notes that `count` bytes went out; room is used again once all did.
    pub fn advance(&mut self, mut count: usize) {
        self.bytes -= count;
        while count > 0 {
            let (piece, skip, head) = self.sent;
            let (length, heads) = match &self.pieces[piece] {
                Piece::Heads(length) => (*length, true),
                Piece::Data(data) => (data.len(), false),
            };
            let now = count.min(length - skip);
            count -= now;
            let head = if heads { head + now } else { head };
            self.sent =
                if skip + now == length { (piece + 1, 0, head) } else { (piece, skip + now, head) };
        }
        if self.bytes == 0 {
            self.heads.clear();
            self.pieces.clear();
            self.sent = (0, 0, 0);
        }
    }

    /// All that is to be sent, in one piece: for tests and for what is small.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut slices = Vec::new();
        self.slices(&mut slices, usize::MAX);
        slices.iter().flat_map(|slice| slice.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pdu::frame;

    proptest! {
        #[test]
        fn however_little_is_sent_at_once_nothing_is_lost(
            lengths in prop::collection::vec(0usize..2000, 1..8),
            counts in prop::collection::vec(1usize..900, 1..8),
            (header, data) in any::<(bool, bool)>(),
        ) {
            let digests = Digests { header, data };
            let mut output = Output::default();
            let mut right = Vec::new();
            for (at, length) in lengths.iter().enumerate() {
                let data = vec![u8::try_from(at).unwrap(); *length];
                let basic = Basic { itt: 7, ..Basic::default() };
                right.extend(frame::write(basic, &[], &data, digests));
                output.push(basic, Bytes::from(data), digests);
            }
            let mut sent = Vec::new();
            for count in counts.iter().cycle() {
                let all = output.to_vec();
                prop_assert_eq!(all.len(), output.bytes());
                let count = (*count).min(all.len());
                sent.extend_from_slice(&all[..count]);
                output.advance(count);
                if output.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(sent, right);
        }
    }
}
