//! Options of a share, as a client meets them.

use smb_protocol::{
    fscc::offload::{CopyChunk, CopyChunks},
    msg::oplock::OplockLevel,
};

use super::*;

impl Direct {
    fn ask_oplock(&mut self, name: &str, oplock: OplockLevel) -> (NtStatus, OplockLevel) {
        let request = create::Request {
            access: create::Access::ALL,
            share: create::ShareAccess(7),
            disposition: create::Disposition::OPEN_IF,
            name: name.into(),
            impersonation: 2,
            oplock,
            ..Default::default()
        };
        let (header, body) = self.ask(Command::CREATE, |out| request.encode(out));
        let level = create::Response::parse(&body).map(|answer| answer.oplock);
        (header.status, level.unwrap_or(OplockLevel::NONE))
    }
}

#[test]
fn a_share_can_forbid_that_writes_are_cached() {
    for (option, want) in
        [("", OplockLevel::BATCH), ("force_level2_oplocks = true", OplockLevel::II)]
    {
        let mut direct = Direct::with(option);
        direct.login();
        let answer = direct.ask_oplock("f", OplockLevel::BATCH);
        assert_eq!(answer, (NtStatus::SUCCESS, want));
    }
}

#[test]
fn a_share_has_only_so_many_opens() {
    let mut direct = Direct::with("max_opens = 2");
    direct.login();
    let first = direct.open("a", create::CreateOptions::NON_DIRECTORY_FILE);
    direct.open("b", create::CreateOptions::NON_DIRECTORY_FILE);
    let full = (NtStatus::TOO_MANY_OPENED_FILES, OplockLevel::NONE);
    assert_eq!(direct.ask_oplock("c", OplockLevel::NONE), full);
    let close = close::Request { flags: 0, file_id: first };
    direct.ask(Command::CLOSE, |out| close.encode(out));
    assert_eq!(direct.ask_oplock("c", OplockLevel::NONE).0, NtStatus::SUCCESS);
}

#[test]
fn a_share_has_only_so_many_connections_and_only_from_where_it_may() {
    let connect = tree_connect::Request { flags: 0, path: "\\\\s\\s".into() };
    let mut direct = Direct::with("max_connections = 1\nhosts_allow = ['127.0.0.0/8']");
    direct.login();
    let (header, _) = direct.ask(Command::TREE_CONNECT, |out| connect.encode(out));
    assert_eq!(header.status, NtStatus::REQUEST_NOT_ACCEPTED);
    direct.ask(Command::TREE_DISCONNECT, |out| Empty.encode(out));
    let (header, _) = direct.ask(Command::TREE_CONNECT, |out| connect.encode(out));
    assert_eq!(header.status, NtStatus::SUCCESS);
}

/// What a share demands of requests is demanded of those that reach its files from another tree.
#[test]
fn what_is_not_for_a_connection_is_not_copied_for_it() {
    let mut direct = Direct::with(
        "[[share]]\nname='near'\npath='files'\nusers=['u']\nhosts_allow=['127.0.0.0/8']\n",
    );
    direct.login();
    let far = direct.tree;
    let target = direct.open("target", create::CreateOptions::NON_DIRECTORY_FILE);
    direct.tree = direct.tree_connect("near").0;
    let source = direct.open("source", create::CreateOptions::NON_DIRECTORY_FILE);
    direct.store(source, &[7; 4096]);
    direct.tree = far;
    let mut key = [0; 24];
    key[..16].copy_from_slice(&source.to_bytes());
    let mut input = Vec::new();
    let chunks = vec![CopyChunk { source: 0, target: 0, length: 4096 }];
    CopyChunks { key, chunks }.encode(&mut input);
    let mut extents = source.to_bytes().to_vec();
    extents.extend([0u64, 0, 4096].iter().flat_map(|value| value.to_le_bytes()));
    let codes = [
        (FsctlCode::SRV_COPYCHUNK_WRITE, &input),
        (FsctlCode::DUPLICATE_EXTENTS_TO_FILE, &extents),
    ];
    direct.exchange.peer = "192.0.2.66:1".parse().unwrap();
    for (code, input) in codes {
        let status = direct.fsctl(target, code, input);
        // Where the file system shares no blocks nothing is looked at.
        let shares = direct.exchange.server.current().volumes["S"].shares_blocks();
        if code == FsctlCode::SRV_COPYCHUNK_WRITE || shares {
            assert_eq!(status, NtStatus::ACCESS_DENIED, "{code:?}");
        }
    }
    direct.exchange.peer = "127.0.0.1:1".parse().unwrap();
    assert_eq!(direct.fsctl(target, FsctlCode::SRV_COPYCHUNK_WRITE, &input), NtStatus::SUCCESS);
}

#[test]
fn sparse_files_are_disks_of_virtual_machines_unless_the_share_says_otherwise() {
    const SPARSE_FILES: u32 = 0x40;
    const SPARSE_VDL: u32 = 0x1000_0000;
    for (option, disks) in [("", true), ("sparse = 'vm'", true), ("sparse = 'general'", false)] {
        let mut direct = Direct::with(option);
        direct.login();
        let file = direct.open("f", create::CreateOptions::NON_DIRECTORY_FILE);
        let request = query_info::Request {
            info_type: query_info::InfoType::FILESYSTEM,
            class: InfoClass(5),
            output_len: 64,
            file_id: file,
            ..Default::default()
        };
        let (header, body) = direct.ask(Command::QUERY_INFO, |out| request.encode(out));
        assert_eq!(header.status, NtStatus::SUCCESS);
        let output = query_directory::Response::parse(&body).unwrap().output;
        let attributes = u32::from_le_bytes(*output.first_chunk().unwrap());
        assert_eq!(attributes & SPARSE_FILES, SPARSE_FILES);
        assert_eq!(attributes & SPARSE_VDL != 0, disks, "{option}");
    }
}
