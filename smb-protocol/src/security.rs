//! Security identifiers and descriptors, and the access check (MS-DTYP 2.4.2, 2.4.4-2.4.6,
//! 2.5.3.2).

use std::fmt;

use crate::{
    flag_set,
    msg::create::Access,
    wire::{Put, Reader, Result, WireError, len16},
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

    /// S-1-1-0: everyone.
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

    /// Reads a SID.
    pub fn parse(r: &mut Reader<'_>) -> Result<Self> {
        let revision = r.u8("sid.Revision")?;
        let count = r.u8("sid.SubAuthorityCount")?;
        if revision != 1 || usize::from(count) > MAX_SUB_AUTHORITIES {
            return Err(WireError::Value { field: "sid", value: count.into() });
        }
        let authority = r.array("sid.IdentifierAuthority")?;
        let sub = (0..count).map(|_| r.u32("sid.SubAuthority")).collect::<Result<_>>()?;
        Ok(Self { authority, sub })
    }

    /// Appends the SID.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(1);
        out.put_u8(self.sub.len() as u8);
        out.put(&self.authority);
        self.sub.iter().for_each(|sub| out.put_u32(*sub));
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

    fn len(&self) -> usize {
        8 + 4 * self.sub.len()
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

/// One entry of an access list. Types other than allow (0) and deny (1) are kept and not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ace {
    /// 0 allows, 1 denies.
    pub kind: u8,
    /// How it is inherited.
    pub flags: AceFlags,
    /// Rights.
    pub access: Access,
    /// Whose.
    pub sid: Sid,
}

/// `ACCESS_ALLOWED_ACE_TYPE`.
pub const ALLOW: u8 = 0;
/// `ACCESS_DENIED_ACE_TYPE`.
pub const DENY: u8 = 1;

impl Ace {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(self.kind);
        out.put_u8(self.flags.0);
        out.put_u16(len16(8 + self.sid.len()));
        out.put_u32(self.access.0);
        self.sid.encode(out);
    }
}

/// An access list.
pub type Acl = Vec<Ace>;

fn parse_acl(bytes: &[u8]) -> Result<Acl> {
    let mut r = Reader::new(bytes);
    r.skip(2, "acl.AclRevision")?;
    let size = usize::from(r.u16("acl.AclSize")?);
    let count = r.u16("acl.AceCount")?;
    r.skip(2, "acl.Sbz2")?;
    let mut entries = Reader::new(r.bytes(size.saturating_sub(8), "acl")?);
    let mut acl = Vec::new();
    for _ in 0..count {
        let start = entries.clone();
        let kind = entries.u8("ace.AceType")?;
        let flags = AceFlags(entries.u8("ace.AceFlags")?);
        let size = usize::from(entries.u16("ace.AceSize")?);
        let mut body = Reader::new(start.region(start.position(), size, "ace")?);
        body.skip(4, "ace.Header")?;
        entries.skip(size.saturating_sub(4), "ace")?;
        if size < 4 {
            return Err(WireError::Value { field: "ace.AceSize", value: size as u64 });
        }
        if kind <= DENY {
            let access = Access(body.u32("ace.Mask")?);
            acl.push(Ace { kind, flags, access, sid: Sid::parse(&mut body)? });
        }
    }
    Ok(acl)
}

fn encode_acl(acl: &[Ace], out: &mut Vec<u8>) {
    let start = out.len();
    out.put_u16(2);
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
}

const DACL_PRESENT: u16 = 0x0004;
const DACL_PROTECTED: u16 = 0x1000;
const SELF_RELATIVE: u16 = 0x8000;

/// A security descriptor in self-relative form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// Who owns the file.
    pub owner: Option<Sid>,
    /// Primary group.
    pub group: Option<Sid>,
    /// Access list; absent means that everyone may do everything.
    pub dacl: Option<Acl>,
    /// The list does not change with that of the folder.
    pub protected: bool,
}

