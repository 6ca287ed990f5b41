//! Initiators that others wrote: libiscsi's programs and its conformance suite, and QEMU.

use std::{process::Output, time::Duration};

use client::{House, TARGET, house};
use iscsi::{
    ServiceConfig,
    chap::{Account, Algorithm, ChapSettings},
    config::TargetConfig,
};
use test_support::{Need, skip};
use tokio::process::Command;

mod client;
mod memory;

const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a program to its end; `None` if it is not here.
async fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    let mut command = Command::new(program);
    command.args(arguments).kill_on_drop(true);
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => Some(output),
        Ok(Err(error)) => {
            skip(Need::Programs.because(format!("{program} cannot be started: {error}")));
            None
        }
        Err(_) => panic!("{program} comes to no end"),
    }
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

async fn served(chap: Option<ChapSettings>) -> House {
    let house =
        house(ServiceConfig::default(), TargetConfig { chap, ..TargetConfig::open(TARGET) }).await;
    house.memory.permits.add_permits(1 << 20);
    house
}

fn url(house: &House, login: &str) -> String {
    format!("iscsi://{login}{}/{TARGET}/0", house.at)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libiscsi_finds_the_target_and_its_units() {
    let house = served(None).await;
    let Some(output) = run("iscsi-ls", &["-s", &format!("iscsi://{}", house.at)]).await else {
        return;
    };
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains(&format!("Target:{TARGET} Portal:{},1", house.at)), "{text}");
    assert!(text.contains("Lun:0 ") && text.contains("Lun:1 "), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libiscsi_gets_in_with_the_secret_alone() {
    let account = Account::new("alice", b"averylongsecret").unwrap();
    let target = Account::new("target", b"asecretofthetarget").unwrap();
    let chap = ChapSettings::new(vec![account], Some(target), Algorithm::ALL.to_vec()).unwrap();
    let house = served(Some(chap)).await;
    for (secret, right) in [("asecretofthetarget", true), ("nosecretofthetarget", false)] {
        let mutual = format!(
            "{}?target_user=target&target_password={secret}",
            url(&house, "alice%averylongsecret@")
        );
        let Some(output) = run("iscsi-inq", &[&mutual]).await else { return };
        let text = said(&output);
        assert_eq!(text.contains("Vendor:BULKHEAD"), right, "{text}");
    }
    for (login, right) in
        [("alice%averylongsecret@", true), ("alice%anotherlongone@", false), ("", false)]
    {
        let Some(output) = run("iscsi-inq", &[&url(&house, login)]).await else { return };
        let text = said(&output);
        assert_eq!(text.contains("Vendor:BULKHEAD"), right, "{login}: {text}");
        assert_eq!(text.contains("Authentication failure"), !right, "{login}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libiscsis_suite_of_the_transport_passes() {
    let house = served(None).await;
    let arguments = ["--dataloss", "--test=iSCSI", &url(&house, "")];
    let Some(output) = run("iscsi-test-cu", &arguments).await else { return };
    let text = said(&output);
    // Total, ran, passed, failed; the program's exit status tells nothing.
    let tests = text.lines().find_map(|line| line.trim().strip_prefix("tests "));
    let counts: Vec<usize> =
        tests.unwrap_or_default().split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(
        matches!(counts[..], [total, ran, passed, 0, ..] if total == ran && ran == passed && ran >= 15),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libiscsi_keeps_many_commands_under_way() {
    let house = served(None).await;
    for kind in [&["-r"][..], &[]] {
        let url = url(&house, "");
        let arguments = [&["-m", "64", "-b", "16", "-t", "2"], kind, &[&url]].concat();
        let Some(output) = run("iscsi-perf", &arguments).await else { return };
        let text = said(&output);
        assert!(output.status.success() && text.contains("finished."), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_qemu_writes_it_reads_again() {
    let house = served(None).await;
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let bytes: Vec<u8> =
        (0..8u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&image, &bytes).unwrap();
    let image = image.to_str().unwrap();
    for digest in ["none", "crc32c"] {
        let disk = format!(
            "driver=iscsi,transport=tcp,portal={},target={TARGET},lun=0,header-digest={digest}",
            house.at
        );
        let convert = ["convert", "-n", "--target-image-opts", "-f", "raw", image, &disk];
        let Some(output) = run("qemu-img", &convert).await else { return };
        let text = said(&output);
        if text.contains("Unknown driver 'iscsi'") || text.contains("Unknown protocol") {
            return skip("this qemu-img has no iSCSI driver (qemu-block-extra)");
        }
        assert!(output.status.success(), "{text}");
        assert_eq!(house.memory.content(0, 1 << 14), bytes);
        let source = format!("driver=raw,file.{}", disk.replace(',', ",file."));
        let back = folder.path().join("back");
        let convert = ["convert", "--image-opts", "-O", "raw", &source, back.to_str().unwrap()];
        let output = run("qemu-img", &convert).await.unwrap();
        assert!(output.status.success(), "{}", said(&output));
        assert!(std::fs::read(&back).unwrap() == bytes);
    }
}
