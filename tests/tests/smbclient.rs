//! Samba's smbclient against smbd: every dialect, signed and encrypted, and what must be refused.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use bulkhead_tests::{
    pattern,
    process::{Stopped, foreign, run},
    smbd::{PASSWORD, Smbd, USER},
};

const LIMIT: Duration = Duration::from_secs(120);

struct Client {
    program: std::path::PathBuf,
}

impl Client {
    fn find() -> Option<Self> {
        Some(Self { program: foreign("smbclient")? })
    }

    fn command(
        &self,
        server: &Smbd,
        share: &str,
        login: &str,
        args: &[&str],
        what: &str,
    ) -> Output {
        let mut command = Command::new(&self.program);
        command
            .current_dir(server.scratch())
            .args(["-s", "/dev/null", "-p", &server.port().to_string(), "-U", login])
            .args(args)
            .arg(format!("//127.0.0.1/{share}"))
            .args(["-c", what]);
        run(&mut command, LIMIT)
    }

    fn ok(&self, server: &Smbd, share: &str, args: &[&str], what: &str) -> String {
        let output = self.command(server, share, &format!("{USER}%{PASSWORD}"), args, what);
        let text = text(&output);
        assert!(output.status.success() && !text.contains("NT_STATUS_"), "{args:?} {what}: {text}");
        text
    }

    fn refused(&self, server: &Smbd, share: &str, login: &str, what: &str, status: &str) {
        let text = text(&self.command(server, share, login, &[], what));
        assert!(text.contains(status), "{share} {what}: expected {status}, got: {text}");
    }
}

fn text(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    format!("{out}{}", String::from_utf8_lossy(&output.stderr))
}

#[test]
fn every_dialect_signed_and_encrypted() {
    let Some(client) = Client::find() else { return };
    let server = Smbd::start("signing = \"required\"\nencryption = \"offered\"", "");
    let local = server.scratch().join("local");
    let back = server.scratch().join("back");
    let content = pattern(0, 3_000_001);
    fs::write(&local, &content).unwrap();
    for dialect in ["SMB2_02", "SMB2_10", "SMB3_00", "SMB3_02", "SMB3_11"] {
        for protection in ["sign", "encrypt"] {
            if protection == "encrypt" && dialect.starts_with("SMB2") {
                continue;
            }
            let args = [
                &format!("--option=client min protocol={dialect}"),
                &format!("--option=client max protocol={dialect}"),
                &format!("--client-protection={protection}"),
            ];
            let args = args.map(String::as_str);
            let _ = fs::remove_file(&back);
            client.ok(
                &server,
                "vms",
                &args,
                "mkdir a; put local a\\One.bin; rename a\\One.bin a\\two.bin; get a\\TWO.BIN back",
            );
            assert!(fs::read(&back).unwrap() == content, "{dialect} {protection}");
            let listing = client.ok(&server, "vms", &args, "ls a\\*; allinfo a\\two.bin");
            assert!(listing.contains("two.bin") && listing.contains("3000001"), "{listing}");
            client.ok(&server, "vms", &args, "del a\\two.bin; rmdir a");
            assert_eq!(fs::read_dir(server.files()).unwrap().count(), 0);
        }
    }
}

/// Clients that begin with SMB 1 are led to SMB 2; those that know nothing else are refused.
#[test]
fn a_multi_protocol_negotiate_leads_to_smb_2() {
    let Some(client) = Client::find() else { return };
    let server = Smbd::start("", "");
    for highest in ["SMB2_02", "SMB2_10", "SMB3_11"] {
        let args = [
            "--option=client min protocol=NT1",
            &format!("--option=client max protocol={highest}"),
        ];
        client.ok(&server, "vms", &args, "mkdir here; rmdir here");
    }
    let old = ["--option=client min protocol=CORE", "--option=client max protocol=NT1"];
    let login = format!("{USER}%{PASSWORD}");
    let output = client.command(&server, "vms", &login, &old, "ls");
    assert!(!output.status.success() && text(&output).contains("NT_STATUS_"), "{}", text(&output));
}

