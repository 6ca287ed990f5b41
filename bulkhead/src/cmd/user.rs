//! `bulkhead user`: the server's users file.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use smb_protocol::ntlm::{
    NtHash,
    users::{self, User},
};
use zeroize::Zeroizing;

use crate::password::{MAX_PASSWORD, first_line, prompt};

/// Arguments of `bulkhead user`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Add a user, or change a password with --replace.
    Add {
        /// Name of the user.
        name: String,
        /// Users file; made, with its folder, if it is missing.
        #[arg(long)]
        file: PathBuf,
        /// Change the password of a user who is there.
        #[arg(long)]
        replace: bool,
        /// Take the password from the first line of this file; `-` is standard input.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Remove a user.
    Remove {
        /// Name of the user.
        name: String,
        /// Users file.
        #[arg(long)]
        file: PathBuf,
    },
    /// List the names of the users.
    List {
        /// Users file.
        #[arg(long)]
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Largest users file that is read.
const MAX_FILE: u64 = 16 << 20;

/// Runs the subcommand that the arguments name.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.action {
        Action::Add { name, file, replace, password_file } => {
            if !users::is_user_name(&name) {
                bail!("{name:?} is not a user name");
            }
            let mut list = if file.exists() { load(&file)? } else { Vec::new() };
            let place = find(&list, &name);
            if let (Some(_), false) = (place, replace) {
                bail!("user {name:?} is there already; --replace changes the password");
            }
            let password = read_password(password_file.as_deref())?;
            if password.is_empty() {
                bail!("an empty password is not accepted");
            }
            let hash = NtHash::of_password(&password);
            match place {
                Some(place) => list[place].hash = hash,
                None => list.push(User { name, hash }),
            }
            save(&file, &list)
        }
        Action::Remove { name, file } => {
            let mut list = load(&file)?;
            let Some(place) = find(&list, &name) else {
                bail!("there is no user {name:?} in {}", file.display());
            };
            list.remove(place);
            save(&file, &list)
        }
        Action::List { file, json } => {
            let list = load(&file)?;
            let names: Vec<_> = list.iter().map(|user| &*user.name).collect();
            if json {
                say!("{}", serde_json::to_string_pretty(&names)?);
            } else {
                names.iter().for_each(|name| say!("{name}"));
            }
            Ok(())
        }
    }
}

fn find(list: &[User], name: &str) -> Option<usize> {
    let folded = users::fold(name);
    list.iter().position(|user| users::fold(&user.name) == folded)
}

fn load(path: &Path) -> anyhow::Result<Vec<User>> {
    let context = || format!("cannot read users file {}", path.display());
    let file = File::open(path).with_context(context)?;
    let mode = file.metadata().with_context(context)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        eprintln!("bulkhead: warning: {} has mode {mode:03o}; it should be 600", path.display());
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_FILE).read_to_string(&mut text).with_context(context)?;
    users::parse(&text).with_context(|| path.display().to_string())
}

/// Replaces the file as a whole, with mode 0600, so that a reader sees the old or the new one.
fn save(path: &Path, list: &[User]) -> anyhow::Result<()> {
    let context = || format!("cannot write users file {}", path.display());
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().with_context(|| format!("{} is no file", path.display()))?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = folder.join(temporary);
    let write = || -> io::Result<()> {
        if !folder.exists() {
            // A first user is added before anything else is there.
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(users::encode(list).as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    };
    let result = write();
    if result.is_err() {
        // Already renamed, or not made at all, is fine too.
        let _ = fs::remove_file(&temporary);
    }
    result.with_context(context)
}

/// A password from the first line of a file, from standard input, or asked for twice on the terminal.
pub fn read_password(file: Option<&Path>) -> anyhow::Result<Zeroizing<String>> {
    match file {
        Some(path) if path != Path::new("-") => {
            let file = File::open(path)
                .with_context(|| format!("cannot read password file {}", path.display()))?;
            first_line(&mut io::BufReader::new(file.take(MAX_PASSWORD + 2)))
        }
        None if io::stdin().is_terminal() => {
            let password = prompt("Password: ")?;
            if *prompt("Again: ")? != *password {
                bail!("the passwords differ");
            }
            Ok(password)
        }
        _ => first_line(&mut io::BufReader::new(io::stdin().lock().take(MAX_PASSWORD + 2))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(file: &Path, name: &str, password: &str, replace: bool) -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let secret = folder.path().join("password");
        fs::write(&secret, format!("{password}\nsecond line\n"))?;
        let (name, file) = (name.to_owned(), file.to_owned());
        let password_file = Some(secret);
        run(Args { action: Action::Add { name, file, replace, password_file } })
    }

    #[test]
    fn users_come_change_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users.toml");
        add(&file, "admin", "eins", false).unwrap();
        add(&file, "backup", "zwei", false).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        let error = add(&file, "ADMIN", "drei", false).unwrap_err();
        assert!(error.to_string().contains("--replace"), "{error}");
        add(&file, "ADMIN", "drei", true).unwrap();
        let list = load(&file).unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list[0].name, "admin");
        assert_eq!(list[0].hash, NtHash::of_password("drei"));
        let remove = |name: &str| {
            let (name, file) = (name.to_owned(), file.clone());
            run(Args { action: Action::Remove { name, file } })
        };
        remove("Admin").unwrap();
        assert!(remove("Admin").is_err());
        assert_eq!(load(&file).unwrap()[0].name, "backup");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left over");
    }

    #[test]
    fn bad_names_and_passwords_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users.toml");
        assert!(add(&file, "a\\b", "x", false).is_err());
        assert!(add(&file, "a", "", false).is_err());
        assert!(add(&file, "a", &"x".repeat(2000), false).is_err());
        assert!(!file.exists());
    }
}
