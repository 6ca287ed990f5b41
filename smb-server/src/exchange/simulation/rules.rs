//! The rules that make the model hold, each broken in turn to see that a simulation notices.
//!
//! A row of the table is a test: the rule that is broken, and the simulation that notices.

use volume::faults;

use super::{history, real, world::House};

/// A rule that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    Nothing,
    // Of the clients.
    /// The channel sequence is counted up when a channel is lost.
    ChannelSequence,
    /// A CREATE that is sent again is marked as such.
    CreateReplayFlag,
    /// A WRITE that is sent again is marked as such.
    WriteReplayFlag,
    /// Locks are numbered.
    LockSequence,
    /// A flush covers what was acknowledged before it began, and nothing else.
    FlushBarrier,
    /// What a lost connection acknowledged does not count when the open is taken up again.
    LateAcknowledgement,
    /// Who changes names ends the session with the channel it lost.
    Names,
    // Of the state store.
    /// What is said to be durable is.
    Commit,
    /// What is closed is forgotten.
    Forgetting,
    /// A server that starts looks for what the last one knew.
    Recovery,
    /// Locks are remembered.
    Locks,
    /// The numbers of locks are remembered.
    LockNumbers,
    /// What a client may cache is remembered.
    Caching,
    /// That a file is to be deleted is remembered.
    DeleteOnClose,
    // Of the server.
    /// A FLUSH is answered when what was written before is durable.
    Flush,
    /// A write on a continuously available share is answered when it is durable.
    WriteThrough,
    /// Nobody else gets a file whose client is away.
    NotAvailable,
    /// What is not finished of an answer is taken back when the connection is dropped.
    TakenBack,
    /// Each message is sealed with a nonce of its own.
    Nonces,
}

impl Broken {
    /// What the real client does wrong.
    pub(super) fn of_client(self) -> Option<smb_client::Rule> {
        Some(match self {
            Self::ChannelSequence => smb_client::Rule::ChannelSequence,
            Self::CreateReplayFlag => smb_client::Rule::CreateReplayFlag,
            Self::WriteReplayFlag => smb_client::Rule::ReplayFlag,
            Self::FlushBarrier => smb_client::Rule::FlushBarrier,
            Self::LateAcknowledgement => smb_client::Rule::LateAcknowledgement,
            Self::Names => smb_client::Rule::Names,
            _ => return None,
        })
    }

    /// What the server does wrong.
    pub(super) fn of_server(self) -> Option<faults::Rule> {
        Some(match self {
            Self::Flush => faults::Rule::Flush,
            Self::WriteThrough => faults::Rule::WriteThrough,
            Self::NotAvailable => faults::Rule::NotAvailable,
            Self::TakenBack => faults::Rule::TakenBack,
            Self::Nonces => faults::Rule::Nonces,
            _ => return None,
        })
    }
}

/// Which simulation.
#[derive(Debug, Clone, Copy)]
enum By {
    /// The one whose clients are of the test.
    Made,
    /// The one with `smb-client`.
    Real,
}

/// Histories that a simulation has to notice; some hundreds suffice for most rules.
const HISTORIES: u64 = 10_000;

fn noticed(broken: Broken, by: By) {
    let house = House::new();
    let asked = std::env::var("BULKHEAD_SEED").ok().and_then(|seed| seed.parse().ok());
    let (seeds, tell) = asked.map_or((0..HISTORIES, false), |seed| (seed..seed + 1, true));
    let run = |seed| match by {
        By::Made => history(&house, seed, broken, tell),
        By::Real => real::history(&house, seed, broken, tell).0,
    };
    let noticed = seeds.into_iter().find_map(|seed| run(seed).err().map(|why| (seed, why)));
    let (seed, why) = noticed.unwrap_or_else(|| panic!("{broken:?}, broken, is not noticed"));
    println!("{broken:?}, broken, is noticed with seed {seed}: {why}");
}

macro_rules! rules {
    ($($name:ident: $broken:ident, $by:ident;)*) => {
        $(#[test]
        fn $name() {
            noticed(Broken::$broken, By::$by);
        })*
    };
}

rules! {
    channel_sequence_made: ChannelSequence, Made;
    channel_sequence_real: ChannelSequence, Real;
    replay_flag_of_create_made: CreateReplayFlag, Made;
    replay_flag_of_create_real: CreateReplayFlag, Real;
    replay_flag_of_write: WriteReplayFlag, Real;
    lock_sequence: LockSequence, Made;
    flush_barrier: FlushBarrier, Real;
    late_acknowledgement: LateAcknowledgement, Real;
    names_end_the_session: Names, Real;
    commit_before_the_answer_made: Commit, Made;
    commit_before_the_answer_real: Commit, Real;
    close_is_remembered_made: Forgetting, Made;
    close_is_remembered_real: Forgetting, Real;
    recovery_made: Recovery, Made;
    recovery_real: Recovery, Real;
    locks_are_remembered: Locks, Made;
    numbers_of_locks_are_remembered: LockNumbers, Made;
    lease_is_remembered: Caching, Made;
    delete_on_close_is_remembered: DeleteOnClose, Made;
    flush_waits_for_the_disk: Flush, Real;
    write_through_waits_for_the_disk: WriteThrough, Real;
    others_do_not_get_the_file_made: NotAvailable, Made;
    others_do_not_get_the_file_real: NotAvailable, Real;
    what_is_not_finished_is_taken_back: TakenBack, Real;
    no_nonce_seals_twice: Nonces, Real;
}
