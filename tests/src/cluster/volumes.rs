//! File systems that the nodes of a cluster share.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use test_support::process::run;

use super::{Networks, ceph::Ceph, gluster::Gluster};

/// A command that hangs is a failure.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// A file system that each node has mounted. Mounts are the caller's own: it is to have a mount namespace
/// of its own.
pub trait Volume: std::fmt::Debug {
    /// What it is called where programs read it.
    fn name(&self) -> &'static str;

    /// Where a node has it.
    fn mounted(&self, at: usize) -> PathBuf;

    /// Lines of `[cluster]` that say how a lost node is kept from it.
    fn fence(&self) -> String;

    /// Makes it whole after a fault and waits until it is, so that it stands the next.
    ///
    /// # Panics
    /// If that takes longer than a minute.
    fn make_whole(&mut self, networks: &Networks);
}

/// The volume of this name on so many nodes, `folder` for all that it keeps; `None` where its programs
/// are not installed.
///
/// # Panics
/// If it does not start, or the name is not one.
pub fn start(
    name: &str,
    networks: &Networks,
    count: usize,
    folder: &Path,
) -> Option<Box<dyn Volume>> {
    match name {
        "glusterfs" => Some(Box::new(Gluster::start(networks, count, folder)?)),
        "cephfs" => Some(Box::new(Ceph::start(networks, count, folder)?)),
        other => panic!("a volume is glusterfs or cephfs, and not {other}"),
    }
}

/// Runs a command that must succeed; what it prints.
pub(super) fn must(mut command: Command) -> String {
    let output = run(&mut command, LIMIT);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}{error}");
    said
}

/// Waits until something is so.
pub(super) fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is() {
        assert!(since.elapsed() < LIMIT, "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until a file system is mounted at a place, and answers.
pub(super) fn wait_for_mount(place: &Path) {
    let above = fs::metadata(place.parent().expect("it has a parent")).expect("it is there");
    wait_until("the volume is mounted", || {
        fs::metadata(place).is_ok_and(|meta| meta.dev() != above.dev())
    });
    // A mount that has not met its servers yet has no root.
    wait_until("the volume answers", || fs::read_dir(place).is_ok());
}
