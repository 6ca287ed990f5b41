//! Kerberos with MIT's KDC and Samba's smbclient, which has an implementation of its own.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    process::Command,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bulkhead_tests::{
    kdc::{HOST, Kdc, REALM},
    process::{foreign, run},
    smbd::Smbd,
};
use smb_protocol::{Command as Smb, Header, NtStatus, header::FRAME_LEN};

const LIMIT: Duration = Duration::from_secs(60);

/// A server in the realm, where alice has no password and the principal carol is the user bob.
fn server(kdc: &Kdc) -> (Smbd, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let keytab = folder.path().join("keytab");
    kdc.keytab(&keytab);
    fs::create_dir(folder.path().join("kerberos")).unwrap();
    let rest = format!(
        "[kerberos]\nkeytab = \"{}\"\n[kerberos.users]\n\"carol@{REALM}\" = \"bob\"\n\
         [[user]]\nname = \"alice\"\n[[user]]\nname = \"bob\"\n\
         [[share]]\nname = \"ours\"\npath = \"{}\"\nusers = [\"alice\", \"bob\"]\n",
        keytab.display(),
        folder.path().join("kerberos").display(),
    );
    (Smbd::start("", &rest), folder)
}

fn smbclient(kdc: &Kdc, server: &Smbd, args: &[&str], what: &str) -> String {
    let client = Command::new(foreign("smbclient").unwrap());
    smbclient_as(client, server.port(), kdc, server, args, what)
}

/// Runs `client`, which runs smbclient, against a port.
fn smbclient_as(
    mut command: Command,
    port: u16,
    kdc: &Kdc,
    server: &Smbd,
    args: &[&str],
    what: &str,
) -> String {
    kdc.client(&mut command);
    command
        .current_dir(server.scratch())
        .args(["-s", "/dev/null", "-I", "127.0.0.1", "-p", &port.to_string()])
        .arg(format!("--option=realm={REALM}"))
        .arg("--use-kerberos=required")
        .arg(format!("--use-krb5-ccache={}", kdc.tickets().display()))
        .args(args)
        .arg(format!("//{HOST}/ours"))
        .args(["-c", what]);
    let output = run(&mut command, LIMIT);
    let out = String::from_utf8_lossy(&output.stdout);
    format!("{out}{}", String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_ticket_of_every_encryption_type_opens_the_share() {
    if foreign("smbclient").is_none() {
        return;
    }
    for etype in [
        "aes128-cts-hmac-sha1-96",
        "aes256-cts-hmac-sha1-96",
        "aes128-cts-hmac-sha256-128",
        "aes256-cts-hmac-sha384-192",
    ] {
        let Some(kdc) = Kdc::start(etype) else { return };
        let (server, _folder) = server(&kdc);
        kdc.log_in("alice");
        for dialect in ["SMB2_10", "SMB3_00", "SMB3_11"] {
            let highest = format!("--option=client max protocol={dialect}");
            let protection = if dialect == "SMB2_10" { "sign" } else { "encrypt" };
            let protection = format!("--client-protection={protection}");
            let long = "--option=client smb3 encryption algorithms=AES-256-GCM AES-128-CCM";
            let text = smbclient(&kdc, &server, &[&highest, &protection, long], "mkdir x; ls");
            assert!(
                text.contains(" x ") && !text.contains("NT_STATUS"),
                "{etype} {dialect}: {text}"
            );
            smbclient(&kdc, &server, &[&highest], "rmdir x");
        }
    }
}

#[test]
fn principals_that_are_no_users_and_keys_that_are_old_are_refused() {
    if foreign("smbclient").is_none() {
        return;
    }
    let Some(kdc) = Kdc::start("aes256-cts-hmac-sha1-96") else { return };
    let (server, folder) = server(&kdc);
    kdc.log_in("mallory");
    let text = smbclient(&kdc, &server, &[], "ls");
    assert!(text.contains("NT_STATUS_LOGON_FAILURE"), "{text}");
    // A principal that stands for another user.
    kdc.log_in("carol");
    let text = smbclient(&kdc, &server, &[], "ls");
    assert!(text.contains("blocks available"), "{text}");
    // The service's key is changed, and the server has the old one.
    kdc.keytab(&folder.path().join("newer"));
    kdc.log_in("alice");
    let text = smbclient(&kdc, &server, &[], "ls");
    assert!(text.contains("NT_STATUS_LOGON_FAILURE"), "{text}");
    // It takes the new one while it runs.
    fs::copy(folder.path().join("newer"), folder.path().join("keytab")).unwrap();
    server.signal(rustix::process::Signal::HUP);
    let since = std::time::Instant::now();
    while !smbclient(&kdc, &server, &[], "ls").contains("blocks available") {
        assert!(since.elapsed() < LIMIT, "the new key is not used");
    }
    // Who has no password does not come in with an empty one.
    let mut command = Command::new(foreign("smbclient").unwrap());
    command
        .current_dir(server.scratch())
        .args(["-s", "/dev/null", "-p", &server.port().to_string()])
        .args(["-U", "alice%", "//127.0.0.1/ours", "-c", "ls"]);
    let output = run(&mut command, LIMIT);
    assert!(!output.status.success(), "a user without password came in with none");
}

/// The next message on a connection, with its frame; `None` at the end.
fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut message = vec![0; FRAME_LEN];
    stream.read_exact(&mut message).ok()?;
    let len = u32::from_be_bytes([0, message[1], message[2], message[3]]) as usize;
    message.resize(FRAME_LEN + len, 0);
    stream.read_exact(&mut message[FRAME_LEN..]).ok()?;
    Some(message)
}

fn header(message: &[u8]) -> Option<Header> {
    Header::parse(&message[FRAME_LEN..]).ok()
}

/// Stands between a client and the server for one connection and sees what the client sends before
/// the server does. The result is what it sent, up to its first logon.
fn between(
    server: &Smbd,
    mut before_logon: impl FnMut() + Send + 'static,
) -> (u16, JoinHandle<Vec<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, to) = (listener.local_addr().unwrap().port(), server.address());
    let watch = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = TcpStream::connect(to).unwrap();
        let mut back = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let answers = thread::spawn(move || {
            let _ = io::copy(&mut back.0, &mut back.1);
            let _ = back.1.shutdown(Shutdown::Both);
        });
        let (mut sent, mut logon) = (Vec::new(), false);
        while let Some(message) = message(&mut client) {
            let setup = header(&message).is_some_and(|h| h.command == Smb::SESSION_SETUP);
            if setup && !logon {
                before_logon();
            }
            if !logon {
                sent.push(message.clone());
            }
            logon |= setup;
            if server.write_all(&message).is_err() {
                break;
            }
        }
        let _ = server.shutdown(Shutdown::Both);
        answers.join().unwrap();
        sent
    });
    (port, watch)
}

