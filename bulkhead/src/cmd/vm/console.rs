//! `bulkhead vm console`: the terminal joined to a guest's console.

use std::{
    io::{self, IsTerminal, Read, Write},
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream},
};

use anyhow::bail;
use host_api::{Client, Reply, Request, VmName};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Ctrl-]: leaves the console.
const LEAVE: u8 = 0x1d;

/// A terminal that is put back as it was.
struct Raw(Termios);

impl Raw {
    fn new() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is no one left to tell.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.0);
    }
}

/// Attaches until the guest ends, the user leaves, or `until` was printed.
pub fn attach(
    mut client: Client,
    name: VmName,
    replay: bool,
    send: Option<String>,
    until: Option<String>,
) -> anyhow::Result<()> {
    match client.call(&Request::Console { name, replay })? {
        Reply::ConsoleAttached => {}
        other => bail!("the VM host answered {other:?}"),
    }
    let (first, mut stream) = client.into_console();
    let mut raw = None;
    if let Some(text) = &send {
        stream.write_all(text.as_bytes())?;
        stream.write_all(b"\n")?;
    } else if until.is_none() {
        raw = Raw::new()?;
        let typing = stream.try_clone()?;
        std::thread::spawn(move || type_in(typing));
    }
    let result = print(first, &mut stream, until.as_deref());
    drop(raw);
    result
}

fn type_in(mut stream: UnixStream) {
    let mut bytes = [0; 1024];
    while let Ok(got @ 1..) = io::stdin().read(&mut bytes) {
        let typed = &bytes[..got];
        let leave = typed.iter().position(|byte| *byte == LEAVE);
        if stream.write_all(&typed[..leave.unwrap_or(got)]).is_err() || leave.is_some() {
            break;
        }
    }
    if io::stdin().is_terminal() {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn print(first: Vec<u8>, stream: &mut UnixStream, until: Option<&str>) -> anyhow::Result<()> {
    let mut out = io::stdout();
    let mut line = String::new();
    let mut bytes = first;
    let mut buffer = [0; 4096];
    loop {
        out.write_all(&bytes)?;
        out.flush()?;
        if let Some(wanted) = until {
            line.push_str(&String::from_utf8_lossy(&bytes));
            while let Some(end) = line.find('\n') {
                if line[..end].contains(wanted) {
                    return Ok(());
                }
                line.drain(..=end);
            }
        }
        match stream.read(&mut buffer)? {
            0 if until.is_some() => bail!("the console ended first"),
            0 => return Ok(()),
            got => bytes = buffer[..got].to_vec(),
        }
    }
}
