//! How much room there is below the LUNs: initiators of thin ones are warned before it ends.

use std::{os::unix::fs::MetadataExt, path::Path, sync::Arc, time::Duration};

use scsi::{Space, Units};
use tokio::task::JoinHandle;

use super::{Iscsi, served::Listed};

/// How often the file systems below the images are asked.
const LOOK: Duration = Duration::from_secs(10);

/// One LUN, and what is known of it before its file system is asked.
struct Lun {
    units: Arc<Units>,
    number: u16,
    path: std::path::PathBuf,
    size: u64,
    warn_below: u64,
}

impl Iscsi {
    /// Looks again and again, as long as the result is polled.
    pub(super) async fn watch_space(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if self.look_at_space().await.is_err() {
                tracing::error!("the room below LUNs was not looked at");
            }
        }
    }

    /// Begins to ask how much room there is below each LUN, and to have those who use it warned.
    pub(super) fn look_at_space(&self) -> JoinHandle<()> {
        let luns: Vec<Lun> = self.listed().values().flat_map(room).collect();
        // A file system that does not answer keeps a thread of its own waiting, and nobody else.
        tokio::task::spawn_blocking(move || {
            for lun in luns {
                let Some(space) = below(&lun.path, lun.size) else { continue };
                // One that is gone by now needs no warning.
                let _ =
                    lun.units.set_space(lun.number, Space { warn_below: lun.warn_below, ..space });
            }
        })
    }
}

fn room(target: &Listed) -> impl Iterator<Item = Lun> {
    target.luns().map(|(unit, place)| Lun {
        units: target.units.clone(),
        number: unit.number,
        size: unit.size,
        path: place.path.clone(),
        warn_below: place.warn_below,
    })
}

/// The room below an image of that size: what its file system has left for it, and not more than it can
/// take. `None` for what is no file, and where nobody says.
fn below(path: &Path, size: u64) -> Option<Space> {
    let file = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let system = rustix::fs::statvfs(path).ok()?;
    let used = file.blocks() * 512;
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    Some(Space { available: free.min(size.saturating_sub(used)), used, warn_below: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_may_take_is_what_is_free_and_what_it_lacks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        std::fs::File::open(&path).unwrap().sync_all().unwrap();
        let space = below(&path, (1 << 20) + 4096).unwrap();
        assert!(space.used >= 1 << 20 && space.available <= 4096, "{space:?}");
        assert_eq!(below(folder.path(), 1 << 20), None, "no file");
        assert_eq!(below(&folder.path().join("gone"), 1 << 20), None);
    }
}
