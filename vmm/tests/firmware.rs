//! A machine that starts by a firmware: SeaBIOS of Debian's package boots a disk, here where all of its
//! code is emulated instruction by instruction.

mod support;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use block_io::{Disk, LocalFile, LocalOptions, RawDisk};
use host_api::VmDefinition;
use test_support::{Need, skip};
use vm_memory::{Bytes, GuestAddress};
use vmm::{DRAIN_LIMIT, DiskShape, Vm, platform::lifecycle::EndReason};

/// A boot sector. By the BIOS alone it reads the next sector, prints what that says, waits for a key,
/// prints that, and writes the sector after the next; then it switches the machine off.
const BOOT_SECTOR: &[u8] = &[
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, // mov ds, ax
    0x8e, 0xc0, // mov es, ax
    0x88, 0x16, 0x00, 0x80, // mov [0x8000], dl     the disk
    0xb8, 0x01, 0x02, // mov ax, 0x0201     read one sector
    0xbb, 0x00, 0x7e, // mov bx, 0x7e00     to es:bx
    0xb9, 0x02, 0x00, // mov cx, 0x0002     the second of the first track
    0x30, 0xf6, // xor dh, dh               of the first head
    0xcd, 0x13, // int 0x13
    0xbe, 0x00, 0x7e, // mov si, 0x7e00
    0xac, // next: lodsb
    0x84, 0xc0, // test al, al
    0x74, 0x09, // jz key
    0xbb, 0x07, 0x00, // mov bx, 7
    0xb4, 0x0e, // mov ah, 0x0e             print al
    0xcd, 0x10, // int 0x10
    0xeb, 0xf2, // jmp next
    0x30, 0xe4, // key: xor ah, ah          wait for a key
    0xcd, 0x16, // int 0x16
    0xbb, 0x07, 0x00, // mov bx, 7
    0xb4, 0x0e, // mov ah, 0x0e
    0xcd, 0x10, // int 0x10
    0xb8, 0x2e,
    0x0e, // mov ax, 0x0e2e     and a dot: the last character stays with the BIOS for a while
    0xcd, 0x10, // int 0x10
    0xb8, 0x01, 0x03, // mov ax, 0x0301     write one sector
    0xbb, 0x00, 0x7e, // mov bx, 0x7e00
    0xb9, 0x03, 0x00, // mov cx, 0x0003
    0x8b, 0x16, 0x00, 0x80, // mov dx, [0x8000]
    0x30, 0xf6, // xor dh, dh
    0xcd, 0x13, // int 0x13
    0xba, 0x04, 0x06, // mov dx, 0x604
    0xb8, 0x00, 0x34, // mov ax, 0x3400     S5
    0xef, // out dx, ax
    0xf4, // hlt
    0xeb, 0xfd, // jmp -1
];

const SECOND: &[u8] = b"the second sector was read\r\n";

struct Machine {
    vm: Vm,
    runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
}

