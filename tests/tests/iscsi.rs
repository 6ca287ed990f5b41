//! libiscsi's conformance suite against smbd: on every kind of image, with digests, with passwords.
//! Its `Sanitize.Reset`, which sleeps for a minute, runs with `BULKHEAD_ISCSI_FULL=1` only, as `make
//! interop` has it.

use std::{
    collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path, process::Command,
    time::Duration,
};

use bulkhead_tests::{
    iscsi::{Served, lun, thick, thin, vhdx},
    libiscsi::{Verdict, all_tests, conform},
    process::{foreign, run},
};

const LIMIT: Duration = Duration::from_secs(240);
const MIB: u64 = 1 << 20;
const OPEN: &str = "authentication = \"none\"";
/// What the suite needs beside a medium: one that can be ejected, and atomic writes as long as its.
const KEYS: &str = "removable = true\natomic_sectors = 256";

/// All that is quick and looks at one path.
const QUICK: &str = "ALL.[!MS]*,ALL.M[!u]*,ALL.StartStopUnit";
const PATHS: &str = "ALL.MultipathIO";
/// The suite of SANITIZE but for its test of resets; one run each.
const SANITIZE: [&str; 3] =
    ["ALL.Sanitize.[!R]*", "ALL.Sanitize.Readonly", "ALL.Sanitize.Reservations"];
const SANITIZE_RESET: &str = "ALL.Sanitize.Reset";

/// On every image: what of the suite does not look, and why. docs/interop.md has the same.
const SKIPPED: &[(&str, &str)] = &[
    ("ReadOnly.ReadOnlySBC", "Logical unit is not write-protected"),
    ("Sanitize.CryptoErase", "SANITIZE CRYPTO_ERASE is not implemented"),
    ("Sanitize.CryptoEraseReserved", "SANITIZE CRYPTO_ERASE is not implemented"),
    ("Sanitize.Readonly", "SANITIZE CRYPTO_ERASE is not implemented"),
    ("Sanitize.Reservations", "SANITIZE CRYPTO_ERASE is not implemented"),
    ("WriteSame10.ZeroBlocks", "does not support 0-blocks"),
    ("WriteSame16.ZeroBlocks", "does not support 0-blocks"),
];

/// Where a physical block has one logical: [`LARGE_BLOCKS`] is looked at again with more.
const SKIPPED_SMALL: &[(&str, &str)] = &[
    ("CompareAndWrite.InvalidDataOutSize", "LBPPB < 2"),
    ("WriteSame10.InvalidDataOutSize", "LBPPB < 2"),
    ("WriteSame10.UnmapUnaligned", "LBPPB < 2"),
    ("WriteSame16.InvalidDataOutSize", "LBPPB < 2"),
    ("WriteSame16.UnmapUnaligned", "LBPPB < 2"),
];
/// What wants physical blocks of several logical ones; `GetLBAStatus.UnmapSingle` wants one.
const LARGE_BLOCKS: &str = "ALL.CompareAndWrite,ALL.WriteSame1[06]";
const SMALL: &str = "physical_sector = 512";

