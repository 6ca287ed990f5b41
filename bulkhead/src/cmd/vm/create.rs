//! `bulkhead vm create`: a VM of a file, or of what the command line says, with all that it needs.
//!
//! ```text
//!  check the files ─► ask the host ─► make the disk ─► make the seed ─► the host takes the VM
//!                                         │                │                  │
//!                                         └──── undone if a later step fails ◄┘
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use host_api::{
    BootDefinition, ConsoleKind, DiskDefinition, FirmwareDefinition, FirmwareKind, NicDefinition,
    Reply, Request, VmDefinition, VmName, WatchdogAction,
};
use vhd::Format;

use super::{
    made::{Made, NewDisk, absolute, ask, new_id},
    seed::{self, Seed},
};
use crate::{
    storage::{self, Claim, Named},
    units::{Human, parse_size},
    vm_host::Client,
};

/// Arguments of `bulkhead vm create`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A VM file (TOML); or, with --disk, the name of the VM.
    #[arg(value_name = "FILE|NAME")]
    what: String,
    /// A disk: a path or `smb://[user@]host[:port]/share/path`. May be repeated. The first is made if
    /// --image or --size is given; all others are there.
    #[arg(long = "disk", value_name = "LOCATION")]
    disks: Vec<String>,
    /// Make the first disk a copy of this image: raw, VHDX, VHD, QCOW2 or VMDK, a path or on a share.
    #[arg(long, value_name = "IMAGE", requires = "disks")]
    image: Option<String>,
    /// Format of IMAGE; by default as its ending says.
    #[arg(long, value_name = "FORMAT", requires = "image")]
    image_format: Option<Format>,
    /// Capacity of the first disk, which is made; by default the image's.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "disks")]
    size: Option<u64>,
    /// A network card in this bridge of the host. May be repeated.
    #[arg(long = "net", value_name = "BRIDGE", requires = "disks")]
    nets: Vec<String>,
    #[command(flatten)]
    seed: seed::Files,
    /// Memory.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "1GiB")]
    memory: u64,
    /// Virtual CPUs.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    cpus: u32,
    /// What starts it from its disk: uefi or bios.
    #[arg(long, value_parser = firmware, default_value = "uefi")]
    firmware: FirmwareKind,
    /// Start this kernel of the host instead of a firmware.
    #[arg(long, value_name = "FILE", conflicts_with = "firmware", requires = "disks")]
    kernel: Option<PathBuf>,
    /// The initial RAM disk of the kernel.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "")]
    cmdline: String,
    /// Give it a watchdog, and do this when that expires: reset, stop, pause or nothing.
    #[arg(long, value_name = "WHAT", value_parser = watchdog, requires = "disks")]
    watchdog: Option<WatchdogAction>,
    /// Give it a balloon: it may be left with as little memory, and what its guest does not use is the host's.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "disks")]
    minimum: Option<u64>,
    /// Start it, too.
    #[arg(long)]
    start: bool,
}

fn firmware(text: &str) -> Result<FirmwareKind, String> {
    match text {
        "uefi" => Ok(FirmwareKind::Uefi),
        "bios" => Ok(FirmwareKind::Bios),
        other => Err(format!("{other:?} is no firmware: uefi or bios")),
    }
}

/// A size of memory in MiB.
pub fn whole_mib(size: u64, what: &str) -> anyhow::Result<u64> {
    ensure!(size.is_multiple_of(1 << 20), "{what} is no whole number of MiB");
    Ok(size >> 20)
}

/// What is done when a watchdog expires, by its word in VM files.
pub fn watchdog(text: &str) -> Result<WatchdogAction, String> {
    match text {
        "reset" => Ok(WatchdogAction::Reset),
        "stop" => Ok(WatchdogAction::Stop),
        "pause" => Ok(WatchdogAction::Pause),
        "nothing" => Ok(WatchdogAction::Nothing),
        other => Err(format!("{other:?} is none of reset, stop, pause and nothing")),
    }
}

/// Makes the VM that the arguments speak of.
pub fn run(mut client: Client, args: &Args, json: bool) -> anyhow::Result<()> {
    let (name, made) = if args.disks.is_empty() {
        ensure!(args.seed.cloud_init.is_none(), "--cloud-init goes with --disk");
        let definition = from_file(Path::new(&args.what))?;
        let name = definition.name.clone();
        accept(&mut client, definition)?;
        (name, Vec::new())
    } else {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.context("cannot start")?.block_on(make(&mut client, args, json))?
    };
    if args.start {
        match client.call(&Request::Start { name: name.clone() }) {
            Ok(_) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("{name} is made and not started"));
            }
        }
    }
    if json {
        say!("{}", serde_json::json!({ "ok": format!("created {name}"), "made": made }));
    } else {
        made.iter().for_each(|location| say!("made {location}"));
        say!("{} {name}", if args.start { "created and started" } else { "created" });
    }
    Ok(())
}

