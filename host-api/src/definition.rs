//! What a VM is: the content of a VM file.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a definition is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DefinitionError {
    /// The name cannot be used for files and lines of output.
    #[error(
        "VM name {0:?} must be 1 to 64 of a-z, A-Z, 0-9, '.', '_' and '-', not starting with '.' or '-'"
    )]
    Name(String),
    /// Not the address of a network card.
    #[error(
        "network address {0:?} must be six pairs of hexadecimal digits with ':' between, of one card"
    )]
    Mac(String),
    /// Not the name of a bridge.
    #[error(
        "bridge {0:?} must be 1 to 15 of a-z, A-Z, 0-9, '.', '_' and '-', not starting with '.'"
    )]
    Bridge(String),
    /// Not the identity of a VM.
    #[error("VM id {0:?} must be 32 hexadecimal digits")]
    Id(String),
    /// A number is outside what the host can do.
    #[error("{field} is {value}, must be {least} to {most}")]
    Range {
        /// The key in the VM file.
        field: &'static str,
        /// What it says.
        value: u64,
        /// Least possible.
        least: u64,
        /// Most possible.
        most: u64,
    },
    /// What it starts from is not said, or said twice.
    #[error(
        "a VM starts from a kernel of its host ([boot]) or, by a firmware, from its disk ([firmware]): say one of them"
    )]
    Start,
    /// A BIOS keeps no variables.
    #[error("[firmware] vars is for kind \"uefi\": a BIOS keeps no variables")]
    Vars,
    /// The text is not a VM file.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
}

/// The name of a VM: 1 to 64 letters, digits, `.`, `_` and `-`; safe as a file name.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

impl VmName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VmName {
    type Err = DefinitionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let good = (1..=64).contains(&text.len())
            && text.chars().all(plain)
            && !text.starts_with(['.', '-']);
        if good { Ok(Self(text.to_owned())) } else { Err(DefinitionError::Name(text.to_owned())) }
    }
}

impl TryFrom<String> for VmName {
    type Error = DefinitionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> Self {
        name.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What tells a VM from all others, wherever it runs: 32 hexadecimal digits. File servers know the
/// runs of a VM by it: a VM that is started again or elsewhere takes its disks from the run before,
/// which cannot write to them any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct VmId(pub [u8; 16]);

impl FromStr for VmId {
    type Err = DefinitionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = || {
            let hexadecimal = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
            u128::from_str_radix(text, 16).ok().filter(|_| hexadecimal)
        };
        let number = number().ok_or_else(|| DefinitionError::Id(text.to_owned()))?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl TryFrom<String> for VmId {
    type Error = DefinitionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<VmId> for String {
    fn from(id: VmId) -> Self {
        format!("{:032x}", u128::from_be_bytes(id.0))
    }
}

/// How the bytes of a disk file are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Sectors from the first byte on.
    Raw,
    /// A VHDX image.
    Vhdx,
}

/// How much a disk of a VM may do in a second; what is more waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskLimits {
    /// Operations: a request counts as one for each 8 KiB of data that it begins, and as one without data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_iops: Option<u32>,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes_per_s: Option<u64>,
    /// After a time of rest what the limits allow in so many milliseconds goes at once; 100 if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_ms: Option<u32>,
}

impl DiskLimits {
    /// Whether there are none.
    pub fn is_none(&self) -> bool {
        self.max_iops.is_none() && self.max_bytes_per_s.is_none()
    }

    /// What goes at once after a time of rest, as the time that the limits have for it.
    pub fn burst(&self) -> Duration {
        Duration::from_millis(self.burst_ms.unwrap_or(100).into())
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// One disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskDefinition {
    /// A local path, or `smb://[user@]host[:port]/share/path`.
    pub location: String,
    /// Format of the file; by the ending of the location if not said, and refused if that names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// Refuse the guest's writes.
    #[serde(default)]
    pub read_only: bool,
    /// How much it may do in a second; nothing said is no limit.
    #[serde(default, skip_serializing_if = "DiskLimits::is_default")]
    pub limits: DiskLimits,
}

impl DiskDefinition {
    /// A disk without limits, in the format that the ending of its location names.
    pub fn new(location: String, read_only: bool) -> Self {
        Self { location, format: None, read_only, limits: DiskLimits::default() }
    }
}

/// The address of a network card: `02:00:00:00:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl TryFrom<String> for MacAddress {
    type Error = DefinitionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut bytes = [0; 6];
        let parts: Vec<&str> = text.split(':').collect();
        let good = parts.len() == 6
            && bytes.iter_mut().zip(&parts).all(|(byte, part)| {
                let digits = part.len() == 2 && part.bytes().all(|it| it.is_ascii_hexdigit());
                *byte = u8::from_str_radix(part, 16).unwrap_or_default();
                digits
            })
            // One card's, and not nobody's.
            && bytes[0] & 1 == 0
            && bytes != [0; 6];
        if good { Ok(Self(bytes)) } else { Err(DefinitionError::Mac(text)) }
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        let [a, b, c, d, e, f] = mac.0;
        format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// One network card of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NicDefinition {
    /// The bridge of the host that it is plugged into; one of the same name on every host.
    pub bridge: String,
    /// Its address; made of the VM's id and the card's place if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Most that goes to the guest, in 1,000,000 bits a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_mbit: Option<u32>,
    /// Most that comes from it, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_mbit: Option<u32>,
}

/// What the VM starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BootDefinition {
    /// A Linux bzImage or an ELF file with a PVH entry note.
    pub kernel: PathBuf,
    /// An initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel command line.
    #[serde(default)]
    pub cmdline: String,
}

/// Which firmware a VM has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FirmwareKind {
    /// A PC BIOS: SeaBIOS.
    Bios,
    /// UEFI with variables that are kept: OVMF.
    Uefi,
}

