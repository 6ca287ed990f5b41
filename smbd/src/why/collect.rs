//! Figures of the server at one moment, and what two moments say of one share, file or LUN.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use block_io::fiemap::{Fiemap, LAST};
use server_api::WhyReport;
use smb_server::{
    Server,
    meters::{
        ConnectionFigures,
        path::{PathFigures, Phase},
        waits::WaitInfo,
    },
    session::{ConnectionId, Session},
};
use volume::{fs::file_key::FileKey, open::Open};

use super::{
    machine::Counters,
    rules::{self, Clients, Facts, Pieces, Waiter},
};
use crate::iscsi::Iscsi;

/// Pieces of a file that are counted; more are as bad.
const PIECES: usize = 4096;

/// What a report is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subject {
    /// As administrators name it.
    pub(super) name: String,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    /// A share, by its folded name.
    Share(String),
    /// A file, with the folded name of its share.
    File(FileKey, String),
    /// A LUN: target and number.
    Lun(String, u16),
}

/// Figures of one subject.
#[derive(Debug, Clone, Default)]
struct Counted {
    operations: u64,
    limited: u64,
    path: PathFigures,
}

/// The server at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) at: Instant,
    machine: Counters,
    /// By the folded name, with the name that people wrote.
    shares: BTreeMap<String, (String, Counted)>,
    /// By the file, with its share and path.
    files: HashMap<FileKey, (String, String, Counted)>,
    luns: BTreeMap<(String, u16), Counted>,
    connections: HashMap<ConnectionId, ConnectionFigures>,
}

/// Operations that a file had: each is one of these.
fn operations(path: &PathFigures) -> u64 {
    [Phase::Read, Phase::Write, Phase::Sync].iter().map(|phase| path.of(*phase).count()).sum()
}

impl Snapshot {
    /// The server as it is now. On a thread that may wait, inside a tokio runtime.
    pub(super) fn take(server: &Server, iscsi: &Iscsi) -> Self {
        let current = server.current();
        let share = |(key, share): (&String, &Arc<smb_server::config::Share>)| {
            let meter = server.meters.share(key);
            let (operations, path) = (meter.operations(), meter.path.figures());
            (key.clone(), (share.name.clone(), Counted { operations, limited: 0, path }))
        };
        let shares: BTreeMap<_, _> = current.config.shares.iter().map(share).collect();
        let file = |entry: smb_server::meters::files::FileEntry| {
            let path = entry.meter.figures();
            let counted = Counted { operations: operations(&path), limited: 0, path };
            let share = shares.get(&entry.share).map_or(entry.share.clone(), |it| it.0.clone());
            (entry.key, (share, entry.path, counted))
        };
        let files = server.meters.files.all().into_iter().map(file).collect();
        let luns = iscsi.times();
        let lun = |(target, unit, path): (String, scsi::UnitInfo, PathFigures)| {
            let usage = unit.usage;
            let operations = usage.reads + usage.writes + usage.others;
            ((target, unit.number), Counted { operations, limited: usage.delayed, path })
        };
        Self {
            at: Instant::now(),
            machine: Counters::now(),
            shares,
            files,
            luns: luns.into_iter().map(lun).collect(),
            connections: server.meters.connections().into_iter().collect(),
        }
    }

    /// All that there is figures of.
    pub(super) fn subjects(&self) -> Vec<Subject> {
        let shares = self
            .shares
            .iter()
            .map(|(key, (name, _))| Subject { name: name.clone(), what: What::Share(key.clone()) });
        let files = self.files.iter().filter(|(_, (_, path, _))| !path.is_empty());
        let files = files.map(|(key, (share, path, _))| Subject {
            name: format!("{share}/{path}"),
            what: What::File(*key, smb_protocol::ntlm::users::fold(share)),
        });
        let luns = self.luns.keys().map(|(target, number)| Subject {
            name: format!("{target}/{number}"),
            what: What::Lun(target.clone(), *number),
        });
        shares.chain(files).chain(luns).collect()
    }

    fn of(&self, what: &What) -> Option<&Counted> {
        match what {
            What::Share(key) => self.shares.get(key).map(|it| &it.1),
            What::File(key, _) => self.files.get(key).map(|it| &it.2),
            What::Lun(target, number) => self.luns.get(&(target.clone(), *number)),
        }
    }
}

/// What is said of a subject by what happened between two moments.
pub(super) fn report(
    server: &Server,
    now: &Snapshot,
    before: &Snapshot,
    subject: &Subject,
) -> WhyReport {
    let facts = facts(server, now, before, &subject.what);
    let causes = rules::causes(&facts);
    let kind = match subject.what {
        What::Share(_) => "share",
        What::File(..) => "file",
        What::Lun(..) => "lun",
    };
    WhyReport {
        subject: subject.name.clone(),
        kind: kind.to_owned(),
        sentence: rules::sentence(&facts, &causes),
        causes,
        window_s: facts.window as u64,
        operations: facts.operations,
        phases: rules::phases(&facts.path),
    }
}

