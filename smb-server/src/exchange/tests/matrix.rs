//! What changes what: every command, class and control, through an open with every single right, on
//! a share, a share that may only be read, a snapshot, and another user's file. The tree before and
//! after are compared.

use std::{
    collections::BTreeMap,
    fs,
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use smb_protocol::{
    fscc::{
        FileAttributes, InfoClass,
        ea::{self, Ea},
        file_info::{Basic, Rename},
        offload::{CopyChunk, CopyChunks, OffloadWrite, Token, encode_trim},
        reparse::ReparseTag,
    },
    msg::{
        context,
        create::{Access, CreateOptions, Disposition, ShareAccess},
        query_info::InfoType,
    },
    security::{ALLOW, Ace, AceFlags, Control, Descriptor, Sid, parts},
};
use volume::fs::{
    permit::gates::{self, Gate},
    security,
    volume::Volume,
};

use super::*;

/// Rights, one by one.
const RIGHTS: [Access; 14] = [
    Access::READ_DATA,
    Access::WRITE_DATA,
    Access::APPEND_DATA,
    Access::READ_EA,
    Access::WRITE_EA,
    Access::EXECUTE,
    Access::DELETE_CHILD,
    Access::READ_ATTRIBUTES,
    Access::WRITE_ATTRIBUTES,
    Access::DELETE,
    Access::READ_CONTROL,
    Access::WRITE_DAC,
    Access::WRITE_OWNER,
    Access::SYNCHRONIZE,
];
const WRITE: Access = Access::WRITE_DATA;
const NEVER: Access = Access::NONE;
/// The right is not asked of the open.
const ANY: Access = Access::ALL;
const MOMENT: &str = "@GMT-2026.01.02-03.04.05";

/// What a tree holds: each name with all of its file but the time of the last look.
type Tree = BTreeMap<PathBuf, (u32, u64, u64, Vec<u8>, Vec<(String, Vec<u8>)>)>;

/// Where it is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Live,
    ReadOnly,
    Past,
    Theirs,
}

impl Place {
    fn path(self, name: &str) -> String {
        match self {
            Place::Live | Place::ReadOnly => format!("mine\\{name}"),
            Place::Past => format!("{MOMENT}\\mine\\{name}"),
            Place::Theirs => format!("theirs\\{name}"),
        }
    }
}

type Run = Box<dyn Fn(&mut Direct, FileId) -> NtStatus>;

/// One thing to do through an open.
struct Act {
    /// What, with the section that says what it needs.
    name: String,
    /// It changes something, on one's own file on a share, with any of these rights.
    with: Access,
    /// What it is done to: `file`, `folder` or `file:stream`.
    target: &'static str,
    run: Run,
}

fn act(
    name: impl Into<String>,
    with: Access,
    target: &'static str,
    run: impl Fn(&mut Direct, FileId) -> NtStatus + 'static,
) -> Act {
    Act { name: name.into(), with, target, run: Box::new(run) }
}

/// A set of a class.
fn set(name: &str, with: Access, target: &'static str, class: InfoClass, input: Vec<u8>) -> Act {
    act(name, with, target, move |d, id| d.set_as(id, InfoType::FILE, class.0, 0, &input))
}

fn control(name: &str, with: Access, code: FsctlCode, input: Vec<u8>) -> Act {
    act(name, with, "file", move |d, id| d.fsctl(id, code, &input))
}

fn renamed(name: &str, flags: u8) -> Vec<u8> {
    let mut input = Vec::new();
    Rename { name: name.into(), ..Rename::default() }.encode(&mut input);
    input[0] = flags;
    input
}

fn descriptor(control: Control, owner: Option<Sid>, dacl: Option<Vec<Ace>>) -> Descriptor {
    Descriptor { control, owner, dacl, ..Descriptor::default() }
}

impl Direct {
    pub(super) fn set_as(
        &mut self,
        file_id: FileId,
        info_type: InfoType,
        class: u8,
        additional: u32,
        input: &[u8],
    ) -> NtStatus {
        let class = InfoClass(class);
        let request = set_info::Request { info_type, class, additional, file_id, input };
        self.ask(Command::SET_INFO, |out| request.encode(out)).0.status
    }

