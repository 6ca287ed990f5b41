//! Files of a snapshot: opened with whatever right their lists give, and never changed.

use smb_protocol::{
    fscc::{FsctlCode, file_info::Basic},
    msg::{
        context::names,
        create::{Access, CreateOptions, Disposition, RawContext, ShareAccess},
        query_info::InfoType,
    },
    security::parts,
};

use super::{
    files::{FILE, FOLDER, logged_in},
    *,
};

const MOMENT: &str = "@GMT-2026.01.02-03.04.05";
const PROTECTED: NtStatus = NtStatus::MEDIA_WRITE_PROTECTED;
/// All that MAXIMUM_ALLOWED gives of a volume that is not written (MS-FSA 2.1.5.1.2.1).
const CHANGES: Access =
    Access(Access::WRITE_DATA.0 | Access::APPEND_DATA.0 | Access::DELETE_CHILD.0);

/// A share with a file and a folder, now and then.
fn with_past() -> Direct {
    let direct = logged_in();
    let now = direct.files();
    for above in [now.clone(), now.join(".bulkhead/snapshots").join(MOMENT)] {
        std::fs::create_dir_all(above.join("folder")).unwrap();
        std::fs::write(above.join("file"), "content").unwrap();
    }
    direct
}

fn then(name: &str) -> String {
    format!("{MOMENT}\\{name}")
}

/// An open, and what its answer says that there could be at most.
fn open(
    direct: &mut Direct,
    name: &str,
    (access, disposition, options): (Access, Disposition, CreateOptions),
) -> Result<(FileId, Access), NtStatus> {
    let request = create::Request {
        access,
        share: ShareAccess(7),
        disposition,
        options,
        name: then(name),
        impersonation: 2,
        contexts: vec![RawContext { name: names::MXAC, data: &[] }],
        ..Default::default()
    };
    let (header, body) = direct.ask(Command::CREATE, |out| request.encode(out));
    if header.status != NtStatus::SUCCESS {
        return Err(header.status);
    }
    let response = create::Response::parse(&body).unwrap();
    let most = smb_protocol::msg::context::find(&response.contexts, names::MXAC).unwrap();
    let most = u32::from_le_bytes(most[4..8].try_into().unwrap());
    Ok((response.file_id, Access(most)))
}

fn granted(direct: &mut Direct, file: FileId) -> Access {
    let info = direct.query(file, InfoClass::ACCESS).unwrap();
    Access(u32::from_le_bytes(info[..4].try_into().unwrap()))
}

#[test]
fn a_file_of_the_past_is_opened_with_the_rights_that_its_list_gives() {
    let mut direct = with_past();
    for (name, options) in [("file", FILE), ("folder", FOLDER)] {
        let wanted = Access::ALL.without(Access::EXECUTE.or(Access::DELETE_CHILD));
        let how = (wanted, Disposition::OPEN, options);
        let (file, most) = open(&mut direct, name, how).unwrap();
        assert_eq!(granted(&mut direct, file), wanted, "{name}");
        assert!(most.has(wanted), "{name}: {most:?}");
        direct.close(file);
        let how = (Access::MAXIMUM_ALLOWED, Disposition::OPEN_IF, options);
        let (file, _) = open(&mut direct, name, how).unwrap();
        assert_eq!(granted(&mut direct, file), Access::ALL.without(CHANGES), "{name}");
        direct.close(file);
    }
    // Who only writes has it open as well, and what is there is read by whoever asked for that.
    let how = (Access::WRITE_DATA, Disposition::OPEN, FILE);
    let (file, _) = open(&mut direct, "file", how).unwrap();
    let request = read::Request { length: 10, file_id: file, ..Default::default() };
    let (header, _) = direct.ask(Command::READ, |out| request.encode(out));
    assert_eq!(header.status, NtStatus::ACCESS_DENIED);
    direct.close(file);
    let how = (Access::ALL, Disposition::OPEN, FILE);
    let (file, _) = open(&mut direct, "file", how).unwrap();
    assert_eq!(direct.load(file), b"content");
}

#[test]
fn nothing_of_the_past_is_changed_by_whichever_right_it_was_opened() {
    let mut direct = with_past();
    for (name, options) in [("file", FILE), ("folder", FOLDER)] {
        let how = (Access::ALL, Disposition::OPEN, options);
        let (file, _) = open(&mut direct, name, how).unwrap();
        if options == FILE {
            let request = write::Request { file_id: file, data: b"x", ..Default::default() };
            let (header, _) = direct.ask(Command::WRITE, |out| request.encode(out));
            assert_eq!(header.status, PROTECTED);
            let end = 0x10_0000u64.to_le_bytes();
            assert_eq!(direct.set(file, InfoClass::END_OF_FILE, &end), PROTECTED);
        }
        let mut basic = Vec::new();
        Basic { attributes: smb_protocol::fscc::FileAttributes::HIDDEN, ..Default::default() }
            .encode(&mut basic);
        assert_eq!(direct.set(file, InfoClass::BASIC, &basic), PROTECTED);
        assert_eq!(direct.set(file, InfoClass::DISPOSITION, &[1]), PROTECTED);
        let request = query_info::Request {
            info_type: InfoType::SECURITY,
            additional: parts::DACL,
            output_len: 4096,
            file_id: file,
            ..Default::default()
        };
        let (header, body) = direct.ask(Command::QUERY_INFO, |out| request.encode(out));
        assert_eq!(header.status, NtStatus::SUCCESS);
        let list = query_directory::Response::parse(&body).unwrap().output.to_vec();
        let request = set_info::Request {
            info_type: InfoType::SECURITY,
            additional: parts::DACL,
            file_id: file,
            input: &list,
            ..Default::default()
        };
        let (header, _) = direct.ask(Command::SET_INFO, |out| request.encode(out));
        assert_eq!(header.status, PROTECTED);
        // Whether or not there is anything to take away.
        assert_eq!(direct.control(FsctlCode::DELETE_OBJECT_ID, file, &[]).0, PROTECTED);
        // A new name is one on the share as it is now, and that is another volume.
        let other = NtStatus::NOT_SAME_DEVICE;
        for class in [InfoClass::RENAME, InfoClass::RENAME_EX, InfoClass::LINK, InfoClass::LINK_EX]
        {
            assert_eq!(direct.rename(file, class, 0, "other"), other, "{name} {class:?}");
        }
        assert!(!direct.files().join("other").exists());
        direct.close(file);
        let how = (Access::READ_DATA, Disposition::OPEN, options);
        let (file, _) = open(&mut direct, name, how).unwrap();
        let renamed = direct.rename(file, InfoClass::RENAME, 0, "other");
        assert_eq!(renamed, NtStatus::ACCESS_DENIED, "{name}");
        direct.close(file);
        let how = (Access::ALL, Disposition::OPEN, options | CreateOptions::DELETE_ON_CLOSE);
        assert_eq!(open(&mut direct, name, how), Err(NtStatus::CANNOT_DELETE), "{name}");
    }
    for disposition in [Disposition::OVERWRITE, Disposition::OVERWRITE_IF, Disposition::SUPERSEDE] {
        let how = (Access::READ_DATA, disposition, FILE);
        assert_eq!(open(&mut direct, "file", how), Err(PROTECTED), "{disposition:?}");
    }
    for (name, options) in [("new", FILE), ("new", FOLDER), ("file:new", FILE)] {
        let how = (Access::READ_DATA, Disposition::CREATE, options);
        assert_eq!(open(&mut direct, name, how), Err(PROTECTED), "{name}");
    }
}
