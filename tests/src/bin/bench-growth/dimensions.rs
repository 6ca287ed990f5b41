//! What there may be much of, and servers that have it at each size.

use std::{
    fs,
    rc::Rc,
    time::{Duration, Instant},
};

use bulkhead_tests::{
    smbd::{Smbd, USER},
    usage::Cpu,
};

use crate::{
    caller::{Caller, How, Outcome},
    stand::{self, Stand},
};

/// Something there may be much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dimension {
    /// Sessions that ask for nothing, each on a connection of its own.
    Sessions,
    /// Files that are open.
    Opens,
    /// The same by opens that outlive the server.
    PersistentOpens,
    /// Opens of the one file that is opened.
    OpensOfOne,
    /// Files in the folder that is listed, and in which files are opened and made.
    Files,
    /// Folders that are watched.
    Watches,
    /// Byte ranges that are locked in the file that is read.
    Locks,
    /// Shares.
    Shares,
}

/// The client whose opens outlive the server.
pub const CLIENT: [u8; 16] = *b"bench-growth 001";

/// The share whose opens outlive the server.
pub const AVAILABLE: &str = "ca";

/// The identity of the open of one of many files.
pub fn identity(number: u64) -> [u8; 16] {
    let mut guid = *b"growth..........";
    guid[8..].copy_from_slice(&number.to_le_bytes());
    guid
}

impl Dimension {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Sessions,
        Self::Opens,
        Self::PersistentOpens,
        Self::OpensOfOne,
        Self::Files,
        Self::Watches,
        Self::Locks,
        Self::Shares,
    ];

    /// Its name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sessions => "idle sessions",
            Self::Opens => "opens",
            Self::PersistentOpens => "persistent opens",
            Self::OpensOfOne => "opens of one file",
            Self::Files => "files in a folder",
            Self::Watches => "watches",
            Self::Locks => "locks of a file",
            Self::Shares => "shares",
        }
    }

    /// Its sizes on this machine; `quick` leaves the largest out that take long to make.
    pub fn sizes(self, quick: bool) -> Vec<usize> {
        match self {
            Self::Sessions => stand::for_sessions(&[10, 1000, 10_000]),
            Self::Opens | Self::PersistentOpens => stand::for_opens(&[1, 1000, 100_000]),
            Self::OpensOfOne => stand::for_opens(&[1, 100, 4000]),
            Self::Files if quick => vec![1000, 30_000],
            Self::Files => vec![1000, 30_000, 1_000_000],
            Self::Watches => stand::for_opens(&[1, 1000, 10_000]),
            Self::Locks => vec![1, 1000, 16_000],
            Self::Shares => vec![10, 1000],
        }
    }

    /// A server at each size.
    pub fn stands(self, sizes: &[usize]) -> Outcome<Vec<Stand>> {
        if self == Self::Files {
            let server = Rc::new(stand::server("threads = 1", "")?);
            return sizes.iter().map(|size| folder(&server, *size)).collect();
        }
        sizes.iter().map(|size| self.stand(*size)).collect()
    }

    fn stand(self, size: usize) -> Outcome<Stand> {
        let shares = match self {
            Self::PersistentOpens => format!(
                "[[share]]\nname = \"{AVAILABLE}\"\npath = \"files\"\nusers = [\"{USER}\"]\n\
                 continuously_available = true\n"
            ),
            Self::Shares => (0..size).map(share).collect(),
            _ => String::new(),
        };
        let server = Rc::new(stand::server("threads = 1", &shares)?);
        let mut stand = Stand::new(size, server)?;
        match self {
            Self::Sessions => stand.weigh(|stand| {
                for _ in 0..size {
                    stand.held.push(Caller::new(&stand.server, "vms")?);
                }
                Ok(())
            })?,
            Self::Opens => {
                stand::places(&stand.server, size, false)?;
                stand.weigh(|stand| {
                    let of = |at| (stand::place(at), How::File);
                    stand.caller.open_all(size, of).map(drop)
                })?;
            }
            Self::PersistentOpens => return persistent(stand),
            Self::OpensOfOne => stand.weigh(|stand| {
                let of = |_| ("plain\\f0".to_owned(), How::File);
                stand.caller.open_all(size, of).map(drop)
            })?,
            Self::Watches => {
                stand::places(&stand.server, size, true)?;
                let folders = stand.caller.open_all(size, |at| (stand::place(at), How::Folder))?;
                stand.weigh(|stand| stand.caller.watch_all(&folders))?;
            }
            Self::Locks => {
                let file = stand.caller.open("data", How::File)?;
                stand.weigh(|stand| stand.caller.lock_all(file, size))?;
                let deed = move |caller: &mut Caller| {
                    caller.lock_unlock(file, size as u64, 500)?;
                    Ok(500)
                };
                stand.deeds.push(("lock and unlock", Box::new(deed)));
                stand.deeds.push(("4 KiB read", stand::reads(file)));
                return Ok(stand);
            }
            Self::Shares => {
                let name = format!("share{}", size / 2);
                let deed = move |caller: &mut Caller| {
                    caller.come_and_go(&name, 100)?;
                    Ok(100)
                };
                stand.deeds.push(("tree connect and disconnect", Box::new(deed)));
            }
            Self::Files => unreachable!("its stands have one server"),
        }
        if self == Self::OpensOfOne {
            stand.deeds.push(("open and close", stand::opens("plain", 1)));
            return Ok(stand);
        }
        stand.plain()
    }
}