    pub(super) fn fsctl(&mut self, file_id: FileId, code: FsctlCode, input: &[u8]) -> NtStatus {
        let (flags, max_output) = (1, 4096);
        let request =
            ioctl::Request { code, file_id, input, max_output, flags, ..Default::default() };
        self.ask(Command::IOCTL, |out| request.encode(out)).0.status
    }

    pub(super) fn write_at(&mut self, file_id: FileId, offset: u64, data: &[u8]) -> NtStatus {
        let request = write::Request { offset, file_id, data, ..Default::default() };
        self.ask(Command::WRITE, |out| request.encode(out)).0.status
    }

    pub(super) fn create_as(
        &mut self,
        name: &str,
        access: Access,
        disposition: Disposition,
        options: CreateOptions,
    ) -> Result<FileId, NtStatus> {
        let request = create::Request {
            access,
            share: ShareAccess(7),
            disposition,
            options,
            name: name.into(),
            impersonation: 2,
            ..Default::default()
        };
        let (header, body) = self.ask(Command::CREATE, |out| request.encode(out));
        match header.status {
            NtStatus::SUCCESS => Ok(create::Response::parse(&body).unwrap().file_id),
            status => Err(status),
        }
    }

    pub(super) fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }
}

/// Gives a file or folder to another user, and some rights in it to the one who tries.
fn guard(direct: &Direct, root: &Path, path: &Path, mine: Access) {
    let me = direct.exchange.server.user_sid("U");
    let them = direct.exchange.server.user_sid("V");
    let volume = Volume::open(root).unwrap();
    let permit = volume.permit(Access::ALL).unwrap();
    let handle = fs::File::open(path).unwrap();
    let list = vec![
        Ace::new(ALLOW, AceFlags::NONE, Access::ALL, them.clone()),
        Ace::new(ALLOW, AceFlags::NONE, mine, me),
    ];
    let change = descriptor(Control::DACL_PRESENT, Some(them), Some(list));
    let which = parts::DACL | parts::OWNER;
    let admin = [Sid::administrators()];
    security::update(permit, handle.as_fd(), path.is_dir(), which, change, &admin).unwrap();
}

/// Builds the tree anew: the same files as mine, as another's, and as they were once.
fn build(direct: &Direct) {
    let root = direct.files();
    for entry in fs::read_dir(&root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }
    let snapshot = root.join(".bulkhead/snapshots").join(MOMENT);
    let guard = |path: &PathBuf, mine: Access| guard(direct, &root, path, mine);
    let reads = Access(0x0012_00a9);
    for above in [&root, &snapshot] {
        for owner in ["mine", "theirs"] {
            let folder = above.join(owner);
            fs::create_dir_all(folder.join("folder")).unwrap();
            for name in ["file", "other"] {
                fs::write(folder.join(name), [name.as_bytes()[0]; 8192]).unwrap();
            }
            if owner == "theirs" {
                for name in ["file", "other", "folder"] {
                    guard(&folder.join(name), reads);
                }
                guard(&folder, reads);
            }
        }
        // A place to drop files into, where nothing is deleted by others.
        fs::create_dir_all(above.join("drop")).unwrap();
        fs::write(above.join("drop/file"), "dropped").unwrap();
        guard(&above.join("drop/file"), reads);
        guard(&above.join("drop"), reads.or(Access::WRITE_DATA).or(Access::APPEND_DATA));
    }
}

/// All that a folder holds.
fn look(direct: &Direct) -> Tree {
    let mut tree = Tree::new();
    let mut folders = vec![direct.files()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let facts = fs::symlink_metadata(&path).unwrap();
            let content = if facts.is_dir() {
                folders.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path).unwrap()
            };
            let mut names = vec![0; 4096];
            let used = rustix::fs::listxattr(&path, &mut names[..]).unwrap();
            let mut kept: Vec<_> = names[..used]
                .split(|byte| *byte == 0)
                .filter(|name| !name.is_empty())
                .map(|name| {
                    let name = String::from_utf8_lossy(name).into_owned();
                    let mut value = vec![0; 4096];
                    let len = rustix::fs::getxattr(&path, name.as_str(), &mut value[..]).unwrap();
                    value.truncate(len);
                    (name, value)
                })
                .collect();
            kept.sort();
            let links = if facts.is_dir() { 0 } else { facts.nlink() };
            // Space that is set aside shows as well.
            let blocks = if facts.is_dir() { 0 } else { facts.blocks() };
            let mode = facts.permissions().mode();
            tree.insert(path, (mode, links, blocks, content, kept));
        }
    }
    tree
}

