//! What the server gives up before it serves anyone: another user's rights, folders it has
//! nothing to do with, and system calls that a file server never makes.
//!
//! ```text
//!  root ─► bind ports, make the state folder ─► become_user ─► confine ─► threads, clients
//!                                               (no way back)  Landlock: shares, state, reading
//!                                                              seccomp:  no exec, mount, ptrace …
//! ```
//!
//! All of it is done while the process has one thread, so every later thread has it. Where the
//! kernel has no Landlock the folders are open as before; everything else holds.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, path_beneath_rules,
};
use rustix::{
    process::{Gid, Uid},
    thread::{self as system, CapabilitySet, CapabilitySets},
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, sock_filter};
use smb_server::config::Config;

use crate::iscsi::config::IscsiConfig;

/// Why the server does not go on.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The system has no such user.
    #[error("user {0:?}: the system has no such user")]
    NoUser(String),
    /// Only root can become someone else.
    #[error("user {0:?}: only root can become another user; start smbd as that user instead")]
    NotRoot(String),
    /// The system refused.
    #[error("{what}")]
    System {
        /// What was being done.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The ruleset of folders.
    #[error("cannot confine the server to its folders")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter of system calls.
    #[error("cannot filter system calls")]
    Seccomp(#[from] seccompiler::Error),
    /// The filter of system calls does not compile.
    #[error("cannot build the filter of system calls")]
    Filter(#[from] seccompiler::BackendError),
}

fn system<T>(what: &str, result: Result<T, impl Into<io::Error>>) -> Result<T, SandboxError> {
    result.map_err(|e| SandboxError::System { what: what.to_owned(), source: e.into() })
}

/// A user of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl User {
    /// Looks a name up in the text of /etc/passwd and /etc/group.
    fn find(name: &str, passwd: &str, group: &str) -> Option<Self> {
        let (uid, gid) = passwd.lines().find_map(|line| {
            let fields: Vec<_> = line.split(':').collect();
            let found = fields.first() == Some(&name) && !name.is_empty();
            found.then(|| Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?)))?
        })?;
        let mut groups = vec![gid];
        for line in group.lines() {
            let fields: Vec<_> = line.split(':').collect();
            let member = fields.get(3).is_some_and(|list| list.split(',').any(|m| m == name));
            if let Some(gid) = fields.get(2).and_then(|text| text.parse().ok()).filter(|_| member)
                && !groups.contains(&gid)
            {
                groups.push(gid);
            }
        }
        Some(Self { uid, gid, groups })
    }
}

/// What a server that stays root keeps of root's privileges: the files of others, and giving new
/// ones to a share's group. Without CAP_FSETID the kernel clears the set-user-ID and set-group-ID
/// bits of a file whose content a client changes.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER);

/// Gives up root's privileges but for [`KEPT`], and on Btrfs that of removing a snapshot, which is
/// an administrator's there.
fn give_up_privileges(config: &Config) -> Result<(), SandboxError> {
    const BTRFS: u64 = 0x9123_683e;
    let on_btrfs = |share: &std::sync::Arc<smb_server::config::Share>| {
        rustix::fs::statfs(&share.path).is_ok_and(|file_system| file_system.f_type as u64 == BTRFS)
    };
    let mut kept = KEPT;
    if config.shares.values().any(on_btrfs) {
        kept |= CapabilitySet::SYS_ADMIN;
    }
    tracing::info!(
        "the server stays root, with few of its privileges; server.user names a user to become"
    );
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    system("giving up privileges", system::set_capabilities(None, sets))
}

/// Gives up every privilege of a process that is not root: its ports are bound, and its addresses are
/// there.
///
/// # Errors
/// What the system says.
pub fn give_up_capabilities() -> Result<(), SandboxError> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    system("giving up privileges", system::set_capabilities(None, sets))
}

