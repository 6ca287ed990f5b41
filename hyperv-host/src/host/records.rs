//! What a host must remember over its own death, one small file a fact, written durably: to a
//! temporary file, synced, renamed, and the folder synced.
//!
//! ```text
//!  state_dir/vms/NAME/vm.toml        definition
//!  state_dir/vms/NAME/record.json    Record: where the VM stands (absent: off)
//!  state_dir/vms/NAME/run.json       number of its last run (absent: numbered by the clock, or never)
//!  state_dir/vms/NAME/variables.fd   its firmware's variables, written by the machine (absent: of a new one)
//!  state_dir/arriving/ID/vm.toml     a VM being received; counts only once …
//!  state_dir/arriving/ID/run.json    … the number of its run here, beside it, and its variables.fd
//!  state_dir/moves/ID.json           … its verdict says `ran`; the host that may ask for it
//! ```

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use host_api::{VmDefinition, VmName};
use serde::{Deserialize, Serialize};

use super::files::{
    clear_unfinished, damaged, own_copy, read_json, sync, write_durably, write_json,
};
use crate::{
    disks::Run,
    handover::target::{self, Effect, Event, Target},
};

/// Identity of one move: 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MoveId(String);

impl MoveId {
    /// A new, random one.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The 32 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for MoveId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == 32 && text.as_bytes().iter().all(digit) {
            Ok(Self(text))
        } else {
            Err("not the identity of a move".into())
        }
    }
}

impl From<MoveId> for String {
    fn from(id: MoveId) -> Self {
        id.0
    }
}

/// Where a VM stands, as its host must know it after a crash.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Record {
    /// Not running.
    #[default]
    Off,
    /// Running here.
    Running,
    /// Running here; a peer may hold a copy that must not run.
    MovingOut {
        /// Identity of the move.
        id: MoveId,
        /// Migration address of the peer, `host:port`.
        peer: String,
    },
    /// Given to the peer. It runs here again only if the peer says that it never ran there.
    HandedOver {
        /// Identity of the move.
        id: MoveId,
        /// Migration address of the peer, `host:port`.
        peer: String,
    },
}

/// What became of a VM that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It was told to run here, and this host has it from then on.
    Ran,
    /// It never ran here and never will.
    Refused,
}

/// A verdict as it is written down.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    /// With the migration address of the source.
    Known { verdict: Verdict, source: String },
    /// By a version of this program that left it to the source to ask.
    Alone(Verdict),
}

