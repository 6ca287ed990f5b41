//! Names that come back: a program that saves a file through its short name removes the old one and
//! makes a new one; within 15 seconds the new one gets the long name of the old, as on NTFS.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use smb_protocol::name::same_name;

use crate::fs::{file_key::FileKey, short::short_name};

const TIME: Duration = Duration::from_secs(15);
/// Names that are remembered at most.
const MOST: usize = 256;

#[derive(Debug)]
struct Gone {
    folder: FileKey,
    short: String,
    long: String,
    at: Instant,
}

/// Long names that have just gone.
#[derive(Debug, Default)]
pub struct Tunnel {
    gone: Mutex<VecDeque<Gone>>,
}

impl Tunnel {
    fn gone(&self) -> MutexGuard<'_, VecDeque<Gone>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name of `folder` has gone.
    pub fn went(&self, folder: FileKey, long: &str, now: Instant) {
        let Some(short) = short_name(long) else { return };
        let mut gone = self.gone();
        if gone.len() >= MOST {
            gone.pop_front();
        }
        gone.push_back(Gone { folder, short, long: long.to_owned(), at: now });
    }

    /// The long name that a file made in `folder` by its short name gets.
    pub fn comes_back(&self, folder: FileKey, short: &str, now: Instant) -> Option<String> {
        let mut gone = self.gone();
        gone.retain(|name| now.duration_since(name.at) < TIME);
        let at =
            gone.iter().position(|name| name.folder == folder && same_name(&name.short, short))?;
        gone.remove(at).map(|name| name.long)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_comes_back_once_in_its_folder_and_in_time() {
        let tunnel = Tunnel::default();
        let now = Instant::now();
        let short = short_name("long name.txt").unwrap();
        tunnel.went((1, 1), "short.txt", now);
        tunnel.went((1, 1), "long name.txt", now);
        assert_eq!(tunnel.comes_back((1, 2), &short, now), None);
        let later = now + TIME / 2;
        let back = tunnel.comes_back((1, 1), &short.to_ascii_lowercase(), later);
        assert_eq!(back.as_deref(), Some("long name.txt"));
        assert_eq!(tunnel.comes_back((1, 1), &short, later), None);
        tunnel.went((1, 1), "long name.txt", now);
        assert_eq!(tunnel.comes_back((1, 1), &short, now + TIME), None);
        for number in 0..2 * MOST {
            tunnel.went((1, 1), &format!("long name {number}"), now);
        }
        assert_eq!(tunnel.gone().len(), MOST);
    }
}
