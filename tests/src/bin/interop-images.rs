//! `make interop-images`: disk images made by `bulkhead disk`, read by programs that others wrote.
//!
//! ```text
//!  bytes made here ─► bulkhead disk convert|create|serve ─► image ─┬─► dissect.hypervisor ─┐
//!         │                                                       ├─► libvhdi, libqcow   ─┤
//!         │                                                       ├─► 7-Zip              ─┤
//!         │                                                       └─► imago, qcow, vhdx  ─┤
//!         └────────────────────────────── the same? ◄─────────────────────────────────────┘
//! ```
//!
//! Each image is also read by `bulkhead disk convert` and compared. What comes to something else than
//! `tests/readers/expected.tsv` says fails the run; `--record` writes that table. Names of readers as
//! arguments run just those. Versions are pinned in `tests/readers`.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use bulkhead_tests::{
    field::{self, Cell, Table},
    process::{Stopped, installed, ours, run},
};

const EXPECTED: &str = "readers/expected.tsv";
const HEAD: &str = "# What each reader makes of each image of ours: ok, refused or wrong (it says other bytes \
                    than the disk holds).\n# Written by `interop-images --record`.\n";
/// Bytes of the disks: no multiple of a block, and of no geometry of a VHD.
const SIZE: usize = 48 * MIB + 12 * 4096;
const MIB: usize = 1 << 20;
/// What one program may take with one image.
const LIMIT: Duration = Duration::from_secs(300);

/// An image of ours and what its disk holds.
struct Image {
    name: &'static str,
    format: &'static str,
    /// The image and those below it.
    chain: Vec<PathBuf>,
    content: Vec<u8>,
}

/// Bytes of a disk that are written over: from where, how many, and with what.
type Change = (usize, usize, u8);

/// A program that reads images.
struct Reader {
    name: &'static str,
    formats: &'static [&'static str],
}

const READERS: [Reader; 6] = [
    Reader { name: "dissect", formats: &["vhd", "vhdx", "qcow2"] },
    Reader { name: "libyal", formats: &["vhd", "vhdx", "qcow2"] },
    Reader { name: "7-Zip", formats: &["vhd", "vhdx", "qcow2"] },
    Reader { name: "imago", formats: &["raw", "qcow2"] },
    Reader { name: "qcow", formats: &["qcow2"] },
    Reader { name: "vhdx", formats: &["vhdx"] },
];

/// The readers, installed, and a folder of this run.
struct Field {
    readers: PathBuf,
    python: PathBuf,
    rust: PathBuf,
    seven_zip: PathBuf,
    scratch: tempfile::TempDir,
}

/// Runs `bulkhead disk` to its end.
fn disk(words: &[&str]) {
    let mut command = Command::new(ours("bulkhead"));
    let output = run(command.arg("disk").args(words), LIMIT);
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "bulkhead disk {words:?}: {why}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("names here are plain")
}

/// A disk with content at both ends, in whole blocks and in parts of some, and holes between.
fn first_content() -> Vec<u8> {
    let mut content = vec![0; SIZE];
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    for (from, len) in
        [(0, 3 * MIB), (7 * MIB + 4096, 8192), (20 * MIB, MIB), (SIZE - MIB - 4096, MIB + 4096)]
    {
        for bytes in content[from..from + len].chunks_exact_mut(8) {
            word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            bytes.copy_from_slice(&word.to_be_bytes());
        }
    }
    content
}

/// Writes over the disk of an image, by way of `bulkhead disk serve` and qemu-io, and over `content`.
fn change(image: &Path, content: &mut [u8], changes: &[Change]) {
    let socket = image.with_extension("socket");
    let mut command = Command::new(ours("bulkhead"));
    command.args(["disk", "serve", "--until-idle", "--socket", text(&socket), text(image)]);
    let mut served = Stopped(command.stdout(Stdio::piped()).spawn().expect("bulkhead starts"));
    // It says where it serves once it does.
    let said = served.0.stdout.take().expect("it is a pipe");
    io::BufRead::read_line(&mut io::BufReader::new(said), &mut String::new()).expect("it is text");
    let mut writer = Command::new("qemu-io");
    writer.args(["-f", "raw"]);
    for (from, len, byte) in changes {
        writer.args(["-c", &format!("write -P {byte} {from} {len}")]);
        content[*from..from + len].fill(*byte);
    }
    writer.args(["-c", "flush"]).arg(format!("nbd+unix:///?socket={}", text(&socket)));
    let output = run(&mut writer, LIMIT);
    assert!(output.status.success(), "qemu-io: {}", String::from_utf8_lossy(&output.stderr));
    assert!(served.0.wait().expect("it is ours").success(), "bulkhead disk serve failed");
}

