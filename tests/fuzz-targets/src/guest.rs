//! What a guest says on the ports of its console device, and what it answers as a guest agent.

use hyperv_host::agent::answers::{
    Answers, Info, Interface, LONGEST, Nothing, OsInfo, TooLong, parse, shown,
};
use vmm::devices::{
    port::Port,
    virtio::console::control::{AGENT, AGENT_NAME, Control, PORTS, SavedPorts},
};

/// Bytes of a step: what, and a control message.
const STEP: usize = 9;
/// Most steps of one input.
const STEPS: usize = 2048;
/// Most bytes that the host keeps of a guest beside one request.
const KEPT: usize = 64 << 10;

/// Steps of nine bytes: control messages of a driver, what it is told, moves in between, and bytes on the
/// agent's port. Whatever it says, it is told of ports that there are and never much, and the device is the
/// same where it is moved.
pub fn ports(bytes: &[u8]) {
    let (mut control, port) = (Control::default(), Port::default());
    for step in bytes.as_chunks::<STEP>().0.iter().take(STEPS) {
        let [kind, message @ ..] = step;
        match kind % 5 {
            0 => {
                control.take(&message[..usize::from(kind / 5) % 9]);
                port.set_open(control.is_open(AGENT));
            }
            1 => {
                control.take(message);
                port.set_open(control.is_open(AGENT));
            }
            2 => tell(&mut control),
            3 => {
                let text = serde_json::to_string(&control.save()).expect("JSON");
                let saved: SavedPorts = serde_json::from_str(&text).expect("what was saved");
                let there = Control::restored(&saved).expect("ports of the same device");
                assert!(there == control, "ports have changed on their way");
                control = there;
            }
            _ => talk(&port, message),
        }
    }
    let mut told = 0;
    while control.has_more() {
        tell(&mut control);
        told += 1;
    }
    assert!(told <= 4 * PORTS, "a driver is told {told} things");
}

fn tell(control: &mut Control) {
    let more = control.has_more();
    let Some(message) = control.next_message() else {
        assert!(!more, "there is something to tell and nothing is told");
        return;
    };
    let (head, name) = message.split_first_chunk::<8>().expect("a message");
    let [id, 0, 0, 0, event, 0, 1, 0] = *head else { panic!("no message of a device: {head:?}") };
    assert!(usize::from(id) < PORTS && matches!(event, 1 | 4 | 6 | 7));
    assert_eq!(name == AGENT_NAME.as_bytes(), event == 7, "a name with event {event}");
}

fn talk(port: &Port, message: &[u8; 8]) {
    let len = usize::from(u16::from_le_bytes([message[0], message[1]]));
    let open = port.is_open();
    if message[2].is_multiple_of(2) {
        if port.has_room() {
            port.push_from_guest(&vec![message[3]; len]);
        }
        if message[4].is_multiple_of(4) {
            let got = port.receive(std::time::Instant::now());
            assert!(got.is_ok_and(|got| got.len() < 2 * KEPT) || len == 0 || !open);
        }
    } else {
        let sent = port.send(&vec![message[3]; len]);
        assert!(open || sent.is_err(), "a port that nobody has open takes bytes");
        let most = usize::from(message[5]) << 8;
        assert!(port.take_for_guest(most).len() <= most.min(KEPT));
    }
}

fn lines(bytes: &[u8], step: usize) -> Vec<Result<Vec<u8>, TooLong>> {
    let (mut answers, mut all) = (Answers::default(), Vec::new());
    for piece in bytes.chunks(step) {
        answers.push(piece);
        while let Some(line) = answers.next_line() {
            all.push(line);
        }
        assert!(answers.kept() <= LONGEST, "{} bytes of an answer are kept", answers.kept());
    }
    all
}

/// What an agent sends, in pieces of a length that the first byte says. The lines are the same in pieces
/// and whole, and what is shown of them is one short line without what a terminal obeys.
pub fn agent(bytes: &[u8]) {
    let Some((step, bytes)) = bytes.split_first() else { return };
    let all = lines(bytes, usize::from(*step) + 1);
    assert!(all == lines(bytes, bytes.len().max(1)), "pieces make a difference");
    for line in all.into_iter().flatten() {
        assert!(!line.contains(&b'\n') && !line.contains(&0xff) && line.len() <= LONGEST);
        let mut texts = vec![String::from_utf8_lossy(&line).into_owned()];
        let _ = (parse::<Nothing>(&line), parse::<u64>(&line), parse::<String>(&line));
        texts.extend(parse::<Info>(&line).and_then(Result::ok).map(|info| info.version));
        let os = parse::<OsInfo>(&line).and_then(Result::ok).unwrap_or_default();
        texts.extend(os.pretty_name);
        let interfaces = parse::<Vec<Interface>>(&line).and_then(Result::ok).unwrap_or_default();
        texts.extend(interfaces.into_iter().map(|interface| interface.name));
        for text in texts {
            let shown = shown(&text);
            assert!(shown.chars().count() <= 200 && !shown.contains(char::is_control));
        }
    }
}

/// A driver as Linux has it, one that is moved in between, and one that says nonsense.
pub fn seeds_ports() -> Vec<(String, Vec<u8>)> {
    let says = |id: u8, event: u8, value: u8| [1, id, 0, 0, 0, event, 0, value, 0];
    let (told, moved) = ([2; STEP], [3; STEP]);
    let driver =
        [says(0, 0, 1), told, told, says(0, 3, 1), says(1, 3, 1), told, told, told, says(1, 6, 1)];
    let talks = [[4, 0, 1, 0, 7, 0, 0, 0, 0], [4, 64, 0, 1, 7, 0, 1, 0, 0]];
    let linux = [&driver[..], &talks].concat().concat();
    let away = [&driver[..4], &[moved], &driver[4..], &[moved, says(1, 6, 0)], &talks].concat();
    let nonsense = [says(9, 6, 1), says(0, 7, 7), [0, 1, 2, 3, 4, 5, 6, 7, 8], [20; STEP]].concat();
    [("linux", linux), ("moved", away.concat()), ("nonsense", nonsense)]
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .into()
}

/// Answers as the agent gives them, late ones, refusals, and a line that is too long.
pub fn seeds_agent() -> Vec<(String, Vec<u8>)> {
    let with = |step: u8, text: &str| [&[step][..], text.as_bytes()].concat();
    let mut synchronised = with(3, "{\"return\": {}}\n{\"retu");
    synchronised.push(0xff);
    synchronised.extend(b"{\"return\": 1234567}\n{\"return\": \"thawed\"}\n");
    let info = "{\"return\": {\"version\": \"7.2.0\", \"supported_commands\": [{\"enabled\": true, \
                \"name\": \"guest-ping\", \"success-response\": true}]}}\n";
    let network = "{\"return\": [{\"name\": \"lo\", \"ip-addresses\": [{\"ip-address-type\": \"ipv4\", \
                   \"ip-address\": \"127.0.0.1\", \"prefix\": 8}], \"hardware-address\": \
                   \"00:00:00:00:00:00\"}]}\n";
    let os = "{\"return\": {\"name\": \"Debian\", \"pretty-name\": \"Debian\\u001b[2J\"}}\n";
    let refused = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n";
    let long = format!("{{\"return\": \"{}\"}}\n{{}}\n", "x".repeat(LONGEST));
    [
        ("synchronised", synchronised),
        ("info", with(40, info)),
        ("network", with(0, network)),
        ("os", with(255, os)),
        ("refused", with(1, refused)),
        ("long", with(255, &long)),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}
