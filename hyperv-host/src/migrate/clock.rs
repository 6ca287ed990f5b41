//! How far the target's clock is from the source's. A guest's clocks go on by the time that it was
//! away; two hosts can tell how long that was only if they mean the same by "now".

/// The difference of two clocks, as well as one question and its answer show it (RFC 5905 §8, with
/// one time of the answering side).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    /// What to add to the asking side's time, in nanoseconds.
    pub nanos: i64,
    /// Time between question and answer; the offset is wrong by half of it at most.
    round_trip: u64,
}

impl Offset {
    /// Asked at `asked`, answered when the other side's clock showed `theirs`, heard at `heard`.
    pub fn of(asked: u64, theirs: u64, heard: u64) -> Self {
        let round_trip = heard.saturating_sub(asked);
        let middle = i128::from(asked) + i128::from(round_trip / 2);
        let nanos = i128::from(theirs) - middle;
        let nanos = nanos.clamp(i128::from(i64::MIN), i128::from(i64::MAX));
        Self { nanos: i64::try_from(nanos).unwrap_or(0), round_trip }
    }

    /// The better known of two.
    pub fn better(self, other: Self) -> Self {
        if other.round_trip < self.round_trip { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever the way there and back takes, the error is half of both at most.
        #[test]
        fn an_offset_is_known_to_half_a_round_trip(
            asked in 1u64 << 40..1 << 60,
            ahead in -(1i64 << 39)..1 << 39,
            there in 0u64..1 << 30,
            back in 0u64..1 << 30,
        ) {
            let theirs = asked.checked_add(there).unwrap().checked_add_signed(ahead).unwrap();
            let offset = Offset::of(asked, theirs, asked + there + back);
            prop_assert!(offset.nanos.abs_diff(ahead) <= (there + back) / 2 + 1);
        }

        /// No answer is too strange.
        #[test]
        fn any_answer_is_an_offset(asked: u64, theirs: u64, heard: u64) {
            Offset::of(asked, theirs, heard);
        }
    }

    #[test]
    fn the_shorter_round_trip_counts() {
        let (slow, quick) = (Offset::of(0, 500, 100), Offset::of(0, 470, 10));
        assert_eq!(slow.better(quick), quick);
        assert_eq!(quick.better(slow), quick);
    }
}
