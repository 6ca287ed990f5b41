//! The client against agents that are played: good ones and hostile ones.

use std::{
    sync::{Arc, mpsc},
    thread,
};

use vmm::devices::port::Port;

use super::*;

/// What an agent does with a line of its host: the bytes that it answers.
type Answer = Box<dyn FnMut(&Value) -> Vec<u8> + Send>;

/// A guest with an agent that answers so, until it is dropped.
struct Guest {
    agent: Arc<Agent>,
    port: Port,
    asked: mpsc::Receiver<String>,
    plays: Option<thread::JoinHandle<()>>,
}

impl Guest {
    fn new(mut answer: Answer) -> Self {
        let port = Port::default();
        port.set_open(true);
        let there = port.clone();
        let (tell, asked) = mpsc::channel();
        let plays = thread::spawn(move || {
            let mut answers = Answers::default();
            while !there.has_ended() {
                answers.push(&there.take_for_guest(usize::MAX));
                match answers.next_line() {
                    Some(Ok(line)) => {
                        let line: Value = serde_json::from_slice(&line).unwrap();
                        let _ = tell.send(line["execute"].as_str().unwrap().to_owned());
                        there.push_from_guest(&answer(&line));
                    }
                    Some(Err(_)) => panic!("a line too long for an agent"),
                    None => thread::yield_now(),
                }
            }
        });
        let agent = Arc::new(Agent::new(port.clone()));
        Self { agent, port, asked, plays: Some(plays) }
    }

