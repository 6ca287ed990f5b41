//! The rules of one engine, one after the other (MS-SMBD 3.1).

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;

/// Sends a request of `credits` credits and 1 KiB messages.
fn request(credits: u16, receive: u32, fragmented: u32) -> Vec<u8> {
    NegotiateRequest {
        min_version: VERSION,
        max_version: VERSION,
        credits_requested: credits,
        preferred_send_size: 1024,
        max_receive_size: receive,
        max_fragmented_size: fragmented,
    }
    .encode()
}

fn effects(engine: &mut Engine) -> Vec<Effect> {
    std::iter::from_fn(|| engine.next()).collect()
}

fn sends(effects: &[Effect]) -> Vec<(Data, usize, Option<u32>)> {
    let send = |effect: &Effect| match effect {
        Effect::Send { head, body, invalidate, .. } => {
            let whole = [&head[..], body].concat();
            Some((Data::parse(&whole).unwrap(), body.len(), *invalidate))
        }
        _ => None,
    };
    effects.iter().filter_map(send).collect()
}

/// An engine that was connected to, with what it said, and how many receives it posted.
fn connected(local: Parameters, credits: u16, now: Instant) -> (Engine, NegotiateResponse, usize) {
    let mut engine = Engine::passive(local, now);
    assert_eq!(effects(&mut engine), [Effect::PostReceive(NEGOTIATION_RECEIVE)]);
    engine.received(request(credits, 1024, LEAST_FRAGMENTED), None, now);
    let all = effects(&mut engine);
    let posted = all.iter().filter(|effect| matches!(effect, Effect::PostReceive(1024))).count();
    let Effect::Send { head, .. } = &all[posted] else { panic!("{all:?}") };
    assert!(matches!(all[posted + 1], Effect::Established(_)));
    (engine, NegotiateResponse::parse(head).unwrap(), posted)
}

/// A message from the peer with so many credits and data.
fn message(granted: u16, flags: u16, data: &[u8], remaining: u32) -> Vec<u8> {
    let head = Data {
        credits_requested: 10,
        credits_granted: granted,
        flags,
        remaining,
        offset: if data.is_empty() { 0 } else { 24 },
        length: u32::try_from(data.len()).unwrap(),
    };
    [&head.encode()[..], data].concat()
}

#[test]
fn whoever_is_connected_to_answers_with_the_smaller_of_each_size() {
    let (engine, answer, posted) = connected(Parameters::passive(), 10, Instant::now());
    assert_eq!(
        (answer.status, answer.credits_granted, answer.credits_requested, posted),
        (0, 10, 255, 10)
    );
    assert_eq!((answer.preferred_send_size, answer.max_receive_size), (1024, 1024));
    let agreed = engine.agreed().unwrap();
    assert_eq!(agreed.max_fragmented_send_size, LEAST_FRAGMENTED);
    // Who asks for a thousand gets what there is.
    let (_, answer, posted) = connected(Parameters::passive(), 1000, Instant::now());
    assert_eq!((answer.credits_granted, posted), (255, 255));
}

#[test]
fn a_version_that_nobody_has_is_refused_with_a_status() {
    let mut engine = Engine::passive(Parameters::passive(), Instant::now());
    effects(&mut engine);
    let mut other = request(10, 1024, LEAST_FRAGMENTED);
    other[..4].copy_from_slice(&[0x01, 0x01, 0x00, 0x02]);
    engine.received(other, None, Instant::now());
    let all = effects(&mut engine);
    let [Effect::Send { head, .. }, Effect::End(Fault::Version(0x101, 0x200))] = &all[..] else {
        panic!("{all:?}")
    };
    assert_eq!(NegotiateResponse::parse(head).unwrap().status, STATUS_NOT_SUPPORTED);
}

