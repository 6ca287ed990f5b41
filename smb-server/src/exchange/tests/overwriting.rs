//! A CREATE that throws away what a file holds: what others must share for that, and what it keeps
//! (MS-FSA 2.1.5.1.2).

use smb_protocol::msg::create::{Access, Disposition, ShareAccess};

use super::{
    files::{FILE, logged_in},
    *,
};

const READ: ShareAccess = ShareAccess::READ;
const VIOLATION: NtStatus = NtStatus::SHARING_VIOLATION;
/// Each disposition that throws content away, and the right that this takes.
const CUTTING: [(Disposition, ShareAccess); 3] = [
    (Disposition::OVERWRITE, ShareAccess::WRITE),
    (Disposition::OVERWRITE_IF, ShareAccess::WRITE),
    (Disposition::SUPERSEDE, ShareAccess::DELETE),
];

/// Opens to read, whatever becomes of the content.
fn reading(
    direct: &mut Direct,
    name: &str,
    disposition: Disposition,
    share: ShareAccess,
) -> Result<FileId, NtStatus> {
    let request = create::Request {
        access: Access::READ_DATA,
        share,
        disposition,
        options: FILE,
        name: name.into(),
        impersonation: 2,
        ..Default::default()
    };
    let (header, body) = direct.ask(Command::CREATE, |out| request.encode(out));
    match header.status {
        NtStatus::SUCCESS => Ok(create::Response::parse(&body).unwrap().file_id),
        status => Err(status),
    }
}

/// Who has the file open says whether its content may go, and who comes later does not.
#[test]
fn what_throws_content_away_is_asked_of_those_who_are_there_and_not_of_those_who_come() {
    let mut direct = logged_in();
    for name in ["f", "f:s"] {
        let file = direct.create(name, Disposition::OPEN_IF, FILE).unwrap();
        direct.close(file);
        for (disposition, right) in CUTTING {
            let all = ShareAccess(7);
            for (share, wanted) in [
                (READ, Err(VIOLATION)),
                (ShareAccess(all.0 & !right.0), Err(VIOLATION)),
                (READ | right, Ok(())),
                (all, Ok(())),
            ] {
                let there = reading(&mut direct, name, Disposition::OPEN, share).unwrap();
                let got = reading(&mut direct, name, disposition, all);
                assert_eq!(got.map(drop), wanted, "{name} {disposition:?} {share:?}");
                if let Ok(got) = got {
                    direct.close(got);
                }
                direct.close(there);
            }
            // It reads, and lets others read: those do not need to let it write.
            let first = reading(&mut direct, name, disposition, READ).unwrap();
            let second = reading(&mut direct, name, Disposition::OPEN, READ);
            let second = second.unwrap_or_else(|status| panic!("{name} {disposition:?}: {status}"));
            // Nor has it kept a right to.
            let request = write::Request { file_id: first, data: b"x", ..Default::default() };
            let (header, _) = direct.ask(Command::WRITE, |out| request.encode(out));
            assert_eq!(header.status, NtStatus::ACCESS_DENIED);
            direct.close(second);
            direct.close(first);
        }
    }
}

/// An image that another program of the machine uses loses its content to nobody, whatever right the
/// open is to keep.
#[test]
fn an_image_that_is_in_use_is_not_overwritten_by_who_only_wants_to_read_it() {
    use block_io::{Claim, image_lock};

    let mut direct = logged_in();
    let file = direct.create("image", Disposition::CREATE, FILE).unwrap();
    direct.store(file, b"content");
    direct.close(file);
    let path = direct.files().join("image");
    let used = std::fs::File::open(&path).unwrap();
    image_lock::claim(std::os::fd::AsFd::as_fd(&used), None, Claim::Still).unwrap();
    for (disposition, _) in CUTTING {
        let got = reading(&mut direct, "image", disposition, ShareAccess(7));
        assert_eq!(got, Err(VIOLATION), "{disposition:?}");
        assert_eq!(std::fs::read(&path).unwrap(), b"content");
    }
    drop(used);
    let got = reading(&mut direct, "image", Disposition::OVERWRITE, ShareAccess(7));
    direct.close(got.unwrap());
    assert_eq!(std::fs::read(&path).unwrap(), b"");
}
