//! A stand-alone DFS namespace: shares parts of which are served elsewhere (MS-DFSC 3.2).
//!
//! ```text
//!  CREATE share\link\file ──► PATH_NOT_COVERED ──► GET_REFERRALS \server\share\link\file
//!                                                        └─► \target\share, "\server\share\link" consumed
//! ```

use smb_protocol::{
    NtStatus,
    dfs::{Request, Response},
    fscc::{FsctlCode, snapshots::SnapshotTime},
    msg::ioctl,
    ntlm::users,
};
use volume::fs::{
    path::{RelPath, resolve},
    short::leads_to,
};

use crate::command::{Ctx, Handled, Outcome};

/// A part of a share that is served elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Where it is in the share.
    pub parts: Vec<String>,
    /// Who serves it, the best first: `\server\share` and perhaps a path.
    pub targets: Vec<String>,
    /// Seconds that clients may remember it.
    pub time_to_live: u32,
}

/// The links of one share.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Namespace {
    /// The links; none is below another.
    pub links: Vec<Link>,
}

/// Seconds that clients may remember that a share is a namespace (MS-DFSC 3.2.1.1).
const ROOT_TIME: u32 = 300;

impl Namespace {
    /// The link that a path in the share is or lies below.
    pub fn link<S: AsRef<str>>(&self, parts: &[S]) -> Option<&Link> {
        // By its short name, too: a folder of the link's name may lie in the share.
        self.links.iter().find(|link| leads_to(&link.parts, parts))
    }
}

/// What stands behind server and share in a whole name, `server\share\name`.
pub fn in_share(name: &str) -> Option<&str> {
    name.trim_start_matches('\\').splitn(3, '\\').nth(2)
}

/// The name in the share of what a CREATE names, with its dots resolved, whole as `server\share\name` when `whole`; fails
/// on what is served elsewhere (MS-SMB2 3.3.5.9, MS-DFSC 3.2.4.1).
pub fn local_name(
    namespace: &Namespace,
    share: &str,
    name: &str,
    whole: bool,
) -> Result<String, NtStatus> {
    let name = if whole {
        let on = name.trim_start_matches('\\').split('\\').nth(1);
        if on.is_none_or(|on| users::fold(on) != share) {
            return Err(NtStatus::OBJECT_PATH_NOT_FOUND);
        }
        in_share(name).unwrap_or_default()
    } else {
        name
    };
    let name = resolve(name)?;
    // A stream belongs to the last part of the path.
    let path = name.split(':').next().unwrap_or_default();
    // As paths are read: either slash separates, and a moment of the past may stand anywhere.
    let parts = path.split(['\\', '/']);
    let parts: Vec<_> =
        parts.filter(|part| !part.is_empty() && part.parse::<SnapshotTime>().is_err()).collect();
    match namespace.link(&parts) {
        Some(_) => Err(NtStatus::PATH_NOT_COVERED),
        None => Ok(name),
    }
}

/// The path in the share that a client gives a file, which has no name of the server before it; fails
/// on what is served elsewhere, and on what no file is called.
pub fn new_path(ctx: &Ctx<'_>, name: &str) -> Result<RelPath, NtStatus> {
    let path = RelPath::parse(name)?;
    let current = ctx.ex.server.current();
    let namespace = current.config.namespaces.get(&ctx.tree()?.name);
    match namespace.and_then(|namespace| namespace.link(path.parts())) {
        Some(_) => Err(NtStatus::PATH_NOT_COVERED),
        None => Ok(path),
    }
}

/// Fails for a folder that leads to a part of its share that is served elsewhere: under another name
/// what lies there on this server would be reached.
pub fn keeps_name(ctx: &Ctx<'_>, folder: &RelPath) -> Result<(), NtStatus> {
    let current = ctx.ex.server.current();
    let namespace = current.config.namespaces.get(&ctx.tree()?.name);
    let leads = |link: &Link| leads_to(folder.parts(), &link.parts);
    match namespace.is_some_and(|namespace| namespace.links.iter().any(leads)) {
        true => Err(NtStatus::ACCESS_DENIED),
        false => Ok(()),
    }
}

