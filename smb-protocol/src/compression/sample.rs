//! Whether data look as if compressing them would pay, from a few of their bytes.

/// Bytes that are looked at, in so many pieces.
const SAMPLE: usize = 4096;
const PIECES: usize = 8;

/// Whether some bytes are clearly more frequent than others, which in data that are compressed or
/// encrypted already none is. Of those which only repeat themselves far away it says no, too.
pub(super) fn is_promising(data: &[u8]) -> bool {
    let mut counts = [0u32; 256];
    let mut count = |piece: &[u8]| piece.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    if data.len() <= SAMPLE {
        count(data);
    } else {
        let each = SAMPLE / PIECES;
        let apart = (data.len() - each) / (PIECES - 1);
        (0..PIECES).for_each(|piece| count(&data[piece * apart..piece * apart + each]));
    }
    // Two bytes taken at random are the same so often; of 256 that are equally frequent, once in 256.
    let seen = u64::from(counts.iter().sum::<u32>());
    let same: u64 = counts.iter().map(|count| u64::from(*count).pow(2)).sum();
    let even = seen + seen * seen / 256;
    same > even + even / 5
}
