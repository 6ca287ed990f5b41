//! VMs that nobody writes a file for: made on a share with their disk and the settings of their first
//! start, changed, copied and renamed; and nothing left of those that did not come to be.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use bulkhead_tests::{
    host_cli::{Host, cli, share_url, shown, write_credentials},
    process::{foreign, ours},
    smbd::Smbd,
};
use serde_json::Value;

/// A server, a host that runs VMs with their disks on it, and files of an administrator.
struct Stage {
    host: Host,
    folder: PathBuf,
    server: Smbd,
}

impl Stage {
    fn set() -> Option<Self> {
        if !Path::new("/dev/kvm").exists() {
            bulkhead_tests::skip(bulkhead_tests::Need::Kvm.because("this machine has no /dev/kvm"));
            return None;
        }
        let server = Smbd::start("encryption = \"offered\"", "");
        let folder = server.scratch().to_path_buf();
        write_credentials(&folder).unwrap();
        let host = Host::start("host-1", &folder, &share_url(&server, "x.vhdx")).unwrap();
        fs::write(folder.join("user-data"), "#cloud-config\nhostname: web\n").unwrap();
        fs::write(folder.join("network"), "version: 2\n").unwrap();
        let kernel = shown(&folder.join("guest.elf"));
        let made = Command::new(ours("payload-guest")).args(["kernel", &kernel]).status();
        assert!(made.unwrap().success());
        Some(Self { host, folder, server })
    }

    fn file(&self, name: &str) -> String {
        shown(&self.folder.join(name))
    }

    fn url(&self, name: &str) -> String {
        share_url(&self.server, name)
    }

    /// Makes a VM of the payload guest with a disk of the share, and more.
    fn create(&self, name: &str, more: &[&str]) -> Result<Value, String> {
        let (disk, kernel) = (self.url(&format!("{name}.vhdx")), self.file("guest.elf"));
        let args = ["create", name, "--disk", &disk, "--memory", "64M", "--kernel", &kernel];
        self.host.ask_json(&[&args[..], more].concat())
    }

    fn show(&self, name: &str) -> Value {
        self.host.ask_json(&["show", name]).unwrap()
    }

    /// Files of the share.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.server.files()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }

    /// A file of a seed on the share, as mtools read it.
    fn seed(&self, image: &str, file: &str) -> Option<String> {
        let mtype = foreign("mtype")?;
        let image = self.server.files().join(image);
        let output = Command::new(mtype).arg("-i").arg(image).arg(format!("::{file}")).output();
        Some(String::from_utf8(output.unwrap().stdout).unwrap())
    }
}

