//! A share and what can be done on it besides reading and writing files.

use std::sync::Arc;

use smb_protocol::{
    Command, FileId, NtStatus, TreeId,
    fscc::{FileAttributes, InfoClass, Times, directory::Entry, file_info::Rename},
    msg::{
        close,
        create::{self, Access, CreateOptions, Disposition, ShareAccess},
        query_directory,
        query_info::InfoType,
        set_info,
    },
};

use crate::{
    Error, OpenOptions, RemoteFile, Result,
    connection::Connection,
    open::{IMPERSONATION, Open, Patience, wire_path},
    session::{Inner, Link, expect},
};

/// A share of a server. Paths have `/` or `\` between their parts.
#[derive(Clone, Debug)]
pub struct Tree {
    session: Arc<Inner>,
    share: String,
}

/// What is known of a file or directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metadata {
    /// Length in bytes.
    pub len: u64,
    /// Bytes allocated.
    pub allocated: u64,
    /// Attributes.
    pub attributes: FileAttributes,
    /// Times, as FILETIME.
    pub times: Times,
}

impl Metadata {
    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.attributes.has(FileAttributes::DIRECTORY)
    }
}

/// One entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// Name in its directory.
    pub name: String,
    /// What is known of it.
    pub metadata: Metadata,
}

/// Most entries of a directory that are read.
const MAX_ENTRIES: usize = 1 << 20;

/// A short-lived open on one connection; closed by [`Brief::end`].
struct Brief {
    connection: Arc<Connection>,
    tree: TreeId,
    file: FileId,
    metadata: Metadata,
}

/// How a short-lived open is made.
struct How {
    access: Access,
    options: CreateOptions,
    disposition: Disposition,
}

impl How {
    fn existing(access: Access) -> Self {
        Self { access, options: CreateOptions::NONE, disposition: Disposition::OPEN }
    }
}

impl Brief {
    async fn open(
        connection: &Arc<Connection>,
        tree: TreeId,
        path: &str,
        how: &How,
    ) -> Result<Self> {
        let request = create::Request {
            impersonation: IMPERSONATION,
            access: how.access | Access::READ_ATTRIBUTES | Access::SYNCHRONIZE,
            share: ShareAccess::READ | ShareAccess::WRITE | ShareAccess::DELETE,
            disposition: how.disposition,
            options: how.options,
            name: path.to_owned(),
            ..Default::default()
        };
        let encode = |out: &mut Vec<u8>| request.encode(out);
        let response = connection.call(Command::CREATE, tree, encode).await?;
        expect(&response, || format!("open {path:?}"))?;
        let body = create::Response::parse(&response.body)?;
        let metadata = Metadata {
            len: body.end_of_file,
            allocated: body.allocation_size,
            attributes: body.attributes,
            times: body.times,
        };
        Ok(Self { connection: Arc::clone(connection), tree, file: body.file_id, metadata })
    }

    async fn end(self) -> Result<()> {
        let request = close::Request { flags: 0, file_id: self.file };
        let encode = |out: &mut Vec<u8>| request.encode(out);
        let response = self.connection.call(Command::CLOSE, self.tree, encode).await?;
        expect(&response, || "close".into())
    }

    async fn set(&self, class: InfoClass, input: &[u8], what: &str) -> Result<()> {
        let request = set_info::Request {
            info_type: InfoType::FILE,
            class,
            file_id: self.file,
            input,
            ..Default::default()
        };
        let encode = |out: &mut Vec<u8>| request.encode(out);
        let response = self.connection.call(Command::SET_INFO, self.tree, encode).await?;
        expect(&response, || what.to_owned())
    }
}

impl Tree {
    pub(crate) fn new(session: Arc<Inner>, share: &str) -> Self {
        Self { session, share: share.to_owned() }
    }

    /// Name of the share.
    #[must_use]
    pub fn share(&self) -> &str {
        &self.share
    }

    /// Opens a file.
    pub async fn open(&self, path: &str, options: OpenOptions) -> Result<RemoteFile> {
        let open = Open::new(Arc::clone(&self.session), &self.share, path, options).await?;
        Ok(RemoteFile::new(open))
    }

    async fn on_link(&self) -> Result<(Arc<Link>, TreeId)> {
        let mut patience = Patience::default();
        loop {
            let link = self.session.link().await?;
            match link.tree(&self.session.options, &self.share).await {
                Ok(tree) => return Ok((link, tree.id)),
                Err(error) => patience.recover(&self.session, &link, error).await?,
            }
        }
    }

