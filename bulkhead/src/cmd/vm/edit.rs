//! `bulkhead vm edit`, `clone` and `rename`: other definitions of VMs that are there.

use anyhow::{Context, bail, ensure};
use host_api::{
    AfterHostFailure, DiskDefinition, NicDefinition, Reply, Request, VmDefinition, VmDetail,
    VmName, VmState, WatchdogAction,
};
use serde_json::json;

use super::{
    create::{watchdog as watchdog_action, whole_mib},
    made::{Made, NewDisk, absolute, ask, new_id},
    seed,
};
use crate::{cmd::disk::named, units::parse_size, vm_host::Client};

/// Arguments of `bulkhead vm edit`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
#[command(group = clap::ArgGroup::new("limit").multiple(true))]
pub struct Edit {
    /// Which.
    name: VmName,
    /// Memory.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, group = "change")]
    memory: Option<u64>,
    /// Least memory that `vm memory` may leave it with; a VM without has no balloon.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, group = "change")]
    minimum: Option<u64>,
    /// Virtual CPUs.
    #[arg(long, value_name = "NUMBER", group = "change")]
    cpus: Option<u32>,
    /// One more disk, which is there. May be repeated.
    #[arg(long, value_name = "LOCATION", group = "change")]
    add_disk: Vec<String>,
    /// A disk to take away, as `vm show` names it; the file stays. May be repeated.
    #[arg(long, value_name = "LOCATION", group = "change")]
    remove_disk: Vec<String>,
    /// A disk whose limits are set, as `vm show` names it; they hold at once.
    #[arg(long, value_name = "LOCATION", group = "change", requires = "limit")]
    limit_disk: Option<String>,
    /// Most operations in a second of the disk of --limit-disk, each for 8 KiB; 0 for no limit.
    #[arg(long, value_name = "NUMBER", group = "limit", requires = "limit_disk")]
    max_iops: Option<u32>,
    /// Most bytes in a second of the disk of --limit-disk; 0 for no limit.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, group = "limit", requires = "limit_disk")]
    max_bandwidth: Option<u64>,
    /// One more network card in this bridge. May be repeated.
    #[arg(long, value_name = "BRIDGE", group = "change")]
    add_net: Vec<String>,
    /// A network card to take away: the first one in this bridge. May be repeated.
    #[arg(long, value_name = "BRIDGE", group = "change")]
    remove_net: Vec<String>,
    /// What becomes of it when its host failed while it ran: restart or leave-off.
    #[arg(long, value_name = "WHAT", value_parser = after, group = "change")]
    after_host_failure: Option<AfterHostFailure>,
    /// What is done when its watchdog expires: reset, stop, pause or nothing; none takes it away.
    #[arg(long, value_name = "WHAT", value_parser = watchdog, group = "change")]
    watchdog: Option<Watchdog>,
}

/// What becomes of a VM's watchdog.
#[derive(Debug, Clone, Copy)]
struct Watchdog(Option<WatchdogAction>);

fn watchdog(text: &str) -> Result<Watchdog, String> {
    if text == "none" {
        return Ok(Watchdog(None));
    }
    watchdog_action(text).map(|action| Watchdog(Some(action)))
}

fn after(text: &str) -> Result<AfterHostFailure, String> {
    match text {
        "restart" => Ok(AfterHostFailure::Restart),
        "leave-off" => Ok(AfterHostFailure::LeaveOff),
        other => Err(format!("{other:?} is neither restart nor leave-off")),
    }
}

/// Arguments of `bulkhead vm clone`.
#[derive(Debug, clap::Args)]
pub struct CloneArgs {
    /// Which; it is off.
    name: VmName,
    /// Name of the copy.
    to: VmName,
    /// Where the copy's disks are made; by default beside those of NAME.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<String>,
    #[command(flatten)]
    seed: seed::Files,
}

/// Arguments of `bulkhead vm rename`.
#[derive(Debug, clap::Args)]
pub struct Rename {
    /// Which; it is off.
    name: VmName,
    /// Its name from now on. Its disks keep theirs.
    to: VmName,
}

fn show(client: &mut Client, name: VmName) -> anyhow::Result<VmDetail> {
    match client.call(&Request::Show { name })? {
        Reply::Show { vm } => Ok(*vm),
        other => bail!("the VM host answered {other:?}"),
    }
}

fn tell(client: &mut Client, request: &Request) -> anyhow::Result<()> {
    match client.call(request)? {
        Reply::Ok => Ok(()),
        other => bail!("the VM host answered {other:?}"),
    }
}

