//! Security identifiers and descriptors, and the access check (MS-DTYP 2.4.2, 2.4.4-2.4.6,
//! 2.5.3.2).

use std::fmt;

use nom::{Parser, sequence::preceded};

use crate::{
    flag_set,
    msg::create::Access,
    parse::{
        self, Input, Parsed, array, counted, from, part, size16, size32, skip, such, u8, u16, u32,
    },
    wire::{Put, Reader, Result, len16},
};

/// Most sub-authorities of a SID.
const MAX_SUB_AUTHORITIES: usize = 15;

/// A security identifier: who somebody is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Sid {
    authority: [u8; 6],
    sub: Vec<u32>,
}

impl Sid {
    /// A SID of the NT authority (5), or another one below 256.
    pub fn new(authority: u8, sub: &[u32]) -> Self {
        let sub = sub.iter().copied().take(MAX_SUB_AUTHORITIES).collect();
        Self { authority: [0, 0, 0, 0, 0, authority], sub }
    }

    /// S-1-1-0: everyone, whoever it is.
    pub fn everyone() -> Self {
        Self::new(1, &[0])
    }

    /// S-1-5-11: everyone who logged in.
    pub fn authenticated_users() -> Self {
        Self::new(5, &[11])
    }

    /// S-1-5-32-544: the administrators of the machine.
    pub fn administrators() -> Self {
        Self::new(5, &[32, 544])
    }

    /// S-1-3-0: in what is inherited, whoever makes the file.
    pub fn creator_owner() -> Self {
        Self::new(3, &[0])
    }

    /// S-1-3-1: in what is inherited, the primary group of whoever makes the file.
    pub fn creator_group() -> Self {
        Self::new(3, &[1])
    }

    /// S-1-3-4: the owner; where a list names it, it replaces what owners may do otherwise.
    pub fn owner_rights() -> Self {
        Self::new(3, &[4])
    }

    /// S-1-5-18: the system itself.
    pub fn system() -> Self {
        Self::new(5, &[18])
    }

    /// S-1-5-32-545: the users of the machine.
    pub fn users() -> Self {
        Self::new(5, &[32, 545])
    }

    /// The SID with this number below it.
    #[must_use]
    pub fn below(&self, number: u32) -> Self {
        let sub = self.sub.iter().copied().chain([number]).take(MAX_SUB_AUTHORITIES).collect();
        Self { authority: self.authority, sub }
    }

    /// The number of this SID if it stands right below `domain`.
    pub fn number_below(&self, domain: &Self) -> Option<u32> {
        let (last, rest) = self.sub.split_last()?;
        (self.authority == domain.authority && rest == domain.sub).then_some(*last)
    }

    /// Reads a SID (MS-DTYP 2.4.2.2).
    ///
    /// # Errors
    /// The bytes end within it, its revision is not 1, or it has more than 15 parts.
    pub fn parse(r: &mut Reader<'_>) -> Result<Self> {
        r.take(Self::read)
    }

    /// Reads a SID, as a parser among others.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn read(input: Input<'_>) -> Parsed<'_, Self> {
        let possible = |count: u8| usize::from(count) <= MAX_SUB_AUTHORITIES;
        let (i, (_, count, authority)) = (
            such(u8, "sid.Revision", |revision| revision == 1),
            such(u8, "sid.SubAuthorityCount", possible),
            array("sid.IdentifierAuthority"),
        )
            .parse(input)?;
        let (i, sub) = counted(count.into(), 4, "sid.SubAuthority", u32("sid.SubAuthority"))(i)?;
        Ok((i, Self { authority, sub }))
    }

    /// Appends the SID: 8 bytes and 4 for each of its parts.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(1);
        out.put_u8(self.sub.len() as u8);
        out.put(&self.authority);
        self.sub.iter().for_each(|sub| out.put_u32(*sub));
    }
}

impl fmt::Display for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = self.authority.iter().fold(0u64, |all, byte| all << 8 | u64::from(*byte));
        write!(f, "S-1-{authority}")?;
        self.sub.iter().try_for_each(|sub| write!(f, "-{sub}"))
    }
}

impl fmt::Debug for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

