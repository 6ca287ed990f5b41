//! Descriptors and lists as they are on the wire, and what they allow.

use super::*;
use proptest::prelude::*;

fn sid() -> impl Strategy<Value = Sid> {
    (0u8..6, prop::collection::vec(any::<u32>(), 0..6)).prop_map(|(a, sub)| Sid::new(a, &sub))
}

fn ace() -> impl Strategy<Value = Ace> {
    let rest = prop::collection::vec(any::<u32>(), 0..3);
    (0u8..21, 0u8..32, any::<u32>(), sid(), rest).prop_map(|(kind, flags, access, sid, rest)| {
        let rest: Vec<u8> = rest.iter().flat_map(|word| word.to_le_bytes()).collect();
        let sid = if Ace::is_for_objects(kind) { Sid::new(0, &[0]) } else { sid };
        Ace { kind, flags: AceFlags(flags), access: Access(access), sid, rest }
    })
}

fn acl() -> impl Strategy<Value = Acl> {
    prop::collection::vec(ace(), 0..8)
}

proptest! {
    #[test]
    fn descriptors_round_trip(owner in sid(), group in sid(), dacl in acl(), sacl in acl(), protected in any::<bool>()) {
        let mut control = Control::DACL_PRESENT | Control::SACL_PRESENT;
        if protected { control |= Control::DACL_PROTECTED; }
        let descriptor = Descriptor { control, owner: Some(owner), group: Some(group), sacl: Some(sacl), dacl: Some(dacl) };
        let mut bytes = Vec::new();
        descriptor.encode(15, &mut bytes);
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
        let list: Acl = dacl.iter().map(|(kind, access, mine)| {
            let sid = if *mine { me.clone() } else { other.clone() };
            Ace::new(*kind, AceFlags::NONE, Access(*access), sid)
        }).collect();
        let got = Descriptor { dacl: Some(list), ..Default::default() }.access_of(&[me]);
        for bit in 0..9 {
            let first = dacl.iter().find(|(_, access, mine)| *mine && access & (1 << bit) != 0);
            prop_assert_eq!(got.has(Access(1 << bit)), first.is_some_and(|(kind, ..)| *kind == ALLOW));
        }
    }
}

fn allow(flags: AceFlags, access: Access, sid: Sid) -> Ace {
    Ace::new(ALLOW, flags, access, sid)
}

#[test]
fn inheritance_reaches_files_and_folders() {
    let (me, group) = (Sid::new(5, &[21, 7]), Sid::users());
    let folder = Descriptor {
        control: Control::DACL_AUTO_INHERITED,
        dacl: Some(vec![
            allow(AceFlags::OBJECT_INHERIT, Access::READ_DATA, Sid::creator_owner()),
            allow(AceFlags::CONTAINER_INHERIT, Access::READ_DATA, Sid::everyone()),
        ]),
        ..Default::default()
    };
    let file = folder.inherited(&me, &group, false).unwrap();
    assert_eq!(file, [allow(AceFlags::INHERITED, Access::READ_DATA, me.clone())]);
    let below = folder.inherited(&me, &group, true).unwrap();
    assert!(below[0].flags.has(AceFlags::INHERIT_ONLY));
    assert_eq!(below[0].sid, Sid::creator_owner());
    assert!(below[1].flags.has(AceFlags::CONTAINER_INHERIT));
    assert_eq!(Sid::administrators().to_string(), "S-1-5-32-544");
}

/// The creator's entry holds for the new folder and is passed on for what is made in it.
#[test]
fn what_stands_for_the_creator_is_split() {
    let (me, group) = (Sid::new(5, &[21, 7]), Sid::users());
    let both = AceFlags::OBJECT_INHERIT | AceFlags::CONTAINER_INHERIT;
    let folder = Descriptor {
        dacl: Some(vec![allow(both, Access::GENERIC_ALL, Sid::creator_owner())]),
        ..Default::default()
    };
    let below = folder.inherited(&me, &group, true).unwrap();
    let onward = both.or(AceFlags::INHERIT_ONLY);
    assert_eq!(
        below,
        [
            allow(AceFlags::NONE, Access::ALL, me.clone()),
            allow(onward, Access::GENERIC_ALL, Sid::creator_owner())
        ]
    );
    let once = Descriptor {
        dacl: Some(vec![allow(both.or(AceFlags::NO_PROPAGATE), Access::ALL, me.clone())]),
        ..Default::default()
    };
    let below = once.inherited(&me, &group, true).unwrap();
    assert_eq!(below, [allow(AceFlags::NONE, Access::ALL, me)]);
}

#[test]
fn what_owners_may_do_can_be_said() {
    let me = Sid::new(5, &[21, 7]);
    let of = |dacl: Vec<Ace>| {
        let owner = Some(me.clone());
        Descriptor { owner, dacl: Some(dacl), ..Default::default() }
            .access_of(std::slice::from_ref(&me))
    };
    assert_eq!(of(vec![]), Access::READ_CONTROL | Access::WRITE_DAC);
    let read = |flags| allow(flags, Access::READ_DATA, Sid::owner_rights());
    assert_eq!(of(vec![read(AceFlags::NONE)]), Access::READ_DATA);
    assert_eq!(of(vec![read(AceFlags::INHERIT_ONLY)]), Access::READ_CONTROL | Access::WRITE_DAC);
}