impl FirmwareKind {
    /// Where Debian's package has the firmware.
    pub fn default_code(self) -> &'static Path {
        Path::new(match self {
            Self::Bios => "/usr/share/seabios/bios-256k.bin",
            Self::Uefi => "/usr/share/OVMF/OVMF_CODE_4M.fd",
        })
    }

    /// Where Debian's package has the variables of a new machine, if it has any.
    pub fn default_vars(self) -> Option<&'static Path> {
        match self {
            Self::Bios => None,
            Self::Uefi => Some(Path::new("/usr/share/OVMF/OVMF_VARS_4M.fd")),
        }
    }

    /// The Debian package that has both.
    pub fn package(self) -> &'static str {
        match self {
            Self::Bios => "seabios",
            Self::Uefi => "ovmf",
        }
    }
}

/// The firmware of a VM that starts from its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FirmwareDefinition {
    /// BIOS or UEFI.
    pub kind: FirmwareKind,
    /// The firmware's image; where Debian's package has it if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<PathBuf>,
    /// The variables that the VM has when it starts for the first time; where Debian's package has
    /// them if not said. Its own are kept by its host from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vars: Option<PathBuf>,
}

impl FirmwareDefinition {
    /// Path of the image.
    pub fn code(&self) -> &Path {
        self.code.as_deref().unwrap_or(self.kind.default_code())
    }

    /// Path of the first variables; none of a BIOS.
    pub fn vars(&self) -> Option<&Path> {
        self.vars.as_deref().or(self.kind.default_vars())
    }
}

/// Which guest device `vm console` shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleKind {
    /// The 16550 at port 0x3f8.
    #[default]
    Serial,
    /// The virtio console.
    Virtio,
}

/// What becomes of a VM that was running when its host failed, once the host is back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AfterHostFailure {
    /// It is started afresh.
    #[default]
    Restart,
    /// It stays off.
    LeaveOff,
}

/// What becomes of a VM whose kernel says that it has panicked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PanicAction {
    /// It is left as it is, and its host tells of it.
    #[default]
    Report,
    /// It is started again.
    Restart,
    /// It is ended.
    Stop,
}

