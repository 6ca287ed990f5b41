//! What is told of images in the formats of others.

use serde_json::json;

use super::{Args, print_json};
use crate::units::Human;

fn line(name: &str, value: String) {
    say!("  {name:<20} {value}");
}

pub fn show_qcow2(args: &Args, info: &vhd::qcow2::Info) {
    let header = &info.header;
    let compression = match header.compression {
        vhd::qcow2::Compression::Deflate => "deflate",
        vhd::qcow2::Compression::Zstd => "zstd",
    };
    if args.json {
        let snapshots: Vec<_> = info
            .snapshots
            .iter()
            .map(|snapshot| {
                json!({
                    "id": snapshot.id,
                    "name": snapshot.name,
                    "seconds": snapshot.seconds,
                    "vm_state_size": snapshot.vm_state,
                })
            })
            .collect();
        print_json(&json!({
            "file": args.file,
            "format": "qcow2",
            "version": header.version,
            "size": header.size,
            "file_size": info.file_size,
            "cluster_size": header.cluster_size,
            "compression": compression,
            "dirty": info.dirty,
            "backing_file": header.backing,
            "backing_format": header.backing_format,
            "snapshots": snapshots,
        }));
        return;
    }
    say!("{}: qcow2, version {}", args.file, header.version);
    line("capacity", format!("{} ({} bytes)", Human(header.size), header.size));
    line("file", Human(info.file_size).to_string());
    line("cluster size", Human(header.cluster_size).to_string());
    line("compression", compression.to_owned());
    if info.dirty {
        line("state", "not closed; its reference counts may be wrong".to_owned());
    }
    if let Some(backing) = &header.backing {
        let format = header.backing_format.as_deref().unwrap_or("of no format that is told");
        line("backing file", format!("{backing} ({format})"));
    }
    for snapshot in &info.snapshots {
        line("snapshot", format!("{} {}", snapshot.id, snapshot.name));
    }
}

pub fn show_vmdk(args: &Args, info: &vhd::vmdk::Info) {
    let id = |id: Option<u32>| id.map(|id| format!("{id:08x}"));
    if args.json {
        print_json(&json!({
            "file": args.file,
            "format": "vmdk",
            "kind": info.create_type,
            "size": info.disk_size,
            "file_size": info.file_size,
            "grain_size": info.grain,
            "compressed": info.compressed,
            "content_id": id(info.content_id),
            "parent_content_id": id(info.parent_id),
            "extents": info.extents,
        }));
        return;
    }
    say!("{}: vmdk, {}", args.file, info.create_type);
    line("capacity", format!("{} ({} bytes)", Human(info.disk_size), info.disk_size));
    line("file", Human(info.file_size).to_string());
    if let Some(grain) = info.grain {
        let how = if info.compressed { ", compressed" } else { "" };
        line("grain size", format!("{}{how}", Human(grain)));
    }
    if let Some(id) = id(info.content_id) {
        line("content id", id);
    }
    if let Some(id) = id(info.parent_id) {
        line("parent content id", id);
    }
    info.extents.iter().for_each(|extent| line("extent", extent.clone()));
}
