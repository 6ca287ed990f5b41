//! Which node a role that nobody has goes to. Every node decides by the same rule, each for itself, and
//! takes what the rule gives it; a transaction lets one of them succeed when they have seen different
//! things.

use crate::{record::Standing, view::View};

/// Whether a node may take a role: it is there, up, configured for it, and did not fail at it lately.
pub fn may_take(view: &View, role: &str, node: u16) -> bool {
    let Some(member) = view.members.get(&node) else { return false };
    let has = |list: &[String]| list.iter().any(|name| name == role);
    view.standing(node) == Standing::Up && has(&member.record.roles) && !has(&member.record.unfit)
}

/// The node for a role: the one an administrator wants, else the first of those that are preferred,
/// else the one with the fewest roles, of these the one with the lowest number. `without` is left
/// out.
pub fn place(view: &View, role: &str, preferred: &[u16], without: Option<u16>) -> Option<u16> {
    let nodes = view.members.keys().copied();
    let fit = nodes.filter(|node| Some(*node) != without && may_take(view, role, *node));
    let wished = view.wished(role);
    fit.min_by_key(|node| {
        let rank = preferred.iter().position(|preferred| preferred == node);
        let rank = rank.unwrap_or(preferred.len());
        (wished != Some(*node), rank, view.load(*node), *node)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Keys, Member, NodeRecord, Record, RoleRecord, Run, Wish};

    fn view() -> (Keys, View) {
        let keys = Keys::new("c");
        let mut view = View::new(keys.clone());
        for node in 1..=3u16 {
            let member = Member {
                lease: node.into(),
                name: format!("n{node}"),
                version: "1".into(),
                roles: vec!["a".into(), "b".into()],
                unfit: vec![],
                serving: vec![],
                reach: None,
                silence: None,
            };
            view.take(&keys.member(node), Some(&member.to_bytes()), 1).unwrap();
        }
        (keys, view)
    }

    #[test]
    fn a_role_goes_where_it_is_wanted_then_preferred_then_lightest() {
        let (keys, mut view) = view();
        assert_eq!(place(&view, "a", &[], None), Some(1));
        assert_eq!(place(&view, "a", &[3, 2], None), Some(3));
        assert_eq!(place(&view, "a", &[3, 2], Some(3)), Some(2));
        let owner = Some(Run { node: 1, lease: 1 });
        let role = RoleRecord { owner, generation: 1, since: 0, reason: String::new() };
        view.take(&keys.role("b"), Some(&role.to_bytes()), 2).unwrap();
        assert_eq!(place(&view, "a", &[], None), Some(2));
        let wish = Wish { node: 1, reason: String::new() };
        view.take(&keys.wish("a"), Some(&wish.to_bytes()), 3).unwrap();
        assert_eq!(place(&view, "a", &[3], None), Some(1));
        assert_eq!(place(&view, "other", &[], None), None);
    }

    #[test]
    fn nodes_that_are_not_up_or_not_fit_get_nothing() {
        let (keys, mut view) = view();
        for standing in [Standing::Paused, Standing::Draining, Standing::Quarantined] {
            let node = NodeRecord { standing, ..NodeRecord::default() };
            view.take(&keys.node(1), Some(&node.to_bytes()), 2).unwrap();
            assert_eq!(place(&view, "a", &[1], None), Some(2));
        }
        let mut member = view.members[&2].record.clone();
        member.unfit.push("a".into());
        view.take(&keys.member(2), Some(&member.to_bytes()), 3).unwrap();
        assert_eq!(place(&view, "a", &[], None), Some(3));
        assert_eq!(place(&view, "b", &[], None), Some(2));
        view.take(&keys.member(3), None, 4).unwrap();
        assert_eq!(place(&view, "a", &[], None), None);
    }
}
