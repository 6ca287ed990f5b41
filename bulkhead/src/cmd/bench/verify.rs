//! Blocks that say where they belong and how often they were written.

/// Steps a generator of random numbers (splitmix64).
pub fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Fills a block: its index and sequence number, then bytes that follow from both.
pub fn fill(block: &mut [u8], index: u64, sequence: u64) {
    let mut state = index.rotate_left(32) ^ sequence;
    let (words, rest) = block.as_chunks_mut::<8>();
    for (place, word) in words.iter_mut().enumerate() {
        let value = match place {
            0 => index,
            1 => sequence,
            _ => next_random(&mut state),
        };
        *word = value.to_le_bytes();
    }
    let last = next_random(&mut state).to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);
}

/// Says what is wrong with a block that should be number `index`, written for the
/// `sequence`-th time.
pub fn check(block: &[u8], index: u64, sequence: u64) -> Result<(), String> {
    let mut want = vec![0; block.len()];
    fill(&mut want, index, sequence);
    if block == want {
        return Ok(());
    }
    let word = |place: usize| {
        let bytes = block.get(place * 8..place * 8 + 8).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    let at = block.iter().zip(&want).position(|(a, b)| a != b).unwrap_or(0);
    Err(format!(
        "block {index}, write {sequence}: wrong from byte {at} on; it says block {}, write {}",
        word(0),
        word(1)
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn only_the_right_block_passes(
            len in 16..5000usize, index: u64, sequence: u64, bit in any::<prop::sample::Index>(),
        ) {
            let mut block = vec![0; len];
            fill(&mut block, index, sequence);
            prop_assert_eq!(check(&block, index, sequence), Ok(()));
            prop_assert!(check(&block, index.wrapping_add(1), sequence).is_err());
            prop_assert!(check(&block, index, sequence.wrapping_add(1)).is_err());
            let bit = bit.index(len * 8);
            block[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(check(&block, index, sequence).is_err());
        }
    }
}
