//! Machines that start by a firmware as a host has them: the variables of a firmware of our own, which
//! counts in its flash memory, over a reset, a move, stop and start.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use host_api::{Request, VmDefinition, VmName, VmState};
use test_support::{
    host::{Console, HostProcess, PATIENCE},
    kvm,
};

/// The end of a firmware of 4 KiB: in protected mode it adds 1 to the first byte of its flash memory and
/// prints the digit. At 1 it has the machine reset; after that it waits for a byte and does so again, or
/// switches the machine off.
const FIRMWARE_END: &[u8] = &[
    0xfa, // cli
    0x2e, 0x66, 0x0f, 0x01, 0x16, 0x6a, 0xff, // lgdt cs:[0xff6a]
    0x0f, 0x20, 0xc0, // mov eax, cr0
    0x0c, 0x01, // or al, 1
    0x0f, 0x22, 0xc0, // mov cr0, eax
    0x66, 0xea, 0x18, 0xff, 0xff, 0xff, 0x08, 0x00, // jmp 8:0xffffff18
    0x66, 0xb8, 0x10, 0x00, // mov ax, 0x10
    0x8e, 0xd8, // mov ds, ax
    0xbe, 0x00, 0xd0, 0xff, 0xff, // mov esi, 0xffffd000    the flash memory, below the code
    0x8a, 0x06, // again: mov al, [esi]
    0xfe, 0xc0, // inc al
    0xc6, 0x06, 0x10, // mov [esi], 0x10    program: the next byte goes there
    0x88, 0x06, // mov [esi], al
    0xc6, 0x06, 0xff, // mov [esi], 0xff    the array again: by now it is durable
    0x8a, 0x06, // mov al, [esi]
    0x04, 0x30, // add al, 0x30
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0xb0, 0x0a, // mov al, 0xa
    0xee, // out dx, al
    0x80, 0x3e, 0x01, // cmp [esi], 0x1    at the first start of all
    0x75, 0x07, // jne wait
    0x66, 0xba, 0xf9, 0x0c, // mov dx, 0xcf9
    0xb0, 0x06, // mov al, 0x6    the machine is reset
    0xee, // out dx, al
    0x66, 0xba, 0xfd, 0x03, // wait: mov dx, 0x3fd
    0xec, // poll: in al, dx
    0xa8, 0x01, // test al, 0x1    until a byte has come
    0x74, 0xfb, // je poll
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec, // in al, dx
    0x3c, 0x78, // cmp al, 0x78    'x': count on
    0x74, 0xca, // je again
    0x3c, 0x71, // cmp al, 0x71    'q': off
    0x75, 0xea, // jne wait
    0x66, 0xba, 0x04, 0x06, // mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34, // mov ax, 0x3400
    0x66, 0xef, // out dx, ax
    0xf4, // hlt
    0xeb, 0xfd, // jmp hlt
    0x17, 0x00, 0x70, 0xff, 0xff, 0xff, // limit and base of the table
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // none
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xcf, 0x00, // code, flat
    0xff, 0xff, 0x00, 0x00, 0x00, 0x93, 0xcf, 0x00, // data, flat
];
/// Where that is in the 4 KiB, and where a CPU begins: 0xfffffff0, with a jump to it.
const CODE: usize = 0xf00;
const RESET: (usize, [u8; 3]) = (0xff0, [0xe9, 0x0d, 0xff]);

/// A folder with the firmware, and two hosts.
struct Setting {
    dir: tempfile::TempDir,
    a: HostProcess,
    b: HostProcess,
}

impl Setting {
    fn new() -> Option<Self> {
        kvm()?;
        let dir = tempfile::tempdir().unwrap();
        let mut code = vec![0; 4096];
        code[CODE..CODE + FIRMWARE_END.len()].copy_from_slice(FIRMWARE_END);
        code[RESET.0..RESET.0 + 3].copy_from_slice(&RESET.1);
        std::fs::write(dir.path().join("code.fd"), code).unwrap();
        let mut variables = vec![0xff; 8192];
        variables[0] = 0;
        std::fs::write(dir.path().join("vars.fd"), variables).unwrap();
        let host = |name| HostProcess::start(dir.path(), name, 0, &[]);
        let (a, b) = (host("a"), host("b"));
        Some(Self { dir, a, b })
    }