    /// What is known of a file or directory.
    pub async fn stat(&self, path: &str) -> Result<Metadata> {
        let (link, tree) = self.on_link().await?;
        let how = How::existing(Access::READ_ATTRIBUTES);
        let file = Brief::open(&link.channels.main(), tree, &wire_path(path)?, &how).await?;
        let metadata = file.metadata;
        file.end().await?;
        Ok(metadata)
    }

    /// Whether there is a file or directory of this name.
    pub async fn exists(&self, path: &str) -> Result<bool> {
        match self.stat(path).await {
            Ok(_) => Ok(true),
            Err(Error::Status {
                status: NtStatus::OBJECT_NAME_NOT_FOUND | NtStatus::OBJECT_PATH_NOT_FOUND,
                ..
            }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes a directory, which must not be there yet.
    pub async fn mkdir(&self, path: &str) -> Result<()> {
        let (link, tree) = self.on_link().await?;
        let how = How {
            access: Access::READ_ATTRIBUTES,
            options: CreateOptions::DIRECTORY_FILE,
            disposition: Disposition::CREATE,
        };
        Brief::open(&link.channels.main(), tree, &wire_path(path)?, &how).await?.end().await
    }

    /// Gives a file or directory another name on the same share. What has that name already is
    /// replaced if `replace` says so and it is a file.
    pub async fn rename(&self, from: &str, to: &str, replace: bool) -> Result<()> {
        let (link, tree) = self.on_link().await?;
        let name = wire_path(to)?;
        let how = How::existing(Access::DELETE);
        let file = Brief::open(&link.channels.main(), tree, &wire_path(from)?, &how).await?;
        let mut input = Vec::new();
        Rename { replace, name, ..Rename::default() }.encode(&mut input);
        let what = format!("rename {from:?} to {to:?}");
        let done = file.set(InfoClass::RENAME, &input, &what).await;
        file.end().await?;
        done
    }

    /// Deletes a file or an empty directory.
    pub async fn delete(&self, path: &str) -> Result<()> {
        let (link, tree) = self.on_link().await?;
        let how = How::existing(Access::DELETE);
        let file = Brief::open(&link.channels.main(), tree, &wire_path(path)?, &how).await?;
        let what = format!("delete {path:?}");
        let done = file.set(InfoClass::DISPOSITION, &[1], &what).await;
        file.end().await?;
        done
    }

    /// Lists a directory, without `.` and `..`.
    pub async fn read_dir(&self, path: &str) -> Result<Vec<DirEntry>> {
        let (link, tree) = self.on_link().await?;
        let how = How {
            access: Access::READ_DATA,
            options: CreateOptions::DIRECTORY_FILE,
            disposition: Disposition::OPEN,
        };
        let directory = Brief::open(&link.channels.main(), tree, &wire_path(path)?, &how).await?;
        let entries = list(&directory, path).await;
        directory.end().await?;
        entries
    }
}

async fn list(directory: &Brief, path: &str) -> Result<Vec<DirEntry>> {
    const CLASS: InfoClass = InfoClass::ID_BOTH_DIRECTORY;
    let connection = &directory.connection;
    let mut entries = Vec::new();
    loop {
        let request = query_directory::Request {
            class: CLASS,
            file_id: directory.file,
            output_len: connection.limits.max_transact.min(65536),
            pattern: "*".into(),
            ..Default::default()
        };
        let encode = |out: &mut Vec<u8>| request.encode(out);
        let response = connection.call(Command::QUERY_DIRECTORY, directory.tree, encode).await?;
        if response.header.status == NtStatus::NO_MORE_FILES {
            return Ok(entries);
        }
        expect(&response, || format!("list {path:?}"))?;
        let body = query_directory::Response::parse(&response.body)?;
        let found = Entry::parse_list(CLASS, body.output)?;
        if found.is_empty() || entries.len() + found.len() > MAX_ENTRIES {
            return Err(Error::Protocol("a directory without end".into()));
        }
        for entry in found {
            if entry.name != "." && entry.name != ".." {
                let metadata = Metadata {
                    len: entry.end_of_file,
                    allocated: entry.allocation_size,
                    attributes: entry.attributes,
                    times: entry.times,
                };
                entries.push(DirEntry { name: entry.name, metadata });
            }
        }
    }
}
