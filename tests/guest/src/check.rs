//! Verifies every acknowledged block of a disk that the guest wrote.

use std::io;

use crate::pattern::{BLOCK, Content, WORDS, block_of, look};

/// What the guest's lines on the console say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// `seed=` of the start line.
    pub seed: u64,
    /// `blocks=` of the start line: how many blocks of the disk are in use.
    pub blocks: u64,
    /// All writes up to this one must be there.
    pub acked: u64,
    /// Writes up to this one may be there.
    pub submitted: u64,
}

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Blocks that hold the last acknowledged write to them.
    pub exact: u64,
    /// Blocks that hold a later write, submitted but not known to be acknowledged.
    pub newer: u64,
    /// Blocks that were never written and are blank.
    pub blank: u64,
}

/// Why a disk is not what it must be.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A block could not be read.
    #[error("cannot read block {block}")]
    Read {
        /// Which.
        block: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An acknowledged write is not there.
    #[error("block {block}: acknowledged write {wanted} is lost, found {found:?}")]
    Lost {
        /// Which.
        block: u64,
        /// Number of the write.
        wanted: u64,
        /// What is there.
        found: Content,
    },
    /// A block holds something that was never written to it.
    #[error("block {block} must be blank or a write after {acked}, found {found:?}")]
    Foreign {
        /// Which.
        block: u64,
        /// Last acknowledged write.
        acked: u64,
        /// What is there.
        found: Content,
    },
}

/// Reads all blocks through `read` (offset in bytes, a buffer of one block) and compares.
pub fn check(
    expected: &Expected,
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> Result<Report, CheckError> {
    let Expected { seed, blocks, acked, submitted } = *expected;
    let mut last = vec![0; usize::try_from(blocks).unwrap_or(usize::MAX)];
    for seq in 1..=acked {
        last[block_of(seed, seq, blocks) as usize] = seq;
    }
    let mut report = Report::default();
    let mut bytes = [0; BLOCK as usize];
    for (block, wanted) in (0..).zip(last) {
        read(block * BLOCK, &mut bytes).map_err(|source| CheckError::Read { block, source })?;
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        match look(seed, &words) {
            Content::Blank if wanted == 0 => report.blank += 1,
            Content::Write { seq, block: at } if at == block && seq == wanted => report.exact += 1,
            Content::Write { seq, block: at }
                if at == block
                    && (acked + 1..=submitted).contains(&seq)
                    && block_of(seed, seq, blocks) == block =>
            {
                report.newer += 1;
            }
            found if wanted != 0 => return Err(CheckError::Lost { block, wanted, found }),
            found => return Err(CheckError::Foreign { block, acked, found }),
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pattern::fill;

    fn write(disk: &mut [u8], seed: u64, seq: u64, blocks: u64) {
        let block = block_of(seed, seq, blocks);
        let mut words = [0; WORDS];
        fill(seed, seq, block, &mut words);
        let at = (block * BLOCK) as usize;
        for (index, word) in words.iter().enumerate() {
            disk[at + index * 8..at + index * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
    }

    fn run(disk: &[u8], expected: Expected) -> Result<Report, CheckError> {
        check(&expected, |at, bytes| {
            bytes.copy_from_slice(&disk[at as usize..at as usize + bytes.len()]);
            Ok(())
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn a_right_disk_passes_and_one_flipped_bit_does_not(
            seed: u64, count in 1u64..80, more in 0u64..8, bit: proptest::sample::Index,
        ) {
            const BLOCKS: u64 = 32;
            let mut disk = vec![0; (BLOCKS * BLOCK) as usize];
            for seq in 1..=count + more {
                write(&mut disk, seed, seq, BLOCKS);
            }
            let expected =
                Expected { seed, blocks: BLOCKS, acked: count, submitted: count + more };
            let report = run(&disk, expected).unwrap();
            prop_assert_eq!(report.exact + report.newer + report.blank, BLOCKS);
            if more == 0 {
                prop_assert_eq!(report.newer, 0);
            }
            let at = bit.index(disk.len() * 8);
            disk[at / 8] ^= 1 << (at % 8);
            prop_assert!(run(&disk, expected).is_err());
        }

        #[test]
        fn a_lost_write_is_found(seed: u64, count in 2u64..80) {
            const BLOCKS: u64 = 16;
            let mut disk = vec![0; (BLOCKS * BLOCK) as usize];
            for seq in 1..count {
                write(&mut disk, seed, seq, BLOCKS);
            }
            let expected = Expected { seed, blocks: BLOCKS, acked: count, submitted: count };
            let lost = matches!(run(&disk, expected), Err(CheckError::Lost { wanted, .. }) if wanted == count);
            prop_assert!(lost);
        }
    }
}