#[test]
fn what_negotiation_must_not_say_ends_it() {
    for wrong in [
        request(0, 1024, LEAST_FRAGMENTED),
        request(1, 127, LEAST_FRAGMENTED),
        request(1, 128, LEAST_FRAGMENTED - 1),
        request(1, 128, LEAST_FRAGMENTED)[..19].to_vec(),
        b"\xfeSMB".to_vec(),
    ] {
        let mut engine = Engine::passive(Parameters::passive(), Instant::now());
        effects(&mut engine);
        engine.received(wrong, None, Instant::now());
        let all = effects(&mut engine);
        assert!(matches!(all[..], [Effect::End(Fault::Malformed(_))]), "{all:?}");
    }
}

#[test]
fn an_answer_that_must_not_be_ends_the_connection() {
    let good = NegotiateResponse {
        min_version: VERSION,
        max_version: VERSION,
        negotiated_version: VERSION,
        credits_requested: 5,
        credits_granted: 5,
        status: 0,
        max_read_write_size: 1 << 20,
        preferred_send_size: 1024,
        max_receive_size: 512,
        max_fragmented_size: LEAST_FRAGMENTED,
    };
    let ask = |answer: NegotiateResponse| {
        let mut engine = Engine::active(Parameters::active(), Instant::now());
        let begun = effects(&mut engine);
        assert!(matches!(begun[..], [Effect::PostReceive(512), Effect::Send { .. }]));
        engine.received(answer.encode(), None, Instant::now());
        (engine.agreed(), effects(&mut engine))
    };
    let (agreed, _) = ask(good);
    let agreed = agreed.unwrap();
    assert_eq!((agreed.max_send_size, agreed.max_receive_size), (512, 1024));
    assert_eq!(agreed.max_read_write_size, 1 << 20);
    for wrong in [
        NegotiateResponse { status: 0xc000_0205, ..good },
        NegotiateResponse { negotiated_version: 0x200, ..good },
        NegotiateResponse { credits_granted: 0, ..good },
        NegotiateResponse { credits_requested: 0, ..good },
        NegotiateResponse { preferred_send_size: 9000, ..good },
        NegotiateResponse { max_receive_size: 100, ..good },
        NegotiateResponse { max_fragmented_size: 1000, ..good },
    ] {
        let (agreed, effects) = ask(wrong);
        assert!(agreed.is_none() && matches!(effects[..], [Effect::End(_)]), "{wrong:?}");
    }
}

#[test]
fn the_last_credit_is_kept_for_a_grant() {
    let now = Instant::now();
    let (mut engine, ..) = connected(Parameters::passive(), 2, now);
    assert_eq!(engine.send(Bytes::from_static(b"early"), None), Ok(1), "it waits for credits");
    assert!(effects(&mut engine).is_empty());
    engine.received(message(1, 0, b"", 0), None, now);
    // One credit: what is sent grants one, and the peer has used one of its two.
    let sent = sends(&effects(&mut engine));
    assert_eq!(sent.len(), 1);
    assert!(sent[0].0.credits_granted > 0 && sent[0].1 == 5);
    assert_eq!(engine.send(Bytes::from_static(b"late"), None), Ok(2));
    assert!(effects(&mut engine).is_empty(), "there is no credit left");
}

#[test]
fn a_message_is_cut_where_the_peer_says_and_its_token_goes_with_the_last_part() {
    let now = Instant::now();
    let (mut engine, ..) = connected(Parameters::passive(), 10, now);
    engine.received(message(10, 0, b"", 0), None, now);
    effects(&mut engine);
    // 1000 bytes fit into one message of 1024: two whole ones, no empty one behind them.
    engine.send(vec![1; 2000].into(), Some(77)).unwrap();
    let sent = sends(&effects(&mut engine));
    let parts: Vec<_> =
        sent.iter().map(|(head, len, token)| (head.remaining, *len, *token)).collect();
    assert_eq!(parts, [(1000, 1000, None), (0, 1000, Some(77))]);
    let too_long = vec![0; LEAST_FRAGMENTED as usize + 1];
    let len = too_long.len();
    assert_eq!(engine.send(too_long.into(), None), Err(NotSent::TooLong(len)));
    assert_eq!(engine.send(Bytes::new(), None), Err(NotSent::TooLong(0)));
}