/// Becomes the user that the configuration names, for good; the state folder is made for it and
/// given to it. Root without a user to become gives up most of its privileges.
///
/// # Errors
/// If there is no such user, or the process may not.
pub fn become_user(config: &Config) -> Result<(), SandboxError> {
    let Some(name) = &config.user else {
        return match rustix::process::geteuid().is_root() {
            true => give_up_privileges(config),
            false => Ok(()),
        };
    };
    let passwd = system("reading /etc/passwd", fs::read_to_string("/etc/passwd"))?;
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    let user = User::find(name, &passwd, &group);
    let user = user.ok_or_else(|| SandboxError::NoUser(name.clone()))?;
    let now = rustix::process::geteuid();
    if now.as_raw() == user.uid {
        return Ok(());
    }
    if !now.is_root() {
        return Err(SandboxError::NotRoot(name.clone()));
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let folder = &config.state_dir;
    system("making the state folder", fs::create_dir_all(folder))?;
    give(folder, uid, gid)?;
    let groups: Vec<_> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    // One thread is all there is: what it gives up the process has given up.
    system("giving up groups", system::set_thread_groups(&groups))?;
    system("giving up the group", system::set_thread_res_gid(gid, gid, gid))?;
    system("giving up the user", system::set_thread_res_uid(uid, uid, uid))?;
    Ok(())
}

/// Gives the state folder and what lies right in it to a user; links are not followed.
fn give(folder: &Path, uid: Uid, gid: Gid) -> Result<(), SandboxError> {
    let own = |path: &Path| {
        use rustix::fs::{AtFlags, CWD, chownat};
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        system("giving the state folder away", chownat(CWD, path, Some(uid), Some(gid), flags))
    };
    own(folder)?;
    for entry in system("reading the state folder", fs::read_dir(folder))? {
        own(&system("reading the state folder", entry)?.path())?;
    }
    Ok(())
}

/// What the kernel holds the server to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confined {
    /// It reaches its folders only.
    pub folders: bool,
}

/// Confines this thread, and all that it starts, to the folders of the configuration and to the
/// system calls of a file server. `file` is where the configuration was read, `more` are folders in which
/// shares and images may be made later, `connects` the ports that it connects to, beside those of name
/// servers of targets.
///
/// # Errors
/// If the kernel refuses; a kernel without Landlock is no error.
pub fn confine(
    config: &Config,
    iscsi: &IscsiConfig,
    (file, more): (&Path, &[PathBuf]),
    connects: &[u16],
) -> Result<Confined, SandboxError> {
    system("giving up new privileges", system::set_no_new_privs(true))?;
    let abi = ABI::V5;
    let made = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock | AccessFs::MakeFifo;
    let all: BitFlags<AccessFs> = AccessFs::from_all(abi);
    let inside = all & !(made | AccessFs::Execute);
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        // Its ports are bound, and it connects to name servers of targets and to etcd alone.
        .handle_access(AccessNet::from_all(abi))?
        .create()?
        .add_rules(
            name_servers(iscsi)
                .chain(connects.iter().copied())
                .map(|port| NetPort::new(port, AccessNet::ConnectTcp))
                .map(Ok::<_, landlock::RulesetError>),
        )?
        .add_rules(path_beneath_rules(shares(config), inside))?
        .add_rules(path_beneath_rules(images(iscsi), inside))?
        .add_rules(path_beneath_rules(more, inside))?
        // The admin socket is made there.
        .add_rules(path_beneath_rules([&config.state_dir], inside | AccessFs::MakeSock))?
        .add_rules(path_beneath_rules(readable(config, file), AccessFs::from_read(abi)))?
        .add_rules(path_beneath_rules(&iscsi.secrets, AccessFs::from_read(abi)))?
        .restrict_self()?;
    seccompiler::apply_filter(&filter()?)?;
    Ok(Confined { folders: status.ruleset != RulesetStatus::NotEnforced })
}

/// The ports of iSNS servers.
fn name_servers(iscsi: &IscsiConfig) -> impl Iterator<Item = u16> {
    iscsi.isns.iter().filter_map(|server| server.rsplit_once(':')?.1.parse().ok())
}

fn shares(config: &Config) -> Vec<PathBuf> {
    config.shares.values().map(|share| share.path.clone()).collect()
}

/// What LUNs are made of: devices, and the folders of images, where their parents and the tracks of
/// their changes are.
fn images(iscsi: &IscsiConfig) -> Vec<PathBuf> {
    let device = |path: &Path| {
        use std::os::unix::fs::FileTypeExt;
        fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
    };
    let place = |path: &Path| match path.parent() {
        // A path without a folder is in the folder that the server runs in.
        Some(folder) if folder.as_os_str().is_empty() => PathBuf::from("."),
        Some(folder) if !device(path) => folder.to_owned(),
        _ => path.to_owned(),
    };
    iscsi.paths().map(place).collect()
}

