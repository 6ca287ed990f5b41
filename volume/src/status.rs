//! The one place where errors of the system become NTSTATUS.

use rustix::io::Errno;
use smb_protocol::NtStatus;

/// NTSTATUS of an operating-system error.
pub fn of_errno(error: Errno) -> NtStatus {
    match error {
        Errno::NOENT => NtStatus::OBJECT_NAME_NOT_FOUND,
        Errno::EXIST => NtStatus::OBJECT_NAME_COLLISION,
        Errno::NOTDIR => NtStatus::OBJECT_PATH_NOT_FOUND,
        Errno::ISDIR => NtStatus::FILE_IS_A_DIRECTORY,
        Errno::NOTEMPTY => NtStatus::DIRECTORY_NOT_EMPTY,
        // EXDEV is openat2's word for "that leads out of the share".
        Errno::ACCESS | Errno::PERM | Errno::XDEV | Errno::LOOP => NtStatus::ACCESS_DENIED,
        Errno::NOSPC | Errno::DQUOT => NtStatus::DISK_FULL,
        Errno::ROFS => NtStatus::MEDIA_WRITE_PROTECTED,
        Errno::NAMETOOLONG => NtStatus::OBJECT_NAME_INVALID,
        Errno::MFILE | Errno::NFILE => NtStatus::TOO_MANY_OPENED_FILES,
        Errno::NOMEM => NtStatus::INSUFFICIENT_RESOURCES,
        Errno::INVAL | Errno::FBIG => NtStatus::INVALID_PARAMETER,
        Errno::BUSY | Errno::TXTBSY => NtStatus::SHARING_VIOLATION,
        Errno::OPNOTSUPP => NtStatus::NOT_SUPPORTED,
        Errno::BADF => NtStatus::FILE_CLOSED,
        Errno::IO => NtStatus::IO_DEVICE_ERROR,
        _ => NtStatus::UNEXPECTED_IO_ERROR,
    }
}

/// NTSTATUS of a storage error.
pub fn of_storage(error: &block_io::Error) -> NtStatus {
    use block_io::Error;
    match error {
        Error::NoSpace => NtStatus::DISK_FULL,
        Error::ReadOnly => NtStatus::ACCESS_DENIED,
        Error::Closed => NtStatus::FILE_CLOSED,
        Error::Busy(_) => NtStatus::SHARING_VIOLATION,
        Error::Unsupported(_) => NtStatus::NOT_SUPPORTED,
        Error::OutOfRange { .. } | Error::Misaligned { .. } => NtStatus::INVALID_PARAMETER,
        Error::Io { source, .. } => match source.raw_os_error() {
            Some(code) => of_errno(Errno::from_raw_os_error(code)),
            None => NtStatus::UNEXPECTED_IO_ERROR,
        },
        _ => NtStatus::UNEXPECTED_IO_ERROR,
    }
}
