//! What an opener does with a file and what it leaves to others.

use block_io::LocalOptions;
use smb_client::{Create, Instance, OpenOptions, Share};

/// What is to be done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Look at it, whatever others do with it: what is found may be of no one moment.
    Look,
    /// Read it as it is: nobody writes it meanwhile.
    Still,
    /// Read and write it; nobody else writes it meanwhile.
    Write,
    /// Make it; it must not exist.
    CreateNew,
    /// Make it, or take over the one that is there; its content is the caller's to replace.
    Replace,
}

impl Claim {
    /// How a local file is opened.
    pub(crate) fn local(self) -> LocalOptions {
        match self {
            Self::Look => LocalOptions::read_only(),
            Self::Still => LocalOptions::still(),
            Self::Write => LocalOptions::read_write(),
            Self::CreateNew => LocalOptions::create_new(),
            Self::Replace => LocalOptions { create: true, ..LocalOptions::default() },
        }
    }

    /// How a file on a share is opened. Only a writer is an instance of an application: it takes the
    /// file from an earlier one (MS-SMB2 3.3.5.9.13).
    pub(crate) fn remote(self, instance: Option<Instance>) -> OpenOptions {
        match self {
            Self::Look => OpenOptions::read(),
            Self::Still => OpenOptions { share: Share::Read, ..OpenOptions::read() },
            Self::Write => OpenOptions { instance, ..OpenOptions::write() },
            Self::CreateNew => OpenOptions::create(Create::New),
            Self::Replace => OpenOptions::create(Create::OpenOrNew),
        }
    }
}
