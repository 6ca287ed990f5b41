//! What images are and whether they are whole: `describe IMAGE...`. Never writes.

use std::{error::Error, sync::Arc};

use block_io::{LocalFile, LocalOptions};
use vhd::{Format, classic, vhdx};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    for path in std::env::args().skip(1) {
        let file = Arc::new(LocalFile::open(&path, &LocalOptions::read_only())?);
        let (size, report) = match Format::from_path(&path) {
            Some(Format::Vhdx) => {
                (vhdx::info(file.clone()).await?.disk_size, vhdx::check(file).await?)
            }
            Some(Format::Vhd) => {
                (classic::info(file.clone()).await?.disk_size, classic::check(file).await?)
            }
            _ => return Err(format!("{path}: neither .vhdx nor .vhd").into()),
        };
        let blocks = format!("{} of {} blocks stored", report.allocated_blocks, report.blocks);
        println!("{path}: {size} bytes, {blocks}, {} errors", report.errors);
        for finding in &report.findings {
            println!("  {finding:?}");
        }
    }
    Ok(())
}