/// What is read while the server runs: its configuration with the files beside it, the names of
/// users and groups, interfaces.
fn readable(config: &Config, file: &Path) -> Vec<PathBuf> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut paths = vec![folder.unwrap_or(Path::new(".")).to_owned()];
    paths.extend(["/etc", "/sys/class/net", "/sys/devices", "/proc/self"].map(PathBuf::from));
    paths.extend(crate::why::machine::readable());
    paths.extend(config.secrets.iter().cloned());
    paths
}

/// The share or LUN of a new configuration whose place lies outside of those that the server was
/// confined to.
pub fn outside(confined_to: &[PathBuf], config: &Config, iscsi: &IscsiConfig) -> Option<String> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let lies_outside = |path: &Path| {
        let path = real(path);
        !confined_to.iter().any(|folder| path.starts_with(folder))
    };
    let share = config.shares.values().find(|share| lies_outside(&share.path));
    let lun = iscsi.paths().find(|path| lies_outside(path));
    share
        .map(|share| format!("share {}", share.name))
        .or_else(|| Some(format!("lun {}", lun?.display())))
}

/// The places that [`confine`] opens for writing, as the system names them.
pub fn folders(config: &Config, iscsi: &IscsiConfig, more: &[PathBuf]) -> Vec<PathBuf> {
    let all = shares(config).into_iter().chain(images(iscsi)).chain(more.iter().cloned());
    all.filter_map(|path| path.canonicalize().ok()).collect()
}

/// The newest system call that is known here; from 424 on they have one number on all machines.
const NEWEST: i64 = libc::SYS_mseal;

/// The beginning of a filter, behind the three instructions that end a process which calls as a
/// machine of another kind: what is newer than all that is known here is not there (ENOSYS), and
/// neither are the calls of x32, which have bit 30 set beside the number of the same call.
fn known() -> [sock_filter; 3] {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const IF_GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    // `nr` is the first field of `seccomp_data`; a signed number below zero is a large one here.
    let one = |code: u32, jf, k| sock_filter { code: code as u16, jt: 0, jf, k };
    let absent = u32::from(SeccompAction::Errno(libc::ENOSYS.cast_unsigned()));
    [one(LOAD, 0, 0), one(IF_GREATER, 1, NEWEST as u32), one(RETURN, 0, absent)]
}

