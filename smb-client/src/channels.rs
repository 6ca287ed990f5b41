//! The connections of one session: which request goes where, and what holds over all of them.
//!
//! ```text
//!                        ┌── keeper: asks the server's addresses, binds and retires channels
//!                        ▼
//!  request ─► Group::pick ─► channel (Connection) ═══ path ═══ server
//!                │       └─► channel              ═══ path ═══   one session, one table of
//!                │            └ lost: ChannelSequence + 1        opens and trees
//!                └ by bytes under way, weighed with the path's speed; silent ones last
//! ```
//!
//! When a channel is lost, what was under way on it fails to its caller's loop, which sends it
//! again on another with the next `ChannelSequence` and the replay flag (MS-SMB2 3.2.7.1, 3.2.4.1):
//! the server refuses from then on whatever the lost channel still brings, and repeats nothing
//! while its first copy is in progress. The session ends with its last channel.
//!
//! A flush covers the writes that were answered before it was sent. On which channels they were
//! does not matter: an answered write is in the file.

mod keeper;
mod plan;

use std::sync::Arc;

use smb_protocol::{Command, TreeId, msg::simple::Empty};

use crate::{Error, channel_group::Group, connection::Connection};

pub(crate) use self::keeper::keep;

/// Keeps the channels of a session. Dropping it ends the session, which closes all that is open
/// in it.
#[derive(Debug)]
pub(crate) struct Channels(Arc<Group<Connection>>);

impl Channels {
    /// Of a session with its first channel.
    pub fn new(first: Arc<Connection>) -> Self {
        let group = Arc::clone(&first.group);
        group.add(first);
        Self(group)
    }
}

impl std::ops::Deref for Channels {
    type Target = Arc<Group<Connection>>;
    fn deref(&self) -> &Arc<Group<Connection>> {
        &self.0
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        // Behind the closes that were sent last, which went the same way.
        self.main().send_and_forget(Command::LOGOFF, TreeId(0), |out| Empty.encode(out));
        self.close(&Error::Closed);
        self.clear();
    }
}