impl Machine {
    /// A machine with SeaBIOS and a disk that boots.
    fn new() -> Option<Self> {
        let kvm = support::kvm()?;
        let bios = host_api::FirmwareKind::Bios.default_code();
        if !bios.exists() {
            skip(Need::Programs.because("SeaBIOS is not there (package seabios)"));
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut content = vec![0; 1 << 20];
        content[..BOOT_SECTOR.len()].copy_from_slice(BOOT_SECTOR);
        content[510..512].copy_from_slice(&[0x55, 0xaa]);
        content[512..512 + SECOND.len()].copy_from_slice(SECOND);
        let image = dir.path().join("disk.raw");
        std::fs::write(&image, content).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let vm = build(&kvm, &image, &runtime);
        vm.load().unwrap();
        Some(Self { vm, runtime, dir })
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("disk.raw")
    }

    /// Waits until the serial port has shown a text.
    fn wait_for(&self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(120);
        let (mut at, mut seen) = (0, String::new());
        while !seen.contains(text) {
            let read = self.vm.console().read_from(at, Duration::from_millis(200));
            if let Some((bytes, next)) = read {
                at = next;
                seen.push_str(&String::from_utf8_lossy(&bytes));
            }
            let ended = self.vm.control().ended();
            assert!(Instant::now() < deadline && ended.is_none(), "{ended:?}\n{}", self.said());
        }
    }

    /// What firmware and disk have said.
    fn said(&self) -> String {
        let log = self.vm.firmware().unwrap().log().tail();
        let text = self.vm.console().tail();
        format!("{}\n---\n{}", String::from_utf8_lossy(&log), String::from_utf8_lossy(&text))
    }

    fn close_disks(&self) {
        for (_, disk) in self.vm.detach_disks() {
            self.runtime.block_on(disk.close()).unwrap();
        }
    }

    /// Types the key for which the boot sector waits, and looks at what it has done.
    fn finish(&self) {
        self.vm.type_in(b"k");
        let end = self.vm.control().wait_end(Duration::from_secs(120));
        self.vm.stop(DRAIN_LIMIT);
        let said = self.said();
        assert_eq!(end, Some(EndReason::PowerOff), "{said}");
        assert!(said.contains("k."), "{said}");
        self.close_disks();
        let content = std::fs::read(self.image()).unwrap();
        assert_eq!(&content[1024..1024 + SECOND.len()], SECOND);
    }
}

fn build(kvm: &kvm_ioctls::Kvm, image: &Path, runtime: &tokio::runtime::Runtime) -> Vm {
    let definition = VmDefinition::from_toml(&format!(
        "name = 'bios'\nmemory_mib = 64\nvcpus = 2\n[firmware]\nkind = 'bios'\n[[disk]]\nlocation = {image:?}\n"
    ))
    .unwrap();
    let disk: Arc<dyn Disk> = runtime.block_on(async {
        let file = LocalFile::open(image, &LocalOptions::read_write()).unwrap();
        Arc::new(RawDisk::open(Arc::new(file), 512).await.unwrap())
    });
    let shape = DiskShape { geometry: disk.geometry(), read_only: false };
    let handle = runtime.handle().clone();
    let vm = Vm::build(kvm, &definition, &[shape], None, Vec::new(), handle).unwrap();
    vm.attach_disks(vec![disk]).unwrap();
    vm
}

#[test]
fn a_bios_boots_a_disk_and_serves_what_it_boots() {
    let Some(machine) = Machine::new() else { return };
    machine.vm.resume();
    machine.wait_for("the second sector was read");
    let said = machine.said();
    // It knows the machine by its chipset, has linked the ACPI tables, and has started all vCPUs.
    for line in [
        "SeaBIOS (version",
        "Running on QEMU (i440fx)",
        "Found 2 cpu(s) max supported 2 cpu(s)",
        "table(50434146)",
        "using modern (1.0) virtio mode",
        "Booting from Hard Disk",
    ] {
        assert!(said.contains(line), "no {line:?}:\n{said}");
    }
    machine.finish();
}

/// A machine that waits in its BIOS goes on in another one that is given its memory and state.
#[test]
fn a_machine_in_its_bios_goes_on_elsewhere() {
    let Some(mut machine) = Machine::new() else { return };
    machine.vm.resume();
    machine.wait_for("the second sector was read");
    machine.vm.pause(DRAIN_LIMIT).unwrap();
    let state = serde_json::to_string(&machine.vm.save().unwrap()).unwrap();
    machine.close_disks();
    let kvm = support::kvm().unwrap();
    let other = build(&kvm, &machine.image(), &machine.runtime);
    other.prepare_for(&machine.vm.needs()).unwrap();
    let mut page = vec![0; 4096];
    for at in (0..64u64 << 20).step_by(page.len()) {
        machine.vm.ram().read_slice(&mut page, GuestAddress(at)).unwrap();
        other.ram().write_slice(&page, GuestAddress(at)).unwrap();
    }
    other.restore(&serde_json::from_str(&state).unwrap()).unwrap();
    // A firmware that is not the same is known before anything is moved.
    let mut strange = serde_json::to_value(machine.vm.needs()).unwrap();
    strange["firmware"]["digest"] = 1.into();
    let error = other.prepare_for(&serde_json::from_value(strange).unwrap()).unwrap_err();
    assert!(error.to_string().contains("bios-256k.bin"), "{error}");
    let left = std::mem::replace(&mut machine.vm, other);
    left.stop(DRAIN_LIMIT);
    drop(left);
    machine.vm.resume();
    machine.finish();
}
