//! Shares, users and targets as files: `bulkhead apply` and `bulkhead export`.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use block_io::File;
use bulkhead_tests::{
    iscsi::ask,
    port::Port,
    smbd::{PASSWORD, Smbd, USER},
};
use serde_json::{Value, json};
use smb_client::{Client, ConnectOptions, Create, Login, OpenOptions, Session};

/// A server that may make shares in `place`, and serves iSCSI.
fn served(place: &Path, port: &Port) -> Smbd {
    let keys = format!(
        "[api]\nfolders = [\"{}\"]\n[iscsi]\nlisten = [\"{}\"]\n",
        place.display(),
        port.address()
    );
    Smbd::start("", &keys)
}

/// What an invocation says if it succeeds, or else why it does not.
fn apply(server: &Smbd, file: &Path, more: &[&str]) -> Result<String, String> {
    let args = [&["apply", file.to_str().unwrap()][..], more].concat();
    let output = server.admin(&args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

fn write(file: &Path, text: &str) {
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

fn names(server: &Smbd) -> Vec<Value> {
    let shares = ask(server, &["server", "shares", "--json"]);
    shares.as_array().unwrap().iter().map(|share| share["name"].clone()).collect()
}

async fn login(server: &Smbd, user: &str, password: &str) -> Session {
    let options = ConnectOptions::new("127.0.0.1", server.port(), Login::new(user, password));
    Client::connect(options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_files_say_is_made_and_nothing_twice() {
    let (place, port) = (tempfile::tempdir().unwrap(), Port::reserve());
    fs::create_dir(place.path().join("sub")).unwrap();
    fs::File::create(place.path().join("a.raw")).unwrap().set_len(1 << 20).unwrap();
    let mut server = served(place.path(), &port);
    let folder = tempfile::tempdir().unwrap();
    let at = place.path().display();
    let share = format!("[[share]]\nname = \"more\"\npath = \"{at}/sub\"\nusers = [\"carol\"]\n");
    write(&folder.path().join("1.toml"), "[[user]]\nname = \"carol\"\npassword = \"hunter2\"\n");
    write(&folder.path().join("2.toml"), &share);
    write(
        &folder.path().join("3.toml"),
        &format!(
            "[[target]]\nname = \"iqn.2024-01.com.example:a\"\nauthentication = \"none\"\n\
             [[target.lun]]\nnumber = 0\npath = \"{at}/a.raw\"\n"
        ),
    );
    let plan = apply(&server, folder.path(), &["--plan"]).unwrap();
    for line in
        ["+ user carol", "+ share more", "+ target iqn.2024-01.com.example:a", "3 to be changed"]
    {
        assert!(plan.lines().any(|it| it == line), "{line} is not in\n{plan}");
    }
    assert!(plan.contains("nt_hash = \"(secret)\"") && !plan.contains("hunter2"), "{plan}");
    assert!(!names(&server).contains(&json!("more")), "a plan changes nothing");
    assert!(apply(&server, folder.path(), &[]).unwrap().ends_with("3 changed\n"));
    assert_eq!(apply(&server, folder.path(), &[]).unwrap(), "nothing to do\n");
    let carol = login(&server, "carol", "hunter2").await;
    let tree = carol.tree("more").await.unwrap();
    let file = tree.open("a", OpenOptions::create(Create::New)).await.unwrap();
    file.write_at(0, b"content").await.unwrap();
    drop((file, tree, carol));
    assert_eq!(fs::read(place.path().join("sub/a")).unwrap(), b"content");
    let targets = ask(&server, &["target", "list", "--json"]);
    assert_eq!(targets[0]["luns"][0]["size"], 1 << 20);
    // What is exported is all that there is, without secrets, and changes nothing where it is applied.
    let exported = server.admin(&["export"]);
    let exported = String::from_utf8(exported.stdout).unwrap();
    for part in ["name = \"more\"", "name = \"vms\"", "name = \"carol\"", "[[target.lun]]"] {
        assert!(exported.contains(part), "{part} is not in\n{exported}");
    }
    assert!(!exported.contains("nt_hash") && !exported.contains("password"), "{exported}");
    let file = server.scratch().join("exported.toml");
    write(&file, &exported);
    assert_eq!(apply(&server, &file, &[]).unwrap(), "nothing to do\n");
    // It outlives the server, and its file is the server's alone.
    server.kill_and_restart();
    assert!(names(&server).contains(&json!("more")));
    let state = server.scratch().join("state");
    let kept = state.join("declared.toml");
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    let log = fs::read_to_string(state.join("audit.jsonl")).unwrap();
    assert!(log.contains("\"op\":\"apply\"") && log.contains("(secret)"), "{log}");
    let hash = fs::read_to_string(&kept).unwrap();
    let hash = hash.lines().find_map(|line| line.strip_prefix("nt_hash = ")).unwrap().to_owned();
    assert!(hash.len() == 34 && !log.contains(hash.trim_matches('"')), "no secret is written down");
    // A key that is another is changed, and what is not named any more goes if that is asked for.
    write(&folder.path().join("2.toml"), &format!("{share}comment = \"new\"\n"));
    let changed = apply(&server, folder.path(), &[]).unwrap();
    assert!(changed.contains("~ share more\n    comment: null -> \"new\"\n"), "{changed}");
    fs::remove_file(folder.path().join("3.toml")).unwrap();
    assert_eq!(apply(&server, folder.path(), &[]).unwrap(), "nothing to do\n");
    let pruned = apply(&server, folder.path(), &["--prune"]).unwrap();
    assert!(pruned.contains("- target iqn.2024-01.com.example:a\n"), "{pruned}");
    assert_eq!(ask(&server, &["target", "list", "--json"]), json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_cut_off_unless_that_is_said() {
    let (place, port) = (tempfile::tempdir().unwrap(), Port::reserve());
    for name in ["one", "two"] {
        fs::create_dir(place.path().join(name)).unwrap();
    }
    let server = served(place.path(), &port);
    let file = server.scratch().join("share.toml");
    let share = |path: &str| {
        let path = place.path().join(path);
        format!("[[share]]\nname = \"more\"\npath = \"{}\"\nusers = [\"{USER}\"]\n", path.display())
    };
    write(&file, &share("one"));
    apply(&server, &file, &[]).unwrap();
    let session = login(&server, USER, PASSWORD).await;
    let tree = session.tree("more").await.unwrap();
    let _open = tree.open("a", OpenOptions::create(Create::New)).await.unwrap();
    write(&file, &share("two"));
    let plan = apply(&server, &file, &["--plan"]).unwrap();
    assert!(plan.contains("~ share more  (used by 1 now)"), "{plan}");
    let refused = apply(&server, &file, &[]).unwrap_err();
    assert!(refused.contains("share more is used by 1 now"), "{refused}");
    let path = |server: &Smbd| {
        let shares = ask(server, &["server", "shares", "--json"]);
        let more = shares.as_array().unwrap().iter().find(|share| share["name"] == "more").cloned();
        more.unwrap()["path"].as_str().unwrap().to_owned()
    };
    assert!(path(&server).ends_with("one"));
    apply(&server, &file, &["--cut"]).unwrap();
    assert!(path(&server).ends_with("two"));
}

#[test]
fn all_of_it_is_done_or_nothing() {
    let (place, port) = (tempfile::tempdir().unwrap(), Port::reserve());
    let server = served(place.path(), &port);
    let file = server.scratch().join("all.toml");
    let good = format!("[[share]]\nname = \"good\"\npath = \"{}\"\n", place.path().display());
    let elsewhere = tempfile::tempdir().unwrap();
    let elsewhere = elsewhere.path().display();
    for (bad, want) in [
        (
            format!("[[share]]\nname = \"bad\"\npath = \"{}/gone\"\n", place.path().display()),
            "no such folder",
        ),
        (format!("[[share]]\nname = \"bad\"\npath = \"{elsewhere}\"\n"), "api.folders"),
        ("[[share]]\nname = \"vms\"\npath = \"files\"\n".to_owned(), "in the configuration file"),
        ("[[user]]\nname = \"dave\"\n".to_owned(), "exactly one of"),
        (good.replace("good", "GOOD"), "there twice"),
        ("[[share]]\npath = \"/\"\n".to_owned(), "without a name"),
        (
            format!("[[share]]\nname = \"bad\"\npath = \"{elsewhere}\"\nhost_allow = []\n"),
            "host_allow",
        ),
        (
            "[[target]]\nname = \"iqn.2024-01.com.example:b\"\n".to_owned(),
            "iqn.2024-01.com.example:b",
        ),
        ("[server]\nname = \"X\"\n".to_owned(), "only shares, users and targets"),
    ] {
        write(&file, &format!("{good}{bad}"));
        let refused = apply(&server, &file, &[]).expect_err(&bad);
        assert!(refused.contains(want), "{bad}: {refused}");
        let planned = apply(&server, &file, &["--plan"]).expect_err(&bad);
        assert!(planned.contains(want), "a plan says so as well: {planned}");
        assert!(!names(&server).contains(&json!("good")), "{bad}");
    }
    write(&file, &good);
    apply(&server, &file, &[]).unwrap();
    assert!(names(&server).contains(&json!("good")));
}
