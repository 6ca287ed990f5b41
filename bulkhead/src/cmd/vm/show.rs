//! Tables of `bulkhead vm`.

use anyhow::bail;
use host_api::{GuestAgent, MoveStatistics, Reply};

/// Prints what `vm list` shows: one line for each VM.
pub fn list(reply: Reply, json: bool) -> anyhow::Result<()> {
    let Reply::List { vms } = reply else { bail!("the VM host answered {reply:?}") };
    if json {
        say!("{}", serde_json::to_string(&vms)?);
        return Ok(());
    }
    let width = vms.iter().map(|vm| vm.name.as_str().len()).max().unwrap_or(0).max(4);
    say!("{:width$}  {:<15}  {:>5}  {:>10}  REASON", "NAME", "STATE", "VCPUS", "MEMORY");
    for vm in vms {
        let memory = format!("{} MiB", vm.memory_mib);
        let (name, state) = (vm.name.as_str(), vm.state.as_str());
        let reason = vm.reason.unwrap_or_default();
        let line = format!("{name:width$}  {state:<15}  {:>5}  {memory:>10}  {reason}", vm.vcpus);
        say!("{}", line.trim_end());
    }
    Ok(())
}

fn row(key: &str, value: impl std::fmt::Display) {
    say!("{key:<16} {value}");
}

/// Prints what `vm show` shows of one VM.
pub fn vm(reply: Reply, json: bool) -> anyhow::Result<()> {
    let Reply::Show { vm } = reply else { bail!("the VM host answered {reply:?}") };
    if json {
        say!("{}", serde_json::to_string(&vm)?);
        return Ok(());
    }
    row("name", &vm.summary.name);
    if let Some(id) = vm.definition.id {
        row("id", String::from(id));
    }
    row("state", vm.summary.state.as_str());
    if let Some(reason) = &vm.reason {
        row("reason", reason);
    }
    if !vm.waiting.is_empty() {
        row("waits for start", vm.waiting.join(", "));
    }
    row("vcpus", vm.summary.vcpus);
    row("memory", format_args!("{} MiB", vm.summary.memory_mib));
    if let Some(boot) = &vm.definition.boot {
        row("kernel", boot.kernel.display());
        row("command line", &boot.cmdline);
    }
    if let Some(firmware) = &vm.definition.firmware {
        row("firmware", firmware.code().display());
    }
    if let Some(agent) = &vm.agent {
        guest(agent);
    }
    if let Some(memory) = &vm.memory {
        let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
        row("  of the host's", mib(memory.resident));
        if let Some(balloon) = &memory.balloon {
            let (has, wanted) = (mib(balloon.has), mib(balloon.wanted));
            row("  the guest has", format_args!("{has}, is to have {wanted}"));
            let (inflated, reported) = (mib(balloon.inflated), mib(balloon.reported));
            row("  given back", format_args!("{inflated} by the balloon, {reported} unused"));
            if let (Some(free), Some(available)) = (balloon.free, balloon.available) {
                row(
                    "  the guest tells",
                    format_args!("{} free, {} available", mib(free), mib(available)),
                );
            }
        }
    }
    if let Some(watchdog) = &vm.watchdog {
        let stands = match watchdog.left_ms {
            Some(ms) => format!("runs, {:.1} s left", ms as f64 / 1e3),
            None if watchdog.enabled => "has expired".to_owned(),
            None => "not used by the guest".to_owned(),
        };
        row("watchdog", format_args!("{stands}; expired {} times", watchdog.expired));
    }
    let ms = vm.longest_pause_us as f64 / 1e3;
    row("pauses", format_args!("{}, longest {ms:.1} ms", vm.pauses));
    for (definition, disk) in vm.definition.disks.iter().zip(&vm.disks) {
        row("disk", &definition.location);
        row("  size", format_args!("{} bytes", disk.size));
        row("  reads", format_args!("{} ({} bytes)", disk.reads, disk.read_bytes));
        row("  writes", format_args!("{} ({} bytes)", disk.writes, disk.written_bytes));
        row("  flushes", disk.flushes);
        row("  errors", disk.errors);
        if !definition.limits.is_none() {
            let limits = &definition.limits;
            let iops = limits.max_iops.map(|most| format!("{most} operations of 8 KiB"));
            let bytes = limits.max_bytes_per_s.map(|most| format!("{most} bytes"));
            let both: Vec<String> = [iops, bytes].into_iter().flatten().collect();
            row(
                "  limits",
                format_args!("{} a second, waited {} times", both.join(" and "), disk.limited),
            );
        }
        row("  longest I/O", format_args!("{:.1} ms", disk.longest_us as f64 / 1e3));
        let ms = disk.longest_pause_us as f64 / 1e3;
        row("  pauses", format_args!("{}, longest {ms:.1} ms", disk.pauses));
    }
    for (index, nic) in vm.definition.nics.iter().enumerate() {
        row("nic", &nic.bridge);
        row("  address", String::from(vm.definition.mac(index)));
    }
    if let Some(last) = &vm.last_move {
        say!("last move:");
        statistics(last);
    }
    Ok(())
}

/// What a guest tells of itself.
fn guest(agent: &GuestAgent) {
    let state = agent.state.as_str();
    match (&agent.reason, &agent.version) {
        (Some(reason), _) => row("guest agent", format_args!("{state}: {reason}")),
        (None, Some(version)) => row("guest agent", format_args!("{state}, version {version}")),
        (None, None) => row("guest agent", state),
    }
    if let Some(os) = &agent.os {
        let kernel = agent.kernel.as_ref().map(|kernel| format!(", kernel {kernel}"));
        row("guest", format_args!("{os}{}", kernel.unwrap_or_default()));
    }
    for interface in &agent.interfaces {
        let addresses = interface.addresses.join(", ");
        row("  interface", format_args!("{}  {addresses}", interface.name));
    }
}

/// What a move cost.
pub fn statistics(statistics: &MoveStatistics) {
    say!("  {:>5}  {:>9}  {:>9}  {:>9}  {:>9}", "ROUND", "PAGES", "ZERO", "MB", "MS");
    for round in &statistics.rounds {
        say!(
            "  {:>5}  {:>9}  {:>9}  {:>9.1}  {:>9.1}",
            round.number,
            round.pages,
            round.zero_pages,
            round.bytes as f64 / 1e6,
            round.micros as f64 / 1e3
        );
    }
    let row = |key: &str, value: String| say!("  {key:<22} {value}");
    row("outcome", statistics.outcome.clone());
    row("pages", format!("{} ({} of zeros)", statistics.pages, statistics.zero_pages));
    row("bytes", format!("{:.1} MB", statistics.bytes as f64 / 1e6));
    row("compression", statistics.compression.clone());
    row("memory connections", statistics.streams.to_string());
    row("throughput", format!("{:.0} MB/s", statistics.mb_per_s));
    row("total time", format!("{:.1} ms", statistics.total_ms));
    row("downtime", format!("{:.1} ms", statistics.downtime_ms));
    for (part, ms) in &statistics.downtime_parts {
        row(&format!("  {part}"), format!("{ms:.1} ms"));
    }
    row("disk bytes moved", statistics.disk_bytes.to_string());
}