    /// Commands that the agent was asked for so far, without those that begin a question.
    fn asked(&self) -> Vec<String> {
        self.asked.try_iter().filter(|name| name != "guest-sync-delimited").collect()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.port.close();
        let ended = self.plays.take().map(thread::JoinHandle::join);
        assert!(thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}

fn line(value: &Value) -> Vec<u8> {
    format!("{value}\n").into_bytes()
}

/// An agent that does what it should, but for what `other` says it does instead.
fn good(mut other: impl FnMut(&str, &Value) -> Option<Vec<u8>> + Send + 'static) -> Answer {
    let mut frozen = false;
    Box::new(move |asked| {
        let name = asked["execute"].as_str().unwrap();
        if let Some(bytes) = other(name, asked) {
            return bytes;
        }
        let value = match name {
            "guest-sync-delimited" => {
                let mut bytes = vec![0xff];
                bytes.extend(line(&json!({ "return": asked["arguments"]["id"] })));
                return bytes;
            }
            "guest-fsfreeze-freeze" => {
                frozen = true;
                json!(3)
            }
            "guest-fsfreeze-thaw" => {
                let count = if std::mem::take(&mut frozen) { 3 } else { 0 };
                json!(count)
            }
            "guest-fsfreeze-status" => json!(if frozen { "frozen" } else { "thawed" }),
            "guest-info" => json!({ "version": "7.2\u{1b}c", "supported_commands": [] }),
            "guest-get-osinfo" => json!({ "pretty-name": "Debian 12", "id": "debian" }),
            "guest-network-get-interfaces" => json!([{ "name": "eth0",
                "hardware-address": "02:00:00:00:00:01",
                "ip-addresses": [{ "ip-address-type": "ipv4", "ip-address": "10.0.0.9", "prefix": 24 }]
            }, { "name": "sit0" }]),
            "guest-shutdown" => return Vec::new(),
            _ => json!({}),
        };
        line(&json!({ "return": value }))
    })
}

#[test]
fn an_agent_tells_what_its_guest_is() {
    let guest = Guest::new(good(|_, _| None));
    guest.agent.ping().unwrap();
    assert_eq!(shown(&guest.agent.info().unwrap().version), "7.2 c");
    assert_eq!(guest.agent.os().unwrap().pretty_name.as_deref(), Some("Debian 12"));
    let interfaces = guest.agent.interfaces().unwrap();
    assert_eq!(interfaces[0].ip_addresses[0].ip_address, "10.0.0.9");
    assert!(interfaces[1].ip_addresses.is_empty());
    guest.agent.set_time(1).unwrap();
    guest.agent.shut_down().unwrap();
    assert_eq!(guest.asked().last().unwrap(), "guest-shutdown");
}

#[test]
fn without_an_agent_nothing_is_waited_for() {
    let agent = Arc::new(Agent::new(Port::default()));
    assert_eq!(agent.ping(), Err(PortError::Closed.into()));
    assert_eq!(agent.freeze().unwrap_err(), PortError::Closed.into());
    assert!(!agent.is_frozen());
}

/// An answer that comes too late is not taken for that of the next question, nor is one that is said twice.
#[test]
fn answers_to_other_questions_are_passed_over() {
    let guest = Guest::new(good(|name, asked| match name {
        // The number of another question first, half a line, and something that is no answer.
        "guest-sync-delimited" => {
            let mut bytes = b"{\"return\": {}}\n{\"return\": 5}\n[1]\n{\"ret\xff".to_vec();
            bytes.extend(line(&json!({ "return": asked["arguments"]["id"] })));
            Some(bytes)
        }
        "guest-info" => Some(line(&json!({ "return": { "version": "1" } })).repeat(3)),
        _ => None,
    }));
    assert_eq!(guest.agent.info().unwrap().version, "1");
    assert_eq!(guest.agent.os().unwrap().pretty_name.as_deref(), Some("Debian 12"));
}

#[test]
fn what_is_no_answer_is_an_error() {
    let guest = Guest::new(good(|name, _| match name {
        "guest-ping" => Some(line(&json!({ "return": 1 }))),
        "guest-get-osinfo" => Some(line(&json!({ "error": { "desc": "not\u{7} today" } }))),
        "guest-info" => {
            let mut bytes = vec![b'['; 2 * answers::LONGEST];
            bytes.push(b'\n');
            Some(bytes)
        }
        _ => None,
    }));
    let nonsense = |command| Err(AgentError::Nonsense { command });
    assert_eq!(guest.agent.ping(), nonsense("guest-ping"));
    assert_eq!(guest.agent.info().map(drop), nonsense("guest-info"));
    let error = guest.agent.os().unwrap_err().to_string();
    assert_eq!(error, "guest agent: guest-get-osinfo is refused: not  today");
}

/// One that says anything without end, and never what it is asked.
#[test]
fn an_agent_that_babbles_is_not_listened_to_for_ever() {
    let port = Port::default();
    port.set_open(true);
    let there = port.clone();
    let babbles = thread::spawn(move || {
        while !there.has_ended() {
            if there.has_room() {
                there.push_from_guest(b"{\"return\": 1}\n");
            }
        }
    });
    let agent = Agent::new(port.clone());
    let limit = Duration::from_millis(50);
    let answer = agent.ask::<Nothing>("guest-ping", json!({}), limit);
    assert_eq!(answer, Err(PortError::Silent.into()));
    port.close();
    babbles.join().unwrap();
}

#[test]
fn what_is_frozen_thaws_when_it_is_let_go() {
    let guest = Guest::new(good(|_, _| None));
    let frozen = guest.agent.freeze().unwrap();
    assert_eq!(frozen.count, 3);
    assert!(guest.agent.is_frozen());
    assert_eq!(guest.agent.freeze().unwrap_err(), AgentError::Busy);
    drop(frozen);
    assert!(!guest.agent.is_frozen());
    assert_eq!(guest.asked().last().unwrap(), "guest-fsfreeze-thaw");
    // Who panics while it is frozen thaws it, too.
    let agent = guest.agent.clone();
    let panics = thread::spawn(move || {
        let _frozen = agent.freeze().unwrap();
        panic!("in the middle of it");
    });
    assert!(panics.join().is_err());
    assert!(!guest.agent.is_frozen());
    assert_eq!(guest.asked().last().unwrap(), "guest-fsfreeze-thaw");
}

/// A freeze that fails may have frozen some.
#[test]
fn a_freeze_that_fails_is_thawed() {
    for answer in [json!({ "error": { "desc": "one is busy" } }), json!({ "return": [] })] {
        let guest = Guest::new(good(move |name, _| {
            (name == "guest-fsfreeze-freeze").then(|| line(&answer))
        }));
        guest.agent.freeze().unwrap_err();
        assert!(!guest.agent.is_frozen());
        assert_eq!(guest.asked().last().unwrap(), "guest-fsfreeze-thaw");
    }
    // One that says that it has frozen everything, and has nothing.
    let guest = Guest::new(good(|name, _| {
        (name == "guest-fsfreeze-freeze").then(|| line(&json!({ "return": 9 })))
    }));
    let error = guest.agent.freeze().unwrap_err().to_string();
    assert!(error.contains("nothing is frozen"), "{error}");
    assert!(!guest.agent.is_frozen());
}

/// An agent that does not thaw is asked until it does.
#[test]
fn a_thaw_that_fails_is_tried_until_it_is_done() {
    let mut refused = 0;
    let guest = Guest::new(good(move |name, _| {
        let refuses = name == "guest-fsfreeze-thaw" && refused < 2;
        refused += u32::from(refuses);
        refuses.then(|| line(&json!({ "error": { "desc": "not now" } })))
    }));
    drop(guest.agent.freeze().unwrap());
    let deadline = Instant::now() + Duration::from_secs(60);
    while guest.agent.is_frozen() {
        assert!(Instant::now() < deadline, "it stays frozen");
        thread::sleep(Duration::from_millis(20));
    }
    let thaws = guest.asked().iter().filter(|name| *name == "guest-fsfreeze-thaw").count();
    assert_eq!(thaws, 3);
}