/// Everything that can be done, and with which right it changes something.
#[allow(clippy::too_many_lines, reason = "a table")]
fn acts(me: &Sid) -> Vec<Act> {
    let mut basic = Vec::new();
    let hidden = Basic { attributes: FileAttributes::HIDDEN, ..Basic::default() };
    hidden.encode(&mut basic);
    let mut eas = Vec::new();
    let one = Ea { flags: 0, name: "ONE".into(), value: b"1".to_vec() };
    ea::encode(std::iter::once(&one), 4096, &mut eas);
    let mut list = Vec::new();
    let all = Ace::new(ALLOW, AceFlags::NONE, Access::ALL, Sid::everyone());
    descriptor(Control::DACL_PRESENT, None, Some(vec![all])).encode(parts::DACL, &mut list);
    let mut owner = Vec::new();
    descriptor(Control::NONE, Some(me.clone()), None).encode(parts::OWNER, &mut owner);
    let mut trim = Vec::new();
    encode_trim(&[(0, 4096)], &mut trim);
    let mut offload = Vec::new();
    let token = Token::zero();
    let size = OffloadWrite::LEN;
    OffloadWrite { size, offset: 0, length: 4096, token_offset: 0, token }.encode(&mut offload);
    let fifo = super::reparse::buffer(ReparseTag::LX_FIFO, &[]);
    let zero = [0u64.to_le_bytes(), 4096u64.to_le_bytes()].concat();
    let appends = WRITE.or(Access::APPEND_DATA);
    let marks = appends.or(Access::WRITE_ATTRIBUTES);
    let posix_replace = 1 | 2 | 0x40;
    let mut acts = vec![
        act("WRITE in the file (MS-SMB2 3.3.5.13)", WRITE, "file", |d, id| {
            d.write_at(id, 0, b"new")
        }),
        act("WRITE at the end (MS-SMB2 3.3.5.13)", appends, "file", |d, id| {
            d.write_at(id, 8192, b"new")
        }),
        act("WRITE of nothing (MS-FSA 2.1.5.4)", NEVER, "file", |d, id| d.write_at(id, 0, b"")),
        act("WRITE to an empty stream (MS-FSA 2.1.5.4)", appends, "file:s", |d, id| {
            d.write_at(id, 0, b"n")
        }),
        act("FLUSH (MS-FSA 2.1.5.7)", NEVER, "file", |d, id| {
            let request = flush::Request { file_id: id };
            d.ask(Command::FLUSH, |out| request.encode(out)).0.status
        }),
        set(
            "basic (MS-FSA 2.1.5.15.2)",
            Access::WRITE_ATTRIBUTES,
            "file",
            InfoClass::BASIC,
            basic.clone(),
        ),
        set("basic of a folder", Access::WRITE_ATTRIBUTES, "folder", InfoClass::BASIC, basic),
        set(
            "end of file (MS-FSA 2.1.5.15.5)",
            WRITE,
            "file",
            InfoClass::END_OF_FILE,
            vec![1, 0, 0, 0, 0, 0, 0, 0],
        ),
        set("allocation (MS-FSA 2.1.5.15.1)", WRITE, "file", InfoClass::ALLOCATION, vec![0; 8]),
        set(
            "space set aside",
            WRITE,
            "file",
            InfoClass::ALLOCATION,
            (1u64 << 20).to_le_bytes().to_vec(),
        ),
        set(
            "valid data (MS-FSA 2.1.5.15.15)",
            NEVER,
            "file",
            InfoClass::VALID_DATA_LENGTH,
            vec![0; 8],
        ),
        set("position (MS-FSA 2.1.5.15.10)", NEVER, "file", InfoClass::POSITION, vec![1; 8]),
        set("mode (MS-FSA 2.1.5.15.8)", NEVER, "file", InfoClass::MODE, vec![2, 0, 0, 0]),
        set(
            "disposition (MS-FSA 2.1.5.15.3)",
            Access::DELETE,
            "file",
            InfoClass::DISPOSITION,
            vec![1],
        ),
        set("disposition of a folder", Access::DELETE, "folder", InfoClass::DISPOSITION, vec![1]),
        set(
            "disposition, POSIX (MS-FSA 2.1.5.15.4)",
            Access::DELETE,
            "file",
            InfoClass::DISPOSITION_EX,
            vec![0x13, 0, 0, 0],
        ),
        set(
            "attributes (MS-FSA 2.1.5.15.6)",
            Access::WRITE_EA,
            "file",
            InfoClass::FULL_EA,
            eas.clone(),
        ),
        set("attributes of a folder", Access::WRITE_EA, "folder", InfoClass::FULL_EA, eas),
        set("rename of a folder", Access::DELETE, "folder", InfoClass::RENAME, renamed("new", 0)),
        act("access list (MS-FSA 2.1.5.17)", Access::WRITE_DAC, "file", {
            let list = list.clone();
            move |d, id| d.set_as(id, InfoType::SECURITY, 0, parts::DACL, &list)
        }),
        act("access list of a folder", Access::WRITE_DAC, "folder", move |d, id| {
            d.set_as(id, InfoType::SECURITY, 0, parts::DACL, &list)
        }),
        act("owner (MS-FSA 2.1.5.17)", Access::WRITE_OWNER, "file", {
            let owner = owner.clone();
            move |d, id| d.set_as(id, InfoType::SECURITY, 0, parts::OWNER, &owner)
        }),
        act("audit list (MS-FSA 2.1.5.17)", NEVER, "file", move |d, id| {
            d.set_as(id, InfoType::SECURITY, 0, parts::SACL, &owner)
        }),
        control("sparse (MS-FSA 2.1.5.10.38)", marks, FsctlCode::SET_SPARSE, vec![1]),
        control("zero (MS-FSA 2.1.5.10.39)", WRITE, FsctlCode::SET_ZERO_DATA, zero),
        control("trim (MS-FSA 2.1.5.10.6)", WRITE, FsctlCode::FILE_LEVEL_TRIM, trim),
        control("object id (MS-FSA 2.1.5.10.1)", ANY, FsctlCode::CREATE_OR_GET_OBJECT_ID, vec![]),
        control(
            "reparse point (MS-FSA 2.1.5.10.37)",
            WRITE.or(Access::WRITE_ATTRIBUTES),
            FsctlCode::SET_REPARSE_POINT,
            fifo.clone(),
        ),
        act(
            "reparse point of a folder",
            WRITE.or(Access::WRITE_ATTRIBUTES),
            "folder",
            move |d, id| d.fsctl(id, FsctlCode::SET_REPARSE_POINT, &fifo),
        ),
        control("offload (MS-FSA 2.1.5.10.21)", WRITE, FsctlCode::OFFLOAD_WRITE, offload),
        act("copy that reads back (MS-SMB2 3.3.5.15.6)", NEVER, "file", |d, id| {
            copy(d, id, FsctlCode::SRV_COPYCHUNK, 0)
        }),
        act("copy into the file (MS-SMB2 3.3.5.15.6)", WRITE, "file", |d, id| {
            copy(d, id, FsctlCode::SRV_COPYCHUNK_WRITE, 0)
        }),
        act("copy behind its end (MS-SMB2 3.3.5.15.6)", appends, "file", |d, id| {
            copy(d, id, FsctlCode::SRV_COPYCHUNK_WRITE, 8192)
        }),
    ];
    for (class, ex) in [(InfoClass::RENAME, false), (InfoClass::RENAME_EX, true)] {
        let replace = if ex { posix_replace } else { 1 };
        // MS-FSA 2.1.5.15.12
        acts.push(set("rename", Access::DELETE, "file", class, renamed("mine\\new", 0)));
        acts.push(set(
            "rename onto",
            Access::DELETE,
            "file",
            class,
            renamed("mine\\other", replace),
        ));
        acts.push(set("rename away", Access::DELETE, "file", class, renamed("new", 0)));
        acts.push(set("rename to another's", NEVER, "file", class, renamed("theirs\\new", 0)));
        acts.push(set(
            "rename onto another's",
            NEVER,
            "file",
            class,
            renamed("theirs\\other", replace),
        ));
        acts.push(set(
            "rename onto what stays",
            NEVER,
            "file",
            class,
            renamed("drop\\file", replace),
        ));
        acts.push(set("rename of a stream", Access::DELETE, "file:s", class, renamed(":new", 0)));
    }
    for (class, ex) in [(InfoClass::LINK, false), (InfoClass::LINK_EX, true)] {
        let replace = if ex { posix_replace } else { 1 };
        // MS-FSA 2.1.5.15.7
        acts.push(set("link", ANY, "file", class, renamed("mine\\new", 0)));
        acts.push(set("link onto", ANY, "file", class, renamed("mine\\other", replace)));
        acts.push(set("link to another's", NEVER, "file", class, renamed("theirs\\new", 0)));
        acts.push(set(
            "link onto another's",
            NEVER,
            "file",
            class,
            renamed("theirs\\other", replace),
        ));
        acts.push(set(
            "link onto what stays",
            NEVER,
            "file",
            class,
            renamed("drop\\file", replace),
        ));
    }
    // Whatever no class and no control stands for changes nothing.
    let known = [
        InfoClass::BASIC,
        InfoClass::END_OF_FILE,
        InfoClass::ALLOCATION,
        InfoClass::DISPOSITION,
        InfoClass::DISPOSITION_EX,
        InfoClass::FULL_EA,
        InfoClass::RENAME,
        InfoClass::RENAME_EX,
        InfoClass::LINK,
        InfoClass::LINK_EX,
    ];
    for class in (0..=u8::MAX).filter(|class| !known.contains(&InfoClass(*class))) {
        let name = format!("class {class}");
        acts.push(act(name, NEVER, "file", move |d, id| {
            d.set_as(id, InfoType::FILE, class, 0, &renamed("mine\\new", 1))
        }));
    }
    for kind in [InfoType::FILESYSTEM, InfoType::QUOTA] {
        for class in 0..16 {
            let name = format!("{kind:?} {class}");
            acts.push(act(name, NEVER, "file", move |d, id| {
                d.set_as(id, kind, class, 0, &[1; 64])
            }));
        }
    }
    let changing = [
        FsctlCode::CREATE_OR_GET_OBJECT_ID,
        FsctlCode::SET_SPARSE,
        FsctlCode::SET_ZERO_DATA,
        FsctlCode::SET_REPARSE_POINT,
        FsctlCode::FILE_LEVEL_TRIM,
        FsctlCode::OFFLOAD_WRITE,
        FsctlCode::SRV_COPYCHUNK,
        FsctlCode::SRV_COPYCHUNK_WRITE,
    ];
    let codes = (0..=u16::MAX)
        .map(|low| 0x0009_0000 | u32::from(low))
        .chain((0..512).map(|low| 0x0014_0000 | low << 2));
    let codes = codes.map(FsctlCode).filter(|code| code.known_name().is_some());
    for code in codes.filter(|code| !changing.contains(code)) {
        acts.push(control(&format!("{code:?}"), NEVER, code, vec![0; 64]));
    }
    acts
}