impl Descriptor {
    /// Reads a descriptor.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader::new(bytes);
        let revision = r.u8("descriptor.Revision")?;
        if revision != 1 {
            return Err(WireError::Value { field: "descriptor.Revision", value: revision.into() });
        }
        r.skip(1, "descriptor.Sbz1")?;
        let control = r.u16("descriptor.Control")?;
        let owner = r.u32("descriptor.OffsetOwner")? as usize;
        let group = r.u32("descriptor.OffsetGroup")? as usize;
        r.skip(4, "descriptor.OffsetSacl")?;
        let dacl = r.u32("descriptor.OffsetDacl")? as usize;
        let at = |offset: usize| {
            let outside =
                WireError::Outside { field: "descriptor", offset, len: 8, have: bytes.len() };
            bytes.get(offset..).ok_or(outside)
        };
        let sid = |offset: usize| match offset {
            0 => Ok(None),
            offset => Sid::parse(&mut Reader::new(at(offset)?)).map(Some),
        };
        let dacl = if control & DACL_PRESENT != 0 && dacl != 0 {
            Some(parse_acl(at(dacl)?)?)
        } else {
            None
        };
        let protected = control & DACL_PROTECTED != 0;
        Ok(Self { owner: sid(owner)?, group: sid(group)?, dacl, protected })
    }

    /// Appends the parts of the descriptor that `which` names.
    pub fn encode(&self, which: u32, out: &mut Vec<u8>) {
        let start = out.len();
        let dacl = self.dacl.as_ref().filter(|_| which & parts::DACL != 0);
        let mut control = SELF_RELATIVE;
        if which & parts::DACL != 0 {
            control |= DACL_PRESENT | if self.protected { DACL_PROTECTED } else { 0 };
        }
        out.put_u8(1);
        out.put_u8(0);
        out.put_u16(control);
        out.put_zeros(16);
        for (part, sid, field) in [(parts::OWNER, &self.owner, 4), (parts::GROUP, &self.group, 8)] {
            if which & part != 0
                && let Some(sid) = sid
            {
                let at = (out.len() - start) as u32;
                out.patch(start + field, &at.to_le_bytes());
                sid.encode(out);
            }
        }
        if let Some(dacl) = dacl {
            let at = (out.len() - start) as u32;
            out.patch(start + 16, &at.to_le_bytes());
            encode_acl(dacl, out);
        }
    }

    /// Takes the parts that `which` names from `other`.
    pub fn update(&mut self, which: u32, other: Self) {
        if which & parts::OWNER != 0 && other.owner.is_some() {
            self.owner = other.owner;
        }
        if which & parts::GROUP != 0 && other.group.is_some() {
            self.group = other.group;
        }
        if which & parts::DACL != 0 {
            self.dacl = other.dacl;
            self.protected = other.protected;
        }
    }

    /// Every right that a token of `sids` has (MS-DTYP 2.5.3.2): an entry decides a right the
    /// first time it names it; the owner may always read and change the list.
    pub fn access_of(&self, sids: &[Sid]) -> Access {
        let mut allowed = Access::NONE;
        let mut denied = Access::NONE;
        if self.owner.as_ref().is_some_and(|owner| sids.contains(owner)) {
            allowed |= Access::READ_CONTROL | Access::WRITE_DAC;
        }
        let Some(dacl) = &self.dacl else { return Access::ALL };
        for ace in dacl {
            if ace.flags.has(AceFlags::INHERIT_ONLY) || !sids.contains(&ace.sid) {
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

    /// What a new file or folder in a folder with this descriptor gets (MS-DTYP 2.5.3.4);
    /// `None` when nothing is inherited.
    pub fn inherited(&self, creator: &Sid, directory: bool) -> Option<Self> {
        let mut list = Vec::new();
        for ace in self.dacl.as_ref()? {
            let here =
                if directory { AceFlags::CONTAINER_INHERIT } else { AceFlags::OBJECT_INHERIT };
            let passes = directory && ace.flags.has(AceFlags::OBJECT_INHERIT);
            let applies = ace.flags.has(here);
            if !applies && (!passes || ace.flags.has(AceFlags::NO_PROPAGATE)) {
                continue;
            }
            let mut flags = AceFlags::INHERITED;
            if directory && !ace.flags.has(AceFlags::NO_PROPAGATE) {
                flags |= ace.flags.and(AceFlags::OBJECT_INHERIT | AceFlags::CONTAINER_INHERIT);
                if !applies {
                    flags |= AceFlags::INHERIT_ONLY;
                }
            }
            let own = ace.sid == Sid::creator_owner();
            let sid = if own { creator.clone() } else { ace.sid.clone() };
            list.push(Ace { kind: ace.kind, flags, access: ace.access, sid });
        }
        (!list.is_empty()).then(|| Self {
            owner: Some(creator.clone()),
            group: self.group.clone(),
            dacl: Some(list),
            protected: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sid() -> impl Strategy<Value = Sid> {
        (0u8..6, prop::collection::vec(any::<u32>(), 0..6)).prop_map(|(a, sub)| Sid::new(a, &sub))
    }

    fn ace() -> impl Strategy<Value = Ace> {
        (0u8..2, 0u8..32, any::<u32>(), sid()).prop_map(|(kind, flags, access, sid)| Ace {
            kind,
            flags: AceFlags(flags),
            access: Access(access),
            sid,
        })
    }

    proptest! {
        #[test]
        fn descriptors_round_trip(owner in sid(), group in sid(), dacl in prop::collection::vec(ace(), 0..8), protected in any::<bool>()) {
            let descriptor = Descriptor { owner: Some(owner), group: Some(group), dacl: Some(dacl), protected };
            let mut bytes = Vec::new();
            descriptor.encode(7, &mut bytes);
            prop_assert_eq!(Descriptor::parse(&bytes).unwrap(), descriptor);
        }

        #[test]
        fn parsing_is_total(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = 1; }
            let _ = Descriptor::parse(&bytes);
        }

        /// A right is had just if the first entry that names it for us allows it.
        #[test]
        fn the_first_entry_decides(dacl in prop::collection::vec((0u8..2, 0u32..0x1ff, any::<bool>()), 0..8)) {
            let me = Sid::new(5, &[21, 1]);
            let other = Sid::new(5, &[21, 2]);
            let list: Acl = dacl.iter().map(|(kind, access, mine)| Ace {
                kind: *kind, flags: AceFlags::NONE, access: Access(*access),
                sid: if *mine { me.clone() } else { other.clone() },
            }).collect();
            let got = Descriptor { dacl: Some(list), ..Default::default() }.access_of(&[me]);
            for bit in 0..9 {
                let first = dacl.iter().find(|(_, access, mine)| *mine && access & (1 << bit) != 0);
                prop_assert_eq!(got.has(Access(1 << bit)), first.is_some_and(|(kind, ..)| *kind == ALLOW));
            }
        }
    }

    #[test]
    fn inheritance_reaches_files_and_folders() {
        let me = Sid::new(5, &[21, 7]);
        let entry = |flags, sid| Ace { kind: ALLOW, flags, access: Access::READ_DATA, sid };
        let folder = Descriptor {
            dacl: Some(vec![
                entry(AceFlags::OBJECT_INHERIT, Sid::creator_owner()),
                entry(AceFlags::CONTAINER_INHERIT, Sid::everyone()),
            ]),
            ..Default::default()
        };
        let file = folder.inherited(&me, false).unwrap().dacl.unwrap();
        assert_eq!(file, vec![entry(AceFlags::INHERITED, me.clone())]);
        let below = folder.inherited(&me, true).unwrap().dacl.unwrap();
        assert!(below[0].flags.has(AceFlags::INHERIT_ONLY));
        assert!(below[1].flags.has(AceFlags::CONTAINER_INHERIT));
        assert_eq!(Sid::administrators().to_string(), "S-1-5-32-544");
    }
}
