//! A server with much of one thing, and what is done on it to see what that costs.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    rc::Rc,
    time::{Duration, Instant},
};

use bulkhead_tests::{
    process::run,
    smbd::Smbd,
    usage::{Cpu, memory_of_tree},
};
use rustix::{
    process::{Resource, getrlimit},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use smb_protocol::FileId;

use crate::caller::{Caller, How, Outcome};

/// What is configured so that nothing but the machine bounds the sizes.
pub const LIMITS: &str = "[limits]\nconnections = 100000\nconnections_per_address = 100000\n\
    opens = 1000000\nopens_per_session = 1000000\nkept_opens = 1000000\nlocks = 1000000\nuser_percent = 100\n\
    pending_requests = 1000000\npending_bytes = \"4GiB\"\nuser_bytes = \"16GiB\"\nauthentication_seconds = 600\n";

const SERVER_CPU: usize = 0;
const CLIENT_CPU: usize = 1;
/// Blocks of the file that is read.
const BLOCKS: u64 = 4096;
/// Files beside those that there is much of.
const FEW: u64 = 512;

/// Something that is done, and how much of it was done when it returns.
pub type Deed = Box<dyn FnMut(&mut Caller) -> Outcome<usize>>;

/// A server at one size.
pub struct Stand {
    /// How much there is.
    pub size: usize,
    /// Whose CPU is looked at.
    pub server: Rc<Smbd>,
    /// Who does what is measured.
    pub caller: Caller,
    /// What is kept there meanwhile.
    pub held: Vec<Caller>,
    /// What is done, by name.
    pub deeds: Vec<(&'static str, Deed)>,
    /// Bytes of the server for each of what there is much of.
    pub memory_each: Option<f64>,
}

/// Descriptors that a process here may have.
fn descriptors() -> usize {
    getrlimit(Resource::Nofile)
        .maximum
        .map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX))
}

/// Sizes, of which none is beyond what the server takes connections for (`smb_server::descriptors`).
pub fn for_sessions(sizes: &[usize]) -> Vec<usize> {
    within(sizes, descriptors().saturating_sub(64) / 4 - 32)
}

/// Sizes, of which none is beyond what the server has descriptors for.
pub fn for_opens(sizes: &[usize]) -> Vec<usize> {
    within(sizes, (descriptors().saturating_sub(64) / 4).saturating_mul(3) / 2 - 64)
}

/// Sizes, of which those beyond `most` become `most`.
fn within(sizes: &[usize], most: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = sizes.iter().map(|size| (*size).min(most)).collect();
    sizes.dedup();
    sizes
}

/// Starts a server on its CPU, with more options; what is done to files is done in `plain`.
pub fn server(options: &str, shares: &str) -> Outcome<Smbd> {
    let options = format!("signing = \"enabled\"\n{options}");
    let server = Smbd::start(&options, &format!("{shares}\n{LIMITS}"));
    pin(&server);
    let plain = server.files().join("plain");
    fs::create_dir(&plain).map_err(|error| error.to_string())?;
    files(&plain, FEW as usize)?;
    fs::write(server.files().join("data"), vec![0x5a; (BLOCKS * 4096) as usize])
        .map_err(|error| error.to_string())?;
    Ok(server)
}

/// Keeps a server on its CPU.
pub fn pin(server: &Smbd) {
    let mut command = Command::new("taskset");
    command.args(["-a", "-c", "-p", &SERVER_CPU.to_string(), &server.pid().to_string()]);
    // On a machine with one CPU there is nothing to choose.
    let _ = run(&mut command, Duration::from_secs(10));
}

