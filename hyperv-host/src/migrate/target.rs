//! The receiving side. The protocol and its guarantees are drawn in [`super`]; who has the VM is
//! decided in [`crate::handover::target`], which [`super::arrive`] drives.

use std::{
    io,
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use host_api::VmState;
use vmm::{
    Vm,
    machine::{cpu::CpuModel, state},
    platform::{bus::lock, error::chain},
};

use super::{
    MoveError,
    arrive::{Say, answer_commit, drive, forget_verdict, in_doubt},
    door::{Door, Place},
    leave::standing_of,
    receive::{fault, join},
    wire::{self, Hello, Kind, Message, Standing, WireError, read_frame, receive, send},
};
use crate::{
    allowed::Whose,
    disks::{self, Run},
    handover::target::{Event, Target},
    host::{
        Host, HostError,
        arrivals::{Arrival, At},
        machine::Managed,
        records::{self, MoveId, Verdict},
        spawn,
    },
    nics,
    tls::{Cutter, Stream},
};

/// Binds the address for other hosts.
///
/// # Errors
/// Of the operating system.
pub fn bind(host: &Host) -> io::Result<Option<TcpListener>> {
    let Some(config) = &host.config.migration else { return Ok(None) };
    if !host.allowed.takes_others() {
        tracing::warn!(
            "VMs can go from here and none can come: the configuration must say where VMs of other hosts may have \
             their disks and kernels, `locations` in [storage] and `folders` in [boot]"
        );
    }
    let listener = TcpListener::bind(config.listen)?;
    let address = listener.local_addr()?;
    host.migration_address.get_or_init(|| address);
    Ok(Some(listener))
}

/// Serves other hosts for ever.
pub fn serve(host: &Arc<Host>, listener: &TcpListener) {
    let door = Arc::new(Door::default());
    let mut failures = 0u32;
    loop {
        let accepted = listener
            .accept()
            .and_then(|(socket, peer)| Ok((Cutter::of(&socket)?, socket, peer.ip())));
        let (cutter, socket, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if failures.is_multiple_of(1000) {
                    tracing::warn!(%error, failures, "cannot accept other hosts");
                }
                failures = failures.wrapping_add(1);
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        failures = 0;
        let Some(place) = door.enter(address, cutter) else { continue };
        let host = host.clone();
        spawn("migration".into(), move || {
            if let Err(error) = connection(&host, socket, place) {
                tracing::debug!(error = chain(&error), "migration connection");
            }
        });
    }
}

fn connection(host: &Arc<Host>, socket: TcpStream, mut place: Place) -> Result<(), MoveError> {
    let Some(tls) = &host.tls else { return Err(MoveError::Protocol) };
    let mut stream = tls.accept(socket)?;
    if !place.known() {
        return Err(MoveError::Refused("as many hosts are connected as may be".into()));
    }
    wire::greet(&mut stream)?;
    match receive(&mut stream)? {
        Message::Hello(hello) => incoming(host, stream, *hello),
        Message::Join { id, token } => join(host, stream, &id, &token),
        Message::Query { id, from_source: true } => {
            query(host, stream, &id).inspect_err(|_| host.leftover.note())
        }
        Message::Query { id, from_source: false } => {
            let standing = standing_of(host, &id);
            Ok(send(&mut stream, &Message::Standing { standing })?)
        }
        _ => Err(MoveError::Protocol),
    }
}

/// The source asks; if we wait for its word it may give it on the same connection.
fn query(host: &Arc<Host>, mut stream: Stream, id: &MoveId) -> Result<(), MoveError> {
    let arrival = host.arrivals.get(id);
    let standing = match &arrival {
        Some(arrival) => arrival.at.now().standing(),
        None => {
            let verdict = host.store.verdict(id).map_err(MoveError::Store)?;
            let known = Target::recovered(false, verdict.map(|it| it == Verdict::Ran));
            known.map_or(Standing::Never, |(target, _)| target.standing())
        }
    };
    send(&mut stream, &Message::Standing { standing })?;
    loop {
        match receive(&mut stream)? {
            Message::Commit { id: given } if given == *id => {
                let Some(arrival) = &arrival else { return Err(MoveError::Protocol) };
                answer_commit(host, &mut stream, arrival)?;
            }
            Message::Forget { id: known } if known == *id => {
                return forget_verdict(host, id);
            }
            _ => return Err(MoveError::Protocol),
        }
    }
}

/// Waits for the word that the source has settled the move, too.
fn last_word(host: &Host, stream: &mut Stream, id: &MoveId) -> Result<(), MoveError> {
    match receive(stream)? {
        Message::Forget { id: known } if known == *id => forget_verdict(host, id),
        _ => Err(MoveError::Protocol),
    }
}

/// Whether this host can take the VM; builds it if so.
fn admit(host: &Arc<Host>, hello: &Hello) -> Result<Arc<Arrival>, String> {
    if !hello.is_understood() || hello.state_version != state::VERSION {
        return Err(format!(
            "it speaks version {}.{}, this host {}.{}",
            hello.version,
            hello.state_version,
            wire::VERSION,
            state::VERSION
        ));
    }
    let text = |error: &(dyn std::error::Error + 'static)| chain(error);
    if host.is_shutting_down() {
        return Err(text(&HostError::ShuttingDown));
    }
    let limit = host.config.migration.as_ref().map_or(0, |migration| migration.max_incoming);
    let full = || "as many VMs as allowed are on their way in".to_owned();
    if lock(&host.arrivals.0).len() >= limit {
        return Err(full());
    }
    let definition = &hello.definition;
    definition.check().map_err(|error| text(&error))?;
    // What it starts from is needed here at its next reset.
    host.check_usable(definition, Whose::Sent).map_err(|error| text(&error))?;
    if !(1..=16).contains(&hello.streams) {
        return Err(format!("{} memory connections", hello.streams));
    }
    let number = hello.run.unwrap_or_else(records::first_run);
    if number > records::LAST_RUN {
        return Err(format!("the number {number} of its run is not possible"));
    }
    let shapes: Option<Vec<_>> = hello.shapes.iter().map(wire::Shape::checked).collect();
    let shapes = shapes
        .filter(|shapes| shapes.len() == definition.disks.len())
        .ok_or("the shapes of its disks are not possible")?;
    let here = CpuModel::of_host(&host.kvm).map_err(|error| text(&error))?;
    if let Some(missing) = hello.model.missing_on(&here) {
        return Err(format!("this host lacks {missing}"));
    }
    let _memory = host.reserve_memory(definition.memory_mib).map_err(|error| text(&error))?;
    let run = Run::new(definition.id, number);
    let disks = host
        .runtime
        .block_on(disks::prepare_all(definition, &host.disks, &run, host.disk_limit()))
        .map_err(|error| text(&error))?;
    let managed = Managed::new(definition.clone(), VmState::MovingIn);
    host.insert(&managed).map_err(|error| text(&error))?;
    let build = || -> Result<Arc<Arrival>, String> {
        let runtime = host.runtime.handle().clone();
        let taps = nics::open_all(definition).map_err(|error| text(&error))?;
        let model = Some(hello.model.clone());
        let vm = Vm::build(&host.kvm, definition, &shapes, model, taps, runtime)
            .map_err(|error| text(&error))?;
        vm.set_loss_rule(host.loss_rule());
        if let Some(needs) = &hello.needs {
            vm.prepare_for(needs).map_err(|error| text(&error))?;
        }
        let token = MoveId::random().map_err(|error| text(&error))?;
        let arrival = Arc::new(Arrival {
            id: hello.id.clone(),
            token: token.into(),
            source: hello.source.clone(),
            managed: managed.clone(),
            vm: Arc::new(vm),
            disks,
            run,
            at: At::default(),
            why: Mutex::default(),
            joins: AtomicUsize::new(hello.streams as usize),
            broken: AtomicBool::new(false),
            cutters: Mutex::default(),
        });
        // Others may have come while it was built.
        let mut arrivals = lock(&host.arrivals.0);
        if arrivals.len() >= limit {
            return Err(full());
        }
        if arrivals.contains_key(&hello.id)
            || host.store.verdict(&hello.id).ok().flatten().is_some()
        {
            return Err("this move was here before".into());
        }
        host.store.arrive(&hello.id, definition, number).map_err(|error| text(&error))?;
        arrivals.insert(hello.id.clone(), arrival.clone());
        Ok(arrival)
    };
    build().inspect_err(|_| host.remove(&managed))
}

/// The control connection of a move.
fn incoming(host: &Arc<Host>, mut stream: Stream, hello: Hello) -> Result<(), MoveError> {
    let arrival = match admit(host, &hello) {
        Ok(arrival) => arrival,
        Err(why) => {
            tracing::info!(vm = %hello.definition.name, why, "a VM is refused");
            return Ok(send(&mut stream, &Message::Refused { why })?);
        }
    };
    let name = arrival.managed.name();
    tracing::info!(vm = %name, id = arrival.id.as_str(), "a VM is coming");
    lock(&arrival.cutters).extend(stream.cutter().ok());
    let token = arrival.token.clone();
    if let Err(error) = receive_all(host, &mut stream, &arrival, token) {
        tracing::warn!(vm = %name, error = chain(&error), "a VM did not come");
        // The source hears why before its connections are cut.
        let _ = send(&mut stream, &Message::Refused { why: chain(&error) });
        drive(host, &arrival, Event::Failed, &mut |_| {});
        return Err(error);
    }
    let mut ready = Ok(());
    drive(host, &arrival, Event::Complete, &mut |say| {
        if let Say::Ready = say {
            ready = send(&mut stream, &Message::Ready);
        }
    });
    let word = ready.map_err(MoveError::from).and_then(|()| {
        fault(host, &arrival, "target.ready");
        loop {
            match receive(&mut stream)? {
                Message::Alive { .. } => {}
                message => return Ok(message),
            }
        }
    });
    match word {
        Ok(Message::Commit { id }) if id == arrival.id => {
            let last = answer_commit(host, &mut stream, &arrival)
                .and_then(|()| last_word(host, &mut stream, &arrival.id));
            last.inspect_err(|_| host.leftover.note())
        }
        Ok(Message::Abort { id }) if id == arrival.id => {
            drive(host, &arrival, Event::Heard(Standing::Never), &mut |_| {});
            Ok(())
        }
        Ok(_) => {
            in_doubt(host, &arrival, &MoveError::Protocol);
            Ok(())
        }
        Err(error) => {
            in_doubt(host, &arrival, &error);
            Ok(())
        }
    }
}

fn receive_all(
    host: &Arc<Host>,
    stream: &mut Stream,
    arrival: &Arrival,
    token: String,
) -> Result<(), MoveError> {
    send(stream, &Message::Accepted { token })?;
    fault(host, arrival, "target.accepted");
    let mut body = Vec::new();
    loop {
        match read_frame(stream, &[Kind::Message, Kind::State], &mut body)? {
            Kind::State => break,
            _ => match serde_json::from_slice(&body).map_err(WireError::from)? {
                Message::Alive { .. } => {}
                Message::Abort { .. } => return Err(MoveError::Refused("it stays there".into())),
                _ => return Err(MoveError::Protocol),
            },
        }
        if arrival.broken.load(Ordering::Acquire) {
            return Err(WireError::Io(io::ErrorKind::ConnectionReset.into()).into());
        }
    }
    fault(host, arrival, "target.state");
    let saved: state::MachineState = serde_json::from_slice(&body).map_err(WireError::from)?;
    arrival.vm.restore(&saved)?;
    if arrival.vm.variables().is_some() {
        // They are durable before the source hears that all is here.
        let file = host.store.arriving_variables(&arrival.id).map_err(MoveError::Store)?;
        arrival.vm.keep_variables(file)?;
    }
    Ok(())
}