fn facts(server: &Server, now: &Snapshot, before: &Snapshot, what: &What) -> Facts {
    let window = now.at.saturating_duration_since(before.at).as_secs_f64();
    let (new, old) = (now.of(what).cloned().unwrap_or_default(), before.of(what));
    let none = Counted::default();
    let old = old.unwrap_or(&none);
    let path = new.path.since(&old.path);
    let slow_disk = [Phase::Read, Phase::Write].iter().any(|it| path.of(*it).mean() > 2e3);
    let opens = match what {
        What::File(key, _) => opens_of(server, *key),
        _ => Vec::new(),
    };
    let folder = match what {
        What::Share(key) | What::File(_, key) => {
            server.current().config.shares.get(key).map(|share| share.path.clone())
        }
        What::Lun(..) => None,
    };
    Facts {
        window,
        operations: new.operations.saturating_sub(old.operations),
        limited: new.limited.saturating_sub(old.limited),
        path,
        waiting: waiting(server, now, what),
        clients: clients(server, (now, before), &sessions(server, what, &opens)),
        machine: now.machine.since(&before.machine, window),
        device: folder.and_then(|path| now.machine.disk(&before.machine, window, &path)),
        pieces: opens.first().filter(|_| slow_disk).and_then(|open| pieces(open)),
    }
}

fn opens_of(server: &Server, key: FileKey) -> Vec<Arc<Open>> {
    server.open_files.all_opens().into_iter().filter(|open| open.file.key() == key).collect()
}

/// The sessions that use a subject.
fn sessions(server: &Server, what: &What, opens: &[Arc<Open>]) -> Vec<Arc<Session>> {
    let all = server.sessions.all().into_iter();
    match what {
        What::Share(key) => all.filter(|it| it.tree_shares().contains(key)).collect(),
        What::File(..) => {
            let ids: HashSet<_> = opens.iter().filter_map(|open| open.session_id()).collect();
            all.filter(|it| ids.contains(&it.id)).collect()
        }
        What::Lun(..) => Vec::new(),
    }
}

fn clients(
    server: &Server,
    (now, before): (&Snapshot, &Snapshot),
    sessions: &[Arc<Session>],
) -> Clients {
    let credits = u64::from(server.current().config.limits.credits);
    let mut clients = Clients { credits, ..Clients::default() };
    for session in sessions {
        let cipher = session.origin.cipher;
        clients.ciphers.extend(cipher.filter(|it| !clients.ciphers.contains(it)));
        let channels = session.channels();
        let most = session.most_channels();
        if channels.len() < most {
            let peer =
                channels.first().map_or_else(String::new, |it| format!(" on {}", it.peer.ip()));
            clients.lost.push((format!("{}{peer}", session.user.name), channels.len(), most));
        }
        for channel in channels {
            let Some(new) = now.connections.get(&channel.connection) else { continue };
            let old = before.connections.get(&channel.connection).copied().unwrap_or_default();
            clients.bytes += new.bytes.saturating_sub(old.bytes);
            clients.batches += new.batches.saturating_sub(old.batches);
            clients.under_way += new.under_way.saturating_sub(old.under_way);
            clients.out_of_credits += new.out_of_credits.saturating_sub(old.out_of_credits);
            let (sent, again) = (new.network.sent, new.network.retransmitted);
            clients.segments.0 += sent.saturating_sub(old.network.sent);
            clients.segments.1 += again.saturating_sub(old.network.retransmitted);
            if new.network.rtt > clients.rtt.0 {
                clients.rtt = (new.network.rtt, channel.peer.ip().to_string());
            }
        }
    }
    clients
}

/// The requests about a subject that wait for other clients now.
fn waiting(server: &Server, now: &Snapshot, what: &What) -> Vec<Waiter> {
    let about = |wait: &WaitInfo| match what {
        What::Share(key) => wait.share == *key,
        What::File(key, _) => wait.file == Some(*key),
        What::Lun(..) => false,
    };
    let waits = server.meters.waits.all().into_iter().filter(about);
    let waiter = |wait: WaitInfo| Waiter {
        phase: wait.phase,
        seconds: now.at.saturating_duration_since(wait.since).as_secs_f64(),
        holder: holder(server, &wait),
    };
    waits.map(waiter).collect()
}

/// Who has what a request waits for.
fn holder(server: &Server, wait: &WaitInfo) -> Option<String> {
    let opens = opens_of(server, wait.file?);
    let meets = |open: &Open| match wait.range {
        None => open.file.caching(open.opener_id()).0.0 != 0,
        Some(range) => {
            let last = |from: u64, len: u64| from.saturating_add(len.saturating_sub(1));
            let locks = open.file.locks_of(open.opener_id());
            locks.iter().any(|(held, _)| {
                held.offset <= last(range.offset, range.length)
                    && range.offset <= last(held.offset, held.length)
            })
        }
    };
    let open = opens.iter().find(|open| meets(open))?;
    let (user, share, id) = (&open.origin.user.name, &open.origin.share, open.id.persistent);
    let path = open.full_name().unwrap_or_else(|_| open.origin.name.clone());
    Some(format!("{user} (open {id:x} of \\\\{share}{path})"))
}

/// The pieces that the file of an open has on its disk; `None` where the system does not tell.
fn pieces(open: &Open) -> Option<Pieces> {
    let bytes = rustix::fs::fstat(open.handle()).ok()?.st_size;
    let readable =
        volume::fs::descriptor::reopen(open.handle(), rustix::fs::OFlags::RDONLY).ok()?;
    let mut found = Fiemap::new();
    let (mut count, mut from) = (0, 0);
    while count < PIECES {
        let list = found.ask(std::os::fd::AsFd::as_fd(&readable), from..u64::MAX, 0, 256).ok()?;
        count += list.len();
        let last = list.last()?;
        from = last.logical.saturating_add(last.length);
        if last.flags & LAST != 0 {
            break;
        }
    }
    let all = if count < PIECES { u64::try_from(bytes).ok()? } else { from };
    Some(Pieces { count: count as u64, bytes: all })
}
