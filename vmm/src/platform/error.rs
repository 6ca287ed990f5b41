//! What can go wrong with a virtual machine.

use std::{any::Any, io, path::PathBuf};

/// A failure of a virtual machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// KVM refused something.
    #[error("KVM cannot {what}")]
    Kvm {
        /// The operation that failed, for the message.
        what: &'static str,
        /// The error that it answered with.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The operating system refused something.
    #[error("cannot {what}")]
    Os {
        /// The operation that failed, for the message.
        what: &'static str,
        /// The error that it answered with.
        #[source]
        source: io::Error,
    },
    /// Guest memory could not be had or reached.
    #[error("guest memory: {0}")]
    Memory(String),
    /// A kernel or initrd could not be loaded.
    #[error("cannot boot {path}: {why}")]
    Boot {
        /// Path of the file that the error is about.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The definition or a saved state does not fit.
    #[error("{0}")]
    Config(String),
    /// A disk could not be opened, read or closed.
    #[error("disk {location}")]
    Disk {
        /// Location, as it was given or as the image names it.
        location: String,
        /// The cause, as the layer below tells it.
        #[source]
        source: block_io::Error,
    },
    /// Requests in flight did not end in time.
    #[error("a device did not come to rest within {0} s")]
    Drain(u64),
}

impl Error {
    /// Wraps a KVM error with what was being done.
    pub fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Error::Kvm { what, source }
    }

    /// Wraps an operating-system error with what was being done.
    pub fn os(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::Os { what, source }
    }
}

/// What a panic says.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default()
}

/// An error with its causes on one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