#[test]
fn a_ticket_that_has_ended_is_refused() {
    const TIME: Duration = Duration::from_secs(8);
    let Some(program) = foreign("smbclient") else { return };
    let Some(kdc) = Kdc::start("aes256-cts-hmac-sha1-96") else { return };
    let (server, _folder) = server(&kdc);
    kdc.log_in_for("alice", TIME);
    let end = Instant::now() + TIME;
    assert!(smbclient(&kdc, &server, &[], "ls").contains("blocks available"));
    // The client sends it while it is good, and it comes when it is not.
    let wait = move || thread::sleep(end.saturating_duration_since(Instant::now()) + TIME / 4);
    let (port, watch) = between(&server, wait);
    let text = smbclient_as(Command::new(program), port, &kdc, &server, &[], "ls");
    assert!(text.contains("NT_STATUS_LOGON_FAILURE"), "{text}");
    assert!(watch.join().unwrap().len() >= 2, "the ticket came to the server");
}

#[test]
fn a_logon_that_is_sent_again_is_refused() {
    let Some(program) = foreign("smbclient") else { return };
    let Some(kdc) = Kdc::start("aes256-cts-hmac-sha1-96") else { return };
    let (server, _folder) = server(&kdc);
    kdc.log_in("alice");
    let (port, watch) = between(&server, || {});
    let text = smbclient_as(Command::new(program), port, &kdc, &server, &[], "ls");
    assert!(text.contains("blocks available"), "{text}");
    let sent = watch.join().unwrap();
    let mut thief = TcpStream::connect(server.address()).unwrap();
    let mut last = NtStatus::SUCCESS;
    for request in sent {
        thief.write_all(&request).unwrap();
        let answer = message(&mut thief).expect("it is answered");
        last = header(&answer).expect("it is SMB 2").status;
    }
    assert_eq!(last, NtStatus::LOGON_FAILURE);
}

#[test]
fn a_client_whose_clock_is_wrong_is_refused() {
    let (Some(faketime), Some(program)) = (foreign("faketime"), foreign("smbclient")) else {
        return;
    };
    let Some(kdc) = Kdc::start("aes256-cts-hmac-sha1-96") else { return };
    let (server, _folder) = server(&kdc);
    kdc.log_in("alice");
    // The ticket for the server is got with the right time.
    assert!(smbclient(&kdc, &server, &[], "ls").contains("blocks available"));
    for (off, fine) in [("+60s", true), ("+1000s", false), ("-1000s", false)] {
        let mut client = Command::new(&faketime);
        client.args(["-f", off]).arg(&program);
        let text = smbclient_as(client, server.port(), &kdc, &server, &[], "ls");
        assert_eq!(text.contains("blocks available"), fine, "{off}: {text}");
        assert_eq!(text.contains("NT_STATUS_LOGON_FAILURE"), !fine, "{off}: {text}");
    }
}
