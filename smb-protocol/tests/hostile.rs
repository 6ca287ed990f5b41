//! Every parser against a peer that means harm: messages that are well formed but for a field that
//! wraps, points outside, claims almost 2^32 bytes, is odd where it must be even, or is cut.
//!
//! The oracle: a parser gives an error, or a value that is written and read again as the same. No
//! input makes it panic. Unharmed, a message is read and written as it was.

use proptest::prelude::*;
use smb_protocol::testing::{Case, authentication, create_contexts, messages, reparse_points};

fn all() -> Vec<Case> {
    let files = messages().into_iter().chain(create_contexts()).chain(reparse_points());
    files.chain(authentication()).collect()
}

/// Numbers that make sums wrap, comparisons fail by one, and characters break.
fn extreme() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(u64::MAX),
        Just(u64::MAX - 1),
        Just(1 << 63),
        Just(1 << 31),
        Just((1 << 31) - 1),
        Just(0x8000),
        Just(0x7fff),
        Just(0xd800_dc00),
        Just(0x80),
        Just(0x81),
        Just(0x8400),
        0u64..130,
        any::<u64>(),
    ]
}

#[test]
fn what_was_not_harmed_is_read_and_written_as_it_was() {
    for case in all() {
        let again = (case.again)(&case.sample);
        assert_eq!(again.as_ref(), Some(&case.sample), "{}", case.name);
    }
}

/// A message that ends early is refused, or says the same without its end.
#[test]
fn messages_may_be_cut_anywhere() {
    for case in all() {
        for cut in 0..case.sample.len() {
            if let Some(again) = (case.again)(&case.sample[..cut]) {
                assert_eq!((case.again)(&again).as_ref(), Some(&again), "{} {cut}", case.name);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn fields_may_hold_anything(
        which in any::<prop::sample::Index>(),
        harm in prop::collection::vec((any::<prop::sample::Index>(), extreme(), 0usize..4), 1..4),
        more in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let cases = all();
        let case = &cases[which.index(cases.len())];
        let mut bytes = case.sample.clone();
        for (at, value, width) in harm {
            let at = at.index(bytes.len());
            let end = bytes.len().min(at + (1 << width));
            bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
        }
        bytes.extend(more);
        if let Some(again) = (case.again)(&bytes) {
            let third = (case.again)(&again);
            prop_assert_eq!(third.as_ref(), Some(&again), "{}", case.name);
        }
    }

    /// The same where numbers are big-endian: DER and keytabs.
    #[test]
    fn fields_in_the_other_order_may_hold_anything(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(), value in extreme(), width in 0usize..4,
    ) {
        let cases = authentication();
        let case = &cases[which.index(cases.len())];
        let mut bytes = case.sample.clone();
        let at = at.index(bytes.len());
        let len = (bytes.len() - at).min(1 << width);
        bytes[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
        if let Some(again) = (case.again)(&bytes) {
            let third = (case.again)(&again);
            prop_assert_eq!(third.as_ref(), Some(&again), "{}", case.name);
        }
    }
}
