//! A share and what can be done on it besides reading and writing files.
//!
//! ```text
//!  stat, identify, list ─► one message: CREATE, …, CLOSE ─► lost: again, on another channel
//!  mkdir, rename, delete ─► the same ─► lost: the session ends; what is found decides
//! ```
//!
//! Names have no channel sequence that would keep a lost copy of a request from being carried out
//! late, so whoever changes names ends the session with the channel. An open that is durable comes
//! through that; the session's others are made anew.

mod listing;
mod task;

use std::sync::Arc;

use smb_protocol::{
    NtStatus,
    fscc::{FileAttributes, InfoClass, Times, file_info::Rename},
    msg::{create::Access, query_directory, tree_connect::ShareCapabilities},
};

use self::{
    listing::Listing,
    task::{Seen, Task, is_gone},
};
use crate::{
    Error, OpenOptions, RemoteFile, Result,
    open::{Open, Patience, wire_path},
    rules::Rule,
    session::{Inner, Link},
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
    /// DOS attributes (MS-FSCC 2.6).
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

/// What is the same file under another name, and another file under the same name: its number on
/// the volume, and when it was made, since numbers are used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Identity {
    number: u64,
    made: u64,
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
    ///
    /// # Errors
    /// [`Error::Path`] for a path that no file can have, [`Error::Status`] if the server refuses,
    /// [`Error::Disconnected`] if the connection could not be restored in time.
    pub async fn open(&self, path: &str, options: OpenOptions) -> Result<RemoteFile> {
        let open = Open::new(Arc::clone(&self.session), &self.share, path, options).await?;
        Ok(RemoteFile::new(open))
    }

    /// Connects to the share if that is not done yet.
    pub(crate) async fn connect(&self) -> Result<()> {
        /// Connections that may be lost as the server confirms what was negotiated.
        const UNCONFIRMED: u32 = 3;
        let (mut patience, mut unconfirmed) = (Patience::default(), 0);
        loop {
            let link = self.session.link().await?;
            match link.tree(&self.session.options, &self.share).await {
                Ok(tree) => {
                    if tree.capabilities.has(ShareCapabilities::CLUSTER) {
                        self.session.witness(&self.share);
                    }
                    return Ok(());
                }
                Err(Error::Unconfirmed) if unconfirmed == UNCONFIRMED => {
                    return Err(Error::Unconfirmed);
                }
                Err(Error::Unconfirmed) => {
                    unconfirmed += 1;
                    patience.recover(&self.session, &link, Error::Unconfirmed).await?;
                }
                Err(error) => patience.recover(&self.session, &link, error).await?,
            }
        }
    }

    /// Does something once, over the session `link`.
    async fn attempt(&self, link: &Link, task: &Task) -> Result<Seen> {
        let tree = link.tree(&self.session.options, &self.share).await?;
        task.carry_out(&link.channels.pick(), tree.id).await
    }

    /// Does something that changes nothing, again if its connection is lost.
    async fn look(&self, task: &Task) -> Result<Seen> {
        let mut patience = Patience::default();
        loop {
            let link = self.session.link().await?;
            match self.attempt(&link, task).await {
                Err(error) if error.is_disconnect() => {
                    patience.recover(&self.session, &link, error).await?;
                }
                result => return result,
            }
        }
    }

    /// Which file has a name now; `None` if none has.
    async fn identify(&self, path: &str) -> Result<Option<Identity>> {
        let seen = match self.look(&Task::identify(path)?).await {
            Err(error) if is_gone(&error) => return Ok(None),
            result => result?,
        };
        let answer = seen.answer.ok_or(Error::Protocol("a file without a number".into()))?;
        let output = query_directory::Response::parse(&answer.body)?.output;
        let number = output.first_chunk().map(|number| u64::from_le_bytes(*number));
        let number = number.ok_or(Error::Protocol("a file without a number".into()))?;
        Ok(Some(Identity { number, made: seen.metadata.times.creation }))
    }

    /// Tries to change something. `Ok(false)` says that it is not known whether that was done: the
    /// connection was lost. Its session is then ended and another begun, so that a copy of the
    /// request which is still on its way is not carried out any more.
    async fn change(&self, patience: &mut Patience, task: &Task) -> Result<bool> {
        let link = self.session.link().await?;
        match self.attempt(&link, task).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_disconnect() => {
                if self.session.options.keeps(Rule::Names) {
                    link.channels.close(&error);
                }
                patience.recover(&self.session, &link, error).await?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// What is known of a file or directory.
    ///
    /// # Errors
    /// Those of [`Tree::open`].
    pub async fn stat(&self, path: &str) -> Result<Metadata> {
        Ok(self.look(&Task::open(path, Access::READ_ATTRIBUTES)?).await?.metadata)
    }

    /// Whether there is a file or directory of this name.
    ///
    /// # Errors
    /// Those of [`Tree::open`], but that there is none.
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

    /// Makes a directory, which must not be there yet. If the connection is lost before the answer
    /// and the directory is there afterwards, it is taken to be the one that was made.
    ///
    /// # Errors
    /// Those of [`Tree::open`].
    pub async fn mkdir(&self, path: &str) -> Result<()> {
        let task = Task::make_directory(path)?;
        let mut patience = Patience::default();
        let mut again = false;
        loop {
            match self.change(&mut patience, &task).await {
                Ok(true) => return Ok(()),
                Ok(false) => again = true,
                Err(error)
                    if again && error.nt_status() == Some(NtStatus::OBJECT_NAME_COLLISION) =>
                {
                    return if self.stat(path).await?.is_dir() { Ok(()) } else { Err(error) };
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives a file or directory another name on the same share. What has that name already is
    /// replaced if `replace` says so and it is a file.
    ///
    /// If the connection is lost before the answer, what is found under the old and the new name
    /// decides: the file itself, not merely a file. It is renamed once, and not again if another
    /// has renamed it since.
    ///
    /// # Errors
    /// [`Error::Disconnected`] also if the answer was lost and the file has neither name.
    pub async fn rename(&self, from: &str, to: &str, replace: bool) -> Result<()> {
        let mut input = Vec::new();
        Rename { replace, name: wire_path(to)?, ..Rename::default() }.encode(&mut input);
        let what = format!("rename {from:?} to {to:?}");
        let task = Task::open(from, Access::DELETE)?.and_set(InfoClass::RENAME, &input, &what);
        let file = self.identify(from).await?;
        let mut patience = Patience::default();
        // One that is not there is refused by the server in its own words.
        while !self.change(&mut patience, &task).await? {
            let there = self.identify(from).await?;
            if file.is_some() && there == file {
                continue;
            }
            if file.is_some() && self.identify(to).await? == file {
                return Ok(());
            }
            return Err(Error::disconnected(format!("lost when it was asked to {what}")));
        }
        Ok(())
    }

    /// Deletes a file or an empty directory.
    ///
    /// If the connection is lost before the answer, it is tried again if the same file is still
    /// there; another that has got its name since is left alone.
    ///
    /// # Errors
    /// Those of [`Tree::open`].
    pub async fn delete(&self, path: &str) -> Result<()> {
        let what = format!("delete {path:?}");
        let task = Task::open(path, Access::DELETE)?.and_set(InfoClass::DISPOSITION, &[1], &what);
        let file = self.identify(path).await?;
        let mut patience = Patience::default();
        while !self.change(&mut patience, &task).await? {
            if self.identify(path).await? != file {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Lists a directory, without `.` and `..`.
    ///
    /// # Errors
    /// Those of [`Tree::open`].
    pub async fn read_dir(&self, path: &str) -> Result<Vec<DirEntry>> {
        let task = Task::directory(path, Access::READ_DATA)?;
        let mut patience = Patience::default();
        loop {
            let link = self.session.link().await?;
            let listed = async {
                let tree = link.tree(&self.session.options, &self.share).await?;
                Listing::read(&link, tree.id, &task).await
            };
            match listed.await {
                Err(error) if error.is_disconnect() => {
                    patience.recover(&self.session, &link, error).await?;
                }
                result => return result,
            }
        }
    }
}
