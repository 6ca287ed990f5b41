use std::{fs::OpenOptions, os::fd::AsFd, process::Command};

use tempfile::TempDir;

use super::*;
use crate::{Error, LocalFile, LocalOptions};

fn image(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("image");
    fs::write(&path, [0; 4096]).unwrap();
    path
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Every pair of claims, by every kind of descriptor.
#[test]
fn a_writer_is_alone_and_readers_are_many() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir);
    let write_only = || OpenOptions::new().write(true).open(&path).unwrap();
    let read_only = || File::open(&path).unwrap();
    type Opener<'a> = (&'a str, &'a dyn Fn() -> File, Claim);
    let openers: [Opener<'_>; 4] = [
        ("reader", &read_only, Claim::Still),
        ("reader that could write", &|| open(&path), Claim::Still),
        ("writer", &|| open(&path), Claim::Writer),
        ("writer that cannot read", &write_only, Claim::Writer),
    ];
    for (first, one, a) in openers {
        for (second, other, b) in openers {
            let (one, other) = (one(), other());
            claim(one.as_fd(), None, a).unwrap();
            let outcome = claim(other.as_fd(), None, b);
            let together = a == Claim::Still && b == Claim::Still;
            match outcome {
                Ok(()) => assert!(together, "{second} beside a {first}"),
                Err(Refusal::InUse) => assert!(!together, "{second} refused beside a {first}"),
                Err(error) => panic!("{second} beside a {first}: {error}"),
            }
            // A refusal leaves nothing behind that would refuse a third.
            drop(one);
            if !together {
                claim(open(&path).as_fd(), None, Claim::Writer)
                    .unwrap_or_else(|e| panic!("after {second} was refused: {e}"));
            }
        }
    }
}

#[test]
fn a_claim_grows_and_shrinks_and_a_refused_one_stays_what_it_was() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir);
    let (one, other) = (open(&path), open(&path));
    claim(one.as_fd(), None, Claim::Still).unwrap();
    claim(other.as_fd(), None, Claim::Still).unwrap();
    let grown = claim(one.as_fd(), Some(Claim::Still), Claim::Writer);
    assert!(matches!(grown, Err(Refusal::InUse)), "{grown:?}");
    // Still a reader's: a third reader may come, a writer not.
    let third = open(&path);
    claim(third.as_fd(), None, Claim::Still).unwrap();
    release(third.as_fd());
    release(other.as_fd());
    assert!(claim(third.as_fd(), None, Claim::Writer).is_err());
    claim(one.as_fd(), Some(Claim::Still), Claim::Writer).unwrap();
    assert!(claim(third.as_fd(), None, Claim::Still).is_err());
    settle(one.as_fd(), Some(Claim::Still));
    claim(third.as_fd(), None, Claim::Still).unwrap();
}

/// A claim is the open file's, not the process's: what else of the file is opened and closed takes
/// nothing away, as it would from locks of the old kind.
#[test]
fn closing_another_descriptor_of_the_file_gives_nothing_up() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir);
    let one = open(&path);
    claim(one.as_fd(), None, Claim::Writer).unwrap();
    drop(open(&path));
    assert!(claim(open(&path).as_fd(), None, Claim::Still).is_err());
    // A copy of the descriptor keeps it.
    let copy = one.try_clone().unwrap();
    drop(one);
    assert!(claim(open(&path).as_fd(), None, Claim::Still).is_err());
    drop(copy);
    claim(open(&path).as_fd(), None, Claim::Writer).unwrap();
}

#[tokio::test]
async fn the_error_names_who_has_the_file() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir);
    let file = LocalFile::open(&path, &LocalOptions::read_write()).unwrap();
    let refused = LocalFile::open(&path, &LocalOptions::still()).unwrap_err();
    assert!(matches!(refused, Error::Busy(_)), "{refused:?}");
    let told = refused.to_string();
    let name = fs::read_to_string("/proc/self/comm").unwrap();
    let expected =
        format!("in use by {} (pid {}), which writes it", name.trim(), std::process::id());
    assert!(told.contains(&expected) && told.contains(path.to_str().unwrap()), "{told}");
    drop(file);
    let file = LocalFile::open(&path, &LocalOptions::still()).unwrap();
    let told = LocalFile::open(&path, &LocalOptions::read_write()).unwrap_err().to_string();
    assert!(told.contains("which reads it"), "{told}");
    // Whoever only looks is in nobody's way.
    LocalFile::open(&path, &LocalOptions::read_only()).unwrap();
    assert!(matches!(file.write_now(0, b"x"), Err(Error::ReadOnly)));
}

#[test]
fn locks_are_read_as_the_system_tells_them() {
    let range = |first, last| Some(Bytes { first, count: last - first + 1 });
    let line = "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:10010866 100 101";
    assert_eq!(locked(line), range(100, 101));
    let line = "lock:\t2: POSIX  ADVISORY  WRITE 77 fe:00:1 203 EOF";
    assert!(locked(line).is_some_and(|bytes| overlap(bytes, ALL)));
    for other in
        ["lock:\t1: FLOCK  ADVISORY  WRITE 5 fe:00:5 0 EOF", "pos:\t0", "lock:", "lock: 1: POSIX"]
    {
        assert_eq!(locked(other), None, "{other}");
    }
    assert!(!overlap(of(USED, READ, LAST), of(UNSHARED, READ, LAST)));
}

/// QEMU's programs, which the documentation of the tests asks for, in both directions.
mod qemu {
    use super::*;

    fn qemu_io(path: &Path, how: &[&str], command: &str) -> std::process::Output {
        let mut qemu = Command::new("qemu-io");
        qemu.args(["-f", "raw"]).args(how).args(["-c", command]).arg(path);
        qemu.output().expect("qemu-io is installed")
    }

    #[test]
    fn refuses_what_is_claimed_here() {
        let dir = TempDir::new().unwrap();
        let path = image(&dir);
        let file = open(&path);
        for (held, reads, writes) in [(Claim::Still, true, false), (Claim::Writer, false, false)] {
            claim(file.as_fd(), None, held).unwrap();
            let written = qemu_io(&path, &[], "write 0 512");
            assert_eq!(written.status.success(), writes, "{held:?}: {written:?}");
            let error = String::from_utf8_lossy(&written.stderr).into_owned();
            assert!(error.contains("another process using the image"), "{error}");
            let qemu = Command::new("qemu-img")
                .args(["convert", "-f", "raw", "-O", "raw"])
                .arg(&path)
                .arg(dir.path().join("copy"))
                .output()
                .expect("qemu-img is installed");
            assert_eq!(qemu.status.success(), reads, "{held:?}: {qemu:?}");
        }
        release(file.as_fd());
        assert!(qemu_io(&path, &[], "write 0 512").status.success());
    }
}
