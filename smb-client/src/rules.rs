//! Rules that the client keeps and a simulation breaks, to see that it would notice. Only with the
//! feature `testing`; without it there is nothing to break.

use crate::ConnectOptions;

/// A rule of the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// What is sent again in the same session is marked as such (MS-SMB2 3.2.4.1).
    ReplayFlag,
    /// A CREATE that is sent again is marked as such (MS-SMB2 3.2.4.1.11).
    CreateReplayFlag,
    /// The channel sequence is counted up when a channel is lost (MS-SMB2 3.2.4.1).
    ChannelSequence,
    /// A flush covers what was acknowledged before it began, and nothing else.
    FlushBarrier,
    /// Acknowledgements of a lost connection do not count once its open is taken up again.
    LateAcknowledgement,
    /// Who changes names ends the session with the channel it lost.
    Names,
}

impl ConnectOptions {
    /// Whether a rule is kept.
    #[cfg(feature = "testing")]
    pub(crate) fn keeps(&self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }

    /// Whether a rule is kept.
    #[cfg(not(feature = "testing"))]
    pub(crate) const fn keeps(&self, _: Rule) -> bool {
        true
    }
}