#[test]
fn a_vm_is_made_of_an_image_with_its_first_settings_and_runs() {
    let Some(stage) = Stage::set() else { return };
    // An image in another format whose first sector says what it is.
    let (raw, image) = (stage.file("image.raw"), stage.file("image.qcow2"));
    let mut content = vec![0; 8 << 20];
    content[..6].copy_from_slice(b"golden");
    fs::write(&raw, &content).unwrap();
    cli(&["disk", "convert", &raw, &image]).unwrap();
    let (user, network) = (stage.file("user-data"), stage.file("network"));
    let cmdline = "span=16 seed=5 ws_mib=1 iops=500";
    let made = stage
        .create(
            "web-1",
            &[
                "--image",
                &image,
                "--size",
                "64M",
                "--cloud-init",
                &user,
                "--network-config",
                &network,
                "--cmdline",
                cmdline,
                "--start",
            ],
        )
        .unwrap();
    assert_eq!(made["made"].as_array().unwrap().len(), 2, "{made}");
    stage.host.ask(&["console", "web-1", "--replay", "--until", "up"]).unwrap();
    let shown = stage.show("web-1");
    assert_eq!(shown["summary"]["state"], "running", "{shown}");
    assert_eq!(shown["disks"][0]["size"], 64 << 20, "{shown}");
    assert_eq!(shown["definition"]["disk"][1]["read_only"], true, "{shown}");
    let id = shown["definition"]["id"].as_str().unwrap().to_owned();
    stage.host.ask(&["stop", "web-1"]).unwrap();
    if let Some(meta_data) = stage.seed("web-1-seed.img", "meta-data") {
        assert_eq!(meta_data, format!("instance-id: {id}\nlocal-hostname: web-1\n"));
        assert_eq!(stage.seed("web-1-seed.img", "network-config").unwrap(), "version: 2\n");
        assert!(stage.seed("web-1-seed.img", "user-data").unwrap().contains("hostname: web"));
    }

    // A copy has disks and an identity of its own, and what another guest was set up with it has not.
    stage.host.ask(&["clone", "web-1", "web-2", "--cloud-init", &user]).unwrap();
    let copy = stage.show("web-2");
    assert_ne!(copy["definition"]["id"], id.as_str());
    assert_eq!(copy["definition"]["disk"][0]["location"], stage.url("web-2.vhdx"), "{copy}");
    let files = ["web-1-seed.img", "web-1.vhdx", "web-2-seed.img", "web-2.vhdx"];
    assert_eq!(stage.files(), files);
    cli(&["disk", "check", &stage.url("web-2.vhdx")]).unwrap();
    stage.host.ask(&["clone", "web-1", "web-3"]).unwrap();
    assert_eq!(stage.show("web-3")["definition"]["disk"].as_array().unwrap().len(), 1);
    stage.host.ask(&["start", "web-2"]).unwrap();
    stage.host.ask(&["console", "web-2", "--replay", "--until", "up"]).unwrap();
    let error = stage.host.ask(&["clone", "web-2", "web-4"]).unwrap_err();
    assert!(error.contains("is running: stop it first"), "{error}");
}

#[test]
fn nothing_is_left_of_a_vm_that_is_not_made() {
    let Some(stage) = Stage::set() else { return };
    let user = stage.file("user-data");
    fs::write(stage.folder.join("wrong"), "hostname: web\n").unwrap();
    let (wrong, none) = (stage.file("wrong"), stage.file("none.qcow2"));
    let refused: [(&[&str], &str); 8] = [
        (&["--size", "64M", "--net", "no-such-bridge"], "no bridge"),
        (&["--size", "64M", "--cloud-init", &wrong], "#cloud-config"),
        (&["--size", "64M", "--cpus", "900"], "vcpus"),
        (&["--size", "64M", "--disk", "smb://other.example/vms/y.vhdx"], "other.example"),
        (&["--image", &none], "none.qcow2"),
        (&["--image", &user, "--image-format", "raw", "--size", "1"], "--size is less"),
        (&[], "must be there"),
        (&["--size", "64M", "--initrd", &none], "none.qcow2"),
    ];
    for (more, why) in refused {
        let error = stage.create("web-1", more).unwrap_err();
        assert!(error.contains(why), "{more:?}: {error}");
        assert_eq!(stage.files(), [""; 0], "{more:?}: {error}");
    }
    // The disk is made, and then there is somebody's file where the seed is to be: that stays.
    fs::write(stage.server.files().join("web-1-seed.img"), "somebody's").unwrap();
    let error = stage.create("web-1", &["--size", "64M", "--cloud-init", &user]).unwrap_err();
    assert!(error.contains("nothing is left of it"), "{error}");
    assert_eq!(stage.files(), ["web-1-seed.img"]);
    assert_eq!(stage.host.ask_json(&["list"]).unwrap().as_array().unwrap().len(), 0);
    // A name that is taken is refused before anything is made.
    stage.create("web-2", &["--size", "64M"]).unwrap();
    let error = stage.create("web-2", &["--size", "64M"]).unwrap_err();
    assert!(error.contains("there is a VM web-2 already"), "{error}");
    assert_eq!(stage.files(), ["web-1-seed.img", "web-2.vhdx"]);
}

