//! `bulkhead apply` and `bulkhead export`: shares, users and targets of a server as files.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use server_api::{Action, Declared, ObjectChange, ObjectKind, Reply, Request};
use smb_protocol::ntlm::NtHash;
use toml_edit::{DocumentMut, Item, Value};

use super::server::{Socket, json};
use crate::password::first_line;

/// Arguments of `bulkhead apply`.
#[derive(Debug, clap::Args)]
pub struct Apply {
    #[command(flatten)]
    socket: Socket,
    /// A file (TOML) with `[[share]]`, `[[user]]` and `[[target]]` as the server's configuration has them,
    /// or a folder with such files.
    path: PathBuf,
    /// Print what would be done, and do nothing.
    #[arg(long)]
    plan: bool,
    /// Change and remove also what clients use now.
    #[arg(long)]
    cut: bool,
    /// Remove what was declared before and is not named any more.
    #[arg(long)]
    prune: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `bulkhead export`.
#[derive(Debug, clap::Args)]
pub struct Export {
    #[command(flatten)]
    socket: Socket,
    /// Print JSON instead of TOML.
    #[arg(long)]
    json: bool,
}

/// Has the server make what files say so.
pub fn apply(args: Apply) -> anyhow::Result<()> {
    let Apply { socket, path, plan, cut, prune, json: as_json } = args;
    let mut declared = Declared::default();
    for file in files(&path)? {
        let text = fs::read_to_string(&file);
        let text = text.with_context(|| format!("cannot read {}", file.display()))?;
        take(&mut declared, &text, &file)
            .with_context(|| format!("{} cannot be applied", file.display()))?;
    }
    match socket.ask(&Request::Apply { declared, plan, cut, prune })? {
        Reply::Applied { changes } if as_json => json(&changes),
        Reply::Applied { changes } => {
            changes.iter().for_each(show);
            let count = changes.iter().filter(|it| it.action != Action::Nothing).count();
            match (plan, count) {
                (_, 0) => say!("nothing to do"),
                (true, count) => say!("{count} to be changed"),
                (false, count) => say!("{count} changed"),
            }
            Ok(())
        }
        other => bail!("the server answered {other:?}"),
    }
}

/// Prints all objects of a server, as `apply` takes them.
pub fn export(args: Export) -> anyhow::Result<()> {
    match args.socket.ask(&Request::DeclaredShow)? {
        Reply::Declared { declared } if args.json => json(&declared),
        Reply::Declared { declared } => {
            say!("{}", toml::to_string_pretty(&declared)?.trim_end());
            Ok(())
        }
        other => bail!("the server answered {other:?}"),
    }
}

/// The file, or the files of a folder whose names end with `.toml`, in the order of their names.
fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let read = || format!("cannot read {}", path.display());
    if !fs::metadata(path).with_context(read)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut all = Vec::new();
    for entry in fs::read_dir(path).with_context(read)? {
        let path = entry.with_context(read)?.path();
        all.extend(path.extension().is_some_and(|ending| ending == "toml").then_some(path));
    }
    if all.is_empty() {
        bail!("{} has no file whose name ends with .toml", path.display());
    }
    all.sort();
    Ok(all)
}

/// Takes what a file declares. A password goes no further than its hash.
fn take(declared: &mut Declared, text: &str, file: &Path) -> anyhow::Result<()> {
    let document: DocumentMut = text.parse().context("it is no TOML")?;
    for (key, item) in document.iter() {
        let kind = match key {
            "user" => ObjectKind::User,
            "share" => ObjectKind::Share,
            "target" => ObjectKind::Target,
            other => bail!("{other}: only [[share]], [[user]] and [[target]] are declared"),
        };
        let Item::ArrayOfTables(tables) = item else { bail!("{key} is not written as [[{key}]]") };
        for table in tables {
            let mut table = table.clone();
            if kind == ObjectKind::User {
                hash_password(&mut table, file)?;
            }
            declared.of_mut(kind).push(toml::from_str(&DocumentMut::from(table).to_string())?);
        }
    }
    Ok(())
}

/// Puts the hash of a password in its place.
fn hash_password(table: &mut toml_edit::Table, file: &Path) -> anyhow::Result<()> {
    let named = table.remove("password_file");
    let named = named.as_ref().map(|path| path.as_str().context("password_file is no text"));
    let password = match (table.remove("password"), named.transpose()?) {
        (None, None) => return Ok(()),
        (Some(_), Some(_)) => bail!("a user has one of password and password_file"),
        (Some(password), None) => {
            private(file)?;
            password.as_str().context("password is no text")?.to_owned().into()
        }
        (None, Some(path)) => {
            let path = file.parent().unwrap_or(Path::new(".")).join(path);
            private(&path)?;
            let open = fs::File::open(&path);
            let open = open.with_context(|| format!("cannot read {}", path.display()))?;
            first_line(&mut std::io::BufReader::new(open))?
        }
    };
    if password.is_empty() {
        bail!("an empty password is not accepted");
    }
    let hash = NtHash::of_password(&password).to_hex();
    table["nt_hash"] = Item::Value(Value::from(hash.as_str()));
    Ok(())
}

/// Fails for a file with a secret that others can read.
fn private(path: &Path) -> anyhow::Result<()> {
    let about = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if about.mode() & 0o077 != 0 {
        bail!("{} has a password and can be read by others: chmod 600", path.display());
    }
    Ok(())
}

fn show(change: &ObjectChange) {
    let kind = match change.kind {
        ObjectKind::User => "user",
        ObjectKind::Share => "share",
        ObjectKind::Target => "target",
    };
    let sign = match change.action {
        Action::Create => '+',
        Action::Change => '~',
        Action::Remove => '-',
        Action::Nothing => return,
    };
    let used = match change.users {
        0 => String::new(),
        users => format!("  (used by {users} now)"),
    };
    say!("{sign} {kind} {}{used}", change.name);
    for (key, [before, after]) in &change.difference {
        match change.action {
            Action::Create => say!("    {key} = {after}"),
            Action::Remove => say!("    {key} = {before}"),
            _ => say!("    {key}: {before} -> {after}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_of_a_folder_are_taken_by_name_and_passwords_leave_as_hashes() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("b.toml"), "[[share]]\nname = \"vms\"\npath = \"/srv\"\nusers = [\"al\"]\n")
            .unwrap();
        fs::write(at("a.toml"), "[[user]]\nname = \"al\"\npassword_file = \"al.secret\"\n")
            .unwrap();
        fs::write(at("al.secret"), "hunter2\nmore\n").unwrap();
        let all = || {
            let mut declared = Declared::default();
            for file in files(folder.path())? {
                take(&mut declared, &fs::read_to_string(&file)?, &file)?;
            }
            anyhow::Ok(declared)
        };
        assert!(all().unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(at("al.secret"), fs::Permissions::from_mode(0o600)).unwrap();
        let declared = all().unwrap();
        assert_eq!(declared.share[0]["users"], serde_json::json!(["al"]));
        let hash = NtHash::of_password("hunter2").to_hex();
        assert_eq!(declared.user[0]["nt_hash"], serde_json::json!(*hash));
        assert!(!declared.user[0].contains_key("password_file"));
    }

    #[test]
    fn what_is_not_declared_is_refused() {
        let file = Path::new("/nowhere/x.toml");
        for text in ["[server]\n", "share = []\n", "[share]\n", "[[user]]\npassword = 7\n", "x"] {
            assert!(take(&mut Declared::default(), text, file).is_err(), "{text}");
        }
    }
}
