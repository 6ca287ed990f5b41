use dce_rpc::security::AuthType;
use proptest::prelude::*;

use super::*;
use crate::{notice::Notice, view::ShareView};

const S: fn(u64) -> Duration = Duration::from_secs;

fn caller(level: Level) -> Caller {
    Caller { user: "ADMIN".into(), level, kind: AuthType::NEGOTIATE }
}

fn view(state: [NodeState; 2], scale_out: bool) -> View {
    let node = |name: &str, last: u8, state| Node {
        name: name.into(),
        addresses: vec![[192, 0, 2, last].into()],
        state,
    };
    View {
        nodes: vec![node("ONE", 1, state[0]), node("TWO", 2, state[1])],
        own: 0,
        names: vec!["files".into(), "files.example".into()],
        shares: vec![ShareView { name: "vms".into(), scale_out }],
        floating: Vec::new(),
    }
}

const BOTH: [NodeState; 2] = [NodeState::Up, NodeState::Up];

fn engine() -> Engine {
    Engine::new(Limits::default(), view(BOTH, true))
}

fn from(caller: Option<&Caller>, call: u32) -> From<'_> {
    From { waiter: Waiter { connection: 7, call }, group: 3, caller }
}

fn ask(engine: &mut Engine, request: Request, call: u32, now: u64) -> Outcome {
    let caller = caller(Level::Integrity);
    engine.call(&from(Some(&caller), call), request, S(now))
}

fn wish() -> Register {
    Register {
        version: Version::V2.0,
        net_name: Some("FILES".into()),
        share_name: Some("VMS".into()),
        address: Some("192.0.2.2".into()),
        client: Some("client.example".into()),
        all_addresses: true,
        keep_alive: 120,
    }
}

fn registered(engine: &mut Engine, register: Register) -> Handle {
    let request = match register.version {
        0x0001_0001 => Request::Register(register),
        _ => Request::RegisterEx(register),
    };
    match ask(engine, request, 1, 0) {
        Outcome::Done(Reply::Registered(Ok(handle))) => handle,
        other => panic!("{other:?}"),
    }
}

fn told(engine: &mut Engine) -> Vec<(u32, Result<Notice, Status>)> {
    let notified = |(waiter, reply): (Waiter, Reply)| match reply {
        Reply::Notified(notice) => (waiter.call, notice),
        other => panic!("{other:?}"),
    };
    engine.answers().into_iter().map(notified).collect()
}

fn changed(name: &str, state: NodeState) -> Result<Notice, Status> {
    Ok(Notice::Changed(vec![Change { name: name.into(), state }]))
}

#[test]
fn interfaces_are_listed_and_the_own_one_is_no_witness() {
    let Outcome::Done(Reply::Interfaces(Ok(list))) =
        ask(&mut engine(), Request::GetInterfaceList, 1, 0)
    else {
        panic!("no list");
    };
    let seen: Vec<_> = list.iter().map(|it| (&*it.group, it.witness, it.version)).collect();
    assert_eq!(seen, [("ONE", false, 0x0002_0000), ("TWO", true, 0x0002_0000)]);
    let mut alone = Engine::new(Limits::default(), View::default());
    let none = Outcome::Done(Reply::Interfaces(Err(Status::NO_MORE_ITEMS)));
    assert_eq!(ask(&mut alone, Request::GetInterfaceList, 1, 0), none);
}

#[test]
fn a_list_waits_until_a_node_is_up_and_few_may_wait() {
    let down = [NodeState::Down, NodeState::Unknown];
    let limits = Limits { waiting: 1, ..Limits::default() };
    let mut engine = Engine::new(limits, view(down, true));
    assert_eq!(ask(&mut engine, Request::GetInterfaceList, 1, 0), Outcome::Waits);
    let refused = ask(&mut engine, Request::GetInterfaceList, 2, 0);
    assert!(matches!(refused, Outcome::Limited(_, "witness.waiting")), "{refused:?}");
    engine.set_view(view([NodeState::Down, NodeState::Up], true), S(1));
    let answers = engine.answers();
    assert!(matches!(&answers[..], [(Waiter { call: 1, .. }, Reply::Interfaces(Ok(_)))]));
}

/// The same with an address that a node serves, or nobody.
fn floating(node: Option<&str>) -> View {
    let floating = Floating { address: [192, 0, 2, 50].into(), node: node.map(str::to_owned) };
    View { floating: vec![floating], ..view(BOTH, false) }
}

