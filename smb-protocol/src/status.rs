//! NTSTATUS values (MS-ERREF 2.3.1) that the server answers or the client understands.

use crate::open_enum;

open_enum! {
    /// Outcome of a request.
    NtStatus: u32 {
        /// `STATUS_SUCCESS`.
        SUCCESS = 0x00000000,
        /// `STATUS_PENDING`.
        PENDING = 0x00000103,
        /// `STATUS_NOTIFY_CLEANUP`.
        NOTIFY_CLEANUP = 0x0000010b,
        /// `STATUS_NOTIFY_ENUM_DIR`.
        NOTIFY_ENUM_DIR = 0x0000010c,
        /// `STATUS_BUFFER_OVERFLOW`.
        BUFFER_OVERFLOW = 0x80000005,
        /// `STATUS_NO_MORE_FILES`.
        NO_MORE_FILES = 0x80000006,
        /// `STATUS_STOPPED_ON_SYMLINK`.
        STOPPED_ON_SYMLINK = 0x8000002d,
        /// `STATUS_INVALID_EA_NAME`.
        INVALID_EA_NAME = 0x80000013,
        /// `STATUS_EA_LIST_INCONSISTENT`.
        EA_LIST_INCONSISTENT = 0x80000014,
        /// `STATUS_UNSUCCESSFUL`.
        UNSUCCESSFUL = 0xc0000001,
        /// `STATUS_NOT_IMPLEMENTED`.
        NOT_IMPLEMENTED = 0xc0000002,
        /// `STATUS_INVALID_INFO_CLASS`.
        INVALID_INFO_CLASS = 0xc0000003,
        /// `STATUS_INFO_LENGTH_MISMATCH`.
        INFO_LENGTH_MISMATCH = 0xc0000004,
        /// `STATUS_INVALID_HANDLE`.
        INVALID_HANDLE = 0xc0000008,
        /// `STATUS_INVALID_PARAMETER`.
        INVALID_PARAMETER = 0xc000000d,
        /// `STATUS_NO_SUCH_FILE`.
        NO_SUCH_FILE = 0xc000000f,
        /// `STATUS_INVALID_DEVICE_REQUEST`.
        INVALID_DEVICE_REQUEST = 0xc0000010,
        /// `STATUS_END_OF_FILE`.
        END_OF_FILE = 0xc0000011,
        /// `STATUS_MORE_PROCESSING_REQUIRED`.
        MORE_PROCESSING_REQUIRED = 0xc0000016,
        /// `STATUS_ACCESS_DENIED`.
        ACCESS_DENIED = 0xc0000022,
        /// `STATUS_BUFFER_TOO_SMALL`.
        BUFFER_TOO_SMALL = 0xc0000023,
        /// `STATUS_OBJECT_NAME_INVALID`.
        OBJECT_NAME_INVALID = 0xc0000033,
        /// `STATUS_OBJECT_NAME_NOT_FOUND`.
        OBJECT_NAME_NOT_FOUND = 0xc0000034,
        /// `STATUS_OBJECT_NAME_COLLISION`.
        OBJECT_NAME_COLLISION = 0xc0000035,
        /// `STATUS_OBJECT_PATH_NOT_FOUND`.
        OBJECT_PATH_NOT_FOUND = 0xc000003a,
        /// `STATUS_OBJECT_PATH_SYNTAX_BAD`.
        OBJECT_PATH_SYNTAX_BAD = 0xc000003b,
        /// `STATUS_SHARING_VIOLATION`.
        SHARING_VIOLATION = 0xc0000043,
        /// `STATUS_QUOTA_EXCEEDED`.
        QUOTA_EXCEEDED = 0xc0000044,
        /// `STATUS_EAS_NOT_SUPPORTED`.
        EAS_NOT_SUPPORTED = 0xc000004f,
        /// `STATUS_EA_TOO_LARGE`.
        EA_TOO_LARGE = 0xc0000050,
        /// `STATUS_NONEXISTENT_EA_ENTRY`.
        NONEXISTENT_EA_ENTRY = 0xc0000051,
        /// `STATUS_NO_EAS_ON_FILE`.
        NO_EAS_ON_FILE = 0xc0000052,
        /// `STATUS_FILE_LOCK_CONFLICT`.
        FILE_LOCK_CONFLICT = 0xc0000054,
        /// `STATUS_LOCK_NOT_GRANTED`.
        LOCK_NOT_GRANTED = 0xc0000055,
        /// `STATUS_DELETE_PENDING`.
        DELETE_PENDING = 0xc0000056,
        /// `STATUS_PRIVILEGE_NOT_HELD`.
        PRIVILEGE_NOT_HELD = 0xc0000061,
        /// `STATUS_LOGON_FAILURE`.
        LOGON_FAILURE = 0xc000006d,
        /// `STATUS_ACCOUNT_RESTRICTION`.
        ACCOUNT_RESTRICTION = 0xc000006e,
        /// `STATUS_PASSWORD_EXPIRED`.
        PASSWORD_EXPIRED = 0xc0000071,
        /// `STATUS_ACCOUNT_DISABLED`.
        ACCOUNT_DISABLED = 0xc0000072,
        /// `STATUS_RANGE_NOT_LOCKED`.
        RANGE_NOT_LOCKED = 0xc000007e,
        /// `STATUS_DISK_FULL`.
        DISK_FULL = 0xc000007f,
        /// `STATUS_INSUFFICIENT_RESOURCES`.
        INSUFFICIENT_RESOURCES = 0xc000009a,
        /// `STATUS_MEDIA_WRITE_PROTECTED`.
        MEDIA_WRITE_PROTECTED = 0xc00000a2,
        /// `STATUS_BAD_IMPERSONATION_LEVEL`.
        BAD_IMPERSONATION_LEVEL = 0xc00000a5,
        /// `STATUS_PIPE_NOT_AVAILABLE`.
        PIPE_NOT_AVAILABLE = 0xc00000ac,
        /// `STATUS_INVALID_PIPE_STATE`.
        INVALID_PIPE_STATE = 0xc00000ad,
        /// `STATUS_PIPE_BUSY`.
        PIPE_BUSY = 0xc00000ae,
        /// `STATUS_PIPE_DISCONNECTED`.
        PIPE_DISCONNECTED = 0xc00000b0,
        /// `STATUS_PIPE_CLOSING`.
        PIPE_CLOSING = 0xc00000b1,
        /// `STATUS_PIPE_EMPTY`.
        PIPE_EMPTY = 0xc00000d9,
        /// `STATUS_FILE_IS_A_DIRECTORY`.
        FILE_IS_A_DIRECTORY = 0xc00000ba,
        /// `STATUS_NOT_SUPPORTED`.
        NOT_SUPPORTED = 0xc00000bb,
        /// `STATUS_NETWORK_NAME_DELETED`.
        NETWORK_NAME_DELETED = 0xc00000c9,
        /// `STATUS_NETWORK_ACCESS_DENIED`.
        NETWORK_ACCESS_DENIED = 0xc00000ca,
        /// `STATUS_BAD_NETWORK_NAME`.
        BAD_NETWORK_NAME = 0xc00000cc,
        /// `STATUS_REQUEST_NOT_ACCEPTED`.
        REQUEST_NOT_ACCEPTED = 0xc00000d0,
        /// `STATUS_INVALID_OPLOCK_PROTOCOL`.
        INVALID_OPLOCK_PROTOCOL = 0xc00000e3,
        /// `STATUS_INTERNAL_ERROR`.
        INTERNAL_ERROR = 0xc00000e5,
        /// `STATUS_UNEXPECTED_IO_ERROR`.
        UNEXPECTED_IO_ERROR = 0xc00000e9,
        /// `STATUS_DIRECTORY_NOT_EMPTY`.
        DIRECTORY_NOT_EMPTY = 0xc0000101,
        /// `STATUS_NOT_A_DIRECTORY`.
        NOT_A_DIRECTORY = 0xc0000103,
        /// `STATUS_NAME_TOO_LONG`.
        NAME_TOO_LONG = 0xc0000106,
        /// `STATUS_TOO_MANY_OPENED_FILES`.
        TOO_MANY_OPENED_FILES = 0xc000011f,
        /// `STATUS_CANCELLED`.
        CANCELLED = 0xc0000120,
        /// `STATUS_CANNOT_DELETE`.
        CANNOT_DELETE = 0xc0000121,
        /// `STATUS_FILE_DELETED`.
        FILE_DELETED = 0xc0000123,
        /// `STATUS_FILE_CLOSED`.
        FILE_CLOSED = 0xc0000128,
        /// `STATUS_IO_DEVICE_ERROR`.
        IO_DEVICE_ERROR = 0xc0000185,
        /// `STATUS_INVALID_LEVEL`.
        INVALID_LEVEL = 0xc0000148,
        /// `STATUS_NO_SUCH_USER`.
        NO_SUCH_USER = 0xc0000064,
        /// `STATUS_WRONG_PASSWORD`.
        WRONG_PASSWORD = 0xc000006a,
        /// `STATUS_USER_SESSION_DELETED`.
        USER_SESSION_DELETED = 0xc0000203,
        /// `STATUS_INVALID_ADDRESS_COMPONENT`.
        INVALID_ADDRESS_COMPONENT = 0xc0000207,
        /// `STATUS_NOT_FOUND`.
        NOT_FOUND = 0xc0000225,
        /// `STATUS_DUPLICATE_OBJECTID`.
        DUPLICATE_OBJECTID = 0xc000022a,
        /// `STATUS_RETRY`.
        RETRY = 0xc000022d,
        /// `STATUS_CONNECTION_DISCONNECTED`.
        CONNECTION_DISCONNECTED = 0xc000020c,
        /// `STATUS_CONNECTION_RESET`.
        CONNECTION_RESET = 0xc000020d,
        /// `STATUS_INSUFF_SERVER_RESOURCES`.
        INSUFF_SERVER_RESOURCES = 0xc0000205,
        /// `STATUS_PATH_NOT_COVERED`.
        PATH_NOT_COVERED = 0xc0000257,
        /// `STATUS_NETWORK_SESSION_EXPIRED`.
        NETWORK_SESSION_EXPIRED = 0xc000035c,
        /// A binding request signed by other means than the session's.
        REQUEST_OUT_OF_SEQUENCE = 0xc000042a,
        /// `STATUS_FILE_NOT_AVAILABLE`.
        FILE_NOT_AVAILABLE = 0xc0000467,
        /// `STATUS_FILE_FORCED_CLOSED`.
        FILE_FORCED_CLOSED = 0xc00000b6,
        /// `STATUS_HASH_NOT_SUPPORTED`.
        HASH_NOT_SUPPORTED = 0xc000a100,
        /// `STATUS_INVALID_SIGNATURE`.
        INVALID_SIGNATURE = 0xc000a000,
        /// `STATUS_SERVER_UNAVAILABLE`.
        SERVER_UNAVAILABLE = 0xc0000466,
        /// `STATUS_SMB_NO_PREAUTH_INTEGRITY_HASH_OVERLAP`.
        SMB_NO_PREAUTH_INTEGRITY_HASH_OVERLAP = 0xc05d0000,
        /// `STATUS_SMB_BAD_CLUSTER_DIALECT`.
        SMB_BAD_CLUSTER_DIALECT = 0xc05d0001,
    }
}

impl NtStatus {
    /// Whether the severity is "error" (the two top bits set).
    pub fn is_error(self) -> bool {
        self.0 >> 30 == 3
    }

    /// Whether the severity is "success" or "information".
    pub fn is_success(self) -> bool {
        self.0 >> 30 < 2
    }
}

impl std::fmt::Display for NtStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.known_name() {
            Some(name) => write!(f, "STATUS_{name}"),
            None => write!(f, "status {:#010x}", self.0),
        }
    }
}