/// Copies from the file beside.
fn copy(direct: &mut Direct, target: FileId, code: FsctlCode, at: u64) -> NtStatus {
    let source = direct
        .create_as("mine\\other", Access::READ_DATA, Disposition::OPEN, CreateOptions::NONE)
        .unwrap();
    let mut key = [0; 24];
    key[..16].copy_from_slice(&source.to_bytes());
    let mut input = Vec::new();
    let chunks = vec![CopyChunk { source: 0, target: at, length: 4096 }];
    CopyChunks { key, chunks }.encode(&mut input);
    let status = direct.fsctl(target, code, &input);
    direct.close(source);
    status
}

/// Compares the tree after each cell with what it was.
struct Judge {
    before: Tree,
    cells: usize,
    wrong: Vec<String>,
    /// Enough is known.
    most: usize,
}

impl Judge {
    /// One cell is over, which should have changed something or not; whether to go on.
    fn cell(&mut self, direct: &Direct, changes: bool, what: impl FnOnce() -> String) -> bool {
        self.cells += 1;
        let changed = look(direct) != self.before;
        if changed != changes {
            let how = if changed { "changed something" } else { "changed nothing" };
            self.wrong.push(format!("{}: {how}", what()));
        }
        if changed {
            build(direct);
            self.before = look(direct);
        }
        self.wrong.len() < self.most
    }
}

