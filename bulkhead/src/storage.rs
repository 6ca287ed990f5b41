//! Finding the file that a location on the command line names.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use block_io::{Disk, File, IoFuture, LocalFile, LocalOptions, image_lock};
use smb_client::{Client, ConnectOptions, Create, OpenOptions, Share, SmbUrl};
use vhd::{
    Format,
    chain::Files,
    folders::Folders,
    tracking::{ENDING, attach},
};

use crate::password;

/// What the images of this run may name beside the files in their own folders.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Allowed {
    /// Open parents, backing files and extents also in this folder and below. Without it an image's are
    /// opened only in its own folder and below. May be repeated.
    #[arg(long, global = true, value_name = "DIR")]
    parents_from: Vec<String>,
    /// Read a file as the raw backing file of a QCOW2 image because the image says so.
    #[arg(long, global = true)]
    trust_raw_backing: bool,
}

/// The command line's: one for the whole run.
static ALLOWED: OnceLock<Allowed> = OnceLock::new();

/// Says what images may name, before the first is opened.
pub fn allow(allowed: Allowed) {
    // The command line is read once.
    let _ = ALLOWED.set(allowed);
}

/// The files that an image names: where they may be, and how they are opened.
pub struct Parents {
    folders: Folders,
    trusts_raw: bool,
}

impl Parents {
    /// Those of the image at `location`.
    pub fn of(location: &str) -> Self {
        let allowed = ALLOWED.get().cloned().unwrap_or_default();
        let own = Folders::of(location, "--parents-from DIR allows a folder");
        let folders = allowed.parents_from.iter().fold(own, |folders, more| folders.and(more));
        Self { folders, trusts_raw: allowed.trust_raw_backing }
    }

    /// Also those beside this one, which is named by who runs this as the image is.
    #[must_use]
    pub fn and_beside(mut self, location: &str) -> Self {
        self.folders = self.folders.and_of(location);
        self
    }

    async fn open(&self, location: &str) -> block_io::Result<Arc<dyn File>> {
        if !location.contains("://") {
            let open = || Ok(Arc::new(self.folders.open(location)?) as Arc<dyn File>);
            return patiently(open).await;
        }
        if !self.folders.hold(location) {
            return Err(self.folders.refusal(location));
        }
        open(location, Mode::Still).await.map_err(|error| match error.downcast() {
            Ok(error) => error,
            Err(error) => {
                block_io::Error::io("opening", std::io::Error::other(format!("{error:#}")))
            }
        })
    }
}

impl Files for Parents {
    fn open<'a>(&'a self, location: &'a str) -> IoFuture<'a, Arc<dyn File>> {
        Box::pin(self.open(location))
    }

    fn trusts_raw(&self) -> bool {
        self.trusts_raw
    }
}

/// Opens, and while it is busy again for some time: a program that was killed lets go of what it had
/// open a moment after it is gone.
async fn patiently<T>(open: impl Fn() -> block_io::Result<T>) -> block_io::Result<T> {
    let since = Instant::now();
    loop {
        match open() {
            Err(block_io::Error::Busy(_)) if since.elapsed() < PATIENCE => {
                tokio::time::sleep(PATIENCE / 50).await;
            }
            other => return other,
        }
    }
}

/// A format, and whether it was asked for by name or is what a location's ending says.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    pub format: Format,
    pub asked: bool,
}

impl Named {
    /// Fails for a file that is raw by its ending alone and bears another format's mark.
    pub async fn check(self, file: &dyn File, location: &str) -> anyhow::Result<()> {
        if !self.asked {
            let checked = vhd::probe::check(file, location, self.format).await;
            checked.context("cannot open it as raw (see --help for how to name a format)")?;
        }
        Ok(())
    }
}

impl From<Format> for Named {
    /// One that does not depend on an ending.
    fn from(format: Format) -> Self {
        Self { format, asked: true }
    }
}

/// Where the changes of an image are kept track of, if they are.
pub fn tracking_of(location: &str) -> String {
    format!("{location}{ENDING}")
}

