//! Checks that cannot run on this machine.
//!
//! `BULKHEAD_REQUIRE` says what the machine has, so that no check is left out for want of it: `1` for
//! everything, else a list of [`Need`]s by name, as in `root,programs`. Where `BULKHEAD_SKIPPED`
//! names a file each check that is left out adds a line to it, because a test runner hides what
//! tests that pass have printed.

use std::{env, fmt, fs::File, io::Write};

/// What a check needs of the machine that not every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// `root`: the rights of the superuser.
    Root,
    /// `kvm`: a `/dev/kvm` that this process may use.
    Kvm,
    /// `programs`: programs and packages that nobody here wrote.
    Programs,
    /// `network`: a registry of packages that can be reached.
    Network,
    /// `samples`: images that are not part of the tree.
    Samples,
    /// `kernel`: something that this kernel or container allows, such as namespaces or io_uring.
    Kernel,
}

impl Need {
    /// Its name in `BULKHEAD_REQUIRE`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Kvm => "kvm",
            Self::Programs => "programs",
            Self::Network => "network",
            Self::Samples => "samples",
            Self::Kernel => "kernel",
        }
    }

    /// This need with the sentence that says what is missing.
    pub fn because(self, why: impl fmt::Display) -> Reason {
        Reason { need: self, why: why.to_string() }
    }
}

/// Why a check is left out.
#[derive(Debug)]
pub struct Reason {
    need: Need,
    why: String,
}

/// A sentence alone speaks of the kernel.
impl From<&str> for Reason {
    fn from(why: &str) -> Self {
        Need::Kernel.because(why)
    }
}

impl From<fmt::Arguments<'_>> for Reason {
    fn from(why: fmt::Arguments<'_>) -> Self {
        Need::Kernel.because(why)
    }
}

/// Says why a check is left out; the caller then returns.
///
/// # Panics
/// If `BULKHEAD_REQUIRE` names what is missing, or is `1`: then the check must run.
pub fn skip(reason: impl Into<Reason>) {
    let Reason { need, why } = reason.into();
    let required = env::var("BULKHEAD_REQUIRE").unwrap_or_default();
    assert!(
        !requires(&required, need),
        "this check must run (BULKHEAD_REQUIRE={required}) and cannot: {why}"
    );
    eprintln!("skipped: {why}");
    if let Some(path) = env::var_os("BULKHEAD_SKIPPED") {
        let name = std::thread::current().name().unwrap_or("a check").to_owned();
        let line = format!("{name}: {}: {}\n", need.name(), why.replace('\n', " "));
        let file = File::options().append(true).create(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        assert!(written.is_ok(), "{}: {written:?}", path.display());
    }
}

/// Whether a value of `BULKHEAD_REQUIRE` has a need in it.
///
/// # Panics
/// If a word of the value is the name of no need: it would require nothing.
fn requires(value: &str, need: Need) -> bool {
    const ALL: [Need; 6] =
        [Need::Root, Need::Kvm, Need::Programs, Need::Network, Need::Samples, Need::Kernel];
    let words = || value.split(',').map(str::trim).filter(|word| !word.is_empty());
    for word in words() {
        let known = matches!(word, "0" | "1") || ALL.iter().any(|need| need.name() == word);
        assert!(
            known,
            "BULKHEAD_REQUIRE has the word {word}; known are 1, root, kvm, programs, network, samples, kernel"
        );
    }
    words().any(|word| word == "1" || word == need.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_required_is_a_list_or_everything() {
        assert!(!requires("", Need::Root) && !requires("0", Need::Root));
        assert!(requires("1", Need::Kvm));
        let some = "root, programs";
        assert!(requires(some, Need::Root) && requires(some, Need::Programs));
        assert!(!requires(some, Need::Kvm) && !requires(some, Need::Kernel));
    }

    #[test]
    #[should_panic(expected = "has the word kvn")]
    fn a_word_that_requires_nothing_is_told() {
        requires("root,kvn", Need::Root);
    }
}