flag_set! {
    /// `AceFlags` (MS-DTYP 2.4.4.1).
    AceFlags: u8 {
        /// Files in this folder inherit it.
        OBJECT_INHERIT = 0x1,
        /// Folders in this folder inherit it.
        CONTAINER_INHERIT = 0x2,
        /// What inherits it does not pass it on.
        NO_PROPAGATE = 0x4,
        /// It does not hold here, only where it is inherited.
        INHERIT_ONLY = 0x8,
        /// It was inherited.
        INHERITED = 0x10,
    }
}

/// One entry of an access list (MS-DTYP 2.4.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ace {
    /// 0 allows, 1 denies, 2 audits; the others are kept and decide nothing.
    pub kind: u8,
    /// How it is inherited.
    pub flags: AceFlags,
    /// Rights.
    pub access: Access,
    /// Whose; S-1-0-0 where `rest` says it.
    pub sid: Sid,
    /// What follows the SID; of an entry for objects, what follows the rights.
    pub rest: Vec<u8>,
}

/// `ACCESS_ALLOWED_ACE_TYPE`.
pub const ALLOW: u8 = 0;
/// `ACCESS_DENIED_ACE_TYPE`.
pub const DENY: u8 = 1;

impl Ace {
    /// An entry that allows or denies.
    pub fn new(kind: u8, flags: AceFlags, access: Access, sid: Sid) -> Self {
        Self { kind, flags, access, sid, rest: Vec::new() }
    }

    /// Whether it takes part in a decision. Entries that allow under a condition, or a part of an
    /// object, allow nothing here, where no condition is known to hold and files have no parts;
    /// those that deny so deny (MS-DTYP 2.4.4.1).
    fn decides(&self) -> bool {
        self.kind == ALLOW || self.denies()
    }

    fn denies(&self) -> bool {
        /// Denied, to parts of an object, under a condition, and both.
        const DENIED: [u8; 4] = [DENY, 6, 10, 12];
        DENIED.contains(&self.kind)
    }

    /// Whom it concerns; `None` for an entry for objects that does not say it as it should.
    fn trustee(&self) -> Option<Sid> {
        if !Self::is_for_objects(self.kind) {
            return Some(self.sid.clone());
        }
        let trustee = |input| {
            let (i, flags) = u32("ace.Flags")(input)?;
            let guids = 16 * (flags & 3).count_ones() as usize;
            preceded(skip(guids, "ace.ObjectType"), Sid::read).parse(i)
        };
        parse::with(Input::new(&self.rest), trustee).ok()
    }

    /// Entries for directory objects have GUIDs between rights and SID (MS-DTYP 2.4.4.3).
    fn is_for_objects(kind: u8) -> bool {
        matches!(kind, 5..=8 | 11 | 12 | 15 | 16)
    }

