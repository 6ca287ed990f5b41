//! Writes what is made of the catalogue of metrics: docs/metrics.md, the alert rules with their tests,
//! and the board.

use std::{fs, path::Path, process::Command};

use bulkhead_tests::{operate, process::ours};

fn main() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = operate::files();
    // Each schema is printed by the program that was built beside this one.
    for operate::Schema { path, command, .. } in operate::SCHEMAS {
        let program = Command::new(ours(command[0])).args(&command[1..]).output();
        let printed = program.expect("the programs are built").stdout;
        files.push((path.into(), String::from_utf8(printed).expect("JSON is UTF-8")));
    }
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
