//! Finding the file that a location on the command line names.

use std::sync::Arc;

use anyhow::{Context, bail};
use block_io::{File, LocalFile, LocalOptions};

/// What is to be done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Read only. An image that is in use elsewhere can be looked at.
    Read,
    /// Make it; it must not exist.
    CreateNew,
    /// Make it, or take over the one that is there; its content is the caller's to replace.
    Replace,
}

/// Opens what `location` names: a local path.
pub async fn open(location: &str, mode: Mode) -> anyhow::Result<Arc<dyn File>> {
    if let Some((scheme, _)) = location.split_once("://") {
        bail!("{location}: no storage of kind {scheme:?}");
    }
    let options = match mode {
        Mode::Read => LocalOptions::read_only(),
        Mode::CreateNew => LocalOptions::create_new(),
        Mode::Replace => LocalOptions { create: true, ..LocalOptions::default() },
    };
    Ok(Arc::new(LocalFile::open(location, &options).context("cannot open")?))
}