/// A filter that refuses (EPERM) what no file server does, and what nobody knew when it was made.
fn filter() -> Result<BpfProgram, SandboxError> {
    let mut refused = vec![
        // Other programs.
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_process_madvise,
        libc::SYS_kcmp,
        libc::SYS_pidfd_getfd,
        // Another view of the system.
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        libc::SYS_unshare,
        libc::SYS_setns,
        // Files without their paths.
        libc::SYS_open_by_handle_at,
        libc::SYS_fanotify_init,
        // The machine.
        libc::SYS_reboot,
        libc::SYS_kexec_load,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_acct,
        libc::SYS_syslog,
        libc::SYS_quotactl,
        libc::SYS_quotactl_fd,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_clock_adjtime,
        libc::SYS_adjtimex,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_vhangup,
        // The kernel's insides.
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_personality,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        // Someone else's rights.
        libc::SYS_setuid,
        libc::SYS_setreuid,
        libc::SYS_setresuid,
        libc::SYS_setfsuid,
        libc::SYS_setgid,
        libc::SYS_setregid,
        libc::SYS_setresgid,
        libc::SYS_setfsgid,
        libc::SYS_setgroups,
        libc::SYS_capset,
    ];
    #[cfg(target_arch = "x86_64")]
    refused.extend([libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_kexec_file_load]);
    let rules: BTreeMap<i64, Vec<_>> = refused.into_iter().map(|call| (call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let mut filter: BpfProgram =
        SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?.try_into()?;
    /// Load the machine, compare it, end the process.
    const MACHINE: usize = 3;
    filter.splice(MACHINE..MACHINE, known());
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_with_their_groups() {
        let passwd = "root:x:0:0::/:/bin/sh\nvms:x:990:991::/:/bin/false\nbad:x:y:1::/:/x\n";
        let group = "root:x:0:\nvms:x:991:\ndisk:x:6:other,vms\nnear:x:7:vmsx\nvms2:x:991:vms\n";
        let user = User { uid: 990, gid: 991, groups: vec![991, 6] };
        assert_eq!(User::find("vms", passwd, group), Some(user));
        for name in ["nobody", "bad", "", "vm"] {
            assert_eq!(User::find(name, passwd, group), None, "{name:?}");
        }
    }

    /// What the kernel makes of a filter for a call.
    fn answers(filter: &[sock_filter], machine: u32, call: u32) -> u32 {
        let (mut loaded, mut at) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = filter[at];
            at += 1;
            let mut jump = |yes: bool| at += usize::from(if yes { jt } else { jf });
            match u32::from(code) {
                0x20 => loaded = [call, machine][k as usize / 4],
                0x05 => at += k as usize,
                0x15 => jump(loaded == k),
                0x25 => jump(loaded > k),
                0x35 => jump(loaded >= k),
                0x06 => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn calls_of_other_machines_and_calls_that_nobody_knows_are_refused() {
        let filter = filter().unwrap();
        let ours = TargetArch::try_from(std::env::consts::ARCH).unwrap();
        // AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64, AUDIT_ARCH_I386.
        let machine = if ours == TargetArch::x86_64 { 0xc000_003e } else { 0xc000_00b7 };
        let other = 0x4000_0003;
        let errno = |errno: i32| libc::SECCOMP_RET_ERRNO | errno.cast_unsigned();
        let call = |call: i64| u32::try_from(call).unwrap();
        for known in [libc::SYS_read, libc::SYS_openat2, libc::SYS_io_uring_enter, NEWEST] {
            assert_eq!(answers(&filter, machine, call(known)), libc::SECCOMP_RET_ALLOW);
            let x32 = call(known) | 1 << 30;
            assert_eq!(answers(&filter, machine, x32), errno(libc::ENOSYS), "{known} of x32");
            assert_eq!(answers(&filter, other, call(known)), libc::SECCOMP_RET_KILL_PROCESS);
        }
        for refused in [libc::SYS_execve, libc::SYS_mount, libc::SYS_capset, libc::SYS_fsconfig] {
            assert_eq!(answers(&filter, machine, call(refused)), errno(libc::EPERM));
            let x32 = call(refused) | 1 << 30;
            assert_eq!(answers(&filter, machine, x32), errno(libc::ENOSYS), "{refused} of x32");
        }
        for unknown in [call(NEWEST) + 1, 1000, u32::MAX] {
            assert_eq!(answers(&filter, machine, unknown), errno(libc::ENOSYS), "{unknown}");
        }
    }

    /// Confines a thread of its own; the others stay as they are.
    #[test]
    fn a_confined_thread_reaches_its_folders_and_no_programs() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
        let (conf, state) = (folder.path().join("conf"), folder.path().join("state"));
        for path in [&inside, &outside, &conf, &state] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("old"), "x").unwrap();
        }
        let file = conf.join("smbd.toml");
        let text = format!(
            "[server]\nlisten=['127.0.0.1:0']\nstate_dir='{}'\n[[share]]\nname='s'\npath='{}'\n",
            state.display(),
            inside.display()
        );
        let config = Config::parse(&text, &file).unwrap();
        let iscsi = IscsiConfig::default();
        assert_eq!(super::outside(&folders(&config, &iscsi, &[]), &config, &iscsi), None);
        assert_eq!(super::outside(&[], &config, &iscsi).as_deref(), Some("share s"));
        let confined = std::thread::spawn(move || {
            let confined = confine(&config, &iscsi, (&file, &[]), &[]).unwrap();
            fs::write(inside.join("new"), "x").unwrap();
            fs::write(state.join("new"), "x").unwrap();
            fs::rename(inside.join("new"), inside.join("newer")).unwrap();
            assert_eq!(fs::read_to_string(conf.join("old")).unwrap(), "x");
            let started = std::process::Command::new("/bin/true").status();
            assert_eq!(started.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            if confined.folders {
                let denied = |result: io::Result<()>| {
                    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
                };
                denied(fs::read(outside.join("old")).map(drop));
                denied(fs::write(outside.join("new"), "x"));
                denied(fs::write(conf.join("new"), "x"));
                denied(fs::remove_file(outside.join("old")));
            }
            confined
        });
        if !confined.join().unwrap().folders {
            eprintln!("skipped: this kernel has no Landlock");
        }
        assert!(std::process::Command::new("/bin/true").status().unwrap().success());
    }
}