    fn read(input: Input<'_>) -> Parsed<'_, Self> {
        let (i, (kind, flags, size)) = (
            u8("ace.AceType"),
            u8("ace.AceFlags").map(AceFlags),
            such(u16, "ace.AceSize", |size| size >= 4),
        )
            .parse(input)?;
        let (i, body) = part(usize::from(size) - 4, "ace")(i)?;
        let (body, access) = u32("ace.Mask").map(Access).parse(body)?;
        let (body, sid) =
            if Self::is_for_objects(kind) { (body, Sid::new(0, &[0])) } else { Sid::read(body)? };
        Ok((i, Self { kind, flags, access, sid, rest: body.bytes().to_vec() }))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_u8(self.kind);
        out.put_u8(self.flags.0);
        out.put_u16(0);
        out.put_u32(self.access.0);
        if !Self::is_for_objects(self.kind) {
            self.sid.encode(out);
        }
        out.put(&self.rest);
        out.pad_to(start, 4);
        let size = len16(out.len() - start);
        out.patch(start + 2, &size.to_le_bytes());
    }
}

/// An access list: entries in the order in which they are looked at.
pub type Acl = Vec<Ace>;

fn acl(input: Input<'_>) -> Parsed<'_, Acl> {
    let (i, (_, size, count, _)) = (
        skip(2, "acl.AclRevision"),
        size16("acl.AclSize"),
        size16("acl.AceCount"),
        skip(2, "acl.Sbz2"),
    )
        .parse(input)?;
    let (i, entries) = part(size.saturating_sub(8), "acl")(i)?;
    let (_, acl) = counted(count, 8, "acl.AceCount", Ace::read).parse(entries)?;
    Ok((i, acl))
}

fn encode_acl(acl: &[Ace], out: &mut Vec<u8>) {
    const REVISION: u8 = 2;
    const REVISION_OBJECTS: u8 = 4;
    let start = out.len();
    let objects = acl.iter().any(|ace| Ace::is_for_objects(ace.kind));
    out.put_u8(if objects { REVISION_OBJECTS } else { REVISION });
    out.put_u8(0);
    out.put_u16(0);
    out.put_u16(len16(acl.len()));
    out.put_u16(0);
    acl.iter().for_each(|ace| ace.encode(out));
    let size = len16(out.len() - start);
    out.patch(start + 2, &size.to_le_bytes());
}

/// `SECURITY_INFORMATION`: parts of a descriptor.
pub mod parts {
    /// Owner.
    pub const OWNER: u32 = 1;
    /// Group.
    pub const GROUP: u32 = 2;
    /// Access list.
    pub const DACL: u32 = 4;
    /// Audit list.
    pub const SACL: u32 = 8;
    /// Integrity label.
    pub const LABEL: u32 = 0x10;
    /// Resource attributes.
    pub const ATTRIBUTE: u32 = 0x20;
    /// Central access policy.
    pub const SCOPE: u32 = 0x40;
    /// All of it, for a backup.
    pub const BACKUP: u32 = 0x1_0000;
}

flag_set! {
    /// `Control` of a descriptor (MS-DTYP 2.4.6).
    Control: u16 {
        /// The owner was chosen by default.
        OWNER_DEFAULTED = 0x0001,
        /// The group was chosen by default.
        GROUP_DEFAULTED = 0x0002,
        /// There is an access list.
        DACL_PRESENT = 0x0004,
        /// The access list was chosen by default.
        DACL_DEFAULTED = 0x0008,
        /// There is an audit list.
        SACL_PRESENT = 0x0010,
        /// The audit list was chosen by default.
        SACL_DEFAULTED = 0x0020,
        /// In a set: the access list takes part in inheritance.
        DACL_AUTO_INHERIT_REQ = 0x0100,
        /// In a set: the audit list takes part in inheritance.
        SACL_AUTO_INHERIT_REQ = 0x0200,
        /// The access list takes part in inheritance.
        DACL_AUTO_INHERITED = 0x0400,
        /// The audit list takes part in inheritance.
        SACL_AUTO_INHERITED = 0x0800,
        /// The access list does not change with that of the folder.
        DACL_PROTECTED = 0x1000,
        /// The audit list does not change with that of the folder.
        SACL_PROTECTED = 0x2000,
        /// Offsets, not pointers.
        SELF_RELATIVE = 0x8000,
    }
}

impl Control {
    const OF_OWNER: Self = Self::OWNER_DEFAULTED;
    const OF_GROUP: Self = Self::GROUP_DEFAULTED;
    const OF_DACL: Self = Self(
        Self::DACL_PRESENT.0
            | Self::DACL_DEFAULTED.0
            | Self::DACL_AUTO_INHERIT_REQ.0
            | Self::DACL_AUTO_INHERITED.0
            | Self::DACL_PROTECTED.0,
    );
    const OF_SACL: Self = Self(
        Self::SACL_PRESENT.0
            | Self::SACL_DEFAULTED.0
            | Self::SACL_AUTO_INHERIT_REQ.0
            | Self::SACL_AUTO_INHERITED.0
            | Self::SACL_PROTECTED.0,
    );

    /// The bits that belong to the parts that `which` names.
    fn of(which: u32) -> Self {
        let parts = [
            (parts::OWNER, Self::OF_OWNER),
            (parts::GROUP, Self::OF_GROUP),
            (parts::DACL, Self::OF_DACL),
            (parts::SACL, Self::OF_SACL),
        ];
        let named = parts.iter().filter(|(part, _)| which & part != 0);
        named.fold(Self::NONE, |all, (_, bits)| all.or(*bits))
    }
}

/// A security descriptor (MS-DTYP 2.4.6).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// How the lists came about; `SELF_RELATIVE` is left out.
    pub control: Control,
    /// Who owns the file.
    pub owner: Option<Sid>,
    /// Primary group.
    pub group: Option<Sid>,
    /// Audit list.
    pub sacl: Option<Acl>,
    /// Access list; where the control says that there is one, none means that everyone may do
    /// everything.
    pub dacl: Option<Acl>,
}

impl Descriptor {
    /// Reads a descriptor in self-relative form.
    ///
    /// # Errors
    /// The revision is not 1, or a part is outside of the bytes or ends within a field.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        const FIELD: &str = "descriptor";
        parse::with(Input::new(bytes), |input| {
            let (i, (_, _, control, owner, group, sacl, dacl)) = (
                such(u8, "descriptor.Revision", |revision| revision == 1),
                skip(1, "descriptor.Sbz1"),
                u16("descriptor.Control").map(Control),
                size32("descriptor.OffsetOwner"),
                size32("descriptor.OffsetGroup"),
                size32("descriptor.OffsetSacl"),
                size32("descriptor.OffsetDacl"),
            )
                .parse(input)?;
            let control = control.without(Control::SELF_RELATIVE);
            let sid = |offset| match offset {
                0 => Ok(None),
                offset => Sid::read(from(input, offset, FIELD)?).map(|(_, sid)| Some(sid)),
            };
            let list = |present: Control, offset| match offset {
                0 => Ok(None),
                offset if control.has(present) => {
                    acl(from(input, offset, FIELD)?).map(|(_, acl)| Some(acl))
                }
                _ => Ok(None),
            };
            let descriptor = Self {
                control,
                owner: sid(owner)?,
                group: sid(group)?,
                sacl: list(Control::SACL_PRESENT, sacl)?,
                dacl: list(Control::DACL_PRESENT, dacl)?,
            };
            Ok((i, descriptor))
        })
    }

