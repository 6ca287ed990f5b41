//! Shares, users and targets that are declared over the control interface: a file in the state folder,
//! whose tables stand behind those of the configuration file and are written like them.
//!
//! ```text
//!  smbd.toml (an administrator's) ──┐
//!                                   ├─► one text ─► Config, IscsiConfig
//!  declared.toml (the server's) ────┘
//!       ▲
//!       └── apply: difference ─► whole new text is checked ─► written ─► reload ─► else as it was
//! ```
//!
//! What the configuration file says is never changed here, and an object has one place: a name that it
//! has is refused. All that is asked for at a time is taken, or nothing.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use server_api::{Action, Declared, ObjectChange, ObjectKind};
use smb_protocol::ntlm::users::fold;
use toml::{Table, Value};
use zeroize::Zeroizing;

use crate::{config::Config, iscsi::config::IscsiConfig, sandbox};

/// Name of the file in the state folder.
const FILE: &str = "declared.toml";

/// Longest file that is read, in bytes.
const LONGEST: u64 = 16 << 20;

/// Keys whose values are told to nobody.
const SECRETS: [&str; 3] = ["password", "nt_hash", "secret"];

/// What stands for a secret.
const HIDDEN: &str = "(secret)";

/// Objects by kind and folded name.
type Objects = BTreeMap<(ObjectKind, String), Table>;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// Nothing is changed: what would be is told.
    pub plan: bool,
    /// Objects that are in use may be changed and removed.
    pub cut: bool,
    /// Declared objects that are not named go.
    pub prune: bool,
}

/// Where the two files are, and what the server was confined to.
#[derive(Debug, Clone)]
pub struct Place {
    /// The configuration file.
    pub file: PathBuf,
    /// The state folder.
    pub state_dir: PathBuf,
    /// Folders that the server may use, if it was confined.
    pub folders: Option<Vec<PathBuf>>,
}

/// The key of the tables of a kind.
fn key(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Share => "share",
        ObjectKind::User => "user",
        ObjectKind::Target => "target",
    }
}

const KINDS: [ObjectKind; 3] = [ObjectKind::User, ObjectKind::Share, ObjectKind::Target];

fn read(path: &Path) -> Result<Zeroizing<String>, String> {
    use io::Read;
    let bad = |error: io::Error| format!("cannot read {}: {error}", path.display());
    let mut text = Zeroizing::new(String::new());
    fs::File::open(path).map_err(bad)?.take(LONGEST).read_to_string(&mut text).map_err(bad)?;
    Ok(text)
}

/// The text of the declared objects; nothing if there are none.
fn declared_text(state_dir: &Path) -> Result<Zeroizing<String>, String> {
    let path = state_dir.join(FILE);
    if path.exists() { read(&path) } else { Ok(Zeroizing::default()) }
}

/// The text of a configuration file, with what was declared behind it. In a cluster nothing is: its
/// nodes have one configuration.
///
/// # Errors
/// If a file cannot be read; what it says is for others to check.
pub fn whole_text(file: &Path) -> Result<Zeroizing<String>, String> {
    let text = read(file)?;
    let Ok(table) = text.parse::<Table>() else { return Ok(text) };
    let state_dir = table.get("server").and_then(|server| server.get("state_dir")?.as_str());
    let Some(state_dir) = state_dir.filter(|_| !table.contains_key("cluster")) else {
        return Ok(text);
    };
    let folder = file.parent().unwrap_or(Path::new("."));
    Ok(joined(&text, &declared_text(&folder.join(state_dir))?))
}

fn joined(first: &str, second: &str) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(first.len() + second.len() + 1));
    text.push_str(first);
    if !second.is_empty() {
        text.push('\n');
        text.push_str(second);
    }
    text
}

/// The objects of a text.
fn objects(text: &str) -> Result<Objects, String> {
    // The values of a text that is wrong are not told: they may be secrets.
    let table: Table = text.parse().map_err(|_| "it is no TOML".to_owned())?;
    let mut all = Objects::new();
    for kind in KINDS {
        let list = table.get(key(kind)).and_then(Value::as_array).into_iter().flatten();
        for object in list.filter_map(Value::as_table) {
            let name = object.get("name").and_then(Value::as_str).unwrap_or_default();
            all.insert((kind, fold(name)), object.clone());
        }
    }
    Ok(all)
}

