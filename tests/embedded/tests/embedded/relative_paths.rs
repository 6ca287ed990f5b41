//! A relative path in a configuration is taken from the folder of that file, wherever the program was
//! started.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use host_api::VmDefinition;
use hyperv_host::config::Config as HostConfig;
use smb_server::config::Config as ServerConfig;
use smbd::iscsi::config::IscsiConfig;

/// A keytab with one key of AES-256, of cifs/s.example@EXAMPLE.
fn keytab() -> Vec<u8> {
    let mut entry = vec![0, 2];
    for text in ["EXAMPLE", "cifs", "s.example"] {
        entry.extend_from_slice(&(text.len() as u16).to_be_bytes());
        entry.extend_from_slice(text.as_bytes());
    }
    // Kind of name, time, version, kind of key, its length.
    entry.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 18, 0, 32]);
    entry.extend_from_slice(&[7; 32]);
    [&[5, 2], (entry.len() as u32).to_be_bytes().as_slice(), &entry].concat()
}

/// What is found at each path of smbd's configuration, by its key. A secret counts as found where it
/// was read.
fn server(file: &Path) -> Vec<(&'static str, PathBuf)> {
    let text = "[server]\nlisten = ['127.0.0.1:0']\nstate_dir = 'state'\nusers_file = 'users'\n\
        [kerberos]\nrealm = 'EXAMPLE'\nkeytab = 'keytab'\n\
        [[user]]\nname = 'a'\npassword_file = 'password'\n\
        [[share]]\nname = 's'\npath = 'share'\n\
        [iscsi]\nlisten = ['127.0.0.1:0']\n\
        discovery_chap = { user = 'd', secret_file = 'discovery' }\n\
        [[target]]\nname = 'iqn.2024-01.example:t'\n\
        chap = [{ user = 'u', secret_file = 'chap' }]\n\
        mutual_chap = { user = 't', secret_file = 'mutual' }\n\
        [[target.lun]]\nnumber = 0\npath = 'lun.raw'\n";
    fs::write(file, text).unwrap();
    let config = ServerConfig::load(file).unwrap();
    let iscsi = IscsiConfig::load(file).unwrap();
    let secrets: Vec<PathBuf> = config.secrets.into_iter().chain(iscsi.secrets.clone()).collect();
    let secret = |name: &str| {
        let found = secrets.iter().find(|path| path.file_name().is_some_and(|is| is == name));
        found.unwrap_or_else(|| panic!("{name} was not read")).clone()
    };
    vec![
        ("state", config.state_dir),
        ("users", secret("users")),
        ("keytab", secret("keytab")),
        ("password", secret("password")),
        ("share", config.shares["S"].path.clone()),
        ("discovery", secret("discovery")),
        ("chap", secret("chap")),
        ("mutual", secret("mutual")),
        ("lun.raw", iscsi.paths().next().unwrap().to_owned()),
    ]
}

/// The same of the VM host's.
fn host(file: &Path) -> Vec<(&'static str, PathBuf)> {
    let text = "[host]\nstate_dir = 'state'\ncontrol_socket = 'socket'\n\
        [migration]\nlisten = '127.0.0.1:0'\nca = 'ca'\ncertificate = 'cert'\nkey = 'key'\n\
        [[storage.server]]\nhost = 'h'\ncredentials = 'credentials'\n";
    fs::write(file, text).unwrap();
    let config = HostConfig::load(file).unwrap();
    let migration = config.migration.unwrap();
    vec![
        ("state", config.host.state_dir),
        ("socket", config.host.control_socket),
        ("ca", migration.ca),
        ("cert", migration.certificate),
        ("key", migration.key),
        ("credentials", config.storage.servers[0].credentials.clone().unwrap()),
    ]
}

/// The same of a VM file.
fn vm(file: &Path) -> Vec<(&'static str, PathBuf)> {
    let text = "name = 'v'\nmemory_mib = 64\n[boot]\nkernel = 'kernel'\ninitrd = 'initrd'\n\
        [[disk]]\nlocation = 'disk.raw'\n";
    let vm = VmDefinition::from_toml(text).unwrap().beside(file.parent().unwrap());
    let boot = vm.boot.unwrap();
    vec![
        ("kernel", boot.kernel),
        ("initrd", boot.initrd.unwrap()),
        ("disk.raw", vm.disks[0].location.clone().into()),
    ]
}

#[test]
fn relative_paths_are_taken_from_the_folder_of_their_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("share")).unwrap();
    let users = format!("[[user]]\nname = 'b'\nnt_hash = '{}'\n", "0".repeat(32));
    for (name, content) in [
        ("config.toml", &b""[..]),
        ("users", users.as_bytes()),
        ("keytab", &keytab()),
        ("password", b"hunter2"),
        ("discovery", b"secret-of-discovery"),
        ("chap", b"secret-of-the-user"),
        ("mutual", b"secret-of-the-target"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    type Read = fn(&Path) -> Vec<(&'static str, PathBuf)>;
    for read in [server as Read, host, vm] {
        for (name, path) in read(&folder.path().join("config.toml")) {
            assert_eq!(path, folder.path().join(name));
        }
    }
}

/// Absolute paths and addresses are what they are.
#[test]
fn other_paths_stay_as_they_are() {
    let text = "name = 'v'\nmemory_mib = 64\n[boot]\nkernel = '/k'\n\
        [[disk]]\nlocation = '/d.raw'\n[[disk]]\nlocation = 'smb://h/s/d.vhdx'\n\
        [[disk]]\nlocation = 'iscsi://h/iqn.a/0'\nformat = 'raw'\n";
    let vm = VmDefinition::from_toml(text).unwrap();
    assert_eq!(vm.clone().beside(Path::new("/folder")), vm);
    let text = "[host]\nstate_dir = '/s'\n";
    let config = HostConfig::parse(text, Path::new("/folder/host.toml")).unwrap();
    assert_eq!(config.host.state_dir, Path::new("/s"));
    assert_eq!(config.host.control_socket, Path::new(host_api::DEFAULT_SOCKET));
}
