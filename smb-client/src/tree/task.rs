//! What is opened, used once and closed, in one message.

use std::sync::Arc;

use smb_protocol::{
    Command, FileId, NtStatus, TreeId,
    fscc::InfoClass,
    msg::{
        close,
        create::{self, Access, CreateOptions, Disposition, ShareAccess},
        query_info::{self, InfoType},
        set_info,
    },
};

use super::Metadata;
use crate::{
    Error, Result,
    connection::{Connection, Part, Response},
    open::{IMPERSONATION, wire_path},
    session::expect,
};

/// An open, at most one use of it, and its end.
#[derive(Debug)]
pub(super) struct Task {
    /// As it stands on the wire.
    path: String,
    access: Access,
    options: CreateOptions,
    disposition: Disposition,
    /// Command and body of the use, and what it is called.
    used: Option<(Command, Vec<u8>, String)>,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Seen {
    /// What the open said.
    pub metadata: Metadata,
    /// The answer to the use.
    pub answer: Option<Response>,
}

/// Whether an error says that no file has the name, or soon none has.
pub(super) fn is_gone(error: &Error) -> bool {
    matches!(
        error.nt_status(),
        Some(
            NtStatus::OBJECT_NAME_NOT_FOUND
                | NtStatus::OBJECT_PATH_NOT_FOUND
                | NtStatus::DELETE_PENDING
        )
    )
}

impl Task {
    /// An open of what is there.
    pub fn open(path: &str, access: Access) -> Result<Self> {
        Ok(Self {
            path: wire_path(path)?,
            access,
            options: CreateOptions::NONE,
            disposition: Disposition::OPEN,
            used: None,
        })
    }

    /// The making of a directory.
    pub fn make_directory(path: &str) -> Result<Self> {
        Ok(Self {
            disposition: Disposition::CREATE,
            ..Self::directory(path, Access::READ_ATTRIBUTES)?
        })
    }

    /// An open of a directory.
    pub fn directory(path: &str, access: Access) -> Result<Self> {
        Ok(Self { options: CreateOptions::DIRECTORY_FILE, ..Self::open(path, access)? })
    }

    /// The question for a file's number.
    pub fn identify(path: &str) -> Result<Self> {
        let mut body = Vec::new();
        query_info::Request {
            info_type: InfoType::FILE,
            class: InfoClass::INTERNAL,
            output_len: 8,
            file_id: FileId::RELATED,
            ..Default::default()
        }
        .encode(&mut body);
        let used = Some((Command::QUERY_INFO, body, format!("ask the number of {path:?}")));
        Ok(Self { used, ..Self::open(path, Access::READ_ATTRIBUTES)? })
    }

    /// The same with something set.
    pub fn and_set(self, class: InfoClass, input: &[u8], what: &str) -> Self {
        let mut body = Vec::new();
        set_info::Request {
            info_type: InfoType::FILE,
            class,
            file_id: FileId::RELATED,
            input,
            ..Default::default()
        }
        .encode(&mut body);
        Self { used: Some((Command::SET_INFO, body, what.to_owned())), ..self }
    }

    /// What the file or directory is called.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The request to open.
    pub fn request(&self) -> create::Request<'static> {
        create::Request {
            impersonation: IMPERSONATION,
            access: self.access | Access::READ_ATTRIBUTES | Access::SYNCHRONIZE,
            share: ShareAccess::READ | ShareAccess::WRITE | ShareAccess::DELETE,
            disposition: self.disposition,
            options: self.options,
            name: self.path.clone(),
            ..Default::default()
        }
    }

    /// Does it on a connection. An error is that of the first request that failed.
    pub async fn carry_out(&self, channel: &Arc<Connection>, tree: TreeId) -> Result<Seen> {
        let request = self.request();
        let open = |out: &mut Vec<u8>| request.encode(out);
        let end = |out: &mut Vec<u8>| {
            close::Request { flags: 0, file_id: FileId::RELATED }.encode(out);
        };
        let using = |out: &mut Vec<u8>| {
            if let Some((_, body, _)) = &self.used {
                out.extend_from_slice(body);
            }
        };
        let mut parts = vec![Part { command: Command::CREATE, encode: &open }];
        parts.extend(self.used.as_ref().map(|used| Part { command: used.0, encode: &using }));
        parts.push(Part { command: Command::CLOSE, encode: &end });
        let mut answers = channel.chain(tree, &parts).await?.into_iter();
        let opened = answers.next().ok_or(Error::Protocol("no answer to an open".into()))?;
        expect(&opened, || format!("open {:?}", self.path))?;
        let body = create::Response::parse(&opened.body)?;
        let metadata = Metadata {
            len: body.end_of_file,
            allocated: body.allocation_size,
            attributes: body.attributes,
            times: body.times,
        };
        let mut answer = None;
        if let Some((_, _, what)) = &self.used {
            answer = answers.next();
            if let Some(answer) = &answer {
                expect(answer, || what.clone())?;
            }
        }
        if let Some(closed) = answers.next() {
            expect(&closed, || format!("close {:?}", self.path))?;
        }
        Ok(Seen { metadata, answer })
    }
}