#[test]
fn a_message_without_a_credit_ends_the_connection() {
    let now = Instant::now();
    let (mut engine, answer, _) = connected(Parameters::passive(), 3, now);
    for _ in 0..answer.credits_granted {
        engine.received(message(0, 0, b"x", 0), None, now);
    }
    assert!(!effects(&mut engine).iter().any(|effect| matches!(effect, Effect::End(_))));
    engine.received(message(0, 0, b"x", 0), None, now);
    assert_eq!(effects(&mut engine).last(), Some(&Effect::End(Fault::Overrun)));
    // What comes later is not looked at, and nothing is sent any more.
    engine.received(message(9, 0, b"x", 0), None, now);
    assert!(effects(&mut engine).is_empty());
    assert_eq!(engine.send(Bytes::from_static(b"x"), None), Err(NotSent::NotConnected));
}

#[test]
fn a_peer_whose_messages_nobody_takes_gets_no_more_credits() {
    let now = Instant::now();
    let local = Parameters { most_held: 1000, ..Parameters::passive() };
    let (mut engine, answer, _) = connected(local, 10, now);
    for _ in 0..answer.credits_granted {
        engine.received(message(5, 0, &[0; 900], 0), None, now);
    }
    assert_eq!(engine.held(), 9000);
    let granted = |engine: &mut Engine| {
        let sent = sends(&effects(engine));
        sent.iter().map(|(head, ..)| u32::from(head.credits_granted)).sum::<u32>()
    };
    assert_eq!(granted(&mut engine), 0);
    (0..8).for_each(|_| engine.taken(900));
    assert_eq!(granted(&mut engine), 0);
    engine.taken(900);
    assert_eq!(granted(&mut engine), 10);
}

#[test]
fn a_silent_peer_is_asked_and_then_given_up() {
    let now = Instant::now();
    let local = Parameters::passive();
    let (keepalive, answer) = (local.keepalive, local.keepalive_answer);
    let (mut engine, ..) = connected(local, 10, now);
    engine.received(message(5, 0, b"x", 0), None, now);
    effects(&mut engine);
    engine.tick(now + keepalive - Duration::from_millis(1));
    assert!(effects(&mut engine).is_empty());
    let late = now + keepalive;
    engine.tick(late);
    let asked = sends(&effects(&mut engine));
    assert_eq!((asked.len(), asked[0].0.flags), (1, RESPONSE_REQUESTED));
    // An answer is enough, whatever it is.
    engine.received(message(1, 0, b"", 0), None, late);
    engine.tick(late + answer);
    assert!(!effects(&mut engine).iter().any(|effect| matches!(effect, Effect::End(_))));
    let later = engine.deadline();
    engine.tick(later);
    engine.tick(later + answer);
    assert_eq!(effects(&mut engine).last(), Some(&Effect::End(Fault::Silent)));
}

#[test]
fn a_question_for_a_sign_of_life_is_answered_at_once_and_not_asked_back() {
    let now = Instant::now();
    let (mut engine, ..) = connected(Parameters::passive(), 10, now);
    engine.received(message(5, RESPONSE_REQUESTED, b"", 0), None, now);
    let answer = sends(&effects(&mut engine));
    assert_eq!((answer.len(), answer[0].0.flags, answer[0].1), (1, 0, 0));
    assert!(answer[0].0.credits_granted > 0);
}

#[test]
fn negotiation_has_its_time() {
    let now = Instant::now();
    let mut engine = Engine::passive(Parameters::passive(), now);
    engine.tick(now + Duration::from_secs(5));
    assert_eq!(effects(&mut engine).last(), Some(&Effect::End(Fault::Silent)));
    let mut engine = Engine::active(Parameters::active(), now);
    engine.tick(now + Duration::from_secs(119));
    engine.tick(now + Duration::from_secs(120));
    assert_eq!(effects(&mut engine).last(), Some(&Effect::End(Fault::Silent)));
}
