//! Reading a directory, which takes more than one request.

use std::sync::Arc;

use smb_protocol::{
    Command, FileId, NtStatus, TreeId,
    fscc::{InfoClass, directory::Entry},
    msg::{close, create, query_directory},
};

use super::{DirEntry, Metadata, task::Task};
use crate::{
    Error, Result,
    connection::Connection,
    session::{Link, expect},
};

const CLASS: InfoClass = InfoClass::ID_BOTH_DIRECTORY;
/// Most entries of a directory that are read.
const MAX_ENTRIES: usize = 1 << 20;

/// An open directory that is being read over one connection.
pub(super) struct Listing {
    channel: Arc<Connection>,
    tree: TreeId,
    directory: FileId,
}

impl Listing {
    /// Reads a directory. If its connection is lost it is closed over another channel; whether it
    /// was opened at all may not be known, and then the session is ended with what it has open.
    pub async fn read(link: &Link, tree: TreeId, task: &Task) -> Result<Vec<DirEntry>> {
        let channel = link.channels.pick();
        let request = task.request();
        let encode = |out: &mut Vec<u8>| request.encode(out);
        let response = match channel.call(Command::CREATE, tree, encode).await {
            Err(error) => {
                if error.is_disconnect() {
                    link.channels.close(&error);
                }
                return Err(error);
            }
            Ok(response) => response,
        };
        expect(&response, || format!("open {:?}", task.path()))?;
        let directory = create::Response::parse(&response.body)?.file_id;
        let listing = Self { channel, tree, directory };
        let result = listing.entries(task.path()).await;
        let ended = listing.end().await;
        if matches!(&ended, Err(error) if error.is_disconnect())
            && let Some(other) = link.channels.any()
        {
            other.send_and_forget(Command::CLOSE, tree, |out| listing.encode_close(out));
        }
        let entries = result?;
        match ended {
            // All that was asked for is here.
            Err(error) if error.is_disconnect() => Ok(entries),
            result => result.map(|()| entries),
        }
    }

    fn encode_close(&self, out: &mut Vec<u8>) {
        close::Request { flags: 0, file_id: self.directory }.encode(out);
    }

    async fn end(&self) -> Result<()> {
        let encode = |out: &mut Vec<u8>| self.encode_close(out);
        let response = self.channel.call(Command::CLOSE, self.tree, encode).await?;
        expect(&response, || "close a directory".into())
    }

    async fn entries(&self, path: &str) -> Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        loop {
            let request = query_directory::Request {
                class: CLASS,
                file_id: self.directory,
                output_len: self.channel.limits.max_transact.min(65536),
                pattern: "*".into(),
                ..Default::default()
            };
            let encode = |out: &mut Vec<u8>| request.encode(out);
            let response = self.channel.call(Command::QUERY_DIRECTORY, self.tree, encode).await?;
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
}