#[test]
fn a_gibibyte_goes_and_comes_back() {
    let Some(client) = Client::find() else { return };
    let server = Smbd::start("", "");
    let block = pattern(0, 64 << 20);
    let local = server.scratch().join("local");
    {
        use std::io::Write;
        let mut file = fs::File::create(&local).unwrap();
        for _ in 0..16 {
            file.write_all(&block).unwrap();
        }
    }
    let same = |a: &std::path::Path, b: &std::path::Path| {
        run(Command::new("cmp").arg(a).arg(b), LIMIT).status.success()
    };
    client.ok(&server, "vms", &[], "put local big");
    assert!(same(&local, &server.files().join("big")));
    // Two copies at a time are enough for a small disk.
    fs::remove_file(&local).unwrap();
    client.ok(&server, "vms", &[], "get big back");
    assert!(same(&server.files().join("big"), &server.scratch().join("back")));
}

#[test]
fn strangers_and_escapes_are_refused() {
    let Some(client) = Client::find() else { return };
    let mut server = Smbd::start("", "");
    let admin = &format!("{USER}%{PASSWORD}");
    client.refused(&server, "vms", &format!("{USER}%wrong"), "ls", "NT_STATUS_LOGON_FAILURE");
    client.refused(&server, "vms", "nobody%x", "ls", "NT_STATUS_LOGON_FAILURE");
    client.refused(&server, "vms", "%", "ls", "NT_STATUS_");
    client.refused(&server, "nothing", admin, "ls", "NT_STATUS_BAD_NETWORK_NAME");
    client.refused(&server, "sealed", "second%pw-of-second", "ls", "NT_STATUS_ACCESS_DENIED");
    client.refused(&server, "ro", admin, "mkdir x", "NT_STATUS_ACCESS_DENIED");
    // Symbolic links that lead out do not open, neither absolute nor relative ones.
    fs::write(server.scratch().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("/etc", server.files().join("etc")).unwrap();
    std::os::unix::fs::symlink("../secret", server.files().join("up")).unwrap();
    client.refused(&server, "vms", admin, "get etc\\passwd stolen", "NT_STATUS_ACCESS_DENIED");
    client.refused(&server, "vms", admin, "get up stolen", "NT_STATUS_ACCESS_DENIED");
    // Nor those that lead to what is the server's own; one that leads to a file of the share is that.
    fs::create_dir_all(server.files().join(".bulkhead/streams")).unwrap();
    fs::write(server.files().join(".bulkhead/streams/x"), "secret").unwrap();
    fs::write(server.files().join("plain"), "plain").unwrap();
    for (target, name) in [(".bulkhead", "own"), (".bulkhead/streams/x", "x"), ("plain", "way")] {
        std::os::unix::fs::symlink(target, server.files().join(name)).unwrap();
    }
    for get in ["get own\\streams\\x stolen", "get x stolen", "put secret own\\new"] {
        client.refused(&server, "vms", admin, get, "NT_STATUS_ACCESS_DENIED");
    }
    assert!(!server.scratch().join("stolen").exists());
    client.ok(&server, "vms", &[], "get way got");
    assert_eq!(fs::read(server.scratch().join("got")).unwrap(), b"plain");
    let listed = client.ok(&server, "vms", &[], "ls");
    for (name, shown) in [("way", true), ("own", false), ("up", false), ("etc", false)] {
        let lines = listed.lines().any(|line| line.split_whitespace().next() == Some(name));
        assert_eq!(lines, shown, "{name}: {listed}");
    }
    assert!(server.alive());
}

/// A link is made, looked at, renamed and deleted as itself; who opens it is told to go elsewhere.
#[test]
fn symbolic_links_are_data_at_every_dialect() {
    let Some(client) = Client::find() else { return };
    let server = Smbd::start("", "");
    fs::write(server.files().join("target"), "content").unwrap();
    let admin = &format!("{USER}%{PASSWORD}");
    for dialect in ["SMB2_02", "SMB2_10", "SMB3_00", "SMB3_02", "SMB3_11"] {
        let version = format!("--option=client max protocol={dialect}");
        let ok = |what: &str| client.ok(&server, "vms", &[&version], what);
        ok("symlink target link");
        let shown = ok("allinfo link");
        assert!(shown.contains("symlink: subst=[target], print=[target], flags=1"), "{shown}");
        assert!(shown.contains("attributes: rA (420)"), "{shown}");
        let got = client.command(&server, "vms", admin, &[&version], "get link got");
        assert!(text(&got).contains("NT_STATUS_STOPPED_ON_SYMLINK"), "{}", text(&got));
        let file = fs::symlink_metadata(server.files().join("link")).unwrap();
        assert!(file.is_file() && file.len() == 0, "{file:?}");
        ok("rename link moved");
        ok("del moved");
        assert!(!server.files().join("moved").exists());
    }
    assert_eq!(fs::read(server.files().join("target")).unwrap(), b"content");
}

#[test]
fn a_sealed_share_serves_only_who_encrypts() {
    let Some(client) = Client::find() else { return };
    let server = Smbd::start("encryption = \"off\"", "");
    client.ok(&server, "sealed", &["--client-protection=encrypt"], "mkdir here; rmdir here");
    let old = ["--option=client max protocol=SMB2_10"];
    let login = format!("{USER}%{PASSWORD}");
    let output = client.command(&server, "sealed", &login, &old, "ls");
    assert!(text(&output).contains("NT_STATUS_ACCESS_DENIED"), "{}", text(&output));
}

#[test]
fn users_and_shares_are_reloaded_while_clients_stay() {
    let Some(client) = Client::find() else { return };
    let server = Smbd::start("", "");
    let config = fs::read_to_string(server.config()).unwrap();
    let more = "[[share]]\nname = \"late\"\npath = \"files\"\nusers = [\"admin\"]\n";
    client.refused(&server, "late", &format!("{USER}%{PASSWORD}"), "ls", "BAD_NETWORK_NAME");
    fs::write(server.config(), format!("{config}{more}")).unwrap();
    server.signal(rustix::process::Signal::HUP);
    let login = format!("{USER}%{PASSWORD}");
    let since = std::time::Instant::now();
    while !client.command(&server, "late", &login, &[], "ls").status.success() {
        assert!(since.elapsed() < LIMIT, "the new share does not appear");
    }
}

/// A hundred thousand entries come once each, at the oldest and the newest dialect.
#[test]
fn a_folder_of_a_hundred_thousand_files_is_listed() {
    const FILES: usize = 100_000;
    let Some(client) = Client::find() else { return };
    let server = Smbd::start("", "");
    let folder = server.files().join("many");
    fs::create_dir(&folder).unwrap();
    for n in 0..FILES {
        fs::File::create(folder.join(format!("file-{n:06}"))).unwrap();
    }
    for dialect in ["SMB2_02", "SMB3_11"] {
        let dialect = format!("--option=client max protocol={dialect}");
        let least = "--option=client min protocol=SMB2_02";
        let text = client.ok(&server, "vms", &[&dialect, least], "cd many; ls");
        let mut names: Vec<_> =
            text.lines().filter_map(|line| line.trim().split(' ').next()).collect();
        names.retain(|name| name.starts_with("file-"));
        names.sort_unstable();
        assert_eq!(names.len(), FILES);
        let all = (0..FILES).zip(&names).all(|(n, name)| *name == format!("file-{n:06}"));
        assert!(all, "a name is missing or came twice");
    }
}

/// What one client does in a folder is told to another that watches it.
#[test]
fn changes_are_told() {
    let Some(client) = Client::find() else { return };
    let Some(unbuffered) = foreign("stdbuf") else { return };
    let server = Smbd::start("", "");
    fs::create_dir(server.files().join("watched")).unwrap();
    let local = server.scratch().join("local");
    fs::write(&local, "content").unwrap();
    let mut watcher = Command::new(unbuffered);
    watcher
        .arg("-oL")
        .arg(&client.program)
        .current_dir(server.scratch())
        .args(["-s", "/dev/null", "-p", &server.port().to_string()])
        .args(["-U", &format!("{USER}%{PASSWORD}"), "//127.0.0.1/vms", "-c", "notify watched"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut watcher = Stopped(watcher.spawn().unwrap());
    let output = BufReader::new(watcher.0.stdout.take().unwrap());
    let (told, changes) = mpsc::channel();
    let reader = thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            let _ = told.send(line);
        }
    });
    // When the watch begins cannot be seen from outside, so something happens until it is told.
    let since = Instant::now();
    let what = format!("cd watched; put {} first; del first", local.display());
    while changes.try_recv().is_err() {
        client.ok(&server, "vms", &[], &what);
        assert!(since.elapsed() < LIMIT, "nothing is told");
    }
    let what =
        format!("cd watched; put {} a; rename a b; mkdir c; del b; rmdir c", local.display());
    client.ok(&server, "vms", &[], &what);
    let wanted = ["0001 a", "0004 a", "0005 b", "0001 c", "0002 b", "0002 c"];
    let mut next = 0;
    while next < wanted.len() {
        let line = changes.recv_timeout(LIMIT).expect("more is to be told");
        next += usize::from(line == wanted[next]);
    }
    drop(watcher);
    reader.join().unwrap();
}
