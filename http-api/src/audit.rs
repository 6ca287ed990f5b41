//! Who changed what: one line of JSON for each change, behind those that are there.
//!
//! ```text
//!  audit.jsonl ─ full ─► audit.1.jsonl ─► audit.2.jsonl ─► … ─► gone
//! ```
//!
//! A line has ASCII only, whatever names are in it, so that it can be shown by any program.
//!
//! Room is taken behind the log before a change is made, so that it is written down on a full disk as
//! well; where there is none, no change is made.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::{fs::FallocateFlags, io::Errno};
use serde::Serialize;
use serde_json::{Value, json};

use crate::Caller;

/// Name of the file in the state folder, without its ending.
const NAME: &str = "audit";

/// A state before or after a change that is longer is not written down, only how long it is.
const LONGEST_STATE: usize = 64 << 10;

/// The same where the disk has no room for more.
const SHORT_STATE: usize = 512;

/// Bytes that are kept free behind the log.
const AHEAD: u64 = 1 << 20;

/// Bytes that one change needs at least, with states as short as they may be.
const LEAST: u64 = 16 << 10;

/// Bytes of one file that are looked through for the last records.
const LOOKED_THROUGH: u64 = 4 << 20;

/// What became of a change.
pub type Outcome<'a> = Result<&'a Value, &'a str>;

/// A change that was asked for.
#[derive(Debug)]
pub struct Change<'a> {
    /// By whom.
    pub caller: &'a Caller,
    /// What, as the request has it, without secrets.
    pub request: Value,
    /// What it is about, as it was.
    pub before: Value,
    /// The same, as it is now.
    pub after: Value,
    /// The answer.
    pub outcome: Outcome<'a>,
}

/// The log of all changes.
#[derive(Debug)]
pub struct Audit {
    folder: PathBuf,
    /// Bytes after which a file is full.
    full: u64,
    /// Full files that are kept.
    kept: u32,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    file: Option<File>,
    /// Changes that have room and are not written yet.
    promised: u64,
}

/// Room for one change in the log.
#[derive(Debug)]
pub struct Room {
    audit: Arc<Audit>,
}

/// A time as RFC 3339 has it, in UTC and to the millisecond.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Years begin in March, so that the day that comes every fourth is their last.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let date = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let (seconds, millis) = (seconds % 60, since.subsec_millis());
    format!("{year:04}-{month:02}-{date:02}T{hours:02}:{minutes:02}:{seconds:02}.{millis:03}Z")
}

