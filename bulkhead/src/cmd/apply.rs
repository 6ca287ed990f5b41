//! `bulkhead apply` and `bulkhead export`: shares, users and targets of a server as files.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde_json::{Map, Value};
use server_api::{Action, Declared, Object, ObjectChange, ObjectKind, Reply, Request};
use smb_protocol::ntlm::NtHash;

use super::server::{Socket, json};
use crate::password::first_line;

/// Arguments of `bulkhead apply`.
#[derive(Debug, clap::Args)]
pub struct Apply {
    #[command(flatten)]
    socket: Socket,
    /// A file with `[[share]]`, `[[user]]` and `[[target]]` as the server's configuration has them, or a
    /// folder with such files. One whose name ends with .yaml or .yml is YAML with lists of these
    /// names, any other is TOML.
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
    /// Print YAML instead of TOML.
    #[arg(long, conflicts_with = "json")]
    yaml: bool,
}

/// Ends of the names of files that are taken from a folder.
const ENDINGS: [&str; 3] = ["toml", "yaml", "yml"];

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
        Reply::Declared { declared } if args.yaml => {
            say!("{}", serde_saphyr::to_string(&declared)?.trim_end());
            Ok(())
        }
        Reply::Declared { declared } => {
            say!("{}", toml::to_string_pretty(&declared)?.trim_end());
            Ok(())
        }
        other => bail!("the server answered {other:?}"),
    }
}

/// The file, or the files of a folder whose names have one of the [`ENDINGS`], in the order of their
/// names.
fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let read = || format!("cannot read {}", path.display());
    if !fs::metadata(path).with_context(read)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut all = Vec::new();
    for entry in fs::read_dir(path).with_context(read)? {
        let path = entry.with_context(read)?.path();
        all.extend(ENDINGS.iter().any(|ending| ends(&path, ending)).then_some(path));
    }
    if all.is_empty() {
        bail!("{} has no file whose name ends with .toml, .yaml or .yml", path.display());
    }
    all.sort();
    Ok(all)
}

fn ends(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|it| it == ending)
}

/// What a file says, by its keys. What YAML 1.1 took for a boolean, as `no`, is text: a share may have
/// that name.
fn parse(text: &str, file: &Path) -> anyhow::Result<Map<String, Value>> {
    if ends(file, "yaml") || ends(file, "yml") {
        let options = serde_saphyr::options! { strict_booleans: true };
        return serde_saphyr::from_str_with_options(text, options).context("it is no YAML");
    }
    toml::from_str(text).context("it is no TOML")
}

/// Takes what a file declares. A password goes no further than its hash.
fn take(declared: &mut Declared, text: &str, file: &Path) -> anyhow::Result<()> {
    for (key, value) in parse(text, file)? {
        let kind = match key.as_str() {
            "user" => ObjectKind::User,
            "share" => ObjectKind::Share,
            "target" => ObjectKind::Target,
            other => bail!("{other}: only shares, users and targets are declared"),
        };
        let Value::Array(objects) = value else {
            bail!("{key} is no list of tables ([[{key}]] in TOML)")
        };
        for object in objects {
            let Value::Object(mut object) = object else { bail!("a {key} is no table") };
            if kind == ObjectKind::User {
                hash_password(&mut object, file)?;
            }
            declared.of_mut(kind).push(object);
        }
    }
    Ok(())
}

/// Puts the hash of a password in its place.
fn hash_password(user: &mut Object, file: &Path) -> anyhow::Result<()> {
    let named = user.remove("password_file");
    let named = named.as_ref().map(|path| path.as_str().context("password_file is no text"));
    let password = match (user.remove("password"), named.transpose()?) {
        (None, None) => return Ok(()),
        (Some(_), Some(_)) => bail!("a user has one of password and password_file"),
        (Some(password), None) => {
            private(file)?;
            let Value::String(password) = password else { bail!("password is no text") };
            password.into()
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
    user.insert("nt_hash".to_owned(), Value::from(hash.as_str()));
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
        for text in ["[server]\n", "share = 1\n", "[share]\n", "[[user]]\npassword = 7\n", "x"] {
            assert!(take(&mut Declared::default(), text, file).is_err(), "{text}");
        }
        let file = Path::new("/nowhere/x.yaml");
        for text in ["server: {}", "share: 1", "share: {}", "share: [1]", "x", "a: &a [*a]", "{"] {
            assert!(take(&mut Declared::default(), text, file).is_err(), "{text}");
        }
    }

    #[test]
    fn yaml_says_the_same_as_toml() {
        let toml = "[[share]]\nname = \"no\"\npath = \"/srv\"\nusers = [\"al\", \"7\"]\nread_only = true\n\
                    max_iops = 500\n[[target]]\nname = \"t\"\n[[target.lun]]\nnumber = 0\npath = \"/x\"\n";
        let yaml = "share:\n  - name: no\n    path: /srv\n    users: [al, '7']\n    read_only: true\n    \
                    max_iops: 500\ntarget:\n- name: t\n  lun:\n  - {number: 0, path: /x}\n";
        let take = |text: &str, name: &str| {
            let mut declared = Declared::default();
            take(&mut declared, text, Path::new(name)).unwrap();
            declared
        };
        let declared = take(toml, "a.toml");
        assert_eq!(declared, take(yaml, "a.yaml"));
        assert_eq!(declared, take(&serde_saphyr::to_string(&declared).unwrap(), "a.yml"));
    }

    /// A few letters that would be gigabytes are refused before they are.
    #[test]
    fn yaml_that_refers_to_itself_over_and_over_is_refused() {
        let mut text = String::from("a: &a [x, x, x, x, x, x, x, x, x, x]\n");
        for (name, of) in ('b'..='m').zip('a'..) {
            text += &format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 10].join(", "));
        }
        assert!(take(&mut Declared::default(), &text, Path::new("/nowhere/x.yaml")).is_err());
    }
}
