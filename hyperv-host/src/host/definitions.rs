//! Changes of what a VM is: its definition and its name.
//!
//! A definition may be changed at any time. A machine that runs keeps what it was built of until its next
//! start or reset, and is not moved until then: on the other host it would be built anew.

use std::{fs, io, path::Path, sync::Arc};

use host_api::{VmDefinition, VmName, VmState};
use vmm::platform::bus::lock;

use super::{
    Host, HostError,
    files::{sync, write_durably},
    machine::Managed,
    records::Store,
};
use crate::allowed::Whose;

impl Host {
    /// Says whether a VM would be taken in whose disks at `new` are made after that.
    ///
    /// # Errors
    /// [`HostError`], as [`Host::create`].
    pub fn check(&self, definition: &VmDefinition, new: &[String]) -> Result<(), HostError> {
        definition.check()?;
        self.check_free(definition)?;
        self.check_usable(&with_folders(definition, new), Whose::Own)?;
        // What is not there yet has no folder's format.
        self.check_formats(definition)
    }

    /// Checks that neither name nor id is another's, and that there is room for one more.
    fn check_free(&self, definition: &VmDefinition) -> Result<(), HostError> {
        let vms = lock(&self.vms);
        if vms.contains_key(&definition.name) {
            return Err(HostError::Exists(definition.name.clone()));
        }
        self.check_room(&vms, definition)
    }

    /// Replaces the definition of a VM. A machine that runs has it from its next start or reset on, but for
    /// the limits of its disks, which hold at once.
    ///
    /// # Errors
    /// [`HostError::Changed`] if it is not `was` any more, and what [`Host::create`] says of a definition.
    pub fn edit(&self, was: &VmDefinition, definition: VmDefinition) -> Result<(), HostError> {
        definition.check()?;
        let managed = self.find(&definition.name)?;
        let _operation = managed.try_operate()?;
        let now = managed.definition();
        if *now != *was || now.id != definition.id {
            return Err(HostError::Changed(definition.name));
        }
        let state = managed.state();
        if matches!(state, VmState::MovingIn | VmState::MovingOut | VmState::InDoubt) {
            return Err(HostError::State { name: definition.name, state });
        }
        self.check_usable(&definition, Whose::Own)?;
        self.store.edit(&definition).map_err(HostError::Store)?;
        tracing::info!(vm = %definition.name, changed = now.differs(&definition).join(", "), "edited");
        if let Some(vm) = managed.machine() {
            vm.follow_limits(&definition);
        }
        managed.set_definition(definition);
        Ok(())
    }

    /// Gives a VM that is off another name.
    ///
    /// # Errors
    /// [`HostError::State`] if it is not off, [`HostError::Exists`].
    pub fn rename(&self, name: &VmName, to: &VmName) -> Result<(), HostError> {
        let managed = self.find(name)?;
        let _operation = managed.try_operate()?;
        let state = managed.state();
        if managed.look(|inner| inner.starting) {
            return Err(HostError::Busy(name.clone()));
        }
        if !matches!(state, VmState::Off | VmState::Failed) {
            return Err(HostError::State { name: name.clone(), state });
        }
        let mut definition = (*managed.definition()).clone();
        definition.name = to.clone();
        let mut vms = lock(&self.vms);
        if vms.contains_key(to) {
            return Err(HostError::Exists(to.clone()));
        }
        self.store.rename(name, &definition).map_err(HostError::Store)?;
        tracing::info!(vm = %name, %to, "renamed");
        vms.remove(name);
        vms.insert(to.clone(), Managed::new(definition, VmState::Off));
        Ok(())
    }
}

impl Managed {
    /// What of it waits for its next start: names of keys in the VM file.
    pub fn waiting_changes(&self) -> Vec<&'static str> {
        match self.machine() {
            Some(vm) => vm.definition().differs(&self.definition()),
            None => Vec::new(),
        }
    }

    /// Refuses what needs the machine to be what its definition says.
    ///
    /// # Errors
    /// [`HostError::Waiting`] with what waits for its next start.
    pub fn check_unchanged(&self) -> Result<(), HostError> {
        let changes = self.waiting_changes();
        if changes.is_empty() {
            return Ok(());
        }
        Err(HostError::Waiting { name: self.name().clone(), changes: changes.join(", ") })
    }
}

/// A definition whose disks that are not there yet are the folders that they are made in, as far as they
/// are local: these can be looked at.
fn with_folders(definition: &VmDefinition, new: &[String]) -> VmDefinition {
    let mut definition = definition.clone();
    for disk in definition.disks.iter_mut().filter(|disk| new.contains(&disk.location)) {
        if disk.location.contains("://") {
            continue;
        }
        disk.format.get_or_insert(host_api::DiskFormat::Raw);
        if let Some(folder) = Path::new(&disk.location).parent().and_then(Path::to_str) {
            disk.location = folder.to_owned();
        }
    }
    definition
}

impl Store {
    /// Replaces the definition of a VM, durably.
    ///
    /// # Errors
    /// What the file system says; the old one is then still the one.
    pub fn edit(&self, definition: &VmDefinition) -> io::Result<()> {
        let file = self.vm_dir(&definition.name).join("vm.toml");
        write_durably(&file, definition.to_toml().as_bytes())
    }

    /// Gives a VM the name that its new definition has. The name of the folder is what counts: where the
    /// definition in it says another the renaming was cut short, and is finished.
    ///
    /// # Errors
    /// What the file system says.
    pub fn rename(&self, name: &VmName, definition: &VmDefinition) -> io::Result<()> {
        let (from, to) = (self.vm_dir(name), self.vm_dir(&definition.name));
        if to.try_exists()? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        fs::rename(&from, &to)?;
        if let Some(folder) = to.parent() {
            sync(folder)?;
        }
        self.edit(definition)
    }

    /// The definition found in the folder of a VM, with the name of the folder.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn of_folder(
        &self,
        dir: &Path,
        mut definition: VmDefinition,
    ) -> io::Result<VmDefinition> {
        let name = dir.file_name().and_then(|name| name.to_str()).map(str::parse::<VmName>);
        if let Some(Ok(name)) = name
            && name != definition.name
        {
            definition.name = name;
            self.edit(&definition)?;
        }
        Ok(definition)
    }
}

/// The VMs of a host by name, as a table that is locked.
pub(super) type Table = std::collections::BTreeMap<VmName, Arc<Managed>>;

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "name = 'a'\nmemory_mib = 64\n[boot]\nkernel = '/k'\n";

    #[test]
    fn a_renaming_that_was_cut_short_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let definition = VmDefinition::from_toml(TEXT).unwrap();
        store.create(&definition).unwrap();
        // The power went after the folder had its new name.
        fs::rename(dir.path().join("vms/a"), dir.path().join("vms/b")).unwrap();
        for _ in 0..2 {
            let found = store.load().unwrap();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].0.name.as_str(), "b");
        }
        let text = fs::read_to_string(dir.path().join("vms/b/vm.toml")).unwrap();
        assert!(text.contains("name = \"b\""), "{text}");
    }

    #[test]
    fn a_name_that_is_taken_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut definition = VmDefinition::from_toml(TEXT).unwrap();
        store.create(&definition).unwrap();
        let a = definition.name.clone();
        definition.name = "b".parse().unwrap();
        store.create(&definition).unwrap();
        let error = store.rename(&a, &definition).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(store.load().unwrap().len(), 2);
    }
}
