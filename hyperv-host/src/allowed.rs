//! What a VM may name: its disks lie in the configured locations, its kernel and initial RAM disk in
//! the configured folders. That holds for VMs made here and for those that another host sends, when
//! they come and each time they start: a peer must not have this host's other files and devices, nor
//! its passwords told to a server of the peer's choice. Where nothing is configured, whoever may make
//! VMs on this host is trusted with its files, and no other host is.

use std::{
    io,
    path::{Path, PathBuf},
};

use disk_source::{IscsiUrl, IscsiUrlError};
use host_api::VmDefinition;
use smb_client::SmbUrl;

use crate::config::Config;

/// Why a VM may not be here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotAllowed {
    /// A disk is elsewhere.
    #[error("disk {0} is in none of this host's `locations` ([storage] in its configuration)")]
    Disk(String),
    /// A network card is plugged in elsewhere.
    #[error("bridge {0} is none of this host's `bridges` ([network] in its configuration)")]
    Bridge(String),
    /// A kernel or an initial RAM disk is elsewhere.
    #[error(
        "{0} is in none of the `folders` that VMs start from ([boot] in the host's configuration)"
    )]
    Boot(PathBuf),
    /// It comes from another host, and nothing says what such a VM may have here.
    #[error(
        "{what} is refused: this host's configuration must say in which {key} VMs of other hosts have theirs"
    )]
    Unsaid {
        /// The disk or file.
        what: String,
        /// What is missing, with its section.
        key: &'static str,
    },
    /// A file cannot be looked at.
    #[error("{path} of the VM cannot be used on this host")]
    File {
        /// Path of the file that the error is about.
        path: PathBuf,
        /// The cause, as the layer below tells it.
        #[source]
        source: io::Error,
    },
    /// A location is no address of a share.
    #[error("disk {location}")]
    Url {
        /// Where it is said to be.
        location: String,
        /// What is wrong with it.
        #[source]
        source: smb_client::UrlError,
    },
    /// A location is no address of a logical unit.
    #[error("disk {location}")]
    IscsiUrl {
        /// Where it is said to be.
        location: String,
        /// What is wrong with it.
        #[source]
        source: IscsiUrlError,
    },
}

/// A place for disks.
#[derive(Debug, Clone)]
enum Location {
    Local(PathBuf),
    Share(SmbUrl),
    /// A target, with all its logical units or one of them.
    Lun(IscsiUrl),
}

/// Whose a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// This host's: made here, or accepted before.
    Own,
    /// Another host sends it.
    Sent,
}

/// The places where VMs may have their disks and kernels, as configured.
#[derive(Debug, Clone)]
pub struct Allowed {
    locations: Option<Vec<Location>>,
    boot: Option<Vec<PathBuf>>,
    bridges: Option<Vec<String>>,
}

impl Allowed {
    /// Reads the places of a configuration; the error is the text that is no place, and why.
    ///
    /// # Errors
    /// For an address that is none, and for a path that is not absolute.
    pub fn of(config: &Config) -> Result<Self, (String, String)> {
        let absolute = |path: PathBuf| match path.is_absolute() {
            true => Ok(path),
            false => Err((path.display().to_string(), "it is no absolute path".to_owned())),
        };
        let location = |text: &String| -> Result<Location, (String, String)> {
            if IscsiUrl::looks_like(text) {
                return match text.parse::<IscsiUrl>() {
                    Ok(url) if url.user.is_none() => Ok(Location::Lun(url)),
                    Ok(_) => Err((text.clone(), "a location names no user".to_owned())),
                    Err(error) => Err((text.clone(), error.to_string())),
                };
            }
            if !SmbUrl::looks_like(text) {
                return absolute(text.into()).map(Location::Local);
            }
            match text.parse::<SmbUrl>() {
                Ok(url) if url.user.is_none() => Ok(Location::Share(url)),
                Ok(_) => Err((text.clone(), "a location names no user".to_owned())),
                Err(error) => Err((text.clone(), error.to_string())),
            }
        };
        let locations = config.storage.locations.as_ref();
        let boot = config.boot.folders.clone();
        Ok(Self {
            locations: locations.map(|all| all.iter().map(location).collect()).transpose()?,
            boot: boot.map(|all| all.into_iter().map(absolute).collect()).transpose()?,
            bridges: config.network.bridges.clone(),
        })
    }

    /// Whether VMs of other hosts are taken.
    pub fn takes_others(&self) -> bool {
        self.locations.is_some() && self.boot.is_some()
    }

