//! One writer for an image, whoever it is: every subcommand beside `disk serve` and QEMU's programs, in
//! both directions. The tests need qemu-img, qemu-io and qemu-nbd and fail without them.

mod common;

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{BULKHEAD, bulkhead, fails, ok, run, text};
use tempfile::TempDir;

/// A program that has an image open, ended with this.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Holder {
    /// `bulkhead disk serve`, once it has the image.
    fn serve(image: &Path, more: &[&str]) -> Self {
        let socket = image.with_extension("sock");
        let mut command = Command::new(BULKHEAD);
        command.args(["disk", "serve"]).arg(image).arg("--socket").arg(socket).args(more);
        let mut child = Self(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(child.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("nbd+unix"), "{line}");
        child
    }

    /// `qemu-nbd`, once it has the image.
    fn qemu_nbd(image: &Path, format: &str, more: &[&str]) -> Self {
        let socket = image.with_extension("nbd");
        let mut command = Command::new("qemu-nbd");
        command.args(["-t", "-f", format, "-k"]).arg(&socket).args(more).arg(image);
        let child = Self(command.spawn().expect("qemu-nbd is installed"));
        let since = Instant::now();
        // It makes its socket before it opens the image, and greets afterwards.
        let greets = || UnixStream::connect(&socket)?.read_exact(&mut [0; 8]);
        while greets().is_err() {
            assert!(since.elapsed() < Duration::from_secs(60), "qemu-nbd does not begin");
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    }
}

fn image(dir: &Path, ending: &str) -> PathBuf {
    let path = dir.join(format!("a.{ending}"));
    ok(dir, &["disk", "create", path.to_str().unwrap(), "--size", "16M"]);
    path
}

/// QEMU's name of a format.
fn qemu_name(ending: &str) -> &str {
    match ending {
        "vhd" => "vpc",
        other => other,
    }
}

/// Subcommands that write `a.ENDING`.
fn writers(ending: &str) -> Vec<Vec<String>> {
    let file = format!("a.{ending}");
    let line = |words: &[&str]| words.iter().map(|w| w.replace("FILE", &file)).collect();
    let mut all = vec![line(&["disk", "create", "FILE", "--size", "8M", "--force"])];
    all.push(line(&["disk", "convert", "small.raw", "FILE", "--force"]));
    all.push(line(&["disk", "import", "small.raw", "FILE", "--force"]));
    if matches!(ending, "vhdx" | "vhd") {
        all.push(line(&["disk", "clone", &format!("b.{ending}"), "FILE", "--force"]));
        all.push(line(&["disk", "resize", "FILE", "32M"]));
        all.push(line(&["disk", "compact", "FILE"]));
        all.push(line(&["disk", "trim", "FILE"]));
        all.push(line(&["disk", "check", "FILE", "--repair"]));
        all.push(line(&["disk", "set", "FILE", "--disk-id", "new"]));
        all.push(line(&["disk", "merge", &format!("child.{ending}")]));
        all.push(line(&["disk", "merge", "FILE"]));
        all.push(line(&["disk", "rebase", "FILE", "--parent", &format!("b.{ending}"), "--unsafe"]));
    }
    if ending == "vhdx" {
        all.push(line(&["disk", "track", "enable", "FILE"]));
    }
    if ending == "qcow2" {
        // Its disk is made of what is read while it is written, which no other pass can do.
        all.retain(|words: &Vec<String>| words[1] != "import");
    }
    all.push(line(&["disk", "serve", "FILE", "--socket", "s"]));
    all
}

/// Subcommands that read `a.ENDING` and need it as it is.
fn readers(ending: &str) -> Vec<Vec<String>> {
    let file = format!("a.{ending}");
    let line = |words: &[&str]| words.iter().map(|w| w.replace("FILE", &file)).collect();
    let mut all = vec![line(&["disk", "convert", "FILE", "copy.raw", "--force"])];
    all.push(line(&["disk", "compare", "FILE", "FILE"]));
    if ending != "raw" {
        all.push(line(&["disk", "check", "FILE"]));
    } else {
        all.push(line(&["disk", "import", "FILE", "copy.vhdx", "--force"]));
    }
    if matches!(ending, "vhdx" | "vhd") {
        let (copy, other) = (format!("copy.{ending}"), format!("child.{ending}"));
        all.push(line(&["disk", "clone", "FILE", &copy, "--force"]));
        all.push(line(&["disk", "map", "FILE"]));
        all.push(line(&["disk", "create", &copy, "--parent", "FILE", "--force"]));
        all.push(line(&["disk", "convert", &other, "copy.raw", "--force"]));
        all.push(line(&["disk", "rebase", &other, "--parent", "FILE", "--unsafe"]));
        all.push(line(&["disk", "snapshot", "FILE"]));
    }
    all
}

/// What else the subcommands need: a second image, a child and a small disk.
fn beside(dir: &Path, ending: &str) {
    std::fs::write(dir.join("small.raw"), vec![3; 1 << 20]).unwrap();
    if matches!(ending, "vhdx" | "vhd") {
        let (a, b, child) =
            (format!("a.{ending}"), format!("b.{ending}"), format!("child.{ending}"));
        ok(dir, &["disk", "create", &b, "--size", "16M"]);
        ok(dir, &["disk", "create", &child, "--parent", &a]);
    }
}

/// What may change when something is refused: nothing of the image or its child.
fn state(dir: &Path, ending: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.ends_with(ending) && !name.starts_with("copy") {
            found.push((name, std::fs::read(entry.path()).unwrap()));
        }
    }
    found.sort();
    found
}

