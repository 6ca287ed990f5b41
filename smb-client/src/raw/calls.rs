//! Requests that are sent alone and waited for.

use smb_protocol::{
    Command,
    fscc::{FileAttributes, InfoClass, file_info::Standard},
    msg::{
        close, create,
        create::{Access, CreateOptions, Disposition, ShareAccess},
        flush, query_directory, query_info,
        query_info::InfoType,
        set_info,
        simple::Empty,
        tree_connect,
    },
};

use super::{RawConnection, expect};
use crate::{
    Result,
    open::{IMPERSONATION, wire_path},
};

impl RawConnection {
    /// Makes a directory that is not there yet.
    ///
    /// # Errors
    /// [`Error::Status`](crate::Error::Status) if the server refuses;
    /// [`Error::Disconnected`](crate::Error::Disconnected).
    pub fn create_directory(&mut self, path: &str) -> Result<()> {
        let request = create::Request {
            impersonation: IMPERSONATION,
            access: Access::READ_ATTRIBUTES,
            attributes: FileAttributes::DIRECTORY,
            share: ShareAccess::READ | ShareAccess::WRITE | ShareAccess::DELETE,
            disposition: Disposition::CREATE,
            options: CreateOptions::DIRECTORY_FILE,
            name: wire_path(path)?,
            ..Default::default()
        };
        let (header, body) = self.call(Command::CREATE, |out| request.encode(out))?;
        expect(&header, || format!("make the directory {path:?}"))?;
        let file_id = create::Response::parse(&body)?.file_id;
        let (header, _) =
            self.call(Command::CLOSE, |out| close::Request { flags: 0, file_id }.encode(out))?;
        expect(&header, || format!("close the directory {path:?}"))
    }

    /// Connects to a share beside its own, and leaves it again.
    ///
    /// # Errors
    /// [`Error::Status`](crate::Error::Status) if the server refuses;
    /// [`Error::Disconnected`](crate::Error::Disconnected).
    pub fn visit(&mut self, share: &str) -> Result<()> {
        let path = format!("\\\\{}\\{share}", self.host);
        let request = tree_connect::Request { flags: 0, path };
        let (header, _) = self.call(Command::TREE_CONNECT, |out| request.encode(out))?;
        expect(&header, || format!("connect to share {share:?}"))?;
        let own = std::mem::replace(&mut self.tree, header.tree_id());
        let left = self.call(Command::TREE_DISCONNECT, |out| Empty.encode(out));
        self.tree = own;
        expect(&left?.0, || format!("leave the share {share:?}"))
    }

    /// Length of the file in bytes.
    ///
    /// # Errors
    /// [`Error::Status`](crate::Error::Status) if the server refuses;
    /// [`Error::Disconnected`](crate::Error::Disconnected).
    pub fn len(&mut self) -> Result<u64> {
        let request = query_info::Request {
            info_type: InfoType::FILE,
            class: InfoClass::STANDARD,
            output_len: 24,
            file_id: self.file,
            ..Default::default()
        };
        let (header, body) = self.call(Command::QUERY_INFO, |out| request.encode(out))?;
        expect(&header, || "ask the length".into())?;
        Ok(Standard::parse(query_directory::Response::parse(&body)?.output)?.end_of_file)
    }

    /// Whether the file is empty.
    ///
    /// # Errors
    /// Those of [`RawConnection::len`].
    pub fn is_empty(&mut self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Grows or cuts the file.
    ///
    /// # Errors
    /// [`Error::Status`](crate::Error::Status) if the server refuses;
    /// [`Error::Disconnected`](crate::Error::Disconnected).
    pub fn set_len(&mut self, len: u64) -> Result<()> {
        let request = set_info::Request {
            info_type: InfoType::FILE,
            class: InfoClass::END_OF_FILE,
            file_id: self.file,
            input: &len.to_le_bytes(),
            ..Default::default()
        };
        let (header, _) = self.call(Command::SET_INFO, |out| request.encode(out))?;
        expect(&header, || "set the length".into())
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// [`Error::Status`](crate::Error::Status) if the server refuses;
    /// [`Error::Disconnected`](crate::Error::Disconnected).
    pub fn flush(&mut self) -> Result<()> {
        let request = flush::Request { file_id: self.file };
        let (header, _) = self.call(Command::FLUSH, |out| request.encode(out))?;
        expect(&header, || "flush".into())
    }

    /// Closes the file.
    ///
    /// # Errors
    /// [`Error::Status`](crate::Error::Status) if the server refuses;
    /// [`Error::Disconnected`](crate::Error::Disconnected).
    pub fn close(&mut self) -> Result<()> {
        let request = close::Request { flags: 0, file_id: self.file };
        let (header, _) = self.call(Command::CLOSE, |out| request.encode(out))?;
        expect(&header, || "close".into())
    }
}
