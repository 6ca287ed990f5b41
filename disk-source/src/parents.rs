//! The files that an image names: its parents, backing files and extents.

use std::sync::Arc;

use block_io::{File, IoFuture};
use vhd::{chain::Files, folders::Folders};

use crate::{
    Claim, Error, Location, Result, Source,
    source::{Share, patiently},
};

/// Which files images may name.
#[derive(Debug, Clone, Default)]
pub struct ParentRule {
    /// Folders beside the image's own, each with all below it.
    pub folders: Vec<String>,
    /// What a refusal says about how others are allowed.
    pub remedy: &'static str,
    /// Whether a file is read as the raw backing file of an image because the image says so.
    pub trusts_raw: bool,
}

/// The parents of one image: files in its folder or an allowed one, opened for reading only.
#[derive(Debug)]
pub struct Parents {
    source: Source,
    folders: Folders,
    /// The share of the image, if it is on one: its parents there need no session of their own.
    share: Option<Share>,
}

impl Parents {
    pub(crate) fn new(source: &Source, location: &str, share: Option<Share>) -> Self {
        let rule = source.rule();
        let own = Folders::of(location, rule.remedy);
        let folders = rule.folders.iter().fold(own, |folders, more| folders.and(more));
        Self { source: source.clone(), folders, share }
    }

    /// Allows also the folder of the image at `location`.
    #[must_use]
    pub fn and_beside(mut self, location: &str) -> Self {
        self.folders = self.folders.and_of(location);
        self
    }

    async fn file(&self, location: &str) -> Result<Arc<dyn File>> {
        if !location.contains("://") {
            let open = || Ok(Arc::new(self.folders.open(location)?) as Arc<dyn File>);
            return Ok(patiently(self.source.patience(), open).await?);
        }
        if !self.folders.hold(location) {
            return Err(self.folders.refusal(location).into());
        }
        if let (Some(share), Location::Share(url)) = (&self.share, Location::of_file(location)?)
            && share.has(&url)
        {
            return share.open(&url.path, Claim::Still, None).await;
        }
        self.source.open(location, Claim::Still).await
    }
}

impl Files for Parents {
    fn open<'a>(&'a self, location: &'a str) -> IoFuture<'a, Arc<dyn File>> {
        Box::pin(async move { self.file(location).await.map_err(Error::into) })
    }

    fn trusts_raw(&self) -> bool {
        self.source.rule().trusts_raw
    }
}