/// Runs every cell; gives their number and up to `most` that were wrong.
fn matrix(gate: Option<Gate>, most: usize) -> (usize, Vec<String>) {
    let mut direct = Direct::with(
        "[[user]]\nname='v'\npassword='p'\n\
         [[share]]\nname='ro'\npath='files'\nusers=['u']\nread_only=true\n",
    );
    direct.login();
    let (live, read_only) = (direct.tree, direct.tree_connect("ro").0);
    let acts = acts(&direct.exchange.server.user_sid("U"));
    build(&direct);
    let mut judge = Judge { before: look(&direct), cells: 0, wrong: Vec::new(), most };
    gates::open(gate);
    for place in [Place::Live, Place::ReadOnly, Place::Past, Place::Theirs] {
        direct.tree = if place == Place::ReadOnly { read_only } else { live };
        let done = RIGHTS.iter().all(|right| {
            acts.iter().all(|act| through_an_open(&mut direct, &mut judge, place, *right, act))
                && creates(&mut direct, &mut judge, place, *right)
        });
        if !done {
            break;
        }
    }
    gates::open(None);
    (judge.cells, judge.wrong)
}

/// One act through an open with one right.
fn through_an_open(
    direct: &mut Direct,
    judge: &mut Judge,
    place: Place,
    right: Access,
    act: &Act,
) -> bool {
    let name = place.path(act.target);
    if act.target.contains(':') {
        // A stream is made by who may; elsewhere there is none.
        if place != Place::Live {
            return true;
        }
        let made = direct.create_as(&name, WRITE, Disposition::CREATE, CreateOptions::NONE);
        let made = made.unwrap_or_else(|status| panic!("{name}: {status}"));
        direct.close(made);
        judge.before = look(direct);
    }
    match direct.create_as(&name, right, Disposition::OPEN, CreateOptions::NONE) {
        Ok(id) => {
            (act.run)(direct, id);
            direct.close(id);
        }
        Err(status) => assert!(place != Place::Live, "{right:?} on one's own {name}: {status}"),
    }
    let changes = place == Place::Live && right.any(act.with);
    let on = judge.cell(direct, changes, || format!("{place:?}, {right:?}, {}", act.name));
    if act.target.contains(':') && !changes {
        build(direct);
        judge.before = look(direct);
    }
    on
}