impl PanicAction {
    // What a host of an earlier version does not know is not said unless it is needed.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of a VM whose watchdog has expired: its guest did not say in time that it is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WatchdogAction {
    /// It is started again.
    Reset,
    /// It is ended.
    Stop,
    /// It stands as it is until somebody has it run on, or ends it.
    Pause,
    /// It goes on, and its host tells of it.
    Nothing,
}

/// A virtual machine, as its VM file says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmDefinition {
    /// Unique on its host.
    pub name: VmName,
    /// Unique everywhere; made up when the VM is created if it is not said. To start a VM on
    /// another host because its own is gone, create it there with the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<VmId>,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// The VM has a balloon: memory that its guest does not use goes back to the host, and `vm memory` may
    /// leave it with as little as so many MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_mib: Option<u64>,
    /// Number of virtual CPUs.
    #[serde(default = "one")]
    pub vcpus: u32,
    /// Which device the console is.
    #[serde(default)]
    pub console: ConsoleKind,
    /// After a failure of the host.
    #[serde(default)]
    pub after_host_failure: AfterHostFailure,
    /// When the guest's kernel panics, as it says by the port of QEMU's pvpanic.
    #[serde(default, skip_serializing_if = "PanicAction::is_default")]
    pub on_panic: PanicAction,
    /// The VM has a watchdog (Intel 6300ESB), and when that expires this is done. Without it there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_watchdog: Option<WatchdogAction>,
    /// The kernel to boot, if no firmware does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootDefinition>,
    /// The firmware that boots from a disk, if no kernel is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<FirmwareDefinition>,
    /// Disks, in the order of their PCI slots.
    #[serde(default, rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskDefinition>,
    /// Network cards, in the order of their PCI slots, after the disks.
    #[serde(default, rename = "nic", skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicDefinition>,
}

/// Memory in MiB without which OVMF does not come up.
const LEAST_FOR_UEFI: u64 = 128;

/// Whether a machine of these disks has those, whatever their limits, which are changed while it runs.
fn same_disks(one: &[DiskDefinition], other: &[DiskDefinition]) -> bool {
    let same = |(one, other): (&DiskDefinition, &DiskDefinition)| {
        DiskDefinition { limits: other.limits, ..one.clone() } == *other
    };
    one.len() == other.len() && one.iter().zip(other).all(same)
}

fn one() -> u32 {
    1
}

impl VmDefinition {
    /// Reads and checks the text of a VM file.
    pub fn from_toml(text: &str) -> Result<Self, DefinitionError> {
        let definition: Self = toml::from_str(text)?;
        definition.check()?;
        Ok(definition)
    }

    /// The definition of a file in `folder`, from which relative paths are taken. Addresses of shares
    /// and of logical units stay as they are.
    #[must_use]
    pub fn beside(mut self, folder: &Path) -> Self {
        let boot = self.boot.as_mut();
        let boot = boot.map(|boot| [Some(&mut boot.kernel), boot.initrd.as_mut()]);
        let firmware = self.firmware.as_mut();
        let firmware = firmware.map(|firmware| [firmware.code.as_mut(), firmware.vars.as_mut()]);
        let paths = [boot, firmware].into_iter().flatten().flatten().flatten();
        paths.for_each(|path| *path = folder.join(&*path));
        for disk in self.disks.iter_mut().filter(|disk| !disk.location.contains("://")) {
            // What is no text is not in a VM file; the folder may be.
            if let Ok(path) = folder.join(&disk.location).into_os_string().into_string() {
                disk.location = path;
            }
        }
        self
    }