/// The definition in a file, with paths as the host has them.
fn from_file(file: &Path) -> anyhow::Result<VmDefinition> {
    let text = std::fs::read_to_string(file).with_context(|| {
        format!(
            "cannot read {} (a VM without a file is made with --disk, see --help)",
            file.display()
        )
    })?;
    let definition =
        VmDefinition::from_toml(&text).with_context(|| format!("{}", file.display()))?;
    // The host has another working folder, and keeps the VM when the file is gone.
    let place =
        std::path::absolute(file).with_context(|| format!("where is {}?", file.display()))?;
    Ok(match place.parent() {
        Some(folder) => definition.beside(folder),
        None => definition,
    })
}

fn accept(client: &mut Client, definition: VmDefinition) -> anyhow::Result<()> {
    match client.call(&Request::Create { definition })? {
        Reply::Ok => Ok(()),
        other => bail!("the VM host answered {other:?}"),
    }
}

/// What the command line says.
fn definition(args: &Args, seed: Option<&Seed>) -> anyhow::Result<VmDefinition> {
    let name: VmName = args.what.parse()?;
    let mib = whole_mib(args.memory, "--memory")?;
    let minimum = args.minimum.map(|size| whole_mib(size, "--minimum")).transpose()?;
    let mut disks = Vec::new();
    for location in &args.disks {
        let location = absolute(location)?;
        disks.push(DiskDefinition::new(location, false));
    }
    if seed.is_some() {
        let location = seed::location(&disks[0].location, &name);
        disks.push(DiskDefinition::new(location, true));
    }
    let path = |path: &PathBuf| {
        std::path::absolute(path).with_context(|| format!("where is {}?", path.display()))
    };
    let boot = match &args.kernel {
        None => None,
        Some(kernel) => Some(BootDefinition {
            kernel: path(kernel)?,
            initrd: args.initrd.as_ref().map(path).transpose()?,
            cmdline: args.cmdline.clone(),
        }),
    };
    let firmware = FirmwareDefinition { kind: args.firmware, code: None, vars: None };
    let nic = |bridge: &String| NicDefinition {
        bridge: bridge.clone(),
        mac: None,
        receive_mbit: None,
        send_mbit: None,
    };
    let definition = VmDefinition {
        name,
        id: Some(new_id()?),
        memory_mib: mib,
        vcpus: args.cpus,
        console: ConsoleKind::Serial,
        after_host_failure: host_api::AfterHostFailure::Restart,
        on_panic: host_api::PanicAction::default(),
        on_watchdog: args.watchdog,
        minimum_mib: minimum,
        firmware: boot.is_none().then_some(firmware),
        boot,
        disks,
        nics: args.nets.iter().map(nic).collect(),
    };
    definition.check()?;
    Ok(definition)
}

/// Makes a VM with what it needs, or nothing; the name, and what was made.
async fn make(
    client: &mut Client,
    args: &Args,
    quiet: bool,
) -> anyhow::Result<(VmName, Vec<String>)> {
    let seed = args.seed.read()?;
    let definition = definition(args, seed.as_ref())?;
    let first = &definition.disks[0].location;
    let disk = if args.image.is_some() || args.size.is_some() {
        let image = match &args.image {
            Some(image) => Some((image.as_str(), named(args.image_format, image)?)),
            None => None,
        };
        Some(NewDisk::plan(first, image, args.size).await?)
    } else {
        None
    };
    let (others, count) = (usize::from(disk.is_some()), args.disks.len());
    for disk in &definition.disks[others..count] {
        let there = storage::open(&disk.location, Claim::Look).await;
        let there =
            there.context("a disk that is not made must be there (--size makes the first)")?;
        there.close().await?;
    }
    let new: Vec<String> = disk.iter().map(|disk| disk.location.clone()).collect();
    let seed_at = seed.as_ref().map(|_| definition.disks[count].location.clone());
    let new: Vec<String> = new.into_iter().chain(seed_at.clone()).collect();
    ask(client, &definition, new.clone())?;
    let volume = match (&seed, definition.id) {
        (Some(seed), Some(id)) => Some(seed.volume(&definition.name, id)?),
        _ => None,
    };

    let mut made = Made::default();
    let name = definition.name.clone();
    let all = async {
        if let Some(disk) = &disk {
            made.disk(disk, quiet).await?;
            if !quiet {
                eprintln!("{}: {}, {}", disk.location, disk.format, Human(disk.size));
            }
        }
        if let (Some(location), Some(volume)) = (&seed_at, &volume) {
            made.content(location, volume).await?;
        }
        anyhow::Ok(())
    };
    let done = tokio::select! {
        done = all => done,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let done = done.and_then(|()| accept(client, definition));
    if let Err(error) = done {
        made.undo().await;
        return Err(error.context(format!("{name} is not made, and nothing is left of it")));
    }
    Ok((name, new))
}

/// The format of an image, asked for or by its ending.
fn named(asked: Option<Format>, image: &str) -> anyhow::Result<Named> {
    crate::cmd::disk::named(asked, image)
}
