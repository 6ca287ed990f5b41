//! `bulkhead disk info`.

mod foreign;
mod set;

use anyhow::Context;
use serde_json::json;
use vhd::{
    Format,
    vhdx::{Info, Kind},
};

use super::{format, named, print_json};
use crate::{
    storage::{self, Claim},
    units::Human,
};

/// Arguments of `bulkhead disk info`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image.
    file: String,
    /// The format; by default as the ending of FILE says.
    #[arg(long)]
    format: Option<Format>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    if args.format.is_none() && vhd::set::is_set(&args.file) {
        return set::show(&args).await;
    }
    let format = format(args.format, &args.file)?;
    let file = storage::open(&args.file, Claim::Look).await?;
    match format {
        Format::Vhdx => {
            let info = vhd::vhdx::info(file).await.with_context(|| args.file.clone())?;
            show(&args, &info);
        }
        Format::Vhd => {
            let info = vhd::classic::info(file).await.with_context(|| args.file.clone())?;
            show_vhd(&args, &info);
        }
        Format::Qcow2 => {
            let info = vhd::qcow2::info(file).await.with_context(|| args.file.clone())?;
            foreign::show_qcow2(&args, &info);
        }
        Format::Vmdk => {
            let info = vhd::vmdk::info(file).await.with_context(|| args.file.clone())?;
            foreign::show_vmdk(&args, &info);
        }
        other => {
            storage::check(named(args.format, &args.file)?, &*file, &args.file).await?;
            let size = file.len().await?;
            if args.json {
                let format = other.to_string();
                print_json(&json!({ "file": args.file, "format": format, "size": size }));
            } else {
                say!("{}: {other}, {}", args.file, Human(size));
            }
        }
    }
    Ok(())
}

fn show_vhd(args: &Args, info: &vhd::classic::Info) {
    let kind = match info.kind {
        vhd::classic::footer::Kind::Fixed => "fixed",
        vhd::classic::footer::Kind::Dynamic => "dynamic",
        vhd::classic::footer::Kind::Differencing => "differencing",
    };
    let parent = info.parent.as_ref();
    if args.json {
        print_json(&json!({
            "file": args.file,
            "format": "vhd",
            "kind": kind,
            "size": info.disk_size,
            "file_size": info.file_size,
            "block_size": info.block_size,
            "disk_id": info.id.to_string(),
            "creator": info.creator,
            "blocks": info.blocks,
            "allocated_blocks": info.allocated_blocks,
            "lost_footer": info.lost_footer,
            "parent": parent.map(|(id, at)| json!({
                "id": id.to_string(),
                "relative": at.relative,
                "absolute": at.absolute,
            })),
        }));
        return;
    }
    say!("{}: vhd, {kind}", args.file);
    let line = |name: &str, value: String| say!("  {name:<20} {value}");
    line("capacity", format!("{} ({} bytes)", Human(info.disk_size), info.disk_size));
    line("file", Human(info.file_size).to_string());
    if let Some(block) = info.block_size {
        line("block size", Human(u64::from(block)).to_string());
        line("allocated blocks", format!("{} of {}", info.allocated_blocks, info.blocks));
    }
    line("disk id", info.id.to_string());
    line("made by", info.creator.clone());
    if info.lost_footer {
        line("footer", "lost; its copy was taken".to_owned());
    }
    if let Some((id, at)) = parent {
        line("parent id", id.to_string());
        at.relative.iter().for_each(|path| line("parent", path.clone()));
        at.absolute.iter().for_each(|path| line("parent", path.clone()));
    }
}

fn show(args: &Args, info: &Info) {
    let kind = match &info.kind {
        Kind::Dynamic => "dynamic",
        Kind::Fixed => "fixed",
        Kind::Differencing { .. } => "differencing",
    };
    if args.json {
        let mut value = json!({
            "file": args.file,
            "format": "vhdx",
            "kind": kind,
            "size": info.disk_size,
            "file_size": info.file_size,
            "block_size": info.block_size,
            "logical_sector_size": info.logical_sector,
            "physical_sector_size": info.physical_sector,
            "disk_id": info.disk_id.to_string(),
            "data_write_id": info.data_write_id.to_string(),
            "creator": info.creator,
            "log_pending": info.log_pending,
            "blocks": info.blocks,
            "allocated_blocks": info.allocated_blocks,
        });
        value["items"] = info
            .user_items
            .iter()
            .map(|item| {
                let (id, length) = (item.id.to_string(), item.length);
                json!({ "id": id, "length": length, "of_disk": item.of_disk })
            })
            .collect();
        if let Kind::Differencing { parent } = &info.kind {
            value["parent"] = parent
                .iter()
                .map(|(key, value)| (key.clone(), json!(value)))
                .collect::<serde_json::Map<_, _>>()
                .into();
        }
        print_json(&value);
        return;
    }
    say!("{}: vhdx, {kind}", args.file);
    let line = |name: &str, value: String| say!("  {name:<20} {value}");
    line("capacity", format!("{} ({} bytes)", Human(info.disk_size), info.disk_size));
    line("file", Human(info.file_size).to_string());
    line("block size", Human(u64::from(info.block_size)).to_string());
    line("sectors", format!("{} logical, {} physical", info.logical_sector, info.physical_sector));
    line("allocated blocks", format!("{} of {}", info.allocated_blocks, info.blocks));
    line("disk id", info.disk_id.to_string());
    line("made by", info.creator.clone());
    let log = if info.log_pending { "to be replayed (in use, or not closed)" } else { "empty" };
    line("log", log.to_owned());
    for item in &info.user_items {
        line("metadata item", format!("{}, {} bytes", item.id, item.length));
    }
    if let Kind::Differencing { parent } = &info.kind {
        for (key, value) in parent {
            line(key, value.clone());
        }
    }
}