/// Makes every image.
fn images(folder: &Path) -> Vec<Image> {
    let base = first_content();
    let raw = folder.join("disk.raw");
    fs::write(&raw, &base).expect("the folder is ours");
    let mut images = vec![];
    let kinds: [(&str, &str, &[&str]); 9] = [
        ("copy", "raw", &[]),
        ("fixed", "vhd", &["--fixed"]),
        ("dynamic", "vhd", &[]),
        ("blocks of 512 KiB", "vhd", &["--block-size", "512K"]),
        ("fixed", "vhdx", &["--fixed"]),
        ("dynamic", "vhdx", &[]),
        ("blocks of 1 MiB", "vhdx", &["--block-size", "1M"]),
        ("sectors of 4096", "vhdx", &["--logical-sector-size", "4096"]),
        ("dynamic", "qcow2", &[]),
    ];
    for (name, format, options) in kinds {
        let path = folder.join(format!("{}.{format}", name.replace(' ', "-")));
        disk(&[&["convert", text(&raw), text(&path)], options].concat());
        images.push(Image { name, format, chain: vec![path], content: base.clone() });
    }
    for format in ["vhd", "vhdx"] {
        let (mut chain, mut content) =
            (vec![folder.join(format!("dynamic.{format}"))], base.clone());
        // The second is smaller than a block, and what it covers lies in the first in part.
        let changes: [(&str, &[Change]); 2] = [
            ("differencing", &[(0, 4096, 0xA5), (6 * MIB, 2 * MIB, 0x5A), (SIZE - 512, 512, 0x77)]),
            ("chain of three", &[(2048, 4096, 0x11), (7 * MIB, 512, 0), (30 * MIB, 4096, 0x22)]),
        ];
        for (name, changes) in changes {
            let path = folder.join(format!("{}.{format}", name.replace(' ', "-")));
            disk(&["create", text(&path), "--parent", text(&chain[0])]);
            change(&path, &mut content, changes);
            chain.insert(0, path);
            images.push(Image { name, format, chain: chain.clone(), content: content.clone() });
        }
    }
    for image in &images {
        let back = folder.join("back.raw");
        disk(&["convert", "--force", text(&image.chain[0]), text(&back)]);
        let back = fs::read(back).expect("it was made");
        assert!(back == image.content, "{} {}: we read other bytes", image.format, image.name);
    }
    images
}

impl Field {
    fn prepare(readers: &Path, folder: &Path) -> Result<Self, String> {
        let rust = field::build_rust(&readers.join("rust"), &folder.join("rust"))?;
        let requirements = readers.join("requirements.txt");
        let python = field::install_python(&requirements, &folder.join("python"))?;
        let seven_zip = installed("7zz").or_else(|| installed("7z"));
        let seven_zip = seven_zip.ok_or("7zz is not installed; `make interop-images` does it")?;
        let rust = rust.join("rust-readers");
        let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
        Ok(Self { readers: readers.to_owned(), python, rust, seven_zip, scratch })
    }

    /// What a reader makes of an image.
    fn read(&self, reader: &Reader, image: &Image) -> Cell {
        let out = self.scratch.path().join("out");
        fs::write(&out, "").expect("the folder is ours");
        let mut command = match reader.name {
            "7-Zip" => Command::new(&self.seven_zip),
            "dissect" | "libyal" => Command::new(&self.python),
            _ => Command::new(&self.rust),
        };
        match reader.name {
            "7-Zip" => {
                // By its format, or it would go on to what the disk holds.
                command.args(["x", "-so", &format!("-t{}", image.format.trim_end_matches('2'))]);
                command.arg(&image.chain[0]);
            }
            name => {
                if name == "dissect" || name == "libyal" {
                    command.arg(self.readers.join("read.py"));
                }
                command.args([name, image.format, text(&out)]).args(&image.chain);
            }
        }
        let output = run(&mut command, LIMIT);
        let found = match reader.name {
            "7-Zip" => output.stdout,
            _ => fs::read(&out).unwrap_or_default(),
        };
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let (outcome, note) = match output.status.success() {
            true if found == image.content => ("ok", String::new()),
            true => ("wrong", difference(&found, &image.content)),
            false => ("refused", last.chars().take(160).collect()),
        };
        let key = format!("{}\t{}\t{}", reader.name, image.format, image.name);
        Cell { key, outcome: outcome.to_owned(), note }
    }
}

/// How what was read differs from what there is.
fn difference(found: &[u8], wanted: &[u8]) -> String {
    let differ = found.iter().zip(wanted).filter(|(a, b)| a != b).count();
    let first = found.iter().zip(wanted).position(|(a, b)| a != b);
    let first = first.map_or(String::new(), |at| format!(", the first at {at}"));
    format!("{} of {} bytes, {differ} differ{first}", found.len(), wanted.len())
}

fn main() -> ExitCode {
    let (flags, names): (Vec<String>, Vec<String>) =
        env::args().skip(1).partition(|word| word.starts_with("--"));
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    let programs = env::current_exe().expect("it runs");
    let target = programs.parent().and_then(Path::parent).expect("it is in target/debug");
    let field = match Field::prepare(&tree.join("readers"), &target.join("interop/images")) {
        Ok(field) => field,
        Err(why) => {
            eprintln!("interop-images: {why}");
            return ExitCode::FAILURE;
        }
    };
    let folder = field.scratch.path().join("images");
    fs::create_dir(&folder).expect("the folder is ours");
    let images = images(&folder);
    let mut table = Table::load(tree.join(EXPECTED), HEAD);
    let chosen = |name: &str| names.is_empty() || names.iter().any(|it| it == name);
    for reader in READERS.iter().filter(|reader| chosen(reader.name)) {
        for image in images.iter().filter(|image| reader.formats.contains(&image.format)) {
            table.show(vec![field.read(reader, image)]);
        }
    }
    let record = flags.iter().any(|flag| flag == "--record");
    match table.finish(&target.join("interop/images.json"), "reader", record) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