/// The state folder of a host.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens a state folder, making what is missing.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(root: &Path) -> io::Result<Self> {
        for part in ["vms", "arriving", "moves"] {
            fs::create_dir_all(root.join(part))?;
        }
        clear_unfinished(&root.join("moves"))?;
        Ok(Self { root: root.to_owned() })
    }

    pub(super) fn vm_dir(&self, name: &VmName) -> PathBuf {
        self.root.join("vms").join(name.as_str())
    }

    fn arriving_dir(&self, id: &MoveId) -> PathBuf {
        self.root.join("arriving").join(id.as_str())
    }

    fn verdict_file(&self, id: &MoveId) -> PathBuf {
        self.root.join("moves").join(format!("{}.json", id.as_str()))
    }

    /// Takes in a new VM.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one of that name, else what the file system says.
    pub fn create(&self, definition: &VmDefinition) -> io::Result<()> {
        let dir = self.vm_dir(&definition.name);
        fs::create_dir(&dir)?;
        write_durably(&dir.join("vm.toml"), definition.to_toml().as_bytes())?;
        sync(&self.root.join("vms"))
    }

    /// All VMs with their records.
    ///
    /// # Errors
    /// What the file system says; a file that is not understood is an error with its path.
    pub fn load(&self) -> io::Result<Vec<(VmDefinition, Record)>> {
        let mut vms = Vec::new();
        for entry in fs::read_dir(self.root.join("vms"))? {
            let dir = entry?.path();
            clear_unfinished(&dir)?;
            let file = dir.join("vm.toml");
            let text = match fs::read_to_string(&file) {
                Ok(text) => text,
                // A create or delete that was cut short.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::remove_dir_all(&dir)?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let definition =
                VmDefinition::from_toml(&text).map_err(|error| damaged(&file, &error))?;
            let definition = self.of_folder(&dir, definition)?;
            let record = read_json(&dir.join("record.json"))?.unwrap_or_default();
            vms.push((definition, record));
        }
        Ok(vms)
    }

    /// Remembers where a VM stands.
    ///
    /// # Errors
    /// What the file system says; the old record is then still the one.
    pub fn record(&self, name: &VmName, record: &Record) -> io::Result<()> {
        write_json(&self.vm_dir(name).join("record.json"), record)
    }

    /// The number of a run of a VM that is about to begin, on this host or where it is moved to. It
    /// is durable before it is returned, and later than that of any run that this host knows of.
    /// Hosts that know nothing of each other are told apart by their clocks, as all runs were
    /// before they had numbers: so a number is never below the clock.
    ///
    /// # Errors
    /// What the file system says; no run may begin then.
    pub fn next_run(&self, name: &VmName) -> io::Result<u64> {
        let file = self.vm_dir(name).join(RUN);
        let number = run_after(read_json(&file)?, first_run());
        write_json(&file, &number)?;
        Ok(number)
    }

    /// Where a VM's firmware variables are.
    pub fn variables_file(&self, name: &VmName) -> PathBuf {
        self.vm_dir(name).join(VARIABLES)
    }

    /// Opens a VM's firmware variables for its next machine; they are `first`, durably, if it has none.
    ///
    /// They are a file of this machine's own: one before it that was not waited for, since storage held
    /// it up, has another, and what it may still write is nobody's.
    ///
    /// # Errors
    /// What the file system says, with the path.
    pub fn variables(&self, name: &VmName, first: &[u8]) -> io::Result<File> {
        own_copy(&self.variables_file(name), first, vmm::VARIABLES_MOST)
    }

    /// Makes the file for the firmware variables of a VM that is being received; what is written there
    /// goes with it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn arriving_variables(&self, id: &MoveId) -> io::Result<File> {
        let dir = self.arriving_dir(id);
        let file =
            File::options().read(true).write(true).create_new(true).open(dir.join(VARIABLES))?;
        sync(&dir)?;
        Ok(file)
    }

    /// Forgets a VM.
    ///
    /// # Errors
    /// What the file system says.
    pub fn delete(&self, name: &VmName) -> io::Result<()> {
        let dir = self.vm_dir(name);
        // The definition first: without it the folder is only rubbish to be cleared away.
        match fs::remove_file(dir.join("vm.toml")) {
            // Its deletion was cut short.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed?,
        }
        sync(&dir)?;
        fs::remove_dir_all(&dir)?;
        sync(&self.root.join("vms"))
    }

    /// Writes down a VM that is being received, with the number of its run here; it counts only once
    /// its verdict is `ran`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn arrive(&self, id: &MoveId, definition: &VmDefinition, run: u64) -> io::Result<()> {
        let dir = self.arriving_dir(id);
        fs::create_dir(&dir)?;
        write_json(&dir.join(RUN), &run)?;
        write_durably(&dir.join("vm.toml"), definition.to_toml().as_bytes())?;
        sync(&self.root.join("arriving"))
    }

    /// Writes down the verdict on a move, with the migration address of its source.
    ///
    /// # Errors
    /// What the file system says.
    pub fn set_verdict(&self, id: &MoveId, verdict: Verdict, source: &str) -> io::Result<()> {
        let source = source.to_owned();
        write_json(&self.verdict_file(id), &Written::Known { verdict, source })
    }

    /// The verdict on a move, if there is one.
    ///
    /// # Errors
    /// What the file system says.
    pub fn verdict(&self, id: &MoveId) -> io::Result<Option<Verdict>> {
        Ok(read_json(&self.verdict_file(id))?.map(|written| match written {
            Written::Known { verdict, .. } | Written::Alone(verdict) => verdict,
        }))
    }

    /// All moves on which there is a verdict and whose source is known, with its address.
    ///
    /// # Errors
    /// What the file system says.
    pub fn verdicts(&self) -> io::Result<Vec<(MoveId, String)>> {
        let mut known = Vec::new();
        for entry in fs::read_dir(self.root.join("moves"))? {
            let path = entry?.path();
            let id = path.file_stem().and_then(|name| name.to_str()).map(str::to_owned);
            let Some(Ok(id)) = id.map(MoveId::try_from) else { continue };
            // It may be forgotten just now.
            if let Some(Written::Known { source, .. }) = read_json(&path)?
                && !source.is_empty()
            {
                known.push((id, source));
            }
        }
        Ok(known)
    }

    /// Forgets a verdict that no one will ask for any more. While the VM is not settled the
    /// verdict is all that says whose it is: then it stays.
    ///
    /// # Errors
    /// `ResourceBusy` while something is kept of its arrival, else what the file system says.
    pub fn forget_verdict(&self, id: &MoveId) -> io::Result<()> {
        if self.arriving_dir(id).try_exists()? {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("the VM of move {} is not settled, its verdict stays", id.as_str()),
            ));
        }
        match fs::remove_file(self.verdict_file(id)) {
            Ok(()) => sync(&self.root.join("moves")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes a received VM one of this host's, running. Its definition is written last: where it
    /// is, this was done before, and the record may say something later by now. So doing it
    /// again never overwrites what came after.
    ///
    /// # Errors
    /// What the file system says; the verdict still says whose it is, and stays until what is kept of
    /// its arrival is gone, too ([`Store::forget_arrival`]).
    pub fn take_in(&self, id: &MoveId, definition: &VmDefinition) -> io::Result<()> {
        let dir = self.vm_dir(&definition.name);
        let file = dir.join("vm.toml");
        if !file.try_exists()? {
            fs::create_dir_all(&dir)?;
            // None if a version of this program received it that numbered runs by the clock.
            if let Some(run) = read_json::<u64>(&self.arriving_dir(id).join(RUN))? {
                write_json(&dir.join(RUN), &run)?;
            }
            // Its machine writes to this file already: it gets another name, and stays the same.
            let variables = self.arriving_dir(id).join(VARIABLES);
            if variables.try_exists()? {
                match fs::remove_file(dir.join(VARIABLES)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => fs::hard_link(variables, dir.join(VARIABLES))?,
                }
            }
            write_json(&dir.join("record.json"), &Record::Running)?;
            write_durably(&file, definition.to_toml().as_bytes())?;
        }
        sync(&self.root.join("vms"))
    }

    /// Clears away a VM that was being received, durably: one that came back with its verdict
    /// after a power cut would run here again, wherever it has gone meanwhile.
    ///
    /// # Errors
    /// What the file system says.
    pub fn forget_arrival(&self, id: &MoveId) -> io::Result<()> {
        match fs::remove_dir_all(self.arriving_dir(id)) {
            Ok(()) => sync(&self.root.join("arriving")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// After a restart: settles what had been told to run and clears away the rest.
    ///
    /// # Errors
    /// What the file system says.
    pub fn recover_arrivals(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join("arriving"))? {
            let dir = entry?.path();
            let id = dir.file_name().and_then(|name| name.to_str()).map(str::to_owned);
            let Some(Ok(id)) = id.map(MoveId::try_from) else { continue };
            let verdict = self.verdict(&id)?.map(|verdict| verdict == Verdict::Ran);
            let Some((mut target, mut todo)) = Target::recovered(true, verdict) else { continue };
            while let Some(effect) = todo.pop() {
                match effect {
                    Effect::Write(target::Record::Vm) => self.settle_found(&id, &dir)?,
                    Effect::Write(target::Record::NoArrival) => self.forget_arrival(&id)?,
                    _ => continue,
                }
                todo = target.apply(Event::Written(true));
            }
        }
        Ok(())
    }

    /// Takes in a VM that was found with the verdict that it had been told to run.
    fn settle_found(&self, id: &MoveId, dir: &Path) -> io::Result<()> {
        let file = dir.join("vm.toml");
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            // The verdict is given only to what was written; so it was settled, and clearing it
            // away was cut short.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let definition = VmDefinition::from_toml(&text).map_err(|error| damaged(&file, &error))?;
        self.take_in(id, &definition)
    }
}

/// The file with the number of a VM's last run.
const RUN: &str = "run.json";

/// The file with the variables of a VM's firmware.
const VARIABLES: &str = "variables.fd";

/// The largest number that a host takes from another: far from now by the clock, and far from where
/// there is no later one.
pub const LAST_RUN: u64 = i64::MAX as u64;

/// The number of a run of which nothing is known but the time: nanoseconds since 1970.
pub fn first_run() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(LAST_RUN)
}

/// The number of the run after `last`.
fn run_after(last: Option<u64>, clock: u64) -> u64 {
    last.map_or(clock, |last| last.saturating_add(Run::SPAN).max(clock))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn definition(name: &str) -> VmDefinition {
        let text = format!("name = '{name}'\nmemory_mib = 64\n[boot]\nkernel = '/k'\n");
        VmDefinition::from_toml(&text).unwrap()
    }

    #[test]
    fn records_survive_and_arrivals_count_only_with_a_verdict() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.create(&definition("a")).unwrap();
        assert!(store.create(&definition("a")).is_err());
        let (ran, lost) = (MoveId::random().unwrap(), MoveId::random().unwrap());
        let handed = Record::HandedOver { id: ran.clone(), peer: "p:1".into() };
        store.record(&"a".parse().unwrap(), &handed).unwrap();
        store.arrive(&ran, &definition("b"), 1).unwrap();
        store.arrive(&lost, &definition("c"), 1).unwrap();
        store.set_verdict(&ran, Verdict::Ran, "s:1").unwrap();

        let store = Store::open(dir.path()).unwrap();
        store.recover_arrivals().unwrap();
        let mut vms = store.load().unwrap();
        vms.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        assert_eq!(vms.len(), 2);
        assert_eq!(vms[0], (definition("a"), handed));
        assert_eq!(vms[1], (definition("b"), Record::Running));
        assert_eq!(store.verdict(&ran).unwrap(), Some(Verdict::Ran));
        assert_eq!(store.verdict(&lost).unwrap(), None);

        // Nothing is settled over what came later.
        store.record(&"b".parse().unwrap(), &Record::Off).unwrap();
        store.take_in(&ran, &definition("b")).unwrap();
        assert!(store.load().unwrap().contains(&(definition("b"), Record::Off)));

        store.delete(&"a".parse().unwrap()).unwrap();
        fs::remove_file(dir.path().join("vms/b/vm.toml")).unwrap();
        assert!(store.load().unwrap().is_empty());
    }

    #[test]
    fn a_verdict_stays_until_its_vm_is_settled() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let id = MoveId::random().unwrap();
        store.arrive(&id, &definition("b"), 1).unwrap();
        store.set_verdict(&id, Verdict::Ran, "s:1").unwrap();
        let early = store.forget_verdict(&id).unwrap_err();
        assert_eq!(early.kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(store.verdict(&id).unwrap(), Some(Verdict::Ran));
        store.take_in(&id, &definition("b")).unwrap();
        let early = store.forget_verdict(&id).unwrap_err();
        assert_eq!(early.kind(), io::ErrorKind::ResourceBusy);
        store.forget_arrival(&id).unwrap();
        store.forget_verdict(&id).unwrap();
        assert_eq!(store.verdict(&id).unwrap(), None);
    }

    /// Variables that come with a VM are its own however often its settling begins, and the machine that
    /// writes them never notices.
    #[test]
    fn variables_come_with_their_vm_and_are_written_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let id = MoveId::random().unwrap();
        let name: VmName = "b".parse().unwrap();
        store.arrive(&id, &definition("b"), 1).unwrap();
        let mut machine = store.arriving_variables(&id).unwrap();
        machine.write_all(b"one").unwrap();
        store.set_verdict(&id, Verdict::Ran, "").unwrap();
        // What a settling that was cut short has left.
        fs::create_dir(dir.path().join("vms/b")).unwrap();
        fs::write(store.variables_file(&name), "rubbish").unwrap();
        store.take_in(&id, &definition("b")).unwrap();
        machine.write_all(b"two").unwrap();
        store.take_in(&id, &definition("b")).unwrap();
        store.forget_arrival(&id).unwrap();
        assert_eq!(fs::read(store.variables_file(&name)).unwrap(), b"onetwo");
        // They are made once, and not again.
        store.create(&definition("a")).unwrap();
        let name: VmName = "a".parse().unwrap();
        store.variables(&name, b"first").unwrap().write_all(b"F").unwrap();
        store.variables(&name, b"first").unwrap();
        assert_eq!(fs::read(store.variables_file(&name)).unwrap(), b"First");
    }

    /// A machine that was not waited for does not write into the variables of the next.
    #[test]
    fn each_machine_has_a_file_of_variables_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.create(&definition("a")).unwrap();
        let name: VmName = "a".parse().unwrap();
        let mut held_up = store.variables(&name, b"first").unwrap();
        let mut next = store.variables(&name, b"first").unwrap();
        held_up.write_all(b"dead").unwrap();
        next.write_all(b"F").unwrap();
        assert_eq!(fs::read(store.variables_file(&name)).unwrap(), b"First");
    }

    #[test]
    fn verdicts_are_known_with_their_sources_also_those_of_earlier_versions() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let ids: Vec<MoveId> = (0..3).map(|_| MoveId::random().unwrap()).collect();
        store.set_verdict(&ids[0], Verdict::Refused, "source:1").unwrap();
        store.set_verdict(&ids[1], Verdict::Ran, "").unwrap();
        fs::write(store.verdict_file(&ids[2]), r#""ran""#).unwrap();
        assert_eq!(store.verdicts().unwrap(), [(ids[0].clone(), "source:1".to_owned())]);
        let verdicts: Vec<_> = ids.iter().map(|id| store.verdict(id).unwrap()).collect();
        assert_eq!(verdicts, [Some(Verdict::Refused), Some(Verdict::Ran), Some(Verdict::Ran)]);
    }

    #[test]
    fn a_settling_that_was_cut_short_anywhere_is_finished() {
        // What each cut leaves behind, in the order in which settling goes.
        let cuts: [fn(&Path); 5] = [
            |vm| fs::create_dir(vm).unwrap(),
            |vm| fs::write(vm.join("run.json"), "77").unwrap(),
            |vm| fs::write(vm.join("record.json"), r#"{"state":"running"}"#).unwrap(),
            |vm| fs::write(vm.join("vm.toml.new-1-1"), "na").unwrap(),
            |vm| fs::write(vm.join("vm.toml"), definition("b").to_toml()).unwrap(),
        ];
        for cut in 0..=cuts.len() {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path()).unwrap();
            let id = MoveId::random().unwrap();
            store.arrive(&id, &definition("b"), 77).unwrap();
            store.set_verdict(&id, Verdict::Ran, "").unwrap();
            for step in &cuts[..cut] {
                step(&dir.path().join("vms/b"));
            }
            store.recover_arrivals().unwrap();
            assert_eq!(store.load().unwrap(), [(definition("b"), Record::Running)], "{cut}");
            assert_eq!(fs::read_dir(dir.path().join("vms/b")).unwrap().count(), 3, "{cut}");
            assert_eq!(fs::read(dir.path().join("vms/b/run.json")).unwrap(), b"77", "{cut}");
            // Cut short while the arrival was cleared away: nothing is lost, nothing comes twice.
            fs::create_dir(dir.path().join("arriving").join(id.as_str())).unwrap();
            store.recover_arrivals().unwrap();
            assert_eq!(store.load().unwrap(), [(definition("b"), Record::Running)], "{cut}");
            store.forget_verdict(&id).unwrap();
        }
    }

    /// Whatever the clock says, each run of a VM is later than what its records know: also one whose
    /// earlier runs were numbered by a clock, and one that came from a host whose clock is ahead.
    #[test]
    fn a_run_is_later_than_every_run_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.create(&definition("a")).unwrap();
        let name: VmName = "a".parse().unwrap();
        let before = first_run();
        let mut last = store.next_run(&name).unwrap();
        assert!(last >= before, "earlier versions' numbers are clocks'");
        for _ in 0..3 {
            let next = Store::open(dir.path()).unwrap().next_run(&name).unwrap();
            assert!(next >= last + Run::SPAN);
            last = next;
        }
        let ahead = first_run() + (1 << 60);
        let id = MoveId::random().unwrap();
        store.arrive(&id, &definition("b"), ahead).unwrap();
        store.set_verdict(&id, Verdict::Ran, "s:1").unwrap();
        store.recover_arrivals().unwrap();
        assert_eq!(store.next_run(&"b".parse().unwrap()).unwrap(), ahead + Run::SPAN);
        // A clock that was set back, and one that is ahead of the records.
        assert_eq!(run_after(Some(1 << 40), 5), (1 << 40) + Run::SPAN);
        assert_eq!(run_after(Some(5), 1 << 40), 1 << 40);
        assert_eq!(run_after(None, 5), 5);
        // Without a record no run begins.
        fs::write(dir.path().join("vms/a/run.json"), "x").unwrap();
        assert!(store.next_run(&name).is_err());
    }

    #[test]
    fn writers_of_one_record_do_not_mix() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.create(&definition("a")).unwrap();
        let name: VmName = "a".parse().unwrap();
        let moving = Record::MovingOut { id: MoveId::random().unwrap(), peer: "p".repeat(4000) };
        std::thread::scope(|scope| {
            for record in [&Record::Running, &moving, &Record::Off] {
                let (store, name) = (&store, &name);
                scope.spawn(move || {
                    for _ in 0..50 {
                        store.record(name, record).unwrap();
                    }
                });
            }
        });
        assert_eq!(store.load().unwrap().len(), 1);
    }
}
