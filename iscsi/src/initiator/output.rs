//! What is to be sent: headers together, large data from where they are.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::pdu::{Digests, Pdu, frame::digest};

/// Data up to this long are copied beside their header, in bytes.
const SMALL: usize = 1024;
/// Pieces of one send.
const PIECES: usize = 64;

#[derive(Debug)]
pub(super) struct Output {
    digests: Digests,
    chunks: VecDeque<Bytes>,
    head: BytesMut,
}

impl Output {
    pub fn new(digests: Digests) -> Self {
        Self { digests, chunks: VecDeque::new(), head: BytesMut::new() }
    }

    /// Adds a PDU to what is to be sent.
    pub fn pdu(&mut self, pdu: &Pdu, data: &Bytes) {
        let mut basic = pdu.write();
        basic.data_length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let header = basic.write();
        self.head.put_slice(&header);
        if self.digests.header {
            self.head.put_slice(&digest(&header));
        }
        if data.is_empty() {
            return;
        }
        let padding = &[0; 3][..data.len().next_multiple_of(4) - data.len()];
        if data.len() <= SMALL {
            self.head.put_slice(data);
        } else {
            self.chunks.push_back(self.head.split().freeze());
            self.chunks.push_back(data.clone());
        }
        self.head.put_slice(padding);
        if self.digests.data {
            let check = crc32c::crc32c_append(crc32c::crc32c(data), padding);
            self.head.put_slice(&check.to_le_bytes());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.head.is_empty()
    }

    /// The next pieces to be sent.
    pub fn slices(&mut self) -> Vec<IoSlice<'_>> {
        if !self.head.is_empty() {
            self.chunks.push_back(self.head.split().freeze());
        }
        self.chunks.iter().take(PIECES).map(|chunk| IoSlice::new(chunk)).collect()
    }

    /// So many bytes of them were sent.
    pub fn sent(&mut self, mut count: usize) {
        while let Some(first) = self.chunks.front_mut() {
            if first.len() > count {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.chunks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdu::{NO_TAG, NopOut, RequestNumbers, frame};

    #[test]
    fn what_goes_out_in_pieces_is_what_a_whole_would_be() {
        let pdu =
            Pdu::NopOut(NopOut { sn: RequestNumbers::default(), lun: [0; 8], itt: 1, ttt: NO_TAG });
        for digests in [Digests::default(), Digests { header: true, data: true }] {
            let mut out = Output::new(digests);
            let mut right = Vec::new();
            for length in [0usize, 5, 1024, 1025, 4096, 70_001] {
                let data: Vec<u8> = (0..length).map(|n| n as u8).collect();
                right.extend(frame::write(pdu.write(), &[], &data, digests));
                out.pdu(&pdu, &data.into());
            }
            let mut found = Vec::new();
            while !out.is_empty() {
                let slices = out.slices();
                let all: Vec<u8> = slices.iter().flat_map(|it| it.to_vec()).collect();
                let count = all.len().min(777);
                found.extend_from_slice(&all[..count]);
                out.sent(count);
            }
            assert_eq!(found, right);
        }
    }
}