/// FSCTL_DFS_GET_REFERRALS and its extended form (MS-SMB2 3.3.5.15.2, MS-DFSC 3.2.5.5).
pub fn referrals(ctx: &Ctx<'_>, request: &ioctl::Request<'_>, out: &mut Vec<u8>) -> Handled {
    let asked = match request.code {
        FsctlCode::DFS_GET_REFERRALS_EX => Request::parse_ex(request.input)?,
        _ => Request::parse(request.input)?,
    };
    let current = ctx.ex.server.current();
    if current.config.namespaces.is_empty() {
        return Err(NtStatus::FS_DRIVER_REQUIRED.into());
    }
    let mut parts = asked.path.strip_prefix('\\').unwrap_or(&asked.path).split('\\');
    let (server, share) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let folded = users::fold(share);
    let rest: Vec<_> = parts.filter(|part| !part.is_empty()).collect();
    // Domains and their controllers are not known here; a share of others is not told about.
    let allowed = |share: &std::sync::Arc<crate::config::Share>| {
        share.users.contains(&ctx.session().ok()?.user.name).then_some(())
    };
    let namespace = current.config.namespaces.get(&folded);
    let known = current.config.shares.get(&folded).and_then(allowed).and(namespace);
    let namespace = known.ok_or(NtStatus::NOT_FOUND)?;
    let version = asked.level.clamp(1, 4);
    let mut response = match namespace.link(&rest) {
        Some(link) => Response {
            version,
            prefix: format!("\\{server}\\{share}\\{}", rest[..link.parts.len()].join("\\")),
            root: false,
            time_to_live: link.time_to_live,
            targets: link.targets.clone(),
        },
        None => Response {
            version,
            prefix: format!("\\{server}\\{share}"),
            root: true,
            time_to_live: ROOT_TIME,
            targets: vec![format!("\\{server}\\{share}")],
        },
    };
    if !response.fit(request.max_output as usize) {
        return Err(NtStatus::BUFFER_OVERFLOW.into());
    }
    let mut output = Vec::new();
    response.encode(&mut output);
    let (code, file_id) = (request.code, request.file_id);
    ioctl::Response { code, file_id, output: &output }.encode(out);
    Ok(Outcome::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace() -> Namespace {
        let link = |path: &str| Link {
            parts: path.split('\\').map(str::to_owned).collect(),
            targets: vec!["\\other\\share".into()],
            time_to_live: 60,
        };
        Namespace { links: vec![link("Disks"), link("old\\vms")] }
    }

    #[test]
    fn names_are_local_or_elsewhere() {
        let names = namespace();
        let local = |name: &str, whole| local_name(&names, "VMS", name, whole);
        let elsewhere = Err(NtStatus::PATH_NOT_COVERED);
        assert_eq!(local("a\\disks", false), Ok("a\\disks".into()));
        assert_eq!(local("srv\\vms\\a", true), Ok("a".into()));
        assert_eq!(local("\\srv\\Vms", true), Ok(String::new()));
        assert_eq!(local("old", false), Ok("old".into()));
        assert_eq!(local("oldvms", false), Ok("oldvms".into()));
        let moment = "@GMT-2026.01.02-03.04.05";
        let (before, between) = (format!("{moment}\\disks"), format!("old\\{moment}\\vms"));
        for below in [
            "x\\y\\..\\..\\Disks\\a",
            ".\\disks",
            "DISKS",
            "disks\\x\\y",
            "disks:stream",
            "old\\VMS\\a",
            "disks/x",
            "old/vms",
            &before,
            &between,
        ] {
            assert_eq!(local(below, false), elsewhere);
            assert_eq!(local(&format!("srv\\vms\\{below}"), true), elsewhere);
        }
        assert_eq!(local("srv\\other\\a", true), Err(NtStatus::OBJECT_PATH_NOT_FOUND));
        assert_eq!(local("srv", true), Err(NtStatus::OBJECT_PATH_NOT_FOUND));
    }
}
