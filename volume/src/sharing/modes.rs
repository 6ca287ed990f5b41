//! Which openers of a file go together (MS-FSA 2.1.5.1.2).

use smb_protocol::msg::create::{Access, ShareAccess};

use crate::sharing::file::Opener;

/// Rights that take part in sharing; an opener with none of them neither blocks nor is blocked
/// (MS-FSA 2.1.5.1.2).
pub(crate) const READS: Access = Access(Access::READ_DATA.0 | Access::EXECUTE.0);
pub(crate) const WRITES: Access = Access(Access::WRITE_DATA.0 | Access::APPEND_DATA.0);
/// Who asks for no more than this leaves caches alone (MS-FSA 2.1.4.12).
pub(crate) const NON_BREAKING_ACCESS: Access = Access(
    Access::READ_ATTRIBUTES.0 | Access::WRITE_ATTRIBUTES.0 | Access::SYNCHRONIZE.0 | STREAM_BASE.0,
);

/// Marks the opener of a stream among those of its file: it takes part in the sharing of deletion
/// and of nothing else (MS-FSA 2.1.5.1.2.1). No client can ask for this bit.
pub const STREAM_BASE: Access = Access(0x0800_0000);

/// How the opener of a stream stands among those of its file.
pub fn beside(by: &Opener) -> Opener {
    let takes_part = by.access.or(by.overwrites).any(READS.or(WRITES).or(Access::DELETE));
    Opener {
        access: if takes_part { STREAM_BASE } else { Access::NONE },
        share: ShareAccess::READ | ShareAccess::WRITE | by.share.and(ShareAccess::DELETE),
        lease: by.lease.filter(|_| !takes_part),
        overwrites: Access::NONE,
        ..*by
    }
}

/// Whether an opener with this access and one that shares like this exclude each other.
pub(crate) fn conflicts(access: Access, share: ShareAccess) -> bool {
    access.any(READS) && !share.has(ShareAccess::READ)
        || access.any(WRITES) && !share.has(ShareAccess::WRITE)
        || access.has(Access::DELETE) && !share.has(ShareAccess::DELETE)
}

/// Whether an opener with this access takes part in sharing.
pub(crate) fn takes_part(access: Access) -> bool {
    access.any(READS.or(WRITES).or(Access::DELETE).or(STREAM_BASE))
}
