//! Descriptors of the process: as many as the system lets it have, and enough for each purpose.
//!
//! ```text
//!  hard limit ─► a quarter for connections ─ the rest for opens, a file and a handle each
//! ```

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that the process needs for itself.
const OWN: usize = 64;

/// The kernel's table has room for so many from the beginning, at 8 bytes each.
const ROOM: i32 = 1 << 16;

/// Raises the limit on descriptors to what the system allows: shells and services start with few.
///
/// # Errors
/// What the system says.
pub fn raise() -> std::io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(())
}

/// Makes room in the kernel's table of descriptors, which it doubles when it is full. With several
/// threads whoever opens a file then waits for all processors (`synchronize_rcu` in
/// `expand_fdtable`), some 15 ms; now, with one, nobody does.
///
/// # Errors
/// What the system says.
pub fn make_room() -> std::io::Result<()> {
    let last = i32::try_from(limit()).unwrap_or(ROOM).min(ROOM) - 1;
    drop(rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), last)?);
    Ok(())
}

fn limit() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let _ = raise();
        let limit = getrlimit(Resource::Nofile).current;
        limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
    })
}

/// Connections that the process has descriptors for.
pub fn most_connections() -> usize {
    limit().saturating_sub(OWN) / 4
}

/// Opens that the process has descriptors for beside its connections.
pub fn most_opens() -> usize {
    (limit().saturating_sub(OWN) / 4).saturating_mul(3) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_opens() {
        raise().unwrap();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert!(most_connections() + 2 * most_opens() <= super::limit() - OWN);
    }
}