fn share(number: usize) -> String {
    format!("[[share]]\nname = \"share{number}\"\npath = \"files\"\nusers = [\"{USER}\"]\n")
}

/// A folder of one server with that many files.
fn folder(server: &Rc<Smbd>, size: usize) -> Outcome<Stand> {
    let name = format!("folder{size}");
    let path = server.files().join(&name);
    fs::create_dir(&path).map_err(|error| error.to_string())?;
    stand::files(&path, size)?;
    let mut stand = Stand::new(size, server.clone())?;
    let folder = stand.caller.open(&name, How::Folder)?;
    stand.deeds.extend([
        ("open and close", stand::opens(&name, size as u64)),
        ("listing entry", stand::listings(folder)),
        ("first answer of a listing", stand::first_answers(folder)),
        ("new file", stand::news(&name)),
    ]);
    Ok(stand)
}

/// Opens that outlive the server, of a client that comes back.
fn persistent(mut stand: Stand) -> Outcome<Stand> {
    let size = stand.size;
    stand::places(&stand.server, size, false)?;
    let mut caller = Caller::of_client(&stand.server, AVAILABLE, CLIENT)?;
    stand.weigh(|_| {
        let of = |at| (stand::place(at), How::Persistent(identity(at as u64)));
        caller.open_all(size, of).map(drop)
    })?;
    stand.held.push(caller);
    stand.caller = Caller::new(&stand.server, AVAILABLE)?;
    let deed = move |caller: &mut Caller| {
        caller.open_close(50, |turn| {
            let number = turn.wrapping_mul(7919) % 512;
            (format!("plain\\f{number}"), How::Persistent(identity(turn | 1 << 60)))
        })?;
        Ok(50)
    };
    stand.deeds.push(("persistent open and close", Box::new(deed)));
    stand.plain()
}

/// How long it takes a server that was killed until it serves again.
#[derive(Debug, Clone, Copy)]
pub struct Back {
    /// Opens that it had.
    pub opens: usize,
    /// Seconds from its start to the answer to the first NEGOTIATE.
    pub negotiated: f64,
    /// Seconds from its start to the first open that its client has again.
    pub reclaimed: f64,
    /// CPU that it has used by then, in seconds: what a busy machine does not lengthen.
    pub cpu: f64,
}

/// Kills a server with that many persistent opens, starts it again and takes one of them up.
pub fn killed(size: usize) -> Outcome<Back> {
    let mut stand = Dimension::PersistentOpens.stand(size)?;
    let lost = std::mem::take(&mut stand.held).pop().ok_or("nobody has the opens")?;
    let number = size as u64 - 1;
    // The open that is taken up: the one that was opened last.
    let id = lost.last_opened().ok_or("nothing is open")?;
    let Stand { server, caller, .. } = stand;
    drop((lost, caller));
    let mut server = Rc::into_inner(server).ok_or("others have the server")?;
    let since = server.kill_and_launch();
    let negotiated = until(since, || Caller::negotiated(server.address()))?;
    let reclaim = || {
        let mut caller = Caller::of_client(&server, AVAILABLE, CLIENT)?;
        caller.open(&stand::place(size - 1), How::Again(identity(number), id))
    };
    let reclaimed = until(since, || reclaim().is_ok())?;
    let cpu = Cpu::of_tree(server.pid()).since(&Cpu::default()).as_secs_f64();
    // What it logs of clients that came before it listened is nothing.
    server.stop();
    Ok(Back { opens: size, negotiated, reclaimed, cpu })
}

/// Seconds from a moment until something succeeds.
fn until(since: Instant, mut succeeds: impl FnMut() -> bool) -> Outcome<f64> {
    while !succeeds() {
        if since.elapsed() > Duration::from_secs(300) {
            return Err("the server does not come back".into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(since.elapsed().as_secs_f64())
}