/// Opens the disk in an image, with its parents (which are only read) if it is a differencing one. If
/// track is kept of its changes, those made through it are.
pub async fn open_disk(
    location: &str,
    format: impl Into<Named>,
    mode: Mode,
) -> anyhow::Result<Arc<dyn Disk>> {
    let named = format.into();
    let format = named.format;
    let file = open(location, mode).await?;
    named.check(&*file, location).await?;
    let parents = Parents::of(location);
    let disk = vhd::chain::open_disk(file.clone(), location, format, &parents).await;
    let disk = disk.with_context(|| location.to_owned())?;
    if mode != Mode::Write || format != Format::Vhdx {
        return Ok(disk);
    }
    let place = tracking_of(location);
    let tracking = if SmbUrl::looks_like(location) {
        // A share that has no such file, most likely; if it has one, that will not belong to the
        // content any more.
        match open(&place, Mode::Write).await {
            Ok(tracking) => tracking,
            Err(_) => return Ok(disk),
        }
    } else if std::fs::exists(&place).context("cannot look for what is known of its changes")? {
        open(&place, Mode::Write).await?
    } else {
        return Ok(disk);
    };
    attach(disk, file, tracking).await.with_context(|| place)
}

/// How long a file that is in use is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is to be done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
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

/// Opens what `location` names: a local path, or `smb://[user@]host[:port]/share/path`.
pub async fn open(location: &str, mode: Mode) -> anyhow::Result<Arc<dyn File>> {
    if SmbUrl::looks_like(location) {
        let url = location.parse().context("cannot open")?;
        return open_remote(&url, mode).await.with_context(|| format!("cannot open {location}"));
    }
    if let Some((scheme, _)) = location.split_once("://") {
        bail!("{location}: no storage of kind {scheme:?}");
    }
    let options = match mode {
        Mode::Look => LocalOptions::read_only(),
        Mode::Still => LocalOptions::still(),
        Mode::Write => LocalOptions::read_write(),
        Mode::CreateNew => LocalOptions::create_new(),
        Mode::Replace => LocalOptions { create: true, ..LocalOptions::default() },
    };
    match patiently(|| LocalFile::open(location, &options)).await {
        Ok(file) => Ok(Arc::new(file)),
        Err(error) => {
            let way =
                if matches!(error, block_io::Error::Busy(_)) { way_out(location) } else { "" };
            Err(error).with_context(|| format!("cannot open{way}"))
        }
    }
}

/// How to come by a file that others use, where there is a way.
fn way_out(location: &str) -> &'static str {
    let Ok(about) = std::fs::metadata(location) else { return "" };
    let users = image_lock::holders(&about, None);
    let is = |name: &str| users.iter().any(|user| user.name == name);
    if is("smbd") {
        " (clients of a share use it: for a copy of it as it is now, take a snapshot of the share with \
         `bulkhead share snapshot` and read the file below .bulkhead/snapshots; to change it, have them \
         close it)"
    } else if is("hyperv-host") {
        " (a virtual machine runs from it: stop the machine first)"
    } else {
        ""
    }
}

/// Opens a file on a share, with the password of the environment or its credentials file. The
/// session lives as long as the file is open.
async fn open_remote(url: &SmbUrl, mode: Mode) -> anyhow::Result<Arc<dyn File>> {
    if url.path.is_empty() {
        bail!("the address names a share and no file on it");
    }
    let login = password::login(url)?;
    let options = ConnectOptions {
        encryption: password::encryption()?,
        ..ConnectOptions::for_url(url, login)
    };
    let session = Client::connect(options).await?;
    let tree = session.tree(&url.share).await?;
    let options = match mode {
        Mode::Look => OpenOptions::read(),
        Mode::Still => OpenOptions { share: Share::Read, ..OpenOptions::read() },
        Mode::Write => OpenOptions::write(),
        Mode::CreateNew => OpenOptions::create(Create::New),
        Mode::Replace => OpenOptions::create(Create::OpenOrNew),
    };
    Ok(Arc::new(tree.open(&url.path, options).await?))
}
