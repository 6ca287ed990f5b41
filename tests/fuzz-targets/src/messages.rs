//! Messages of SMB2, what stands in them, reparse points, and contexts of a CREATE.
//!
//! The first byte chooses the structure, what follows is the structure. What is read at all is
//! written and read again as the same.

use smb_protocol::testing::{self, Case};

/// SMB2 messages and structures of MS-FSCC.
pub fn run(bytes: &[u8]) {
    again(testing::messages, bytes);
}

/// Reparse points.
pub fn run_reparse(bytes: &[u8]) {
    again(testing::reparse_points, bytes);
}

/// Contexts of a CREATE.
pub fn run_contexts(bytes: &[u8]) {
    again(testing::create_contexts, bytes);
}

/// A sample of each message.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    samples(&testing::messages())
}

/// A sample of each structure about reparse points.
pub fn seeds_reparse() -> Vec<(String, Vec<u8>)> {
    samples(&testing::reparse_points())
}

/// A sample of each context.
pub fn seeds_contexts() -> Vec<(String, Vec<u8>)> {
    samples(&testing::create_contexts())
}

/// The list of cases, which is made once.
type Cases = fn() -> Vec<Case>;

/// Reads by the parser that the first byte chooses; writes and reads again.
pub(crate) fn again(cases: Cases, bytes: &[u8]) {
    thread_local! {
        static MADE: std::cell::RefCell<Vec<(usize, Vec<Case>)>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    let Some((which, bytes)) = bytes.split_first() else { return };
    MADE.with_borrow_mut(|made| {
        let key = cases as usize;
        let at = made.iter().position(|(of, _)| *of == key).unwrap_or_else(|| {
            made.push((key, cases()));
            made.len() - 1
        });
        let cases = &made[at].1;
        let case = &cases[usize::from(*which) % cases.len()];
        if let Some(written) = (case.again)(bytes) {
            let third = (case.again)(&written);
            assert_eq!(third.as_ref(), Some(&written), "{}", case.name);
        }
    });
}

/// A seed of each case.
pub(crate) fn samples(cases: &[Case]) -> Vec<(String, Vec<u8>)> {
    let seed = |(which, case): (usize, &Case)| {
        let mut bytes = vec![which as u8];
        bytes.extend_from_slice(&case.sample);
        (case.name.replace([' ', ','], "-"), bytes)
    };
    cases.iter().enumerate().map(seed).collect()
}
