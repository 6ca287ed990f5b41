//! The way to another host's migration port.
//!
//! Strangers at the port take places from each other, and a host is one of them until it has shown
//! its certificate. So a connection may end before the other host has greeted. It was asked for
//! nothing by then, and the next connection may have its place.

use std::{error::Error, io, thread, time::Duration};

use super::{MoveError, wire};
use crate::tls::{Stream, Tls};

/// Connections that are tried at most.
const ATTEMPTS: u32 = 20;
/// The first pause between two of them; each is longer by as much, up to [`LONGEST`].
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_millis(100);

/// Connects to another host and exchanges greetings with it.
///
/// # Errors
/// What the last attempt failed with. What is not mended by trying again is tried once.
pub fn dial(tls: &Tls, address: &str) -> Result<Stream, MoveError> {
    let mut attempt = 1;
    loop {
        match connect(tls, address) {
            Err(error) if attempt < ATTEMPTS && was_cut(&error) => {
                thread::sleep((PAUSE * attempt).min(LONGEST));
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

fn connect(tls: &Tls, address: &str) -> Result<Stream, MoveError> {
    let mut stream = tls.connect(address)?;
    wire::greet(&mut stream)?;
    Ok(stream)
}

/// Whether the other side ended the connection without a word.
fn was_cut(error: &MoveError) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(at) = cause {
        if let Some(error) = at.downcast_ref::<io::Error>() {
            return matches!(
                error.kind(),
                BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
            );
        }
        cause = at.source();
    }
    false
}
