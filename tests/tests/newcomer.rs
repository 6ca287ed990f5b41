//! The documents, to the letter: every block of commands is typed into a terminal, in order, on a
//! machine that has nothing yet, and every block of configuration is checked by the program it is for.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use bulkhead_tests::process::{foreign, ours, run};
use http_api::Users;

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Types what a document says.
fn follow(document: &str) {
    if !rustix::process::geteuid().is_root() {
        bulkhead_tests::skip(bulkhead_tests::Need::Root.because("a machine of its own needs root"));
        return;
    }
    let tools = ["unshare", "smbclient", "python3", "ip", "losetup"];
    if !tools.iter().all(|tool| foreign(tool).is_some()) {
        return;
    }
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // What README calls /dev/vdb.
    let image = scratch.path().join("device");
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let limit = Duration::from_secs(60);
    let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&image), limit);
    let device = String::from_utf8(device.stdout).unwrap().trim().to_owned();
    assert!(!device.is_empty(), "a loop device");
    let namespaces = ["--fork", "--pid", "--mount", "--uts", "--ipc", "--net", "--kill-child"];
    let mut command = Command::new("unshare");
    command
        .args(namespaces)
        .arg(project().join("tests/newcomer/enter.sh"))
        .arg(ours("smbd").parent().unwrap())
        .arg(scratch.path())
        .arg(document)
        .env("DEVICE", &device)
        .env_remove("BULKHEAD_SMB_PASSWORD")
        .env_remove("BULKHEAD_SMB_CREDENTIALS");
    let output = run(&mut command, Duration::from_secs(300));
    run(Command::new("losetup").arg("--detach").arg(&device), limit);
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if !said.contains("newcomer") && errors.contains("Operation not permitted") {
        bulkhead_tests::skip(format_args!("this machine allows no namespaces: {errors}"));
        return;
    }
    assert!(said.contains("newcomer: PASS"), "{said}\n{errors}");
}

#[test]
fn the_readme_works_to_the_letter() {
    follow("README.md");
}

/// All but the start of a downloaded image, which needs the internet and is marked `text`.
#[test]
fn the_way_to_a_first_vm_works_to_the_letter() {
    if !Path::new("/dev/kvm").exists() {
        bulkhead_tests::skip(bulkhead_tests::Need::Kvm.because("this machine has no /dev/kvm"));
        return;
    }
    if !Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd").exists() {
        bulkhead_tests::skip(bulkhead_tests::Need::Programs.because("ovmf is not installed"));
        return;
    }
    follow("docs/first-vm.md");
}

/// The documents below `docs`, those of its folders included.
fn documents() -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![project().join("docs")], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "md") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 5, "the documents are not where this test looks");
    found
}

/// Each block says what it is: `sh` is typed by these tests, `toml` is checked, `text` is neither.
#[test]
fn every_block_of_the_documents_says_what_it_is() {
    let mut documents = vec![project().join("README.md"), project().join("hyperv-host/README.md")];
    documents.extend(self::documents());
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        let mut inside = false;
        for (number, line) in text.lines().enumerate().filter(|(_, line)| line.starts_with("```")) {
            let kind = line.trim_start_matches('`');
            let known = ["sh", "toml", "text"].contains(&kind);
            assert!(
                inside && kind.is_empty() || !inside && known,
                "{}:{}: {line}",
                document.display(),
                number + 1
            );
            inside = !inside;
        }
        assert!(!inside, "{}: a block does not end", document.display());
    }
}

/// A keytab with one key of AES-256, of cifs/storage.example.com@EXAMPLE.COM.
fn one_key() -> Vec<u8> {
    let mut entry = vec![0, 2];
    for text in ["EXAMPLE.COM", "cifs", "storage.example.com"] {
        entry.extend_from_slice(&(text.len() as u16).to_be_bytes());
        entry.extend_from_slice(text.as_bytes());
    }
    // Kind of name, time, version, kind of key, its length.
    entry.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 18, 0, 32]);
    entry.extend_from_slice(&[7; 32]);
    [&[5, 2], (entry.len() as u32).to_be_bytes().as_slice(), &entry].concat()
}

/// A certificate with its key, which is its own authority, as `[cluster]` names them.
fn certificate(folder: &Path) {
    let key = rcgen::KeyPair::generate().unwrap();
    let own = rcgen::CertificateParams::new(vec!["n1".to_owned()]).unwrap();
    let own = own.self_signed(&key).unwrap().pem();
    for (name, text) in [("ca.pem", &own), ("own.pem", &own), ("own-key.pem", &key.serialize_pem())]
    {
        let file = folder.join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// What stands in the documents as configuration of smbd is taken by smbd.
#[test]
fn every_configuration_in_the_documents_is_correct() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("vms")).unwrap();
    let keytab = folder.path().join("bulkhead.keytab");
    fs::write(&keytab, one_key()).unwrap();
    fs::set_permissions(&keytab, fs::Permissions::from_mode(0o600)).unwrap();
    for (name, secret) in [
        ("web.secret", "a secret of web1"),
        ("web-target.secret", "of the target"),
        ("carol.password", "x"),
        ("hv1.password", "x"),
    ] {
        let file = folder.path().join(name);
        fs::write(&file, secret).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let none = Users::none().unwrap();
    none.save(&folder.path().join("api-users.toml")).unwrap();
    fs::write(folder.path().join("api.pem"), made.cert.pem()).unwrap();
    let key = folder.path().join("api-key.pem");
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    certificate(folder.path());
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for block in text.split("```toml\n").skip(1) {
            let block = block.split("```").next().unwrap();
            let config = folder.path().join("smbd.toml");
            let mut whole = String::new();
            if !block.contains("[server]") {
                whole.push_str("[server]\nlisten = [\"127.0.0.1:0\"]\nstate_dir = \"state\"\n");
            }
            for user in ["alice", "bob"] {
                if !block.contains(&format!("name = \"{user}\"")) {
                    whole.push_str(&format!("[[user]]\nname = \"{user}\"\npassword = \"x\"\n"));
                }
            }
            whole.push_str(
                &block.replace("/srv/vms", &folder.path().join("vms").display().to_string()),
            );
            fs::write(&config, &whole).unwrap();
            fs::set_permissions(&config, std::os::unix::fs::PermissionsExt::from_mode(0o600))
                .unwrap();
            let mut check = Command::new(ours("smbd"));
            let output =
                run(check.arg("--config").arg(&config).arg("--check"), Duration::from_secs(30));
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {errors}\n{whole}", document.display());
        }
    }
}
