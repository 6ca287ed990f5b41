//! The task that gives a session its channels and takes them away.
//!
//! ```text
//!  every quarter of a second, and when a channel is lost:
//!    lost and idle retired channels ─► forgotten
//!    channels over an interface without link ─► given up, if there are others
//!    the server's addresses, if they are not new ─► asked
//!    addresses with fewer channels than planned ─► connect, negotiate, bind
//!    channels beyond the plan ─► retired: no more requests, closed when idle
//! ```
//!
//! An address that fails is left out of the plan and tried again, at first after a quarter of a
//! second and later every two; one that never worked every ten.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    net::if_::InterfaceFlags,
};
use smb_protocol::{
    FileId, NtStatus, TreeId,
    fscc::{
        FsctlCode,
        fsctl::{NetworkInterface, parse_interfaces},
    },
    msg::ioctl,
};
use tokio::{task::JoinSet, time::Instant};

use super::plan::{Bounds, Target, targets};
use crate::{
    ConnectOptions, Error, Result,
    channel_group::Group,
    connection::Connection,
    handshake::{Anchor, Established, Purpose, establish},
    session::{Inner, Link, expect},
    wire::Network,
};

/// How often the keeper looks.
const PERIOD: Duration = Duration::from_millis(250);
/// How old the server's list of addresses may be.
const FRESH: Duration = Duration::from_secs(10);
/// Pauses before an address is tried again: the first, the longest, and of one that never worked.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const NEVER_PAUSE: Duration = Duration::from_secs(10);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Most addresses of a server that are looked at.
const MOST_OFFERS: usize = 64;
/// Bytes that a list of addresses may have: what one credit pays for.
const LIST_LEN: u32 = 65_536;

/// What came of something that was begun.
enum Event {
    Offers(Result<Vec<NetworkInterface>>),
    Channel(Target, Result<Established>),
}

/// What is known of an address that failed.
struct Trouble {
    again: Instant,
    pause: Duration,
}

struct Keeper {
    anchor: Anchor,
    options: ConnectOptions,
    client_guid: [u8; 16],
    dialled: IpAddr,
    group: Arc<Group<Connection>>,
    offers: Vec<NetworkInterface>,
    /// When the list was asked, and whether it has come.
    asked: Option<(Instant, bool)>,
    troubles: HashMap<IpAddr, Trouble>,
    /// Addresses that have worked.
    proven: Vec<IpAddr>,
    under_way: HashMap<IpAddr, usize>,
    events: JoinSet<Event>,
    /// The server has no list.
    over: bool,
}

