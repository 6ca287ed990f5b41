//! `bulkhead user` and `bulkhead bench smb` as a person runs them, against our server.

use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
    sync::Arc,
};

use smbd::{Running, Server, config::Config};
use test_support::process::ours;

const PASSWORD: &str = "ge heim-42";

fn bulkhead(args: &[&str], input: &str, variables: &[(&str, &str)]) -> Output {
    let mut child = Command::new(ours("bulkhead"))
        .args(args)
        .env_remove("BULKHEAD_SMB_PASSWORD")
        .env_remove("BULKHEAD_SMB_CREDENTIALS")
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A server whose one user was made by `bulkhead user add`.
fn serve(directory: &Path) -> (Running, String) {
    let d = directory.display();
    std::fs::create_dir(directory.join("share")).unwrap();
    let users = format!("{d}/users.toml");
    let added = bulkhead(
        &["user", "add", "admin", "--file", &users, "--password-file", "-"],
        &format!("{PASSWORD}\n"),
        &[],
    );
    assert!(added.status.success(), "{}", text(&added.stderr));
    let config = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nstate_dir = \"{d}/state\"\n\
         signing = \"enabled\"\nencryption = \"off\"\nusers_file = \"{users}\"\n\
         [[share]]\nname = \"vms\"\npath = \"{d}/share\"\nusers = [\"admin\"]\n"
    );
    let config = Config::parse(&config, Path::new("smbd.toml")).unwrap();
    let running = smbd::start(Arc::new(Server::new(config).unwrap())).unwrap();
    let port = running.addresses()[0].port();
    (running, format!("smb://admin@127.0.0.1:{port}/vms/bench.bin"))
}

/// What the tool prints, which must succeed.
fn run(args: &[&str]) -> String {
    let output = bulkhead(args, "", &[("BULKHEAD_SMB_PASSWORD", PASSWORD)]);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout).to_owned()
}

