//! A machine that starts by a firmware: SeaBIOS of Debian's package boots a disk, here where all of its
//! code is emulated instruction by instruction.

mod support;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use block_io::{Disk, LocalFile, LocalOptions, RawDisk};
use host_api::VmDefinition;
use test_support::require;
use vmm::{DRAIN_LIMIT, DiskShape, Vm, platform::lifecycle::EndReason};

/// A boot sector: reads the next sector by the BIOS, prints what it says to the serial port, and
/// switches the machine off.
const BOOT_SECTOR: &[u8] = &[
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, // mov ds, ax
    0x8e, 0xc0, // mov es, ax
    0xb8, 0x01, 0x02, // mov ax, 0x0201     read one sector
    0xbb, 0x00, 0x7e, // mov bx, 0x7e00     to es:bx
    0xb9, 0x02, 0x00, // mov cx, 0x0002     the second of the first track
    0x30, 0xf6, // xor dh, dh               of the first head; dl is the disk
    0xcd, 0x13, // int 0x13
    0xbe, 0x00, 0x7e, // mov si, 0x7e00
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xac, // next: lodsb
    0x84, 0xc0, // test al, al
    0x74, 0x03, // jz off
    0xee, // out dx, al
    0xeb, 0xf8, // jmp next
    0xba, 0x04, 0x06, // off: mov dx, 0x604
    0xb8, 0x00, 0x34, // mov ax, 0x3400     S5
    0xef, // out dx, ax
    0xf4, // hlt
    0xeb, 0xfd, // jmp -1
];

struct Machine {
    vm: Vm,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

/// A machine with SeaBIOS and a disk that boots.
fn machine() -> Option<Machine> {
    let kvm = support::kvm()?;
    let bios = host_api::FirmwareKind::Bios.default_code();
    if !require::present("programs", bios.exists(), "SeaBIOS (package seabios)") {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    let mut content = vec![0; 1 << 20];
    content[..BOOT_SECTOR.len()].copy_from_slice(BOOT_SECTOR);
    content[510..512].copy_from_slice(&[0x55, 0xaa]);
    content[512..540].copy_from_slice(b"the second sector was read\r\n");
    std::fs::write(&image, content).unwrap();
    let definition = definition(&image);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let disk: Arc<dyn Disk> = runtime.block_on(async {
        let file = LocalFile::open(&image, &LocalOptions::read_write()).unwrap();
        Arc::new(RawDisk::open(Arc::new(file), 512).await.unwrap())
    });
    let shape = DiskShape { geometry: disk.geometry(), read_only: false };
    let vm =
        Vm::build(&kvm, &definition, &[shape], None, Vec::new(), runtime.handle().clone()).unwrap();
    vm.load().unwrap();
    vm.attach_disks(vec![disk]).unwrap();
    Some(Machine { vm, runtime, _dir: dir })
}

fn definition(image: &Path) -> VmDefinition {
    VmDefinition::from_toml(&format!(
        "name = 'bios'\nmemory_mib = 64\n[firmware]\nkind = 'bios'\n[[disk]]\nlocation = {image:?}\n"
    ))
    .unwrap()
}

#[test]
fn a_bios_boots_a_disk() {
    let Some(machine) = machine() else { return };
    let begin = Instant::now();
    machine.vm.resume();
    let end = machine.vm.control().wait_end(Duration::from_secs(120));
    machine.vm.stop(DRAIN_LIMIT);
    let log = machine.vm.firmware().unwrap().log().tail();
    let log = String::from_utf8_lossy(&log);
    let text = machine.vm.console().tail();
    let text = String::from_utf8_lossy(&text);
    println!("{:?} after {:?}\n{log}\n---\n{text}", end, begin.elapsed());
    assert_eq!(end, Some(EndReason::PowerOff), "{log}\n{text}");
    assert!(log.contains("SeaBIOS (version"), "{log}");
    assert!(text.contains("Booting from Hard Disk"), "{text}");
    assert!(text.contains("the second sector was read\r\n"), "{text}");
    drop(machine.runtime);
}