type Known<'a> = &'a [&'a [(&'a str, &'a str)]];

/// Runs parts of the suite: what fails or is skipped is known with its reason. Says how many there
/// were; `None` without the suite.
fn passes(urls: &[&str], patterns: &[&str], known: Known<'_>) -> Option<usize> {
    let known: BTreeMap<&str, &str> = known.iter().copied().flatten().copied().collect();
    let (mut count, mut skipped, mut failed) = (0, 0, 0);
    for pattern in patterns {
        let cases = conform(urls, pattern, LIMIT)?;
        assert!(!cases.is_empty(), "{pattern} names nothing");
        for case in &cases {
            match case.verdict {
                Verdict::Passed => {}
                Verdict::Failed => {
                    let reason = known.get(&*case.name);
                    let so = reason.is_some_and(|reason| case.text.contains(reason));
                    assert!(so, "{}: {}", case.name, case.text);
                    failed += 1;
                }
                Verdict::Skipped => {
                    let reason = known.get(&*case.name);
                    let so = reason.is_some_and(|reason| case.text.contains(reason));
                    assert!(so, "{} is skipped: {}", case.name, case.text);
                    skipped += 1;
                }
            }
        }
        count += cases.len();
    }
    eprintln!(
        "{count} tests, {skipped} of them skipped and {failed} failed, for reasons that are known"
    );
    Some(count)
}

fn full() -> bool {
    std::env::var_os("BULKHEAD_ISCSI_FULL").is_some_and(|value| value == "1")
}

/// The suite against one image, in its own time: SANITIZE beside the rest, on a small image.
fn conforms(make: impl Fn(&Path, &str) -> std::path::PathBuf, keys: &str, known: Known<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let target = |name: &str, more: &str| {
        let keys = format!("{KEYS}\n{keys}\n{more}");
        Served::start(&format!("{OPEN}\n{}", lun(0, &make(folder.path(), name), &keys)))
    };
    let served = target("quick", "");
    let url = served.url("", 0);
    let Some(mut count) = passes(&[&url], &[QUICK], known) else { return };
    count += passes(&[&url, &url], &[PATHS], known).unwrap();
    drop(served);
    if keys == SMALL {
        let image = lun(0, &make(folder.path(), "large"), KEYS);
        let served = Served::start(&format!("{OPEN}\n{image}"));
        passes(&[&served.url("", 0)], &[LARGE_BLOCKS], &[SKIPPED]).unwrap();
    }
    let served = target("sanitized", "sanitize_rate = \"1GiB\"");
    count += passes(&[&served.url("", 0)], &SANITIZE, known).unwrap();
    drop(served);
    if full() {
        let served = target("reset", "sanitize_rate = \"9MiB\"");
        count += passes(&[&served.url("", 0)], &[SANITIZE_RESET], known).unwrap();
    } else {
        eprintln!("left out: Sanitize.Reset, which sleeps for a minute (BULKHEAD_ISCSI_FULL=1)");
        count += 1;
    }
    assert_eq!(count, all_tests().unwrap().len(), "no test of the suite is forgotten");
}

#[test]
fn a_thin_raw_image_conforms() {
    let make = |folder: &Path, name: &str| thin(folder, name, 64 * MIB);
    conforms(make, SMALL, &[SKIPPED, SKIPPED_SMALL]);
}

#[test]
fn a_thick_raw_image_of_4096_bytes_a_sector_conforms() {
    let make = |folder: &Path, name: &str| thick(folder, name, 64 * MIB);
    conforms(make, "sector = 4096\nthin = false", &[SKIPPED, SKIPPED_SMALL]);
}

#[test]
fn a_vhdx_conforms() {
    let make = |folder: &Path, name: &str| vhdx(folder, &format!("{name}.vhdx"), "64M");
    conforms(make, SMALL, &[SKIPPED, SKIPPED_SMALL]);
}

#[test]
fn an_image_that_is_read_only_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let image = thin(folder.path(), "a.raw", 64 * MIB);
    let served = Served::start(&format!("{OPEN}\n{}", lun(0, &image, "read_only = true")));
    passes(&[&served.url("", 0)], &["ALL.ReadOnly"], &[]);
}

/// The target demands digests of headers, so every session has them: `iscsi_service.rs` has a login
/// without them refused. libiscsi knows none of data; those are tried there as well.
#[test]
fn sessions_with_digests_conform() {
    let folder = tempfile::tempdir().unwrap();
    let image = thin(folder.path(), "a.raw", 64 * MIB);
    let demanded = format!("{OPEN}\nheader_digest = \"required\"");
    let served =
        Served::start(&format!("{demanded}\n{}", lun(0, &image, &format!("{KEYS}\n{SMALL}"))));
    let url = format!("{}?header_digest=crc32c", served.url("", 0));
    passes(&[&url], &[QUICK], &[SKIPPED, SKIPPED_SMALL]);
}

/// A file with a secret.
fn secret(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, format!("{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

#[test]
fn sessions_with_secrets_conform_one_way_and_both() {
    let folder = tempfile::tempdir().unwrap();
    let (small, large) = (folder.path().join("a"), folder.path().join("b"));
    fs::create_dir(&small).unwrap();
    fs::create_dir(&large).unwrap();
    let image = thin(&small, "a.raw", 64 * MIB);
    let theirs = secret(&large, "theirs", "secret-of-alice");
    let ours = secret(&large, "ours", "secret-of-target");
    let chap = format!("chap = [{{ user = \"alice\", secret_file = \"{theirs}\" }}]");
    let mutual = format!("mutual_chap = {{ user = \"disks\", secret_file = \"{ours}\" }}");
    let served = Served::start(&format!(
        "{chap}\n{mutual}\n{}",
        lun(0, &image, &format!("{KEYS}\n{SMALL}"))
    ));
    let one_way = served.url("alice%secret-of-alice@", 0);
    let both = format!("{one_way}?target_user=disks&target_password=secret-of-target");
    for (url, part) in [(&one_way, "ALL.[!MRS]*"), (&both, "ALL.R*")] {
        if passes(&[url], &[part], &[SKIPPED, SKIPPED_SMALL]).is_none() {
            return;
        }
    }
    let Some(inquiry) = foreign("iscsi-inq") else { return };
    let wrong = [
        served.url("", 0),
        served.url("alice%secret-of-target@", 0),
        served.url("bob%secret-of-alice@", 0),
        format!("{one_way}?target_user=disks&target_password=secret-of-alice"),
    ];
    for url in wrong {
        let mut command = Command::new(&inquiry);
        let output = run(command.arg(&url), LIMIT);
        let text = [&output.stdout[..], &output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(!text.contains("Vendor:"), "{url}: {text}");
    }
}
