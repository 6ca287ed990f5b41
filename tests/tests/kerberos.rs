//! Kerberos with MIT's KDC and Samba's smbclient, which has an implementation of its own.

use std::{fs, process::Command, time::Duration};

use bulkhead_tests::{
    kdc::{HOST, Kdc, REALM},
    process::{foreign, run},
    smbd::Smbd,
};

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
    let mut command = Command::new(foreign("smbclient").unwrap());
    kdc.client(&mut command);
    command
        .current_dir(server.scratch())
        .args(["-s", "/dev/null", "-I", "127.0.0.1", "-p", &server.port().to_string()])
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