    /// Appends the parts of the descriptor that `which` names, in self-relative form.
    pub fn encode(&self, which: u32, out: &mut Vec<u8>) {
        let start = out.len();
        let mut control = self.control.and(Control::of(which)).or(Control::SELF_RELATIVE);
        let sacl = self.sacl.as_ref().filter(|_| which & parts::SACL != 0);
        let dacl = self.dacl.as_ref().filter(|_| which & parts::DACL != 0);
        if sacl.is_some() {
            control |= Control::SACL_PRESENT;
        }
        if dacl.is_some() {
            control |= Control::DACL_PRESENT;
        }
        out.put_u8(1);
        out.put_u8(0);
        out.put_u16(control.0);
        out.put_zeros(16);
        let here = |out: &mut Vec<u8>, field: usize| {
            let at = (out.len() - start) as u32;
            out.patch(start + field, &at.to_le_bytes());
        };
        for (part, sid, field) in [(parts::OWNER, &self.owner, 4), (parts::GROUP, &self.group, 8)] {
            if which & part != 0
                && let Some(sid) = sid
            {
                here(out, field);
                sid.encode(out);
            }
        }
        for (list, field) in [(sacl, 12), (dacl, 16)] {
            if let Some(list) = list {
                here(out, field);
                encode_acl(list, out);
            }
        }
    }

    /// Takes the parts that `which` names from `other`, as a client sets them: generic rights
    /// become the specific ones they stand for, and a list takes part in inheritance only if that
    /// is asked for with both of its bits (MS-DTYP 2.5.3.4.2).
    pub fn update(&mut self, which: u32, other: Self) {
        let of = Control::of(which);
        let mut control = other.control.and(of);
        for (asked, taken) in [
            (Control::DACL_AUTO_INHERIT_REQ, Control::DACL_AUTO_INHERITED),
            (Control::SACL_AUTO_INHERIT_REQ, Control::SACL_AUTO_INHERITED),
        ] {
            if !control.has(asked) {
                control = control.without(taken);
            }
            control = control.without(asked);
        }
        if which & parts::OWNER != 0 && other.owner.is_some() {
            self.owner = other.owner;
        }
        if which & parts::GROUP != 0 && other.group.is_some() {
            self.group = other.group;
        }
        if which & parts::DACL != 0 {
            self.dacl = other.dacl.map(specific);
            control |= Control::DACL_PRESENT;
        }
        if which & parts::SACL != 0 {
            self.sacl = other.sacl;
        }
        self.control = self.control.without(of).or(control);
    }

