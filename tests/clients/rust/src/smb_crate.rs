//! The crate `smb`: every dialect, signed or encrypted, compressed where the server does that.

use std::{
    fs::{self, File},
    io::Write as _,
    sync::Arc,
};

use futures_util::StreamExt;
use smb::{
    Client, ClientConfig, ConnectionConfig, CreateOptions, Dialect, Directory, FileAccessMask,
    FileAttributes, FileCreateArgs, FileDispositionInformation, FileFullDirectoryInformation,
    FileRenameInformation, GetLen, ReadAt, UncPath, WriteAt, connection::EncryptionMode,
};

use crate::{Done, Session, Step};

/// Bytes of a read or a write: the most that 2.0.2 has, for the crate does not divide what is more.
const BLOCK: usize = 64 << 10;
/// Room for a part of a listing.
const LISTING: u32 = 64 << 10;

/// Without encryption the crate would offer no cipher in a context for ciphers, which is refused (MS-SMB2
/// 3.3.5.4), so where it only signs it leaves the choice to the server.
fn config(session: &Session) -> ClientConfig {
    let dialect = match session.dialect.as_str() {
        "2.0.2" => Dialect::Smb0202,
        "2.1" => Dialect::Smb021,
        "3.0" => Dialect::Smb030,
        "3.0.2" => Dialect::Smb0302,
        _ => Dialect::Smb0311,
    };
    let mode = if session.encrypted { EncryptionMode::Required } else { EncryptionMode::Allowed };
    let mut connection = ConnectionConfig {
        min_dialect: Some(dialect),
        max_dialect: Some(dialect),
        encryption_mode: mode,
        compression_enabled: true,
        ..ConnectionConfig::default()
    };
    connection.auth_methods.kerberos = false;
    ClientConfig { connection, ..ClientConfig::default() }
}

pub async fn run(session: &Session, step: Step) -> Done {
    let client = Client::new(config(session));
    let root = UncPath::new(&session.server)?.with_share(&session.share)?;
    client.share_connect(&root, &session.user, session.password.clone()).await?;
    let done = act(&client, &root, step).await;
    client.close().await?;
    done
}

async fn act(client: &Client, root: &UncPath, step: Step) -> Done {
    let existing = |name: &str, access| {
        let path = root.clone().with_path(name);
        async move { client.create_file(&path, &FileCreateArgs::make_open_existing(access)).await }
    };
    let read = FileAccessMask::new().with_generic_read(true);
    match step {
        Step::List => {
            let folder = Arc::new(existing("", read).await?.unwrap_dir());
            let mut found = Directory::query_with_options::<FileFullDirectoryInformation>(
                &folder, "*", LISTING,
            )
            .await?;
            while let Some(entry) = found.next().await {
                println!("{}", entry?.file_name);
            }
            drop(found);
            folder.close().await?;
        }
        Step::Put(file, name) => {
            let overwrite =
                FileCreateArgs::make_overwrite(FileAttributes::new(), CreateOptions::new());
            let there =
                client.create_file(&root.clone().with_path(&name), &overwrite).await?.unwrap_file();
            let (data, mut at) = (fs::read(file)?, 0);
            while at < data.len() {
                let block = &data[at..data.len().min(at + BLOCK)];
                at += there.write_at(block, at as u64).await?;
            }
            there.close().await?;
        }
        Step::Get(name, file) => {
            let there = existing(&name, read).await?.unwrap_file();
            let (mut here, mut block, mut at) = (File::create(file)?, vec![0; BLOCK], 0);
            let len = there.get_len().await?;
            while at < len {
                let got = there.read_at(&mut block, at).await?;
                here.write_all(&block[..got])?;
                at += got as u64;
            }
            there.close().await?;
        }
        Step::Rename(old, new) => {
            let there = existing(&old, read.with_delete(true)).await?.unwrap_file();
            let to = FileRenameInformation {
                replace_if_exists: false.into(),
                root_directory: 0,
                file_name: new.as_str().into(),
            };
            there.set_info(to).await?;
            there.close().await?;
        }
        Step::Delete(name) => {
            let there = existing(&name, read.with_delete(true)).await?.unwrap_file();
            there.set_info(FileDispositionInformation::default()).await?;
            there.close().await?;
        }
    }
    Ok(())
}