    fn definition(&self, name: &str) -> VmDefinition {
        let at = |name| self.dir.path().join(name);
        VmDefinition::from_toml(&format!(
            "name = '{name}'\nmemory_mib = 128\n[firmware]\nkind = 'uefi'\ncode = {:?}\nvars = {:?}\n",
            at("code.fd"),
            at("vars.fd")
        ))
        .unwrap()
    }

    /// The file with a VM's variables at a host.
    fn variables(&self, host: &str, name: &VmName) -> PathBuf {
        let vms = self.dir.path().join(host).join("state/vms");
        vms.join(name.as_str()).join("variables.fd")
    }
}

/// The console of a machine that has printed a digit, waiting for the machine if another is reset.
fn console_with(host: &HostProcess, name: &VmName, digit: &str) -> Console {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut seen = String::new();
        if let Some(mut console) = host.console(name) {
            while !console.text.contains(digit) && Instant::now() < deadline && console.read() {}
            if console.text.contains(digit) {
                return console;
            }
            seen = console.text;
        }
        assert!(Instant::now() < deadline, "no {digit:?} in {seen:?}, {:?}", host.state(name));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn first_byte(file: &Path) -> u8 {
    std::fs::read(file).unwrap()[0]
}

#[test]
fn variables_stay_over_reset_move_stop_and_start() {
    let Some(setting) = Setting::new() else { return };
    let (a, b) = (&setting.a, &setting.b);
    let definition = setting.definition("counts");
    let name = definition.name.clone();
    a.call(&Request::Create { definition }).unwrap();
    a.call(&Request::Start { name: name.clone() }).unwrap();
    // 1, and the reset that it asked for.
    drop(console_with(a, &name, "2\n"));
    assert_eq!(first_byte(&setting.variables("a", &name)), 2);

    a.move_to(&name, b).unwrap();
    let there = setting.variables("b", &name);
    let mut console = console_with(b, &name, "2\n");
    console.type_line("x");
    drop(console_with(b, &name, "3\n"));
    assert_eq!(first_byte(&there), 3);
    a.wait_state(&name, None);
    assert!(!setting.variables("a", &name).exists());

    console.type_line("q");
    b.wait_state(&name, Some(VmState::Off));
    b.call(&Request::Start { name: name.clone() }).unwrap();
    drop(console_with(b, &name, "4\n"));
    // It could be started, so the move is settled, and what was written for that alone is gone.
    let arriving = setting.dir.path().join("b/state/arriving");
    assert_eq!(std::fs::read_dir(arriving).unwrap().count(), 0);
    assert_eq!(first_byte(&there), 4);
    let stop = Request::Stop { name: name.clone(), force: true, timeout_s: Some(20) };
    b.call(&stop).unwrap();
    // Those of another firmware are refused by name.
    std::fs::write(&there, [0; 4096]).unwrap();
    let error = b.call(&Request::Start { name: name.clone() }).unwrap_err().to_string();
    assert!(error.contains("variables.fd") && error.contains("8192"), "{error}");
    b.call(&Request::Delete { name }).unwrap();
    assert!(!there.exists());
}

/// A host whose firmware is another takes no machine that has started by it, and that runs on.
#[test]
fn a_machine_goes_nowhere_where_its_firmware_is_another() {
    let Some(setting) = Setting::new() else { return };
    let (a, b) = (&setting.a, &setting.b);
    let definition = setting.definition("stays");
    let name = definition.name.clone();
    a.call(&Request::Create { definition }).unwrap();
    a.call(&Request::Start { name: name.clone() }).unwrap();
    drop(console_with(a, &name, "2\n"));
    let code = setting.dir.path().join("code.fd");
    let mut changed = std::fs::read(&code).unwrap();
    changed[0] ^= 1;
    std::fs::write(&code, changed).unwrap();
    let error = a.move_to(&name, b).unwrap_err().to_string();
    assert!(error.contains("code.fd") && error.contains("same version"), "{error}");
    assert_eq!(b.state(&name), None);
    let mut console = console_with(a, &name, "2\n");
    console.type_line("x");
    drop(console_with(a, &name, "3\n"));

    // One that is not there is named when a VM is to start by it.
    std::fs::remove_file(&code).unwrap();
    let error = a.call(&Request::Create { definition: setting.definition("none") }).unwrap_err();
    assert!(error.to_string().contains("code.fd"), "{error}");
}
