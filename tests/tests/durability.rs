//! What was answered outlives the server's process.

use bulkhead_tests::smbd::{PASSWORD, Smbd, USER};
use smb_client::{Client, ConnectOptions, Create, Login, OpenOptions};

/// smbd is killed between answered writes; each of them is in the file afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn answered_writes_survive_kill_9() {
    let mut server = Smbd::start("", "");
    let mut expected = vec![0u8; 64 * 4096];
    std::fs::write(server.files().join("disk"), &expected).unwrap();
    for round in 0..5u8 {
        let options = ConnectOptions::new("127.0.0.1", server.port(), Login::new(USER, PASSWORD));
        let session = Client::connect(options).await.unwrap();
        let tree = session.tree("vms").await.unwrap();
        let through =
            OpenOptions { write_through: round % 2 == 1, ..OpenOptions::create(Create::Open) };
        let file = tree.open("disk", through).await.unwrap();
        for block in (usize::from(round)..64).step_by(3) {
            let data = [round * 50 + block as u8 % 50 + 1; 4096];
            file.write(block as u64 * 4096, &data).await.unwrap();
            expected[block * 4096..][..4096].copy_from_slice(&data);
        }
        server.kill_and_restart();
        assert!(std::fs::read(server.files().join("disk")).unwrap() == expected, "round {round}");
    }
}
