//! A backup of a VHDX without an asynchronous runtime: `snapshot IMAGE CHILD COPY.raw`.
//!
//! Puts a new differencing image CHILD in front of IMAGE, so that IMAGE does not change any more,
//! copies what IMAGE holds to COPY.raw, and says what was copied. Whoever used IMAGE uses CHILD from
//! then on.

use std::{error::Error, path::Path, sync::Arc};

use block_io::{LocalOptions, RawDisk};
use vhd::{
    blocking::{self, Disk},
    chain, vhdx,
};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [image, child, target] = &args[..] else {
        return Err("three files are wanted: IMAGE CHILD COPY.raw".into());
    };
    let parent = blocking::file(image, &LocalOptions::read_only())?;
    let about = blocking::wait(vhdx::info(parent.clone()))?;
    let path = chain::relative(child, image).ok_or("IMAGE is not reached from CHILD's folder")?;
    let options = vhdx::CreateOptions::child(&about, &path);
    let options = blocking::wait(options.inheriting(parent))?;
    blocking::create_vhdx(Path::new(child), &options)?.close()?;

    let source = blocking::open_read_only(image)?;
    let file = blocking::file(target, &LocalOptions::create_new())?;
    blocking::wait(file.set_len(about.disk_size))?;
    let raw = Disk::new(Arc::new(blocking::wait(RawDisk::open(file, 512))?));
    let done = blocking::convert(&source, &raw, |_| {})?;
    raw.close()?;
    println!("{target}: {} of {} bytes were data", done.written, done.total);
    Ok(())
}
