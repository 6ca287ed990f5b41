//! Audit lists: an administrator's to see and to set, and nobody else's (MS-FSA 2.1.5.1.1,
//! MS-SMB2 3.3.5.9).

use smb_protocol::{
    msg::{
        create::{Access, Disposition, ShareAccess},
        query_info::InfoType,
    },
    security::{Ace, AceFlags, Control, Descriptor, Sid, parts},
};

use super::{files::FILE, *};

/// SYSTEM_AUDIT_ACE (MS-DTYP 2.4.4.1).
const AUDIT: u8 = 2;

/// What programs that keep copies ask for: all generic rights and the audit list.
const WANTED: Access = Access(0xc10d_0000);

impl Direct {
    fn open_with(
        &mut self,
        name: &str,
        access: Access,
        disposition: Disposition,
    ) -> Result<FileId, NtStatus> {
        let request = create::Request {
            access,
            share: ShareAccess(7),
            disposition,
            options: FILE,
            name: name.into(),
            impersonation: 2,
            ..Default::default()
        };
        let (header, body) = self.ask(Command::CREATE, |out| request.encode(out));
        match header.status {
            NtStatus::SUCCESS => Ok(create::Response::parse(&body).unwrap().file_id),
            status => Err(status),
        }
    }

    fn descriptor(&mut self, file_id: FileId, additional: u32) -> Result<Descriptor, NtStatus> {
        let request = query_info::Request {
            info_type: InfoType::SECURITY,
            output_len: 4096,
            additional,
            file_id,
            ..Default::default()
        };
        let (header, body) = self.ask(Command::QUERY_INFO, |out| request.encode(out));
        match header.status {
            NtStatus::SUCCESS => {
                let output = query_directory::Response::parse(&body).unwrap().output;
                Ok(Descriptor::parse(output).unwrap())
            }
            status => Err(status),
        }
    }

    fn granted(&mut self, file_id: FileId) -> Access {
        let output = self.query(file_id, InfoClass::ACCESS).unwrap();
        Access(u32::from_le_bytes(*output.first_chunk().unwrap()))
    }
}

fn audit_list() -> Descriptor {
    let ace = Ace::new(AUDIT, AceFlags(0x40), Access::WRITE_DATA, Sid::everyone());
    Descriptor { control: Control::SACL_PRESENT, sacl: Some(vec![ace]), ..Descriptor::default() }
}

#[test]
fn an_administrator_sees_and_sets_audit_lists() {
    let mut direct = Direct::configured("admin_users=['u']", "");
    direct.login();
    let mut list = Vec::new();
    audit_list().encode(parts::SACL, &mut list);
    for (name, disposition) in [("new", Disposition::CREATE), ("new", Disposition::OPEN)] {
        let file = direct.open_with(name, WANTED, disposition).unwrap();
        assert!(direct.granted(file).has(Access::ACCESS_SYSTEM_SECURITY));
        let status = direct.set_as(file, InfoType::SECURITY, 0, parts::SACL, &list);
        assert_eq!(status, NtStatus::SUCCESS);
        assert_eq!(direct.descriptor(file, parts::SACL).unwrap().sacl, audit_list().sacl);
        direct.close(file);
    }
    // Who may have it has it only by asking for it.
    for access in [Access::MAXIMUM_ALLOWED, Access::GENERIC_ALL] {
        let file = direct.open_with("new", access, Disposition::OPEN).unwrap();
        assert!(!direct.granted(file).has(Access::ACCESS_SYSTEM_SECURITY), "{access:?}");
        assert_eq!(direct.descriptor(file, parts::SACL), Err(NtStatus::ACCESS_DENIED));
        let status = direct.set_as(file, InfoType::SECURITY, 0, parts::SACL, &list);
        assert_eq!(status, NtStatus::ACCESS_DENIED);
        direct.close(file);
    }
    let both = Access::MAXIMUM_ALLOWED | Access::ACCESS_SYSTEM_SECURITY;
    let file = direct.open_with("new", both, Disposition::OPEN).unwrap();
    assert_eq!(direct.descriptor(file, parts::SACL).unwrap().sacl, audit_list().sacl);
    // It is no right to the file.
    let alone = direct.open_with("new", Access::ACCESS_SYSTEM_SECURITY, Disposition::OPEN);
    assert_eq!(alone, Err(NtStatus::ACCESS_DENIED));
}

#[test]
fn an_audit_list_is_for_nobody_else() {
    let mut direct = Direct::new();
    direct.login();
    let there = direct.open("there", FILE);
    direct.close(there);
    for (name, disposition) in [
        ("there", Disposition::OPEN),
        ("there", Disposition::OVERWRITE_IF),
        ("new", Disposition::CREATE),
        ("new", Disposition::OPEN_IF),
    ] {
        for access in [WANTED, Access::MAXIMUM_ALLOWED | Access::ACCESS_SYSTEM_SECURITY] {
            let refused = direct.open_with(name, access, disposition);
            assert_eq!(refused, Err(NtStatus::ACCESS_DENIED), "{name} {disposition:?} {access:?}");
        }
    }
    let missing = direct.open_with("new", Access::READ_DATA, Disposition::OPEN);
    assert_eq!(missing, Err(NtStatus::OBJECT_NAME_NOT_FOUND));
    let file = direct.open("there", FILE);
    assert_eq!(direct.descriptor(file, parts::SACL), Err(NtStatus::ACCESS_DENIED));
}
