//! The storage of this run: what `disk-source` opens, with the command line's rules and logins.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use block_io::{Disk, File, image_lock};
pub use disk_source::{Claim, Named, format_of, is_lun, tracking_of};
use disk_source::{Error, Location, ParentRule, Parents, Servers, Source};
use smb_client::{ConnectOptions, SmbUrl};

use crate::password;

/// How long a file that is in use is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

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

/// The run's: the command line is read once.
static SOURCE: OnceLock<Source> = OnceLock::new();

/// Says what images may name, before the first is opened.
pub fn allow(allowed: Allowed) {
    // The command line is read once.
    let _ = SOURCE.set(source_of(allowed));
}

fn source_of(allowed: Allowed) -> Source {
    let rule = ParentRule {
        folders: allowed.parents_from,
        remedy: "--parents-from DIR allows a folder",
        trusts_raw: allowed.trust_raw_backing,
    };
    Source::new(Arc::new(Asking), rule).waiting(PATIENCE)
}

fn source() -> &'static Source {
    SOURCE.get_or_init(|| source_of(Allowed::default()))
}

/// Logins of the environment, else of the terminal.
#[derive(Debug)]
struct Asking;

impl Servers for Asking {
    fn connect_options(&self, url: &SmbUrl) -> disk_source::Result<ConnectOptions> {
        let of = |error: anyhow::Error| Error::Login(error.into());
        let login = password::login(url).map_err(of)?;
        let encryption = password::encryption().map_err(of)?;
        Ok(ConnectOptions { encryption, ..ConnectOptions::for_url(url, login) })
    }
}

/// The files that the image at `location` may name.
pub fn parents(location: &str) -> Parents {
    source().parents(location)
}

/// Opens what `location` names: a local path, `smb://[user@]host[:port]/share/path`, or
/// `iscsi://[user@]host[:port]/target/LUN`.
pub async fn open(location: &str, claim: Claim) -> anyhow::Result<Arc<dyn File>> {
    source().open(location, claim).await.map_err(|error| explained(error, location))
}

/// Opens the disk in an image, with its parents (which are only read) if it is a differencing one. If
/// track is kept of its changes, those made through it are.
pub async fn open_disk(
    location: &str,
    format: impl Into<Named>,
    claim: Claim,
) -> anyhow::Result<Arc<dyn Disk>> {
    source().open_disk(location, format, claim).await.map_err(|error| explained(error, location))
}

/// Removes the file at `location`.
pub async fn remove(location: &str) -> anyhow::Result<()> {
    source().remove(location).await.map_err(|error| explained(error, location))
}

/// Fails for a file that is raw by its ending alone and bears another format's mark.
pub async fn check(named: Named, file: &dyn File, location: &str) -> anyhow::Result<()> {
    named.check(file, location).await.map_err(|error| explained(error, location))
}

/// An error of storage as it is told at the command line.
fn explained(error: Error, location: &str) -> anyhow::Error {
    let context = match &error {
        // These say all.
        Error::Scheme { .. } | Error::Tracking { .. } => return error.into(),
        Error::NotRaw(_) => {
            "cannot open it as raw (see --help for how to name a format)".to_owned()
        }
        Error::Image(_) => location.to_owned(),
        Error::Url(_) | Error::IscsiUrl(_) => "cannot open".to_owned(),
        _ if matches!(location.parse(), Ok(Location::Share(_) | Location::Lun(_))) => {
            format!("cannot open {location}")
        }
        Error::Storage(block_io::Error::Busy(_)) => format!("cannot open{}", way_out(location)),
        _ => "cannot open".to_owned(),
    };
    anyhow::Error::from(error).context(context)
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
