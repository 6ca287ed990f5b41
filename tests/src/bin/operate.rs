//! Writes what is made of the catalogue of metrics: docs/metrics.md, the alert rules with their tests,
//! and the board.

use std::{fs, path::Path, process::Command};

use bulkhead_tests::{operate, process::ours};

fn main() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = operate::files();
    // The schema is printed by the program that was built beside this one.
    let smbd = Command::new(ours("smbd")).arg("--schema").output().expect("smbd is built");
    let schema = String::from_utf8(smbd.stdout).expect("JSON is UTF-8");
    files.push((operate::SCHEMA.into(), schema));
    for (path, text) in files {
        let place = project.join(&path);
        let old = fs::read_to_string(&place).unwrap_or_default();
        if old == text {
            continue;
        }
        let folder = place.parent().expect("a file has a folder");
        fs::create_dir_all(folder).expect("the folder can be made");
        fs::write(&place, text).expect("the file can be written");
        println!("{}: written", path.display());
    }
}
