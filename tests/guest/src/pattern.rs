//! What the guest writes where: a pure function of the seed, shared by the guest (which has no
//! std) and the checker.
//!
//! ```text
//!  write number s ──► block_of(seed, s, blocks)      which 4 KiB block
//!                 └─► fill(seed, s, block)           its content:
//!      word 0 magic   1 seed   2 s   3 block   4 checksum   5.. noise from (seed, s)
//! ```

/// Words of a block.
pub const WORDS: usize = 512;
/// Bytes of a block.
pub const BLOCK: u64 = 4096;
const MAGIC: u64 = 0x6b6c_6275_6164_6170;

/// A strong mix of one word (the finaliser of splitmix64).
pub fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The block that write `seq` goes to, of `blocks`.
pub fn block_of(seed: u64, seq: u64, blocks: u64) -> u64 {
    mix(mix(seed) ^ seq) % blocks
}

fn noise(seed: u64, seq: u64) -> impl Iterator<Item = u64> {
    let mut x = mix(seed ^ mix(seq)) | 1;
    core::iter::repeat_with(move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    })
}

fn checksum(words: &[u64; WORDS]) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325u64;
    for (index, word) in words.iter().enumerate() {
        if index != 4 {
            sum = (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
    }
    sum
}

/// The content that write `seq` gives to `block`.
pub fn fill(seed: u64, seq: u64, block: u64, words: &mut [u64; WORDS]) {
    words[0] = MAGIC;
    words[1] = seed;
    words[2] = seq;
    words[3] = block;
    for (word, noise) in words[5..].iter_mut().zip(noise(seed, seq)) {
        *word = noise;
    }
    words[4] = checksum(words);
}

/// What a block's content says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// All zeros: never written.
    Blank,
    /// The whole and right content of this write to this block.
    Write {
        /// Number of the write.
        seq: u64,
        /// Block it was meant for.
        block: u64,
    },
    /// Anything else.
    Damaged,
}

/// Looks at a block's content.
pub fn look(seed: u64, words: &[u64; WORDS]) -> Content {
    if words.iter().all(|word| *word == 0) {
        return Content::Blank;
    }
    let whole = words[0] == MAGIC && words[1] == seed && words[4] == checksum(words);
    let seq = words[2];
    if whole && words[5..].iter().zip(noise(seed, seq)).all(|(word, noise)| *word == noise) {
        Content::Write { seq, block: words[3] }
    } else {
        Content::Damaged
    }
}
