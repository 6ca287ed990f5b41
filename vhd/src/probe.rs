//! What a file that is called raw really is.
//!
//! Every file can be read as a raw disk. One that has the mark of another format where that has it is
//! hardly one: taken for raw, its header becomes the first sector of a disk, and a guest's first write
//! destroys the image. So what is raw by its ending alone is looked at; who says so by name is believed.

use block_io::File;

use crate::{Error, Format, Result, classic::footer, qcow2, vmdk};

/// The format whose mark a file bears, at its beginning or its end.
///
/// # Errors
/// What the file says.
pub async fn mark(file: &dyn File) -> Result<Option<&'static str>> {
    let mut first = [0; 512];
    let got = file.read_at(0, &mut first).await?;
    let first = &first[..got];
    if let Some(magic) = first.first_chunk::<8>() {
        if magic == b"vhdxfile" {
            return Ok(Some("VHDX"));
        }
        if magic.starts_with(&qcow2::header::MAGIC) {
            return Ok(Some("QCOW2"));
        }
        if magic.starts_with(&vmdk::header::MAGIC) || vmdk::header::foreign(magic).is_some() {
            return Ok(Some("VMDK"));
        }
        if magic == footer::SIGNATURE {
            return Ok(Some("VHD"));
        }
    }
    if vmdk::descriptor::is_descriptor(&String::from_utf8_lossy(first)) {
        return Ok(Some("VMDK"));
    }
    let len = file.len().await?;
    for at in [footer::LEN, footer::OLD_LEN] {
        let Some(at) = len.checked_sub(at as u64) else { continue };
        let mut last = [0; 8];
        if file.read_at(at, &mut last).await? == last.len() && last == *footer::SIGNATURE {
            return Ok(Some("VHD"));
        }
    }
    Ok(None)
}

/// Fails for a file that would be taken for raw by its ending and bears another format's mark.
///
/// # Errors
/// [`Error::Disguised`]; what the file says.
pub async fn check(file: &dyn File, location: &str, by_ending: Format) -> Result<()> {
    if by_ending != Format::Raw {
        return Ok(());
    }
    match mark(file).await? {
        Some(mark) => Err(Error::Disguised { location: location.to_owned(), mark }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use block_io::testing::MemFile;

    use super::*;

    async fn of(content: &[u8]) -> Option<&'static str> {
        let file = MemFile::new();
        file.write_at(0, content).await.unwrap();
        mark(&file).await.unwrap()
    }

    #[tokio::test]
    async fn marks_are_found_at_both_ends() {
        let with = |at: usize, mark: &[u8]| {
            let mut bytes = vec![0; 2048];
            bytes[at..at + mark.len()].copy_from_slice(mark);
            bytes
        };
        for (at, bytes, name) in [
            (0, &b"vhdxfile"[..], "VHDX"),
            (0, b"QFI\xfb", "QCOW2"),
            (0, b"KDMV", "VMDK"),
            (0, b"COWD", "VMDK"),
            (0, b"# Disk DescriptorFile\n", "VMDK"),
            (0, b"\xef\xbb\xbf#Disk Descriptor File\n", "VMDK"),
            (0, b"conectix", "VHD"),
            (2048 - 512, b"conectix", "VHD"),
            (2048 - 511, b"conectix", "VHD"),
        ] {
            assert_eq!(of(&with(at, bytes)).await, Some(name), "{at} {bytes:?}");
        }
        for (at, bytes) in [(8, &b"vhdxfile"[..]), (1000, b"conectix"), (0, b"QFI")] {
            assert_eq!(of(&with(at, bytes)).await, None, "{at} {bytes:?}");
        }
        assert_eq!(of(b"").await, None);
        assert_eq!(of(b"KDM").await, None);
    }
}
