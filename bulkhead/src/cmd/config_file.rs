//! Changes of the server's configuration file: what a person wrote into it stays as it was written,
//! the new file replaces the old one at once, and a configuration that the server does not take is
//! taken back.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use rustix::fs::{FlockOperation, flock};
use server_api::{Reply, Request};
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table};

use super::server::Socket;
use crate::remote;

/// Where the configuration is.
#[derive(Debug, clap::Args)]
pub struct ConfigFile {
    /// The server's configuration, which is changed.
    #[arg(
        long,
        global = true,
        env = "BULKHEAD_SERVER_CONFIG",
        default_value = "/etc/bulkhead/smbd.toml"
    )]
    config: PathBuf,
}

impl ConfigFile {
    /// Changes the configuration and has the server take it; if it does not, the file is as it was.
    pub fn change(
        &self,
        socket: &Socket,
        change: impl FnOnce(&mut DocumentMut) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if remote::is_named() {
            bail!("a configuration file is changed on its own machine only: without --host");
        }
        let path = fs::canonicalize(&self.config)
            .with_context(|| format!("cannot find {}", self.config.display()))?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let changing = || format!("cannot change {}", path.display());
        // One at a time: the lock is the folder's, for the file is replaced.
        let held = File::open(folder).with_context(changing)?;
        flock(&held, FlockOperation::LockExclusive).with_context(changing)?;
        let old = fs::read_to_string(&path).with_context(changing)?;
        let mut document: DocumentMut =
            old.parse().with_context(|| format!("{} is no TOML", path.display()))?;
        change(&mut document)?;
        // A server that cannot be asked is noticed before anything is written.
        socket.ask(&Request::Status)?;
        replace(&path, &document.to_string()).with_context(changing)?;
        let refused = match socket.ask(&Request::Reload) {
            Ok(Reply::Ok) => return Ok(()),
            Ok(other) => anyhow!("the server answered {other:?}"),
            Err(error) => error,
        };
        replace(&path, &old).with_context(changing)?;
        // What it took of the new one it gives back.
        let back = socket.ask(&Request::Reload);
        let refused = refused.context("nothing is changed");
        match back {
            Ok(_) => Err(refused),
            Err(error) => Err(refused.context(format!("also the old configuration: {error:#}"))),
        }
    }
}

/// Puts a new file in the place of `path`, with its owner and mode; all of it is there, or nothing.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let old = fs::metadata(path)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&new)?;
        file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
        let now = file.metadata()?;
        if (now.uid(), now.gid()) != (old.uid(), old.gid()) {
            fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().inspect_err(|_| drop(fs::remove_file(&new)))
}

/// The tables `[[key]]` of a table; without them, new ones.
fn tables<'a>(table: &'a mut Table, key: &str) -> anyhow::Result<&'a mut ArrayOfTables> {
    let item = table.entry(key).or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
    item.as_array_of_tables_mut().ok_or_else(|| anyhow!("{key} is not written as [[{key}]]"))
}

/// The place of the target of this name among `targets`.
fn place(targets: &ArrayOfTables, name: &str) -> Option<usize> {
    targets.iter().position(|it| it.get("name").and_then(Item::as_str) == Some(name))
}

/// Adds `[[target]]` behind those that are there.
pub fn add_target(document: &mut DocumentMut, target: Table) -> anyhow::Result<()> {
    let name = target.get("name").and_then(Item::as_str).unwrap_or_default();
    if !document.contains_key("iscsi") {
        bail!("there is no [iscsi] with its addresses yet: add it, and restart the server");
    }
    let targets = tables(document, "target")?;
    if place(targets, name).is_some() {
        bail!("target {name} is there already");
    }
    targets.push(target);
    Ok(())
}

/// Takes `[[target]]` away, with its LUNs.
pub fn remove_target(document: &mut DocumentMut, name: &str) -> anyhow::Result<()> {
    let targets = tables(document, "target")?;
    let at = place(targets, name).with_context(|| format!("there is no target {name}"))?;
    targets.remove(at);
    Ok(())
}

