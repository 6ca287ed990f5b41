//! One step of a round trip with the crates `smb2` and `smb`:
//!
//! `rust-clients CRATE DIALECT PROTECTION SERVER SHARE STEP [ARGUMENTS]`
//!
//! A step is `list`, `put FILE NAME`, `get NAME FILE`, `rename OLD NEW` or `delete NAME`. The user and the
//! password are in `SMB_USER` and `SMB_PASSWORD`. The program ends with 3 if the server refuses the logon.
//! `rust-clients load` is a generator of load (`load.rs`).

mod load;
mod smb2_crate;
mod smb_crate;

use std::{env, error::Error, process::ExitCode};

/// The server refused the logon.
const REFUSED: u8 = 3;

/// What a step came to.
type Done = Result<(), Box<dyn Error>>;

/// Where to go, as whom, and how.
struct Session {
    server: String,
    share: String,
    user: String,
    password: String,
    dialect: String,
    encrypted: bool,
}

/// One step, with its arguments.
enum Step {
    List,
    Put(String, String),
    Get(String, String),
    Rename(String, String),
    Delete(String),
}

fn step(words: &[String]) -> Option<Step> {
    let word = |at: usize| words.get(at).cloned();
    Some(match words.first()?.as_str() {
        "list" => Step::List,
        "put" => Step::Put(word(1)?, word(2)?),
        "get" => Step::Get(word(1)?, word(2)?),
        "rename" => Step::Rename(word(1)?, word(2)?),
        "delete" => Step::Delete(word(1)?),
        _ => return None,
    })
}

/// What the environment says of who logs in.
fn secret(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<String> = env::args().collect();
    if words.get(1).is_some_and(|word| word == "load") {
        return match load::run(&words[2..]).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let (Some([name, dialect, protection, server, share]), Some(step)) =
        (words.get(1..6), words.get(6..).and_then(step))
    else {
        eprintln!("usage: rust-clients CRATE DIALECT PROTECTION SERVER SHARE STEP [ARGUMENTS]");
        return ExitCode::from(2);
    };
    let session = Session {
        server: server.clone(),
        share: share.clone(),
        user: secret("SMB_USER"),
        password: secret("SMB_PASSWORD"),
        dialect: dialect.clone(),
        encrypted: protection == "encrypted",
    };
    let done = match name.as_str() {
        "smb2" => smb2_crate::run(&session, step).await,
        _ => smb_crate::run(&session, step).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            let refused = error.to_string().to_ascii_lowercase().replace(['_', ' '], "");
            if refused.contains("logonfailure") || refused.contains("0xc000006d") {
                return ExitCode::from(REFUSED);
            }
            ExitCode::FAILURE
        }
    }
}
