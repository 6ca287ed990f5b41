//! Checks that cannot run on this machine.

use std::fmt::Display;

/// Says why a check is left out; the caller then returns.
///
/// # Panics
/// With `BULKHEAD_REQUIRE=1` in the environment: then every check must run.
pub fn skip(reason: impl Display) {
    let required = std::env::var_os("BULKHEAD_REQUIRE").is_some_and(|value| value == "1");
    assert!(!required, "this check must run (BULKHEAD_REQUIRE=1) and cannot: {reason}");
    eprintln!("skipped: {reason}");
}
