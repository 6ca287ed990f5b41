//! Programs that people run on file shares.

use std::{fs, path::Path, process::Command};

use crate::Outcome;

fn run(command: &mut Command) -> Outcome<String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}\n{text}\n{errors}", output.status))
}

/// Writes and verifies with checksums: many small pieces at random, some at once, and large ones.
pub fn fio(on: &Path) -> Outcome<()> {
    let folder = on.join("fio");
    fs::create_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let directory = format!("--directory={}", folder.display());
    let jobs: [&[&str]; 3] = [
        &["--name=random", "--rw=randwrite", "--bsrange=4k-64k", "--size=16m", "--direct=1"],
        &["--name=buffered", "--rw=randrw", "--bs=4k", "--size=8m", "--numjobs=2", "--fsync=64"],
        &["--name=large", "--rw=write", "--bs=1m", "--size=48m", "--end_fsync=1"],
    ];
    for job in jobs {
        run(Command::new("/opt/fio")
            .arg(&directory)
            .args(job)
            .args(["--ioengine=psync", "--thread", "--verify=crc32c", "--verify_fatal=1"])
            .args(["--do_verify=1", "--randseed=7", "--minimal", "--eta=never"]))?;
    }
    fs::remove_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))
}

fn git(folder: &Path, args: &[&str]) -> Outcome<String> {
    run(Command::new("/opt/git")
        .current_dir(folder)
        .env("HOME", "/tmp")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .args(["-c", "safe.directory=*", "-c", "user.name=Lab", "-c", "user.email=lab@localhost"])
        .args(["-c", "gc.auto=0"])
        .args(args))
}

/// A repository of some hundred files in three commits.
fn make_repository(at: &Path) -> Outcome<()> {
    let _ = fs::remove_dir_all(at);
    fs::create_dir_all(at).map_err(|e| e.to_string())?;
    git(at, &["init", "-q", "-b", "main"])?;
    for commit in 0..3 {
        for file in 0..40 {
            let folder = at.join(format!("folder-{}", file % 7));
            fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
            let text: String =
                (0..50 + file * 7).map(|line| format!("{commit} {file} {}\n", line * 31)).collect();
            fs::write(folder.join(format!("file-{file}.txt")), text).map_err(|e| e.to_string())?;
        }
        git(at, &["add", "-A"])?;
        git(at, &["commit", "-q", "-m", &format!("commit {commit}")])?;
    }
    Ok(())
}

/// Clones a repository onto the share, checks it, commits there, packs it and checks it again.
pub fn git_on(repository: &Path, clone: &Path) -> Outcome<()> {
    make_repository(repository)?;
    let onto = clone.display().to_string();
    git(repository, &["clone", "-q", "--no-local", ".", &onto])?;
    git(clone, &["fsck", "--full", "--strict"])?;
    let same = |clone: &Path| -> Outcome<()> {
        let changed = git(clone, &["status", "--porcelain"])?;
        if changed.is_empty() { Ok(()) } else { Err(format!("git sees changes:\n{changed}")) }
    };
    same(clone)?;
    fs::write(clone.join("folder-1/new.txt"), "new\n").map_err(|e| e.to_string())?;
    git(clone, &["mv", "folder-0/file-0.txt", "folder-2/moved.txt"])?;
    git(clone, &["add", "-A"])?;
    git(clone, &["commit", "-q", "-m", "on the share"])?;
    git(clone, &["gc", "-q", "--prune=now"])?;
    git(clone, &["fsck", "--full", "--strict"])?;
    same(clone)?;
    git(repository, &["pull", "-q", &onto, "main"])?;
    let heads = [repository, clone].map(|at| git(at, &["rev-parse", "HEAD^{tree}"]));
    let [ours, theirs] = heads;
    if ours? != theirs? {
        return Err("what was pulled from the share is another tree".into());
    }
    fs::remove_dir_all(clone).map_err(|e| format!("{onto}: {e}"))
}
