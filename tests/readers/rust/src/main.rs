//! Reads a disk image to its end with a crate that others wrote, and writes what the disk holds to a
//! file: `rust-readers CRATE FORMAT OUT IMAGE...`.

use std::{
    env,
    error::Error,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    process::ExitCode,
};

use imago::{
    FormatDriverBuilder, PermissiveImplicitOpenGate, SyncFormatAccess, file::File as Storage,
    qcow2::Qcow2, raw::Raw,
};

/// Copies a stream that does not end by itself.
fn copy<R: Read>(reader: R, size: u64, mut out: File) -> io::Result<()> {
    let copied = io::copy(&mut reader.take(size), &mut out)?;
    if copied == size { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn imago(format: &str, image: &str, mut out: File) -> Result<(), Box<dyn Error>> {
    let gate = PermissiveImplicitOpenGate::default();
    let disk = match format {
        "raw" => SyncFormatAccess::new(Raw::<Storage>::builder_path(image).open_sync(gate)?)?,
        "qcow2" => SyncFormatAccess::new(Qcow2::<Storage>::builder_path(image).open_sync(gate)?)?,
        _ => return Err(format!("imago reads no {format}").into()),
    };
    let mut piece = vec![0; 1 << 20];
    let mut at = 0;
    while at < disk.size() {
        let len = usize::try_from(disk.size() - at).map_or(piece.len(), |left| left.min(piece.len()));
        disk.read(&mut piece[..len], at)?;
        out.write_all(&piece[..len])?;
        at += len as u64;
    }
    Ok(())
}

fn qcow(image: &str, out: File) -> Result<(), Box<dyn Error>> {
    let image_of = qcow::open(image)?.unwrap_qcow2();
    let mut file = BufReader::new(File::open(image)?);
    let size = image_of.header.size;
    Ok(copy(image_of.reader(&mut file), size, out)?)
}

fn vhdx(image: &str, out: File) -> Result<(), Box<dyn Error>> {
    let mut disk = vhdx::Vhdx::load(image);
    let mut reader = disk.reader();
    let size = reader.seek(SeekFrom::End(0))?;
    reader.seek(SeekFrom::Start(0))?;
    Ok(copy(reader, size, out)?)
}

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let [name, format, out, image, ..] = &words[..] else {
        eprintln!("rust-readers CRATE FORMAT OUT IMAGE...");
        return ExitCode::FAILURE;
    };
    let done = File::create(out).map_err(Into::into).and_then(|out| match &name[..] {
        "imago" => imago(format, image, out),
        "qcow" => qcow(image, out),
        "vhdx" => vhdx(image, out),
        other => Err(format!("no crate {other}").into()),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
