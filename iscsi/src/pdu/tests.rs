use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::{ahs::Additional, frame::write, *};

fn basic() -> impl Strategy<Value = Basic> {
    let opcodes = prop::sample::select(vec![
        0u8, 1, 2, 3, 4, 5, 6, 0x10, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3f,
        0x1c,
    ]);
    let head = (opcodes, any::<bool>(), any::<u8>(), any::<[u8; 2]>());
    (head, any::<[u8; 8]>(), any::<u32>(), any::<[u32; 7]>()).prop_map(
        |((opcode, immediate, flags, middle), lun, itt, words)| Basic {
            opcode,
            immediate,
            flags,
            middle,
            ahs_words: 0,
            data_length: 0,
            lun,
            itt,
            words,
        },
    )
}

fn framer(digests: Digests) -> Framer {
    Framer { digests, max_data: 70_000, max_ahs_words: 64 }
}

proptest! {
    #[test]
    fn headers_are_written_as_they_were_read(basic in basic()) {
        prop_assert_eq!(Basic::read(&basic.write()), Ok(basic));
        if let Ok(pdu) = Pdu::read(&basic) {
            prop_assert_eq!(Pdu::read(&pdu.write()), Ok(pdu));
        }
    }

    #[test]
    fn additional_headers_are_written_as_they_were_read(
        cdb in prop::collection::vec(any::<u8>(), 0..=244),
        read_length in any::<Option<u32>>(),
    ) {
        let it = Additional { cdb: Bytes::from(cdb), read_length };
        prop_assert_eq!(Additional::read(&it.write()), Ok(it));
    }

    #[test]
    fn additional_headers_of_any_bytes_are_read_or_refused(
        chain in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        if let Ok(it) = Additional::read(&chain) {
            prop_assert!(it.cdb.len() <= 244);
        }
    }

    #[test]
    fn a_stream_in_any_pieces_gives_the_frames_that_were_sent(
        frames in prop::collection::vec((basic(), prop::collection::vec(any::<u8>(), 0..300)), 1..6),
        (header, data) in any::<(bool, bool)>(),
        cuts in prop::collection::vec(1usize..200, 1..50),
    ) {
        let digests = Digests { header, data };
        let mut stream: Vec<u8> = Vec::new();
        for (basic, data) in &frames {
            stream.extend(write(*basic, &[], data, digests));
        }
        let (mut input, mut found, mut rest) = (BytesMut::new(), Vec::new(), &stream[..]);
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            input.extend_from_slice(now);
            rest = later;
            while let Some(frame) = framer(digests).next(&mut input).unwrap() {
                found.push(frame);
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(found.len(), frames.len());
        for (found, (basic, data)) in found.iter().zip(&frames) {
            prop_assert_eq!(&found.data[..], &data[..]);
            prop_assert_eq!(found.basic.words, basic.words);
            prop_assert!(found.intact);
        }
    }

    #[test]
    fn any_bytes_are_frames_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        let mut input = BytesMut::from(&bytes[..]);
        while let Ok(Some(frame)) = framer(Digests::default()).next(&mut input) {
            let _ = Pdu::read(&frame.basic);
        }
    }
}

#[test]
fn a_flipped_bit_is_noticed_by_the_digest_that_covers_it() {
    let digests = Digests { header: true, data: true };
    let sound = write(Basic { opcode: 5, ..Basic::default() }, &[], b"payload", digests);
    for at in 0..sound.len() {
        let mut harmed = sound.clone();
        harmed[at] ^= 0x10;
        let mut input = BytesMut::from(&harmed[..]);
        match framer(digests).next(&mut input) {
            // A length that grew asks for more than is there, or for what is too long.
            Ok(None) | Err(_) => assert!(at < 52, "byte {at} passed"),
            Ok(Some(frame)) => assert!(!frame.intact && at >= 52, "byte {at} passed"),
        }
    }
}

#[test]
fn a_read_command_is_what_the_specification_draws() {
    let bytes: [u8; 48] = [
        0x01, 0xc1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0x10, 0, 0, 0, 0,
        9, 0, 0, 0, 11, 0x28, 0, 0, 0, 0, 1, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0,
    ];
    let Ok(Pdu::ScsiCommand(command)) = Pdu::read(&Basic::read(&bytes).unwrap()) else {
        panic!("no command");
    };
    assert!(command.last && command.read && !command.write && !command.sn.immediate);
    assert_eq!((command.attribute, command.lun[1], command.itt), (1, 5, 7));
    assert_eq!((command.expected, command.sn.cmd_sn, command.sn.exp_stat_sn), (4096, 9, 11));
    assert_eq!(command.cdb[..10], [0x28, 0, 0, 0, 0, 1, 0, 0, 8, 0]);
    assert_eq!(Pdu::ScsiCommand(command).write().write(), bytes);
}

#[test]
fn a_data_segment_that_is_too_long_is_not_waited_for() {
    let basic = Basic { opcode: 5, data_length: 70_001, ..Basic::default() };
    let mut input = BytesMut::from(&basic.write()[..]);
    assert!(matches!(
        framer(Digests::default()).next(&mut input),
        Err(FramingError::TooLong { .. })
    ));
    assert!(input.capacity() < 4096);
}

#[test]
fn residuals_say_which_side_has_more() {
    assert_eq!(Residual::of(512, 512), Residual::None);
    assert_eq!(Residual::of(512, 500), Residual::Underflow(12));
    assert_eq!(Residual::of(512, 1024), Residual::Overflow(512));
    assert_eq!(Residual::of(0, 1 << 40), Residual::Overflow(u32::MAX));
}
