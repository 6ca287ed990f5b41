use ::cluster::record::{Keys, Member, NodeRecord, Record, RoleRecord, Run};

use super::*;

const TEXT: &str = "[witness]\nlisten=['0.0.0.0:49152']\nname='one'\naddresses=['192.0.2.1']\n\
    [cluster]\nname='c'\nnode=1\nfence='gate'\nendpoints=['http://127.0.0.1:1']\n\
    [[cluster.role]]\nname='vms'\nshares=['vms']\nserver_name='FILES'\nlisten=['192.0.2.50:445']\n\
    interface='eth0'\nprefix=24\n\
    [[cluster.role]]\nname='any'\nshares=['any']\nlisten=['0.0.0.0:446']\naddresses='none'\n\
    [[cluster.role]]\nname='luns'\ntargets=['t']\niscsi_listen=['192.0.2.50:3260']\n\
    interface='eth0'\nprefix=24\n";

struct World {
    followed: Followed,
    tell: watch::Sender<Option<cluster::view::View>>,
    view: cluster::view::View,
    keys: Keys,
}

fn world() -> World {
    let path = std::path::Path::new("/smbd.toml");
    let config = WitnessConfig::parse(TEXT, path).unwrap().unwrap();
    let cluster = ClusterConfig::parse(TEXT, path).unwrap().unwrap();
    let (tell, seen) = watch::channel(None);
    let keys = cluster.keys();
    let followed = Followed {
        config: Mutex::new(config),
        server_name: "SERVER".to_owned(),
        cluster,
        seen,
        known: Mutex::default(),
    };
    World { followed, tell, view: cluster::view::View::new(keys.clone()), keys }
}

impl World {
    fn member(&mut self, node: u16, serving: &[&str], witness: bool) {
        let reach =
            Reach { name: format!("N{node}"), addresses: vec![[192, 0, 2, node as u8].into()] };
        let member = Member {
            lease: node.into(),
            name: format!("n{node}"),
            version: "1".into(),
            roles: vec![],
            unfit: vec![],
            serving: serving.iter().map(|role| (*role).to_owned()).collect(),
            reach: witness.then_some(reach),
            silence: None,
        };
        let added = NodeRecord::default().to_bytes();
        self.view.take(&self.keys.node(node), Some(&added), 1).unwrap();
        self.view.take(&self.keys.member(node), Some(&member.to_bytes()), 1).unwrap();
    }

    fn owns(&mut self, role: &str, node: u16) {
        let owner = Some(Run { node, lease: node.into() });
        let record = RoleRecord { owner, generation: 1, since: 0, reason: String::new() };
        self.view.take(&self.keys.role(role), Some(&record.to_bytes()), 1).unwrap();
    }

    fn seen(&self) -> View {
        self.tell.send_replace(Some(self.view.clone()));
        self.followed.view()
    }
}

fn states(view: &View) -> Vec<(&str, NodeState)> {
    view.nodes.iter().map(|node| (&*node.name, node.state)).collect()
}

#[test]
fn before_etcd_has_answered_there_is_this_node_and_nobody_serves() {
    let view = world().followed.view();
    assert_eq!(states(&view), [("one", NodeState::Up)]);
    assert_eq!(view.names, ["SERVER", "FILES"]);
    assert!(view.shares.iter().any(|share| share.name == "vms" && !share.scale_out));
    // An address that is any is none that a client uses.
    let nobody = Floating { address: [192, 0, 2, 50].into(), node: None };
    assert_eq!(view.floating, [nobody]);
}

#[test]
fn a_node_that_is_lost_is_down_and_one_that_was_removed_is_none() {
    let mut world = world();
    world.member(1, &[], true);
    world.member(2, &[], true);
    world.member(3, &[], false);
    let both = [("one", NodeState::Up), ("N2", NodeState::Up)];
    assert_eq!(states(&world.seen()), both, "node 3 tells nobody anything");
    world.view.take(&world.keys.member(2), None, 2).unwrap();
    assert_eq!(states(&world.seen()), [("one", NodeState::Up), ("N2", NodeState::Down)]);
    world.view.take(&world.keys.node(2), None, 3).unwrap();
    assert_eq!(states(&world.seen()), [("one", NodeState::Up)]);
}

#[test]
fn an_address_is_where_all_that_is_at_it_is_served() {
    let mut world = world();
    let mut held = |member: &[(u16, &[&str])], owns: &[(&str, u16)]| {
        member.iter().for_each(|(node, serving)| world.member(*node, serving, true));
        owns.iter().for_each(|(role, node)| world.owns(role, *node));
        world.seen().holder([192, 0, 2, 50].into()).map(str::to_owned)
    };
    assert_eq!(held(&[(2, &[])], &[("vms", 2), ("luns", 2)]), None, "they start");
    assert_eq!(held(&[(2, &["vms"])], &[]), None);
    assert_eq!(held(&[(2, &["vms", "luns"])], &[]).as_deref(), Some("2"));
    // The owner is lost: another has it, and serves it.
    assert_eq!(held(&[(3, &[])], &[("vms", 3), ("luns", 3)]), None);
    assert_eq!(held(&[(3, &["vms", "luns"])], &[]).as_deref(), Some("3"));
}