    /// Every right that a token of `sids` has (MS-DTYP 2.5.3.2): an entry decides a right the
    /// first time it names it; the owner may always read and change the list, unless the list says
    /// what owners may do.
    pub fn access_of(&self, sids: &[Sid]) -> Access {
        let mut allowed = Access::NONE;
        let mut denied = Access::NONE;
        let owns = self.owner.as_ref().is_some_and(|owner| sids.contains(owner));
        let Some(dacl) = &self.dacl else { return Access::ALL };
        let owner_rights = Sid::owner_rights();
        let holds = |ace: &&Ace| !ace.flags.has(AceFlags::INHERIT_ONLY) && ace.decides();
        if owns && !dacl.iter().filter(holds).any(|ace| ace.sid == owner_rights) {
            allowed |= Access::READ_CONTROL | Access::WRITE_DAC;
        }
        for ace in dacl.iter().filter(holds) {
            let concerned = match ace.trustee() {
                Some(sid) => sids.contains(&sid) || owns && sid == owner_rights,
                // Whom it denies cannot be told: everyone.
                None => true,
            };
            if !concerned {
                continue;
            }
            let access = ace.access.expand_generic();
            match ace.kind {
                ALLOW => allowed |= access.without(denied),
                _ => denied |= access.without(allowed),
            }
        }
        allowed
    }

    /// The access list of a new file or folder in a folder with this descriptor
    /// (MS-DTYP 2.5.3.4.4, 2.5.3.4.7); `None` when nothing is inherited.
    pub fn inherited(&self, owner: &Sid, group: &Sid, directory: bool) -> Option<Acl> {
        let mark = if self.control.has(Control::DACL_AUTO_INHERITED) {
            AceFlags::INHERITED
        } else {
            AceFlags::NONE
        };
        let list: Acl = self
            .dacl
            .as_ref()?
            .iter()
            .flat_map(|ace| inherit(ace, owner, group, directory, mark))
            .collect();
        (!list.is_empty()).then_some(list)
    }
}

/// Generic rights of entries that hold become specific ones; in those that only are inherited
/// they stay.
fn specific(list: Acl) -> Acl {
    let map = |mut ace: Ace| {
        if ace.kind <= DENY && !ace.flags.has(AceFlags::INHERIT_ONLY) {
            ace.access = ace.access.expand_generic();
        }
        ace
    };
    list.into_iter().map(map).collect()
}

/// What becomes of one entry: one that holds, one to be passed on, both, or none.
fn inherit(
    ace: &Ace,
    owner: &Sid,
    group: &Sid,
    directory: bool,
    mark: AceFlags,
) -> impl Iterator<Item = Ace> + use<> {
    let passing = AceFlags::OBJECT_INHERIT | AceFlags::CONTAINER_INHERIT;
    let reach = if directory { AceFlags::CONTAINER_INHERIT } else { AceFlags::OBJECT_INHERIT };
    let holds = ace.flags.has(reach);
    let passes = directory && ace.flags.any(passing) && !ace.flags.has(AceFlags::NO_PROPAGATE);
    let real = match &ace.sid {
        sid if *sid == Sid::creator_owner() => owner,
        sid if *sid == Sid::creator_group() => group,
        sid => sid,
    };
    let access = if ace.kind <= DENY { ace.access.expand_generic() } else { ace.access };
    let same = *real == ace.sid && access == ace.access;
    let passed = ace.flags.and(passing).or(mark);
    let effective = holds.then(|| Ace {
        flags: if passes && same { passed } else { mark },
        access,
        sid: real.clone(),
        ..ace.clone()
    });
    let onward = (passes && !(holds && same))
        .then(|| Ace { flags: passed.or(AceFlags::INHERIT_ONLY), ..ace.clone() });
    effective.into_iter().chain(onward)
}

#[cfg(test)]
mod tests;