/// JSON with escapes for all that is not ASCII: what a terminal would do with it is nobody's affair.
fn ascii(json: &str) -> String {
    use std::fmt::Write;
    json.chars().fold(String::with_capacity(json.len()), |mut text, letter| {
        match letter {
            ' '..='~' => text.push(letter),
            letter => {
                for unit in letter.encode_utf16(&mut [0; 2]) {
                    // Writing to a string does not fail.
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
        }
        text
    })
}

fn bounded(state: &Value, longest: usize) -> Value {
    let length = state.to_string().len();
    if length > longest { json!({ "bytes_left_out": length }) } else { state.clone() }
}

/// Takes room behind a file's end: [`AHEAD`] if the disk has that, at least what is `needed` if it has
/// that, and says how many bytes there are.
fn room(file: &File, needed: u64) -> io::Result<u64> {
    let end = file.metadata()?.len();
    for wanted in [needed.max(AHEAD), needed] {
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, end, wanted) {
            Ok(()) => return Ok(wanted),
            // Where nothing can be taken beforehand nothing is promised, and a change is tried.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(u64::MAX),
            // A part of it may have been taken; and the kernel refuses one request while it takes back
            // what it had set aside for other files.
            Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let about = file.metadata()?;
    Ok((about.blocks() * 512).saturating_sub(about.len()))
}

impl Change<'_> {
    /// The line of the log, with its end.
    fn line(&self, longest: usize) -> String {
        let Change { caller, request, before, after, outcome } = self;
        let result = match outcome {
            Ok(reply) => json!({ "done": reply }),
            Err(why) => json!({ "refused": why }),
        };
        let line = json!({
            "time": rfc3339(SystemTime::now()),
            "who": caller.name,
            "role": caller.role,
            "from": caller.from,
            "token": caller.token,
            "what": bounded(request, longest),
            "before": bounded(before, longest),
            "after": bounded(after, longest),
            "result": bounded(&result, longest),
        });
        ascii(&line.to_string()) + "\n"
    }
}

impl Room {
    /// Writes a change down. It is on the disk when this returns.
    ///
    /// # Errors
    /// What the system says: then the change was made and is not written down, and a person must know.
    pub fn write(self, change: &Change<'_>) -> io::Result<()> {
        let mut log = self.audit.log();
        let others = log.promised.saturating_sub(1) * LEAST;
        let mut line = change.line(LONGEST_STATE);
        let mut file = match log.file.take() {
            Some(file) => file,
            None => self.audit.append()?,
        };
        let needed = (line.len() as u64).saturating_add(others);
        if room(&file, needed)? < needed {
            line = change.line(SHORT_STATE);
        }
        file.write_all(line.as_bytes())?;
        file.sync_data()?;
        log.file = Some(file);
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut log = self.audit.log();
        log.promised = log.promised.saturating_sub(1);
    }
}

impl Audit {
    /// A log in a folder: a file is full from `full` bytes on, and `kept` full ones are kept.
    pub fn new(folder: &Path, full: u64, kept: u32) -> Self {
        Self { folder: folder.to_owned(), full, kept, log: Mutex::default() }
    }

    fn path(&self, number: u32) -> PathBuf {
        self.folder.join(match number {
            0 => format!("{NAME}.jsonl"),
            number => format!("{NAME}.{number}.jsonl"),
        })
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room for a change that is about to be made.
    ///
    /// # Errors
    /// There is none, or the log cannot be written: the change must not be made.
    pub fn make_room(self: &Arc<Self>) -> io::Result<Room> {
        self.room_for_one().map_err(|error| {
            let path = self.path(0);
            let why = format!("{} cannot take a change: {error}; make room there", path.display());
            io::Error::new(error.kind(), why)
        })?;
        Ok(Room { audit: self.clone() })
    }

    fn room_for_one(&self) -> io::Result<()> {
        let mut log = self.log();
        let mut file = match log.file.take() {
            Some(file) => file,
            None => self.append()?,
        };
        // Those that were promised room in a file are written to that.
        let length = file.metadata()?.len();
        if log.promised == 0 && length >= self.full {
            // The room behind it is the next one's, where the disk has no other.
            file.set_len(length)?;
            self.turn()?;
            file = self.append()?;
        }
        let needed = (log.promised + 1) * LEAST;
        let enough = room(&file, needed)? >= needed;
        log.file = Some(file);
        if !enough {
            return Err(Errno::NOSPC.into());
        }
        log.promised += 1;
        Ok(())
    }

    /// Opens the newest file to write behind what is there.
    fn append(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).append(true).create(true).mode(0o600).open(self.path(0))?;
        // A line that a loss of power or a full disk has cut ends there.
        let mut last = [0];
        if file.seek(SeekFrom::End(-1)).is_ok() && file.read(&mut last)? == 1 && last != *b"\n" {
            file.write_all(b"\n")?;
        }
        Ok(file)
    }

    /// Makes room: each file takes the next number, and the last one goes.
    fn turn(&self) -> io::Result<()> {
        if self.kept == 0 {
            return fs::remove_file(self.path(0));
        }
        for number in (0..self.kept).rev() {
            let (from, to) = (self.path(number), self.path(number + 1));
            match fs::rename(from, to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The last `count` records, the last first; those of the newest two files at most.
    ///
    /// # Errors
    /// What the system says.
    pub fn last(&self, count: usize) -> io::Result<Vec<Value>> {
        let mut records = Vec::new();
        for number in 0..2 {
            let text = match tail(&self.path(number)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            let lines = text.lines().rev();
            // A line that a loss of power has cut is none.
            let more = lines.filter_map(|line| serde_json::from_str(line).ok());
            records.extend(more.take(count - records.len()));
            if records.len() >= count {
                break;
            }
        }
        Ok(records)
    }

    /// Carries out a change that somebody asks for, and writes it down with the state of what it is about
    /// before and after it. Nothing is done that there is no room to write down.
    ///
    /// # Errors
    /// Why it was not done, in a line for a person.
    pub fn write_down<T: Serialize>(
        self: &Arc<Self>,
        caller: &Caller,
        request: Value,
        state: impl Fn() -> Value,
        change: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        let room = self.make_room().map_err(|error| error.to_string())?;
        let before = state();
        let done = change();
        let reply = done.as_ref().map(|reply| serde_json::to_value(reply).unwrap_or_default());
        let outcome = reply.as_ref().map_err(|why| why.as_str());
        let change = Change { caller, request, before, after: state(), outcome };
        if let Err(error) = room.write(&change) {
            let verb = change.request["op"].as_str().unwrap_or_default();
            tracing::error!(%error, verb, "a change could not be written down");
        }
        done
    }
}

/// The end of a file.
fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOOKED_THROUGH)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn write(audit: &Arc<Audit>, name: &str, outcome: Outcome<'_>) {
        let caller = Caller::local(7, "api.sock");
        let request = json!({ "op": "snapshot-create", "share": name });
        let (before, after) = (json!([]), json!(["now"]));
        let change = Change { caller: &caller, request, before, after, outcome };
        audit.make_room().unwrap().write(&change).unwrap();
    }

    #[test]
    fn changes_are_written_behind_each_other_and_files_turn() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Arc::new(Audit::new(folder.path(), 1000, 2));
        for number in 0..40 {
            write(&audit, &number.to_string(), Ok(&json!("done")));
        }
        let mut names: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["audit.1.jsonl", "audit.2.jsonl", "audit.jsonl"]);
        for name in names {
            let about = fs::metadata(folder.path().join(name)).unwrap();
            assert!(about.len() < 1500 && about.mode() & 0o777 == 0o600);
        }
        let last = audit.last(3).unwrap();
        let shares: Vec<_> = last.iter().map(|record| &record["what"]["share"]).collect();
        assert_eq!(shares, ["39", "38", "37"]);
        let next = Arc::new(Audit::new(folder.path(), 1000, 2));
        write(&next, "40", Err("no"));
        assert_eq!(next.last(1).unwrap()[0]["result"]["refused"], "no");
        assert_eq!(next.last(2).unwrap()[1]["what"]["share"], "39", "another process writes on");
    }

    #[test]
    fn a_line_that_was_cut_takes_no_other_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        fs::write(&path, "{\"what\":1}\n{\"wha").unwrap();
        let audit = Arc::new(Audit::new(folder.path(), 1 << 20, 1));
        write(&audit, "a", Ok(&Value::Null));
        let last = audit.last(9).unwrap();
        assert_eq!((last.len(), &last[0]["what"]["share"]), (2, &json!("a")));
    }

    #[test]
    fn those_who_have_room_do_not_see_the_file_turn() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Arc::new(Audit::new(folder.path(), 1, 9));
        let rooms: Vec<_> = (0..3).map(|_| audit.make_room().unwrap()).collect();
        let caller = Caller::local(7, "api.sock");
        for room in rooms {
            let [request, before, after] = [json!(1), Value::Null, Value::Null];
            let outcome = Ok(&Value::Null);
            room.write(&Change { caller: &caller, request, before, after, outcome }).unwrap();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        drop(audit.make_room().unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_line_is_ascii_and_one_line_whatever_names_are_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Arc::new(Audit::new(folder.path(), 1 << 20, 1));
        let name = "a\n\u{1b}]0;x\u{7}\u{9b}31m\u{202e}\u{1f600}\"<script>";
        write(&audit, name, Ok(&Value::Null));
        write(&audit, &"x".repeat(LONGEST_STATE), Ok(&Value::Null));
        let bytes = fs::read(folder.path().join("audit.jsonl")).unwrap();
        assert!(bytes.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\n')));
        assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 2);
        let last = audit.last(9).unwrap();
        assert_eq!(last[1]["what"]["share"], name);
        assert!(last[0]["what"]["bytes_left_out"].as_u64() > Some(LONGEST_STATE as u64));
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        let millis = UNIX_EPOCH + Duration::from_millis(1_700_000_000_042);
        assert_eq!(rfc3339(millis), "2023-11-14T22:13:20.042Z");
    }
}
