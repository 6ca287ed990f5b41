//! `bulkhead user` and `bulkhead bench smb` as a person runs them, against our server.

use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
    sync::Arc,
};

use smbd::{Running, Server, config::Config};

const PASSWORD: &str = "ge heim-42";

fn bulkhead(args: &[&str], input: &str, variables: &[(&str, &str)]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bulkhead"))
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_are_made_checked_and_converted_on_a_share() {
    let directory = tempfile::tempdir().unwrap();
    let (running, url) = serve(directory.path());
    let on_share = |name: &str| url.replace("bench.bin", name);
    let password = [("BULKHEAD_SMB_PASSWORD", PASSWORD)];
    let run = |args: &[&str]| {
        let output = bulkhead(args, "", &password);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout).to_owned()
    };
    let json = |args: &[&str]| serde_json::from_str::<serde_json::Value>(&run(args)).unwrap();

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
    running.drain().await;
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