#[test]
fn whoever_uses_a_floating_address_is_told_that_it_goes_and_that_it_comes() {
    let mut engine = Engine::new(Limits::default(), floating(Some("ONE")));
    let address = "192.0.2.50";
    let uses = Register { address: Some(address.into()), ..wish() };
    let (user, other) = (registered(&mut engine, uses), registered(&mut engine, wish()));
    assert_eq!(ask(&mut engine, Request::AsyncNotify(user), 2, 0), Outcome::Waits);
    assert_eq!(ask(&mut engine, Request::AsyncNotify(other), 3, 0), Outcome::Waits);
    engine.set_view(floating(None), S(1));
    assert_eq!(told(&mut engine), [(2, changed(address, NodeState::Down))]);
    assert_eq!(ask(&mut engine, Request::AsyncNotify(user), 4, 1), Outcome::Waits);
    engine.set_view(floating(Some("TWO")), S(2));
    assert_eq!(told(&mut engine), [(4, changed(address, NodeState::Up))]);
    // Nothing is told twice, and nobody who uses a node's own address hears of it.
    engine.set_view(floating(Some("TWO")), S(3));
    assert!(told(&mut engine).is_empty());
}

#[test]
fn an_address_that_moved_while_nobody_asked_was_lost_first() {
    let both = |notice| {
        let Outcome::Done(Reply::Notified(Ok(Notice::Changed(changes)))) = notice else {
            panic!("{notice:?}")
        };
        changes.iter().map(|change| (change.name.clone(), change.state)).collect::<Vec<_>>()
    };
    let lost = |state| ("192.0.2.50".to_owned(), state);
    // Seen as one change, or as two, or again and again.
    let histories: [&[_]; 3] = [
        &[Some("TWO")],
        &[None, Some("TWO")],
        &[None, Some("TWO"), None, Some("ONE"), Some("TWO")],
    ];
    for history in histories {
        let mut engine = Engine::new(Limits::default(), floating(Some("ONE")));
        let uses = Register { address: Some("192.0.2.50".into()), ..wish() };
        let user = registered(&mut engine, uses);
        history.iter().for_each(|node| engine.set_view(floating(*node), S(1)));
        let notice = ask(&mut engine, Request::AsyncNotify(user), 2, 1);
        assert_eq!(both(notice), [lost(NodeState::Down), lost(NodeState::Up)], "{history:?}");
        engine.set_view(floating(None), S(2));
        let notice = ask(&mut engine, Request::AsyncNotify(user), 3, 2);
        assert_eq!(both(notice), [lost(NodeState::Down)]);
    }
}

#[test]
fn who_does_not_protect_its_calls_is_denied() {
    for caller in [None, Some(caller(Level::Connect))] {
        let mut engine = engine();
        let request = Request::RegisterEx(wish());
        let outcome = engine.call(&from(caller.as_ref(), 1), request, S(0));
        let denied = Outcome::Done(Reply::Registered(Err(Status::ACCESS_DENIED)));
        assert_eq!(outcome, denied);
        let list = engine.call(&from(caller.as_ref(), 1), Request::GetInterfaceList, S(0));
        assert_eq!(list, Outcome::Done(Reply::Interfaces(Err(Status::ACCESS_DENIED))));
    }
}