/// A CREATE itself: of what is there, what is not, and a stream (MS-FSA 2.1.5.1).
fn creates(direct: &mut Direct, judge: &mut Judge, place: Place, right: Access) -> bool {
    for disposition in (0..=5).map(Disposition) {
        let cuts =
            !matches!(disposition, Disposition::OPEN | Disposition::OPEN_IF | Disposition::CREATE);
        let makes = !matches!(disposition, Disposition::OPEN | Disposition::OVERWRITE);
        for (name, there) in [("file", true), ("new", false), ("file:new", false)] {
            for options in [CreateOptions::NONE, CreateOptions::DELETE_ON_CLOSE] {
                if name.contains(':') && options != CreateOptions::NONE {
                    // The file keeps the place for streams that it was given.
                    continue;
                }
                let name = place.path(name);
                let opened = direct.create_as(&name, right, disposition, options);
                if let Ok(id) = opened {
                    direct.close(id);
                }
                let goes = options != CreateOptions::NONE;
                // What is made and goes at once leaves nothing.
                let changes = if there { cuts || goes } else { makes && !goes };
                let changes = changes && opened.is_ok() && place == Place::Live;
                let what =
                    || format!("{place:?}, {right:?}, {disposition:?} of {name}, {options:?}");
                if !judge.cell(direct, changes, what) {
                    return false;
                }
            }
        }
    }
    true
}

