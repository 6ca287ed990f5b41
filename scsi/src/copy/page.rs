//! The Third-party Copy VPD page (SPC-4 7.8.17).

use super::{
    BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_OFFSET, IDENTIFICATION, MAX_LISTS, MAX_SEGMENT_BYTES,
    MAX_SEGMENTS, MAX_TARGETS, offload::MAX_TOKEN_BYTES, tokens,
};
use crate::{inquiry::copy_commands, unit::Unit};

/// All of the page behind its header.
pub(crate) fn third_party_page(unit: &Unit) -> Vec<u8> {
    let mut out = Vec::with_capacity(320);
    describe(&mut out, 0x0000, token_limits(unit));
    describe(&mut out, 0x0001, commands());
    describe(&mut out, 0x0004, parameter_data());
    let types = [BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_OFFSET, IDENTIFICATION];
    let mut list = vec![types.len() as u8];
    list.extend(types);
    describe(&mut out, 0x0008, list);
    describe(&mut out, 0x0108, token_types());
    describe(&mut out, 0x8001, operations());
    out
}

/// A third-party copy descriptor: a multiple of four bytes.
fn describe(out: &mut Vec<u8>, kind: u16, mut body: Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
    out.extend(kind.to_be_bytes());
    out.extend((body.len() as u16).to_be_bytes());
    out.extend(body);
}

fn token_limits(unit: &Unit) -> Vec<u8> {
    let blocks = MAX_TOKEN_BYTES / u64::from(unit.block());
    let mut body = vec![0; 6];
    body.extend((tokens::MAX_RANGES as u16).to_be_bytes());
    body.extend(tokens::MAX_TIMEOUT.to_be_bytes());
    body.extend(tokens::DEFAULT_TIMEOUT.to_be_bytes());
    body.extend(blocks.to_be_bytes());
    body.extend(blocks.to_be_bytes());
    body
}

fn commands() -> Vec<u8> {
    let mut list = Vec::new();
    for (code, actions) in copy_commands() {
        list.extend([code, actions.len() as u8]);
        list.extend(actions);
    }
    let mut body = vec![list.len() as u8];
    body.extend(list);
    body
}

fn parameter_data() -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend((MAX_TARGETS as u16).to_be_bytes());
    body.extend((MAX_SEGMENTS as u16).to_be_bytes());
    body.extend((MAX_LISTS as u32).to_be_bytes());
    body.resize(28, 0);
    body
}

/// Which tokens are made and which are taken.
fn token_types() -> Vec<u8> {
    let mut body = vec![0, 0, 0, 128];
    for (kind, ways) in [(tokens::POINT_IN_TIME, 0x03), (tokens::ZERO, 0x02)] {
        let mut descriptor = u32::to_be_bytes(kind).to_vec();
        descriptor.extend([ways, 0, 0x80, 0x00]);
        descriptor.resize(64, 0);
        body.extend(descriptor);
    }
    body
}

fn operations() -> Vec<u8> {
    let mut body = 255u32.to_be_bytes().to_vec();
    body.extend(255u32.to_be_bytes());
    body.extend((MAX_SEGMENT_BYTES as u32).to_be_bytes());
    body.push(9);
    body.resize(32, 0);
    body
}
