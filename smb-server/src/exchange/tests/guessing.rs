//! Passwords are guessed at, with the clock in the test's hands.

use std::time::Duration;

use super::{house::House, *};

/// A connection from an address.
struct Stranger {
    exchange: Exchange,
    caller: Caller,
}

impl Stranger {
    fn new(server: &Arc<Server>, from: &str) -> Self {
        let (peer, local) = (from.parse().unwrap(), "192.0.2.250:445".parse().unwrap());
        let exchange = Exchange::new(server.clone(), peer, local);
        Self { exchange, caller: Caller::default() }
    }

    /// Sends a request: what is answered at once. Nobody waits for the rest.
    fn ask(
        &mut self,
        command: Command,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Vec<(Header, Vec<u8>)>, Dropped> {
        let mut message = self.caller.message(command, body);
        let mut out = Vec::new();
        self.exchange.receive(&mut message, &mut out)?;
        Ok(answers(&out))
    }

    /// Tries a password; how it was answered, if it was answered at once. Fails where it is not
    /// looked at.
    fn guess(&mut self, user: &str, password: &str) -> Result<Option<NtStatus>, Dropped> {
        let offer = negotiate::Request {
            dialects: vec![Dialect::SMB_3_0_2],
            security_mode: negotiate::SecurityMode::SIGNING_ENABLED,
            ..Default::default()
        };
        let answer = self.ask(Command::NEGOTIATE, |out| offer.encode(out))?;
        let hint = negotiate::Response::parse(&answer[0].1).unwrap().security_buffer.to_vec();
        let mut logon = Logon::new(user, password);
        let first = logon.first(&hint);
        let answer = self.ask(Command::SESSION_SETUP, |out| setup(&first).encode(out))?;
        self.caller.session = answer[0].0.session_id;
        let challenge = session_setup::Response::parse(&answer[0].1).unwrap().security_buffer;
        let second = logon.second(challenge);
        let answer = self.ask(Command::SESSION_SETUP, |out| setup(&second).encode(out))?;
        Ok(answer.first().map(|(header, _)| header.status))
    }
}

/// The guesser waits for no refusal, and comes on a new connection each time: what is not answered
/// at once was wrong.
#[tokio::test(start_paused = true)]
async fn ten_thousand_guesses_take_longer_than_an_hour_and_hinder_nobody_elsewhere() {
    const GUESSES: usize = 10_000;
    let house = House::empty();
    let begin = tokio::time::Instant::now();
    let (mut tried, mut ignored, mut looked) = (0, 0, 0);
    while tried < GUESSES {
        match Stranger::new(&house.server, "198.51.100.1:1").guess("u", "wrong") {
            Ok(None | Some(NtStatus::LOGON_FAILURE)) => tried += 1,
            Ok(other) => panic!("{other:?}"),
            Err(Dropped::Protocol(_)) => {
                ignored += 1;
                tokio::time::advance(Duration::from_millis(250)).await;
            }
            Err(other) => panic!("{other}"),
        }
        if tried == looked + 1000 {
            looked = tried;
            let mut elsewhere = Stranger::new(&house.server, "203.0.113.1:1");
            assert_eq!(elsewhere.guess("u", "p").unwrap(), Some(NtStatus::SUCCESS));
        }
    }
    let needed = begin.elapsed();
    assert!(needed > Duration::from_secs(3600), "{GUESSES} guesses took {needed:?}");
    assert!(ignored > 0);
    // The runtime of a house is not to be dropped within another.
    tokio::task::spawn_blocking(move || drop(house)).await.unwrap();
}