#[test]
fn wrong_registrations_are_refused_by_the_codes_of_the_specification() {
    let refused = |scale_out: bool, spoil: &dyn Fn(&mut Register)| {
        let mut engine = Engine::new(Limits::default(), view(BOTH, scale_out));
        let mut register = wish();
        spoil(&mut register);
        match ask(&mut engine, Request::RegisterEx(register), 1, 0) {
            Outcome::Done(Reply::Registered(Err(status))) => Some(status),
            Outcome::Done(Reply::Registered(Ok(_))) => None,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(true, &|_| {}), None);
    assert_eq!(refused(true, &|it| it.version = Version::V1.0), Some(Status::REVISION_MISMATCH));
    assert_eq!(refused(true, &|it| it.net_name = None), Some(Status::INVALID_PARAMETER));
    assert_eq!(refused(true, &|it| it.address = None), Some(Status::INVALID_PARAMETER));
    assert_eq!(refused(true, &|it| it.client = None), Some(Status::INVALID_PARAMETER));
    assert_eq!(
        refused(true, &|it| it.net_name = Some("other".into())),
        Some(Status::INVALID_PARAMETER)
    );
    let long = "x".repeat(MAX_NAME + 1);
    assert_eq!(
        refused(true, &|it| it.client = Some(long.clone())),
        Some(Status::INVALID_PARAMETER)
    );
    assert_eq!(
        refused(true, &|it| it.share_name = Some("none".into())),
        Some(Status::INVALID_STATE)
    );
    assert_eq!(
        refused(true, &|it| it.address = Some("192.0.2.9".into())),
        Some(Status::INVALID_STATE)
    );
    // Where no share is served by every node, neither matters.
    assert_eq!(refused(false, &|it| it.share_name = Some("none".into())), None);
    assert_eq!(refused(false, &|it| it.address = Some("192.0.2.9".into())), None);
    let mut first = wish();
    (first.version, first.share_name) = (Version::V2.0, None);
    let outcome = ask(&mut engine(), Request::Register(first), 1, 0);
    assert_eq!(outcome, Outcome::Done(Reply::Registered(Err(Status::REVISION_MISMATCH))));
}

#[test]
fn a_node_that_is_lost_is_told_at_once_to_those_who_use_it() {
    let mut engine = engine();
    let uses = registered(&mut engine, Register { all_addresses: false, ..wish() });
    let other = registered(
        &mut engine,
        Register { address: Some("192.0.2.1".into()), all_addresses: false, ..wish() },
    );
    assert_eq!(ask(&mut engine, Request::AsyncNotify(uses), 2, 1), Outcome::Waits);
    assert_eq!(ask(&mut engine, Request::AsyncNotify(other), 3, 1), Outcome::Waits);
    engine.set_view(view([NodeState::Up, NodeState::Down], true), S(2));
    assert_eq!(told(&mut engine), [(2, changed("TWO", NodeState::Down))]);
    // What happens while nobody waits is told when somebody does: the last state of each.
    engine.set_view(view(BOTH, true), S(3));
    engine.set_view(view([NodeState::Up, NodeState::Down], true), S(4));
    engine.set_view(view(BOTH, true), S(5));
    let outcome = ask(&mut engine, Request::AsyncNotify(uses), 4, 6);
    assert_eq!(outcome, Outcome::Done(Reply::Notified(changed("TWO", NodeState::Up))));
    // A node that nobody knows anything of has not changed.
    engine.set_view(view([NodeState::Up, NodeState::Unknown], true), S(7));
    assert_eq!(ask(&mut engine, Request::AsyncNotify(uses), 5, 8), Outcome::Waits);
    // One that is not in the cluster any more is lost.
    let mut smaller = view(BOTH, true);
    smaller.nodes.truncate(1);
    engine.set_view(smaller, S(9));
    assert_eq!(told(&mut engine), [(5, changed("TWO", NodeState::Down))]);
}

#[test]
fn changed_addresses_are_told_to_those_who_asked_for_all() {
    let mut engine = engine();
    let handle = registered(&mut engine, Register { address: Some("192.0.2.1".into()), ..wish() });
    assert_eq!(ask(&mut engine, Request::AsyncNotify(handle), 2, 1), Outcome::Waits);
    engine.set_view(view([NodeState::Up, NodeState::Down], true), S(2));
    let two: IpAddr = [192, 0, 2, 2].into();
    let gone = Ok(Notice::Addresses(vec![(two, NodeState::Down)]));
    assert_eq!(told(&mut engine), [(2, gone)]);
    let mut more = view([NodeState::Up, NodeState::Down], true);
    more.nodes[0].addresses.push([192, 0, 2, 11].into());
    engine.set_view(more, S(3));
    let outcome = ask(&mut engine, Request::AsyncNotify(handle), 3, 4);
    let Outcome::Done(Reply::Notified(Ok(Notice::Addresses(list)))) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(list.len(), 2);
}

#[test]
fn clients_and_shares_are_moved_by_name() {
    let mut engine = engine();
    let handle = registered(&mut engine, wish());
    let old = Register { version: Version::V1.0, share_name: None, keep_alive: 0, ..wish() };
    let old = registered(&mut engine, old);
    for (call, handle) in [(2, handle), (3, old)] {
        assert_eq!(ask(&mut engine, Request::AsyncNotify(handle), call, 1), Outcome::Waits);
    }
    let one: IpAddr = [192, 0, 2, 1].into();
    let list = vec![(one, NodeState::Up)];
    assert_eq!(engine.move_client("nobody", "ONE", S(1)), Err(NotMoved::NoClient));
    assert_eq!(engine.move_client("CLIENT.example", "three", S(1)), Err(NotMoved::NoDestination));
    assert_eq!(engine.move_client("CLIENT.example", "one", S(1)), Ok(2));
    let mut all = told(&mut engine);
    all.sort_by_key(|(call, _)| *call);
    let moved = Ok(Notice::MoveClient(list.clone()));
    assert_eq!(all, [(2, moved.clone()), (3, moved)]);
    // A share is told of to version 2 alone, by an address as well as by a node.
    assert_eq!(engine.move_share("vms", None, "192.0.2.1", S(2)), Ok(1));
    assert_eq!(engine.move_share("vms", Some("nobody"), "ONE", S(2)), Err(NotMoved::NoClient));
    let outcome = ask(&mut engine, Request::AsyncNotify(handle), 4, 3);
    assert_eq!(outcome, Outcome::Done(Reply::Notified(Ok(Notice::MoveShare(list)))));
}

#[test]
fn a_call_that_waits_for_long_enough_times_out_and_an_unused_registration_goes() {
    let mut engine = engine();
    let handle = registered(&mut engine, wish());
    assert_eq!(ask(&mut engine, Request::AsyncNotify(handle), 2, 10), Outcome::Waits);
    assert_eq!(engine.tick(S(130)), 0);
    assert!(told(&mut engine).is_empty());
    assert_eq!(engine.tick(S(131)), 0);
    assert_eq!(told(&mut engine), [(2, Err(Status::TIMEOUT))]);
    assert_eq!(engine.tick(S(161)), 0);
    assert_eq!(engine.tick(S(162)), 1);
    let outcome = ask(&mut engine, Request::AsyncNotify(handle), 3, 163);
    assert_eq!(outcome, Outcome::Done(Reply::Notified(Err(Status::NOT_FOUND))));
    // Version 1 waits for ever.
    let old = Register { version: Version::V1.0, share_name: None, ..wish() };
    let old = registered(&mut engine, old);
    assert_eq!(ask(&mut engine, Request::AsyncNotify(old), 4, 0), Outcome::Waits);
    assert_eq!(engine.tick(S(1_000_000)), 0);
    assert!(told(&mut engine).is_empty());
}

#[test]
fn handles_are_good_for_their_user_in_their_group_until_they_are_given_back() {
    let mut engine = engine();
    let handle = registered(&mut engine, wish());
    let (mine, other) =
        (caller(Level::Privacy), Caller { user: "EVE".into(), ..caller(Level::Privacy) });
    let waiter = Waiter { connection: 8, call: 1 };
    for (group, caller) in [(3, &other), (4, &mine)] {
        let from = From { waiter, group, caller: Some(caller) };
        let outcome = engine.call(&from, Request::Unregister(handle), S(1));
        assert_eq!(outcome, Outcome::Done(Reply::Unregistered(Status::INVALID_PARAMETER)));
    }
    assert_eq!(ask(&mut engine, Request::AsyncNotify(handle), 2, 1), Outcome::Waits);
    let second = ask(&mut engine, Request::AsyncNotify(handle), 3, 1);
    assert!(matches!(
        second,
        Outcome::Limited(Reply::Notified(Err(Status::NO_SYSTEM_RESOURCES)), _)
    ));
    let outcome = ask(&mut engine, Request::UnregisterEx(handle), 4, 1);
    let given_back = Reply::UnregisteredEx(Handle::default(), Status::SUCCESS);
    assert_eq!(outcome, Outcome::Done(given_back));
    assert_eq!(told(&mut engine), [(2, Err(Status::NOT_FOUND))]);
    let again = ask(&mut engine, Request::UnregisterEx(handle), 5, 1);
    let unknown = Reply::UnregisteredEx(handle, Status::INVALID_PARAMETER);
    assert_eq!(again, Outcome::Done(unknown));
}

#[test]
fn what_a_connection_waits_for_ends_with_it_and_the_rest_with_its_group() {
    let mut engine = engine();
    let handle = registered(&mut engine, wish());
    assert_eq!(ask(&mut engine, Request::AsyncNotify(handle), 2, 1), Outcome::Waits);
    engine.connection_ended(7, None, S(2));
    assert!(!engine.registrations()[0].waiting);
    assert_eq!(ask(&mut engine, Request::AsyncNotify(handle), 3, 3), Outcome::Waits);
    engine.given_up(Waiter { connection: 7, call: 3 }, S(4));
    assert!(!engine.registrations()[0].waiting);
    engine.connection_ended(7, Some(3), S(5));
    assert!(engine.registrations().is_empty());
}

#[test]
fn limits_are_told_by_their_names() {
    let limits = Limits { registrations: 3, registrations_per_user: 2, ..Limits::default() };
    let mut engine = Engine::new(limits, view(BOTH, true));
    registered(&mut engine, wish());
    registered(&mut engine, wish());
    let outcome = ask(&mut engine, Request::RegisterEx(wish()), 9, 0);
    assert!(matches!(outcome, Outcome::Limited(_, "witness.registrations_per_user")));
    let eve = Caller { user: "EVE".into(), ..caller(Level::Privacy) };
    for want in ["", "witness.registrations"] {
        let outcome = engine.call(&from(Some(&eve), 1), Request::RegisterEx(wish()), S(0));
        match outcome {
            Outcome::Done(_) => assert_eq!(want, ""),
            Outcome::Limited(reply, limit) => {
                assert_eq!(limit, want);
                assert_eq!(reply, Reply::Registered(Err(Status::NO_SYSTEM_RESOURCES)));
            }
            Outcome::Waits => panic!("waits"),
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Register(bool),
    Notify(usize),
    Unregister(usize),
    State(bool, u8),
    Move(bool),
    Tick(u16),
    GiveUp(u32),
    End,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any::<bool>().prop_map(Event::Register),
        (0..4usize).prop_map(Event::Notify),
        (0..4usize).prop_map(Event::Unregister),
        (any::<bool>(), 0..3u8).prop_map(|(which, state)| Event::State(which, state)),
        any::<bool>().prop_map(Event::Move),
        (0..200u16).prop_map(Event::Tick),
        (0..40u32).prop_map(Event::GiveUp),
        Just(Event::End),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever happens: a call is answered at most once, never after it was given up, and one that
    /// waits is either answered later or still waits for a registration that is there.
    #[test]
    fn every_call_is_answered_once(events in prop::collection::vec(event(), 0..60)) {
        let (mut engine, mut now, mut call) = (engine(), 0u64, 0u32);
        let (mut handles, mut open) = (Vec::new(), Vec::new());
        let mut states = BOTH;
        for event in events {
            call += 1;
            match event {
                Event::Register(v2) => {
                    let mut register = wish();
                    if !v2 { (register.version, register.share_name) = (Version::V1.0, None); }
                    handles.push(registered(&mut engine, register));
                }
                Event::Notify(at) => {
                    if let Some(handle) = handles.get(at)
                        && ask(&mut engine, Request::AsyncNotify(*handle), call, now) == Outcome::Waits
                    {
                        open.push(call);
                    }
                }
                Event::Unregister(at) => if let Some(handle) = handles.get(at) {
                    ask(&mut engine, Request::Unregister(*handle), call, now);
                },
                Event::State(which, state) => {
                    states[usize::from(which)] = [NodeState::Up, NodeState::Down, NodeState::Unknown][usize::from(state)];
                    engine.set_view(view(states, true), S(now));
                }
                Event::Move(share) => {
                    let _ = match share {
                        true => engine.move_share("vms", None, "ONE", S(now)),
                        false => engine.move_client("client.example", "TWO", S(now)),
                    };
                }
                Event::Tick(passed) => { now += u64::from(passed); engine.tick(S(now)); }
                Event::GiveUp(call) => {
                    engine.given_up(Waiter { connection: 7, call }, S(now));
                    open.retain(|other| *other != call);
                }
                Event::End => { engine.connection_ended(7, Some(3), S(now)); open.clear(); }
            }
            for (waiter, _) in engine.answers() {
                let at = open.iter().position(|call| *call == waiter.call);
                prop_assert!(at.is_some(), "answered twice or after it was given up: {waiter:?}");
                open.remove(at.unwrap());
            }
            let waiting = engine.registrations().iter().filter(|info| info.waiting).count();
            prop_assert_eq!(waiting, open.len());
        }
    }
}