    /// Whether a VM may be here. Links are followed first: what counts is the file that they lead to.
    ///
    /// # Errors
    /// The first thing it names that is elsewhere or not there.
    pub fn check(&self, definition: &VmDefinition, whose: Whose) -> Result<(), NotAllowed> {
        for nic in &definition.nics {
            let what = || format!("bridge {}", nic.bridge);
            match &self.bridges {
                Some(bridges) if bridges.contains(&nic.bridge) => {}
                Some(_) => return Err(NotAllowed::Bridge(nic.bridge.clone())),
                None if whose == Whose::Sent => {
                    return Err(NotAllowed::Unsaid { what: what(), key: "`bridges` ([network])" });
                }
                None => {}
            }
        }
        let boot = definition.boot.iter().flat_map(|it| [Some(&it.kernel), it.initrd.as_ref()]);
        // Where a package has its firmware is nobody's secret, and needs no mention.
        let firmware =
            definition.firmware.iter().flat_map(|it| [it.code.as_ref(), it.vars.as_ref()]);
        for path in boot.chain(firmware).flatten() {
            let real = real(path)?;
            let what = || path.display().to_string();
            let folders = said(&self.boot, whose, "`folders` ([boot])", what)?;
            if !folders.is_none_or(|all| all.iter().any(|folder| holds(folder, &real))) {
                return Err(NotAllowed::Boot(path.clone()));
            }
        }
        definition.disks.iter().try_for_each(|disk| self.check_disk(&disk.location, whose))
    }

    fn check_disk(&self, location: &str, whose: Whose) -> Result<(), NotAllowed> {
        let what = || format!("disk {location}");
        let places = said(&self.locations, whose, "`locations` ([storage])", what)?;
        let inside = |lies: &dyn Fn(&Location) -> bool| match places {
            Some(places) if !places.iter().any(lies) => Err(NotAllowed::Disk(location.to_owned())),
            _ => Ok(()),
        };
        if SmbUrl::looks_like(location) {
            let url = location.parse().map_err(|source| {
                let location = location.to_owned();
                NotAllowed::Url { location, source }
            })?;
            inside(&|place| matches!(place, Location::Share(place) if reaches(place, &url)))
        } else if IscsiUrl::looks_like(location) {
            let url = location.parse().map_err(|source| {
                let location = location.to_owned();
                NotAllowed::IscsiUrl { location, source }
            })?;
            inside(&|place| matches!(place, Location::Lun(place) if place.covers(&url)))
        } else {
            let real = real(Path::new(location))?;
            inside(&|place| matches!(place, Location::Local(place) if holds(place, &real)))
        }
    }
}

/// What is configured; without it nothing that another host sends passes.
fn said<'a, T>(
    places: &'a Option<Vec<T>>,
    whose: Whose,
    key: &'static str,
    what: impl FnOnce() -> String,
) -> Result<Option<&'a [T]>, NotAllowed> {
    match (places, whose) {
        (None, Whose::Sent) => Err(NotAllowed::Unsaid { what: what(), key }),
        (places, _) => Ok(places.as_deref()),
    }
}

fn real(path: &Path) -> Result<PathBuf, NotAllowed> {
    path.canonicalize().map_err(|source| NotAllowed::File { path: path.to_owned(), source })
}

/// Whether `place`, if it is there, is `real` or a folder above it.
fn holds(place: &Path, real: &Path) -> bool {
    place.canonicalize().is_ok_and(|place| real.starts_with(place))
}