/// What a request declares, as the file has it.
fn wanted(declared: &Declared) -> Result<Objects, String> {
    let mut all = Objects::new();
    for kind in KINDS {
        for object in declared.of(kind) {
            let table = Table::try_from(object).map_err(|error| error.to_string())?;
            let name = table.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            if name.is_empty() {
                return Err(format!("a {} without a name", key(kind)));
            }
            if all.insert((kind, fold(&name)), table).is_some() {
                return Err(format!("{} {name} is there twice", key(kind)));
            }
        }
    }
    Ok(all)
}

/// Objects as tables of TOML.
fn text_of(objects: &Objects) -> Result<Zeroizing<String>, String> {
    let mut table = Table::new();
    for ((kind, _), object) in objects {
        let list = table.entry(key(*kind)).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(list) = list {
            list.push(Value::Table(object.clone()));
        }
    }
    toml::to_string(&table).map(Zeroizing::new).map_err(|error| error.to_string())
}

/// A value without what is secret in it.
fn shown(key: &str, value: &Value) -> Value {
    match value {
        _ if SECRETS.contains(&key) => Value::String(HIDDEN.to_owned()),
        Value::Table(table) => Value::Table(
            table.iter().map(|(key, value)| (key.clone(), shown(key, value))).collect(),
        ),
        Value::Array(list) => Value::Array(list.iter().map(|value| shown("", value)).collect()),
        other => other.clone(),
    }
}

fn json(value: Option<Value>) -> serde_json::Value {
    value.map_or(serde_json::Value::Null, |value| serde_json::to_value(value).unwrap_or_default())
}

/// Which keys of an object are another, with both values.
fn difference(
    old: Option<&Table>,
    new: Option<&Table>,
) -> BTreeMap<String, [serde_json::Value; 2]> {
    let keys = old.into_iter().chain(new).flat_map(Table::keys);
    let mut all = BTreeMap::new();
    for key in keys {
        let value = |table: Option<&Table>| table.and_then(|table| table.get(key).cloned());
        let (before, after) = (value(old), value(new));
        if before != after {
            let told = |value: Option<Value>| json(value.map(|value| shown(key, &value)));
            all.insert(key.clone(), [told(before), told(after)]);
        }
    }
    all
}

/// A user who is declared without a password keeps the one that they have.
fn with_secrets(kind: ObjectKind, mut new: Table, old: Option<&Table>) -> Table {
    let has = |table: &Table| table.keys().any(|key| key != "name");
    if kind == ObjectKind::User
        && !has(&new)
        && let Some(old) = old
    {
        new = old.clone();
    }
    new
}

/// What is to be done.
struct Plan {
    changes: Vec<ObjectChange>,
    objects: Objects,
}

fn plan(
    main: &Objects,
    old: &Objects,
    wanted: Objects,
    how: How,
    in_use: InUse<'_>,
) -> Result<Plan, String> {
    let mut objects = old.clone();
    let mut changes = Vec::new();
    let mut note = |kind, name: &str, before: Option<&Table>, after: Option<&Table>| {
        let difference = difference(before, after);
        let action = match (before, after) {
            (None, _) => Action::Create,
            (_, None) => Action::Remove,
            _ if difference.is_empty() => Action::Nothing,
            _ => Action::Change,
        };
        let loses = matches!(action, Action::Change | Action::Remove);
        let users = if loses { in_use(kind, name) } else { 0 };
        changes.push(ObjectChange { kind, name: name.to_owned(), action, difference, users });
    };
    for ((kind, folded), new) in &wanted {
        let name = new.get("name").and_then(Value::as_str).unwrap_or_default();
        let place = (*kind, folded.clone());
        if let Some(there) = main.get(&place) {
            let same = with_secrets(*kind, new.clone(), Some(there)) == *there;
            if !same {
                return Err(format!(
                    "{} {name} is in the configuration file: change it there",
                    key(*kind)
                ));
            }
            note(*kind, name, Some(there), Some(there));
            continue;
        }
        let before = old.get(&place);
        let new = with_secrets(*kind, new.clone(), before);
        note(*kind, name, before, Some(&new));
        objects.insert(place, new);
    }
    for (place, there) in old.iter().filter(|(place, _)| how.prune && !wanted.contains_key(place)) {
        let name = there.get("name").and_then(Value::as_str).unwrap_or_default();
        note(place.0, name, Some(there), None);
        objects.remove(place);
    }
    Ok(Plan { changes, objects })
}

