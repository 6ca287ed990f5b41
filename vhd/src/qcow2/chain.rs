//! Backing files: found beside the image or by their full name, of any format.

use std::sync::Arc;

use block_io::{Disk, File};

use super::{Qcow2, disk::header};
use crate::{
    Error, Format, Result,
    chain::{self, Files, MAX_DEPTH},
};

/// Opens the image in `file`, which is at `location`, with all its backing files. All are only read.
///
/// # Errors
/// [`Error::ParentMissing`], [`Error::EndlessChain`]; [`Error::Unsupported`] for a backing file that
/// is no file or whose format is not told and not to be seen; what an image of the chain says.
pub async fn open_chain(
    file: Arc<dyn File>,
    location: &str,
    files: &dyn Files,
) -> Result<Arc<dyn Disk>> {
    let mut images = vec![(location.to_owned(), file)];
    // What the last QCOW2 image of the chain builds on, if it is of another kind.
    let mut last: Option<Arc<dyn Disk>> = None;
    while let Some((child, file)) = images.last() {
        let (header, _) = header(&**file).await?;
        let Some(name) = header.backing else { break };
        let at = place(child, &name)?;
        if images.len() >= MAX_DEPTH || images.iter().any(|(known, _)| *known == at) {
            return Err(Error::EndlessChain { at });
        }
        let raw = header.backing_format.as_deref().and_then(|told| told.parse().ok());
        if raw == Some(Format::Raw) && !files.trusts_raw() {
            return Err(Error::RawBacking { image: child.clone(), backing: at });
        }
        let parent = files.open(&at).await.map_err(|source| match source {
            error @ (block_io::Error::Outside(_) | block_io::Error::Busy(_)) => error.into(),
            source => Error::ParentMissing {
                parent: name.clone(),
                tried: vec![at.clone()],
                source: Some(source),
            },
        })?;
        match format(&*parent, header.backing_format.as_deref(), &at).await? {
            Format::Qcow2 => images.push((at, parent)),
            other => {
                let below = Box::pin(chain::open_disk(parent, &at, other, files));
                last = Some(below.await?);
                break;
            }
        }
    }
    for (_, file) in images.into_iter().rev() {
        last = Some(Arc::new(Qcow2::open(file, last.take()).await?));
    }
    last.ok_or_else(|| Error::EndlessChain { at: location.to_owned() })
}

/// The location of a backing file.
fn place(child: &str, name: &str) -> Result<String> {
    let unsupported = || Error::Unsupported(format!("the backing file {name}"));
    let name = name.strip_prefix("file:").unwrap_or(name);
    let scheme = name.split_once(':').is_some_and(|(scheme, _)| !scheme.contains('/'));
    if scheme {
        return Err(unsupported());
    }
    if name.starts_with('/') {
        // A full name means nothing on a share.
        return if child.contains("://") { Err(unsupported()) } else { Ok(name.to_owned()) };
    }
    chain::beside(child, name).ok_or_else(unsupported)
}

/// The format of a backing file. One that is not told is not taken for raw: what a guest wrote to
/// its first sector would then choose.
async fn format(file: &dyn File, told: Option<&str>, at: &str) -> Result<Format> {
    if let Some(told) = told {
        let known = told.parse();
        return known.map_err(|_| Error::Unsupported(format!("{at}: a backing file in {told}")));
    }
    let mut magic = [0; 8];
    file.read_at(0, &mut magic).await?;
    match &magic {
        b"vhdxfile" => Ok(Format::Vhdx),
        magic if magic.starts_with(&super::header::MAGIC) => Ok(Format::Qcow2),
        magic if magic.starts_with(&crate::vmdk::header::MAGIC) => Ok(Format::Vmdk),
        _ => Err(Error::Unsupported(format!("{at}: a backing file whose format is not told"))),
    }
}