/// Makes that many empty files `f0`, `f1`, … in a folder.
pub fn files(folder: &Path, count: usize) -> Outcome<()> {
    for number in 0..count {
        File::create(folder.join(format!("f{number}"))).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The place of one of many things in folders of a thousand: `many\3\f3210`.
pub fn place(number: usize) -> String {
    format!("many\\{}\\f{number}", number / 1000)
}

/// Makes the files of the places below that number, or folders.
pub fn places(server: &Smbd, count: usize, folders: bool) -> Outcome<()> {
    let many = server.files().join("many");
    for number in 0..count {
        let folder = many.join((number / 1000).to_string());
        let path = folder.join(format!("f{number}"));
        let made = match folders {
            true => fs::create_dir_all(path),
            false if number % 1000 == 0 => {
                fs::create_dir_all(&folder).and_then(|()| File::create(path).map(drop))
            }
            false => File::create(path).map(drop),
        };
        made.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Opens and closes files of a folder that are there, one after another.
pub fn opens(folder: &str, count: u64) -> Deed {
    let folder = folder.to_owned();
    Box::new(move |caller| {
        caller.open_close(200, |turn| {
            (format!("{folder}\\f{}", turn.wrapping_mul(7919) % count), How::File)
        })?;
        Ok(200)
    })
}

/// Makes files of a folder that are not there, which go when they are closed.
pub fn news(folder: &str) -> Deed {
    let folder = folder.to_owned();
    Box::new(move |caller| {
        caller.open_close(50, |turn| (format!("{folder}\\new{turn}"), How::New))?;
        Ok(50)
    })
}

/// Lists a folder as a whole; counts its entries.
pub fn listings(folder: FileId) -> Deed {
    Box::new(move |caller| {
        let listed = caller.list(folder, usize::MAX)?;
        if listed.whole { Ok(listed.entries) } else { Err("a listing without an end".into()) }
    })
}

/// Begins to list a folder.
pub fn first_answers(folder: FileId) -> Deed {
    Box::new(move |caller| {
        caller.list(folder, 1)?;
        Ok(1)
    })
}

/// Reads the file that is there for that.
pub fn reads(file: FileId) -> Deed {
    Box::new(move |caller| {
        caller.read(file, BLOCKS, 2000)?;
        Ok(2000)
    })
}

impl Stand {
    /// One of that size, on which nothing is done yet.
    pub fn new(size: usize, server: Rc<Smbd>) -> Outcome<Self> {
        let caller = Caller::new(&server, "vms")?;
        let (held, deeds) = (Vec::new(), Vec::new());
        Ok(Self { size, server, caller, held, deeds, memory_each: None })
    }

    /// What may cost no more where there is much of something else.
    pub fn plain(mut self) -> Outcome<Self> {
        let data = self.caller.open("data", How::File)?;
        let folder = self.caller.open("plain", How::Folder)?;
        self.deeds.extend([
            ("open and close", opens("plain", FEW)),
            ("4 KiB read", reads(data)),
            ("listing entry", listings(folder)),
            ("new file", news("plain")),
        ]);
        Ok(self)
    }

    /// Notes what `make` costs the server in memory, for each of what there is much of.
    pub fn weigh(&mut self, make: impl FnOnce(&mut Self) -> Outcome<()>) -> Outcome<()> {
        let before = memory_of_tree(self.server.pid());
        make(self)?;
        let after = memory_of_tree(self.server.pid());
        self.memory_each = Some(after.saturating_sub(before) as f64 / self.size as f64);
        Ok(())
    }

    /// Does one of the deeds for that long; microseconds of the server's CPU for each.
    pub fn cost(&mut self, deed: usize, time: Duration) -> Outcome<f64> {
        let before = Cpu::of_tree(self.server.pid());
        let (since, mut count) = (Instant::now(), 0);
        while since.elapsed() < time {
            count += self.deeds[deed].1(&mut self.caller)?;
        }
        let used = Cpu::of_tree(self.server.pid()).since(&before);
        Ok(used.as_secs_f64() * 1e6 / count as f64)
    }

    /// The part of a CPU that the server takes while nobody asks for anything, in percent.
    pub fn idle(&self, time: Duration) -> f64 {
        let before = Cpu::of_tree(self.server.pid());
        std::thread::sleep(time);
        let used = Cpu::of_tree(self.server.pid()).since(&before);
        used.as_secs_f64() * 100.0 / time.as_secs_f64()
    }
}

/// Runs `work` on the client's CPU.
pub fn on_client_cpu<T>(work: impl FnOnce() -> T) -> T {
    let all = sched_getaffinity(None);
    let mut one = CpuSet::new();
    one.set(CLIENT_CPU);
    // A machine with one CPU has no other.
    let _ = sched_setaffinity(None, &one);
    let result = work();
    if let Ok(all) = all {
        let _ = sched_setaffinity(None, &all);
    }
    result
}
