//! `bulkhead lun`: the LUNs of a running server's iSCSI targets.

use std::{
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Subcommand;
use server_api::{LunInfo, Reply, Request};
use toml_edit::{Table, value};
use vhd::Format;

use super::{
    config_file::{self, ConfigFile},
    server::{Socket, json},
};

/// Arguments of `bulkhead lun`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    config: ConfigFile,
    /// Print JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The LUNs of all targets.
    List,
    /// Serve an image or a block device as a LUN, and tell the target's initiators.
    Add {
        /// The target's iSCSI name.
        target: String,
        /// The image or device.
        path: PathBuf,
        /// The LUN's number; the default is the lowest that is free.
        #[arg(long)]
        number: Option<u16>,
        /// The image's format where its ending does not say it: raw, vhdx, vhd, qcow2 or vmdk.
        #[arg(long)]
        format: Option<Format>,
        /// Refuse writes.
        #[arg(long)]
        read_only: bool,
        /// Initiators that see it; the default is all of the target's.
        #[arg(long = "initiator")]
        initiators: Vec<String>,
    },
    /// Serve a LUN no longer; its image stays.
    Remove {
        /// The target's iSCSI name.
        target: String,
        /// The LUN's number.
        number: u16,
    },
    /// Have a LUN take the size that its image or device has now, and tell initiators.
    Resize {
        /// The target's iSCSI name.
        target: String,
        /// The LUN's number.
        number: u16,
    },
}

/// A raw image has no mark by which it could be told from any other file, which would be overwritten.
const UNKNOWN_FORMAT: &str = "neither ends as an image (.raw, .img, .vhdx, .vhd, .qcow2, .vmdk) nor is a block device; \
     if it is an image, say of which format: --format raw";

/// Whether a path says by itself that it is an image: by its ending, or because it is a block device.
fn is_image(path: &Path) -> bool {
    let is_device =
        || std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    Format::from_path(path).is_some() || is_device()
}

/// Asks the server, or changes its configuration.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { socket, config, json: as_json, command } = args;
    match command {
        Command::List => list(&socket, as_json),
        Command::Resize { target, number } => {
            match socket.ask(&Request::LunResize { target, lun: number })? {
                Reply::LunResized { size } if as_json => json(&size),
                Reply::LunResized { size } => {
                    say!("{size} bytes");
                    Ok(())
                }
                other => bail!("the server answered {other:?}"),
            }
        }
        Command::Add { target, path, number, format, read_only, initiators } => {
            // The server may run in another folder.
            let path = std::path::absolute(&path)?;
            if format.is_none() && !is_image(&path) {
                bail!("{}: {UNKNOWN_FORMAT}", path.display());
            }
            let path = path.to_str().context("the path is not UTF-8")?.to_owned();
            let mut added = 0;
            config.change(&socket, |document| {
                added = match number {
                    Some(number) => number,
                    None => config_file::free_lun(document, &target)?,
                };
                let mut lun = Table::new();
                lun["number"] = value(i64::from(added));
                lun["path"] = value(&path);
                if let Some(format) = format {
                    lun["format"] = value(format.to_string());
                }
                if read_only {
                    lun["read_only"] = value(true);
                }
                if !initiators.is_empty() {
                    lun["initiators"] = value(initiators.iter().collect::<toml_edit::Array>());
                }
                config_file::add_lun(document, &target, added, lun)
            })?;
            say!("lun {added} of {target}");
            Ok(())
        }
        Command::Remove { target, number } => {
            config.change(&socket, |document| config_file::remove_lun(document, &target, number))
        }
    }
}

fn list(socket: &Socket, as_json: bool) -> anyhow::Result<()> {
    let targets = match socket.ask(&Request::Targets)? {
        Reply::Targets { targets } => targets,
        other => bail!("the server answered {other:?}"),
    };
    if as_json {
        return json(&targets);
    }
    for target in &targets {
        for lun in &target.luns {
            say!("{}  {}", target.name, line(lun));
        }
    }
    Ok(())
}

/// A LUN in a line.
pub fn line(lun: &LunInfo) -> String {
    let LunInfo { number, path, size, block, id, .. } = lun;
    let mode = if lun.read_only { "read only" } else { "writable" };
    let reserved = if lun.reserved { ", reserved" } else { "" };
    format!("{number:>4}  {size} bytes in blocks of {block}, {mode}{reserved}  {path}  {id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_an_image_only_if_its_name_says_so() {
        let folder = tempfile::tempdir().unwrap();
        for (name, wanted) in
            [("a.raw", true), ("b.VHDX", true), ("smbd.toml", false), ("lun", false)]
        {
            let path = folder.path().join(name);
            std::fs::write(&path, "content").unwrap();
            assert_eq!(is_image(&path), wanted, "{name}");
        }
        assert!(!is_image(Path::new("/dev/null")), "no block device");
    }
}