    /// The text of a VM file that says the same.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field of a definition has a TOML form")
    }

    /// Checks the numbers against what any host can do.
    pub fn check(&self) -> Result<(), DefinitionError> {
        let range = |field, value, least, most| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(DefinitionError::Range { field, value, least, most })
            }
        };
        match (&self.boot, &self.firmware) {
            (Some(_), None) => {}
            (None, Some(firmware)) if firmware.kind == FirmwareKind::Bios => {
                if firmware.vars.is_some() {
                    return Err(DefinitionError::Vars);
                }
            }
            (None, Some(_)) => range("memory_mib", self.memory_mib, LEAST_FOR_UEFI, 1 << 20)?,
            (Some(_), Some(_)) | (None, None) => return Err(DefinitionError::Start),
        }
        range("memory_mib", self.memory_mib, 16, 1 << 20)?;
        if let Some(minimum) = self.minimum_mib {
            range("minimum_mib", minimum, 16, self.memory_mib)?;
        }
        range("vcpus", u64::from(self.vcpus), 1, 64)?;
        range("number of disks", self.disks.len() as u64, 0, 16)?;
        for disk in &self.disks {
            let limits = &disk.limits;
            let said = [
                ("disk's max_iops", limits.max_iops.map(u64::from), 1, 10_000_000),
                ("disk's max_bytes_per_s", limits.max_bytes_per_s, 1 << 16, 1 << 40),
                ("disk's burst_ms", limits.burst_ms.map(u64::from), 0, 60_000),
            ];
            for (field, value, least, most) in said {
                value.map_or(Ok(()), |value| range(field, value, least, most))?;
            }
        }
        range("number of nics", self.nics.len() as u64, 0, 8)?;
        for nic in &self.nics {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            let good = (1..=15).contains(&nic.bridge.len()) && nic.bridge.chars().all(plain);
            // `.` and `..` are no interfaces, and folders where they are looked for.
            if !good || nic.bridge.starts_with('.') {
                return Err(DefinitionError::Bridge(nic.bridge.clone()));
            }
            for mbit in [nic.receive_mbit, nic.send_mbit].into_iter().flatten() {
                range("nic's limit in Mbit/s", u64::from(mbit), 1, 1_000_000)?;
            }
        }
        Ok(())
    }

    /// Keys of the VM file in which a machine of `other` is not one of this. What becomes of it after a
    /// failure of its host is not of the machine.
    pub fn differs(&self, other: &Self) -> Vec<&'static str> {
        let keys = [
            ("memory_mib", self.memory_mib != other.memory_mib),
            ("minimum_mib", self.minimum_mib.is_some() != other.minimum_mib.is_some()),
            ("vcpus", self.vcpus != other.vcpus),
            ("console", self.console != other.console),
            ("on_panic", self.on_panic != other.on_panic),
            ("on_watchdog", self.on_watchdog != other.on_watchdog),
            ("boot", self.boot != other.boot),
            ("firmware", self.firmware != other.firmware),
            ("disk", !same_disks(&self.disks, &other.disks)),
            ("nic", self.nics != other.nics),
        ];
        keys.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
    }

    /// The address of a card: what its definition says, or one that is the VM's own wherever it runs:
    /// locally administered (IEEE 802), of the last bytes of its id and the card's place.
    pub fn mac(&self, index: usize) -> MacAddress {
        let said = self.nics.get(index).and_then(|nic| nic.mac);
        said.unwrap_or_else(|| {
            let id = self.id.map_or([0; 16], |id| id.0);
            let place = u8::try_from(index).unwrap_or(u8::MAX);
            MacAddress([0x02, id[12], id[13], id[14], id[15], place])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "name = 'web-1'\nmemory_mib = 256\nvcpus = 2\n[boot]\nkernel = '/k'\n\
                        [[disk]]\nlocation = 'smb://a@h/vms/x.VHDX'\n";

    #[test]
    fn a_vm_file_round_trips() {
        let vm = VmDefinition::from_toml(TEXT).unwrap();
        assert_eq!(vm.disks[0].format, None);
        assert_eq!(VmDefinition::from_toml(&vm.to_toml()).unwrap(), vm);
    }

    #[test]
    fn an_id_is_32_digits() {
        let with = |id: &str| VmDefinition::from_toml(&format!("id = '{id}'\n{TEXT}"));
        let id = "00ff0000000000000000000000000a01";
        let vm = with(id).unwrap();
        assert_eq!(vm.id.map(|id| id.0[..2].to_vec()), Some(vec![0, 0xff]));
        assert_eq!(VmDefinition::from_toml(&vm.to_toml()).unwrap(), vm);
        assert!(vm.to_toml().contains(id));
        for bad in ["", "+0ff0000000000000000000000000a01", &id[1..], "x", &format!("{id}0")] {
            assert!(with(bad).unwrap_err().to_string().contains("32"), "{bad:?}");
        }
    }

    #[test]
    fn a_card_has_an_address_of_its_own_wherever_its_vm_runs() {
        let id = "id = '00ff0000000000000000000011223344'\n";
        let two = "[[nic]]\nbridge = 'br0'\n[[nic]]\nbridge = 'br1'\nmac = '52:54:00:0A:0b:0c'\nsend_mbit = 100\n";
        let vm = VmDefinition::from_toml(&format!("{id}{TEXT}{two}")).unwrap();
        assert_eq!(String::from(vm.mac(0)), "02:11:22:33:44:00");
        assert_eq!(String::from(vm.mac(1)), "52:54:00:0a:0b:0c");
        assert_eq!(VmDefinition::from_toml(&vm.to_toml()).unwrap(), vm);
        for (bad, why) in [
            ("bridge = '../x'", "bridge"),
            ("bridge = 'a/b'", "bridge"),
            ("bridge = 'much-too-long-a-name'", "bridge"),
            ("bridge = 'br0'\nmac = '01:00:00:00:00:00'", "of one card"),
            ("bridge = 'br0'\nmac = '02:00:00:00:00'", "pairs"),
            ("bridge = 'br0'\nmac = '02:00:00:00:00:+1'", "pairs"),
            ("bridge = 'br0'\nsend_mbit = 0", "Mbit/s"),
        ] {
            let error = VmDefinition::from_toml(&format!("{TEXT}[[nic]]\n{bad}\n")).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn a_vm_starts_from_a_kernel_or_by_a_firmware() {
        let head = "name = 'a'\nmemory_mib = 256\n";
        let read = |text: &str| VmDefinition::from_toml(&format!("{head}{text}"));
        let uefi = read("[firmware]\nkind = 'uefi'\nvars = 'my.fd'\n").unwrap();
        assert_eq!(VmDefinition::from_toml(&uefi.to_toml()).unwrap(), uefi);
        let firmware = uefi.beside(Path::new("/vms")).firmware.unwrap();
        assert_eq!(firmware.code(), Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd"));
        assert_eq!(firmware.vars(), Some(Path::new("/vms/my.fd")));
        let bios = read("[firmware]\nkind = 'bios'\ncode = '/b'\n").unwrap().firmware.unwrap();
        assert_eq!((bios.code(), bios.vars()), (Path::new("/b"), None));
        for (bad, why) in [
            ("", "[boot]"),
            ("[boot]\nkernel = '/k'\n[firmware]\nkind = 'bios'\n", "one of them"),
            ("[firmware]\nkind = 'bios'\nvars = '/v'\n", "no variables"),
            ("[firmware]\nkind = 'coreboot'\n", "coreboot"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        let small = "name = 'a'\nmemory_mib = 64\n[firmware]\nkind = 'uefi'\n";
        let error = VmDefinition::from_toml(small).unwrap_err();
        assert!(error.to_string().contains("must be 128"), "{error}");
    }

    #[test]
    fn unknown_keys_and_bad_values_are_named() {
        let unknown = VmDefinition::from_toml(&TEXT.replace("vcpus", "cpus")).unwrap_err();
        assert!(unknown.to_string().contains("cpus"), "{unknown}");
        assert!(unknown.to_string().contains("line 3"), "{unknown}");
        let none = VmDefinition::from_toml(&TEXT.replace("vcpus = 2", "vcpus = 0")).unwrap_err();
        assert!(none.to_string().contains("vcpus is 0"), "{none}");
        for bad in ["", ".x", "-x", "a/b", "a b", &"x".repeat(65)] {
            assert!(bad.parse::<VmName>().is_err(), "{bad:?}");
        }
    }
}