/// A file of another user, of which this one has each set of rights that matter, is overwritten;
/// gives what was wrong (MS-FSA 2.1.5.1.2).
fn overwritten(gate: Option<Gate>) -> Vec<String> {
    const MATTER: [Access; 4] =
        [Access::WRITE_DATA, Access::WRITE_EA, Access::WRITE_ATTRIBUTES, Access::DELETE];
    let mut wrong = Vec::new();
    for disposition in [Disposition::OVERWRITE, Disposition::OVERWRITE_IF, Disposition::SUPERSEDE] {
        let of_data = match disposition {
            Disposition::SUPERSEDE => Access::DELETE,
            _ => Access::WRITE_DATA,
        };
        let needed = of_data | Access::WRITE_EA | Access::WRITE_ATTRIBUTES;
        for set in 0..1 << MATTER.len() {
            let has = |at: &usize| set >> at & 1 == 1;
            let some = (0..MATTER.len()).filter(has).map(|at| MATTER[at]);
            let rights = some.fold(Access(0x0012_0089), Access::or);
            let mut direct = Direct::with("[[user]]\nname='v'\npassword='p'\n");
            direct.login();
            build(&direct);
            let files = direct.files();
            guard(&direct, &files, &files.join("theirs/file"), rights);
            let before = look(&direct);
            gates::open(gate);
            let name = Place::Theirs.path("file");
            let opened =
                direct.create_as(&name, Access::READ_DATA, disposition, CreateOptions::NONE);
            gates::open(None);
            let changed = look(&direct) != before;
            if opened.is_ok() != rights.has(needed) || changed != opened.is_ok() {
                wrong.push(format!("{disposition:?} with {rights:?}: {opened:?}, {changed}"));
            }
        }
    }
    wrong
}

#[test]
fn a_file_is_overwritten_by_rights_in_all_that_it_holds() {
    let wrong = overwritten(None);
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(!overwritten(Some(Gate::Overwrite)).is_empty());
}

/// An overwriting CREATE that is refused for what comes with it has changed nothing.
#[test]
fn what_is_refused_overwrites_nothing() {
    let ea = |name: &str, value: Vec<u8>| {
        let mut list = Vec::new();
        ea::encode([Ea { flags: 0, name: name.into(), value }].iter(), usize::MAX, &mut list);
        list
    };
    let alsi = |size: u64| (context::names::ALSI, size.to_le_bytes().to_vec());
    let exta = |list: Vec<u8>| (context::names::EXTA, list);
    for contexts in [
        vec![exta(vec![1; 9])],
        vec![exta(ea("a*b", vec![1]))],
        vec![exta(ea("BIG", vec![1; 65_000]))],
        vec![alsi(1 << 62)],
        vec![alsi(i64::MAX as u64)],
        vec![alsi(1 << 20), exta(ea("BIG", vec![1; 65_000]))],
    ] {
        let mut direct = Direct::with("[[user]]\nname='v'\npassword='p'\n");
        direct.login();
        build(&direct);
        let before = look(&direct);
        let held = fs::metadata(direct.files().join("mine/file")).unwrap().blocks();
        let named = contexts.iter().map(|(name, data)| (String::from_utf8_lossy(name), data.len()));
        let what = format!("{:?}", named.collect::<Vec<_>>());
        let request = create::Request {
            access: Access::ALL,
            share: ShareAccess(7),
            disposition: Disposition::OVERWRITE_IF,
            name: Place::Live.path("file"),
            impersonation: 2,
            contexts: contexts
                .iter()
                .map(|(name, data)| create::RawContext { name, data })
                .collect(),
            ..Default::default()
        };
        let (header, _) = direct.ask(Command::CREATE, |out| request.encode(out));
        assert_ne!(header.status, NtStatus::SUCCESS, "{what}");
        assert!(look(&direct) == before, "{what}: something has changed");
        let blocks = fs::metadata(direct.files().join("mine/file")).unwrap().blocks();
        assert_eq!(blocks, held, "{what}: space is set aside");
    }
}

#[test]
fn nothing_changes_without_its_right_and_nothing_at_all_where_only_reading_is_granted() {
    let (cells, wrong) = matrix(None, 40);
    println!("{cells} cells");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(cells > 15_000, "{cells}");
}

#[test]
fn a_check_that_is_left_out_shows() {
    for gate in [Gate::List, Gate::Right, Gate::Folder, Gate::Replaced] {
        let (_, wrong) = matrix(Some(gate), 1);
        println!("without {gate:?}: {wrong:?}");
        assert!(!wrong.is_empty(), "{gate:?} is left out and nothing shows");
    }
}