#[test]
fn a_vm_is_changed_and_says_what_waits_for_its_next_start() {
    let Some(stage) = Stage::set() else { return };
    let cmdline = "span=16 seed=5 ws_mib=1 iops=500";
    stage.create("a", &["--size", "64M", "--cmdline", cmdline, "--start"]).unwrap();
    let edit = |args: &[&str]| stage.host.ask_json(&[&["edit", "a"], args].concat());
    // What becomes of it after a failure of its host is not of the machine.
    let done = edit(&["--after-host-failure", "leave-off"]).unwrap();
    assert_eq!(done["waiting"].as_array().unwrap().len(), 0, "{done}");
    let done = edit(&["--memory", "96M", "--cpus", "2"]).unwrap();
    assert_eq!(done["waiting"].to_string(), r#"["memory_mib","vcpus"]"#);
    let error = stage.host.ask(&["move", "a", "--to", "127.0.0.1:1"]).unwrap_err();
    assert!(error.contains("wait for its next start (memory_mib, vcpus)"), "{error}");
    assert!(edit(&["--remove-disk", "x"]).unwrap_err().contains("no disk x"));
    assert!(edit(&["--cpus", "65"]).unwrap_err().contains("vcpus is 65"));
    let error = stage.host.ask(&["rename", "a", "b"]).unwrap_err();
    assert!(error.contains("VM a is running"), "{error}");
    stage.host.ask(&["stop", "a"]).unwrap();
    stage.host.ask(&["start", "a"]).unwrap();
    let shown = stage.show("a");
    assert_eq!(shown["waiting"], Value::Null, "{shown}");
    assert_eq!(shown["definition"]["memory_mib"], 96, "{shown}");
    stage.host.ask(&["stop", "a"]).unwrap();
    stage.host.ask(&["rename", "a", "b"]).unwrap();
    assert!(stage.host.ask(&["show", "a"]).unwrap_err().contains("no VM a"));
    stage.host.ask(&["start", "b"]).unwrap();
    stage.host.ask(&["console", "b", "--replay", "--until", "up"]).unwrap();
    assert_eq!(stage.show("b")["definition"]["after_host_failure"], "leave-off");
}

/// A guest without an agent is not frozen, and that is said; a command runs meanwhile all the same, but
/// not where its guest must be quiet.
#[test]
fn a_command_runs_while_a_vm_is_held_quiet() {
    let Some(stage) = Stage::set() else { return };
    let cmdline = "span=16 seed=5 ws_mib=1 iops=500";
    stage.create("a", &["--size", "64M", "--cmdline", cmdline, "--start"]).unwrap();
    stage.host.ask(&["console", "a", "--replay", "--until", "up"]).unwrap();
    let socket = shown(&stage.folder.join("host-1/control.sock"));
    let mark = stage.file("mark");
    let quiesce = |more: &[&str]| {
        cli(&[&["vm", "--json", "--socket", &socket, "quiesce", "a"], more].concat())
    };
    let done: Value = serde_json::from_str(&quiesce(&["--", "touch", &mark]).unwrap()).unwrap();
    assert_eq!((&done["consistency"], &done["status"]), (&"crash".into(), &0.into()), "{done}");
    assert!(done["reason"].as_str().unwrap().contains("no program in the guest"), "{done}");
    fs::remove_file(&mark).unwrap();
    let error = quiesce(&["--require", "--", "touch", &mark]).unwrap_err();
    assert!(error.contains("the command is not run"), "{error}");
    assert!(!Path::new(&mark).exists());
    assert!(quiesce(&["--", "false"]).unwrap_err().contains("the command ended with"));
    let error = quiesce(&["--limit", "1", "--", "sleep", "3"]).unwrap_err();
    assert!(error.contains("held quiet for 1 s"), "{error}");
    // It is let go of by all of them.
    stage.host.ask(&["stop", "a"]).unwrap();
}
