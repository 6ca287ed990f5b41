//! The floor: a server that knows no protocol, on the same CPUs, with messages of the same sizes and as
//! many of them outstanding. Nothing that answers requests over TCP costs less here.
//!
//! ```text
//!  client, a thread for each connection            server, a process of its own, likewise
//!  sends `depth` requests, each by itself ───────► reads what has come
//!  one more for each answer               ◄─────── answers all whole requests in one write
//! ```

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use bulkhead_tests::{process::Stopped, usage::Cpu};
use serde_json::{Value, json};

use crate::{CLIENT_CPU, SERVER_CPU, pinned};

/// The argument with which this program is that server.
pub const SERVER: &str = "--floor-server";
/// The argument with which it is that client.
pub const CLIENT: &str = "--floor-client";

/// What goes over the wire.
#[derive(Debug, Clone, Copy)]
pub struct Messages {
    /// Bytes of a request, with its four of framing.
    pub request: u32,
    /// Bytes of an answer, likewise.
    pub answer: u32,
    /// Connections at a time.
    pub connections: u32,
    /// Requests of each that are outstanding.
    pub depth: u32,
}

/// Answers connections until the process is stopped, at a port that it prints.
pub fn serve() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept()?;
        thread::spawn(move || answer(stream));
    }
}

/// Answers one connection, whose first eight bytes are the two sizes.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut sizes = [0; 8];
    stream.read_exact(&mut sizes)?;
    let size = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| sizes[at + i])) as usize;
    let (request, answer) = (size(0), size(4));
    let (mut buffer, mut have) = (vec![0; 256 << 10], 0);
    let mut answers = Vec::new();
    loop {
        let count = stream.read(&mut buffer[have..])?;
        if count == 0 {
            return Ok(());
        }
        have += count;
        let whole = have / request;
        answers.resize(whole * answer, 0x5a);
        stream.write_all(&answers)?;
        buffer.copy_within(whole * request..have, 0);
        have -= whole * request;
    }
}

/// One connection of the client: how long each request took.
fn ask(address: SocketAddr, messages: Messages, time: Duration) -> io::Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.write_all(&[messages.request.to_le_bytes(), messages.answer.to_le_bytes()].concat())?;
    let request = vec![0x5a; messages.request as usize];
    let answer = messages.answer as usize;
    let mut sent = std::collections::VecDeque::new();
    let send = |stream: &mut TcpStream, sent: &mut std::collections::VecDeque<Instant>| {
        sent.push_back(Instant::now());
        stream.write_all(&request)
    };
    for _ in 0..messages.depth {
        send(&mut stream, &mut sent)?;
    }
    let (mut buffer, mut have, mut took) = (vec![0; 256 << 10], 0, Vec::new());
    let started = Instant::now();
    while !sent.is_empty() {
        have += stream.read(&mut buffer)?;
        while have >= answer {
            have -= answer;
            took.extend(sent.pop_front().map(|since| since.elapsed()));
            if started.elapsed() < time {
                send(&mut stream, &mut sent)?;
            }
        }
    }
    Ok(took)
}

/// The client: `ADDRESS REQUEST ANSWER CONNECTIONS DEPTH SECONDS`; prints `OPERATIONS SECONDS P50 P99`.
pub fn client(words: &[String]) -> Option<()> {
    let number = |at: usize| words.get(at)?.parse().ok();
    let address = words.first()?.parse().ok()?;
    let messages = Messages {
        request: number(1)?,
        answer: number(2)?,
        connections: number(3)?,
        depth: number(4)?,
    };
    let (started, time) = (Instant::now(), Duration::from_secs_f64(words.get(5)?.parse().ok()?));
    let threads: Vec<_> = (0..messages.connections)
        .map(|_| thread::spawn(move || ask(address, messages, time)))
        .collect();
    let asked = threads.into_iter().map(|it| it.join().ok()?.ok()).collect::<Option<Vec<_>>>()?;
    let mut took = asked.concat();
    let seconds = started.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |part: f64| took[(took.len() as f64 * part) as usize].as_secs_f64() * 1e6;
    println!("{} {seconds:.3} {:.1} {:.1}", took.len(), at(0.5), at(0.99));
    Some(())
}

/// A server of the floor that runs.
pub struct Floor {
    process: Stopped,
    address: String,
}

impl Floor {
    /// Starts one where a server runs.
    pub fn start() -> Self {
        let me = env::current_exe().expect("it runs");
        let mut command = pinned(SERVER_CPU, &me);
        let mut child =
            command.arg(SERVER).stdout(Stdio::piped()).spawn().expect("taskset is installed");
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("it is piped"));
        output.read_line(&mut line).expect("it prints its address");
        Self { process: Stopped(child), address: line.trim().to_owned() }
    }

    /// What it comes to with these messages.
    pub fn measure(&self, messages: Messages, seconds: f64) -> Value {
        let me = env::current_exe().expect("it runs");
        let mut command: Command = pinned(CLIENT_CPU, &me);
        command.args([CLIENT, &self.address]);
        for number in [messages.request, messages.answer, messages.connections, messages.depth] {
            command.arg(number.to_string());
        }
        command.arg(seconds.to_string());
        let before = Cpu::of_tree(self.process.pid());
        let output = command.output().expect("taskset is installed");
        let used = Cpu::of_tree(self.process.pid()).since(&before);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        crate::singly(&String::from_utf8_lossy(&output.stdout), used).unwrap_or(json!(null))
    }
}