/// How many use an object now.
pub type InUse<'a> = &'a dyn Fn(ObjectKind, &str) -> u64;

/// All objects, declared ones and those of the configuration file, without secrets.
///
/// # Errors
/// If a file cannot be read.
pub fn all(place: &Place) -> Result<Declared, String> {
    let mut all = objects(&read(&place.file)?)?;
    all.extend(objects(&declared_text(&place.state_dir)?)?);
    let mut declared = Declared::default();
    for ((kind, _), object) in &all {
        let visible = object.iter().filter(|(key, _)| !SECRETS.contains(&key.as_str()));
        let visible: Table = visible.map(|(key, value)| (key.clone(), without(value))).collect();
        if let serde_json::Value::Object(object) = json(Some(Value::Table(visible))) {
            declared.of_mut(*kind).push(object);
        }
    }
    Ok(declared)
}

/// Puts something else in the place of each secret.
pub fn hide(declared: &mut Declared) {
    fn hide_in(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(all) => {
                for (key, value) in all {
                    if SECRETS.contains(&key.as_str()) {
                        *value = HIDDEN.into();
                    } else {
                        hide_in(value);
                    }
                }
            }
            serde_json::Value::Array(all) => all.iter_mut().for_each(hide_in),
            _ => {}
        }
    }
    for kind in KINDS {
        for object in declared.of_mut(kind) {
            let mut value = serde_json::Value::Object(std::mem::take(object));
            hide_in(&mut value);
            if let serde_json::Value::Object(hidden) = value {
                *object = hidden;
            }
        }
    }
}

/// A value whose tables have no secrets.
fn without(value: &Value) -> Value {
    match value {
        Value::Table(table) => {
            let visible = table.iter().filter(|(key, _)| !SECRETS.contains(&key.as_str()));
            Value::Table(visible.map(|(key, value)| (key.clone(), without(value))).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(without).collect()),
        other => other.clone(),
    }
}

/// Makes the declared objects what is asked for, all or nothing: `reload` has the server take them. Must
/// not run twice at a time.
///
/// # Errors
/// Why nothing is changed.
pub fn apply(
    place: &Place,
    declared: &Declared,
    how: How,
    in_use: InUse<'_>,
    reload: &dyn Fn() -> Result<(), String>,
) -> Result<Vec<ObjectChange>, String> {
    let main = read(&place.file)?;
    let before = declared_text(&place.state_dir)?;
    let Plan { changes, objects } =
        plan(&objects(&main)?, &objects(&before)?, wanted(declared)?, how, in_use)?;
    if !how.plan
        && !how.cut
        && let Some(used) = changes.iter().find(|change| change.users > 0)
    {
        let ObjectChange { kind, name, users, .. } = used;
        return Err(format!(
            "{} {name} is used by {users} now: nothing is changed, unless clients may be cut off",
            key(*kind)
        ));
    }
    let text = text_of(&objects)?;
    check(place, &joined(&main, &text))?;
    let nothing = changes.iter().all(|change| change.action == Action::Nothing);
    if how.plan || nothing {
        return Ok(changes);
    }
    let path = place.state_dir.join(FILE);
    let write = |text: &str| {
        http_api::replace_private(&path, text)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))
    };
    write(&text)?;
    let Err(why) = reload() else { return Ok(changes) };
    write(&before)?;
    // What it took of the new one it gives back.
    match reload() {
        Ok(()) => Err(why),
        Err(also) => Err(format!("{why}; and what was before: {also}")),
    }
}

/// Whether the server would take a text.
fn check(place: &Place, text: &str) -> Result<(), String> {
    let config = Config::parse(text, &place.file).map_err(|error| error.to_string())?;
    let iscsi = IscsiConfig::parse(text, &place.file).map_err(|error| error.to_string())?;
    let folders = place.folders.as_deref();
    match folders.and_then(|folders| sandbox::outside(folders, &config, &iscsi)) {
        None => Ok(()),
        Some(what) => Err(format!(
            "{what}: it lies outside of the folders that the server was confined to when it started; \
             name a folder above it in api.folders, and restart it"
        )),
    }
}
