//! Mending what a check finds.
//!
//! A footer is written again from its copy. A block that another overlaps gets a place of its own
//! for the bytes that it reads as; one that was cut off in its middle keeps what is left; one that
//! lies past the end was lost. Nothing that reads now reads otherwise after it.

use std::sync::Arc;

use block_io::File;

use super::{
    SECTOR,
    edit::Editor,
    load::{ABSENT, load_with},
    repack::copy,
};
use crate::{
    Error, Fault, Result,
    ops::{Action, Repair},
};

/// Mends what can be mended; says in `done` what was done.
pub(crate) async fn mend(file: Arc<dyn File>, done: &mut Vec<Repair>) -> Result<()> {
    if file.is_read_only() {
        return Err(block_io::Error::ReadOnly.into());
    }
    let mut wrong = Vec::new();
    let mut image = load_with(&*file, |damage, block| {
        wrong.push((damage, block));
        Ok(())
    })
    .await?;
    let footers = image.lost_footer.clone().into_iter().chain(image.lost_copy.clone());
    let rewritten = |damage| Repair { damage, action: Action::Rewritten };
    done.extend(footers.map(rewritten));
    let limit = image.file_len;
    let mut emptied = Vec::new();
    let mut copied = Vec::new();
    if let Some(blocks) = &mut image.blocks {
        for (damage, block) in wrong {
            let action = match damage.fault {
                Fault::EntryOffset { start, .. } if start < limit => Action::Extended,
                Fault::EntryOffset { .. } => {
                    blocks.table[block as usize] = ABSENT;
                    emptied.push(block as usize);
                    Action::Emptied
                }
                _ => {
                    copied.push(block as usize);
                    Action::Copied
                }
            };
            done.push(Repair { damage, action });
        }
    }
    // The file ends behind all that is left, and the footer is there.
    let mut editor = Editor::from_loaded(file, image).await?;
    for block in emptied {
        editor.write_table(block..block + 1).await?;
    }
    for block in copied {
        let Some(blocks) = editor.blocks() else { break };
        let len = blocks.header.bitmap_len() + u64::from(blocks.header.block_size);
        let entry = blocks.table.get(block).copied().filter(|entry| *entry != ABSENT);
        let Some(entry) = entry else { continue };
        let from = u64::from(entry) * SECTOR;
        let to = editor.extend(len).await?;
        copy(&**editor.file(), from..from + len, to).await?;
        editor.file().flush().await?;
        if let Some(blocks) = editor.blocks_mut() {
            let sector = u32::try_from(to / SECTOR);
            blocks.table[block] = sector.map_err(|_| Error::from(block_io::Error::NoSpace))?;
        }
        editor.write_table(block..block + 1).await?;
    }
    editor.finish().await.map(drop)
}