impl Edit {
    /// The definition that comes of another.
    fn apply(&self, was: &VmDefinition) -> anyhow::Result<VmDefinition> {
        let mut new = was.clone();
        if let Some(memory) = self.memory {
            new.memory_mib = whole_mib(memory, "--memory")?;
        }
        if let Some(minimum) = self.minimum {
            new.minimum_mib = Some(whole_mib(minimum, "--minimum")?);
        }
        new.vcpus = self.cpus.unwrap_or(new.vcpus);
        new.after_host_failure = self.after_host_failure.unwrap_or(new.after_host_failure);
        if let Some(Watchdog(action)) = self.watchdog {
            new.on_watchdog = action;
        }
        for location in &self.remove_disk {
            let at = new.disks.iter().position(|disk| disk.location == *location);
            let at = at.with_context(|| format!("{} has no disk {location}", self.name))?;
            new.disks.remove(at);
        }
        for location in &self.add_disk {
            let location = absolute(location)?;
            ensure!(
                new.disks.iter().all(|disk| disk.location != location),
                "{} has the disk {location}",
                self.name
            );
            new.disks.push(DiskDefinition::new(location, false));
        }
        if let Some(location) = &self.limit_disk {
            let disk = new.disks.iter_mut().find(|disk| disk.location == *location);
            let disk = disk.with_context(|| format!("{} has no disk {location}", self.name))?;
            if let Some(iops) = self.max_iops {
                disk.limits.max_iops = Some(iops).filter(|iops| *iops > 0);
            }
            if let Some(bytes) = self.max_bandwidth {
                disk.limits.max_bytes_per_s = Some(bytes).filter(|bytes| *bytes > 0);
            }
        }
        for bridge in &self.remove_net {
            let at = new.nics.iter().position(|nic| nic.bridge == *bridge);
            let at = at.with_context(|| format!("{} has no card in {bridge}", self.name))?;
            // The others keep their addresses, which are made of their places if not said.
            for index in at..new.nics.len() {
                let mac = new.mac(index);
                new.nics[index].mac = Some(mac);
            }
            new.nics.remove(at);
        }
        for bridge in &self.add_net {
            let bridge = bridge.clone();
            new.nics.push(NicDefinition { bridge, mac: None, receive_mbit: None, send_mbit: None });
        }
        new.check()?;
        Ok(new)
    }
}

/// Changes a VM, and says what waits for its next start.
pub fn edit(mut client: Client, args: &Edit, as_json: bool) -> anyhow::Result<()> {
    let was = show(&mut client, args.name.clone())?.definition;
    let definition = args.apply(&was)?;
    let request = Request::Edit { was: Box::new(was), definition: Box::new(definition) };
    tell(&mut client, &request)?;
    let waiting = show(&mut client, args.name.clone())?.waiting;
    if as_json {
        say!("{}", json!({ "ok": format!("changed {}", args.name), "waiting": waiting }));
        return Ok(());
    }
    say!("changed {}", args.name);
    if !waiting.is_empty() {
        say!("waits for its next start: {}", waiting.join(", "));
    }
    Ok(())
}

/// Where the copy of a disk is: in the folder of the first, or another, with the copy's name, and a
/// number from the second on.
fn place(disk: &str, folder: Option<&str>, to: &VmName, index: usize) -> String {
    let (beside, file) = disk.rsplit_once('/').unwrap_or((".", disk));
    let ending = file.rsplit_once('.').map_or("", |(_, ending)| ending);
    let folder = folder.unwrap_or(beside).trim_end_matches('/');
    let number = if index == 0 { String::new() } else { format!("-{}", index + 1) };
    format!("{folder}/{to}{number}.{ending}")
}

/// Makes a copy of a VM that is off, with copies of its disks, or nothing.
pub fn clone(mut client: Client, args: &CloneArgs, as_json: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let made = runtime.context("cannot start")?.block_on(copy(&mut client, args, as_json))?;
    if as_json {
        say!("{}", json!({ "ok": format!("cloned {} as {}", args.name, args.to), "made": made }));
    } else {
        made.iter().for_each(|location| say!("made {location}"));
        say!("cloned {} as {}", args.name, args.to);
    }
    Ok(())
}