fn as_args(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// Every subcommand of a list is refused, says by whom, and changes nothing.
fn all_refused(dir: &Path, ending: &str, holder: &str, lists: &[Vec<Vec<String>>]) {
    let before = state(dir, ending);
    // What merges a child into itself has nothing to do with who uses it.
    let own = |words: &&Vec<String>| words[1] == "merge" && words[2].starts_with("a.");
    let lines = lists.iter().flatten().filter(|words| !own(words));
    // All at once: each is patient for a while.
    std::thread::scope(|scope| {
        for words in lines {
            scope.spawn(move || {
                let told = fails(dir, &as_args(words));
                let (by, file) = (format!("{holder} (pid "), format!("a.{ending}"));
                assert!(told.contains("in use by ") && told.contains(&by), "{words:?}: {told}");
                assert!(told.contains(&file), "{words:?} names no file: {told}");
            });
        }
    });
    assert!(state(dir, ending) == before, "something was changed");
}

const QEMU_WRITES: [&[&str]; 3] = [
    &["qemu-io", "-f", "FORMAT", "-c", "write 0 512", "FILE"],
    &["qemu-img", "resize", "-f", "FORMAT", "FILE", "64M"],
    &["qemu-nbd", "-f", "FORMAT", "-k", "SOCKET", "FILE"],
];
const QEMU_READS: [&[&str]; 1] =
    [&["qemu-img", "convert", "-f", "FORMAT", "-O", "raw", "FILE", "COPY"]];

/// Runs one of QEMU's programs; whether it did it, and what it said.
fn qemu(line: &[&str], image: &Path, format: &str) -> (bool, String) {
    let place = |name: &str| image.with_file_name(name).display().to_string();
    let words = line.iter().map(|word| match *word {
        "FORMAT" => format.to_owned(),
        "FILE" => image.display().to_string(),
        "SOCKET" => place("refused.sock"),
        "COPY" => place("copy.of-qemu"),
        word => word.to_owned(),
    });
    let words: Vec<_> = words.collect();
    let output = Command::new(&words[0]).args(&words[1..]).output();
    let output = output.unwrap_or_else(|e| panic!("{} is installed: {e}", words[0]));
    (output.status.success(), text(&output.stderr))
}

fn refused_by_qemu(line: &[&str], image: &Path, format: &str) {
    let before = std::fs::read(image).unwrap();
    let (done, told) = qemu(line, image, format);
    assert!(!done, "{line:?} {image:?}: {told}");
    assert!(told.contains("another process using the image"), "{line:?} {image:?}: {told}");
    assert!(std::fs::read(image).unwrap() == before, "{line:?} changed {image:?}");
}

#[test]
fn what_serve_writes_nobody_else_writes_or_reads_as_if_it_stood_still() {
    for ending in ["vhdx", "vhd", "raw"] {
        let dir = TempDir::new().unwrap();
        let image = image(dir.path(), ending);
        beside(dir.path(), ending);
        let holder = Holder::serve(&image, &[]);
        all_refused(dir.path(), ending, "bulkhead", &[writers(ending), readers(ending)]);
        for line in QEMU_WRITES.into_iter().chain(QEMU_READS) {
            refused_by_qemu(line, &image, qemu_name(ending));
        }
        // Whoever only looks is told what is there.
        ok(dir.path(), &["disk", "info", image.to_str().unwrap()]);
        drop(holder);
        for words in readers(ending) {
            ok(dir.path(), &as_args(&words));
        }
    }
}

#[test]
fn what_serve_only_reads_others_read_and_nobody_writes() {
    for ending in ["vhdx", "vhd", "raw", "qcow2"] {
        let dir = TempDir::new().unwrap();
        let image = image(dir.path(), ending);
        beside(dir.path(), ending);
        let holder = Holder::serve(&image, &["--read-only"]);
        all_refused(dir.path(), ending, "bulkhead", &[writers(ending)]);
        for line in QEMU_WRITES {
            refused_by_qemu(line, &image, qemu_name(ending));
        }
        for line in QEMU_READS {
            let (done, told) = qemu(line, &image, qemu_name(ending));
            assert!(done, "{line:?} beside a reader: {told}");
        }
        for words in readers(ending) {
            ok(dir.path(), &as_args(&words));
        }
        drop(holder);
    }
}

#[test]
fn what_qemu_writes_is_left_alone() {
    for ending in ["vhdx", "vhd", "raw", "qcow2"] {
        let dir = TempDir::new().unwrap();
        let image = image(dir.path(), ending);
        beside(dir.path(), ending);
        let holder = Holder::qemu_nbd(&image, qemu_name(ending), &[]);
        all_refused(dir.path(), ending, "qemu-nbd", &[writers(ending), readers(ending)]);
        ok(dir.path(), &["disk", "info", image.to_str().unwrap()]);
        drop(holder);
        for words in readers(ending) {
            ok(dir.path(), &as_args(&words));
        }
    }
}

#[test]
fn what_qemu_reads_may_be_read_and_not_written() {
    for ending in ["vhdx", "vhd", "qcow2"] {
        let dir = TempDir::new().unwrap();
        let image = image(dir.path(), ending);
        beside(dir.path(), ending);
        let holder = Holder::qemu_nbd(&image, qemu_name(ending), &["-r"]);
        all_refused(dir.path(), ending, "qemu-nbd", &[writers(ending)]);
        for words in readers(ending) {
            // It would take the right to write away, which is the next test's.
            if words[1] != "snapshot" {
                ok(dir.path(), &as_args(&words));
            }
        }
        drop(holder);
    }
}

/// A parent is not written while a child is used, whoever wants to.
#[test]
fn the_parents_of_what_is_used_stay_as_they_are() {
    let dir = TempDir::new().unwrap();
    let image = image(dir.path(), "vhdx");
    beside(dir.path(), "vhdx");
    let holder = Holder::serve(&dir.path().join("child.vhdx"), &[]);
    let words = ["disk", "resize", image.to_str().unwrap(), "32M"];
    let told = fails(dir.path(), &words);
    assert!(told.contains("in use by bulkhead (pid ") && told.contains("which reads it"), "{told}");
    for line in QEMU_WRITES {
        refused_by_qemu(line, &image, "vhdx");
    }
    // A second child of it is nobody's care.
    ok(dir.path(), &["disk", "create", "second.vhdx", "--parent", "a.vhdx"]);
    ok(dir.path(), &["disk", "convert", "second.vhdx", "o.raw"]);
    drop(holder);
    ok(dir.path(), &words);
}

/// A program that is killed has nothing any more.
#[test]
fn a_killed_holder_leaves_nothing_behind() {
    let dir = TempDir::new().unwrap();
    let image = image(dir.path(), "vhdx");
    for _ in 0..2 {
        let mut holder = Holder::serve(&image, &[]);
        assert!(!bulkhead(dir.path(), &["disk", "resize", "a.vhdx", "32M"]).status.success());
        holder.0.kill().unwrap();
        holder.0.wait().unwrap();
        std::fs::remove_file(image.with_extension("sock")).unwrap();
    }
    ok(dir.path(), &["disk", "resize", "a.vhdx", "32M"]);
    run(Command::new("qemu-img").args(["check", "-f", "vhdx"]).arg(&image));
}