/// Whether `url` is on the same share as `place`, and the same file or below.
fn reaches(place: &SmbUrl, url: &SmbUrl) -> bool {
    // Other letters must be as configured: a name is never taken for one that the server tells apart.
    let same = str::eq_ignore_ascii_case;
    let mut parts = url.path.split('\\');
    same(&place.host, &url.host)
        && place.port == url.port
        && same(&place.share, &url.share)
        && place
            .path
            .split('\\')
            .filter(|part| !part.is_empty())
            .all(|part| parts.next().is_some_and(|other| same(part, other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(text: &str) -> Result<Allowed, (String, String)> {
        let text = format!("[host]\nstate_dir = '/s'\n{text}");
        Allowed::of(&Config::parse(&text, Path::new("x")).unwrap())
    }

    fn vm(kernel: &Path, more: &str) -> VmDefinition {
        let text = format!("name = 'a'\nmemory_mib = 64\n[boot]\nkernel = {kernel:?}\n{more}");
        VmDefinition::from_toml(&text).unwrap()
    }

    #[test]
    fn what_lies_elsewhere_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["vms", "boot", "vms-of-others"] {
            std::fs::create_dir(at(folder)).unwrap();
        }
        for file in ["vms/a.raw", "boot/k", "vms-of-others/b.raw", "secret"] {
            std::fs::write(at(file), [0; 512]).unwrap();
        }
        std::os::unix::fs::symlink(at("secret"), at("vms/link.raw")).unwrap();
        std::os::unix::fs::symlink(at("secret"), at("boot/link")).unwrap();
        let allowed = allowed(&format!(
            "[storage]\nlocations = [{:?}, 'smb://files.example/vms/web', 'iscsi://store.example,10.0.0.1/iqn.a', 'iscsi://one.example/iqn.b/7']\n[boot]\nfolders = [{:?}]\n",
            at("vms"),
            at("boot"),
        ))
        .unwrap();
        let check = |kernel: &Path, disk: &str| {
            let disk = format!("[[disk]]\nlocation = '{disk}'\n");
            allowed.check(&vm(kernel, &disk), Whose::Own).map_err(|error| error.to_string())
        };
        let kernel = at("boot/k");
        let shown = |name: &str| at(name).display().to_string();
        for good in [
            &*shown("vms/a.raw"),
            &shown("vms/../vms/a.raw"),
            "smb://files.example/vms/web/a.vhdx",
            "smb://someone@FILES.example:445/VMs/Web/deep/a.vhdx",
            "iscsi://STORE.example:3260/iqn.a/0",
            "iscsi://someone@10.0.0.1,store.example/iqn.a/12",
            "iscsi://one.example/iqn.b/7",
        ] {
            check(&kernel, good).unwrap();
        }
        for bad in [
            &*shown("secret"),
            &shown("vms/../secret"),
            &shown("vms/link.raw"),
            &shown("vms-of-others/b.raw"),
            "/dev/null",
            "smb://files.example/vms/a.vhdx",
            "smb://files.example/vms/website/a.vhdx",
            "smb://files.example:446/vms/web/a.vhdx",
            "smb://elsewhere.example/vms/web/a.vhdx",
            "smb://files.example/other/web/a.vhdx",
            "iscsi://store.example:3261/iqn.a/0",
            "iscsi://store.example,10.0.0.2/iqn.a/0",
            "iscsi://store.example/iqn.ab/0",
            "iscsi://one.example/iqn.b/8",
            "iscsi://one.example/iqn.b",
        ] {
            let error = check(&kernel, bad).unwrap_err();
            assert!(error.contains(bad) && error.contains("locations"), "{bad}: {error}");
        }
        assert!(check(&kernel, &shown("vms/none.raw")).unwrap_err().contains("none.raw"));
        check(&kernel, "smb://files.example/vms/web/../a.vhdx").unwrap_err();
        for bad in ["secret", "boot/../secret", "boot/link"] {
            let error = check(&at(bad), "smb://files.example/vms/web/a.vhdx").unwrap_err();
            assert!(error.contains("folders"), "{error}");
        }
        let initrd = format!("initrd = {:?}\n", at("secret"));
        let error = allowed.check(&vm(&kernel, &initrd), Whose::Own).unwrap_err().to_string();
        assert!(error.contains("secret") && error.contains("folders"), "{error}");
    }

    /// Who may make VMs here is trusted with the files here; no other host is.
    #[test]
    fn where_nothing_is_said_nothing_comes_from_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("k");
        std::fs::write(&file, []).unwrap();
        let disk = |location: &str| vm(&file, &format!("[[disk]]\nlocation = '{location}'\n"));
        let here = disk(&file.display().to_string());
        let there = disk("smb://files.example/vms/a.vhdx");
        let folders = format!("[boot]\nfolders = [{:?}]\n", dir.path());
        for (config, key) in [("", "folders"), (&*folders, "locations")] {
            let allowed = allowed(config).unwrap();
            assert!(!allowed.takes_others());
            for definition in [&here, &there] {
                allowed.check(definition, Whose::Own).unwrap();
                let error = allowed.check(definition, Whose::Sent).unwrap_err().to_string();
                assert!(error.contains(key), "{error}");
            }
        }
        let allowed = allowed(&format!("{folders}[storage]\nlocations = []\n")).unwrap();
        for whose in [Whose::Own, Whose::Sent] {
            assert!(matches!(allowed.check(&here, whose), Err(NotAllowed::Disk(_))));
            allowed.check(&vm(&file, ""), whose).unwrap();
        }
    }

    #[test]
    fn a_place_that_is_none_is_named() {
        for bad in
            ["smb://host", "smb://user@host/share", "vms", "iscsi://host", "iscsi://u@host/iqn.a"]
        {
            let (what, _) = allowed(&format!("[storage]\nlocations = ['{bad}']\n")).unwrap_err();
            assert_eq!(what, bad);
        }
        assert!(allowed("[boot]\nfolders = ['boot']\n").is_err());
    }
}