fn json(args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&run(args)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_are_made_checked_and_converted_on_a_share() {
    let directory = tempfile::tempdir().unwrap();
    let (running, url) = serve(directory.path());
    let on_share = |name: &str| url.replace("bench.bin", name);
    let password = [("BULKHEAD_SMB_PASSWORD", PASSWORD)];

    let empty = on_share("empty.vhdx");
    run(&["disk", "create", &empty, "--size", "4G"]);
    assert_eq!(json(&["disk", "info", &empty, "--json"])["size"], 4u64 << 30);
    assert_eq!(json(&["disk", "check", &empty, "--json"])["errors"], 0);
    let again = bulkhead(&["disk", "create", &empty, "--size", "1G"], "", &password);
    assert!(text(&again.stderr).contains("STATUS_OBJECT_NAME_COLLISION"));
    run(&["disk", "create", &empty, "--size", "1G", "--force"]);
    let fixed = on_share("fixed.vhdx");
    run(&["disk", "create", &fixed, "--size", "8M", "--fixed", "--block-size", "1M"]);
    assert_eq!(json(&["disk", "info", &fixed, "--json"])["allocated_blocks"], 8);
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::metadata(directory.path().join("share/fixed.vhdx")).unwrap();
    assert!(file.blocks() * 512 >= 8 << 20, "its space is reserved");

    let mut data = vec![0u8; 9 << 20];
    for at in [0, 3 << 20, (9 << 20) - 700] {
        data[at..at + 700].fill(0x42);
    }
    let local = directory.path().join("a.raw");
    std::fs::write(&local, &data).unwrap();
    let (local, image) = (local.to_str().unwrap(), on_share("a.vhdx"));
    run(&["disk", "convert", local, &image]);
    let back = directory.path().join("b.raw");
    run(&["disk", "convert", &image, back.to_str().unwrap()]);
    assert!(std::fs::read(back).unwrap() == data, "data differ");
    let copy = on_share("c.vhdx");
    run(&["disk", "convert", &image, &copy, "--block-size", "1M"]);
    assert_eq!(json(&["disk", "check", &copy, "--json"])["errors"], 0);
    running.drain().await;
}

/// Every subcommand that changes an image or tells of one, on images that are on a share, with what
/// they read as seen after each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_on_a_share_are_changed_by_every_subcommand() {
    let directory = tempfile::tempdir().unwrap();
    let (running, url) = serve(directory.path());
    let on_share = |name: &str| url.replace("bench.bin", name);
    let password = [("BULKHEAD_SMB_PASSWORD", PASSWORD)];
    let fails = |args: &[&str]| {
        let output = bulkhead(args, "", &password);
        assert!(!output.status.success(), "{args:?} succeeded: {}", text(&output.stdout));
        text(&output.stderr).to_owned()
    };
    let mut data = vec![0u8; 6 << 20];
    for at in [0, 3 << 20, (6 << 20) - 512] {
        data[at..at + 512].fill(0x42);
    }
    let raw = directory.path().join("a.raw");
    std::fs::write(&raw, &data).unwrap();
    let raw = raw.to_str().unwrap().to_owned();
    std::fs::write(format!("{raw}.item"), b"value").unwrap();
    // Reads as the raw file, whose zeros behind its end do not count, and has no error.
    let holds = |image: &str| {
        run(&["disk", "compare", image, &raw]);
        assert_eq!(json(&["disk", "check", image, "--json"])["errors"], 0, "{image}");
    };
    for ending in ["vhdx", "vhd"] {
        let named = |name: &str| on_share(&format!("{name}.{ending}"));
        let (base, moved) = (named("base"), named("moved"));
        let imported = json(&["disk", "import", &raw, &base, "--block-size", "1M", "--json"]);
        assert_eq!(imported["consistent"], true);
        holds(&base);

        run(&["disk", "resize", &base, "12M"]);
        let lost = fails(&["disk", "resize", &base, "5M"]);
        assert!(lost.contains("there is data"), "{lost}");
        run(&["disk", "resize", &base, "6M"]);
        holds(&base);
        run(&["disk", "set", &base, "--disk-id", "new"]);
        run(&["disk", "compact", &base]);
        let trimmed = json(&["disk", "trim", &base, "--zeros", "--json"]);
        assert!(trimmed["holes"].as_u64().is_some(), "{trimmed}");
        holds(&base);
        run(&["disk", "clone", &base, &moved]);
        holds(&moved);
        assert!(fails(&["disk", "clone", &base, &moved]).contains("COLLISION"));
        run(&["disk", "check", &moved, "--repair"]);

        let one = json(&["disk", "snapshot", &base, "--json"])["file"].as_str().unwrap().to_owned();
        assert_eq!(one, named("base.1"));
        run(&["disk", "snapshot", &one, "--name", "top"]);
        let top = named("base.1.top");
        holds(&top);
        let map = json(&["disk", "map", &top, "--json"]);
        let of_base = |part: &&serde_json::Value| part["file"].as_str() == Some(base.as_str());
        assert!(map.as_array().unwrap().iter().any(|part| of_base(&part)), "{map}");
        run(&["disk", "rebase", &one, "--parent", &moved]);
        holds(&one);
        run(&["disk", "merge", &top, "--into", &moved]);
        holds(&moved);
        let other = named("other");
        run(&["disk", "create", &other, "--parent", &moved]);
        holds(&other);
    }

    let image = on_share("tracked.vhdx");
    run(&["disk", "convert", &raw, &image, "--block-size", "1M"]);
    run(&["disk", "track", "enable", &image]);
    let id = run(&["disk", "track", "point", &image, "one"]);
    let changes = json(&["disk", "changes", &image, "--since", id.trim(), "--json"]);
    assert_eq!((&changes["changed"], &changes["everything"]), (&0.into(), &false.into()));
    assert_eq!(json(&["disk", "track", "list", &image, "--json"])[0]["name"], "one");
    // Changed without keeping track.
    let item = "01234567-89ab-cdef-0123-456789abcdef";
    run(&["disk", "set", &image, "--item", &format!("{item}={raw}.item")]);
    let info = json(&["disk", "info", &image, "--json"]);
    assert_eq!((&info["items"][0]["id"], &info["items"][0]["length"]), (&item.into(), &5.into()));
    let changes = json(&["disk", "changes", &image, "--since", "one", "--json"]);
    assert_eq!(changes["everything"], true);
    run(&["disk", "set", &image, "--remove-item", item]);
    holds(&image);
    run(&["disk", "track", "disable", &image]);
    assert!(fails(&["disk", "changes", &image, "--since", "one"]).contains("tracking"));
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_made_by_the_tool_can_measure_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let (running, url) = serve(directory.path());
    let password = [("BULKHEAD_SMB_PASSWORD", PASSWORD)];
    let run = |extra: &[&str]| {
        let mut args = vec!["bench", "smb", &url, "--size", "4M", "--seconds", "0.2", "--json"];
        args.extend_from_slice(extra);
        let output = bulkhead(&args, "", &password);
        assert!(output.status.success(), "{extra:?}: {}", text(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let pid = std::process::id().to_string();
    let read = run(&["--server-pid", &pid]);
    assert!(read["operations"].as_u64().unwrap() > 0);
    assert_eq!(read["operations"], read["read"]["operations"]);
    assert_eq!(read["protocol"]["signing"], "AesGmac");
    assert!(read["server_cpu_us_per_operation"].is_number());
    let plain = run(&["--sign", "off", "--pattern", "seq", "--block-size", "64K"]);
    assert!(plain["protocol"]["signing"].is_null());
    let mixed = run(&["--verify", "--rw", "mixed", "--connections", "3", "--queue-depth", "8"]);
    assert!(mixed["verified_blocks"].as_u64().unwrap() >= 1023, "{mixed}");
    assert!(mixed["write"]["operations"].as_u64().unwrap() > 0);
    let large =
        run(&["--rw", "write", "--block-size", "1M", "--encrypt", "off", "--dialect", "2.1"]);
    assert_eq!(large["protocol"]["dialect"], "SMB_2_1");
    let several = run(&["--channels", "3", "--rw", "mixed"]);
    assert_eq!(several["protocol"]["channels"].as_array().unwrap().len(), 3, "{several}");
    let counts = ["read", "write"].map(|name| several[name]["operations"].as_u64().unwrap());
    assert!(counts.iter().all(|count| *count > 0), "{several}");
    let three = run(&["--connections", "3"]);
    let counts = ["least", "most"].map(|name| three["per_connection"][name].as_u64().unwrap());
    assert!(0 < counts[0] && counts[0] <= counts[1], "{three}");
    let sum = three["operations"].as_u64().unwrap();
    assert!(counts[0] * 3 <= sum && sum <= counts[1] * 3, "{three}");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_files_are_measured_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let (running, url) = serve(directory.path());
    let folder = |name: &str| url.replace("bench.bin", name);
    let password = [("BULKHEAD_SMB_PASSWORD", PASSWORD)];
    let run = |url: &str, extra: &[&str]| {
        let mut args = vec!["bench", "smb-files", url, "--seconds", "0.1", "--json"];
        args.extend_from_slice(extra);
        bulkhead(&args, "", &password)
    };
    let json = |url: &str, extra: &[&str]| {
        let output = run(url, extra);
        assert!(output.status.success(), "{extra:?}: {}", text(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let pid = std::process::id().to_string();
    let one = json(&folder("one"), &["--server-pid", &pid]);
    assert!(one["operations"].as_u64().unwrap() > 0);
    assert_eq!(one["operations"], one["file"]["operations"]);
    assert!(one["server_cpu_us_per_operation"].is_number());
    let share = directory.path().join("share");
    assert!(!share.join("one").exists(), "the folder is removed");

    let kept = json(&folder("kept"), &["--keep", "--queue-depth", "8", "--file-size", "100000"]);
    let mut files: Vec<_> =
        std::fs::read_dir(share.join("kept")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept["operations"], files.len());
    files.sort();
    for (number, file) in files.iter().enumerate() {
        let data = std::fs::read(file).unwrap();
        assert_eq!(data.len(), 100_000);
        assert_eq!(data[..8], (number as u64).to_le_bytes(), "{}", file.display());
    }
    let again = run(&folder("kept"), &[]);
    assert!(text(&again.stderr).contains("STATUS_OBJECT_NAME_COLLISION"));
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_sessions_are_opened_and_weighed() {
    let directory = tempfile::tempdir().unwrap();
    let (running, url) = serve(directory.path());
    let password = [("BULKHEAD_SMB_PASSWORD", PASSWORD)];
    let pid = std::process::id().to_string();
    let args = ["bench", "smb-sessions", &url, "--sessions", "40", "--json"];
    let output = bulkhead(&[&args[..], &["--server-pid", &pid]].concat(), "", &password);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["sessions"], 40);
    let bytes = |name: &str| report[name].as_u64().unwrap();
    let grown = bytes("server_rss_after").saturating_sub(bytes("server_rss_before"));
    assert_eq!(bytes("server_rss_per_session"), grown / 40);
    let output = bulkhead(&args, "", &password);
    assert!(text(&output.stderr).contains("--server-pid"));
    running.drain().await;
}

#[test]
fn the_machine_is_measured() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    let file = file.to_str().unwrap();
    let args = ["bench", "machine", file, "--size", "4M", "--seconds", "0.05"];
    let output = bulkhead(&[&args[..], &["--json", "--server-cpu", "0"]].concat(), "", &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for name in
        ["loopback", "page_cache_read", "page_cache_write", "read_then_send", "receive_then_write"]
    {
        let rate = report[format!("{name}_megabytes_per_second")].as_f64().unwrap();
        assert!(rate > 0.0, "{report}");
    }
    assert!(!Path::new(file).exists(), "the file is removed");
    let output = bulkhead(&[&args[..], &["--client-cpu", "99999"]].concat(), "", &[]);
    assert!(text(&output.stderr).contains("there is no CPU 99999"));
    std::fs::write(file, "precious").unwrap();
    let output = bulkhead(&args, "", &[]);
    assert!(text(&output.stderr).contains("cannot make"));
    assert_eq!(std::fs::read(file).unwrap(), b"precious");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let (running, url) = serve(directory.path());
    let fails = |variables: &[(&str, &str)], extra: &[&str], says: &str| {
        let mut args = vec!["bench", "smb", &url, "--size", "64M", "--seconds", "0.1"];
        args.extend_from_slice(extra);
        let output = bulkhead(&args, "", variables);
        assert!(!output.status.success());
        let error = text(&output.stderr);
        assert!(error.contains(says), "{error:?} does not say {says:?}");
        assert!(!error.contains(PASSWORD));
    };
    fails(&[], &[], "BULKHEAD_SMB_PASSWORD");
    fails(&[("BULKHEAD_SMB_PASSWORD", "falsch")], &[], "STATUS_LOGON_FAILURE");
    let right = [("BULKHEAD_SMB_PASSWORD", PASSWORD)];
    fails(&right, &["--encrypt", "on"], "does not offer encryption");
    fails(&right, &["--block-size", "16M"], "per request");
    fails(&right, &["--server-pid", "4294967295"], "there is no process");
    fails(&right, &["--dialect", "9"], "3.1.1");
    running.drain().await;
}