async fn copy(client: &mut Client, args: &CloneArgs, quiet: bool) -> anyhow::Result<Vec<String>> {
    let seed = args.seed.read()?;
    let detail = show(client, args.name.clone())?;
    let state = detail.summary.state;
    ensure!(
        matches!(state, VmState::Off | VmState::Failed),
        "{} is {}: stop it first",
        args.name,
        state.as_str()
    );
    let mut definition = detail.definition;
    let old_seed =
        definition.disks.first().map(|first| seed::location(&first.location, &args.name));
    definition.name = args.to.clone();
    definition.id = Some(new_id()?);
    // Two cards of one address would take each other's frames.
    definition.nics.iter_mut().for_each(|nic| nic.mac = None);
    // What one guest was set up with is not for another.
    definition.disks.retain(|disk| !disk.read_only || Some(&disk.location) != old_seed.as_ref());
    let (mut disks, mut new) = (Vec::new(), Vec::new());
    let folder = args.folder.as_deref().map(absolute).transpose()?;
    for (index, disk) in definition.disks.iter_mut().enumerate().filter(|(_, it)| !it.read_only) {
        let format = disk.format.map(|format| match format {
            host_api::DiskFormat::Raw => vhd::Format::Raw,
            host_api::DiskFormat::Vhdx => vhd::Format::Vhdx,
        });
        let location = place(&disk.location, folder.as_deref(), &args.to, index);
        let image = (disk.location.as_str(), named(format, &disk.location)?);
        disks.push(NewDisk::plan(&location, Some(image), None).await?);
        new.push(location.clone());
        (disk.location, disk.format) = (location, None);
    }
    let volume = match (&seed, definition.id) {
        (Some(seed), Some(id)) => {
            let first =
                definition.disks.first().context("a seed is beside a disk, and there is none")?;
            let location = seed::location(&first.location, &args.to);
            let volume = seed.volume(&args.to, id)?;
            new.push(location.clone());
            let disk = DiskDefinition::new(location.clone(), true);
            definition.disks.push(disk);
            Some((location, volume))
        }
        _ => None,
    };
    ask(client, &definition, new.clone())?;
    let mut made = Made::default();
    let all = async {
        for disk in &disks {
            made.disk(disk, quiet).await?;
        }
        if let Some((location, volume)) = &volume {
            made.content(location, volume).await?;
        }
        anyhow::Ok(())
    };
    let done = tokio::select! {
        done = all => done,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let done = done.and_then(|()| tell(client, &Request::Create { definition }));
    if let Err(error) = done {
        made.undo().await;
        return Err(error.context(format!("{} is not made, and nothing is left of it", args.to)));
    }
    Ok(new)
}

/// The request that gives a VM another name, and what is said when it is done.
pub fn rename(args: Rename) -> (Request, String) {
    let done = format!("renamed {} to {}", args.name, args.to);
    (Request::Rename { name: args.name, to: args.to }, done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copys_disks_have_its_name() {
        let to = "web-2".parse().unwrap();
        assert_eq!(place("smb://h/vms/web-1.vhdx", None, &to, 0), "smb://h/vms/web-2.vhdx");
        assert_eq!(place("/a/data.img", Some("/b/"), &to, 1), "/b/web-2-2.img");
    }

    #[test]
    fn cards_keep_their_addresses_when_one_is_taken_away() {
        let text = "name = 'a'\nid = '00ff0000000000000000000011223344'\nmemory_mib = 64\n\
                    [boot]\nkernel = '/k'\n[[nic]]\nbridge = 'br0'\n[[nic]]\nbridge = 'br1'\n";
        let was = VmDefinition::from_toml(text).unwrap();
        let mut edit = Edit {
            name: was.name.clone(),
            memory: Some(128 << 20),
            minimum: Some(64 << 20),
            cpus: None,
            add_disk: vec!["smb://h/vms/x.vhdx".into()],
            remove_disk: Vec::new(),
            limit_disk: None,
            max_iops: Some(300),
            max_bandwidth: Some(0),
            add_net: Vec::new(),
            remove_net: vec!["br0".into()],
            after_host_failure: None,
            watchdog: Some(Watchdog(Some(WatchdogAction::Reset))),
        };
        let new = edit.apply(&was).unwrap();
        assert_eq!(new.mac(0), was.mac(1));
        assert_eq!(was.differs(&new), ["memory_mib", "minimum_mib", "on_watchdog", "disk", "nic"]);
        assert!(
            edit.apply(&new).unwrap_err().to_string().contains("has the disk smb://h/vms/x.vhdx")
        );
        edit.add_disk.clear();
        // Limits of a disk wait for nothing.
        edit.limit_disk = Some("smb://h/vms/x.vhdx".into());
        edit.remove_net.clear();
        let limited = edit.apply(&new).unwrap();
        assert_eq!(limited.disks[0].limits.max_iops, Some(300));
        assert_eq!(limited.disks[0].limits.max_bytes_per_s, None);
        assert!(new.differs(&limited).is_empty() && new != limited);
        edit.remove_net.push("br0".into());
        assert!(edit.apply(&new).unwrap_err().to_string().contains("no card in br0"));
    }
}