/// Looks after the channels of a session until it ends.
pub(crate) async fn keep(inner: Weak<Inner>, link: Weak<Link>, anchor: Anchor) {
    let mut keeper = {
        let (Some(inner), Some(link)) = (inner.upgrade(), link.upgrade()) else { return };
        let dialled = link.channels.main().path.server;
        Keeper {
            anchor,
            options: ConnectOptions {
                connect_timeout: inner.options.connect_timeout.min(ATTEMPT),
                ..inner.options.clone()
            },
            client_guid: inner.client_guid,
            dialled,
            group: Arc::clone(&link.channels),
            offers: Vec::new(),
            asked: None,
            troubles: HashMap::new(),
            proven: vec![dialled],
            under_way: HashMap::new(),
            events: JoinSet::new(),
            over: false,
        }
    };
    let group = Arc::clone(&keeper.group);
    let ended = group.ended();
    tokio::pin!(ended);
    loop {
        {
            let (Some(inner), Some(link)) = (inner.upgrade(), link.upgrade()) else { return };
            keeper.look(&inner, &link);
        }
        if keeper.over {
            return;
        }
        tokio::select! {
            biased;
            () = &mut ended => return,
            () = group.wait_for_change() => {}
            Some(event) = keeper.events.join_next() => {
                // The link is held, so that a channel that joins it is closed with it.
                let Some(_link) = link.upgrade() else { return };
                match event {
                    Ok(event) => keeper.take(event),
                    Err(error) => tracing::debug!(%error, "an attempt ended"),
                }
            }
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

impl Keeper {
    fn look(&mut self, inner: &Inner, link: &Link) {
        self.group.prune();
        let channels = self.group.all();
        give_up_without_link(&channels, self.options.network.as_deref());
        self.ask(link);
        if self.offers.is_empty() {
            return;
        }
        inner.note_addresses(self.offers.iter().map(|offer| offer.address));
        let have = |ip: IpAddr| {
            let counts = |c: &&Arc<Connection>| c.path.server == ip && !c.is_closed();
            channels.iter().filter(counts).count()
        };
        let now = Instant::now();
        let bounds = Bounds {
            most: self.options.max_channels.into(),
            per_interface: self.options.channels_per_interface,
        };
        let plan =
            |usable: &dyn Fn(IpAddr) -> bool| targets(&self.offers, self.dialled, bounds, usable);
        // Where no more can be had, what is there stays.
        let works = |ip: IpAddr| !self.troubles.contains_key(&ip) || have(ip) > 0;
        let wanted = plan(&works);
        let mut begin: Vec<Target> = Vec::new();
        for target in wanted.iter().filter(|t| !self.troubles.contains_key(&t.address)) {
            let begun = self.under_way.get(&target.address).copied().unwrap_or(0);
            let missing = target.count.saturating_sub(have(target.address) + begun);
            begin.extend(std::iter::repeat_n(*target, missing));
        }
        for (ip, trouble) in &self.troubles {
            if trouble.again <= now && !self.under_way.contains_key(ip) {
                // Only if it would have a place.
                let with = plan(&|other| other == *ip || works(other));
                let found = with.iter().find(|target| target.address == *ip);
                begin.extend(found.filter(|target| target.count > have(*ip)));
            }
        }
        begin.into_iter().for_each(|target| self.begin(target));
        retire(&channels, &wanted);
    }

    /// Asks for the server's addresses when what is known is old.
    fn ask(&mut self, link: &Link) {
        let due = match self.asked {
            None => true,
            Some((when, come)) => come && when.elapsed() > FRESH,
        };
        // The request needs some tree; the first one is connected right after the session.
        let (true, Some(tree)) = (due, link.some_tree()) else { return };
        self.asked = Some((Instant::now(), false));
        let connection = self.group.pick();
        self.events.spawn(async move { Event::Offers(interfaces(&connection, tree).await) });
    }

    fn begin(&mut self, target: Target) {
        *self.under_way.entry(target.address).or_default() += 1;
        let (options, anchor) = (self.options.clone(), self.anchor.clone());
        let client_guid = self.client_guid;
        self.events.spawn(async move {
            let purpose = Purpose::Channel { anchor: &anchor, address: target.address };
            Event::Channel(target, establish(&options, client_guid, purpose).await)
        });
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Offers(Ok(mut offers)) => {
                offers.truncate(MOST_OFFERS);
                self.asked = Some((Instant::now(), true));
                self.offers = offers;
            }
            Event::Offers(Err(error)) => {
                self.asked = Some((Instant::now(), true));
                tracing::debug!(%error, "the server's addresses are not known");
                self.over = matches!(
                    error.nt_status(),
                    Some(NtStatus::INVALID_DEVICE_REQUEST | NtStatus::NOT_SUPPORTED)
                );
            }
            Event::Channel(target, result) => {
                let ip = target.address;
                if let Some(count) = self.under_way.get_mut(&ip) {
                    *count -= 1;
                }
                self.under_way.retain(|_, count| *count > 0);
                let joined = result.and_then(|established| self.join(established, target.weight));
                match joined {
                    Ok(()) => {
                        self.troubles.remove(&ip);
                        if !self.proven.contains(&ip) {
                            self.proven.push(ip);
                        }
                    }
                    Err(error) => self.trouble(ip, &error),
                }
            }
        }
    }

    /// Makes a bound connection one of the session's channels.
    fn join(&self, established: Established, weight: u32) -> Result<()> {
        let path = established.wire.path(weight)?;
        if !self.group.join() {
            return Err(Error::Closed);
        }
        tracing::debug!(server = %path.server, local = %path.local, "a channel joined");
        let group = Arc::clone(&self.group);
        let channel = Connection::start(established, &self.options, group, path);
        self.group.add(channel);
        Ok(())
    }

    fn trouble(&mut self, ip: IpAddr, error: &Error) {
        tracing::debug!(%ip, %error, "no channel");
        let pause = match self.troubles.get(&ip) {
            // The server refuses it; it will for a while.
            _ if error.nt_status().is_some() || !self.proven.contains(&ip) => NEVER_PAUSE,
            Some(trouble) => (trouble.pause * 2).min(LONGEST_PAUSE),
            None => FIRST_PAUSE,
        };
        self.troubles.insert(ip, Trouble { again: Instant::now() + pause, pause });
    }
}

/// Asks for the server's addresses (MS-SMB2 3.2.4.20.10).
async fn interfaces(connection: &Arc<Connection>, tree: TreeId) -> Result<Vec<NetworkInterface>> {
    let request = ioctl::Request {
        code: FsctlCode::QUERY_NETWORK_INTERFACE_INFO,
        file_id: FileId::RELATED,
        max_output: LIST_LEN,
        flags: ioctl::IS_FSCTL,
        ..Default::default()
    };
    let encode = |out: &mut Vec<u8>| request.encode(out);
    let response = connection.call(smb_protocol::Command::IOCTL, tree, encode).await?;
    expect(&response, || "ask the server's addresses".into())?;
    Ok(parse_interfaces(ioctl::Response::parse(&response.body)?.output)?)
}

/// Gives up the channels whose local interface is down or has lost its address, if others are
/// left: a lost channel is replaced at once, a silent one only after a while.
fn give_up_without_link(channels: &[Arc<Connection>], network: Option<&dyn Network>) {
    if channels.len() < 2 {
        return;
    }
    let network = network.filter(|network| !network.is_of_this_system());
    let linked = match network {
        Some(_) => Vec::new(),
        None => match addresses_with_link() {
            Some(addresses) => addresses,
            None => return,
        },
    };
    let works = |c: &&Arc<Connection>| match network {
        Some(network) => network.has_link(c.path.local),
        None => linked.contains(&c.path.local),
    };
    let (up, down): (Vec<_>, Vec<_>) = channels.iter().filter(|c| !c.is_closed()).partition(works);
    if !up.is_empty() {
        for channel in down {
            channel.close(Error::disconnected("its interface is down"));
        }
    }
}

/// Local addresses whose interface is up and has a link now: that it is running the system says up
/// to a second late.
fn addresses_with_link() -> Option<Vec<IpAddr>> {
    let works = InterfaceFlags::IFF_RUNNING | InterfaceFlags::IFF_LOWER_UP;
    let address = |interface: InterfaceAddress| {
        let address = interface.address.filter(|_| interface.flags.contains(works))?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
    };
    Some(getifaddrs().ok()?.filter_map(address).collect())
}

/// Retires channels beyond what is wanted at their address, and closes retired ones that are idle.
fn retire(channels: &[Arc<Connection>], wanted: &[Target]) {
    let live: Vec<_> = channels.iter().filter(|c| !c.is_closed()).collect();
    let total: usize = wanted.iter().map(|target| target.count).sum();
    let mut surplus = live.len().saturating_sub(total.max(1));
    for (at, channel) in live.iter().enumerate().rev() {
        let ip = channel.path.server;
        let before = live[..at].iter().filter(|c| c.path.server == ip).count();
        let count = wanted.iter().find(|t| t.address == ip).map_or(0, |target| target.count);
        let too_many = surplus > 0 && before >= count;
        channel.retired.store(too_many, Ordering::Relaxed);
        if too_many {
            surplus -= 1;
            if channel.load.load(Ordering::Relaxed) == 0 {
                channel.close(Error::disconnected("it is not needed any more"));
            }
        }
    }
}
