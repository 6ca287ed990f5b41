//! The crate `smb2`: at SMB 3.1.1, compressed where the server does that, encrypted where a share asks.

use std::{fs, time::Duration};

use smb2::{ClientConfig, SmbClient};

use crate::{Done, Session, Step};

pub async fn run(session: &Session, step: Step) -> Done {
    let mut client = SmbClient::connect(ClientConfig {
        addr: format!("{}:445", session.server),
        timeout: Duration::from_secs(10),
        username: session.user.clone(),
        password: session.password.clone(),
        domain: String::new(),
        auto_reconnect: false,
        compression: true,
        dfs_enabled: true,
        dfs_target_overrides: Default::default(),
        connect_options: None,
        response_timeout: Some(Duration::from_secs(30)),
        previous_session_id: None,
    })
    .await?;
    let mut tree = client.connect_share(&session.share).await?;
    match step {
        Step::List => {
            for entry in client.list_directory(&mut tree, "").await? {
                println!("{}", entry.name);
            }
        }
        Step::Put(file, name) => {
            client.write_file_pipelined(&tree, &name, &fs::read(file)?).await?;
        }
        Step::Get(name, file) => {
            fs::write(file, client.read_file_pipelined(&mut tree, &name).await?)?;
        }
        Step::Rename(old, new) => client.rename(&tree, &old, &new).await.map(drop)?,
        Step::Delete(name) => client.delete_file(&tree, &name).await?,
    }
    Ok(())
}