/// The `[[target.lun]]` of a target.
fn luns<'a>(document: &'a mut DocumentMut, target: &str) -> anyhow::Result<&'a mut ArrayOfTables> {
    let targets = tables(document, "target")?;
    let at = place(targets, target).with_context(|| format!("there is no target {target}"))?;
    let found = targets.get_mut(at).with_context(|| format!("there is no target {target}"))?;
    tables(found, "lun")
}

fn is_lun(table: &Table, number: u16) -> bool {
    table.get("number").and_then(Item::as_integer) == Some(number.into())
}

/// Adds `[[target.lun]]` behind those of its target.
pub fn add_lun(
    document: &mut DocumentMut,
    target: &str,
    number: u16,
    lun: Table,
) -> anyhow::Result<()> {
    let luns = luns(document, target)?;
    if luns.iter().any(|it| is_lun(it, number)) {
        bail!("target {target} has a lun {number} already");
    }
    luns.push(lun);
    Ok(())
}

/// The lowest number that no LUN of a target has.
pub fn free_lun(document: &mut DocumentMut, target: &str) -> anyhow::Result<u16> {
    let luns = luns(document, target)?;
    let free = (0..=u16::MAX).find(|number| !luns.iter().any(|it| is_lun(it, *number)));
    free.with_context(|| format!("target {target} has no number left"))
}

/// Takes the `[[target.lun]]` of a number away.
pub fn remove_lun(document: &mut DocumentMut, target: &str, number: u16) -> anyhow::Result<()> {
    let luns = luns(document, target)?;
    let at = luns.iter().position(|it| is_lun(it, number));
    luns.remove(at.with_context(|| format!("target {target} has no lun {number}"))?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use toml_edit::value;

    use super::*;

    const FILE: &str = "# by hand\n[iscsi]\nlisten = [\"0.0.0.0:3260\"] # all\n\n\
                        [[target]]\nname = \"iqn.a\"\n# the first\n[[target.lun]]\nnumber = 0\n\
                        path = \"a.raw\"\n\n[share.vms]\npath = \"/srv\"\n";

    fn table(key: &str, name: &str) -> Table {
        let mut table = Table::new();
        table["name"] = value(name);
        table.remove("name").map(|item| table.insert(key, item));
        table
    }

    #[test]
    fn what_a_person_wrote_stays_where_and_as_it_was() {
        let mut document: DocumentMut = FILE.parse().unwrap();
        add_target(&mut document, table("name", "iqn.b")).unwrap();
        let number = free_lun(&mut document, "iqn.a").unwrap();
        let mut lun = table("path", "b.raw");
        lun["number"] = value(i64::from(number));
        add_lun(&mut document, "iqn.a", number, lun).unwrap();
        let text = document.to_string();
        assert_eq!(number, 1);
        for line in FILE.lines() {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
        remove_lun(&mut document, "iqn.a", 1).unwrap();
        remove_target(&mut document, "iqn.b").unwrap();
        assert_eq!(document.to_string(), FILE);
    }

    #[test]
    fn what_is_there_is_not_added_and_what_is_not_is_not_removed() {
        let mut document: DocumentMut = FILE.parse().unwrap();
        let twice = add_target(&mut document, table("name", "iqn.a")).unwrap_err();
        assert!(twice.to_string().contains("there already"));
        assert!(add_lun(&mut document, "iqn.a", 0, table("path", "x")).is_err());
        assert!(add_lun(&mut document, "iqn.z", 0, table("path", "x")).is_err());
        assert!(remove_target(&mut document, "iqn.z").is_err());
        assert!(remove_lun(&mut document, "iqn.a", 7).is_err());
        assert_eq!(document.to_string(), FILE);
        let mut none: DocumentMut = "[share.vms]\npath = \"/srv\"\n".parse().unwrap();
        let early = add_target(&mut none, table("name", "iqn.a")).unwrap_err();
        assert!(early.to_string().contains("[iscsi]"), "{early}");
    }

    #[test]
    fn a_file_that_is_replaced_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("smbd.toml");
        fs::write(&path, "a").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        replace(&path, "b").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "b");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    }
}
